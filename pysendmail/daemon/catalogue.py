"""What there is to see of waiting messages, kept ready for whoever asks: the lines that the control socket sends.

100,000 messages are to be listed in two seconds, and opening each of their files would take fifteen. So the line of a
message is made when it is put off, while its state is in memory, and kept until it leaves. After a restart nothing is
known: a line is then made from the files when somebody asks, and `warm` makes the others, a few at a time.

A line leaves out what the entry itself says (place, due time), so that it holds as long as the message waits; whoever
changes anything else in a message that waits (changes.py) must `forget` its line. The bytes of all
lines are bounded: what does not fit is read from its file each time. Listings are values of spool/listing.py.
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping

from ..spool import listing
from ..spool.listing import Item
from ..spool.queue import Broken, Entry, Message, Queue
from ..spool.record import Damaged

MAX_LINE = 4096  # bytes: a message with many recipients is worth opening its file
MAX_BYTES = 96 * 1024 * 1024  # bytes of all lines


class Catalogue:
    """Lines by queue id."""

    def __init__(self, queue: Queue, lifetime_of: listing.Lifetimes) -> None:
        self._queue = queue
        self._lifetime_of = lifetime_of
        self._lines: dict[str, bytes] = {}
        self._size = 0
        self._unknown: deque[str] = deque()

    def keep(self, message: Message) -> None:
        """A message is put off: its listing is known."""
        self._keep(message.id, _encode(listing.describe(message, self._lifetime_of)))

    def _keep(self, queue_id: str, line: bytes) -> None:
        self.forget(queue_id)
        if len(line) <= MAX_LINE and self._size + len(line) <= MAX_BYTES:
            self._lines[queue_id] = line
            self._size += len(line)

    def forget(self, queue_id: str) -> None:
        """A message has left, or has changed."""
        line = self._lines.pop(queue_id, None)
        if line is not None:
            self._size -= len(line)

    def line(self, entry: Entry) -> bytes:
        """{"item": ...} as JSON with its LF. Raises OSError, Broken, Damaged or ValueError, if it has to be read and
        cannot be."""
        line = self._lines.get(entry.id)
        if line is None:
            line = _encode(listing.describe(listing.peek(self._queue, entry), self._lifetime_of))
            self._keep(entry.id, line)
        due = b"null" if entry.place == "hold" else b"%d" % entry.due
        return b'{"item":{"where":"%s","next_try":%s,%s' % (entry.place.encode("ascii"), due, line)

    def expect(self, queue_ids: Iterable[str]) -> None:
        """These are in the queue, and nothing is known of them yet."""
        self._unknown.extend(queue_ids)

    def warm(self, entries: Mapping[str, Entry], most: int) -> bool:
        """Read at most so many of those that were expected. entries: what waits. False: all are known."""
        while self._unknown and most > 0:
            entry = entries.get(self._unknown.popleft())
            if entry is None or entry.id in self._lines:
                continue
            most -= 1
            try:
                self.line(entry)
            except (OSError, Broken, Damaged, ValueError):
                continue  # the next attempt says what is wrong with it
        return bool(self._unknown) and self._size < MAX_BYTES


def item_of(line: bytes) -> Item:
    """The listing in a line."""
    found: Item = json.loads(line)["item"]
    return found


def line_of(item: Item) -> bytes:
    """A line that nobody keeps."""
    return json.dumps({"item": item}, separators=(",", ":")).encode("ascii") + b"\n"


def _encode(item: Item) -> bytes:
    """All of a line behind what the entry says."""
    del item["where"], item["next_try"]
    return json.dumps(item, separators=(",", ":")).encode("ascii")[1:] + b"}\n"
