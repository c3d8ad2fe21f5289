"""mailq(1), also `sendmail -bp`: the queue as sendmail prints it, because monitors and scripts read that.

            /var/spool/pysendmail/queue (1 request)
    -----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
    0WkDdmTe001000*    1201 Fri Jun 23 17:38 <alice@example.org>
          8BITMIME   (Deferred: connection refused by mx.example.com)
                                             <bob@example.com>
            Total requests: 1

"*" after an id: an attempt is going on. The columns are sendmail's; texts are not cut to 39 characters as sendmail cuts
them. Everything in them came from strangers: what is not printable is escaped, and a message has a bounded number of
lines. `check_mailq` of the monitoring plugins adds up the indented "Total requests: N", so that line is always there.
"""

import sys
import time
from collections.abc import Iterator

from ..events import shown
from ..paths import Paths
from ..spool.listing import ARRIVING, DAMAGED, whose
from ..spool.selection import open_recipients
from . import ask, queuerun
from .ask import Item

EX_OK, EX_USAGE = 0, 64
MAX_SHOWN = 1000  # characters of one address or reason
MAX_RECIPIENTS = 1000  # lines for one message
MAX_TIME = 253_402_300_799  # the last second of the year 9999
HEADING = "-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------"
VERBOSE_HEADING = "-----Q-ID----- --Size-- -Priority- ---Q-Time--- --------Sender/Recipient--------"
RECIPIENT_WEIGHT, ATTEMPT_WEIGHT = 30_000, 90_000  # sendmail's priority: size, plus these for each
PLACES_OF = {"c": ARRIVING, "m": frozenset(("new", "cur", "hold"))}

# Options of sendmail(8) that mean nothing here. Those in the second set have a value, attached or as the next word.
_WITHOUT_VALUE, _WITH_VALUE = frozenset("GIimnstU"), frozenset("BCDFfhLNORrVXopde")


class UsageError(Exception):
    """The words after the name of the program make no sense. The text says why."""


class Options:
    """What the words after `mailq` ask for. place: the letter of -A, "" = both. selections: values of -q."""

    def __init__(self, args: list[str]) -> None:
        self.is_verbose = False
        self.place = ""
        self.selections: list[str] = []
        waiting = list(reversed(args))
        while waiting:
            word = waiting.pop()
            if word == "--":
                break
            if len(word) < 2 or not word.startswith("-"):
                continue  # sendmail -bp does not look at addresses either
            self._option(word[1], word[2:], waiting)

    def _option(self, letter: str, value: str, waiting: list[str]) -> None:
        if letter == "q":
            self.selections.append(value)
        elif letter == "A":
            self.place = value if value in PLACES_OF else ""
        elif letter == "b":
            if value != "p":
                raise UsageError(f"cannot do -b{value} here")
        elif letter in _WITH_VALUE:
            if not value and waiting and letter not in "dC":
                waiting.pop()
        elif letter == "v" or letter in _WITHOUT_VALUE:
            self.is_verbose |= letter == "v"
            if value:
                self._option(value[0], value[1:], waiting)
        else:
            raise UsageError(f"invalid option -- '{letter}'")


def main(args: list[str], paths: Paths) -> int:
    """args: the words after the program's name. The exit code: 0 whenever there is an answer, even an empty one."""
    try:
        options = Options(args)
        _list(options, paths)
    except UsageError as problem:
        return _fail(str(problem), EX_USAGE)
    except ask.Unanswered as problem:
        return _fail(str(problem), problem.code)
    return EX_OK


def _list(options: Options, paths: Paths) -> None:
    wanted, quarantine = selection(options.selections)
    queue = f"{paths.spool}/drop" if options.place == "c" else paths.queue
    places = PLACES_OF.get(options.place)
    answer = ask.ask(paths, {"do": "list", "filter": wanted})
    items = (item for item in answer if (places is None or item["where"] in places) and quarantine in item["hold"])
    output = _Output(queue, None if places or quarantine else answer.count, is_verbose=options.is_verbose)
    for item in items:
        output.add("".join(entry(item, is_verbose=options.is_verbose)))
    output.end()


