"""Connections to others: how they are made, and made encrypted."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # a listener without TLS has none of it
    import ssl

Protocol = TypeVar("Protocol", bound=asyncio.Protocol)

HIGH_WATER = 64 * 1024  # bytes that wait to be sent before the writer is told to pause


async def connect(factory: Callable[[], Protocol], address: str, port: int, limit: float) -> Protocol:
    """A protocol that is connected to an IP address, or to the socket at a path if port is 0. limit: seconds.

    Raises OSError, TimeoutError among them.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limit):
        if port:
            transport, protocol = await loop.create_connection(factory, address, port)
        else:
            transport, protocol = await loop.create_unix_connection(factory, address)
    transport.set_write_buffer_limits(HIGH_WATER)
    return protocol


async def start_tls(transport: asyncio.Transport, protocol: asyncio.Protocol, context: "ssl.SSLContext", name: str,
                    limit: float) -> asyncio.Transport:
    """Encrypt a connection from here on: the transport to use instead. name: whom the certificate has to be for.

    Raises OSError (ssl.SSLError among them) or TimeoutError; the connection is of no more use then.
    """
    loop = asyncio.get_running_loop()
    made = await loop.start_tls(transport, protocol, context, server_hostname=name, ssl_handshake_timeout=limit)
    if made is None:  # the connection was gone before the handshake began
        raise ConnectionResetError("connection lost")
    made.set_write_buffer_limits(HIGH_WATER)
    return made
