"""The sender of mail that leaves this host, under the name that others know: envelope and header.

A host behind a smarthost often has a name that exists nowhere else, and a provider takes only senders it knows. The
table ([relay] masquerade) says what an address becomes; the most exact key counts:

    user@domain   this address, also of another domain
    user          this user at any of our own domains
    *             everybody at our own domains

A value without "@" is a domain that replaces the domain alone. Addresses of other domains stay what they are, unless
they are named: a forwarded message keeps its author. The null sender stays null.

In the header the fields that say whom the mail is from are changed (Postfix calls them header_sender), each address by
itself; display names, comments and folding stay. A field that cannot be read stays as it is. Queue files are immutable,
so this happens while the message is sent. RFC 5322 sections 3.6.2 and 3.6.6.
"""

from collections.abc import Callable, Iterable

from . import address, headers
from .envelope import raw, text

FIELDS = frozenset((b"from", b"sender", b"reply-to", b"errors-to", b"return-receipt-to", b"disposition-notification-to",
                    b"resent-from", b"resent-sender", b"resent-reply-to"))
EVERYBODY = "*"


class Masquerade:
    """table: (key, address or domain). is_own: whether a domain is this host. An address without a domain is ours."""

    def __init__(self, table: Iterable[tuple[str, str]], is_own: Callable[[str], bool]) -> None:
        self._table = dict(table)
        self._is_own = is_own

    def __bool__(self) -> bool:
        return bool(self._table)

    def sender(self, whom: str) -> str:
        """The address instead of this one. "" = null."""
        if not whom:
            return whom
        local, domain = address.split_text(whom)
        user = text(address.unquote(raw(local)))
        new = self._find(user, domain)
        if not new or "@" in new:
            return new or whom
        return f"{local}@{new}"

    def _find(self, user: str, domain: str) -> str:
        domain = _lower(domain.removesuffix("."))
        keys = [f"{user}@{domain}", f"{_lower(user)}@{domain}"] if domain else []
        if not domain or self._is_own(domain):
            keys += [user, _lower(user), EVERYBODY]
        return next((self._table[key] for key in keys if key in self._table), "")

    def header(self, head: bytes) -> bytes:
        """The start of a message, its whole header included, with the senders replaced. LF line ends."""
        fields, _, _ = headers.scan(head)
        found: list[bytes] = []
        done = 0
        for name, start, end in fields:
            if name in FIELDS:
                found += (head[done:start], self._field(head[start:end]))
                done = end
        found.append(head[done:])
        return b"".join(found)

    def _field(self, field: bytes) -> bytes:
        name, colon, value = field.partition(b":")
        try:
            spans = address.parse_list(value)
        except address.AddressError:
            return field
        found: list[bytes] = []
        done = 0
        for spec, start, end in spans:
            new = raw(self.sender(text(spec)))
            if new != spec:
                found += (value[done:start], new)
                done = end
        found.append(value[done:])
        return name + colon + b"".join(found)


def _lower(whom: str) -> str:
    """ASCII only: no other character equals one of ours because of its case."""
    return text(raw(whom).lower())
