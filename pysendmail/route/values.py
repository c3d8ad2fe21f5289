"""What may stand on the right-hand side of an alias, in a .forward and in an :include: list: one grammar for the three.

    alice, bob@example.org          addresses; comments (RFC 5322) and `Name <address>` are understood
    \\alice                          alice's own mailbox: no alias, no .forward
    /var/mail/archive               a file; with "/" at its end a Maildir; "~/" is the home of a .forward's owner
    "|/usr/bin/command a, b"        a command, for the shell; |"command" and, up to the next comma, |command
    :include:/etc/mail/list         a file with more of these
    error:550 5.1.6 moved           refused with that code and text; so are :fail: text and :unknown: (Exim)
    :defer: text                    put off
    :blackhole:                     swallowed

Values are separated by commas; quotes keep commas and blanks. The text of error:, :fail:, :defer:, :unknown: and
:blackhole: reaches to the end, unless all of it is in quotes. A file name or address with blanks needs quotes: a
forgotten comma is met more often than such a name.

Everything here is bytes in, bytes out, pure, and linear in the length of the input. Nothing is looked up, opened or
run; where each kind of value is allowed is for the callers to say (never in an envelope: route/expand.py).
"""

from typing import NamedTuple

from ..mail.envelope import text as decoded
from ..mail.outcome import Outcome, deferred, delivered, failed, is_status
from ..mail.target import digest_of
from . import words
from .words import BLANK, NAME

ADDRESS, LOCAL, FILE, COMMAND = "address", "local", "file", "command"
INCLUDE, ERROR, DEFER, BLACKHOLE = "include", "error", "defer", "blackhole"

MAX_VALUES = 200_000  # in one alias or one list

_PLAIN = NAME + b", \t"  # what a list of nothing but addresses and file names consists of
_CONTROLS = bytes((*range(9), *range(10, 32), 127))
_DIGITS = b"0123456789"

_FAIL = (b"5.2.1", b"this address takes no mail")
_UNKNOWN = (b"5.1.1", b"user unknown")
_LATER = (b"4.2.1", b"this address takes no mail at the moment")
_INCLUDE_MARK = b":include:"


class Value(NamedTuple):
    """One value. text, by kind:

    ADDRESS, LOCAL: local part, quoted where it has to be, perhaps "@" and a domain. FILE, INCLUDE: the path. COMMAND:
    what the shell gets, without the bar. ERROR, DEFER: status, blank, reason. BLACKHOLE: empty.
    """

    kind: str
    text: bytes

    @property
    def digest(self) -> str:
        """What a Target carries instead of a file name or command (mail/target.py)."""
        return digest_of(self.text)


NOWHERE = Value(FILE, b"/dev/null")


class Line(NamedTuple):
    """A value of a list file, or what is wrong with a line of it. number: of the line, from 1. problem: "" = none."""

    number: int
    value: Value | None
    problem: str = ""


def parse(text: bytes) -> list[Value]:
    """The values of one right-hand side, in order; an empty list if there are only blanks, commas and comments.

    Raises ValueError, with words for the administrator, if any of it is wrong.
    """
    if not text.translate(None, _PLAIN):
        return _plain_list(text)
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise ValueError("control character")
    found: list[Value] = []
    position = words.skip(text, 0)
    while position < len(text):
        value, position = _value(text, position)
        if value is not None:
            found.append(value)
        if len(found) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        position = words.skip(text, position)
    return found


def parse_lines(data: bytes) -> list[Line]:
    """The values of a list file or .forward, each line a right-hand side of its own; a wrong line spoils no other.

    Lines that begin with "#", perhaps after blanks, are comments.
    """
    found: list[Line] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.strip(b" \t\r")
        if not line or line.startswith(b"#"):
            continue
        try:
            found += [Line(number, value) for value in parse(line)]
        except ValueError as problem:
            found.append(Line(number, None, str(problem)))
        if len(found) > MAX_VALUES:
            return [Line(number, None, f"more than {MAX_VALUES} values")]
    return found


def render(value: Value) -> bytes:
    """The value as it could stand in a file: parse(render(value)) == [value]."""
    kind, text = value
    if kind == ADDRESS:
        return text
    if kind == LOCAL:
        return b"\\" + text
    if kind == COMMAND:
        return words.quoted(b"|" + text)
    if kind == BLACKHOLE:
        return b":blackhole:"
    if kind == FILE:
        return words.quoted(text) if text.translate(None, NAME) else text
    if kind == INCLUDE:
        return words.quoted(_INCLUDE_MARK + text) if text.translate(None, NAME) else _INCLUDE_MARK + text
    return words.quoted(b"error:" + text)


def outcome_of(value: Value) -> Outcome:
    """What a value that names no place says about the mail. For others than ERROR, DEFER and BLACKHOLE: not allowed."""
    if value.kind in (ERROR, DEFER):
        status, _, reason = decoded(value.text).partition(" ")
        return failed(status, reason) if value.kind == ERROR else deferred(status, reason)
    if value.kind == BLACKHOLE:
        return delivered("discarded: :blackhole:")
    if value == NOWHERE:
        return delivered("discarded: /dev/null")
    return failed("5.7.1", f"{value.kind} is not allowed here")


# ---- one value


