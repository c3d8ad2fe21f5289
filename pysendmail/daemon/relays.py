"""The runner's end of the relays: shipments in, answers out, and the processes between.

What may go out when is decided in lanes.py, which destinations are left alone in outages.py. A shipment for a
destination that is down is answered at once with what was heard last; when the destination takes mail again, `revived`
names it, so that everything that waits for it can be tried now. What waits in a lane that hears nothing is handed back
after a while: the runner has other things to do with its places than to fill them with one destination.

Shipments that are there at the same moment go out in one packet. Relay processes are asked for when there is something
to do, another one when the first is busy, and ended when idle. A process that ends with shipments unanswered leaves
their outcome unknown: they are deferred, and may arrive twice. One that exceeds all its own limits is ended.
"""

import asyncio
import errno
import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..config import Config
from ..deliver import remote, shipment
from ..deliver.shipment import DOWN, FINE, LOGIN, ROUGH, Answer, Shipment
from ..events import Events
from ..mail.outcome import Outcome, deferred
from .lanes import Lane, Lanes
from .outages import Outage, Outages, mark

MAX_RELAYS = 2  # processes
BUSY_AT = 64  # shipments with each process before another one is asked for
PACKETS_AT_ONCE = 16  # read before others have their turn
ROUGH_LIMIT = 3  # broken conversations in a row after which a destination is down
STALLED_AFTER = 10.0  # seconds without an answer: what waits in the lane is handed back
IDLE = 60.0  # seconds that a process is kept without work
TICK = 1.0  # seconds between looks at lanes and processes
OPENING = 1800.0  # seconds for finding a host that lets us in
GRACE = 120.0  # seconds that a relay may exceed its own limits
STEADY_AFTER = 10.0  # seconds after which a process's end is no longer taken for a failed start
RESTART_FIRST, RESTART_MOST = 1.0, 60.0  # seconds before a process is asked for again
MAX_LISTED = 1000  # destinations that status() names

GONE = deferred("4.3.0", "relay process ended without an answer; the message may have been sent, and may arrive twice")
SLOW = deferred("4.3.0", "relay process did not answer in time")
BUSY = deferred("4.4.5", "other mail for this destination goes first")

Done = Callable[[Answer, float], None]
OpenFile = Callable[[], int]


@dataclass(slots=True, eq=False)
class Job:
    """One shipment. open_file gives a descriptor of its message, and may raise OSError.

    done: the answer, and when to try again (seconds since the epoch, 0.0 = as the schedule says). until: loop time at
    which its relay has exceeded all limits.
    """

    shipment: Shipment
    open_file: OpenFile
    done: Done
    until: float = 0.0


@dataclass(slots=True, eq=False)
class Process:
    """A relay process. moved: when it last answered or got its first shipment, loop time."""

    channel: socket.socket
    pid: int
    began: float
    moved: float
    sent: dict[int, tuple[Lane[Job], Job]] = field(default_factory=dict)
    batch: list[tuple[Lane[Job], Job, int]] = field(default_factory=list)


Filled = tuple[Lane[Job], Job, int]  # what goes into a packet; the int is a descriptor


