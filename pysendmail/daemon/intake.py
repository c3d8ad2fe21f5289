"""Taking messages in: from the drop, where any user may write, into the queue.

For one file, in this order (what each step is against stands in docs/ARCHITECTURE.md and beside the line):

    open without following or waiting -> not committed yet? leave it -> facts of the descriptor: regular, one link, group
    of the drop, size -> claim by rename to intake/ID -> still the same file? -> read it once, check length and checksum
    -> the fields a submitter may set -> complete the header -> copy into queue/new

Only facts of the descriptor are trusted; the submitter may still hold the file open, so it is copied, and a submitter who
changes it meanwhile spoils his own checksum. A file that is wrong in any way goes to quarantine/ with a line in the log;
nothing is ever deleted on suspicion (Postfix 1998: the check deleted, and a link made a victim's mail vanish). Trouble
of ours (disk full, no descriptors, no answer about a user) leaves the file where it is, for the next sweep.
"""

import codecs
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..config import Config
from ..events import Events
from ..mail import completion, headers, submission, trace
from ..mail.envelope import Envelope, Origin
from ..mail.outcome import Outcome, failed
from ..paths import Paths
from ..route.router import Router
from ..spool import durable, queue_id, record
from ..spool.queue import CHUNK, Message, Queue
from ..users import LookupTrouble, Users

