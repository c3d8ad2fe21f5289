"""An SMTP or LMTP server on a socket that does wrong on purpose: tests/tools/smtphost.py, a thread per connection.

    with Sink(replies={"rcpt 2": b"450 later\r\n", "end": CLOSE}) as sink:
        ... deliver to sink.address ...
        sink.envelopes, sink.sessions

At any command it can refuse, defer, hang up, reset, stall, drip, talk garbage or without end (faults of smtphost), or
wait first (`delays`). replies may be a list of such dictionaries, one for each session; the last one goes on for ever.
By hand: python3 -m tests.tools.smtpsink --port 2525 'rcpt 2=450 later' 'end=<stall>'
"""

import argparse
import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from typing import Self

from tests.tools.smtphost import CLOSE, DRIP, ENDLESS, OFFERS, RESET, STALL, Envelope, Host

IDLE = 60.0  # seconds after which a silent session ends
DRIP_EVERY = 0.005  # seconds
BLOCK = 65536


class SlowHost(Host):
    """is_waiting: before a reply, or for ever."""

    delays: dict[str, float]
    ending: threading.Event
    is_waiting = False

    def answer(self, stage: str, usual: bytes) -> bytes:
        if stage in self.delays:
            self.is_waiting = True
            self.ending.wait(self.delays[stage])
            self.is_waiting = False
        said = super().answer(stage, usual)
        self.is_waiting = self.fault == STALL
        return said


class Sink:
    """path: of a UNIX socket; else a free (or the given) port of `address`.

    tls: for STARTTLS or, with is_encrypted, for the whole connection (tests/tools/certificate.py makes one).
    """

    def __init__(self, *, replies: dict[str, bytes] | Sequence[dict[str, bytes]] = (),
                 offers: tuple[str, ...] = OFFERS, lmtp: bool = False,
                 tls: ssl.SSLContext | None = None, is_encrypted: bool = False,
                 users: dict[str, str] | None = None, delays: dict[str, float] | None = None, path: str = "",
                 address: str = "127.0.0.1", port: int = 0) -> None:
        self._scripts = [replies] if isinstance(replies, dict) else list(replies) or [{}]
        self._offers = (*offers, *(["STARTTLS"] if tls and not is_encrypted else []),
                        *(["AUTH PLAIN LOGIN"] if users is not None else []))
        self._lmtp, self._tls, self._is_encrypted, self._users = lmtp, tls, is_encrypted, users
        self._delays = delays or {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.sessions: list[SlowHost] = []
        self.peak = 0  # most sessions at a time
        self._listener = self._listen(path, address, port)
        self._start(self._accept)

    @staticmethod
    def _listen(path: str, address: str, port: int) -> socket.socket:
        if path:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
        else:
            listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
        listener.listen(128)
        return listener

    @property
    def address(self) -> tuple[str, int]:
        name = self._listener.getsockname()
        return name[0], name[1]

    @property
    def envelopes(self) -> list[Envelope]:
        """All messages that were taken."""
        with self._lock:
            return [envelope for host in self.sessions for envelope in host.envelopes if envelope.is_taken]

    @property
    def open(self) -> int:
        with self._lock:
            return len(self._connections)

    def commands(self, verb: str) -> list[str]:
        with self._lock:
            return [line for host in self.sessions for line in host.commands if line.upper().startswith(verb.upper())]

    def close(self) -> None:
        """End all sessions and wait for their threads."""
        self._ending.set()
        for sock in (self._listener, *self._connections):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._listener.close()
        for thread in self._threads:
            thread.join(IDLE)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _start(self, what: object, *args: object) -> None:
        thread = threading.Thread(target=what, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                script = self._scripts[min(len(self.sessions), len(self._scripts) - 1)]
                host = SlowHost(self._offers, dict(script), self._lmtp, self._users)
                host.delays, host.ending = self._delays, self._ending
                self.sessions.append(host)
                self._connections.add(connection)
                self.peak = max(self.peak, len(self._connections))
            self._start(self._serve, connection, host)

    def _serve(self, connection: socket.socket, host: SlowHost) -> None:
        try:
            connection.settimeout(IDLE)
            if self._is_encrypted:
                connection = self._encrypt(connection, host)
            said = host.greet()
            while True:
                connection.sendall(said)
                if host.fault:
                    self._misbehave(connection, host.fault)
                    return
                if host.wants_tls and self._tls:
                    connection = self._encrypt(connection, host)
                data = connection.recv(BLOCK)
                if not data or (host.commands and host.commands[-1].upper() == "QUIT"):
                    return
                said = host.hear(data)
        except OSError:
            pass  # the client went first; what it had said stands in the session
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _encrypt(self, old: socket.socket, host: SlowHost) -> socket.socket:
        assert self._tls is not None
        with self._lock:
            self._connections.discard(old)
        new = self._tls.wrap_socket(old, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.add(new)
        try:
            new.do_handshake()
        except OSError:
            new.close()
            raise
        host.tls_started()
        return new

    def _misbehave(self, connection: socket.socket, fault: bytes) -> None:
        if fault == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == STALL:
            while connection.recv(BLOCK):
                pass
        elif fault == DRIP:
            while not self._ending.wait(DRIP_EVERY):
                connection.sendall(b"2")
        elif fault == ENDLESS:
            while not self._ending.is_set():
                connection.sendall(b"250-and so on\r\n" * 1000)
        else:
            assert fault == CLOSE
            connection.shutdown(socket.SHUT_WR)
            connection.recv(BLOCK)  # else bytes that were not read would make a reset of it


def main() -> None:
    parser = argparse.ArgumentParser(description="an SMTP server that does wrong on purpose")
    parser.add_argument("--port", type=int, default=2525)
    parser.add_argument("--lmtp", action="store_true")
    parser.add_argument("replies", nargs="*", help="STAGE=REPLY, such as 'rcpt 2=450 later' or 'end=<stall>'")
    options = parser.parse_args()
    replies = {}
    for word in options.replies:
        stage, _, text = word.partition("=")
        replies[stage] = text.encode() if text.startswith("<") else text.encode() + b"\r\n"
    with Sink(replies=replies, lmtp=options.lmtp, port=options.port) as sink:
        print(*sink.address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
