"""Taking messages in: from the drop, where any user may write, into the queue.

For one file, in this order (what each step is against stands in SECURITY.md and beside the line):

    open without following or waiting -> not committed yet? leave it -> facts of the descriptor: regular, one link,
    group of the drop, size -> claim by rename to intake/ID -> still the same file? -> read it once, check length and
    checksum -> the fields a submitter may set -> complete the header -> copy into queue/new

Only facts of the descriptor are trusted; the submitter may still hold the file open, so it is copied, and a submitter
who changes it meanwhile spoils his own checksum. A file that is wrong in any way goes to quarantine/ with a line in
the log; nothing is ever deleted on suspicion (Postfix 1998: the check deleted, and a link made a victim's mail
vanish). Trouble of ours (disk full, no descriptors, no answer about a user) leaves the file where it is, in the drop or
in intake/, and it is tried again.

What a submitter left in drop/tmp, because it was killed, goes after ABANDONED: nobody was ever told that it is safe.
"""

import errno
import os
import stat
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ..config import Config
from ..events import Events
from ..mail import completion
from ..paths import Paths
from ..route.router import Router
from ..spool import durable, queue_id, record
from ..spool.queue import Message, Queue
from ..users import Users
from .copier import Copier, Refused, Submitter

NAME_LENGTH = 32  # hex digits of a drop file's name
UNFIT_GRACE = 600.0  # seconds that a file with two links, or one we may not read, may wait before it goes to quarantine
AGAIN = 10.0  # seconds before a file that could not be taken in, through no fault of its own, is tried again
PAUSE = 5.0  # seconds without taking anything in, when the system has run out of something
TRIES = 10  # files looked at in one sweep, per message that it may take in
MAX_NAMES = 10_000  # files of one user that a scan keeps
MAX_NAMED = 1000  # names of files that submitters have called for; a scan finds what is beyond
ABANDONED = 36 * 3600.0  # seconds after which a file in drop/tmp has no writer any more
CLEAN_EVERY = 3600.0  # seconds between looks for such files
SCAN_SHARE = 20  # a scan that took t seconds is not repeated within 20 t
MAX_SCAN_WAIT = 300.0  # seconds
WARN_EVERY = 60.0  # seconds between two warnings about one user's files

