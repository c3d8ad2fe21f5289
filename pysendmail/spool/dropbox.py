"""Handing a message in: one file in the drop, or, where that cannot be written, one conversation with the daemon.

    Submission(paths) -> begin(fields) -> write(text) any number of times -> commit()

The drop works with the daemon down and for callers without any privilege (reliability before convenience: there is no
set-uid or set-gid program that a sandbox could break). The order of docs/ARCHITECTURE.md, "Commit point", is kept by
commit(); a file's name is 128 random bits, so that nobody else can be waiting for it; its mode is 0640, the group comes
from the directory. The first bytes are held back, so that a message of ordinary size is one write.

If the drop cannot be written for a reason that does not concern the daemon (read-only mount, quota, no spool in this
chroot ...), the same content goes once through the socket `paths.submit`. Frames are 4 bytes of length, big-endian, at
most 65536, and that many bytes:

    the content behind the record's first line (envelope fields, then the message), an empty frame, and one frame with
    the first line, which is known only then; the answer is one line: "0 QUEUEID" or "NN text", NN from sysexits.h

Refusals are `Refused`, with an exit code for the caller: the message is then nowhere. Nothing here retries, waits for
the daemon longer than ANSWER, or leaves a file behind. The text itself is not looked at: header and addresses are
completed by the trusted side (daemon/intake.py).

Loaded by /usr/sbin/sendmail.
"""

import posix as os  # (the front-end does without the rest of `os`)

from ..paths import Paths
from . import durable, record

MODE = 0o640  # the daemon reads it as the group of the drop, which the directory's set-gid bit gives
HOLD = 64 * 1024  # bytes held back before the file is created
MAX_FRAME = 65536  # bytes
MAX_ENVELOPE = 768 * 1024  # bytes; intake reads envelope and header at once, 1 MiB
MAX_RECIPIENTS = 20_000  # what intake takes
MIN_FREE = 64 * 1024 * 1024  # bytes of the file system that one submission may not touch
MIN_INODES = 1000
CONNECT = 10.0  # seconds for each step of the conversation, while there is still input
ANSWER = 50.0  # seconds until the daemon has the message on its disk
MAX_ANSWER = 1000  # bytes

EX_DATAERR, EX_TEMPFAIL = 65, 75

# Errors of the drop that the daemon, another user with another view of the file system, need not have.
FALL_BACK = ("EPERM", "ENOENT", "EACCES", "ENOTDIR", "EFBIG", "ENOSPC", "EROFS", "ELOOP", "EDQUOT")

_WAITING, _IN_DROP, _TALKING, _PUBLISHING, _DONE = range(5)


