"""Why mail for an address goes where it goes: every alias, list and .forward on the way, and the places at its end.

Nothing is sent, and nothing is changed. The answer is made of the code that routes mail, with the rights that it has
then: for root each part runs in a child that is the queue's owner, or the user whose .forward is read, so that a file
only root can read does not make the answer wrong, and root parses nothing that a user wrote. Anybody else gets the
answer as far as their own rights reach, and is told where they end.
"""

import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..config import Config
from ..deliver import forward, identity
from ..mail.outcome import Outcome
from ..mail.target import COMMAND, FILE, KNOWN, MAILBOX, Target
from ..paths import Paths
from ..route.aliases import Aliases
from ..route.expand import Expander, Limits, Step
from ..route.router import Router
from ..users import LookupTrouble, User, Users
from .ask import Unanswered

EX_OK, EX_NOUSER, EX_UNAVAILABLE, EX_TEMPFAIL = 0, 67, 69, 75
WITHIN = 30.0  # seconds for one part: a home may lie on a server that is away
MAX_ANSWER = 64 * 1024 * 1024  # bytes from one child
MAX_PLACES = 100_000  # targets looked into
CHUNK = 64 * 1024  # bytes read at once


class Place(NamedTuple):
    """An end of the way. words: what it is, for people. code: what `sendmail -bv` exits with for it."""

    target: Target
    words: str
    code: int


@dataclass(slots=True)
class Explanation:
    """The steps in the order in which they were taken, and the places."""

    address: str
    steps: list[Step] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    @property
    def code(self) -> int:
        """The worst of the places' codes: temporary trouble comes before a failure, as the answer is not known."""
        codes = [place.code for place in self.places]
        return EX_TEMPFAIL if EX_TEMPFAIL in codes else max(codes, default=EX_OK)


class Explainer:
    """Explains addresses under the given settings."""

    def __init__(self, paths: Paths, config: Config, users: Users) -> None:
        self._paths, self._config, self._users = paths, config, users
        self._router = Router(config)
        self._owner = owner_of(paths.queue) if os.geteuid() == 0 else None

    def explain(self, address: str) -> Explanation:
        """Where mail for this address goes. Raises Unanswered if a part of the answer cannot be had."""
        found = Explanation(address)
        memory: list[Any] = []
        waiting = self._expanded(found, memory, lambda expander, seen, tell: expander.expand(
            address, seen=seen, tell=tell))
        for count, target in enumerate(waiting):  # grows while it is read
            if count >= MAX_PLACES:
                raise Unanswered(f"more than {MAX_PLACES} places")
            more = self._forwarded(found, memory, target) if target.kind == MAILBOX else None
            if more is None:
                found.places.append(self._place(target))
            else:
                waiting += more
        return found

    # ---- aliases and lists

    def _expanded(self, found: Explanation, memory: list[Any], work: Callable[..., list[Target]]) -> list[Target]:
        """The targets that `work` makes with an expander. memory: what the message has met so far, as JSON."""
        def expand() -> dict[str, Any]:
            config, steps = self._config, list[Step]()
            aliases = Aliases(config.local.aliases or (self._paths.aliases,), self._router.is_local)
            limits = Limits(config.limits.alias_depth, config.limits.alias_results)
            seen = {tuple(key) for key in memory}
            targets = work(Expander(self._router, aliases, self._users, limits), seen, steps.append)
            return {"targets": [target.to_json() for target in targets], "steps": steps, "seen": sorted(seen)}

        answer = as_user(self._owner, expand)
        memory[:] = answer["seen"]
        found.steps += [Step(*step) for step in answer["steps"]]
        return [Target.from_json(value) for value in answer["targets"]]

    # ---- .forward

    def _forwarded(self, found: Explanation, memory: list[Any], target: Target) -> list[Target] | None:
        """What the user's .forward makes of a mailbox; None = the mail stays there."""
        if not target.use_forward or not self._config.local.forward:
            return None
        depth = target.via.count(":") + 1

        def tell(words: str) -> None:
            found.steps.append(Step(depth, target.address, "forward", words))

        try:
            user = self._users.lookup(target.user)
        except LookupTrouble as trouble:
            tell(f"cannot look up {target.user}: {trouble}")
            return None
        if user is None or user.uid == 0:
            return None
        if os.geteuid() not in (0, user.uid):
            tell(f"only root and {user.name} can say whether there is one")
            return None
        answer = as_user(user, lambda: _read(user, target, self._config))
        for note in answer["notes"]:
            tell(note)
        path, verdict = answer["path"], answer["verdict"]
        if verdict == forward.DEFERRED:
            tell(f"{path or user.home}: mail waits")
            return [Target(KNOWN, target.address, user=target.user, outcome=Outcome.from_json(answer["outcome"]))]
        if verdict != forward.TARGETS:
            tell(f"{path} is not used" if path else "none that counts" if answer["notes"] else "none")
            return None
        targets = [Target.from_json(value) for value in answer["targets"]]
        tell(f"{path}: {len(targets)} value{'' if len(targets) == 1 else 's'}")
        return self._expanded(found, memory, lambda expander, seen, tell: expander.forwarded(
            target, targets, seen=seen, tell=tell))

    # ---- places

    def _place(self, target: Target) -> Place:
        if target.kind == MAILBOX:
            return Place(target, self._mailbox(target), EX_OK)
        if target.kind in (COMMAND, FILE):
            who = self._config.local.command_user if target.source else target.user
            return Place(target, f"{target.words} as {who}", EX_OK)
        if target.outcome is not None:
            return Place(target, f"{target.address}: {target.outcome.status} {target.outcome.reason}",
                         _code(target.outcome))
        hop = self._router.hop(target.address)
        return Place(target, f"{target.address} by {', '.join(hop.hosts) or f'the mail hosts of {hop.domain}'}", EX_OK)

    def _mailbox(self, target: Target) -> str:
        local, name = self._config.local, target.user
        if name != "root" and local.command:
            return f"{local.command} as {name}"
        if local.mailbox.startswith("lmtp:"):
            return f"{name} by {local.mailbox}"
        if local.mailbox == "maildir" and name != "root":
            return f"~{name}/Maildir"
        return f"{local.mail_dir or self._paths.mail}/{name}"


