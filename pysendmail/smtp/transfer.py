"""Transfer encodings, streaming: quoted-printable, base64 and the encoded words of header fields.

An encoder is fed with pieces of lines, each with the news whether the line ended there, and gives lines with LF. What
has been encoded before by somebody else, but not lawfully, is made lawful without being decoded. RFC 2045 sections 6.7
and 6.8, RFC 2047.
"""

import binascii
import re

from .survey import MAX_LINE

WIDTH = 76  # characters of an encoded line
MAX_WORD = 75  # characters of an encoded word

_NOT_QP = re.compile(rb"[^ -<>-~\t]")  # what quoted-printable has to encode
_NOT_QP_AGAIN = re.compile(rb"[^ -~\t]")  # the same in what is quoted-printable already, whose "=" are meant
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
_BYTES_IN_LINE = WIDTH // 4 * 3
_PLAIN_IN_WORD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_TO_QUESTION_MARK = bytes(byte if byte < 128 else 63 for byte in range(256))
_NEVER = b"\0\r"  # in a header, or where nothing can be encoded
# Bounded where it could run to the end of the field in vain from each of many places.
_TOKEN = re.compile(rb'[ \t\n]+|"(?:[^"\\]|\\.){0,998}"|<[^<>]*>|[()]|[^ \t\n"<()]+|["<]', re.DOTALL)


class QuotedPrintable:
    """For text: its line ends stay what they are. `again`: what comes is quoted-printable already."""

    def __init__(self, *, again: bool = False) -> None:
        self._odd = _NOT_QP_AGAIN if again else _NOT_QP
        self._column = 0
        self._held = b""  # a blank, which must be encoded if the line ends behind it

    def feed(self, piece: bytes, is_end: bool) -> bytes:
        text, self._held = self._held + piece.removesuffix(b"\r") if is_end else self._held + piece, b""
        if not is_end and text.endswith((b" ", b"\t")):
            text, self._held = text[:-1], text[-1:]
        text = self._odd.sub(_escape, text)
        if is_end and text.endswith((b" ", b"\t")):
            text = text[:-1] + b"=%02X" % text[-1]
        out = self._wrap(text)
        if is_end:
            out.append(b"\n")
            self._column = 0
        return b"".join(out)

    def _wrap(self, text: bytes) -> list[bytes]:
        out: list[bytes] = []
        start = 0
        while len(text) - start > WIDTH - 1 - self._column:
            cut = start + WIDTH - 1 - self._column
            escape = text.rfind(b"=", max(start, cut - 2), cut)  # never between "=" and its two digits
            cut = escape if escape >= 0 else cut
            out += (text[start:cut], b"=\n")
            start, self._column = cut, 0
        out.append(text[start:])
        self._column += len(text) - start
        return out

    def finish(self, _in_multipart: bool) -> bytes:
        held, self._held = self._held, b""
        return b"".join(self._wrap(b"=%02X" % held[0])) if held else b""


def _escape(found: re.Match[bytes]) -> bytes:
    return b"=%02X" % found.group()[0]


class Base64:
    """`is_text`: line ends are CRLF before encoding, which is what RFC 2045 section 6.8 asks for; else they are LF."""

    def __init__(self, *, is_text: bool = False) -> None:
        self._end = b"\r\n" if is_text else b"\n"
        self._owed = b""  # the last line end: a boundary behind it would own it
        self._rest = b""

    def feed(self, piece: bytes, is_end: bool) -> bytes:
        if is_end and self._end == b"\r\n":
            piece = piece.removesuffix(b"\r")
        data = self._rest + self._owed + piece
        self._owed = self._end if is_end else b""
        whole = len(data) // _BYTES_IN_LINE * _BYTES_IN_LINE
        self._rest = data[whole:]
        return b"".join(binascii.b2a_base64(data[n:n + _BYTES_IN_LINE]) for n in range(0, whole, _BYTES_IN_LINE))

    def finish(self, in_multipart: bool) -> bytes:
        data = self._rest + (b"" if in_multipart else self._owed)
        self._rest = self._owed = b""
        return b"".join(binascii.b2a_base64(data[n:n + _BYTES_IN_LINE]) for n in range(0, len(data), _BYTES_IN_LINE))


