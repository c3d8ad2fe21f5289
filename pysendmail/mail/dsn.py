"""Delivery reports: what a sender is told about recipients, as a whole message for people and for programs.

A report is multipart/report with three parts: words for people, message/delivery-status for programs, and the original:
its header, and the start of its body where something failed and RET does not forbid it. It is built as bytes, so that
the original comes back as it was; NUL, bare CR and lines that no host would take are mended. Lines end in LF.

Nearly everything here was written by strangers: the header, the addresses, the other host's words. Each value passes
one_line or trace.addr_spec on its way into a line of ours, and the boundary is a hash of the content, so that no
content can hold it. Whether a report is sent at all: `wanted`, then the caller. There is never a report about a report;
the postmaster hears of those (`postmaster_notice`).

RFC 3461 (who asks for what), 3462 and 6522 (multipart/report), 3464 (delivery-status), 3834 (Auto-Submitted), 6533
(non-ASCII addresses: always in the ASCII form, which every reader of message/delivery-status takes).
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from . import headers
from .completion import encoded_words, message_id
from .digest import sha256
from .envelope import Envelope, Origin, Recipient, raw, text
from .outcome import Outcome, one_line
from .trace import MAILER_DAEMON, addr_spec, date, received, word

FAILED, DELAYED, DELIVERED, RELAYED, EXPANDED = "failed", "delayed", "delivered", "relayed", "expanded"

MAX_HEAD = headers.MAX_HEADER  # bytes of its header: all of it, since no scan finds more
MAX_TOLD = 50  # recipients in the words for people; programs get all of them
MAX_FIELD = 900  # characters of one value in the delivery-status
MAX_SHOWN = 240  # characters of one value in the words for people: below MAX_LINE in UTF-8 too
MAX_SUBJECT = 120  # characters
MAX_LINE = 998  # bytes, without the line end (RFC 5322 section 2.1.1)
WIDTH = 76  # columns of the lines we write

# The worst first: it gives the Subject. (action, Subject, what has happened to whom, until when)
_KINDS = (
    (FAILED, "Undelivered mail", "It could not be delivered to {}, and will not be tried again:"),
    (DELAYED, "Delayed mail", "It has not been delivered to {} yet. Nothing is to be done: it will be tried again{}."),
    (DELIVERED, "Delivered mail", "It has been delivered to {}:"),
    (RELAYED, "Relayed mail", "It has been passed on, to a host that does not report deliveries, for {}:"),
    (EXPANDED, "Distributed mail", "It has been passed on to all behind {}, who are not reported one by one:"),
)
_ACTIONS = frozenset(kind[0] for kind in _KINDS)
_SUCCESSES = frozenset((DELIVERED, RELAYED, EXPANDED))

# What a person can do about a failure, by the last two numbers of its status or by the subject alone (RFC 3463).
_ADVICE = {
    "1.2": "Check what stands after the @ for a typing error: there is no such domain.",
    "1.10": "Check what stands after the @ for a typing error: that domain takes no mail.",
    "1": "Check the address for a typing error, or ask the recipient for the right one.",
    "2.2": "Send it again later: the recipient has to make room first.",
    "2.3": "Send a smaller message, or put the data somewhere and send a link to it.",
    "3.4": "Send a smaller message, or put the data somewhere and send a link to it.",
    "4.6": "Tell the recipient's postmaster: mail for this address runs in a circle.",
    "4": "Send it again later, or reach the recipient in another way: the host could not be reached.",
    "7": "Show the words above to the recipient's postmaster: that host does not want this message.",
}
_OTHER_ADVICE = "If the words above do not help you, show this whole report to your postmaster."

_OUR_RULES = "Show the words above to the postmaster of this mail system: its rules do not permit this message."
_8BIT = b"Content-Transfer-Encoding: 8bit\n"
_HEX = frozenset(b"0123456789ABCDEFabcdef")
_NOT_IN_XTEXT = frozenset("+=\\")
_CR_TO_SPACE = bytes.maketrans(b"\r", b" ")

Part = tuple[bytes, str, bytes]  # content type, description in small letters, content


@dataclass(frozen=True, slots=True)
class Result:
    """What is to be told about one recipient.

    recipient: as in the envelope. final: the address that was tried in the end. action: FAILED ... EXPANDED.
    attempted_at: seconds since the epoch, 0 = when the report is written.
    """

    recipient: Recipient
    final: str
    outcome: Outcome
    action: str
    attempted_at: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            raise ValueError(f"not an action: {self.action!r}")


@dataclass(frozen=True, slots=True)
class Original:
    """The message reported about: header (without separator), start of the body, bytes of the whole body."""

    head: bytes
    body: bytes
    body_size: int


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports. id: the report's own queue id. now: seconds since the epoch; offset: of local time, seconds."""

    id: str
    hostname: str
    now: float
    offset: int = 0


