"""A relay process: it takes mail to other hosts, as _pysmrelay, and knows nothing but what it is handed.

`serve` runs after the process has become that user. From its channel come shipments, each with an open queue file and
an envelope; back go answers (deliver/shipment.py). It sees neither queue nor spawner and writes no file. It ends when
the runner closes the channel: idle connections take their leave, the others are broken off, and the runner, which has
had no answer, tries those messages again.

Here stands what all destinations of the process share: the resolver, TLS contexts, the login of the smarthost, which
places did not answer lately, and where TLS is offered but does not work.

Whether TLS is used: [relay] tls is for the hosts of [relay] smarthost, who alone get the password, too. Everybody else
is a stranger, whose certificate proves nothing (there is no DANE and no MTA-STS here; `Relay._terms` is their place):
TLS if it is offered, in the clear if that does not work.
"""

import asyncio
import os
import random
import resource
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..auth.signing import Sign
from ..config import Config
from ..deliver.remote import NotOpened, Session, Terms
from ..deliver.shipment import MAX_BATCH, MAX_NOTES, Answer, Shipment, answer_packets, read_shipments
from ..mail.masquerade import Masquerade
from ..mail.outcome import deferred
from ..net import hosts, tls
from ..net.hosts import Found, Place, Surroundings
from ..net.resolver import Resolver
from ..route import own
from ..route.router import Router, normal_domain
from ..smtp.client import TIMEOUTS
from ..smtp.opening import Options, Tls
from ..smtp.trouble import Kind, Peer, Result, Scope, Stage, Trouble, judge
from . import login
from .channel import Channel
from .destination import IDLE, Destination, Means

TICK = 2.0  # seconds between looks at what waits and at what is idle
AVOIDED_FOR = 600.0  # seconds that a place which did not answer comes last
SLOW = 2.0  # seconds that an attempt has to cost for that: one that is refused at once may as well be made again
CLEAR_FOR = 3600.0  # seconds that a place whose TLS does not work is talked to in the clear
MAX_REMEMBERED = 1000  # places of either kind
FILES = 8192  # descriptors that this process may have, if it is allowed to


@dataclass(frozen=True, slots=True)
class World:
    """What tests replace: where DNS is, how long to wait, who we are."""

    resolv_conf: str = "/etc/resolv.conf"
    dns_port: int = 53
    dns_lifetime: float = 30.0
    smtp_port: int = hosts.SMTP_PORT
    hosts_file: str = "/etc/hosts"
    timeouts: Mapping[Stage, float] = field(default_factory=lambda: TIMEOUTS)
    idle: float = IDLE
    loopback_is_own: bool = True


