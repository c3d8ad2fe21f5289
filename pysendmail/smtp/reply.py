"""Replies: what an SMTP or LMTP server says, as a value that is rendered and read here alone.

A reply of our own is one Reply, whose enhanced status is written on every line (RFC 2034). A reply of a peer is read
line by line with a bound on everything: length and number of lines and the whole. Its words are untrusted for ever:
`words` makes one printable line of them, for logs, the queue and reports (OpenSMTPD CVE-2020-8794 let a line end in a
reply rewrite an envelope).

RFC 5321 section 4.2, RFC 2034, RFC 3463.
"""

from dataclasses import dataclass

from ..mail.outcome import is_status, one_line
from .wire import LineReader, RemoteError

MAX_LINE = 4096  # bytes of one line of a peer's reply; RFC 5321 wants 512, long explanations exist
MAX_LINES = 200  # of one reply; an EHLO reply has about twenty
MAX_REPLY = 64 * 1024  # bytes of one reply
MAX_TEXT = 450  # characters of one line that we say ourselves: with code and status below RFC 5321's 512

_DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True, slots=True)
class Reply:
    """code 200-559 of ours, 100-999 of a peer. status: RFC 3463, "" = none. lines: texts without code and status."""

    code: int
    status: str = ""
    lines: tuple[str, ...] = ("",)

    @property
    def kind(self) -> int:
        """The first digit, which is all that a client acts on (RFC 5321 section 4.2.1)."""
        return self.code // 100

    @property
    def words(self) -> str:
        """Code, status and texts as one printable line, such as "550 5.1.1 no such user"."""
        return one_line(" ".join((str(self.code), self.status, *self.lines)))

    def render(self) -> bytes:
        """The bytes on the wire. Anything but ASCII becomes "?" (RFC 5321 section 4.2)."""
        status = f"{self.status} " if self.status else ""
        last = len(self.lines) - 1
        return "".join(f"{self.code}{'-' if n < last else ' '}{status}{text}\r\n"
                       for n, text in enumerate(self.lines)).encode("ascii", "replace")


def reply(code: int, status: str, *lines: str) -> Reply:
    """A reply of ours. Control characters in the lines become blanks, since words of policy servers and milters end up
    here; status "" where the protocol has none (greeting, EHLO, 3xx). Raises ValueError if code and status disagree."""
    if not 200 <= code <= 559 or (status and (not is_status(status) or status[0] != str(code)[0])):
        raise ValueError(f"not a reply: {code} {status}")
    return Reply(code, status, tuple(one_line(line, MAX_TEXT) for line in lines or ("",)))


class ReplyReader:
    """The replies in a stream of bytes from a server."""

    __slots__ = ("_bytes", "_lines", "_reader")

    def __init__(self) -> None:
        self._reader = LineReader(MAX_LINE)
        self._lines: list[tuple[int, str]] = []  # of a reply that is not complete: (code, text)
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come beyond the replies taken so far, not even a part of one."""
        return not self._lines and not len(self._reader)

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)

    def next_reply(self) -> Reply | None:
        """The next reply, or None while it is not complete. Raises RemoteError for what is none."""
        while (line := self._reader.next_line()) is not None:
            self._bytes += len(line)
            if len(self._lines) >= MAX_LINES or self._bytes > MAX_REPLY:
                raise RemoteError(f"a reply that does not end after {len(self._lines)} lines")
            code, text, goes_on = _parse_line(line)
            if self._lines and self._lines[0][0] // 100 != code // 100:
                raise RemoteError(f"a reply with two codes, {self._lines[0][0]} and {code}")
            self._lines.append((code, text))
            if not goes_on:
                return self._complete()
        return None

    def _complete(self) -> Reply:
        code = self._lines[-1][0]  # servers exist whose lines differ; the line that ends the reply counts
        texts = [text for _, text in self._lines]
        self._lines, self._bytes = [], 0
        status = _status_of(texts[0], code) or _status_of(texts[-1], code)
        if status:
            texts = [_without(status, text) for text in texts]
        return Reply(code, status, tuple(texts))


def _parse_line(line: bytes) -> tuple[int, str, bool]:
    """(code, text, whether another line follows). A line may end in LF alone here: nothing hangs on it in a reply."""
    if line.endswith(b"\r"):
        line = line[:-1]
    if len(line) < 3 or not _DIGITS.issuperset(line[:3]) or line[:1] == b"0" or line[3:4] not in (b"", b" ", b"-"):
        raise RemoteError(f"no SMTP reply: {one_line(line[:80].decode('utf-8', 'replace'))!r}")
    return int(line[:3]), line[4:].decode("utf-8", "surrogateescape"), line[3:4] == b"-"


def _status_of(text: str, code: int) -> str:
    """The enhanced status at the start of a text, "" if it is none or of another class than the code (RFC 2034 4)."""
    word = text.lstrip(" ").split(" ", 1)[0]
    return word if is_status(word) and word[0] == str(code)[0] else ""


def _without(status: str, text: str) -> str:
    first, _, rest = text.lstrip(" ").partition(" ")
    return rest.lstrip(" ") if first == status else text
