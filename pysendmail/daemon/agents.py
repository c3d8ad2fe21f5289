"""The runner's end of the agents: lanes for each user, a bounded number of agents, a deadline for every request.

A lane holds deliveries for one user and sends them to an agent of that user, at most `window` at a time. Mailbox and
files share one lane, so that what waits is written together; commands, which may take long, have a few lanes of their
own for each recipient (a user, or an alias) and go one at a time. Agents live for a burst: idle ones are closed, and
when all places are taken the least recently used idle one makes room. USUAL mailbox agents that answer are enough
for any number of users: fewer processes in memory, and larger batches. Those that are silent do not count.

A user can stop or stall his own agents but nobody else's mail:

    a lane that is stalled    takes nothing more, and what waits in it is handed back as busy: it is tried again soon,
                              and holds no place among the messages in work meanwhile
    commands                  have half of the places at most, so that mailboxes always have the others
    all places are taken      what waits for one is handed back as busy, at once when no place changes hands; a mailbox
                              agent that has been silent for CROWDED_AFTER makes room, dead or alive

A message to thousands of users makes as many lanes: nothing here looks at all of them but the tick.

An agent that ends with requests unanswered leaves their outcome unknown; they are deferred, and may be duplicated. The
spawner's silence, a lack of descriptors, a kernel that takes no more of them in flight: all of that means "later".
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..deliver.packet import MAX_PACKET, encode
from ..deliver.request import REFUSED, Reply, Request
from ..events import Events
from ..mail.outcome import Outcome, deferred

MAX_LANES = 50  # agents at once
USUAL = 20  # mailbox agents at once that answer: each has some 3 MB, and fewer have larger batches
PATIENCE = 1.0  # seconds of silence after which an agent is not among these
WINDOW = 64  # requests an agent has before it has answered
COMMAND_LANES = 2  # commands of one recipient at once
IDLE = 5.0  # seconds an agent is kept without work
STALLED_AFTER = 5.0  # seconds without an answer, or in which nobody who waits for a place gets one
PLACE_WITHIN = 30.0  # seconds that a lane may wait for a place while others get theirs
CROWDED_AFTER = 60.0  # seconds without an answer after which an agent is ended if others need its place
DEADLINE = 300.0  # seconds without an answer after which it is ended in any case
COMMAND_GRACE = 60.0  # seconds more than a command's own limit
ASK_WITHIN = 60.0  # seconds that the spawner may take for an answer
TICK = 1.0  # seconds between looks at idle and stuck lanes

Done = Callable[[Reply], None]
OpenFile = Callable[[], int]

DROPPED = deferred("4.3.0", "not tried, the daemon is ending")
BUSY = deferred("4.2.0", "mailbox is busy")
GONE = deferred("4.3.0", "delivery agent ended without an answer")
SLOW = deferred("4.3.0", "delivery agent did not answer in time")
NO_AGENT = deferred("4.3.0", "no delivery agent could be started")

# What a socket says that takes no more at the moment: its own buffer, and descriptors that are on their way (unix(7)).
_NO_ROOM = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))


@dataclass(slots=True)
class Job:
    """One delivery: open_file gives a descriptor of its message when the agent can take it."""

    request: Request
    open_file: OpenFile
    done: Done


@dataclass(slots=True, eq=False)
class Lane:
    """Deliveries for one user. sent: by request number. moved: when the agent last answered or got its first request;
    without an agent: since when the lane waits for one.

    deadline: seconds for one answer. window: requests at a time. asked: number of the question for an agent, 0 = none.
    """

    user: str
    name: str
    deadline: float
    window: int
    moved: float
    waiting: deque[Job] = field(default_factory=deque)
    sent: dict[int, Job] = field(default_factory=dict)
    channel: socket.socket | None = None
    pid: int = 0
    asked: int = 0

    @property
    def is_slow(self) -> bool:
        return self.window == 1

    @property
    def is_idle(self) -> bool:
        return self.channel is not None and not self.sent and not self.waiting

    @property
    def has_place(self) -> bool:
        return self.channel is not None or self.asked != 0


class Agents:
    """All lanes. link: the socket to the spawner."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: socket.socket, events: Events, *, most: int = MAX_LANES,
                 command_time: float = 1000.0, commands: int = COMMAND_LANES) -> None:
        self._most = most
        self._commands = commands
        self._command_time = command_time
        self._loop = loop
        self._link = link
        self._events = events
        self._lanes: dict[str, Lane] = {}
        self._asked: dict[int, Lane] = {}
        self._placed: dict[str, Lane] = {}  # lanes that have a place
        self._queues: tuple[dict[str, Lane], dict[str, Lane]] = ({}, {})  # lanes that wait for one: mailboxes, commands
        self._placed_at = loop.time()  # when one of these last got it
        self._next = 0
        loop.call_later(TICK, self._tick)

    def deliver(self, user: str, job: Job, *, is_slow: bool = False) -> None:
        """Hand over one delivery; job.done is called once, later. is_slow: it runs a command."""
        alias = job.request.target.source
        lane = self._command_lane(user, alias) if is_slow else self._lane(user, user, DEADLINE, WINDOW)
        if self._is_stalled(lane, self._loop.time()):
            self._loop.call_soon(job.done, Reply(job.request.n, BUSY))
            return
        lane.waiting.append(job)
        if lane.channel is not None:
            self._pump(lane)
        elif not lane.asked and lane.name not in self._queues[lane.is_slow]:
            self._queues[lane.is_slow][lane.name] = lane
            self._place()

    def drop(self) -> None:
        """Forget what no agent has been given: it has not been tried."""
        for lane in list(self._lanes.values()):
            waiting, lane.waiting = lane.waiting, deque()
            for job in waiting:
                job.done(Reply(job.request.n, DROPPED))

    def leave(self) -> list[Lane]:
        """The lanes with deliveries that agents have. What becomes of them is not our business any more."""
        left = [lane for lane in self._lanes.values() if lane.sent]
        for lane in left:
            self._forget(lane)
        return left

    def close(self) -> None:
        """Give everything back as unanswered and end the agents."""
        self.drop()
        for lane in list(self._lanes.values()):
            self._end(lane, GONE)

    def _lane(self, user: str, name: str, deadline: float, window: int) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(user, name, deadline, window, self._loop.time())
        return lane

    def _command_lane(self, user: str, alias: str) -> Lane:
        """The one of this recipient's command lanes with the least to do."""
        names = [f"{user}|{k}|{alias}" for k in range(self._commands)]  # no user's name has a "|"
        lengths = [len(self._lanes[name].waiting) + len(self._lanes[name].sent) if name in self._lanes else 0
                   for name in names]
        name = names[lengths.index(min(lengths))]
        return self._lane(user, name, self._command_time + COMMAND_GRACE, 1)

    # ---- getting an agent

    def _place(self) -> None:
        """Ask for agents for the lanes that wait, as far as there is room."""
        for queue in self._queues:
            while queue:
                lane = next(iter(queue.values()))
                if not self._makes_room(lane):
                    break
                if queue.pop(lane.name, None) is not None:
                    self._ask(lane)

    def _makes_room(self, lane: Lane) -> bool:
        """Whether this lane may have an agent; an idle agent makes room for it."""
        taken = list(self._placed.values())
        if lane.is_slow and sum(one.is_slow for one in taken) >= max(1, self._most // 2):
            taken = [one for one in taken if one.is_slow]
        elif len(taken) < self._most and (lane.is_slow or self._lively(taken) < USUAL):
            return True
        idle = min((one for one in taken if one.is_idle), key=lambda one: one.moved, default=None)
        if idle is not None:
            self._end(idle, GONE)
        return idle is not None

    def _lively(self, lanes: list[Lane]) -> int:
        """How many of these have a mailbox agent that works, or could."""
        since = self._loop.time() - PATIENCE
        return sum(not lane.is_slow and (lane.is_idle or lane.moved > since) for lane in lanes)

    def _ask(self, lane: Lane) -> None:
        self._next += 1
        lane.asked, lane.moved = self._next, self._loop.time()
        self._placed_at = lane.moved
        self._placed[lane.name] = self._asked[lane.asked] = lane
        try:
            self._link.send(encode({"agent": lane.user, "n": lane.asked}))
        except OSError as trouble:
            self._refuse(lane, deferred("4.3.0", f"no delivery agent: {trouble.strerror}"))

    def granted(self, value: dict[str, object], fds: list[int]) -> None:
        """The spawner's answer: an agent's socket, or why there is none."""
        n = value.get("n")
        lane = self._asked.get(n) if isinstance(n, int) else None
        if lane is None or not fds:
            for fd in fds:
                os.close(fd)
            if lane is not None:
                # Without either the descriptor got lost: we may have no more of them.
                self._refuse(lane, Outcome.from_json(value["error"]) if "error" in value else NO_AGENT)
            return
        del self._asked[lane.asked]
        lane.asked = 0
        lane.channel = socket.socket(fileno=fds[0])
        lane.channel.setblocking(False)
        pid = value.get("pid")
        lane.pid = pid if isinstance(pid, int) else 0
        lane.moved = self._loop.time()
        self._loop.add_reader(lane.channel.fileno(), self._answered, lane)
        self._pump(lane)

    def _refuse(self, lane: Lane, outcome: Outcome) -> None:
        self._end(lane, outcome)
        self._place()

    # ---- working with it

    def _pump(self, lane: Lane) -> None:
        """Send what the agent can take."""
        while lane.channel is not None and lane.waiting and len(lane.sent) < lane.window:
            job = lane.waiting[0]
            try:
                fd = job.open_file()
            except OSError as trouble:
                lane.waiting.popleft()
                reply = Reply(job.request.n, deferred("4.3.0", f"cannot open the message: {trouble.strerror}"))
                self._loop.call_soon(job.done, reply)
                continue
            try:
                socket.send_fds(lane.channel, [job.request.to_packet()], [fd])
            except OSError as trouble:
                if trouble.errno not in _NO_ROOM:
                    self._end(lane, GONE)
                return  # the next answer, or the next tick, finds room
            finally:
                os.close(fd)
            if not lane.sent:
                lane.moved = self._loop.time()
            lane.sent[job.request.n] = lane.waiting.popleft()

    def _answered(self, lane: Lane) -> None:
        for _ in range(WINDOW):
            if lane.channel is None:
                return
            try:
                packet = lane.channel.recv(MAX_PACKET)
                reply = Reply.from_packet(packet) if packet else None
            except BlockingIOError:
                break
            except (OSError, ValueError, KeyError, TypeError) as problem:
                self._events.warned(f"agent of {lane.user}: {problem}")
                reply = None
            if reply is None:
                self._end(lane, GONE)
                return
            if reply.n == REFUSED and reply.outcome is not None:
                self._refuse(lane, reply.outcome)
                return
            job = lane.sent.pop(reply.n, None) if reply.is_answer else lane.sent.get(reply.n)
            if reply.is_answer:
                lane.moved = self._loop.time()
            if job is not None:
                job.done(reply)
        self._pump(lane)
        if lane.is_idle and any(self._queues):
            self._place()

    def _end(self, lane: Lane, outcome: Outcome) -> None:
        """Close a lane's agent and answer for what it has not answered."""
        self._forget(lane)
        if lane.channel is not None:
            lane.channel.close()
            lane.channel = None
        lost, lane.sent, lane.waiting = [*lane.sent.values(), *lane.waiting], {}, deque()
        for job in lost:
            job.done(Reply(job.request.n, outcome))

    def _forget(self, lane: Lane) -> None:
        if lane.channel is not None:
            self._loop.remove_reader(lane.channel.fileno())
        self._asked.pop(lane.asked, None)
        lane.asked = 0
        if self._lanes.get(lane.name) is lane:
            for known in (self._lanes, self._placed, *self._queues):
                known.pop(lane.name, None)

    # ---- looking after it

    def _tick(self) -> None:
        self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        for lane in list(self._lanes.values()):
            self._look_after(lane, now)
        self._place()

    def _look_after(self, lane: Lane, now: float) -> None:
        quiet = now - lane.moved
        if lane.is_idle:
            if quiet > IDLE:
                self._end(lane, GONE)
        elif lane.asked and quiet > ASK_WITHIN:
            self._end(lane, NO_AGENT)
        elif lane.channel is not None and (quiet > lane.deadline or (quiet > CROWDED_AFTER and self._is_needed(lane))):
            self._kill(lane)
        elif self._is_stalled(lane, now):
            waiting, lane.waiting = lane.waiting, deque()
            if lane.channel is None and not lane.asked:
                self._end(lane, BUSY)
            for job in waiting:
                job.done(Reply(job.request.n, BUSY))
        else:
            self._pump(lane)

    def _is_stalled(self, lane: Lane, now: float) -> bool:
        if not lane.has_place:
            return now - max(lane.moved, self._placed_at) > STALLED_AFTER or now - lane.moved > PLACE_WITHIN
        return (bool(lane.sent) or lane.channel is None) and now - lane.moved > STALLED_AFTER

    def _is_needed(self, lane: Lane) -> bool:
        """Whether others wait for the place of a mailbox agent."""
        return not lane.is_slow and any(self._queues)

    def _kill(self, lane: Lane) -> None:
        self._events.warned(f"agent of {lane.user} (pid {lane.pid}) is stuck and is ended")
        try:
            self._link.send(encode({"end": lane.pid}))
        except OSError:
            pass
        self._end(lane, SLOW)
