"""The runner: every message from the moment it is taken in until nothing is left to do for it.

It decides which messages are in work: due ones and new ones, as many as there is room for, one submitter after the
other. What happens to one in work is passes.py and settle.py; what is not in work waits (waiting.py). The runner never
delivers, never talks to the network and has no privilege.
"""

import asyncio
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator

from ..config import Config
from ..events import Events
from ..mail.target import RELAY
from ..route.expand import Expander
from ..spool.claims import InWork
from ..spool.journal import Event
from ..spool.queue import Broken, Entry, Message, Queue, entry_of
from . import agents, schedule
from .adoption import Adoption
from .aside import Aside
from .catalogue import Catalogue
from .intake import Intake
from .load import Load, per_processor
from .outgoing import Outgoing
from .passes import Pass, Passes
from .relays import Relays, mark
from .report import Reports
from .scanning import Scanning
from .screening import Screening
from .settle import Settlement
from .waiting import Shares, Waiting

MAX_ACTIVE = 500  # messages in work at once
SLICE = 40  # messages taken in before answers are looked at again
SCAN_EVERY = 10.0  # seconds between scans of the drop: the guarantee; datagrams only make it faster
WARM_EVERY, WARM_AT_ONCE = 0.02, 20  # seconds; messages whose files are opened for the catalogue
SETTLE_AGAIN = 10.0  # seconds before a pass whose settling failed (disk full) is settled again
IN_WORK_AGAIN = 5.0  # seconds between looks at a message that an earlier runner still has out
MAX_CRASHES = 3  # times that our own code may fail on one message before it goes to bad/
AT_ONCE = 0.02  # seconds, while answers are awaited at the end


