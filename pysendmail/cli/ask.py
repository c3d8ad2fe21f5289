"""A question to the running daemon, by its control socket; or to the spool itself, when the daemon is down.

`ask` sends one request (daemon/control.py has the protocol) and gives the listings as they come. With the daemon down,
"list" and "show" are answered from the files for root and for whoever owns the spool; nobody else could read them. Root
becomes the spool's owner first and for good: the files hold what strangers wrote, and root parses nothing of theirs.

Every failure is an `Unanswered`: one line for people, and the exit code that goes with it (sysexits.h).
"""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..paths import Paths

Item = dict[str, Any]
Request = dict[str, Any]

EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL, EX_PROTOCOL = 64, 69, 75, 76
TIMEOUT = 60.0  # seconds of silence after which the daemon is taken to hang
MAX_REQUEST = 64 * 1024  # bytes, the daemon's limit
MAX_LINE = 64 * 1024 * 1024  # bytes of one listing: the largest number of recipients, with a reason for each
CHUNK = 256 * 1024  # bytes read at once
FROM_SPOOL = frozenset(("list", "show"))


class Unanswered(Exception):
    """No answer, or a refusal, in words. code: what to exit with."""

    def __init__(self, words: str, code: int = EX_TEMPFAIL) -> None:
        super().__init__(words)
        self.code = code


class Answer:
    """Listings in the order in which they come.

    count: how many there are, if that is known before. end: what the daemon says last, once all have been taken.
    """

    def __init__(self, items: Iterator[Item], count: int | None = None) -> None:
        self._items = items
        self.count = count
        self.end: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            if "end" in item:
                self.end = item["end"]
            else:
                yield item["item"]


def ask(paths: Paths, request: Request) -> Answer:
    """The answer to {"do": ..., ...}. Raises Unanswered, here or while the answer is taken."""
    try:
        connection = _connect(paths.control)
    except (FileNotFoundError, ConnectionRefusedError):
        if request["do"] in FROM_SPOOL and _may_read(paths):
            return _from_spool(paths, request)
        raise Unanswered("pysendmaild is not running")
    except OSError as trouble:
        raise Unanswered(f"cannot ask pysendmaild: {trouble.strerror or trouble}")
    line = json.dumps(request).encode("ascii") + b"\n"
    if len(line) > MAX_REQUEST:
        connection.close()
        raise Unanswered("too much to ask for at once; name fewer messages", EX_USAGE)
    return Answer(_conversation(connection, line))


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(TIMEOUT)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _conversation(connection: socket.socket, line: bytes) -> Iterator[Item]:
    """What the daemon says to one request line, up to its end."""
    with connection:
        try:
            _send(connection, line)
            for reply in _lines(connection):
                value = json.loads(reply)
                if not isinstance(value, dict):
                    break
                if "error" in value:
                    raise Unanswered(str(value["error"]), _code(value.get("code")))
                if not isinstance(value.get("end", value.get("item")), dict):
                    break
                yield value
                if "end" in value:
                    return
        except TimeoutError:
            raise Unanswered("pysendmaild does not answer")
        except OSError as trouble:
            raise Unanswered(f"lost pysendmaild: {trouble.strerror or trouble}")
        except ValueError:
            pass
        raise Unanswered("pysendmaild said something that makes no sense", EX_PROTOCOL)


def _send(connection: socket.socket, line: bytes) -> None:
    try:
        connection.sendall(line)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has closed without listening; why is what it said before


def _lines(connection: socket.socket) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that has not ended
    length = 0
    while chunk := connection.recv(CHUNK):
        first, *lines = chunk.split(b"\n")
        parts.append(first)
        length += len(first)
        if length > MAX_LINE:
            raise ValueError("line is too long")
        if lines:
            yield b"".join(parts)
            last = lines.pop()
            yield from lines
            parts, length = [last], len(last)
    raise Unanswered("pysendmaild broke off in the middle of its answer")


def _code(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 128 else EX_UNAVAILABLE


# ---- without the daemon


def _may_read(paths: Paths) -> bool:
    try:
        return os.geteuid() in (0, os.stat(paths.queue).st_uid)
    except OSError:
        return False


def _from_spool(paths: Paths, request: Request) -> Answer:
    import time

    from ..spool import listing, selection
    try:
        _become_owner(paths)
        wanted = selection.predicate(request.get("filter", {}), time.time())
        items = listing.scan(paths, time.time())
        if request["do"] == "show":
            return Answer(_only(items, request["id"]), 1)
        count = None if request.get("filter") else _count(paths)
        return Answer(_checked({"item": item} for item in items if wanted(item)), count)
    except OSError as trouble:
        raise Unanswered(f"cannot read {paths.spool}: {trouble.strerror or trouble}")


def _become_owner(paths: Paths) -> None:
    """From root to the user that the queue belongs to."""
    owner = os.stat(paths.queue)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


def _count(paths: Paths) -> int:
    """How many messages a scan will find: a look at names alone, so that the first line of a long list comes soon."""
    from ..spool import queue, queue_id
    names = [name for place in queue.PLACES for name in os.listdir(f"{paths.queue}/{place}") if queue_id.id_of(name)]
    ids = {queue_id.id_of(name) for name in names}
    taken = sum(1 for name in os.listdir(paths.intake) if name[:queue_id.LENGTH] not in ids)
    return len(names) + taken + len(os.listdir(paths.drop_new))


def _only(items: Iterator[Item], wanted: str) -> Iterator[Item]:
    for item in _checked({"item": item} for item in items if item["id"] == wanted):
        yield item
        return
    raise Unanswered("no such message in the queue", EX_USAGE)


def _checked(items: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from items
    except OSError as trouble:
        raise Unanswered(f"cannot read the spool: {trouble.strerror or trouble}")