class Refused(Exception):
    """The message was not accepted and is nowhere. code: of sysexits.h; str(): one line for the user."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Submission:
    """One message on its way in. After an exception, or to stop, call give_up: a file may be there.

    name: of the drop file, or the queue id that the daemon gave.
    """

    def __init__(self, paths: Paths) -> None:
        self.name = ""
        self._paths = paths
        self._stage = _WAITING
        self._waiting: list[bytes] = []  # content that is neither in the file nor sent
        self._waiting_size = 0
        self._block_length = self._length = record.FIRST_LENGTH
        self._crc = 0
        self._fd = -1
        self._written = 0  # bytes of the file that are certainly there
        self._tmp = self._new = ""
        self._socket: "_Talk | None" = None

    def begin(self, fields: list[tuple[bytes, bytes]]) -> None:
        """The envelope. Raises ValueError for a field that cannot stand on a line, Refused if there are too many."""
        block = record.field_lines(fields)
        if len(block) > MAX_ENVELOPE or len(fields) > MAX_RECIPIENTS:
            raise Refused(EX_DATAERR, "too many recipients for one message")
        self._block_length += len(block)
        self.write(block)

    def write(self, data: bytes) -> None:
        """More of the message. Raises Refused."""
        self._crc = record.crc(data, self._crc)
        self._length += len(data)
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size > HOLD:
            self._flush(record.first_line(0, 0, 0))

    def commit(self) -> None:
        """Make the message safe and call the daemon. Raises Refused. After the return it is on disk."""
        first = record.first_line(self._block_length, self._length, self._crc)
        if self._stage != _TALKING:
            try:
                self._publish(first)
            except OSError as trouble:
                self._fall_back(trouble)
        if self._socket:
            self._say_waiting()
            self.name = self._socket.end(first)
        self._stage = _DONE  # the message is safe from here on
        if not self._socket:
            _wake(self._paths.wake, self.name)

    def give_up(self) -> bool:
        """Take the message back, at any time, even from a signal handler. False: too late, it is in."""
        if self._stage == _DONE:
            return False
        try:
            return not self._tmp or durable.unlink(self._tmp) or self._stage != _PUBLISHING or durable.unlink(self._new)
        except OSError:
            return True

    # -- the drop

    def _flush(self, first: bytes) -> None:
        """Get rid of what is held back. `first`: the first line to begin with, if nothing has been written yet."""
        if self._stage == _TALKING:
            self._say_waiting()
            return
        try:
            self._fill(first)
        except OSError as trouble:
            self._fall_back(trouble)
            self._say_waiting()

    def _fill(self, first: bytes) -> None:
        """Write what is held back into the file."""
        if self._fd < 0:
            self._create()
            data = b"".join([first, *self._waiting])
        else:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        durable.write_all(self._fd, data)
        self._written += len(data)
        self._waiting, self._waiting_size = [], 0

    def _create(self) -> None:
        self._need_room()
        self.name = os.urandom(16).hex()
        self._new = f"{self._paths.drop_new}/{self.name}"
        self._tmp = f"{self._paths.drop_tmp}/{self.name}"
        self._stage = _IN_DROP
        self._fd = durable.create(self._tmp, MODE)
        durable.lock(self._fd)

    def _need_room(self) -> None:
        """Refuse before others cannot write any more."""
        found = os.statvfs(self._paths.drop_tmp)
        if found.f_bavail * found.f_frsize < max(MIN_FREE, self._length * 3 // 2):
            raise Refused(EX_TEMPFAIL, "the mail spool is nearly full, try again later")
        if found.f_files and found.f_favail < MIN_INODES:  # some file systems count no inodes
            raise Refused(EX_TEMPFAIL, "the mail spool has no room for more files, try again later")

    def _publish(self, first: bytes) -> None:
        """The commit point (spool/durable.py)."""
        if self._fd < 0:
            self._fill(first)
        else:
            if self._waiting:
                self._fill(first)
            self._need_room()
            durable.write_at(self._fd, first, 0)
        # Only where a submitter can open the directory does its file system need that synced (mode 3777).
        others_read = os.stat(self._paths.drop_new).st_mode & 0o004
        self._stage = _PUBLISHING
        durable.publish(self._fd, self._tmp, self._new, self._paths.drop_new if others_read else "")
        os.close(self._fd)  # and with it the lock: the file may be taken

    # -- the socket

    def _fall_back(self, trouble: OSError) -> None:
        """Begin the conversation instead, with what the file has so far. Raises Refused."""
        import errno

        self._stage = _WAITING
        if self._tmp:
            try:
                durable.unlink(self._tmp)
            except OSError:
                pass  # on a read-only file system there is nothing to remove; else the daemon sweeps the directory
            self._tmp = ""
        if errno.errorcode.get(trouble.errno or 0) not in FALL_BACK:
            raise Refused(EX_TEMPFAIL, f"cannot write to the mail drop: {trouble.strerror or trouble}")
        try:
            self._socket = _Talk(self._paths.submit)
        except OSError as closed:
            raise Refused(EX_TEMPFAIL, f"cannot write to the mail drop ({trouble.strerror}), and the daemon does not "
                                       f"answer ({closed.strerror or closed})")
        self._stage = _TALKING
        done = record.FIRST_LENGTH
        while done < self._written:
            data = os.pread(self._fd, min(MAX_FRAME, self._written - done), done)
            if not data:
                raise Refused(EX_TEMPFAIL, "cannot read back what was written to the mail drop")
            self._socket.say(data)
            done += len(data)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _say_waiting(self) -> None:
        assert self._socket
        for data in self._waiting:
            self._socket.say(data)
        self._waiting, self._waiting_size = [], 0


class _Talk:
    """The conversation over the submission socket."""

    def __init__(self, path: str) -> None:
        from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._socket.settimeout(CONNECT)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def say(self, data: bytes) -> None:
        """One piece of content, in as many frames as it takes."""
        for start in range(0, len(data), MAX_FRAME):
            self._send(data[start:start + MAX_FRAME])

    def end(self, first: bytes) -> str:
        """The end of the content, and the queue id from the answer."""
        self._send(b"")
        self._send(first)
        self._socket.settimeout(ANSWER)
        return self._answer("the daemon gave no answer")

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.sendall(len(frame).to_bytes(4, "big") + frame)
        except OSError as trouble:  # it may have said why before it closed
            self._answer(f"the daemon stopped listening ({trouble.strerror or trouble})")
            raise Refused(EX_TEMPFAIL, "the daemon answered before the message had ended")

    def _answer(self, otherwise: str) -> str:
        answer = b""
        try:
            while b"\n" not in answer and len(answer) < MAX_ANSWER:
                more = self._socket.recv(MAX_ANSWER)
                if not more:
                    break
                answer += more
        except OSError:
            pass
        self._socket.close()
        line, end, _ = answer.partition(b"\n")
        code, _, text = line.partition(b" ")
        words = "".join(chr(c) if 32 <= c < 127 else "?" for c in text)
        if end and code == b"0":
            return words
        if end and len(code) == 2 and code.isdigit() and 64 <= int(code) <= 78:
            raise Refused(int(code), words)
        raise Refused(EX_TEMPFAIL, f"{otherwise}, try again later")


def _wake(path: str, name: str) -> None:
    """Tell the daemon. If nobody listens, the daemon's own scan finds the file."""
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket

    try:
        bell = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
    except OSError:
        return
    try:
        bell.sendto(name.encode("ascii"), path)
    except OSError:
        pass
    bell.close()
