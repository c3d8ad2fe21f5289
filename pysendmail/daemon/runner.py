"""The runner: every message from the moment it is taken in until nothing is left to do for it.

A message in work is a Pass: its recipients become targets (aliases), its targets go to agents or relays, each comes
back with an Outcome or with the targets of a .forward, and when none is awaited any more the pass is settled: what is
final and wants telling is told in one report, what waits goes back into the queue with a due time, what is done is
forgotten.

What makes the message safe meanwhile stands in spool/queue.py. A message that is done in its first pass writes nothing
but the copy that the agents read; as soon as one target is final while others are not, FLUSH_AFTER later, outcomes are
journalled, so that a crash repeats at most what is younger than that.

The runner never delivers, never talks to the network and has no privilege. One at a time has a spool: a lock file.
"""

import asyncio
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ..config import Config
from ..deliver.request import Reply, Request
from ..events import Events
from ..mail.outcome import Outcome, deferred, failed
from ..mail.target import CHANGED, COMMAND, FILE, KNOWN, RELAY, Target
from ..route.expand import Expander
from ..spool.journal import Event, Progress
from ..spool.queue import Broken, Entry, Message, Queue
from . import agents, schedule
from .intake import Intake
from .report import Plan, Reports

MAX_ACTIVE = 500  # messages in work at once
SLICE = 40  # messages taken in before answers are looked at again
SCAN_EVERY = 10.0  # seconds between scans of the drop: the guarantee; datagrams only make it faster
FLUSH_AFTER = 0.25  # seconds between a final outcome and its line in the journal while other targets are open
SETTLE_AGAIN = 10.0  # seconds before a pass whose settling failed (disk full) is settled again
BUSY_AGAIN = 5.0  # seconds before a delivery is tried again that its agent had no time for
MAX_CRASHES = 3  # times that our own code may fail on one message before it goes to bad/


@dataclass(slots=True)
class Pass:
    """One message in work. awaited: target numbers that are out. events: not yet journalled."""

    message: Message
    began: float
    awaited: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    seen: set[tuple[str, ...]] = field(default_factory=set)
    started: dict[int, float] = field(default_factory=dict)
    is_busy: bool = False  # some delivery found its agent busy
    is_dispatching: bool = False
    is_flush_due: bool = False
    hold: str = ""  # asked for while in work


