"""A server core on a socket: bytes in, bytes out, the turn of whoever has it, TLS, and the end.

The core (smtp/server.py) knows the protocol, a subclass knows the answers (session.py). Whatever can be answered at
once is answered within data_received, without a task; a decision that takes time (`wait_for`) leaves the core waiting,
and nothing is acted on meanwhile.

The client is not read while it does not read us, while replies to it are held back for its errors, and while it has
said more than enough. When we end a connection, what it still says is read for LINGER seconds, or a reset could take
our last words from it. A fault of ours costs the client its connection, and nobody else anything.
"""

import asyncio
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..events import ClientEvents
from ..smtp import requests
from ..smtp.reply import Reply, reply
from ..smtp.server import Server

if TYPE_CHECKING:
    from ssl import SSLContext

HIGH_WATER = 64 * 1024  # bytes of replies that wait for the client to read them
LINGER = 2.0  # seconds that we go on reading after our last word
HANDSHAKE = 30.0  # seconds for TLS to begin

_OUR_FAULT = reply(451, "4.3.0", "an error of this host, try again later")

Result = TypeVar("Result")


class Connection(asyncio.Protocol, ABC):
    """certificate: for STARTTLS. core: has not greeted yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: ClientEvents, core: Server,
                 certificate: "SSLContext | None") -> None:
        self._loop = loop
        self._events = events
        self._core = core
        self._certificate = certificate
        self._transport: asyncio.Transport | None = None
        self._moved = self._turn = loop.time()  # when the client last said anything; when its turn began
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of replies that are held back
        self._held = bytearray()
        self._may_write = True
        self._is_running = False
        self._is_deciding = False
        self._is_shaking_hands = False
        self._is_wrapped = False  # what comes has been through TLS
        self._first_words = bytearray()  # through TLS, before we have heard that it is there
        self._has_ended = False  # the client's input
        self._is_over = False  # we have said our last word
        self._is_gone = False

    @property
    @abstractmethod
    def _shown(self) -> str:
        """The client, for the log."""

    @abstractmethod
    def check(self, now: float, *, is_stressed: bool, is_leaving: bool) -> None:
        """Look at the clock. now: loop time. is_stressed: most places are taken. is_leaving: the process would end."""

    @abstractmethod
    def _opened(self) -> None:
        """The connection is there. Greet, now or later."""

    @abstractmethod
    def _act_on(self, event: requests.Event) -> None:
        """What the core says. SessionEnded: call `_close`."""

    @abstractmethod
    def _encrypted(self, version: str, cipher: str, bits: int) -> None:
        """There is TLS now."""

    @abstractmethod
    def _left(self) -> None:
        """The connection is gone; called once."""

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER)
        if self._core.is_encrypted:
            self._note_tls()
        self._opened()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._moved = self._loop.time()
        if self._is_shaking_hands and self._is_wrapped:
            self._first_words += data  # the core takes what comes before `tls_started` for plaintext, rightly
            return
        self._core.receive(data)
        self._run()

    def eof_received(self) -> bool:
        """The client will say no more, but it may want to hear what becomes of what it has said."""
        self._has_ended = True
        self._run()
        return not self._is_over and not self._core.is_encrypted  # TLS has no half-closed connections

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._core.lost()
        self._run()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._left()

    def pause_writing(self) -> None:
        self._may_write = False
        self._read_or_not()

    def resume_writing(self) -> None:
        self._may_write = True
        self._read_or_not()

    # ---- what the listener asks

    def shut_down(self) -> None:
        """End as soon as no message is under way."""
        self._core.shut_down()
        self._run()

    def abort(self) -> None:
        """End now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # ---- what to do next

    def _run(self) -> None:
        """Act on all that there is to act on, then send what there is to send."""
        if self._is_running:
            return
        self._is_running = True
        try:
            self._act()
            if self._has_ended and not self._is_deciding:
                self._core.lost()
                self._act()
            data = self._core.data_to_send()
            if data:
                self._send(data)
            self._read_or_not()
        except Exception:  # noqa: BLE001 - a fault of ours meets a client: it loses its connection, others do not
            self._complain(traceback.format_exc(limit=-6))
            self.abort()
        finally:
            self._is_running = False

    def _act(self) -> None:
        while (event := self._core.next_event()) is not None:
            self._act_on(event)

    def _complain(self, lines: str) -> None:
        for line in lines.split("\n"):
            if line.strip(" "):
                self._events.trouble(f"session with {self._shown}: {line}")

    def _read_or_not(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._has_ended or self._is_shaking_hands:
            return
        if self._may_write and self._timer is None and not self._core.is_full:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _send(self, data: bytes) -> None:
        """Write; after a while, if the client is to be slowed down."""
        self._held += data
        if not self._core.delay or self._is_over:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._core.delay, self._send_held)

    def _send_held(self) -> None:
        self._flush()
        self._read_or_not()

    def _flush(self) -> None:
        """Write what is held back, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._moved = self._turn = self._loop.time()
        if self._held and self._transport is not None:
            self._transport.write(bytes(self._held))
            self._held.clear()

    def _answer(self, answer: Reply | None) -> None:
        """Answer the core. `_run` has to follow, unless it is what has called."""
        self._is_deciding = False
        self._core.answer(answer)

    def _wait_for(self, work: Awaitable[Result], then: Callable[[Result], None]) -> None:
        """Have something done that takes time, and go on with its result."""
        self._is_deciding = True
        self._task = task = asyncio.ensure_future(work, loop=self._loop)

        def done(_: object) -> None:
            self._task = None
            if task.cancelled():
                return
            problem = task.exception()
            if problem is None:
                then(task.result())
            else:
                self._complain("".join(traceback.format_exception(problem, limit=-6)))
                self._answer(_OUR_FAULT)
            self._run()

        task.add_done_callback(done)

    def _close(self, *, is_polite: bool) -> None:
        """We have said our last word. is_polite: the client has, too, and nothing more is to be read."""
        self._is_over = True
        transport = self._transport
        if transport is None or self._is_gone:
            return
        self._held += self._core.data_to_send()
        self._flush()
        if is_polite or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            transport.resume_reading()

    def _check_end(self, now: float) -> None:
        """Do not wait for ever for a client whose session is over."""
        if now - self._moved > LINGER:
            self.abort()

    # ---- TLS

    def _start_tls(self) -> None:
        transport = self._transport
        assert transport is not None
        self._is_shaking_hands = True
        transport.pause_reading()  # or the handshake could be taken for plaintext that came too early
        self._held += self._core.data_to_send()
        self._flush()
        self._wait_for(self._shake_hands(transport), self._tls_started)

    async def _shake_hands(self, transport: asyncio.Transport) -> str:
        """"" or what went wrong."""
        assert self._certificate is not None
        self._is_wrapped = True  # start_tls takes the connection over before it waits
        try:
            made = await self._loop.start_tls(
                transport, self, self._certificate, server_side=True, ssl_handshake_timeout=HANDSHAKE)
        except OSError as trouble:
            return trouble_words(trouble)
        if made is None:
            return "connection lost"
        made.set_write_buffer_limits(HIGH_WATER)
        self._transport = made
        return ""

    def _tls_started(self, trouble: str) -> None:
        self._is_deciding = self._is_shaking_hands = False
        if trouble:
            self._events.not_encrypted(self._shown, trouble)
            self._is_over = True
            self.connection_lost(None)  # asyncio does not tell us, it was talking to the handshake
            return
        self._moved = self._turn = self._loop.time()
        self._note_tls()
        self._core.tls_started()
        self._core.receive(bytes(self._first_words))
        self._first_words.clear()

    def _note_tls(self) -> None:
        assert self._transport is not None
        cipher, version, bits = self._transport.get_extra_info("cipher") or ("", "TLS", 0)
        self._events.encrypted(self._shown, version, cipher, bits)
        self._encrypted(version, cipher, bits)


def trouble_words(trouble: OSError) -> str:
    """What went wrong in a handshake, for the log."""
    reason = getattr(trouble, "reason", None)  # of an SSLError
    if reason:
        return str(reason).replace("_", " ").lower()
    return trouble.strerror or str(trouble) or type(trouble).__name__
