"""What a listener lets its clients do: who they are, which senders and recipients they may name.

Closed by default. Mail for anybody is taken from networks that are listed ([smtpd] relay_from) and from those who have
logged in; everybody else is a stranger, whose mail is taken for users, aliases and [relay] domains of this host alone.

    sender        null; else with a domain (strangers), one of our own only from those who may relay, one that the
                  login may use ([auth] senders)
    recipient     local: is there such a user or alias? 550 if certainly not, 451 if that cannot be said now
                  [relay] domains, or anything for who may relay; all others: 550 relaying denied

What takes time (users may lie in LDAP) is awaited; what is known at once is answered at once. Nothing is delivered
here, no private file is read. RFC 5321 sections 3.6.1, 4.1.1.3 and 7, RFC 6409 section 6.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from .. import auth
from ..auth import Authenticator
from ..config import Config
from ..mail.outcome import Outcome, deferred
from ..route.aliases import Aliases
from ..route.names import Names
from ..route.router import Router, normal_domain, split
from ..smtp.reply import Reply, reply
from ..users import Users
from .admission import client_key

LOOKUPS = 4  # at a time
LOOKUP_TIME = 30.0  # seconds for one
KEEP = 5.0  # seconds that a recipient is remembered who was found
MAX_KEPT = 4096  # recipients remembered at once
MAX_PORT = 65_535


@dataclass(slots=True)
class Client:
    """Who is at the other end, as we see it, or as a proxy of ours says.

    address: "" = over a Unix socket. name: of the address in DNS, where that name has this address too, "" = not known.
    is_local: on this host. may_relay: by its address.
    """

    address: str
    port: int = 0
    name: str = ""
    is_local: bool = False
    may_relay: bool = False

    @property
    def literal(self) -> str:
        """As Received and the log have it: [192.0.2.1] or [IPv6:2001:db8::1], "" without an address."""
        if not self.address:
            return ""
        return f"[IPv6:{self.address}]" if ":" in self.address else f"[{self.address}]"

    @property
    def shown(self) -> str:
        """For the log: "mail.example.org [192.0.2.1]"."""
        name = self.name or ("localhost" if self.is_local else "")
        return f"{name} {self.literal}".strip(" ")

    @property
    def as_seen(self) -> auth.Client:
        """What those who judge mail hear of it; an address without an interface of ours."""
        return auth.Client(self.address.partition("%")[0], self.port, self.name, not self.is_stranger)

    @property
    def is_stranger(self) -> bool:
        """Unless it logs in."""
        return not self.is_local and not self.may_relay

    @property
    def key(self) -> bytes:
        """By what it is counted; b"" = it has no limits of its own."""
        return client_key(self.address) if self.is_stranger else b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A negative answer. ruleset: what sendmail's log would call it."""

    reply: Reply
    ruleset: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What DNS says of a client. name "" = none that is its own. listed: the block lists that name it."""

    name: str = ""
    listed: tuple[str, ...] = ()


class Inquiries(Protocol):
    """Whoever asks DNS about clients and senders: standing.py, where strangers can reach us."""

    def known(self, address: str) -> Standing | None:
        """What is known already about the client at an address."""

    async def find(self, address: str) -> Standing:
        """Ask about it. Raises nothing."""

    async def sender(self, domain: str) -> Refusal | None:
        """Whether mail could be sent to this domain, of a sender. Raises nothing."""


Opinion = Refusal | None | Awaitable[Refusal | None]  # None = yes


class Policy:
    """users: whoever knows the users. logins: who knows passwords, None = nobody. clock: monotonic seconds."""

    def __init__(self, config: Config, router: Router, aliases: Aliases, users: Users, logins: Authenticator | None,
                 clock: Callable[[], float], warn: Callable[[str], None]) -> None:
        self._router = router
        self._aliases = aliases
        self._names = Names(router, aliases, users)
        self._clock = clock
        self._warn = warn
        self._relay_from = tuple(map(ip_network, config.smtpd.relay_from))
        self._proxies = tuple(map(ip_network, config.smtpd.proxies))
        self._relay_domains = frozenset(map(normal_domain, config.relay.domains))
        self._protects_senders = config.smtpd.protect_local_senders
        self._logins = logins
        self._lookups = ThreadPoolExecutor(LOOKUPS, "lookup")
        self._kept: dict[str, float] = {}  # recipients that were found, and until when that counts

    # ---- who

    def client(self, address: str, port: int) -> Client:
        """The client at an IP address, "" = over a Unix socket."""
        if not address:
            return Client("", is_local=True, may_relay=True)
        address = plain_address(address)
        found = ip_address(address.partition("%")[0])
        return Client(address, port, is_local=found.is_loopback,
                      may_relay=any(found in network for network in self._relay_from))

    def is_proxy(self, client: Client) -> bool:
        """Whether it may say who its client is."""
        if not client.address or not self._proxies:
            return False
        found = ip_address(client.address.partition("%")[0])
        return any(found in network for network in self._proxies)

    def proxied(self, proxy: Client, address: str, port: str = "") -> Client | None:
        """The client of a proxy, which it knows by an address ("" = not, then it is the proxy itself). None if that is
        no address."""
        if not address:
            return proxy
        if address[:5].upper() == "IPV6:":
            address = address[5:]
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
        try:
            return self.client(address, number if number <= MAX_PORT else 0)
        except ValueError:
            return None

    # ---- senders

    def qualified_sender(self, address: str) -> str:
        """The sender as the envelope has it: with a domain."""
        return self._router.qualify(address) if address else ""

    def sender(self, client: Client, login: str, address: str) -> Refusal | None:
        """May this client send as `address` ("" = null)? login: who has logged in, "" = nobody."""
        if login:
            return None if self._logins is None or self._logins.may_send(login, address) else _NOT_YOURS
        if not client.is_stranger or not address:
            return None
        domain = split(address)[1]
        if not domain:
            return _NO_DOMAIN
        if self._protects_senders and self._router.is_local(domain):
            return _LOGIN_FIRST
        return None

    # ---- recipients

    def qualified(self, address: str) -> str:
        """The recipient as the envelope has it: a bare name is one of this host (RFC 5321 section 4.5.1)."""
        return self._router.here(address)

    def recipient(self, client: Client, login: str, address: str, *, may_relay: bool = True) -> Opinion:
        """May this client send to `address`, which is qualified? may_relay: False where relaying is nobody's right."""
        domain = split(address)[1]
        if self._router.is_local(domain):
            until = self._kept.get(address)
            return None if until is not None and self._clock() < until else self._look_up(address)
        if normal_domain(domain) in self._relay_domains or (may_relay and (client.may_relay or login)):
            return None
        return _RELAYING

    async def _look_up(self, address: str) -> Refusal | None:
        """Is there such a local recipient?"""
        for news in self._aliases.refresh():
            self._warn(str(news))
        loop = asyncio.get_running_loop()
        try:
            outcome = await asyncio.wait_for(
                loop.run_in_executor(self._lookups, self._names.judge, address), LOOKUP_TIME)
        except TimeoutError:
            outcome = deferred("4.3.0", f"no answer about the recipient within {LOOKUP_TIME:.0f} seconds")
        if outcome is None:
            self._keep(address)
            return None
        return Refusal(_reply_of(outcome), "check_rcpt")

    def _keep(self, address: str) -> None:
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[address] = self._clock() + KEEP

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)


def _reply_of(outcome: Outcome) -> Reply:
    return reply(451 if outcome.is_deferred else 550, outcome.status, outcome.reason)


def listed(standing: Standing) -> Refusal:
    """The answer to a client that is on a block list."""
    return _no(550, "5.7.1", f"Rejected: your address is listed at {standing.listed[0]}", "check_rcpt")


def plain_address(address: str) -> str:
    """An address without the forms that IPv6 has for IPv4: a network that is listed means both."""
    if ":" not in address:
        return address
    mapped = IPv6Address(address.partition("%")[0]).ipv4_mapped
    return str(mapped) if mapped is not None else address


def _no(code: int, status: str, words: str, ruleset: str) -> Refusal:
    return Refusal(reply(code, status, words), ruleset)


_RELAYING = _no(550, "5.7.1", "Relaying denied. Proper authentication required.", "check_rcpt")
_NO_DOMAIN = _no(553, "5.5.4", "Domain name required for sender address", "check_mail")
_LOGIN_FIRST = _no(550, "5.7.1", "Senders of this domain have to log in", "check_mail")
_NOT_YOURS = _no(553, "5.7.1", "This login may not use that sender", "check_mail")
