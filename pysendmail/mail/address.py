"""Addresses as people and programs write them: lists in header fields and on a command line, in bytes.

`parse_list` takes RFC 5322 address lists and what sendmail and Postfix take besides: display names without quotes,
nested comments, groups, routes (`<@a,@b:c@d>`, stripped), semicolons for commas, and, where a list has none of
`, ; < (`, blanks between addresses (sendmail's old style). It never guesses who was meant: what cannot be an address
raises AddressError, since leaving one recipient out silently would lose mail.

It knows no domains and no users. `|command`, `/file` and `:include:/file` come out as addresses like any other; the
trusted side refuses those. Percent hacks and bang paths are not interpreted.

Everything is linear in the length of the value, without recursion. No module but ours is imported, so that
/usr/sbin/sendmail may use this (`sendmail -t`). RFC 5322 3.4 and 4.4, RFC 5321 4.1.2 and 4.5.3.1, RFC 6531 (UTF-8).
"""

MAX_NESTING = 50  # comments within comments
MAX_ADDRESS = 900  # bytes; RFC 5321 has 320 (64 + "@" + 255), lists and VERP senders are known to exceed it
MAX_DOMAIN = 255  # bytes, RFC 5321 4.5.3.1.2

_WORD, _AT, _COMMA, _SEMICOLON, _COLON, _LESS, _GREATER = range(7)
_SIGNS = {64: _AT, 44: _COMMA, 59: _SEMICOLON, 58: _COLON, 60: _LESS, 62: _GREATER}
_BLANK = frozenset(b" \t\r\n")
_ENDS_WORD = frozenset(b" \t\r\n@,;:<>()\"[")
_ENDS_ODD_WORD = _ENDS_WORD - frozenset(b":")
_CONTROL = bytes(c for c in range(32) if c not in b"\t\r\n") + b"\x7f"
_NEVER_VALID = bytes(range(32)) + b"\x7f"

Token = tuple[int, int, int]  # kind, start, end
Found = tuple[bytes, int, int]  # addr-spec, start, end


class AddressError(ValueError):
    """Not a list of addresses. The text says why, in printable ASCII, for the user."""


def parse_list(value: bytes) -> list[Found]:
    """The addresses of a list, in order, each as (addr-spec, start, end).

    The addr-spec has no brackets, comments or needless blanks; it is b"" for "<>". value[start:end] is what stands
    there for it, so that a caller may put "@domain" behind a bare one. A bare one of several words (`John Smith`) has
    them quoted in the addr-spec only. Raises AddressError.
    """
    if len(value.translate(None, _CONTROL)) != len(value):
        raise AddressError("control character in an address")
    is_old_style = not any(sign in value for sign in (b",", b";", b"<", b"("))
    found: list[Found] = []
    words: list[Token] = []
    is_named = False  # the element has had its <address>
    tokens = _Tokens(value)
    for token in tokens:
        kind = token[0]
        if kind in (_WORD, _AT):
            words.append(token)
        elif kind == _LESS:
            found.append(_bracketed(value, tokens, token[2]))
            words, is_named = [], True
        elif kind == _COLON:
            words = []  # the name of a group, or a route
        elif kind == _COMMA and words and words[0][0] == _AT:
            continue  # a route without brackets: @a,@b:c@d
        elif kind in (_COMMA, _SEMICOLON):
            found += _bare(value, words, is_named, is_old_style)
            words, is_named = [], False
    return found + _bare(value, words, is_named, is_old_style)


def is_valid(address: bytes) -> bool:
    """Whether an envelope can carry the address: one line, not empty, not of absurd length. A domain may be absent."""
    if not 0 < len(address) <= MAX_ADDRESS or len(address.translate(None, _NEVER_VALID)) != len(address):
        return False
    return len(split(address)[1]) <= MAX_DOMAIN


def split(address: bytes) -> tuple[bytes, bytes]:
    """(local part, domain) at the last "@" outside quotes; the domain of a bare address is empty."""
    at = _last_at(address)
    return (address, b"") if at < 0 else (address[:at], address[at + 1:])


def split_text(address: str) -> tuple[str, str]:
    """The same for an address as text (mail/envelope.py)."""
    local, domain = split(address.encode("utf-8", "surrogateescape"))
    return local.decode("utf-8", "surrogateescape"), domain.decode("utf-8", "surrogateescape")


def unquote(local: bytes) -> bytes:
    """A local part as a user name is compared: without quotes and backslashes (RFC 5321 4.1.2: they mean nothing)."""
    if b'"' not in local and b"\\" not in local:
        return local
    result = bytearray()
    characters = iter(local)
    for c in characters:
        if c == 92:  # backslash: the next one is meant literally
            result.append(next(characters, 92))
        elif c != 34:
            result.append(c)
    return bytes(result)


def _last_at(address: bytes) -> int:
    if b'"' not in address:
        return address.rfind(b"@")
    last, position, is_quoted = -1, 0, False
    while position < len(address):
        c = address[position]
        if c == 92:
            position += 1
        elif c == 34:
            is_quoted = not is_quoted
        elif c == 64 and not is_quoted:
            last = position
        position += 1
    return last


# -- from tokens to addresses -----------------------------------------------------------------------------------------

