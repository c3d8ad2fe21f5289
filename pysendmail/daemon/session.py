"""One client of a listener: the server core on a socket, and what the core leaves to others to decide.

The core (smtp/server.py) knows the protocol; here are the clock, the socket, and the ways to an opinion. Whatever can
be answered at once is answered within data_received, without a task; a decision that takes time leaves the core
waiting, and nothing is acted on meanwhile.

    what the core asks        who answers
    a sender, a recipient     policy.py
    the content, its end      arrival.py: 250 only once it is safe on disk
    a login                   the back end for passwords

Times: a client may be silent for [limits] command_timeout, within a message for data_timeout, and must bring a message
at data_rate; all of it within session_time. The listener's tick looks after that (`check`), so that no command costs a
timer. A connection that we end is read for LINGER seconds more, or a reset could take our last words from the client.
"""

import asyncio
import ssl
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from ..auth.backend import Backend, Verdict
from ..config import Config
from ..events import ClientEvents
from ..mail import trace
from ..mail.envelope import Origin
from ..smtp import requests
from ..smtp.profile import Settings
from ..smtp.reply import Reply, reply
from ..smtp.server import Server
from .admission import Admission
from .arrival import Arrival, Source
from .inbox import Inbox
from .policy import Client, Opinion, Policy, Refusal

HIGH_WATER = 64 * 1024  # bytes of replies that wait for the client to read them
LINGER = 2.0  # seconds that we go on reading after our last word
HANDSHAKE = 30.0  # seconds for TLS to begin
SLOW_START = 30.0  # seconds of a message before its rate counts
LOGIN_TIME = 60.0  # seconds for the answer of a back end
LOGIN_PAUSE, MAX_LOGIN_PAUSE = 1.0, 10.0  # seconds that a wrong password costs, for each one of the last minute
ATTACK_AT = 3  # wrong passwords in a minute that the log calls an attack
QUIT, LOST = "QUIT", "lost connection"  # how the core says that a client has left, politely or not

_TOO_FAST = Refusal(reply(450, "4.7.1", "Too many messages in one minute, try again later"), "check_mail")
_OUR_FAULT = reply(451, "4.3.0", "an error of this host, try again later")
_WRONG = reply(535, "5.7.8", "wrong name or password")
_NOT_KNOWN = reply(454, "4.7.0", "passwords cannot be checked now, try again later")

Result = TypeVar("Result")


@dataclass(slots=True)
class Reception:
    """What all sessions of a listener share. now: seconds since the epoch. sessions: those that there are.

    logins: None = nobody can log in.
    """

    loop: asyncio.AbstractEventLoop
    config: Config
    events: ClientEvents
    policy: Policy
    admission: Admission
    inbox: Inbox
    now: Callable[[], float]
    logins: Backend | None = None
    sessions: "set[Session]" = field(default_factory=set)


