"""Line ends in and out: what is a line, what ends a message, what may leave us."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.smtp.wire import DataDecoder, DataEncoder, LineReader, LineTooLong, LocalError, PipeLines

Slicer = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[n:n + 1] for n in range(len(data))]


def in_threes(data: bytes) -> list[bytes]:
    return [data[n:n + 3] for n in range(0, len(data), 3)]


slicers = pytest.mark.parametrize("cut", [whole, bytewise, in_threes])

# Bytes among which line ends and dots are frequent.
wild = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a", b"\0", b"\xff", b"\r\n.\r\n", b"\n.\n"]),
                max_size=40).map(b"".join)
cuts = st.lists(st.integers(0, 80), max_size=6)


def sliced(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(n, len(data)) for n in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def encoded(chunks: list[bytes]) -> bytes:
    encoder = DataEncoder()
    return b"".join([*(encoder.feed(chunk) for chunk in chunks), encoder.finish()])


def decoded(chunks: list[bytes], limit: int = 0) -> tuple[bytes, DataDecoder]:
    """What comes out, and the decoder; chunks after the end are added to its rest."""
    decoder = DataDecoder(limit)
    out = b""
    for chunk in chunks:
        if decoder.is_complete:
            decoder.rest += chunk
        else:
            out += decoder.feed(chunk)
    return out, decoder


@slicers
@pytest.mark.parametrize(("at_rest", "on_the_wire"), [
    (b"", b".\r\n"),
    (b"a\n", b"a\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b"\n", b"\r\n.\r\n"),
    (b".\n", b"..\r\n.\r\n"),
    (b".", b"..\r\n.\r\n"),
    (b".a\n..b\nc.\n.\n", b"..a\r\n...b\r\nc.\r\n..\r\n.\r\n"),
    (b"a\r\nb\n", b"a\r\nb\r\n.\r\n"),
    (b"10%\r20%\rdone\n", b"10% 20% done\r\n.\r\n"),
    (b"a\r", b"a\r\n.\r\n"),
    (b"a\n\r", b"a\r\n\r\n.\r\n"),
    (b"a\r\r\n.\r\nb", b"a \r\n..\r\nb\r\n.\r\n"),
    (b"a\r.\r", b"a .\r\n.\r\n"),
    (b"a\n\r.\r\n", b"a\r\n .\r\n.\r\n"),
    (b"\0\xff\n", b"\0\xff\r\n.\r\n"),
])
def test_what_is_at_rest_goes_out_with_crlf_and_doubled_dots(cut: Slicer, at_rest: bytes, on_the_wire: bytes) -> None:
    assert encoded(cut(at_rest)) == on_the_wire


@given(wild, cuts)
def test_nothing_bare_leaves_and_only_the_end_looks_like_an_end(message: bytes, at: list[int]) -> None:
    wire = encoded(sliced(message, at))
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", wire)
    assert (b"\r\n" + wire).find(b"\r\n.\r\n") == len(wire) - 3


@given(wild.filter(lambda m: b"\r" not in m), cuts, cuts)
def test_what_goes_out_comes_in_again(message: bytes, at: list[int], also_at: list[int]) -> None:
    wire = encoded(sliced(message, at))
    out, decoder = decoded(sliced(wire + b"QUIT\r\n", also_at))
    assert out == (message if message.endswith(b"\n") or not message else message + b"\n")
    assert (decoder.is_complete, decoder.has_bare, decoder.rest) == (True, False, b"QUIT\r\n")
    assert decoder.size == len(out) + out.count(b"\n")


@slicers
@pytest.mark.parametrize(("on_the_wire", "at_rest", "rest"), [
    (b".\r\n", b"", b""),
    (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
    (b"a\r\n.\r\n", b"a\n", b""),
    (b"\r\n.\r\n", b"\n", b""),
    (b"..\r\n.\r\n", b".\n", b""),
    (b"..a\r\n...\r\nb.\r\n.\r\n", b".a\n..\nb.\n", b""),
    (b".a\r\n.\r\n", b"a\n", b""),
    (b"a\r\n.\r\n.\r\n", b"a\n", b".\r\n"),
])
def test_content_ends_at_crlf_dot_crlf(cut: Slicer, on_the_wire: bytes, at_rest: bytes, rest: bytes) -> None:
    out, decoder = decoded(cut(on_the_wire))
    assert (out, decoder.is_complete, decoder.rest, decoder.has_bare) == (at_rest, True, rest, False)


# Every end of data that some server has taken for one (SEC Consult 2023, sendmail 8.18, Postfix, Exim, aiosmtpd).
SMUGGLED = [a + b"." + b for a in (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r") for b in (b"\n", b"\r", b"\r\n", b"\n\r")
            if (a + b"." + b).find(b"\r\n.\r\n") < 0]
SMUGGLED += [b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.\x85", b"\x85.\x85", b"\r\n.\xe2\x80\xa8", b"\0\r\n.\n",
             b"\r\n .\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n"]


@slicers
@pytest.mark.parametrize("end", SMUGGLED)
def test_no_other_sequence_ends_it(cut: Slicer, end: bytes) -> None:
    hidden = b"MAIL FROM:<evil@example.org>\r\n"
    out, decoder = decoded(cut(b"text" + end + hidden + b"\r\n.\r\nNOOP\r\n"))
    assert (decoder.is_complete, decoder.rest) == (True, b"NOOP\r\n")
    assert b"MAIL FROM:<evil" in out
    is_bare = bool(re.search(rb"(?<!\r)\n|\r(?!\n)", end))
    assert decoder.has_bare == is_bare
    assert encoded([out]).count(b"\r\n.\r\n") == 1, "what has come in must not end a message when it goes out"


@given(wild, cuts)
def test_how_it_is_cut_makes_no_difference(data: bytes, at: list[int]) -> None:
    one, first = decoded([data])
    other, second = decoded(sliced(data, at))
    if first.is_complete:
        assert one == other
        assert first.rest == second.rest
        assert (first.size, first.has_bare) == (second.size, second.has_bare)
    else:
        assert one.startswith(other) or other.startswith(one)
    assert first.is_complete == second.is_complete == ((b"\r\n" + data).find(b"\r\n.\r\n") >= 0)


@slicers
def test_beyond_the_limit_it_is_read_to_its_end_and_comes_out_no_more(cut: Slicer) -> None:
    out, decoder = decoded(cut(b"0123456789\r\n" * 20 + b".\r\nQUIT\r\n"), limit=100)
    assert (decoder.is_too_big, decoder.is_complete, decoder.rest) == (True, True, b"QUIT\r\n")
    assert decoder.size == 240
    assert len(out) <= 100


def test_a_message_of_exactly_the_limit_is_within_it() -> None:
    out, decoder = decoded([b"0123456789\r\n" * 2 + b".\r\n"], limit=24)
    assert (decoder.is_too_big, out) == (False, b"0123456789\n" * 2)


def test_a_decoder_is_for_one_message() -> None:
    decoder = DataDecoder()
    decoder.feed(b".\r\n")
    with pytest.raises(LocalError):
        decoder.feed(b"a")


@slicers
@pytest.mark.parametrize(("data", "lines"), [
    (b"a\r\nbc\r\n", [b"a\r", b"bc\r"]),
    (b"a\nb", [b"a"]),
    (b"\n\n", [b"", b""]),
    (b"", []),
])
def test_lines_are_cut_at_lf(cut: Slicer, data: bytes, lines: list[bytes]) -> None:
    reader = LineReader(10)
    found = []
    for chunk in cut(data):
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            found.append(line)
    assert found == lines


@slicers
def test_a_line_over_the_limit_is_told_once_and_the_next_one_is_read(cut: Slicer) -> None:
    reader = LineReader(10)
    found: list[bytes | str] = []
    for chunk in cut(b"123456789\n" + b"x" * 50 + b"\n1234567890\nok\n"):
        reader.feed(chunk)
        for _ in range(10):
            try:
                line = reader.next_line()
            except LineTooLong:
                found.append("too long")
                continue
            if line is None:
                break
            found.append(line)
    assert found == [b"123456789", "too long", "too long", b"ok"]
    assert reader.skipped == 62
    assert len(reader) == 0


def test_an_endless_line_is_not_kept() -> None:
    reader = LineReader(100)
    reader.feed(b"x" * 200)
    with pytest.raises(LineTooLong):
        reader.next_line()
    for _ in range(100):
        reader.feed(b"x" * 1000)
        assert reader.next_line() is None
        assert len(reader) == 0
    assert reader.skipped == 100_200


def test_bytes_are_searched_once() -> None:
    """A line that comes byte by byte must not be searched from its start each time."""
    reader = LineReader(1_000_000)
    reader.feed(b"x" * 400_000)
    assert reader.next_line() is None
    for _ in range(20_000):  # 8,000,000,000 bytes, were it so
        reader.feed(b"x")
        assert reader.next_line() is None
    assert len(reader) == 420_000


def test_what_is_no_line_yet_can_be_taken_over() -> None:
    reader = LineReader(100)
    reader.feed(b"DATA\r\nFrom: a")
    assert reader.next_line() == b"DATA\r"
    assert reader.take_rest() == b"From: a"
    reader.feed(b"b\n")
    assert reader.next_line() == b"b"


@slicers
@pytest.mark.parametrize(("given_", "made"), [
    (b"a\nb\r\nc\n\n", b"a\r\nb\r\nc\r\n\r\n"),
    (b"\n", b"\r\n"),
    (b"\r\n\r\n", b"\r\n\r\n"),
    (b"a\rb\n", b"a\rb\r\n"),
    (b"a\r\r\n", b"a\r\r\n"),
    (b".\n", b".\r\n"),
])
def test_from_a_pipe_lf_is_as_good_as_crlf(cut: Slicer, given_: bytes, made: bytes) -> None:
    lines = PipeLines()
    assert b"".join(lines.feed(chunk) for chunk in cut(given_)) == made


@given(wild, cuts)
def test_from_a_pipe_every_lf_has_its_cr(data: bytes, at: list[int]) -> None:
    lines = PipeLines()
    made = b"".join(lines.feed(chunk) for chunk in sliced(data, at))
    assert made == re.sub(rb"(?<!\r)\n", rb"\r\n", data)
