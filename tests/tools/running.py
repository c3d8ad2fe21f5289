"""A real runner on a real spool, with a loop and a clock that the test sets, and agents that the test plays.

Loop time and the clock on the wall go together, until `skew` says that somebody has set the clock.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pysendmail.config import Config, LimitSettings, QueueSettings
from pysendmail.daemon.agents import BUSY, Job
from pysendmail.daemon.intake import Intake
from pysendmail.daemon.report import Reports
from pysendmail.daemon.runner import Runner
from pysendmail.deliver.request import Reply
from pysendmail.events import Events
from pysendmail.mail.outcome import Outcome, delivered
from pysendmail.mail.target import Target
from pysendmail.paths import Paths
from pysendmail.route.aliases import Aliases
from pysendmail.route.expand import Expander
from pysendmail.route.router import Hop, Router
from pysendmail.spool.dropbox import Submission
from pysendmail.spool.queue import Message, Queue
from pysendmail.spool.queue_id import Ids
from pysendmail.users import User
from tests.tools.loop import Loop

CONFIG = Config(hostname="host.example", domain="host.example", local_domains=("host.example",))
SENT = delivered("delivered to mailbox")


class Table:
    """alice, bob, carol and root; all of them are whoever runs the test."""

    def lookup(self, name: str) -> User | None:
        uid = 0 if name == "root" else os.geteuid()
        return User(name, uid, uid, f"/home/{name}", "/bin/sh") if name in ("alice", "bob", "carol", "root") else None

    def by_uid(self, uid: int) -> User | None:
        return User("alice", uid, uid, "/home/alice", "/bin/sh")


class NoRelays:
    """Mail for others stays where it is. shipped: (message id, address)."""

    has_store = False

    def __init__(self) -> None:
        self.shipped: list[tuple[str, str]] = []
        self.flushes = 0
        self.down: dict[str, float] = {}  # marks of destinations, and until when

    def ship(self, message: Message, numbers: list[int], returned: Callable[..., None]) -> None:
        for number in numbers:
            self.shipped.append((message.id, message.state.progress[number].target.address))

    def hop(self, target: Target) -> Hop:
        return Hop(target.address.rpartition("@")[2])

    def flush(self) -> None:
        self.flushes += 1

    def left_alone(self, of: str) -> float:
        return self.down.get(of, 0.0)


@dataclass
class Delivery:
    """One job that an agent has been given."""

    user: str
    job: Job
    is_slow: bool

    @property
    def queue_id(self) -> str:
        return self.job.request.queue_id

    @property
    def target(self) -> Target:
        return self.job.request.target

    def answer(self, outcome: Outcome = SENT, targets: tuple[Target, ...] = ()) -> None:
        n = self.job.request.n
        self.job.done(Reply(n, None, targets) if targets else Reply(n, outcome))

    def busy(self) -> None:
        self.job.done(Reply(self.job.request.n, BUSY))


class Agents:
    def __init__(self) -> None:
        self.given: list[Delivery] = []

    def deliver(self, user: str, job: Job, *, is_slow: bool = False) -> None:
        self.given.append(Delivery(user, job, is_slow))


class Running:
    """See above. load: of each processor. changes: of the [queue] settings."""

    def __init__(self, paths: Paths, *, limits: LimitSettings | None = None, **changes: Any) -> None:
        self.paths = paths
        self.config = replace(CONFIG, queue=QueueSettings(**changes), limits=limits or LimitSettings())
        self.loop = Loop()
        self.skew = self.load = 0.0
        self._epoch = time.time() - self.loop.now
        self.log: list[str] = []
        self.agents = Agents()
        self.relays = NoRelays()
        self.start()

    def clock(self) -> float:
        return self._epoch + self.loop.now + self.skew

    def start(self) -> None:
        """Start the runner; again: as after a crash."""
        loop: Any = self.loop
        self.events = Events(lambda _, text: self.log.append(text))
        router = Router(self.config)
        self.queue = Queue(self.paths, self.clock)
        expander = Expander(router, Aliases((self.paths.aliases,), router.is_local), Table())
        reports = Reports(self.config, self.queue, self.clock, router.qualify("postmaster"))
        agents, relays = self.agents, self.relays
        self.runner = Runner(loop, self.config, self.queue, expander, agents, relays, relays,  # type: ignore[arg-type]
                             reports, self.events, self.clock, lambda: 0.5, lambda: self.load)
        ids = Ids(0, self.clock, self.queue.taken_ids())
        self.intake = Intake(self.paths, self.queue, ids, Table(), self.config, router, self.events, self.clock,
                             self.runner.shares.is_used_up)
        self.runner.attach(self.intake)
        self.loop.run()

    def restart(self) -> None:
        """Forget everything that is not on the disk."""
        self.loop = Loop(self.loop.now)
        self.agents.given.clear()
        self.start()

    def submit(self, *recipients: str, sender: str = "alice@host.example",
               fields: tuple[tuple[bytes, bytes], ...] = ()) -> str:
        """A message in the drop, and the runner woken: its queue id."""
        asked = [(b"Recipient", b"- - " + one.encode()) for one in recipients]
        self.drop([(b"Sender", b"<%s>" % sender.encode()), *(fields or asked)])
        before = len(self.log)
        self.runner.wake()
        self.loop.run()
        return next(found[1] for line in self.log[before:] if (found := re.match(r"(\w{14}): from=", line)))

    def drop(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """A message in the drop."""
        submission = Submission(self.paths)
        submission.begin(fields)
        submission.write(b"Subject: test\n\nHello.\n")
        submission.commit()

    def deliveries(self) -> list[Delivery]:
        """What agents have been given since the last call."""
        self.loop.run()
        given, self.agents.given = self.agents.given, []
        return given

    def places(self) -> dict[str, str]:
        """Where each message of the queue lies: "new", "cur", "hold" or "bad", by its id."""
        return {name[:14]: place for place in ("new", "cur", "hold", "bad")
                for name in os.listdir(f"{self.paths.queue}/{place}")}

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]
