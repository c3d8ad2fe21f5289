"""`pysendmaild`: reads the settings, opens the sockets, starts the runner, and becomes the spawner.

As root it does nothing after the start but fork and become users (deliver/spawner.py); the runner is a child that has
given root up before its first instruction. When the runner ends it is started again, after RESTART_FIRST seconds and
then longer; SIGHUP reads the settings anew and replaces the runner; SIGTERM stops it and ends. Signs of life go to
the service manager only as long as the runner gives them (Type=notify with a watchdog): a runner that hangs is a
service that hangs.

Started by anybody else (the demo, tests, a container of one user) it runs all of this with the caller's own identity
below a private root. The same code, minus becoming somebody else.
"""

import errno
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from .. import __version__, config
from ..deliver import agent, identity, landlock, spawner
from ..events import ERROR, NOTICE, WARNING, Log, Syslog, to_stderr
from ..paths import Paths
from ..route.router import Router
from ..spool.queue_file import needs_directory_sync
from ..users import LookupTrouble, SystemUsers, User, Users
from . import ports, premises, services
from .listeners import Listeners
from .notify import Notify

RUNNER_USER, RELAY_USER, LISTENER_USER = "_pysendmail", "_pysmrelay", "_pysmtpd"
RESTART_FIRST, RESTART_MOST = 0.5, 30.0  # seconds before a runner that ended badly is started again
STEADY_AFTER = 60.0  # seconds after which a runner's end is no longer taken for a failed start
STOP_WITHIN = 20.0  # seconds until a runner that does not stop is killed: 8 for answers, then some hundred syncs
END_WITHIN = 1.0  # seconds that a runner may still take to end after it has closed its socket
HUNG_AFTER = 300.0  # seconds without a sign of life after which a runner is replaced: a sync may take 30 of them
START_WITHIN = 600.0  # seconds until the first one: a large queue on a slow disk takes its time
LOOK_EVERY = 0.5  # seconds between looks at children and signs of life
LATE = 30.0  # seconds between looks, after which it is us who stood still, or all of this host
EX_OK, EX_USAGE, EX_SOFTWARE, EX_OSERR, EX_TEMPFAIL, EX_CONFIG = 0, 64, 70, 71, 75, 78

USAGE = f"""usage: pysendmaild [--help | --version]
The mail daemon of pysendmail {__version__}. It stays in the foreground; settings: pysendmail.toml(5).
"""


@dataclass(slots=True)
class Runner:
    """The running child. started, beaten, told: monotonic seconds; told: when it was told to stop, 0 = it was not."""

    pid: int
    link: socket.socket
    started: float
    beaten: float
    told: float = 0.0
    is_ready: bool = False


