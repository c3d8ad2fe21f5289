"""Where the header of a message is, and whom it names: byte spans, nothing parsed that nobody asked for.

Input is a message, or its start, with LF line ends. A header field is a line that begins with a name of printable
characters, optional blanks and a colon, together with the lines behind it that begin with a blank. The header ends

    with an empty line, which belongs to neither header nor body,
    or before the first line that is no field: it is the body's first (`echo hello | sendmail root`). So is a line that
    begins with "--", whatever follows: a MIME boundary,
    or at the limits below: what follows is body, since refusing is not for a scan to decide (`is_cut` tells).

In front of the header a From_ line (mbox) is skipped, and the ">From_" lines that UUCP put behind it. A text that
merely begins with the word "From" is not taken for one: `from_lines_end`.

No file, no state, no altering; a header field is never decoded here. /usr/sbin/sendmail loads this when it needs it
(`sendmail -t`), so it imports nothing but address.py. RFC 5322 2.2 and 3.6.6; the end of the header is sendmail's rule.
"""

from . import address

MAX_HEADER = 128 * 1024  # bytes, From_ lines included
MAX_LINES = 10_000  # of the header, folded lines each counted: a To with a line for each of some thousand people
MAX_FROM_LINE = 1000  # bytes

_NAME = bytes(c for c in range(33, 127) if c != 58)
_TO = frozenset((b"to", b"cc", b"bcc", b"apparently-to"))
_RESENT_TO = frozenset((b"resent-to", b"resent-cc", b"resent-bcc"))
_TRACE = frozenset((b"received", b"return-path", b"delivered-to"))

Field = tuple[bytes, int, int]  # lower-case name, start, end: folded lines and the last LF included


def scan(data: bytes) -> tuple[list[Field], int, int]:
    """(fields, where the header ends, where the body begins); the last two are equal if no empty line separates them.

    The header begins with the first field, if there is one. `data` may be cut anywhere behind MAX_HEADER bytes.
    """
    fields: list[Field] = []
    position = from_lines_end(data)
    limit = min(len(data), MAX_HEADER)
    for _ in range(MAX_LINES):
        end = data.find(b"\n", position, limit) + 1
        if not end:
            if limit < len(data):
                break
            end = limit
        line = data[position:end]
        if line in (b"\n", b"\r\n"):
            return fields, position, end
        if line[:1] in (b" ", b"\t") and fields:
            name, start, _ = fields[-1]
            fields[-1] = name, start, end
        elif name := field_name(line):
            fields.append((name, position, end))
        else:
            break
        position = end
    return fields, position, position


def is_cut(data: bytes, fields: list[Field], body_start: int) -> bool:
    """Whether scan stopped at its limits, in the middle of a header."""
    if not fields or body_start != fields[-1][2] or body_start == len(data):
        return False
    line = data[body_start:body_start + MAX_HEADER]
    return line[:1] in (b" ", b"\t") or bool(field_name(line))


def field_name(line: bytes) -> bytes:
    """The lower-case name if the line begins a header field, else b"". NUL does not count: nobody will see it later."""
    name, colon, _ = line.partition(b":")
    name = name.replace(b"\0", b"").rstrip(b" \t").lower()
    return b"" if not colon or name.translate(None, _NAME) or name.startswith(b"--") else name


def from_lines_end(data: bytes) -> int:
    """Behind the From_ lines at the very start, 0 if there are none.

    "From user Tue Jul  1 10:52:37 2003" is one, and ">From ..." after it. Without a time it still counts if a header
    follows; otherwise it is a text, and dropping its first line would lose it.
    """
    position = 0
    while data[position:position + 1] in (b"F", b">"):
        end = data.find(b"\n", position, position + MAX_FROM_LINE) + 1
        line = data[position:end]
        if not line.lstrip(b">").startswith(b"From ") or field_name(line):
            return position
        if not _has_time(line) and not _is_header(data, end):
            return position
        position = end
    return position


def recipients(data: bytes, fields: list[Field]) -> list[bytes]:
    """Whom the message names as its recipients (sendmail -t): To, Cc, Bcc, and Apparently-To, an old one that sendmail
    still knows; or, as soon as there is one Resent- field, the Resent- ones of the newest block. Raises AddressError.
    RFC 5322 3.6.6; sendmail and Postfix take every block.
    """
    if any(name.startswith(b"resent-") for name, _, _ in fields):
        chosen = [field for field in newest_resent(fields) if field[0] in _RESENT_TO]
    else:
        chosen = [field for field in fields if field[0] in _TO]
    found = []
    for _, start, end in chosen:
        value = data[start:end].partition(b":")[2].replace(b"\0", b"")
        found += [spec for spec, _, _ in address.parse_list(value) if spec]
    return found


def newest_resent(fields: list[Field]) -> list[Field]:
    """The uppermost block: until a name comes again (but for one given twice in a row) or a trace field intervenes."""
    block: list[Field] = []
    seen: set[bytes] = set()
    for field in fields:
        name = field[0]
        if name in _TRACE and block:
            break
        if not name.startswith(b"resent-"):
            continue
        if name in seen and block[-1][0] != name:
            break
        seen.add(name)
        block.append(field)
    return block


def _is_header(data: bytes, start: int) -> bool:
    """Whether a header field or a further From_ line stands there."""
    line = data[start:start + MAX_FROM_LINE]
    return bool(field_name(line.partition(b"\n")[0])) or line.lstrip(b">").startswith(b"From ")


def _has_time(line: bytes) -> bool:
    """Whether there are hours and minutes in the line."""
    colon = line.find(b":")
    while colon > 1:
        if line[colon - 2:colon].isdigit() and line[colon + 1:colon + 3].isdigit() and len(line) > colon + 2:
            return True
        colon = line.find(b":", colon + 1)
    return False