NAME_LENGTH = 32  # hex digits of a drop file's name
WHOLE = 1024 * 1024  # bytes: a message up to this size is handled in memory at once
LINKED_GRACE = 600.0  # seconds that a file with two links may wait before it goes to quarantine
SCAN_SHARE = 20  # a scan that took t seconds is not repeated within 20 t
WARN_EVERY = 60.0  # seconds between two warnings about one user's files

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who owns a drop file. login: for addresses; full_name: of the account, "" if it has none."""

    uid: int
    login: str
    full_name: str


class Refused(Exception):
    """The file is not a submission: quarantine. The text says why."""


class Intake:
    """The one task that makes names in queue/. is_full(uid): whether this user's share of the queue is used up."""

    def __init__(self, paths: Paths, queue: Queue, ids: queue_id.Ids, users: Users, config: Config, router: Router,
                 events: Events, clock: Callable[[], float], is_full: Callable[[int], bool]) -> None:
        self._paths = paths
        self._queue = queue
        self._ids = ids
        self._users = users
        self._config = config
        self._router = router
        self._events = events
        self._clock = clock
        self._is_full = is_full
        drop = os.stat(paths.drop_new)
        self._group, self._device = drop.st_gid, drop.st_dev
        self._waiting: dict[int, deque[str]] = {}  # by uid, oldest first
        self._next_scan = 0.0
        self._warned: dict[int, float] = {}

    # ---- the drop

    def sweep(self, limit: int) -> list[Message]:
        """Take in at most `limit` messages, one of each user in turn. Never raises OSError: what fails stays."""
        if not self._waiting:
            self._scan()
        taken: list[Message] = []
        while self._waiting and len(taken) < limit:
            for uid in list(self._waiting):
                names = self._waiting[uid]
                if self._is_full(uid):
                    self._warn(uid, f"uid {uid} has its share of the queue; {len(names)} more wait in the drop")
                    del self._waiting[uid]
                    continue
                message = self._take(names.popleft())
                if message is not None:
                    taken.append(message)
                if not names:
                    del self._waiting[uid]
                if len(taken) >= limit:
                    break
        return taken

    @property
    def has_more(self) -> bool:
        return bool(self._waiting)

    def rescan(self) -> None:
        """New files are there: look again, unless the last look took so long that it must not be repeated yet."""
        self._waiting = {} if self._clock() >= self._next_scan else self._waiting

    def _scan(self) -> None:
        began = self._clock()
        if 0 < self._next_scan - began < 3600:  # (a clock that went back does not stop us)
            return
        found: dict[int, list[tuple[int, str]]] = {}
        try:
            with os.scandir(self._paths.drop_new) as names:
                for entry in names:
                    if len(entry.name) == NAME_LENGTH and not set(entry.name) - _HEX and entry.is_file(follow_symlinks=False):
                        seen = entry.stat(follow_symlinks=False)
                        found.setdefault(seen.st_uid, []).append((seen.st_mtime_ns, entry.name))
        except FileNotFoundError:
            pass  # an entry went away between readdir and stat: the next scan sees the rest
        except OSError as trouble:
            self._events.trouble(f"cannot scan {self._paths.drop_new}: {trouble.strerror}")
        self._waiting = {uid: deque(name for _, name in sorted(files)) for uid, files in found.items()}
        self._next_scan = began + SCAN_SHARE * (self._clock() - began)

    def _take(self, name: str) -> Message | None:
        path = f"{self._paths.drop_new}/{name}"
        try:
            fd = os.open(path, durable.READ)
        except FileNotFoundError:
            return None  # withdrawn by its submitter
        except OSError as trouble:  # a lease is held (EAGAIN), mode 000, no descriptors
            self._warn(-1, f"cannot open drop file {name}: {trouble.strerror}")
            return None
        try:
            if not durable.is_committed(fd):
                return None  # its writer wakes us when the sync has returned
            seen = os.fstat(fd)
            if seen.st_nlink != 1 and self._clock() - seen.st_ctime < LINKED_GRACE:
                return None
            return self._claim(fd, name, seen)
        except OSError as trouble:
            self._events.trouble(f"cannot take in drop file {name}: {trouble.strerror}")
            return None
        finally:
            os.close(fd)

    def _claim(self, fd: int, name: str, seen: os.stat_result) -> Message | None:
        found = self._ids.new()
        claimed = f"{self._paths.intake}/{found}"
        try:
            durable.rename(f"{self._paths.drop_new}/{name}", claimed)
        except FileNotFoundError:
            return None
        now = os.lstat(claimed)
        if (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino):
            self._set_aside(found, seen.st_uid, "file was exchanged while it was claimed")
            return None
        return self._adopt(fd, found, found, seen, seen.st_uid)

    # ---- a claimed file

    def recover(self) -> Iterator[Message]:
        """After a start: whatever a crash left in intake/ is copied again, under the id that it has (S2)."""
        for name in sorted(os.listdir(self._paths.intake)):
            message = self.readopt(name)
            if message is not None:
                yield message

    def sources(self) -> dict[str, str]:
        """The ids in intake/ and the file names that stand for them."""
        return {queue_id.id_of(name): name for name in os.listdir(self._paths.intake)}

    def readopt(self, name: str) -> Message | None:
        """Adopt intake/`name`: ID (from the drop) or ID,U=1000 (from the socket; the file is our own)."""
        found = queue_id.id_of(name)
        try:
            fd = os.open(f"{self._paths.intake}/{name}", durable.READ)
        except OSError as trouble:
            self._events.trouble(f"cannot open intake/{name}: {trouble.strerror}")
            return None
        try:
            seen = os.fstat(fd)
            _, is_ours, digits = name.partition(",U=")
            if not found or is_ours and not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
                self._set_aside(name, seen.st_uid, "unknown name in intake")
                return None
            return self._adopt(fd, found, name, seen, int(digits) if is_ours else seen.st_uid)
        except OSError as trouble:
            self._events.trouble(f"cannot take in intake/{name}: {trouble.strerror}")
            return None
        finally:
            os.close(fd)

    def _adopt(self, fd: int, found: str, name: str, seen: os.stat_result, uid: int) -> Message | None:
        """The message of a claimed file, or None: it is in quarantine then, or waits in intake/ for better times."""
        try:
            self._check(seen)
            submitter = self._submitter(uid)
            return self._copy(fd, found, name, seen.st_size, submitter)
        except (Refused, record.Damaged, ValueError) as problem:
            self._set_aside(name, uid, str(problem))
        except LookupTrouble as trouble:
            self._events.trouble(f"intake/{name}: {trouble}")
        return None

    def _check(self, seen: os.stat_result) -> None:
        if not stat.S_ISREG(seen.st_mode) or seen.st_dev != self._device:
            raise Refused("not a regular file of the spool's file system")
        # A file linked in from elsewhere keeps its group, however many links it has by now: this shows what the link
        # count and the owner do not (OpenSMTPD 2015: a hard link in the offline directory leaked root's files).
        if seen.st_gid != self._group:
            raise Refused(f"group {seen.st_gid} is not the drop's")
        if seen.st_nlink != 1:
            raise Refused(f"{seen.st_nlink} links")
        if seen.st_mode & 0o7111:
            raise Refused("executable, set-id or sticky bits")

    def _submitter(self, uid: int) -> Submitter:
        user = self._users.by_uid(uid)
        if user is None:  # legal: a container's user, an account removed since
            return Submitter(uid, f"uid{uid}", "")
        return Submitter(uid, user.name, completion.name_of_gecos(user.gecos, user.name))

    def _copy(self, fd: int, found: str, name: str, size: int, submitter: Submitter) -> Message:
        start = os.pread(fd, min(size, WHOLE), 0)
        offset, length, checksum = record.read_first(start[:record.FIRST_LENGTH])
        if length != size or offset > len(start):
            raise record.Damaged(f"{size} bytes instead of {length}")
        asked = submission.read(record.fields(start[record.FIRST_LENGTH:offset]))
        if size > len(start):
            is_ascii, is_utf8 = _survey(fd, offset, length, checksum)
        else:
            if record.crc(start[record.FIRST_LENGTH:]) != checksum:
                raise record.Damaged("checksum does not match")
            is_ascii, is_utf8 = _kind(start[offset:])
        origin = Origin("command", submitter.uid, submitter.login, protocol=asked.protocol)
        envelope = submission.envelope(asked, found, origin, self._clock(), self._router.qualify)
        head, body_at, hops = self._head(start[offset:], asked, envelope, submitter, is_ascii, is_utf8)
        body = start[offset + body_at:]
        content: Iterable[bytes] = [head + body]
        if size > len(start):
            content = _stream(fd, head + body, len(start), length, record.crc(start[record.FIRST_LENGTH:]), checksum)
        message = self._queue.adopt(envelope, content, name)
        message.refusal = self._refusal(hops, size)
        self._events.accepted(found, envelope.sender, size - offset, len(envelope.recipients),
                              completion.identity(head).message_id, f"{submitter.login}@localhost", body=envelope.body,
                              protocol=asked.protocol)
        return message

    def _head(self, start: bytes, asked: submission.Submission, envelope: Envelope, submitter: Submitter,
              is_ascii: bool, is_utf8: bool) -> tuple[bytes, int, int]:
        """(our Received line, the completed header and its blank line; where the body is in `start`; hops so far)."""
        fields, header_end, body_at = headers.scan(start)
        now = envelope.received_at
        offset = time.localtime(now).tm_gmtoff
        facts = completion.Facts(
            envelope.id, envelope.sender, self._config.domain, self._config.hostname, now, offset,
            asked.full_name or submitter.full_name, asked.is_gateway)
        head = completion.complete(start[:header_end], facts)
        if not asked.is_gateway and not is_ascii:
            head += completion.mime_label(head, has_8bit=True, is_utf8=is_utf8)
        hops = asked.hops + trace.hops(fields)
        return trace.received(envelope, self._config.hostname, offset) + head + b"\n", body_at, hops

    def _refusal(self, hops: int, size: int) -> Outcome | None:
        """Why every recipient of a message fails: it reached us, so its sender gets a report and not silence."""
        limits = self._config.limits
        if size > limits.message_size:
            return failed("5.3.4", f"message is larger than {limits.message_size} bytes")
        if hops > limits.hops:
            return failed("5.4.6", f"too many hops: more than {limits.hops}, this message goes in circles")
        return None

    def _set_aside(self, name: str, uid: int, reason: str) -> None:
        """To quarantine/, never deleted: the file may be somebody's mail."""
        self._events.refused(f"drop file of uid {uid} (now quarantine/{name})", reason)
        try:
            durable.rename(f"{self._paths.intake}/{name}", f"{self._paths.quarantine}/{name}")
        except OSError as trouble:
            self._events.trouble(f"cannot move intake/{name} to quarantine: {trouble.strerror}")

    def _warn(self, uid: int, text: str) -> None:
        now = self._clock()
        if now - self._warned.get(uid, 0.0) >= WARN_EVERY:
            if len(self._warned) > 1000:
                self._warned.clear()
            self._warned[uid] = now
            self._events.warned(text)


