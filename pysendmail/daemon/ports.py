"""The sockets that listeners accept on: bound by root, once, and kept over every change of processes.

An address that stays in the settings keeps its socket over a reload, so that no client is refused meanwhile; one that
cannot be bound (another program has it, the network is not up yet, there is no IPv6) stops neither the daemon nor the
others, and is tried again. Sockets that the service manager hands over (sd_listen_fds(3)) take the place of a bound one
with their address; one that no setting names is used as its FileDescriptorName says: smtp, submission, submissions,
lmtp.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from ..config import Listener, SmtpdSettings, split_endpoint
from ..events import ERROR, NOTICE, Log
from ..smtp.profile import PROFILES

BACKLOG = 512  # clients that wait to be accepted; the kernel has a limit of its own
UNIX = "unix:"
FIRST_INHERITED = 3  # descriptor

_NOT_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))  # no IPv6, or an address of an interface that is down


@dataclass(frozen=True, slots=True)
class Port:
    """A socket that is bound and listens. profile: a name of smtp/profile.py. is_proxied: PROXY headers come first."""

    socket: socket.socket
    profile: str
    is_proxied: bool = False


class Ports:
    """inherited: (name, socket) of what the service manager has handed over."""

    def __init__(self, log: Log, inherited: Sequence[tuple[str, socket.socket]] = ()) -> None:
        self._log = log
        self._bound: dict[str, socket.socket] = {}
        self._spare = {address_of(one): (name, one) for name, one in inherited}
        self._wanted: tuple[Listener, ...] = ()
        self._complaints: dict[str, int] = {}  # error by address: said once

    def want(self, listeners: tuple[Listener, ...]) -> None:
        """What to listen on from now on."""
        self._wanted = listeners
        addresses = {listener.address for listener in listeners}
        for address in set(self._bound) - addresses:
            self._close(address)
        self.bind()

    def bind(self) -> bool:
        """Bind what is not bound yet; whether that was anything."""
        is_new = False
        for listener in self._wanted:
            if listener.address in self._bound:
                continue
            _, inherited = self._spare.get(listener.address, ("", None))
            if inherited is not None:
                self._bound[listener.address] = inherited
                is_new = True
                continue
            try:
                self._bound[listener.address] = _bind(listener.address)
            except OSError as trouble:
                self._complain(listener.address, trouble)
                continue
            self._complaints.pop(listener.address, None)
            is_new = True
            self._log(NOTICE, f"DEBUG: listening on {address_of(self._bound[listener.address])} ({listener.profile})")
        return is_new

    @property
    def is_complete(self) -> bool:
        return all(listener.address in self._bound for listener in self._wanted)

    def get(self) -> tuple[Port, ...]:
        """What there is to listen on."""
        found = [Port(self._bound[one.address], one.profile, one.proxy) for one in self._wanted
                 if one.address in self._bound]
        named = {one.address for one in self._wanted}
        found += [Port(one, name if name in PROFILES else "smtp") for address, (name, one) in self._spare.items()
                  if address not in named]
        return tuple(found)

    def _complain(self, address: str, trouble: OSError) -> None:
        code = trouble.errno or 0
        if self._complaints.get(address) != code:
            self._complaints[address] = code
            priority = NOTICE if code in _NOT_HERE else ERROR
            self._log(priority, f"cannot listen on {address}: {trouble.strerror}; it is tried again")

    def _close(self, address: str) -> None:
        bound = self._bound.pop(address)
        if address not in self._spare:
            with suppress(OSError):  # listeners that are about to leave have it too, and would keep its address busy
                bound.shutdown(socket.SHUT_RDWR)
            bound.close()
            if address.startswith(UNIX):
                _remove(address.removeprefix(UNIX))

    def close(self) -> None:
        for address in list(self._bound):
            self._close(address)


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """What the service manager has handed over (sd_listen_fds(3)): (name, socket). Taken from the environment, once."""
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit() and len(count) <= 3):
        return []
    fds = range(FIRST_INHERITED, FIRST_INHERITED + int(count))
    words = names.split(":") + [""] * len(fds)
    found = []
    for fd, name in zip(fds, words, strict=False):
        os.set_inheritable(fd, False)
        found.append((name, socket.socket(fileno=fd)))
    return found


def address_of(bound: socket.socket) -> str:
    """The address of a socket as the settings write it."""
    name = bound.getsockname()
    if not isinstance(name, tuple):
        return f"{UNIX}{os.fsdecode(name)}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this host can reach it."""
    name = bound.getsockname()
    return not isinstance(name, tuple) or ip_address(name[0].partition("%")[0]).is_loopback


def are_public(ports: Iterable[Port], settings: SmtpdSettings) -> bool:
    """Whether strangers may be among the clients: they come from a network, or through a proxy."""
    return bool(settings.proxies) or any(not is_loopback(port.socket) for port in ports)


def _bind(address: str) -> socket.socket:
    """A socket that listens at "address:port" or "unix:/path". Raises OSError."""
    if address.startswith(UNIX):
        return _bind_path(address.removeprefix(UNIX))
    host, port = split_endpoint(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 is an address of its own
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_path(path: str) -> socket.socket:
    _remove(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - whoever is on this host may talk to it, as over loopback
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _remove(path: str) -> None:
    """Remove the socket of an earlier daemon, and nothing else."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # bind says what is wrong
