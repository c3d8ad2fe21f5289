"""The text of a message on its way out: a part of a queue file, its header perhaps with other senders.

The queue file is immutable and shared, so it is read with explicit offsets only. A small message is read once and kept;
of a large one there is never more than a piece in memory, and it is read twice: to see what the peer must know of it,
and to be sent. Nothing here writes anywhere.
"""

import os
from collections.abc import Callable, Iterator

from ..mail.headers import MAX_HEADER
from .parcel import Unreadable

PIECE = 64 * 1024  # bytes read and sent at a time; a message that fits in one piece is small

Rewrite = Callable[[bytes], bytes]


class Content:
    """Bytes `offset` to `length` of a file, LF line ends. rewrite: makes another header of the start of a message.

    head: whole lines that go before all that, as they are.
    """

    __slots__ = ("_fd", "_first", "_length", "_rest")

    def __init__(self, fd: int, offset: int, length: int, rewrite: Rewrite | None = None, head: bytes = b"") -> None:
        """Raises Unreadable."""
        self._fd = fd
        self._length = length
        wanted = min(PIECE if rewrite is None else MAX_HEADER, length - offset)
        self._first = b"".join(self._read(offset, offset + wanted))
        self._rest = offset + wanted
        if rewrite is not None:
            self._first = rewrite(self._first)
        self._first = head + self._first

    @property
    def is_small(self) -> bool:
        """Whether all of it is in memory."""
        return self._rest >= self._length

    def pieces(self) -> Iterator[bytes]:
        """The message from its beginning. Raises Unreadable."""
        if self._first:
            yield self._first
        yield from self._read(self._rest, self._length)

    def _read(self, at: int, end: int) -> Iterator[bytes]:
        while at < end:
            try:
                data = os.pread(self._fd, min(PIECE, end - at), at)
            except OSError as trouble:
                raise Unreadable(f"cannot read the queue file: {trouble.strerror}")
            if not data:
                raise Unreadable(f"the queue file ends after {at} of {end} bytes")
            at += len(data)
            yield data
