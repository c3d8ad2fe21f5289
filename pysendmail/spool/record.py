"""The envelope block that opens every file of the spool: the one codec of drop files and queue files.

A spool file is an RFC 5322 message (LF line ends) whose first header fields are the envelope, so that people and mail
readers can look at it. The first line has a fixed width and says how far the block reaches:

    Pysendmail-Record: 1 00000214 000000001873 5d1c0f2a      version, block length, file length, CRC-32
    Pysendmail-Sender: <alice@example.org>
    Pysendmail-Recipient: - - bob@example.org
    Received: ...                                           the message begins at offset 214

The block length counts the first line; the file length counts the whole file; the CRC-32 covers everything after the
first line. Readers go by these numbers and never by field names, because a message may itself begin with a field of
ours. Torn, rotten and foreign files therefore show: length and checksum both have to match.

Values are single lines. `block` refuses control characters, so nothing that came from outside can add a line (Exim
CVE-2020-28021, OpenSMTPD CVE-2020-8794, Postfix postdrop 2026); `fields` refuses them again when reading.

Loaded by /usr/sbin/sendmail: imports zlib alone.
"""

import zlib

VERSION = 1
PREFIX = b"Pysendmail-"
FIRST_LENGTH = 52  # bytes in the first line, its LF included
MAX_BLOCK = 4 * 1024 * 1024  # bytes: room for the recipients of one message; more is damage or an attack
MAX_NAME = 40

_START = b"Pysendmail-Record: 1 "
_CONTROL = bytes(range(32)) + b"\x7f"
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdef"
_NAME = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"


class Damaged(Exception):
    """The file is not what one of our writers makes: torn, rotten or forged. The text says in what way."""


def crc(data: bytes, start: int = 0) -> int:
    """CRC-32 of data, going on from `start`."""
    return zlib.crc32(data, start)


def field_lines(fields: list[tuple[bytes, bytes]]) -> bytes:
    """The envelope's field lines. Raises ValueError for a name or value that cannot stand on one line."""
    lines = []
    for name, value in fields:
        if not name or name.translate(None, _NAME):
            raise ValueError(f"not a field name: {name!r}")
        if len(value.translate(None, _CONTROL)) != len(value):
            raise ValueError(f"control character in {name.decode('ascii')}")
        lines.append(b"%s%s: %s\n" % (PREFIX, name, value))
    return b"".join(lines)


def first_line(block_length: int, file_length: int, checksum: int) -> bytes:
    """The first line. `block_length` counts this line too."""
    return b"%s%08d %012d %08x\n" % (_START, block_length, file_length, checksum)


def read_first(line: bytes) -> tuple[int, int, int]:
    """(block length, file length, CRC-32) from the first FIRST_LENGTH bytes of a file. Raises Damaged."""
    if len(line) < FIRST_LENGTH or not line.startswith(_START) or line[FIRST_LENGTH - 1] != 10:
        raise Damaged("no envelope of version 1")
    block, length, checksum = line[21:29], line[30:42], line[43:51]
    if block.translate(None, _DIGITS) or length.translate(None, _DIGITS) or checksum.translate(None, _HEX):
        raise Damaged("first line is garbled")
    if line[29] != 32 or line[42] != 32:
        raise Damaged("first line is garbled")
    if not FIRST_LENGTH <= int(block) <= min(int(length), MAX_BLOCK):
        raise Damaged("lengths do not agree")
    return int(block), int(length), int(checksum, 16)


def fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """The (name, value) pairs of a block without its first line. Raises Damaged."""
    if block and not block.endswith(b"\n"):
        raise Damaged("envelope ends in the middle of a line")
    found = []
    for line in block.split(b"\n")[:-1]:
        name, colon, value = line.partition(b": ")
        if not colon or not name.startswith(PREFIX) or len(name) > MAX_NAME:
            raise Damaged("not an envelope field")
        if len(value.translate(None, _CONTROL)) != len(value) or name.translate(None, _NAME):
            raise Damaged("control character in the envelope")
        found.append((name[len(PREFIX):], value))
    return found
