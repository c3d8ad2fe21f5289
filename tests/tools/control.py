"""A control socket that says what a test wants, in place of the daemon's."""

import json
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

from pysendmail.paths import Paths

MAX_REQUEST = 256 * 1024  # bytes
WAIT = 20.0  # seconds after which a test that asks for nothing is broken


def item(queue_id: str = "0WkDdmTe001000", **changes: Any) -> dict[str, Any]:
    """A listing with all keys of spool/listing.py."""
    plain: dict[str, Any] = {
        "id": queue_id, "where": "cur", "sender": "alice@example.org", "size": 1201, "arrived": 1_750_000_000.0,
        "uid": 1000, "user": "alice", "body": "", "attempts": 1, "active": False, "next_try": 1_750_003_600.0,
        "expires": 1_750_432_000.0, "reason": "", "hold": "",
        "recipients": [{"address": "bob@example.com", "status": "deferred", "reason": ""}]}
    assert not changes.keys() - plain.keys() - {"result"}
    return plain | changes


def recipient(address: str, status: str = "deferred", reason: str = "") -> dict[str, Any]:
    return {"address": address, "status": status, "reason": reason}


def listing(*items: dict[str, Any], **end: Any) -> bytes:
    """What the daemon says about these messages."""
    lines = [{"item": one} for one in items] + [{"end": {"count": len(items), **end}}]
    return b"".join(json.dumps(line).encode("ascii") + b"\n" for line in lines)


class Control:
    """Answers every question with the same bytes. requests: what was asked.

    hangs: connections stay open afterwards. deaf: the answer comes without a question.
    """

    def __init__(self, paths: Paths, reply: bytes, *, hangs: bool = False, deaf: bool = False) -> None:
        self.requests: list[Any] = []
        self._reply, self._hangs, self._is_deaf = reply, hangs, deaf
        self._kept: list[socket.socket] = []
        self._path = paths.control
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self._path)
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _at: TracebackType | None,
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(WAIT)
        self._server.close()
        for connection in self._kept:
            connection.close()
        os.unlink(self._path)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.settimeout(WAIT)
            if not self._is_deaf:
                with connection.makefile("rb") as lines:
                    self.requests.append(json.loads(lines.readline(MAX_REQUEST)))
            try:
                connection.sendall(self._reply)
            except OSError:
                pass  # the client has heard enough
            if self._hangs:
                self._kept.append(connection)
            else:
                connection.close()