def wanted(envelope: Envelope, recipient: Recipient, action: str) -> bool:
    """Whether the sender is to be told (RFC 3461 section 4.1); without NOTIFY: of failures and delays.

    Never the null sender (RFC 5321 section 4.5.5). -oeq asks for silence; -oem, -oep, -oew and -oee get mail.
    """
    if not envelope.sender or envelope.errors == "q":
        return False
    if not recipient.notify:
        return action not in _SUCCESSES
    if action in _SUCCESSES:
        return "success" in recipient.notify
    return ("failure" if action == FAILED else "delay") in recipient.notify  # "never" stands alone and is neither


def is_bulk(head: bytes) -> bool:
    """Whether this is mass mail, about which nobody is warned of a delay (Precedence: bulk, junk or list; List-Id)."""
    return _value(head, b"precedence").lower() in ("bulk", "junk", "list") or bool(_value(head, b"list-id"))


def report(envelope: Envelope, results: Sequence[Result], original: Original, reporter: Reporter, *,
           retry_until: float = 0.0) -> bytes:
    """The report for the sender of this envelope, header and body. retry_until: seconds, 0 = do not say.

    Raises ValueError for the null sender and for no results: mistakes of the caller.
    """
    if not envelope.sender or not results:
        raise ValueError("nobody to tell, or nothing")
    until = " until " + date(retry_until, reporter.offset).decode("ascii") if retry_until else ""
    kinds = [(title, what, [r for r in results if r.action == action]) for action, title, what in _KINDS]
    kinds = [kind for kind in kinds if kind[2]]
    returned = _returned(envelope, original, headers_only=envelope.ret == "hdrs" or not _has_failure(results))
    host = text(word(reporter.hostname))
    words = [_wrapped(f"This is the mail system of {host}. Nobody reads answers to this message."),
             _about("your message", original)]
    for _, what, about in kinds:
        words += _section(what, about, until, with_advice=True)
    return _message(
        [_people(words, returned), _status(envelope, results, reporter, retry_until), returned], reporter, original,
        to=addr_spec(envelope.sender), subject=_subject(kinds[0][0], kinds[0][2]), submitted=b"auto-replied")


def postmaster_notice(envelope: Envelope, results: Sequence[Result], original: Original, reporter: Reporter) -> bytes:
    """What the postmaster is told of a failure that the sender cannot be told of: mostly, that a report has failed.

    The notice is sent with the null sender as well. If it fails, the caller keeps both, and there is no further report.
    """
    if not results:
        raise ValueError("nothing to tell")
    returned = _returned(envelope, original, headers_only=envelope.ret == "hdrs")
    host = text(word(reporter.hostname))
    words = [_wrapped(f"This is the mail system of {host}. You get this as its postmaster: a message has failed, and "
                      "its sender cannot be told. A message without a sender is in most cases itself a report about "
                      "undelivered mail."),
             _about(f"a message from <{text(addr_spec(envelope.sender))}>" if envelope.sender else
                    "a message without a sender", original),
             *_section(_KINDS[0][2], results)]
    return _message(
        [_people(words, returned), _status(envelope, results, reporter, 0.0), returned], reporter, original,
        to=b"Postmaster <%s>" % addr_spec(f"postmaster@{reporter.hostname}"),
        subject=_subject("Undelivered mail, sender not told", results), submitted=b"auto-generated")


