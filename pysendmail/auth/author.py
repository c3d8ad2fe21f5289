"""The domain of whoever a message says it is from: what DMARC judges and what DKIM signs for. RFC 7489 section 3.1."""

import re

from ..mail import address, headers
from ..mail.envelope import text

MAX_CLAIMED = 10  # domains

_DOMAIN = re.compile(rb"""@[ \t]*([^][\s<>@(),;:\\"]{1,255})""")


def from_domain(head: bytes) -> str:
    """The one domain in From, in ASCII and small letters; "" where there is not exactly one."""
    fields = [head[start:end] for name, start, end in headers.scan(head)[0] if name == b"from"]
    if len(fields) != 1:
        return ""
    try:
        found = address.parse_list(fields[0].partition(b":")[2])
    except address.AddressError:
        return ""
    domains = {to_ascii(text(address.split(spec)[1])) for spec, _, _ in found}
    return domains.pop() if len(domains) == 1 else ""


def claimed_domains(head: bytes) -> list[str]:
    """Domains that a reader might take for that of the author where From does not tell one; MAX_CLAIMED at most."""
    found: dict[str, None] = {}
    for name, start, end in headers.scan(head)[0]:
        if name == b"from":
            for one in _DOMAIN.findall(head[start:end]):
                if len(found) < MAX_CLAIMED and (domain := to_ascii(text(one))):
                    found[domain] = None
    return list(found)


def to_ascii(domain: str) -> str:
    """A domain as DNS knows it; "" if it does not."""
    domain = domain.rstrip(".").lower()
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    return domain if "." in domain and not domain.startswith("[") else ""
