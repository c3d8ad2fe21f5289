"""The form of everything that our processes tell each other: one JSON object in one packet of a SOCK_SEQPACKET pair."""

from json import JSONDecoder, JSONEncoder
from typing import Any

MAX_PACKET = 128 * 1024  # bytes; what a socket takes in one piece with the kernel's default buffer

_encode = JSONEncoder(separators=(",", ":")).encode
_decode = JSONDecoder().decode


def encode(value: dict[str, Any]) -> bytes:
    return _encode(value).encode("ascii")


def decode(packet: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but one JSON object."""
    try:
        value = _decode(packet.decode("ascii"))
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
