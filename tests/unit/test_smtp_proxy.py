"""PROXY headers: both versions, in any pieces, and whatever else may stand there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.smtp.proxy import MAX_HEADER, Proxied, read

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def binary(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(rest).to_bytes(2, "big") + rest


V4 = bytes((192, 0, 2, 7, 127, 0, 0, 1)) + (50312).to_bytes(2, "big") + (25).to_bytes(2, "big")
V6 = bytes.fromhex("20010db8000000000000000000000007") + bytes(16) + (1025).to_bytes(2, "big") + bytes(2)

GOOD = [
    (b"PROXY TCP4 192.0.2.7 127.0.0.1 50312 25\r\n", Proxied("192.0.2.7", 50312)),
    (b"PROXY TCP6 2001:db8::7 ::1 1025 25\r\n", Proxied("2001:db8::7", 1025)),
    (b"PROXY UNKNOWN\r\n", Proxied("", 0)),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Proxied("", 0)),
    (binary(0x21, 0x11, V4), Proxied("192.0.2.7", 50312)),
    (binary(0x21, 0x11, V4 + b"\x03\0\4abcd"), Proxied("192.0.2.7", 50312)),
    (binary(0x21, 0x21, V6), Proxied("2001:db8::7", 1025)),
    (binary(0x20, 0x00, b""), Proxied("", 0)),
    (binary(0x21, 0x31, bytes(216)), Proxied("", 0)),
    (binary(0x21, 0x11, b"\1"), Proxied("", 0)),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
@pytest.mark.parametrize("rest", [b"", b"EHLO x\r\n", b"\x16\x03\x01"])
def test_a_header_and_what_comes_behind_it(header: bytes, client: Proxied, rest: bytes) -> None:
    assert read(header + rest) == (client, len(header))


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_part_of_a_header_waits_for_the_rest(header: bytes, client: Proxied) -> None:
    for length in range(len(header)):
        assert read(header[:length]) is None, length


@pytest.mark.parametrize("data", [
    b"EHLO x\r\n", b"PROXX", b"PROXY\r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 50312\r\n",
    b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n", b"PROXY TCP6 192.0.2.7 127.0.0.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 127.0.0.1 65536 25\r\n", b"PROXY TCP4 192.0.2.7 127.0.0.1 -1 25\r\n",
    b"PROXY TCP4 192.0.2.7 127.0.0.1 1_0 25\r\n", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7\n 127.0.0.1 1 2\r\n", b"PROXY TCP4 " + b"1" * 200, b"\r\n\r\nEHLO",
    b"PROXY TCP4 \xd9\xa1.0.2.7 127.0.0.1 1 2\r\n",
    binary(0x11, 0x11, V4), binary(0x22, 0x11, V4), binary(0x21, 0x11, bytes(MAX_HEADER)),
])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        read(data)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda rest: SIGNATURE + rest),
                 st.binary(max_size=100).map(lambda rest: b"PROXY TCP4 " + rest)))
def test_nothing_else_comes_of_hostile_bytes(data: bytes) -> None:
    try:
        found = read(data)
    except ValueError:
        return
    assert found is None or 0 < found[1] <= len(data)
