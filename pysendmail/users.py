"""Who is a user of this host. The only module that asks the user database (passwd, LDAP and whatever else NSS brings).

"No such user" sends mail back for good, so it takes a positive answer. pwd.getpwnam raises KeyError for an absent user
and for every error alike (no descriptor left, LDAP down): each of its negative answers is asked again through
getpwnam_r, whose code tells them apart, and a database without uid 0 (emptied, not mounted yet) is believed in nothing
that it lacks. Anything but a clear answer raises LookupTrouble, which callers turn into a deferral.

Names that no account can have are unknown without asking: they come from the network, and NSS modules have had trouble
with less. User names are compared as they are, then in lower case, as sendmail and Postfix do.

Lookups block, for as long as NSS likes. POSIX getpwnam_r(3).
"""

import ctypes
import errno
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

MAX_NAME = 256  # characters: LOGIN_NAME_MAX of Linux
DATABASE = "/etc/passwd"
KEEP = 5.0  # seconds that a found user is remembered, while DATABASE stays as it is; an absent one never is
MAX_KEPT = 4096  # users remembered at once
FIRST_BUFFER, MAX_BUFFER = 1024, 1024 * 1024  # bytes for one entry

_NEVER_IN_NAMES = frozenset(map(chr, (*range(32), 127))) | {"/", ":"}


class LookupTrouble(OSError):
    """The user database gave no answer. Always temporary: whether the user exists is not known."""


@dataclass(frozen=True, slots=True)
class User:
    """One account. name: as the database spells it."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    gecos: str = ""


class Users(Protocol):
    """Whoever knows the users: SystemUsers, or a table in tests. Both methods raise LookupTrouble."""

    def lookup(self, name: str) -> User | None: ...

    def by_uid(self, uid: int) -> User | None: ...


def fold(text: str) -> str:
    """Lower case for comparing names. ASCII only: U+212A (KELVIN SIGN) is no "k", so nobody else's name is "Kim"."""
    return text.lower() if text.isascii() else text.encode("utf-8", "surrogateescape").lower().decode(
        "utf-8", "surrogateescape")


def is_text(text: str) -> bool:
    """Whether this has a form in bytes: surrogates that stand for no byte get in by JSON, and break every encoder."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def lookup(name: str) -> User | None:
    """The user of this name, or of this name in lower case; None = there is none. Raises LookupTrouble."""
    if not is_possible(name):
        return None
    found = _by_name(name)
    if found is None and fold(name) != name:
        found = _by_name(fold(name))
    return found


def by_uid(uid: int) -> User | None:
    """The user with this uid; None = there is none. Raises LookupTrouble."""
    try:
        return _from_pwd(pwd.getpwuid(uid))
    except (KeyError, OverflowError):
        return _asked(_libc.getpwuid_r, ctypes.c_uint(uid)) if 0 <= uid < 2**32 else None
    except OSError as trouble:
        raise LookupTrouble(trouble.errno, trouble.strerror)


def is_possible(name: str) -> bool:
    """Whether an account can have this name. It becomes a file name, so "/" is out, and so are "." and ".."."""
    return (0 < len(name) <= MAX_NAME and _NEVER_IN_NAMES.isdisjoint(name) and name not in (".", "..")
            and is_text(name))


class SystemUsers:
    """The users of this host. Found ones are remembered for KEEP seconds, since one message may have thousands.

    clock: seconds, monotonic. users: who is asked, None = the database.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, users: Users | None = None) -> None:
        self._clock = clock
        self._lookup, self._by_uid = (users.lookup, users.by_uid) if users is not None else (lookup, by_uid)
        self._kept: dict[str | int, tuple[float, User]] = {}
        self._seen = _signature()

    def lookup(self, name: str) -> User | None:
        """As the function of this name, with memory."""
        return self._remembered(name, self._lookup)

    def by_uid(self, uid: int) -> User | None:
        """As the function of this name, with memory."""
        return self._remembered(uid, self._by_uid)

    def _remembered(self, key: Any, ask: Callable[[Any], User | None]) -> User | None:
        now = self._clock()
        seen = _signature()
        if seen != self._seen:
            self._kept.clear()
            self._seen = seen
        kept = self._kept.get(key)
        if kept is not None and kept[0] > now:
            return kept[1]
        found = ask(key)
        if found is not None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[key] = (now + KEEP, found)
        elif kept is not None:
            del self._kept[key]
        return found


def _signature() -> tuple[int, int, int]:
    """What tells a changed DATABASE from the one that was looked at before; other databases have KEEP alone."""
    try:
        seen = os.stat(DATABASE)
    except OSError:
        return (0, 0, 0)
    return (seen.st_mtime_ns, seen.st_ino, seen.st_size)


# ---- asking


class _Passwd(ctypes.Structure):
    """struct passwd of Linux (glibc and musl)."""

    _fields_ = (("name", ctypes.c_char_p), ("password", ctypes.c_char_p), ("uid", ctypes.c_uint),
                ("gid", ctypes.c_uint), ("gecos", ctypes.c_char_p), ("home", ctypes.c_char_p),
                ("shell", ctypes.c_char_p))


_libc: Any = ctypes.CDLL(None)


def _by_name(name: str) -> User | None:
    try:
        return _from_pwd(pwd.getpwnam(name))
    except KeyError:
        return _asked(_libc.getpwnam_r, ctypes.c_char_p(os.fsencode(name)))
    except OSError as trouble:
        raise LookupTrouble(trouble.errno, trouble.strerror)


def _asked(function: Any, key: Any) -> User | None:
    """The answer of getpwnam_r or getpwuid_r, where None is certain. Raises LookupTrouble."""
    found = _entry(function, key)
    if found is None and _entry(_libc.getpwuid_r, ctypes.c_uint(0)) is None:
        raise LookupTrouble(errno.ENOENT, "the user database has nobody with uid 0")
    return found


def _entry(function: Any, key: Any) -> User | None:
    size = FIRST_BUFFER
    while True:
        entry, buffer = _Passwd(), ctypes.create_string_buffer(size)
        result = ctypes.POINTER(_Passwd)()
        code = function(key, ctypes.byref(entry), buffer, ctypes.c_size_t(size), ctypes.byref(result))
        if code == errno.ERANGE and size < MAX_BUFFER:
            size *= 2
            continue
        if result:
            name, home, shell, gecos = (os.fsdecode(value or b"") for value in (
                entry.name, entry.home, entry.shell, entry.gecos))
            return _sound(User(name, entry.uid, entry.gid, home, shell, gecos))
        if code == 0:  # (ENOENT too, says POSIX; but glibc says it where sssd or nslcd does not run)
            return None
        raise LookupTrouble(code, os.strerror(code))


def _from_pwd(entry: pwd.struct_passwd) -> User:
    return _sound(User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell, entry.pw_gecos))


def _sound(user: User) -> User:
    """The user, if the name can be that of a mailbox. Raises LookupTrouble: the account is there, but not usable."""
    if not is_possible(user.name):
        raise LookupTrouble(errno.EINVAL, f"the user database has a name that cannot be one: {user.name!r}")
    return user
