"""The runner as a process: what it is made of, put together once, and its end.

It is a child of the supervisor. It gets its sockets open, its settings checked and its identity set, adds what can only
be taken away (no new privileges, no core files), takes the spool's lock and runs until SIGTERM or until the spawner is
gone. SIGTERM lets the deliveries that are out come back first.
"""

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from filelock import FileLock, Timeout

from .. import __version__
from ..config import Config
from ..deliver import identity
from ..deliver.packet import MAX_PACKET, decode, encode
from ..events import Events, Log
from ..paths import Paths
from ..route.aliases import Aliases
from ..route.expand import Expander, Limits
from ..route.router import Router
from ..spool import queue_id
from ..spool.queue import Queue, prepare
from ..spool.queue_file import needs_directory_sync
from ..users import SystemUsers, Users
from . import agents, doors, vigil
from .adoption import Adoption
from .clerk import Clerk
from .control import ControlDoor
from .intake import Intake
from .outgoing import Outgoing
from .relays import Relays
from .report import Reports
from .runner import Runner
from .scanning import Scanning

WRITER = 0  # queue ids of the runner; listeners get others
BEAT_EVERY = 5.0  # seconds between signs of life
CALLS_EVERY = 0.02  # seconds: what comes in quick succession is taken in, and delivered, together
STOP_WITHIN = 8.0  # seconds that deliveries which are out may take after SIGTERM
LOCK_WITHIN = 10.0  # seconds to wait for a runner that is just ending
EX_TEMPFAIL, EX_OK = 75, 0


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the supervisor has opened: link = to the spawner; the others are bound already."""

    link: socket.socket
    wake: socket.socket
    submit: socket.socket
    control: socket.socket


def run(paths: Paths, config: Config, users: Users, log: Log, sockets: Sockets) -> int:
    """The whole life of a runner; its exit code."""
    identity.take_errors_for_signals()  # else whoever hangs up on us ends the service (CVE-2025-62875)
    pulse = Pulse(sockets.link)

    def log_alive(priority: int, text: str) -> None:
        log(priority, text)
        pulse.beat()

    events = Events(log_alive, pulse.beat)
    prepare(paths)
    lock = FileLock(paths.lock)
    try:
        lock.acquire(timeout=LOCK_WITHIN)
    except Timeout:
        events.trouble(f"another runner has {paths.lock}; this one ends")
        return EX_TEMPFAIL
    with lock:
        clerk = Clerk(users)
        with suppress(OSError):  # tried again with the first question
            clerk.start()  # while this process is small
        known = SystemUsers(time.monotonic, clerk) if isinstance(users, SystemUsers) else clerk
        try:
            return asyncio.run(_serve(paths, config, known, clerk, events, sockets, pulse))
        finally:
            clerk.close()


async def _serve(paths: Paths, config: Config, users: Users, clerk: Clerk, events: Events, sockets: Sockets,
                 pulse: "Pulse") -> int:
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def end(reason: str) -> None:
        if not stop.done():
            stop.set_result(reason)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, signal.Signals(number).name)
    queue = Queue(paths, time.time, sync_directories=needs_directory_sync(paths.queue))
    taken = queue.taken_ids()
    runner, intake, local, relays, scanning = _assemble(
        loop, paths, config, users, clerk, events, sockets, queue, taken)
    for one in (sockets.link, sockets.wake, sockets.submit, sockets.control):
        one.setblocking(False)
    services: dict[str, Granted] = {"relay": relays.granted, "scan": scanning.granted}
    loop.add_reader(sockets.link.fileno(), _from_spawner, sockets.link, end, services, local.granted)

    loop.add_reader(sockets.wake.fileno(), Bell(loop, sockets, paths.mailname, runner).rung)

    adoption = Adoption(paths, queue_id.Ids(WRITER + 2, time.time, taken), events, runner.has, time.time)
    runner.attach(intake, adoption, taken)  # before anybody can put something into a queue that is not known yet
    servers = await _open_doors(loop, paths, config, runner, intake, events, sockets, taken)
    events.started(__version__)
    with suppress(OSError):
        _tell(sockets.link, {"ready": True})
    _beat(loop, pulse)
    reason = await stop
    for server in servers:
        server.close()
    local.drop()
    await runner.stop(STOP_WITHIN)
    vigil.begin(runner.active, local.leave(), queue, runner.passes, events,
                config.limits.program_time + agents.COMMAND_GRACE)
    local.close()
    relays.close()
    scanning.close()
    events.stopped(reason)
    return EX_OK


async def _open_doors(loop: asyncio.AbstractEventLoop, paths: Paths, config: Config, runner: Runner, intake: Intake,
                      events: Events, sockets: Sockets, taken: set[str]) -> list[asyncio.Server]:
    def adopt(name: str) -> None:
        message = intake.readopt(name)
        if message is not None:
            runner.accept(message)

    door = doors.SubmissionDoor(paths, queue_id.Ids(WRITER + 1, time.time, taken), events, config.limits.message_size,
                                adopt, runner.shares.is_used_up, time.time,
                                sync_directories=needs_directory_sync(paths.intake))
    control = ControlDoor(paths, config, runner, events)
    # Not create_unix_server: from Python 3.13 on it removes the name at the end, and the next runner uses it too.
    return [await loop.create_server(door.connect, sock=sockets.submit),
            await loop.create_server(control.connect, sock=sockets.control)]


def _assemble(loop: asyncio.AbstractEventLoop, paths: Paths, config: Config, users: Users, clerk: Clerk,
              events: Events, sockets: Sockets, queue: Queue,
              taken: set[str]) -> tuple[Runner, Intake, agents.Agents, Relays, Scanning]:
    router = Router(config)
    aliases = Aliases(config.local.aliases or (paths.aliases,), router.is_local)
    limits = Limits(config.limits.alias_depth, config.limits.alias_results)
    expander = Expander(router, aliases, users, limits, events.warned, clerk.fetch)
    relays = Relays(loop, config, lambda value: _tell(sockets.link, value), events, time.time,
                    lambda destination: runner.revived(destination))
    local = agents.Agents(loop, sockets.link, events, most=config.limits.agents,
                          command_time=float(config.limits.program_time),
                          commands=config.limits.deliveries_per_recipient)
    reports = Reports(config, queue, time.time, router.here("postmaster"))
    outgoing = Outgoing(queue, relays, router, config)
    scanning = Scanning(loop, config, paths, queue, lambda value: _tell(sockets.link, value), events,
                        sync_directories=needs_directory_sync(paths.queue))
    runner = Runner(loop, config, queue, expander, local, outgoing, relays, reports, events, time.time, random.random,
                    scanning=scanning)
    ids = queue_id.Ids(WRITER, time.time, taken)
    intake = Intake(paths, queue, ids, users, config, router, events, time.time, runner.shares.is_used_up)
    return runner, intake, local, relays, scanning


def _status(path: str) -> tuple[int, int, int]:
    """What tells a file that has changed from the one that was looked at before."""
    try:
        seen = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _tell(link: socket.socket, value: dict[str, object]) -> None:
    """A word to the spawner. Raises OSError."""
    link.send(encode(value))


class Bell:
    """The wake-up socket: whoever rings, the runner looks, as long as the mail name is what it was at the start."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sockets: Sockets, mailname: str, runner: Runner) -> None:
        self._loop, self._sockets, self._mailname, self._runner = loop, sockets, mailname, runner
        self._known = _status(mailname)

    def rung(self) -> None:
        fd = self._sockets.wake.fileno()
        names, is_all = doors.calls(self._sockets.wake)
        self._loop.remove_reader(fd)
        self._loop.call_later(CALLS_EVERY, self._loop.add_reader, fd, self.rung)
        if _status(self._mailname) == self._known:
            self._runner.told(names)
            if is_all:
                self._runner.wake()
        elif not self._runner.is_stopping:  # what is in the drop is for a runner that knows the new name
            with suppress(OSError):  # not heard: the next call tells it again
                _tell(self._sockets.link, {"reload": True})
                self._runner.is_stopping = True


