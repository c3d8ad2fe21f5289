"""One copy of a message on its last hop: what is written, and in what pieces.

A parcel is a part of a queue file plus the lines that this host puts before it. The file is shared with others who read
it, so it is read with explicit offsets only; it is immutable, so its modification time is when the message was
accepted. Pieces are bounded: a message of any size passes in constant memory.

Nothing here writes anywhere.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..mail.digest import sha256

PIECE = 256 * 1024  # bytes read and written at a time


class Unreadable(Exception):
    """The queue file cannot be read, or is shorter than it should be: a fault of ours, not of the mailbox."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """fd: of the queue file, never moved or closed here. The text is bytes `offset` to `length` of it, LF line ends.

    head: whole lines that go before the text (Return-Path, Delivered-To, X-Original-To); the same for every attempt.
    from_line: b"From SENDER DATE\\n", for an mbox and for commands.
    may_repeat: an earlier attempt may have got through without our having heard of it (a crash, a lost agent). False
    saves a look at what is in the mailbox already; when in doubt it is True.
    """

    queue_id: str
    fd: int
    offset: int
    length: int
    head: bytes
    from_line: bytes
    may_repeat: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.length:
            raise ValueError("offset and length do not agree")
        if not (self.queue_id.isascii() and self.queue_id.isalnum()):
            raise ValueError(f"not a queue id: {self.queue_id!r}")  # it becomes part of a file name
        if self.head and not self.head.endswith(b"\n"):
            raise ValueError("head ends in the middle of a line")
        if not self.from_line.startswith(b"From ") or self.from_line.find(b"\n") != len(self.from_line) - 1:
            raise ValueError("not one From_ line")

    @property
    def size(self) -> int:
        """Bytes of head and text, before any quoting."""
        return len(self.head) + self.length - self.offset

    def accepted_at(self) -> int:
        """When the queue file was written, nanoseconds since the epoch: the same each time. Raises Unreadable."""
        try:
            return os.fstat(self.fd).st_mtime_ns
        except OSError as trouble:
            raise Unreadable(f"cannot look at the queue file: {trouble.strerror}") from trouble

    def mark(self) -> str:
        """Eight characters that tell two deliveries of one message apart: they follow from what we put before it."""
        return sha256(self.head).hexdigest()[:8]

    def pieces(self) -> Iterator[bytes]:
        """Head and text, about PIECE bytes at a time; no piece is empty. Raises Unreadable."""
        before, at = self.head, self.offset
        while at < self.length:
            try:
                data = os.pread(self.fd, min(PIECE, self.length - at), at)
            except OSError as trouble:
                raise Unreadable(f"cannot read the queue file: {trouble.strerror}") from trouble
            if not data:
                raise Unreadable(f"the queue file ends after {at} of {self.length} bytes")
            at += len(data)
            yield before + data if before else data
            before = b""
        if before:
            yield before
