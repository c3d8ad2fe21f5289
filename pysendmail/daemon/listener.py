"""The listener as a process: it takes SMTP and LMTP from anybody, has no privilege, and sees no queue.

It is a child of the supervisor, which has bound the sockets and read the key of the certificate for it. It accepts,
lets clients in or turns them away (admission.py), and gives each one a Session. Several listeners share the sockets:
whichever is free takes the next client. What it accepts goes into smtp/new; nothing else of the spool is open to it.

SIGTERM: take no new clients, let messages that are under way come to their end, leave. SIGHUP: others have begun to
listen; take no new clients, and leave when the last one has gone, who has all the time that a session may take, but not
to be idle (a reload drops nobody).
"""

import asyncio
import errno
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..auth import Authenticator, Examiner
from ..config import Config
from ..events import ClientEvents, Log
from ..net.policyserver import PolicyServer
from ..paths import Paths
from ..route.aliases import Aliases
from ..route.router import Router
from ..smtp import profile
from ..smtp.profile import Limits, Profile, Settings
from ..smtp.reply import reply
from ..smtp.wire import LineEnds
from ..spool.queue_id import Ids
from ..users import Users
from . import load, proxied
from .admission import Admission, Table, Tally, TurnedAway
from .certificates import Certificates
from .connection import HANDSHAKE, trouble_words
from .inbox import Inbox, taken_ids
from .opinions import Reception
from .policy import Client, Inquiries, Policy
from .ports import Port, address_of, are_public
from .session import Session

if TYPE_CHECKING:
    from ssl import SSLContext

FIRST_WRITER = 100  # queue ids: the runner's writers have smaller numbers
TICK = 1.0  # seconds between looks at the clock for all sessions
LOOK_EVERY = 0.1  # seconds between looks whether the last session is over
STOP_WITHIN = 8.0  # seconds for messages that are under way at SIGTERM
ACCEPTS = 4  # clients taken at once, before others of us have their turn
PAUSE = 1.0  # seconds without accepting, when the system has run out of something
SWEEP_EVERY = 3600.0  # seconds between looks for abandoned files
SPARE_FILES = 64  # descriptors besides those of sessions
NO_LIMIT = 1_000_000_000  # messages in a session of a client who may relay
SUBMISSIONS = profile.SUBMISSIONS.name
EX_OK = 0

_RUN_OUT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
DAEMONS = {"smtp": "MTA", "submission": "MSA", "submissions": "TLSMTA", "lmtp": "LMTP"}  # what the log calls a door


@dataclass(frozen=True, slots=True)
class Share:
    """What a listener gets from the supervisor. number: of its row in the table."""

    ports: tuple[Port, ...]
    table: Table
    number: int
    certificates: Certificates
    logins: Authenticator | None = None
    examiner: Examiner | None = None


def run(paths: Paths, config: Config, users: Users, log: Log, share: Share) -> int:
    """The whole life of a listener; its exit code."""
    _raise_limit(2 * config.limits.sessions + SPARE_FILES)
    return asyncio.run(_serve(paths, config, users, ClientEvents(log), share))


async def _serve(paths: Paths, config: Config, users: Users, events: ClientEvents, share: Share) -> int:
    loop = asyncio.get_running_loop()
    listener = Listener(loop, paths, config, users, events, share)
    loop.add_signal_handler(signal.SIGTERM, listener.stop)
    loop.add_signal_handler(signal.SIGINT, listener.stop)
    loop.add_signal_handler(signal.SIGHUP, listener.retire)
    if share.logins is not None:
        share.logins.begin()
    listener.open()
    await listener.ended()
    return EX_OK


