"""What there is to see of a queued message: one plain object for mailq, `pysendmail queue` and scripts.

The keys are an interface (docs/ARCHITECTURE.md); numbers are seconds since the epoch or bytes. `scan` reads a spool
without its runner, for root when the daemon is down; of drop files, and of those of listeners, it shows owner, size and
age alone, since nobody has checked their contents (Postfix 2026-06: a crafted drop file crashed its lister).
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

from ..mail.outcome import Outcome
from ..paths import Paths
from . import queue_id
from .queue import Broken, Entry, Message, Queue
from .queue_file import read_envelope
from .record import Damaged

Item = dict[str, Any]
ARRIVING = frozenset(("drop", "smtp", "intake"))  # places of what is not in the queue yet
BY_SMTP = -1  # the uid of what came that way
Lifetimes = Callable[[str], int]  # seconds by sender: config.QueueSettings.lifetime_of
DAMAGED = "damaged: "  # how the reason of a message begins that cannot be read


def describe(message: Message, lifetime_of: Lifetimes, *, is_active: bool = False) -> Item:
    """The listing of a message whose state is known."""
    state, envelope, entry = message.state, message.envelope, message.entry
    last = state.last
    return {
        "id": message.id, "where": entry.place, "sender": envelope.sender, "size": message.length - message.offset,
        "arrived": envelope.received_at, "uid": envelope.origin.uid, "user": envelope.origin.user,
        "body": envelope.body, "attempts": state.attempts, "active": is_active,
        "next_try": None if entry.place == "hold" or is_active else entry.due,
        "expires": envelope.received_at + lifetime_of(envelope.sender),
        "reason": last.reason if last else "", "hold": state.held, "recipients": list(_recipients(message)),
    }


def _recipients(message: Message) -> Iterator[Item]:
    """Each envelope recipient with what has become of it, or of the targets it stands for."""
    by_recipient: dict[int, list[Outcome | None]] = {}
    for progress in message.state.progress.values():
        if not progress.is_replaced:
            by_recipient.setdefault(progress.recipient, []).append(progress.outcome)
    for index, recipient in enumerate(message.envelope.recipients):
        # A recipient that was expanded and has no targets of its own: another recipient's serve it.
        outcomes = by_recipient.get(index, [] if index in message.state.expanded else [None])
        worst = next((o for o in outcomes if o is not None and o.is_deferred), None)
        if worst is None and None in outcomes:
            status, reason = "queued", ""
        else:
            worst = worst or next((o for o in outcomes if o is not None and o.is_failed), None)
            status = "delivered" if worst is None else "deferred" if worst.is_deferred else "failed"
            reason = worst.reason if worst is not None else ""
        yield {"address": recipient.address, "status": status, "reason": reason}


def scan(paths: Paths, clock: float, lifetime_of: Lifetimes) -> Iterator[Item]:
    """Everything in the spool, read from its files. Raises OSError where the caller may not look."""
    queue = Queue(paths, lambda: clock)
    listed = set()
    for entry in sorted(queue.entries(), key=lambda entry: entry.id):
        item = _read(queue, entry, lifetime_of, clock)
        if item is not None:
            listed.add(entry.id)
            yield item
    for place, directory in (("intake", paths.intake), ("drop", paths.drop_new), ("smtp", paths.smtp_new)):
        with os.scandir(directory) as files:
            for file in sorted(files, key=lambda file: file.name):
                if place == "intake" and file.name[:14] in listed:
                    continue
                try:
                    seen = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                uid = BY_SMTP if place == "smtp" else seen.st_uid
                yield _bare(file.name[:14], place, uid) | {"size": seen.st_size, "arrived": seen.st_mtime}


def _read(queue: Queue, entry: Entry, lifetime_of: Lifetimes, now: float) -> Item | None:
    try:
        return describe(peek(queue, entry), lifetime_of)
    except FileNotFoundError:
        return None  # it has just left
    except (Broken, Damaged, ValueError) as problem:
        return damaged(entry, problem, now)


def damaged(entry: Entry, problem: Exception, now: float) -> Item:
    """The listing of a message that cannot be read."""
    return _bare(entry.id, entry.place, entry.uid) | {
        "arrived": queue_id.made_at(entry.id, now), "attempts": entry.attempts, "reason": f"{DAMAGED}{problem}"}


def whose(item: Item) -> str:
    """For people, of a message of which no more is known."""
    return "(by SMTP)" if item["uid"] == BY_SMTP else f"(uid {item['uid']})"


def _bare(name: str, place: str, uid: int) -> Item:
    """The listing of something of which nothing is known yet."""
    return {"id": name, "where": place, "sender": "", "size": 0, "arrived": 0.0, "uid": uid, "user": "",
            "body": "", "attempts": 0, "active": False, "next_try": None, "expires": None, "reason": "", "hold": "",
            "recipients": []}


def peek(queue: Queue, entry: Entry) -> Message:
    """A message for looking at: its envelope and journal, without the check of the whole file."""
    fd = queue.open_entry(entry)
    try:
        envelope, offset, length = read_envelope(fd, entry.id, verify=False)
    finally:
        os.close(fd)
    message = Message(entry, envelope, offset, length)
    queue.load_journal(message)
    return message
