"""The two local doors beside the drop: the wake-up datagram, and the submission socket.

Anybody may write to either. The datagram means "look", and may name the file in the drop that its writer has just put
there; whatever it names is looked at as if a scan had found it, and nothing depends on it. The submission socket serves
callers that cannot write to the drop (read-only file systems, a used-up quota); who they are is the kernel's word
(SO_PEERCRED). What they send is a drop file in frames (spool/dropbox.py); it is written to intake/ID,U=UID, synced,
and only then acknowledged with "0 ID". A client that breaks the rules costs its own connection, never the service
(CVE-2025-62875).
"""

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable

from ..events import Events
from ..paths import Paths
from ..spool import durable, record
from ..spool.queue_id import Ids

MAX_FRAME = 64 * 1024  # bytes
MAX_CLIENTS = 64
MAX_CLIENTS_PER_USER = 8
MAX_PER_MINUTE = 60  # submissions of one uid
IDLE = 60.0  # seconds without a frame
SESSION = 3600.0  # seconds in all
DATAGRAMS = 100  # read at once
MAX_CALL = 33  # bytes read of a datagram: one more than the name of a drop file has
SHORTEST_QUEUE = 10  # datagrams that the kernel keeps for us (net.unix.max_dgram_qlen); beyond that they are lost

EX_DATAERR, EX_TEMPFAIL = 65, 75


def peer_uid(connection: socket.socket) -> int:
    """The uid at the other end of a stream socket, as the kernel saw it at connect (unix(7))."""
    _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def calls(wake: socket.socket) -> tuple[list[str], bool]:
    """What has been called since the last time: (what may be names in the drop, whether to look at everything).

    The latter if somebody has called who names no file, and if calls may have been lost.
    """
    names: list[str] = []
    others = 0
    for _ in range(DATAGRAMS):
        try:
            word = wake.recv(MAX_CALL)
        except (BlockingIOError, InterruptedError):
            break
        if len(word) == MAX_CALL - 1 and word.isalnum():
            names.append(word.decode("ascii"))
        else:
            others += 1
    return names, others > 0 or len(names) >= SHORTEST_QUEUE


class Clients:
    """Who is connected to a socket: caps on all, and on each uid."""

    def __init__(self, most: int, most_per_user: int) -> None:
        self._most, self._most_per_user = most, most_per_user
        self._by_uid: Counter[int] = Counter()

    def enter(self, uid: int) -> bool:
        if self._by_uid.total() >= self._most or self._by_uid[uid] >= self._most_per_user:
            return False
        self._by_uid[uid] += 1
        return True

    def leave(self, uid: int) -> None:
        self._by_uid[uid] -= 1
        if self._by_uid[uid] <= 0:
            del self._by_uid[uid]


class SubmissionDoor:
    """The server of the submission socket. adopt(name) takes intake/`name` into the queue. is_full(uid): whether this
    user's share of the queue is used up.

    sync_directories: for file systems where the sync of a file does not cover its name (spool/queue.py).
    """

    def __init__(self, paths: Paths, ids: Ids, events: Events, size_limit: int, adopt: Callable[[str], None],
                 is_full: Callable[[int], bool], clock: Callable[[], float], *, sync_directories: bool = False) -> None:
        self.paths, self.ids, self.events, self.size_limit, self.adopt, self.is_full, self.clock = (
            paths, ids, events, size_limit, adopt, is_full, clock)
        self.directory = paths.intake if sync_directories else ""
        self.clients = Clients(MAX_CLIENTS, MAX_CLIENTS_PER_USER)
        self._minute, self._taken = 0, Counter[int]()

    def may_submit(self, uid: int) -> bool:
        """One more submission in this minute?"""
        minute = int(self.clock() / 60)
        if minute != self._minute:
            self._minute, self._taken = minute, Counter()
        self._taken[uid] += 1
        return self._taken[uid] <= MAX_PER_MINUTE

    def connect(self) -> "SubmissionProtocol":
        return SubmissionProtocol(self)


class SubmissionProtocol(asyncio.Protocol):
    """One submission: frames in, one line back."""

    def __init__(self, door: SubmissionDoor) -> None:
        self._door = door
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._uid = -1
        self._is_counted = False
        self._fd = -1
        self._tmp = ""
        self._id = ""
        self._size = self._crc = 0
        self._is_complete = False  # the empty frame has come; the first line is next

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._uid = peer_uid(transport.get_extra_info("socket"))
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(IDLE, self._late), loop.call_later(SESSION, self._late)]
        self._is_counted = self._door.clients.enter(self._uid)
        if not self._is_counted or not self._door.may_submit(self._uid):
            self._answer(EX_TEMPFAIL, "too many submissions, try again later")
            return
        if self._door.is_full(self._uid):
            self._answer(EX_TEMPFAIL, "too much mail of yours is waiting, try again later")
            return
        self._id = self._door.ids.new()
        self._tmp = f"{self._door.paths.queue}/tmp/{self._id}"
        try:
            self._fd = durable.create(self._tmp)
            durable.write_all(self._fd, bytes(record.FIRST_LENGTH))
        except OSError as trouble:
            self._answer(EX_TEMPFAIL, f"cannot write to the queue: {trouble.strerror}")

    def data_received(self, data: bytes) -> None:
        if self._fd < 0:
            return
        loop = asyncio.get_running_loop()
        self._timers[0].cancel()
        self._timers[0] = loop.call_later(IDLE, self._late)
        self._buffer += data
        while self._fd >= 0 and len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME:
                self._answer(EX_DATAERR, "frame is too large")
                return
            if len(self._buffer) < 4 + size:
                return
            frame = bytes(self._buffer[4:4 + size])
            del self._buffer[:4 + size]
            self._frame(frame)

    def _frame(self, frame: bytes) -> None:
        try:
            if self._is_complete:
                self._finish(frame)
            elif not frame:
                self._is_complete = True
            else:
                self._size += len(frame)
                self._crc = record.crc(frame, self._crc)
                if self._size > self._door.size_limit + record.MAX_BLOCK:
                    self._answer(EX_DATAERR, f"message is larger than {self._door.size_limit} bytes")
                    return
                durable.write_all(self._fd, frame)
        except OSError as trouble:
            self._answer(EX_TEMPFAIL, f"cannot write to the queue: {trouble.strerror}")

    def _finish(self, first: bytes) -> None:
        try:
            _, length, checksum = record.read_first(first)
        except record.Damaged as problem:
            self._answer(EX_DATAERR, str(problem))
            return
        if length != record.FIRST_LENGTH + self._size or len(first) != record.FIRST_LENGTH or checksum != self._crc:
            self._answer(EX_DATAERR, "length or checksum does not match")
            return
        name = f"{self._id},U={self._uid}"
        durable.write_at(self._fd, first, 0)
        durable.publish(self._fd, self._tmp, f"{self._door.paths.intake}/{name}", self._door.directory)
        # From here on the message is safe.
        os.close(self._fd)
        self._fd, self._tmp = -1, ""
        self._answer(0, self._id)
        self._door.adopt(name)

    def _answer(self, code: int, text: str) -> None:
        if code:
            self._door.events.refused(f"submission of uid {self._uid}", text)
        self._drop()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(f"{code} {text}\n".encode("utf-8", "replace"))
            self._transport.close()

    def _late(self) -> None:
        self._answer(EX_TEMPFAIL, "timed out")

    def _drop(self) -> None:
        """Let go of an unfinished file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._tmp:
            durable.unlink(self._tmp)
            self._tmp = ""

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._drop()
        if self._is_counted:
            self._door.clients.leave(self._uid)
            self._is_counted = False
