"""Which hosts take mail for a destination, and in what order they are tried.

For a domain that is what DNS says: MX by preference, at random among equals, else the domain's own addresses; a null
MX means never. If this host is among them, it and everything that is not better is left out, and if nothing remains
the mail would come back to us. An address literal is itself. Hosts that the settings name have no MX; a name without
dots is also looked for in /etc/hosts and in the search list.

Pure but for the questions it asks through `Lookup`. Every list has a bound, names are checked before they are believed,
and addresses on which no other host can be are not used. RFC 5321 sections 2.3.5 and 5.1, RFC 7505 (null MX).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest

from ..config import is_domain, split_endpoint
from ..mail.outcome import Outcome, deferred, failed
from ..route.own import UNIX
from ..smtp import grammar
from .resolver import Answer, Kind, Lookup, State

SMTP_PORT, SUBMISSIONS_PORT, LMTP_PORT = 25, 465, 24
MAX_NAMES = 20  # MX hosts that are looked at
MAX_PLACES = 10  # addresses that are found for one destination
MAX_HOSTS_FILE = 256 * 1024  # bytes of /etc/hosts
LMTP = "lmtp:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect. name: of the host, as the reports and the certificate have it. address: IP address, or the path
    of a socket if port is 0. given: as the settings name it, "" = found in DNS."""

    name: str
    address: str
    port: int
    is_lmtp: bool = False
    given: str = ""

    def __str__(self) -> str:
        return f"{self.name} [{self.address}]"

    @property
    def server_name(self) -> str:
        """Whom a certificate has to be for: the name, or the address of a literal."""
        return self.address if self.name.startswith("[") else self.name

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS begins with the connection (RFC 8314)."""
        return self.port == SUBMISSIONS_PORT and not self.is_lmtp


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known about this host. is_own: whether mail sent to an address would come to ourselves.

    shuffle: puts a list in random order. port: of SMTP between hosts. search: the domains of names without dots.
    """

    hostname: str
    is_own: Callable[[str], bool]
    shuffle: Callable[[list[tuple[int, str]]], None]
    ipv6: bool = True
    port: int = SMTP_PORT
    search: Callable[[], tuple[str, ...]] = tuple
    hosts_file: str = "/etc/hosts"


Found = list[Place] | Outcome


async def find(domain: str, hosts: Sequence[str], lookup: Lookup, here: Surroundings) -> Found:
    """The places for a destination, best first and never empty; or why there are none."""
    return await _named(hosts, lookup, here) if hosts else await _by_domain(domain, lookup, here)


# ---- by DNS


async def _by_domain(domain: str, lookup: Lookup, here: Surroundings) -> Found:
    if domain.startswith("["):
        address = grammar.literal_address(domain)
        if not address:
            return failed("5.1.2", f"{domain} is no address literal")
        return _usable(domain, [Place(domain, address, here.port)], here)
    name = _to_ascii(domain)
    if not is_domain(name):
        return failed("5.1.2", f"{domain} cannot be a domain")
    answer = await lookup(name, Kind.MX)
    if answer.state is State.TROUBLE:
        return deferred("4.4.3", f"cannot find the mail hosts of {domain}: {answer.words}")
    if answer.state is State.NO_NAME:
        return failed("5.1.2", f"domain {domain} does not exist")
    if answer.state is State.NO_DATA:
        return await _search_addresses(domain, [(0, [name])], lookup, here)
    if all(not host for _, host in answer.records):
        return failed("5.1.10", f"{domain} takes no mail (null MX)")
    return await _search_addresses(domain, _by_preference(answer, here), lookup, here)


def _by_preference(answer: Answer, here: Surroundings) -> list[tuple[int, list[str]]]:
    """Names that can be hosts, grouped by preference, without ourselves and what is not better than we are."""
    records = list(answer.records)
    here.shuffle(records)
    groups: dict[int, list[str]] = {}
    for preference, host in sorted(records, key=lambda record: record[0])[:MAX_NAMES]:
        host = host.lower().rstrip(".")
        if host == here.hostname.lower():
            return [*((p, names) for p, names in groups.items() if p < preference), (preference, [])]
        if host.isascii() and is_domain(host):
            groups.setdefault(preference, []).append(host)
    return list(groups.items())


async def _search_addresses(domain: str, groups: list[tuple[int, list[str]]], lookup: Lookup,
                            here: Surroundings) -> Found:
    """The addresses of hosts, group by group until there are enough. An empty group stands for ourselves."""
    search = _Search(lookup, here)
    for _, names in groups:
        places = [place for one in await asyncio.gather(*(search.addresses(name) for name in names)) for place in one]
        if not names or any(here.is_own(place.address) for place in places):
            search.has_met_us = True
            break
        search.places += places
        if len(search.places) >= MAX_PLACES:
            break
    return search.result(domain)


