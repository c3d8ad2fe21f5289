"""Appending to an mbox: a user's /var/mail/USER, or a file named in aliases or .forward.

Order, for a whole batch: open and check -> lock (locks.py) -> check again -> note the size -> append -> ONE fsync ->
unlock. Nothing counts as delivered before that fsync has returned. Any error cuts the file back to where the batch, or
the one message that does not fit, began; a message that does not fit does not stop a smaller one. A file whose fsync
failed is cut back and left alone: Linux has dropped its dirty pages, and a second fsync would lie.

What is wrong with a mailbox defers (trouble.py). After a crash the next attempt removes the torn end that the last one
left, and does not append again what is there already (mboxrd.inspect).
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..mail.outcome import Outcome, deferred, delivered
from ..spool import durable
from . import maildir, mbox_open, mboxrd, trouble
from .parcel import PIECE, Parcel, Unreadable

WRITE_SIZE = 1024 * 1024  # bytes of small messages that go into one write
MAX_SIZE = 2 ** 62  # bytes: no limit


def append(path: str, parcels: Sequence[Parcel], *, owner: int, wait: float, size_limit: int = 0,
           syncs_name: bool = True,
           privileged: Callable[[], AbstractContextManager[object]] = nullcontext) -> list[Outcome]:
    """Append to the mailbox of user id `owner`, which is made if there is none. One outcome per parcel, in order.

    wait: seconds to wait for its locks. size_limit: bytes the mailbox may have, 0 = no limit. syncs_name: as in
    mbox_open.Rules. privileged: what gives this process the right to make files in the spool (the effective group
    `mail`), held for this call and no longer.
    """
    rules = mbox_open.Rules(owner=owner, name="mailbox", needs_dot_lock=True, shares_with_group=True,
                            syncs_name=syncs_name)
    try:
        with privileged():
            return _deliver(path, parcels, rules, time.monotonic() + wait, size_limit or MAX_SIZE)
    except OSError as problem:
        return [trouble.from_error(problem, "cannot become the mailbox group for", path)] * len(parcels)


def append_file(path: str, parcels: Sequence[Parcel], *, hostname: str, wait: float,
                size_limit: int = 0) -> list[Outcome]:
    """Deliver to a file named in aliases or .forward; a name that ends in "/" is a Maildir. /dev/null is the caller's.

    What the kernel lets this user write is written, with the checks of a mailbox. A file that can be executed is
    refused (sendmail does), and in a directory that everybody can write so is a symbolic link or a file of a third
    person.
    """
    if not path.startswith("/") or "\0" in path:
        return [deferred("4.3.5", f"not the absolute path of a file: {path}")] * len(parcels)
    if path.endswith("/"):
        return maildir.deliver(path, parcels, hostname=hostname)
    rules = mbox_open.Rules(owner=None, name="file", needs_dot_lock=False, shares_with_group=False)
    try:
        real = mbox_open.resolve(path)
    except mbox_open.Refused as refusal:
        return [refusal.outcome] * len(parcels)
    return _deliver(real, parcels, rules, time.monotonic() + wait, size_limit or MAX_SIZE)


class _NotSynced(Exception):
    """The fsync failed: nothing of the batch is delivered, and all of it has been cut off again."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _deliver(path: str, parcels: Sequence[Parcel], rules: mbox_open.Rules, deadline: float,
             limit: int) -> list[Outcome]:
    try:
        return _attempt(path, parcels, rules, deadline, limit)
    except _NotSynced as problem:
        if problem.error.errno not in trouble.NO_ROOM or len(parcels) == 1:
            return [trouble.from_error(problem.error, "cannot sync", path)] * len(parcels)
    # NFS says so late that there is no room. What was written is cut off; one by one the small messages may fit.
    outcomes = []
    for parcel in parcels:
        try:
            outcomes += _attempt(path, [parcel], rules, deadline, limit)
        except _NotSynced as problem:
            outcomes.append(trouble.from_error(problem.error, "cannot sync", path))
    return outcomes


def _attempt(path: str, parcels: Sequence[Parcel], rules: mbox_open.Rules, deadline: float,
             limit: int) -> list[Outcome]:
    """Raises _NotSynced. Whatever else goes wrong is in the outcomes."""
    try:
        locked = mbox_open.open_locked(path, rules, deadline)
    except mbox_open.Refused as refusal:
        return [refusal.outcome] * len(parcels)
    try:
        return _Box(locked, rules.name).take(parcels, limit)
    except OSError as problem:  # the file could not even be cut back
        return [trouble.from_error(problem, "cannot write to", path)] * len(parcels)
    finally:
        locked.close()