def _code(outcome: Outcome) -> int:
    """What sendmail exits with for an outcome that is known before anything is sent."""
    if outcome.is_delivered:
        return EX_OK
    if outcome.is_deferred:
        return EX_TEMPFAIL
    return EX_NOUSER if outcome.status == "5.1.1" else EX_UNAVAILABLE


def _read(user: User, target: Target, config: Config) -> dict[str, Any]:
    """What a user's .forward says, worked out as that user."""
    limits = config.limits
    found = forward.read(user, target.detail, config.hostname, limits.forward_size, limits.forward_entries)
    targets = list(forward.targets(found, target))
    refusal = forward.shell_refusal(user) if config.local.require_shell else None
    notes = list(found.notes)
    if refusal is not None:
        notes += [f"{one.words}: {refusal.reason}" for one in targets if one.kind in (COMMAND, FILE)]
    return {"verdict": found.verdict, "path": found.path, "notes": notes,
            "targets": [one.to_json() for one in targets], "outcome": found.outcome and found.outcome.to_json()}


def as_json(found: Explanation) -> dict[str, Any]:
    """The explanation as one object: an interface, like all --json."""
    def place(one: Place) -> dict[str, Any]:
        target = one.target
        plain: dict[str, Any] = {"kind": target.kind, "address": target.address, "words": one.words,
                                 "user": target.user}
        if target.sender is not None:
            plain["sender"] = target.sender
        if target.outcome is not None:
            plain |= {"status": target.outcome.status, "reason": target.outcome.reason}
        return plain
    return {"address": found.address, "code": found.code, "steps": [step._asdict() for step in found.steps],
            "places": [place(one) for one in found.places]}


# ---- as somebody else


def owner_of(path: str) -> User | None:
    """Whoever a directory belongs to, if that is not root."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return User("_pysendmail", seen.st_uid, seen.st_gid, "/", "") if seen.st_uid else None


def as_user(user: User | None, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns when this user does it; None, or we are not root: ourselves. Raises Unanswered."""
    if user is None or os.geteuid() != 0:
        return work()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(user, work, writing)
    os.close(writing)
    try:
        answer = json.loads(_received(reading))
    except (ValueError, TimeoutError):
        raise Unanswered(f"nobody could look at the files of {user.name}")
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert isinstance(answer, dict)
    return answer


def _child(user: User, work: Callable[[], dict[str, Any]], writing: int) -> None:
    """Become the user, work, say the result, end. Never returns."""
    try:
        identity.clean({writing})
        identity.become(user)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(work()).encode("ascii"))
    finally:
        os._exit(0)  # whatever happened: the code above us is the parent's


def _received(reading: int) -> bytes:
    """All that comes until the child closes its end. Raises TimeoutError."""
    parts: list[bytes] = []
    length = 0
    while True:
        if not select.select([reading], [], [], WITHIN)[0]:
            raise TimeoutError
        part = os.read(reading, CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)
        length += len(part)
        if length > MAX_ANSWER:
            raise ValueError("too much")