class Runner:
    """The state of the queue in memory: what is in work, what waits, and for how long."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, queue: Queue, expander: Expander,
                 local: agents.Agents, reports: Reports, events: Events, clock: Callable[[], float],
                 chance: Callable[[], float]) -> None:
        self._loop = loop
        self._config = config
        self.queue = queue
        self.expander = expander
        self._local = local
        self._reports = reports
        self.events = events
        self._clock = clock
        self._chance = chance
        self.intake: Intake | None = None  # set by attach: it asks us about shares
        self.active: dict[str, Pass] = {}
        self.waiting: dict[str, Entry] = {}  # everything on disk that is not in work, held messages included
        self._due: list[tuple[int, str]] = []
        self._ready: deque[str] = deque()
        self._recovering: Iterator[Message] = iter(())
        self._number = 0
        self._crashes: Counter[str] = Counter()
        self._files: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._is_taking = False
        self._is_wake_due = False
        self._last_scan = 0.0
        self.is_stopping = False

    # ---- start and end

    def attach(self, intake: Intake) -> None:
        """Recover the spool, then begin: nothing is delivered before the queue is known."""
        self.intake = intake
        sources = intake.sources()
        self.queue.recover(sources)
        now = self._clock()
        for entry in self.queue.entries():
            self.wait(entry, int(schedule.sane_due(entry.due, now, self._config.queue)))
            self._files[entry.uid] += 1
        self._recovering = intake.recover()
        self._loop.call_soon(self.take_in)
        self._loop.call_later(SCAN_EVERY, self._scan)

    async def stop(self, within: float) -> None:
        """Take nothing new and wait, at most so many seconds, for the answers that are out."""
        self.is_stopping = True
        end = self._loop.time() + within
        while any(p.awaited for p in self.active.values()) and self._loop.time() < end:
            await asyncio.sleep(0.02)
        for p in list(self.active.values()):
            try:
                self._flush(p)
            except OSError as trouble:
                self.events.trouble(f"{p.message.id}: {trouble.strerror}")

    def _scan(self) -> None:
        self._loop.call_later(SCAN_EVERY, self._scan)
        now = self._clock()
        if now < self._last_scan:  # the clock went back: nothing shall wait for the time it went back by
            for entry in list(self.waiting.values()):
                due = int(schedule.sane_due(entry.due, now, self._config.queue))
                if due != entry.due:
                    self.wait(entry, due)
        self._last_scan = now
        self.wake()

    def wake(self) -> None:
        """Somebody says that there is something in the drop."""
        wait = self.intake.rescan() if self.intake is not None else 0.0
        if wait and not self._is_wake_due:
            self._is_wake_due = True
            self._loop.call_later(wait, self._wake_again)
        self.take_in()

    def _wake_again(self) -> None:
        self._is_wake_due = False
        self.wake()

    # ---- taking messages into work

    def is_full(self, uid: int) -> bool:
        """Whether a user has used up the share of the queue that submissions may take; more of them wait in the
        drop."""
        limits = self._config.limits
        return self._files[uid] >= limits.submissions or self._bytes[uid] >= limits.submission_space

    def take_in(self) -> None:
        """Put as many messages to work as there is room for: due ones first, then new ones. Called often."""
        if self.is_stopping or self.intake is None or self._is_taking:
            return
        self._is_taking = True
        try:
            self._take_due()
            for _ in range(SLICE):
                message = next(self._recovering, None) if self._has_room() else None
                if message is None:
                    break
                self.accept(message)
            if self._has_room():
                for message in self.intake.sweep(min(SLICE, MAX_ACTIVE - len(self.active))):
                    self.accept(message)
        finally:
            self._is_taking = False
        if self._has_room() and (self.intake.has_more or self._ready):
            self._loop.call_soon(self.take_in)

    def _has_room(self) -> bool:
        return len(self.active) < MAX_ACTIVE

    def _take_due(self) -> None:
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            due, queue_id = heappop(self._due)
            entry = self.waiting.get(queue_id)
            if entry is not None and entry.due == due and entry.place != "hold":
                self._ready.append(queue_id)
        if self._due:
            wait = min(max(self._due[0][0] - now, 0.05), SCAN_EVERY)
            self._loop.call_later(wait, self.take_in) if wait < SCAN_EVERY else None
        for _ in range(SLICE):
            if not self._ready or not self._has_room():
                return
            entry = self.waiting.get(self._ready.popleft())
            if entry is not None:
                self._resume(entry)

    def _resume(self, entry: Entry) -> None:
        """Work on a message from the queue again."""
        try:
            message = self.queue.load(entry)
        except Broken as problem:
            self._set_aside(entry, str(problem))
        except FileNotFoundError:
            self.waiting.pop(entry.id, None)
        except OSError as trouble:
            self.events.trouble(f"{entry.id}: cannot read the queue file: {trouble.strerror}")
            self.wait(entry, int(self._clock()) + self._config.queue.retry_first)
        else:
            self.waiting.pop(entry.id, None)
            self.start(message)

    def accept(self, message: Message) -> None:
        """A message that is new in the queue."""
        self._files[message.entry.uid] += 1
        self._bytes[message.entry.uid] += message.length
        self.start(message)

    def make_ready(self, queue_ids: list[str]) -> None:
        """Try these now, whatever their due time says."""
        now = int(self._clock())
        for queue_id in queue_ids:
            entry = self.waiting.get(queue_id)
            if entry is not None and entry.place != "hold":
                entry.due = now
                self._ready.append(queue_id)
        self.take_in()

    def wait(self, entry: Entry, due: int) -> None:
        """Keep an entry until it is due, or is asked for."""
        entry.due = due
        self.waiting[entry.id] = entry
        if entry.place != "hold":
            heappush(self._due, (due, entry.id))

    # ---- one pass

    def start(self, message: Message) -> None:
        """Begin a pass."""
        p = self.active[message.id] = Pass(message, self._clock())
        try:
            p.seen = {progress.target.key() for progress in message.state.progress.values()}
            p.is_dispatching = True
            for index in range(len(message.envelope.recipients)):
                if index not in message.state.expanded:
                    self._expand(p, index)
            for number, progress in message.state.open_targets():
                if number in p.awaited:
                    continue
                if progress.outcome is not None and _needs_another_look(progress):
                    self._replace(p, number, self.expander.again(progress.target, seen=p.seen))
                else:
                    self._dispatch(p, number, progress)
            p.is_dispatching = False
            if not p.awaited:
                self._settle(p)
        except Exception:  # noqa: BLE001 - a fault of ours meets a message: keep it, say so, go on
            self._crashed(p)

    def _expand(self, p: Pass, index: int) -> None:
        message, state = p.message, p.message.state
        recipient = message.envelope.recipients[index]
        if message.refusal is not None:
            targets = [Target(KNOWN, recipient.address, outcome=message.refusal)]
        else:
            targets = self.expander.expand(recipient.address, seen=p.seen)
        first = state.next_number()
        self._note(p, Event("expanded", self._clock(), {
            "r": index, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]}))

    def _note(self, p: Pass, event: Event) -> None:
        p.message.state.apply(event)
        p.events.append(event)

    def _dispatch(self, p: Pass, number: int, progress: Progress) -> None:
        target, message = progress.target, p.message
        p.awaited.add(number)
        p.started[number] = self._clock()
        if target.kind == KNOWN:
            self._answer(p, number, Reply(0, target.outcome or failed("5.3.5", "target without an outcome")))
            return
        if target.kind == RELAY:
            self._answer(p, number, Reply(0, deferred("4.3.5", "mail to other hosts is not sent by this version")))
            return
        envelope = message.envelope
        self._number += 1
        request = Request(self._number, message.id, message.offset, message.length,
                          envelope.sender if target.sender is None else target.sender,
                          envelope.recipients[progress.recipient].address, target, self._clock())
        user = target.user or self._config.local.command_user  # files and commands of aliases have no user of their own
        self._local.deliver(user, agents.Job(
            request, lambda: self.queue.open(message), lambda reply: self._answer(p, number, reply)))

    def _answer(self, p: Pass, number: int, reply: Reply) -> None:
        """A target has come back."""
        try:
            for note in reply.notes:
                self.events.noted(p.message.id, note)
            if not reply.is_answer:
                return
            if reply.targets:
                self._forward(p, number, reply)
            elif reply.outcome is agents.BUSY:
                p.is_busy = True
            elif reply.outcome is not None:
                self._take_outcome(p, number, reply.outcome)
            p.awaited.discard(number)
            if p.is_dispatching:
                return
            if not p.awaited:
                self._settle(p)
            elif p.events and not p.is_flush_due:
                p.is_flush_due = True
                self._loop.call_later(FLUSH_AFTER, self._flush_later, p)
        except Exception:  # noqa: BLE001 - a fault of ours meets a message: keep it, say so, go on
            self._crashed(p)

    def _take_outcome(self, p: Pass, number: int, outcome: Outcome) -> None:
        message, progress = p.message, p.message.state.progress[number]
        now, target = self._clock(), progress.target
        data = {"n": [number] if outcome.is_deferred else number, "o": outcome.to_json()}
        verb = "delivered" if outcome.is_delivered else "deferred" if outcome.is_deferred else "failed"
        self._note(p, Event(verb, now, data))
        origin = message.envelope.origin
        self.events.tried(
            message.id, target.address, outcome, controller=f"{origin.user} ({origin.uid})" if origin.user else "",
            delay=now - message.envelope.received_at, took=now - p.started.get(number, now),
            mailer=_MAILERS.get(target.kind, "local"), relay=outcome.remote_mta, size=message.length)

    def _forward(self, p: Pass, number: int, reply: Reply) -> None:
        """A .forward has taken the target's place: its targets are deliveries of their own."""
        parent = p.message.state.progress[number].target
        children = self.expander.forwarded(parent, reply.targets, seen=p.seen)
        self.events.forwarded(p.message.id, parent.user, len(children))
        self._replace(p, number, children)

    def _replace(self, p: Pass, number: int, targets: list[Target]) -> None:
        """Put targets in the place of one."""
        state = p.message.state
        first = state.next_number()
        self._note(p, Event("forwarded", self._clock(), {
            "n": number, "t": [[first + k, target.to_json()] for k, target in enumerate(targets)]}))
        for k in range(len(targets)):
            self._dispatch(p, first + k, state.progress[first + k])

    def _flush_later(self, p: Pass) -> None:
        p.is_flush_due = False
        if self.active.get(p.message.id) is p and p.awaited:
            try:
                self._flush(p)
            except OSError as trouble:
                self.events.trouble(f"{p.message.id}: cannot write the journal: {trouble.strerror}")

    def _flush(self, p: Pass, *, sync: bool = False) -> None:
        """Make our copy safe and put down what has happened. Raises OSError: everything is as it was."""
        if p.events:
            self.queue.secure(p.message)
            self.queue.write_down(p.message, p.events, sync=sync)
            p.events = []

    # ---- the end of a pass

    def _settle(self, p: Pass) -> None:
        """No target is out any more. Whatever fails here is tried again; nothing is forgotten before it is safe."""
        if self.active.get(p.message.id) is not p:
            return
        try:
            if not p.is_busy:
                self._expire(p)
            self._report(p)
            if p.message.state.open_targets() or p.hold:
                self._postpone(p)
            else:
                self.queue.finish(p.message)
                self._forget(p)
        except OSError as trouble:
            self.events.trouble(f"{p.message.id}: cannot settle: {trouble.strerror}")
            if p.message.is_given_up and self.intake is not None:
                self.intake.put_back(p.message.source)  # our copy is of no use, its source is
                self._forget(p)
            else:
                self._loop.call_later(SETTLE_AGAIN, self._settle, p)
            return
        if not self.is_stopping and not self._is_taking:
            self._loop.call_soon(self.take_in)

    def _expire(self, p: Pass) -> None:
        message, state, now = p.message, p.message.state, self._clock()
        if not schedule.is_expired(message.envelope.received_at, state.attempts + 1, now, self._config.queue):
            return
        for number, progress in state.open_targets():
            last = progress.outcome.reason if progress.outcome is not None else "never tried"
            diagnostic = progress.outcome.diagnostic if progress.outcome is not None else ""
            reason = f"gave up after {self._config.queue.lifetime} s: {last}"
            self._take_outcome(p, number, failed("5.4.7", reason, diagnostic))

    def _report(self, p: Pass) -> None:
        """Queue what the sender must hear. Each report is planned in the journal first, unless the message ends
        here."""
        message, state = p.message, p.message.state
        if state.plan is not None:  # a crash came between plan and report
            number, _, targets = state.plan
            self._send_report(p, self._reports.remake(message, number, targets))
        is_late = (bool(state.open_targets()) and not state.is_warned and not p.is_busy
                   and schedule.is_late(message.envelope.received_at, self._clock(), self._config.queue))
        for kind in ("final", "delayed") if is_late else ("final",):
            plan = self._reports.plan(message, kind)
            if plan is None:
                continue
            if not plan.report_id:
                p.hold = plan.why
                continue
            self._note(p, Event("planned", self._clock(), {"k": plan.number, "kind": kind, "n": list(plan.targets)}))
            if state.open_targets():
                self._flush(p, sync=True)
            self._send_report(p, plan)

    def _send_report(self, p: Pass, plan: Plan) -> None:
        """Queue a planned report, unless it is there already. Raises OSError: the plan stands."""
        if plan.report_id not in self.active and plan.report_id not in self.waiting:
            report = self._reports.commit(p.message, plan)
            self.events.reported(p.message.id, plan.report_id, plan.title, plan.why)
            self.accept(report)
        self._note(p, Event("reported", self._clock(), {"k": plan.number}))

    def _postpone(self, p: Pass) -> None:
        message, state, now = p.message, p.message.state, self._clock()
        attempts = state.attempts + (0 if p.is_busy else 1)
        if attempts != state.attempts:
            self._note(p, Event("tried", now, {"attempts": attempts}))
        if p.hold:
            self._note(p, Event("held", now, {"why": p.hold}))
        self.queue.secure(message)
        self._flush(p)
        if p.is_busy:
            due = now + BUSY_AGAIN
        else:
            due = schedule.due(now, message.envelope.received_at, attempts, self._config.queue, self._chance())
        self.queue.reschedule(message, due, attempts, "")
        if p.hold:
            self.queue.hold(message.entry)
        self.active.pop(message.id, None)
        self.wait(message.entry, message.entry.due)
        self._loop.call_later(max(0.05, due - now), self.take_in)

    def _forget(self, p: Pass) -> None:
        message = p.message
        self.active.pop(message.id, None)
        self._crashes.pop(message.id, None)
        self.forget_share(message.entry, message.length)

    def forget_share(self, entry: Entry, length: int = 0) -> None:
        """A message of this entry has left the queue."""
        self._files[entry.uid] -= 1
        self._bytes[entry.uid] = max(0, self._bytes[entry.uid] - length)

    def _crashed(self, p: Pass) -> None:
        """A fault of ours: the message waits, and after three times it is put where people look at it."""
        message = p.message
        self._crashes[message.id] += 1
        for line in traceback.format_exc(limit=-6).split("\n"):
            if line.strip():
                self.events.trouble(f"{message.id}: {line}")
        self.active.pop(message.id, None)
        try:
            self.queue.secure(message)
            if self._crashes[message.id] >= MAX_CRASHES:
                self._set_aside(message.entry, "it made this program fail three times")
            else:
                self.queue.reschedule(message, self._clock() + self._config.queue.retry_first,
                                       message.state.attempts + 1, "")
                self.wait(message.entry, message.entry.due)
        except OSError as trouble:
            self.events.trouble(f"{message.id}: {trouble.strerror}; it stays where it is until the next start")

    def _set_aside(self, entry: Entry, why: str) -> None:
        self.waiting.pop(entry.id, None)
        self.forget_share(entry)
        self.events.trouble(f"{entry.id}: moved to queue/bad: {why}")
        try:
            self.queue.set_aside(entry)
        except OSError as trouble:
            self.events.trouble(f"{entry.id}: cannot move it: {trouble.strerror}")


def _needs_another_look(progress: Progress) -> bool:
    """Whether a deferred target came from something that may read differently now: aliases, a user, a .forward."""
    target, outcome = progress.target, progress.outcome
    is_changed = outcome is not None and outcome.status == CHANGED
    return target.kind == KNOWN or (target.kind in (COMMAND, FILE) and is_changed)


_MAILERS = {"mailbox": "local", "file": "*file*", "command": "prog", "relay": "esmtp", "known": "local"}