def xtext_decoded(value: str) -> str:
    """ENVID and ORCPT as meant: "+2B" is "+" (RFC 3461 section 4). A "+" without two hex digits stays."""
    first, *rest = raw(value).split(b"+")
    parts = [first]
    for part in rest:
        if len(part) >= 2 and part[0] in _HEX and part[1] in _HEX:
            parts.append(bytes((int(part[:2], 16),)) + part[2:])
        else:
            parts.append(b"+" + part)
    return text(b"".join(parts))


# -- the message ------------------------------------------------------------------------------------------------------

def _message(parts: list[Part], reporter: Reporter, original: Original, *, to: bytes, subject: bytes,
             submitted: bytes) -> bytes:
    content = [b"Content-Type: %s\nContent-Description: %s\n%s\n%s" % (
        kind, description.capitalize().encode("ascii"), b"" if data.isascii() else _8BIT, data)
        for kind, description, data in parts]
    boundary = _boundary(reporter.id, content)
    own = Envelope(reporter.id, "", (), reporter.now, Origin("runner"))
    answered = _value(original.head, b"message-id")
    lines = [
        received(own, reporter.hostname, reporter.offset),
        b"From: Mail Delivery System <%s>\n" % addr_spec(f"{MAILER_DAEMON}@{reporter.hostname}"),
        b"To: %s\n" % to,
        subject,
        b"Date: %s\n" % date(reporter.now, reporter.offset),
        b"Message-ID: <%s>\n" % message_id(reporter.id, reporter.hostname, reporter.now),
        b"References: %s\n" % answered.encode("ascii") if _is_message_id(answered) else b"",
        b"Auto-Submitted: %s\nMIME-Version: 1.0\n" % submitted,
        b'Content-Type: multipart/report; report-type=delivery-status;\n boundary="%s"\n' % boundary,
        b"" if all(part.isascii() for part in content) else _8BIT,
        b"\nThis is a report in MIME format.\n"]
    lines += [b"\n--%s\n%s" % (boundary, part) for part in content]
    return b"".join([*lines, b"\n--%s--\n" % boundary])


def _boundary(report_id: str, content: list[bytes]) -> bytes:
    """A line that is not in the content, the same whenever this report is made again.

    Nobody can write a content that holds the hash of itself; the loop is for the proof, not for the case.
    """
    whole = b"\n".join(content)
    digest = sha256(b"%s\n%s" % (word(report_id), whole))
    while digest.hexdigest().encode("ascii") in whole:
        digest.update(b"\n")
    return b"=_" + digest.hexdigest().encode("ascii")


def _subject(title: str, results: Sequence[Result]) -> bytes:
    """The whole field: who, and why if there is one reason."""
    first = results[0]
    words = f"{title}: {first.final}"
    if len(results) > 1:
        words += f" and {len(results) - 1} more"
    elif not first.outcome.is_delivered:
        words += f": {first.outcome.reason}"
    words = one_line(words, MAX_SUBJECT)
    if words.isascii():
        return _folded(f"Subject: {words}").encode("ascii") + b"\n"
    return b"Subject: %s\n" % encoded_words(words)


