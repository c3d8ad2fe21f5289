"""Files that survive: the only module that changes the spool, so that tests can fail or kill every step.

The commit point, in this order (docs/ARCHITECTURE.md, "Commit point"):

    create tmp/NAME, locked -> write -> rename to new/NAME -> ONE fsync of the same descriptor -> close

On ext4, xfs and btrfs an fsync of the file after the rename makes its contents *and* its newest name durable; fdatasync
does not, and an fsync before the rename leaves the name behind. Elsewhere the directory is synced as well. A file whose
fsync failed is never synced again: Linux has dropped its dirty pages and the second call would lie.

The lock (flock, exclusive, from creation to close) tells a scan that the sync has not returned yet.

Loaded by /usr/sbin/sendmail: imports posix (what `os` is made of, and costs a tenth of it to load) and fcntl. No
function here retries, logs or decides.
"""

import fcntl
import posix as os

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def create(path: str, mode: int = 0o600) -> int:
    """A new file, open for reading and writing, with exactly this mode whatever the umask is. An OSError leaves
    none."""
    fd = os.open(path, CREATE, mode)
    try:
        os.fchmod(fd, mode)
    except OSError:
        os.close(fd)
        unlink(path)
        raise
    return fd


def open_append(path: str) -> int:
    """A file to append to, made if there is none."""
    return os.open(path, APPEND, 0o600)


def lock(fd: int) -> None:
    """Mark a file as not yet committed. Nobody else knows its name yet, so this cannot wait."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_committed(fd: int) -> bool:
    """False while its writer still holds the lock: then its fsync has not returned."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_all(fd: int, data: "bytes | memoryview") -> None:
    """Write everything. write(2) may be short (a full disk, a signal, RLIMIT_FSIZE) without saying so."""
    done = os.write(fd, data)
    if done == len(data):
        return
    view = memoryview(data)
    while done < len(view):
        step = os.write(fd, view[done:])
        if step == 0:
            raise OSError(5, "write returned 0")
        done += step


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of data at an offset, which the file already reaches beyond."""
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(5, "short write")


def stamp(fd: int, seconds: float) -> None:
    """Give a file a modification time, to the millisecond."""
    at = round(seconds * 1000) * 1_000_000
    os.utime(fd, ns=(at, at))


def publish(fd: int, tmp: str, new: str, directory: str = "") -> None:
    """Give a written file its lasting name and make both durable. After the return it is safe; after an error it is
    not.

    `directory` is the one of `new` where the file system needs that synced too (module docstring), else "". An
    OSError leaves no file behind, unless the fsync failed after somebody took `new` away, or the disk is so broken
    that the name cannot be removed either: then there may be a copy too many, as after a crash.
    """
    os.rename(tmp, new)
    try:
        os.fsync(fd)
        if directory:
            sync_directory(directory)
    except OSError:
        try:
            unlink(new)
        except OSError:
            pass
        raise


def sync(fd: int) -> None:
    """fsync. After an error the file must be given up, never synced again."""
    os.fsync(fd)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: str, new: str) -> None:
    """rename(2). It replaces `new` silently: callers own the directory and have looked first."""
    os.rename(old, new)


def truncate(path: str, size: int) -> None:
    """Cut a file off behind its first `size` bytes."""
    os.truncate(path, size)


def unlink(path: str) -> bool:
    """Remove a name; False if it was gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
