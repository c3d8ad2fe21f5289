"""What a listener accepts, on its way into smtp/new: held in memory while it is small, then one file and one sync.

    incoming = inbox.begin(queue_id)
    incoming.add(data)                        as it comes
    incoming.open(envelope, content)          make the file; a message that is all there is one write
    inbox.commit(incoming, done)              done(None): it is safe; done(trouble): it is nowhere
    incoming.give_up()                        at any time before the commit

The order is that of docs/ARCHITECTURE.md, "Commit point": create smtp/tmp/ID, locked; write; rename to smtp/new/ID;
fsync; close; 250. Each file has an fsync of its own, in a thread of its own, so that a slow disk holds up whoever waits
for it and nobody else. Those that run at the same moment share a commit of the file system's journal, and a flush of
the disk's cache: ten clients at their final dot pay for little more than one. The lock tells the runner that a sync has
not returned; a datagram calls it once it has, and its own scan finds what that does not.

Whatever fails, no file is left and the client hears 451. A file whose sync failed is never synced again.
"""

import asyncio
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread

from ..mail.envelope import Envelope, to_fields
from ..paths import Paths
from ..spool import durable, queue_id, record
from ..spool.queue_file import needs_directory_sync

MODE = 0o640  # the runner reads it as a member of the group of smtp/new, which the directory's set-gid bit gives
HOLD = 256 * 1024  # bytes of a message that are held in memory: the longest header and more
CHUNK = 256 * 1024  # bytes read from a file at once
ROOM_EVERY = 1.0  # seconds that an answer about free space is good for
SYNCS = 8  # at a time
ABANDONED = 3600.0  # seconds after which a file in smtp/tmp has no writer any more

Done = Callable[[OSError | None], None]


class _File:
    """A file in smtp/tmp: envelope, then content. Locked until it is closed."""

    __slots__ = ("_block_end", "_crc", "_length", "_said", "fd", "path")

    def __init__(self, path: str, envelope: Envelope, content: Iterable[bytes]) -> None:
        """Raises OSError, and leaves nothing then."""
        block = record.field_lines(to_fields(envelope))
        if record.FIRST_LENGTH + len(block) > record.MAX_BLOCK:
            raise OSError(errno.EMSGSIZE, "too many recipients for one message")
        self.path = path
        self.fd = durable.create(path, MODE)
        try:
            durable.lock(self.fd)
            pieces = iter(content)
            start = b"".join((block, next(pieces, b""), next(pieces, b"")))
            self._block_end = record.FIRST_LENGTH + len(block)
            self._crc = record.crc(start)
            self._said = self._length = record.FIRST_LENGTH + len(start)
            durable.write_all(self.fd, self._first_line() + start)  # one write for what is all there is
            for piece in pieces:
                self.append(piece)
        except BaseException:
            self.remove()
            raise

    def append(self, data: bytes) -> None:
        self._crc = record.crc(data, self._crc)
        self._length += len(data)
        durable.write_all(self.fd, data)

    def read(self, at: int) -> Iterator[bytes]:
        """What is there from this place of the content on. Raises OSError."""
        at += self._block_end
        while piece := os.pread(self.fd, CHUNK, at):
            yield piece
            at += len(piece)

    def seal(self) -> None:
        """Nothing will be added."""
        if self._length != self._said:
            durable.write_at(self.fd, self._first_line(), 0)

    def _first_line(self) -> bytes:
        return record.first_line(self._block_end, self._length, self._crc)

    def remove(self) -> None:
        os.close(self.fd)
        try:
            durable.unlink(self.path)
        except OSError:
            pass  # swept up later


class Incoming:
    """One message on its way in. id: its queue id, and the name of its file. size: bytes of content so far."""

    __slots__ = ("_file", "_held", "_paths", "id", "size")

    def __init__(self, paths: Paths, found: str) -> None:
        self._paths = paths
        self.id = found
        self.size = 0
        self._held = bytearray()  # (pieces of two bytes, each an object of its own, would be a hundred times as big)
        self._file: _File | None = None

    @property
    def is_held(self) -> bool:
        """Whether all of it is in memory, and there is no file."""
        return self._file is None

    @property
    def path(self) -> str:
        return f"{self._paths.smtp_new}/{self.id}"

    def add(self, data: bytes) -> None:
        """More of the content. Raises OSError."""
        self.size += len(data)
        if self._file is None:
            self._held += data
        else:
            self._file.append(data)

    def held(self) -> bytes:
        """The content, as far as it is in memory."""
        return bytes(self._held)

    def open(self, envelope: Envelope, content: Iterable[bytes]) -> None:
        """Make the file: the envelope, and this content in the place of what was held. Raises OSError."""
        self._file = _File(f"{self._paths.smtp_tmp}/{self.id}", envelope, content)
        self._held = bytearray()

    def replace(self, envelope: Envelope, content: Iterable[bytes]) -> None:
        """Make another file that takes the place of the first, which `content` may read. Raises OSError."""
        old = self._file
        self._file = _File(f"{self._paths.smtp_tmp}/{self.id},2", envelope, content)
        if old is not None:
            old.remove()

    def read(self, at: int) -> Iterator[bytes]:
        """What is in the file from this place of the content on. Raises OSError."""
        return self._file.read(at) if self._file is not None else iter(())

    def publish(self) -> int:
        """Give the file its lasting name; the descriptor, to be synced, then closed. Raises OSError."""
        file = self._file
        assert file is not None
        file.seal()
        durable.rename(file.path, self.path)
        self._file = None
        return file.fd

    def give_up(self) -> None:
        """Forget what there is of it."""
        self._held = bytearray()
        if self._file is not None:
            self._file.remove()
            self._file = None


