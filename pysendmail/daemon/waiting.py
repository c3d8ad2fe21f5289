"""What is in the queue and not in work: for how long it waits, and whose it is.

Entries only, a few hundred bytes each, so that 100,000 messages may wait; the messages stay on disk. A heap has the due
times; an entry whose due time has changed since is recognised by that and passed over. Shares count what each submitter
has in the queue, in work or waiting.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from ..spool.queue import Entry

HELD = "hold"  # the place of messages that are out of the schedule


class Waiting:
    """Entries by id, the time of the next one, and those whose time has come."""

    def __init__(self, left: Callable[[str], None] = lambda _: None) -> None:
        """left: hears the id of each entry that is removed."""
        self.entries: dict[str, Entry] = {}
        self._by_destination: dict[str, set[str]] = {}
        self._due: list[tuple[int, str]] = []
        self._ready: deque[str] = deque()
        self._left = left

    def __contains__(self, queue_id: str) -> bool:
        return queue_id in self.entries

    def put(self, entry: Entry, due: float) -> None:
        """Keep an entry until `due`, seconds since the epoch; a held one until it is released."""
        entry.due = int(due)
        self.entries[entry.id] = entry
        if entry.destination:
            self._by_destination.setdefault(entry.destination, set()).add(entry.id)
        if entry.place != HELD:
            heappush(self._due, (entry.due, entry.id))

    def remove(self, queue_id: str) -> None:
        """No longer here: it is in work, or gone."""
        entry = self.entries.pop(queue_id, None)
        if entry is not None:
            self._left(queue_id)
        if entry is not None and entry.destination in self._by_destination:
            ids = self._by_destination[entry.destination]
            ids.discard(queue_id)
            if not ids:
                del self._by_destination[entry.destination]

    def waiting_for(self, destination: str) -> list[str]:
        """Ids of messages that wait for the destination with this mark, oldest first."""
        return sorted(self._by_destination.get(destination, ()))

    def make_ready(self, queue_ids: Iterable[str], now: float) -> None:
        """These are due now, whatever their time was."""
        for queue_id in queue_ids:
            entry = self.entries.get(queue_id)
            if entry is not None and entry.place != HELD:
                entry.due = int(now)
                self._ready.append(queue_id)

    def next_ready(self, now: float) -> Entry | None:
        """An entry whose time has come; it stays here until it is removed."""
        while self._due and self._due[0][0] <= now:
            due, queue_id = heappop(self._due)
            entry = self.entries.get(queue_id)
            if entry is not None and entry.due == due and entry.place != HELD:
                self._ready.append(queue_id)
        while self._ready:
            entry = self.entries.get(self._ready.popleft())
            if entry is not None and entry.place != HELD:
                return entry
        return None

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def pause(self, now: float, most: float) -> float:
        """Seconds until the next entry is due, at most `most`."""
        return min(max(0.0, self._due[0][0] - now), most) if self._due else most


class Shares:
    """How much of the queue each submitter takes. A uid of -1 is nobody on this host and has no share."""

    def __init__(self, most_files: int, most_bytes: int) -> None:
        self._most_files, self._most_bytes = most_files, most_bytes
        self._files: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def add(self, uid: int, length: int) -> None:
        """A message has come. length: bytes, 0 if it is not known (found at the start)."""
        self._files[uid] += 1
        self._bytes[uid] += length

    def resize(self, uid: int, by: int) -> None:
        """A message has become so many bytes longer."""
        if uid in self._files:
            self._bytes[uid] = max(0, self._bytes[uid] + by)

    def remove(self, uid: int, length: int) -> None:
        """A message has left."""
        self._files[uid] -= 1
        self._bytes[uid] = max(0, self._bytes[uid] - length)
        if self._files[uid] <= 0:
            del self._files[uid], self._bytes[uid]

    def is_used_up(self, uid: int) -> bool:
        return self._files[uid] >= self._most_files or self._bytes[uid] >= self._most_bytes
