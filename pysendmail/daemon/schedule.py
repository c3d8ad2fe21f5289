"""When a deferred message is tried again, warned about and given up. Pure; time is a parameter.

Each attempt doubles the wait, from retry_first to retry_max, with a jitter of a tenth so that messages which failed
together do not come back together. A message expires only when it is older than its lifetime *and* has been tried at
least MIN_ATTEMPTS times, so that a clock that jumps ahead by years expires nothing by itself; a message from the
future (the clock went back) counts as new, and no due time is further off than the longest wait. RFC 5321 section
4.5.4.1.
"""

from collections import deque

from ..config import QueueSettings

MIN_ATTEMPTS = 3
JITTER = 0.1
MAX_DOUBLINGS = 16
MINUTE = 60.0  # seconds


def wait(attempts: int, settings: QueueSettings, chance: float) -> float:
    """Seconds until the next attempt after `attempts` (>= 1) have been made. chance: 0 <= chance < 1."""
    base = float(min(settings.retry_first << min(attempts - 1, MAX_DOUBLINGS), settings.retry_max))
    return base * (1 - JITTER + 2 * JITTER * chance)


def age(received_at: float, now: float) -> float:
    """Seconds since a message was accepted; never negative."""
    return max(0.0, now - received_at)


def is_expired(received_at: float, attempts: int, now: float, settings: QueueSettings) -> bool:
    return attempts >= MIN_ATTEMPTS and age(received_at, now) >= settings.lifetime


def is_late(received_at: float, now: float, settings: QueueSettings) -> bool:
    """Whether its sender should hear that it is still waiting; 0 = never."""
    return 0 < settings.delay_warning <= age(received_at, now)


def due(now: float, received_at: float, attempts: int, settings: QueueSettings, chance: float) -> float:
    """When to try next: after the wait, but not long after the message expires, so that its sender hears in time."""
    end = received_at + settings.lifetime
    at = now + wait(attempts, settings, chance)
    return min(at, max(now + min(settings.retry_first, settings.lifetime), end)) if now < end else at


def sane_due(due_at: float, now: float, settings: QueueSettings) -> float:
    """A due time, made safe against a clock that was wrong when it was set: nothing ever waits longer than the longest
    wait from now on."""
    return min(due_at, now + settings.retry_max * (1 + JITTER))


class Pace:
    """No more than `most` things in any minute. now: seconds of a clock that does not go back."""

    def __init__(self, most: int) -> None:
        self._times: deque[float] = deque(maxlen=most)

    def allows(self, now: float) -> bool:
        """Whether one more may happen now; it is counted."""
        if len(self._times) == self._times.maxlen and now - self._times[0] < MINUTE:
            return False
        self._times.append(now)
        return True
