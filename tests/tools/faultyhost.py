"""A mail host on a socket that does what smtphost.Host does, and fails as sockets and peers fail.

A reply of the script may be, besides bytes, one of the faults below: what happens instead of the answer.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.tools.smtphost import Host

RESET, STALL, DRIP, ENDLESS, GARBAGE = b"<reset>", b"<stall>", b"<drip>", b"<endless>", b"<garbage>"
DEAF = b"<deaf>"  # nothing is read any more
DRIP_EVERY = 0.02  # seconds between the bytes of a reply that never ends
BURST = b"250-and so on\r\n" * 1000


class FaultyHost:
    """Listens on `address`:`port` (0 = any), or on the socket at `path`. make: the host of one connection.

    hosts: one for each connection so far. context: for STARTTLS, and from the beginning if `is_encrypted`. most:
    connections at a time; more are greeted with 421.
    """

    def __init__(self, make: Callable[[], Host] = Host, *, address: str = "127.0.0.1", port: int = 0, path: str = "",
                 context: ssl.SSLContext | None = None, is_encrypted: bool = False, most: int = 1000) -> None:
        self.make = make
        self.address, self.port, self.path = address, port, path
        self.context, self.is_encrypted = context, is_encrypted
        self.most = most
        self.hosts: list[Host] = []
        self.open: set[_Connection] = set()
        self.tls: list[bool] = []  # of each message: whether it came encrypted
        self.changed = asyncio.Event()

    @property
    def messages(self) -> list[bytes]:
        return [message for host in self.hosts for message in host.messages]

    @property
    def commands(self) -> list[str]:
        return [command for host in self.hosts for command in host.commands]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        context = self.context if self.is_encrypted else None
        if self.path:
            self._server = await loop.create_unix_server(lambda: _Connection(self), self.path)
        else:
            self._server = await loop.create_server(lambda: _Connection(self), self.address, self.port, ssl=context)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._server.close()
        for connection in list(self.open):
            connection.end()
        await self._server.wait_closed()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, server: FaultyHost) -> None:
        self._server = server
        self._host = server.make()
        self._transport: asyncio.Transport | None = None
        self._is_stalled = False
        self._dripping: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_encrypted = server.is_encrypted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._host not in self._server.hosts:
            self._server.hosts.append(self._host)
        self._server.open.add(self)
        if len(self._server.open) > self._server.most:
            transport.write(b"421 4.7.0 too many connections\r\n")
            transport.close()
            return
        self._say(self._host.greet())

    def data_received(self, data: bytes) -> None:
        if self._is_stalled:
            return
        before = len(self._host.messages)
        reply = self._host.hear(data)
        self._server.tls += [self._is_encrypted] * (len(self._host.messages) - before)
        self._say(reply)
        if self._host.is_closed and self._transport is not None:
            self._transport.close()
        if self._server.context is not None and self._host.commands[-1:] == ["STARTTLS"] and reply.startswith(b"220"):
            self._task = asyncio.get_running_loop().create_task(self._start_tls())
        self._server.changed.set()

    async def _start_tls(self) -> None:
        loop = asyncio.get_running_loop()
        self._host.commands.append("(TLS)")
        try:
            self._transport = await loop.start_tls(
                self._transport, self, self._server.context, server_side=True)  # type: ignore[arg-type]
            self._is_encrypted = True
        except OSError:
            self._server.open.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        if self._dripping is not None:
            self._dripping.cancel()
        self._server.changed.set()

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _say(self, reply: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        for fault in (RESET, STALL, DRIP, ENDLESS, GARBAGE, DEAF):
            before, found, _ = reply.partition(fault)
            if not found:
                continue
            transport.write(before)
            self._is_stalled = True
            if fault == RESET:
                raw = transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            elif fault == DRIP:
                self._drip(b"250-a reply that comes slowly and has no end")
            elif fault == ENDLESS:
                self._pour()
            elif fault == DEAF:
                transport.pause_reading()
            elif fault == GARBAGE:
                transport.write(bytes(range(256)) + b"\r\n")
            return
        transport.write(reply)

    def _drip(self, rest: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(rest[:1])
            self._dripping = asyncio.get_running_loop().call_later(DRIP_EVERY, self._drip, rest[1:] or b"\r\n250-x")

    def _pour(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.get_write_buffer_size() < len(BURST):
                self._transport.write(BURST)
            self._dripping = asyncio.get_running_loop().call_later(0.001, self._pour)