def _kind(body: bytes) -> tuple[bool, bool]:
    """(all ASCII, all UTF-8)."""
    if body.isascii():
        return True, True
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False, False
    return False, True


def _survey(fd: int, offset: int, length: int, checksum: int) -> tuple[bool, bool]:
    """As _kind, for a message too large to hold; checks length and checksum on the way. Raises Damaged."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_ascii, is_utf8, at, found = True, True, record.FIRST_LENGTH, 0
    while at < length:
        chunk = os.pread(fd, min(CHUNK, length - at), at)
        if not chunk:
            raise record.Damaged("file became shorter")
        found = record.crc(chunk, found)
        text = chunk[max(0, offset - at):]
        is_ascii = is_ascii and text.isascii()
        if is_utf8 and not is_ascii:
            try:
                decoder.decode(text)
            except UnicodeDecodeError:
                is_utf8 = False
        at += len(chunk)
    if found != checksum:
        raise record.Damaged("checksum does not match")
    return is_ascii, is_utf8


def _stream(fd: int, first: bytes, at: int, length: int, found: int, checksum: int) -> Iterator[bytes]:
    """`first`, then the file from `at` on. Raises Damaged when the file has changed since it was surveyed."""
    yield first
    while at < length:
        chunk = os.pread(fd, min(CHUNK, length - at), at)
        if not chunk:
            raise record.Damaged("file became shorter")
        found = record.crc(chunk, found)
        at += len(chunk)
        yield chunk
    if found != checksum:
        raise record.Damaged("file was changed while it was copied")