class Base64Again:
    """For base64 in lines that are too long: the same digits in lines of a lawful length."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes, _is_end: bool) -> bytes:
        digits = self._rest + piece.translate(None, _NOT_BASE64)
        whole = len(digits) // WIDTH * WIDTH
        self._rest = digits[whole:]
        return b"".join(digits[n:n + WIDTH] + b"\n" for n in range(0, whole, WIDTH))

    def finish(self, _in_multipart: bool) -> bytes:
        rest, self._rest = self._rest, b""
        return rest + b"\n" if rest else b""


class Stripped:
    """For what has no encoding that we know (preambles, boundaries, uuencode): bytes that may not be are replaced."""

    def __init__(self, *, to_7bit: bool) -> None:
        self._to_7bit = to_7bit
        self._column = 0

    def feed(self, piece: bytes, is_end: bool) -> bytes:
        piece = piece.translate(None, _NEVER)
        if self._to_7bit:
            piece = piece.translate(_TO_QUESTION_MARK)
        out: list[bytes] = []
        while self._column + len(piece) > MAX_LINE:
            cut = MAX_LINE - self._column
            out += (piece[:cut], b"\n")
            piece, self._column = piece[cut:], 0
        self._column = 0 if is_end else self._column + len(piece)
        out += (piece, b"\n") if is_end else (piece,)
        return b"".join(out)

    def finish(self, _in_multipart: bool) -> bytes:
        return b""


def field(text: bytes, *, to_7bit: bool) -> bytes:
    """A header field (its folded lines, without the last LF) in lawful lines, to_7bit: in ASCII.

    Words with bytes above 127 become encoded words; where no encoded word may stand (inside angle brackets, in what
    looks like an address) those bytes become "?".
    """
    text = text.translate(None, _NEVER)
    if to_7bit and not text.isascii():
        name, colon, value = text.partition(b":")
        text = name.translate(_TO_QUESTION_MARK) + colon + _encode_words(value)
    return b"\n".join(_fold(line) for line in text.split(b"\n"))


def _fold(line: bytes) -> bytes:
    """A header line over the limit, folded: at a blank where there is one, else by force."""
    out = []
    while len(line) > MAX_LINE:
        cut = max(line.rfind(b" ", 1, MAX_LINE), line.rfind(b"\t", 1, MAX_LINE))
        if cut <= 0 or not line[:cut].strip(b" \t"):  # a line of blanks alone would end the header for some readers
            out.append(line[:MAX_LINE - 1])
            line = b" " + line[MAX_LINE - 1:]
        else:
            out.append(line[:cut])
            line = line[cut:]
    return b"\n".join([*out, line])


def _encode_words(value: bytes) -> bytes:
    """Each run of words with bytes above 127 as encoded words; blanks between encoded words would be lost, so the
    blanks within a run are part of it."""
    out: list[bytes] = []
    run: list[bytes] = []  # words with high bytes and the blanks between them
    gap = b""  # blanks behind the run, not known yet to be within it
    for token in _TOKEN.findall(value):
        if token.isspace():
            if run:
                gap += token
            else:
                out.append(token)
        elif token.isascii() or token.startswith(b"<") or b"@" in token:
            out += (_encoded_word(run), gap, token.translate(_TO_QUESTION_MARK))
            run, gap = [], b""
        else:
            if token.startswith(b'"') and len(token) > 1:
                token = re.sub(rb"\\(.)", rb"\1", token[1:-1], flags=re.DOTALL)
            run += (gap.replace(b"\n", b""), token) if run else (token,)
            gap = b""
    out += (_encoded_word(run), gap)
    return b"".join(out)


def _encoded_word(run: list[bytes]) -> bytes:
    """A run as encoded words, one below the other."""
    data = b"".join(run)
    try:
        charset, characters = b"utf-8", [c.encode("utf-8") for c in data.decode("utf-8")]
    except UnicodeDecodeError:
        charset, characters = b"unknown-8bit", [bytes((byte,)) for byte in data]
    words: list[bytes] = []
    room = 0
    for character in characters:
        code = b"".join(bytes((b,)) if b in _PLAIN_IN_WORD else b"_" if b == 32 else b"=%02X" % b for b in character)
        if len(code) > room:
            words.append(b"")
            room = MAX_WORD - len(b"=??q??=") - len(charset)
        words[-1] += code
        room -= len(code)
    return b"\n ".join(b"=?%s?q?%s?=" % (charset, word) for word in words)
