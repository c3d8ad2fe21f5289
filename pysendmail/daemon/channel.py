"""The runner's channel as the processes have it that work for it, relay and scanner: packets in, answers out.

What the runner does not read at once waits here. That is bounded by what it has handed over: without answers it hands
over nothing more.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable

from ..deliver.packet import MAX_PACKET

PACKETS_AT_ONCE = 8  # read before others have their turn


class Channel:
    """end: our end, a SOCK_SEQPACKET. take: gets each packet, its descriptors, which are its own then, and the flags of
    recvmsg(2). most: descriptors that come with one packet. ended: done when the runner is gone, or after `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, end: socket.socket,
                 take: Callable[[bytes, list[int], int], None], most: int) -> None:
        self._loop = loop
        self._end = end
        self._take = take
        self._most = most
        self._unsent: list[bytes] = []
        self.ended: asyncio.Future[None] = loop.create_future()
        end.setblocking(False)
        loop.add_reader(end.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet, fds, flags, _ = socket.recv_fds(self._end, MAX_PACKET, self._most)
            except BlockingIOError:
                return
            except OSError:
                packet, fds, flags = b"", [], 0
            if not packet:
                self.close()
                return
            self._take(packet, list(fds), flags)
            if self.ended.done():
                return

    def send(self, packets: Iterable[bytes]) -> None:
        """Send these, now or when there is room."""
        self._unsent += packets
        while self._unsent:
            try:
                self._end.send(self._unsent[0])
            except BlockingIOError:
                self._loop.add_writer(self._end.fileno(), self._writable)
                return
            except OSError:
                self.close()
                return
            self._unsent.pop(0)

    def _writable(self) -> None:
        self._loop.remove_writer(self._end.fileno())
        self.send(())

    def close(self) -> None:
        """Nothing more is read, and what is unsent stays here."""
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        if not self.ended.done():
            self.ended.set_result(None)
