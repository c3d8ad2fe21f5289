"""One pass of one message: from recipients to targets to outcomes.

A message in work is a Pass: its recipients become targets (aliases), its targets go to agents or relays, and each comes
back with an Outcome, or with the targets of a .forward, which take its place. When none is awaited any more the pass is
settled (settle.py). A fault of our own code meets one message here and no other: it is caught in two named places.

What makes the message safe meanwhile stands in spool/queue.py. A message that is done in its first pass writes nothing
but the copy that the agents read; as soon as one target has an outcome while others have none, FLUSH_AFTER later,
outcomes are journalled, so that a crash repeats at most what is younger than that. Before a command is run, what it was
expanded from is in the journal, synced.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..config import Config
from ..deliver.request import Reply, Request
from ..deliver.shipment import Answer
from ..events import Events
from ..mail.outcome import Outcome, deferred, failed
from ..mail.target import CHANGED, COMMAND, FILE, KNOWN, MAILBOX, RELAY, Target
from ..route.expand import Expander
from ..spool.journal import Event, Progress
from ..spool.queue import Message, Queue
from . import agents, schedule
from .outgoing import Outgoing

FLUSH_AFTER = 0.25  # seconds between an outcome and its line in the journal while other targets are awaited

_MAILERS = {"mailbox": "local", "file": "*file*", "command": "prog", "relay": "esmtp", "known": "local"}


@dataclass(slots=True)
class Pass:
    """One message in work. awaited: target numbers that are out. events: not yet journalled. began: since the epoch.

    started: when each target went out. outgoing: targets for other hosts that have not been sent yet. due: the earliest
    time at which a host that is down will be tried again, 0.0 = by the schedule. is_busy: some delivery found its agent
    busy, or comes later for another reason that is not its own. is_counted: the attempt is counted. hold: why the
    administrator wants it held, "" = he does not.
    """

    message: Message
    began: float
    awaited: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    seen: set[tuple[str, ...]] = field(default_factory=set)
    started: dict[int, float] = field(default_factory=dict)
    outgoing: list[int] = field(default_factory=list)
    due: float = 0.0
    is_busy: bool = False
    is_dispatching: bool = False
    is_flush_due: bool = False
    is_over: bool = False
    is_counted: bool = False
    hold: str = ""

    def note(self, event: Event) -> None:
        """Let an event happen: it is in the state now, and in the journal with the next flush."""
        self.message.state.apply(event)
        self.events.append(event)


class Passes:
    """Works on passes. settle: called when one awaits nothing more. crashed: when our own code has failed on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, queue: Queue, expander: Expander,
                 local: agents.Agents, outgoing: Outgoing, events: Events, clock: Callable[[], float],
                 settle: Callable[[Pass], None], crashed: Callable[[Pass], None]) -> None:
        self._loop = loop
        self._config = config
        self._queue = queue
        self._expander = expander
        self._local = local
        self._outgoing = outgoing
        self._events = events
        self._clock = clock
        self._settle = settle
        self._crashed = crashed
        self._number = 0
        self.is_over = False  # outcomes are taken, and nothing follows from them (vigil.py)
        self._pace = schedule.Pace(config.limits.bounces_per_minute)

    def begin(self, p: Pass) -> None:
        """Expand what is not expanded yet and send out what is open."""
        message = p.message
        self._events.alive()
        try:
            # Not those that others have taken the place of: a .forward that is read again may say the same as before.
            p.seen = {progress.target.key() for progress in message.state.progress.values() if not progress.is_replaced}
            p.is_dispatching = True
            for index in range(len(message.envelope.recipients)):
                if index not in message.state.expanded:
                    self._expand(p, index)
            for number, progress in message.state.open_targets():
                if number in p.awaited:
                    continue
                if progress.outcome is not None and _needs_another_look(progress):
                    self._replace(p, number, self._expander.again(progress.target, seen=p.seen))
                else:
                    self._dispatch(p, number, progress)
            p.is_dispatching = False
            self._ship(p)
            if not p.awaited:
                self._settle(p)
        except Exception:  # noqa: BLE001 - a fault of ours meets a message: keep it, say so, go on
            self._crashed(p)

    def _expand(self, p: Pass, index: int) -> None:
        recipient = p.message.envelope.recipients[index]
        if p.message.refusal is not None:
            targets = [Target(KNOWN, recipient.address, outcome=p.message.refusal)]
        else:
            targets = self._expander.expand(recipient.address, seen=p.seen)
        self.expanded(p, index, targets)

    def expanded(self, p: Pass, index: int, targets: list[Target]) -> None:
        """Note what a recipient has become."""
        first = p.message.state.next_number()
        p.note(Event("expanded", self._clock(), {
            "r": index, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]}))

    def _dispatch(self, p: Pass, number: int, progress: Progress) -> None:
        target, message = progress.target, p.message
        p.awaited.add(number)
        p.started[number] = self._clock()
        if target.kind == KNOWN:
            self._answer(p, number, Reply(0, target.outcome or failed("5.3.5", "target without an outcome")))
            return
        if target.kind == RELAY or (target.kind == MAILBOX and self._outgoing.has_store and not target.use_forward):
            p.outgoing.append(number)
            return
        if target.kind == COMMAND:
            try:
                self.flush(p, sync=True)
            except OSError as trouble:
                refusal = deferred("4.3.0", f"not run before its journal is written: {trouble.strerror}")
                self._answer(p, number, Reply(0, refusal))
                return
        envelope = message.envelope
        self._number += 1
        request = Request(self._number, message.id, message.offset, message.length,
                          envelope.sender if target.sender is None else target.sender,
                          envelope.recipients[progress.recipient].address, target, self._clock())
        user = target.user or self._config.local.command_user  # files and commands of aliases have no user of their own
        is_slow = target.kind == COMMAND or (target.kind == MAILBOX and bool(self._config.local.command))
        self._local.deliver(user, agents.Job(
            request, lambda: self._queue.open(message), lambda reply: self._answer(p, number, reply)), is_slow=is_slow)

    def _ship(self, p: Pass) -> None:
        """Send what goes to other hosts, all of it at once. A report beyond their pace waits as for a busy agent."""
        if p.outgoing:
            numbers, p.outgoing = p.outgoing, []
            if p.message.envelope.origin.kind == "runner" and not self._pace.allows(self._loop.time()):
                p.is_busy = True
                p.awaited.difference_update(numbers)
                return

            def returned(number: int, outcome: Outcome, handed: str, answer: Answer, due: float) -> None:
                self._returned(p, number, outcome, handed, answer, due)

            self._outgoing.ship(p.message, numbers, returned)

    def _returned(self, p: Pass, number: int, outcome: Outcome, handed: str, answer: Answer, due: float) -> None:
        """A target has come back from a relay."""
        try:
            if outcome.is_deferred and not answer.is_tried and not due:
                p.is_busy = True
            else:
                self.take_outcome(p, number, outcome, handed, answer.relay)
            if due:
                p.due = min(p.due or due, due)
            self._came_back(p, number)
        except Exception:  # noqa: BLE001 - as in begin
            self._crashed(p)

    def _answer(self, p: Pass, number: int, reply: Reply) -> None:
        """A target has come back."""
        try:
            for note in reply.notes:
                self._events.noted(p.message.id, note)
            if not reply.is_answer:
                return
            if self.is_over:
                if reply.outcome is not None and not reply.targets:  # a .forward that was read is read again
                    self.take_outcome(p, number, reply.outcome)
                return
            if reply.targets:
                self._forward(p, number, reply)
            elif reply.outcome is agents.DROPPED:  # we are ending: it stays as it is, and the next start finds it so
                p.is_busy = True
                p.awaited.discard(number)
                return
            elif reply.outcome is agents.BUSY:
                p.is_busy = True
            elif reply.outcome is not None:
                self.take_outcome(p, number, reply.outcome)
            self._came_back(p, number)
        except Exception:
            if self.is_over:
                raise
            self._crashed(p)

    def _came_back(self, p: Pass, number: int) -> None:
        p.awaited.discard(number)
        if p.is_dispatching:
            return
        self._ship(p)
        if not p.awaited:
            self._settle(p)
        elif p.events and not p.is_flush_due:
            p.is_flush_due = True
            self._loop.call_later(FLUSH_AFTER, self._flush_later, p)

    def take_outcome(self, p: Pass, number: int, outcome: Outcome, handed: str = "", relay: str = "") -> None:
        """Note and log what has become of a target. handed: as outgoing.py has it. relay: the host, for the log."""
        message, progress = p.message, p.message.state.progress[number]
        now, target = self._clock(), progress.target
        data: dict[str, object] = {"n": [number] if outcome.is_deferred else number, "o": outcome.to_json()}
        if handed and message.envelope.recipients[progress.recipient].notify:
            data["handed"] = handed
        verb = "delivered" if outcome.is_delivered else "deferred" if outcome.is_deferred else "failed"
        p.note(Event(verb, now, data))
        origin = message.envelope.origin
        self._events.tried(
            message.id, target.address, outcome, controller=f"{origin.user} ({origin.uid})" if origin.user else "",
            delay=now - message.envelope.received_at, took=now - p.started.get(number, now),
            mailer=_MAILERS.get(target.kind, "local"), relay=relay or outcome.remote_mta, size=message.length)

    def _forward(self, p: Pass, number: int, reply: Reply) -> None:
        """A .forward has taken the target's place: its targets are deliveries of their own."""
        parent = p.message.state.progress[number].target
        if len(reply.targets) == 1 and reply.targets[0].kind == MAILBOX:  # no .forward; its store is elsewhere
            self._replace(p, number, [replace(parent, use_forward=False)])
            return
        children = self._expander.forwarded(parent, reply.targets, seen=p.seen)
        self._events.forwarded(p.message.id, parent.user, len(children))
        self._replace(p, number, children)

    def _replace(self, p: Pass, number: int, targets: list[Target]) -> None:
        """Put targets in the place of one."""
        state = p.message.state
        first = state.next_number()
        p.note(Event("forwarded", self._clock(), {
            "n": number, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]}))
        for k in range(len(targets)):
            self._dispatch(p, first + k, state.progress[first + k])

    def _flush_later(self, p: Pass) -> None:
        p.is_flush_due = False
        if p.awaited and not p.is_over:
            try:
                self.flush(p)
            except OSError as trouble:
                self._events.trouble(f"{p.message.id}: cannot write the journal: {trouble.strerror}")

    def flush(self, p: Pass, *, sync: bool = False) -> None:
        """Make our copy safe and put down what has happened. Raises OSError: everything is as it was."""
        if p.events:
            self._queue.secure(p.message)
            self._queue.write_down(p.message, p.events, sync=sync)
            p.events = []

    def put_down(self, p: Pass) -> None:
        """The runner ends: what is known of a message by now goes into its journal, and that it is to be held."""
        if p.hold and not p.message.state.held:
            p.note(Event("held", self._clock(), {"why": p.hold}))
        try:
            self.flush(p)
        except OSError as trouble:
            self._events.trouble(f"{p.message.id}: cannot write the journal: {trouble.strerror}")


def _needs_another_look(progress: Progress) -> bool:
    """Whether a deferred target came from something that may read differently now: aliases, a user, a .forward."""
    target, outcome = progress.target, progress.outcome
    is_changed = outcome is not None and outcome.status == CHANGED
    return target.kind == KNOWN or (target.kind in (COMMAND, FILE) and is_changed)
