"""One message that comes by SMTP, from its sender to the answer to its final dot.

    arrival = Arrival(...)               at MAIL; recipients are added
    arrival.open(source, now)            at DATA
    arrival.add(data)                    as it comes: held until its header is whole, then, if it is long, in a file
    arrival.complete()                   at the final dot: the header is what it will be
    arrival.draft()                      for those who judge it
    arrival.commit(size, answer)         onto the disk

Received goes in front of every message. The header of a stranger's message stays as it is, but for fields that must not
travel (Bcc, Return-Path); that of a client who may relay is completed as a submission's is: Date, Message-ID, From,
domains (RFC 6409 section 8; sendmail and Postfix do the same for their own networks only). RFC 5321 sections 4.4 and
6.3.
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config import Config, LimitSettings
from ..events import ClientEvents
from ..mail import completion, headers, trace
from ..mail.changes import Draft, Text
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
    """Where a message comes from. is_ours: the client may relay. shown: the client, for the log. daemon: the door.

    is_filtered: mail filters are going to see it.
    """

    origin: Origin
    is_ours: bool
    shown: str
    daemon: str
    is_filtered: bool = False


class Arrival:
    """id: its queue id. size: bytes of content so far."""

    def __init__(self, config: Config, inbox: Inbox, events: ClientEvents, sender: str,
                 parameters: MailParameters) -> None:
        self._config = config
        self._inbox = inbox
        self._events = events
        self.id = inbox.new_id()
        self.sender = sender
        self.recipients: list[Recipient] = []
        self.parameters = parameters
        self._source: Source | None = None
        self._draft: Draft | None = None  # once its header is known
        self._envelope: Envelope | None = None
        self._incoming: Incoming | None = None
        self._refusal: Reply | None = None  # it is refused already
        self._fields = b""
        self._hold = ""

    @property
    def size(self) -> int:
        return self._incoming.size if self._incoming is not None else 0

    # ---- as it comes

    def note(self, fields: bytes, hold: str) -> None:
        """Header fields of ours besides Received, with their LF; why it is to wait for a person, "" = it is not."""
        self._fields += fields
        self._hold = self._hold or hold

    def open(self, source: Source, now: float) -> Reply | None:
        """The content is about to come: None, or why it cannot. now: seconds since the epoch."""
        given = self.parameters
        try:
            if not self._inbox.has_room(given.size):
                return _NO_ROOM
        except OSError as trouble:
            return self._trouble(trouble)
        self._source = source
        self._envelope = Envelope(
            self.id, self.sender, tuple(self.recipients), now, source.origin, given.body, given.smtputf8, given.ret,
            given.envid, scanned=source.is_filtered, hold=self._hold)
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
                return self._begin_file(incoming)
            if not incoming.is_held and not self._inbox.has_room(0):  # many of them at once leave others no room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as trouble:
            return self._trouble(trouble)
        return None

    def _begin_file(self, incoming: Incoming) -> Reply | None:
        """It is too long to be held. Raises OSError."""
        refusal = self.complete()
        if refusal is None:
            assert self._draft is not None
            text = self._draft.text
            incoming.open(self._draft.envelope, text.chunks())
            at = len(text.trace) + len(text.head) + 1
            self._draft = replace(self._draft, text=replace(text, body=lambda: incoming.read(at)))
        return refusal

    def complete(self) -> Reply | None:
        """All of its header is there: put in front of it what belongs there. None, or why it is refused."""
        incoming, envelope, source = self._incoming, self._envelope, self._source
        if self._refusal is not None or self._draft is not None:
            return self._refusal
        if incoming is None or envelope is None or source is None:
            return _NOT_STORED
        text, refusal = begin(incoming.held(), envelope, self._config, is_ours=source.is_ours)
        if refusal is not None:
            self.refuse(refusal)
        else:
            self._draft = Draft(envelope, replace(text, trace=text.trace + self._fields))
        return refusal

    # ---- its end

    def draft(self) -> Draft:
        """What will be queued."""
        assert self._draft is not None
        return self._draft

    def commit(self, size: int, answer: Answer, judged: Draft | None = None) -> None:
        """Make it safe; `answer` is called once, later. size: octets, as they came. judged: queue this instead."""
        incoming, draft = self._incoming, self.draft()
        assert incoming is not None
        result = judged or draft
        try:
            if incoming.is_held:
                incoming.open(result.envelope, result.text.chunks())
            elif result.envelope != draft.envelope or result.text is not draft.text:
                incoming.replace(result.envelope, result.text.chunks())
        except OSError as trouble:
            answer(self._trouble(trouble))
            return
        self._incoming = None  # whatever becomes of the session: the commit goes on
        self._inbox.commit(incoming, lambda trouble: answer(self._committed(size, result, trouble)))

    def _committed(self, size: int, result: Draft, trouble: OSError | None) -> Reply:
        if trouble is not None:
            return self._trouble(trouble)
        envelope, source = result.envelope, self._source
        assert source is not None
        self._events.accepted(
            self.id, envelope.sender, size, len(envelope.recipients), completion.message_id_in(result.text.head),
            source.shown, body=envelope.body, protocol=source.origin.protocol, daemon=source.daemon)
        return taken(self.id)

    def refuse(self, refusal: Reply) -> None:
        """Say in the log that the message is not taken, and forget it."""
        self._events.content_refused(self.id, self._source.shown if self._source else "", refusal.words)
        self._refusal = refusal
        self.give_up()

    def _trouble(self, trouble: OSError) -> Reply:
        self._events.trouble(f"{self.id}: cannot store a message: {trouble.strerror}")
        self.give_up()
        self._refusal = _NO_ROOM if trouble.errno in _FULL else _NOT_STORED
        return self._refusal

    def give_up(self) -> None:
        """Nothing comes of it."""
        if self._incoming is not None:
            self._incoming.give_up()
            self._incoming = None


def taken(queue_id: str) -> Reply:
    """The answer to the final dot of a message that is ours now."""
    return reply(250, "2.0.0", f"{queue_id} Message accepted for delivery")


def begin(start: bytes, envelope: Envelope, config: Config, *, is_ours: bool) -> tuple[Text, Reply | None]:
    """(the message as it will be, why it is refused). start: all of it, or more of it than the longest header."""
    fields, header_end, body_at = headers.scan(start)
    if _is_too_long(start, fields, header_end, body_at, config.limits):
        return _NOTHING, _HEADER_TOO_LONG
    if trace.hops(fields) > config.limits.hops:
        return _NOTHING, _LOOP
    now = envelope.received_at
    offset = time.localtime(now).tm_gmtoff
    facts = completion.Facts(envelope.id, envelope.sender, config.domain, config.hostname, now, offset,
                             is_gateway=not is_ours)
    head = completion.complete(start[:header_end], facts)
    body = start[body_at:]
    return Text(trace.received(envelope, config.hostname, offset), head, lambda: (body,)), None


def _is_too_long(start: bytes, fields: list[headers.Field], header_end: int, body_at: int,
                 limits: LimitSettings) -> bool:
    """Whether there is more of a header than is taken. What stands beyond the limit is not to become text."""
    if header_end > limits.header_size or start.count(b"\n", 0, header_end) > limits.header_lines:
        return True
    first_line = start[body_at:headers.MAX_HEADER]
    is_one_line = not fields and len(start) > headers.MAX_HEADER and b"\n" not in first_line
    return headers.is_cut(start, fields, body_at) or (is_one_line and bool(headers.field_name(first_line)))


_NOTHING = Text(b"", b"", lambda: ())
