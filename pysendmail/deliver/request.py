"""What goes between runner, spawner and agents: one JSON object a packet, over SOCK_SEQPACKET pairs made before the
fork.

runner -> spawner   {"agent": "alice", "n": 7}          I need an agent for this user
                    {"ready": true}, {"beat": true}      signs of life for the service manager
                    {"reload": true}                     the mail name has changed
                    {"relay": true, "n": 8}              I need a relay; "scan": a scanner. The answer says which, too
                    {"end": PID}                         this process is stuck
spawner -> runner   {"n": 7, "pid": 4711} + a socket     here it is
                    {"n": 7, "error": OUTCOME}           why not, always 4.x.x
runner -> agent     Request + a read-only descriptor of the message, opened for this request alone
agent -> runner     Reply: an outcome, or the targets of the user's .forward; with n = REFUSED it is for everything that
                    waits for this user: "no such user" is 5.1.1, a trouble of the user database 4.x.x

No path, no command and no message text is in any of them: the agent looks up its own mailbox, its own .forward, and
finds a command by its digest. Every reader treats the other end as hostile: sizes are capped, types are checked, and
what does not fit raises ValueError.
"""

from dataclasses import dataclass
from typing import Any, Self

from ..mail.outcome import Outcome
from ..mail.target import Target
from .packet import decode, encode

MAX_TARGETS = 10_000  # of one .forward: what [limits] forward_entries may be
REFUSED = 0  # n of the Reply to all requests: there is no such user, say


@dataclass(frozen=True, slots=True)
class Request:
    """One delivery. n: chosen by the runner, comes back in the Reply. offset, length: of the text in the file, bytes.

    sender: for Return-Path and the From_ line ("" = null). original: the envelope recipient. now: seconds
    since the epoch, for the From_ line.
    """

    n: int
    queue_id: str
    offset: int
    length: int
    sender: str
    original: str
    target: Target
    now: float

    def to_packet(self) -> bytes:
        return encode({"n": self.n, "id": self.queue_id, "offset": self.offset, "length": self.length,
                       "sender": self.sender, "original": self.original, "target": self.target.to_json(),
                       "now": self.now})

    @classmethod
    def from_packet(cls, packet: bytes) -> Self:
        value = decode(packet)
        get = value.get
        n, queue_id, offset, length = get("n"), get("id"), get("offset"), get("length")
        sender, original, now = get("sender"), get("original"), get("now")
        if not (isinstance(n, int) and isinstance(offset, int) and isinstance(length, int) and 0 <= offset <= length
                and isinstance(queue_id, str) and isinstance(sender, str) and isinstance(original, str)
                and isinstance(now, float) and queue_id.isalnum()):
            raise ValueError("not a request")
        return cls(n, queue_id, offset, length, sender, original, Target.from_json(get("target")), now)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of request n. targets: those of a .forward, instead of an outcome. notes: lines for the log; a reply
    with nothing else is no answer yet."""

    n: int
    outcome: Outcome | None = None
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()

    def to_packet(self) -> bytes:
        value: dict[str, Any] = {"n": self.n}
        if self.outcome is not None:
            value["outcome"] = self.outcome.to_json()
        if self.targets:
            value["targets"] = [target.to_json() for target in self.targets]
        if self.notes:
            value["notes"] = list(self.notes)
        return encode(value)

    @property
    def is_answer(self) -> bool:
        return self.outcome is not None or bool(self.targets)

    @classmethod
    def from_packet(cls, packet: bytes) -> Self:
        value = decode(packet)
        n, targets, notes = value.get("n"), value.get("targets", []), value.get("notes", [])
        if not isinstance(n, int) or not isinstance(targets, list) or len(targets) > MAX_TARGETS:
            raise ValueError("not a reply")
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError("not a reply")
        outcome = Outcome.from_json(value["outcome"]) if "outcome" in value else None
        if outcome is not None and targets:
            raise ValueError("a reply has an outcome or targets")
        return cls(n, outcome, tuple(map(Target.from_json, targets)), tuple(notes[:20]))
