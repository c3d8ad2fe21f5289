"""The client side of SMTP and LMTP without I/O: bytes in, events out, bytes out. One Client is one connection.

    client = Client(options); client.begin(message, recipients)
    then, whenever there is something:  client.receive(data)            what came from the peer, or client.lost()
                                        client.next_event()             until it is None
                                        client.data_to_send()           to be written
    StartTls -> TLS with the peer, then client.tls_started() or tls_failed()
    SendMessage -> client.send_message(chunk) for each chunk, then client.end_message()
    Finished -> one Result per recipient; then client.begin() again while `is_ready`, or client.quit()
    Closed -> the connection is to be closed

Invariants. Every command that is sent adds to the list of awaited replies, and a reply is the answer to the first of
them; one that nothing awaits ends the session, and so does anything that came before the command it would answer (else
each later reply counts for the wrong recipient). Plaintext that came before TLS is never read after it. After the
final dot, without an answer, nothing is known. Every recipient gets exactly one Result, whatever happens: trouble.judge
alone says which. No exception but LocalError leaves this module.

The driver watches the time: `timeout` seconds for the next step, counted anew when `steps` has grown (not when a byte
arrives, so that a peer who drips gains nothing), then client.timed_out().

RFC 5321, 1870 (SIZE), 2033 (LMTP), 2920 (PIPELINING), 3207 (STARTTLS), 3461 (DSN), 4954 (AUTH), 6152, 6531.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..mail.envelope import Recipient
from . import grammar
from .opening import Move, Opening, Options, Say, Turn
from .reply import Reply, ReplyReader
from .transaction import Message, Offers, Step, Transaction
from .trouble import Kind, Result, Stage, Trouble, judge, refusal
from .wire import DataEncoder, LocalError, RemoteError

# Seconds to wait at each stage (RFC 5321 section 4.5.3.2 or more), as Postfix has them.
TIMEOUTS = {Stage.CONNECT: 30.0, Stage.GREETING: 300.0, Stage.HELLO: 300.0, Stage.STARTTLS: 300.0, Stage.AUTH: 300.0,
            Stage.IDLE: 300.0, Stage.RSET: 20.0, Stage.MAIL: 300.0, Stage.RCPT: 300.0, Stage.DATA: 120.0,
            Stage.CONTENT: 180.0, Stage.END: 600.0, Stage.QUIT: 10.0}


@dataclass(frozen=True, slots=True)
class StartTls:
    """Make TLS of the connection now. Bytes that have been read go nowhere but to TLS from here on."""


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send the message now. must_recode: through recode.Recoder. to_7bit: the peer takes no bytes above 127."""

    must_recode: bool
    to_7bit: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """A transaction is over. results: in the order of its recipients.

    is_stale: a connection kept from an earlier message was gone before this one, or refused RSET; a fresh one may do.
    dsn_is_passed: the peer has been told what reports are wanted, and success reports are its business from here on.
    """

    results: tuple[Result, ...]
    is_stale: bool
    dsn_is_passed: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over. result: what its end means for any message waiting for this host; None after QUIT."""

    result: Result | None


Event = StartTls | SendMessage | Finished | Closed


class _Phase(Enum):
    OPENING = "opening"  # from the greeting to the last EHLO or AUTH
    HANDSHAKE = "TLS handshake"
    READY = "ready"
    ENVELOPE = "envelope"
    CONTENT = "content"
    ENDING = "waiting after the final dot"
    QUITTING = "quitting"
    CLOSED = "closed"


_WANTED = {Stage.AUTH: (2, 3), Stage.DATA: (3,), Stage.QUIT: (1, 2, 3)}  # first digits of good replies; else 2


class Client:
    def __init__(self, options: Options) -> None:
        self._peer = options.peer
        self._is_lmtp = options.lmtp
        self._opening = Opening(options)
        self._replies = ReplyReader()
        self._lost: str | None = None  # why the connection is gone
        self._events: deque[Event] = deque()
        self._outgoing: list[bytes] = []
        self._awaited: deque[Step] = deque((Step(Stage.GREETING),))
        self._unsent: deque[tuple[Step, bytes]] = deque()
        self._phase = _Phase.OPENING
        self._transaction: Transaction | None = None
        self._encoder = DataEncoder()
        self._is_used = False
        self._needs_reset = False
        self.has_broken_tls = False  # the peer fell silent between STARTTLS and its first word in TLS
        self.steps = 0

    # ---- what the driver tells and asks

    @property
    def is_ready(self) -> bool:
        """Whether begin() would start at once."""
        return self._phase is _Phase.READY and self._transaction is None

    @property
    def stage(self) -> Stage:
        if self._phase is _Phase.CONTENT:
            return Stage.CONTENT
        if self._phase is _Phase.HANDSHAKE:
            return Stage.STARTTLS
        return self._awaited[0].stage if self._awaited else Stage.IDLE

    @property
    def is_closed(self) -> bool:
        return self._phase is _Phase.CLOSED

    @property
    def is_encrypted(self) -> bool:
        return self._opening.is_encrypted

    @property
    def offers(self) -> Offers:
        """What the peer's last EHLO listed."""
        return self._opening.offers

    @property
    def timeout(self) -> float:
        """Seconds that the present step may take."""
        return TIMEOUTS[self.stage]

    def begin(self, message: Message, recipients: Sequence[Recipient]) -> None:
        """Send this message, as soon as the session is open. One at a time."""
        if self._phase not in (_Phase.OPENING, _Phase.HANDSHAKE, _Phase.READY) or self._transaction or not recipients:
            raise LocalError(f"no message can begin: {self._phase.value}")
        self._transaction = Transaction(message, recipients, self._peer, is_reuse=self._is_used)
        # Should something nobody asked for have come meanwhile, next_event() finds it and ends the session.
        if self._phase is _Phase.READY and self._replies.is_empty:
            self._start_transaction(self._transaction)

    def receive(self, data: bytes) -> None:
        """Bytes from the peer. Ignored once the session is over."""
        if self._phase is not _Phase.CLOSED:
            self._replies.feed(data)

    def lost(self, words: str = "") -> None:
        """The peer has closed the connection, or it broke; `words` say how. What came before still counts."""
        self._lost = words

    def next_event(self) -> Event | None:
        """What is to be done next; None = wait for the peer."""
        if not self._events:
            self._read_replies()
        if not self._events and self._lost is not None:
            self._fail(Trouble(self.stage, Kind.LOST, self._lost))
        return self._events.popleft() if self._events else None

    def data_to_send(self) -> bytes:
        """What is to be written to the peer now; taken, not copied."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def send_message(self, chunk: bytes) -> None:
        """The next part of the message, with LF line ends. Nothing happens once the session has ended underneath it."""
        if self._phase is not _Phase.CLOSED:
            self._require(_Phase.CONTENT)
            self._outgoing.append(self._encoder.feed(chunk))
            self.steps += 1

    def end_message(self) -> None:
        """The message has been sent whole. From here on it may be delivered, whatever we hear or do not hear."""
        if self._phase is _Phase.CLOSED:
            return
        self._require(_Phase.CONTENT)
        if not self._replies.is_empty:  # it came before the dot, so it can be no answer to it
            self._read_replies()
            self._fail(Trouble(Stage.CONTENT, Kind.PROTOCOL, "an answer before the message was complete"))
            return
        self._outgoing.append(self._encoder.finish())
        self._phase = _Phase.ENDING
        self.steps += 1

    def tls_started(self) -> None:
        """The handshake is done (and, where the driver is to verify the peer, that too)."""
        self._require(_Phase.HANDSHAKE)
        self._phase = _Phase.OPENING
        if not self._replies.is_empty:  # it came in the clear, and somebody wants it read as if it had not
            self._fail(Trouble(Stage.STARTTLS, Kind.PROTOCOL, "plaintext after the go-ahead for TLS"))
            return
        self._move(self._opening.after_handshake())

    def tls_failed(self, words: str) -> None:
        """The handshake failed, or the peer did not prove who it is. The connection is of no more use."""
        self._require(_Phase.HANDSHAKE)
        self._fail(Trouble(Stage.STARTTLS, Kind.TLS, words))

    def timed_out(self) -> None:
        """The time for the present step is up."""
        self._fail(Trouble(self.stage, Kind.TIMEOUT))

    def abort(self, words: str, status: str = "") -> None:
        """Give up for a reason of our own; no final dot is sent. The message is tried again, unless a status says that
        it can never go to this peer ("5.6.3": it cannot be recoded)."""
        self._fail(Trouble(self.stage, Kind.MESSAGE if status else Kind.ABORTED, words, status=status))

    def quit(self) -> None:
        """Take leave. The driver may close without waiting for Closed."""
        self._require(_Phase.READY)
        self._phase = _Phase.QUITTING
        self._awaited.append(Step(Stage.QUIT))
        self._outgoing.append(grammar.command("QUIT"))

    def _require(self, phase: _Phase) -> None:
        if self._phase is not phase:
            raise LocalError(f"this belongs to {phase.value}, but the session is {self._phase.value}")

    # ---- replies

    def _read_replies(self) -> None:
        """Act on the replies that have come, up to the first event."""
        while not self._events and self._phase not in (_Phase.CLOSED, _Phase.HANDSHAKE):
            try:
                reply = self._replies.next_reply()
            except RemoteError as error:
                self._fail(Trouble(self.stage, Kind.PROTOCOL, str(error)))
                return
            if reply is None:
                return
            self._take(reply)

    def _take(self, reply: Reply) -> None:
        """One reply of the peer."""
        self.steps += 1
        stage = self.stage
        if self._transaction and reply.code != 421:
            self._transaction.is_answered = True
        try:
            if stage in (Stage.IDLE, Stage.CONTENT):
                self._take_unawaited(stage, reply)
            else:
                self._take_awaited(self._awaited.popleft(), reply)
        except RemoteError as error:
            self._fail(Trouble(stage, Kind.PROTOCOL, str(error)))

    def _take_awaited(self, step: Step, reply: Reply) -> None:
        if reply.kind not in (4, 5) and reply.kind not in _WANTED.get(step.stage, (2,)):
            raise RemoteError(f"{reply.words} is no answer to this")
        self._ON[step.stage](self, step, reply)
        if reply.code == 421:  # RFC 5321 section 3.8: it closes the connection
            self._fail(refusal(step.stage, reply))
        self._send_next()

    def _take_unawaited(self, stage: Stage, reply: Reply) -> None:
        """A reply between messages, or while one is being sent: whoever sends that has stopped listening."""
        if reply.kind in ((4, 5) if stage is Stage.CONTENT else (4,)):
            self._fail(refusal(stage, reply))
        else:
            raise RemoteError(f"a reply that nothing asked for: {reply.words}")

    def _command(self, step: Step, line: bytes) -> None:
        """Send a command. Raises RemoteError if something is there already that could pass for its reply."""
        if not self._awaited and not self._replies.is_empty:
            raise RemoteError("more replies than commands")
        self._awaited.append(step)
        self._outgoing.append(line)

    def _send_next(self) -> None:
        """Send what may be sent now: everything to a peer with PIPELINING, else one command after the other's reply."""
        while self._unsent and ("PIPELINING" in self.offers or not self._awaited):
            step, line = self._unsent.popleft()
            if step.stage is Stage.DATA and not self._awaited and not self._open().accepted:
                break
            self._command(step, line)
        if self._phase is _Phase.ENVELOPE and not self._awaited:
            self._finish()

    # ---- opening the session

    def _on_opening(self, step: Step, reply: Reply) -> None:
        self._move(self._opening.take(step, reply))

    def _move(self, move: Move) -> None:
        if isinstance(move, Say):
            self._command(move.step, move.line)
        elif isinstance(move, Trouble):
            self._fail(move)
        elif not self._replies.is_empty:  # it would be read as if it had come inside TLS (CVE-2021-38371)
            raise RemoteError("more replies than commands")
        elif move is Turn.HANDSHAKE:
            self._phase = _Phase.HANDSHAKE
            self._events.append(StartTls())
        else:
            self._phase = _Phase.READY
            if self._transaction:
                self._start_transaction(self._transaction)

    # ---- one message

    def _start_transaction(self, transaction: Transaction) -> None:
        self._phase = _Phase.ENVELOPE
        commands = transaction.commands(self.offers)
        if commands and self._needs_reset:
            self._unsent.append((Step(Stage.RSET), grammar.command("RSET")))
        if commands:
            self._is_used = self._needs_reset = True
        self._unsent.extend(commands)
        self._send_next()

    def _on_reset(self, _step: Step, reply: Reply) -> None:
        if reply.kind != 2:
            self._fail(refusal(Stage.RSET, reply))

    def _on_mail(self, _step: Step, reply: Reply) -> None:
        self._open().on_mail(reply)
        if reply.kind != 2:
            self._unsent.clear()  # without PIPELINING the rest has not been said yet

    def _on_rcpt(self, step: Step, reply: Reply) -> None:
        self._open().on_rcpt(step.number, reply)

    def _on_data(self, _step: Step, reply: Reply) -> None:
        transaction = self._open()
        transaction.on_data(reply)
        if reply.kind != 3:
            return
        if not self._replies.is_empty:
            raise RemoteError("more replies than commands")
        if transaction.accepted:
            self._encoder = DataEncoder()
            self._phase = _Phase.CONTENT
            self._awaited.extend(Step(Stage.END, n) for n in (transaction.accepted if self._is_lmtp else (-1,)))
            self._events.append(SendMessage(transaction.must_recode(self.offers), transaction.needs_7bit(self.offers)))
        elif self._is_lmtp:  # there would be no reply to wait for (RFC 2033 section 4.2)
            raise RemoteError("it asks for a message that nobody is to get")
        else:  # RFC 2920 section 3.1: DATA was on its way when the last recipient was refused
            self._command(Step(Stage.END), DataEncoder().finish())

    def _on_end(self, step: Step, reply: Reply) -> None:
        self._open().on_end(step.number, reply)
        self._needs_reset = False
        if not self._awaited and self._phase is _Phase.ENDING:
            self._phase = _Phase.ENVELOPE

    def _on_quit(self, _step: Step, _reply: Reply) -> None:
        self._end(Closed(None))

    def _open(self) -> Transaction:
        assert self._transaction is not None  # its commands are awaited only while there is one
        return self._transaction

    def _finish(self) -> None:
        """All replies of the transaction have come."""
        transaction = self._open()
        self._unsent.clear()
        self._transaction = None
        self._phase = _Phase.READY
        self._events.append(Finished(transaction.results(), False, transaction.dsn_is_passed))

    # ---- the end

    def _fail(self, trouble: Trouble) -> None:
        """The session is over for this reason, which is the result of every recipient that has none yet."""
        if self._phase is _Phase.CLOSED:
            return
        self.has_broken_tls = self._opening.is_tls_unproven and trouble.kind in (Kind.LOST, Kind.TIMEOUT)
        transaction, self._transaction = self._transaction, None
        if transaction:
            is_gone = trouble.kind is Kind.LOST or (trouble.reply is not None and trouble.reply.code == 421)
            is_unheard = is_gone and not transaction.is_answered
            is_stale = transaction.is_reuse and (is_unheard or trouble.stage is Stage.RSET)
            transaction.settle(trouble)
            self._events.append(Finished(transaction.results(), is_stale, transaction.dsn_is_passed))
        self._end(Closed(None if self._phase is _Phase.QUITTING else judge(trouble, self._peer)))

    def _end(self, event: Closed) -> None:
        self._phase = _Phase.CLOSED
        self._awaited.clear()
        self._unsent.clear()
        self._outgoing.clear()
        self._events.append(event)

    _ON: ClassVar[Mapping[Stage, Callable[["Client", Step, Reply], None]]] = {
        Stage.GREETING: _on_opening, Stage.HELLO: _on_opening, Stage.STARTTLS: _on_opening, Stage.AUTH: _on_opening,
        Stage.RSET: _on_reset, Stage.MAIL: _on_mail, Stage.RCPT: _on_rcpt, Stage.DATA: _on_data, Stage.END: _on_end,
        Stage.QUIT: _on_quit}