@dataclass(slots=True)
class _Search:
    """What has been found so far. trouble: why something may be missing."""

    lookup: Lookup
    here: Surroundings
    places: list[Place] = field(default_factory=list)
    trouble: str = ""
    has_met_us: bool = False
    has_ipv6_only: bool = False

    async def addresses(self, name: str) -> list[Place]:
        """The addresses of one host, IPv6 and IPv4 in turn."""
        answers = await asyncio.gather(self.lookup(name, Kind.AAAA), self.lookup(name, Kind.A))
        for answer in answers:
            if answer.state is State.TROUBLE:
                self.trouble = answer.words
        found = [Place(name, address, self.here.port) for address in _in_turn(answers) if is_usable(address)]
        if self.here.ipv6:
            return found
        kept = [place for place in found if ":" not in place.address]
        self.has_ipv6_only |= len(kept) < len(found) and not kept
        return kept

    def result(self, domain: str) -> Found:
        if self.places:
            return self.places[:MAX_PLACES]
        if self.trouble:
            return deferred("4.4.3", f"cannot find an address for {domain}: {self.trouble}")
        if self.has_met_us:
            return failed("5.4.6", f"mail for {domain} would come back to this host")
        if self.has_ipv6_only:
            return deferred("4.4.4", f"{domain} can be reached over IPv6 only, and [relay] ipv6 is off")
        return failed("5.4.4", f"no host that takes mail for {domain} has an address")


def _in_turn(answers: Sequence[Answer]) -> list[str]:
    """Addresses, one of each answer in turn: those of a family that leads nowhere must not use up all tries."""
    rounds = zip_longest(*([address for _, address in answer.records] for answer in answers))
    return [address for one in rounds for address in one if address]


def is_usable(address: str) -> bool:
    """Whether a host can have this address. Others would be nobody, or everybody."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return not found.is_multicast and address != "255.255.255.255"


def _usable(domain: str, places: list[Place], here: Surroundings) -> Found:
    if any(here.is_own(place.address) for place in places):
        return failed("5.4.6", f"mail for {domain} would come back to this host")
    usable = [place for place in places if is_usable(place.address)]
    return usable or failed("5.4.4", f"{domain} is no address of a host")


def _to_ascii(domain: str) -> str:
    """A-labels for DNS (RFC 5890); the name as it is where it has none, and then it is no domain."""
    return grammar.to_ascii(f"x@{domain}")[2:]


# ---- by the settings


async def _named(hosts: Sequence[str], lookup: Lookup, here: Surroundings) -> Found:
    """The places of hosts that the settings name, in their order."""
    places: list[Place] = []
    trouble: Outcome | None = None
    for given in hosts:
        found = await _named_host(given, lookup, here)
        if isinstance(found, Outcome):
            trouble = trouble or found
        else:
            places += found
    return places[:MAX_PLACES] or trouble or deferred("4.3.5", "no host is named for this destination")


async def _named_host(given: str, lookup: Lookup, here: Surroundings) -> Found:
    """One of them. What is wrong with it is for its administrator to see to, so that mail waits (never 5.x.x)."""
    is_lmtp = given.startswith(LMTP)
    rest = given.removeprefix(LMTP)
    if rest.startswith(UNIX):
        path = rest.removeprefix(UNIX)
        return [Place(here.hostname, path, 0, is_lmtp, given)]
    try:
        name, port = split_endpoint(rest, LMTP_PORT if is_lmtp else SMTP_PORT)
    except ValueError as problem:
        return deferred("4.3.5", f"{given} {problem}")
    name = _to_ascii(name)
    answers: list[Answer] = []
    for full in _candidates(name, here):
        addresses = _without_dns(full, here)
        if not addresses:
            answers = [*await asyncio.gather(lookup(full, Kind.AAAA), lookup(full, Kind.A))]
            addresses = _in_turn(answers)
        places = [Place(name, address, port, is_lmtp, given) for address in addresses
                  if is_usable(address) and (here.ipv6 or ":" not in address)]
        if places:
            return places
    words = next((answer.words for answer in answers if answer.state is State.TROUBLE), "it has no address")
    return deferred("4.4.3", f"cannot find {name}: {words}")


def _candidates(name: str, here: Surroundings) -> list[str]:
    """The names that may be meant, likeliest first."""
    return [name] if "." in name or ":" in name else [*(f"{name}.{domain}" for domain in here.search()), name]


def _without_dns(name: str, here: Surroundings) -> list[str]:
    """Addresses that need no question: of an address, of localhost (RFC 6761), of /etc/hosts."""
    try:
        return [str(ip_address(name))]
    except ValueError:
        pass
    try:
        with open(here.hosts_file, "rb") as file:
            data = file.read(MAX_HOSTS_FILE)
    except OSError:
        data = b""
    found = in_hosts_file(data, name)
    return found or (["127.0.0.1", "::1"] if name.lower() in ("localhost", "localhost.localdomain") else [])


def in_hosts_file(data: bytes, name: str) -> list[str]:
    """The addresses of a name in hosts(5)."""
    found = []
    for line in data.decode("utf-8", "replace").split("\n"):
        address, *names = line.partition("#")[0].split() or [""]
        if name.lower() in map(str.lower, names) and is_usable(address):
            found.append(address)
    return found