class Runner:
    """The state of the queue in memory: what is in work, and what waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, queue: Queue, expander: Expander,
                 local: agents.Agents, outgoing: Outgoing, relays: Relays, reports: Reports, events: Events,
                 clock: Callable[[], float], chance: Callable[[], float],
                 look: Callable[[], float] = per_processor, scanning: Scanning | None = None) -> None:
        self._loop = loop
        self._settings = config.queue
        self._load = Load(config.limits.load_queue, events, look)
        self.queue = queue
        self.expander = expander
        self.events = events
        self._clock = clock
        self._outgoing = outgoing
        self.relays = relays
        self.passes = Passes(loop, config, queue, expander, local, outgoing, events, clock, self.settle,
                             self.crashed)
        self._screening = Screening(scanning, self.passes, clock, self)
        self._settlement = Settlement(config, queue, reports, events, clock, chance, self)
        self._aside = Aside(loop, config, queue, events, clock, reports.postmaster, self.has, self.accept)
        self.active: dict[str, Pass] = {}
        self.catalogue = Catalogue(queue, config.queue.lifetime_of)
        self.waiting = Waiting(self.catalogue.forget)
        self.shares = Shares(config.limits.submissions, config.limits.submission_space)
        self._intake: Intake | None = None  # set by attach: it asks us about shares
        self._adoption: Adoption | None = None  # likewise, about ids
        self._recovering: Iterator[Message] = iter(())
        self._found: set[str] = set()  # what was in the queue at the start, and was not damaged
        self._crashes: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._is_taking = self._is_wake_due = False
        self._last_scan = 0.0
        self.is_stopping = False

    # ---- start and end

    def attach(self, intake: Intake, adoption: Adoption | None = None, taken: Container[str] = ()) -> None:
        """Recover the spool, then begin: nothing is delivered before the queue is known. adoption: None = no SMTP.

        taken: every id that a file of the spool has. There may be 100,000 messages: files are named here, not opened.
        """
        self._intake, self._adoption = intake, adoption
        if adoption is not None:
            adoption.recover(taken)
        now = self._last_scan = self._clock()
        gc.disable()  # it would look again and again at so many new objects, none of which is garbage
        for entry in self.queue.recover(intake.sources()):
            self.waiting.put(entry, schedule.sane_due(entry.due, now, self._settings))
            self.shares.add(entry.uid, 0)
            self._found.add(entry.id)
        gc.freeze()
        gc.enable()
        self.catalogue.expect(self.waiting.entries)
        self._recovering = intake.recover()
        self._load.look()
        self._aside.expect()  # what an earlier runner could not tell of
        self._loop.call_soon(self.take_in)
        self._loop.call_later(SCAN_EVERY, self._scan)
        self._loop.call_later(WARM_EVERY, self._warm)

    def _warm(self) -> None:
        """Get to know what waits since before the start, so slowly that nothing else feels it."""
        if self.catalogue.warm(self.waiting.entries, WARM_AT_ONCE):
            self._loop.call_later(WARM_EVERY, self._warm)

    async def stop(self, within: float) -> None:
        """Take nothing new and wait, at most so many seconds, for the answers that are out."""
        self.is_stopping = True
        end = self._loop.time() + within
        while any(p.awaited for p in self.active.values()) and self._loop.time() < end:
            await asyncio.sleep(AT_ONCE)
        for p in list(self.active.values()):
            self.passes.put_down(p)

    def _scan(self) -> None:
        self._loop.call_later(SCAN_EVERY, self._scan)
        now = self._clock()
        if now < self._last_scan:  # the clock went back: nothing shall wait for the time it went back by
            for entry in list(self.waiting.entries.values()):
                due = int(schedule.sane_due(entry.due, now, self._settings))
                if due != entry.due:
                    self.waiting.put(entry, due)
        self._last_scan = now
        self._load.look()
        self.wake()

    def wake(self) -> None:
        """Somebody says that there is something in the drop, or that a listener has accepted something."""
        if self._adoption is not None:
            self._adoption.call()
        wait = self._intake.rescan() if self._intake is not None else 0.0
        if not wait:
            self.take_in()
        elif not self._is_wake_due:
            self._is_wake_due = True
            self._loop.call_later(wait, self._wake_again)

    def told(self, names: Iterable[str]) -> None:
        """Submitters say that these files are in the drop now."""
        if self._intake is not None:
            self._intake.expect(names)
        self.take_in()

    def _wake_again(self) -> None:
        self._is_wake_due = False
        self.wake()

    # ---- taking messages into work

    def take_in(self) -> None:
        """Put as many messages to work as there is room for: due ones first, then new ones. Called often."""
        if self.is_stopping or self._intake is None or self._is_taking:
            return
        doors = [door for door in (self._intake, self._adoption) if door is not None]
        self._is_taking = True
        try:
            self._take_due()
            for _ in range(SLICE):
                message = next(self._recovering, None) if self._has_room() else None
                if message is None:
                    break
                self.accept(message)
            for door in doors:
                for message in door.sweep(min(SLICE, MAX_ACTIVE - len(self.active))) if self._has_room() else ():
                    self.accept(message)
        finally:
            self._is_taking = False
            self._set_timer()  # what was put off at once is among what waits
        if self._has_room() and (self.waiting.has_ready or any(door.has_more for door in doors)):
            self._loop.call_soon(self.take_in)

    def _has_room(self) -> bool:
        return len(self.active) < MAX_ACTIVE

    def _take_due(self) -> None:
        now = self._clock()
        for _ in range(SLICE):
            entry = self.waiting.next_ready(now) if self._has_room() else None
            if entry is None:
                break
            if not self._leave_alone(entry, now):
                self._resume(entry)

    def _leave_alone(self, entry: Entry, now: float) -> bool:
        """Whether its destination is down, so that its file need not even be opened: it waits on.

        At least once in retry_max a message is looked at all the same, or it would neither be warned about nor expire.
        """
        due = self.relays.left_alone(entry.destination) if entry.destination else 0.0
        looked_at = entry_of(entry.place, entry.name)
        if due <= now or looked_at is None or now - looked_at.due >= self._settings.retry_max:
            return False
        self.waiting.put(entry, due)
        return True

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self.waiting.pause(self._clock(), SCAN_EVERY) + AT_ONCE, self.take_in)

    def _resume(self, entry: Entry) -> None:
        """Work on a message from the queue again."""
        try:
            message = self.queue.load(entry)
        except Broken as problem:
            self._set_aside(entry, str(problem))
        except FileNotFoundError:
            self.waiting.remove(entry.id)
        except InWork:
            self.waiting.put(entry, self._clock() + IN_WORK_AGAIN)
        except OSError as trouble:
            self.events.trouble(f"{entry.id}: cannot read the queue file: {trouble.strerror}")
            self.waiting.put(entry, self._clock() + self._settings.retry_first)
        else:
            self.waiting.remove(entry.id)
            self.start(message)

    def accept(self, message: Message) -> None:
        """A message that is new in the queue."""
        self.events.alive()
        self.shares.add(message.entry.uid, message.length)
        wait = self._settings.retry_first if message.is_put_off else self._load.wait
        if not wait or not self._put_off(message, wait):
            self.start(message)

    def _put_off(self, message: Message, wait: float) -> bool:
        """Queue it for later: its submitter (-odq) or the load wants that. wait: seconds. False = it cannot be."""
        due = self._clock() + wait
        try:
            self.queue.secure(message)
            self.queue.reschedule(message, due, 0, "")
        except OSError as trouble:
            self.events.trouble(f"{message.id}: cannot put off: {trouble.strerror}")
            return False
        self.waiting.put(message.entry, due)
        return True

    def start(self, message: Message) -> None:
        """Work on a message, unless it is to be held: by its envelope (a filter's quarantine), which counts until it
        is released, or by an administrator's word that a crash has left half done."""
        if message.state.held or (message.envelope.hold and not message.is_journalled):
            self._hold(message)
            return
        p = self.active[message.id] = Pass(message, self._clock())
        self._screening.begin(p)

    def _hold(self, message: Message) -> None:
        entry, why = message.entry, message.state.held or message.envelope.hold
        try:
            self.queue.secure(message)
            if not message.state.held:
                event = Event("held", self._clock(), {"why": why})
                message.state.apply(event)
                self.queue.write_down(message, [event], sync=True)
            self.queue.hold(entry)
        except OSError as trouble:
            self.events.trouble(f"{entry.id}: cannot be held, tried again: {trouble.strerror}")
            self._later(message)
            return
        self.waiting.put(entry, self._clock())
        self.events.noted(entry.id, f"quarantine: {why}")

    def make_ready(self, queue_ids: list[str]) -> None:
        """Try these now, whatever their due time says."""
        self.waiting.make_ready(queue_ids, self._clock())
        self.take_in()

    def changed(self, entry: Entry) -> None:
        """An administrator has changed a message that goes on waiting."""
        self.catalogue.forget(entry.id)

    def gone(self, message: Message) -> None:
        """An administrator has removed a message that was waiting."""
        self.catalogue.forget(message.id)
        self.waiting.remove(message.id)
        self.shares.remove(message.entry.uid, message.length)

    def resume(self, message: Message) -> None:
        """Work on a message that was waiting, and is in memory."""
        self.waiting.remove(message.id)
        self.start(message)

    def flush(self, queue_ids: list[str]) -> None:
        """Try these now, also where a destination was found to be down."""
        self.relays.flush()
        self.make_ready(queue_ids)

    def revived(self, destination: str) -> None:
        """A destination that was down takes mail again."""
        self._loop.call_soon(self.make_ready, self.waiting.waiting_for(destination))

    def destination_of(self, message: Message) -> str:
        """The mark of the destination that a message waits for; "" if it waits for none, or for several."""
        found = {self._outgoing.hop(progress.target).destination if progress.target.kind == RELAY else ""
                 for _, progress in message.state.open_targets()}
        one = found.pop() if len(found) == 1 else ""
        return mark(one) if one else ""

    def has(self, queue_id: str) -> bool:
        """Whether a message in the queue has this id, whatever its state."""
        return queue_id in self.active or queue_id in self.waiting

    def is_known(self, queue_id: str) -> bool:
        """Whether a report is in the queue, whole, or has been since the start; a torn one is none. Raises OSError."""
        entry = self.waiting.entries.get(queue_id)
        if entry is None:
            return queue_id in self.active or queue_id in self._found
        try:
            self.queue.load(entry)
        except InWork:
            pass  # an earlier runner has read it
        except Broken as problem:
            self._set_aside(entry, str(problem))
            return False
        return True

    # ---- the end of a pass

    def settle(self, p: Pass) -> None:
        """No target is out any more. What fails here is tried again."""
        if p.is_over:
            return
        try:
            self._settlement.settle(p, self.passes)
        except OSError as trouble:
            self.events.trouble(f"{p.message.id}: cannot settle: {trouble.strerror}")
            if p.message.is_given_up and self._intake is not None:
                self._intake.put_back(p.message.source)  # our copy is of no use, its source is
                self.done(p)
            elif isinstance(trouble, FileNotFoundError) and self.queue.find(p.message.id) is None:
                self.events.trouble(f"{p.message.id}: its file is gone from the queue, by no doing of ours")
                self.done(p)
            else:
                self._loop.call_later(SETTLE_AGAIN, self._settle_again, p)
            return
        if not self.is_stopping and not self._is_taking:
            self._loop.call_soon(self.take_in)

    def _settle_again(self, p: Pass) -> None:
        try:
            self.settle(p)
        except Exception:  # noqa: BLE001 - as in passes.py
            self.crashed(p)

    def postponed(self, p: Pass, entry: Entry, due: float) -> None:
        """A message waits again."""
        self.leave(p)
        self.waiting.put(entry, due)
        self.catalogue.keep(p.message)

    def done(self, p: Pass) -> None:
        """A message is no longer ours."""
        self.leave(p)
        self._crashes.pop(p.message.id, None)
        self.shares.remove(p.message.entry.uid, p.message.length)

    def leave(self, p: Pass) -> None:
        """A message is no longer in work."""
        p.is_over = True
        self.active.pop(p.message.id, None)

    def crashed(self, p: Pass) -> None:
        """A fault of ours: the message waits, and after three times it is put where people look at it."""
        message = p.message
        self._crashes[message.id] += not isinstance(sys.exception(), MemoryError)  # which is no fault of a message
        for line in filter(str.strip, traceback.format_exc(limit=-6).split("\n")):
            self.events.trouble(f"{message.id}: {line}")
        self.leave(p)
        try:
            self.queue.secure(message)
            if self._crashes[message.id] >= MAX_CRASHES:
                self._set_aside(message.entry, "it made this program fail three times")
            else:
                due = self._clock() + self._settings.retry_first
                self.queue.reschedule(message, due, message.state.attempts + 1, "")
                self.waiting.put(message.entry, due)
        except OSError as trouble:
            self.events.trouble(f"{message.id}: {trouble.strerror}")
            self._later(message)

    def _later(self, message: Message) -> None:
        """Try again; where the copy is not safe by itself, with another one."""
        if message.source and self._intake is not None:
            self._intake.put_back(message.source)
            self.shares.remove(message.entry.uid, message.length)
        else:
            self.waiting.put(message.entry, self._clock() + self._settings.retry_first)

    def _set_aside(self, entry: Entry, why: str) -> None:
        self.waiting.remove(entry.id)
        self._found.discard(entry.id)
        self.shares.remove(entry.uid, 0)
        self._aside.put(entry, why)
