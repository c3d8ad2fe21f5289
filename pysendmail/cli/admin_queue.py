"""`pysendmail queue`: look at the queue, try it, hold, return or delete messages.

Messages are chosen by id or by filters, which must all fit; a filter given twice means either. Commands that change
something want to be told which messages: all of them only with --all. Nothing that is shown here is trusted: texts are
escaped, and JSON is ASCII.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..events import shown
from ..paths import Paths
from ..spool.listing import ARRIVING, DAMAGED, whose
from ..spool.queue_id import is_queue_id
from ..spool.selection import AGES, open_recipients
from . import ask
from .ask import Item

EX_OK, EX_USAGE, EX_NOINPUT, EX_TEMPFAIL = 0, 64, 66, 75
MAX_SHOWN = 1000  # characters of one address or reason
MAX_RECIPIENTS = 20  # lines for one message in the list
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
MAX_AGE = 10 * 366 * 86_400  # seconds
MAX_TIME = 253_402_300_799  # the last second of the year 9999
TIMES = frozenset(("arrived", "next_try", "expires"))
PAST = {"hold": "held", "release": "released", "delete": "deleted", "bounce": "returned", "requeue": "requeued"}

Command = TypeVar("Command", bound=Callable[..., Any])


class Age(click.ParamType):
    """A time such as 30m, 4h or 1d12h, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        seconds, digits = 0, ""
        for character in value:
            if character in "0123456789" and len(digits) < 9:
                digits += character
            elif character in UNITS and digits:
                seconds, digits = seconds + int(digits) * UNITS[character], ""
            else:
                break
        else:
            if value and not digits and seconds <= MAX_AGE:
                return seconds
        self.fail(f"{value!r} is no age such as 30m, 4h or 2d", param, ctx)


class QueueId(click.ParamType):
    """A whole queue id: a part of one could be a part of others too, and what is deleted is gone."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        queue_id = str(value).removesuffix("*")  # mailq's mark of those that are being delivered
        if not is_queue_id(queue_id):
            self.fail(f"{value!r} is no queue id", param, ctx)
        return queue_id


def choosing(command: Command) -> Command:
    """The arguments and options that choose messages."""
    for decorate in reversed((
        click.argument("ids", nargs=-1, type=QueueId(), metavar="[ID]..."),
        click.option("--sender", multiple=True, metavar="TEXT", help="Text in the sender's address."),
        click.option("--recipient", multiple=True, metavar="TEXT", help="Text in a recipient's address."),
        click.option("--domain", multiple=True, metavar="DOMAIN", help="Domain of a recipient."),
        click.option("--reason", multiple=True, metavar="TEXT", help="Text in the reason for waiting."),
        click.option("--older", type=Age(), metavar="AGE", help="Arrived longer ago than this, such as 2d."),
        click.option("--younger", type=Age(), metavar="AGE", help="Arrived since then."),
        click.option("--held/--not-held", default=None, help="On hold, or not."),
    )):
        command = decorate(command)
    return command


def filter_of(chosen: dict[str, Any]) -> dict[str, Any]:
    """The filter of spool/selection.py for what the options of `choosing` gave."""
    found: dict[str, Any] = {"id": list(chosen["ids"])} if chosen["ids"] else {}
    for name in ("sender", "recipient", "domain", "reason"):
        if chosen[name]:
            found[name] = chosen[name][0] if len(chosen[name]) == 1 else list(chosen[name])
    for name in (*AGES, "held"):
        if chosen[name] is not None:
            found[name] = chosen[name]
    return found


@click.group(no_args_is_help=False)
def queue() -> None:
    """Look at the queue and change what is in it."""


@queue.command("list")
@choosing
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_obj
def list_(paths: Paths, as_json: bool, **chosen: Any) -> int:
    """List the messages in the queue: all, or those that are chosen."""
    answer = ask.ask(paths, {"do": "list", "filter": filter_of(chosen)})
    count, now = 0, time.time()
    if as_json:
        count = len(_print_array(answer, sys.stdout.write))
    else:
        for item in answer:
            click.echo("\n".join(summary(item, now)))
            count += 1
        click.echo(f"{count} message{'' if count == 1 else 's'}")
    return EX_NOINPUT if chosen["ids"] and not count else EX_OK


@queue.command()
@click.argument("wanted", type=QueueId(), metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(paths: Paths, wanted: str, as_json: bool) -> None:
    """Show all there is to know about one message."""
    for item in ask.ask(paths, {"do": "show", "id": wanted}):
        if as_json:
            click.echo(json.dumps(item))
            continue
        click.echo("\n".join(details(item)))


@queue.command()
@choosing
@click.option("--dry-run", is_flag=True, help="Only list what would be tried.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_obj
def flush(paths: Paths, dry_run: bool, as_json: bool, **chosen: Any) -> int:
    """Try messages now: all, or those that are chosen."""
    return _change(paths, "flush", filter_of(chosen), is_dry=dry_run, as_json=as_json)


@queue.command()
@choosing
@click.option("--eml", is_flag=True, help="One message as it is, instead of an mbox.")
@click.pass_obj
def export(paths: Paths, eml: bool, **chosen: Any) -> int:
    """Write messages to standard output: all, or those that are chosen."""
    from . import admin_export
    return admin_export.export(paths, filter_of(chosen), as_mbox=not eml)


@queue.command()
@choosing
@click.option("--by-sender", is_flag=True, help="Domains of senders instead of recipients.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def shape(paths: Paths, by_sender: bool, as_json: bool, **chosen: Any) -> None:
    """Show how old what waits for which domain is."""
    from . import admin_shape
    admin_shape.show(ask.ask(paths, {"do": "list", "filter": filter_of(chosen)}), by_sender=by_sender, as_json=as_json)


def _changing(verb: str, text: str) -> None:
    """One command that changes the messages it is told."""
    @choosing
    @click.option("--all", "is_all", is_flag=True, help="All messages.")
    @click.option("--dry-run", is_flag=True, help="Only list what would be done.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
    @click.pass_obj
    def command(paths: Paths, is_all: bool, dry_run: bool, as_json: bool, **chosen: Any) -> int:
        wanted = filter_of(chosen)
        if bool(wanted) == is_all:
            raise click.UsageError("choose messages by id or filter, or all of them with --all")
        if verb == "release" and not chosen["ids"]:
            wanted.setdefault("held", True)  # the others have nothing to be released from
        return _change(paths, verb, wanted, is_dry=dry_run, as_json=as_json)

    queue.command(verb, help=text)(command)


_changing("hold", "Keep messages in the queue until they are released.")
_changing("release", "Let held messages go.")
_changing("delete", "Delete messages. Nobody is told.")
_changing("bounce", "Return messages to their senders now.")
_changing("requeue", "Look up aliases and routes of messages anew, and try them.")


def _change(paths: Paths, verb: str, wanted: dict[str, Any], *, is_dry: bool, as_json: bool) -> int:
    """Ask for it and say what became of each. 75 if a message could not be changed, 66 if a named one is not there.

    A reader that goes away (| head) does not leave it half done: the daemon stops where nobody takes its answer.
    """
    answer = ask.ask(paths, {"do": verb, "filter": wanted, "dry_run": is_dry})
    refused, changed = 0, 0
    if as_json:
        for item in _print_array(answer, _tell):
            refused += item.get("result", "ok") != "ok"
            changed += 1
    else:
        past = "tried" if verb == "flush" else PAST[verb]
        for item in answer:
            result = item.get("result", "ok")
            words = result if result != "ok" else f"would be {past}" if is_dry else past
            _tell(f"{shown(item['id'])}: {shown(words, MAX_SHOWN)}\n", err=result != "ok")
            refused += result != "ok"
            changed += 1
        if not changed:
            _tell("no message in the queue fits\n", err=True)
    if refused:
        return EX_TEMPFAIL
    return EX_NOINPUT if "id" in wanted and not changed else EX_OK


def _tell(text: str, *, err: bool = False) -> None:
    """Print it now; nothing from now on, once nobody reads that any more."""
    try:
        click.echo(text, nl=False, err=err)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())


def _print_array(answer: ask.Answer, write: Callable[[str], object]) -> list[Item]:
    """Print listings as one JSON array, an entry a line, as they come; what was printed, without its recipients."""
    seen = []
    separator = "[\n"
    for item in answer:
        write(separator + json.dumps(item))
        separator = ",\n"
        seen.append({"id": item["id"], "result": item.get("result", "ok")})
    write("\n]\n" if seen else "[]\n")
    return seen


# ---- for people


def duration(seconds: float) -> str:
    """A time in its largest whole unit: "3 h"."""
    seconds = max(0, int(seconds))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def moment(seconds: float) -> str:
    """A time since the epoch, where we are."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(min(max(seconds, 0), MAX_TIME)))


