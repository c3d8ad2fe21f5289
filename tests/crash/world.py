"""A host on the model file system: the real submitter, intake, queue, runner and agent, one process, its own clock.

Only what is not about files is replaced: the event loop (time passes when nothing else is to be done), the sockets to the
agents (a call), the user database. So every change of a file that a message causes on its way from `sendmail` to the
mailboxes is a call of the model, at which a crash can be tried.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any
from unittest import mock

from pysendmail.config import Config
from pysendmail.daemon import intake as intake_module
from pysendmail.daemon import report as report_module
from pysendmail.daemon.agents import Job
from pysendmail.daemon.intake import Intake
from pysendmail.daemon.report import Reports
from pysendmail.daemon.runner import Runner
from pysendmail.deliver import agent, locks, maildir, mbox, mbox_open, mboxrd, parcel
from pysendmail.deliver.request import Reply
from pysendmail.events import Events
from pysendmail.mail.outcome import Outcome, deferred, failed
from pysendmail.mail.target import KNOWN, MAILBOX, Target
from pysendmail.paths import Paths
from pysendmail.route.router import Router
from pysendmail.spool import dropbox, durable, queue
from pysendmail.spool.queue import DIRECTORIES, Queue
from pysendmail.spool.queue_id import Ids
from pysendmail.users import User
from tests.crash.model import Locks, Model, Reader, Snapshot

PATHS = Paths("")
CONFIG = Config(hostname="host.example", domain="host.example")
USERS = {name: User(name, uid, uid, f"/home/{name}", "/bin/sh") for name, uid in (
    ("alice", 1000), ("bob", 1000), ("carol", 1000), ("root", 0))}
STEPS = 50_000  # of the loop, before a queue counts as one that never comes to rest
WITHIN = 6 * 86400.0  # seconds of the host's own time

_MODULES = (durable, queue, dropbox, intake_module, report_module, agent, locks, maildir, mbox, mbox_open,
            mboxrd, parcel)


class Loop:
    """Calls what is due, in order; its time is the model's."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._calls: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._model.now

    def call_soon(self, call: Callable[..., object], *args: Any) -> "Timer":
        return self.call_later(0.0, call, *args)

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> "Timer":
        timer = Timer(lambda: call(*args))
        heappush(self._calls, (self._model.now + max(0.0, delay), next(self._numbers), timer))
        return timer

    def step(self) -> None:
        at, _, timer = heappop(self._calls)
        if not timer.is_cancelled:
            self._model.now = max(self._model.now, at)
            timer.call()


@dataclass
class Timer:
    """What call_later gives back."""

    call: Callable[[], object]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Agents:
    """Delivers at once, as an agent of that user would. is_away(user): whether his mailbox cannot be had now."""

    def __init__(self, loop: Loop, model: Model, is_away: Callable[[str], bool], kind: str) -> None:
        self._loop, self._model, self._is_away, self._kind = loop, model, is_away, kind

    def deliver(self, user: str, job: Job) -> None:
        self._loop.call_soon(self._deliver, user, job)

    def _deliver(self, user: str, job: Job) -> None:
        settings = agent.Settings(
            kind=self._kind, mail_dir=PATHS.mail, mailbox_group=None, hostname="host.example", use_forward=False,
            require_shell=False, mailbox_size=0, command="", command_user="", command_time=1.0, aliases=(),
            own_domains=frozenset(), lock_wait=0.0)
        try:
            fd = job.open_file()
        except OSError as trouble:
            job.done(Reply(job.request.n, deferred("4.3.0", f"cannot open the message: {trouble.strerror}")))
            return
        if self._is_away(user):
            reply = Reply(job.request.n, deferred("4.2.0", "mailbox is away"))
        else:
            reply, = agent.Agent(USERS[user], settings).deliver([agent.Job(job.request, fd)])
        try:
            self._model.close(fd)
        except OSError:
            pass  # a real agent's descriptor is its own
        job.done(reply)


