"""A host on the model file system: the real submitter, intake, queue, runner and agent, one process, its own clock.

Only what is not about files is replaced: the event loop (time passes when nothing else is to be done), the sockets to
the agents (a call), the user database. So every change of a file that a message causes on its way from `sendmail` to
the mailboxes is a call of the model, at which a crash can be tried.
"""

import asyncio
import itertools
import os
import posix
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pysendmail.config import Config
from pysendmail.daemon import doors, inbox
from pysendmail.daemon.adoption import Adoption
from pysendmail.daemon.agents import Job
from pysendmail.daemon.intake import Intake
from pysendmail.daemon.outgoing import Outgoing
from pysendmail.daemon.report import Reports
from pysendmail.daemon.runner import Runner
from pysendmail.daemon.scanning import Scanning
from pysendmail.daemon.verdict import Verdict
from pysendmail.deliver import agent, locks
from pysendmail.deliver.request import Reply
from pysendmail.events import Events
from pysendmail.mail import trace
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import deferred, failed
from pysendmail.mail.target import KNOWN, MAILBOX, Target
from pysendmail.paths import Paths
from pysendmail.route.router import Router
from pysendmail.spool import dropbox, durable, queue, queue_file, record
from pysendmail.spool.queue import DIRECTORIES, Queue
from pysendmail.spool.queue_id import Ids
from pysendmail.users import User
from tests.crash.model import Locks, Model, Reader, Snapshot

PATHS = Paths("")
CONFIG = Config(hostname="host.example", domain="host.example")
IMPATIENT = replace(CONFIG, queue=replace(CONFIG.queue, lifetime=900, retry_first=300, delay_warning=0))
WARNING = replace(CONFIG, queue=replace(CONFIG.queue, retry_first=300, delay_warning=100))
FILTERED = replace(CONFIG, milter=replace(CONFIG.milter, sockets=("unix:/filter",)))
USERS = {name: User(name, uid, uid, f"/home/{name}", "/bin/sh") for name, uid in (
    ("alice", 1000), ("bob", 1000), ("carol", 1000), ("postmaster", 1000))}
STEPS = 50_000  # of the loop, before a queue counts as one that never comes to rest
MARKS = ("one", "two", "three")  # what messages are called
SIZE = 300  # bytes, about, of a message
BOOT = 5.0  # seconds from a crash to the next start
WITHIN = 6 * 86400.0  # seconds of the host's own time



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

    def __init__(self, loop: Loop, model: Model, is_away: Callable[[str], bool], kind: str,
                 is_filtered: bool, syncs_name: bool) -> None:
        self._loop, self._model, self._is_away, self._kind = loop, model, is_away, kind
        self._is_filtered, self._syncs_name = is_filtered, syncs_name

    def _look_at_the_mark(self, job: Job) -> None:
        """No agent is ever given what no filter has seen."""
        try:
            fd = job.open_file()
            envelope, _, _ = queue_file.read_envelope(fd, job.request.queue_id, verify=False)
            self._model.close(fd)
        except OSError:
            return  # a call that a test lets fail
        assert envelope.scanned

    def deliver(self, user: str, job: Job, **_: object) -> None:
        self._loop.call_soon(self._deliver, user, job)

    def _deliver(self, user: str, job: Job) -> None:
        if self._is_filtered:
            self._look_at_the_mark(job)
        settings = agent.Settings(
            kind=self._kind, mail_dir=PATHS.mail, mailbox_group=None, hostname="host.example", use_forward=False,
            require_shell=False, mailbox_size=0, command="", command_user="", command_time=1.0, command_output=300,
            forward_size=65_536, forward_entries=100, aliases=(), own_domains=frozenset(), lock_wait=0.0,
            syncs_name=self._syncs_name)
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


