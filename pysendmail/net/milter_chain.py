"""All filters of one session, asked one after the other, and what their answers come to.

    chain = Chain(terms, facts, note)
    await chain.connected(...), hello(...), sender(...), recipient(...)     an Answer each, for what has just happened
    await chain.refused(...)                                                a recipient whom others have refused
    await chain.examine(draft)                                              (Answer, the message as it is now)
    chain.drop(), chain.close()                                             the message is void; the session is over

The first filter that does not want something has said the last word about it. In the end each filter in its turn is
shown the message as the ones before it have made it, and its changes are applied when it has said everything; the
caller gets the result of all of them or nothing.

What has happened in a session is kept, so that a filter that is reached only later is told everything in order. A
filter that fails ([milter] on_failure) does so for the present message; at the next one it is tried again. "accept"
then means: as if this filter were not there. But where it has begun to change a message and not ended, the message
waits whatever on_failure says: what it wanted is not known (Postfix 2026-08 queued the half of it).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..mail import headers
from ..mail.changes import MAX_REASON, BadChange, Draft, Quarantine, apply
from ..mail.envelope import raw
from ..mail.outcome import one_line
from ..smtp.milter_replies import Answer, Verdict
from ..smtp.milter_wire import MAX_CHUNK, FilterError, Stage, texts
from ..smtp.reply import Reply, reply
from ..smtp.wire import PipeLines
from .milter import CONTINUE, Filter, FilterGone, Limits, meet

ACCEPT, REJECT, TEMPFAIL = "accept", "reject", "tempfail"  # what on_failure may be

FAILED = {
    TEMPFAIL: Answer(Verdict.TEMPFAIL, reply(451, "4.7.1", "a mail filter is out of order, try again later")),
    REJECT: Answer(Verdict.REJECT, reply(554, "5.7.1", "a mail filter is out of order")),
}

_LAST = frozenset((Verdict.REJECT, Verdict.TEMPFAIL, Verdict.DISCARD, Verdict.SHUT_DOWN))
_SESSION = frozenset((Stage.CONNECT, Stage.HELO))
_ACTIONS = {Stage.END: "eom"}  # as sendmail calls it in its log


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all sessions. sockets: endpoints, in their order. on_failure: as [milter] has it."""

    sockets: tuple[str, ...]
    on_failure: str
    limits: Limits


@dataclass(slots=True)
class _Event:
    """Something that has happened in the session. macros: as they were then."""

    stage: Stage
    data: bytes
    macros: Mapping[str, str]


@dataclass(slots=True)
class _Link:
    """One filter of the chain. told: how many of the session's events it knows. failed: it has, and what that means
    for the present message to its end."""

    endpoint: str
    filter: Filter | None = None
    told: int = 0
    failed: Answer | None = None


