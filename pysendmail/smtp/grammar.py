"""The grammar of SMTP: the only module that renders or parses a command, a path, a parameter, an address literal.

Rendering refuses control characters, blanks and everything else that would make two arguments of one: no address,
however it got into an envelope, adds a line or a parameter to the conversation. Parsing refuses the same, so that it
never gets there by SMTP. What is refused raises BadSyntax, which says what to answer; answers never repeat what was
sent.

An address is a str without angle brackets, as the envelope has it: local@domain, with a quoted local part where it has
to be quoted, or a local part alone. Parsing is as strict as senders allow: blanks after the colon, missing angle
brackets and dots in odd places of a local part are met daily and harm nobody. A source route is dropped.

RFC 5321 section 4.1, RFC 1870 (SIZE), RFC 6152 (BODY), RFC 3461 (RET, ENVID, NOTIFY, ORCPT, xtext), RFC 4954 (AUTH),
RFC 6531 (SMTPUTF8), RFC 2033 (LHLO).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ..mail.address import split_text
from ..mail.envelope import NOTIFY, raw
from .reply import Reply, reply
from .wire import LocalError

MAX_AUTH = 12 * 1024 + 2  # bytes of a line in an AUTH exchange (RFC 4954 section 4)
MAX_LOCAL = 512  # characters of a local part; RFC 5321 wants 64, VERP and SRS make longer ones
MAX_DOMAIN = 255
MAX_ENVID = 100  # RFC 3461 section 4.4
MAX_ORCPT = 500  # RFC 3461 section 4.2
MAX_SIZE_DIGITS = 20  # RFC 1870 section 5
MAX_PARAMETERS = 16

_CONTROL = bytes(range(32)) + b"\x7f"
_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\U0010ffff-]+"
_QUOTED = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"'
_DOMAIN = r"\[[^\[\]\\\x00-\x20\x7f]*\]|[A-Za-z0-9_.\x80-\U0010ffff-]+"
_LABEL = r"(?!-)[A-Za-z0-9_\x80-\U0010ffff-]{1,63}(?<!-)"
_LABELS = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_ADDRESS = re.compile(f"(?P<local>{_LOCAL}|{_QUOTED})(?:@(?P<domain>{_DOMAIN}))?")
_ROUTE = re.compile(r"@[^:<>\"\s]*:")
_PLAIN_LOCAL = re.compile(_LOCAL)
_QUOTED_LOCAL = re.compile(_QUOTED)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f]+))?")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_VERB = re.compile(rb"[A-Za-z]+")
_HELLO = re.compile(r"[A-Za-z0-9._:#\[\]-]{1,255}")  # the characters that sendmail takes
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_ORCPT_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class BadSyntax(ValueError):
    """What a client sent is no such command. `reply` is what to answer."""

    def __init__(self, words: str, status: str = "5.5.4", code: int = 501) -> None:
        super().__init__(words)
        self.reply: Reply = reply(code, status, words)


@dataclass(frozen=True, slots=True)
class MailParameters:
    """Of MAIL. size: octets, 0 = not said. body: "7bit", "8bitmime" or "". ret: "full", "hdrs" or "". envid: xtext."""

    size: int = 0
    body: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    auth: str = ""  # xtext or "<>"


@dataclass(frozen=True, slots=True)
class RcptParameters:
    """Of RCPT. notify: subset of envelope.NOTIFY. orcpt: "type;xtext"."""

    notify: frozenset[str] = frozenset()
    orcpt: str = ""


# ---- reading what a client sends

def parse_command(line: bytes) -> tuple[str, str]:
    """(verb in capitals, argument) of a command line without its line end. Raises BadSyntax.

    Bytes that are no UTF-8 stay in the argument as surrogates, which every pattern here refuses.
    """
    found = _VERB.match(line)
    verb = found.group() if found else b""
    rest = line[len(verb):]
    if not verb or rest[:1] not in (b"", b" "):
        raise BadSyntax("command not recognized", "5.5.2", 500)
    if len(rest.translate(None, _CONTROL)) != len(rest):
        raise BadSyntax("control character in command", "5.5.2", 500)
    return verb.decode("ascii").upper(), rest.decode("utf-8", "surrogateescape").strip(" ")


def parse_hello(argument: str) -> str:
    """The name a client gives itself. Raises BadSyntax."""
    if not argument:
        raise BadSyntax("a domain name or address literal is required")
    if not _HELLO.fullmatch(argument):
        raise BadSyntax("not a domain name")
    return argument


def parse_mail(argument: str, extensions: frozenset[str]) -> tuple[str, MailParameters]:
    """The sender ("" = null) and parameters of "FROM:<...> ...". Raises BadSyntax. `extensions`: keywords on offer."""
    address, words = _parse_path(argument, "FROM:", "5.1.7")
    known = {"SIZE": "SIZE", "8BITMIME": "BODY", "SMTPUTF8": "SMTPUTF8", "DSN": "RET ENVID", "AUTH": "AUTH"}
    given = _parse_parameters(words, extensions, known)
    size, body, ret = given.get("SIZE", "0"), given.get("BODY", "").lower(), given.get("RET", "").lower()
    envid, auth = given.get("ENVID", ""), given.get("AUTH", "")
    if not (size.isascii() and size.isdigit() and len(size) <= MAX_SIZE_DIGITS):
        raise BadSyntax("SIZE is not a number")
    if body not in ("", "7bit", "8bitmime"):
        raise BadSyntax("BODY is not 7BIT or 8BITMIME")
    if ret not in ("", "full", "hdrs"):
        raise BadSyntax("RET is not FULL or HDRS")
    if "ENVID" in given and not is_envid(envid):
        raise BadSyntax("ENVID is not xtext")
    if "AUTH" in given and auth != "<>" and not _is_printable_xtext(auth):
        raise BadSyntax("AUTH is not xtext")
    if not address.isascii() and "SMTPUTF8" not in given:
        raise BadSyntax("a non-ASCII address needs SMTPUTF8", "5.6.7", 553)
    return address, MailParameters(int(size), body, "SMTPUTF8" in given, ret, envid, auth)


def parse_rcpt(argument: str, extensions: frozenset[str], *, smtputf8: bool = False) -> tuple[str, RcptParameters]:
    """The recipient and parameters of "TO:<...> ...". Raises BadSyntax. `smtputf8`: whether MAIL had that."""
    address, words = _parse_path(argument, "TO:", "5.1.3")
    if not address:
        raise BadSyntax("a recipient is required", "5.1.3")
    if not address.isascii() and not smtputf8:
        raise BadSyntax("a non-ASCII address needs SMTPUTF8", "5.6.7", 553)
    return address, parse_rcpt_words(words, extensions)


def parse_rcpt_words(words: list[str], extensions: frozenset[str]) -> RcptParameters:
    """What stands behind a recipient. Raises BadSyntax."""
    given = _parse_parameters(words, extensions, {"DSN": "NOTIFY ORCPT"})
    notify: frozenset[str] = frozenset()
    if "NOTIFY" in given:
        asked = given["NOTIFY"].lower().split(",")
        notify = frozenset(asked)
        if notify - NOTIFY or len(notify) != len(asked) or ("never" in notify and len(notify) > 1):
            raise BadSyntax("NOTIFY is not NEVER or a list of SUCCESS, FAILURE, DELAY")
    if "ORCPT" in given and not is_orcpt(given["ORCPT"]):
        raise BadSyntax("ORCPT is not a type and xtext")
    return RcptParameters(notify, given.get("ORCPT", ""))


def parse_xclient(argument: str, names: tuple[str, ...]) -> dict[str, str]:
    """{NAME: value} of XCLIENT, decoded; "" where the proxy does not know. Raises BadSyntax."""
    given: dict[str, str] = {}
    for word in _words(argument):
        name, _, value = word.partition("=")
        name = name.upper()
        if name not in names or name in given or not value or not _is_printable_xtext(value):
            raise BadSyntax("not an attribute of XCLIENT")
        value = from_xtext(value)
        given[name] = "" if value.upper() in ("[UNAVAILABLE]", "[TEMPUNAVAIL]") else value
    if not given:
        raise BadSyntax("XCLIENT needs attributes")
    return given


def _parse_path(argument: str, keyword: str, status: str) -> tuple[str, list[str]]:
    """The address after `keyword` and the words behind it. `status`: for an address that is none."""
    if argument[:len(keyword)].upper() != keyword:
        raise BadSyntax(f"{keyword}<address> is required")
    text = argument[len(keyword):].lstrip(" ")
    in_brackets = text.startswith("<")
    start = 1 if in_brackets else 0
    if text.startswith("<>"):
        return "", _words(text[2:])
    if in_brackets and (route := _ROUTE.match(text, start)):  # RFC 5321 section 4.1.1.3: ignored, never acted on
        start = route.end()
    found = _ADDRESS.match(text, start)
    end = found.end() if found else 0
    if found is None or (in_brackets and text[end:end + 1] != ">"):
        raise BadSyntax("not an address", status)
    local, domain = found["local"], found["domain"]
    rest = text[end + 1 if in_brackets else end:]
    if rest[:1] not in ("", " ") or len(local) > MAX_LOCAL or (domain and not is_domain(domain)):
        raise BadSyntax("not an address", status)
    local = _simplest(local)
    if local == '""' or not (local + (domain or "")).isprintable():
        raise BadSyntax("not an address", status)
    return f"{local}@{domain.rstrip('.')}" if domain else local, _words(rest)


def _words(text: str) -> list[str]:
    return [word for word in text.split(" ") if word]


def _parse_parameters(words: list[str], extensions: frozenset[str], known: dict[str, str]) -> dict[str, str]:
    """{NAME: value, "" = none}. `known`: the parameters that each extension brings."""
    allowed = {name for extension, names in known.items() if extension in extensions for name in names.split(" ")}
    given: dict[str, str] = {}
    if len(words) > MAX_PARAMETERS:
        raise BadSyntax("too many parameters")
    for word in words:
        found = _PARAMETER.fullmatch(word)
        if not found:
            raise BadSyntax("parameters are NAME or NAME=value")
        name = found[1].upper()
        if name not in allowed:
            raise BadSyntax("parameter is not supported", "5.5.4", 555)
        if name in given or (found[2] is None) != (name == "SMTPUTF8"):
            raise BadSyntax("parameter is given twice, or its value is missing")
        given[name] = found[2] or ""
    return given


# ---- addresses

def is_domain(domain: str) -> bool:
    """Whether this is a domain name (letters, digits, "-" and "_"; perhaps a final dot) or an address literal."""
    if domain.startswith("["):
        return is_literal(domain)
    return len(domain) <= MAX_DOMAIN and bool(_LABELS.fullmatch(domain)) and domain.isprintable()


def is_literal(text: str) -> bool:
    """Whether this is an address literal: [192.0.2.1] or [IPv6:2001:db8::1] (RFC 5321 section 4.1.3)."""
    return bool(literal_address(text))


def literal_address(text: str) -> str:
    """The IP address in an address literal, "" if it is none."""
    if not text.startswith("[") or not text.endswith("]"):
        return ""
    inner = text[1:-1]
    try:
        if inner[:5].upper() == "IPV6:" and "%" not in inner:
            return str(IPv6Address(inner[5:]))
        return str(IPv4Address(inner))
    except AddressValueError:
        return ""


def to_ascii(address: str) -> str:
    """The address with its domain in A-labels, for a peer without SMTPUTF8; unchanged where that cannot be done.

    Labels are bounded before they are converted: the conversion takes quadratic time (CVE-2022-45061).
    """
    local, domain = split_text(address)
    if domain.isascii() or not is_domain(domain):
        return address
    try:
        return f"{local}@{domain.encode('idna').decode('ascii')}"
    except UnicodeError:
        return address


def _simplest(local: str) -> str:
    """A local part without quotes it does not need, so that "joe"@x and joe@x are one address everywhere."""
    if not local.startswith('"'):
        return local
    inner = re.sub(r"\\(.)", r"\1", local[1:-1])
    return inner if _PLAIN_LOCAL.fullmatch(inner) else _quote(inner)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- rendering what we send

def path(address: str) -> bytes:
    """<address> for the wire; "" gives <>. Raises ValueError for what cannot be an address on the wire.

    A local part gets quotes where it needs them; one with quotes in the wrong places has no meaning that we could keep.
    """
    if not address:
        return b"<>"
    local, domain = split_text(address)
    is_whole = len(local) == len(address)
    domain = domain.removesuffix(".")
    if not _PLAIN_LOCAL.fullmatch(local) and not _QUOTED_LOCAL.fullmatch(local):
        if '"' in local or "\\" in local:
            raise ValueError("not an address")
        local = _quote(local)
    bare = local if is_whole else f"{local}@{domain}"
    if not bare.isprintable() or len(local) > MAX_LOCAL or local == '""' or not (is_whole or is_domain(domain)):
        raise ValueError("not an address")
    return b"<%s>" % bare.encode("utf-8")  # surrogates, which are bytes of no character, are not printable


def command(verb: str, *arguments: str | bytes) -> bytes:
    """A command line with its line end. Raises LocalError for a control character in it, wherever that came from."""
    line = b" ".join((verb.encode("ascii"), *(raw(a) if isinstance(a, str) else a for a in arguments if a)))
    if len(line.translate(None, _CONTROL)) != len(line):
        raise LocalError(f"control character in {verb}")
    return line + b"\r\n"


def answer(text: bytes) -> bytes:
    """A line of an AUTH exchange, from base64."""
    return text + b"\r\n"


def mail(sender: bytes, parameters: MailParameters) -> bytes:
    """MAIL FROM:sender, which comes from path()."""
    return command("MAIL", b"FROM:" + sender, *mail_words(parameters))


def mail_words(parameters: MailParameters) -> list[str]:
    """As they stand behind the sender."""
    p = parameters
    words = (("SIZE", str(p.size) if p.size else ""), ("BODY", p.body.upper()), ("RET", p.ret.upper()),
             ("ENVID", p.envid), ("AUTH", p.auth))
    return _parameters(words) + (["SMTPUTF8"] if p.smtputf8 else [])


def rcpt(recipient: bytes, parameters: RcptParameters) -> bytes:
    """RCPT TO:recipient, which comes from path()."""
    return command("RCPT", b"TO:" + recipient, *rcpt_words(parameters))


def rcpt_words(parameters: RcptParameters) -> list[str]:
    """As they stand behind the recipient."""
    words = (("NOTIFY", ",".join(sorted(parameters.notify, reverse=True)).upper()), ("ORCPT", parameters.orcpt))
    return _parameters(words)


def _parameters(words: Iterable[tuple[str, str]]) -> list[str]:
    given = [f"{name}={value}" for name, value in words if value]
    if any(" " in word for word in given):
        raise LocalError("blank in a parameter")
    return given


def from_xtext(text: str) -> str:
    """What xtext (RFC 3461 section 4) stands for, control characters too: mind where it goes. Raises ValueError."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    return re.sub(rb"\+([0-9A-F]{2})", lambda m: bytes((int(m[1], 16),)), raw(text)).decode("utf-8", "surrogateescape")


