"""A file system in memory that knows what a crash may leave of it.

It stands for the module `os` (and, in part, `fcntl` and open()) in the code under test. Everything that a process sees
is the volatile state; beside it the model keeps which changes are not yet known to be on the disk:

    data     each write and truncation of a file since its last sync: lost, kept, kept in part, with or without zeros in
             place of the rest
    names    each creation, link, renaming and removal since they were last covered by a sync: kept or not

`after_power_cut` yields every state that a disk may be in: any subset of the names, in any order that two changes of
one entry allow (a renaming is one change, as in every journalling file system), and for each of them any mixture of the
data. What orders them is a sync, and nothing else:

    fsync(file)       its data; with `covers_names`, the property measured on ext4, xfs and btrfs, also its newest name
    fsync(directory)  the names in it
    a failed fsync    nothing, and what was dirty is never written by a later one: Linux marks it clean

`orders_growth` adds what the same file systems do for files that lie on one of them: the size of a file is in the same
journal as the names. So a file does not grow on the disk before the names that were changed earlier are there. What it
grows by may still be zeros: ext4 does that within a block that the file had before (test_powercut.py has met it).

`after_kill` is the state after a process died: everything but its locks and descriptors.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

CHANGING = frozenset(("create", "write", "pwrite", "truncate", "ftruncate", "rename", "unlink", "link", "mkdir",
                      "fchmod", "utime", "fsync"))
MAX_MIXTURES = 300  # of the data of one file; more are never met in a run of one message
BLOCK = 4096

# Path, content, mode, uid, modification time in nanoseconds of everything there is; a directory has no content.
Snapshot = tuple[tuple[str, bytes, int, int, int], ...]


@dataclass(eq=False)
class Change:
    """A write (data) or a truncation (data None) at `offset`. order: of the operation.

    has_failed: a sync of it did, and no other will take it along. is_synced: one did.
    """

    offset: int
    data: bytes | None
    order: int
    has_failed: bool = False
    is_synced: bool = False

    def apply(self, content: bytearray, way: str = "whole") -> None:
        """Make the change in this content. way: see _ways."""
        if way == _LOST:
            return
        if self.data is None:
            del content[self.offset:]
            content.extend(bytes(self.offset - len(content)))
            return
        data = self.data
        if way in (_HALF, _BIT):
            data = data[:len(data) // 2 if way == _HALF else 3]
        elif way in (_ZEROS, _HALF_ZEROS):
            data = (data[:len(data) // 2] if way == _HALF_ZEROS else b"").ljust(len(data), b"\0")
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset:self.offset + len(data)] = data


@dataclass(eq=False)
class Inode:
    """A file or directory. content: what processes see. stable: what is on the disk for sure; changes: what may be."""

    number: int
    mode: int
    uid: int
    mtime: int
    gid: int = 0
    content: bytearray = field(default_factory=bytearray)
    stable: bytes = b""
    changes: list[Change] = field(default_factory=list)
    entries: "dict[str, Inode]" = field(default_factory=dict)
    links: int = 0
    ctime: int = 0
    locked_by: "set[Descriptor]" = field(default_factory=set)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


Entry = tuple[Inode, str]  # directory, name


@dataclass(eq=False)
class NameChange:
    """One change of names that is on the disk whole or not at all. sets: what each entry names from then on."""

    order: int
    sets: dict[Entry, Inode | None]


@dataclass(eq=False)
class Descriptor:
    number: int
    inode: Inode
    flags: int
    offset: int = 0


class Model:
    """The file system. uid: whose processes use it. on_change(name): called before each call that changes something."""

    def __init__(self, *, covers_names: bool = True, orders_growth: bool = False, uid: int = 1000) -> None:
        self.covers_names = covers_names
        self.orders_growth = orders_growth
        self.uid = uid
        self.now = 1_795_500_000.0
        self.on_change: Callable[[str], None] = lambda name: None
        self.fault: Callable[[str, str], int] = lambda name, path: 0  # an errno to fail with, or 0
        self.calls: list[str] = []
        self._numbers = itertools.count(2)
        self._orders = itertools.count(1)
        self._descriptors: dict[int, Descriptor] = {}
        self._starts = 0  # of the machine
        self._random = itertools.count(1)
        self.root = Inode(1, stat.S_IFDIR | 0o755, 0, 0)
        self._directories: list[Inode] = [self.root]
        self._stable: dict[Entry, Inode] = {}
        self._pending: list[NameChange] = []

    def __getattr__(self, name: str) -> Any:
        """Constants, and functions that touch no file."""
        if name.startswith(("O_", "POSIX_FADV_")) or name in ("strerror", "fsencode", "fsdecode", "path"):
            return getattr(os, name)
        raise AttributeError(f"the model has no os.{name}")

    def clock(self) -> float:
        """Seconds since the epoch."""
        return self.now

    # ---- making one

    def make(self, path: str, content: bytes | None = None, *, mode: int | None = None, uid: int | None = None,
             mtime: int | None = None) -> None:
        """A file, or a directory (content None), that is on the disk already. Directories above it are made."""
        directory = self.root
        parts = [part for part in path.split("/") if part]
        for part in parts[:-1]:
            directory = directory.entries.get(part) or self._made(directory, part, stat.S_IFDIR | 0o755)
        if content is None:
            if parts[-1] not in directory.entries:
                self._made(directory, parts[-1], stat.S_IFDIR | (mode or 0o755))
            return
        inode = self._made(directory, parts[-1], stat.S_IFREG | (mode or 0o600))
        inode.content, inode.stable = bytearray(content), content
        inode.uid = self.uid if uid is None else uid
        inode.mtime = int(self.now * 1e9) if mtime is None else mtime

    def _made(self, directory: Inode, name: str, mode: int) -> Inode:
        inode = Inode(next(self._numbers), mode, self.uid, int(self.now * 1e9), links=1)
        directory.entries[name] = self._stable[directory, name] = inode
        if inode.is_directory:
            self._directories.append(inode)
        return inode

    def restart_from(self, snapshot: Snapshot, now: float) -> "Model":
        """A machine that has just started with these files on its disk."""
        other = Model(covers_names=self.covers_names, orders_growth=self.orders_growth, uid=self.uid)
        other.now = now
        other._starts = self._starts + 1
        other._random = itertools.count(other._starts << 64)
        for path, content, mode, uid, mtime in snapshot:
            if stat.S_ISDIR(mode):
                other.make(path, None, mode=stat.S_IMODE(mode))
            else:
                other.make(path, content, mode=stat.S_IMODE(mode), uid=uid, mtime=mtime)
        return other

    # ---- crashes

    def after_kill(self) -> Snapshot:
        return _snapshot(self.root, lambda directory: directory.entries, lambda inode: bytes(inode.content))

    def after_power_cut(self) -> Iterator[Snapshot]:
        """Every state in which the disk may be."""
        for kept in self._subsets():
            lost = min((change.order for change in self._pending if change not in kept), default=1 << 62)
            yield from self._with_names(self._names_with(kept), lost)

    def _names_with(self, kept: list[NameChange]) -> dict[Inode, dict[str, Inode]]:
        """What the directories hold when these changes are on the disk."""
        names = dict(self._stable)
        for change in kept:
            for entry, inode in change.sets.items():
                if inode is None:
                    names.pop(entry, None)
                else:
                    names[entry] = inode
        below: dict[Inode, dict[str, Inode]] = {}
        for (directory, name), inode in names.items():
            below.setdefault(directory, {})[name] = inode
        return below

    def _with_names(self, below: dict[Inode, dict[str, Inode]], lost: int) -> Iterator[Snapshot]:
        """The states that have these names. lost: the first change of names that is not on the disk."""
        files = sorted({inode for entries in below.values() for inode in entries.values() if not inode.is_directory},
                       key=lambda inode: inode.number)
        for contents in itertools.product(*(list(self._mixtures(inode, lost)) for inode in files)):
            held = dict(zip(files, contents, strict=True))
            yield _snapshot(self.root, lambda directory: below.get(directory, {}), held.__getitem__)

    def _subsets(self) -> Iterator[list[NameChange]]:
        """The pending changes of names that may be kept together: one needs the earlier ones of its entries."""
        needs = [list(self._needed(change)) for change in self._pending]

        def choose(at: int, kept: list[NameChange]) -> Iterator[list[NameChange]]:
            if at == len(self._pending):
                yield kept
                return
            if all(earlier in kept for earlier in needs[at]):
                yield from choose(at + 1, [*kept, self._pending[at]])
            yield from choose(at + 1, kept)

        return choose(0, [])

    def _needed(self, change: NameChange) -> Iterator[NameChange]:
        return (earlier for earlier in self._pending
                if earlier.order < change.order and earlier.sets.keys() & change.sets.keys())

    def _mixtures(self, inode: Inode, lost: int) -> Iterator[bytes]:
        """What the disk may have of a file, if the first lost change of names was number `lost`."""
        seen = set()
        for ways in itertools.islice(itertools.product(*map(_ways, inode.changes)), MAX_MIXTURES):
            content = bytearray(inode.stable)
            is_legal = True
            for change, way in zip(inode.changes, ways, strict=True):
                before = len(content)
                change.apply(content, way)
                if self.orders_growth and len(content) > before:
                    is_legal = is_legal and change.order < lost
            made = bytes(content)
            if is_legal and made not in seen:
                seen.add(made)
                yield made

    def _sync_data(self, inode: Inode) -> None:
        """What has failed once stays in doubt for ever, until it is written over."""
        if not any(change.has_failed for change in inode.changes):
            inode.stable, inode.changes = bytes(inode.content), []
        for change in inode.changes:
            change.is_synced = not change.has_failed

    def _sync_names(self, wanted: Callable[[NameChange], bool]) -> None:
        kept = [change for change in self._pending if wanted(change)]
        while needed := [earlier for change in kept for earlier in self._needed(change) if earlier not in kept]:
            kept += needed
        for change in [change for change in self._pending if change in kept]:
            for entry, inode in change.sets.items():
                if inode is None:
                    self._stable.pop(entry, None)
                else:
                    self._stable[entry] = inode
            self._pending.remove(change)

    # ---- names

    def _begin(self, name: str, path: str = "") -> None:
        self.calls.append(f"{name} {path}".rstrip())
        if name in CHANGING:
            self.on_change(name)
        number = self.fault(name, path)
        if number:
            raise OSError(number, os.strerror(number))

    def _find(self, path: str | int, dir_fd: int | None = None) -> tuple[Inode, str]:
        """(directory, last name). Raises OSError."""
        if isinstance(path, int):
            raise AssertionError("a descriptor has no name")
        inode = self.root if dir_fd is None or path.startswith("/") else self._descriptor(dir_fd).inode
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for part in parts[:-1]:
            found = inode.entries.get(part)
            if found is None:
                raise _error(errno.ENOENT)
            if not found.is_directory:
                raise _error(errno.ENOTDIR)
            inode = found
        return inode, parts[-1] if parts else ""

    def _inode(self, path: str | int, dir_fd: int | None = None) -> Inode:
        if isinstance(path, int):
            return self._descriptor(path).inode
        directory, name = self._find(path, dir_fd)
        if not name:
            return directory
        if name not in directory.entries:
            raise _error(errno.ENOENT)
        return directory.entries[name]

    def _set(self, sets: dict[Entry, Inode | None]) -> None:
        for (directory, name), inode in sets.items():
            before = directory.entries.pop(name, None)
            if before is not None:
                before.links -= 1
            if inode is not None:
                directory.entries[name] = inode
                inode.links += 1
        self._pending.append(NameChange(next(self._orders), sets))

    def rename(self, old: str, new: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        self._begin("rename", f"{old} {new}")
        source, target = self._find(old, src_dir_fd), self._find(new, dst_dir_fd)
        inode = self._inode(old, src_dir_fd)
        inode.ctime = int(self.now * 1e9)
        self._set({source: None, target: inode})

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        self._begin("unlink", path)
        if self._inode(path, dir_fd).is_directory:
            raise _error(errno.EISDIR)
        self._set({self._find(path, dir_fd): None})

    def link(self, old: str, new: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None,
             follow_symlinks: bool = True) -> None:
        self._begin("link", f"{old} {new}")
        target, inode = self._find(new, dst_dir_fd), self._inode(old, src_dir_fd)
        if target[1] in target[0].entries:
            raise _error(errno.EEXIST)
        self._set({target: inode})

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._begin("mkdir", path)
        directory, name = self._find(path, dir_fd)
        if name in directory.entries:
            raise _error(errno.EEXIST)
        inode = Inode(next(self._numbers), stat.S_IFDIR | mode, self.uid, int(self.now * 1e9))
        self._directories.append(inode)
        self._set({(directory, name): inode})

    def listdir(self, path: str | int) -> list[str]:
        self._begin("listdir", str(path))
        return sorted(self._directory(path).entries)

    def scandir(self, path: str | int) -> "Scan":
        self._begin("scandir", str(path))
        return Scan(self, self._directory(path))

    def _directory(self, path: str | int) -> Inode:
        inode = self._inode(path)
        if not inode.is_directory:
            raise _error(errno.ENOTDIR)
        return inode

    # ---- descriptors

    def _descriptor(self, fd: int) -> Descriptor:
        if fd not in self._descriptors:
            raise _error(errno.EBADF)
        return self._descriptors[fd]

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        self._begin("open", path)
        directory, name = self._find(path, dir_fd)
        inode = directory.entries.get(name) if name else directory
        if inode is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT)
            self._begin("create", path)
            inode = Inode(next(self._numbers), stat.S_IFREG | mode, self.uid, int(self.now * 1e9), directory.gid)
            self._set({(directory, name): inode})
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST)
        elif flags & os.O_DIRECTORY and not inode.is_directory:
            raise _error(errno.ENOTDIR)
        fd = next(number for number in itertools.count(3) if number not in self._descriptors)
        self._descriptors[fd] = Descriptor(fd, inode, flags)
        return fd

    def close(self, fd: int) -> None:
        descriptor = self._descriptor(fd)
        descriptor.inode.locked_by.discard(descriptor)
        del self._descriptors[fd]
        self._begin("close")

    def close_all(self) -> None:
        for fd in list(self._descriptors):
            del self._descriptors[fd]

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._begin("write")
        descriptor = self._descriptor(fd)
        if descriptor.flags & os.O_APPEND:
            descriptor.offset = len(descriptor.inode.content)
        self._change(descriptor.inode, Change(descriptor.offset, bytes(data), next(self._orders)))
        descriptor.offset += len(data)
        return len(data)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._begin("pwrite")
        self._change(self._descriptor(fd).inode, Change(offset, bytes(data), next(self._orders)))
        return len(data)

    def truncate(self, path: str | int, length: int) -> None:
        self._begin("truncate", str(path))
        self._change(self._inode(path), Change(length, None, next(self._orders)))

    def ftruncate(self, fd: int, length: int) -> None:
        self._begin("ftruncate")
        self._change(self._descriptor(fd).inode, Change(length, None, next(self._orders)))

    def _change(self, inode: Inode, change: Change) -> None:
        change.apply(inode.content)
        inode.changes.append(change)
        inode.mtime = inode.ctime = int(self.now * 1e9)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._begin("pread")
        return bytes(self._descriptor(fd).inode.content[offset:offset + length])

    def read(self, fd: int, length: int) -> bytes:
        self._begin("read")
        descriptor = self._descriptor(fd)
        data = bytes(descriptor.inode.content[descriptor.offset:descriptor.offset + length])
        descriptor.offset += len(data)
        return data

    def fsync(self, fd: int) -> None:
        inode = self._descriptor(fd).inode
        try:
            self._begin("fsync")
        except OSError:
            for change in inode.changes:
                change.has_failed = not change.is_synced
            raise
        if inode.is_directory:
            self._sync_names(lambda change: any(directory is inode for directory, _ in change.sets))
            return
        self._sync_data(inode)
        if self.covers_names:
            named = [change for change in self._pending if inode in change.sets.values()]
            self._sync_names(lambda change: change in named[-1:])

    def fchmod(self, fd: int, mode: int) -> None:
        self._begin("fchmod")
        inode = self._descriptor(fd).inode
        inode.mode = stat.S_IFMT(inode.mode) | mode

    def utime(self, path: str | int, times: object = None, *, ns: tuple[int, int] | None = None,
              follow_symlinks: bool = True) -> None:
        self._begin("utime")
        self._inode(path).mtime = ns[1] if ns else int(self.now * 1e9)

    # ---- looking

    def stat(self, path: str | int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> SimpleNamespace:
        self._begin("stat", str(path))
        return _status(self._inode(path, dir_fd))

    def lstat(self, path: str, *, dir_fd: int | None = None) -> SimpleNamespace:
        return self.stat(path, dir_fd=dir_fd)

    def fstat(self, fd: int) -> SimpleNamespace:
        self._begin("fstat")
        return _status(self._descriptor(fd).inode)

    def statvfs(self, path: str) -> SimpleNamespace:
        self._begin("statvfs", path)
        return SimpleNamespace(f_bavail=1 << 30, f_frsize=BLOCK, f_files=1 << 20, f_favail=1 << 20)

    # ---- what is not about files

    def getpid(self) -> int:
        return 4711

    def geteuid(self) -> int:
        return self.uid

    def getegid(self) -> int:
        return self.uid

    def kill(self, pid: int, number: int) -> None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def urandom(self, length: int) -> bytes:
        return next(self._random).to_bytes(length, "big") if length > 1 else b"\x80"

    def posix_fadvise(self, *_: int) -> None:
        """Advice changes nothing."""


class Locks:
    """Stands for `fcntl`: flock belongs to the open file, lockf to the process, of which there is one."""

    LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN = 2, 1, 4, 8

    def __init__(self, model: Model) -> None:
        self._model = model

    def flock(self, fd: int, operation: int) -> None:
        self._model._begin("flock")
        descriptor = self._model._descriptor(fd)
        if operation & self.LOCK_UN:
            descriptor.inode.locked_by.discard(descriptor)
        elif descriptor.inode.locked_by - {descriptor}:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        elif operation & self.LOCK_EX:
            descriptor.inode.locked_by.add(descriptor)

    def lockf(self, fd: int, operation: int) -> None:
        self._model._begin("lockf")


class Reader:
    """What open(path, "rb") gives."""

    def __init__(self, model: Model, path: str) -> None:
        self._model = model
        self._fd = model.open(path, os.O_RDONLY)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close(self._fd)

    def read(self, size: int) -> bytes:
        return self._model.read(self._fd, size)


@dataclass
class Found:
    """A directory entry of scandir."""

    name: str
    _model: Model
    _inode: Inode

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._inode.is_directory

    def stat(self, *, follow_symlinks: bool = True) -> SimpleNamespace:
        return _status(self._inode)


class Scan:
    def __init__(self, model: Model, directory: Inode) -> None:
        self._found = iter([Found(name, model, inode) for name, inode in sorted(directory.entries.items())])

    def __enter__(self) -> Iterator[Found]:
        return self._found

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


_WHOLE, _LOST, _HALF, _BIT, _ZEROS, _HALF_ZEROS = "whole", "lost", "half", "a bit", "zeros", "half, then zeros"


def _ways(change: Change) -> tuple[str, ...]:
    """How one change may be on the disk."""
    if change.is_synced:
        return (_WHOLE,)
    return (_WHOLE, _LOST) if change.data is None else (_WHOLE, _LOST, _HALF, _BIT, _ZEROS, _HALF_ZEROS)


def _status(inode: Inode) -> SimpleNamespace:
    return SimpleNamespace(
        st_mode=inode.mode, st_ino=inode.number, st_dev=1, st_nlink=inode.links, st_uid=inode.uid, st_gid=inode.gid,
        st_size=len(inode.content), st_mtime=inode.mtime / 1e9, st_mtime_ns=inode.mtime, st_ctime=inode.ctime / 1e9,
        st_atime=inode.mtime / 1e9)


def _snapshot(root: Inode, entries: Callable[[Inode], dict[str, Inode]], content: Callable[[Inode], bytes]) -> Snapshot:
    found = []

    def walk(directory: Inode, path: str) -> None:
        for name, inode in sorted(entries(directory).items()):
            data = b"" if inode.is_directory else content(inode)
            found.append((f"{path}/{name}", data, inode.mode, inode.uid, inode.mtime))
            if inode.is_directory:
                walk(inode, f"{path}/{name}")

    walk(root, "")
    return tuple(found)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
