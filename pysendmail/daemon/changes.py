"""What an administrator can do to a waiting message: hold, release, delete, bounce, requeue.

Each function takes the runner and an entry that waits (nobody works on it), and raises OSError, Broken, Damaged or
ValueError when it could not be done; the message is then where it was. Nothing here asks who asks: control.py does.
"""

import time
from collections.abc import Callable
from typing import Any

from ..mail.outcome import failed
from ..mail.target import KNOWN, Target
from ..spool import listing
from ..spool.journal import Event
from ..spool.queue import Entry
from .runner import Runner

BY_ADMINISTRATOR = "held by the administrator"


def hold(runner: Runner, entry: Entry, why: str = BY_ADMINISTRATOR) -> None:
    """Out of the schedule, until released. why: one line for people."""
    if entry.place == "hold":
        return
    message = listing.peek(runner.queue, entry)
    event = Event("held", time.time(), {"why": why})
    message.state.apply(event)
    runner.queue.write_down(message, [event])
    runner.queue.hold(entry)
    runner.catalogue.forget(entry.id)
    runner.events.noted(entry.id, "quarantine: " + why)


def release(runner: Runner, entry: Entry) -> None:
    """Back into the schedule, due at once."""
    if entry.place != "hold":
        return
    message = listing.peek(runner.queue, entry)
    event = Event("released", time.time(), {})
    message.state.apply(event)
    runner.queue.write_down(message, [event])
    runner.queue.release(entry)
    runner.catalogue.forget(entry.id)
    runner.events.noted(entry.id, "released")
    runner.make_ready([entry.id])


def delete(runner: Runner, entry: Entry) -> None:
    """Gone, and nobody is told but the log."""
    message = listing.peek(runner.queue, entry)
    runner.queue.finish(message)
    runner.waiting.remove(entry.id)
    runner.shares.remove(entry.uid, message.length)
    runner.events.noted(entry.id, f"deleted by the administrator: from=<{message.envelope.sender}>, "
                                  f"nrcpts={len(message.envelope.recipients)}")


def bounce(runner: Runner, entry: Entry) -> None:
    """Every open target fails now, and every recipient of whom nothing is known yet; the sender gets a report."""
    message = runner.queue.load(entry)
    state, events, refusal = message.state, [], failed("5.7.1", "returned by the administrator")

    def happens(verb: str, **data: Any) -> None:
        events.append(Event(verb, time.time(), data))
        state.apply(events[-1])

    for index, recipient in enumerate(message.envelope.recipients):
        if index not in state.expanded:
            target = Target(KNOWN, recipient.address, outcome=refusal)
            happens("expanded", r=index, t=[[state.next_number(), target.to_json()]])
    for number, _ in state.open_targets():
        happens("failed", n=number, o=refusal.to_json())
    happens("released")
    runner.queue.write_down(message, events)
    if entry.place == "hold":
        runner.queue.release(entry)
    runner.waiting.remove(entry.id)
    runner.start(message)


def requeue(runner: Runner, entry: Entry) -> None:
    """Route what is open anew: aliases and routes may have changed since it was expanded."""
    message = runner.queue.load(entry)
    state, events = message.state, []
    done = {progress.target.key() for progress in state.progress.values() if not progress.is_open}
    for number, progress in state.open_targets():
        targets = runner.expander.again(progress.target, seen=done)
        first = state.next_number()
        event = Event("forwarded", time.time(), {
            "n": number, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]})
        state.apply(event)
        events.append(event)
    if entry.place == "hold":
        events.append(Event("released", time.time(), {}))
    runner.queue.write_down(message, events)
    if entry.place == "hold":
        runner.queue.release(entry)
    runner.catalogue.forget(entry.id)
    runner.make_ready([entry.id])


CHANGES: dict[str, Callable[[Runner, Entry], None]] = {
    "hold": hold, "release": release, "delete": delete, "bounce": bounce, "requeue": requeue}
