"""Reading alias and list files, which others write, perhaps just now, and which may be laid as a trap.

Nothing here blocks: no lock is taken (any user may hold one on a file that he can read, sendmail CVE-2002-1827), and a
FIFO, a device or a terminal is refused without waiting for its other end.
"""

import errno
import os
import stat

ATTEMPTS = 3  # at a file that changes while it is read
CHUNK = 1024 * 1024  # bytes of one read

OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Signature = tuple[int, ...]


def signature(status: os.stat_result) -> Signature:
    """What changes when the contents of a file do. ctime is among it, since mtime can be set to anything."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read(path: str, limit: int, flags: int = 0) -> tuple[bytes, os.stat_result]:
    """The contents of a regular file of at most `limit` bytes, and its status. Raises OSError for everything else."""
    fd = os.open(path, OPEN | flags)
    try:
        before = os.fstat(fd)
        for _ in range(ATTEMPTS):
            if not stat.S_ISREG(before.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = _read_all(fd, limit)
            after = os.fstat(fd)
            if signature(before) == signature(after) and len(data) == after.st_size:
                return data, after
            before = after
        raise OSError(errno.EAGAIN, "file changes while it is read")
    finally:
        os.close(fd)


def _read_all(fd: int, limit: int) -> bytes:
    parts = []
    position = 0
    while chunk := os.pread(fd, CHUNK, position):
        parts.append(chunk)
        position += len(chunk)
        if position > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return b"".join(parts)


def danger(status: os.stat_result) -> str:
    """Why a file may say what nobody in charge has written, "" if it cannot: its owner and mode (sendmail's rule)."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "is writable by everybody"
    if status.st_mode & stat.S_IWGRP:
        return "is writable by its group"
    return ""
