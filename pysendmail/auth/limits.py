"""How often a client may fail to log in: guessing passwords has to be slow.

Counted are failures by client, an IPv4 address or an IPv6 /64, within WINDOW seconds; a client who has used up MOST of
them is shown out before its next guess is even looked at. Each listener process counts for itself, so that the limit
of a host is that times its processes. Users are not counted: who guesses must not be able to lock somebody else out.
"""

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

MOST = 10  # failures
WINDOW = 600.0  # seconds
MAX_CLIENTS = 10_000  # that are remembered; beyond that whoever was counted first is forgotten


class FailedLogins:
    """clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float], *, most: int = MOST, window: float = WINDOW) -> None:
        self._clock = clock
        self._most = most
        self._window = window
        self._counts: dict[bytes, tuple[int, float]] = {}  # (failures, until when they count)

    def count(self, address: str) -> int:
        """Failures of a client that still count."""
        number, until = self._counts.get(key(address), (0, 0.0))
        return number if self._clock() < until else 0

    def is_blocked(self, address: str) -> bool:
        return self.count(address) >= self._most

    def failed(self, address: str) -> int:
        """One more; how many there are now."""
        number = self.count(address) + 1
        until = self._clock() + self._window
        self._counts.pop(key(address), None)
        while len(self._counts) >= MAX_CLIENTS:
            del self._counts[next(iter(self._counts))]
        self._counts[key(address)] = number, until
        return number


def key(address: str) -> bytes:
    """By what a client is counted; b"" for one that has no address."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return b""
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped.packed if found.ipv4_mapped is not None else found.packed[:8]
    return found.packed