def selection(values: list[str]) -> tuple[dict[str, object], str]:
    """(filter, text that must be in the reason of a held message) for the values of -q. Raises UsageError."""
    try:
        chosen = queuerun.selection([value for value in values if value[:1] != "Q" and value[:2] != "!Q"])
    except ValueError as problem:
        raise UsageError(str(problem))
    quarantine = ""
    for value in values:
        if value[:1] == "Q":
            chosen["held"], quarantine = True, value[1:]
        elif value[:2] == "!Q":
            chosen["held"] = False
    return chosen, quarantine


class _Output:
    """sendmail says how many there are before the first: unless `count` is known, the texts are kept until the end.
    It may be more than what is shown to this user."""

    def __init__(self, queue: str, count: int | None, *, is_verbose: bool) -> None:
        self._queue, self._is_verbose = queue, is_verbose
        self._kept: list[str] | None = None if count else []
        self._count, self._total = count or 0, 0
        if count:
            self._head(count)

    def _head(self, count: int) -> None:
        heading = VERBOSE_HEADING if self._is_verbose else HEADING
        sys.stdout.write(f"\t\t{self._queue} ({count} request{'' if count == 1 else 's'})\n{heading}\n")

    def add(self, text: str) -> None:
        self._total += 1
        if self._kept is None:
            sys.stdout.write(text)
        else:
            self._kept.append(text)

    def end(self) -> None:
        if self._kept:
            self._head(self._total)
            sys.stdout.write("".join(self._kept))
        elif not self._total and not self._count:
            sys.stdout.write(f"{self._queue} is empty\n")
        sys.stdout.write(f"\t\tTotal requests: {max(self._total, self._count)}\n")


def entry(item: Item, *, is_verbose: bool) -> Iterator[str]:
    """The lines of one message."""
    recipients = open_recipients(item)
    size, flag = int(item["size"]), "*" if item["active"] else " "
    when = time.ctime(min(max(item["arrived"], 0), MAX_TIME))
    if is_verbose:
        priority = size + RECIPIENT_WEIGHT * len(recipients) + ATTEMPT_WEIGHT * int(item["attempts"])
        yield f"{shown(item['id'], 14):<14}{flag}{size:8d} {priority:10d} {when[4:16]} {sender(item)}\n"
    else:
        yield f"{shown(item['id'], 14):<14}{flag}{size:8d} {when[:16]} {sender(item)}\n"
    if item["where"] == "hold":
        yield f"     QUARANTINE: {shown(item['hold'], MAX_SHOWN) or 'held'}\n"
    reason = reason_of(item)
    if reason or item["body"]:
        words = f"   ({reason})" if reason else ""
        yield f"    {shown(item['body'].upper(), 10):>10}{words}\n"
    indent = "\t\t\t\t\t\t" if is_verbose else "\t\t\t\t\t "
    for one in recipients[:MAX_RECIPIENTS]:
        yield f"{indent}<{shown(one['address'], MAX_SHOWN)}>\n"
        if is_verbose and one["reason"] and one["reason"] != item["reason"]:
            yield f"\t\t ({shown(one['reason'], MAX_SHOWN)})\n"
    if len(recipients) > MAX_RECIPIENTS:
        yield f"{indent}... and {len(recipients) - MAX_RECIPIENTS} more\n"


def sender(item: Item) -> str:
    """The sender's column. Of mail that nobody has looked into yet, or that is damaged, only the owner is known."""
    if not item["recipients"]:
        return whose(item)
    return f"<{shown(item['sender'], MAX_SHOWN)}>" if item["sender"] else "MAILER-DAEMON"


def reason_of(item: Item) -> str:
    """Why it waits, in sendmail's words where there are some; "" if it has only just come."""
    if item["where"] in ARRIVING:
        return "queued, to be taken in"
    reason = shown(item["reason"], MAX_SHOWN)
    if not reason or reason.startswith(("Deferred", DAMAGED)):
        return reason
    return f"Deferred: {reason}"


def _fail(words: str, code: int) -> int:
    print(f"mailq: {shown(words, MAX_SHOWN)}", file=sys.stderr)
    return code
