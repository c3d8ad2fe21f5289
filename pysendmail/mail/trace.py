"""Trace fields: what this host writes on top of a message, and what it reads there to stop a loop.

Received, Return-Path, Delivered-To, X-Original-To, the mbox From_ line, and the date they share. Every value comes from
outside in the end (HELO, addresses, login names), so each function escapes what could end a line or a comment: a
control character, or a line break of any script, becomes "?" (a newline in an address became a line of its own: Exim
CVE-2020-28026). Only a single recipient is ever named: a Received field that named two would show a Bcc.

Times are seconds since the epoch; `offset` is the local zone's distance from UTC in seconds, east positive
(time.localtime(now).tm_gmtoff). Nothing here depends on the locale. LF line ends.
RFC 5321 4.4 (trace), RFC 5322 3.3 (date) and 3.6.7, RFC 3848 and 6531 4.3 (protocol names), RFC 4155 (From_ line).
"""

from datetime import datetime, timedelta

from .envelope import Envelope, raw

Field = tuple[bytes, int, int]  # lower-case name, start, end: what headers.scan finds

PROTOCOLS = frozenset(prefix + suffix for prefix in ("ESMTP", "LMTP", "UTF8SMTP", "UTF8LMTP")
                      for suffix in ("", "A", "S", "SA")) | {"SMTP"}
MAILER_DAEMON = "MAILER-DAEMON"
SOFTWARE = b"pysendmail"  # without a version, which helps attackers more than readers
MAX_WORD = 255  # characters of a name in a Received field
MAX_FOR = 512  # bytes of an address in its "for" clause; a longer one is left out

_EPOCH = datetime(1970, 1, 1)
_LAST = 253402214400.0  # seconds: a day before the end of year 9999, the last that datetime knows
_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_SPECIALS = frozenset(' ()<>[]:;@\\,"')
_NO_DOMAIN = frozenset(' ()<>,;@\\"')
_NO_COMMENT = frozenset("()\\")
_NO_WORD = frozenset(' ()<>,;\\"')


def date(now: float, offset: int) -> bytes:
    """An RFC 5322 date-time, such as "Tue, 1 Jul 2003 10:52:37 +0200". Any number is taken; nonsense is clamped."""
    moment, minutes = _local(now, offset)
    zone = abs(minutes)
    return b"%s, %d %s %04d %02d:%02d:%02d %s%02d%02d" % (
        _DAYS[moment.weekday()], moment.day, _MONTHS[moment.month - 1], moment.year, moment.hour, moment.minute,
        moment.second, b"-" if minutes < 0 else b"+", zone // 60, zone % 60)


def digits(now: float) -> bytes:
    """The time as 14 digits, YYYYMMDDHHMMSS, UTC: for ids."""
    moment, _ = _local(now, 0)
    return b"%04d%02d%02d%02d%02d%02d" % moment.timetuple()[:6]


def from_line(sender: str, now: float, offset: int) -> bytes:
    """The line that begins a message in an mbox, with its LF; the date as asctime(3) writes it, local time."""
    moment, _ = _local(now, offset)
    # Readers take everything up to the first blank for the sender: a blank in it would shift the date.
    who = addr_spec(sender or MAILER_DAEMON).replace(b" ", b"?")
    return b"From %s %s %s %2d %02d:%02d:%02d %04d\n" % (
        who, _DAYS[moment.weekday()], _MONTHS[moment.month - 1], moment.day, moment.hour, moment.minute,
        moment.second, moment.year)


def received(envelope: Envelope, hostname: str, offset: int) -> bytes:
    """The Received field for a message that has just come in, by any door, folded, with its LF."""
    origin = envelope.origin
    lines = []
    if origin.kind == "command":
        who = word(origin.user) if origin.user else b"unknown"
        lines.append(b"from %s (uid %d)" % (who, origin.uid))
    elif origin.kind == "smtp":
        lines.append(b"from %s (%s)" % (word(origin.helo), _client(origin.client)))
        if origin.tls:
            lines.append(b"(using %s)" % _plain(origin.tls, _NO_COMMENT))
    by = b"by %s (%s)" % (word(hostname), SOFTWARE)
    if origin.protocol in PROTOCOLS:
        by += b" with " + origin.protocol.encode("ascii")
    lines.append(b"%s id %s" % (by, word(envelope.id)))
    if len(envelope.recipients) == 1:
        address = addr_spec(envelope.recipients[0].address)
        if len(address) <= MAX_FOR:
            lines.append(b"for <%s>" % address)
    return b"Received: %s;\n\t%s\n" % (b"\n\t".join(lines), date(envelope.received_at, offset))


def protocol_name(is_esmtp: bool, *, is_lmtp: bool = False, tls: bool = False, auth: bool = False,
                  smtputf8: bool = False) -> str:
    """The registered name of a session's protocol. After HELO there is no TLS, no AUTH and no SMTPUTF8."""
    if not is_esmtp and not is_lmtp:
        return "SMTP"
    base = "LMTP" if is_lmtp else "SMTP" if smtputf8 else "ESMTP"
    return ("UTF8" if smtputf8 else "") + base + ("S" if tls else "") + ("A" if auth else "")


def return_path(sender: str) -> bytes:
    """Return-Path with the envelope sender, "" = null: written at final delivery, once."""
    return b"Return-Path: <%s>\n" % (addr_spec(sender) if sender else b"")


def delivered_to(address: str) -> bytes:
    """Delivered-To: the mark by which has_delivered_to knows a message that comes by again."""
    return b"Delivered-To: %s\n" % addr_spec(address)


def original_to(address: str) -> bytes:
    """X-Original-To: the recipient as the sender gave it, before aliases."""
    return b"X-Original-To: %s\n" % addr_spec(address)


def hops(fields: list[Field]) -> int:
    """How many hosts this message says it has passed: its Received fields (RFC 5321 section 6.3)."""
    return sum(name == b"received" for name, _, _ in fields)


def has_delivered_to(head: bytes, fields: list[Field], address: str) -> bool:
    """Whether delivered_to(address) stands in the header already: delivering again would be a loop.

    Compared without regard to case, local part included: two spellings of a mailbox's name are one mailbox here.
    """
    mark = addr_spec(address).lower()
    return any(name == b"delivered-to" and head[start:end].partition(b":")[2].strip().lower() == mark
               for name, start, end in fields)


def escaped(text: str) -> bytes:
    """The text as part of one line: what no printer would show becomes "?". Bytes that are not UTF-8 stay."""
    if text.isprintable():
        return raw(text)
    return raw("".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "?" for c in text))


