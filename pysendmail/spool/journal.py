"""What has happened to a queued message since it was accepted: events appended to queue/journal/ID.

Each line is CRC-32 (8 hex digits), a blank, one JSON object. The state of a message is a pure fold over these lines;
nothing is ever rewritten. A torn last line, and whatever follows a damaged one, is ignored, and cut off before the next
line is written: losing a done mark makes a duplicate after a power cut, never a loss. Verbs are in the past tense:

    expanded   recipient r became these targets          {"r": 0, "t": [[0, TARGET], [1, TARGET]]}
    forwarded  target n became these (a .forward)        {"n": 1, "t": [[2, TARGET]]}
    delivered  target n is done                          {"n": 0, "o": OUTCOME, "handed": "relayed"}
    failed     target n is done, in vain                 {"n": 0, "o": OUTCOME}
    deferred   targets ns wait                           {"n": [0, 2], "o": OUTCOME}
    tried      one more pass is over                     {"attempts": 3}
    planned    report k shall tell of targets ns         {"k": 1, "kind": "final", "n": [0]}
    reported   report k is in the queue                  {"k": 1}
    held       out of the schedule                       {"why": "by root"}
    released   back in the schedule                      {}

"planned" is written, and synced, before the report is queued under the id that queue_id.derived(id, k) gives. Whoever
finds a plan without its "reported" carries it out, unless that id is in the queue: a crash makes neither two nor none.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..mail.outcome import Outcome
from ..mail.target import Target
from .record import crc

MAX_LINE = 16 * 1024 * 1024  # bytes: one expansion of a very large list
VERBS = frozenset(("expanded", "forwarded", "delivered", "failed", "deferred", "tried", "planned", "reported", "held",
                   "released"))

_HEX = frozenset(b"0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Event:
    """One line. at: seconds since the epoch. data: JSON values as the module docstring shows."""

    verb: str
    at: float
    data: dict[str, Any]


def encode(event: Event) -> bytes:
    """One journal line, its LF included."""
    value = {"verb": event.verb, "at": round(event.at, 3), **event.data}
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (crc(text), text)


def decode(data: bytes) -> tuple[list[Event], int]:
    """(the events of all sound lines up to the first that is not, how many bytes these lines take).

    Raises ValueError for a sound line that is no event of ours, such as one of a newer version: what it says is not
    known, but it did happen, and must not be cut off.
    """
    events: list[Event] = []
    sound = 0
    for line in data.split(b"\n")[:-1]:
        text = line[9:]
        if len(line) < 10 or set(line[:8]) - _HEX or line[8:9] != b" " or int(line[:8], 16) != crc(text):
            break
        events.append(_event(text))
        sound += len(line) + 1
    return events, sound


def _event(text: bytes) -> Event:
    try:
        value = json.loads(text)
    except RecursionError as problem:
        raise ValueError("journal has a line that is nested too deeply") from problem
    verb, at = (value.pop("verb", None), value.pop("at", None)) if isinstance(value, dict) else (None, None)
    if not isinstance(verb, str) or verb not in VERBS or not isinstance(at, int | float):
        raise ValueError("journal has a line that this version does not know")
    return Event(verb, at, value)


@dataclass(slots=True)
class Progress:
    """One target of a message. outcome: of the last attempt, None = not tried yet. recipient: index in the envelope."""

    recipient: int
    target: Target
    outcome: Outcome | None = None
    is_replaced: bool = False  # its .forward's targets have taken its place
    handed: str = ""  # to a host that will report success itself, or to one that takes part in no reports
    is_reported: bool = False  # its final outcome is told, or needs no telling

    @property
    def is_open(self) -> bool:
        return not self.is_replaced and (self.outcome is None or self.outcome.is_deferred)


@dataclass(slots=True)
class State:
    """Where a message stands: the fold of its events. Mutable, and changed by `apply` alone."""

    progress: dict[int, Progress] = field(default_factory=dict)
    expanded: set[int] = field(default_factory=set)  # indexes of envelope recipients that have their targets
    attempts: int = 0
    reports: int = 0
    plan: tuple[int, str, tuple[int, ...]] | None = None  # (k, kind, ns) of a report that may not be queued yet
    is_warned: bool = False
    held: str = ""
    last: Outcome | None = None  # the last deferral, for mailq

    def apply(self, event: Event) -> None:
        """Take one event in. Raises ValueError, KeyError or TypeError for one that no writer of ours makes."""
        data = event.data
        match event.verb:
            case "expanded":
                self.expanded.add(data["r"])
                self._add(data["r"], data["t"])
            case "forwarded":
                parent = self.progress[data["n"]]
                parent.is_replaced = True
                self._add(parent.recipient, data["t"])
            case "delivered" | "failed":
                progress = self.progress[data["n"]]
                progress.outcome, progress.handed = Outcome.from_json(data["o"]), str(data.get("handed", ""))
            case "deferred":
                self.last = Outcome.from_json(data["o"])
                for number in data["n"]:
                    self.progress[number].outcome = self.last
            case "tried":
                self.attempts = data["attempts"]
            case "planned":
                self.reports = max(self.reports, data["k"])
                self.plan = (data["k"], data["kind"], tuple(data["n"]))
                if data["kind"] == "delayed":
                    self.is_warned = True
                else:
                    for number in data["n"]:
                        self.progress[number].is_reported = True
            case "reported":
                self.plan = None
            case "held":
                self.held = data["why"]
            case "released":
                self.held = ""

    def _add(self, recipient: int, targets: list[Any]) -> None:
        for number, value in targets:
            self.progress[number] = Progress(recipient, Target.from_json(value))

    def open_targets(self) -> list[tuple[int, Progress]]:
        return [(n, p) for n, p in self.progress.items() if p.is_open]

    def next_number(self) -> int:
        return len(self.progress)


def fold(events: Iterable[Event]) -> State:
    """The state that these events make. A journal whose lines are sound but make no sense raises ValueError."""
    state = State()
    try:
        for event in events:
            state.apply(event)
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"journal makes no sense: {problem!r}") from problem
    return state
