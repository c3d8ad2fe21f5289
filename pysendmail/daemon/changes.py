"""What an administrator can do to a waiting message: hold, release, delete, bounce, requeue.

Each function takes whoever owns the spool at this moment (the runner, or offline.py while there is none) and an entry
that waits, which nobody works on. It raises OSError, Broken, Damaged or ValueError when it could not be done; the
message is then where it was. Nothing here asks who asks: control.py does.
"""

import time
from collections.abc import Callable
from typing import Protocol

from ..events import Events
from ..mail.outcome import failed
from ..route.expand import Expander
from ..spool import listing
from ..spool.journal import Event
from ..spool.queue import Entry, Message, Queue

BY_ADMINISTRATOR = "held by the administrator"


class Owner(Protocol):
    """Whoever has the spool's lock."""

    queue: Queue
    events: Events

    @property
    def expander(self) -> Expander:
        """Where mail goes now."""

    def changed(self, entry: Entry) -> None:
        """A message that goes on waiting is not what it was."""

    def gone(self, entry: Entry) -> None:
        """A message is no longer in the queue."""

    def make_ready(self, queue_ids: list[str]) -> None:
        """These are due now."""

    def resume(self, message: Message) -> None:
        """Work on a message now."""


def hold(owner: Owner, entry: Entry, why: str = BY_ADMINISTRATOR) -> None:
    """Out of the schedule, until released. why: one line for people."""
    if entry.place == "hold":
        return
    _note(owner, entry, Event("held", time.time(), {"why": why}))
    owner.queue.hold(entry)
    owner.changed(entry)
    owner.events.noted(entry.id, "quarantine: " + why)


def release(owner: Owner, entry: Entry) -> None:
    """Back into the schedule, due at once."""
    if entry.place != "hold":
        return
    _note(owner, entry, Event("released", time.time(), {}))
    owner.queue.release(entry)
    owner.changed(entry)
    owner.events.noted(entry.id, "released")
    owner.make_ready([entry.id])


def _note(owner: Owner, entry: Entry, event: Event) -> None:
    message = listing.peek(owner.queue, entry)
    message.state.apply(event)
    owner.queue.write_down(message, [event])


def delete(owner: Owner, entry: Entry) -> None:
    """Gone, and nobody is told but the log."""
    message = listing.peek(owner.queue, entry)
    owner.queue.finish(message)
    owner.gone(entry)
    owner.events.noted(entry.id, f"deleted by the administrator: from=<{message.envelope.sender}>, "
                                 f"nrcpts={len(message.envelope.recipients)}")


def bounce(owner: Owner, entry: Entry) -> None:
    """Every open target fails now; its sender gets the usual report."""
    if entry.place == "hold":
        owner.queue.release(entry)
    message = owner.queue.load(entry)
    events = [Event("failed", time.time(), {"n": number, "o": failed(
        "5.7.1", "returned by the administrator").to_json()}) for number, _ in message.state.open_targets()]
    events.append(Event("released", time.time(), {}))
    for event in events:
        message.state.apply(event)
    owner.queue.write_down(message, events)
    owner.resume(message)


def requeue(owner: Owner, entry: Entry) -> None:
    """Route what is open anew: aliases and routes may have changed since it was expanded."""
    message = owner.queue.load(entry)
    state, events = message.state, []
    done = {progress.target.key() for progress in state.progress.values() if not progress.is_open}
    for number, progress in state.open_targets():
        targets = owner.expander.again(progress.target, seen=done)
        first = state.next_number()
        event = Event("forwarded", time.time(), {
            "n": number, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]})
        state.apply(event)
        events.append(event)
    owner.queue.write_down(message, events)
    if entry.place == "hold":
        owner.queue.release(entry)
    owner.changed(entry)
    owner.make_ready([entry.id])


CHANGES: dict[str, Callable[[Owner, Entry], None]] = {
    "hold": hold, "release": release, "delete": delete, "bounce": bounce, "requeue": requeue}