@dataclass(slots=True)
class Chain:
    """macros: all facts so far, by name; the caller adds to them before it tells what they belong to. note: writes a
    line into the log."""

    terms: Terms
    macros: dict[str, str]
    note: Callable[[str], None]
    _links: list[_Link] = field(default_factory=list)
    _events: list[_Event] = field(default_factory=list)
    _refused: Answer | None = None  # the whole session, for good
    _decided: Answer | None = None  # the present message

    def __post_init__(self) -> None:
        self._links = [_Link(endpoint) for endpoint in self.terms.sockets]

    # ---- what happens in the session

    async def connected(self, name: str, address: str, port: int) -> Answer:
        """A client. name: of its host, "[address]" where there is none. address "": a socket in the file system."""
        self._events = []
        return await self._happened(Stage.CONNECT, connect_data(name, address, port))

    async def hello(self, name: str) -> Answer:
        self.drop()
        self._forget(Stage.HELO)
        return await self._happened(Stage.HELO, texts(raw(name)))

    async def sender(self, address: str, parameters: Iterable[str] = ()) -> Answer:
        """parameters: of MAIL, as "SIZE=1000"."""
        self.drop()
        for link in self._links:
            link.failed = None
        return await self._happened(Stage.MAIL, path_data(address, parameters))

    async def recipient(self, address: str, parameters: Iterable[str] = ()) -> Answer:
        answer = await self._happened(Stage.RCPT, path_data(address, parameters))
        if answer.verdict in (Verdict.REJECT, Verdict.TEMPFAIL):
            del self._events[-1]  # it is no recipient
            for link in self._links:
                link.told = min(link.told, len(self._events))
        return answer

    async def refused(self, address: str, parameters: Iterable[str], refusal: Reply) -> None:
        """A recipient that others have refused, for filters that want to hear of it: what they say changes nothing for
        him. They know him by his macros (libmilter's SMFIP_RCPT_REJ)."""
        macros = {**self.macros, "{rcpt_mailer}": "error", "{rcpt_host}": refusal.status, "{rcpt_addr}": refusal.words}
        for link in self._links:
            is_there = link.filter is not None and link.failed is None and link.told == len(self._events)
            if link.filter is None or not is_there or not link.filter.terms.hears_refused:
                continue
            try:
                answer = await link.filter.ask(Stage.RCPT, path_data(address, parameters), macros)
            except FilterError as error:
                self._failed(link, error)
                continue
            if answer.verdict in (Verdict.DISCARD, Verdict.SHUT_DOWN):
                self._conclude(link, Stage.RCPT, answer)
                return

    async def _happened(self, stage: Stage, data: bytes) -> Answer:
        self._events.append(_Event(stage, data, dict(self.macros)))
        for answer in (self._refused, self._decided):
            if answer is not None:
                return answer
        for link in self._links:
            answer = await self._tell_all(link)
            if answer.verdict in _LAST:
                self._conclude(link, stage, answer)
                return answer
        return CONTINUE

    def _conclude(self, link: _Link, stage: Stage, answer: Answer) -> None:
        """Note what was decided, and for how long."""
        if link.filter is not None:  # else its failure is in the log already
            words = f"reject={answer.reply.words}" if answer.reply is not None else "discard"
            self.note(f"milter={link.endpoint}, action={_ACTIONS.get(stage, stage.name.lower())}, {words}")
        if stage in _SESSION or answer.verdict is Verdict.SHUT_DOWN:
            self._refused = answer
        elif stage is not Stage.RCPT or answer.verdict is Verdict.DISCARD:
            self._decided = answer

    async def _tell_all(self, link: _Link) -> Answer:
        """Tell one filter what it does not know yet."""
        if link.failed is not None:
            return link.failed
        session = sum(event.stage in _SESSION for event in self._events)
        if link.filter is not None and link.told <= session and link.filter.failure is not None:
            self._lose(link, link.filter.failure)  # between two messages: nothing is lost with it
        is_kept = link.filter is not None and link.told <= session
        try:
            try:
                return await self._tell(link)
            except FilterGone as error:
                if not is_kept or link.told > session + 1:
                    raise
                self._lose(link, error)  # as above, but it was noticed only now
            return await self._tell(link)
        except FilterError as error:
            return self._failed(link, error)

    async def _tell(self, link: _Link) -> Answer:
        """Raises FilterError."""
        if link.filter is None:
            link.filter = await meet(link.endpoint, self.terms.limits)
            link.told = 0
        while link.told < len(self._events):
            event = self._events[link.told]
            link.told += 1
            answer = await link.filter.ask(event.stage, event.data, event.macros)
            if answer.verdict in _LAST:
                if event.stage in _SESSION:  # it heard of it late; it is told nothing of this session any more
                    self._refused = answer
                return answer
        return CONTINUE

    def _lose(self, link: _Link, error: FilterError) -> None:
        self.note(f"Milter ({link.endpoint}): {error}")
        if link.filter is not None:
            link.filter.close()
            link.filter = None

    def _failed(self, link: _Link, error: FilterError, *, is_changing: bool = False) -> Answer:
        """What it means that one filter has failed. In front of a message it means nothing yet."""
        self._lose(link, error)
        if self._events[-1].stage in _SESSION or (self.terms.on_failure == ACCEPT and not is_changing):
            link.failed = CONTINUE
        else:
            link.failed = FAILED[TEMPFAIL if is_changing else self.terms.on_failure]
        return link.failed

    def _forget(self, first: Stage) -> None:
        """Everything from the first event of this stage on is over."""
        for number, event in enumerate(self._events):
            if event.stage is first or event.stage not in _SESSION:
                del self._events[number:]
                break
        for link in self._links:
            link.told = min(link.told, len(self._events))

    def drop(self) -> None:
        """The message is void, or over."""
        self._forget(Stage.MAIL)
        self._decided = None
        for link in self._links:
            if link.filter is not None:
                link.filter.abort()

    def close(self) -> None:
        """The session is over."""
        for link in self._links:
            if link.filter is not None:
                link.filter.leave()
                link.filter = None

    # ---- the message

    async def examine(self, draft: Draft) -> tuple[Answer, Draft]:
        """Show the whole message to all of them. DISCARD, REJECT and TEMPFAIL are about all of it."""
        answer = self._refused or self._decided or CONTINUE
        for link in self._links:
            if answer.verdict in _LAST:
                break
            answer, draft = await self._examine(link, draft)
            if answer.verdict in _LAST:
                self._conclude(link, Stage.END, answer)
        self.drop()
        return answer, draft

    async def _examine(self, link: _Link, draft: Draft) -> tuple[Answer, Draft]:
        """Show it to one of them; the message as that one leaves it."""
        answer = await self._tell_all(link)
        if answer.verdict in _LAST or link.filter is None:
            return answer, draft
        try:
            answer = await self._show(link.filter, draft)
            if answer.verdict in _LAST:
                return answer, draft
            changes = link.filter.changes
            found = next((one for one in changes if isinstance(one, Quarantine)), None)  # the first reason counts
            if found is not None:
                self.note(f"milter={link.endpoint}, quarantine={one_line(found.reason, MAX_REASON)}")
            blank = b"" if link.filter.terms.keeps_blank else b" "
            return answer, apply(draft, changes, blank=blank) if changes else draft
        except (FilterError, BadChange) as error:
            is_changing = link.filter.has_changes
            return self._failed(link, FilterError(str(error)), is_changing=is_changing), draft

    async def _show(self, one: Filter, draft: Draft) -> Answer:
        """Raises FilterError."""
        for stage, data in self._said_of(one, draft):
            if one.hears(stage) or stage in (Stage.DATA, Stage.EOH, Stage.END):  # (for the macros in front of them)
                answer = await one.ask(stage, data, self.macros)
                if answer.verdict in _LAST:
                    return answer
        return answer

    def _said_of(self, one: Filter, draft: Draft) -> Iterator[tuple[Stage, bytes]]:
        text = draft.text
        yield Stage.DATA, b""
        for part in (text.top, text.head):  # both together might be longer than what is taken for a header
            for _, start, end in headers.scan(part)[0]:
                yield Stage.HEADER, field_data(part[start:end], keeps_blank=one.terms.keeps_blank)
        yield Stage.EOH, b""
        if one.hears(Stage.BODY):
            for chunk in body_chunks(text.body()):
                yield Stage.BODY, chunk
                if not one.hears(Stage.BODY):
                    break
        yield Stage.END, b""


def connect_data(name: str, address: str, port: int) -> bytes:
    """Data of CONNECT."""
    if not address:
        return texts(raw(name)) + b"L\0\0" + texts(b"local")
    family = b"6" if ":" in address else b"4"
    return texts(raw(name)) + family + port.to_bytes(2, "big") + texts(raw(address))


def path_data(address: str, parameters: Iterable[str]) -> bytes:
    """Data of MAIL and RCPT."""
    return texts(b"<%s>" % raw(address), *map(raw, parameters))


def field_data(whole: bytes, *, keeps_blank: bool) -> bytes:
    """Data of HEADER: name and value, whose folded lines end in LF."""
    name, _, value = whole.removesuffix(b"\n").partition(b":")
    if not keeps_blank and value[:1] in (b" ", b"\t"):
        value = value[1:]
    return texts(name.rstrip(b" \t"), value)


def body_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The body in chunks as filters take them, with CRLF line ends."""
    lines = PipeLines()
    held = b""
    for piece in pieces:
        held += lines.feed(piece)
        while len(held) >= MAX_CHUNK:
            yield held[:MAX_CHUNK]
            held = held[MAX_CHUNK:]
    if held:
        yield held
