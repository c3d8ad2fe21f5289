"""The runner's end of examining mail: nothing without the mark "scanned" is delivered while there is a filter.

What a listener has accepted bears the mark. Everything else, whatever door it came by, is first shown to the filters by
a scanner process (scanner.py): before its recipients are expanded, and again in each attempt until there is a verdict.
Then one of these is true:

    it passes      a new queue file, with mark and changes, takes the place of the old one (spool/rewriting.py)
    refused        each recipient gets that outcome; the sender hears of it in a report, as of any other failure
    tempfail       likewise, and it is tried again; so it is whenever the scanner has failed in any way
    dropped        it is forgotten, with a line in the log
    quarantine     it passes, and is held

No crash makes a message pass: the mark is in the file that the filters' changes are in, and comes with them or not at
all. Reports of our own are not shown to anybody: they consist of what has been looked at, and a filter that refused
them would make of each refusal another one.

There is one scanner process, asked for when there is something to do and ended when it is idle; one that does not keep
its own limits is killed. MAX_OUT messages are with it at a time, the others wait here; so do all for a moment when one
has died young, before another is asked for.
"""

import asyncio
import errno
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..config import Config
from ..deliver.packet import MAX_PACKET
from ..events import Events
from ..mail.changes import split
from ..mail.outcome import Outcome, deferred
from ..paths import Paths
from ..spool.queue import Message, Queue
from ..spool.queue_file import pieces
from ..spool.rewriting import rewrite
from . import verdict as packets
from .starts import Starts
from .verdict import NewText, Verdict, start_of

MAX_OUT = 20  # messages at a time; every filter has so many connections at most
IDLE = 60.0  # seconds that a scanner is kept without work
LIMIT = 900.0  # seconds for one message, however long filters take
SLOWEST = 100_000.0  # bytes per second; a large message has more time
TICK = 5.0  # seconds between looks at the clock

GONE = deferred("4.3.0", "the scanner ended without a verdict")
SLOW = deferred("4.3.0", "the scanner gave no verdict in time")

_LATER = frozenset((errno.EAGAIN, errno.ETOOMANYREFS))


@dataclass(frozen=True, slots=True)
class Examined:
    """What the scanner says of a message. Good only while it is handed over. store: puts the message with all changes
    in the place of the old one; raises OSError or ValueError, and it has not been scanned then."""

    verdict: Verdict
    store: Callable[[], None]


Done = Callable[[Examined], None]


@dataclass(slots=True, eq=False)
class _Job:
    """scratch: the file for what is new, -1 = none yet. until: loop time at which the scanner has exceeded its
    limits."""

    message: Message
    done: Done
    n: int = 0
    scratch: int = -1
    until: float = 0.0

    def close(self) -> None:
        if self.scratch >= 0:
            os.close(self.scratch)
            self.scratch = -1


