"""What cannot be delivered because its file is damaged, or because it made this program fail: out of the queue, into
queue/bad/, and the postmaster is told of it.

The names in bad/ say who has been told of: `NAME,told`. So nothing is forgotten over a crash, which at worst makes a
second notice. Whatever number of files a dying disk damages, there is one notice GATHER seconds after the first, and
another one NOTICE_EVERY seconds later about those that have come since. A notice has an id from which none is derived
(queue_id.py): if it fails it is held, and if it is damaged itself the log alone says so.
"""

import asyncio
import os
import time
from collections.abc import Callable

from ..config import Config
from ..events import Events
from ..mail import trace
from ..mail.completion import message_id
from ..mail.envelope import Envelope, Origin, Recipient, raw
from ..mail.outcome import one_line
from ..spool import durable, queue_id
from ..spool.queue import Entry, Message, Queue

GATHER = 60.0  # seconds
NOTICE_EVERY = 3600.0  # seconds
MAX_LISTED = 20  # files named in a notice
WRITER = 3  # of the ids of notices; the listeners have other ones
TOLD = ",told"
MARK = "z"  # the first letter of their ids


class Aside:
    """postmaster: where notices go. has: whether an id is taken. accept: takes a notice that is in the queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, queue: Queue, events: Events,
                 clock: Callable[[], float], postmaster: str, has: Callable[[str], bool],
                 accept: Callable[[Message], None]) -> None:
        self._loop, self._config, self._queue, self._events = loop, config, queue, events
        self._clock, self._postmaster, self._has, self._accept = clock, postmaster, has, accept
        self._ids = queue_id.Ids(WRITER, clock)
        self._is_due = False
        self._told_at = loop.time() - NOTICE_EVERY
        self._why: dict[str, str] = {}

    def put(self, entry: Entry, why: str) -> None:
        """Move a file to bad/; tried again until it is there, since nobody else looks at it any more."""
        self._events.trouble(f"{entry.id}: moved to queue/bad: {why}")
        try:
            self._queue.set_aside(entry)
            if entry.id.startswith(MARK):
                self._mark_told(entry.name)
                return
        except FileNotFoundError:
            return  # somebody has taken it away
        except OSError as trouble:
            self._events.trouble(f"{entry.id}: cannot move it: {trouble.strerror}")
            self._loop.call_later(GATHER, self.put, entry, why)
            return
        if len(self._why) < MAX_LISTED:
            self._why[entry.name] = why
        self.expect()

    def expect(self) -> None:
        """Tell of what is in bad/ when it is time for a notice."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(max(GATHER, self._told_at + NOTICE_EVERY - self._loop.time()), self._tell)

    def _tell(self) -> None:
        self._is_due = False
        try:
            names = sorted(name for name in os.listdir(self._queue.bad) if not name.endswith(TOLD))
            if not names:
                return
            notice = self._commit(names)
            # From here on the notice is safe.
            self._told_at = self._loop.time()
        except OSError as trouble:
            self._events.trouble(f"cannot tell the postmaster of queue/bad, tried again: {trouble.strerror}")
            self.expect()
            return
        self._why.clear()
        self._accept(notice)
        for name in names:
            try:
                self._mark_told(name)
            except OSError as trouble:
                self._events.trouble(f"queue/bad/{name}: the next start tells of it again: {trouble.strerror}")

    def _mark_told(self, name: str) -> None:
        durable.rename(f"{self._queue.bad}/{name}", f"{self._queue.bad}/{name}{TOLD}")

    def _commit(self, names: list[str]) -> Message:
        found = self._new_id()
        text = self._text(found, names)
        envelope = Envelope(found, "", (Recipient(self._postmaster, frozenset(("never",))),), self._clock(),
                            Origin("runner"), scanned=True)
        notice = self._queue.commit(envelope, [text])
        self._events.reported(queue_id.id_of(names[0]) or names[0], found, "postmaster notify", "moved to queue/bad")
        return notice

    def _new_id(self) -> str:
        while True:
            found = MARK + self._ids.new()[1:]
            if not self._has(found):
                return found

    def _text(self, found: str, names: list[str]) -> bytes:
        now, hostname = self._clock(), self._config.hostname
        offset = time.localtime(now).tm_gmtoff
        own = Envelope(found, "", (), now, Origin("runner"))
        what = f"{len(names)} message{'s' if len(names) > 1 else ''}"
        listed = [one_line(f"{name}: {self._why[name]}" if name in self._why else name) for name in names[:MAX_LISTED]]
        if len(names) > MAX_LISTED:
            listed.append(f"and {len(names) - MAX_LISTED} more")
        lines = [
            f"Subject: {what} moved to queue/bad on {hostname}", "Auto-Submitted: auto-generated", "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", "",
            f"{what} cannot be delivered: the file in the queue is damaged, or it made this",
            "program fail. Nothing has been deleted, and nobody else has been told.", "",
            *[f"  {line}" for line in listed], "",
            f"The files are in {self._queue.bad}; the log says why each of them is there,",
            "and pysendmaild(8) how to send them again.", ""]
        return b"".join([
            trace.received(own, hostname, offset),
            b"From: Mail Delivery System <%s>\n" % trace.addr_spec(f"{trace.MAILER_DAEMON}@{hostname}"),
            b"To: Postmaster <%s>\n" % trace.addr_spec(self._postmaster),
            b"Date: %s\n" % trace.date(now, offset),
            b"Message-ID: <%s>\n" % message_id(found, hostname, now),
            raw("\n".join(lines))])
