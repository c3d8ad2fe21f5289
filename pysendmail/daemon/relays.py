"""The runner's end of mail to other hosts: which shipment goes out when, and what an answer means for those to come.

How many go out is decided in lanes.py, which destinations are left alone in outages.py; the relay processes are the
business of fleet.py. A shipment for a destination that is down is answered at once with what was heard last; when the
destination takes mail again, `revived` names it, so that everything that waits for it can be tried now. What waits in a
lane that hears nothing is handed back after a while: the runner has other things to do with its places than to fill
them with one destination.
"""

import asyncio
import random
from collections.abc import Callable, Iterable

from ..config import Config
from ..deliver.shipment import DOWN, FINE, LOGIN, MAX_WIDTH, ROUGH, Answer
from ..events import Events
from ..mail.outcome import Outcome, deferred
from .fleet import Done, Fleet, Job, OpenFile
from .lanes import Lane, Lanes
from .outages import Outage, Outages, mark

ROUGH_LIMIT = 3  # broken conversations in a row after which a destination is down
STALLED_AFTER = 10.0  # seconds without an answer: what waits in the lane is handed back
TICK = 1.0  # seconds between looks at lanes and processes
MAX_LISTED = 1000  # destinations of either kind that status() names

BUSY = deferred("4.4.5", "other mail for this destination goes first")
PAUSED = deferred("4.3.0", "there is no relay process, they keep ending")

__all__ = ["Done", "Job", "OpenFile", "Relays", "mark"]


