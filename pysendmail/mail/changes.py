"""What a filter changes in a message, as values, and what the message is after that. Pure: bytes and values in and out.

A `Draft` is a message before it is queued, or queued anew: envelope, header fields, body. Changes are collected while a
filter speaks and applied at once, when it has said everything: a filter that dies half-way has changed nothing (Postfix
2026-08: the old body was queued with the new header). Whatever filters write is checked here, since a header field with
a line too many is another header (CVE-2024-6923): a name must be one, a value cannot end its field, sizes are bounded.

Fields are counted as sendmail counts them: position 0 is above everything, what this host has put there included,
position 1 is above the first field of the message itself; "the second X-Spam" is counted by its name. What filters see
of a message is `head` and `body`; `trace`, our own Received, is not theirs.

RFC 5322 section 2.2; libmilter's smfi_insheader and smfi_chgheader.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import headers
from .envelope import Envelope, Recipient, raw
from .outcome import one_line

Body = Callable[[], Iterable[bytes]]  # gives the body from its start each time, in chunks, with LF line ends

MAX_NAME = 100  # bytes of a field's name
MAX_ADDED_RECIPIENTS = 1000  # of one message, all filters together
MAX_ADDRESS = 1000  # bytes
MAX_REASON = 200  # characters of what is said about a message in quarantine

_NAME = bytes(c for c in range(33, 127) if c != 58)
_NEVER = b"\0\r"


class BadChange(ValueError):
    """A change that no message can take. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A message. trace: fields put in front by this host. head: the message's own fields, up to the empty line, which
    is not part of it."""

    trace: bytes
    head: bytes
    body: Body

    def chunks(self) -> Iterator[bytes]:
        """All of it, as it is written into a file."""
        yield b"%s%s\n" % (self.trace, self.head)
        yield from self.body()


@dataclass(frozen=True, slots=True)
class Draft:
    """A message and whom it is for."""

    envelope: Envelope
    text: Text
