"""A message rewritten for a peer that cannot have it as it is: parts in quoted-printable or base64, header in 7 bits.

That is so for bytes above 127 where the peer has no 8BITMIME, and for lines over 998 bytes, NUL and bare CR with every
peer. Each part is judged by itself and only what needs it is changed; whoever reads the message finds the content it
had, since only the transfer encoding is another. Signatures over the encoded form (DKIM, multipart/signed) break; the
other choice would be not to deliver at all.

Two passes over the message, both in memory bounded by a chunk: `plan` reads it and decides, `recoded` writes. Where no
encoding is lawful (preambles, boundaries, the inside of an angle address) bytes above 127 become "?". A message without
MIME gets the fields it needs, with the character set that its bytes are in: UTF-8, or else "unknown-8bit" (RFC 1428).

RFC 2045 section 6.4 (multipart and message have no encoding of their own), RFC 6152 section 3, RFC 5321 4.5.3.1.6.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from . import transfer
from .mime import IDENTITY, Part, Walker
from .survey import MAX_LINE

_HIGH = bytes(range(128, 256))

_Encoder = transfer.QuotedPrintable | transfer.Base64 | transfer.Base64Again | transfer.Stripped


class Form(Enum):
    """What is done to the content of one part."""

    AS_IS = "as it is"
    QP = "quoted-printable"
    BASE64 = "base64"
    BASE64_TEXT = "base64 of text"
    QP_AGAIN = "quoted-printable that was not lawful"
    BASE64_AGAIN = "base64 that was not lawful"
    STRIPPED = "an encoding that we do not know"


_NAMES = {Form.QP: b"quoted-printable", Form.BASE64: b"base64", Form.BASE64_TEXT: b"base64"}
_ENCODERS: dict[Form, Callable[[], _Encoder]] = {
    Form.QP: transfer.QuotedPrintable,
    Form.QP_AGAIN: lambda: transfer.QuotedPrintable(again=True),
    Form.BASE64: transfer.Base64,
    Form.BASE64_TEXT: lambda: transfer.Base64(is_text=True),
    Form.BASE64_AGAIN: transfer.Base64Again,
}


class _Count:
    """What the first pass finds in the content of one part."""

    __slots__ = ("_decoder", "_line", "has_long_line", "has_odd", "high", "is_utf8", "total")

    def __init__(self) -> None:
        self.total = self.high = self._line = 0
        self.has_long_line = self.has_odd = False
        self.is_utf8 = True
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def add(self, piece: bytes, is_end: bool) -> None:
        self.total += len(piece) + 1
        self._line += len(piece)
        self.has_long_line |= self._line > MAX_LINE
        self.has_odd |= b"\0" in piece or b"\r" in piece[:-1]
        if not piece.isascii():
            self.high += len(piece) - len(piece.translate(None, _HIGH))
        if self.high and self.is_utf8:
            try:
                self._decoder.decode(piece, is_end)
            except UnicodeDecodeError:
                self.is_utf8 = False
        if is_end:
            self._line = 0

    @property
    def charset(self) -> bytes:
        if not self.high:
            return b"us-ascii"
        return b"utf-8" if self.is_utf8 else b"unknown-8bit"


class Plan:
    """What is done to each part of one message. Made by plan(), and filled by its walker."""

    def __init__(self, *, to_7bit: bool) -> None:
        self.to_7bit = to_7bit
        self._counts: dict[int, _Count] = {}

    def form(self, part: Part) -> Form:
        count = self._counts.get(part.number)
        if part.is_container or count is None:
            return Form.AS_IS
        if not (count.has_long_line or count.has_odd or (self.to_7bit and count.high)):
            return Form.AS_IS
        if part.encoding == "base64":
            return Form.BASE64_AGAIN
        if part.encoding == "quoted-printable":
            return Form.QP_AGAIN
        if part.encoding not in IDENTITY:
            return Form.STRIPPED
        if part.type and not part.type.startswith(("text/", "message/", "multipart/")):
            return Form.BASE64
        # What is mostly ASCII stays legible, though above one byte in six base64 would be shorter.
        return Form.QP if count.high * 4 <= count.total else Form.BASE64_TEXT

    def charset(self, part: Part) -> bytes:
        return self._counts[part.number].charset

    def header(self, part: Part, fields: list[bytes], blank: bytes) -> None:
        """The content decides."""

    def content(self, part: Part, piece: bytes, is_end: bool) -> None:
        count = self._counts.get(part.number)
        if count is None:
            count = self._counts[part.number] = _Count()
        count.add(piece, is_end)

    def part_end(self, part: Part, in_multipart: bool) -> None:
        """Nothing to add."""

    def other(self, piece: bytes, is_end: bool) -> None:
        """There is no choice about these."""


def plan(chunks: Iterable[bytes], *, to_7bit: bool) -> Plan:
    """The first pass over a message at rest. Raises mime.Unreadable: it cannot be converted (5.6.3)."""
    made = Plan(to_7bit=to_7bit)
    walker = Walker(made)
    for chunk in chunks:
        walker.feed(chunk)
    walker.finish()
    return made


def recoded(chunks: Iterable[bytes], made: Plan) -> Iterator[bytes]:
    """The second pass over the same message: the message rewritten, with LF line ends, in chunks."""
    writer = _Writer(made)
    walker = Walker(writer)
    for chunk in chunks:
        walker.feed(chunk)
        yield writer.take()
    walker.finish()
    yield writer.take()


class _Writer:
    """The second pass, as the walker's reader."""

    def __init__(self, made: Plan) -> None:
        self._plan = made
        self._out: list[bytes] = []
        self._encoder: _Encoder | None = None  # of the present part; None = its content stays as it is
        self._stripper = transfer.Stripped(to_7bit=made.to_7bit)

    def take(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data

    def header(self, part: Part, fields: list[bytes], blank: bytes) -> None:
        form = self._plan.form(part)
        self._encoder = self._stripper if form is Form.STRIPPED else _ENCODERS[form]() if form in _ENCODERS else None
        names = {_name(field) for field in fields}
        for field in fields:
            if _name(field) == b"content-transfer-encoding":
                field = self._encoding_field(part, form, field)
            self._out += (transfer.field(field, to_7bit=self._plan.to_7bit), b"\n")
        if form in _NAMES:
            if part.is_message and b"mime-version" not in names:
                self._out.append(b"MIME-Version: 1.0\n")
            if b"content-type" not in names:
                self._out.append(b"Content-Type: text/plain; charset=%s\n" % self._plan.charset(part))
            if b"content-transfer-encoding" not in names:
                self._out.append(b"Content-Transfer-Encoding: %s\n" % _NAMES[form])
        self._out.append(blank)

    def _encoding_field(self, part: Part, form: Form, field: bytes) -> bytes:
        if form in _NAMES:
            return b"Content-Transfer-Encoding: " + _NAMES[form]
        if self._plan.to_7bit and part.encoding in ("8bit", "binary"):  # of a container, whose parts are 7bit now
            return b"Content-Transfer-Encoding: 7bit"
        return field

    def content(self, _part: Part, piece: bytes, is_end: bool) -> None:
        if self._encoder is not None:
            self._out.append(self._encoder.feed(piece, is_end))
        else:
            self._out += (piece, b"\n") if is_end else (piece,)

    def part_end(self, _part: Part, in_multipart: bool) -> None:
        if self._encoder is not None:
            self._out.append(self._encoder.finish(in_multipart))
            self._encoder = None

    def other(self, piece: bytes, is_end: bool) -> None:
        self._out.append(self._stripper.feed(piece, is_end))


def _name(field: bytes) -> bytes:
    return field.partition(b":")[0].strip(b" \t").lower()
