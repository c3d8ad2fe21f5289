"""Line ends, and what ends a message: the only module that knows them.

At rest a message has LF line ends; on the wire it has CRLF, and a line that begins with a dot gets a second one.

- `LineReader` cuts a stream into lines. It remembers how far it has searched, so that a peer who sends one byte at a
  time costs no more than one who sends everything at once, and it never holds more than one line's limit without a line
  end.
- `DataEncoder` turns a message at rest into the content of DATA. Whatever it is given, no bare CR and no bare LF leaves
  it.
- `DataDecoder` is the way back. Only CR LF . CR LF ends a message; LF . LF, CR . CR and every mixture of them is
  content. A second opinion about that is what SMTP smuggling lives on (CVE-2023-51764, -51765, -51766, CVE-2024-27305).
- `PipeLines` makes CRLF of every LF before anything looks at the stream: for a session of `sendmail -bs`, whose peer is
  the caller itself. It works on commands and content alike, so that the two never disagree about where a line ends.

All of them stream: memory is bounded by a chunk and a few bytes. RFC 5321 sections 2.3.8, 4.1.1.4 and 4.5.2.
"""

from enum import Enum

MAX_SKIPPED = 64 * 1024  # bytes of over-long lines that a session may make us read past

_END = b"\r\n.\r\n"


class LocalError(Exception):
    """Our own code used a protocol core in a way it does not allow: a bug, never a mail outcome."""


class RemoteError(Exception):
    """The peer broke the protocol. The text says how, in words for a log line or a report."""


class LineTooLong(RemoteError):
    """The peer sent a line beyond the reader's limit. What is left of that line will be skipped."""


class LineEnds(Enum):
    """What a session takes for a line end.

    STRICT: CRLF; a bare CR or LF is an error (the network). NORMALISE: a bare LF or CR is let through as content and a
    command may end in LF, but only CRLF . CRLF ends a message (programs on this host). PIPE: LF is as good as CRLF
    everywhere (`sendmail -bs`, where both sides of the pipe are the same user).
    """

    STRICT = "strict"
    NORMALISE = "normalise"
    PIPE = "pipe"


class LineReader:
    """Lines of at most `limit` bytes, their line end included, out of a stream of bytes."""

    __slots__ = ("_buffer", "_is_skipping", "_limit", "_searched", "skipped")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._limit = limit
        self._is_skipping = False
        self.skipped = 0  # bytes read past in over-long lines so far

    def __len__(self) -> int:
        """Bytes that wait to be taken."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_line(self) -> bytes | None:
        """The next line without its LF (a CR in front of that is still there), None if it is not complete.

        Raises LineTooLong once for each line beyond the limit, as soon as that is clear.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                self._wait_for_more()
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[:end + 1]
            self._searched = 0
            if self._is_skipping:
                self._is_skipping = False
                self.skipped += end + 1
                continue
            if end >= self._limit:
                self.skipped += end + 1
                raise LineTooLong(f"a line of {end + 1} bytes")
            return line

    def _wait_for_more(self) -> None:
        self._searched = waiting = len(self._buffer)
        if self._is_skipping or waiting >= self._limit:
            self._buffer.clear()
            self._searched = 0
            self.skipped += waiting
            if not self._is_skipping:
                self._is_skipping = True
                raise LineTooLong(f"a line of more than {self._limit} bytes")

    def take_rest(self) -> bytes:
        """Everything that has come and is not part of a line taken so far: the beginning of a message's content."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest


class PipeLines:
    """CRLF for every line end, LF and CRLF alike, in a stream given chunk by chunk."""

    __slots__ = ("_after_cr",)

    def __init__(self) -> None:
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        if not data:
            return data
        first = b""
        if self._after_cr and data.startswith(b"\n"):  # the CR of this LF has gone through already
            first, data = b"\n", data[1:]
        self._after_cr = data.endswith(b"\r")
        return first + data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


class DataEncoder:
    """One message at rest, given in chunks, as the content of DATA: CRLF, dots doubled, a dot alone at the end.

    A CR at the end of a line is part of that line's end. Any other CR becomes a space: a receiver that takes it for a
    line end would otherwise see a line there whose dot nobody has doubled.
    """

    __slots__ = ("_at_line_start", "_holds_cr")

    def __init__(self) -> None:
        self._at_line_start = True
        self._holds_cr = False  # the last chunk ended in CR, and the next byte decides what that is

    def feed(self, chunk: bytes) -> bytes:
        """What goes on the wire for this chunk."""
        if self._holds_cr:
            chunk = b"\r" + chunk
        self._holds_cr = chunk.endswith(b"\r")
        if self._holds_cr:
            chunk = chunk[:-1]
        if not chunk:
            return b""
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        dot = b"." if self._at_line_start and chunk.startswith(b".") else b""
        self._at_line_start = chunk.endswith(b"\n")
        return dot + chunk.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")

    def finish(self) -> bytes:
        """What follows the last chunk: the end of an unfinished line, and the final dot."""
        return b".\r\n" if self._at_line_start and not self._holds_cr else b"\r\n.\r\n"


class DataDecoder:
    """The content of one DATA command, given in chunks, as a message at rest.

    Once `size` passes `limit` nothing more comes out, but the message is read to its end: a client that gets its answer
    in the middle of the content would take the rest of that content's replies for others (0 = no limit).
    """

    __slots__ = ("_held", "_is_first", "_limit", "has_bare", "is_complete", "rest", "size")

    def __init__(self, limit: int = 0) -> None:
        self._held = b"\r\n"  # as if a line had just ended: a dot alone in the first line ends an empty message
        self._is_first = True
        self._limit = limit
        self.size = 0  # octets with CRLF line ends and without the doubled dots, as RFC 1870 counts; refused ones too
        self.has_bare = False  # a CR or an LF was no part of a CRLF
        self.is_complete = False
        self.rest = b""  # what came behind the final dot

    @property
    def is_too_big(self) -> bool:
        return 0 < self._limit < self.size

    def feed(self, data: bytes) -> bytes:
        """The message's next bytes. When `is_complete`, the rest of the data is in `rest`. Raises LocalError after
        that."""
        if self.is_complete:
            raise LocalError("the message is complete")
        data = self._held + data
        end = data.find(_END)
        if end >= 0:
            body, self.rest, self._held = data[:end + 2], data[end + 5:], b""
            self.is_complete = True
        else:
            # Cutting inside CRLF or CRLF-dot would hide it from the two replacements below: hold such an end back.
            held = next((n for n in (4, 3, 2, 1) if data.endswith(_END[:n])), 0)
            cut = len(data) - held
            body, self._held = data[:cut], data[cut:]
        return self._at_rest(body) if body else b""

    def _at_rest(self, body: bytes) -> bytes:
        ends = body.count(b"\r\n")
        if body.count(b"\n") != ends or body.count(b"\r") != ends:
            self.has_bare = True
        body = body.replace(b"\r\n.", b"\r\n")
        if self._is_first:  # the line end that __init__ put in front
            self._is_first = False
            body = body[2:]
        self.size += len(body)
        return b"" if self.is_too_big else body.replace(b"\r\n", b"\n")
