"""The root process after start: it becomes a user when the runner asks for one, and nothing else.

It reads no message, no address but a user's name, and opens no path in a directory that anyone but root can write.
Who parses has no privilege; who has privilege does not parse. It stays single-threaded and small, since each agent is
a fork of it (2 ms at 20 MB). Where it is not root (the demo, tests) agents keep its own uid.

`Spawner.serve` runs until told to stop; SIGCHLD, SIGTERM and SIGHUP arrive through a wake-up descriptor, and handlers
do nothing but that (sendmail CVE-2006-0058: work inside a signal handler).
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from ..events import Log
from ..mail.outcome import Outcome, deferred, failed
from ..users import LookupTrouble, User, Users
from . import agent, identity, request

MAX_AGENTS = 64  # processes: above the runner's own limit, so that a runner that has lost count cannot fork without end
OWN_USERS = frozenset(("_pysendmail", "_pysmtpd", "_pysmrelay"))  # they get no agent: their mail is root's


@dataclass(slots=True)
class Spawner:
    """settings: what agents need to know. link: the socket to the runner. on_ready, on_beat: what its signs of life
    do."""

    users: Users
    settings: agent.Settings
    log: Log
    link: socket.socket
    on_ready: Callable[[], None]
    on_beat: Callable[[], None]
    kept: frozenset[int] = frozenset()  # descriptors that a log needs
    agents: dict[int, str] = field(default_factory=dict)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)

    def answer(self) -> bool:
        """One packet from the runner. False when the runner is gone."""
        try:
            packet = self.link.recv(request.MAX_PACKET)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not packet:
            return False
        try:
            value = request.decode(packet)
        except ValueError:
            self.log(3, "spawner: the runner sent something that is no request")
            return True
        if "ready" in value:
            self.on_ready()
        elif "beat" in value:
            self.on_beat()
        elif isinstance(value.get("end"), int) and value["end"] in self.agents:
            os.kill(value["end"], signal.SIGKILL)
        elif isinstance(value.get("agent"), str) and isinstance(value.get("n"), int):
            self._spawn(value["agent"], value["n"])
        return True

    def _spawn(self, name: str, n: int) -> None:
        user, refusal = self._who(name)
        if user is None:
            self._send({"n": n, "error": refusal.to_json()})
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as trouble:
            self._send({"n": n, "error": deferred("4.3.0", f"no socket for an agent: {trouble.strerror}").to_json()})
            return
        with ours, theirs:
            try:
                pid = os.fork()
            except OSError as trouble:
                refusal = deferred("4.3.0", f"cannot start an agent: {trouble.strerror}")
                self._send({"n": n, "error": refusal.to_json()})
                return
            if pid == 0:
                self._child(user, theirs.fileno())
            self.agents[pid] = name
            self._send({"n": n, "pid": pid}, ours.fileno())

    def _who(self, name: str) -> tuple[User | None, Outcome]:
        if len(self.agents) >= MAX_AGENTS:
            return None, deferred("4.3.0", "too many delivery agents")
        if name in OWN_USERS:
            return None, failed("5.1.1", f"{name} takes no mail")
        try:
            user = self.users.lookup(name)
        except LookupTrouble as trouble:
            return None, deferred("4.3.0", f"cannot look up user {name}: {trouble}")
        return user, failed("5.1.1", f"no such user: {name}")

    def _child(self, user: User, channel: int) -> None:
        """In the child: become the user, serve, end. It never returns."""
        code = identity.EX_TEMPFAIL
        try:
            # Above everything else, so that what was open here is closed before anything is the user's.
            identity.clean({channel} | self.kept)
            if self.is_root:
                identity.become(user, saved_group=self.settings.mailbox_group)
            agent.serve(socket.socket(fileno=channel), user, self.settings)
            code = 0
        except BaseException as problem:  # noqa: BLE001 - nothing may get out of a child into its parent's code
            self.log(3, f"agent of {user.name}: {type(problem).__name__}: {problem}")
        finally:
            os._exit(code)

    def _send(self, value: dict[str, object], fd: int | None = None) -> None:
        packet = request.encode(value)
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
            if self.agents.pop(pid, None) is None:
                others.append((pid, os.waitstatus_to_exitcode(status)))
        return others


def wait_readable(descriptors: list[int], timeout: float) -> set[int]:
    """The descriptors that can be read within `timeout` seconds; an interrupted wait is an empty set."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(max(0, int(timeout * 1000)))}
