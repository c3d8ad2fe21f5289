"""Which names are this host, how an address comes apart, and where mail for others goes next.

Pure: settings in, answers out, but for address literals, where the kernel knows which are ours; DNS is the relay's
business.

An address is a str without angle brackets: local part, quoted where it has to be, "@", domain; or a local part alone.
Domains are compared without regard to case and to a dot at their end. The percent hack and bang paths are letters like
others here: a%b@here is a user "a%b", who does not exist (relaying through somebody else's % is as old as open relays).

RFC 5321 sections 2.3.11, 4.1.2, 4.1.3; RFC 5233 (user+detail).
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ..config import Config
from ..users import fold, is_text
from . import own

MAX_ADDRESS = 1000  # characters; RFC 5321 wants 320, and whoever sends more gets an answer instead of a search
MAX_LOCAL = 512  # characters of a local part; RFC 5321 wants 64, VERP and SRS make longer ones
MAX_DOMAIN = 255
MAX_LABEL = 63

_CONTROLS = frozenset(map(chr, (*range(32), 127)))
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@dataclass(frozen=True, slots=True)
class Hop:
    """Where mail for another host goes.

    domain: of the recipient. hosts: "host:port" or "lmtp:...", tried in this order; empty: what DNS says of the domain.
    """

    domain: str
    hosts: tuple[str, ...] = ()

    @property
    def destination(self) -> str:
        """What deliveries are counted and put off by: the hosts if they are given, else the domain."""
        return ",".join(self.hosts) or self.domain


class Router:
    """The host's names and routes. config: as load() completes it."""

    def __init__(self, config: Config) -> None:
        self.mailname = normal_domain(config.domain or config.hostname or "localhost")
        self.hostname = normal_domain(config.hostname or "localhost")
        self.local_domains = frozenset(map(normal_domain, ("localhost", self.hostname, *config.local_domains)))
        self.local_name = self.mailname if self.mailname in self.local_domains else self.hostname  # of users here
        self.delimiters = config.local.recipient_delimiter
        self._own = frozenset(("localhost", "localhost.localdomain", self.hostname, self.hostname.partition(".")[0],
                               self.mailname))
        self._is_own = own.is_own_for(config)
        self._transport = dict(config.relay.transport)
        self._smarthost = config.relay.smarthost

    def is_local(self, domain: str) -> bool:
        """Whether mail for this domain, or address literal, is for users of this host."""
        domain = normal_domain(domain)
        return domain in self.local_domains or (domain.startswith("[") and self._is_own_literal(domain))

    def _is_own_literal(self, domain: str) -> bool:
        address = _literal(domain)
        return address is not None and self._is_own(str(address))

    def same_as(self, domain: str) -> frozenset[str]:
        """The domains that mean the same place: all names of this host if it is one of them, else only itself."""
        domain = normal_domain(domain)
        return self._own if not domain or domain in self._own or domain.startswith("[") else frozenset((domain,))

    def qualify(self, address: str) -> str:
        """The address with a domain: one without gets the mail name."""
        return address if split(address)[1] else f"{address}@{self.mailname}"

    def here(self, address: str) -> str:
        """The address of a recipient with a domain: one without is a name of this host, whatever the mail name is.

        sendmail has it so, and cron mail for root depends on it where the mail name is that of another host.
        """
        return address if split(address)[1] else f"{address}@{self.local_name}"

    def detail(self, local: str) -> tuple[str, str, str]:
        """(user, delimiter, detail) of a local part; ("user", "", "") without a delimiter.

        owner- and -request names of lists are whole names, as Postfix has it, and so is mailer-daemon: "-" may be a
        delimiter.
        """
        name = fold(local)
        if not self.delimiters or name.startswith("owner-") or name.endswith("-request") or name == "mailer-daemon":
            return local, "", ""
        places = [place for place in (local.find(one, 1) for one in self.delimiters) if place > 0]
        if not places:
            return local, "", ""
        first = min(places)
        return local[:first], local[first], local[first + 1:]

    def hop(self, address: str) -> Hop:
        """Where mail that is not local goes: by the transport table, most exact first, then smarthost, then DNS."""
        domain = normal_domain(split(address)[1])
        route = self._route(address, domain)
        if route == "mx" or (not route and not self._smarthost):
            return Hop(domain)
        return Hop(domain, (route,) if route else self._smarthost)

    def _route(self, address: str, domain: str) -> str:
        if not self._transport:
            return ""
        local = address[:len(address) - len(split(address)[1]) - 1]
        keys = [f"{local}@{domain}", f"{fold(local)}@{domain}", domain]
        parts = domain.split(".")
        keys += ["." + ".".join(parts[count:]) for count in range(1, len(parts))]
        return next((self._transport[key] for key in (*keys, "*") if key in self._transport), "")


def normal_domain(domain: str) -> str:
    """The domain as it is compared: lower case, no dot at its end."""
    return fold(domain.removesuffix("."))


def split(address: str) -> tuple[str, str]:
    """(local part without its quotes, domain as written, "" = none). Takes every str; problem() says what is wrong."""
    if not address.startswith('"'):
        local, at, domain = address.rpartition("@")
        return (local, domain) if at else (address, "")
    parts, position = [], 1
    while position < len(address) and address[position] != '"':
        if address[position] == "\\":
            position += 1
        parts.append(address[position:position + 1])
        position += 1
    rest = address[position + 1:]
    return ("".join(parts), rest[1:]) if rest.startswith("@") else ("".join(parts) + rest, "")


def problem(address: str) -> str:
    """What keeps this from being the address of a recipient, "" if nothing does."""
    if len(address) > MAX_ADDRESS:
        return "address is too long"
    if not _CONTROLS.isdisjoint(address):
        return "address has a control character"
    if not is_text(address):
        return "address has a character that is none"
    local, domain = split(address)
    if not local:
        return "address has no local part"
    if len(local) > MAX_LOCAL:
        return "local part is too long"
    if domain or address.endswith("@"):
        return _domain_problem(domain)
    return ""


def _domain_problem(domain: str) -> str:
    domain = domain.removesuffix(".")
    if domain.startswith("["):
        return "" if _literal(domain) is not None else "not an address literal"
    if not domain or len(domain) > MAX_DOMAIN:
        return "domain is empty or too long"
    for label in domain.split("."):
        if not 0 < len(label) <= MAX_LABEL or label[0] == "-" or label[-1] == "-":
            return "domain has a label that is empty or too long, or has a hyphen at its end"
        if any((c not in _LABEL and c.isascii()) or "\udc80" <= c <= "\udcff" for c in label):
            return "domain has a character that domains do not have"
    return ""


def _literal(domain: str) -> IPv4Address | IPv6Address | None:
    """The address in [192.0.2.1] or [IPv6:2001:db8::1]."""
    inside = domain[1:-1]
    if not domain.endswith("]"):
        return None
    try:
        return IPv6Address(inside[5:]) if inside[:5].lower() == "ipv6:" else IPv4Address(inside)
    except ValueError:
        return None
