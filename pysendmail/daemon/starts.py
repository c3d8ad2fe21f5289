"""Asking the spawner for processes of one kind: one question at a time, and none for a while after a process that was
refused, or ended at once. That pause doubles each time, until a process has been of use.
"""

import asyncio
import os
import socket
from collections.abc import Callable

from ..mail.outcome import Outcome, deferred

STEADY_AFTER = 10.0  # seconds after which a process's end is no longer taken for a failed start
RESTART_FIRST, RESTART_MOST = 1.0, 60.0  # seconds before a process is asked for again
ASK_WITHIN = 60.0  # seconds that the spawner may take for an answer; it may have got lost

LOST = deferred("4.3.0", "no descriptor is free for a process")


class Starts:
    """kind: as the spawner knows it. ask: sends a packet to the spawner, and may raise OSError:
    {kind: true, "n": k} or {"end": pid}."""

    def __init__(self, loop: asyncio.AbstractEventLoop, kind: str, ask: Callable[[dict[str, object]], None]) -> None:
        self._loop, self._kind, self._ask = loop, kind, ask
        self._number = 0
        self._not_before = 0.0
        self._pause = RESTART_FIRST
        self._asked_until = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether a question is out."""
        return self._loop.time() < self._asked_until

    @property
    def wait(self) -> float:
        """Seconds until a process may be asked for."""
        return max(0.0, self._not_before - self._loop.time())

    def ask(self) -> Outcome | None:
        """Ask for a process; why there is none, where even that cannot be done."""
        self._number += 1
        self._asked_until = self._loop.time() + ASK_WITHIN
        try:
            self._ask({self._kind: True, "n": self._number})
        except OSError as trouble:
            return self._refused(deferred("4.3.0", f"cannot start a process: {trouble.strerror}"))
        return None

    def granted(self, value: dict[str, object], fds: list[int]) -> tuple[socket.socket, int] | Outcome | None:
        """The spawner's answer: a process's socket and pid, or why there is none. None: nothing that was asked for."""
        is_ours = self.is_asked and value.get("n") == self._number
        if not is_ours or not fds:
            for fd in fds:
                os.close(fd)
            return self._refused(Outcome.from_json(value["error"]) if "error" in value else LOST) if is_ours else None
        self._asked_until = 0.0
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        pid = value.get("pid")
        return channel, pid if isinstance(pid, int) else 0

    def _refused(self, outcome: Outcome) -> Outcome:
        self._asked_until = 0.0
        self.ended(self._loop.time())
        return outcome

    def ended(self, began: float) -> None:
        """A process is gone that began then."""
        now = self._loop.time()
        if now - began < STEADY_AFTER:
            self._not_before = now + self._pause
            self._pause = min(self._pause * 2, RESTART_MOST)

    def answered(self) -> None:
        """A process has been of use."""
        self._pause = RESTART_FIRST

    def end(self, pid: int) -> None:
        """Have a process killed."""
        try:
            self._ask({"end": pid})
        except OSError:
            pass  # the spawner is gone, and so are we soon
