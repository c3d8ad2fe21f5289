"""A question to the running daemon, by its control socket; or to the spool itself, when the daemon is down.

`ask` sends one request (daemon/control.py has the protocol) and gives the listings as they come. With the daemon down,
"list" and "show" are answered from the files for root and for whoever owns the spool, also if it hangs, and these two
may hold, release, delete and requeue there, too; nobody else could. Root becomes the spool's owner first and for good:
the files hold what strangers wrote, and root parses nothing of theirs.

Every failure is an `Unanswered`: one line for people, and the exit code that goes with it (sysexits.h).
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..paths import Paths

Item = dict[str, Any]
Request = dict[str, Any]

EX_USAGE, EX_NOINPUT, EX_UNAVAILABLE, EX_TEMPFAIL, EX_PROTOCOL, EX_CONFIG = 64, 66, 69, 75, 76, 78
TIMEOUT = 60.0  # seconds of silence after which the daemon is taken to hang
PATIENCE = 10.0  # the same before its first word, if the files have the answer
MAX_REQUEST = 256 * 1024  # bytes, the daemon's limit: as many ids as xargs gives at once
MAX_LINE = 64 * 1024 * 1024  # bytes of one listing: the largest number of recipients, with a reason for each
CHUNK = 256 * 1024  # bytes read at once
CONNECT_AGAIN = 0.1  # seconds
FROM_SPOOL = frozenset(("list", "show"))
IN_SPOOL = frozenset(("hold", "release", "delete", "requeue"))


class Unanswered(Exception):
    """No answer, or a refusal, in words. code: what to exit with."""

    def __init__(self, words: str, code: int = EX_TEMPFAIL) -> None:
        super().__init__(words)
        self.code = code


class Silent(Unanswered):
    """The daemon is there and says nothing."""

    def __init__(self) -> None:
        super().__init__("pysendmaild does not answer")


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
            if "begin" in item:
                continue
            if "end" in item:
                self.end = item["end"]
            else:
                yield item["item"]


def ask(paths: Paths, request: Request) -> Answer:
    """The answer to {"do": ..., ...}. Raises Unanswered, here or while the answer is taken."""
    has_files = request["do"] in FROM_SPOOL and may_read(paths)
    try:
        return _from_daemon(paths, request, PATIENCE if has_files else TIMEOUT)
    except (FileNotFoundError, ConnectionRefusedError):
        if has_files:
            return _from_spool(paths, request)
        if request["do"] in IN_SPOOL and may_read(paths):
            return Answer(_in_spool(paths, request))
        needed = "pysendmaild is not running"
        raise Unanswered(needed + ", and only it can return messages" if request["do"] == "bounce" else needed)
    except Silent as silence:
        if not has_files:
            raise
        print(f"{silence}; this is what the files say", file=sys.stderr)
        return _from_spool(paths, request)
    except OSError as trouble:
        raise Unanswered(f"cannot ask pysendmaild: {trouble.strerror or trouble}")


def _from_daemon(paths: Paths, request: Request, patience: float) -> Answer:
    """patience: seconds until its first word. Raises Unanswered, Silent, and OSError if it is not there."""
    connection = _connect(paths.control, patience)
    line = json.dumps(request).encode("ascii") + b"\n"
    if len(line) > MAX_REQUEST:
        connection.close()
        raise Unanswered("too much to ask for at once; name fewer messages", EX_USAGE)
    replies = _conversation(connection, line)
    first = next(replies)
    connection.settimeout(TIMEOUT)
    count = first["begin"].get("count") if "begin" in first else None
    return Answer(chain((first,), replies), count if isinstance(count, int) else None)


def _connect(path: str, timeout: float) -> socket.socket:
    until = time.monotonic() + timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout)
        while True:
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:  # others wait to be accepted, as many as may, perhaps by one that hangs
                if time.monotonic() >= until:
                    raise Silent
                time.sleep(CONNECT_AGAIN)
    except BaseException:
        connection.close()
        raise


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
                if not isinstance(value.get("end", value.get("item", value.get("begin"))), dict):
                    break
                yield value
                if "end" in value:
                    return
        except TimeoutError:
            raise Silent
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


def may_read(paths: Paths) -> bool:
    """Whether the queue's files are open to us, or to whom we can become."""
    try:
        return os.geteuid() in (0, os.stat(paths.queue).st_uid)
    except OSError:
        return False


def _from_spool(paths: Paths, request: Request) -> Answer:
    from ..config import ConfigError, QueueSettings, read
    from ..spool import listing, selection
    try:
        settings = read(paths, partial=True).config.queue
    except ConfigError:
        settings = QueueSettings()
    try:
        become_owner(paths)
        wanted = selection.predicate(request.get("filter", {}), time.time())
        items = listing.scan(paths, time.time(), settings.lifetime_of)
        if request["do"] == "show":
            return Answer(_only(items, request["id"]), 1)
        count = None if request.get("filter") else _count(paths)
        return Answer(_checked({"item": item} for item in items if wanted(item)), count)
    except ValueError as problem:  # of the filter
        raise Unanswered(str(problem), EX_USAGE)
    except OSError as trouble:
        raise Unanswered(f"cannot read {paths.spool}: {trouble.strerror or trouble}")


def _in_spool(paths: Paths, request: Request) -> Iterator[Item]:
    """Change messages in the files. The settings are read first: as root, who alone may read all of them."""
    from ..config import ConfigError, read
    from ..daemon import offline
    from ..events import Events, Syslog
    from ..spool import listing, selection
    from ..users import SystemUsers
    try:
        config = read(paths, partial=True).config
        become_owner(paths)
        wanted = selection.predicate(request.get("filter", {}), time.time())
        chosen = {item["id"]: item for item in listing.scan(paths, time.time(), config.queue.lifetime_of)
                  if wanted(item)}
        done = 0
        spool = offline.Offline(paths, config, SystemUsers(time.monotonic), Events(Syslog()))
        results = ((one, "") for one in chosen) if request.get("dry_run") else spool.change(
            request["do"], chosen, str(request.get("why") or ""))
        for one, why in results:
            done += not why
            yield {"item": chosen[one] | {"result": why or "ok"}}
        yield {"end": {"count": done}}
    except offline.Busy as problem:
        raise Unanswered(str(problem))
    except ConfigError as problem:
        raise Unanswered(problem.problems[0], EX_CONFIG)
    except ValueError as problem:  # of the filter
        raise Unanswered(str(problem), EX_USAGE)
    except OSError as trouble:
        raise Unanswered(f"cannot change {paths.spool}: {trouble.strerror or trouble}")


def become_owner(paths: Paths) -> None:
    """From root to the user that the queue belongs to, for good: nothing of a stranger's is parsed before this."""
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
    return len(names) + taken + len(os.listdir(paths.drop_new)) + len(os.listdir(paths.smtp_new))


def _only(items: Iterator[Item], wanted: str) -> Iterator[Item]:
    for item in _checked({"item": item} for item in items if item["id"] == wanted):
        yield item
        return
    raise Unanswered("no such message in the queue", EX_NOINPUT)


def _checked(items: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from items
    except OSError as trouble:
        raise Unanswered(f"cannot read the spool: {trouble.strerror or trouble}")
