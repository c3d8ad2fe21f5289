"""Taking over what listeners have accepted: from smtp/new into queue/new, by renaming.

The file is a queue file already, written and synced by a process of ours, so it is not copied: it is checked (a regular
file with one name, whole, of an SMTP client) and gets its place. That rename needs no sync: before it and after it the
message has one synced file, and both directories are looked at after a crash.

A listener is exposed to the network, so what it says is believed about its clients and nothing else: a file that claims
to be anything but mail by SMTP, or that is torn, goes to quarantine/ with a line in the log. rename(2) replaces
silently; so it is this task alone that makes names in the queue, and it looks first. An id that is taken already (a
clock that was set back) is replaced by a new one.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Container

from ..events import Events
from ..mail.envelope import Envelope
from ..paths import Paths
from ..spool import durable, queue_id, record
from ..spool.queue import Entry, Message
from ..spool.queue_file import read_envelope

QUIET = 60.0  # seconds between two lines in the log about the same trouble

_NO_FILE = frozenset((errno.ELOOP, errno.ENXIO))  # what open(2) says of symbolic links and sockets


class Unfit(Exception):
    """The file is no message of a listener: quarantine. The text says why."""


class Adoption:
    """ids: makes new ones. is_taken: whether a message in the queue has an id. clock: seconds since the epoch."""

    def __init__(self, paths: Paths, ids: queue_id.Ids, events: Events, is_taken: Callable[[str], bool],
                 clock: Callable[[], float]) -> None:
        self._paths = paths
        self._ids = ids
        self._events = events
        self._is_taken = is_taken
        self._clock = clock
        self._names: deque[str] = deque()
        self._at_start: Container[str] = frozenset()
        self._is_called = True
        self._quiet_until = 0.0

    def call(self) -> None:
        """There may be something new."""
        self._is_called = True

    @property
    def has_more(self) -> bool:
        return bool(self._names)

    def recover(self, taken: Container[str]) -> None:
        """At the start: into queue/new with all of them, before the queue is looked at. taken: ids in use anywhere.

        One that its listener has not synced yet stays.
        """
        self._at_start = taken
        for name in self._listed():
            self._attempt(name)
        self._at_start = frozenset()

    def sweep(self, limit: int) -> list[Message]:
        """At most `limit` messages, oldest first. Never raises OSError: what fails stays for the next time."""
        if not self._names and self._is_called:
            self._is_called = False
            self._names.extend(self._listed())
        taken: list[Message] = []
        while self._names and len(taken) < limit:
            name = self._names.popleft()
            message = self._attempt(name)
            if message is not None:
                taken.append(message)
        return taken

    def _attempt(self, name: str) -> Message | None:
        try:
            return self._adopt(name)
        except (Unfit, record.Damaged, ValueError) as problem:
            self._set_aside(name, str(problem))
        except OSError as trouble:
            if trouble.errno in _NO_FILE:
                self._set_aside(name, "not a regular file")
            else:
                self._complain(f"smtp/new/{name}", trouble)
        return None

    def _listed(self) -> list[str]:
        try:
            return sorted(os.listdir(self._paths.smtp_new))
        except OSError as trouble:
            self._complain("smtp/new", trouble)
            return []

    def _open(self, name: str) -> int:
        """A descriptor of a file whose sync has returned; -1 if it has gone, or its listener will call when it has."""
        try:
            fd = os.open(f"{self._paths.smtp_new}/{name}", durable.READ)
        except FileNotFoundError:  # withdrawn: its sync failed
            return -1
        if durable.is_committed(fd):
            return fd
        os.close(fd)
        return -1

    def _adopt(self, name: str) -> Message | None:
        fd = self._open(name)
        if fd < 0:
            return None
        try:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
                raise Unfit("not a regular file with one name")
            if not queue_id.is_queue_id(name):
                raise Unfit("not the name of a message")
            found = self._free(name)
            envelope, offset, length = read_envelope(fd, found, verify=True)
            if envelope.origin.kind != "smtp" or envelope.origin.uid >= 0:
                raise Unfit("not from an SMTP client")
            durable.rename(f"{self._paths.smtp_new}/{name}", f"{self._paths.queue}/new/{found}")
        finally:
            os.close(fd)
        return Message(_entry(envelope), envelope, offset, length)

    def _free(self, name: str) -> str:
        """This id, or a new one if it is taken."""
        # A journal may lie there without a message: that of one in bad/, which must not become another's.
        has_journal = os.path.lexists(f"{self._paths.journal}/{name}")
        if not has_journal and name not in self._at_start and not self._is_taken(name):
            return name
        found = self._ids.new()
        self._events.noted(name, f"this id is in use already; the message goes on as {found}")
        return found

    def _set_aside(self, name: str, reason: str) -> None:
        """To quarantine/, never deleted: it was promised to somebody."""
        kept = name
        while os.path.lexists(f"{self._paths.quarantine}/{kept}"):
            kept = f"{name}.{self._ids.new()}"
        self._events.trouble(f"smtp/new/{name} (now quarantine/{kept}): {reason}")
        try:
            durable.rename(f"{self._paths.smtp_new}/{name}", f"{self._paths.quarantine}/{kept}")
        except OSError as trouble:
            self._complain(f"smtp/new/{name}", trouble)

    def _complain(self, what: str, trouble: OSError) -> None:
        now = self._clock()
        if not 0 <= self._quiet_until - now <= QUIET:
            self._quiet_until = now + QUIET
            self._events.trouble(f"cannot take in {what}: {trouble.strerror}")


def _entry(envelope: Envelope) -> Entry:
    return Entry(envelope.id, "new", envelope.id, int(envelope.received_at), 0, "", envelope.origin.uid)
