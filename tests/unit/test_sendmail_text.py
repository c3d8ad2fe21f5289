"""The message text between standard input and the drop: what changes, and that the pieces do not matter."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.cli import sendmail
from pysendmail.cli.sendmail import Source
from pysendmail.mail import address, headers
from pysendmail.spool.dropbox import Refused


def text(pieces: Iterable[bytes], dot_ends: bool) -> bytes:
    """What Source makes of the input, without the kernel in between."""
    source = Source(dot_ends)
    found = b""
    for piece in pieces:
        if source.has_ended:
            return found
        found += source.text(piece)
    return found if source.has_ended else found + source.rest()


def expected(data: bytes, dot_ends: bool) -> bytes:
    """The same, said line by line."""
    if data.endswith(b"\r"):
        data += b"\n"
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if dot_ends and b"." in lines:
        lines = lines[:lines.index(b".")]
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize(("data", "with_dots", "without"), [
    (b"", b"", b""),
    (b"\n", b"\n", b"\n"),
    (b"a", b"a\n", b"a\n"),
    (b"a\n", b"a\n", b"a\n"),
    (b"a\r\nb\nc\r\n", b"a\nb\nc\n", b"a\nb\nc\n"),
    (b"a\rb\r\n", b"a\rb\n", b"a\rb\n"),  # a bare CR stays
    (b"a\r\r\n", b"a\r\n", b"a\r\n"),
    (b"a\r", b"a\n", b"a\n"),
    (b"a\0b", b"a\0b\n", b"a\0b\n"),
    (b"\xe4\xff\n", b"\xe4\xff\n", b"\xe4\xff\n"),
    # A line of one dot.
    (b"a\n.\nb\n", b"a\n", b"a\n.\nb\n"),
    (b"a\r\n.\r\nb\n", b"a\n", b"a\n.\nb\n"),
    (b".\na\n", b"", b".\na\n"),
    (b".", b"", b".\n"),
    (b".\r", b"", b".\n"),
    (b"a\n.", b"a\n", b"a\n.\n"),
    (b"a\n.\r", b"a\n", b"a\n.\n"),
    (b"a\n..\n. \n.b\n", b"a\n..\n. \n.b\n", b"a\n..\n. \n.b\n"),  # dots are not taken off
    (b"a.\nb\n", b"a.\nb\n", b"a.\nb\n"),
    (b"a\n.\rb\n", b"a\n.\rb\n", b"a\n.\rb\n"),
    (b"a\n\n.\n\n", b"a\n\n", b"a\n\n.\n\n"),
])
def test_lines(data: bytes, with_dots: bytes, without: bytes) -> None:
    assert text([data], True) == with_dots == text((bytes([c]) for c in data), True)
    assert text([data], False) == without == text((bytes([c]) for c in data), False)


PIECES = st.lists(st.binary(max_size=6) | st.text("\r\n.ab", min_size=1, max_size=6).map(str.encode), max_size=12)


@given(PIECES, st.booleans())
def test_the_pieces_do_not_matter(pieces: list[bytes], dot_ends: bool) -> None:
    data = b"".join(pieces)
    found = text((piece for piece in pieces if piece), dot_ends)
    assert found == text([data] if data else [], dot_ends) == expected(data, dot_ends)


@given(st.text("abcXYZ019._+-=@", min_size=1, max_size=12).map(str.encode))
def test_an_address_that_is_not_parsed_would_be_the_same_parsed(value: bytes) -> None:
    try:
        expected = [spec for spec, _, _ in address.parse_list(value)]
    except address.AddressError:
        with pytest.raises(Refused):
            sendmail._parsed(value)
    else:
        assert sendmail._parsed(value) == expected


def test_the_constant_kept_here_for_speed_is_that_of_the_header() -> None:
    assert sendmail.MAX_HEADER == headers.MAX_HEADER
