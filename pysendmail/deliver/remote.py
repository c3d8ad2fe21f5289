"""A connection to another host, from connecting to the last of many messages: what moves the client core.

A Session is an asyncio.Protocol. It gives the core (smtp/client.py) what comes from the peer, writes what the core has
to say, makes TLS when told to, reads the message when the peer wants it, and watches the time. It decides nothing about
mail: what an answer or a silence means is the core's business (smtp/trouble.py), which host is tried next is that of
daemon/destination.py.

    opened = await open_session(place, terms)      a Session, or what it means that there is none
    finished = await session.carry(letter)         one message; again while session.is_ready
    session.leave()

Times: each step has its own limit (RFC 5321 section 4.5.3.2), counted anew only when the conversation goes on, so that
dripping bytes gains nothing; a whole message has one too. Writing stops while the peer does not read. A large message
never keeps the loop from other connections for more than a few pieces.
"""

import asyncio
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from ..auth.signing import BadKey, Sign
from ..mail.envelope import Recipient
from ..net import stream, tls
from ..net.hosts import Place
from ..smtp import recode
from ..smtp.client import TIMEOUTS, Client, Closed, Finished, SendMessage, StartTls
from ..smtp.mime import Unreadable as NotMime
from ..smtp.opening import Options
from ..smtp.survey import Survey
from ..smtp.transaction import Message
from ..smtp.trouble import Kind, Result, Stage, Trouble, judge
from .content import Content
from .parcel import Unreadable
from .shipment import LIMIT, SLOWEST

BURST = 8  # pieces of a message that are written before other connections have their turn


@dataclass(frozen=True, slots=True)
class Terms:
    """How to talk at one place. context: for TLS, also if it begins with the connection; None = there will be none.

    server_name: whom a certificate has to be for.
    """

    options: Options
    context: ssl.SSLContext | None
    server_name: str
    timeouts: Mapping[Stage, float] = field(default_factory=lambda: TIMEOUTS)
    limit: float = LIMIT


@dataclass(slots=True)
class Letter:
    """One message and those of its recipients who are still to be served. sender "" = null.

    sign: makes a field to be put on top (auth/signing.py) of the message as it will be sent; None = nothing does.
    """

    content: Content
    survey: Survey
    sender: str
    recipients: Sequence[Recipient]
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    sign: Sign | None = None


async def survey_of(content: Content) -> Survey:
    """What a peer must know of a message. Raises Unreadable."""
    survey = Survey()
    for piece in content.pieces():
        survey.feed(piece)
        if not content.is_small:
            await asyncio.sleep(0)
    survey.finish()
    return survey


class NotOpened(NamedTuple):
    """What it means for those who wanted to send a message. has_broken_tls: the peer offered TLS that does not work."""

    result: Result
    has_broken_tls: bool = False


async def open_session(place: Place, terms: Terms) -> "Session | NotOpened":
    """A session in which a message can be sent, or why there is none."""
    session = Session(place, terms)
    try:
        await stream.connect(lambda: session, place.address, place.port, terms.timeouts[Stage.CONNECT])
    except TimeoutError:
        return NotOpened(judge(Trouble(Stage.CONNECT, Kind.TIMEOUT), terms.options.peer))
    except OSError as trouble:
        words = os.strerror(trouble.errno) if trouble.errno else str(trouble)
        return NotOpened(judge(Trouble(Stage.CONNECT, Kind.LOST, words), terms.options.peer))
    try:
        result = await session.open()
    except BaseException:
        session.abort()
        raise
    return session if result is None else NotOpened(result, session.has_broken_tls)


