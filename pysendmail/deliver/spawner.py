"""The root process after start: it becomes a user when the runner asks for one, and nothing else.

It reads no message, no address but a user's name, and opens no path in a directory that anyone but root can write.
Who parses has no privilege; who has privilege does not parse. It stays single-threaded and small, since each agent is
a fork of it (3 ms; most of that is the copying of pages that one of the two writes); who a user is, is looked up in the
fork, and nothing here waits for anything but its sockets. Where it is not root (the demo, tests) agents keep its own
uid.

`Spawner.serve` runs until told to stop; SIGCHLD, SIGTERM and SIGHUP arrive through a wake-up descriptor, and handlers
do nothing but that (sendmail CVE-2006-0058: work inside a signal handler).
"""

import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..events import Log
from ..mail.outcome import Outcome, deferred, failed
from ..users import LookupTrouble, User, Users
from . import agent, identity
from .packet import MAX_PACKET, decode, encode

SPARE = 14  # processes above the runner's own limit: a runner that has lost count cannot fork without end
MAX_ENDING = 256  # processes that were killed and have not ended: the kernel waits for a file server, say
AT_ONCE = 32  # requests that are read before the first is carried out
MAX_NSSWITCH = 64 * 1024  # bytes
OWN_USERS = frozenset(("_pysendmail", "_pysmtpd", "_pysmrelay"))  # they get no agent: their mail is root's


@dataclass(frozen=True, slots=True)
class Service:
    """A process that serves no user, such as a relay. user: whom it becomes, None = it stays what it is.

    prepare: runs in the child before that (reads secrets that are its own), and gives what serves the runner after it.
    """

    user: User | None
    prepare: Callable[[], Callable[[socket.socket], None]]