@dataclass(slots=True)
class _Box:
    """A locked mailbox at work. We append from `start` to `end`; nothing from `floor` on is known to be on disk."""

    locked: mbox_open.Locked
    name: str
    floor: int = 0
    start: int = 0
    end: int = 0
    reach: int = 0  # where `end` will be if the write under way succeeds
    lead: bytes = b""  # what has to come before the first message
    is_changed: bool = False

    def take(self, parcels: Sequence[Parcel], limit: int) -> list[Outcome]:
        """Append them all and sync. Raises _NotSynced, and OSError if what was begun could not be cut off."""
        tail = self._prepare(parcels)
        outcomes: list[Outcome | None] = [None] * len(parcels)
        waiting: list[int] = []
        planned = self.end
        for index, parcel in enumerate(parcels):
            planned += len(parcel.from_line) + parcel.size
            if index in tail.repeats:
                outcomes[index] = delivered(f"delivered to {self.name} by an earlier attempt")
            elif planned > limit:
                planned -= len(parcel.from_line) + parcel.size
                outcomes[index] = deferred(trouble.MAILBOX_FULL, f"{self.name} would grow beyond {limit} bytes")
            else:
                waiting.append(index)
        for group in _groups(parcels, waiting):
            for index, outcome in zip(group, self._append([parcels[index] for index in group]), strict=True):
                outcomes[index] = outcome
        if self.is_changed or tail.repeats:
            self._sync(tail.above)
        return [outcome for outcome in outcomes if outcome is not None]

    def _prepare(self, parcels: Sequence[Parcel]) -> mboxrd.Tail:
        """Note the size; remove what a crash left; find out what must separate the last message from ours."""
        size = os.fstat(self.locked.fd).st_size
        try:
            tail = mboxrd.inspect(self.locked.fd, size, parcels)
        except Unreadable:
            tail = mboxrd.Tail(size, size, set())  # it will be said again when that parcel's turn comes
        if tail.end < size:
            os.ftruncate(self.locked.fd, tail.end)
            self.is_changed = True
        self.floor, self.start, self.end, self.reach = tail.floor, tail.end, tail.end, tail.end
        last = os.pread(self.locked.fd, min(2, self.end), max(0, self.end - 2))
        # A torn line of a program that died must not swallow our From_ line, nor a last message without its empty line.
        if last not in (b"", b"\n", b"\n\n"):
            self.lead = b"\n" if last.endswith(b"\n") else b"\n\n"
        return tail

    def _append(self, parcels: list[Parcel]) -> list[Outcome]:
        """Small messages with one write; if that does not work, one by one."""
        if len(parcels) > 1:
            before = self.end
            try:
                self._write(b"".join(piece for parcel in parcels for piece in mboxrd.render(parcel)))
            except (OSError, Unreadable):
                self._cut(before)
            else:
                return [delivered(f"delivered to {self.name}")] * len(parcels)
        return [self._append_one(parcel) for parcel in parcels]

    def _append_one(self, parcel: Parcel) -> Outcome:
        before = self.end
        try:
            for piece in mboxrd.render(parcel):
                self._write(piece)
        except Unreadable as problem:
            self._cut(before)
            return deferred(trouble.SYSTEM_OTHER, str(problem))
        except OSError as problem:
            self._cut(before)
            return trouble.from_error(problem, "cannot write to", self.locked.path)
        return delivered(f"delivered to {self.name}")

    def _write(self, data: bytes) -> None:
        if self.end == self.start:
            data = self.lead + data
        self.reach = self.end + len(data)
        self.is_changed = True
        durable.write_all(self.locked.fd, data)
        self.end = self.reach
        if self.locked.dot is not None:
            self.locked.dot.refresh()

    def _cut(self, size: int) -> None:
        """Take back what was written beyond `size`, unless somebody who knows no locks has written behind it."""
        if os.fstat(self.locked.fd).st_size > self.reach:
            raise OSError(errno.EBUSY, "written by a program that does not lock it")
        os.ftruncate(self.locked.fd, size)
        self.end = self.reach = size

    def _write_again(self, start: int, end: int) -> None:
        """The same bytes in the same place. Cutting them off after a failed sync would take others' mail along, but
        without a write to it the next sync would not touch what this one has lost, and say that all is well."""
        fd = self.locked.fd
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)  # with which Linux' pwrite(2) goes to the end
        try:
            if os.pwrite(fd, os.pread(fd, end - start, start), start) != end - start:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)

    def _sync(self, again: Sequence[tuple[int, int]]) -> None:
        try:
            for place in again:
                self._write_again(*place)
            durable.sync(self.locked.fd)  # from here on these messages are delivered
        except OSError as problem:
            try:
                self._cut(self.floor)
            except OSError:
                pass  # a broken disk: the next attempt looks at what is there
            raise _NotSynced(problem)


def _groups(parcels: Sequence[Parcel], indexes: list[int]) -> list[list[int]]:
    """Which of them go into one write: those smaller than PIECE, up to WRITE_SIZE; a larger one alone."""
    groups: list[list[int]] = []
    room = 0
    for index in indexes:
        size = parcels[index].size
        if size >= PIECE or size > room:
            groups.append([])
            room = WRITE_SIZE if size < PIECE else 0
        groups[-1].append(index)
        room -= size
    return groups
