"""Packets of the milter protocol: a length of four bytes, one byte that says what it is, then its data.

`Packets` cuts them out of a stream and never holds more than one of them. What a packet's data consists of, text that
ends in NUL and numbers in network order, is written and read here as well. The numbers are libmilter's, which is the
protocol's only definition (mfdef.h and mfapi.h of sendmail 8.14 to 8.18, version 6).
"""

import struct
from collections.abc import Iterable
from enum import Enum, IntFlag

MAX_PACKET = 128 * 1024  # bytes of data that a filter may send at once; libmilter sends 65,535
MAX_CHUNK = 65_535  # bytes of a body that are sent at once: what filters of every version take

_LENGTH = struct.Struct("!I")
_TERMS = struct.Struct("!III")


class FilterError(Exception):
    """The filter broke the protocol, or its own limits. The text says how, in words for the log."""


class Stage(Enum):
    """What can be told to a filter about mail; the value is the packet's letter."""

    CONNECT = b"C"
    HELO = b"H"
    MAIL = b"M"
    RCPT = b"R"
    DATA = b"T"
    HEADER = b"L"
    EOH = b"N"
    BODY = b"B"
    END = b"E"
    UNKNOWN = b"U"


NEGOTIATE, MACROS, ABORT, QUIT = b"O", b"D", b"A", b"Q"


class Action(IntFlag):
    """What a filter may want to change (SMFIF_)."""

    ADD_FIELDS = 0x01
    REPLACE_BODY = 0x02
    ADD_RECIPIENTS = 0x04
    REMOVE_RECIPIENTS = 0x08
    REPLACE_FIELDS = 0x10
    QUARANTINE = 0x20
    REPLACE_SENDER = 0x40
    ADD_RECIPIENTS_WITH_PARAMETERS = 0x80
    NAME_MACROS = 0x100


class Option(IntFlag):
    """What a filter does not want to hear, or does not answer to (SMFIP_)."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADER = 0x20
    NO_EOH = 0x40
    SILENT_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REJECTED_RCPT = 0x800
    SILENT_CONNECT = 0x1000
    SILENT_HELO = 0x2000
    SILENT_MAIL = 0x4000
    SILENT_RCPT = 0x8000
    SILENT_DATA = 0x10000
    SILENT_UNKNOWN = 0x20000
    SILENT_EOH = 0x40000
    SILENT_BODY = 0x80000
    LEADING_BLANK = 0x100000


class Packets:
    """The packets in a stream of bytes from a filter."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_packet(self) -> tuple[bytes, bytes] | None:
        """(letter, data), or None while it is not complete. Raises FilterError for one that cannot be."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < length <= MAX_PACKET + 1:
            raise FilterError(f"a packet of {length} bytes")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        letter, data = bytes(self._buffer[4:5]), bytes(self._buffer[5:end])
        del self._buffer[:end]
        return letter, data


def packet(letter: bytes, data: bytes = b"") -> bytes:
    return _LENGTH.pack(len(data) + 1) + letter + data


def texts(*values: bytes) -> bytes:
    """Each with a NUL behind it; a NUL within would end it, and becomes a blank."""
    return b"".join(value.replace(b"\0", b" ") + b"\0" for value in values)


def read_texts(data: bytes) -> list[bytes]:
    """The reverse. A last one that lacks its NUL counts, as it does for sendmail."""
    found = data.split(b"\0")
    return found[:-1] if not found[-1] else found


def read_number(data: bytes) -> tuple[int, bytes]:
    """(number, what is behind it). Raises FilterError."""
    if len(data) < _LENGTH.size:
        raise FilterError("a packet that is too short")
    return int(_LENGTH.unpack_from(data)[0]), data[_LENGTH.size:]


def terms(version: int, actions: int, options: int) -> bytes:
    """What either side offers, or takes."""
    return _TERMS.pack(version, actions, options)


def read_terms(data: bytes) -> tuple[int, int, int, bytes]:
    """(version, actions, options, what is behind them). Raises FilterError."""
    if len(data) < _TERMS.size:
        raise FilterError("an offer that is too short")
    version, actions, options = _TERMS.unpack_from(data)
    return version, actions, options, data[_TERMS.size:]


def macros(stage: Stage, values: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The packet that goes in front of a command; nothing without values."""
    data = b"".join(texts(name, value) for name, value in values)
    return packet(MACROS, stage.value + data) if data else b""
