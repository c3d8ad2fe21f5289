"""Waiting for things to happen: files that change, lines in a log, the end of a process, a word to the service manager.

Nothing here sleeps where the kernel gives a sign; each wait ends after WITHIN seconds, with an AssertionError that says
what was waited for.
"""

import ctypes
import os
import re
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

WITHIN = 30.0  # seconds for anything that a test waits for
IN_MODIFY, IN_NAMES = 0x2, 0x3C0  # of inotify: written to; anything made, moved or removed


class Watch:
    """Waiting for files, or anything in directories, to change (inotify(7))."""

    def __init__(self, *paths: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        for path in paths:
            if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(path), IN_MODIFY | IN_NAMES) < 0:
                raise OSError(ctypes.get_errno(), "inotify")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def wait_for_change(self, within: float) -> bool:
        """Until there is one; False when the time is up."""
        if not select.select([self._fd], [], [], max(0.0, within))[0]:
            return False
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            pass
        return True

    def wait_until(self, is_so: Callable[[], bool], what: str, *, within: float = WITHIN) -> None:
        """Until something is so that does not become so without a change here."""
        end = time.monotonic() + within
        while not is_so():
            if not self.wait_for_change(end - time.monotonic()) and not is_so():
                raise AssertionError(f"not within {within:g} s: {what}")


class Log(Watch):
    """A log file, and waiting for lines to come."""

    def __init__(self, path: str) -> None:
        self.path = path
        Path(path).touch()
        super().__init__(path)

    def lines(self) -> list[str]:
        return Path(self.path).read_text("utf-8", "replace").split("\n")[:-1]

    def mark(self) -> int:
        """How many lines there are now: what to give as `since`."""
        return len(self.lines())

    def find(self, pattern: str, since: int = 0) -> list[re.Match[str]]:
        return [found for line in self.lines()[since:] if (found := re.search(pattern, line))]

    def wait_for(self, pattern: str, *, since: int = 0, count: int = 1, within: float = WITHIN) -> list[re.Match[str]]:
        """The lines that match, once there are `count` of them."""
        end = time.monotonic() + within
        while len(found := self.find(pattern, since)) < count:
            if not self.wait_for_change(end - time.monotonic()):
                raise AssertionError("\n".join([
                    f"{len(found)} of {count} lines {pattern!r} after {within:g} s; the log:", *self.lines()[-60:]]))
        return found


class NotifySocket:
    """What a service manager listens on."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        os.chmod(path, 0o666)
        self._socket.settimeout(WITHIN)

    def next(self) -> list[str]:
        """The lines of the next word of the daemon."""
        return self._socket.recv(4096).decode().split("\n")

    def wait_for(self, line: str) -> list[str]:
        """All lines up to and with this one."""
        seen: list[str] = []
        end = time.monotonic() + WITHIN
        while line not in seen:
            assert time.monotonic() < end, f"no {line}, but {seen}"
            seen += self.next()
        return seen

    def close(self) -> None:
        self._socket.close()


def wait_for_end(pid: int, within: float = WITHIN) -> None:
    """Until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], within)[0], f"process {pid} has not ended within {within:g} s"
    finally:
        os.close(fd)
