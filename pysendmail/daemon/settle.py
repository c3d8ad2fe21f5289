"""The end of a pass: what is final and wants telling is told in one report, what waits goes back with a due time.

The order makes sure that nothing is forgotten before what takes its place is safe: reports are planned in the journal,
queued and synced, and only then does a message that is done leave. Everything here raises OSError where the disk does
not take it; the runner settles again later, and what was done already is not done twice.
"""

from collections.abc import Callable
from typing import Protocol

from ..config import Config
from ..events import Events
from ..mail.outcome import failed
from ..spool.journal import Event
from ..spool.queue import Entry, Message, Queue
from . import schedule
from .passes import Pass, Passes
from .report import Plan, Reports

BUSY_AGAIN = 5.0  # seconds before a delivery is tried again that its agent had no time for


class Owner(Protocol):
    """Whoever keeps the messages: the runner."""

    def is_known(self, queue_id: str) -> bool: ...

    def accept(self, message: Message) -> None: ...

    def postponed(self, p: Pass, entry: Entry, due: float) -> None: ...

    def done(self, p: Pass) -> None: ...

    def destination_of(self, message: Message) -> str: ...


class Settlement:
    """Settles passes. chance: for the jitter of due times, 0 <= chance() < 1."""

    def __init__(self, config: Config, queue: Queue, reports: Reports, events: Events, clock: Callable[[], float],
                 chance: Callable[[], float], owner: Owner) -> None:
        self._settings = config.queue
        self._queue = queue
        self._reports = reports
        self._events = events
        self._clock = clock
        self._chance = chance
        self._owner = owner

    def settle(self, p: Pass, passes: Passes) -> None:
        """No target is out any more. Raises OSError: nothing is forgotten, settle again."""
        if not p.is_busy:
            self._expire(p, passes)
        self._report(p, passes)
        if p.message.state.open_targets() or p.hold:
            self._postpone(p, passes)
        else:
            self._queue.finish(p.message)
            self._owner.done(p)

    def _expire(self, p: Pass, passes: Passes) -> None:
        message, state, now = p.message, p.message.state, self._clock()
        if not schedule.is_expired(message.envelope.received_at, state.attempts + 1, now, self._settings):
            return
        for number, progress in state.open_targets():
            last = progress.outcome.reason if progress.outcome is not None else "never tried"
            diagnostic = progress.outcome.diagnostic if progress.outcome is not None else ""
            reason = f"gave up after {self._settings.lifetime} s: {last}"
            passes.take_outcome(p, number, failed("5.4.7", reason, diagnostic))

    def _report(self, p: Pass, passes: Passes) -> None:
        """Queue what the sender must hear. Each report is planned in the journal first, unless the message ends
        here."""
        message, state = p.message, p.message.state
        if state.plan is not None:  # a crash came between plan and report
            number, _, targets = state.plan
            self._send_report(p, self._reports.remake(message, number, targets))
        is_late = (bool(state.open_targets()) and not state.is_warned and not p.is_busy
                   and schedule.is_late(message.envelope.received_at, self._clock(), self._settings))
        for kind in ("final", "delayed") if is_late else ("final",):
            plan = self._reports.plan(message, kind)
            if plan is None:
                continue
            if not plan.report_id:
                p.hold = plan.why
                continue
            p.note(Event("planned", self._clock(), {"k": plan.number, "kind": kind, "n": list(plan.targets)}))
            if state.open_targets():
                passes.flush(p, sync=True)
            self._send_report(p, plan)

    def _send_report(self, p: Pass, plan: Plan) -> None:
        """Queue a planned report, unless it is there already. Raises OSError: the plan stands."""
        if not self._owner.is_known(plan.report_id):
            report = self._reports.commit(p.message, plan)
            self._events.reported(p.message.id, plan.report_id, plan.title, plan.why)
            self._owner.accept(report)
        p.note(Event("reported", self._clock(), {"k": plan.number}))

    def _postpone(self, p: Pass, passes: Passes) -> None:
        message, state, now = p.message, p.message.state, self._clock()
        attempts = state.attempts + (0 if p.is_busy else 1)
        if attempts != state.attempts:
            p.note(Event("tried", now, {"attempts": attempts}))
        if p.hold:
            p.note(Event("held", now, {"why": p.hold}))
        self._queue.secure(message)
        # A report may be gone before our line that it was queued is on the disk: without it there would be another.
        passes.flush(p, sync=any(event.verb == "reported" for event in p.events))
        if p.is_busy:
            due = now + BUSY_AGAIN
        else:
            due = schedule.due(now, message.envelope.received_at, attempts, self._settings, self._chance())
            due = max(now, p.due) if p.due and len(state.open_targets()) == 1 else due
        self._queue.reschedule(message, due, attempts, self._owner.destination_of(message))
        if p.hold:
            self._queue.hold(message.entry)
        self._owner.postponed(p, message.entry, due)