@dataclass(slots=True)
class Supervisor:
    """The state of this process. who, relay_user: whom the runner and the relays become, None = they stay what we are.

    settings: without passwords, which every child would inherit.
    """

    paths: Paths
    users: Users
    log: Log
    notify: Notify
    settings: config.Config
    who: User | None
    relay_user: User | None
    listeners: Listeners
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    runner: Runner | None = None
    server: spawner.Spawner | None = None
    restart_at: float = 0.0
    look_at: float = 0.0
    wait: float = 0.0
    is_stopping: bool = False
    signals: int = -1
    lock: int = -1

    # ---- start

    def start_runner(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # a runner that does not listen must not stop us
        supervisor = os.getpid()
        with theirs:
            try:
                pid = identity.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                self._become_runner(theirs, supervisor)
        now = time.monotonic()
        self.runner = Runner(pid, ours, now, now)
        found = services.of(self.paths, self.settings, self.log, self.relay_user, self.listeners.user)
        self.server = spawner.Spawner(self.users, agent_settings(self.settings, self.paths), self.log, ours,
                                      self._ready, self._beat, self._renamed, found, log_descriptors(self.log),
                                      self.settings.limits.agents)

    def _become_runner(self, link: socket.socket, supervisor: int) -> None:
        """In the child: give everything up, then run. It never returns."""
        code = EX_SOFTWARE
        try:
            opened = [link, *self.sockets.values()]
            identity.clean({one.fileno() for one in opened} | log_descriptors(self.log))
            if self.who is not None:
                # What listeners accept has the group of their door, so that the runner can read it.
                identity.become(self.who, more_groups=frozenset((os.stat(self.paths.smtp_new).st_gid,)))
            sys.modules.setdefault("ssl", None)  # type: ignore[arg-type] # asyncio does without; the runner has no use for it
            from . import main  # asyncio and all that: in the child alone

            identity.harden(supervisor)
            landlock.confine(self.paths.spool)
            code = main.run(self.paths, self.settings, self.users, self.log, main.Sockets(link, **self.sockets))
        except BaseException as problem:  # noqa: BLE001 - nothing may get out of a child into its parent's code
            self.log(ERROR, f"SYSERR(root): runner: {type(problem).__name__}: {problem}")
        finally:
            os._exit(code)

    # ---- life

    def serve(self) -> int:
        """Until SIGTERM; the exit code."""
        read, self.signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.signals)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # its only effect is a byte in the wake-up pipe
        self.lock = premises.lock(self.paths)
        if self.lock < 0:
            return self._refuse(f"another pysendmaild is running here ({self.paths.run}/lock)")
        self.sockets = premises.open_sockets(self.paths)
        premises.close_drop(self.paths, self.log)
        self.listeners.use(self.settings)
        self.start_runner()
        while True:
            watched = [read] if self.runner is None else [read, self.runner.link.fileno()]
            ready = spawner.wait_readable(watched, self._pause())
            if read in ready:
                for byte in os.read(read, 4096):
                    self._signalled(byte)
            has_word = self.runner is not None and self.runner.link.fileno() in ready
            if has_word and self.server is not None and not self.server.answer():
                self._end_runner()
            if self.is_stopping and self.runner is None and self.listeners.are_gone:
                return EX_OK
            if self.runner is None and not self.is_stopping and time.monotonic() >= self.restart_at:
                self._restart()
            if not ready or self.is_stopping or time.monotonic() >= self.look_at:
                self._look_after()

    def _refuse(self, why: str) -> int:
        print(f"pysendmaild: {why}", file=sys.stderr)
        self.log(ERROR, f"SYSERR(root): {why}")
        return EX_TEMPFAIL

    def _pause(self) -> float:
        pause = min(5.0, self.listeners.pause())
        if self.runner is None and not self.is_stopping:
            pause = min(pause, max(0.0, self.restart_at - time.monotonic()))
        return pause

    def _restart(self) -> None:
        try:
            self.start_runner()
        except OSError as trouble:
            self.log(ERROR, f"SYSERR(root): cannot start the runner: {trouble.strerror}")
            self.restart_at = time.monotonic() + RESTART_MOST

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._reload()
        elif number in (signal.SIGTERM, signal.SIGINT):
            self.is_stopping = True
            self.notify.tell("STOPPING=1")
            self._stop_runner()
            self.listeners.stop()

    def _stop_runner(self) -> None:
        if self.runner is not None:
            os.kill(self.runner.pid, signal.SIGTERM)
            self.runner.told = self.runner.told or time.monotonic()

    def _reap(self) -> None:
        if self.server is None:
            return
        for pid, code in self.server.reap():
            if self.runner is not None and pid == self.runner.pid:
                self._runner_ended(code)
            else:
                self.listeners.ended(pid, code)

    def _runner_ended(self, code: int) -> None:
        assert self.runner is not None
        lived = time.monotonic() - self.runner.started
        self.runner.link.close()
        self.runner = None
        if self.is_stopping:
            return
        if code != 0:
            self.log(WARNING, f"SYSERR(root): runner ended ({code}) after {lived:.0f} s, starting another")
            self.wait = RESTART_FIRST if lived > STEADY_AFTER else min(max(self.wait * 2, RESTART_FIRST), RESTART_MOST)
            # Whoever waits for us (the boot) shall not wait for what may last, such as a disk that became read-only.
            self.notify.tell("READY=1", "STATUS=the runner has ended, and is started again; the log says why")
        else:
            self.wait = 0.0
        self.restart_at = time.monotonic() + self.wait

    def _end_runner(self) -> None:
        """A runner has closed its socket: it is ending, or of no use any more."""
        assert self.runner is not None
        try:
            ended = os.pidfd_open(self.runner.pid)
        except OSError:  # an old kernel, no descriptors
            ended = -1
        if ended < 0 or not spawner.wait_readable([ended], END_WITHIN):
            self.log(WARNING, "SYSERR(root): runner closed its socket")
            os.kill(self.runner.pid, signal.SIGKILL)
        if ended >= 0:
            os.close(ended)
        _, status = os.waitpid(self.runner.pid, 0)
        self._runner_ended(os.waitstatus_to_exitcode(status))

    def _reload(self) -> None:
        """Take on new settings, if they are good; otherwise say why and go on with the old ones."""
        self.notify.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.settings = load(self.paths, self.log)
        except config.ConfigError as problem:
            for line in problem.problems:
                self.log(ERROR, f"SYSERR(root): settings are not changed: {line}")
            self.notify.tell("READY=1", "STATUS=settings are broken, running with the old ones")
            return
        self.log(NOTICE, "restarting the runner due to SIGHUP")
        self._stop_runner()
        self.listeners.use(self.settings)

    def _renamed(self) -> None:
        """The runner has seen that the mail name has changed, and takes in nothing more: replace it in any case."""
        try:
            self.settings = load(self.paths, self.log)
        except config.ConfigError as problem:
            self.log(ERROR, f"SYSERR(root): settings are not changed: {problem.problems[0]}")
        self.log(NOTICE, f"restarting the runner due to a change of {self.paths.mailname}")
        self._stop_runner()
        self.listeners.use(self.settings)

    def _ready(self) -> None:
        if self.runner is not None:
            self.runner.is_ready = True
        self.notify.tell("READY=1", "STATUS=running")
        self._beat()

    def _beat(self) -> None:
        if self.runner is not None:
            self.runner.beaten = time.monotonic()

    def _look_after(self) -> None:
        """What is not done for each of thousands of agents that come and go."""
        now = time.monotonic()
        is_late = now > self.look_at + LATE
        self.look_at = now + LOOK_EVERY
        self.notify.tell("WATCHDOG=1")  # we are alive, and replace whoever is not
        if not is_late:  # else they may have had no chance yet to say that they are alive
            self.listeners.look_after()
        if self.runner is None:
            return
        if is_late:
            self.runner.beaten = now
        if self.runner.told and now - self.runner.told > STOP_WITHIN:
            os.kill(self.runner.pid, signal.SIGKILL)
        if now - self.runner.beaten > (HUNG_AFTER if self.runner.is_ready else START_WITHIN):
            self.log(ERROR, f"SYSERR(root): runner (pid {self.runner.pid}) hangs and is ended")
            self.runner.beaten = now  # not said all the time, should the kernel not let it end
            os.kill(self.runner.pid, signal.SIGKILL)


