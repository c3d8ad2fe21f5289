"""The milter protocol on the side of the MTA, without I/O. One Conversation is one connection to one filter.

    conversation = Conversation(max_body)       it has something to send at once, and then is_ready
    conversation.tell(stage, data, macros)      True: it will answer; False: there is nothing to wait for
    conversation.receive(data)                  what came from the filter
    conversation.next_said()                    what it says of that, until None
    conversation.data_to_send()                 to be written

Told in this order: CONNECT, HELO, then for each message MAIL, RCPT for each recipient, DATA, HEADER for each field,
EOH, BODY in chunks, END. What the filter does not want to hear is not sent; what it has said about a message, or about
the whole session, holds for the rest of it, and nothing more is sent then. Changes come only as part of the answer to
END, each as it was sent: to collect and check them is the caller's business, and so are time limits.

FilterError is the one exception for whatever a filter does wrong; the conversation is of no use after it. The words of
smtp/milter_wire.py, milter_terms.py and milter_replies.py are the protocol's; this module is its order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from . import milter_replies, milter_terms, milter_wire
from .milter_replies import Answer, BodyPiece, Progress, Said, Verdict
from .milter_terms import Terms
from .milter_wire import FilterError, Option, Packets, Stage, packet
from .wire import LocalError

MAX_CHANGES = 4000  # of one message
MAX_CHANGED = 1024 * 1024  # bytes that these take, a new body excepted
MIN_PIECE = 64  # bytes that a piece of a new body counts for at least

_SESSION = frozenset((Stage.CONNECT, Stage.HELO))
_MESSAGE = frozenset((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.HEADER, Stage.EOH, Stage.BODY, Stage.END))
_FINAL = frozenset((Verdict.ACCEPT, Verdict.REJECT, Verdict.TEMPFAIL, Verdict.DISCARD))


@dataclass(frozen=True, slots=True)
class Agreed:
    """The filter has taken our offer; mail can begin."""


class _State(Enum):
    MEETING = "meeting"
    READY = "ready"
    WAITING = "waiting for an answer"
    OVER = "over"


class Conversation:
    """max_body: bytes of a body that the filter may put in the place of the old one."""

    def __init__(self, max_body: int) -> None:
        self._packets = Packets()
        self._outgoing = [milter_terms.offer()]
        self._state = _State.MEETING
        self._terms = Terms(milter_terms.OLDEST, 0, 0)
        self._stage = Stage.CONNECT  # of the answer that is awaited
        self._max_body = max_body
        self._changes = self._changed = self._body = 0  # how many so far; bytes
        self._session_is_decided = self._message_is_decided = self._is_in_message = self._has_enough_body = False

    @property
    def is_ready(self) -> bool:
        """Whether something can be told now."""
        return self._state is _State.READY

    @property
    def terms(self) -> Terms:
        return self._terms

    @property
    def has_changes(self) -> bool:
        """Whether the filter has begun to change the present message."""
        return self._changes > 0

    def hears(self, stage: Stage) -> bool:
        """Whether it wants to be told, after all that it has said so far."""
        if self._session_is_decided or (stage in _MESSAGE and self._message_is_decided):
            return False
        return self._terms.hears(stage) and not (stage is Stage.BODY and self._has_enough_body)

    def tell(self, stage: Stage, data: bytes = b"", macros: Mapping[str, str] | None = None) -> bool:
        """Tell the filter; whether it will answer. macros: all that are known, of which it gets those it wants."""
        if self._state is not _State.READY:
            raise LocalError(f"nothing can be told now: {self._state.value}")
        if stage is Stage.MAIL:
            self._begin_message()
        if self._session_is_decided or (stage in _MESSAGE and self._message_is_decided):
            return False
        if macros:
            # Also in front of what it does not want to hear: it may want the facts later (sendmail has it so).
            values = [(name.encode("ascii"), macros[name].encode("utf-8", "surrogateescape"))
                      for name in self._terms.macros(stage) if macros.get(name)]
            self._outgoing.append(milter_wire.macros(stage, values))
        if not self.hears(stage):
            return False
        self._outgoing.append(packet(stage.value, data))
        if not self._terms.answers(stage):
            return False
        self._state, self._stage = _State.WAITING, stage
        return True

    def _begin_message(self) -> None:
        self._changes = self._changed = self._body = 0
        self._message_is_decided = self._has_enough_body = False
        self._is_in_message = True

    def abort(self) -> None:
        """The message that was told of is over, or void. Harmless when there is none."""
        if self._is_in_message and self._state is _State.READY and not self._session_is_decided:
            self._outgoing.append(packet(milter_wire.ABORT))
        self._is_in_message = self._message_is_decided = False

    def quit(self) -> None:
        """The session is over, and so is the conversation."""
        self._outgoing.append(packet(milter_wire.QUIT))
        self._state = _State.OVER

    def data_to_send(self) -> bytes:
        """What is to be written now; taken, not copied."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Bytes from the filter. Ignored once the conversation is over."""
        if self._state is not _State.OVER:
            self._packets.feed(data)

    def next_said(self) -> "Said | Agreed | None":
        """The next thing that the filter says. Raises FilterError."""
        if self._state is _State.OVER:
            return None
        try:
            found = self._packets.next_packet()
            if found is None:
                return None
            return self._meet(*found) if self._state is _State.MEETING else self._hear(*found)
        except FilterError:
            self._state = _State.OVER
            raise

    def _meet(self, letter: bytes, data: bytes) -> Agreed:
        if letter != milter_wire.NEGOTIATE:
            raise FilterError(f"it answers an offer with {letter!r}")
        self._terms = milter_terms.read(data)
        self._state = _State.READY
        return Agreed()

    def _hear(self, letter: bytes, data: bytes) -> Said:
        if self._state is not _State.WAITING:
            raise FilterError("it answers what it was not asked")
        said = milter_replies.read(letter, data, self._terms.actions)
        if isinstance(said, Answer):
            self._decide(said.verdict)
        elif not isinstance(said, Progress):
            if self._stage is not Stage.END:
                raise FilterError("it changes a message that it does not know yet")
            self._count(said, len(data))
        return said

    def _decide(self, verdict: Verdict) -> None:
        """What an answer means for what is to be told from here on."""
        stage = self._stage
        self._state = _State.READY
        if verdict is Verdict.SKIP:
            if stage is not Stage.BODY or not self._terms.options & Option.SKIP:
                raise FilterError("it skips what cannot be skipped")
            self._has_enough_body = True
        elif verdict is Verdict.SHUT_DOWN:
            self._session_is_decided = True
        elif stage in _SESSION and verdict in _FINAL:
            if verdict is Verdict.DISCARD:
                raise FilterError("it discards a session")
            self._session_is_decided = True
        elif stage is Stage.END:
            self._message_is_decided, self._is_in_message = True, False
        elif verdict in _FINAL and not (stage is Stage.RCPT and verdict in (Verdict.REJECT, Verdict.TEMPFAIL)):
            self._message_is_decided = stage in _MESSAGE

    def _count(self, said: Said, size: int) -> None:
        """A filter without end must not fill our memory."""
        if isinstance(said, BodyPiece):
            self._body += max(size, MIN_PIECE)
        else:
            self._changed += size
        self._changes += 1
        is_too_much = self._changed > MAX_CHANGED or self._body > self._max_body + MIN_PIECE
        if is_too_much or (self._changes > MAX_CHANGES and not isinstance(said, BodyPiece)):
            raise FilterError("it changes more than a message can be")
