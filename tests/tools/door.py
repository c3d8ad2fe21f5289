"""A listener of its own, and clients for it: the real process with sockets, threads and files, without a supervisor.

    door = Door(paths, settings)              Config as the listener gets it; what is accepted stays in smtp/new
    door.start()
    with door.connect() as client: client.cmd("EHLO x")     from this host
    with door.connect_from("192.0.2.7") as client: ...       as a stranger: a PROXY header says so
    door.taken()                              what lies in smtp/new
    door.stop()

Users are alice, bob, carol and root; "trouble" is one whom the user database gives no answer about.
"""

import os
import select
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pysendmail import auth
from pysendmail.auth import Authenticator, Examiner
from pysendmail.config import Config
from pysendmail.daemon import listener
from pysendmail.daemon.admission import Table
from pysendmail.daemon.certificates import Certificates
from pysendmail.daemon.ports import Port
from pysendmail.deliver import identity
from pysendmail.events import to_stderr
from pysendmail.mail.envelope import Envelope
from pysendmail.paths import Paths
from pysendmail.smtp import requests
from pysendmail.smtp.reply import Reply, reply
from pysendmail.spool.queue_file import read_envelope
from pysendmail.users import LookupTrouble, User
from tests.tools.host import WITHIN, Log, Watch

NAME = "server.example"
STRANGER = "192.0.2.7"
KNOWN = ("root", "alice", "bob", "carol")


class Users:
    def lookup(self, name: str) -> User | None:
        if name == "trouble":
            raise LookupTrouble(5, "the directory service does not answer")
        return User(name, 1000, 1000, f"/home/{name}", "/bin/sh") if name in KNOWN else None

    def by_uid(self, uid: int) -> User | None:
        return None


class Logins:
    """alice's password is "secret", however she writes her name; she sends as herself only."""

    mechanisms = ("PLAIN", "LOGIN")

    def begin(self) -> None:
        pass

    async def authenticate(self, login: requests.LoginGiven, client: auth.Client) -> tuple[Reply, str]:
        if login.user == "trouble":
            return reply(454, "4.7.0", "cannot say"), ""
        if (login.user.lower(), login.password) == ("alice", "secret"):
            return reply(235, "2.7.0", "logged in"), "alice"
        return reply(535, "5.7.8", "wrong"), ""

    def may_send(self, user: str, sender: str) -> bool:
        return sender in ("", f"{user}@{NAME}")


def settings(paths: Paths, **changes: dict[str, Any]) -> Config:
    """A Config for a door: changes by section, whatever the file format would say of the values."""
    found = Config(hostname=NAME, domain=NAME, local_domains=(NAME,))
    smtpd = {"greeting_delay": 0, "proxies": ("127.0.0.1/32",), "protect_local_senders": True}
    usual: dict[str, dict[str, Any]] = {"smtpd": smtpd, "local": {"aliases": (paths.aliases,)}}
    for section in {**usual, **changes}:
        both = {**usual.get(section, {}), **changes.get(section, {})}
        found = replace(found, **{section: replace(getattr(found, section), **both)})
    return found


@dataclass
class Door:
    """processes: how many listeners share it. user: (uid, gid) that they become."""

    paths: Paths
    config: Config
    profile: str = "smtp"
    certificate: ssl.SSLContext | None = None
    logins: Authenticator | None = None
    examiner: Examiner | None = None
    processes: int = 1
    before: Callable[[], None] = lambda: None  # runs in each listener, before it listens
    pids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = Log(f"{self.paths.root}/door.log")
        self._new = Watch(self.paths.smtp_new)
        self._plain = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._proxied = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port, self.proxied_port = (one.getsockname()[1] for one in (self._plain, self._proxied))
        self.table = Table()

    def start(self) -> None:
        for number in range(self.processes):
            pid = os.fork()
            if pid == 0:
                self._listen(number)
            self.pids.append(pid)

    def _listen(self, number: int) -> None:
        code = 99
        try:
            os.dup2(os.open(self.log.path, os.O_WRONLY | os.O_APPEND), 2)
            sys.stderr = open(2, "w", closefd=False)  # (pytest has put something else there)  # noqa: SIM115
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            self.table.wipe(number)
            ports = (Port(self._plain, self.profile), Port(self._proxied, self.profile, True))
            share = listener.Share(ports, self.table, number, Certificates(own=self.certificate), self.logins,
                                   self.examiner)
            identity.take_errors_for_signals()
            listener.are_public = lambda *_: False  # type: ignore[assignment]  # DNS is asked nothing
            self.before()
            code = listener.run(self.paths, self.config, Users(), to_stderr, share)
        finally:
            os._exit(code)

    def stop(self, number: int = signal.SIGTERM) -> list[int]:
        """End the listeners; their exit codes."""
        pids, self.pids = self.pids, []
        for pid in pids:
            os.kill(pid, number)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    def close_processes(self) -> None:
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        self.close_processes()
        for one in (self._plain, self._proxied):
            one.close()
        self.log.close()
        self._new.close()

    # ---- clients

    @contextmanager
    def connect(self) -> "Iterator[Client]":
        with Client(socket.create_connection(("127.0.0.1", self.port), WITHIN)) as client:
            yield client

    @contextmanager
    def connect_from(self, address: str = STRANGER) -> "Iterator[Client]":
        """As somebody with that address."""
        with Client(socket.create_connection(("127.0.0.1", self.proxied_port), WITHIN)) as client:
            kind, ours = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
            client.send(f"PROXY {kind} {address} {ours} 40000 25\r\n".encode())
            yield client

    # ---- what came of it

    def taken(self) -> "list[Taken]":
        """What lies in smtp/new, in the order of the ids."""
        return [read(f"{self.paths.smtp_new}/{name}") for name in sorted(os.listdir(self.paths.smtp_new))]

    def wait_taken(self, count: int) -> "list[Taken]":
        self._new.wait_until(lambda: len(os.listdir(self.paths.smtp_new)) >= count, f"{count} messages")
        return self.taken()

    def unfinished(self) -> list[str]:
        return os.listdir(self.paths.smtp_tmp)


