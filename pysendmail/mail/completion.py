"""What the trusted side makes of a submitted message's header: removes, adds and completes; the body is never touched.

sendmail(8) takes messages that lack nearly everything ("Subject: x", or no header at all) and callers rely on it. This
happens when the runner adopts a submission, not in /usr/sbin/sendmail: names and times are then ours, not the caller's.

    removed     Bcc, Resent-Bcc, Return-Path, Content-Length, Full-Name; From, Date, Message-ID, To, Cc that are blank;
                Authentication-Results in our name, which are not ours (forged.py)
    added       From, Date, Message-ID; To: undisclosed-recipients:; where no To or Cc is left to be seen;
                Resent-From, Resent-Date, Resent-Message-ID for the newest Resent- block, if there is one
    completed   addresses without a domain in From, Sender, Reply-To, To, Cc and their Resent- twins: "@mailname" is put
                behind the address as it stands, the rest of the field keeps its bytes; what cannot be parsed stays
    cleaned     NUL is dropped, a bare CR becomes a space (it ends a line for some readers: a header of its own); blanks
                between a name and its colon go: for many readers they end the header

Everything else keeps its bytes, folding and order. What is added stands behind what was written, the Resent- twins in
front of their block. A From_ line on top goes. Bcc and forgeries go with -G as well, which leaves the rest alone.
RFC 5322 3.6 (fields), RFC 2047 (names), RFC 6854 (group in To), RFC 2045 (labels for 8-bit text).
"""

from dataclasses import dataclass

from . import address, forged, headers
from .envelope import raw, text
from .outcome import one_line
from .trace import MAILER_DAEMON, addr_spec, date, digits, quoted, word

MAX_NAME = 200  # characters of a full name
MAX_LINE = 998  # bytes of a line without its end (RFC 5322 section 2.1.1)
MAX_MESSAGE_ID = 250  # characters of a Message-ID in the log
LONG_LINE = 900  # bytes, where a line that became too long is folded
RESERVED = 8 * 1024  # bytes of the longest header that stay free for what is added; completing must not fill them
FOLD_AT = 76  # bytes of a line of ours, where it can be folded
NO_VISIBLE_RECIPIENT = b"To: undisclosed-recipients:;\n"

_DROPPED = frozenset((b"bcc", b"resent-bcc", b"return-path", b"content-length", b"full-name"))
_DROPPED_BY_GATEWAY = _DROPPED - {b"full-name"}
_NOT_BLANK = frozenset((b"from", b"date", b"message-id", b"to", b"cc"))
_COMPLETED = frozenset(prefix + name for prefix in (b"", b"resent-")
                       for name in (b"from", b"sender", b"reply-to", b"to", b"cc"))
_VISIBLE = frozenset((b"to", b"cc", b"resent-to", b"resent-cc"))
_MIME = frozenset((b"mime-version", b"content-type", b"content-transfer-encoding"))

