"""The runner's end of the agents: lanes for each user, a bounded number of agents, a deadline for every request.

A lane holds deliveries for one user and sends them to an agent of that user, at most WINDOW at a time. Mailbox and
files share one lane, so that what waits is written together; commands, which may take long, have up to COMMAND_LANES
of their own and go one at a time. Agents live for a burst: idle ones are closed, and when all places are taken the
least recently used idle one makes room. A user can stop or stall his own agent but nobody else's: the others' lanes
go on, and what waits for him is handed back as busy.

An agent that ends with requests unanswered leaves their outcome unknown; they are deferred, and may be duplicated.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..deliver import request
from ..deliver.request import Reply, Request
from ..events import Events
from ..mail.outcome import Outcome, deferred

MAX_LANES = 50  # agents at once
WINDOW = 64  # requests an agent has before it has answered
COMMAND_LANES = 3  # commands of one user at once
IDLE = 5.0  # seconds an agent is kept without work
STALLED_AFTER = 5.0  # seconds without an answer: the lane's waiting deliveries are handed back as busy
DEADLINE = 300.0  # seconds without an answer after which an agent is ended
COMMAND_GRACE = 60.0  # seconds more than a command's own limit
TICK = 1.0  # seconds between looks at idle and stuck lanes

Done = Callable[[Reply], None]
OpenFile = Callable[[], int]

BUSY = deferred("4.2.0", "mailbox is busy")
GONE = deferred("4.3.0", "delivery agent ended without an answer")
SLOW = deferred("4.3.0", "delivery agent did not answer in time")


@dataclass(slots=True)
class Job:
    """One delivery: open_file gives a descriptor of its message when the agent can take it."""

    request: Request
    open_file: OpenFile
    done: Done


@dataclass(slots=True)
class Lane:
    """Deliveries for one user. sent: by request number. moved: when the agent last answered or got its first.

    deadline: seconds for one answer. window: requests at a time.
    """

    user: str
    name: str
    deadline: float
    window: int = WINDOW
    waiting: deque[Job] = field(default_factory=deque)
    sent: dict[int, Job] = field(default_factory=dict)
    channel: socket.socket | None = None
    pid: int = 0
    is_asking: bool = False
    moved: float = 0.0


class Agents:
    """All lanes. link: the socket to the spawner."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: socket.socket, events: Events, *, most: int = MAX_LANES,
                 command_time: float = 1000.0) -> None:
        self._most = most
        self._command_time = command_time
        self._loop = loop
        self._link = link
        self._events = events
        self._lanes: dict[str, Lane] = {}
        self._asked: dict[int, Lane] = {}
        self._queue: deque[Lane] = deque()  # lanes without a place yet
        self._next = 0
        loop.call_later(TICK, self._tick)

    def deliver(self, user: str, job: Job, *, is_slow: bool = False) -> None:
        """Hand over one delivery; job.done is called once, later. is_slow: it runs a command."""
        lane = self._command_lane(user) if is_slow else self._lane(user, user, DEADLINE, WINDOW)
        lane.waiting.append(job)
        if lane.channel is not None:
            self._pump(lane)
        elif not lane.is_asking:
            lane.is_asking = True
            self._queue.append(lane)
            self._place()

    def _lane(self, user: str, name: str, deadline: float, window: int) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(user, name, deadline, window, moved=self._loop.time())
        return lane

    def _command_lane(self, user: str) -> Lane:
        """The one of this user's command lanes with the least to do."""
        names = [f"{user}|{k}" for k in range(COMMAND_LANES)]  # no user's name has a "|"
        lengths = [len(self._lanes[name].waiting) + len(self._lanes[name].sent) if name in self._lanes else 0
                   for name in names]
        name = names[lengths.index(min(lengths))]
        return self._lane(user, name, self._command_time + COMMAND_GRACE, 1)

    @property
    def outstanding(self) -> int:
        return sum(len(lane.sent) + len(lane.waiting) for lane in self._lanes.values())

    def close(self) -> None:
        """Give everything back as unanswered and end the agents."""
        for lane in list(self._lanes.values()):
            self._end(lane, GONE)

    # ---- getting an agent

    def _place(self) -> None:
        """Ask for agents for the lanes that wait, as far as there is room."""
        while self._queue:
            if sum(1 for lane in self._lanes.values() if lane.channel is not None) + len(self._asked) >= self._most:
                idle = [lane for lane in self._lanes.values()
                        if lane.channel is not None and not lane.sent and not lane.waiting]
                if not idle:
                    return
                self._end(min(idle, key=lambda lane: lane.moved), GONE)
            lane = self._queue.popleft()
            self._next += 1
            self._asked[self._next] = lane
            lane.moved = self._loop.time()
            try:
                self._link.send(request.encode({"agent": lane.user, "n": self._next}))
            except OSError as trouble:
                del self._asked[self._next]
                self._refuse(lane, deferred("4.3.0", f"no delivery agent: {trouble.strerror}"))

    def granted(self, value: dict[str, object], fds: list[int]) -> None:
        """The spawner's answer: an agent's socket, or why there is none."""
        n = value.get("n")
        lane = self._asked.pop(n, None) if isinstance(n, int) else None
        if lane is None or not fds:
            for fd in fds:
                os.close(fd)
            if lane is not None:
                self._refuse(lane, Outcome.from_json(value.get("error")))
            return
        lane.is_asking = False
        lane.channel = socket.socket(fileno=fds[0])
        lane.channel.setblocking(False)
        lane.pid = value["pid"] if isinstance(value.get("pid"), int) else 0  # type: ignore[assignment]
        lane.moved = self._loop.time()
        self._loop.add_reader(lane.channel.fileno(), self._answered, lane)
        self._pump(lane)

    def _refuse(self, lane: Lane, outcome: Outcome) -> None:
        lane.is_asking = False
        self._lanes.pop(lane.name, None)
        for job in lane.waiting:
            job.done(Reply(job.request.n, outcome))
        self._place()

    # ---- working with it

    def _pump(self, lane: Lane) -> None:
        """Send what the agent can take."""
        channel = lane.channel
        while channel is not None and lane.waiting and len(lane.sent) < lane.window:
            job = lane.waiting[0]
            try:
                fd = job.open_file()
            except OSError as trouble:
                lane.waiting.popleft()
                job.done(Reply(job.request.n, deferred("4.3.0", f"cannot open the message: {trouble.strerror}")))
                continue
            try:
                socket.send_fds(channel, [job.request.to_packet()], [fd])
            except BlockingIOError:
                return  # its buffer is full; the next answer makes room
            except OSError:
                self._end(lane, GONE)
                return
            finally:
                os.close(fd)
            if not lane.sent:
                lane.moved = self._loop.time()
            lane.sent[job.request.n] = lane.waiting.popleft()

    def _answered(self, lane: Lane) -> None:
        channel = lane.channel
        for _ in range(WINDOW):
            if channel is None:
                return
            try:
                packet = channel.recv(request.MAX_PACKET)
                reply = Reply.from_packet(packet) if packet else None
            except BlockingIOError:
                break
            except (OSError, ValueError, KeyError, TypeError) as problem:
                self._events.warned(f"agent of {lane.user}: {problem}")
                reply = None
            if reply is None:
                self._end(lane, GONE)
                return
            job = lane.sent.pop(reply.n, None) if reply.is_answer else lane.sent.get(reply.n)
            lane.moved = self._loop.time()
            if job is not None:
                job.done(reply)
        self._pump(lane)
        if not lane.sent and not lane.waiting and self._queue:
            self._place()

    def _end(self, lane: Lane, outcome: Outcome) -> None:
        """Close a lane's agent and answer for what it has not answered."""
        if lane.channel is not None:
            self._loop.remove_reader(lane.channel.fileno())
            lane.channel.close()
            lane.channel = None
        self._lanes.pop(lane.name, None)
        if lane in self._queue:
            self._queue.remove(lane)
        lost, lane.sent, lane.waiting = [*lane.sent.values(), *lane.waiting], {}, deque()
        for job in lost:
            job.done(Reply(job.request.n, outcome))

    def _tick(self) -> None:
        """Look after idle, stalled and stuck lanes."""
        now = self._loop.time()
        for lane in list(self._lanes.values()):
            quiet = now - lane.moved
            if lane.channel is None:
                continue
            if not lane.sent and not lane.waiting:
                if quiet > IDLE:
                    self._end(lane, GONE)
            elif quiet > lane.deadline:
                self._kill(lane)
            elif quiet > STALLED_AFTER and lane.window > 1:
                waiting, lane.waiting = lane.waiting, deque()
                for job in waiting:
                    job.done(Reply(job.request.n, BUSY))
        self._place()
        self._loop.call_later(TICK, self._tick)

    def _kill(self, lane: Lane) -> None:
        self._events.warned(f"agent of {lane.user} (pid {lane.pid}) is stuck and is ended")
        try:
            self._link.send(request.encode({"end": lane.pid}))
        except OSError:
            pass
        self._end(lane, SLOW)
