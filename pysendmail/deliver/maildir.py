"""Delivery into a Maildir: tmp/ -> fsync -> new/ for each message, then ONE fsync of new/ for the whole batch.

A file is named after the message, not after the moment: the time it was accepted, its queue id, and a mark of what we
put before it. An attempt that follows a crash therefore finds what the last one left, in new/ or (read already) in
cur/, and does not write it again; it syncs the directories all the same, since nobody knows how far the other one got.
The name in tmp/ is another one for each attempt, or a torn file of a dead process would stand in the way of all that
follow.

The readers of a Maildir do not verify: a name in new/ means a whole message, so the file is synced before it gets one.
If the last fsync fails, the batch's files are taken out of new/ again.

All names are looked up below descriptors of the directories, which are checked once: nobody can move the Maildir away
in the middle. Runs as the recipient; makes the Maildir (0700) if there is none, but not the directory above it.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from ..mail.outcome import Outcome, deferred, delivered
from ..spool import durable
from . import trouble
from .parcel import Parcel, Unreadable

MAX_OPEN = 50  # files written before the first of them is synced
MAX_HOST = 100  # characters of the host in a file's name
MAX_TRIES = 10  # names in tmp/
ABANDONED = 36 * 3600  # seconds after which a file in tmp/ has no writer any more (maildir(5))
MAX_SWEEP = 1000  # entries of tmp/ looked at

_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def deliver(path: str, parcels: Sequence[Parcel], *, hostname: str) -> list[Outcome]:
    """One outcome per parcel, in order. path: absolute. hostname: ours, it becomes part of the names."""
    try:
        with _opened(path.rstrip("/")) as maildir:
            return _deliver(maildir, parcels, hostname)
    except _Refused as refusal:
        return [deferred(trouble.MAILBOX_STATUS, str(refusal))] * len(parcels)
    except Unreadable as problem:
        return [deferred(trouble.SYSTEM_OTHER, str(problem))] * len(parcels)
    except OSError as problem:
        return [trouble.from_error(problem, "cannot deliver to", path)] * len(parcels)


class _Refused(Exception):
    """This is not a Maildir to deliver to; the text says why."""


@dataclass(frozen=True, slots=True)
class _Maildir:
    """Descriptors of the directories."""

    path: str
    tmp: int
    new: int
    cur: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """A message in tmp/, written but not yet synced."""

    index: int  # of its parcel
    name: str  # in new/
    temporary: str
    fd: int


def _deliver(maildir: _Maildir, parcels: Sequence[Parcel], hostname: str) -> list[Outcome]:
    host = _host_part(hostname)
    _sweep(maildir.tmp, host, time.time())
    read = _already_read(maildir.cur, parcels, host)
    outcomes: dict[int, Outcome] = {}
    in_new: list[str] = []
    for first in range(0, len(parcels), MAX_OPEN):
        drafts: list[_Draft] = []
        for index in range(first, min(first + MAX_OPEN, len(parcels))):
            try:
                name = _name(parcels[index], host)
                if name not in read and not _exists(maildir.new, name):
                    drafts.append(_write(maildir.tmp, index, name, parcels[index]))
                    continue
                outcomes[index] = delivered("delivered to Maildir by an earlier attempt")
                in_new.append(name)
            except Unreadable as problem:
                outcomes[index] = deferred(trouble.SYSTEM_OTHER, str(problem))
            except OSError as problem:
                outcomes[index] = trouble.from_error(problem, "cannot deliver to", maildir.path)
        for draft in drafts:
            try:
                _finish(maildir, draft)
            except OSError as problem:
                outcomes[draft.index] = trouble.from_error(problem, "cannot deliver to", maildir.path)
            else:
                outcomes[draft.index] = delivered("delivered to Maildir")
                in_new.append(draft.name)
    if in_new:
        try:
            durable.sync(maildir.new)  # from here on these messages are delivered
            if read:
                durable.sync(maildir.cur)
        except OSError as problem:
            _take_back(maildir.new, in_new)
            failure = trouble.from_error(problem, "cannot sync", maildir.path)
            outcomes.update({index: failure for index, outcome in outcomes.items() if outcome.is_delivered})
    return [outcomes[index] for index in range(len(parcels))]


def _write(tmp: int, index: int, name: str, parcel: Parcel) -> _Draft:
    """Write a message to tmp/, without waiting for the disk. Raises OSError and Unreadable, and leaves nothing then.

    The kernel is told to begin: by the time the first of a batch is synced the others have their blocks, and on ext4
    one journal commit then serves them all (100 files: 1 commit instead of 100).
    """
    fd, temporary = _create(tmp, name)
    try:
        for piece in parcel.pieces():
            durable.write_all(fd, piece)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        _take_back(tmp, [temporary])
        os.close(fd)
        raise
    return _Draft(index, name, temporary, fd)


def _finish(maildir: _Maildir, draft: _Draft) -> None:
    """Sync a draft and give it its name in new/. Raises OSError, and leaves nothing behind then."""
    try:
        try:
            durable.sync(draft.fd)
        finally:
            os.close(draft.fd)
        os.rename(draft.temporary, draft.name, src_dir_fd=maildir.tmp, dst_dir_fd=maildir.new)
    except BaseException:
        _take_back(maildir.tmp, [draft.temporary])
        raise


def _create(tmp: int, name: str) -> tuple[int, str]:
    """(descriptor, name) of a new file in tmp/."""
    for attempt in range(MAX_TRIES):
        temporary = f"P{os.getpid()}T{time.monotonic_ns()}.{attempt}.{name}"
        try:
            fd = os.open(temporary, durable.CREATE, 0o600, dir_fd=tmp)
        except FileExistsError:
            continue
        return fd, temporary
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _take_back(directory: int, names: list[str]) -> None:
    """Remove files of ours; what a mail reader has moved away meanwhile stays with it."""
    for name in names:
        try:
            os.unlink(name, dir_fd=directory)
        except OSError:
            continue


def _name(parcel: Parcel, host: str) -> str:
    """The same for every attempt at this delivery, and for no other. Raises Unreadable."""
    seconds, nanoseconds = divmod(parcel.accepted_at(), 1_000_000_000)
    return f"{seconds}.M{nanoseconds // 1000:06}Q{parcel.queue_id}D{parcel.mark()}.{host}"


def _host_part(hostname: str) -> str:
    """Our host in a file's name: without slash, and without colon and comma, which begin what readers append."""
    return "".join(c if c in _HOST else "_" for c in hostname[:MAX_HOST]) or "localhost"


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _already_read(cur: int, parcels: Sequence[Parcel], host: str) -> set[str]:
    """Which names a mail reader has moved to cur/, where it appends ":2,S", or ",S=1234:2,S" if it notes sizes."""
    wanted = {_name(parcel, host) for parcel in parcels if parcel.may_repeat}
    if not wanted:
        return wanted
    with os.scandir(cur) as entries:
        return wanted.intersection(entry.name.partition(":")[0].partition(",")[0] for entry in entries)


