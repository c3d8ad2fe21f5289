"""A user's .forward: which file it is, whether it may be believed, and what it says.

Searched in this order: ~/.forward+DETAIL, ~/.forward.HOST, ~/.forward. A missing one leads to the next. One that others
could have written, or that the user himself may not read, is passed over with a note for the log, as sendmail does, and
mail goes on to the next, in the end to the mailbox. One that cannot be read now (an I/O error, a home on a server that
does not answer) defers: it may say that this mail is not to stay here. A user without a home directory, or with "/",
has no .forward; an empty one is none.

Believed is a regular file of the user's or root's, writable by nobody else, in a directory of which the same is true,
but that the user's own group may write it: on Debian nobody else is in it.
The file may be a symbolic link if the user or root made it and the same holds where it leads. A home with its sticky
bit set by its owner means "I am changing this, hold my mail" (qmail). A line that cannot be understood counts as the
user's own mailbox: what it wanted is not known, and a copy there loses nothing.

Runs as the user, opens nothing that blocks (a FIFO, a device), reads a bounded number of bytes, and believes only what
it learns from descriptors. Never runs, delivers or expands anything; root has no .forward. aliases(5), sendmail(8).
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..mail.envelope import text
from ..mail.outcome import Outcome, deferred, failed, one_line
from ..mail.target import COMMAND, FILE, FORWARDED, KNOWN, Target
from ..route import values
from ..route.values import Value
from ..users import User
from . import trouble

MAX_SIZE = 64 * 1024  # bytes of a .forward, if nothing else is said
MAX_ENTRIES = 100  # values in it, likewise
MAX_LIST_SIZE = 1024 * 1024  # bytes of an :include: list named in it
MAX_LISTED = 1000  # values of it and its lists together, or as many as it may have itself
MAX_LISTS = 10  # :include: lists, nested ones too
MAX_DETAIL = 100  # characters
MAX_SHELLS = 64 * 1024  # bytes of /etc/shells
MAX_WORDS = 200  # characters of a command or file name in the log

NONE, TARGETS, IGNORED, DEFERRED = "none", "targets", "ignored", "deferred"

LIST_TROUBLE = "4.2.4"  # mailing list expansion problem (RFC 3463 section 3.3)
HELD_BACK = "4.2.1"

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_ANY_SHELL = b"/SENDMAIL/ANY/SHELL/"
_USUAL_SHELLS = frozenset((b"/bin/sh", b"/bin/csh"))  # where there is no /etc/shells: getusershell(3)


@dataclass(frozen=True, slots=True)
class Forward:
    """What was found. path: of the file that counts, "" = none. notes: lines for the log.

    verdict: NONE (deliver to the mailbox), IGNORED (likewise, but there is a file), TARGETS (`values` instead of the
    mailbox), DEFERRED (`outcome`).
    """

    verdict: str
    path: str = ""
    values: tuple[Value, ...] = ()
    notes: tuple[str, ...] = ()
    outcome: Outcome | None = None

    def find(self, digest: str) -> Value | None:
        """The command or file with this digest, if the .forward still has it: nothing else may be carried out."""
        for value in self.values:
            if value.kind in (values.COMMAND, values.FILE) and value.digest == digest:
                return value
        return None


def read(user: User, detail: str, hostname: str, size: int = MAX_SIZE, entries: int = MAX_ENTRIES) -> Forward:
    """The .forward that counts for mail to user+detail on this host; size, entries: the most it may have. Raises
    nothing."""
    if user.uid == 0 or not user.home.startswith("/") or not user.home.strip("/"):
        return Forward(NONE)
    try:
        home = os.open(user.home, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return Forward(NONE)
    except PermissionError as problem:
        return Forward(IGNORED, notes=(f"cannot reach the home directory {user.home}: {problem.strerror}",))
    except OSError as problem:
        return Forward(DEFERRED, outcome=trouble.from_error(problem, "cannot reach the home directory", user.home))
    reading = _Reading(user, size, entries)
    try:
        return reading.search(home, _names(detail, hostname))
    except _Later as later:
        return Forward(DEFERRED, reading.path, (), tuple(reading.notes), later.outcome)
    except OSError as problem:
        return Forward(DEFERRED, outcome=trouble.from_error(problem, "cannot look at the home directory", user.home))
    finally:
        os.close(home)


def targets(found: Forward, parent: Target) -> Iterator[Target]:
    """What takes the place of `parent`, a mailbox. Addresses are left to the runner, who knows aliases and users."""
    for value in found.values:
        if value.kind in (values.ADDRESS, values.LOCAL):
            yield Target(FORWARDED, text(value.text), use_forward=value.kind == values.ADDRESS)
        elif value.kind in (values.COMMAND, values.FILE) and value != values.NOWHERE:
            kind = COMMAND if value.kind == values.COMMAND else FILE
            yield replace(parent, kind=kind, digest=value.digest, words=one_line(text(value.text), MAX_WORDS))
        else:
            yield replace(parent, kind=KNOWN, outcome=values.outcome_of(value))


def file_path(value: Value, user: User) -> str:
    """The path of a FILE value; "~/" is the user's home."""
    path = os.fsdecode(value.text)
    return user.home.rstrip("/") + path[1:] if path.startswith("~/") else path


