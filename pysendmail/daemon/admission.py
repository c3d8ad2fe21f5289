"""How many clients at once, and how often one of them may come: counted over all listeners of this host.

The counts lie in memory that the supervisor makes and its listeners share. Each listener writes one row, its own, and
reads all: no lock, no process that others wait for, and one that dies takes nothing with it but its row, which is wiped
when it is given to the next. Two listeners that decide at the same moment may let in one client too many.

A client is an IPv4 address or an IPv6 /64. It has no entry of its own: its counts are added in two places of a row, by
a keyed hash, and what counts is the smaller of the two. So memory is bounded whatever addresses come, and nobody can
find out, let alone choose, whose places are his own. A rate is of the last minute: the running one, and of the one
before as much as still lies within sixty seconds.

Clients on this host, and those that may relay, have no limits of their own; the limit for all of them together holds,
with some places kept for this host.
"""

import mmap
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from ..config import LimitSettings
from ..mail.digest import blake2b

PLACES = 4096  # of a row, for each count
MAX_COUNT = 65535
MINUTE = 60.0  # seconds
STRESS = 0.8  # share of the sessions that are taken, from which on nobody is waited for
MAX_LISTENERS = 32  # rows: processes at work, and those that drain after a reload
SECRET_LENGTH = 16  # bytes

_HEAD = 32  # 32-bit words of a row's head
_BEAT, _SESSIONS, _STAMPS = 0, 1, 2  # words of it; the stamps are two for each rate


class Rate(IntEnum):
    """What is counted by the minute."""

    CONNECTIONS = 0
    MESSAGES = 1


_ROW = _HEAD * 4 + PLACES * 2 * (1 + 2 * len(Rate))  # bytes


class Table:
    """The memory that all rows lie in, made before the first listener is started. For the supervisor."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, _ROW * MAX_LISTENERS)
        self.secret = os.urandom(SECRET_LENGTH)

    def wipe(self, number: int) -> None:
        """Give a row to somebody new."""
        self.memory[number * _ROW:(number + 1) * _ROW] = bytes(_ROW)
        self._head(number)[_BEAT] = int(time.monotonic())

    def beat(self, number: int) -> int:
        """When its owner last gave a sign of life: monotonic seconds."""
        return self._head(number)[_BEAT]

    def _head(self, number: int) -> memoryview:
        return memoryview(self.memory)[number * _ROW:number * _ROW + _HEAD * 4].cast("I")


class Tally:
    """A listener's view of the table. number: its row. clock: monotonic seconds, the same for all listeners."""

    def __init__(self, table: Table, number: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = table.secret
        rows = [memoryview(table.memory)[n * _ROW:(n + 1) * _ROW] for n in range(MAX_LISTENERS)]
        self._heads = [row[:_HEAD * 4].cast("I") for row in rows]
        self._counts = [row[_HEAD * 4:].cast("H") for row in rows]
        self._head, self._own = self._heads[number], self._counts[number]

    def beat(self) -> None:
        self._head[_BEAT] = int(self._clock())

    # ---- sessions

    @property
    def sessions(self) -> int:
        """Of all listeners."""
        return sum(head[_SESSIONS] for head in self._heads)

    def sessions_of(self, client: bytes) -> int:
        first, second = self._places(client)
        return min(sum(counts[first] for counts in self._counts), sum(counts[second] for counts in self._counts))

    def entered(self, client: bytes) -> None:
        """client b"" = one that is not counted by itself."""
        self._head[_SESSIONS] += 1
        for place in self._places(client) if client else ():
            self._own[place] = min(self._own[place] + 1, MAX_COUNT)

    def left(self, client: bytes) -> None:
        self._head[_SESSIONS] -= 1
        for place in self._places(client) if client else ():
            self._own[place] = max(self._own[place] - 1, 0)

    # ---- rates

    def add(self, rate: Rate, client: bytes) -> None:
        minute = int(self._clock() / MINUTE)
        start = self._window(rate, minute)
        stamp = _stamp(rate, minute)
        if self._head[stamp] != minute:
            self._own[start:start + PLACES] = memoryview(bytes(PLACES * 2)).cast("H")
            self._head[stamp] = minute
        for place in self._places(client):
            self._own[start + place] = min(self._own[start + place] + 1, MAX_COUNT)

    def rate(self, rate: Rate, client: bytes) -> float:
        """How often in the last minute."""
        now = self._clock() / MINUTE
        minute = int(now)
        first, second = self._places(client)
        counts = [0.0, 0.0]
        for at, weight in ((minute, 1.0), (minute - 1, 1.0 - (now - minute))):
            start, stamp = self._window(rate, at), _stamp(rate, at)
            for head, row in zip(self._heads, self._counts, strict=True):
                if head[stamp] == at:
                    counts[0] += weight * row[start + first]
                    counts[1] += weight * row[start + second]
        return min(counts)

    def _window(self, rate: Rate, minute: int) -> int:
        """Where the counts of a rate in this minute begin."""
        return PLACES * (1 + 2 * rate + minute % 2)

    def _places(self, client: bytes) -> tuple[int, int]:
        """One in each half of a row."""
        digest = blake2b(client, digest_size=4, key=self._secret).digest()
        half = PLACES // 2
        return int.from_bytes(digest[:2], "big") % half, half + int.from_bytes(digest[2:], "big") % half


def _stamp(rate: Rate, minute: int) -> int:
    return _STAMPS + 2 * rate + minute % 2


def client_key(address: str) -> bytes:
    """Who a client is: its IPv4 address, or the /64 of its IPv6 address. b"" for no IP address."""
    if ":" not in address:
        try:
            return socket.inet_pton(socket.AF_INET, address)
        except OSError:
            return b""
    try:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Why a client does not get in. words: for it and for the log, as sendmail puts it."""

    words: str


TOO_MANY = TurnedAway("Too many open connections.")
TOO_FAST = TurnedAway("Connection rate limit exceeded.")
LOADED = TurnedAway("this host is too busy")


class Admission:
    """Who gets in. load: the load average for each processor."""

    def __init__(self, tally: Tally, limits: LimitSettings, load: Callable[[], float]) -> None:
        self._tally = tally
        self._limits = limits
        self._load = load

    @property
    def is_stressed(self) -> bool:
        """Whether most sessions are taken, so that clients must be quick."""
        return self._tally.sessions >= STRESS * self._limits.sessions

    def enter(self, client: bytes, *, is_local: bool) -> TurnedAway | None:
        """Let a client in, who has to `leave` then; or say why not.

        client: client_key(), b"" for one without limits of its own. is_local: it is on this host.
        """
        tally, limits = self._tally, self._limits
        room = limits.sessions if is_local else max(1, limits.sessions - limits.reserved_sessions)
        if tally.sessions >= room:
            return TOO_MANY
        if not is_local and self._load() > limits.load_refuse:
            return LOADED
        if client:
            tally.add(Rate.CONNECTIONS, client)
            if tally.rate(Rate.CONNECTIONS, client) > limits.connections_per_minute:
                return TOO_FAST
            if tally.sessions_of(client) >= limits.sessions_per_client:
                return TOO_MANY
        tally.entered(client)
        return None

    def entered(self, client: bytes) -> None:
        """Count a client that is there, whatever the limits say."""
        self._tally.entered(client)

    def leave(self, client: bytes) -> None:
        self._tally.left(client)

    def may_send(self, client: bytes) -> bool:
        """Count a message of a client; False: it is one too many in this minute."""
        if not client:
            return True
        self._tally.add(Rate.MESSAGES, client)
        return self._tally.rate(Rate.MESSAGES, client) <= self._limits.messages_per_minute