def _sweep(tmp: int, host: str, now: float) -> None:
    """Remove from tmp/ what a process of this host left there when it died. Failing to is nobody's trouble."""
    try:
        with os.scandir(tmp) as entries:
            for entry in islice(entries, MAX_SWEEP):
                if entry.name.startswith("P") and entry.name.endswith("." + host):
                    seen = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode) and now - max(seen.st_mtime, seen.st_atime) > ABANDONED:
                        os.unlink(entry.name, dir_fd=tmp)
    except OSError:
        return


@contextmanager
def _opened(path: str) -> Iterator[_Maildir]:
    """Open it, made if need be. Raises _Refused and OSError."""
    made = _make(path)
    opened: list[int] = []
    try:
        base = os.open(path, _DIRECTORY)
        opened.append(base)
        _check(base, path)
        for name in ("tmp", "new", "cur"):
            try:
                os.mkdir(name, 0o700, dir_fd=base)
                made = True
            except FileExistsError:
                pass
            opened.append(os.open(name, _DIRECTORY, dir_fd=base))
        if made:
            durable.sync(base)
        yield _Maildir(path, *opened[1:])
    finally:
        for fd in opened:
            try:
                os.close(fd)
            except OSError:
                continue  # of a directory: nothing depends on it


def _make(path: str) -> bool:
    """Make the Maildir itself, durably. False if it was there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    try:
        durable.sync_directory(os.path.dirname(path) or "/")
    except PermissionError:
        pass  # a directory that may not be read; syncing the new one makes its name durable on ext4, xfs and btrfs
    return True


def _check(base: int, path: str) -> None:
    """A Maildir of a third person, or one where anybody can exchange new/, would send mail to where he wants it."""
    seen = os.fstat(base)
    if seen.st_uid not in (os.geteuid(), 0):
        raise _Refused(f"Maildir {path} belongs to uid {seen.st_uid}, not to uid {os.geteuid()}")
    if seen.st_mode & stat.S_IWOTH:
        raise _Refused(f"Maildir {path} can be written by everybody")