class Session(asyncio.Protocol):
    """The client has been let in (admission.py) before this is made. daemon: what the log calls this door.

    certificate: for STARTTLS. wait: seconds until the greeting.
    """

    def __init__(self, reception: Reception, client: Client, settings: Settings, daemon: str,
                 certificate: ssl.SSLContext | None = None, *, is_encrypted: bool = False, wait: float = 0.0) -> None:
        self._reception = reception
        self._events = reception.events
        self._core = Server(settings, is_encrypted=is_encrypted)
        self._client = client
        self._key = client.key  # by which it was let in
        self._daemon = daemon
        self._certificate = certificate
        self._wait = wait
        self._transport: asyncio.Transport | None = None
        self._began = self._moved = reception.loop.time()
        self._content_began = 0.0
        self._arrival: Arrival | None = None
        self._id = ""  # of the message that is, or was, under way
        self._last = "startup"  # command, for the log
        self._tls = ""
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of replies that are held back
        self._held = bytearray()
        self._may_write = True
        self._is_running = False
        self._is_deciding = False
        self._is_shaking_hands = False
        self._has_ended = False  # the client's input
        self._has_sent = False  # it has named a sender
        self._is_over = False  # we have said our last word
        self._is_gone = False
        reception.sessions.add(self)

    # ---- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER)
        if self._core.is_encrypted:
            self._note_tls()
        if self._wait:
            self._reception.loop.call_later(self._wait, self._greet)
        else:
            self._greet()

    def _greet(self) -> None:
        if self._is_gone:
            return
        self._core.greet()
        if self._core.is_closed:
            self._events.talked_early(self._name(), self._client.shown, self._wait)
        self._wait = 0.0
        self._run()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._moved = self._reception.loop.time()
        self._core.receive(data)
        self._run()

    def eof_received(self) -> bool:
        """The client will say no more, but it may want to hear what becomes of what it has said."""
        self._has_ended = True
        self._run()
        return not self._is_over and not self._tls  # TLS has no half-closed connections

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._core.lost()
        self._run()
        self._reception.sessions.discard(self)
        self._reception.admission.leave(self._key)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write = False
        self._read_or_not()

    def resume_writing(self) -> None:
        self._may_write = True
        self._read_or_not()

    # ---- what the listener asks

    def check(self, now: float, *, is_stressed: bool) -> None:
        """Look at the clock. now: loop time. is_stressed: most places are taken."""
        limits = self._reception.config.limits
        silent = now - self._moved
        if self._is_over:
            if silent > LINGER and self._transport is not None:
                self._transport.abort()
        elif self._is_deciding or self._wait:
            pass  # it is our turn, and that has limits of its own
        elif self._core.is_receiving:
            late = now - self._content_began - SLOW_START
            size = self._arrival.size if self._arrival is not None else 0
            if silent > limits.data_timeout or (late > 0 and size < late * limits.data_rate):
                self._time_out("message read")
        else:
            is_hurried = is_stressed and not self._client.is_local
            patience = limits.stress_timeout if is_hurried else limits.command_timeout
            if silent > patience or now - self._began > limits.session_time:
                self._time_out("server cmd read")

    def _time_out(self, where: str) -> None:
        self._events.timed_out(self._name(), self._client.shown, where)
        self._core.timed_out()
        self._run()

    def shut_down(self) -> None:
        """End as soon as no message is under way."""
        self._core.shut_down()
        self._run()

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
            self._events.trouble(f"session with {self._client.shown}: {traceback.format_exc(limit=-6)}")
            if self._transport is not None:
                self._transport.abort()
        finally:
            self._is_running = False

    def _act(self) -> None:
        while (event := self._core.next_event()) is not None:
            self._HANDLERS[type(event)](self, event)

    def _read_or_not(self) -> None:
        """Read from the client, unless it does not listen, or has said enough for now."""
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
        if self._core.delay and not self._is_over:
            if self._timer is None:
                self._timer = self._reception.loop.call_later(self._core.delay, self._send_held)
        else:
            self._flush()

    def _send_held(self) -> None:
        self._flush()
        self._read_or_not()

    def _flush(self) -> None:
        """Write what is held back, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._moved = self._reception.loop.time()  # it is the client's turn from here on
        if self._held and self._transport is not None:
            self._transport.write(bytes(self._held))
            self._held.clear()

    def _answer(self, answer: Reply | None) -> None:
        self._is_deciding = False
        self._core.answer(answer)

    def _decide(self, opinion: Opinion, argument: str, agreed: Callable[[], None] = lambda: None) -> None:
        """Answer the core, at once or when the opinion is there. argument: what it is about, for the log."""
        def decided(refusal: Refusal | None) -> None:
            if refusal is None:
                agreed()
                self._answer(None)
            else:
                words = refusal.reply.words
                self._events.rejected(self._name(), refusal.ruleset, argument, self._client.shown, words)
                self._answer(refusal.reply)

        if opinion is None or isinstance(opinion, Refusal):
            decided(opinion)
        else:
            self._wait_for(opinion, decided)

    def _wait_for(self, work: Awaitable[Result], then: Callable[[Result], None]) -> None:
        """Have something done that takes time, and go on with its result."""
        self._is_deciding = True
        self._task = task = asyncio.ensure_future(work, loop=self._reception.loop)

        def done(_: object) -> None:
            self._task = None
            if task.cancelled():
                return
            problem = task.exception()
            if problem is None:
                then(task.result())
            else:
                lines = "".join(traceback.format_exception(problem, limit=-6))
                self._events.trouble(f"session with {self._client.shown}: {lines}")
                self._answer(_OUR_FAULT)
            self._run()

        task.add_done_callback(done)

    def _name(self) -> str:
        """The id by which the log calls what is under way."""
        if not self._id:
            self._id = self._reception.inbox.new_id()
        return self._id

    # ---- what the core says

    def _on_hello(self, _event: requests.HelloGiven) -> None:
        self._last = "helo"
        self._answer(None)

    def _on_sender(self, event: requests.SenderGiven) -> None:
        self._last, self._has_sent = "mail", True
        reception, policy = self._reception, self._reception.policy
        self._arrival = Arrival(reception.config, reception.inbox, self._events,
                                policy.qualified_sender(event.address), event.parameters)
        self._id = self._arrival.id
        if reception.admission.may_send(self._key):
            self._decide(policy.sender(self._client, self._core.user, event.address), event.address)
        else:
            self._decide(_TOO_FAST, event.address)

    def _on_recipient(self, event: requests.RecipientGiven) -> None:
        self._last = "rcpt"
        policy, login, arrival = self._reception.policy, self._core.user, self._arrival
        assert arrival is not None
        address = policy.qualified(self._client, login, event.recipient.address)
        recipient = replace(event.recipient, address=address)
        opinion = policy.recipient(self._client, login, address,
                                   may_relay=not self._core.settings.profile.is_lmtp)
        self._decide(opinion, event.recipient.address, lambda: arrival.recipients.append(recipient))

    def _on_content_wanted(self, _event: requests.ContentWanted) -> None:
        self._last = "data"
        assert self._arrival is not None
        self._content_began = self._reception.loop.time()
        self._answer(self._arrival.open(self._source(), self._reception.now()))

    def _source(self) -> Source:
        core, client = self._core, self._client
        protocol = trace.protocol_name(
            core.is_extended, is_lmtp=core.settings.profile.is_lmtp, tls=core.is_encrypted, auth=bool(core.user),
            smtputf8=core.transaction.parameters.smtputf8)
        origin = Origin("smtp", client=client.literal, helo=core.hello, protocol=protocol, tls=self._tls,
                        auth=core.user)
        return Source(origin, client.may_relay or client.is_local or bool(core.user), client.shown, self._daemon)

    def _on_content(self, event: requests.Content) -> None:
        refusal = self._arrival.add(event.data) if self._arrival is not None else None
        if refusal is not None:
            self._core.refuse_content(refusal)

    def _on_content_ended(self, event: requests.ContentEnded) -> None:
        arrival, self._arrival = self._arrival, None
        assert arrival is not None
        self._is_deciding = True

        def answer(answer: Reply) -> None:
            self._answer(answer)
            self._run()

        arrival.finish(event.size, answer)

    def _on_dropped(self, event: requests.TransactionDropped) -> None:
        if self._arrival is not None:
            self._arrival.give_up()
            self._arrival = None
        if event.why == LOST:
            self._events.lost(self._name(), self._client.shown, self._daemon, self._last)

    def _on_ended(self, event: requests.SessionEnded) -> None:
        self._is_over = True
        if event.why in (QUIT, LOST):
            if not self._has_sent and not self._client.is_local:
                self._events.idled(self._name(), self._client.shown, self._daemon)
        else:
            self._events.shown_out(self._name(), self._client.shown, event.why)
        transport = self._transport
        if transport is None or self._is_gone:
            return
        self._held += self._core.data_to_send()
        self._flush()
        if event.why in (QUIT, LOST) or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()
            transport.resume_reading()

    # ---- TLS

    def _on_tls(self, _event: requests.TlsWanted) -> None:
        transport = self._transport
        assert transport is not None
        self._is_shaking_hands = True
        transport.pause_reading()  # or the handshake could be taken for plaintext that came too early
        self._held += self._core.data_to_send()
        self._flush()
        self._wait_for(self._start_tls(transport), self._tls_started)

    async def _start_tls(self, transport: asyncio.Transport) -> str:
        """"" or what went wrong."""
        assert self._certificate is not None
        try:
            made = await self._reception.loop.start_tls(
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
            self._events.not_encrypted(self._client.shown, trouble)
            self._is_over = True
            self.connection_lost(None)  # asyncio does not tell us, it was talking to the handshake
            return
        self._note_tls()
        self._core.tls_started()

    def _note_tls(self) -> None:
        """What was agreed on, for the log and for Received."""
        assert self._transport is not None
        cipher, version, bits = self._transport.get_extra_info("cipher") or ("", "TLS", 0)
        self._tls = f"{version} {cipher}"
        self._events.encrypted(self._client.shown, version, cipher, bits)

    # ---- logging in

    def _on_login(self, event: requests.LoginGiven) -> None:
        self._last = "auth"
        self._wait_for(self._log_in(event), self._answer)

    async def _log_in(self, event: requests.LoginGiven) -> Reply | None:
        logins, relay = self._reception.logins, self._client.shown
        if logins is None:
            return _NOT_KNOWN
        verdict = Verdict.NO
        if event.identity in ("", event.user):  # nobody acts for somebody else here
            try:
                verdict = await asyncio.wait_for(logins.authenticate(
                    event.mechanism, event.user, event.password, self._client.address), LOGIN_TIME)
            except TimeoutError:
                verdict = Verdict.TROUBLE
        if verdict is Verdict.YES:
            self._events.logged_in(relay, event.user, event.mechanism)
            return None
        if verdict is Verdict.TROUBLE:
            return _NOT_KNOWN
        self._events.login_failed(relay, event.user, event.mechanism)
        count = self._reception.admission.failed_login(self._key)
        if count >= ATTACK_AT:
            self._events.attacked(self._name(), relay, count)
        await asyncio.sleep(min(LOGIN_PAUSE * max(1, count), MAX_LOGIN_PAUSE))
        return _WRONG

    def _on_proxy(self, _event: requests.ProxyTold) -> None:
        self._answer(reply(550, "5.7.0", "not for you"))

    _HANDLERS: ClassVar[Mapping[type, Callable[["Session", Any], None]]] = {
        requests.HelloGiven: _on_hello, requests.SenderGiven: _on_sender, requests.RecipientGiven: _on_recipient,
        requests.ContentWanted: _on_content_wanted, requests.Content: _on_content,
        requests.ContentEnded: _on_content_ended, requests.TransactionDropped: _on_dropped,
        requests.SessionEnded: _on_ended, requests.TlsWanted: _on_tls, requests.LoginGiven: _on_login,
        requests.ProxyTold: _on_proxy}


def trouble_words(trouble: OSError) -> str:
    """What went wrong in a handshake, for the log."""
    if isinstance(trouble, ssl.SSLError):
        return (trouble.reason or str(trouble)).replace("_", " ").lower()
    return trouble.strerror or str(trouble) or type(trouble).__name__