def is_envid(text: str) -> bool:
    """Whether this can be an ENVID (RFC 3461 section 4.4)."""
    return 0 < len(text) <= MAX_ENVID and _is_printable_xtext(text)


def is_orcpt(text: str) -> bool:
    """Whether this can be an ORCPT, such as "rfc822;joe@example.org" (RFC 3461 section 4.2)."""
    kind, _, value = text.partition(";")
    return bool(_ORCPT_TYPE.fullmatch(kind) and value) and len(text) <= MAX_ORCPT and _is_printable_xtext(value)


def _is_printable_xtext(text: str) -> bool:
    """Whether it is xtext that hides no control character: the text ends up in reports and logs."""
    return bool(_XTEXT.fullmatch(text)) and not any(c < " " or c == "\x7f" for c in from_xtext(text))


# ---- what a server offers

def capabilities(hello: Reply) -> dict[str, tuple[str, ...]]:
    """{KEYWORD: words behind it} of a positive reply to EHLO or LHLO, whose first line only greets.

    "AUTH=LOGIN", an old misprint that is still sent, counts as AUTH; the words of repeated keywords are added up.
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in hello.lines[1:]:
        keyword, *words = _words(line.replace("=", " ", 1) if line[:5].upper() == "AUTH=" else line) or [""]
        if _KEYWORD.fullmatch(keyword):
            found[keyword.upper()] = found.get(keyword.upper(), ()) + tuple(words)
    return found


def size_limit(words: tuple[str, ...]) -> int:
    """The limit in a server's SIZE keyword, 0 = none told."""
    number = words[0] if words else ""
    return int(number) if number.isascii() and number.isdigit() and len(number) <= MAX_SIZE_DIGITS else 0