class Listener:
    """Accepts clients and looks after their sessions. clock: seconds since the epoch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, paths: Paths, config: Config, users: Users,
                 events: ClientEvents, share: Share, clock: Callable[[], float] = time.time) -> None:
        self._loop = loop
        self._config = config
        self._events = events
        self._certificates = share.certificates
        self._ports = [port for port in share.ports if self._can_serve(port)]
        self._clock = clock
        self._tally = Tally(share.table, share.number)
        self._load = load.per_processor()
        limits = config.limits
        router = Router(config)
        aliases = Aliases(config.local.aliases or (paths.aliases,), router.is_local)
        self._admission = Admission(self._tally, limits, lambda: self._load)
        ids = Ids(FIRST_WRITER + share.number, clock, taken_ids(paths))
        self._inbox = Inbox(loop, paths, ids, free_space=limits.free_space, free_inodes=limits.free_inodes)
        self._policy = Policy(config, router, aliases, users, share.logins, time.monotonic, events.warned)
        self._reception = Reception(
            loop, config, events, self._policy, self._admission, self._inbox, clock, self._inquiries(),
            tuple(map(PolicyServer, config.smtpd.policy_servers)), share.logins, share.examiner)
        self._next_sweep = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._leaving = asyncio.Event()  # set: no new clients
        self._end = 0.0  # loop time at which it does not wait for sessions any more, once it is leaving
        self._opening: set[asyncio.Task[None]] = set()
        self._settings: dict[tuple[str, bool, bool, bool], Settings] = {}

    def _inquiries(self) -> Inquiries | None:
        """Who asks DNS, where strangers come."""
        if not are_public(self._ports, self._config.smtpd):
            return None
        from ..net.resolver import Resolver  # 10 MB that a host without a network can do without
        from .standing import Standings

        return Standings(Resolver(time.monotonic).lookup, self._config.smtpd.dnsbl, time.monotonic)

    def _can_serve(self, port: Port) -> bool:
        if port.profile == SUBMISSIONS and self._certificates.for_client(is_local=False) is None:
            self._events.trouble(f"{address_of(port.socket)} is for TLS, and there is no certificate: nobody is served")
            return False
        return True

    # ---- its life

    def open(self) -> None:
        """Begin to accept."""
        for port in self._ports:
            port.socket.setblocking(False)
        self._accept_on()
        self._tick()

    def retire(self) -> None:
        """Accept nobody any more, and leave with the last client."""
        self._leave(float(self._config.limits.session_time))

    def stop(self) -> None:
        """Accept nobody any more, end sessions as soon as no message is under way, and leave."""
        self._leave(STOP_WITHIN)
        for session in list(self._reception.sessions):
            session.shut_down()

    def _leave(self, seconds: float) -> None:
        end = self._loop.time() + seconds
        self._end = min(self._end, end) if self._leaving.is_set() else end
        self._leaving.set()
        for port in self._ports:
            if port.socket.fileno() >= 0:
                self._loop.remove_reader(port.socket.fileno())
                port.socket.close()

    async def ended(self) -> None:
        """Wait until it is to leave, and can."""
        await self._leaving.wait()
        while (self._reception.sessions or self._inbox.pending) and self._loop.time() < self._end:
            await asyncio.sleep(LOOK_EVERY)
        if self._ticker is not None:
            self._ticker.cancel()
        self._inbox.close()
        self._policy.close()

    def _tick(self) -> None:
        """Once a second: a sign of life, and the clock for all sessions."""
        self._ticker = self._loop.call_later(TICK, self._tick)
        self._tally.beat()
        self._load = load.per_processor()
        now, is_stressed = self._loop.time(), self._admission.is_stressed
        for session in list(self._reception.sessions):
            session.check(now, is_stressed=is_stressed, is_leaving=self._leaving.is_set())
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_EVERY
            try:
                self._inbox.sweep(self._clock())
            except OSError as trouble:
                self._events.warned(f"cannot look for abandoned files in smtp/tmp: {trouble.strerror}")

    # ---- clients

    def _accept_on(self) -> None:
        for port in self._ports:
            if port.socket.fileno() >= 0:
                self._loop.add_reader(port.socket.fileno(), self._accept, port)

    def _accept(self, port: Port) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, peer = port.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as trouble:
                if trouble.errno == errno.EINVAL:  # nobody listens there any more, and others are about to take over
                    self._loop.remove_reader(port.socket.fileno())
                    return
                self._events.trouble(f"cannot accept clients: {trouble.strerror}")
                if trouble.errno in _RUN_OUT:  # else it is the client's network that is in trouble
                    self._pause()
                return
            connection.setblocking(False)
            self._let_in(connection, peer, port)

    def _pause(self) -> None:
        for port in self._ports:
            self._loop.remove_reader(port.socket.fileno())
        self._loop.call_later(PAUSE, self._accept_on)

    def _let_in(self, connection: socket.socket, peer: object, port: Port) -> None:
        address, number = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
        client = self._policy.client(address, number)
        if port.is_proxied:
            task = self._loop.create_task(self._let_in_proxied(connection, client, port))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._admit(connection, client, port)

    async def _let_in_proxied(self, connection: socket.socket, proxy: Client, port: Port) -> None:
        """Let in the client that a proxy names."""
        if not self._policy.is_proxy(proxy):
            self._turn_away(connection, proxy, TurnedAway("Only proxies may connect here."))
            return
        try:
            told = await proxied.read(self._loop, connection)
        except (OSError, ValueError) as trouble:
            self._events.warned(f"proxy {proxy.shown}: {trouble or 'no PROXY header in time'}")
            connection.close()
            return
        client = self._policy.proxied(proxy, told.address)
        assert client is not None
        client.port = told.port or client.port
        self._admit(connection, client, port)

    def _admit(self, connection: socket.socket, client: Client, port: Port) -> None:
        """Make a session of a connection, or turn it away."""
        refusal = self._admission.enter(client.key, is_local=client.is_local)
        if refusal is not None:
            self._turn_away(connection, client, refusal)
            return
        is_encrypted = port.profile == SUBMISSIONS
        certificate = self._certificates.for_client(is_local=client.is_local and not is_encrypted)
        is_waiting = client.is_stranger and not is_encrypted and not self._admission.is_stressed
        terms = partial(self._settings_for, port)
        session = Session(self._reception, client, terms, DAEMONS[port.profile], certificate,
                          is_encrypted=is_encrypted, wait=self._config.smtpd.greeting_delay if is_waiting else 0.0)
        task = self._loop.create_task(self._connect(session, connection, client, certificate if is_encrypted else None))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, session: Session, connection: socket.socket, client: Client,
                       certificate: "SSLContext | None") -> None:
        """certificate: TLS begins at once."""
        try:
            await self._loop.connect_accepted_socket(
                lambda: session, connection, ssl=certificate,
                ssl_handshake_timeout=None if certificate is None else HANDSHAKE)
        except OSError as trouble:
            self._events.not_encrypted(client.shown, trouble_words(trouble))
            connection.close()
            session.connection_lost(None)

    def _turn_away(self, connection: socket.socket, client: Client, refusal: TurnedAway) -> None:
        """Say why, without waiting for anything."""
        answer = reply(421, "4.3.2", refusal.words)
        try:
            connection.send(answer.render())
        except OSError:
            pass
        connection.close()
        host = client.name or client.literal
        self._events.turned_away(self._inbox.new_id(), host, client.address, client.shown, answer.words)

    def _settings_for(self, port: Port, client: Client) -> Settings:
        """The terms for a client; there are few different ones."""
        key = port.profile, client.is_local, client.may_relay, self._policy.is_proxy(client)
        found = self._settings.get(key)
        if found is None:
            found = self._settings[key] = self._make_settings(profile.PROFILES[port.profile], client)
        return found

    def _make_settings(self, kind: Profile, client: Client) -> Settings:
        limits, logins = self._config.limits, self._reception.logins
        return Settings(
            self._config.hostname, kind,
            Limits(message_size=limits.message_size, recipients=limits.recipients,
                   messages=limits.messages_per_session if client.is_stranger else NO_LIMIT,
                   command_line=limits.command_line, soft_errors=limits.soft_errors, hard_errors=limits.hard_errors,
                   unknown_commands=limits.unknown_commands, junk_commands=limits.junk_commands),
            offers_tls=kind is not profile.SUBMISSIONS and (
                self._certificates.for_client(is_local=client.is_local) is not None),
            mechanisms=logins.mechanisms if logins is not None else (),
            line_ends=LineEnds.NORMALISE if client.is_local else LineEnds.STRICT, forbids_early=not client.is_local,
            allows_xclient=self._policy.is_proxy(client))


def _raise_limit(files: int) -> None:
    """Be able to have so many files open, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


