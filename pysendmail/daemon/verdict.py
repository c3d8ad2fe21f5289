"""What goes between the runner and a scanner process: one JSON object a packet, over SOCK_SEQPACKET.

runner -> scanner   {"scan": "ID", "n": 7} + two descriptors: the queue file, read-only, and an empty file for what is
                    new of the text. The envelope is in the queue file.
scanner -> runner   VERDICT. What is new of the text stands in that empty file: fields for the top, the message's own
                    fields, and the body if there is another one; the verdict says how many bytes each.

Neither end believes the other: sizes are capped, types are checked, and what does not fit raises ValueError.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ..deliver.packet import MAX_PACKET, decode, encode
from ..mail import address
from ..mail.changes import MAX_ADDED_RECIPIENTS, Draft
from ..mail.envelope import Envelope, Recipient, raw, read_recipient, recipient_value, text
from ..mail.headers import MAX_HEADER
from ..mail.outcome import Outcome, deferred, failed, one_line
from ..smtp import grammar
from ..smtp.reply import Reply

MAX_ADDRESSES = 60 * 1024  # characters of all recipients that are added to one message
MAX_NOTES = 20  # lines for the log about one message
MAX_SIZE = 1 << 40  # bytes of a body

START = 2 * MAX_HEADER  # bytes of a message in which its header ends


def start_of(fd: int, offset: int, length: int) -> bytes:
    """So much of the text of a queue file that its header is in it. Raises OSError."""
    return os.pread(fd, min(START, length - offset), offset)


def question(queue_id: str, n: int) -> bytes:
    return encode({"scan": queue_id, "n": n})


def read_question(packet: bytes) -> tuple[str, int]:
    """(queue id, n). Raises ValueError."""
    value = decode(packet)
    queue_id, n = value.get("scan"), value.get("n")
    if not isinstance(queue_id, str) or not queue_id.isascii() or not queue_id.isalnum():
        raise ValueError("not a question")
    return queue_id, _number(n)


@dataclass(frozen=True, slots=True)
class NewText:
    """Bytes of what is new in the file: fields for the top, the message's own fields, the body (-1 = the old one)."""

    top: int
    head: int
    body: int = -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of message n.

    outcome: what each recipient gets instead of the message, None = it passes. is_dropped: it goes nowhere. sender:
    the new one, None = as it was. removed: indexes of recipients; added: further ones. hold: why it is to be held, "" =
    it is not. text: None = as it was. notes: for the log.
    """

    n: int
    outcome: Outcome | None = None
    is_dropped: bool = False
    sender: str | None = None
    removed: tuple[int, ...] = ()
    added: tuple[Recipient, ...] = ()
    hold: str = ""
    text: NewText | None = None
    notes: tuple[str, ...] = ()

    def to_packet(self) -> bytes:
        """Raises ValueError for more than a packet takes."""
        value = {"n": self.n, "outcome": self.outcome.to_json() if self.outcome is not None else None,
                 "drop": self.is_dropped, "sender": self.sender, "removed": self.removed,
                 "added": list(map(_written, self.added)), "hold": self.hold,
                 "notes": [one_line(note) for note in self.notes[:MAX_NOTES]],
                 "text": [self.text.top, self.text.head, self.text.body] if self.text is not None else None}
        packet = encode(value)
        if len(packet) > MAX_PACKET:
            raise ValueError("a filter has changed too much of the envelope")
        return packet

    @classmethod
    def from_packet(cls, packet: bytes, recipients: int) -> Self:
        """The reverse, about a message with so many recipients. Raises ValueError."""
        value = decode(packet)
        get = value.get
        sender: Any = get("sender")
        hold: Any = get("hold")
        removed: Any = get("removed")
        added: Any = get("added")
        notes: Any = get("notes")
        if not (isinstance(sender, str | None) and isinstance(hold, str) and _are(notes, str) and _are(added, str)
                and _are(removed, int)):
            raise ValueError("not a verdict")
        if len(added) > MAX_ADDED_RECIPIENTS or not all(0 <= index < recipients for index in removed):
            raise ValueError("not recipients")
        recipients_added = tuple(map(_read_recipient, added))
        if sender and not address.is_valid(raw(sender)):
            raise ValueError("not an address")
        outcome = None if get("outcome") is None else Outcome.from_json(get("outcome"))
        if outcome is not None and outcome.is_delivered:
            raise ValueError("not a verdict")
        return cls(_number(get("n")), outcome, get("drop") is True, sender, tuple(removed), recipients_added,
                   one_line(hold), _read_text(get("text")), tuple(map(one_line, notes[:MAX_NOTES])))

    def envelope(self, old: Envelope, *, is_begun: bool) -> Envelope:
        """The envelope of a message that passes. Raises ValueError if it is for nobody any more.

        is_begun: some recipients have targets already, by their number: then nobody is removed from it, and what
        becomes of those whom a filter has removed is for the caller to note.
        """
        kept = old.recipients if is_begun else tuple(
            one for index, one in enumerate(old.recipients) if index not in self.removed)
        recipients = kept + self.added
        if not recipients:
            raise ValueError("no recipient is left")
        return replace(old, recipients=recipients, scanned=True, hold=self.hold or old.hold,
                       sender=old.sender if self.sender is None else self.sender)


def n_of(packet: bytes) -> int:
    """Which message a packet of a scanner is about. Raises ValueError."""
    return _number(decode(packet).get("n"))


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in values)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError("not a number")
    return value


def _written(one: Recipient) -> str:
    return text(recipient_value(raw(one.address), ",".join(sorted(one.notify)).encode("ascii"), raw(one.orcpt)))


def _read_recipient(value: str) -> Recipient:
    """The reverse. Raises ValueError."""
    found = read_recipient(raw(value))
    if not address.is_valid(raw(found.address)) or (found.orcpt and not grammar.is_orcpt(found.orcpt)):
        raise ValueError("not a recipient")
    return found


def _read_text(value: Any) -> NewText | None:
    if value is None:
        return None
    if not _are(value, int) or len(value) != 3:
        raise ValueError("not sizes")
    top, head, body = value
    if min(top, head) < 0 or top + head > MAX_HEADER or not -1 <= body <= MAX_SIZE:
        raise ValueError("not sizes")
    return NewText(top, head, body)


def changed(n: int, old: Draft, new: Draft, text: NewText | None, notes: Sequence[str]) -> Verdict:
    """The verdict on a message that passes as `new`. Raises ValueError for more than can be said."""
    left = list(new.envelope.recipients)
    removed = []
    for index, one in enumerate(old.envelope.recipients):
        if left and one == left[0]:
            del left[0]
        else:
            removed.append(index)
    if sum(len(_written(one)) for one in left) > MAX_ADDRESSES:
        raise ValueError("a filter has added too many recipients")
    sender = new.envelope.sender if new.envelope.sender != old.envelope.sender else None
    hold = new.envelope.hold if not old.envelope.hold else ""
    return Verdict(n, None, False, sender, tuple(removed), tuple(left), hold, text, tuple(notes))


def outcome_of(refusal: Reply) -> Outcome:
    """What a refusal means for a message that nobody is waiting to hear about."""
    words = refusal.words.removeprefix(f"{refusal.code} ").removeprefix(f"{refusal.status} ")
    if refusal.kind == 5:
        return failed(refusal.status or "5.7.1", words)
    return deferred(refusal.status or "4.7.1", words)
