"""The relay processes as the runner has them: asking for them, shipments to them, answers from them, their end.

Shipments that are there at the same moment share a packet. A process is asked for when there is something to do,
another one when each has plenty; one without work is ended. A process that ends with shipments unanswered leaves
their outcome unknown; one that exceeds all its own limits is ended, which comes to the same. After processes that end
at once comes a pause that doubles each time.

All shipments for one destination go to the process that has the others for it, since it has the connections.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..deliver import shipment
from ..deliver.packet import MAX_PACKET
from ..deliver.shipment import Answer, Shipment
from ..mail.outcome import Outcome, deferred
from .lanes import Lane
from .starts import Starts

MAX_PROCESSES = 2
BUSY_AT = 64  # shipments with each process before another one is asked for
PACKETS_AT_ONCE = 16  # read before others have their turn
IDLE = 60.0  # seconds that a process is kept without work
SPARE_IDLE = 10.0  # the same while there are others: each has some 15 MB
OPENING = 1800.0  # seconds for finding a host that lets us in
GRACE = 120.0  # seconds that a process may exceed its own limits

GONE = deferred("4.3.0", "relay process ended without an answer; if it had sent the message, that arrives twice")
SLOW = deferred("4.3.0", "relay process did not answer in time")
TOO_LARGE = deferred("4.3.0", "too many or too long addresses for one shipment")

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
    lane: "Lane[Job] | None" = None
    until: float = 0.0

    @property
    def width(self) -> int:
        """How many connections its destination may have now."""
        return max(1, self.lane.slots) if self.lane is not None else 1


class Shipper(Protocol):
    """Whoever has the shipments."""

    def answered(self, job: Job, answer: Answer) -> None:
        """A relay has answered."""

    def lost(self, job: Job, outcome: Outcome) -> None:
        """No relay will answer, though one had it."""

    def unsent(self, job: Job) -> None:
        """It has not gone out, there being no room; it belongs in front of all others of its lane again."""

    def refused(self, job: Job, outcome: Outcome) -> None:
        """It cannot go out."""

    def no_process(self, outcome: Outcome) -> None:
        """There is no process, and there will be none for a while."""

    def has_room(self) -> None:
        """Something may go out now that could not before."""


@dataclass(slots=True, eq=False)
class Process:
    """moved: when it last answered or got its first shipment, loop time. batch: for the next packet, with open
    files."""

    channel: socket.socket
    pid: int
    began: float
    moved: float
    sent: dict[int, Job] = field(default_factory=dict)
    batch: list[tuple[Job, int]] = field(default_factory=list)


class Fleet:
    """ask: sends a packet to the spawner (starts.py)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ask: Callable[[dict[str, object]], None],
                 warn: Callable[[str], None], shipper: Shipper) -> None:
        self._loop = loop
        self._starts = Starts(loop, "relay", ask)
        self._warn = warn
        self._shipper = shipper
        self._processes: list[Process] = []
        self._by_lane: dict[str, Process] = {}

    @property
    def is_paused(self) -> bool:
        """Whether there is no process and none is to be expected now."""
        return not self._processes and not self._starts.is_asked and self._starts.wait > 0

    # ---- processes

    def process_for(self, lane: Lane[Job]) -> Process | None:
        """The process that has a lane's shipments, else the one with the fewest. None = not yet."""
        process = self._by_lane.get(lane.name)
        if process is None and self._processes:
            process = self._by_lane[lane.name] = min(self._processes, key=lambda one: len(one.sent))
        if process is None or len(process.sent) >= BUSY_AT:
            self._ask_for_one()
        return process

    def lane_ended(self, lane: Lane[Job]) -> None:
        self._by_lane.pop(lane.name, None)

    def _ask_for_one(self) -> None:
        if not self._starts.is_asked and len(self._processes) < MAX_PROCESSES and not self._starts.wait:
            self._refused(self._starts.ask())

    def granted(self, value: dict[str, object], fds: list[int]) -> None:
        """The spawner's answer: a relay's socket, or why there is none."""
        found = self._starts.granted(value, fds)
        if not isinstance(found, tuple):
            self._refused(found)
            return
        channel, pid = found
        now = self._loop.time()
        process = Process(channel, pid, now, now)
        self._processes.append(process)
        self._loop.add_reader(channel.fileno(), self._readable, process)
        self._shipper.has_room()

    def _refused(self, outcome: Outcome | None) -> None:
        """There is no further process now, if there is an outcome. With one at work that changes nothing."""
        if outcome is not None and not self._processes:
            self._shipper.no_process(outcome)

    def _ended(self, process: Process, why: str) -> None:
        """A process has ended by itself, or is of no use any more."""
        if process not in self._processes:
            return
        self._starts.ended(process.began)
        self._warn(f"relay process {process.pid} ended ({why}), {len(process.sent)} shipments unanswered")
        self._lose(process, GONE)

    def _lose(self, process: Process, outcome: Outcome) -> None:
        """Close a process's channel and answer for what it has not answered."""
        self._processes.remove(process)
        self._loop.remove_reader(process.channel.fileno())
        process.channel.close()
        self._by_lane = {name: one for name, one in self._by_lane.items() if one is not process}
        sent, process.sent = list(process.sent.values()), {}
        batch, process.batch = process.batch, []
        for job, fd in reversed(batch):
            os.close(fd)
            self._shipper.unsent(job)
        for job in sent:
            self._shipper.lost(job, outcome)
        self._shipper.has_room()

    def close(self) -> None:
        for process in list(self._processes):
            self._lose(process, GONE)

    def look_after(self) -> None:
        """End processes that are idle or stuck. Called often."""
        now = self._loop.time()
        for process in list(self._processes):
            if not process.sent and now - process.moved > (IDLE if len(self._processes) == 1 else SPARE_IDLE):
                self._lose(process, GONE)
            elif any(job.until < now for job in process.sent.values()):
                self._warn(f"relay process {process.pid} is stuck and is ended")
                self._starts.end(process.pid)
                self._lose(process, SLOW)

    def forget(self) -> None:
        """Let all processes forget what they have found out about hosts."""
        for process in self._processes:
            try:
                process.channel.send(shipment.forget_packet())
            except OSError:
                pass  # its next shipment finds out what is wrong with it

    # ---- packets

    def load(self, process: Process, job: Job) -> bool:
        """Put a job into the next packet. False: no more goes out now. Raises OSError: its message cannot be opened."""
        process.batch.append((job, job.open_file()))
        return len(process.batch) < shipment.MAX_BATCH or self._send(process)

    def send(self) -> None:
        """Send what was loaded."""
        for process in list(self._processes):
            self._send(process)

    def _send(self, process: Process) -> bool:
        """Send the batch as one packet. False: it is back where it came from."""
        batch, process.batch = process.batch, []
        if not batch:
            return True
        packet = shipment.shipments_packet((job.shipment, job.width) for job, _ in batch)
        if len(packet) > MAX_PACKET and len(batch) > 1:
            process.batch, rest = batch[:len(batch) // 2], batch[len(batch) // 2:]
            self._send(process)
            process.batch = rest
            return self._send(process)
        trouble: OSError | None = None
        try:
            socket.send_fds(process.channel, [packet], [fd for _, fd in batch])
        except OSError as problem:
            trouble = problem
        for _, fd in batch:
            os.close(fd)
        if trouble is not None:
            self._take_back(process, batch, trouble)
            return False
        now = self._loop.time()
        if not process.sent:
            process.moved = now
        for job, _ in batch:
            process.sent[job.shipment.n] = job
            size = job.shipment.length - job.shipment.offset
            job.until = now + OPENING + shipment.LIMIT + size / shipment.SLOWEST + GRACE
        return True

    def _take_back(self, process: Process, batch: list[tuple[Job, int]], trouble: OSError) -> None:
        """A packet has not gone out."""
        for job, _ in reversed(batch):
            if trouble.errno == errno.EMSGSIZE:
                self._shipper.refused(job, TOO_LARGE)
            else:
                self._shipper.unsent(job)
        if trouble.errno not in (errno.EAGAIN, errno.EMSGSIZE, errno.ETOOMANYREFS):
            self._ended(process, trouble.strerror or "")  # after the others the next answer makes room

    def _readable(self, process: Process) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = process.channel.recv(MAX_PACKET)
                answers = shipment.read_answers(packet) if packet else []
            except BlockingIOError:
                break
            except (OSError, ValueError) as problem:
                self._ended(process, str(problem))
                return
            if not packet:
                self._ended(process, "by itself")
                return
            process.moved = self._loop.time()
            for answer in answers:
                self._take(process, answer)
        self._shipper.has_room()

    def _take(self, process: Process, answer: Answer) -> None:
        job = process.sent.pop(answer.n, None)
        if job is None:
            return
        if len(answer.outcomes) == len(job.shipment.recipients):
            self._starts.answered()
            self._shipper.answered(job, answer)
        else:
            self._shipper.lost(job, GONE)
