"""One message that comes by SMTP, from its sender to the answer to its final dot.

The start of a message is held until its header is whole. Received goes in front of every message. The header of a
stranger's message stays as it is, but for fields that must not travel (Bcc, Return-Path); that of a client who may
relay is completed as a submission's is: Date, Message-ID, From, domains (RFC 6409 section 8; sendmail and Postfix do
the same for their own networks only). RFC 5321 sections 4.4 and 6.3.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..config import Config
from ..events import ClientEvents
from ..mail import completion, headers, trace
from ..mail.envelope import Envelope, Origin, Recipient
from ..smtp.grammar import MailParameters
from ..smtp.reply import Reply, reply
from .inbox import HOLD, Inbox, Incoming

Answer = Callable[[Reply], None]

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_NO_ROOM = reply(452, "4.3.1", "this host is short of space, try again later")
_NOT_STORED = reply(451, "4.3.0", "the message cannot be stored, try again later")
_HEADER_TOO_LONG = reply(552, "5.6.0", "the header is too large")
_LOOP = reply(554, "5.4.6", "too many hops, this message goes in circles")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a message comes from. is_ours: the client may relay. shown: the client, for the log. daemon: the door."""

    origin: Origin
    is_ours: bool
    shown: str
    daemon: str


class Arrival:
    """size: bytes of content so far. began: when it began to come, seconds since the epoch."""

    def __init__(self, config: Config, inbox: Inbox, events: ClientEvents, sender: str,
                 parameters: MailParameters) -> None:
        self._config = config
        self._inbox = inbox
        self._events = events
        self.id = inbox.new_id()
        self.sender = sender
        self.recipients: list[Recipient] = []
        self._parameters = parameters
        self._source: Source | None = None
        self._envelope: Envelope | None = None
        self._incoming: Incoming | None = None
        self._message_id = ""

    @property
    def size(self) -> int:
        return self._incoming.size if self._incoming is not None else 0

    def open(self, source: Source, now: float) -> Reply | None:
        """The content is about to come: None, or why it cannot."""
        try:
            if not self._inbox.has_room(self._parameters.size):
                return _NO_ROOM
        except OSError as trouble:
            return self._trouble(trouble)
        given = self._parameters
        self._source = source
        self._envelope = Envelope(self.id, self.sender, tuple(self.recipients), now, source.origin, given.body,
                                  given.smtputf8, given.ret, given.envid)
        self._incoming = self._inbox.begin(self.id)
        return None

    def add(self, data: bytes) -> Reply | None:
        """More content: None, or why the message is refused, of which nothing is left then."""
        incoming = self._incoming
        if incoming is None:
            return None
        try:
            incoming.add(data)
            if incoming.is_held and incoming.size > HOLD:
                return self._write(incoming, is_whole=False)
        except OSError as trouble:
            return self._trouble(trouble)
        return None

    def finish(self, size: int, answer: Answer) -> None:
        """The content has ended; `answer` is called once. size: octets, as they came."""
        incoming = self._incoming
        if incoming is None:
            answer(_NOT_STORED)
            return
        try:
            refusal = self._write(incoming, is_whole=True) if incoming.is_held else None
        except OSError as trouble:
            refusal = self._trouble(trouble)
        if refusal is not None:
            answer(refusal)
            return
        self._incoming = None  # whatever becomes of the session: the commit goes on
        self._inbox.commit(incoming, lambda trouble: answer(self._committed(size, trouble)))

    def _write(self, incoming: Incoming, *, is_whole: bool) -> Reply | None:
        """Put what is held into a file, behind what belongs in front of it. Raises OSError."""
        assert self._envelope is not None
        assert self._source is not None
        start = begin(incoming.held(), self._envelope, self._config, is_ours=self._source.is_ours)
        if start.refusal is not None:
            self._refused(start.refusal)
            return start.refusal
        self._message_id = start.message_id
        incoming.open(self._envelope, start.text, is_whole=is_whole)
        return None

    def _committed(self, size: int, trouble: OSError | None) -> Reply:
        envelope, source = self._envelope, self._source
        assert envelope is not None
        assert source is not None
        if trouble is not None:
            return self._trouble(trouble)
        self._events.accepted(self.id, envelope.sender, size, len(envelope.recipients), self._message_id, source.shown,
                              body=envelope.body, protocol=source.origin.protocol, daemon=source.daemon)
        return reply(250, "2.0.0", f"{self.id} Message accepted for delivery")

    def _refused(self, refusal: Reply) -> None:
        self._events.content_refused(self.id, self._source.shown if self._source else "", refusal.words)
        self.give_up()

    def _trouble(self, trouble: OSError) -> Reply:
        self._events.trouble(f"{self.id}: cannot store a message: {trouble.strerror}")
        self.give_up()
        return _NO_ROOM if trouble.errno in _FULL else _NOT_STORED

    def give_up(self) -> None:
        """Nothing comes of it."""
        if self._incoming is not None:
            self._incoming.give_up()
            self._incoming = None


# ---- its start


@dataclass(frozen=True, slots=True)
class Start:
    """trace: our Received field. head: the message's own header. body: what of its text came along.

    refusal: the answer instead. message_id: for the log.
    """

    trace: bytes
    head: bytes
    body: bytes
    message_id: str = ""
    refusal: Reply | None = None

    @property
    def text(self) -> bytes:
        return b"%s%s\n%s" % (self.trace, self.head, self.body)


def begin(start: bytes, envelope: Envelope, config: Config, *, is_ours: bool) -> Start:
    """start: all of the message, or more of it than the longest header."""
    fields, header_end, body_at = headers.scan(start)
    limits = config.limits
    if headers.is_cut(start, fields, body_at) or header_end > limits.header_size or (
            start.count(b"\n", 0, header_end) > limits.header_lines):
        return Start(b"", b"", b"", refusal=_HEADER_TOO_LONG)
    if trace.hops(fields) > limits.hops:
        return Start(b"", b"", b"", refusal=_LOOP)
    now = envelope.received_at
    offset = time.localtime(now).tm_gmtoff
    facts = completion.Facts(envelope.id, envelope.sender, config.domain, config.hostname, now, offset,
                             is_gateway=not is_ours)
    head = completion.complete(start[:header_end], facts)
    return Start(trace.received(envelope, config.hostname, offset), head, start[body_at:],
                 completion.identity(head).message_id)
