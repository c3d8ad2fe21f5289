"""Who may use how many connections to other hosts: lanes, slots and their fair sharing. No sockets, no processes.

A lane holds the shipments for one destination. Its slots are the connections that it has been given; its width is how
many it could use: one more with each message that goes well, once a conversation has broken one more in each round of
them, and fewer when conversations break. All lanes together have `most` slots. Lanes that have shipments but no slot
queue for one; while somebody queues, a lane gives one up after TURN answers, so that nobody with much mail keeps out
those with little. Lanes that have heard nothing for SILENT_AFTER do not count, so that slow hosts keep out nobody
either; OVERCOMMIT bounds what that can lead to.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job")

DEPTH = 8  # shipments with a relay for each slot: the next one is there when one is done
FIRST_WIDTH = 2  # of a destination of which nothing is known
TURN = 50  # answers
SILENT_AFTER = 30.0  # seconds
OVERCOMMIT = 5  # times `most`


@dataclass(slots=True, eq=False)
class Lane(Generic[Job]):
    """sent: shipments that are with a relay. moved: when it last had an answer, or its first shipment went out.

    turn: answers since somebody last had a slot of it. grown: good answers since its width changed. rough: broken
    conversations since one that was not. is_careful: one has broken. is_narrow: one shipment at a time, whatever its
    width (a probe).
    """

    name: str
    moved: float
    width: int
    waiting: deque[Job] = field(default_factory=deque)
    sent: int = 0
    slots: int = 0
    turn: int = 0
    grown: int = 0
    rough: int = 0
    is_careful: bool = False
    is_narrow: bool = False
    is_queued: bool = False
    is_silent: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.sent and not self.waiting

    @property
    def room(self) -> int:
        """How many more shipments may go out now."""
        return (1 if self.is_narrow else self.slots * DEPTH) - self.sent if self.slots else 0


class Lanes(Generic[Job]):
    """most: slots of all lanes. most_each: of one."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._lanes: dict[str, Lane[Job]] = {}
        self._queue: deque[Lane[Job]] = deque()
        self._counted = self._total = 0  # slots of lanes that are not silent, and of all

    def __iter__(self) -> Iterator[Lane[Job]]:
        return iter(list(self._lanes.values()))

    def __len__(self) -> int:
        return len(self._lanes)

    def lane(self, name: str, now: float) -> Lane[Job]:
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = Lane(name, now, min(FIRST_WIDTH, self._most_each))
        return found

    def find(self, name: str) -> Lane[Job] | None:
        return self._lanes.get(name)

    def provide(self, lane: Lane[Job]) -> None:
        """Give a lane as many slots as it can use and there are; without any it queues."""
        wanted = min(1 if lane.is_narrow else lane.width, len(lane.waiting) + lane.sent)
        if self._queue:
            wanted = lane.slots  # others have been waiting
        while lane.slots < wanted and self._has_slot():
            self._change(lane, 1)
        if not lane.slots and lane.waiting and not lane.is_queued:
            lane.is_queued = True
            self._queue.append(lane)

    def next_served(self) -> Lane[Job] | None:
        """The next lane of the queue, with a slot now; None = nobody queues, or there is no slot."""
        while self._queue and self._has_slot():
            lane = self._queue.popleft()
            lane.is_queued = False
            if lane.waiting and not lane.slots:
                self._change(lane, 1)
                return lane
        return None

    def answered(self, lane: Lane[Job], now: float) -> None:
        """One of its shipments is back."""
        lane.sent -= 1
        lane.moved = now
        lane.turn += 1
        if lane.is_silent:
            lane.is_silent = False
            self._counted += lane.slots
        if self._queue and lane.turn >= TURN and lane.slots:
            lane.turn = 0
            self._change(lane, -1)

    def widen(self, lane: Lane[Job]) -> None:
        """A conversation went well: another connection; once one has broken, after as many of those as there are
        connections."""
        lane.rough = 0
        lane.grown += 1
        if (not lane.is_careful or lane.grown >= lane.width) and lane.width < self._most_each:
            lane.width, lane.grown = lane.width + 1, 0

    def narrow(self, lane: Lane[Job]) -> None:
        """A conversation broke."""
        lane.rough += 1
        lane.is_careful = True
        lane.width, lane.grown = max(1, lane.width - 1), 0
        if lane.slots > lane.width:
            self._change(lane, -1)

    def grow_silent(self, lane: Lane[Job], now: float) -> None:
        """Stop counting the slots of a lane that hears nothing."""
        if lane.slots and not lane.is_silent and now - lane.moved > SILENT_AFTER:
            lane.is_silent = True
            self._counted -= lane.slots

    def remove(self, lane: Lane[Job]) -> None:
        """The lane has nothing to do any more."""
        self._change(lane, -lane.slots)
        if self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]

    def _has_slot(self) -> bool:
        return self._counted < self._most and self._total < self._most * OVERCOMMIT

    def _change(self, lane: Lane[Job], slots: int) -> None:
        lane.slots += slots
        self._total += slots
        if not lane.is_silent:
            self._counted += slots
