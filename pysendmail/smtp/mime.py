"""The MIME structure of a message in one forward pass: which lines are header, which are content of which part.

`Walker` is fed with a message at rest and calls a Reader for each header, each piece of content and each line that is
neither (boundaries, what stands before the first and after the last). It trusts nothing: depth, parts and header sizes
are bounded, a boundary of an outer part ends all inner ones, and a line of any length passes in pieces. RFC 2045, 2046.
"""

import re
from dataclasses import dataclass
from typing import Protocol

MAX_DEPTH = 50  # multiparts and messages within each other; what lies deeper is content of the innermost
MAX_PARTS = 5000
MAX_HEADER = 256 * 1024  # bytes of the header of one part
MAX_PIECE = 16 * 1024  # bytes of a line that pass at once

IDENTITY = frozenset(("", "7bit", "8bit", "binary"))  # encodings that leave the content as it is

_TYPE = re.compile(rb"\s*([!#$%&'*+.0-9A-Z^_`a-z{|}~-]+)\s*/\s*([!#$%&'*+.0-9A-Z^_`a-z{|}~-]+)")
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.){1,200})"|([^\s;"]{1,200}))', re.IGNORECASE | re.DOTALL)
_WORD = re.compile(rb"\s*([A-Za-z0-9-]+)")


class Unreadable(ValueError):
    """The structure is beyond the limits above."""


@dataclass(frozen=True, slots=True)
class Part:
    """One header and what follows it. number: in the order of headers. type: "text/plain", "" = not said.

    encoding: Content-Transfer-Encoding in small letters, "" = not said. is_message: the header of a message, not of a
    part in a multipart. is_container: multipart or message, whose content has headers of its own.
    """

    number: int
    type: str
    encoding: str
    is_message: bool
    is_container: bool


class Reader(Protocol):
    def header(self, part: Part, fields: list[bytes], blank: bytes) -> None:
        """A header: its fields with their folded lines, without the last LF. blank: LF for the empty line, or none."""

    def content(self, part: Part, piece: bytes, is_end: bool) -> None:
        """A piece of a line of a part that is no container; is_end: its LF followed."""

    def part_end(self, part: Part, in_multipart: bool) -> None:
        """in_multipart: a boundary follows, to which the last line end belongs."""

    def other(self, piece: bytes, is_end: bool) -> None:
        """A piece of a line that is in no part."""


class Walker:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pending = b""
        self._starts = True  # the pending bytes begin a line
        self._header: list[bytes] | None = []  # pieces of the header that is being read
        self._header_size = 0
        self._is_message = True
        self._open: list[tuple[bytes, bool]] = []  # multiparts: (boundary, whether it is a digest)
        self._part: Part | None = None
        self._count = 0
        self._nested = 0  # messages within each other since the last boundary

    def feed(self, chunk: bytes) -> None:
        """Raises Unreadable."""
        *lines, rest = (self._pending + chunk).split(b"\n")
        for line in lines:
            self._piece(line, True)
        while len(rest) > MAX_PIECE:
            self._piece(rest[:MAX_PIECE], False)
            rest = rest[MAX_PIECE:]
        self._pending = rest

    def finish(self) -> None:
        """The message is complete."""
        if self._pending:
            self._piece(self._pending, False)
        if self._header is not None:
            self._end_header(b"")
        self._end_part(in_multipart=False)

    def _piece(self, piece: bytes, is_end: bool) -> None:
        starts, self._starts = self._starts, is_end
        if starts and piece.startswith(b"--") and self._open and self._boundary(piece, is_end):
            return
        if self._header is not None:
            self._header_line(self._header, piece, starts, is_end)
        elif self._part is not None:
            self._reader.content(self._part, piece, is_end)
        else:
            self._reader.other(piece, is_end)

    def _boundary(self, line: bytes, is_end: bool) -> bool:
        text = line.rstrip(b" \t\r")
        for depth, (boundary, _) in enumerate(self._open):
            is_last = text == boundary + b"--"
            if text != boundary and not is_last:
                continue
            if self._header is not None:
                self._end_header(b"")
            self._end_part(in_multipart=True)
            del self._open[depth if is_last else depth + 1:]
            self._header = None
            self._nested = 0
            self._reader.other(line, is_end)
            if not is_last:
                self._begin_header(is_message=False)
            return True
        return False

    def _begin_header(self, *, is_message: bool) -> None:
        self._header, self._header_size, self._is_message = [], 0, is_message

    def _header_line(self, header: list[bytes], piece: bytes, starts: bool, is_end: bool) -> None:
        if starts and not piece.rstrip(b"\r"):
            self._end_header(b"\n" if is_end else b"")
            return
        self._header_size += len(piece) + 1
        if self._header_size > MAX_HEADER:
            raise Unreadable("the header of a part is too long")
        header += (piece, b"\n") if is_end else (piece,)

    def _end_header(self, blank: bytes) -> None:
        text, self._header = b"".join(self._header or ()).removesuffix(b"\n"), None
        fields = re.split(rb"\n(?![ \t])", text) if text else []
        kind, encoding, boundary = _describe(fields)
        if not kind and self._open and self._open[-1][1] and not self._is_message:
            kind = "message/rfc822"  # RFC 2046 section 5.1.5
        is_multipart = kind.startswith("multipart/") and bool(boundary)
        is_message = kind in ("message/rfc822", "message/global")
        may_enter = encoding in IDENTITY and len(self._open) + self._nested < MAX_DEPTH
        self._count += 1
        if self._count > MAX_PARTS:
            raise Unreadable("too many parts")
        part = Part(self._count, kind, encoding, self._is_message, may_enter and (is_multipart or is_message))
        self._reader.header(part, fields, blank)
        self._part = None if part.is_container else part
        if part.is_container and is_multipart:
            self._open.append((b"--" + boundary, kind == "multipart/digest"))
        elif part.is_container:
            self._nested += 1
            self._begin_header(is_message=True)

    def _end_part(self, *, in_multipart: bool) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._reader.part_end(part, in_multipart)


def _describe(fields: list[bytes]) -> tuple[str, str, bytes]:
    """(type, encoding, boundary) that a header gives; the first of each field counts."""
    kind, encoding, boundary = "", "", b""
    for field in reversed(fields):
        name, _, value = field.partition(b":")
        name = name.strip(b" \t").lower()
        value = value.replace(b"\n", b"")
        if name == b"content-type":
            found = _TYPE.match(value)
            kind = b"/".join(found.groups()).decode("ascii").lower() if found else ""
            bounds = _BOUNDARY.search(value)
            boundary = re.sub(rb"\\(.)", rb"\1", bounds[1] or bounds[2]) if bounds else b""
        elif name == b"content-transfer-encoding":
            word = _WORD.match(value)
            encoding = word[1].decode("ascii").lower() if word else ""
    return kind, encoding, boundary
