"""What a peer must know of a message before it comes: its size and whether its bytes can go as they are. One pass.

RFC 5321 section 4.5.3.1.6 and RFC 5322 section 2.1.1 (998 bytes in a line), RFC 1870 (size), RFC 6152 (8-bit content,
in which NUL and bare CR or LF have no place either).
"""

MAX_LINE = 998  # bytes in a line, its end not counted


class Survey:
    """Fed with a message at rest (LF line ends), chunk by chunk.

    size: octets on the wire, without doubled dots. has_8bit: bytes above 127. is_irregular: a line is over MAX_LINE, or
    there is a NUL or a CR in the middle of a line: such a message has to be recoded for every peer.
    """

    __slots__ = ("_after_cr", "_in_header", "_line", "_tail", "has_8bit", "header_has_8bit", "is_irregular", "size")

    def __init__(self) -> None:
        self.size = 0
        self.has_8bit = False
        self.header_has_8bit = False
        self.is_irregular = False
        self._line = 0  # bytes so far in the line that has not ended
        self._after_cr = False
        self._in_header = True
        self._tail = b"\n"  # the last byte seen

    def feed(self, chunk: bytes) -> None:
        if not chunk:
            return
        ends = chunk.count(b"\n")
        self.size += len(chunk) + ends
        if not chunk.isascii():
            self.has_8bit = True
        if self._in_header:
            self._look_at_header(chunk)
        if not self.is_irregular:
            self.is_irregular = self._has_odd_bytes(chunk) or self._has_long_line(chunk, ends)
        self._after_cr = chunk.endswith(b"\r")
        self._tail = chunk[-1:]

    def finish(self) -> None:
        """The message is complete: a last line without an end gets one on the wire."""
        if self._tail != b"\n":
            self.size += 2

    def _look_at_header(self, chunk: bytes) -> None:
        joined = self._tail + chunk
        end = joined.find(b"\n\n")
        if end >= 0:
            self._in_header = False
            joined = joined[:end]
        if not joined.isascii():
            self.header_has_8bit = True

    def _has_odd_bytes(self, chunk: bytes) -> bool:
        if b"\0" in chunk or (self._after_cr and not chunk.startswith(b"\n")):
            return True
        bare = chunk.count(b"\r") - chunk.count(b"\r\n")
        return bare > (1 if chunk.endswith(b"\r") else 0)  # the last one is judged when its neighbour has come

    def _has_long_line(self, chunk: bytes, ends: int) -> bool:
        if not ends:
            self._line += len(chunk)
            return self._line > MAX_LINE
        lines = chunk.split(b"\n")
        longest = max(self._line + len(lines[0]), max(map(len, lines)))
        self._line = len(lines[-1])
        return longest > MAX_LINE
