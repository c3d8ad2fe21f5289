"""The envelope block: what goes in comes out, and nothing that is not exactly what we wrote is taken for ours."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pysendmail.spool import record

NAMES = st.from_regex(rb"[A-Za-z0-9-]{1,29}", fullmatch=True)
VALUES = st.binary(max_size=200).map(lambda value: value.translate(None, bytes(range(32)) + b"\x7f"))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=20)
MESSAGE = b"Subject: x\n\nPysendmail-Record: 1 \nFrom here on\0\xff\r\n"


def spool_file(fields: list[tuple[bytes, bytes]], message: bytes) -> bytes:
    block = record.field_lines(fields)
    offset = record.FIRST_LENGTH + len(block)
    return record.first_line(offset, offset + len(message), record.crc(message, record.crc(block))) + block + message


def read(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """A whole file, as the queue and the intake read it."""
    offset, length, checksum = record.read_first(data[:record.FIRST_LENGTH])
    if length != len(data) or record.crc(data[record.FIRST_LENGTH:]) != checksum:
        raise record.Damaged("length or checksum")
    return record.fields(data[record.FIRST_LENGTH:offset]), data[offset:]


@given(FIELDS, st.binary(max_size=2000))
@example([(b"Recipient", b"")], b"")
@example([(b"A", b": "), (b"A", b" :"), (b"A", "\x85\u2028".encode())], b"Pysendmail-A: b\n")
def test_fields_and_message_come_back(fields: list[tuple[bytes, bytes]], message: bytes) -> None:
    assert read(spool_file(fields, message)) == (fields, message)


def test_the_first_line_has_one_width_whatever_it_says() -> None:
    assert {len(record.first_line(*numbers)) for numbers in ((0, 0, 0), (99999999, 999999999999, 2**32 - 1))} == {
        record.FIRST_LENGTH}


def test_every_flipped_bit_of_a_file_shows() -> None:
    data = spool_file([(b"Sender", b"<a@b>"), (b"Recipient", b"- - c@d")], MESSAGE)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(record.Damaged):
                read(bytes(flipped))


@pytest.mark.parametrize("damage", ["cut", "zeroed", "longer"])
def test_torn_files_show_wherever_they_are_torn(damage: str) -> None:
    data = spool_file([(b"Sender", b"<>"), (b"Recipient", b"- - c@d")], MESSAGE)
    for at in range(len(data)):
        torn = {"cut": data[:at], "zeroed": data[:at] + bytes(len(data) - at), "longer": data + bytes(at + 1)}[damage]
        with pytest.raises(record.Damaged):
            read(torn)


@given(st.binary(max_size=300))
@example(bytes(record.FIRST_LENGTH))
@example(b"Pysendmail-Record: 1 00000052 000000000052 00000000\n")
@example("Pysendmail-Record: 1 ٠٠٠٠٠٠٥٢ ".encode())
def test_bytes_of_anybody_are_damage_or_a_file(data: bytes) -> None:
    try:
        fields, message = read(data)
    except record.Damaged:
        return
    assert spool_file(fields, message) == data


@pytest.mark.parametrize("line", [
    b"",
    b"Pysendmail-Record: 2 00000052 000000000052 00000000\n",
    b"pysendmail-record: 1 00000052 000000000052 00000000\n",
    b"Pysendmail-Record: 1 00000051 000000000052 00000000\n",  # the block would end within the first line
    b"Pysendmail-Record: 1 00000053 000000000052 00000000\n",  # behind the end of the file
    b"Pysendmail-Record: 1 99999999 999999999999 00000000\n",  # larger than any envelope
    b"Pysendmail-Record: 1 +0000052 000000000052 00000000\n",
    b"Pysendmail-Record: 1 000_0052 000000000052 00000000\n",
    b"Pysendmail-Record: 1      052 000000000052 00000000\n",
    b"Pysendmail-Record: 1 00000052 000000000052 0000000G\n",
    b"Pysendmail-Record: 1 00000052 000000000052 ABCDEF00\n",  # we write small letters
    b"Pysendmail-Record: 1 00000052\t000000000052 00000000\n",
    b"Pysendmail-Record: 1 00000052 000000000052\n00000000\n",
    b"Pysendmail-Record: 1 00000052 000000000052 00000000 ",
    b"Pysendmail-Record: 1 00000052 000000000052 00000000\n"[:-1],
])
def test_first_lines_that_are_none_of_ours(line: bytes) -> None:
    with pytest.raises(record.Damaged):
        record.read_first(line)


@pytest.mark.parametrize("control", [*range(32), 127])
def test_no_control_character_gets_into_a_block_or_out_of_it(control: int) -> None:
    value = b"bob%chost" % control
    with pytest.raises(ValueError):
        record.field_lines([(b"Recipient", value)])
    with pytest.raises(record.Damaged):
        record.fields(b"Pysendmail-Recipient: " + value + b"\n")


@pytest.mark.parametrize("name", [
    b"", b"Re cipient", b"Recipient:", b"Recipi\xe9nt", b"A\n", b"R_3", "\u0663".encode()])
def test_names_that_cannot_stand_on_a_line(name: bytes) -> None:
    with pytest.raises(ValueError):
        record.field_lines([(name, b"x")])


@pytest.mark.parametrize("block", [
    b"Pysendmail-A: b", b"\n", b"Pysendmail-A: b\n\n", b"Pysendmail-A:b\n", b"A: b\n", b" Pysendmail-A: b\n",
    b"Pysendmail-A: b\n c\n", b"Pysendmail-" + b"x" * 40 + b": b\n", b"Pysendmail-A\n"])
def test_blocks_that_are_none_of_ours(block: bytes) -> None:
    with pytest.raises(record.Damaged):
        record.fields(block)


@given(FIELDS, NAMES, VALUES, st.integers(0, 31) | st.just(127))
def test_a_value_cannot_become_two_fields(fields: list[tuple[bytes, bytes]], name: bytes, value: bytes,
                                          control: int) -> None:
    """Exim CVE-2020-28021, OpenSMTPD CVE-2020-8794: a line break in a value was a further field."""
    assume(value)
    with pytest.raises(ValueError):
        record.field_lines([*fields, (name, value + bytes([control]) + b"Pysendmail-Recipient: - - root")])
