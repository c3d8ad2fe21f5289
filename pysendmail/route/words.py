"""The words that values.py and aliases.py are made of: quoted strings, comments, addresses, text up to a comma.

Each reader takes the text and a position and returns what it found with the position after it; ValueError carries words
for the administrator. Patterns only ever run forward from the position, so that the whole stays linear: looking for the
end first, and then for quotes before it, made each quote cost the rest of the line. RFC 5322 section 3.2.
"""

import re

MAX_COMMENT_DEPTH = 50
MAX_SHOWN = 40  # bytes of the input that an error shows

ALNUM = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ATOM = ALNUM + b"!#$%&'*+-./=?^_`{}~"  # in a local part that needs no quotes; "|" would be a command
NAME = ATOM + b"@"
BLANK = b" \t"
MARKS = (b"/", b"|", b":", b"~/", b"\\")  # how a value begins that is no address

_NOT_ASCII = bytes(range(128, 256))
_LOCAL = ATOM + _NOT_ASCII
_SPEAKABLE = _LOCAL + b"|"  # in a local part as people write it without quotes
_DOMAIN = ALNUM + b".-_" + _NOT_ASCII
_WORD = re.compile(rb'(?:\[[0-9A-Za-z.:-]*\]|[^ \t,"()<>;:\\])+')  # an address literal may have colons
_QUOTE_OR_ESCAPE = re.compile(rb'["\\]')
_QUOTE_OR_COMMA = re.compile(rb'[",]')
_QUOTE_OR_BRACKET = re.compile(rb'[">]')


def quoted(content: bytes) -> bytes:
    """The content as a quoted string."""
    return b'"%s"' % content.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def read_quoted(text: bytes, start: int) -> tuple[bytes, int]:
    """What is in the quoted string that opens at `start`, its backslashes resolved."""
    parts: list[bytes] = []
    begin = position = start + 1
    while found := _QUOTE_OR_ESCAPE.search(text, position):
        parts.append(text[begin:found.start()])
        if found.group() == b'"':
            return b"".join(parts), found.end()
        parts.append(text[found.end():found.end() + 1])
        begin = position = found.end() + 1
    raise ValueError(f"missing quote: {shown(text[start:])}")


def unquoted(item: bytes) -> bytes:
    """What is in it, if the item is one quoted string; else the item."""
    if item.startswith(b'"'):
        content, end = read_quoted(item, 0)
        if end == len(item):
            return content
    return item


def to_comma(text: bytes, start: int) -> tuple[bytes, int]:
    """The text up to the next comma that is not in quotes, without blanks around it."""
    position = start
    while found := _QUOTE_OR_COMMA.search(text, position):
        if found.group() == b",":
            return text[start:found.start()].strip(BLANK), found.start()
        position = read_quoted(text, found.start())[1]
    return text[start:].strip(BLANK), len(text)


def address(text: bytes, start: int) -> tuple[bytes, int]:
    """The address up to the next comma, b"" if only comments are there, and where that comma is."""
    words: list[bytes] = []  # quoted strings and runs of other characters; b" " for what stood between
    bracketed: bytes | None = None
    position = start
    while position < len(text) and text[position] != 44:
        char = text[position]
        if char in BLANK or char == 40:
            position = skip_blank(text, position)
            words.append(b" ")
        elif bracketed is not None:
            raise ValueError(f"text after '>': {shown(text[start:])}")
        elif char == 34:
            end = read_quoted(text, position)[1]
            words.append(text[position:end])
            position = end
        elif char == 60:
            bracketed, position = _in_brackets(text, position)
        else:
            word = _WORD.match(text, position)
            if word is None:
                raise ValueError(f"unexpected {chr(char)!r}: {shown(text[start:])}")
            words.append(word.group())
            position = word.end()
    if bracketed is not None:
        return checked(bracketed), position
    found = b"".join(words).strip(BLANK)
    return (checked(found) if found else b""), position


def _in_brackets(text: bytes, start: int) -> tuple[bytes, int]:
    """The address in <...>, less a source route (RFC 5321 appendix C)."""
    position = start + 1
    while found := _QUOTE_OR_BRACKET.search(text, position):
        if found.group() == b'"':
            position = read_quoted(text, found.start())[1]
            continue
        inside = text[start + 1:found.start()].strip(BLANK)
        if inside.startswith(b"@"):
            inside = inside.partition(b":")[2]
        if not inside:
            raise ValueError(f"empty address: {shown(text[start:])}")
        return inside, found.end()
    raise ValueError(f"missing '>': {shown(text[start:])}")


def checked(address: bytes) -> bytes:
    """The address as we spell it. Raises ValueError if it is none."""
    if address.startswith(b'"'):
        local, end = read_quoted(address, 0)
        at, domain = address[end:end + 1], address[end + 1:]
        if at not in (b"", b"@"):
            raise ValueError(f"text after a quoted name: {shown(address)}")
    else:
        local, at, domain = address.rpartition(b"@")
        if not at:
            local, domain = domain, b""
        if b" " in local or b"\t" in local:
            raise ValueError(f"blank inside an address; is a comma missing? {shown(address)}")
        if local.translate(None, _SPEAKABLE):
            raise ValueError(f"not an address: {shown(address)}")
    if at and not _is_domain(domain):
        raise ValueError(f"not a domain after the '@': {shown(address)}")
    return spelled(local, domain)


def spelled(local: bytes, domain: bytes) -> bytes:
    """Local part and domain as one text: in quotes where they are needed, without where they are not."""
    if not local or (not domain and local.startswith(MARKS)):
        raise ValueError(f"not an address: {shown(local)}")
    if local.translate(None, _LOCAL) or local.startswith(MARKS):
        local = quoted(local)
    return local + b"@" + domain if domain else local


def _is_domain(domain: bytes) -> bool:
    """Whether this can be a domain, or an address literal. What it names is not looked at."""
    if domain.startswith(b"["):
        inside = domain[1:-1]
        return domain.endswith(b"]") and bool(inside) and not inside.translate(None, ALNUM + b".:-")
    return bool(domain) and not domain.translate(None, _DOMAIN) and not domain.startswith(b".") and b".." not in domain


def skip(text: bytes, position: int) -> int:
    """Past blanks and commas."""
    while position < len(text) and text[position] in b" \t,":
        position += 1
    return position


def skip_blank(text: bytes, position: int) -> int:
    """Past blanks and comments, which may be nested."""
    depth = 0
    while position < len(text):
        char = text[position]
        if char == 40:
            depth += 1
            if depth > MAX_COMMENT_DEPTH:
                raise ValueError("comments are nested too deeply")
        elif depth and char == 41:
            depth -= 1
        elif depth and char == 92:
            position += 1
        elif not depth and char not in BLANK:
            return position
        position += 1
    if depth:
        raise ValueError("missing ')'")
    return position


def shown(text: bytes) -> str:
    """The start of the input, for an error: whatever is in it, the line stays one line of ASCII."""
    return ascii(text[:MAX_SHOWN].decode("utf-8", "replace"))
