"""Which destinations are down, and how long they are left alone.

One record for a destination, however many messages wait for it. The first failure sets a due time, each further one
doubles the wait, from `first` to `most` with a jitter of a tenth. When it is due, one shipment goes as a probe; until
that is back the others are put off. The oldest records are forgotten when there are too many, which costs a failed
connection each. Pure; times are seconds of a clock that never goes back.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..mail.outcome import Outcome

JITTER = 0.1
MAX_DOUBLINGS = 16
MAX_KEPT = 10_000  # destinations


def mark(destination: str) -> str:
    """The 8 hex digits that stand for a destination in the names of queue files."""
    return f"{zlib.crc32(destination.encode('utf-8', 'surrogateescape')):08x}"


@dataclass(slots=True)
class Outage:
    """outcome: what was heard last, at `heard`. due: when to try again. failures: in a row. is_probed: a shipment is
    finding out."""

    destination: str
    outcome: Outcome
    state: str
    due: float
    heard: float = 0.0
    failures: int = 1
    is_probed: bool = False


class Outages:
    """first, most: seconds. chance: 0 <= chance() < 1."""

    def __init__(self, first: float, most: float, chance: Callable[[], float]) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._kept: dict[str, Outage] = {}  # by mark

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Outage]:
        return iter(list(self._kept.values()))

    def left_alone(self, of: str, now: float) -> float:
        """How many seconds nothing should be tried at the destination with this mark; 0.0 = go ahead."""
        outage = self._kept.get(of)
        if outage is None:
            return 0.0
        return self._wait(outage.failures + 1) if outage.is_probed else max(0.0, outage.due - now)

    def find(self, destination: str) -> Outage | None:
        return self._kept.get(mark(destination))

    def failed(self, destination: str, outcome: Outcome, state: str, now: float) -> Outage:
        """The destination has failed. More failures before the next attempt is due are still the same one."""
        key = mark(destination)
        outage = self._kept.get(key)
        if outage is None:
            while len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            outage = self._kept[key] = Outage(destination, outcome, state, now + self._wait(1))
        elif outage.is_probed or now >= outage.due:
            outage.failures += 1
            outage.due = now + self._wait(outage.failures)
        outage.outcome, outage.state, outage.heard, outage.is_probed = outcome, state, now, False
        return outage

    def ended(self, destination: str) -> bool:
        """It takes mail. True if it was down before."""
        return self._kept.pop(mark(destination), None) is not None

    def probe_lost(self, destination: str) -> None:
        """The probe came back without having found out anything: the next shipment is one."""
        outage = self.find(destination)
        if outage is not None:
            outage.is_probed = False

    def clear(self) -> None:
        self._kept.clear()

    def _wait(self, failures: int) -> float:
        base = min(self._first * (1 << min(failures - 1, MAX_DOUBLINGS)), self._most)
        return base * (1 - JITTER + 2 * JITTER * self._chance())