class Syncs:
    """Threads that sync files, each one file at a time. directory: is synced after each file; "" = need not be."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: str) -> None:
        self._loop = loop
        self._directory = directory
        self._waiting: SimpleQueue[tuple[int, Done] | None] = SimpleQueue()
        self._returned: deque[tuple[Done, OSError | None]] = deque()
        self._is_called = False  # the loop will look at what has returned
        self._threads = [Thread(target=self._work, name="sync", daemon=True) for _ in range(SYNCS)]
        for thread in self._threads:
            thread.start()

    def put(self, fd: int, done: Done) -> None:
        """Have a descriptor synced. done is called in the loop, with what went wrong."""
        self._waiting.put((fd, done))

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            fd, done = job
            trouble = None
            try:
                durable.sync(fd)
                if self._directory:
                    durable.sync_directory(self._directory)
            except OSError as problem:
                trouble = problem
            self._returned.append((done, trouble))
            if not self._is_called:
                self._is_called = True
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._is_called = False  # before looking: what returns from now on calls again
        while self._returned:
            done, trouble = self._returned.popleft()
            done(trouble)

    def close(self) -> None:
        """End the threads; what was put before is still done."""
        for _ in self._threads:
            self._waiting.put(None)


class Inbox:
    """The way into smtp/new for all sessions of one listener.

    ids: of this process alone. free_space, free_inodes: what others must be left (bytes, inodes). clock: monotonic.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, paths: Paths, ids: queue_id.Ids, *, free_space: int,
                 free_inodes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._paths = paths
        self._ids = ids
        self._free_space, self._free_inodes = free_space, free_inodes
        self._clock = clock
        self._directory = paths.smtp_new if needs_directory_sync(paths.smtp_new) else ""
        self._syncs = Syncs(loop, self._directory)
        self._room = 0
        self._room_until = 0.0
        self._bell: socket.socket | None = None
        self._is_waking = False
        self.pending = 0  # messages that are being committed

    def new_id(self) -> str:
        return self._ids.new()

    def begin(self, found: str) -> Incoming:
        return Incoming(self._paths, found)

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes can be taken. Raises OSError."""
        now = self._clock()
        if now >= self._room_until:
            seen = os.statvfs(self._paths.smtp_tmp)
            has_inodes = not seen.f_files or seen.f_favail >= self._free_inodes  # some file systems count no inodes
            self._room = seen.f_bavail * seen.f_frsize if has_inodes else -1
            self._room_until = now + ROOM_EVERY
        return self._room >= max(self._free_space, size + size // 2)

    def commit(self, incoming: Incoming, done: Done) -> None:
        """Make an opened message safe. done is called once, later."""
        self.pending += 1
        try:
            fd = incoming.publish()
        except OSError as trouble:
            incoming.give_up()
            self._loop.call_soon(self._finish, done, trouble)
            return
        self._syncs.put(fd, lambda trouble: self._synced(incoming, fd, done, trouble))

    def _synced(self, incoming: Incoming, fd: int, done: Done, trouble: OSError | None) -> None:
        if trouble is not None:
            _withdraw(incoming.path)
        os.close(fd)  # and with it the lock: the runner may take it
        # From here on the message is safe, if there was no trouble.
        self._finish(done, trouble)
        if trouble is None and not self._is_waking:
            self._is_waking = True
            self._loop.call_soon(self._wake)  # once for those whose syncs have returned together

    def _finish(self, done: Done, trouble: OSError | None) -> None:
        self.pending -= 1
        done(trouble)

    def _wake(self) -> None:
        """Call the runner. If nobody listens, its own scan finds the files."""
        self._is_waking = False
        for _ in range(2):  # the second time with a new socket: the daemon may have bound its own anew
            try:
                if self._bell is None:
                    self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    self._bell.connect(self._paths.wake)
                self._bell.send(b"\n")
                return
            except BlockingIOError:
                return  # it has been called already
            except OSError:
                if self._bell is not None:
                    self._bell.close()
                    self._bell = None

    def sweep(self, now: float) -> int:
        """Remove what killed listeners left in smtp/tmp; nobody was ever told that it is safe. How many there were.

        now: seconds since the epoch.
        """
        removed = 0
        with os.scandir(self._paths.smtp_tmp) as entries:
            for entry in entries:
                seen = entry.stat(follow_symlinks=False)
                if now - max(seen.st_mtime, seen.st_ctime) > ABANDONED and durable.unlink(entry.path):
                    removed += 1
        return removed

    def close(self) -> None:
        self._syncs.close()
        if self._bell is not None:
            self._bell.close()
            self._bell = None


def taken_ids(paths: Paths) -> set[str]:
    """The ids that files of smtp/ have."""
    return {queue_id.id_of(name) for path in (paths.smtp_tmp, paths.smtp_new) for name in os.listdir(path)} - {""}


def _withdraw(path: str) -> None:
    """Take back a name whose sync failed. Nobody else has taken it: it is locked."""
    try:
        durable.unlink(path)
    except OSError:
        pass  # the disk is broken: then there may be a copy too many, as after a crash
