"""The PROXY header of a connection, read from its socket before anything else is made of it.

It is looked at first and taken from the socket only when it is whole, and exactly that: what follows may be a TLS
handshake. A proxy sends it at once; what does not come within LIMIT, or is no such header, is the end of the
connection.
"""

import asyncio
import socket

from ..smtp import proxy

LIMIT = 5.0  # seconds
PAUSE = 0.05  # seconds, while there is a part of it


async def read(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> proxy.Proxied:
    """Raises OSError (TimeoutError, ConnectionError) or ValueError, with words for the log."""
    async with asyncio.timeout(LIMIT):
        while True:
            await _readable(loop, connection)
            data = connection.recv(proxy.MAX_HEADER, socket.MSG_PEEK)
            if not data:
                raise ConnectionResetError("connection lost")
            found = proxy.read(data)
            if found is not None:
                client, length = found
                connection.recv(length)
                return client
            await asyncio.sleep(PAUSE)  # what is there stays there, and would be readable again at once


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())
