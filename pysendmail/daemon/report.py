"""Reports about queued messages: who is told what, and the queueing of it.

`plans` says what has to be told now (pure: it reads the state), `commit` writes the report into the queue, durably.
The runner journals a plan before it commits it; `unfinished` is the plan that a crash kept from being carried out. A
message whose sender cannot be told goes to the postmaster as a notice; when that fails too there is nobody left, and
the message is held for an administrator: kept, never lost. RFC 3461, RFC 3464.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config import Config
from ..mail import dsn, headers
from ..mail.envelope import Envelope, Origin, Recipient
from ..mail.outcome import Outcome, one_line
from ..spool import queue_id
from ..spool.journal import Progress
from ..spool.queue import Message, Queue
from .outgoing import HANDED_ON, RELAYED

_RECEIPTS = frozenset((dsn.DELIVERED, dsn.RELAYED))
NO_REPLY = frozenset(("never",))  # NOTIFY of our own reports: there is no report about a report


@dataclass(frozen=True, slots=True)
class Plan:
    """A report to be made. report_id "" = nobody can be told. targets: the numbers it tells of. title, why: for the
    log."""

    report_id: str
    number: int
    recipient: str
    targets: tuple[int, ...]
    results: tuple[dsn.Result, ...]
    is_notice: bool
    title: str
    why: str


class Reports:
    """Makes the reports of one runner."""

    def __init__(self, config: Config, queue: Queue, clock: Callable[[], float], postmaster: str) -> None:
        self._config = config
        self._queue = queue
        self._clock = clock
        self.postmaster = postmaster

    def plans(self, message: Message, kind: str) -> list[Plan]:
        """What is to be told now, one report for each who hears. kind: "final" (failures, asked-for successes) or
        "delayed"."""
        envelope = message.envelope
        told: dict[str, list[int]] = {}
        for number, progress in message.state.progress.items():
            if _is_due(progress, kind) and _is_told(envelope, progress):
                told.setdefault(_hearer(envelope, progress), []).append(number)
        if not told or (kind == "delayed" and self._is_bulk(message)):
            return []
        return [self.remake(message, number, tuple(targets))
                for number, targets in enumerate(told.values(), message.state.reports + 1)]

    def remake(self, message: Message, number: int, targets: tuple[int, ...]) -> Plan:
        """The plan of report `number` that tells of these targets: the same each time."""
        envelope, progress = message.envelope, message.state.progress
        results = tuple(dsn.Result(envelope.recipients[progress[n].recipient], progress[n].target.address,
                                   _outcome(progress[n]), _action(progress[n])) for n in targets)
        hearer = _hearer(envelope, progress[targets[0]])
        is_notice = not hearer
        found = queue_id.derived(message.id, number)
        action = results[0].action
        why = "Return receipt" if action in _RECEIPTS else results[0].outcome.reason  # sendmail's words, for logwatch
        if not found:
            why = f"cannot be delivered and nobody is left to be told: {why}"
        title = "postmaster notify" if is_notice else "sender notify" if action == dsn.DELAYED else "DSN"
        return Plan(found, number, self.postmaster if is_notice else hearer, targets, results, is_notice, title, why)

    def commit(self, message: Message, plan: Plan) -> Message:
        """Write the report into the queue. Raises OSError: it is not there."""
        now = self._clock()
        reporter = dsn.Reporter(plan.report_id, self._config.hostname, now, time.localtime(now).tm_gmtoff)
        original = self._original(message)
        about = message.envelope
        is_scanned = about.scanned or about.origin.kind == "runner" or not self._config.milter.sockets
        if plan.recipient != about.sender and not plan.is_notice:  # to the owner of a list
            about = replace(about, sender=plan.recipient, ret="", envid="")  # the sender's wishes are no matter
        if not is_scanned:  # what nobody has examined, or what was refused for what is in it, comes back to nobody
            about = replace(about, ret="hdrs")
        if plan.is_notice:
            text = dsn.postmaster_notice(about, plan.results, original, reporter)
        else:
            until = about.received_at + self._config.queue.lifetime
            text = dsn.report(about, plan.results, original, reporter,
                              retry_until=until if plan.results[0].action == dsn.DELAYED else 0.0)
        envelope = Envelope(plan.report_id, "", (Recipient(plan.recipient, NO_REPLY),), now, Origin("runner"),
                            "" if text.isascii() else "8bitmime", not plan.recipient.isascii(), scanned=True)
        return self._queue.commit(envelope, [text])

    def _original(self, message: Message) -> dsn.Original:
        fd, most = self._queue.open(message), self._config.limits.bounce_body
        try:
            start = os.pread(fd, dsn.MAX_HEAD + most, message.offset)
        finally:
            os.close(fd)
        _, header_end, body_at = headers.scan(start)
        return dsn.Original(start[:header_end], start[body_at:body_at + most],
                            max(0, message.length - message.offset - body_at))

    def _is_bulk(self, message: Message) -> bool:
        return dsn.is_bulk(self._original(message).head)


def _is_due(progress: Progress, kind: str) -> bool:
    if progress.is_replaced or progress.is_reported or progress.handed == HANDED_ON:
        return False
    if kind == "delayed":
        return progress.is_open
    return progress.outcome is not None and progress.outcome.is_final


def _action(progress: Progress) -> str:
    if progress.is_open:
        return dsn.DELAYED
    if progress.outcome is not None and progress.outcome.is_failed:
        return dsn.FAILED
    return dsn.RELAYED if progress.handed == RELAYED else dsn.DELIVERED


def _outcome(progress: Progress) -> Outcome:
    return progress.outcome or Outcome("4.0.0", one_line("not tried yet"))


def _hearer(envelope: Envelope, progress: Progress) -> str:
    """Who is told of this target: the sender; of failures and delays below a list with an owner- that owner, whom the
    sender need not know (RFC 3461 section 5.2.7). "" = the postmaster, and no owner when the sender is null: a report
    that made another, at an owner that does not work, would do so for ever."""
    sender = progress.target.sender
    if sender is None or not envelope.sender or _action(progress) not in (dsn.FAILED, dsn.DELAYED):
        return envelope.sender
    return sender


def _is_told(envelope: Envelope, progress: Progress) -> bool:
    action = _action(progress)
    if not _hearer(envelope, progress):
        return action == dsn.FAILED and not _is_silent(envelope, progress)
    if progress.target.sender is not None and action in (dsn.FAILED, dsn.DELAYED):
        return True  # NOTIFY and -oeq are the sender's, and the list is a sender of its own
    return dsn.wanted(envelope, envelope.recipients[progress.recipient], action)


def _is_silent(envelope: Envelope, progress: Progress) -> bool:
    """Whether the submitter has asked that nobody hears of this failure. Our own reports ask for that, and are told
    of."""
    asked = "never" in envelope.recipients[progress.recipient].notify or envelope.errors == "q"
    return asked and envelope.origin.kind != "runner"