class Session(asyncio.Protocol):
    """One connection. place: where it leads. messages: how many it has been given. tls: as the log has it, or ""."""

    def __init__(self, place: Place, terms: Terms) -> None:
        self.place = place
        self.messages = 0
        self.tls = ""
        self.has_broken_tls = False  # the peer had offered TLS, and it did not come to a word in it
        self._terms = terms
        self._client = Client(terms.options)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[Result | None] | None = None
        self._finished: asyncio.Future[Finished] | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._content: Content | None = None
        self._plan: recode.Plan | None = None
        self._signature = b""  # of the message that is being sent
        self._pieces: Iterator[bytes] | None = None  # of the message that is being sent
        self._may_write = True
        self._steps = -1  # of the core, when the time was last set; -1 = set it anew
        self._ends = self._message_ends = 0.0  # loop time: of the present step, of the whole message
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a message can be sent."""
        return self._client.is_ready

    @property
    def is_over(self) -> bool:
        return self._client.is_closed

    # ---- opening

    async def open(self) -> Result | None:
        """Wait until a message can be sent (None), or for the reason why none can. Call it once, when connected."""
        self._opened = self._loop.create_future()
        if self._terms.options.is_encrypted:
            trouble = await self._start_tls()
            if trouble:
                self.abort()
                return judge(Trouble(Stage.STARTTLS, Kind.TLS, trouble), self._terms.options.peer)
        self._message_ends = self._loop.time() + self._terms.limit
        self._advance()
        return await self._opened

    async def _start_tls(self) -> str:
        """Make TLS of the connection; what went wrong, "" = nothing."""
        terms, transport = self._terms, self._transport
        if transport is None or terms.context is None:
            return "the connection is gone" if transport is None else "there is no TLS here"
        try:
            self._transport = await stream.start_tls(transport, self, terms.context, terms.server_name,
                                                     terms.timeouts[Stage.STARTTLS])
        except (OSError, ValueError) as trouble:  # ValueError: a name that no certificate can have
            self.has_broken_tls = not isinstance(trouble, ssl.SSLCertVerificationError)
            return tls.words_of(trouble)
        self.tls = tls.described(self._transport.get_extra_info)
        return ""

    async def _shake_hands(self) -> None:
        trouble = await self._start_tls()
        if self._client.is_closed:
            return
        if trouble:
            self._client.tls_failed(trouble)
        else:
            self._client.tls_started()
        self._steps = -1
        self._advance()

    # ---- messages

    async def carry(self, letter: Letter) -> Finished:
        """Send one message; only while is_ready."""
        message, plan, signature = self._message(letter), None, b""
        try:
            if letter.survey.is_irregular or (message.is_8bit and "8BITMIME" not in self._client.offers):
                plan = await self._plan_for(letter, message)
            if letter.sign is not None:
                signature = await self._sign(letter, letter.sign, plan)
        except (NotMime, Unreadable, BadKey) as problem:
            return self._unsendable(letter, problem)
        if signature and message.size:
            message = replace(message, size=message.size + len(signature) + signature.count(b"\n"))
        self._content, self._plan, self._signature = letter.content, plan, signature
        self.messages += 1
        self._finished = self._loop.create_future()
        size = letter.survey.size
        self._message_ends = self._loop.time() + self._terms.limit + size / SLOWEST
        self._steps = -1
        self._client.begin(message, letter.recipients)
        self._advance()
        return await self._finished

    def _message(self, letter: Letter) -> Message:
        survey = letter.survey
        must_recode = survey.is_irregular or (survey.has_8bit and "8BITMIME" not in self._client.offers)
        return Message(letter.sender, 0 if must_recode else survey.size, survey.has_8bit, survey.is_irregular,
                       letter.smtputf8 and survey.header_has_8bit, letter.ret, letter.envid)

    async def _plan_for(self, letter: Letter, message: Message) -> recode.Plan:
        """How to recode the message for this peer. Raises mime.Unreadable, parcel.Unreadable."""
        to_7bit = message.is_8bit and "8BITMIME" not in self._client.offers

        def plan() -> recode.Plan:
            return recode.plan(letter.content.pieces(), to_7bit=to_7bit)
        if letter.content.is_small:
            return plan()
        return await self._loop.run_in_executor(None, plan)  # it takes seconds for the largest ones

    async def _sign(self, letter: Letter, sign: Sign, plan: recode.Plan | None) -> bytes:
        """The field that signs the message as this peer gets it. Raises BadKey, mime.Unreadable,
        parcel.Unreadable."""
        def signature() -> bytes:
            pieces: Iterable[bytes] = letter.content.pieces()
            return sign(pieces if plan is None else recode.recoded(pieces, plan))
        if letter.content.is_small:
            return signature()
        return await self._loop.run_in_executor(None, signature)

    def _unsendable(self, letter: Letter, problem: Exception) -> Finished:
        """A message that cannot be recoded for this peer, or signed, or not even read."""
        peer = self._terms.options.peer
        if isinstance(problem, NotMime):
            trouble = Trouble(Stage.DATA, Kind.MESSAGE, f"the message cannot be converted: {problem}", status="5.6.3")
        else:
            trouble = Trouble(Stage.DATA, Kind.ABORTED, str(problem))
        return Finished((judge(trouble, peer),) * len(letter.recipients), False, False)

    def leave(self) -> None:
        """Close the connection, politely if there is time for that. Nobody waits for the answer to QUIT."""
        if self._client.is_ready and self._transport is not None:
            self._client.quit()
            self._write()
            self._transport.close()
        else:
            self.abort()

    def abort(self) -> None:
        """Break the connection off."""
        self._stop_watching()
        if self._handshake is not None:
            self._handshake.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ---- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._terms.options.is_encrypted:
            transport.pause_reading()  # nothing is read outside of TLS; start_tls reads on

    def data_received(self, data: bytes) -> None:
        self._client.receive(data)
        if self._opened is not None:
            self._advance()

    def eof_received(self) -> bool:
        return False  # a peer that will say nothing more is of no use: close, and connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(exc.strerror if isinstance(exc, OSError) and exc.strerror else "")
        if self._opened is not None:
            self._advance()
        self._stop_watching()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._go_on()

    # ---- moving the core

    def _advance(self) -> None:
        """Do what is to be done until the peer has to be waited for."""
        client = self._client
        while (event := client.next_event()) is not None:
            if isinstance(event, Finished):
                self._pieces = None
                if self._finished is not None and not self._finished.done():
                    self._finished.set_result(event)
            elif isinstance(event, SendMessage):
                self._begin_sending(event)
            elif isinstance(event, StartTls):
                self._handshake = self._loop.create_task(self._shake_hands())
            else:
                self._close(event)
        self._write()
        if client.is_ready and self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        if client.steps != self._steps:
            self._steps = client.steps
            self._watch()

    def _close(self, event: Closed) -> None:
        if self._opened is not None and not self._opened.done():
            self.has_broken_tls |= self._client.has_broken_tls
            self._opened.set_result(event.result)
        if self._transport is not None:
            self._transport.close()
        self._pieces = None
        self._stop_watching()

    def _write(self) -> None:
        data = self._client.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _begin_sending(self, event: SendMessage) -> None:
        if self._content is None:
            self._client.abort("there is no message")
            return
        pieces: Iterable[bytes] = self._content.pieces()
        if event.must_recode and self._plan is not None:
            pieces = recode.recoded(pieces, self._plan)
        self._pieces = chain((self._signature,), pieces) if self._signature else iter(pieces)
        self._send_pieces()

    def _send_pieces(self) -> None:
        """Send more of the message: all of it if it is small, else as much as the peer takes and others can wait
        for."""
        client, content = self._client, self._content
        count = 0
        while self._pieces is not None and content is not None and self._may_write:
            if count >= BURST and not content.is_small:
                self._loop.call_soon(self._go_on)
                return
            try:
                piece = next(self._pieces, None)
            except (Unreadable, NotMime) as problem:
                self._pieces = None
                client.abort(str(problem))
                return
            except Exception as problem:  # noqa: BLE001 - a message that recoding chokes on must not stay here for ever
                self._pieces = None
                client.abort(f"internal error: {type(problem).__name__}: {problem}")
                return
            if piece is None:
                client.end_message()
                self._pieces = None
                return
            client.send_message(piece)
            count += 1
            if not content.is_small:
                self._write()

    def _go_on(self) -> None:
        if self._pieces is not None:
            self._send_pieces()
            self._advance()

    # ---- time

    def _watch(self) -> None:
        """The conversation has gone on: the next step has its own time. The timer is moved only when it runs out."""
        self._ends = min(self._loop.time() + self._terms.timeouts[self._client.stage], self._message_ends)
        if self._timer is not None:
            if self._timer.when() <= self._ends:
                return
            self._timer.cancel()
        self._timer = None if self._client.is_closed else self._loop.call_at(self._ends, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._client.is_closed or self._client.is_ready:
            return
        if self._handshake is not None and not self._handshake.done():
            return  # it has its own limit, and the conversation goes on after it
        if self._loop.time() < self._ends:
            self._timer = self._loop.call_at(self._ends, self._look_at_clock)
            return
        self._client.timed_out()
        self._advance()
        self.abort()

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

