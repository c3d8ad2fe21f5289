"""What an administrator can do to a waiting message: hold, release, delete, bounce, requeue.

Each function takes whoever owns the spool at this moment (the runner, or offline.py while there is none) and an entry
that waits, which nobody works on. It raises OSError, Broken, Damaged or ValueError when it could not be done; the
message is then where it was. Nothing here asks who asks: control.py does.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from ..events import Events
from ..mail.outcome import failed
from ..mail.target import KNOWN, Target
from ..route.expand import Expander
from ..spool import listing
from ..spool.journal import Event, Progress
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

    def gone(self, message: Message) -> None:
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
    owner.queue.check_claim(entry)
    message = listing.peek(owner.queue, entry)
    message.state.apply(event)
    owner.queue.write_down(message, [event])


def delete(owner: Owner, entry: Entry) -> None:
    """Gone, and nobody is told but the log."""
    owner.queue.check_claim(entry)
    message = listing.peek(owner.queue, entry)
    owner.queue.finish(message)
    owner.gone(message)
    owner.events.noted(entry.id, f"deleted by the administrator: from=<{message.envelope.sender}>, "
                                 f"nrcpts={len(message.envelope.recipients)}")


def bounce(owner: Owner, entry: Entry) -> None:
    """Every open target fails now, and every recipient of whom nothing is known yet; the sender gets a report."""
    message = owner.queue.load(entry)
    story, refusal = Story(message), failed("5.7.1", "returned by the administrator")
    for index, recipient in enumerate(message.envelope.recipients):
        if index not in message.state.expanded:
            story.tell("expanded", r=index, t=story.numbered([Target(KNOWN, recipient.address, outcome=refusal)]))
    for number, _ in message.state.open_targets():
        story.tell("failed", n=number, o=refusal.to_json())
    story.tell("released")
    owner.queue.write_down(message, story.events)
    if entry.place == "hold":
        owner.queue.release(entry)
    owner.resume(message)


def requeue(owner: Owner, entry: Entry) -> None:
    """Expand and route anew what is open: aliases and routes may have changed since.

    Whoever is still to get something is expanded from the envelope's address on; so is whoever has no target of his
    own, another recipient's having served him. What is delivered already is not repeated.
    """
    message = owner.queue.load(entry)
    state, story = message.state, Story(message)
    targets: dict[int, list[tuple[int, Progress]]] = {}
    for number, progress in state.progress.items():
        if not progress.is_replaced:
            targets.setdefault(progress.recipient, []).append((number, progress))
    seen = {progress.target.key() for own in targets.values() for _, progress in own if not progress.is_open}
    for index in sorted(state.expanded):
        own = targets.get(index, [])
        still_open = [number for number, progress in own if progress.is_open]
        if own and not still_open:
            continue
        found = owner.expander.expand(message.envelope.recipients[index].address, seen=seen)
        if still_open:
            story.tell("forwarded", n=still_open[0], t=story.numbered(found))
            for number in still_open[1:]:
                story.tell("forwarded", n=number, t=[])
        elif found:
            story.tell("expanded", r=index, t=story.numbered(found))
    story.tell("released")
    owner.queue.write_down(message, story.events)
    if entry.place == "hold":
        owner.queue.release(entry)
    owner.changed(entry)
    owner.make_ready([entry.id])


class Story:
    """Events that happen to a message: its state has them at once, its journal when they are written down."""

    def __init__(self, message: Message) -> None:
        self._state = message.state
        self.events: list[Event] = []

    def tell(self, verb: str, **data: Any) -> None:
        self.events.append(Event(verb, time.time(), data))
        self._state.apply(self.events[-1])

    def numbered(self, targets: list[Target]) -> list[list[Any]]:
        """New targets, as an event has them."""
        first = self._state.next_number()
        return [[first + k, target.to_json()] for k, target in enumerate(targets)]


CHANGES: dict[str, Callable[[Owner, Entry], None]] = {
    "hold": hold, "release": release, "delete": delete, "bounce": bounce, "requeue": requeue}
