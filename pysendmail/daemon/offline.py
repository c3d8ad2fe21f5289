"""Changes to the queue while there is no runner: hold, release, delete, requeue, by whoever owns the spool.

The runner's lock is taken first and kept to the end, so that a runner which starts meanwhile waits for us, and we never
touch the queue of one that is at work. What a crash has left half taken in (its source is still in intake/) is refused:
only a start can say which of the two copies is the message. Returning and trying messages needs the daemon.
"""

import os
import time
from collections.abc import Iterable, Iterator

from filelock import FileLock, Timeout

from ..config import Config
from ..events import Events
from ..mail.outcome import one_line
from ..paths import Paths
from ..route.aliases import Aliases
from ..route.expand import Expander, Limits
from ..route.router import Router
from ..spool import queue_id
from ..spool.queue import Broken, Entry, Message, Queue
from ..spool.queue_file import needs_directory_sync
from ..spool.record import Damaged
from ..users import Users
from . import changes

VERBS = frozenset(("hold", "release", "delete", "requeue"))
LOCK_WITHIN = 5.0  # seconds


class Busy(Exception):
    """Somebody else has the spool."""


class Offline:
    """A spool without its runner: a changes.Owner."""

    def __init__(self, paths: Paths, config: Config, users: Users, events: Events) -> None:
        self.queue = Queue(paths, time.time, sync_directories=needs_directory_sync(paths.queue))
        self.events = events
        self._paths, self._config, self._users = paths, config, users
        self._entries: dict[str, Entry] = {}
        self._expander: Expander | None = None

    @property
    def expander(self) -> Expander:
        """Made when it is needed first: reading aliases is work, and may find fault."""
        if self._expander is None:
            config, router = self._config, Router(self._config)
            aliases = Aliases(config.local.aliases or (self._paths.aliases,), router.is_local)
            limits = Limits(config.limits.alias_depth, config.limits.alias_results)
            self._expander = Expander(router, aliases, self._users, limits, self.events.warned)
        return self._expander

    def changed(self, entry: Entry) -> None:
        """Nobody keeps a listing of it."""

    def gone(self, message: Message) -> None:
        self._entries.pop(message.id, None)

    def make_ready(self, queue_ids: list[str]) -> None:
        for one in queue_ids:
            self.queue.bring_forward(self._entries[one], time.time())

    def resume(self, message: Message) -> None:
        raise ValueError("only the daemon can work on messages")

    def change(self, verb: str, queue_ids: Iterable[str], why: str) -> Iterator[tuple[str, str]]:
        """Carry it out for each: (id, "" or why not). Raises Busy."""
        lock = FileLock(self._paths.lock)
        try:
            lock.acquire(timeout=LOCK_WITHIN)
        except Timeout as taken:
            raise Busy("another change is at work in this spool, or a daemon that does not answer") from taken
        with lock:
            self._entries = {entry.id: entry for entry in self.queue.entries()}
            half_taken = {queue_id.id_of(name) for name in os.listdir(self._paths.intake)}
            for one in queue_ids:
                entry = self._entries.get(one)
                if entry is None or one in half_taken:
                    yield one, "is not taken into the queue yet; that needs the daemon"
                else:
                    yield one, self._one(verb, entry, why)

    def _one(self, verb: str, entry: Entry, why: str) -> str:
        try:
            if verb == "hold":
                changes.hold(self, entry, one_line(why) or changes.BY_ADMINISTRATOR)
            else:
                changes.CHANGES[verb](self, entry)
        except (OSError, Broken, Damaged, ValueError) as trouble:
            return str(trouble)
        return ""
