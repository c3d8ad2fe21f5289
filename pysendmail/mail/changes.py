"""What a filter changes in a message, as values, and what the message is after that. Pure: bytes and values in and out.

A `Draft` is a message before it is queued, or queued anew: envelope, header fields, body. Changes are collected while a
filter speaks and applied at once, when it has said everything: a filter that dies half-way has changed nothing (Postfix
2026-08: the old body was queued with the new header). Whatever filters write is checked here, since a header field with
a line too many is another header (CVE-2024-6923): a name must be one, a value cannot end its field, sizes are bounded.

Fields are counted as sendmail counts them: position 0 is above everything, what this host has put there included,
position 1 is above the first field of the message itself; "the second X-Spam" is counted by its name. What filters see
of a message is `top`, `head` and `body`; `trace`, our own Received, is not theirs, though it counts as one position.

RFC 5322 section 2.2; libmilter's smfi_insheader and smfi_chgheader.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from . import address, headers
from .envelope import Envelope, Recipient, raw
from .outcome import one_line

Body = Callable[[], Iterable[bytes]]  # gives the body from its start each time, in chunks, with LF line ends

MAX_NAME = 100  # bytes of a field's name
MAX_VALUE = 65_536  # bytes of a field
MAX_ADDED_RECIPIENTS = 1000  # of one message, all filters together
MAX_REASON = 200  # characters of what is said about a message in quarantine

_NAME = bytes(c for c in range(33, 127) if c != 58)
_TO_SPACE = bytes.maketrans(b"\0\r", b"  ")


class BadChange(ValueError):
    """A change that no message can take. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A message. trace: the Received of this host. head: the message's own fields, up to the empty line, which is not
    part of it. top: fields that filters have put above both."""

    trace: bytes
    head: bytes
    body: Body
    top: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        """All of it, as it is written into a file."""
        yield b"%s%s%s\n" % (self.top, self.trace, self.head)
        yield from self.body()


def split(start: bytes) -> tuple[bytes, bytes, int]:
    """(our Received, the message's own fields, where its body begins) of the text of a queue file.

    start: all of it, or more of it than the longest header.
    """
    fields, end, body_at = headers.scan(start)
    if not fields or fields[0][0] != b"received":
        return b"", start[:end], body_at
    first = fields[0][2]
    _, end, body_at = headers.scan(start[first:])
    return start[:first], start[first:first + end], first + body_at


@dataclass(frozen=True, slots=True)
class Draft:
    """A message and whom it is for."""

    envelope: Envelope
    text: Text


@dataclass(frozen=True, slots=True)
class AddField:
    """Below all others."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InsertField:
    """At a position, as the module docstring counts; beyond the last one it is added."""

    position: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ReplaceField:
    """The number-th field of that name, from 1 on. An empty value removes it; where there is none it is added."""

    number: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """All of it."""

    body: Body


@dataclass(frozen=True, slots=True)
class ReplaceSender:
    """sender "" = null."""

    sender: str


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """notify, orcpt: as Recipient has them."""

    address: str
    notify: frozenset[str] = frozenset()
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class RemoveRecipient:
    address: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The message is to be held."""

    reason: str


Change = (AddField | InsertField | ReplaceField | ReplaceBody | ReplaceSender | AddRecipient | RemoveRecipient
          | Quarantine)


def field(name: bytes, value: bytes, blank: bytes = b" ") -> bytes:
    """A header field with its LF, whatever a filter has written: folded where its value has line ends, and nowhere
    else. blank: what stands behind the colon. Raises BadChange for a name that is none, or too much of a value."""
    if not 0 < len(name) <= MAX_NAME or name.translate(None, _NAME) or name.startswith(b"--"):
        raise BadChange("a field whose name is none")
    if len(value) > MAX_VALUE:
        raise BadChange("a field that is too long")
    lines = value.replace(b"\r\n", b"\n").translate(_TO_SPACE).split(b"\n")
    # A line that does not begin with a blank would be a field of its own, one of blanks alone the end of the header.
    rest = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in lines[1:] if line.strip(b" \t")]
    return b"\n".join([name + b":" + blank + lines[0], *rest]) + b"\n"


def apply(draft: Draft, changes: Iterable[Change], *, blank: bytes = b" ") -> Draft:
    """The message with all changes, in their order. blank: as `field` has it, for the filter that sent them.

    Raises BadChange: then it is to be taken as if the filter had said nothing at all.
    """
    editor = _Editor(draft, blank)
    for change in changes:
        editor.take(change)
    return editor.done()


class _Editor:
    """A draft being changed. Fields are kept whole, each with its name in small letters."""

    def __init__(self, draft: Draft, blank: bytes) -> None:
        self._draft = draft
        self._blank = blank
        self._top = _fields(draft.text.top)
        self._fields = _fields(draft.text.head)
        self._body = draft.text.body
        self._envelope = draft.envelope
        self._recipients = [(_key(one.address), one) for one in draft.envelope.recipients]
        self._added = 0

    def take(self, change: Change) -> None:
        match change:
            case AddField(name, value):
                self._fields.append(self._made(name, value))
            case InsertField(position, name, value):
                if position <= len(self._top):
                    self._top.insert(position, self._made(name, value))
                else:
                    self._fields.insert(position - len(self._top) - 1, self._made(name, value))
            case ReplaceField(number, name, value):
                self._replace(number, name, value)
            case ReplaceBody(body):
                self._body = body
            case ReplaceSender(sender):
                self._envelope = replace(self._envelope, sender=_address(sender) if sender else "")
            case AddRecipient(whom, notify, orcpt):
                self._add_recipient(Recipient(_address(whom), notify, orcpt))
            case RemoveRecipient(whom):
                self._remove_recipient(whom)
            case Quarantine(reason):
                why = one_line(reason, MAX_REASON) or "quarantined by a mail filter"
                self._envelope = replace(self._envelope, hold=self._envelope.hold or why)

    def _made(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        return name.lower(), field(name, value, self._blank)

    def _replace(self, number: int, name: bytes, value: bytes) -> None:
        places = [(block, place) for block in (self._top, self._fields) for place, (found, _) in enumerate(block)
                  if found == name.lower()]
        number = max(1, number)
        if number > len(places):
            if value:
                self._fields.append(self._made(name, value))
            return
        block, place = places[number - 1]
        if value:
            block[place] = self._made(name, value)
        else:
            del block[place]

    def _add_recipient(self, one: Recipient) -> None:
        key = _key(one.address)
        if any(found == key for found, _ in self._recipients):
            return
        self._added += 1
        if self._added > MAX_ADDED_RECIPIENTS:
            raise BadChange(f"more than {MAX_ADDED_RECIPIENTS} recipients added")
        self._recipients.append((key, one))

    def _remove_recipient(self, whom: str) -> None:
        key = _key(whom)
        self._recipients = [(found, one) for found, one in self._recipients if found != key]

    def done(self) -> Draft:
        text = self._draft.text
        top, head = (b"".join(one for _, one in block) for block in (self._top, self._fields))
        if (top, head, self._body) != (text.top, text.head, text.body):
            whole = top + text.trace + head
            if len(whole) > headers.MAX_HEADER or whole.count(b"\n") >= headers.MAX_LINES:
                raise BadChange("the header becomes too large")
            text = Text(text.trace, head, self._body, top)
        recipients = tuple(one for _, one in self._recipients)
        envelope = self._envelope
        if recipients != envelope.recipients:
            envelope = replace(envelope, recipients=recipients)
        return Draft(envelope, text)


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, head[start:end]) for name, start, end in headers.scan(head)[0]]


def _address(whom: str) -> str:
    """An address that a filter names. Raises BadChange for what cannot stand in an envelope."""
    value = raw(whom)
    try:
        found = address.parse_list(value) if address.is_valid(value) else []
    except address.AddressError:
        found = []
    if len(found) != 1 or found[0][0] != value:
        raise BadChange("an address that is none")
    return whom


def _key(whom: str) -> tuple[str, str]:
    """What an address is told apart by when a filter names it: the case of its domain does not count."""
    local, domain = address.split_text(whom)
    return local, domain.lower()