def _returned(envelope: Envelope, original: Original, *, headers_only: bool) -> Part:
    """The third part: the header alone, or the message as far as it was given, cut at the end of a line."""
    head = original.head.translate(_CR_TO_SPACE, b"\0")
    fields = headers.scan(head)[0]
    head = head[fields[0][1]:fields[-1][2]] if fields else b""
    head = _bounded(head if head.endswith(b"\n") or not head else head + b"\n", b"\n ")
    is_global = envelope.smtputf8 and not head.isascii()  # RFC 6533 section 4
    if headers_only or (original.body_size and not original.body):
        return b"message/global-headers" if is_global else b"text/rfc822-headers", "the header of the message", head
    body = original.body.translate(_CR_TO_SPACE, b"\0")
    description = "the message"
    if original.body_size > len(original.body):
        body = body[:body.rfind(b"\n") + 1] or body
        description = f"the message, cut off after the first {len(body)} bytes of its text"
    if body and not body.endswith(b"\n"):
        body += b"\n"
    return b"message/global" if is_global else b"message/rfc822", description, head + b"\n" + _bounded(body, b"\n")


def _bounded(data: bytes, joint: bytes) -> bytes:
    """The data with no line longer than MAX_LINE: a report with one would be refused, and its own sender is nobody."""
    if len(data) <= MAX_LINE or max(map(len, data.split(b"\n"))) <= MAX_LINE:
        return data
    step = MAX_LINE - len(joint)
    return b"\n".join([joint.join([line[at:at + step] for at in range(0, len(line), step)] or [b""])
                       for line in data.split(b"\n")])


# -- words for people -------------------------------------------------------------------------------------------------

def _people(blocks: list[str], returned: Part) -> Part:
    blocks = [*blocks, _wrapped(f"Attached: these facts in the form for programs, and {returned[1]}.")]
    return b"text/plain; charset=utf-8", "notification", "\n\n".join(blocks).encode("utf-8", "replace") + b"\n"


def _about(whom: str, original: Original) -> str:
    """Enough to find the message again. An encoded Subject would be noise: it can be read in the third part."""
    values = [(name, _value(original.head, name.lower().encode("ascii"))) for name in ("Subject", "Date", "Message-ID")]
    shown = [f"  {name}: {one_line(value, MAX_SHOWN)}" for name, value in values if value and "=?" not in value]
    return "\n".join([_wrapped(f"This is about {whom}{':' if shown else '.'}"), *shown])


def _section(what: str, results: Sequence[Result], until: str = "", *, with_advice: bool = False) -> list[str]:
    """What has happened, then each recipient of it. The format is ours, and so are both values."""
    whom = "this address" if len(results) == 1 else f"these {len(results)} addresses"
    blocks = [_wrapped(what.format(whom, until)), *[_told(result, with_advice) for result in results[:MAX_TOLD]]]
    if len(results) > MAX_TOLD:
        blocks.append(_wrapped(f"The other {len(results) - MAX_TOLD} are in the form for programs."))
    return blocks


def _told(result: Result, with_advice: bool) -> str:
    """One recipient: address, why, the other side's words if they are not in the reason already, what to do."""
    outcome = result.outcome
    lines = [f"  {one_line(result.final, MAX_SHOWN)}"]
    if result.recipient.address.lower() != result.final.lower():
        lines.append(f"    sent to: {one_line(result.recipient.address, MAX_SHOWN)}")
    if result.action not in _SUCCESSES:
        lines.append(_wrapped(f"why: {outcome.reason} ({outcome.status})", "    "))
        said = outcome.diagnostic.partition(";")[2].strip()
        if said and said not in outcome.reason:
            lines.append(_wrapped(f"{outcome.remote_mta or 'it'} said: {said}", "    "))
    if with_advice and result.action == FAILED:
        _, subject, detail = outcome.status.split(".")
        advice = _ADVICE.get(f"{subject}.{detail}") or _ADVICE.get(subject) or _OTHER_ADVICE
        if subject == "7" and not outcome.remote_mta:
            advice = _OUR_RULES
        lines.append(_wrapped(f"what to do: {advice}", "    "))
    return "\n".join(lines)


