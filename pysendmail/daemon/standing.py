"""What DNS says about clients and senders: names, block lists, whether a domain is there.

    name        the first name that PTR gives and that has the client's address itself; anybody can claim the others
    listed      the block lists ([smtpd] dnsbl) that name the client. All are asked at once; one that gives no answer
                within LIMIT, or that answers with an error code of its own (127.255.255.0/24), names nobody
    domain      NO_NAME, or a null MX: no answer and no report would ever reach such a sender

Answers about clients are kept for KEEP seconds. Nothing here fails: no answer is an answer too. RFC 1912 section 2.1,
RFC 5782 (block lists), RFC 7505 (null MX).
"""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

from ..config import is_domain
from ..net.resolver import Kind, Lookup, State
from ..smtp.grammar import to_ascii
from ..smtp.reply import reply
from .policy import Refusal, Standing

LIMIT = 5.0  # seconds for all that is asked about one client
SENDER_LIMIT = 20.0  # seconds for a sender's domain
KEEP = 300.0  # seconds
MAX_KEPT = 2000  # clients
MAX_NAMES = 3  # of one client that are looked at

_LISTED, _ERRORS = IPv4Address("127.0.0.0"), IPv4Address("127.255.255.0")


class Standings:
    """zones: the block lists. clock: monotonic seconds."""

    def __init__(self, lookup: Lookup, zones: tuple[str, ...], clock: Callable[[], float]) -> None:
        self._lookup = lookup
        self._zones = zones
        self._clock = clock
        self._kept: dict[str, tuple[float, Standing]] = {}

    def known(self, address: str) -> Standing | None:
        """What was found out about a client before, None = nothing that still counts."""
        until, standing = self._kept.get(address, (0.0, None))
        return standing if self._clock() < until else None

    async def find(self, address: str) -> Standing:
        """Ask about a client."""
        zones = () if ip_address(address.partition("%")[0]).is_private else self._zones
        asked = [asyncio.ensure_future(self._name(address)), *(
            asyncio.ensure_future(self._is_listed(address, zone)) for zone in zones)]
        done, late = await asyncio.wait(asked, timeout=LIMIT)
        for one in late:
            one.cancel()
        answers = [one.result() if one in done else "" for one in asked]
        standing = Standing(answers[0], tuple(filter(None, answers[1:])))
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept.pop(address, None)
        if not late:
            self._kept[address] = self._clock() + KEEP, standing
        return standing

    async def _name(self, address: str) -> str:
        found = ip_address(address.partition("%")[0])
        answer = await self._lookup(found.reverse_pointer, Kind.PTR)
        kind = Kind.AAAA if ":" in address else Kind.A
        for _, name in answer.records[:MAX_NAMES]:
            if not name.isascii() or not is_domain(name):
                continue
            back = await self._lookup(name, kind)
            if any(ip_address(one) == found for _, one in back.records):
                return name.lower()
        return ""

    async def _is_listed(self, address: str, zone: str) -> str:
        """The zone, if it names the address; else ""."""
        pointer = ip_address(address.partition("%")[0]).reverse_pointer
        name = pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
        answer = await self._lookup(f"{name}.{zone}", Kind.A)
        return zone if any(_means_listed(one) for _, one in answer.records) else ""

    async def sender(self, domain: str) -> Refusal | None:
        """Whether mail could be sent to this domain, of a sender."""
        if domain.startswith("["):
            return None
        try:
            async with asyncio.timeout(SENDER_LIMIT):
                return await self._sender(to_ascii(f"x@{domain}")[2:])
        except TimeoutError:
            return _NOT_KNOWN

    async def _sender(self, domain: str) -> Refusal | None:
        answer = await self._lookup(domain, Kind.MX)
        if answer.state is State.FOUND:
            return _NULL_MX if all(not host for _, host in answer.records) else None
        if answer.state is State.NO_NAME:
            return _NO_DOMAIN
        if answer.state is State.NO_DATA:
            found = await asyncio.gather(self._lookup(domain, Kind.A), self._lookup(domain, Kind.AAAA))
            if any(one.state is State.FOUND for one in found):
                return None
            if all(one.state in (State.NO_DATA, State.NO_NAME) for one in found):
                return _NO_DOMAIN
        return _NOT_KNOWN


def _means_listed(answer: str) -> bool:
    try:
        found = int(IPv4Address(answer))
    except ValueError:
        return False
    return found >> 24 == int(_LISTED) >> 24 and found >> 8 != int(_ERRORS) >> 8


_NO_DOMAIN = Refusal(reply(553, "5.1.8", "Domain of sender address does not exist"), "check_mail")
_NULL_MX = Refusal(reply(550, "5.7.27", "Domain of sender address takes no mail (null MX)"), "check_mail")
_NOT_KNOWN = Refusal(reply(451, "4.1.8", "Domain of sender address cannot be looked up now"), "check_mail")
