"""Opening a mailbox, or a file that mail goes to, with its locks held and nobody fooled.

This runs as the recipient, in directories that others may write, so no path is followed on trust. What is at the path
is looked at before opening, since a device can do things when it is opened; then on the descriptor, which nobody can
exchange, and against the path again, both under the locks: a mail reader may have put a new file there meanwhile. A
mailbox is a regular file with one link that belongs to its user. Postfix CVE-2008-2936 and 2937, Exim CVE-2010-2023 and
2024 are what happens otherwise. No existing file is ever given another owner or mode, and nothing here blocks: not the
open, not the locks.
"""

import errno
import os
import stat
from dataclasses import dataclass

from ..mail.outcome import Outcome, deferred
from ..spool import durable
from . import locks, trouble

_OPEN = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NO_LOCK_HERE = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG))
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH | stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Rules:
    """owner: the only uid the file may have, None = as mbox.append_file says. name: what people call such a file.

    needs_dot_lock: no dot lock, no delivery. shares_with_group: a new file may become 0660. syncs_name: a new file's
    name is made durable here, for file systems where fsync of the file does not do that.
    """

    owner: int | None
    name: str
    needs_dot_lock: bool
    shares_with_group: bool
    syncs_name: bool = True


class Refused(Exception):
    """Not now; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class _Busy(Exception):
    """Somebody else is at it: try again in a moment."""


@dataclass(slots=True)
class Locked:
    """A file to append to, open and locked. dot: None where it does without a dot lock."""

    path: str
    fd: int
    dot: locks.DotLock | None

    def close(self) -> None:
        """Unlock: the dot lock first, then, with its last descriptor, the file."""
        if self.dot is not None:
            self.dot.release()
        try:
            os.close(self.fd)
        except OSError:
            pass  # whatever could be wrong has been said by fsync


def open_locked(path: str, rules: Rules, deadline: float) -> Locked:
    """Raises Refused."""
    why = f"{rules.name} {path} is locked"
    for _ in locks.pauses(deadline):
        try:
            return _try_open(path, rules)
        except _Busy as busy:
            why = f"{rules.name} {path} {busy}"
    raise Refused(deferred(trouble.MAILBOX_STATUS, why))


def _try_open(path: str, rules: Rules) -> Locked:
    """Raises Refused and _Busy."""
    fd = _open(path, rules)
    try:
        _lock_file(fd, path)
        dot = _lock_name(path, rules)
    except BaseException:
        os.close(fd)
        raise
    locked = Locked(path, fd, dot)
    try:
        _check_again(fd, path, rules)
    except BaseException:
        locked.close()
        raise
    return locked


def _open(path: str, rules: Rules) -> int:
    """The descriptor of what kept the rules a moment ago, made if there was nothing. Raises Refused and _Busy."""
    try:
        _check(os.lstat(path), path, rules)
        return os.open(path, _OPEN)  # perhaps another file by now: that is looked at under the locks
    except FileNotFoundError:
        return _create(path, rules)
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot open", path))


def _create(path: str, rules: Rules) -> int:
    try:
        fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise _Busy("appeared at this moment")
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot make", path))
    try:
        os.fchmod(fd, _mode_of_new(fd, path, rules))
        if rules.syncs_name:
            _sync_name(path)
    except OSError as problem:
        os.close(fd)
        raise Refused(trouble.from_error(problem, "cannot finish making", path))
    return fd


def _sync_name(path: str) -> None:
    """Make the name of a new file durable. Where we may not read the directory, on ext4, xfs and btrfs the fsync of the
    file will do so."""
    try:
        durable.sync_directory(os.path.dirname(path) or ".")
    except PermissionError:
        pass


def _mode_of_new(fd: int, path: str, rules: Rules) -> int:
    """0660 where the group is that of the mail spool, which may exchange the whole file anyhow; else 0600."""
    if rules.shares_with_group:
        group, directory = os.fstat(fd).st_gid, os.stat(os.path.dirname(path) or ".")
        if directory.st_mode & stat.S_IWGRP and directory.st_gid == group == os.getegid():
            return 0o660
    return 0o600


def _check(seen: os.stat_result, path: str, rules: Rules) -> None:
    """Raises Refused unless this is a file to append to."""
    wrong = _what_is_wrong(seen, rules)
    if not wrong and rules.owner is None and seen.st_uid not in (os.geteuid(), 0) and _all_may_write_beside(path):
        wrong = f"belongs to uid {seen.st_uid}, in a directory that everybody can write"
    if wrong:
        raise Refused(deferred(trouble.MAILBOX_STATUS, f"{rules.name} {path} {wrong}"))


def _what_is_wrong(seen: os.stat_result, rules: Rules) -> str:
    if stat.S_ISLNK(seen.st_mode):
        return "is a symbolic link"
    if stat.S_ISDIR(seen.st_mode):
        return "is a directory"
    if not stat.S_ISREG(seen.st_mode):
        return "is not a regular file"
    if seen.st_nlink != 1:
        return f"has {seen.st_nlink} links"
    if rules.owner is not None and seen.st_uid != rules.owner:
        return f"belongs to uid {seen.st_uid}, not to uid {rules.owner}"
    if rules.owner is None and seen.st_mode & _EXECUTABLE:
        return "is executable"
    return ""


def _all_may_write_beside(path: str) -> bool:
    try:
        return bool(os.stat(os.path.dirname(path)).st_mode & stat.S_IWOTH)
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot look at the directory of", path))


def resolve(path: str) -> str:
    """Where a file of mbox.append_file really is. Raises Refused.

    Only a link of our own or root's, in a directory where not everybody can make one, is followed.
    """
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return path
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot open", path))
    if not stat.S_ISLNK(seen.st_mode):
        return path
    if seen.st_uid not in (os.geteuid(), 0) or _all_may_write_beside(path):
        raise Refused(deferred(trouble.MAILBOX_STATUS, f"file {path} is a symbolic link that others could have made"))
    return os.path.realpath(path)


def _lock_file(fd: int, path: str) -> None:
    try:
        if not locks.try_fcntl(fd):
            raise _Busy("is locked by another program")
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot lock", path))


def _lock_name(path: str, rules: Rules) -> locks.DotLock | None:
    """The dot lock; None where this file does without.

    In the spool there is none without it: mail readers that know only dot locks are set-gid mail to use it there.
    Beside a user's own file, in a directory that he cannot write, no such reader could make one either.
    """
    try:
        dot = locks.try_dot(path)
    except OSError as problem:
        if rules.needs_dot_lock or problem.errno not in _NO_LOCK_HERE:
            raise Refused(trouble.from_error(problem, "cannot make", path + ".lock"))
        return None
    if dot is None:
        pid = locks.holder(path)
        raise _Busy("is locked by " + (f"process {pid}" if pid else "another program") + f" with {path}.lock")
    return dot


def _check_again(fd: int, path: str, rules: Rules) -> None:
    """Under the locks: this descriptor keeps the rules, and the path still names the file that it is."""
    try:
        ours, there = os.fstat(fd), os.lstat(path)
    except FileNotFoundError:
        raise _Busy("has been removed")
    except OSError as problem:
        raise Refused(trouble.from_error(problem, "cannot look at", path))
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
        raise _Busy("has been replaced")
    _check(ours, path, rules)