class Expander:
    """Every user is himself; nobody else is anybody."""

    def expand(self, address: str, *, seen: object = None) -> list[Target]:
        name = address.partition("@")[0]
        if name in USERS:
            return [Target(MAILBOX, address, user=name)]
        return [Target(KNOWN, address, outcome=failed("5.1.1", "no such user"))]


class Users:
    def lookup(self, name: str) -> User | None:
        return USERS.get(name)

    def by_uid(self, uid: int) -> User | None:
        return next((user for user in USERS.values() if user.uid == uid), None)


@dataclass
class World:
    """The host. promised: which messages were acknowledged; away: until when whose mailbox is away."""

    model: Model
    kind: str = "mbox"
    sync_directories: bool = False
    away: dict[str, float] = field(default_factory=dict)
    promised: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def restarted(self, snapshot: Snapshot) -> "World":
        return World(self.model.restart_from(snapshot), self.kind, self.sync_directories, self.away, list(self.promised))

    @contextmanager
    def running(self) -> Iterator[None]:
        """The code under test works on this world's model."""
        model = self.model
        with contextmanager_stack(
                *(mock.patch.object(module, "os", model) for module in _MODULES if hasattr(module, "os")),
                mock.patch.object(durable, "fcntl", Locks(model)), mock.patch.object(locks, "fcntl", Locks(model)),
                mock.patch.object(queue, "open", lambda path, mode: Reader(model, path), create=True)):
            yield

    def submit(self, mark: str, *recipients: str, sender: str = "bob", size: int = 300) -> None:
        """What `sendmail` does; `promised` has the mark when it ends with 0. Raises dropbox.Refused."""
        with self.running():
            submission = dropbox.Submission(PATHS)
            try:
                submission.begin([(b"Sender", b"<%s>" % sender.encode()),
                                  *((b"Recipient", b"- - " + one.encode()) for one in recipients)])
                for piece in pieces(mark, size):
                    submission.write(piece)
                submission.commit()
            except BaseException:
                submission.give_up()
                raise
            self.promised.append(mark)

    def run(self, within: float = WITHIN) -> None:
        """Start the daemon and let it work until nothing is left to do."""
        with self.running():
            loop = Loop(self.model)
            runner = self.start(loop)
            end = self.model.now + within
            for _ in range(STEPS):
                if self.is_at_rest(runner) or self.model.now > end:
                    break
                loop.step()
            else:
                raise AssertionError(f"it does not come to rest: {self.names()}")
            self.model.close_all()

    def start(self, loop: Loop) -> Runner:
        clock = lambda: self.model.now  # noqa: E731
        router = Router(CONFIG)
        events = Events(lambda priority, text: self.log.append(text))
        spool = Queue(PATHS, clock, sync_directories=self.sync_directories)
        local = Agents(loop, self.model, lambda user: self.model.now < self.away.get(user, 0.0), self.kind)
        reports = Reports(CONFIG, spool, clock, "root@host.example")
        runner = Runner(loop, CONFIG, spool, Expander(), local, reports, events, clock, lambda: 0.5)  # type: ignore[arg-type]
        ids = Ids(0, clock, spool.taken_ids())
        runner.attach(Intake(PATHS, spool, ids, Users(), CONFIG, router, events, clock, runner.shares.is_used_up))
        return runner

    def is_at_rest(self, runner: Runner) -> bool:
        if runner.active or runner.waiting.entries:
            return False
        return not any(self.model._inode(path).entries for path in (PATHS.drop_new, PATHS.intake, *(
            f"{PATHS.queue}/{name}" for name in ("new", "cur", "hold"))))

    # ---- looking at it

    def names(self) -> list[str]:
        return [path for path, _, mode, _, _ in self.model.after_kill() if mode & 0o100000]

    def boxes(self) -> dict[str, list[bytes]]:
        """The messages that everybody has. Raises AssertionError if a mailbox is anything but whole messages."""
        found: dict[str, list[bytes]] = {}
        for path, content, mode, _, _ in self.model.after_kill():
            if not mode & 0o100000:
                continue
            if path.startswith(f"{PATHS.mail}/") and not path.endswith(".lock"):
                found[path.rpartition("/")[2]] = messages_of_mbox(content)
            elif path.startswith("/home/") and "/Maildir/tmp/" not in path:
                found.setdefault(path.split("/")[2], []).append(content)
        for messages in found.values():
            for message in messages:
                check_whole(message)
        return found

    def count(self, user: str, mark: str) -> int:
        """How often a user has a message; reports about it do not count."""
        wanted = f"\nSubject: {mark}\n".encode()
        return sum(wanted in message.partition(b"\n\n")[0] for message in self.boxes().get(user, []))

    def count_reports(self, user: str, mark: str) -> int:
        wanted = f"\nSubject: {mark}\n".encode()
        return sum(b"multipart/report" in message and wanted in message for message in self.boxes().get(user, []))


