"""What an administrator can do to a waiting message: hold, release, delete, bounce, requeue.

Each function takes the runner and an entry that waits (nobody works on it), and raises OSError or Broken when it could
not be done; the message is then where it was. Nothing here asks who asks: control.py does.
"""

import time
from collections.abc import Callable

from ..mail.outcome import failed
from ..spool import listing
from ..spool.journal import Event
from ..spool.queue import Entry
from .runner import Runner

BY_ADMINISTRATOR = "held by the administrator"


def hold(runner: Runner, entry: Entry) -> None:
    """Out of the schedule, until released."""
    if entry.place == "hold":
        return
    message = listing.peek(runner.queue, entry)
    event = Event("held", time.time(), {"why": BY_ADMINISTRATOR})
    message.state.apply(event)
    runner.queue.write_down(message, [event])
    runner.queue.hold(entry)
    runner.events.noted(entry.id, "quarantine: " + BY_ADMINISTRATOR)


def release(runner: Runner, entry: Entry) -> None:
    """Back into the schedule, due at once."""
    if entry.place != "hold":
        return
    message = listing.peek(runner.queue, entry)
    event = Event("released", time.time(), {})
    message.state.apply(event)
    runner.queue.write_down(message, [event])
    runner.queue.release(entry)
    runner.events.noted(entry.id, "released")
    runner.make_ready([entry.id])


def delete(runner: Runner, entry: Entry) -> None:
    """Gone, and nobody is told but the log."""
    message = listing.peek(runner.queue, entry)
    runner.queue.finish(message)
    runner.waiting.remove(entry.id)
    runner.shares.remove(entry.uid, 0)
    runner.events.noted(entry.id, f"deleted by the administrator: from=<{message.envelope.sender}>, "
                                  f"nrcpts={len(message.envelope.recipients)}")


def bounce(runner: Runner, entry: Entry) -> None:
    """Every open target fails now; its sender gets the usual report."""
    if entry.place == "hold":
        runner.queue.release(entry)
    message = runner.queue.load(entry)
    events = [Event("failed", time.time(), {"n": number, "o": failed(
        "5.7.1", "returned by the administrator").to_json()}) for number, _ in message.state.open_targets()]
    events.append(Event("released", time.time(), {}))
    for event in events:
        message.state.apply(event)
    runner.queue.write_down(message, events)
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
    runner.queue.write_down(message, events)
    if entry.place == "hold":
        runner.queue.release(entry)
    runner.make_ready([entry.id])


CHANGES: dict[str, Callable[[Runner, Entry], None]] = {
    "hold": hold, "release": release, "delete": delete, "bounce": bounce, "requeue": requeue}