class Relays:
    """ask: sends a packet to the spawner: {"relay": true, "n": k} or {"end": pid}; may raise OSError.

    clock: seconds since the epoch. revived: hears the mark of a destination that takes mail again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, ask: Callable[[dict[str, object]], None],
                 events: Events, clock: Callable[[], float], revived: Callable[[str], None], *,
                 chance: Callable[[], float] = random.random) -> None:
        self._loop = loop
        self._events = events
        self._clock = clock
        self._revived = revived
        limits, queue = config.limits, config.queue
        self._lanes: Lanes[Job] = Lanes(limits.deliveries, min(limits.deliveries_per_destination, MAX_WIDTH))
        self._outages = Outages(float(queue.retry_first), float(queue.retry_max), chance)
        self._fleet = Fleet(loop, ask, events.warned, self)
        self.granted = self._fleet.granted  # the spawner's answers
        self._touched: dict[str, Lane[Job]] = {}  # lanes that may have something to send
        self._is_pumping = False
        self._ticker = loop.call_later(TICK, self._tick)

    # ---- what the runner asks

    def deliver(self, job: Job) -> None:
        """Take a shipment; job.done is called once, later."""
        name, now = job.shipment.destination, self._loop.time()
        outage = self._outages.find(name)
        if outage is not None and (outage.is_probed or now < outage.due):
            self._put_off(job, outage)
            return
        job.lane = lane = self._lanes.lane(name, now)
        if lane.sent and now - lane.moved > STALLED_AFTER:
            self._return(job, BUSY)
            return
        lane.is_narrow = outage is not None
        if outage is not None:
            outage.is_probed = True
        lane.waiting.append(job)
        self._touch(lane)

    def left_alone(self, of: str) -> float:
        """Until when (seconds since the epoch) nothing for the destination with this mark needs to be tried; 0.0 = it
        is not down."""
        wait = self._outages.left_alone(of, self._loop.time())
        return self._clock() + wait if wait else 0.0

    def flush(self) -> None:
        """Try everything again, whatever was found out about destinations."""
        self._outages.clear()
        for lane in self._lanes:
            lane.is_narrow = False
        self._fleet.forget()

    def status(self) -> list[dict[str, object]]:
        """What is known of destinations, for hoststat: first those that are down, then those at work."""
        now = self._loop.time()
        found: list[dict[str, object]] = [
            {"destination": one.destination, "state": one.state, "reason": one.outcome.reason,
             "status": one.outcome.status, "failures": one.failures, "heard": max(0.0, now - one.heard),
             "next_try": self._clock() + max(0.0, one.due - now)} for one in list(self._outages)[:MAX_LISTED]]
        return found + [
            {"destination": lane.name, "state": "busy", "waiting": len(lane.waiting), "sent": lane.sent,
             "connections": lane.slots, "silent": now - lane.moved} for lane in list(self._lanes)[:MAX_LISTED]]

    def close(self) -> None:
        """Give everything back as unanswered and end the processes."""
        self._ticker.cancel()
        self._fleet.close()
        for lane in self._lanes:
            self._give_back(lane, PAUSED)

    # ---- what the fleet tells

    def answered(self, job: Job, answer: Answer) -> None:
        for note in answer.notes:
            self._events.warned(f"{job.shipment.queue_id}: {note}")
        for handshake in answer.handshakes:
            self._events.shook_hands(handshake)
        lane = job.lane
        due = 0.0
        if lane is not None:
            due = self._judge(lane, answer)
            self._back(lane)
        job.done(answer, due)

    def lost(self, job: Job, outcome: Outcome) -> None:
        if job.lane is not None:
            self._outages.probe_lost(job.lane.name)
            self._back(job.lane)
        self._return(job, outcome, is_tried=True)

    def unsent(self, job: Job) -> None:
        lane = job.lane
        if lane is not None:
            lane.sent -= 1
            lane.waiting.appendleft(job)
            self._touched[lane.name] = lane

    def refused(self, job: Job, outcome: Outcome) -> None:
        if job.lane is not None:
            self._outages.probe_lost(job.lane.name)
            self._back(job.lane)
        self._return(job, outcome)

    def no_process(self, outcome: Outcome) -> None:
        for lane in self._lanes:
            self._give_back(lane, outcome)

    def has_room(self) -> None:
        for lane in self._lanes:
            if lane.waiting:
                self._touched[lane.name] = lane
        self._pump_soon()

    def _back(self, lane: Lane[Job]) -> None:
        """A shipment of a lane is not with a relay any more."""
        self._lanes.answered(lane, self._loop.time())
        self._touched[lane.name] = lane
        self._drop_if_empty(lane)

    # ---- what answers mean

    def _judge(self, lane: Lane[Job], answer: Answer) -> float:
        """What an answer means for its destination. When to try again, 0.0 = as the schedule says."""
        if not answer.is_tried:
            self._outages.probe_lost(lane.name)
            outage = self._outages.find(lane.name)
            return self._due(outage) if outage is not None and answer.state != FINE else 0.0
        if answer.state == FINE:
            self._lanes.widen(lane)
            lane.is_narrow = False
            if self._outages.ended(lane.name):
                self._revived(mark(lane.name))
            return 0.0
        outage, state = self._outages.find(lane.name), answer.state
        if state == ROUGH:
            self._lanes.narrow(lane)
            if lane.rough < ROUGH_LIMIT and outage is None:
                return 0.0
            state = DOWN
        reason = next((outcome for outcome in answer.outcomes if outcome.is_deferred), BUSY)
        if outage is None and state == LOGIN:
            self._events.trouble(f"mail for {lane.name} waits: {reason.reason}")
        outage = self._outages.failed(lane.name, reason, state, self._loop.time())
        while lane.waiting:
            self._put_off(lane.waiting.popleft(), outage)
        return self._due(outage)

    def _due(self, outage: Outage) -> float:
        return self._clock() + self._outages.left_alone(mark(outage.destination), self._loop.time())

    def _put_off(self, job: Job, outage: Outage) -> None:
        """Its destination is down, and others have found that out."""
        self._return(job, outage.outcome, due=self._due(outage))

    def _return(self, job: Job, outcome: Outcome, *, is_tried: bool = False, due: float = 0.0) -> None:
        """Answer ourselves, later, with one outcome for all recipients."""
        outcomes = (outcome,) * len(job.shipment.recipients)
        self._loop.call_soon(job.done, Answer(job.shipment.n, outcomes, is_tried=is_tried), due)

    def _give_back(self, lane: Lane[Job], outcome: Outcome) -> None:
        """Hand back what waits in a lane."""
        self._outages.probe_lost(lane.name)
        while lane.waiting:
            self._return(lane.waiting.popleft(), outcome)
        self._drop_if_empty(lane)

    # ---- sending

    def _touch(self, lane: Lane[Job]) -> None:
        self._touched[lane.name] = lane
        self._pump_soon()

    def _pump_soon(self) -> None:
        """Shipments that come at the same moment share a packet."""
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what may go out."""
        self._is_pumping = False
        for lane in self._served():
            process = self._fleet.process_for(lane)
            if process is None:
                if self._fleet.is_paused:
                    self._give_back(lane, PAUSED)
                continue
            if not lane.sent:
                lane.moved = self._loop.time()
            has_room = True
            while has_room and lane.waiting and lane.room > 0:
                job = lane.waiting.popleft()
                lane.sent += 1
                try:
                    has_room = self._fleet.load(process, job)
                except OSError as trouble:
                    self.refused(job, deferred("4.3.0", f"cannot open the message: {trouble.strerror}"))
        self._fleet.send()

    def _served(self) -> Iterable[Lane[Job]]:
        """The lanes that may have something to send and have slots for it."""
        while (queued := self._lanes.next_served()) is not None:
            self._touched[queued.name] = queued
        touched, self._touched = self._touched, {}
        for lane in touched.values():
            if self._lanes.find(lane.name) is lane:
                self._lanes.provide(lane)
                if lane.slots and lane.waiting:
                    yield lane

    def _drop_if_empty(self, lane: Lane[Job]) -> None:
        if lane.is_empty:
            self._lanes.remove(lane)
            self._fleet.lane_ended(lane)
            self._touched.pop(lane.name, None)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        for lane in self._lanes:
            self._lanes.grow_silent(lane, now)
            if lane.waiting and now - lane.moved > STALLED_AFTER:
                self._give_back(lane, BUSY)
        self._fleet.look_after()
        self._pump_soon()