class Scanning:
    """ask: sends a packet to the spawner (starts.py). sync_directories: as the queue has it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, paths: Paths, queue: Queue,
                 ask: Callable[[dict[str, object]], None], events: Events, *, sync_directories: bool = False) -> None:
        self._loop = loop
        self._is_on = bool(config.milter.sockets)
        self._queue = queue
        self._tmp = f"{paths.queue}/tmp"
        self._sync_directories = sync_directories
        self._starts = Starts(loop, "scan", ask)
        self._events = events
        self._waiting: deque[_Job] = deque()
        self._out: dict[int, _Job] = {}
        self._channel: socket.socket | None = None
        self._pid = 0
        self._began = self._moved = 0.0
        self._numbers = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

    def wants(self, message: Message) -> bool:
        """Whether a message must be examined before it is delivered. Not one that fails as it is, or has ended."""
        envelope, state = message.envelope, message.state
        has_ended = len(state.expanded) == len(envelope.recipients) and not state.open_targets()
        return (self._is_on and not envelope.scanned and envelope.origin.kind != "runner"
                and message.refusal is None and not has_ended)

    def examine(self, message: Message, done: Done) -> None:
        """Have a message examined; `done` is called once, later."""
        self._numbers += 1
        self._waiting.append(_Job(message, done, self._numbers))
        self._loop.call_soon(self._pump)

    def close(self) -> None:
        """Ask nobody any more. Who waits hears nothing: whatever is in the queue then has not been scanned."""
        for timer in (self._ticker, self._retry):
            if timer is not None:
                timer.cancel()
        for job in (*self._waiting, *self._out.values()):
            job.close()
        self._waiting.clear()
        self._out.clear()
        self._lose(GONE)

    # ---- the process

    def _pump(self) -> None:
        """Send what may be out."""
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK, self._tick)
        while self._waiting and len(self._out) < MAX_OUT:
            if self._channel is None:
                self._ask_for_one()
                return
            job = self._waiting.popleft()
            try:
                self._send(self._channel, job)
            except OSError as trouble:
                if trouble.errno in _LATER and self._out:
                    self._waiting.appendleft(job)
                    return  # the next verdict makes room
                job.close()
                self._give_back(job, deferred("4.3.0", f"cannot be scanned: {trouble.strerror}"))

    def _send(self, channel: socket.socket, job: _Job) -> None:
        """Raises OSError."""
        if job.scratch < 0:
            job.scratch, name = tempfile.mkstemp(prefix=".scan", dir=self._tmp)
            os.unlink(name)
        fd = self._queue.open(job.message)
        try:
            socket.send_fds(channel, [packets.question(job.message.id, job.n)], [fd, job.scratch])
        finally:
            os.close(fd)
        if not self._out:
            self._moved = self._loop.time()
        job.until = self._loop.time() + LIMIT + job.message.length / SLOWEST
        self._out[job.n] = job

    def _ask_for_one(self) -> None:
        wait = self._starts.wait
        if self._starts.is_asked:
            return
        if not wait:
            self._refuse_all(self._starts.ask())
        elif self._retry is None:
            self._retry = self._loop.call_later(wait, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._pump()

    def granted(self, value: dict[str, object], fds: list[int]) -> None:
        """The spawner's answer: the scanner's socket, or why there is none."""
        found = self._starts.granted(value, fds)
        if not isinstance(found, tuple):
            self._refuse_all(found)
            return
        self._channel, self._pid = found
        self._began = self._moved = self._loop.time()
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._pump()

    def _refuse_all(self, outcome: Outcome | None) -> None:
        """Nothing that waits can be scanned now, if there is an outcome."""
        if outcome is not None:
            waiting, self._waiting = self._waiting, deque()
            for job in waiting:
                self._give_back(job, outcome)

    def _ended(self, why: str) -> None:
        """The scanner has ended, or is of no use any more."""
        self._starts.ended(self._began)
        self._events.warned(f"scanner process {self._pid} ended ({why}), {len(self._out)} messages without a verdict")
        self._lose(GONE)
        self._loop.call_soon(self._pump)

    def _lose(self, outcome: Outcome) -> None:
        """Close the channel and answer for what has no verdict."""
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        out, self._out = self._out, {}
        for job in out.values():
            self._give_back(job, outcome)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        now = self._loop.time()
        if self._channel is None:
            self._pump()
        elif any(job.until < now for job in self._out.values()):
            self._events.warned(f"scanner process {self._pid} is stuck and is ended")
            self._starts.end(self._pid)
            self._lose(SLOW)
        elif not self._out and now - self._moved > IDLE:
            self._lose(GONE)

    # ---- verdicts

    def _readable(self) -> None:
        for _ in range(MAX_OUT):
            if self._channel is None:
                return
            try:
                packet = self._channel.recv(MAX_PACKET)
            except BlockingIOError:
                break
            except OSError as trouble:
                self._ended(trouble.strerror or "")
                return
            if not packet:
                self._ended("by itself")
                return
            try:
                self._take(packet)
            except ValueError as problem:
                self._ended(str(problem))
                return
        self._pump()

    def _take(self, packet: bytes) -> None:
        """Raises ValueError for what is no verdict on anything that is out."""
        job = self._out.get(packets.n_of(packet))
        if job is None:
            raise ValueError("a verdict on something else")
        found = Verdict.from_packet(packet, len(job.message.envelope.recipients))
        del self._out[job.n]
        self._moved = self._loop.time()
        self._starts.answered()
        for note in found.notes:
            self._events.noted(job.message.id, note)
        self._hand_over(job, found)

    def _give_back(self, job: _Job, outcome: Outcome) -> None:
        self._hand_over(job, Verdict(job.n, outcome))

    def _hand_over(self, job: _Job, found: Verdict) -> None:
        try:
            job.done(Examined(found, lambda: self._store(job, found)))
        finally:
            job.close()

    def _store(self, job: _Job, found: Verdict) -> None:
        """Raises OSError, ValueError or Unsure."""
        message = job.message
        envelope = found.envelope(message.envelope, is_begun=bool(message.state.expanded))
        path = self._queue.path(message)
        fd = self._queue.open(message)
        try:
            message.offset, message.length = rewrite(
                path, f"{self._tmp}/{message.id}", envelope,
                new_text(fd, message.offset, message.length, job.scratch, found.text),
                is_all_there_is=not message.source, directory=os.path.dirname(path) if self._sync_directories else "")
        finally:
            os.close(fd)
        message.envelope = envelope


def new_text(fd: int, offset: int, length: int, scratch: int, new: NewText | None) -> Iterator[bytes]:
    """The text of a message that has passed. offset, length: of the old one in its file. Raises OSError."""
    if new is None:
        yield from pieces(fd, offset, length)
        return
    trace, _, body_at = split(start_of(fd, offset, length))
    fields = b"".join(pieces(scratch, 0, new.top + new.head))
    yield b"%s%s%s\n" % (fields[:new.top], trace, fields[new.top:])
    if new.body < 0:
        yield from pieces(fd, offset + body_at, length)
    else:
        yield from pieces(scratch, len(fields), len(fields) + new.body)
