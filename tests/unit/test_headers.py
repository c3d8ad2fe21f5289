"""Where a header ends, and whom it names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import address, headers
from pysendmail.mail.headers import MAX_HEADER, MAX_LINES, field_name, from_lines_end, is_cut, recipients, scan


def parts(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """([(name, field)], body)."""
    fields, _, body_start = scan(data)
    return [(name, data[start:end]) for name, start, end in fields], data[body_start:]


@pytest.mark.parametrize(("data", "names", "body"), [
    (b"", [], b""),
    (b"\n", [], b""),
    (b"\nTo: x\n", [], b"To: x\n"),
    (b"To: a\n\nbody\n", [b"to"], b"body\n"),
    (b"To: a\nCC:\n\n\nbody\n", [b"to", b"cc"], b"\nbody\n"),
    (b"To: a\n\tb\n c\nX: d\n\nbody\n", [b"to", b"x"], b"body\n"),
    # The empty line is missing: the first line that is no field is the body's.
    (b"hello\n", [], b"hello\n"),
    (b"hello\nTo: a\n", [], b"hello\nTo: a\n"),
    (b"To: a\nhello world\nX: y\n", [b"to"], b"hello world\nX: y\n"),
    (b"To: a\nhello: world\nhow are: you\n", [b"to", b"hello"], b"how are: you\n"),
    (b"To: a\n--boundary: x\n", [b"to"], b"--boundary: x\n"),
    (b"--a: b\n", [], b"--a: b\n"),
    (b"-a: b\n", [b"-a"], b""),
    (b" indented: x\nTo: a\n", [], b" indented: x\nTo: a\n"),
    (b": no name\n", [], b": no name\n"),
    ("Ünï: x\n".encode(), [], "Ünï: x\n".encode()),
    (b"a\x7fb: x\n", [], b"a\x7fb: x\n"),
    # No end at all.
    (b"To: a", [b"to"], b""),
    (b"To: a\n", [b"to"], b""),
    (b"To: a\n b", [b"to"], b""),
    # Odd names.
    (b"To : a\nX\t : b\n\nc\n", [b"to", b"x"], b"c\n"),
    (b"X/Y(Z)!: a\n\nc\n", [b"x/y(z)!"], b"c\n"),
    (b"S\0ubject: a\n\nc\n", [b"subject"], b"c\n"),
    # Line ends left over by a double conversion.
    (b"To: a\r\n\r\nc\r\n", [b"to"], b"c\r\n"),
    (b"To: a\rX: b\n\nc\n", [b"to"], b"c\n"),
    # From_ lines.
    (b"From bob Tue Jul  1 10:52:37 2003\nTo: a\n\nc\n", [b"to"], b"c\n"),
    (b"From bob Tue Jul  1 10:52:37 2003\n>From eve Tue Jul  1 10:52 remote from x\nTo: a\n\nc\n", [b"to"], b"c\n"),
    (b"From bob Tue Jul  1 10:52:37 2003\n\nc\n", [], b"c\n"),
    (b"From bob Tue Jul  1 10:52:37 2003\ntext\n", [], b"text\n"),
    (b"From bob\nTo: a\n\nc\n", [b"to"], b"c\n"),
    (b"From here on\nit is text\n", [], b"From here on\nit is text\n"),
    (b"From : bob\nTo: a\n\nc\n", [b"from", b"to"], b"c\n"),
    (b"To: a\nFrom bob Tue Jul  1 10:52:37 2003\n\nc\n", [b"to"], b"From bob Tue Jul  1 10:52:37 2003\n\nc\n"),
])
def test_where_the_header_ends(data: bytes, names: list[bytes], body: bytes) -> None:
    fields, rest = parts(data)
    assert ([name for name, _ in fields], rest) == (names, body)


@pytest.mark.parametrize(("data", "header_end", "body_start"), [
    (b"To: a\n\nb", 6, 7), (b"To: a\nb c", 6, 6), (b"To: a", 5, 5), (b"\nb", 0, 1), (b"", 0, 0), (b"b c", 0, 0),
    (b"From a 10:10\n\nb", 13, 14), (b"From a 10:10\nb c", 13, 13)])
def test_whether_an_empty_line_stands_between(data: bytes, header_end: int, body_start: int) -> None:
    assert scan(data)[1:] == (header_end, body_start)


@pytest.mark.parametrize(("data", "end"), [
    (b"", 0), (b"From", 0), (b"From ", 0), (b"From a 10:10", 0),  # a line that has not ended is not skipped
    (b"From a 10:10\n", 13), (b"From a 10:1\nx", 0), (b"From a 1:10\nx", 0), (b"From a :10:10\n", 14),
    (b">>>From a 10:10\n", 16), (b">From a\nx: y\n", 8), (b"> From a 10:10\n", 0), (b"from a 10:10\n", 0),
    (b"From a\nFrom b\nx: y\n", 14), (b"From a\nFrom b\nx\n", 7),
    (b"From " + b"a" * headers.MAX_FROM_LINE + b" 10:10\nx: y\n", 0),
])
def test_from_lines(data: bytes, end: int) -> None:
    assert from_lines_end(data) == end


@pytest.mark.parametrize(("line", "name"), [
    (b"To: a\n", b"to"), (b"To:", b"to"), (b"T o: a", b""), (b"To", b""), (b":", b""), (b"\0:", b""),
    (b"--To: a", b"")])
def test_field_name(line: bytes, name: bytes) -> None:
    assert field_name(line) == name


@pytest.mark.parametrize(("data", "expected"), [
    (b"To: a\nCc: b, c\nBcc: d\n\n", [b"a", b"b", b"c", b"d"]),
    (b"to: a\nTO: b\nTo : c\n\nTo: body\n", [b"a", b"b", b"c"]),
    (b"To: Al <a>,\n \"B, Ob\" <b>\n\tc (x)\n\n", [b"a", b"b"]),  # the last word is no address of its own
    (b"To: undisclosed-recipients:;\nBcc: a\n\n", [b"a"]),
    (b"To:\nCc: <>\nFrom: a\nReply-To: b\nX-To: d\n\n", []),
    (b"Apparently-To: a\nSubject: x\n\n", [b"a"]),
    (b"To: a\0lice\n\n", [b"alice"]),
    (b"To: a@example.org \nSubject: x\n\n", [b"a@example.org"]),  # logwatch leaves a blank
    (b"", []),
    # Resent-: the newest block alone.
    (b"Resent-To: a\nTo: b\n\n", [b"a"]),
    (b"Resent-From: x\nResent-To: a\nResent-Cc: b\nResent-Bcc: c\nFrom: y\nTo: d\nBcc: e\n\n", [b"a", b"b", b"c"]),
    (b"Resent-From: x\nTo: b\n\n", []),
    (b"Resent-From: x\nResent-To: a\nResent-From: y\nResent-To: b\nTo: c\n\n", [b"a"]),
    (b"Resent-To: a\nResent-From: x\nResent-Date: d\nResent-To: b\nResent-From: y\n\n", [b"a"]),
    (b"Resent-To: a\nResent-To: b\nResent-From: x\n\n", [b"a", b"b"]),
    (b"Resent-To: a\nReceived: x\nResent-Cc: b\n\n", [b"a"]),
    (b"Received: x\nResent-To: a\nSubject: s\nResent-Cc: b\n\n", [b"a", b"b"]),
])
def test_whom_a_message_names(data: bytes, expected: list[bytes]) -> None:
    assert recipients(data, scan(data)[0]) == expected


def test_a_recipient_field_that_cannot_be_read_is_an_error() -> None:
    data = b"To: alice\nCc: \"bob\n\n"
    with pytest.raises(address.AddressError):
        recipients(data, scan(data)[0])


def test_a_header_of_the_largest_size_is_a_header() -> None:
    filler = b"X: " + b"x" * (MAX_HEADER - len("X: \nTo: a\n\n")) + b"\n"
    data = filler + b"To: a\n\n"
    assert len(data) == MAX_HEADER
    fields, header_end, body_start = scan(data + b"body\n")
    assert ([name for name, _, _ in fields], header_end, body_start) == ([b"x", b"to"], MAX_HEADER - 1, MAX_HEADER)
    assert not is_cut(data + b"body\n", fields, body_start)


@pytest.mark.parametrize("data", [
    b"X: y\n" * MAX_LINES + b"To: a\n\nbody\n",
    b"X: y\n" + b" z\n" * MAX_LINES + b"To: a\n\nbody\n",
    b"X: y\n" + b"X: " + b"x" * MAX_HEADER + b"\nTo: a\n\nbody\n",
    b"X: y\n" + b"X: " + b"x" * MAX_HEADER * 2,
])
def test_beyond_the_limits_the_rest_is_body_and_that_can_be_told(data: bytes) -> None:
    fields, header_end, body_start = scan(data)
    assert fields
    assert header_end == body_start == fields[-1][2] <= MAX_HEADER
    assert is_cut(data, fields, body_start)


@pytest.mark.parametrize("data", [
    b"", b"To: a\n\nbody: x\n", b"To: a\nbody\n", b"body\nx: y\n", b"To: a\n", b"\nx: y\n", b"To: a"])
def test_a_header_within_the_limits_is_not_cut(data: bytes) -> None:
    fields, _, body_start = scan(data)
    assert not is_cut(data, fields, body_start)


LINES = st.lists(st.sampled_from([
    b"To: a", b"Cc : b", b" folded", b"\tfolded", b"", b"--x: y", b"text", b"From a 10:10", b">From b", b"X:", b"\r",
    b"\0A: b", b"Resent-To: c", b"Received: d",
]) | st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12)


@given(LINES, st.booleans())
def test_spans_tile_the_header(lines: list[bytes], ends: bool) -> None:
    data = b"\n".join(lines) + b"\n" * ends
    fields, header_end, body_start = scan(data)
    position = from_lines_end(data)
    for name, start, end in fields:
        assert start == position, "a gap between fields"
        assert name == name.lower() == field_name(data[start:end])
        position = end
    assert position == header_end
    assert data[header_end:body_start] in (b"", b"\n", b"\r\n")
    if header_end == body_start < len(data):
        assert not field_name(data[body_start:].partition(b"\n")[0]), "a field was left in the body"


@given(LINES)
def test_a_longer_input_finds_the_same_fields(lines: list[bytes]) -> None:
    """A reader may hold only the start of a message: what comes behind the header changes nothing before it."""
    data = b"\n".join(lines) + b"\n\n"
    fields, header_end, body_start = scan(data)
    assert scan(data + b"more: text\n" * 3) == (fields, header_end, body_start)
