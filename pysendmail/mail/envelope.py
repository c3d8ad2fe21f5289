"""The envelope: who a message is from, whom it is for, and where we got it. It is never read from the message.

Addresses are str without angle brackets, decoded from the wire or disk as UTF-8 with surrogateescape (`text`) and
turned back with `raw`; the null sender is "". An envelope never changes after the commit; what happens later is in
the journal.

`to_fields` and `from_fields` are the one mapping between an Envelope and the fields of a spool file (spool/record.py);
unknown fields are damage, so that nobody can smuggle an attribute in (Postfix 2026-08: a submitter set probe flags).
RFC 5321 section 2.3.1, RFC 3461 (notify, orcpt, ret, envid), RFC 6531 (smtputf8).
"""

from dataclasses import dataclass

from .outcome import is_status

NOTIFY = frozenset(("never", "success", "failure", "delay"))
BODY_TYPES = ("7bit", "8bitmime")
ORIGINS = ("command", "smtp", "runner")  # bin/sendmail, a listener, a report of our own

Fields = list[tuple[bytes, bytes]]


def text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def raw(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Recipient:
    """One envelope recipient. notify: subset of NOTIFY, empty = not asked for. orcpt: "rfc822;address" or ""."""

    address: str
    notify: frozenset[str] = frozenset()
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """How a message came to us, as we saw it ourselves: nothing here is a claim of the submitter.

    uid, user: the kernel's word about a local submitter (-1 = not local). client: "[address]" or "". helo, protocol
    ("ESMTPS", "SMTP", "" for local), tls (version and cipher), auth (authenticated name), mechanism ("PLAIN", "LOGIN",
    "XCLIENT"; "" where it was not kept): of an SMTP session.
    """

    kind: str
    uid: int = -1
    user: str = ""
    client: str = ""
    helo: str = ""
    protocol: str = ""
    tls: str = ""
    auth: str = ""
    mechanism: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """sender "" = null. received_at: seconds since the epoch. ret: "full", "hdrs" or "". errors: letter of -oe."""

    id: str
    sender: str
    recipients: tuple[Recipient, ...]
    received_at: float
    origin: Origin
    body: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    errors: str = ""
    scanned: bool = False
    hold: str = ""  # why the message goes to hold/ instead of new/; "" = it does not
    refusal: str = ""  # "5.3.4 message is too large": what every recipient gets, because of the message itself


def recipient_value(address: bytes, notify: bytes = b"", orcpt: bytes = b"") -> bytes:
    """A recipient as one field value: NOTIFY or "-", ORCPT or "-", then the address to the end of the line."""
    return b"%s %s %s" % (notify or b"-", orcpt or b"-", address)


def read_recipient(value: bytes) -> Recipient:
    """The reverse of recipient_value. Raises ValueError."""
    notify, _, rest = value.partition(b" ")
    orcpt, _, address = rest.partition(b" ")
    asked = frozenset() if notify == b"-" else frozenset(notify.decode("ascii", "replace").split(","))
    if not address or not notify or not orcpt or asked - NOTIFY:
        raise ValueError("not a recipient field")
    return Recipient(text(address), asked, "" if orcpt == b"-" else text(orcpt))


def to_fields(envelope: Envelope) -> Fields:
    """The fields of a queue file for this envelope; the id is the file's name and not among them."""
    e, o = envelope, envelope.origin
    optional = (("Body", e.body), ("Smtputf8", "yes" if e.smtputf8 else ""), ("Return", e.ret), ("Envid", e.envid),
                ("Errors", e.errors), ("Scanned", "yes" if e.scanned else ""), ("Hold", e.hold),
                ("Refusal", e.refusal), ("Origin-Uid", str(o.uid) if o.uid >= 0 else ""), ("Origin-User", o.user),
                ("Origin-Client", o.client), ("Origin-Helo", o.helo), ("Origin-Protocol", o.protocol),
                ("Origin-Tls", o.tls), ("Origin-Auth", o.auth),
                ("Origin-Mechanism", o.mechanism))
    fields: Fields = [(b"Sender", b"<%s>" % raw(e.sender)), (b"Received-At", b"%.3f" % max(0.0, e.received_at)),
                      (b"Origin", raw(o.kind))]
    fields += [(name.encode("ascii"), raw(value)) for name, value in optional if value]
    fields += [(b"Recipient", recipient_value(raw(r.address), ",".join(sorted(r.notify)).encode("ascii"), raw(r.orcpt)))
               for r in e.recipients]
    return fields


def from_fields(queue_id: str, fields: Fields) -> Envelope:
    """The envelope of a queue file. Raises ValueError for anything to_fields does not write."""
    one: dict[bytes, str] = {}
    recipients = []
    for name, value in fields:
        if name == b"Recipient":
            recipients.append(read_recipient(value))
        elif name in one or name not in _ONCE:
            raise ValueError(f"unexpected field {name!r}")
        else:
            one[name] = text(value)
    get = one.get
    sender, kind = get(b"Sender", ""), get(b"Origin", "")
    if not sender.startswith("<") or not sender.endswith(">") or kind not in ORIGINS or not recipients:
        raise ValueError("envelope is incomplete")
    refusal = get(b"Refusal", "")
    if refusal and not (is_status(refusal.partition(" ")[0]) and refusal[0] == "5" and refusal.partition(" ")[2]):
        raise ValueError("refusal is not an outcome")
    uid, received_at = get(b"Origin-Uid", ""), get(b"Received-At", "")
    if (uid and not _is_number(uid)) or not all(map(_is_number, received_at.split(".", 1))):
        raise ValueError("uid or time is garbled")
    origin = Origin(kind, int(uid or "-1"), get(b"Origin-User", ""), get(b"Origin-Client", ""), get(b"Origin-Helo", ""),
                    get(b"Origin-Protocol", ""), get(b"Origin-Tls", ""), get(b"Origin-Auth", ""),
                    get(b"Origin-Mechanism", ""))
    return Envelope(queue_id, sender[1:-1], tuple(recipients), float(received_at), origin, get(b"Body", ""),
                    b"Smtputf8" in one, get(b"Return", ""), get(b"Envid", ""), get(b"Errors", ""), b"Scanned" in one,
                    get(b"Hold", ""), refusal)


def _is_number(digits: str) -> bool:
    return 0 < len(digits) <= 12 and digits.isascii() and digits.isdigit()


_ONCE = frozenset((b"Sender", b"Received-At", b"Origin", b"Body", b"Smtputf8", b"Return", b"Envid", b"Errors",
                   b"Scanned", b"Hold", b"Refusal", b"Origin-Uid", b"Origin-User", b"Origin-Client", b"Origin-Helo",
                   b"Origin-Protocol", b"Origin-Tls", b"Origin-Auth", b"Origin-Mechanism"))