_SEPARATORS = frozenset(b",;<(")
_CR_TO_SPACE = bytes.maketrans(b"\r", b" ")
_ATEXT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-/=?^_`{|}~")
_Q_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!*+-/")
_Q_ROOM = 52  # bytes in one encoded-word, so that a line with a field name before it stays below 76


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a submission besides its text.

    id: queue id. sender: envelope sender with its domain, "" = null. mailname: completes bare addresses. hostname: of
    Message-ID. now: seconds since the epoch; offset: of local time from UTC, seconds. full_name: of the sender, from -F
    or name_of_gecos, "" = none. is_gateway: -G. add_undisclosed: setting for NO_VISIBLE_RECIPIENT.
    """

    id: str
    sender: str
    mailname: str
    hostname: str
    now: float
    offset: int = 0
    full_name: str = ""
    is_gateway: bool = False
    add_undisclosed: bool = True


def complete(head: bytes, facts: Facts) -> bytes:
    """The header with everything in it that a message needs. head: what headers.scan found before the body.

    The result ends in LF and has no separator line; it is empty only for an empty head with is_gateway.
    """
    if head and not head.endswith(b"\n"):
        head += b"\n"
    fields = headers.scan(head)[0]
    if b"\0" in head or b"\r" in head:
        head, fields = _clean(head, fields)
    hostname = raw(facts.hostname)
    fields = [one for one in fields if one[0] != forged.NAME or not forged.bears(head[one[1]:one[2]], hostname)]
    if facts.is_gateway:
        return b"".join([head[start:end] for name, start, end in fields if name not in _DROPPED_BY_GATEWAY])
    domain = addr_spec("x@" + facts.mailname)[1:]
    resent = headers.newest_resent(fields)
    room = headers.MAX_HEADER - RESERVED - len(head)
    parts: list[bytes] = []
    seen: set[bytes] = set()
    for name, start, end in fields:
        if resent and start == resent[0][1]:
            parts += _missing({name for name, _, _ in resent}, facts, b"Resent-")
        if name in _DROPPED:
            continue
        field = _without_blanks(head[start:end])
        if name in _NOT_BLANK and not field.partition(b":")[2].strip():
            continue
        seen.add(name)
        if name in _COMPLETED:
            field = _with_domain(field, domain, room)
            room -= len(field) - (end - start)
        parts.append(field)
    parts += _missing(seen, facts)
    if facts.add_undisclosed and _VISIBLE.isdisjoint(seen):
        parts.append(NO_VISIBLE_RECIPIENT)
    return b"".join(parts)


def mime_label(head: bytes, *, has_8bit: bool, is_utf8: bool) -> bytes:
    """Lines that say what the 8-bit bytes of a body are, for a header that does not speak of MIME; else nothing."""
    if not has_8bit or any(name in _MIME for name, _, _ in headers.scan(head)[0]):
        return b""
    charset = b"utf-8" if is_utf8 else b"unknown-8bit"  # RFC 1428: bytes of a charset that nobody named
    return (b"MIME-Version: 1.0\nContent-Type: text/plain; charset=%s\nContent-Transfer-Encoding: 8bit\n" % charset)


def message_id_in(head: bytes) -> str:
    """The message's id for the log, "" for none, control characters taken out: it is the sender's text."""
    for name, start, end in headers.scan(head)[0]:
        if name == b"message-id":
            return one_line(text(head[start:end].partition(b":")[2]), MAX_MESSAGE_ID)
    return ""


def name_of_gecos(gecos: str, login: str) -> str:
    """The full name in a passwd entry: up to the first comma, "&" standing for the login with a capital (finger(1))."""
    return one_line(gecos.partition(",")[0].replace("&", login[:1].upper() + login[1:]), MAX_NAME)


def phrase(name: str) -> bytes:
    """A full name as a display name: as it is, quoted or encoded, whatever it takes to be nothing but a name."""
    name = one_line(name, MAX_NAME)
    if not name.isascii():
        return encoded_words(name)
    if all(_ATEXT.issuperset(part) for part in name.split(" ")):
        return name.encode("ascii")
    return quoted(name).encode("ascii")


def encoded_words(value: str) -> bytes:
    """The text in the Q encoding of RFC 2047, folded; bytes that are no UTF-8 become U+FFFD. Fit for a phrase too."""
    words, current = [], b""
    for char in raw(value).decode("utf-8", "replace"):
        if char in _Q_SAFE:
            piece = char.encode("ascii")
        elif char == " ":
            piece = b"_"
        else:
            piece = b"".join(b"=%02X" % byte for byte in char.encode("utf-8"))
        if len(current) + len(piece) > _Q_ROOM:
            words.append(current)
            current = b""
        current += piece
    return b"\n ".join(b"=?UTF-8?Q?%s?=" % part for part in [*words, current])


def _clean(head: bytes, fields: list[headers.Field]) -> tuple[bytes, list[headers.Field]]:
    """The header without NUL and bare CR. The spans are made anew, not found again: each field stays the one it was."""
    parts, spans, position = [], [], 0
    for name, start, end in fields:
        part = head[start:end].translate(_CR_TO_SPACE, b"\0")
        spans.append((name, position, position + len(part)))
        parts.append(part)
        position += len(part)
    return b"".join(parts), spans


def _without_blanks(field: bytes) -> bytes:
    """The field with its colon right behind its name (RFC 5322 4.5.8 allows blanks there, most readers do not)."""
    colon = field.index(b":")
    return field if field[colon - 1] > 32 else field[:colon].rstrip(b" \t") + field[colon:]


def _missing(seen: set[bytes], facts: Facts, prefix: bytes = b"") -> list[bytes]:
    """From, Date and Message-ID where they are missing, or their Resent- twins."""
    low = prefix.lower()
    added = []
    if low + b"from" not in seen:
        added.append(b"%sFrom: %s\n" % (prefix, _mailbox(facts)))
    if low + b"date" not in seen:
        added.append(b"%sDate: %s\n" % (prefix, date(facts.now, facts.offset)))
    if low + b"message-id" not in seen:
        added.append(b"%sMessage-ID: <%s>\n" % (prefix, message_id(facts.id, facts.hostname, facts.now, low)))
    return added


def message_id(queue_id: str, hostname: str, now: float, prefix: bytes = b"") -> bytes:
    """A Message-ID without its brackets: the time keeps it unique when queue ids come round again."""
    return b"%s%s.%s@%s" % (prefix, digits(now), word(queue_id), word(hostname))


def _mailbox(facts: Facts) -> bytes:
    """The sender as a From field says it. The null sender is nobody's: it gets no full name."""
    if not facts.sender:
        return addr_spec(f"{MAILER_DAEMON}@{facts.mailname}")
    where = addr_spec(facts.sender)
    name = phrase(facts.full_name)
    if not name:
        return where
    return b"%s%s<%s>" % (name, b"\n " if len(name) + len(where) > FOLD_AT - 9 else b" ", where)


def _with_domain(field: bytes, domain: bytes, room: int) -> bytes:
    """The field with "@domain" behind each address that has none; as it is if that takes more than `room` bytes."""
    at = field.index(b":") + 1
    value = field[at:]
    try:
        found = address.parse_list(value)
    except address.AddressError:
        return field
    places = [(start, end, domain if _is_bare(spec, value[start:end]) else b"") for spec, start, end in found]
    growth = len(domain) * sum(added is domain for _, _, added in places)
    if not growth or growth > room or (len(found) > 1 and _SEPARATORS.isdisjoint(value)):
        return field  # (the last: "From: Cron Daemon" is a name that lacks its address, not two users)
    result = field[:at] + _inserted(value, places, at, len(field) + growth)
    if len(result) > MAX_LINE and max(map(len, result.split(b"\n"))) > MAX_LINE:
        result = field[:at] + _inserted(value, places, at, LONG_LINE)
    return result


def _is_bare(spec: bytes, written: bytes) -> bool:
    """Whether "@domain" behind it makes an address of it: not behind "<>", nor behind words that lack their quotes."""
    return bool(spec) and not address.split(spec)[1] and (spec[-1:] != b'"' or written[-1:] == b'"')


def _inserted(value: bytes, places: list[tuple[int, int, bytes]], column: int, limit: int) -> bytes:
    """The value with what is to be added behind each address. A line that grows beyond `limit` is folded at a comma."""
    parts, done = [], 0
    for start, end, added in places:
        before, written = value[done:start], value[start:end] + added
        column = column + len(before) if b"\n" not in before else len(before) - before.rindex(b"\n") - 1
        if column + len(written) > limit and before.endswith((b",", b", ")):
            before = before.rstrip(b" ") + b"\n "
            column = 1
        column += len(written)
        parts += [before, written]
        done = end
    return b"".join([*parts, value[done:]])