def state_of(item: Item) -> str:
    """One word for what a message is doing."""
    if item["active"]:
        return "active"
    if item["reason"].startswith(DAMAGED):
        return "damaged"
    if item["where"] in ARRIVING:
        return "arriving"
    if item["where"] == "hold":
        return "held"
    return "deferred" if item["attempts"] else "waiting"


def summary(item: Item, now: float) -> list[str]:
    """A message in the list."""
    sender = f"<{shown(item['sender'], MAX_SHOWN)}>" if item["recipients"] else whose(item)
    age = duration(now - item["arrived"])
    lines = [f"{shown(item['id'])}  {state_of(item):<8}  {age:>6}  {item['size']:>9}  {sender}"]
    if item["where"] == "hold":
        lines.append(f"    held: {shown(item['hold'], MAX_SHOWN)}")
    if item["next_try"] and item["attempts"]:
        end = "returned" if item["sender"] else "given up"
        left = f", {end} in {duration(item['expires'] - now)}" if item["expires"] else ""
        lines.append(f"    attempt {item['attempts'] + 1} in {duration(item['next_try'] - now)}{left}")
    recipients = open_recipients(item)
    for one in recipients[:MAX_RECIPIENTS]:
        reason = f": {shown(one['reason'], MAX_SHOWN)}" if one["reason"] else ""
        lines.append(f"    <{shown(one['address'], MAX_SHOWN)}>{reason}")
    if len(recipients) > MAX_RECIPIENTS:
        lines.append(f"    and {len(recipients) - MAX_RECIPIENTS} more")
    return lines


def details(item: Item) -> list[str]:
    """Everything about a message, a line each."""
    lines = []
    for name, value in item.items():
        if name != "recipients" and value not in ("", None):
            lines.append(f"{shown(name)}: {moment(value) if name in TIMES else shown(str(value), MAX_SHOWN)}")
    for one in item["recipients"]:
        reason = f": {shown(one['reason'], MAX_SHOWN)}" if one["reason"] else ""
        lines.append(f"recipient: <{shown(one['address'], MAX_SHOWN)}> {shown(one['status'])}{reason}")
    return lines