def serve(channel: socket.socket, config: Config, world: World | None = None, sign: Sign | None = None) -> None:
    """Relay until the runner closes the channel. config: with secrets. sign: makes our signature."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard))
    asyncio.run(_serve(channel, config, world or World(), sign))


async def _serve(channel: socket.socket, config: Config, world: World, sign: Sign | None) -> None:
    relay = Relay(asyncio.get_running_loop(), channel, config, world, sign)
    await relay.ended
    await relay.close()


class Relay:
    """The state of the process. ended: done when the runner is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: socket.socket, config: Config, world: World,
                 sign: Sign | None = None) -> None:
        self._loop = loop
        self._world = world
        self._relay = config.relay
        self._hostname = config.hostname or "localhost"
        self._login = login.Login(config.relay, loop.time)
        self._contexts = tls.Contexts(config.relay.ca_file)
        self._resolver = Resolver(loop.time, conf=world.resolv_conf, port=world.dns_port, lifetime=world.dns_lifetime)
        self._surroundings = self._look_around(config)
        self._avoided: dict[Place, float] = {}  # until when, loop time
        self._in_the_clear: dict[Place, float] = {}
        self._destinations: dict[str, Destination] = {}
        self._answers: list[Answer] = []
        self._is_flush_due = False
        self._faults: list[str] = []  # of ours, to be told with the next answer
        self._handshakes: deque[str] = deque(maxlen=MAX_REMEMBERED)  # likewise
        self._means = self._make_means(config, sign)
        self._channel = Channel(loop, channel, self._take, MAX_BATCH)
        self.ended = self._channel.ended
        loop.set_exception_handler(self._note_fault)
        loop.call_later(TICK, self._tick)

    def _look_around(self, config: Config) -> Surroundings:
        world = self._world
        is_own = own.is_own_for(config) if world.loopback_is_own else lambda _: False
        return Surroundings(self._hostname, is_own, random.shuffle, config.relay.ipv6, world.smtp_port,
                            lambda: self._resolver.search, world.hosts_file)

    def _make_means(self, config: Config, sign: Sign | None) -> Means:
        router = Router(config)
        names = router.same_as("")
        masquerade = Masquerade(config.relay.masquerade,
                                lambda domain: router.is_local(domain) or normal_domain(domain) in names)
        return Means(self._find, self._terms, self._opened, self._failed, self._is_avoided, self._answer,
                     masquerade.sender, masquerade.header if masquerade else None, sign, self._world.idle)

    async def close(self) -> None:
        """End what is left."""
        self._channel.close()
        for destination in self._destinations.values():
            destination.close()
        await asyncio.sleep(0)  # the carriers see it

    # ---- the channel

    def _take(self, packet: bytes, fds: list[int], flags: int) -> None:
        try:
            shipments = read_shipments(packet)
        except ValueError:
            shipments = []
        if shipments is None:
            self._forget()
        elif len(shipments) == len(fds) and shipments:
            for shipment, fd in zip(shipments, fds, strict=True):
                self._deliver(shipment, fd)
            return
        elif shipments and flags & socket.MSG_CTRUNC:  # no descriptor is free
            outcome = deferred("4.3.0", "too many open files in the relay")
            for shipment in shipments:
                self._answer(Answer(shipment.n, (outcome,) * len(shipment.recipients), is_tried=False))
        else:  # a runner that sends nonsense has no use for a relay
            self._channel.close()
        for fd in fds:
            os.close(fd)

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something of ours failed in a callback; asyncio has ended the connection that it belongs to."""
        if len(self._faults) < MAX_NOTES:
            self._faults.append(f"relay: {context.get('message')}: {context.get('exception')!r}")

    def _deliver(self, shipment: Shipment, fd: int) -> None:
        destination = self._destinations.get(shipment.destination)
        if destination is None:
            destination = self._destinations[shipment.destination] = Destination(self._loop, shipment, self._means)
        destination.add(shipment, fd)

    def _answer(self, answer: Answer) -> None:
        """Answers that are there at the same moment share a packet."""
        if self._faults:
            answer = replace(answer, notes=(*answer.notes, *self._faults))
            self._faults.clear()
        if self._handshakes:
            told = [self._handshakes.popleft() for _ in range(min(MAX_NOTES, len(self._handshakes)))]
            answer = replace(answer, handshakes=tuple(told))
        self._answers.append(answer)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        answers, self._answers = self._answers, []
        self._channel.send(answer_packets(answers))

    def _tick(self) -> None:
        self._loop.call_later(TICK, self._tick)
        for name, destination in list(self._destinations.items()):
            destination.hand_back()
            if destination.is_idle:
                del self._destinations[name]

    def _forget(self) -> None:
        """Somebody has seen to the network, or wants to know it now."""
        self._avoided.clear()
        self._in_the_clear.clear()
        self._resolver.forget()
        self._login.forget()

    # ---- what destinations ask

    async def _find(self, domain: str, names: Sequence[str]) -> Found:
        return await hosts.find(domain, names, self._resolver.lookup, self._surroundings)

    async def _terms(self, place: Place) -> Terms | Result:
        """How to talk at a place. What a DANE record or an MTA-STS policy would ask for belongs here."""
        peer = Peer(place.name, place.address)
        is_smarthost = place.given in self._relay.smarthost
        is_near = place.port == 0 or own.is_loopback(place.address)
        policy = tls.Policy(self._relay.tls) if is_smarthost else tls.Policy.MAY
        usage = Tls.MAY if policy is tls.Policy.MAY else Tls.MUST
        logs_in = is_smarthost and self._login.is_wanted
        if (place.is_lmtp and is_near) or (usage is Tls.MAY and not logs_in and self._is_in_the_clear(place)):
            usage = Tls.NEVER
        credentials = None
        if logs_in:
            try:
                credentials = await self._login.credentials()
            except login.NoToken as problem:
                return judge(Trouble(Stage.AUTH, Kind.LOGIN, str(problem)), peer)
        context = None
        if usage is not Tls.NEVER or place.is_encrypted:
            try:
                # What is good enough for mail that may go in the clear is not so for a password.
                context = self._contexts.get(tls.Policy.ENCRYPT if logs_in and usage is Tls.MAY else policy)
            except OSError as trouble:
                words = f"{self._relay.ca_file or 'the certificates of the system'}: {trouble.strerror or trouble}"
                return judge(Trouble(Stage.STARTTLS, Kind.TLS, words), peer)
        options = Options(self._hostname, peer, place.is_lmtp, usage, place.is_encrypted, credentials, is_near)
        return Terms(options, context, place.server_name, self._world.timeouts)

    def _opened(self, session: Session) -> None:
        self._avoided.pop(session.place, None)
        if session.tls:
            self._handshakes.append(f"relay={session.place}, {session.tls}")

    def _failed(self, place: Place, failure: NotOpened, took: float) -> None:
        if failure.result.scope is Scope.LOGIN:
            self._login.forget()
        elif failure.has_broken_tls and not place.is_encrypted:
            self._handshakes.append(f"relay={place}, error: connect failed: {failure.result.outcome.reason}")
            _remember(self._in_the_clear, place, self._loop.time() + CLEAR_FOR)
        elif took >= SLOW:
            _remember(self._avoided, place, self._loop.time() + AVOIDED_FOR)

    def _is_avoided(self, place: Place) -> bool:
        return self._avoided.get(place, 0.0) > self._loop.time()

    def _is_in_the_clear(self, place: Place) -> bool:
        return self._in_the_clear.get(place, 0.0) > self._loop.time()


def _remember(places: dict[Place, float], place: Place, until: float) -> None:
    places.pop(place, None)
    while len(places) >= MAX_REMEMBERED:
        del places[next(iter(places))]
    places[place] = until

