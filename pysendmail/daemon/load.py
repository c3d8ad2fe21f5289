"""How much the processors of this host have to do, and whether that is too much for new mail to be delivered at once.

Above `[limits] load_queue` new mail is put off for some seconds (sendmail's QueueLA, which puts it off until a queue
run). What is due is tried all the same: a load may last for days, and a file server that hangs counts as load too.
"""

import os
from collections.abc import Callable

from ..events import Events

LOADED_PAUSE = 15.0  # seconds that new mail is put off


class Load:
    """most: load per processor. look: what it is now."""

    def __init__(self, most: int, events: Events, look: Callable[[], float]) -> None:
        self._most, self._events, self._look = most, events, look
        self.is_high = False

    @property
    def wait(self) -> float:
        """Seconds that a new message is put off."""
        return LOADED_PAUSE if self.is_high else 0.0

    def look(self) -> None:
        """Look again; said in the log is only a change."""
        load = self._look()
        if self.is_high != (load > self._most):
            self.is_high = not self.is_high
            what = "put off" if self.is_high else "delivered at once again"
            self._events.warned(f"load {load:.1f} for each processor: new mail is {what}")


def per_processor() -> float:
    """The load average of the last minute for each processor; 0.0 where there is none."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0