def _bracketed(value: bytes, tokens: "_Tokens", start: int) -> Found:
    """What stands between "<" and ">"; `tokens` is behind the "<", which ends at `start`."""
    inner: list[Token] = []
    has_route = False
    for token in tokens:
        kind = token[0]
        if kind == _GREATER:
            return _spec(value, inner) if inner else (b"", start, start)
        if kind in (_WORD, _AT):
            inner.append(token)
        elif kind == _COLON and inner and inner[0][0] == _AT and not has_route:
            inner, has_route = [], True
        elif kind != _COMMA or not inner or inner[0][0] != _AT:
            raise AddressError(f"{chr(value[token[1]])!r} inside <>")
    raise AddressError("'<' without '>'")


def _bare(value: bytes, words: list[Token], is_named: bool, is_old_style: bool) -> list[Found]:
    """The addresses in what stands between two separators, outside of brackets.

    New style: a word with "@" is an address, and words without one beside it are its comment (`Bob bob@example.org`);
    if none has an "@", all of them together are one local address (`John Smith`).
    """
    if not words:
        return []
    groups: list[list[Token]] = []
    for token in words:
        if groups and _are_joined(value, groups[-1][-1], token):
            groups[-1].append(token)
        else:
            groups.append([token])
    if not is_old_style:
        qualified = [group for group in groups if any(kind == _AT for kind, _, _ in group)]
        groups = qualified or ([] if is_named else [words])
    return [_spec(value, group) for group in groups]


def _are_joined(value: bytes, before: Token, after: Token) -> bool:
    """Whether two tokens belong to one address: no gap, or one beside "@" or "." (RFC 5322 4.4)."""
    return (before[2] == after[1] or before[0] == _AT or after[0] == _AT
            or value[before[2] - 1] == 46 or value[after[1]] == 46)


def _spec(value: bytes, words: list[Token]) -> Found:
    """The addr-spec of the tokens of one address."""
    parts: list[bytes] = []
    local_parts = 0  # parts before the last "@"
    for index, token in enumerate(words):
        if index and not _are_joined(value, words[index - 1], token):
            parts.append(b" ")
        if token[0] == _AT:
            local_parts = len(parts)
        parts.append(value[token[1]:token[2]])
    is_bare = not any(kind == _AT for kind, _, _ in words)
    local, domain = (parts, []) if is_bare else (parts[:local_parts], parts[local_parts + 1:])
    if not is_bare and (not local or not domain):
        raise AddressError(f"nothing {'before' if domain else 'after'} '@' in an address")
    spec = _quoted(b"".join(local)) if b" " in local else b"".join(local)
    if not is_bare:
        host = b"".join(domain)
        if host[:1] != b"[" and any(sign in host for sign in (b" ", b'"', b"\\", b"[")):
            raise AddressError("blank or quote in the domain of an address")
        spec += b"@" + host
    return spec.replace(b"\r", b"").replace(b"\n", b""), words[0][1], words[-1][2]


def _quoted(local: bytes) -> bytes:
    return b'"%s"' % unquote(local).replace(b"\\", b"\\\\").replace(b'"', b'\\"')


# -- from bytes to tokens ---------------------------------------------------------------------------------------------

class _Tokens:
    """The tokens of a value, one after the other. Blanks and comments lie between them; dots are part of words."""

    __slots__ = ("is_fresh", "position", "value")

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.position = 0
        self.is_fresh = True  # at the start of an element, where ":" begins a word (":include:") and ends no name

    def __iter__(self) -> "_Tokens":
        return self

    def __next__(self) -> Token:
        value = self.value
        while self.position < len(value):
            start = self.position
            c = value[start]
            if c in _BLANK or c == 41:  # ")" that closes nothing
                self.position += 1
            elif c == 40:  # "("
                self.position = _end_of_comment(value, start)
            elif c in _SIGNS and not (c == 58 and self.is_fresh):
                self.position += 1
                self.is_fresh = c in b",;:"
                return _SIGNS[c], start, start + 1
            else:
                self.position = _end_of_word(value, start, _ENDS_ODD_WORD if c == 58 else _ENDS_WORD)
                self.is_fresh = False
                return _WORD, start, self.position
        raise StopIteration



def _end_of_word(value: bytes, start: int, ends: frozenset[int]) -> int:
    """Behind an atom with its dots, a quoted string or a domain literal."""
    if value[start] == 34:
        return _end_of_quotes(value, start, 34, "quote")
    if value[start] == 91:
        return _end_of_quotes(value, start, 93, "'['")
    position = start
    while position < len(value) and value[position] not in ends:
        position += _step(value, position)  # "\user", "a\,b"
    return position


def _end_of_quotes(value: bytes, start: int, closing: int, what: str) -> int:
    position = start + 1
    while position < len(value):
        c = value[position]
        if c == closing:
            return position + 1
        position += _step(value, position)
    raise AddressError(f"{what} that is not closed")


def _step(value: bytes, position: int) -> int:
    """1, or 2 for a backslash and what it makes literal: it needs something, or "<a\\" and ">" were an open bracket."""
    if value[position] != 92:
        return 1
    if value[position + 1:position + 2] in (b"", b"\r", b"\n"):
        raise AddressError("backslash before nothing in an address")
    return 2


def _end_of_comment(value: bytes, start: int) -> int:
    depth, position = 0, start
    while position < len(value):
        c = value[position]
        if c == 92:
            position += 1
        elif c == 40:
            depth += 1
            if depth > MAX_NESTING:
                raise AddressError("comments nested too deeply")
        elif c == 41:
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    raise AddressError("'(' that is not closed")
