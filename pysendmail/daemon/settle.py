"""The end of a pass: what is final and wants telling is told in one report, what waits goes back with a due time.

The order makes sure that nothing is forgotten before what takes its place is safe: reports are planned in the journal,
queued and synced, and only then does a message that is done leave. Everything here raises OSError where the disk does
not take it; the runner settles again later, and what was done already is not done twice.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..config import Config, QueueSettings
from ..events import Events
from ..mail.outcome import failed
from ..spool.journal import Event
from ..spool.queue import Entry, Message, Queue
from . import schedule
from .passes import Pass, Passes
from .report import Plan, Reports

BUSY_AGAIN = 5.0  # seconds, at least, before a delivery is tried again that its agent had no time for
BUSY_SHARE = 0.1  # of its age that it waits: who keeps his agents busy for long is asked less and less often


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
        self._usual = config.queue
        self._of_reports = replace(config.queue, lifetime=config.queue.lifetime_of(""))
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
        untold = self._report(p, passes)
        if p.message.state.open_targets() or untold:
            self._postpone(p, passes, untold or p.hold)
        else:
            self._queue.finish(p.message)
            self._owner.done(p)

    def _expire(self, p: Pass, passes: Passes) -> None:
        message, state, now = p.message, p.message.state, self._clock()
        settings = self._settings(message)
        if not schedule.is_expired(message.envelope.received_at, state.attempts + 1, now, settings):
            return
        for number, progress in state.open_targets():
            last = progress.outcome.reason if progress.outcome is not None else "never tried"
            diagnostic = progress.outcome.diagnostic if progress.outcome is not None else ""
            reason = f"gave up after {settings.lifetime} s: {last}"
            passes.take_outcome(p, number, failed("5.4.7", reason, diagnostic))

    def _settings(self, message: Message) -> QueueSettings:
        """Mail that nobody gets back waits less long."""
        return self._usual if message.envelope.sender else self._of_reports

    def _report(self, p: Pass, passes: Passes) -> str:
        """Queue what the sender must hear. Each report is planned in the journal first, unless the message ends here.

        What is returned is why somebody who ought to hear something cannot be told, "" = all is told.
        """
        message, state, untold = p.message, p.message.state, ""
        if state.plan is not None:  # a crash, or a full disk, came between plan and report
            if state.open_targets():
                passes.flush(p, sync=True)
            number, _, targets = state.plan
            self._send_report(p, self._reports.remake(message, number, targets))
        is_late = (bool(state.open_targets()) and not state.is_warned and not p.is_busy
                   and schedule.is_late(message.envelope.received_at, self._clock(), self._usual))
        for kind in ("final", "delayed") if is_late else ("final",):
            for plan in self._reports.plans(message, kind):
                if not plan.report_id:
                    untold = plan.why
                    continue
                p.note(Event("planned", self._clock(), {"k": plan.number, "kind": kind, "n": list(plan.targets)}))
                if state.open_targets():
                    passes.flush(p, sync=True)
                self._send_report(p, plan)
        return untold

    def _send_report(self, p: Pass, plan: Plan) -> None:
        """Queue a planned report, unless it is there already. Raises OSError: the plan stands."""
        if not self._owner.is_known(plan.report_id):
            report = self._reports.commit(p.message, plan)
            self._events.reported(p.message.id, plan.report_id, plan.title, plan.why)
            self._owner.accept(report)
        p.note(Event("reported", self._clock(), {"k": plan.number}))

    def _postpone(self, p: Pass, passes: Passes, hold: str) -> None:
        """Back into the queue; hold: why it is to be held, "" = it is not."""
        message, state, now = p.message, p.message.state, self._clock()
        if not p.is_busy and not p.is_counted:
            p.is_counted = True  # once, however often the disk does not take it
            p.note(Event("tried", now, {"attempts": state.attempts + 1}))
        if hold and state.held != hold:
            p.note(Event("held", now, {"why": hold}))
        self._queue.secure(message)
        # A report may be gone before our line that it was queued is on the disk: without it there would be another.
        passes.flush(p, sync=any(event.verb == "reported" for event in p.events))
        attempts, age = state.attempts, schedule.age(message.envelope.received_at, now)
        if p.is_busy:
            due = now + min(max(BUSY_AGAIN, age * BUSY_SHARE), self._usual.retry_max)
        else:
            due = schedule.due(now, message.envelope.received_at, attempts, self._settings(message), self._chance())
            due = max(now, p.due) if p.due and len(state.open_targets()) == 1 else due
        self._queue.reschedule(message, due, attempts, self._owner.destination_of(message))
        if hold:
            self._queue.hold(message.entry)
        self._owner.postponed(p, message.entry, due)