@contextmanager
def contextmanager_stack(*managers: Any) -> Iterator[None]:
    """All of them, first to last."""
    if not managers:
        yield
        return
    with managers[0], contextmanager_stack(*managers[1:]):
        yield


def new_world(*, covers_names: bool = True, orders_growth: bool = False, sync_directories: bool = False,
              kind: str = "mbox") -> World:
    """An installed system with nothing in it."""
    model = Model(covers_names=covers_names, orders_growth=orders_growth)
    # Where the sync of a file does not cover its name, submitters must be able to open the directory.
    drop = 0o3777 if sync_directories else 0o3733
    for path, mode in ((PATHS.drop_tmp, drop), (PATHS.drop_new, drop), (PATHS.intake, 0o700), (PATHS.quarantine, 0o700),
                       *((f"{PATHS.queue}/{name}", 0o700) for name in DIRECTORIES), (PATHS.mail, 0o3777)):
        model.make(path, mode=mode)
    for user in USERS.values():
        model.make(user.home)
        if kind == "maildir":
            for name in ("tmp", "new", "cur"):
                model.make(f"{user.home}/Maildir/{name}", mode=0o700)
    return World(model, kind, sync_directories)


def pieces(mark: str, size: int) -> Iterator[bytes]:
    yield f"Subject: {mark}\nTo: somebody\n\nBEGIN {mark}\n".encode()
    line = b"From here on every line looks like the last one.\n"
    for _ in range(size // len(line)):
        yield line
    yield f"END {mark}\n".encode()


def messages_of_mbox(content: bytes) -> list[bytes]:
    """The messages, without From_ lines. Raises AssertionError for what is none."""
    if not content:
        return []
    parts = re.split(rb"(?:\A|(?<=\n\n))From \S+ [^\n]*\n", content)
    assert parts[0] == b"", f"a mailbox begins with {content[:60]!r}"
    return parts[1:]


def check_whole(message: bytes) -> None:
    """Raises AssertionError if it is half a message."""
    assert b"\0" not in message, f"zeros in a mailbox: {message[:300]!r}"
    assert message.startswith(b"Return-Path: "), f"not a message: {message[:100]!r}"
    if b"multipart/report" in message:
        boundary = re.search(rb'boundary="([^"]+)"', message)
        assert boundary, message
        assert b"\n--%s--\n" % boundary[1] in message, f"half a report: {message[-100:]!r}"
        return
    found = re.search(rb"^Subject: ([^\n]*)\n", message, re.MULTILINE)
    assert found, f"half a header: {message!r}"
    assert re.search(rb"\n\nBEGIN %s\n.*\nEND %s\n+\Z" % (found[1], found[1]), message, re.DOTALL), (
        f"half a message: {message[-200:]!r}")
    assert message.count(b"\nBEGIN ") == 1, f"two messages in one: {message!r}"


def away(reason: str = "mailbox is away") -> Outcome:
    return deferred("4.2.0", reason)
