"""What a runner leaves behind when it is replaced while deliveries are out: a small process that waits for them.

A command may run for a quarter of an hour, and a reload must neither wait for it nor run it a second time. So the
runner, before it ends, forks a child that inherits the channels of those agents, and a lock on the journal of each
message that they have. The next runner finds the lock and leaves the message alone (spool/claims.py). Each outcome goes
into the journal, synced; with the last one of a message its lock goes, and the next runner settles it. The child
orders nothing, renames nothing and reports nothing. If it dies, its locks go with it, and what it waited for is tried
again, as after any crash.

It is forked from a process with an event loop, of which it keeps nothing: every other descriptor is closed first, no
handler of the loop is left, and it ends with os._exit; or with the supervisor, or when the longest command must have
come back. The runner, which has no threads, touches these messages no more.
"""

import os
import time

from ..deliver import identity, spawner
from ..deliver.packet import MAX_PACKET
from ..deliver.request import Reply
from ..events import Events
from ..spool.queue import Queue
from .agents import Job, Lane
from .passes import Pass, Passes

AGAIN = 10.0  # seconds before a journal that could not be written (disk full) is written again


def begin(active: dict[str, Pass], lanes: list[Lane], queue: Queue, passes: Passes, events: Events,
          within: float) -> None:
    """Fork, if there is anything to wait for. active: what the runner has put down (Passes.put_down). lanes: with
    deliveries that agents have. within: seconds, at most."""
    vigil = Vigil(passes, events, lanes)
    for queue_id in vigil.out() & active.keys():
        try:
            vigil.claims[queue_id] = active[queue_id], queue.claim(active[queue_id].message)
        except OSError as trouble:  # no journal, since the disk is full; no descriptors
            events.trouble(f"{queue_id}: it is out and not waited for: {trouble.strerror}")
    if not vigil.claims:
        return
    for p, _ in vigil.claims.values():
        p.is_over = True
    try:
        supervisor = os.pidfd_open(os.getppid())
        pid = identity.fork()
    except OSError as trouble:
        events.trouble(f"nobody waits for {len(vigil.claims)} messages that are out: {trouble.strerror}")
        return

    if pid != 0:
        return
    try:
        identity.shed({supervisor, *(fd for _, fd in vigil.claims.values()), *vigil.lanes})
        identity.take_errors_for_signals()
        passes.is_over = True
        vigil.keep(supervisor, within)
    except BaseException as problem:  # noqa: BLE001 - nothing may get out of a child into its parent's code
        events.trouble(f"vigil: {type(problem).__name__}: {problem}")
    finally:
        os._exit(0)


class Vigil:
    """lanes: by the descriptor of their agent. claims: the messages that are out, each with its lock."""

    def __init__(self, passes: Passes, events: Events, lanes: list[Lane]) -> None:
        self._passes, self._events = passes, events
        self.lanes = {lane.channel.fileno(): lane for lane in lanes if lane.channel is not None}
        self.claims: dict[str, tuple[Pass, int]] = {}

    def out(self) -> set[str]:
        """The messages that agents have."""
        return {job.request.queue_id for lane in self.lanes.values() for job in lane.sent.values()}

    def keep(self, supervisor: int, within: float) -> None:
        """Wait until everything has come back, the process `supervisor` ends, or the time is over."""
        end = time.monotonic() + within
        ready: set[int] = set()
        while self.claims and supervisor not in ready and (left := end - time.monotonic()) > 0:
            ready = spawner.wait_readable([supervisor, *self.lanes], min(left, AGAIN))
            for fd in ready - {supervisor}:
                if not self._answered(self.lanes[fd]):
                    self._end(fd)
            for queue_id in self.claims.keys() - self.out():
                self._write_down(queue_id)

    def _end(self, fd: int) -> None:
        """An agent has answered everything, or is gone, and the rest is as after a crash."""
        channel = self.lanes.pop(fd).channel
        if channel is not None:
            channel.close()

    def _answered(self, lane: Lane) -> bool:
        """One packet of an agent. False: there is nothing more to come."""
        assert lane.channel is not None
        try:
            reply = Reply.from_packet(lane.channel.recv(MAX_PACKET))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        job = lane.sent.pop(reply.n, None) if reply.is_answer else lane.sent.get(reply.n)
        if job is None:  # no agent that serves anybody says that
            return False
        if job.request.queue_id in self.claims:
            self._take(job, reply)
        return bool(lane.sent)

    def _take(self, job: Job, reply: Reply) -> None:
        queue_id = job.request.queue_id
        try:
            job.done(reply)
            self._passes.flush(self.claims[queue_id][0], sync=True)  # if that fails: again with the last one
        except Exception as problem:  # noqa: BLE001 - a fault of ours meets one message, whose outcome is lost
            self._events.trouble(f"{queue_id}: {type(problem).__name__}: {problem}")

    def _write_down(self, queue_id: str) -> None:
        """All outcomes of a message are there: into the journal with them, then others may have it."""
        p, fd = self.claims[queue_id]
        try:
            self._passes.flush(p, sync=True)
        except OSError as trouble:
            self._events.trouble(f"{queue_id}: cannot write the journal, tried again: {trouble.strerror}")
            return
        os.close(fd)
        del self.claims[queue_id]