_HEX = frozenset("0123456789abcdef")
_RUN_OUT = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Intake:
    """The one task that makes names in queue/. is_full(uid): whether this user's share of the queue is used up."""

    def __init__(self, paths: Paths, queue: Queue, ids: queue_id.Ids, users: Users, config: Config, router: Router,
                 events: Events, clock: Callable[[], float], is_full: Callable[[int], bool]) -> None:
        self._paths = paths
        self._copier = Copier(queue, config, router, events)
        self._ids = ids
        self._users = users
        self._events = events
        self._clock = clock
        self._is_full = is_full
        drop = os.stat(paths.drop_new)
        self._group, self._device = drop.st_gid, drop.st_dev
        self._waiting: dict[int, deque[str]] = {}  # by uid, oldest first
        self._named: deque[str] = deque(maxlen=MAX_NAMED)  # what submitters have called for
        self._is_called = True  # there may be more than is waiting and named
        self._left: dict[str, float] = {}  # files in intake/ that nobody works on, and when to try them again
        self._next_scan = 0.0
        self._next_clean = 0.0
        self._paused_until = 0.0
        self._warned: dict[int, float] = {}

    # ---- the drop

    def sweep(self, limit: int) -> list[Message]:
        """Take in at most `limit` messages, one of each user in turn. Never raises OSError: what fails stays."""
        if self._is_paused():
            return []
        self._clean()
        taken: list[Message] = []
        tries = limit * TRIES
        while self._named and len(taken) < limit and not self._is_paused():
            message = self._take(self._named.popleft())
            if message is not None:
                taken.append(message)
        if not self._waiting and self._is_called and len(taken) < limit:
            self._scan()
        while self._waiting and len(taken) < limit and tries > 0 and not self._is_paused():
            for uid in list(self._waiting):
                names = self._waiting[uid]
                if self._is_full(uid):
                    self._warn_of_share(uid, f"{len(names)} more wait")
                    del self._waiting[uid]
                    continue
                message = self._take(names.popleft())
                if message is not None:
                    taken.append(message)
                if not names:
                    del self._waiting[uid]
                tries -= 1
                if len(taken) >= limit or tries <= 0 or self._is_paused():
                    break
        return taken + self._take_left(limit - len(taken))

    def _take_left(self, limit: int) -> list[Message]:
        """Those that were claimed before and could not be copied: after the others, lest they stop them."""
        now = self._clock()
        taken: list[Message] = []
        for name in [name for name, due in self._left.items() if due <= now or due > now + AGAIN]:
            if len(taken) >= limit or self._is_paused():
                break
            message = self.readopt(name)
            if message is not None:
                taken.append(message)
        return taken

    def _is_paused(self) -> bool:
        return 0 < self._paused_until - self._clock() <= PAUSE

    @property
    def has_more(self) -> bool:
        return bool(self._waiting or self._named) and not self._is_paused()

    def expect(self, names: Iterable[str]) -> None:
        """Submitters say that these files are in the drop. What is not true in that costs one look each."""
        self._named.extend(filter(_is_drop_name, names))

    def rescan(self) -> float:
        """New files are there: look again. The seconds until that may be, since the last look took so long; 0 = now."""
        wait = self._scan_wait()
        if wait == 0:
            self._waiting = {}
            self._is_called = True
        return wait

    def _scan_wait(self) -> float:
        wait = self._next_scan - self._clock()
        return wait if 0 < wait < MAX_SCAN_WAIT else 0.0  # (a clock that went back does not stop us)

    def _scan(self) -> None:
        if self._scan_wait() > 0:
            return
        self._is_called = False
        began = self._clock()
        found: dict[int, list[tuple[int, str]]] = {}
        try:
            with os.scandir(self._paths.drop_new) as names:
                for entry in names:
                    if _is_drop_name(entry.name) and entry.is_file(follow_symlinks=False):
                        seen = entry.stat(follow_symlinks=False)
                        files = found.setdefault(seen.st_uid, [])
                        if len(files) < MAX_NAMES:
                            files.append((seen.st_mtime_ns, entry.name))
                        else:
                            self._is_called = True
        except FileNotFoundError:
            self._is_called = True  # an entry went away between readdir and stat: the next scan sees the rest
        except OSError as trouble:
            self._is_called = True
            self._events.trouble(f"cannot scan {self._paths.drop_new}: {trouble.strerror}")
        self._waiting = {uid: deque(name for _, name in sorted(files)) for uid, files in found.items()}
        self._next_scan = began + SCAN_SHARE * (self._clock() - began)

    def _take(self, name: str) -> Message | None:
        path = f"{self._paths.drop_new}/{name}"
        try:
            fd = os.open(path, durable.READ)
        except FileNotFoundError:
            return None  # withdrawn by its submitter
        except OSError as trouble:
            self._cannot_open(name, trouble)
            return None
        try:
            if not durable.is_committed(fd):
                return None  # its writer wakes us when the sync has returned
            seen = os.fstat(fd)
            if seen.st_nlink != 1 and self._clock() - seen.st_ctime < UNFIT_GRACE:
                return None
            if self._is_full(seen.st_uid):
                self._warn_of_share(seen.st_uid, "more wait")
                return None
            found = self._claim(name, seen)
            return self._adopt(fd, found, found, seen, seen.st_uid) if found else None
        except OSError as trouble:
            self._in_trouble(f"drop file {name}", trouble)
            return None
        finally:
            os.close(fd)

    def _cannot_open(self, name: str, trouble: OSError) -> None:
        """Who takes our right to read away, or holds a lease, shall not have his file looked at for ever."""
        path = f"{self._paths.drop_new}/{name}"
        try:
            seen = os.lstat(path)
            is_unfit = not seen.st_mode & stat.S_IRGRP or trouble.errno == errno.EAGAIN
            if is_unfit and self._clock() - seen.st_ctime >= UNFIT_GRACE:
                found = self._ids.new()
                durable.rename(path, f"{self._paths.intake}/{found}")
                self._set_aside(found, seen.st_uid, f"cannot be opened: {trouble.strerror}")
                return
        except OSError:
            pass  # it has gone, or the next scan tries again
        self._in_trouble(f"drop file {name}", trouble)

    def _claim(self, name: str, seen: os.stat_result) -> str:
        """Move drop/new/`name` to intake/ID, where no path of its submitter leads. The id, "" if there is none."""
        found = self._ids.new()
        claimed = f"{self._paths.intake}/{found}"
        try:
            durable.rename(f"{self._paths.drop_new}/{name}", claimed)
        except FileNotFoundError:  # withdrawn by its submitter
            return ""
        try:
            now = os.lstat(claimed)
        except OSError as trouble:
            self._leave(found, trouble)
            return ""
        if (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino):
            self._set_aside(found, seen.st_uid, "file was exchanged while it was claimed")
            return ""
        return found

    def _warn_of_share(self, uid: int, what: str) -> None:
        """Say that somebody's files stay where they are until others of his are done."""
        self._is_called = True
        self._warn(uid, f"uid {uid} has its share of the queue; {what} in the drop")

    def _in_trouble(self, what: str, trouble: OSError) -> None:
        """Say that something cannot be taken in, and stop for a while if nothing else could be either."""
        self._is_called = True
        self._warn(-(trouble.errno or errno.EIO), f"cannot take in {what}: {trouble.strerror or trouble}")
        if trouble.errno in _RUN_OUT:
            self._paused_until = self._clock() + PAUSE

    def _clean(self) -> None:
        """Remove what killed submitters left in drop/tmp."""
        now = self._clock()
        if 0 < self._next_clean - now <= CLEAN_EVERY:
            return
        self._next_clean = now + CLEAN_EVERY
        try:
            with os.scandir(self._paths.drop_tmp) as entries:
                for entry in islice(entries, MAX_NAMES):
                    seen = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode) and now - max(seen.st_mtime, seen.st_ctime) > ABANDONED:
                        self._remove_abandoned(f"{self._paths.drop_tmp}/{entry.name}")
        except OSError as trouble:
            self._warn(-1, f"cannot clean {self._paths.drop_tmp}: {trouble.strerror}")

    def _remove_abandoned(self, path: str) -> None:
        try:
            fd = os.open(path, durable.READ)
        except PermissionError:  # made unreadable: it cannot be known whether somebody still writes
            durable.unlink(path)
            return
        try:
            if durable.is_committed(fd):  # else its writer still holds it
                durable.unlink(path)
        finally:
            os.close(fd)

    # ---- a claimed file

    def recover(self) -> Iterator[Message]:
        """After a start: whatever a crash left in intake/ is copied again, under the id that it has (S2)."""
        names = sorted(os.listdir(self._paths.intake))
        self._left.update(dict.fromkeys(names, 0.0))
        return (message for name in names if name in self._left and (message := self.readopt(name)) is not None)

    def sources(self) -> dict[str, str]:
        """The ids in intake/ and the file names that stand for them."""
        return {queue_id.id_of(name): name for name in os.listdir(self._paths.intake)}

    def readopt(self, name: str) -> Message | None:
        """Adopt intake/`name`: ID (from the drop) or ID,U=1000 (from the socket; the file is our own)."""
        self._left.pop(name, None)
        found = queue_id.id_of(name)
        try:
            fd = os.open(f"{self._paths.intake}/{name}", durable.READ)
        except FileNotFoundError:
            return None
        except OSError as trouble:
            self._leave(name, trouble)
            return None
        try:
            seen = os.fstat(fd)
            _, is_ours, digits = name.partition(",U=")
            if not found or (is_ours and not (digits.isascii() and digits.isdigit() and len(digits) <= 10)):
                self._set_aside(name, seen.st_uid, "unknown name in intake")
                return None
            return self._adopt(fd, found, name, seen, int(digits) if is_ours else seen.st_uid)
        except OSError as trouble:
            self._leave(name, trouble)
            return None
        finally:
            os.close(fd)

    def put_back(self, name: str) -> None:
        """A message whose copy turned out to be of no use: intake/`name` is to be taken in again, later."""
        self._left[name] = self._clock() + AGAIN

    def _leave(self, name: str, trouble: OSError) -> None:
        """It stays in intake/, for better times."""
        self.put_back(name)
        self._in_trouble(f"intake/{name}", trouble)

    def _adopt(self, fd: int, found: str, name: str, seen: os.stat_result, uid: int) -> Message | None:
        """The message of a claimed file, or None: it is in quarantine then, or waits in intake/ for better times."""
        try:
            self._check(seen)
            submitter = self._submitter(uid)
            return self._copier.copy(fd, found, name, seen, submitter, self._clock())
        except (Refused, record.Damaged, ValueError) as problem:
            self._set_aside(name, uid, str(problem))
        except OSError as trouble:  # LookupTrouble too
            self._leave(name, trouble)
        except MemoryError:
            self._leave(name, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
        except Exception:  # noqa: BLE001 - a fault of ours meets a message: others must not wait behind it
            self._events.trouble(f"intake/{name}: {traceback.format_exc(limit=-4)}")
            self._set_aside(name, uid, "it made this program fail")
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


def _is_drop_name(name: str) -> bool:
    return len(name) == NAME_LENGTH and not set(name) - _HEX