def shell_refusal(user: User, shells: str = "/etc/shells") -> Outcome | None:
    """Why this user may not have commands or files in a .forward; None = he may. His login shell must be a listed one.

    Users who cannot log in must not get a way to run something by mail (sendmail; getusershell(3)).
    """
    try:
        fd = os.open(shells, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            text = os.read(fd, MAX_SHELLS)
        finally:
            os.close(fd)
    except FileNotFoundError:
        listed = _USUAL_SHELLS
    except OSError as problem:
        return trouble.from_error(problem, "cannot read", shells)
    else:
        listed = frozenset(line.partition(b"#")[0].strip() for line in text.split(b"\n"))
    if os.fsencode(user.shell or "/bin/sh") in listed or _ANY_SHELL in listed:
        return None
    return failed("5.7.1", f"the shell of {user.name} is not in {shells}: no mail to programs and files")


class _Later(Exception):
    """It cannot be known what the .forward says; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class _Unsafe(Exception):
    """Somebody else could have written it; the text says how."""


def _names(detail: str, hostname: str) -> Iterator[str]:
    if detail and _is_name(detail):
        yield f".forward+{detail}"
    if hostname and _is_name(hostname):
        yield f".forward.{hostname}"
    yield ".forward"


def _is_name(text: str) -> bool:
    """Whether this can be part of a file's name. The detail comes from the network."""
    return len(text) <= MAX_DETAIL and "/" not in text and text.isprintable()


@dataclass(slots=True)
class _Reading:
    """One search. size, entries: limits of a .forward. path: of the file that is being looked at."""

    user: User
    size: int
    entries: int
    path: str = ""
    notes: list[str] = field(default_factory=list)

    def search(self, home: int, names: Iterator[str]) -> Forward:
        """Raises _Later."""
        seen = os.fstat(home)
        if seen.st_mode & stat.S_ISVTX and seen.st_uid == self.user.uid:
            raise _Later(deferred(HELD_BACK, f"home directory {self.user.home} is sticky: its owner holds mail back"))
        for name in names:
            self.path = f"{self.user.home.rstrip('/')}/{name}"
            try:
                data = self._read(home, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except _Unsafe as why:
                self.notes.append(f"{self.path} ignored: {why}")
                continue
            except PermissionError as problem:
                self.notes.append(f"{self.path} ignored: {problem.strerror}")
                continue
            except OSError as problem:
                if problem.errno == errno.ENAMETOOLONG:
                    continue
                raise _Later(trouble.from_error(problem, "cannot read", self.path))
            found = tuple(self._values(data))
            return Forward(TARGETS if found else NONE, self.path, found, tuple(self.notes))
        return Forward(IGNORED if self.notes else NONE, "", (), tuple(self.notes))

    def _read(self, home: int, name: str) -> bytes:
        """Raises _Unsafe, _Later and OSError."""
        seen = os.stat(name, dir_fd=home, follow_symlinks=False)
        wrong = _who_else(os.fstat(home), self.user.uid, self.user.gid)
        if wrong:
            raise _Unsafe(f"home directory {wrong}")
        if stat.S_ISLNK(seen.st_mode):
            return self._contents(self._follow(seen), self.size)
        if not stat.S_ISREG(seen.st_mode):
            raise _Unsafe("not a regular file")
        return self._contents(os.open(name, _READ, dir_fd=home), self.size)

    def _follow(self, link: os.stat_result) -> int:
        """Open what a symbolic link leads to. Programs that manage dot files make such links."""
        if link.st_uid not in (self.user.uid, 0):
            raise _Unsafe(f"symbolic link belongs to uid {link.st_uid}")
        try:
            return self._open_in(os.path.realpath(self.path))
        except (FileNotFoundError, NotADirectoryError):
            raise _Unsafe("symbolic link leads nowhere")

    def _open_in(self, path: str) -> int:
        """Open a file in a directory that is looked at first. Raises _Unsafe and OSError."""
        place, name = os.path.split(path)
        directory = os.open(place or "/", _DIRECTORY)
        try:
            wrong = _who_else(os.fstat(directory), self.user.uid, self.user.gid)
            if wrong:
                raise _Unsafe(f"directory {place} {wrong}")
            return os.open(name, _READ, dir_fd=directory)
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENXIO):
                raise _Unsafe(f"{path} is not a regular file")
            raise
        finally:
            os.close(directory)

    def _contents(self, fd: int, limit: int) -> bytes:
        """What is in the file; closes it. Raises _Unsafe, _Later and OSError."""
        try:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode):
                raise _Unsafe("not a regular file")
            wrong = _who_else(seen, self.user.uid)
            if wrong:
                raise _Unsafe(f"file {wrong}")
            parts, left = [], limit + 1
            while left > 0 and (data := os.read(fd, left)):
                parts.append(data)
                left -= len(data)
            if not left:
                raise _Later(deferred(LIST_TROUBLE, f"{self.path} has more than {limit} bytes"))
            return b"".join(parts)
        finally:
            os.close(fd)

    def _values(self, data: bytes) -> list[Value]:
        """What a .forward says, lists included. Raises _Later."""
        found = list(self._parse(data))
        if len(found) > self.entries:
            raise _Later(deferred(LIST_TROUBLE, f"{self.path} has more than {self.entries} entries"))
        lists = [value.text for value in found if value.kind == values.INCLUDE]
        found = [value for value in found if value.kind != values.INCLUDE]
        done: set[bytes] = set()
        most = max(MAX_LISTED, self.entries)
        while lists:
            path = lists.pop()
            if path in done:
                continue
            done.add(path)
            if len(done) > MAX_LISTS:
                raise _Later(deferred(LIST_TROUBLE, f"{self.user.home}/.forward has more than {MAX_LISTS} lists"))
            for value in self._list(os.fsdecode(path)):
                (lists.append(value.text) if value.kind == values.INCLUDE else found.append(value))
            if len(found) > most:
                raise _Later(deferred(LIST_TROUBLE, f"{self.path} has more than {most} entries"))
        return list(dict.fromkeys(found))

    def _list(self, path: str) -> Iterator[Value]:
        """The values of a list that a .forward names; a command or file in it counts as a wrong line.

        A list that cannot be had defers, also one that is unsafe: unlike a .forward, it has nothing to fall back to.
        """
        self.path, forward = path, self.path
        try:
            data = self._contents(self._open_in(os.path.realpath(path)), MAX_LIST_SIZE)
        except _Unsafe as why:
            raise _Later(deferred(LIST_TROUBLE, f"list {path} not used: {why}"))
        except OSError as problem:
            raise _Later(trouble.from_error(problem, "cannot read list", path))
        for value in self._parse(data):
            if value.kind in (values.COMMAND, values.FILE):
                self.notes.append(f"{path}: a list may not name commands and files")
                yield self._own_mailbox()
            else:
                yield value
        self.path = forward

    def _parse(self, data: bytes) -> Iterator[Value]:
        for line in values.parse_lines(data):
            if line.value is None:
                self.notes.append(f"{self.path}:{line.number}: {line.problem}")
                yield self._own_mailbox()
            else:
                yield line.value

    def _own_mailbox(self) -> Value:
        return Value(values.LOCAL, os.fsencode(self.user.name))


def _who_else(seen: os.stat_result, uid: int, group: int = -1) -> str:
    """Who but this user, this group and root could have changed this file or directory, in words; "" = nobody."""
    if seen.st_uid not in (uid, 0):
        return f"belongs to uid {seen.st_uid}"
    if seen.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    if seen.st_mode & stat.S_IWGRP and seen.st_gid != group:
        return f"can be written by group {seen.st_gid}"
    return ""
