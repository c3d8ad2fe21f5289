"""What comes between a message and its deliveries: whether filters have to see it first, and what comes of that.

Whoever begins a pass begins it here. What needs no examination (scanning.py) goes on to passes.py at once; the rest
when there is a verdict. It changes the message before anything of it is delivered, in an order in which a crash loses
nothing and delivers nothing unseen: what is final or held is in the journal, synced, before the message is queued anew
with the mark "scanned". A crash in between means that it is examined again.
"""

from collections.abc import Callable, Container
from typing import Protocol

from ..mail.outcome import deferred
from ..mail.target import KNOWN, Target
from ..spool.journal import Event
from ..spool.queue import Message
from .passes import Pass, Passes
from .scanning import Examined, Scanning
from .waiting import Shares


class Owner(Protocol):
    """Whoever keeps the messages: the runner."""

    is_stopping: bool
    shares: Shares

    def take_in(self) -> None: ...

    def leave(self, p: Pass) -> None: ...

    def start(self, message: Message) -> None: ...

    def settle(self, p: Pass) -> None: ...

    def crashed(self, p: Pass) -> None: ...


class Screening:
    """scanning: None = everything passes. clock: seconds since the epoch."""

    def __init__(self, scanning: Scanning | None, passes: Passes, clock: Callable[[], float], owner: Owner) -> None:
        self._scanning = scanning
        self._passes = passes
        self._clock = clock
        self._owner = owner

    def begin(self, p: Pass) -> None:
        """Deliver a message, once it may be."""
        if self._scanning is not None and self._scanning.wants(p.message):
            self._scanning.examine(p.message, lambda found: self._examined(p, found))
        else:
            self._passes.begin(p)

    def _examined(self, p: Pass, found: Examined) -> None:
        if self._owner.is_stopping:
            return  # filters will be asked again
        message, length = p.message, p.message.length
        try:
            if not self._take(p, found):
                self._owner.settle(p)
            elif message.state.held:
                self._owner.leave(p)
                self._owner.start(message)  # which holds it
            else:
                self._passes.begin(p)
        except Exception:  # noqa: BLE001 - as in passes.py
            self._owner.crashed(p)
        self._owner.shares.resize(message.entry.uid, message.length - length)
        self._owner.take_in()

    def _take(self, p: Pass, found: Examined) -> bool:
        """Take a verdict in: whether the message may be delivered, or held, now; else there is nothing left to do."""
        recipients, outcome = p.message.envelope.recipients, found.verdict.outcome
        if found.verdict.is_dropped:
            self._forget(p, range(len(recipients)))
            return False
        if outcome is None:
            try:
                self._store(p, found)
                return True
            except (OSError, ValueError) as trouble:
                words = (trouble.strerror if isinstance(trouble, OSError) else "") or trouble
                outcome = deferred("4.3.0", f"cannot be queued as the filters want it: {words}")
        for index, recipient in enumerate(recipients):
            if index not in p.message.state.expanded:
                self._passes.expanded(p, index, [Target(KNOWN, recipient.address)])
        for number, _ in p.message.state.open_targets():
            self._passes.take_outcome(p, number, outcome)
        return False

    def _store(self, p: Pass, found: Examined) -> None:
        """Queue a message as the filters have left it. Raises OSError or ValueError; rewriting.Unsure is for whoever
        takes a pass for crashed."""
        if p.message.state.expanded:  # else whoever is removed is left out of the envelope
            self._forget(p, found.verdict.removed)
        hold = found.verdict.hold or p.hold
        if hold:
            p.note(Event("held", self._clock(), {"why": hold}))
        self._passes.flush(p, sync=True)
        found.store()

    def _forget(self, p: Pass, indexes: Container[int]) -> None:
        """Nothing goes to these recipients any more, and nobody is told."""
        state = p.message.state
        for index in range(len(p.message.envelope.recipients)):
            if index in indexes and index not in state.expanded:
                self._passes.expanded(p, index, [])
        for number, progress in state.open_targets():
            if progress.recipient in indexes:
                p.note(Event("forwarded", self._clock(), {"n": number, "t": []}))