def addr_spec(address: str) -> bytes:
    """An envelope address as it may stand in a header field or between angle brackets, quoted where it has to be."""
    local, at, domain = address.rpartition("@")
    if not at or address.endswith('"'):
        local, at, domain = address, "", ""
    if not local or (_SPECIALS.intersection(local) and not _is_quoted(local)):
        local = quoted(local)
    if _NO_DOMAIN.intersection(domain):
        domain = "".join("?" if c in _NO_DOMAIN else c for c in domain)
    return escaped(local + at + domain)


def quoted(text: str) -> str:
    """The text as a quoted string (RFC 5322 section 3.2.4)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def word(text: str) -> bytes:
    """A host or user name in a Received field: one ASCII word that opens no comment; "unknown" for none."""
    return _plain(text, _NO_WORD) or b"unknown"


def _client(client: str) -> bytes:
    """The peer as an address literal; an IPv6 one gets its tag (RFC 5321 section 4.1.3)."""
    if client.startswith("[") and ":" in client and client[1:6].upper() != "IPV6:":
        client = "[IPv6:" + client[1:]
    return word(client)


def _plain(text: str, unfit: frozenset[str]) -> bytes:
    """At most MAX_WORD bytes of printable ASCII, "?" for everything else."""
    text = text[:MAX_WORD]
    if not text.isascii() or not text.isprintable() or unfit.intersection(text):
        text = "".join(c if " " <= c <= "~" and c not in unfit else "?" for c in text)
    return text.encode("ascii")


def _is_quoted(local: str) -> bool:
    """Whether this is one whole quoted string: no quote inside without its backslash, none swallowed at the end."""
    if len(local) < 2 or local[0] != '"' or local[-1] != '"':
        return False
    rest = local[1:-1].replace("\\\\", "").replace('\\"', "")
    return '"' not in rest and not rest.endswith("\\")


def _local(now: float, offset: int) -> tuple[datetime, int]:
    """(local time, offset in whole minutes). max and min in this order also tame a NaN."""
    minutes = min(max(-1439, int(offset / 60)), 1439)
    seconds = min(max(0.0, now), _LAST)
    return _EPOCH + timedelta(seconds=max(0, int(seconds) + minutes * 60)), minutes
