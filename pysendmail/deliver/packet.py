"""The form of everything that our processes tell each other: one JSON object in one packet of a SOCK_SEQPACKET pair."""

import json
from typing import Any

MAX_PACKET = 128 * 1024  # bytes; what a socket takes in one piece with the kernel's default buffer


def encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def decode(packet: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but one JSON object."""
    try:
        value = json.loads(packet)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