def _wrapped(words: str, indent: str = "") -> str:
    """A paragraph. Words of other scripts are broken, since 400 of their characters do not fit into MAX_LINE bytes."""
    return textwrap.fill(one_line(words, MAX_FIELD), WIDTH, initial_indent=indent, subsequent_indent=indent,
                         break_long_words=not words.isascii(), break_on_hyphens=False)


# -- words for programs -----------------------------------------------------------------------------------------------

def _status(envelope: Envelope, results: Sequence[Result], reporter: Reporter, retry_until: float) -> Part:
    """message/delivery-status: a group of fields about the message, then one for each recipient (RFC 3464)."""
    origin = envelope.origin
    groups = [[
        ("Original-Envelope-Id", xtext_decoded(envelope.envid)),
        ("Reporting-MTA", f"dns; {text(word(reporter.hostname))}"),
        ("Received-From-MTA", f"dns; {text(word(origin.helo))}" if origin.kind == "smtp" and origin.helo else ""),
        ("Arrival-Date", text(date(envelope.received_at, reporter.offset)))]]
    for result in results:
        outcome = result.outcome
        is_delayed = result.action == DELAYED and retry_until
        mta, diagnostic = outcome.remote_mta, outcome.diagnostic
        if not diagnostic and not outcome.is_delivered:
            diagnostic = f"x-pysendmail; {outcome.reason}"
        groups.append([
            ("Original-Recipient", _original_recipient(result.recipient.orcpt)),
            ("Final-Recipient", _typed("rfc822", text(addr_spec(result.final)))),
            ("Action", result.action),
            ("Status", outcome.status),
            ("Remote-MTA", f"dns; {mta}" if mta else ""),
            ("Diagnostic-Code", diagnostic),
            ("Last-Attempt-Date", text(date(result.attempted_at or reporter.now, reporter.offset))),
            ("Final-Log-ID", text(word(envelope.id))),
            ("Will-Retry-Until", text(date(retry_until, reporter.offset)) if is_delayed else "")])
    lines = ["\n".join([_folded(f"{name}: {_ascii(value)}") for name, value in group if value]) for group in groups]
    return b"message/delivery-status", "delivery report", "\n\n".join(lines).encode("ascii") + b"\n"


def _original_recipient(orcpt: str) -> str:
    """ORCPT as the sender gave it, "" if it is none. Type utf-8 has an escape of its own, not xtext (RFC 6533)."""
    kind, semicolon, value = orcpt.partition(";")
    if not semicolon or not value or not kind.isascii() or not kind.replace("-", "").isalnum():
        return ""
    return _typed(kind, value if kind.lower() == "utf-8" else xtext_decoded(value))


def _typed(kind: str, value: str) -> str:
    """An address with its type; one that is not ASCII as "utf-8; \\x{HEX}" (RFC 6533 section 3)."""
    if value.isascii():
        return f"{kind}; {value}"
    chars = raw(value).decode("utf-8", "replace")
    return "utf-8; " + "".join(c if c.isascii() and c not in _NOT_IN_XTEXT else f"\\x{{{ord(c):02X}}}" for c in chars)


def _ascii(value: str) -> str:
    return one_line(value, MAX_FIELD).encode("ascii", "replace").decode("ascii")


def _folded(line: str) -> str:
    return "\n ".join(textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False))


# -- reading the original ---------------------------------------------------------------------------------------------

def _value(head: bytes, name: bytes) -> str:
    """The first such field as one line, "" if there is none."""
    for found, start, end in headers.scan(head)[0]:
        if found == name:
            return one_line(text(head[start:end].partition(b":")[2]))
    return ""


def _has_failure(results: Sequence[Result]) -> bool:
    return any(result.action == FAILED for result in results)


def _is_message_id(value: str) -> bool:
    inner = value[1:-1]
    return value.isascii() and value == f"<{inner}>" and "@" in inner and not set(inner) & set("<> ")