@dataclass(frozen=True)
class Taken:
    """A file of smtp/new. text: the message, with what the listener has put in front."""

    envelope: Envelope
    text: bytes

    @property
    def received(self) -> bytes:
        """The first field, folded as it is."""
        lines = self.text.split(b"\n")
        end = next(n for n, line in enumerate(lines[1:], 1) if not line.startswith((b" ", b"\t")))
        return b"\n".join(lines[:end]) + b"\n"

    @property
    def rest(self) -> bytes:
        """What is behind it."""
        return self.text[len(self.received):]


def read(path: str) -> Taken:
    """A file of the spool, checked as intake checks it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        envelope, offset, length = read_envelope(fd, Path(path).name, verify=True)
        return Taken(envelope, os.pread(fd, length, offset))
    finally:
        os.close(fd)


class Client:
    """Sends exactly what it is told to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(WITHIN)
        self._buffer = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def shut(self) -> None:
        """Say no more."""
        self._connection.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go without a word."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._connection.close()

    def line(self) -> bytes:
        """The next line without its end. Raises EOFError."""
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def has_reply(self, seconds: float) -> bool:
        """Whether anything has come, after waiting for it so long."""
        return bool(self._buffer) or bool(select.select([self._connection], [], [], seconds)[0])

    def put_back(self, line: bytes) -> None:
        """A line that is somebody else's to take."""
        self._buffer = line + b"\r\n" + self._buffer

    def _more(self) -> None:
        try:
            data = self._connection.recv(65536)
        except (ConnectionResetError, ssl.SSLError):
            data = b""
        if not data:
            raise EOFError(f"closed, and there was {self._buffer!r}")
        self._buffer += data

    def reply(self) -> list[str]:
        """The lines of the next reply."""
        lines = [self.line().decode("ascii")]
        while lines[-1][3:4] == "-":
            lines.append(self.line().decode("ascii"))
        return lines

    def cmd(self, text: str) -> str:
        """The last line of the reply to a command."""
        self.send(text.encode() + b"\r\n")
        return self.reply()[-1]

    def hello(self) -> list[str]:
        """Greeting and EHLO: the lines of its reply."""
        assert self.reply()[-1].startswith("220 ")
        self.send(b"EHLO client.example\r\n")
        return self.reply()

    def mail(self, *recipients: str, sender: str = "a@example.org", text: bytes = b"Subject: x\n\nHello.\n") -> str:
        """One message; the reply to its dot, or the first one that is no success."""
        for line in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"):
            answer = self.cmd(line)
            if answer[0] not in "23":
                return answer
        self.send(text.replace(b"\n", b"\r\n") + b".\r\n")
        return self.reply()[-1]

    def rest(self) -> bytes:
        """All that still comes, until the server closes."""
        try:
            while True:
                self._more()
        except EOFError:
            rest, self._buffer = self._buffer, b""
            return rest

    def start_tls(self, context: ssl.SSLContext) -> None:
        assert self._buffer == b""
        self._connection = context.wrap_socket(self._connection, server_hostname="localhost")


def anybody() -> ssl.SSLContext:
    """A client's context that believes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def until(is_so: Callable[[], bool], what: str) -> None:
    """For what shows nowhere else: a look every hundredth of a second."""
    end = time.monotonic() + WITHIN
    while not is_so():
        assert time.monotonic() < end, f"not within {WITHIN:g} s: {what}"
        time.sleep(0.01)


