"""Who asks the user database, and reads the files of :include:, for the runner: a process that may hang.

A directory service may be slow for minutes, and a list may lie on a file server that is down. The runner waits for an
answer at most WITHIN seconds; then it ends the clerk, and the address gets a temporary failure. For PAUSE seconds after
that it waits only HURRIED seconds, and not at all once that was in vain MAX_IN_VAIN times: names that local files
answer go on, and whatever hangs costs the runner a small share of its time.

The clerk is a fork of the runner, with its identity and nothing but one socket: every other descriptor, the spool's
lock among them, is closed first. The runner has no threads, so that no lock can be held at the fork. One that cannot
die (the kernel waits for the file server) is left behind; there are at most MAX_LEFT of these.
"""

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from ..deliver import identity, spawner
from ..route import lists
from ..users import LookupTrouble, User, Users

WITHIN, HURRIED = 2.0, 0.05  # seconds
PAUSE = 10.0  # seconds
MAX_IN_VAIN = 20
MAX_LEFT = 8
CHUNK = 64 * 1024  # bytes
MAX_HEAD = 64 * 1024  # bytes of a question, and of an answer without the content of a list


class Clerk:
    """Knows what `users` knows (it is a Users too), and fetches lists. clock: seconds, monotonic."""

    def __init__(self, users: Users, clock: Callable[[], float] = time.monotonic) -> None:
        self._users, self._clock = users, clock
        self._channel: socket.socket | None = None
        self._pid = 0
        self._left: set[int] = set()
        self._hurried_until = 0.0
        self._in_vain = 0

    def lookup(self, name: str) -> User | None:
        """As users.lookup. Raises LookupTrouble."""
        return self._user(["lookup", name])

    def by_uid(self, uid: int) -> User | None:
        """As users.by_uid. Raises LookupTrouble."""
        return self._user(["by_uid", uid])

    def fetch(self, path: str, limit: int) -> tuple[bytes, str]:
        """As lists.fetch."""
        try:
            answer, data = self._ask(["fetch", path, limit])
        except OSError as trouble:
            return b"", f"cannot read list {path}: {trouble.strerror}"
        return data, answer["trouble"]

    def _user(self, question: list[Any]) -> User | None:
        try:
            answer, _ = self._ask(question)
        except OSError as trouble:
            raise LookupTrouble(trouble.errno, f"the user database does not answer: {trouble.strerror}") from trouble
        if "errno" in answer:
            raise LookupTrouble(answer["errno"], answer["trouble"])
        return User(*answer["user"]) if answer["user"] else None

    # ---- the runner's end

    def start(self) -> None:
        """Fork a clerk. Raises OSError."""
        self._left -= {pid for pid in self._left if os.waitpid(pid, os.WNOHANG)[0]}
        if len(self._left) >= MAX_LEFT:
            raise TimeoutError(errno.ETIMEDOUT, "earlier questions hang")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._pid = identity.fork()
            except OSError:
                ours.close()
                raise
            if self._pid == 0:
                _serve(theirs, self._users)
        self._channel = ours

    def close(self) -> None:
        """End the clerk."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            os.kill(self._pid, signal.SIGKILL)
            self._left.add(self._pid)

    def _ask(self, question: list[Any]) -> tuple[Any, bytes]:
        """(the answer, the content of a list). Raises OSError."""
        now = self._clock()
        is_hurried = now < self._hurried_until
        if is_hurried and self._in_vain >= MAX_IN_VAIN:
            raise TimeoutError(errno.ETIMEDOUT, "earlier questions were not answered in time")
        if self._channel is not None and spawner.wait_readable([self._channel.fileno()], 0.0):
            self.close()  # it has ended by itself: the kernel was short of memory, say
        if self._channel is None:
            self.start()
        assert self._channel is not None
        deadline = self._clock() + (HURRIED if is_hurried else WITHIN)
        try:
            _send(self._channel, question, b"")
            return _receive(self._channel, lambda: max(0.001, deadline - self._clock()))
        except (OSError, ValueError) as trouble:
            self.close()
            self._in_vain = self._in_vain + 1 if is_hurried else 1
            if not is_hurried:
                self._hurried_until = self._clock() + PAUSE
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from trouble


# ---- both ends


def _send(channel: socket.socket, value: object, data: bytes) -> None:
    channel.sendall(b"%d %s\n" % (len(data), json.dumps(value).encode("ascii")) + data)


def _receive(channel: socket.socket, left: Callable[[], float | None]) -> tuple[Any, bytes]:
    """One message. left: seconds that there are. Raises OSError, also at the end, and ValueError."""
    held = bytearray()
    while (end := held.find(b"\n")) < 0 or len(held) < end + 1 + int(held[:held.index(b" ")]):
        if end < 0 and len(held) > MAX_HEAD:
            raise ValueError("too long")
        channel.settimeout(left())
        data = channel.recv(CHUNK)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        held += data
    return json.loads(held[held.index(b" "):end]), bytes(held[end + 1:])


# ---- the clerk


def _serve(channel: socket.socket, users: Users) -> None:
    """In the child. It never returns."""
    try:
        identity.shed({channel.fileno()})
        while True:
            (verb, *words), _ = _receive(channel, lambda: None)
            _send(channel, *_answer(users, verb, words))
    except BaseException:  # noqa: BLE001, S110 - the runner is gone; nothing may get out of a child
        pass
    finally:
        os._exit(0)


def _answer(users: Users, verb: str, words: list[Any]) -> tuple[object, bytes]:
    if verb == "fetch":
        data, why = lists.fetch(*words)
        return {"trouble": why}, data
    try:
        user = users.lookup(*words) if verb == "lookup" else users.by_uid(*words)
    except LookupTrouble as trouble:
        return {"errno": trouble.errno, "trouble": trouble.strerror}, b""
    return {"user": user and [user.name, user.uid, user.gid, user.home, user.shell, user.gecos]}, b""
