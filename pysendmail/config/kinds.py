"""What a value in a settings file may be: one Kind for each sort of setting, and the only place that judges values.

A Kind turns what TOML gave (bool, int, str, list, dict) into what a Config holds (bool, int, str, tuples of those), or
raises ValueError with words that complete "FILE:LINE: [section] name: ". Everything a Config holds can be compared,
hashed and sent on: there is no list, no dict and no object in it. Nothing here looks at files, users or the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

Pairs = tuple[tuple[str, str], ...]

MAX_TEXT = 4096  # characters in one value
MAX_ENTRIES = 10_000  # of a list or a table
SMTP_PORT = 25
MAX_PORT = 65535
MAX_NUMBER = 2 ** 53  # what every reader of JSON keeps exact

_LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_USER = _LABEL | frozenset(".$")
_SEPARATORS = frozenset("+-_=#!%.:/~^*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value. words: what it is, for people and for the manual. read: raises ValueError."""

    words: str
    read: Callable[[Any], Any]
    is_table: bool = False

    def plain(self, value: Any) -> Any:
        """What `read` gave, as TOML and JSON know it."""
        if not isinstance(value, tuple):
            return value
        return dict(value) if self.is_table else list(value)


def quoted(value: object) -> str:
    """A wrong value as an error line shows it: short, and harmless to a terminal."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_domain(text: str) -> bool:
    """Labels of letters, digits, hyphens and underscores; also letters beyond ASCII, as RFC 6531 permits."""
    labels = text.split(".")
    return len(text) <= 253 and all(
        0 < len(label) <= 63 and "-" not in (label[0], label[-1])
        and all(c in _LABEL or (c > "\x7f" and c.isalnum()) for c in label) for label in labels)


def is_host_name(text: str) -> bool:
    """What may stand in EHLO and Received (RFC 5321 section 4.1.2): a domain in ASCII that is no number."""
    return text.isascii() and is_domain(text) and not text.replace(".", "").isdigit()


def split_endpoint(text: str, default_port: int = SMTP_PORT) -> tuple[str, int]:
    """(host, port) of "host", "host:port", "[host]", "[2001:db8::1]:port". Raises ValueError."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
        is_sound = bracket == "]" and (not rest or bool(port))
    else:
        host, colon, port = text.partition(":")
        is_sound = bool(port) == bool(colon)
    if not is_sound or not (is_address(host) or is_domain(host)) or (":" in host and not text.startswith("[")):
        raise ValueError(f'must be a host and perhaps a port, such as "mail.example.org:587", not {quoted(text)}')
    if not port:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= MAX_PORT):
        raise ValueError(f"has no port between 0 and {MAX_PORT}: {quoted(text)}")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# ---- single values


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'must be text in quotes, not {quoted(value)}')
    if len(value) > MAX_TEXT:
        raise ValueError(f"is longer than {MAX_TEXT} characters")
    if not value.isprintable():
        # A line end here would become a line of a log, a header or a command.
        raise ValueError("contains a control character")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {quoted(value)}")
    return value


def whole(low: int, high: int = MAX_NUMBER) -> Kind:
    """A whole number within bounds, both included."""
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {quoted(value)}")
        if not low <= value <= high:
            limit = f"at least {low}" if value < low else f"at most {high}"
            raise ValueError(f"must be {limit}, not {quoted(value)}")
        return value
    return Kind("whole number", read)


def choice(*names: str) -> Kind:
    def read(value: object) -> str:
        if value not in names:
            raise ValueError(f"must be {_either(names)}, not {quoted(value)}")
        return str(value)
    return Kind(_either(names), read)


def _either(names: tuple[str, ...]) -> str:
    words = [f'"{name}"' for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]])


def _domain(value: object) -> str:
    text = _text(value).rstrip(".").lower()
    if text and not is_domain(text):
        raise ValueError(f"must be a domain, not {quoted(value)}")
    return text


def _host_name(value: object) -> str:
    text = _domain(value)
    if text and not is_host_name(text):
        raise ValueError(f"must be a host name in ASCII, not {quoted(value)}")
    return text


def _path(value: object) -> str:
    text = _text(value)
    if text and (not text.startswith("/") or "/../" in text + "/"):
        raise ValueError(f'must be a path that begins with "/" and has no "..", not {quoted(value)}')
    return text


def _user(value: object) -> str:
    text = _text(value)
    if not text or text[0] in "-." or set(text) - _USER:
        raise ValueError(f"must be the name of a user, not {quoted(value)}")
    return text


def _delimiter(value: object) -> str:
    text = _text(value)
    if set(text) - _SEPARATORS:
        raise ValueError(f'must consist of characters such as "+" and "-", not {quoted(value)}')
    return text


def _socket_path(text: str) -> str:
    if not text.startswith("unix:/"):
        raise ValueError(f'must be "unix:" and a path, not {quoted(text)}')
    return "unix:" + _path(text.removeprefix("unix:"))


def _endpoint(value: object) -> str:
    """host:port, "unix:/path" for those who speak with a neighbour."""
    text = _text(value)
    if text.startswith("unix:"):
        return _socket_path(text)
    split_endpoint(text)
    return text


def _mailbox(value: object) -> str:
    text = _text(value)
    if text in ("mbox", "maildir"):
        return text
    if not text.startswith("lmtp:"):
        raise ValueError('must be "mbox", "maildir", "lmtp:unix:/path" or "lmtp:host:port", '
                         f"not {quoted(value)}")
    return "lmtp:" + _endpoint(text.removeprefix("lmtp:"))


