"""One file of the queue: the envelope block of record.py, then the message, under one length and one checksum.

It is written once and never changed; whoever reads it gets the envelope and where the text begins. The module knows
files and no directories: names and places are queue.py's.
"""

import errno
import os
from collections.abc import Iterable, Iterator

from ..mail.envelope import Envelope, from_fields, to_fields
from . import durable, record
from .record import Damaged

CHUNK = 256 * 1024  # bytes read or written at once
SYNCED_WITH_FILE = frozenset(("ext4", "xfs", "btrfs"))  # fsync of a file makes its newest name durable there


def write_message(fd: int, envelope: Envelope, content: Iterable[bytes]) -> tuple[int, int]:
    """Write envelope block and content to an empty file: (offset of the content, length of the file)."""
    block = record.field_lines(to_fields(envelope))
    offset = record.FIRST_LENGTH + len(block)
    if offset > record.MAX_BLOCK:
        raise OSError(27, "too many recipients for one message")
    chunks = iter(content)
    first = next(chunks, b"")
    second = next(chunks, None)
    if second is None:  # all there: one write
        length, checksum = offset + len(first), record.crc(first, record.crc(block))
        durable.write_all(fd, record.first_line(offset, length, checksum) + block + first)
        return offset, length
    checksum = record.crc(second, record.crc(first, record.crc(block)))
    length = offset + len(first) + len(second)
    durable.write_all(fd, bytes(record.FIRST_LENGTH) + block + first + second)
    for chunk in chunks:
        durable.write_all(fd, chunk)
        checksum = record.crc(chunk, checksum)
        length += len(chunk)
    durable.write_at(fd, record.first_line(offset, length, checksum), 0)
    return offset, length


def read_envelope(fd: int, found: str, *, verify: bool) -> tuple[Envelope, int, int]:
    """(envelope, offset of the text, length of the file) of an open queue file. Raises Damaged or ValueError.

    verify: check length and checksum of the whole file too.
    """
    start = os.pread(fd, 4096, 0)
    offset, length, checksum = record.read_first(start[:record.FIRST_LENGTH])
    block = start[record.FIRST_LENGTH:offset]
    if len(start) < offset:
        block = os.pread(fd, offset - record.FIRST_LENGTH, record.FIRST_LENGTH)
    if verify and (os.fstat(fd).st_size != length or checksum_of(fd, length) != checksum):
        raise Damaged("length or checksum does not match")
    return from_fields(found, record.fields(block)), offset, length


def pieces(fd: int, at: int, end: int) -> Iterator[bytes]:
    """The bytes of an open file between two places. Raises OSError, also where there are fewer."""
    while at < end:
        data = os.pread(fd, min(CHUNK, end - at), at)
        if not data:
            raise OSError(errno.EIO, "a file is shorter than it was said to be")
        at += len(data)
        yield data


def checksum_of(fd: int, length: int) -> int:
    """CRC-32 of a spool file after its first line."""
    at, checksum = record.FIRST_LENGTH, 0
    while at < length:
        chunk = os.pread(fd, min(CHUNK, length - at), at)
        if not chunk:
            raise Damaged("file is shorter than it says")
        checksum = record.crc(chunk, checksum)
        at += len(chunk)
    return checksum


def needs_directory_sync(path: str) -> bool:
    """Whether the file system below path is none where fsync of a file covers its name (mountinfo, proc(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields, _, after = line.partition(" - ")
                if fields.split(" ", 3)[2] == wanted:
                    return after.split(" ", 1)[0] not in SYNCED_WITH_FILE
    except OSError:
        pass
    return True