@dataclass(slots=True)
class Spawner:
    """settings: what agents need to know. link: the socket to the runner. on_ready, on_beat, on_reload: what it says.

    services: by the name under which the runner asks for them. agents: the children, by pid. ending: those that were
    killed.
    """

    users: Users
    settings: agent.Settings
    log: Log
    link: socket.socket
    on_ready: Callable[[], None]
    on_beat: Callable[[], None]
    on_reload: Callable[[], None] = lambda: None
    services: dict[str, Service] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()  # descriptors that a log needs
    most: int = 50  # agents that the runner may have
    agents: dict[int, str] = field(default_factory=dict)
    ending: dict[int, str] = field(default_factory=dict)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        """Have the C library read what it reads once a process (its modules, the time zone), not in each child."""
        load_modules()
        time.localtime()

    def answer(self) -> bool:
        """What the runner has sent. False when the runner is gone.

        It is all read before anything is done: after each fork every page that is written is copied anew.
        """
        values: list[dict[str, Any]] = []
        is_open = True
        for _ in range(AT_ONCE):
            try:
                packet = self.link.recv(MAX_PACKET)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                packet = b""
            if not packet:
                is_open = False
                break
            try:
                values.append(decode(packet))
            except ValueError:
                self.log(3, "spawner: the runner sent something that is no request")
        for value in values:
            self._do(value)
        return is_open

    def _do(self, value: dict[str, Any]) -> None:
        if "ready" in value:
            self.on_ready()
        elif "beat" in value:
            self.on_beat()
        elif "reload" in value:
            self.on_reload()
        elif isinstance(value.get("end"), int) and value["end"] in self.agents:
            self._end(value["end"])
        elif isinstance(value.get("n"), int):
            self._asked(value, value["n"])

    def _end(self, pid: int) -> None:
        """Kill an agent. One that cannot die for the time being takes no other's place."""
        os.kill(pid, signal.SIGKILL)
        if len(self.ending) < MAX_ENDING:
            self.ending[pid] = self.agents.pop(pid)

    def _asked(self, value: dict[str, object], n: int) -> None:
        """An agent or a service is wanted."""
        name = value.get("agent")
        if isinstance(name, str):
            if len(self.agents) >= self.most + SPARE:
                self._refuse({"n": n}, "too many delivery agents")
            else:
                self._spawn({"n": n}, name, lambda channel: self._be_agent(name, channel))
            return
        kind = next((kind for kind in self.services if value.get(kind) is True), "")
        if kind:
            self._spawn({"n": n, kind: True}, kind, lambda channel: self._be_service(self.services[kind], channel))

    def _spawn(self, answer: dict[str, object], name: str, serve: Callable[[socket.socket], None]) -> None:
        """Fork a child that serves, and pass the runner a socket to it."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as trouble:
            self._refuse(answer, f"no socket for a delivery process: {trouble.strerror}")
            return
        with ours, theirs:
            try:
                pid = identity.fork()
            except OSError as trouble:
                self._refuse(answer, f"cannot start a delivery process: {trouble.strerror}")
                return
            if pid == 0:
                self._child(name, theirs, serve)
            self.agents[pid] = name
            self._send({**answer, "pid": pid}, ours.fileno())

    def _refuse(self, answer: dict[str, object], reason: str) -> None:
        self._send({**answer, "error": deferred("4.3.0", reason).to_json()})

    def _who(self, name: str) -> User | Outcome:
        """In the child, since a directory service may take as long as it likes: there it stops nobody else's mail."""
        try:
            user = self.users.lookup(name)
        except LookupTrouble as trouble:
            return deferred("4.3.0", f"cannot look up user {name}: {trouble.strerror}")
        if user is None and name == self.settings.command_user:  # nobody has written to that one: it is this host
            return deferred("4.3.5", f"no such user: {name}, who delivers to commands and files of aliases")
        if user is None:
            return failed("5.1.1", f"no such user: {name}")
        if user.name in OWN_USERS:  # by the name that was found: "_PYSMRELAY" is _pysmrelay
            return failed("5.1.1", f"{user.name} takes no mail")
        return user

    def _child(self, name: str, channel: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        """In the child: start clean, become whom it serves, serve, end. It never returns."""
        code = identity.EX_TEMPFAIL
        try:
            # Above everything else, so that what was open here is closed before anything is the user's.
            identity.clean({channel.fileno()} | self.kept)
            serve(channel)
            code = 0
        except BaseException as problem:  # noqa: BLE001 - nothing may get out of a child into its parent's code
            self.log(3, f"delivery process of {name}: {type(problem).__name__}: {problem}")
        finally:
            os._exit(code)

    def _be_agent(self, name: str, channel: socket.socket) -> None:
        user = self._who(name)
        if isinstance(user, Outcome):
            agent.refuse(channel, user)
            return
        if self.is_root:
            identity.become(user, saved_group=self.settings.mailbox_group)
        agent.serve(channel, user, self.settings)

    def _be_service(self, service: Service, channel: socket.socket) -> None:
        serve = service.prepare()
        if service.user is not None:
            identity.become(service.user)
        identity.harden(self.pid)
        serve(channel)

    def _send(self, value: dict[str, object], fd: int | None = None) -> None:
        packet = encode(value)
        try:
            if fd is None:
                self.link.send(packet)
            else:
                socket.send_fds(self.link, [packet], [fd])
        except OSError:
            pass  # the runner is gone, or so far behind that its own deadline answers for this agent

    def reap(self) -> list[tuple[int, int]]:
        """Collect ended children. Agents are forgotten; others are returned as (pid, exit code or -signal)."""
        others = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self.agents.pop(pid, None) is None and self.ending.pop(pid, None) is None:
                others.append((pid, os.waitstatus_to_exitcode(status)))
        return others


def load_modules(path: str = "/etc/nsswitch.conf") -> None:
    """Load what the C library will ask for users and groups (nsswitch.conf(5)), and ask nothing: a directory service
    may take as long as it likes for an answer, even about root's groups."""
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_NSSWITCH).split(b"\n")
    except OSError:
        return
    for name in {word for line in lines if line.startswith((b"passwd:", b"group:")) for word in line.split()[1:]}:
        if name.isalnum():
            with suppress(OSError):  # it has none by this name, or it is built in
                ctypes.CDLL(f"libnss_{name.decode('ascii')}.so.2")


def wait_readable(descriptors: list[int], timeout: float) -> set[int]:
    """The descriptors that can be read within `timeout` seconds; an interrupted wait is an empty set."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(max(0, int(timeout * 1000)))}
