"""What a filter says, as values: an answer to what it was told, or a change that it wants.

Nothing that a filter sends is believed further than its type. A letter that is not in the protocol, a change that was
not agreed on, text where a number should be: FilterError, and the filter counts as one that has failed (Postfix 2026-06
and -08 had several that were believed). Words for the client become one printable line each.
"""

from dataclasses import dataclass
from enum import Enum

from ..mail import changes
from ..mail.changes import Change
from ..mail.envelope import text
from ..mail.outcome import one_line
from . import grammar
from .milter_wire import Action, FilterError, read_number, read_texts
from .reply import Reply, ReplyReader, reply
from .wire import RemoteError

REJECTED = reply(550, "5.7.1", "rejected by a mail filter")
DEFERRED = reply(451, "4.7.1", "a mail filter asks you to try again later")
SHUT_DOWN = reply(421, "4.7.0", "a mail filter ends this session")

_OF_RCPT = frozenset(("NOTIFY", "ORCPT"))  # of the parameters that a filter gives to a new recipient; others do nothing


class Verdict(Enum):
    """What an answer means for what it is about: a session, a message, a recipient."""

    CONTINUE = b"c"  # go on
    ACCEPT = b"a"  # go on without asking me
    REJECT = b"r"
    TEMPFAIL = b"t"
    DISCARD = b"d"  # take it and drop it
    SKIP = b"s"  # no more of the body
    SHUT_DOWN = b"4"  # end the session


@dataclass(frozen=True, slots=True)
class Answer:
    """reply: for the client, of REJECT, TEMPFAIL and SHUT_DOWN."""

    verdict: Verdict
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """It is still busy."""


@dataclass(frozen=True, slots=True)
class BodyPiece:
    """The next bytes of the body that takes the place of the old one, with CRLF line ends."""

    data: bytes


Said = Answer | Progress | BodyPiece | Change

_REPLIES = {Verdict.REJECT: REJECTED, Verdict.TEMPFAIL: DEFERRED, Verdict.SHUT_DOWN: SHUT_DOWN}
_VERDICTS = {verdict.value: Answer(verdict, _REPLIES.get(verdict)) for verdict in Verdict}
# What must have been agreed on for a letter.
_NEEDS = {b"h": Action.ADD_FIELDS, b"i": Action.ADD_FIELDS, b"m": Action.REPLACE_FIELDS, b"b": Action.REPLACE_BODY,
          b"+": Action.ADD_RECIPIENTS, b"2": Action.ADD_RECIPIENTS_WITH_PARAMETERS, b"-": Action.REMOVE_RECIPIENTS,
          b"q": Action.QUARANTINE, b"e": Action.REPLACE_SENDER}


def read(letter: bytes, data: bytes, actions: int) -> Said:
    """One packet. actions: agreed on. Raises FilterError."""
    if letter in _VERDICTS:
        return _VERDICTS[letter]
    if letter == b"y":
        return _reply(data)
    if letter == b"p":
        return Progress()
    if letter == b"f":
        raise FilterError("it says that it has failed")
    if letter not in _NEEDS:
        raise FilterError(f"an answer that is none: {letter!r}")
    if not actions & _NEEDS[letter]:
        raise FilterError(f"a change that was not agreed on: {letter!r}")
    return BodyPiece(data) if letter == b"b" else _change(letter, data)


def _change(letter: bytes, data: bytes) -> Change:
    number = 0
    if letter in (b"i", b"m"):
        number, data = read_number(data)
    words = read_texts(data)
    if letter in (b"h", b"i", b"m"):
        if len(words) != 2:
            raise FilterError("a field without name or value")
        name, value = words
        if letter == b"h":
            return changes.AddField(name, value)
        return changes.InsertField(number, name, value) if letter == b"i" else changes.ReplaceField(number, name, value)
    if not words:
        raise FilterError("a change without what it is about")
    if letter == b"q":
        return changes.Quarantine(text(words[0]))
    whom = _path(words[0])
    if letter == b"e":
        return changes.ReplaceSender(whom)  # parameters of MAIL, behind it, are nothing that we could act on
    if letter == b"-":
        return changes.RemoveRecipient(whom)
    given = [word for word in text(b" ".join(words[1:])).split() if word.partition("=")[0].upper() in _OF_RCPT]
    try:
        asked = grammar.parse_rcpt_words(given, frozenset(("DSN",)))
    except grammar.BadSyntax as problem:
        raise FilterError(f"it adds a recipient with {problem}")
    return changes.AddRecipient(whom, asked.notify, asked.orcpt)


def _path(word: bytes) -> str:
    """An address in or without angle brackets."""
    word = word.strip(b" \t")
    return text(word[1:-1] if word.startswith(b"<") and word.endswith(b">") else word)


def _reply(data: bytes) -> Answer:
    """A reply in the filter's own words."""
    words = read_texts(data)
    if len(words) != 1:
        raise FilterError("a reply without words")
    reader = ReplyReader()
    # Filters double "%", since for sendmail the words are a format.
    reader.feed(words[0].replace(b"%%", b"%").rstrip(b"\r\n") + b"\r\n")
    try:
        found = reader.next_reply()
    except RemoteError:
        found = None
    if found is None or found.kind not in (4, 5) or not reader.is_empty:
        raise FilterError(f"a reply that is none: {one_line(words[0][:80].decode('utf-8', 'replace'))!r}")
    if found.code == 421:
        return Answer(Verdict.SHUT_DOWN, _ours(found))
    return Answer(Verdict.REJECT if found.kind == 5 else Verdict.TEMPFAIL, _ours(found))


def _ours(found: Reply) -> Reply:
    """The reply as we may say it: no code of a range that SMTP does not have, and always a status."""
    code = found.code if found.code <= 559 else found.kind * 100 + 50
    return reply(code, found.status or f"{found.kind}.7.1", *found.lines)
