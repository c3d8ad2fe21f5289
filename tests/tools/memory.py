"""Connections in memory, for drivers of a protocol.

`pair` gives two transports that are connected: what is written to one is data_received of the other's protocol, in
order, on the same loop; closing, aborting and holding back work as with sockets, without any, so that a driver can be
tested against scripted peers and a clock of its own.
"""

import asyncio
from typing import Any


class MemoryTransport(asyncio.Transport):
    """One end of a connection in memory. written: all bytes that were sent through it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._peer: MemoryTransport | None = None
        self._waiting: list[bytes] = []  # for our protocol, while it has paused reading
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False
        self._ends: list[Exception | None] = []  # how the peer has ended, once it has
        self.written = bytearray()

    def join(self, peer: "MemoryTransport") -> None:
        self._peer = peer
        self._loop.call_soon(self._protocol.connection_made, self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        self.written += data
        if self._peer is not None:
            self._loop.call_soon(self._peer.arrive, bytes(data))

    def arrive(self, data: bytes) -> None:
        """The peer has written this."""
        self._waiting.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self._is_reading and not self._is_closing:
            self._protocol.data_received(self._waiting.pop(0))
        if self._ends and self._is_reading and not self._is_closing:
            end = self._ends.pop()
            if end is None and self._protocol.eof_received():
                return
            self._lose(end)

    def close(self) -> None:
        self._end(None, None)

    def abort(self) -> None:
        self._end(None, ConnectionResetError("connection reset"))

    def _end(self, ours: Exception | None, theirs: Exception | None) -> None:
        if not self._is_closing and self._peer is not None:
            self._loop.call_soon(self._peer.ended, theirs)
        self._lose(ours)

    def ended(self, trouble: Exception | None) -> None:
        """The peer has closed (None) or broken the connection."""
        self._ends.append(trouble)
        self._hand_over()

    def _lose(self, trouble: Exception | None) -> None:
        self._is_closing = True
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._protocol.connection_lost, trouble)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._loop.call_soon(self._hand_over)

    def is_reading(self) -> bool:
        return self._is_reading

    def hold_back(self) -> None:
        """As if the peer did not read: the protocol is told to pause writing."""
        self._protocol.pause_writing()

    def let_go(self) -> None:
        self._protocol.resume_writing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": "memory"}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever held here."""


def pair(left: asyncio.Protocol, right: asyncio.Protocol) -> tuple[MemoryTransport, MemoryTransport]:
    """Connect two protocols. Each gets connection_made soon."""
    loop = asyncio.get_running_loop()
    ours, theirs = MemoryTransport(loop, left), MemoryTransport(loop, right)
    ours.join(theirs)
    theirs.join(ours)
    return ours, theirs
