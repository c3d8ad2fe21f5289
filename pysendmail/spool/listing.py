"""What there is to see of a queued message: one plain object for mailq, `pysendmail queue` and scripts.

The keys are an interface (docs/ARCHITECTURE.md); numbers are seconds since the epoch or bytes. `scan` reads a spool
without its runner, for root when the daemon is down; of drop files it shows owner, size and age alone, since nobody has
checked their contents (Postfix 2026-06: a crafted drop file crashed its lister).
"""

import os
from collections.abc import Iterator
from typing import Any

from ..mail.outcome import Outcome
from ..paths import Paths
from .queue import Broken, Damaged, Entry, Message, Queue, read_envelope

Item = dict[str, Any]


def describe(message: Message, *, lifetime: int, is_active: bool = False, next_try: float | None = None) -> Item:
    """The listing of a message whose state is known. lifetime: of messages, seconds."""
    state, envelope, entry = message.state, message.envelope, message.entry
    last = state.last or next((p.outcome for p in state.progress.values() if p.outcome and p.outcome.is_deferred), None)
    return {
        "id": message.id, "where": entry.place, "sender": envelope.sender, "size": message.length - message.offset,
        "arrived": envelope.received_at, "uid": envelope.origin.uid, "user": envelope.origin.user,
        "body": envelope.body, "attempts": state.attempts, "active": is_active,
        "next_try": None if entry.place == "hold" or is_active else (entry.due if next_try is None else next_try),
        "expires": envelope.received_at + lifetime, "reason": last.reason if last else "", "hold": state.held,
        "recipients": list(_recipients(message)),
    }


def _recipients(message: Message) -> Iterator[Item]:
    """Each envelope recipient with what has become of it, or of the targets it stands for."""
    by_recipient: dict[int, list[Outcome | None]] = {}
    for progress in message.state.progress.values():
        if not progress.is_replaced:
            by_recipient.setdefault(progress.recipient, []).append(progress.outcome)
    for index, recipient in enumerate(message.envelope.recipients):
        outcomes = by_recipient.get(index, [None])
        worst = next((o for o in outcomes if o is not None and o.is_deferred), None)
        if worst is None and None in outcomes:
            status, reason = "queued", ""
        else:
            worst = worst or next((o for o in outcomes if o is not None and o.is_failed), outcomes[0])
            status = "delivered" if worst is None or worst.is_delivered else "deferred" if worst.is_deferred else "failed"
            reason = worst.reason if worst is not None else ""
        yield {"address": recipient.address, "status": status, "reason": reason}


def scan(paths: Paths, clock: float, lifetime: int = 432000) -> Iterator[Item]:
    """Everything in the spool, read from its files. Raises OSError where the caller may not look."""
    queue = Queue(paths, lambda: clock)
    listed = set()
    for entry in sorted(queue.entries(), key=lambda entry: entry.id):
        item = _read(queue, entry, lifetime)
        if item is not None:
            listed.add(entry.id)
            yield item
    for place, directory in (("intake", paths.intake), ("drop", paths.drop_new)):
        with os.scandir(directory) as files:
            for file in sorted(files, key=lambda file: file.name):
                if place == "intake" and file.name[:14] in listed:
                    continue
                try:
                    seen = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield {"id": file.name[:14], "where": place, "sender": "", "size": seen.st_size, "arrived": seen.st_mtime,
                       "uid": seen.st_uid, "user": "", "body": "", "attempts": 0, "active": False, "next_try": None,
                       "expires": None, "reason": "", "hold": "", "recipients": []}


def _read(queue: Queue, entry: Entry, lifetime: int) -> Item | None:
    try:
        return describe(peek(queue, entry), lifetime=lifetime)
    except FileNotFoundError:
        return None  # it has just left
    except (Broken, Damaged, ValueError) as problem:
        return {"id": entry.id, "where": entry.place, "sender": "", "size": 0, "arrived": 0.0, "uid": entry.uid, "user": "",
                "body": "", "attempts": entry.attempts, "active": False, "next_try": None, "expires": None,
                "reason": f"damaged: {problem}", "hold": "", "recipients": []}


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
