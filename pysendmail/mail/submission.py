"""What a submitter asks for, read from the fields of a drop file: a closed list, since anybody may write there.

`read` takes the fields (docs/ARCHITECTURE.md, "Fields of a drop file") apart and refuses whatever is not on the list,
so that no submitter sets an attribute of the queue (Postfix 2026-08). `envelope` adds what we know ourselves: who
submitted, when, and under which name bare addresses are completed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .envelope import BODY_TYPES, Envelope, Fields, Origin, Recipient, read_recipient, text

MAX_RECIPIENTS = 20_000  # of one submission
MAX_ADDRESS = 1000  # bytes, well above RFC 5321's 320: what the wire refuses is reported, not lost
MAX_VALUE = 1000  # bytes of any other value; bin/sendmail has tighter limits for each

_ONCE = frozenset((b"Sender", b"Full-Name", b"Body", b"Return", b"Envid", b"Hops", b"Errors", b"Delivery", b"Gateway",
                   b"Tag", b"Smtputf8", b"Protocol"))


@dataclass(frozen=True, slots=True)
class Submission:
    """sender None = nobody said: the submitter. full_name: of -F. is_gateway: -G. delivery: letter of -od."""

    recipients: tuple[Recipient, ...]
    sender: str | None
    full_name: str
    body: str
    ret: str
    envid: str
    hops: int
    errors: str
    delivery: str
    is_gateway: bool
    tag: str
    smtputf8: bool
    protocol: str


def read(fields: Fields) -> Submission:
    """Raises ValueError, with words for the log, for anything that bin/sendmail does not write."""
    one: dict[bytes, str] = {}
    recipients = []
    for name, value in fields:
        if name == b"Recipient":
            if len(value) > MAX_ADDRESS:
                raise ValueError("recipient address is too long")
            recipients.append(read_recipient(value))
        elif name in one or name not in _ONCE:
            raise ValueError(f"field {name!r} is not for submitters")
        elif len(value) > MAX_VALUE:
            raise ValueError(f"field {name!r} is too long")
        else:
            one[name] = text(value)
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise ValueError(f"{len(recipients)} recipients")
    get = one.get
    sender = get(b"Sender")
    if sender is not None and not (sender.startswith("<") and sender.endswith(">") and len(sender) <= MAX_ADDRESS):
        raise ValueError("sender is not an address in angle brackets")
    body, ret, hops = get(b"Body", "").lower(), get(b"Return", ""), get(b"Hops", "0")
    errors, delivery = get(b"Errors", ""), get(b"Delivery", "")
    if (body and body not in BODY_TYPES) or ret not in ("", "full", "hdrs"):
        raise ValueError("body type or return is not known")
    if not (hops.isascii() and hops.isdigit() and len(hops) <= 3) or len(errors) > 1 or len(delivery) > 1:
        raise ValueError("hops, errors or delivery is garbled")
    return Submission(tuple(recipients), None if sender is None else sender[1:-1], get(b"Full-Name", ""), body, ret,
                      get(b"Envid", ""), int(hops), errors, delivery, get(b"Gateway") == "yes", get(b"Tag", ""),
                      get(b"Smtputf8") == "yes", get(b"Protocol", ""))


def envelope(submission: Submission, queue_id: str, origin: Origin, received_at: float,
             qualify: Callable[[str], str], here: Callable[[str], str]) -> Envelope:
    """The envelope of a submission. qualify completes a bare sender with the mail name, "" stays null; here completes a
    bare recipient with a name of this host."""
    sender = origin.user if submission.sender is None else submission.sender
    recipients = tuple(Recipient(here(r.address), r.notify, r.orcpt) for r in submission.recipients)
    return Envelope(queue_id, qualify(sender) if sender else "", recipients, received_at, origin, submission.body,
                    submission.smtputf8, submission.ret, submission.envid, submission.errors)
