"""One client of a listener: what the server core asks is put to who has a say in it, and what the log says of it.

    senders, recipients       opinions.py
    the content, its end      arrival.py; 250 only once it is safe on disk
    a login                   whoever knows passwords (auth/)

Times: a command must be whole within [limits] command_timeout, however it trickles in. Within a message a client may
be silent for data_timeout, and must bring it at data_rate. No message begins after session_time, or lasts longer than
that. While most places are taken, strangers have stress_timeout instead of either time-out; for a command all have it
while the listener is leaving. Its tick looks after that (`check`), so that no command costs a timer.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..auth import Judgement
from ..mail import trace
from ..mail.changes import Draft
from ..mail.envelope import Origin
from ..smtp import requests
from ..smtp.profile import Settings
from ..smtp.reply import Reply, reply
from ..smtp.server import Server
from .arrival import Arrival, Source, taken
from .connection import Connection
from .opinions import Opinions, Reception
from .policy import Client, Opinion, Refusal

if TYPE_CHECKING:
    from ssl import SSLContext

SLOW_START = 30.0  # seconds of a message before its rate counts
LOGIN_TIME = 60.0  # seconds for the answer of who knows passwords
QUIT, LOST = "QUIT", "lost connection"  # how the core says that a client has left, politely or not

_NOT_KNOWN = reply(454, "4.7.0", "passwords cannot be checked now, try again later")


class Session(Connection):
    """The client has been let in (admission.py) before this is made. terms: those for a client of this door. daemon:
    what the log calls it. wait: seconds until the greeting.
    """

    def __init__(self, reception: Reception, client: Client, terms: Callable[[Client], Settings], daemon: str,
                 certificate: "SSLContext | None" = None, *, is_encrypted: bool = False, wait: float = 0.0) -> None:
        core = Server(terms(client), is_encrypted=is_encrypted)
        super().__init__(reception.loop, reception.events, core, certificate)
        self._reception = reception
        self._terms = terms
        self._client = client
        self._key = client.key  # by which it was let in
        self._daemon = daemon
        self._wait = wait
        self._opinions = Opinions(reception, client)
        self._began = self._loop.time()
        self._content_began = 0.0
        self._arrival: Arrival | None = None
        self._id = ""  # of the message that is, or was, under way
        self._last = "startup"  # command, for the log
        self._tls = ""
        self._has_sent = False  # it has named a sender
        reception.sessions.add(self)

    @property
    def _shown(self) -> str:
        return self._client.shown

    # ---- beginning and end

    def _opened(self) -> None:
        self._opinions.begin()
        if self._wait:
            self._loop.call_later(self._wait, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._is_gone:
            return
        if self._opinions.is_examined:
            self._wait_for(self._opinions.connected(), self._greet)
        else:
            self._greet(None)
            self._run()

    def _greet(self, refusal: Reply | None) -> None:
        self._is_deciding = False
        waited, self._wait = self._wait, 0.0
        self._core.greet(refusal)
        if self._core.is_closed and refusal is None:
            self._events.talked_early(self._name(), self._shown, waited)

    def _left(self) -> None:
        self._reception.sessions.discard(self)
        self._reception.admission.leave(self._key)
        if self._arrival is not None:
            self._arrival.give_up()
        self._opinions.close()

    def _encrypted(self, version: str, cipher: str, bits: int) -> None:
        self._tls = f"{version} {cipher}"

    def check(self, now: float, *, is_stressed: bool, is_leaving: bool) -> None:
        limits = self._reception.config.limits
        is_hurried = is_stressed and not self._client.is_local
        if self._is_over:
            self._check_end(now)
        elif self._is_deciding or self._wait or self._transport is None:
            pass  # it is our turn, or that of TLS, and either has limits of its own
        elif self._core.is_receiving:
            lasts = now - self._content_began
            late = lasts - SLOW_START
            patience = min(limits.stress_timeout, limits.data_timeout) if is_hurried else limits.data_timeout
            is_slow = late > 0 and self._core.received < late * limits.data_rate
            if now - self._moved > patience or is_slow or lasts > limits.session_time:
                self._time_out("message read")
        else:
            patience = limits.stress_timeout if is_hurried or is_leaving else limits.command_timeout
            if now - self._turn > patience or now - self._began > limits.session_time:
                self._time_out("server cmd read")

    def _time_out(self, where: str) -> None:
        self._events.timed_out(self._name(), self._shown, where)
        self._core.timed_out()
        self._run()

    def _on_ended(self, event: requests.SessionEnded) -> None:
        is_polite = event.why in (QUIT, LOST)
        if not is_polite:
            self._events.shown_out(self._name(), self._shown, event.why)
        elif not self._has_sent and self._client.is_stranger:
            self._events.idled(self._name(), self._shown, self._daemon)
        self._close(is_polite=is_polite)

    def _name(self) -> str:
        """The id by which the log calls what is under way."""
        if not self._id:
            self._id = self._reception.inbox.new_id()
        return self._id

    # ---- what the core says

    def _act_on(self, event: requests.Event) -> None:
        self._HANDLERS[type(event)](self, event)

    def _decide(self, opinion: Opinion, argument: str, agreed: Callable[[], None] = lambda: None) -> None:
        """Answer the core, at once or when the opinion is there. argument: what it is about, for the log."""
        def decided(refusal: Refusal | None) -> None:
            if refusal is None:
                agreed()
                self._answer(None)
            else:
                self._events.rejected(self._name(), refusal.ruleset, argument, self._shown, refusal.reply.words)
                self._answer(refusal.reply)

        if opinion is None or isinstance(opinion, Refusal):
            decided(opinion)
        else:
            self._wait_for(opinion, decided)

    def _on_hello(self, event: requests.HelloGiven) -> None:
        self._last = "helo"
        if self._opinions.is_examined:
            self._wait_for(self._opinions.hello(event.name, self._origin()), self._answer)
        else:
            self._answer(None)

    def _on_proxy(self, event: requests.ProxyTold) -> None:
        """A listed proxy says who its client is."""
        self._last = "xclient"
        told = event.attributes
        client = self._reception.policy.proxied(self._client, told.get("ADDR", ""), told.get("PORT", ""))
        if client is None:
            self._answer(reply(501, "5.5.4", "not an address"))
            return
        admission = self._reception.admission
        admission.leave(self._key)
        refusal = admission.enter(client.key, is_local=client.is_local)
        self._key = client.key if refusal is None else b""
        if refusal is not None:
            admission.entered(self._key)  # until it has heard why not
            self._answer(reply(421, "4.3.2", refusal.words))
            return
        self._opinions.close()
        self._client, self._opinions = client, Opinions(self._reception, client)
        self._opinions.begin()
        # The line ends, the haste and the limits of the new client; of the connection what a proxy may, and TLS.
        was = self._core.settings
        self._core.serve(replace(self._terms(client), allows_xclient=was.allows_xclient, offers_tls=was.offers_tls))
        if "LOGIN" in told:
            self._core.user, self._core.mechanism = told["LOGIN"], "XCLIENT" if told["LOGIN"] else ""
        if self._opinions.is_examined:
            self._wait_for(self._opinions.connected(), self._answer)
        else:
            self._answer(None)

    def _origin(self) -> Origin:
        core = self._core
        protocol = trace.protocol_name(
            core.is_extended, is_lmtp=core.settings.profile.is_lmtp, tls=core.is_encrypted, auth=bool(core.user),
            smtputf8=core.transaction.parameters.smtputf8)
        return Origin("smtp", client=self._client.literal, helo=core.hello, protocol=protocol, tls=self._tls,
                      auth=core.user, mechanism=core.mechanism)

    def _on_sender(self, event: requests.SenderGiven) -> None:
        self._last, self._has_sent = "mail", True
        reception = self._reception
        self._arrival = Arrival(reception.config, reception.inbox, self._events,
                                reception.policy.qualified_sender(event.address), event.parameters)
        self._id = self._arrival.id
        key = b"" if self._core.user else self._key
        opinion = self._opinions.sender(event.address, key, self._origin(), self._id, event.parameters)
        self._decide(opinion, event.address)

    def _on_recipient(self, event: requests.RecipientGiven) -> None:
        self._last = "rcpt"
        arrival, origin = self._arrival, self._origin()
        assert arrival is not None
        given = event.recipient
        address = self._reception.policy.qualified(given.address)
        recipient = replace(given, address=address)
        may_relay = not self._core.settings.profile.is_lmtp
        opinion = self._opinions.recipient(recipient, origin, arrival, may_relay=may_relay)
        self._decide(opinion, given.address, lambda: arrival.recipients.append(recipient))

    # ---- content

    def _on_content_wanted(self, _event: requests.ContentWanted) -> None:
        self._last = "data"
        assert self._arrival is not None
        self._content_began = self._loop.time()
        is_ours = bool(self._core.user) or not self._client.is_stranger
        source = Source(self._origin(), is_ours, self._shown, self._daemon, bool(self._reception.config.milter.sockets))
        self._answer(self._arrival.open(source, self._reception.now()))

    def _on_content(self, event: requests.Content) -> None:
        refusal = self._arrival.add(event.data) if self._arrival is not None else None
        if refusal is not None:
            self._core.refuse_content(refusal)

    def _on_content_ended(self, event: requests.ContentEnded) -> None:
        arrival = self._arrival
        assert arrival is not None
        refusal = arrival.complete()
        if refusal is not None:
            self._answer(refusal)
        elif self._opinions.is_examined:
            self._wait_for(self._judge(arrival), lambda found: self._judged(arrival, event.size, found))
        else:
            self._commit(arrival, event.size, None)

    async def _judge(self, arrival: Arrival) -> Judgement:
        try:
            return await self._opinions.judge(arrival.draft())
        except Exception:
            arrival.give_up()  # a fault of ours, for which the client hears 4xx
            raise

    def _judged(self, arrival: Arrival, size: int, found: Judgement) -> None:
        if found.refusal is not None:
            arrival.refuse(found.refusal)
            self._answer(found.refusal)
        elif found.is_dropped or not found.draft.envelope.recipients:
            arrival.give_up()
            self._answer(taken(arrival.id))
        else:
            self._commit(arrival, size, found.draft)

    def _commit(self, arrival: Arrival, size: int, draft: Draft | None) -> None:
        self._is_deciding = True
        self._arrival = None  # the commit goes on even if the client has gone
        arrival.commit(size, self._committed, draft)

    def _committed(self, answer: Reply) -> None:
        self._answer(answer)
        self._run()

    def _on_dropped(self, event: requests.TransactionDropped) -> None:
        if self._arrival is not None:
            if self._last == "rcpt" and not self._arrival.recipients:
                self._events.without_recipients(
                    self._arrival.id, self._arrival.sender, self._shown, self._origin().protocol, self._daemon)
            self._arrival.give_up()
            self._arrival = None
        self._opinions.drop()
        if event.why == LOST:
            self._events.lost(self._name(), self._shown, self._daemon, self._last)

    # ---- logging in

    def _on_login(self, event: requests.LoginGiven) -> None:
        self._last = "auth"
        self._wait_for(self._log_in(event), self._logged_in)

    async def _log_in(self, event: requests.LoginGiven) -> tuple[Reply, str]:
        logins = self._reception.logins
        if logins is None:
            return _NOT_KNOWN, ""
        try:
            return await asyncio.wait_for(logins.authenticate(event, self._client.as_seen), LOGIN_TIME)
        except TimeoutError:
            return _NOT_KNOWN, ""

    def _logged_in(self, found: tuple[Reply, str]) -> None:
        answer, user = found
        self._answer(answer)
        if self._core.user:
            self._core.user = user

    def _on_tls(self, _event: requests.TlsWanted) -> None:
        self._start_tls()

    _HANDLERS: ClassVar[Mapping[type, Callable[["Session", Any], None]]] = {
        requests.HelloGiven: _on_hello, requests.ProxyTold: _on_proxy, requests.SenderGiven: _on_sender,
        requests.RecipientGiven: _on_recipient, requests.ContentWanted: _on_content_wanted,
        requests.Content: _on_content, requests.ContentEnded: _on_content_ended,
        requests.TransactionDropped: _on_dropped, requests.SessionEnded: _on_ended, requests.TlsWanted: _on_tls,
        requests.LoginGiven: _on_login}
