"""One session of a server, whatever its commands mean: what is read, decided and said, and how it ends.

`Server` (server.py) adds the commands. What holds for every session stands here, in one place each: the only receive
buffer, the only way to say something, to refuse, to drop a transaction, to end.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from . import grammar, requests
from .grammar import BadSyntax
from .order import TABLE, State
from .patience import Patience
from .profile import Settings
from .receiving import TOO_BIG, Receiving, Transaction
from .reply import Reply, reply
from .wire import MAX_SKIPPED, LineEnds, LineReader, LineTooLong, PipeLines

FULL = 256 * 1024  # bytes waiting here at which the driver should stop reading from the client

TOO_LONG = reply(500, "5.5.2", "line too long")


class Session(ABC):
    def __init__(self, settings: Settings, *, is_encrypted: bool = False) -> None:
        self.settings = settings
        self._patience = Patience(settings.limits)
        self._reader = LineReader(grammar.MAX_AUTH)  # the longest line; commands are measured when whole
        self._pipe = PipeLines() if settings.line_ends is LineEnds.PIPE else None
        self._state = State.CONNECTED
        self._events: deque[requests.Event] = deque()
        self._outgoing: list[bytes] = []
        self._open: requests.Asking | None = None  # the decision that is awaited
        self._command = ""  # the command that it is about, as in TABLE
        self._content = Receiving(settings)
        self._replies_due = 1  # to the content
        self._is_leaving = False
        self.transaction = Transaction()
        self.hello = ""  # the name that the client gave itself
        self.is_extended = False  # it said EHLO or LHLO
        self.is_encrypted = is_encrypted
        self.user = self.mechanism = ""  # who is logged in, and how

    @property
    def is_closed(self) -> bool:
        return self._state is State.CLOSED

    @property
    def is_receiving(self) -> bool:
        """Whether the client is sending a message, for which other times hold."""
        return self._state is State.CONTENT and self._open is None

    @property
    def received(self) -> int:
        """Bytes of the message that is coming, so far, whether or not it is going to be refused."""
        return self._content.size

    @property
    def is_full(self) -> bool:
        """Whether the driver should stop reading for a while: no client fills our memory while a decision is open."""
        return len(self._reader) >= FULL

    @property
    def delay(self) -> float:
        """Seconds to hold replies back; not zero for a client that keeps making errors."""
        return self._patience.delay

    def serve(self, settings: Settings) -> None:
        """The client is another than we thought (XCLIENT), and so are its terms."""
        self.settings = settings
        self._patience = Patience(settings.limits)

    def receive(self, data: bytes) -> None:
        """Bytes from the client. Ignored once the session is over."""
        if self._state is not State.CLOSED:
            self._reader.feed(self._pipe.feed(data) if self._pipe else data)

    def next_event(self) -> requests.Event | None:
        """What the driver has to do next; None = wait for the client, or answer first."""
        waits = (State.CONNECTED, State.HANDSHAKE, State.CLOSED)
        while not self._events and self._open is None and self._state not in waits:
            if not (self._read_content() if self._state is State.CONTENT else self._read_line()):
                break
        return self._events.popleft() if self._events else None

    def data_to_send(self) -> bytes:
        """What is to be written to the client now; taken, not copied."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def refuse_content(self, refusal: Reply) -> None:
        """The message cannot be taken, which the client will hear at its end. No more of it comes out."""
        if self.is_receiving and self._content.refusal is None:
            self._content.refusal = refusal
            self._drop(f"refused: {refusal.words}")

    def lost(self, words: str = "") -> None:
        """The client has closed the connection, or it broke. A message that is being decided on is not void by that."""
        self._close(words or "lost connection")

    def timed_out(self) -> None:
        """The client has been silent, or slow, for too long."""
        self._end(reply(421, "4.4.2", f"{self.settings.hostname} closing: timed out"), "timed out")

    def shut_down(self) -> None:
        """End the session as soon as no message is under way."""
        self._is_leaving = True
        if self._state in (State.GREETED, State.READY) and self._open is None:
            self._leave()

    # ---- lines

    def _read_line(self) -> bool:
        """Act on the next line; False if there is none yet."""
        try:
            line = self._reader.next_line()
        except LineTooLong:
            self._lose_line()
            self._refuse(TOO_LONG)
            return True
        if line is None:
            if self._reader.skipped > MAX_SKIPPED:
                self._end(reply(421, "4.5.2", "line without end"), "line without end")
            return False
        has_cr = line.endswith(b"\r")
        if not has_cr and self.settings.line_ends is LineEnds.STRICT:
            self._end(reply(500, "5.5.2", "lines end in CR LF here"), "bare LF in a command")
            return True
        line = line[:-1] if has_cr else line
        try:
            self._take_line(line)
        except BadSyntax as error:
            self._refuse(error.reply)
        return True

    @abstractmethod
    def _take_line(self, line: bytes) -> None:
        """Act on a line, given without its end. Raises BadSyntax."""

    @abstractmethod
    def _lose_line(self) -> None:
        """A line was too long: what it would have gone on with is over."""

    # ---- content

    def _read_content(self) -> bool:
        """Take what has come of the content; False if nothing has."""
        data = self._reader.take_rest()
        content = self._content
        if not data:
            return False
        if found := content.feed(data):
            self._events.append(requests.Content(found))
        if content.refusal is not None:
            self._drop(f"refused: {content.refusal.words}")
        if content.is_complete:
            self._reader.feed(content.rest)
            if content.refusal is not None:
                self._content_is_over((content.refusal,) * self._replies_due)
            else:
                self._ask(requests.ContentEnded(content.size), "END")
        elif content.is_endless:
            self._end(TOO_BIG, "content without end")
        return True

    def _content_is_over(self, answers: Sequence[Reply]) -> None:
        self._patience.message(is_taken=any(answer.kind == 2 for answer in answers))
        for answer in answers:
            if answer.kind == 2:
                self._say(answer)
            else:
                self._refuse(answer)
        if self._state is not State.CLOSED:
            self._moved("END")

    # ---- decisions, replies, the end

    def _ask(self, question: requests.Asking, command: str) -> None:
        self._open, self._command = question, command
        self._events.append(question)

    def _moved(self, command: str) -> None:
        self._state = TABLE[self._state, command]
        if self._is_leaving and self._state is State.READY:
            self._leave()

    def _say(self, answer: Reply) -> None:
        if self._state is not State.CLOSED:
            self._outgoing.append(answer.render())

    def _refuse(self, answer: Reply) -> None:
        """A negative reply, which counts as an error of the client."""
        self._say(answer)
        if answer.code == 421:
            self._close(answer.words)
        elif self._patience.error():
            self._end(reply(421, "4.7.0", "too many errors"), "too many errors")

    def _drop(self, why: str) -> None:
        """The transaction is void, if there is one."""
        if self.transaction.sender is not None:
            self._events.append(requests.TransactionDropped(why))
        self.transaction = Transaction()

    def _leave(self) -> None:
        self._end(reply(421, "4.3.2", f"{self.settings.hostname} is shutting down"), "shut down")

    def _end(self, last: Reply, why: str) -> None:
        self._say(last)
        self._close(why)

    def _close(self, why: str) -> None:
        if self._state is State.CLOSED:
            return
        if not isinstance(self._open, requests.ContentEnded):
            self._drop(why)
        self._state, self._open = State.CLOSED, None
        self.transaction = Transaction()
        self._events.append(requests.SessionEnded(why))
