"""Whose address is whose: which IP addresses are this host, as far as mail is concerned.

Mail for user@[address] stays here if the address is ours (RFC 5321 section 4.1.3), and a route whose next host is
ourselves is a loop. Interfaces come and go, so that each question is put to the kernel anew; no file is read, no name
looked up.
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..config import Config, split_endpoint

UNIX = "unix:"


def is_own_for(config: Config) -> Callable[[str], bool]:
    """`own_addresses` of the SMTP listeners in these settings."""
    return own_addresses([endpoint_address(one.address) for one in config.listeners if one.profile == "smtp"])


def own_addresses(listening: Sequence[str]) -> Callable[[str], bool]:
    """Whether an address is this host. listening: addresses on which it takes SMTP.

    A host that listens on loopback only may have another mail server at its own address (a container, a forwarded
    port).
    """
    everywhere = any(address and ip_address(address).is_unspecified for address in listening)

    def is_own(address: str) -> bool:
        if is_loopback(address) or address in listening:
            return True
        return everywhere and _is_bindable(address)
    return is_own


def is_loopback(address: str) -> bool:
    """Whether this is ourselves under any circumstances: loopback, "any", and what IPv6 makes of them."""
    found: IPv4Address | IPv6Address = ip_address(address)
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback or found.is_unspecified


def endpoint_address(listen: str) -> str:
    """The address in a listener's "address:port", "" for a path."""
    return "" if listen.startswith(UNIX) else split_endpoint(listen)[0]


def _is_bindable(address: str) -> bool:
    """Whether an interface of this host has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