class Relays:
    """ask: sends a packet to the spawner: {"relay": true, "n": k} or {"end": pid}; may raise OSError.

    clock: seconds since the epoch. revived: hears the mark of a destination that takes mail again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, ask: Callable[[dict[str, object]], None],
                 events: Events, clock: Callable[[], float], revived: Callable[[str], None], *,
                 chance: Callable[[], float] = random.random) -> None:
        self._loop = loop
        self._ask = ask
        self._events = events
        self._clock = clock
        self._revived = revived
        limits, queue = config.limits, config.queue
        self._lanes: Lanes[Job] = Lanes(limits.deliveries, min(limits.deliveries_per_destination, shipment.MAX_WIDTH))
        self._outages = Outages(float(queue.retry_first), float(queue.retry_max), chance)
        self._processes: list[Process] = []
        self._carriers: dict[str, Process] = {}  # which process has a lane's shipments
        self._touched: dict[str, Lane[Job]] = {}  # lanes that may have something to send
        self._asked: set[int] = set()
        self._numbers = 0
        self._not_before = 0.0
        self._restart = RESTART_FIRST
        self._is_pumping = False
        loop.call_later(TICK, self._tick)

    # ---- what the runner asks

    def deliver(self, job: Job) -> None:
        """Take a shipment; job.done is called once, later."""
        name, now = job.shipment.destination, self._loop.time()
        outage = self._outages.find(name)
        if outage is not None and (outage.is_probed or now < outage.due):
            self._loop.call_soon(self._put_off, job, outage)
            return
        lane = self._lanes.lane(name, now)
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
        for process in self._processes:
            try:
                process.channel.send(shipment.forget_packet())
            except OSError:
                pass  # its next shipment finds out what is wrong with it

    @property
    def outstanding(self) -> int:
        return sum(lane.sent + len(lane.waiting) for lane in self._lanes)

    def status(self) -> list[dict[str, object]]:
        """What is known of destinations, for hoststat: first those that are down, then those at work."""
        now = self._loop.time()
        found: list[dict[str, object]] = [
            {"destination": one.destination, "state": one.state, "reason": one.outcome.reason,
             "status": one.outcome.status, "failures": one.failures,
             "next_try": self._clock() + max(0.0, one.due - now)} for one in list(self._outages)[:MAX_LISTED]]
        return found + [
            {"destination": lane.name, "state": "busy", "waiting": len(lane.waiting), "sent": lane.sent,
             "connections": lane.slots, "silent": now - lane.moved} for lane in list(self._lanes)[:MAX_LISTED]]

    def close(self) -> None:
        """Give everything back as unanswered and end the processes."""
        for process in list(self._processes):
            self._lose(process, GONE)
        for lane in self._lanes:
            self._give_back(lane, GONE)

    # ---- answers

    def _answered(self, process: Process) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = process.channel.recv(shipment.MAX_PACKET)
                answers = shipment.read_answers(packet) if packet else None
            except BlockingIOError:
                break
            except (OSError, ValueError) as problem:
                self._events.warned(f"relay process {process.pid}: {problem}")
                answers = None
            if answers is None:
                self._ended(process)
                return
            process.moved = self._loop.time()
            for answer in answers:
                self._take(process, answer)
        self._pump_soon()

    def _take(self, process: Process, answer: Answer) -> None:
        lane, job = process.sent.get(answer.n, (None, None))
        if lane is None or job is None:
            return
        del process.sent[answer.n]
        self._restart = RESTART_FIRST
        for note in answer.notes:
            self._events.warned(f"{job.shipment.queue_id}: {note}")
        if len(answer.outcomes) != len(job.shipment.recipients):
            outcome = deferred("4.3.0", "relay process gave an answer that does not fit")
            answer = _same(job, outcome, is_tried=True)
        due = self._judge(lane, answer)
        self._lanes.answered(lane, process.moved)
        self._touched[lane.name] = lane
        self._drop_if_empty(lane)
        job.done(answer, due)

    def _judge(self, lane: Lane[Job], answer: Answer) -> float:
        """What an answer means for its destination. When to try again, 0.0 = as the schedule says."""
        outage = self._outages.find(lane.name)
        if not answer.is_tried:
            self._outages.probe_lost(lane.name)
            return 0.0
        if answer.state == FINE:
            self._lanes.widen(lane)
            lane.is_narrow = False
            if self._outages.ended(lane.name):
                self._revived(mark(lane.name))
            return 0.0
        state = answer.state
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
            self._loop.call_soon(self._put_off, lane.waiting.popleft(), outage)
        return self._due(outage)

    def _due(self, outage: Outage) -> float:
        return self._clock() + self._outages.left_alone(mark(outage.destination), self._loop.time())

    def _put_off(self, job: Job, outage: Outage) -> None:
        job.done(_same(job, outage.outcome), self._due(outage))

    def _return(self, job: Job, outcome: Outcome) -> None:
        """Hand a shipment back that nobody has tried."""
        self._loop.call_soon(job.done, _same(job, outcome), 0.0)

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
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what may go out."""
        self._is_pumping = False
        for lane in self._served():
            process = self._process_for(lane)
            if process is not None:
                self._fill(process, lane)
            elif self._loop.time() < self._not_before and not self._asked:
                self._give_back(lane, deferred("4.3.0", "there is no relay process, they keep ending"))
        for process in list(self._processes):
            self._send(process)

    def _served(self) -> Iterable[Lane[Job]]:
        """The lanes that may have something to send and have slots for it."""
        touched, self._touched = self._touched, {}
        for lane in touched.values():
            if self._lanes.find(lane.name) is lane:
                self._lanes.provide(lane)
                if lane.slots and lane.waiting:
                    yield lane
        while (queued := self._lanes.next_served()) is not None:
            yield queued

    def _fill(self, process: Process, lane: Lane[Job]) -> None:
        """Put into the process's batch what the lane may send."""
        while lane.waiting and lane.room > 0:
            job = lane.waiting.popleft()
            try:
                fd = job.open_file()
            except OSError as trouble:
                self._outages.probe_lost(lane.name)
                self._return(job, deferred("4.3.0", f"cannot open the message: {trouble.strerror}"))
                continue
            lane.sent += 1
            process.batch.append((lane, job, fd))
            if len(process.batch) >= shipment.MAX_BATCH and not self._send(process):
                return
        self._drop_if_empty(lane)

    def _send(self, process: Process) -> bool:
        """Send the batch as one packet. False: it is back in its lanes."""
        batch, process.batch = process.batch, []
        if not batch:
            return True
        packet = shipment.shipments_packet((job.shipment, max(1, lane.slots)) for lane, job, _ in batch)
        if len(packet) > shipment.MAX_PACKET and len(batch) > 1:
            process.batch, rest = batch[:len(batch) // 2], batch[len(batch) // 2:]
            self._send(process)
            process.batch = rest
            return self._send(process)
        trouble: OSError | None = None
        try:
            socket.send_fds(process.channel, [packet], [fd for _, _, fd in batch])
        except OSError as problem:
            trouble = problem
        for _, _, fd in batch:
            os.close(fd)
        if trouble is None:
            self._note_sent(process, batch)
        else:
            self._take_back(process, batch, trouble)
        return trouble is None

    def _note_sent(self, process: Process, batch: list[Filled]) -> None:
        now = self._loop.time()
        if not process.sent:
            process.moved = now
        for lane, job, _ in batch:
            process.sent[job.shipment.n] = lane, job
            if lane.sent == 1:
                lane.moved = now
            size = job.shipment.length - job.shipment.offset
            job.until = now + OPENING + remote.LIMIT + size / remote.SLOWEST + GRACE

    def _take_back(self, process: Process, batch: list[Filled], trouble: OSError) -> None:
        """A packet has not gone out."""
        for lane, job, _ in reversed(batch):
            lane.sent -= 1
            if trouble.errno == errno.EMSGSIZE:
                self._return(job, deferred("4.3.0", "too many or too long addresses for one shipment"))
                self._drop_if_empty(lane)
            else:
                lane.waiting.appendleft(job)
                self._touched[lane.name] = lane
        if not isinstance(trouble, BlockingIOError) and trouble.errno not in (errno.EMSGSIZE, errno.ETOOMANYREFS):
            self._ended(process)  # else the next answer makes room

    def _drop_if_empty(self, lane: Lane[Job]) -> None:
        if lane.is_empty:
            self._lanes.remove(lane)
            self._carriers.pop(lane.name, None)
            self._touched.pop(lane.name, None)

    # ---- processes

    def granted(self, value: dict[str, object], fds: list[int]) -> None:
        """The spawner's answer: a relay's socket, or why there is none."""
        n = value.get("n")
        is_ours = isinstance(n, int) and n in self._asked
        if is_ours:
            self._asked.clear()
        if not is_ours or not fds:
            for fd in fds:
                os.close(fd)
            if is_ours:
                self._refused(Outcome.from_json(value.get("error")))
            return
        now, pid = self._loop.time(), value.get("pid")
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        process = Process(channel, pid if isinstance(pid, int) else 0, now, now)
        self._processes.append(process)
        self._loop.add_reader(channel.fileno(), self._answered, process)
        for lane in self._lanes:
            self._touch(lane)

    def _process_for(self, lane: Lane[Job]) -> Process | None:
        """The process that has a lane's shipments, else the one with the fewest. None = not yet."""
        process = self._carriers.get(lane.name)
        if process is None and self._processes:
            process = min(self._processes, key=lambda one: len(one.sent))
            self._carriers[lane.name] = process
            if len(process.sent) < BUSY_AT:
                return process
        if process is None or len(process.sent) >= BUSY_AT:
            self._ask_for_one()
        return process

    def _ask_for_one(self) -> None:
        if self._asked or len(self._processes) >= MAX_RELAYS or self._loop.time() < self._not_before:
            return
        self._numbers += 1
        self._asked.add(self._numbers)
        try:
            self._ask({"relay": True, "n": self._numbers})
        except OSError as trouble:
            self._asked.clear()
            self._refused(deferred("4.3.0", f"no relay process: {trouble.strerror}"))

    def _refused(self, outcome: Outcome) -> None:
        """There is no further process now. With one at work that changes nothing."""
        self._wait_before_next()
        if not self._processes:
            for lane in self._lanes:
                self._give_back(lane, outcome)

    def _wait_before_next(self) -> None:
        self._not_before = self._loop.time() + self._restart
        self._restart = min(self._restart * 2, RESTART_MOST)

    def _ended(self, process: Process) -> None:
        """A process has ended by itself, or is of no use any more."""
        if process not in self._processes:
            return
        if self._loop.time() - process.began < STEADY_AFTER:
            self._wait_before_next()
        self._events.warned(f"relay process {process.pid} ended, {len(process.sent)} shipments unanswered")
        self._lose(process, GONE)

    def _lose(self, process: Process, outcome: Outcome) -> None:
        """Close a process's channel and answer for what it has not answered."""
        self._processes.remove(process)
        self._loop.remove_reader(process.channel.fileno())
        process.channel.close()
        self._carriers = {name: one for name, one in self._carriers.items() if one is not process}
        lost, process.sent = list(process.sent.values()), {}
        for lane, job in lost:
            self._lanes.answered(lane, self._loop.time())
            self._outages.probe_lost(lane.name)
            self._return(job, outcome)
            self._touch(lane)
        for lane, _ in lost:
            self._drop_if_empty(lane)

    # ---- time

    def _tick(self) -> None:
        """Look after idle, silent and stuck lanes and processes."""
        self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        for lane in self._lanes:
            self._lanes.grow_silent(lane, now)
            if lane.waiting and now - lane.moved > STALLED_AFTER:
                self._give_back(lane, BUSY)
        for process in list(self._processes):
            if not process.sent and now - process.moved > IDLE:
                self._lose(process, GONE)
            elif any(job.until < now for _, job in process.sent.values()):
                self._kill(process)
        self._pump_soon()

    def _kill(self, process: Process) -> None:
        self._events.warned(f"relay process {process.pid} is stuck and is ended")
        try:
            self._ask({"end": process.pid})
        except OSError:
            pass  # the spawner is gone, and so are we soon
        self._lose(process, SLOW)


def _same(job: Job, outcome: Outcome, *, is_tried: bool = False) -> Answer:
    """One outcome for all recipients of a shipment."""
    return Answer(job.shipment.n, (outcome,) * len(job.shipment.recipients), is_tried=is_tried)
