"""The PROXY header: what a proxy sends before anything else, to say whose connection it passes on. Versions 1 and 2.

    PROXY TCP4 192.0.2.7 198.51.100.1 50312 25 CR LF      version 1: one line of at most 107 bytes
    signature, version and command, family, length, addresses                     version 2: binary

Pure, bounded, and believed only where the settings say that all connections come from proxies: whoever can write such a
header can be anybody. haproxy's document "The PROXY protocol".
"""

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

MAX_HEADER = 1024  # bytes; the addresses take 52, the rest are things that we do not want to know

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_MAX_LINE = 107  # bytes of version 1, with its line end
_HEAD = 16  # bytes of version 2 before the addresses
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and its command
_TCP4, _TCP6 = 0x11, 0x21


@dataclass(frozen=True, slots=True)
class Proxied:
    """Whose connection it is. address "": the proxy's own, or it does not know."""

    address: str
    port: int


def read(data: bytes) -> tuple[Proxied, int] | None:
    """(client, length of the header) of what has come so far, None if more has to come. Raises ValueError."""
    if data.startswith(_SIGNATURE):
        return _read_binary(data)
    if data.startswith(b"PROXY "):
        return _read_line(data)
    if _SIGNATURE.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise ValueError("no PROXY header")


def _read_line(data: bytes) -> tuple[Proxied, int] | None:
    end = data.find(b"\r\n", 0, _MAX_LINE)
    if end < 0:
        if len(data) >= _MAX_LINE:
            raise ValueError("a PROXY line without end")
        return None
    words = data[:end].decode("ascii", "replace").split(" ")
    if words[1] == "UNKNOWN":
        return Proxied("", 0), end + 2
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ValueError("not a PROXY line")
    try:
        address = str(IPv4Address(words[2]) if words[1] == "TCP4" else IPv6Address(words[2]))
    except AddressValueError:
        raise ValueError("a PROXY line without an address")
    port = words[4]
    if "%" in address or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError("a PROXY line without a port")
    return Proxied(address, int(port)), end + 2


def _read_binary(data: bytes) -> tuple[Proxied, int] | None:
    if len(data) < _HEAD:
        return None
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    end = _HEAD + length
    if command not in (_LOCAL, _PROXY) or end > MAX_HEADER:
        raise ValueError("a PROXY header of a version or a length that is not known")
    if len(data) < end:
        return None
    if command == _LOCAL:
        return Proxied("", 0), end
    if family == _TCP4 and length >= 12:
        return Proxied(str(IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big")), end
    if family == _TCP6 and length >= 36:
        return Proxied(str(IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big")), end
    return Proxied("", 0), end
