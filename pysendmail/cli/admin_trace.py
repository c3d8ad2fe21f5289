"""`pysendmail trace`: one message's life in words, from the queue's journal and from the system's log.

While a message is in the queue its journal says what has become of each recipient; before and after that there is only
the log: the journal of systemd, else /var/log/mail.log and the file before it. Both are read as far as the caller may,
and the answer ends with what was read and what was not. The log is text that strangers have a hand in: lines are
escaped, and nothing in them is more than text.

root runs journalctl first and becomes the queue's owner before a file of the queue is opened.
"""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click

from ..events import shown
from ..paths import Paths
from ..spool import listing
from ..spool.queue import Broken, Queue
from ..spool.queue_id import is_queue_id
from ..spool.record import Damaged
from . import ask
from .admin_queue import moment

EX_OK, EX_NOINPUT = 0, 66
JOURNALCTL = ("/usr/bin/journalctl", "--quiet", "--no-pager", "--output=short-iso", "--identifier=sendmail")
LOG_FILES = ("/var/log/mail.log.1", "/var/log/mail.log")
WITHIN = 60.0  # seconds for journalctl
MAX_LINES = 10_000  # that are told
MAX_SHOWN = 600  # characters of one
MAX_LINE = 8192  # bytes of a line in a log
MAX_IDS = 100  # messages with one Message-ID, and reports about them

# DATE HOST sendmail[PID]: ID: WORDS, with the date as journalctl or rsyslog writes it
_LINE = re.compile(r"(\S+|\w{3} [ \d]\d [\d:]{8}) \S+ sendmail\[\d+\]: (\w{14}): (.*)")
_REPORT = re.compile(r"(\w{14}): (.*)")
_FROM = re.compile(r"from=<(.*?)>, size=(\d+), .*?nrcpts=(\d+), .*?relay=(.*)")
_TO = re.compile(r"to=<(.*?)>, .*?delay=([^,]*), .*?relay=(.*), dsn=([\d.]+), stat=(.*)")


class Line(NamedTuple):
    """One line of the log about a message."""

    when: str
    queue_id: str
    words: str


@click.command()
@click.argument("wanted", metavar="ID|MESSAGE-ID")
@click.pass_obj
def trace(paths: Paths, wanted: str) -> int:
    """Tell what has happened to a message, as far as the queue and the log know."""
    sources: list[str] = []
    ids = {wanted} if is_queue_id(wanted) else set()
    told = 0
    for line in select(_log(sources), wanted, ids):
        click.echo(f"{shown(line.when)}  {line.queue_id}  {shown(tell(line.words), MAX_SHOWN)}")
        told += 1
    for text in _from_queue(paths, sorted(ids), sources):
        click.echo(text)
        told += 1
    if not told:
        click.echo("nothing is known of it", err=True)
    click.echo(f"read: {'; '.join(sources)}", err=True)
    return EX_OK if told else EX_NOINPUT


# ---- the log


def select(log: Iterable[str], wanted: str, ids: set[str]) -> Iterator[Line]:
    """The lines about the messages in `ids`, about those that have the Message-ID `wanted`, and about reports on
    them; their ids are added to `ids`."""
    message_id = f"msgid=<{wanted.removeprefix('<').removesuffix('>')}>,"
    told = 0
    for text in log:
        found = _LINE.fullmatch(text)
        if found is None:
            continue
        line = Line(*found.groups())
        if line.queue_id not in ids:
            if message_id not in line.words or not line.words.startswith("from=") or len(ids) >= MAX_IDS:
                continue
            ids.add(line.queue_id)
        report = _REPORT.fullmatch(line.words)
        if report is not None and is_queue_id(report[1]) and len(ids) < MAX_IDS:
            ids.add(report[1])
        yield line
        told += 1
        if told == MAX_LINES:
            return


def tell(words: str) -> str:
    """What a line of the log says behind the queue id, for people."""
    if (found := _FROM.fullmatch(words)) is not None:
        sender, size, count, relay = found.groups()
        people = "1 recipient" if count == "1" else f"{count} recipients"
        whom = f"<{sender}>" if sender else "the mail system itself"
        return f"accepted from {whom} by {relay}: {size} bytes, {people}"
    if (found := _TO.fullmatch(words)) is not None:
        address, delay, relay, status, stat = found.groups()
        if stat.startswith("Sent"):
            return f"delivered to <{address}> ({relay}) {delay} after it came: {stat}"
        if stat.startswith("Deferred"):
            return f"put off for <{address}> ({relay}): {stat.removeprefix('Deferred: ')} ({status})"
        return f"failed for <{address}> ({relay}): {stat} ({status})"
    if (found := _REPORT.fullmatch(words)) is not None and is_queue_id(found[1]):
        return f"reported to its sender with message {found[1]}: {found[2]}"
    return words


def _log(sources: list[str]) -> Iterator[str]:
    """The lines of the log, oldest first. sources: gets what was read, and what could not be."""
    if os.path.exists(JOURNALCTL[0]):
        count = 0
        for line in _journalctl():
            count += 1
            yield line
        if count:
            sources.append("the journal of systemd")
            return
        sources.append("the journal of systemd (empty, or not open to you)")
    for path in LOG_FILES:
        try:
            with open(path, "rb") as file:
                while data := file.readline(MAX_LINE):
                    yield data.decode("utf-8", "surrogateescape").rstrip("\n")
        except FileNotFoundError:
            continue
        except OSError as trouble:
            sources.append(f"not {path} ({trouble.strerror})")
        else:
            sources.append(path)


def _journalctl() -> Iterator[str]:
    process = subprocess.Popen(JOURNALCTL, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    limit = threading.Timer(WITHIN, process.kill)
    limit.start()
    assert process.stdout is not None
    try:
        while data := process.stdout.readline(MAX_LINE):
            yield data.decode("utf-8", "surrogateescape").rstrip("\n")
    finally:
        limit.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


# ---- the queue


def _from_queue(paths: Paths, ids: list[str], sources: list[str]) -> Iterator[str]:
    """What the journals of those that are still in the queue say."""
    if not ask.may_read(paths):
        sources.append(f"not {paths.queue} (only root can)")
        return
    ask.become_owner(paths)
    sources.append(paths.queue)
    queue = Queue(paths, time.time)
    for entry in [entry for entry in queue.entries() if entry.id in ids]:
        try:
            message = listing.peek(queue, entry)
        except FileNotFoundError:
            continue  # it has just left
        except (OSError, Broken, Damaged, ValueError) as problem:
            yield f"{entry.id} is in the queue and cannot be read: {shown(str(problem), MAX_SHOWN)}"
            continue
        item = listing.describe(message, lambda _: 0)
        yield (f"{entry.id} is in the queue since {moment(item['arrived'])}, from <{shown(item['sender'])}>, tried "
               f"{item['attempts']} time{'' if item['attempts'] == 1 else 's'}")
        for one in item["recipients"][:MAX_LINES]:
            reason = f": {shown(one['reason'], MAX_SHOWN)}" if one["reason"] else ""
            yield f"  <{shown(one['address'], MAX_SHOWN)}> {one['status']}{reason}"
        if entry.place == "hold":
            yield f"  it is on hold: {shown(item['hold'], MAX_SHOWN) or 'held'}"
        elif entry.place == "cur":
            yield f"  it is tried again at {moment(entry.due)}"
