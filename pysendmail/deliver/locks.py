"""Mailbox locks as Debian Policy 11.6 has them: fcntl(2) on the file first, then PATH.lock; neither is ever waited for.

Both are asked for without blocking. If the second is not to be had the first is given back, and after a short and
uneven pause both are tried again: programs that take them in the other order (Postfix, Exim, Dovecot by choice) and we
cannot then wait for each other for ever. Whoever waits does so for a bounded time and in a process that serves one
user.

The dot lock is an empty file made with O_EXCL which then gets our process id, as liblockfile writes it. One is stale
when the process it names is gone, or when nobody has touched it for STALE seconds; a long append therefore touches its
own (`DotLock.refresh`). A stale one is removed only while the fcntl lock is held, so that two of us cannot both find it
stale and the slower one remove what the faster one has just made; against programs that know dot locks alone the
identity of the file is looked at once more before it goes.

Not flock(2): no mail reader on Linux uses it for mailboxes. RFC 4155 says that mbox locking is a local matter.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

STALE = 300.0  # seconds
REFRESH = 60.0  # seconds between touches of our own dot lock
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds
MAX_PID_TEXT = 32  # bytes read of somebody's lock file

_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_DIGITS = frozenset(b"0123456789")


def pauses(deadline: float) -> Iterator[None]:
    """Tries until a deadline (time.monotonic): one at once, then each after a pause that doubles and is never even."""
    pause = FIRST_PAUSE
    yield
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, pause * (0.5 + os.urandom(1)[0] / 255)))
        pause = min(pause * 2, LONGEST_PAUSE)
        yield


def try_fcntl(fd: int) -> bool:
    """An exclusive POSIX lock on the whole file; False if somebody else has one. Raises OSError if there are no locks.

    It ends when *any* descriptor of that file is closed in this process: nobody else here may open the file meanwhile.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as trouble:
        if trouble.errno in (errno.EAGAIN, errno.EACCES):  # POSIX permits either
            return False
        raise
    return True


@dataclass(slots=True)
class DotLock:
    """PATH.lock, ours. fd stays open so that touching it can never touch another's."""

    path: str
    fd: int
    touched: float  # time.monotonic

    def refresh(self) -> None:
        """Touch it when it is time to. Failing to is no error: it is ours until somebody calls it stale."""
        now = time.monotonic()
        if now - self.touched < REFRESH:
            return
        self.touched = now
        try:
            os.utime(self.fd)
        except OSError:
            return

    def release(self) -> None:
        """Remove it, if it is still ours: one that was broken and made anew belongs to somebody else."""
        try:
            if _is_same(os.fstat(self.fd), os.lstat(self.path)):
                os.unlink(self.path)
        except OSError:
            pass  # somebody has removed it; or nobody can, and then it goes stale with our process id in it
        finally:
            os.close(self.fd)


def try_dot(mailbox: str) -> DotLock | None:
    """Make MAILBOX.lock, the fcntl lock being held; None if somebody else has it. Raises OSError if it cannot be."""
    path = mailbox + ".lock"
    lock = _make(path)
    if lock is None and _break_stale(path):
        lock = _make(path)
    return lock


def holder(mailbox: str) -> int:
    """The process id in MAILBOX.lock, for people; 0 = none, or none that can be read."""
    return _read_pid(mailbox + ".lock")[0]


def _make(path: str) -> DotLock | None:
    try:
        # 0644: other users' programs must be able to read who holds it. The umask is 077 in an agent.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o644)
    except FileExistsError:
        return None
    lock = DotLock(path, fd, time.monotonic())
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, b"%d\n" % os.getpid())
    except OSError:
        # It locks without the number as well, which readers only need to see that it is stale; but a disk that is full
        # to the last block has no room for the message either.
        lock.release()
        raise
    return lock


def _break_stale(path: str) -> bool:
    """Remove a dot lock that nobody holds any more. False if it is held, or cannot be removed by us."""
    pid, seen = _read_pid(path)
    if seen is None:
        return True  # gone since; if it is not, making it fails again
    if not stat.S_ISREG(seen.st_mode):
        return False
    if not (pid and _is_gone(pid)) and time.time() - seen.st_mtime < STALE:
        return False
    try:
        now = os.lstat(path)
        if not _is_same(seen, now) or seen.st_mtime_ns != now.st_mtime_ns:
            return False
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read_pid(path: str) -> tuple[int, os.stat_result | None]:
    """(process id or 0, what the file is or None if there is none). Opens regular files only, and never waits."""
    try:
        seen = os.lstat(path)
    except OSError:
        return 0, None
    if not stat.S_ISREG(seen.st_mode):
        return 0, seen
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NOFOLLOW)
    except OSError:
        return 0, seen
    try:
        seen = os.fstat(fd)
        text = os.read(fd, MAX_PID_TEXT).strip() if stat.S_ISREG(seen.st_mode) else b""
    except OSError:
        text = b""
    finally:
        os.close(fd)
    # Dovecot writes PID:HOST: of a process of another host or container nobody here can say whether it lives.
    return (int(text) if 0 < len(text) <= 10 and not set(text) - _DIGITS else 0), seen


def _is_gone(pid: int) -> bool:
    """Whether no process has this id. "Not permitted" means that there is one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