def _smarthost(value: object) -> str:
    text = _text(value)
    _, port = split_endpoint(text)
    if port == 0:
        raise ValueError(f"has no port between 1 and {MAX_PORT}: {quoted(text)}")
    return text


def _listen(value: object) -> str:
    text = _text(value)
    if text.startswith("unix:"):
        return _socket_path(text)
    host, port = split_endpoint(text, -1)
    if port < 0 or not is_address(host):
        # A name may resolve to a public address tomorrow; "*" would be open to everybody by one character.
        raise ValueError(f'must be an address and a port, such as "127.0.0.1:25" or "[::1]:25", not {quoted(value)}')
    return text


def _network(value: object) -> str:
    text = _text(value)
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        meant = f": did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        meant = ""
    raise ValueError(f'must be a network such as "192.0.2.0/24", not {quoted(value)}{meant}')


# ---- lists and tables


def _list(read: Callable[[object], str], *, single: bool = False) -> Callable[[object], tuple[str, ...]]:
    """A list of what `read` reads, without doubles. single: "" is an empty list, and a text a list of one."""
    def read_all(value: object) -> tuple[str, ...]:
        if single and isinstance(value, str):
            value = [value] if value else []
        if not isinstance(value, list):
            raise ValueError(f"must be a list in brackets, not {quoted(value)}")
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"has more than {MAX_ENTRIES} entries")
        found = [read(entry) for entry in value]
        if "" in found:
            raise ValueError("has an empty entry")
        return tuple(dict.fromkeys(found))
    return read_all


def _table(read_key: Callable[[str], str], read: Callable[[str], str]) -> Callable[[object], Pairs]:
    """A table as pairs: hashable, and dict() makes a dictionary of it again."""
    def read_all(value: object) -> Pairs:
        if not isinstance(value, dict):
            raise ValueError(f'must be a table such as {{ "example.org" = "..." }}, not {quoted(value)}')
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"has more than {MAX_ENTRIES} entries")
        found = {}
        for key, entry in value.items():
            try:
                found[read_key(_text(key))] = read(_text(entry))
            except ValueError as problem:
                raise ValueError(f"{quoted(key)} {problem}") from problem
        return tuple(found.items())
    return read_all


def _address(text: str) -> str:
    """user@domain, the domain in lower case."""
    user, at, domain = text.rpartition("@")
    if not at or not user or " " in user or not is_domain(domain):
        raise ValueError(f"must be an address, not {quoted(text)}")
    return f"{user}@{domain.lower()}"


def _transport_key(text: str) -> str:
    if "@" in text:
        return _address(text)
    if text != "*" and not is_domain(text.removeprefix(".")):
        raise ValueError('must be "user@domain", "domain", ".domain" or "*"')
    return text.lower()


def _transport_value(text: str) -> str:
    if text == "mx":
        return text
    if text.startswith("lmtp:"):
        return "lmtp:" + _endpoint(text.removeprefix("lmtp:"))
    return _smarthost(text)


def _address_or_domain(text: str) -> str:
    return _address(text) if "@" in text else _named_domain(text)


def _named_domain(text: object) -> str:
    domain = _domain(text)
    if not domain:
        raise ValueError("must be a domain, not empty")
    return domain


def _sender_key(text: str) -> str:
    if not text or " " in text:
        raise ValueError('must be "user", "user@domain" or "*"')
    return _address(text) if "@" in text else text


def _senders(text: str) -> str:
    """Addresses and domains with a blank between them."""
    words = [word for word in text.replace(",", " ").split(" ") if word]
    if not words:
        raise ValueError("must be addresses or domains, not empty")
    return " ".join(map(_address_or_domain, words))


_masquerade_table = _table(_sender_key, _address_or_domain)


def _masquerade(value: object) -> Pairs:
    if isinstance(value, str):
        return (("*", _address_or_domain(_text(value))),) if value else ()
    return _masquerade_table(value)


BOOLEAN = Kind("true or false", _boolean)
TEXT = Kind("text", _text)
DOMAIN = Kind("domain", _domain)
HOST_NAME = Kind("host name", _host_name)
DOMAINS = Kind("list of domains", _list(_named_domain, single=True))
PATH = Kind("path", _path)
PATHS = Kind("list of paths", _list(_path))
USER = Kind("user name", _user)
DELIMITER = Kind("characters", _delimiter)
MAILBOX = Kind('"mbox", "maildir", "lmtp:unix:/path" or "lmtp:host:port"', _mailbox)
SMARTHOSTS = Kind('"host:port" or a list of these', _list(_smarthost, single=True))
LISTEN = Kind('"address:port" or "unix:/path"', _listen)
LISTENS = Kind('list of "address:port"', _list(_listen))
ENDPOINTS = Kind('list of "unix:/path" or "host:port"', _list(_endpoint))
NETWORKS = Kind("list of networks", _list(_network))
TRANSPORT = Kind('table of "host:port", "lmtp:unix:/path", "lmtp:host:port" or "mx" by recipient',
                 _table(_transport_key, _transport_value), is_table=True)
MASQUERADE = Kind("domain, address, or a table of these by sender", _masquerade, is_table=True)
SENDERS = Kind("table of addresses or domains by login name", _table(_sender_key, _senders), is_table=True)
