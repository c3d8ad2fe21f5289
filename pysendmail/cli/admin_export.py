"""`pysendmail queue export`: the text of queued messages, as an mbox or as one plain message.

The files of the queue never change, so they can be read whether the daemon is up or down; by root, who becomes their
owner before the first of them is opened. Which ones is asked in the usual way. Whoever exports sees what a recipient
does not: each message begins with its envelope sender (Return-Path) and its recipients (X-Envelope-To, also those of
Bcc). Nothing leaves the queue.
"""

import os
import sys
import time
from collections.abc import Iterator

import click

from ..deliver import mboxrd
from ..deliver.parcel import Parcel, Unreadable
from ..events import shown
from ..mail import trace
from ..paths import Paths
from ..spool import listing
from ..spool.queue import Broken, Entry, Message, Queue
from ..spool.record import Damaged
from . import ask

EX_OK, EX_NOINPUT, EX_TEMPFAIL, EX_NOPERM = 0, 66, 75, 77
MAX_SHOWN = 1000  # characters of a complaint


def export(paths: Paths, wanted: dict[str, object], *, as_mbox: bool) -> int:
    """Write the chosen messages to standard output. The exit code."""
    ids = [item["id"] for item in ask.ask(paths, {"do": "list", "filter": wanted})]
    if not ids:
        click.echo("no message in the queue fits", err=True)
        return EX_NOINPUT
    if not as_mbox and len(ids) > 1:
        raise click.UsageError(f"{len(ids)} messages fit; as one plain message only one can be exported")
    if not ask.may_read(paths):
        raise ask.Unanswered("only root may export messages", EX_NOPERM)
    ask.become_owner(paths)
    queue = Queue(paths, time.time)
    entries = {entry.id: entry for entry in queue.entries()}
    missing = 0
    for one in ids:
        try:
            for piece in _pieces(queue, entries, one, as_mbox=as_mbox):
                sys.stdout.buffer.write(piece)
        except (OSError, Broken, Damaged, Unreadable, ValueError) as trouble:
            if isinstance(trouble, BrokenPipeError):
                raise
            missing += 1
            words = "has left the queue" if isinstance(trouble, FileNotFoundError) else str(trouble)
            click.echo(f"{one}: {shown(words, MAX_SHOWN)}", err=True)
    sys.stdout.buffer.flush()
    return EX_TEMPFAIL if missing else EX_OK


def _pieces(queue: Queue, entries: dict[str, Entry], wanted: str, *, as_mbox: bool) -> Iterator[bytes]:
    entry = entries.get(wanted)
    try:
        if entry is None:
            raise FileNotFoundError(wanted)
        fd = queue.open_entry(entry)
    except FileNotFoundError:  # it was moved: every attempt gives it another name
        entry = queue.find(wanted)
        if entry is None:
            raise
        fd = queue.open_entry(entry)
    try:
        yield from _text(listing.peek(queue, entry), fd, as_mbox=as_mbox)
    finally:
        os.close(fd)


def _text(message: Message, fd: int, *, as_mbox: bool) -> Iterator[bytes]:
    envelope = message.envelope
    now = envelope.received_at
    head = trace.return_path(envelope.sender) + b"".join(
        b"X-Envelope-To: <%s>\n" % trace.addr_spec(one.address) for one in envelope.recipients)
    parcel = Parcel(message.id, fd, message.offset, message.length, head,
                    trace.from_line(envelope.sender, now, time.localtime(now).tm_gmtoff))
    return mboxrd.render(parcel) if as_mbox else parcel.pieces()
