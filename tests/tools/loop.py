"""An event loop whose time a test sets: what asyncio's gives the runner, and nothing else.

`run` calls what is due and reads what can be read until there is nothing left; `advance` lets time pass, in the order
in which things are due. Descriptors are real ones; nothing waits.
"""

import itertools
import select
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

ROUNDS = 100_000  # calls without time passing, after which something calls itself for ever


@dataclass(eq=False)
class Timer:
    """As asyncio.TimerHandle."""

    call: Callable[..., object]
    args: tuple[Any, ...]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._readers: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}

    # ---- what the code under test uses

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., object], *args: Any) -> Timer:
        return self.call_later(0.0, call, *args)

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(call, args)
        heappush(self._timers, (self.now + max(0.0, delay), next(self._numbers), timer))
        return timer

    def add_reader(self, fd: int, call: Callable[..., object], *args: Any) -> None:
        self._readers[fd] = call, args

    def remove_reader(self, fd: int) -> bool:
        return self._readers.pop(fd, None) is not None

    # ---- what the test uses

    def run(self) -> None:
        """Everything that can happen without time passing."""
        for _ in range(ROUNDS):
            if not self._call_due() and not self._read():
                return
        raise AssertionError("it does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.run()
        while self._timers and self._timers[0][0] <= end:
            self.now = max(self.now, self._timers[0][0])
            self.run()
        self.now = end
        self.run()

    def _call_due(self) -> bool:
        if not self._timers or self._timers[0][0] > self.now:
            return False
        timer = heappop(self._timers)[2]
        if not timer.is_cancelled:
            timer.call(*timer.args)
        return True

    def _read(self) -> bool:
        ready = select.select(list(self._readers), [], [], 0)[0] if self._readers else []
        for fd in ready:
            if fd in self._readers:  # another one's call may have removed it
                call, args = self._readers[fd]
                call(*args)
        return bool(ready)
