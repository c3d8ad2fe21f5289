"""The listener processes, as the supervisor sees them: started, watched, replaced, ended.

Each is a fork that has given root up before its first instruction: it gets the sockets, the settings without secrets, a
row of the table of counts, the certificate with its key, which it reads while it still can, and a channel to a process
that knows passwords (auth/keeper.py). One that ends is
started again, after a while that grows if that goes on; one that gives no sign of life is killed. A reload, or a new
certificate, starts others beside them; the old ones take no new clients and end with their last session, so that nobody
is dropped.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import Config
from ..deliver import identity, landlock
from ..events import ERROR, WARNING, ClientEvents, Log
from ..paths import Paths
from ..users import User, Users
from .admission import MAX_LISTENERS, Table
from .ports import Ports, are_public

if TYPE_CHECKING:
    from ..auth import Authenticator, Examiner

MOST_BY_ITSELF = 4  # processes, where the settings do not say how many
RESTART_FIRST, RESTART_MOST = 0.5, 30.0  # seconds before a listener that ended badly is started again
STEADY_AFTER = 60.0  # seconds after which its end is no longer taken for a failed start
STOP_WITHIN = 12.0  # seconds until one that does not stop is killed
SILENT_AFTER = 30.0  # seconds without a sign of life after which it is killed
LOOK_EVERY = 10.0  # seconds between looks at addresses that could not be bound and at the certificate
EX_SOFTWARE = 70


@dataclass(slots=True)
class Process:
    """number: of its row. started: monotonic seconds. is_leaving: it takes no clients any more."""

    number: int
    started: float
    is_leaving: bool = False


class Listeners:
    """user: whom they become, None = they stay what we are. kept: descriptors that a log needs."""

    def __init__(self, paths: Paths, users: Users, log: Log, user: User | None, ports: Ports, kept: frozenset[int],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._users = users
        self._log = log
        self.user = user
        self._ports = ports
        self._kept = kept
        self._clock = clock
        self._table = Table()
        self._settings: Config | None = None
        self._processes: dict[int, Process] = {}
        self._restart_at = self._look_at = self._stop_at = 0.0
        self._wait = 0.0
        self._stamp: object = None  # of the certificate that is in use
        self._is_stopping = False
        self._by_itself = min(os.cpu_count() or 1, MOST_BY_ITSELF)

    # ---- what the supervisor asks

    def use(self, settings: Config) -> None:
        """Listen as the settings say: at the start, and after each reload."""
        self._settings = settings
        self._ports.want(settings.listeners)
        self._replace()

    def ended(self, pid: int, code: int) -> bool:
        """A child has ended; whether it was one of these."""
        process = self._processes.pop(pid, None)
        if process is None:
            return False
        self._table.wipe(process.number)  # with sessions of which it could not say that they are over
        now = self._clock()
        if not process.is_leaving and not self._is_stopping:
            lived = now - process.started
            self._log(WARNING, f"SYSERR(root): listener ended ({code}) after {lived:.0f} s, starting another")
            longer = min(max(self._wait * 2, RESTART_FIRST), RESTART_MOST)
            self._wait = RESTART_FIRST if lived > STEADY_AFTER else longer
            self._restart_at = now + self._wait
        return True

    def stop(self) -> None:
        """End them all, with what is under way."""
        if not self._is_stopping:
            self._is_stopping = True
            self._stop_at = self._clock() + STOP_WITHIN
        for pid in self._processes:
            os.kill(pid, signal.SIGTERM)

    @property
    def are_gone(self) -> bool:
        return not self._processes

    def look_after(self) -> None:
        """Do what is due. Called often."""
        now = self._clock()
        if self._is_stopping:
            for pid in self._processes if now >= self._stop_at else ():
                os.kill(pid, signal.SIGKILL)
            return
        if self._settings is None:
            return
        for pid, process in list(self._processes.items()):
            if now - self._table.beat(process.number) > SILENT_AFTER:
                self._log(WARNING, f"SYSERR(root): listener {pid} gives no sign of life, ending it")
                os.kill(pid, signal.SIGKILL)
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            if (not self._ports.is_complete and self._ports.bind()) or self._stamp_of_files() != self._stamp:
                self._replace()
        if now >= self._restart_at:
            self._fill()

    def pause(self) -> float:
        """Seconds until something may be due."""
        is_short = self._settings is not None and self._count() < self._wanted()
        return max(0.0, self._restart_at - self._clock()) if is_short else LOOK_EVERY

    # ---- processes

    def _wanted(self) -> int:
        if self._settings is None or self._is_stopping or not self._ports.get():
            return 0
        smtpd = self._settings.smtpd
        # Clients on this host are few, and idle memory counts.
        return smtpd.processes or (self._by_itself if are_public(self._ports.get(), smtpd) else 1)

    def _count(self) -> int:
        return sum(not process.is_leaving for process in self._processes.values())

    def _replace(self) -> None:
        """New ones beside those that are there, which leave."""
        for pid, process in self._processes.items():
            if not process.is_leaving:
                process.is_leaving = True
                os.kill(pid, signal.SIGHUP)
        self._stamp = self._stamp_of_files()
        self._wait = self._restart_at = 0.0
        self._fill()

    def _fill(self) -> None:
        """As many as there should be."""
        while self._count() < self._wanted():
            try:
                self._start()
            except OSError as trouble:
                self._log(ERROR, f"SYSERR(root): cannot start a listener: {trouble.strerror}")
                self._restart_at = self._clock() + RESTART_MOST
                return

    def _start(self) -> None:
        number = self._free_number()
        self._table.wipe(number)
        supervisor = os.getpid()
        pid = identity.fork()
        if pid == 0:
            self._become(number, supervisor)
        self._processes[pid] = Process(number, self._clock())

    def _free_number(self) -> int:
        """A row that nobody has; if all are taken, that of whoever has been leaving for longest, who ends now."""
        taken = {process.number for process in self._processes.values()}
        free = next((number for number in range(MAX_LISTENERS) if number not in taken), -1)
        if free >= 0:
            return free
        pid = min(self._processes, key=lambda one: (not self._processes[one].is_leaving, self._processes[one].started))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return self._processes.pop(pid).number

    def _become(self, number: int, supervisor: int) -> None:
        """In the child: give everything up, then listen. It never returns."""
        code = EX_SOFTWARE
        try:
            settings, ports = self._settings, self._ports.get()
            assert settings is not None
            identity.clean({port.socket.fileno() for port in ports} | self._kept)
            identity.take_errors_for_signals()
            from . import certificates

            is_public = are_public(ports, settings.smtpd)
            if not certificates.are_wanted(settings.smtpd, is_public=is_public):
                sys.modules.setdefault("ssl", None)  # type: ignore[arg-type] # asyncio does without
            from ..auth import keeper  # with asyncio and all that: in the child alone

            channel = keeper.start(settings.auth, self._kept) if keeper.is_wanted(settings.auth) else None
            from . import listener

            found, problem = certificates.read(settings.smtpd, is_public=is_public)
            if problem:
                self._log(ERROR, f"SYSERR(root): {problem}")
            if self.user is not None:
                identity.become(self.user)
            identity.harden(supervisor)
            landlock.confine(self._paths.smtp_tmp, self._paths.smtp_new)
            share = listener.Share(ports, self._table, number, found, self._logins(settings, channel),
                                   self._examiner(settings, is_public=is_public))
            code = listener.run(self._paths, settings, self._users, self._log, share)
        except BaseException as problem:  # noqa: BLE001 - nothing may get out of a child into its parent's code
            self._log(ERROR, f"SYSERR(root): listener: {type(problem).__name__}: {problem}")
        finally:
            os._exit(code)

    def _logins(self, settings: Config, channel: socket.socket | None) -> "Authenticator | None":
        """In the child: who knows passwords."""
        if channel is None and not settings.auth.dovecot:
            return None
        from ..auth.logins import Logins

        return Logins(settings, ClientEvents(self._log), channel, time.monotonic)

    def _examiner(self, settings: Config, *, is_public: bool) -> "Examiner | None":
        """In the child: who looks at mail."""
        if not is_public and not settings.milter.sockets:
            return None
        from .examiners import for_listener

        return for_listener(settings, self._paths, ClientEvents(self._log).noted, is_public=is_public)

    def _stamp_of_files(self) -> object:
        """What is another when the certificate is another."""
        assert self._settings is not None
        smtpd = self._settings.smtpd
        return [_stamp(path) for path in (smtpd.tls_cert, smtpd.tls_key) if path]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