class Filters(Scanning):
    """Everything passes, as soon as it is shown."""

    def _pump(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            self._hand_over(job, Verdict(job.n))


class Expander:
    """Every user is himself; nobody else is anybody."""

    def expand(self, address: str, *, seen: object = None) -> list[Target]:
        name = address.partition("@")[0]
        if name in USERS:
            return [Target(MAILBOX, address, user=name)]
        return [Target(KNOWN, address, outcome=failed("5.1.1", "no such user"))]

    def again(self, target: Target, *, seen: object = None) -> list[Target]:
        return self.expand(target.address)


class Users:
    def lookup(self, name: str) -> User | None:
        return USERS.get(name)

    def by_uid(self, uid: int) -> User | None:
        return next((user for user in USERS.values() if user.uid == uid), None)


class Transport(asyncio.Transport):
    """A connection to nowhere, which remembers what was said."""

    said = b""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return bool(self.said)

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.said += data

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class World:
    """The host. promised: which messages were acknowledged; away: until when whose mailbox is away."""

    model: Model
    kind: str = "mbox"
    sync_directories: bool = False
    away: dict[str, float] = field(default_factory=dict)
    promised: list[str] = field(default_factory=list)
    config: Config = CONFIG
    log: list[str] = field(default_factory=list)

    def restarted(self, snapshot: Snapshot, promised: Iterable[str], now: float) -> "World":
        """The same host when it comes up again with what is on its disk, after a crash at the time `now`."""
        model = self.model.restart_from(snapshot, now + BOOT)
        return World(model, self.kind, self.sync_directories, self.away, list(promised), self.config)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The code under test works on this world's model."""
        model = self.model
        with ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                if name.startswith("pysendmail.") and vars(module).get("os") in (os, posix):
                    stack.enter_context(mock.patch.object(module, "os", model))
            for module in (durable, locks):
                stack.enter_context(mock.patch.object(module, "fcntl", Locks(model)))
            stack.enter_context(mock.patch.object(queue, "open", lambda path, mode: Reader(model, path), create=True))
            yield

    def submit(self, mark: str, *recipients: str, sender: str = "bob") -> None:
        """What `sendmail` does; `promised` has the mark when it ends with 0. Raises dropbox.Refused."""
        with self.running():
            submission = dropbox.Submission(PATHS)
            try:
                submission.begin([(b"Sender", b"<%s>" % sender.encode()),
                                  *((b"Recipient", b"- - " + one.encode()) for one in recipients)])
                submission.write(f"Subject: {mark}\nTo: somebody\n\n".encode())
                submission.write(text(mark, SIZE))
                submission.commit()
            except BaseException:
                submission.give_up()
                raise
            self.promised.append(mark)

    def submit_by_socket(self, mark: str, *recipients: str) -> None:
        """The same over the submission socket, whose daemon dies before it takes the message into the queue."""
        transport = Transport()
        lines = record.field_lines([(b"Recipient", b"- - " + one.encode()) for one in recipients])
        content = lines + f"Subject: {mark}\nTo: somebody\n\n".encode() + text(mark, SIZE)
        length = record.FIRST_LENGTH + len(lines)
        first = record.first_line(length, record.FIRST_LENGTH + len(content), record.crc(content))
        with self.running(), mock.patch.object(doors, "peer_uid", return_value=1000), mock.patch.object(
                asyncio, "get_running_loop", return_value=Loop(self.model)):
            clock = self.model.clock
            door = doors.SubmissionDoor(PATHS, Ids(1, clock), Events(lambda priority, line: None), 10**6,
                                        lambda name: None, lambda uid: False, clock,
                                        sync_directories=self.sync_directories)
            protocol = door.connect()
            protocol.connection_made(transport)
            for frame in (content, b"", first):
                protocol.data_received(len(frame).to_bytes(4, "big") + frame)
                if transport.said.startswith(b"0 "):
                    self.promised.append(mark)
            protocol.connection_lost(None)

    def submit_by_smtp(self, mark: str, *recipients: str) -> None:
        """What a listener does with a message from the network, at whose end it says 250."""
        with self.running():
            found = Ids(3, self.model.clock, inbox.taken_ids(PATHS)).new()
            to = tuple(Recipient(f"{one}@host.example") for one in recipients)
            origin = Origin("smtp", client="[192.0.2.1]", protocol="ESMTP")
            envelope = Envelope(found, "bob@host.example", to, self.model.now, origin)
            incoming = inbox.Incoming(PATHS, found)
            try:
                received = trace.received(envelope, "host.example", 0)
                incoming.open(envelope, [received + f"Subject: {mark}\nTo: somebody\n\n".encode(), text(mark, SIZE)])
                fd = incoming.publish()
            except BaseException:
                incoming.give_up()
                raise
            try:
                durable.sync(fd)
                if self.sync_directories:
                    durable.sync_directory(PATHS.smtp_new)
            except OSError:
                durable.unlink(incoming.path)
                raise
            finally:
                self.model.close(fd)
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
        clock = self.model.clock
        router = Router(self.config)
        events = Events(lambda priority, text: self.log.append(text))
        spool = Queue(PATHS, clock, sync_directories=self.sync_directories)
        local = Agents(loop, self.model, lambda user: self.model.now < self.away.get(user, 0.0), self.kind,
                       bool(self.config.milter.sockets), self.sync_directories)
        filters = Filters(loop, self.config, PATHS, spool, lambda value: None, events,  # type: ignore[arg-type]
                          sync_directories=self.sync_directories)
        reports = Reports(self.config, spool, clock, "postmaster@host.example")
        relays: Any = SimpleNamespace(flush=lambda: None)  # nothing goes to other hosts
        runner = Runner(loop, self.config, spool, Expander(), local,  # type: ignore[arg-type]
                        Outgoing(spool, relays, router, self.config), relays, reports, events, clock, lambda: 0.5,
                        lambda: 0.0, filters)
        ids = Ids(0, clock, spool.taken_ids())
        adoption = Adoption(PATHS, Ids(2, clock, spool.taken_ids()), events, runner.has, clock)
        runner.attach(Intake(PATHS, spool, ids, Users(), self.config, router, events, clock, runner.shares.is_used_up),
                      adoption, spool.taken_ids())
        return runner

    def is_at_rest(self, runner: Runner) -> bool:
        if runner.active or runner.waiting.entries:
            return False
        return not any(self.model._inode(path).entries for path in (PATHS.drop_new, PATHS.smtp_new, PATHS.intake, *(
            f"{PATHS.queue}/{name}" for name in ("new", "cur", "hold"))))

    # ---- looking at it

    def names(self) -> list[str]:
        return [path for path, _, mode, _, _ in self.model.after_kill() if stat.S_ISREG(mode)]

    def box(self, user: str) -> list[bytes]:
        """The messages of a user, and what else is in his mailbox."""
        found: list[bytes] = []
        for path, content, _, _, _ in self.model.after_kill():
            if path == f"{PATHS.mail}/{user}":
                found += messages_of_mbox(content)
            elif path.startswith((f"/home/{user}/Maildir/new/", f"/home/{user}/Maildir/cur/")):
                found.append(content)
        return found

    def count(self, user: str, mark: str) -> int:
        """How often a user has a message, whole."""
        return sum(is_message(one, mark) for one in self.box(user))

    def count_reports(self, user: str, mark: str) -> int:
        """How many reports about a message a user has, whole."""
        return sum(is_report(one, mark) for one in self.box(user))

    def rubbish(self) -> list[bytes]:
        """What is in the mailboxes and is neither a whole message nor a whole report."""
        return [one for user in USERS for one in self.box(user)
                if not is_notice(one) and not any(is_message(one, mark) or is_report(one, mark) for mark in MARKS)]


def new_world(*, covers_names: bool = True, orders_growth: bool = False, sync_directories: bool = False,
              kind: str = "mbox") -> World:
    """An installed system with nothing in it."""
    model = Model(covers_names=covers_names, orders_growth=orders_growth)
    # Where the sync of a file does not cover its name, submitters must be able to open the directory.
    drop = 0o3777 if sync_directories else 0o3733
    for path, mode in ((PATHS.drop_tmp, drop), (PATHS.drop_new, drop), (PATHS.smtp_tmp, 0o3770),
                       (PATHS.smtp_new, 0o3770), (PATHS.intake, 0o700), (PATHS.quarantine, 0o700),
                       *((f"{PATHS.queue}/{name}", 0o700) for name in DIRECTORIES), (PATHS.mail, 0o3777)):
        model.make(path, mode=mode)
    for user in USERS.values():
        model.make(user.home)
        if kind == "maildir":
            for name in ("tmp", "new", "cur"):
                model.make(f"{user.home}/Maildir/{name}", mode=0o700)
    return World(model, kind, sync_directories)


def text(mark: str, size: int) -> bytes:
    line = b"From here on every line looks like the last one.\n"
    return b"BEGIN %s\n%sEND %s\n" % (mark.encode(), line * (size // len(line)), mark.encode())


def messages_of_mbox(content: bytes) -> list[bytes]:
    """What stands between the From_ lines, without the empty line at the end; what stands before the first one too."""
    parts = re.split(rb"^From [^\n]*\n", content, flags=re.MULTILINE)
    return [re.sub(rb"\n\n\Z", b"\n", part) for part in parts[0 if parts[0] else 1:]]


def is_message(message: bytes, mark: str) -> bool:
    """Whether this is the message `mark`, whole and nothing else."""
    head, _, body = message.partition(b"\n\n")
    wanted = text(mark, SIZE)
    return (head.startswith(b"Return-Path: ") and b"\nSubject: %s\n" % mark.encode() in head
            and body in (wanted, wanted.replace(b"\nFrom ", b"\n>From ")))


def is_notice(message: bytes) -> bool:
    """Whether this is a notice about damaged files, whole and nothing else."""
    return (message.startswith(b"Return-Path: <>\n") and b" moved to queue/bad on host.example\n" in message
            and message.endswith(b"how to send them again.\n"))


def is_report(message: bytes, mark: str) -> bool:
    """Whether this is a report about the message `mark`, whole and nothing else."""
    boundary = re.search(rb'boundary="([^"]+)"', message)
    return (message.startswith(b"Return-Path: <>\n") and boundary is not None
            and b"\nSubject: %s\n" % mark.encode() in message.partition(b"\n\n")[2]
            and message.endswith(b"\n--%s--\n" % boundary[1]))