def load(paths: Paths, log: Log) -> config.Config:
    """The settings in force, without passwords; warnings go to the log. Raises ConfigError, for bad passwords too."""
    loaded = config.read(paths)
    for line in loaded.warnings:
        log(WARNING, f"SYSERR(root): {line}")
    config.with_secrets(loaded.config)
    return config.without_secrets(loaded.config)


def agent_settings(settings: config.Config, paths: Paths) -> agent.Settings:
    """What agents inherit."""
    mail_dir = settings.local.mail_dir or paths.mail
    group, syncs_name = None, True
    try:
        group = os.stat(mail_dir).st_gid if os.geteuid() == 0 else None
        syncs_name = needs_directory_sync(mail_dir)
    except OSError:
        pass  # no such directory: the deliveries say so, each for itself
    local, limits = settings.local, settings.limits
    router = Router(settings)
    return agent.Settings(
        local.mailbox, mail_dir, group or None, settings.hostname, local.forward, local.require_shell,
        local.mailbox_size, local.command, local.command_user, float(limits.program_time),
        limits.program_output, limits.forward_size, limits.forward_entries,
        local.aliases or (paths.aliases,), router.local_domains, syncs_name=syncs_name)


def log_descriptors(log: Log) -> frozenset[int]:
    """What a log of a child needs to stay open."""
    return frozenset({2} if log is to_stderr else ())


def service_user(users: Users, name: str) -> User | None:
    """The account that a child becomes; None where we are not root and nobody becomes anybody. Raises OSError."""
    if os.geteuid() != 0:
        return None
    try:
        found = users.lookup(name)
    except LookupTrouble as trouble:
        raise OSError(trouble.errno, f"cannot look up user {name}: {trouble.strerror}")
    if found is None:
        raise OSError(errno.ENOENT, f"there is no user {name}; is the package installed?")
    return found


def main(argv: list[str], paths: Paths, *, users: Users | None = None, log: Log | None = None) -> int:
    """The whole life of the daemon; its exit code."""
    if argv[1:] == ["--version"]:
        print(f"pysendmaild {__version__}")
        return EX_OK
    if argv[1:]:
        print(USAGE, end="", file=sys.stdout if argv[1:] == ["--help"] else sys.stderr)
        return EX_OK if argv[1:] == ["--help"] else EX_USAGE
    os.umask(0o022)
    log = log or Syslog()
    try:
        settings = load(paths, log)
    except config.ConfigError as problem:
        for line in problem.problems:
            print(f"pysendmaild: {line}", file=sys.stderr)
        return EX_CONFIG
    users = users or SystemUsers(time.monotonic)
    try:
        who, relay_user, listener_user = (
            service_user(users, name) for name in (RUNNER_USER, RELAY_USER, LISTENER_USER))
        listeners = Listeners(paths, users, log, listener_user, ports.Ports(log, ports.inherited_sockets()),
                              log_descriptors(log))
        supervisor = Supervisor(paths, users, log, Notify(), settings, who, relay_user, listeners)
        return supervisor.serve()
    except OSError as trouble:
        why = trouble if trouble.filename or not trouble.strerror else trouble.strerror
        print(f"pysendmaild: {why}", file=sys.stderr)
        log(ERROR, f"SYSERR(root): {why}")
        return EX_OSERR