Granted = Callable[[dict[str, object], list[int]], None]  # hears of a process that it has asked for


def _from_spawner(link: socket.socket, end: Callable[[str], None], services: dict[str, Granted],
                  agent: Granted) -> None:
    try:
        packet, fds, _, _ = socket.recv_fds(link, MAX_PACKET, 1)
    except (BlockingIOError, InterruptedError):
        return
    except OSError:
        packet, fds = b"", []
    if not packet:
        end("spawner is gone")  # nothing can be delivered without it; the next start finds everything
        asyncio.get_running_loop().remove_reader(link.fileno())
        return
    value = decode(packet)
    granted = next((one for kind, one in services.items() if value.get(kind) is True), agent)
    granted(value, fds)


class Pulse:
    """Signs of life for the supervisor: from the loop, and between two messages or lines of the log, since forty
    messages on a slow disk may take many minutes before we are back in the loop. A fork of ours gives none: there the
    link's descriptor may be another file's by now, such as the log's."""

    def __init__(self, link: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._link, self._clock = link, clock
        self._owner = os.getpid()
        self._next = 0.0

    def beat(self) -> None:
        """A sign of life, unless there was one just now."""
        now = self._clock()
        if now >= self._next and os.getpid() == self._owner:
            self._next = now + BEAT_EVERY
            with suppress(OSError):
                self._link.send(encode({"beat": True}), socket.MSG_DONTWAIT)


def _beat(loop: asyncio.AbstractEventLoop, pulse: Pulse) -> None:
    pulse.beat()
    loop.call_later(BEAT_EVERY, _beat, loop, pulse)
