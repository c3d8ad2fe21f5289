"""Files whose contents we believe: settings, passwords, keys. Who could have written them, and who can read them.

A settings file names commands and hosts, and root reads it: a file, or a directory of it, that others may write is
refused. A private root (tests, the demo) belongs to whoever runs it, so a file may also be the effective user's.
"""

import os
import stat

MAX_FILE = 1024 * 1024  # bytes of one file
MAX_FILES = 1000  # in conf.d

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # a fifo in conf.d must not hang us


class Untrusted(Exception):
    """The file could have been written, or read, by somebody it should not. The text says why."""


def read_trusted(path: str) -> tuple[bytes, os.stat_result]:
    """The contents of a file that only root or we can write, and what is known about it. Raises OSError, Untrusted."""
    fd = os.open(path, _OPEN)
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise Untrusted("is not a regular file")
        check_writers(seen)
        data = b""
        while chunk := os.read(fd, MAX_FILE + 1 - len(data)):
            data += chunk
        if len(data) > MAX_FILE:
            raise Untrusted(f"is larger than {MAX_FILE} bytes")
        return data, seen
    finally:
        os.close(fd)


def look_at(path: str) -> os.stat_result:
    """What is known about a file that we can open and only root or we can write. Raises OSError, Untrusted."""
    fd = os.open(path, _OPEN)
    try:
        seen = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(seen.st_mode):
        raise Untrusted("is not a regular file")
    check_writers(seen)
    return seen


def check_writers(seen: os.stat_result) -> None:
    """Raises Untrusted if anybody but root and we could write this file or directory."""
    if seen.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"belongs to uid {seen.st_uid}, who could change it")
    if seen.st_mode & 0o022:
        raise Untrusted(f"can be changed by others (mode {stat.S_IMODE(seen.st_mode):04o})")


def readers(seen: os.stat_result) -> str:
    """Who else can read this file, in words; "" if nobody but its owner, root and our group can."""
    if seen.st_mode & 0o004:
        return "everybody"
    if seen.st_mode & 0o040 and seen.st_gid not in (0, os.getegid()):
        return f"group {seen.st_gid}"
    return ""


def read_secret(path: str) -> str:
    """The first line of a file that nobody else can read. Raises OSError, Untrusted."""
    data, seen = read_trusted(path)
    others = readers(seen)
    if others:
        raise Untrusted(f"can be read by {others} (mode {stat.S_IMODE(seen.st_mode):04o})")
    line = data.split(b"\n", 1)[0].rstrip(b"\r")
    try:
        secret = line.decode("utf-8")
    except UnicodeDecodeError:
        raise Untrusted("is not UTF-8") from None
    if not secret:
        raise Untrusted("has an empty first line")
    if not secret.isprintable():
        raise Untrusted("contains a control character")
    return secret


def names_in(directory: str) -> list[str]:
    """The *.toml files of a conf.d, sorted; [] if there is no such directory. Raises OSError, Untrusted."""
    try:
        check_writers(os.stat(directory))
        found = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
    except FileNotFoundError:
        return []
    if len(found) > MAX_FILES:
        raise Untrusted(f"has more than {MAX_FILES} files")
    return [f"{directory}/{name}" for name in found]