def _plain_list(text: bytes) -> list[Value]:
    """The usual case, without a look at each character: nothing but addresses, and file names without blanks."""
    found = []
    for item in text.split(b","):
        item = item.strip(BLANK)
        if item.isalnum():
            found.append(Value(ADDRESS, item))
        elif not item:
            continue
        elif item[0] in b"/~" and item.startswith((b"/", b"~/")):
            if b" " in item or b"\t" in item:
                raise ValueError(f"file name with blanks must be in quotes: {words.shown(item)}")
            found.append(Value(FILE, item))
        else:
            found.append(Value(ADDRESS, words.checked(item)))
    if len(found) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    return found


def _value(text: bytes, start: int) -> tuple[Value | None, int]:
    """The value that begins at `start`, and where to go on. None: only a comment."""
    first = text[start:start + 1]
    if first == b'"':
        content, end = words.read_quoted(text, start)
        end = words.skip_blank(text, end)
        if text[end:end + 1] in (b"", b","):
            is_escaped = text[start + 1:start + 2] == b"\\" and text[start + 2:start + 3].isalnum()
            return _whole(content, is_escaped=is_escaped), end
    elif first == b"|":
        item, end = words.to_comma(text, start + 1)
        return _command(words.unquoted(item)), end
    elif first == b"/" or text.startswith(b"~/", start):
        item, end = words.to_comma(text, start)
        if b" " in item or b"\t" in item or b'"' in item:
            raise ValueError(f"file name with blanks must be in quotes: {words.shown(item)}")
        return Value(FILE, item), end
    elif first == b":" or text[start:start + 6].lower() == b"error:":
        return _special(text, start)
    elif first == b"\\":
        address, end = words.address(text, start + 1)
        if not address:
            raise ValueError("nothing after the backslash")
        return Value(LOCAL, address), end
    address, end = words.address(text, start)
    return (Value(ADDRESS, address) if address else None), end


def _whole(content: bytes, *, is_escaped: bool) -> Value:
    """A value that is one quoted string. is_escaped: it began with a backslash and a letter."""
    if content.startswith(b"|"):
        return _command(content[1:])
    if content.startswith((b"/", b"~/")):
        return Value(FILE, content)
    if content.startswith(b":") or content[:6].lower() == b"error:":
        return _special(content, 0, is_whole=True)[0]
    if is_escaped:
        return Value(LOCAL, _unwrapped(content))  # "\alice": sendmail goes by the backslash wherever it is
    if content.startswith(b"\\"):
        return Value(LOCAL, _unwrapped(content[1:]))
    return Value(ADDRESS, _unwrapped(content))


def _unwrapped(content: bytes) -> bytes:
    """The address that was in quotes: alice@example.org has a domain, whatever RFC 5322 says; "a b" is a local part."""
    return words.checked(content) if content and not content.translate(None, NAME) else words.spelled(content, b"")


def _special(text: bytes, start: int, *, is_whole: bool = False) -> tuple[Value, int]:
    """A value that begins with a keyword. is_whole: the text is nothing but this value."""
    keyword_end = text.find(b":", start + 1) + 1
    keyword = text[start:keyword_end].lower()
    if keyword == _INCLUDE_MARK:
        item, end = (text[keyword_end:], len(text)) if is_whole else words.to_comma(text, keyword_end)
        path = words.unquoted(item.strip(BLANK))
        if not path.startswith(b"/"):
            raise ValueError(f":include: needs an absolute path: {words.shown(path)}")
        return Value(INCLUDE, path), end
    reason = text[keyword_end:].strip(BLANK)
    if keyword in (b"error:", b":fail:"):
        return _refusal(reason, *_FAIL), len(text)
    if keyword == b":unknown:":
        return _refusal(reason, *_UNKNOWN), len(text)
    if keyword == b":defer:":
        return _refusal(reason, *_LATER), len(text)
    if keyword == b":blackhole:":
        return Value(BLACKHOLE, b""), len(text)
    raise ValueError(f"unknown keyword: {words.shown(text[start:])}")


def _refusal(reason: bytes, status: bytes, default: bytes) -> Value:
    """ERROR or DEFER from `550 5.1.6 text`, `5.1.6:550 text` (sendmail), `550 text`, `5.1.6 text` or `text`."""
    code, rest = _leading_code(reason)
    given, rest = _leading_status(rest)
    if given and not code:
        code, rest = _leading_code(rest)
    if given:
        status = given
    elif code:
        status = code[:1] + status[1:]
    if status[:1] == b"2" or (code and code[:1] != status[:1]):
        raise ValueError(f"code and status do not agree: {words.shown(reason)}")
    return Value(DEFER if status[:1] == b"4" else ERROR, status + b" " + (rest or default))


def _leading_code(reason: bytes) -> tuple[bytes, bytes]:
    """(SMTP code or b"", what follows it)."""
    code, after = reason[:3], reason[3:4]
    if len(code) == 3 and code[:1] in b"45" and not code.translate(None, _DIGITS) and after in (b"", b" ", b"\t", b"-"):
        return code, reason[4:].lstrip(BLANK)
    return b"", reason


def _leading_status(reason: bytes) -> tuple[bytes, bytes]:
    """(enhanced status code or b"", what follows it)."""
    end = 0
    while end < len(reason) and reason[end] in b"0123456789.":
        end += 1
    status, after = reason[:end], reason[end:end + 1]
    if after in (b"", b" ", b"\t", b":") and is_status(status.decode("ascii")):
        return status, reason[end + 1:].lstrip(BLANK)
    return b"", reason


def _command(text: bytes) -> Value:
    text = text.strip(BLANK)
    if not text:
        raise ValueError("nothing after the bar")
    return Value(COMMAND, text)
