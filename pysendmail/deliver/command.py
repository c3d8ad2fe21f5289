"""Running a command of .forward, of aliases, or the one that delivers all mail: `/bin/sh -c TEXT`, as this user.

The text comes from the user's own file or from root's, never from a message or an address: those are in the environment
only, filtered (OpenSMTPD CVE-2020-7247; Shellshock reached mail through it too). The child is a session and a process
group of its own, has no way back to any other id, no descriptor but 0, 1 and 2, default signals, and reads the message
from a pipe; it never sees the queue file, whose owner it is not.

Nothing it does can hold us up: it may read nothing, print without end, close its input, leave a daemon behind that
keeps the pipes open, or sleep. After `limit` seconds its group gets SIGTERM, then SIGKILL. Its exit code is the outcome
(mail/outcome.py); a signal, a limit and every fault of ours mean "try again". Not reading the message is no error.
local(8) of Postfix, sysexits(3).
"""

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NoReturn

from ..mail.envelope import text as decoded
from ..mail.outcome import Outcome, deferred, from_exit_code
from ..users import User
from . import identity, trouble
from .parcel import Parcel, Unreadable

LIMIT = 1000.0  # seconds a command may take
KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL
REAP_WAIT = 5.0  # seconds for the kernel to end what it was told to kill
TICK = 0.05  # seconds between looks at the child, on kernels without pidfd
MAX_OUTPUT = 8192  # bytes kept of what it prints; the rest is read and thrown away
TOLD = 300  # characters of that in the outcome
MAX_VALUE = 1024  # characters of one variable in its environment
READ_SIZE = 64 * 1024  # bytes

SHELL = "/bin/sh"
PATH = "/usr/local/bin:/usr/bin:/bin"

# What no shell gives a meaning to, with or without quotes: Postfix's command_expansion_filter.
_SAFE = frozenset("1234567890!@%-_=+:,./abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def environment(user: User, *, sender: str, recipient: str, original: str, extension: str) -> dict[str, str]:
    """The whole environment of a command; nothing is inherited but the time zone.

    sender: "" = null. recipient: the address that led here. original: the envelope recipient. extension: the detail of
    user+detail. Names as local(8) has them; what outsiders choose is filtered.
    """
    local, _, domain = recipient.rpartition("@") if "@" in recipient else (recipient, "", "")
    values = {"HOME": user.home or "/", "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell or SHELL,
              "PATH": PATH, "LANG": "C.UTF-8"}
    if "TZ" in os.environ:
        values["TZ"] = os.environ["TZ"]
    told = {"SENDER": sender, "RECIPIENT": recipient, "ORIGINAL_RECIPIENT": original, "EXTENSION": extension,
            "LOCAL": local, "DOMAIN": domain}
    values.update((name, filtered(value)) for name, value in told.items())
    return values


def filtered(value: str) -> str:
    """The value with "_" for what some shell or program might take for more than a character: "-" too, as the first."""
    safe = "".join(c if c in _SAFE else "_" for c in value[:MAX_VALUE])
    return "_" + safe[1:] if safe.startswith("-") else safe


def run(text: bytes, parcel: Parcel, *, environment: Mapping[str, str], cwd: str, limit: float = LIMIT,
        told: int = TOLD) -> Outcome:
    """Run a command with the parcel, From_ line first, on its standard input.

    cwd: where it starts; "/" if it cannot be there. limit: seconds. told: characters of its output that are the reason.
    """
    if b"\0" in text:
        return deferred("4.3.5", "the command contains a NUL")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a command that stops reading must not end us
    try:
        child = _start(text, environment, cwd)
    except OSError as problem:
        return deferred(trouble.SYSTEM_OTHER, f"cannot start a command: {problem.strerror}")
    try:
        has_ended = child.attend(chain((parcel.from_line,), parcel.pieces()), limit)
    except Unreadable as problem:
        child.kill()  # before its input is closed: it must not take a part for the whole
        return deferred(trouble.SYSTEM_OTHER, str(problem))
    finally:
        child.close()
    if not has_ended:
        return deferred(trouble.SYSTEM_OTHER, f"command did not end within {limit:g} seconds", "x-unix; time limit")
    if child.code is None:
        return deferred(trouble.SYSTEM_OTHER, "the exit code of the command was lost")
    return from_exit_code(child.code, decoded(bytes(child.output)), told)


@dataclass(slots=True)
class _Child:
    """A command that was started. stdin, stdout: our ends of its pipes, -1 = closed. code: negative = a signal."""

    pid: int
    stdin: int
    stdout: int
    pidfd: int
    output: bytearray = field(default_factory=bytearray)
    unwritten: memoryview = field(default_factory=lambda: memoryview(b""))
    code: int | None = None

    def attend(self, pieces: Iterator[bytes], limit: float) -> bool:
        """True when it has ended by itself; False when it had to be ended, its time being up. Raises Unreadable."""
        if self._until_exit(pieces, time.monotonic() + limit):
            self._read_rest()
            self._reap()
            return True
        self._signal_group(signal.SIGTERM)
        self._until_exit(iter(()), time.monotonic() + KILL_AFTER, feed=False)
        self.kill()
        return False

    def kill(self) -> None:
        """End its whole group now."""
        self._signal_group(signal.SIGKILL)
        self._until_exit(iter(()), time.monotonic() + REAP_WAIT, feed=False)
        self._reap()

    def close(self) -> None:
        for fd in (self.stdin, self.stdout, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.pidfd = -1

    def _until_exit(self, pieces: Iterator[bytes], deadline: float, *, feed: bool = True) -> bool:
        """Whether it ended before the deadline. It is not waited for yet, so that its group's number stays taken."""
        while not self._has_exited():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll = select.poll()
            if self.stdout >= 0:
                poll.register(self.stdout, select.POLLIN)
            if self.stdin >= 0 and feed:
                poll.register(self.stdin, select.POLLOUT)
            if self.pidfd >= 0:
                poll.register(self.pidfd, select.POLLIN)
            for fd, _ in poll.poll((left if self.pidfd >= 0 else min(left, TICK)) * 1000):
                if fd == self.stdout:
                    self._read()
                elif fd == self.stdin:
                    self._write(pieces)
        return True

    def _has_exited(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else has waited for it: there is no exit code any more
            return True

    def _write(self, pieces: Iterator[bytes]) -> None:
        """Fill the pipe as far as it goes; close it after the last piece, or when nobody reads it any more."""
        try:
            while True:
                if not self.unwritten:
                    piece = next(pieces, b"")
                    if not piece:
                        break
                    self.unwritten = memoryview(piece)
                self.unwritten = self.unwritten[os.write(self.stdin, self.unwritten):]
        except BlockingIOError:
            return
        except OSError:
            self.unwritten = memoryview(b"")
        os.close(self.stdin)
        self.stdin = -1

    def _read(self) -> bool:
        """Take what it prints; False if there is nothing at the moment, or nothing any more."""
        try:
            data = os.read(self.stdout, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self.output += data[:MAX_OUTPUT - len(self.output)]
        if not data:
            os.close(self.stdout)
            self.stdout = -1
        return bool(data)

    def _read_rest(self) -> None:
        """What is in the pipe when it has ended. A daemon that it left behind may go on printing, to nobody."""
        while self.stdout >= 0 and len(self.output) < MAX_OUTPUT and self._read():
            pass

    def _signal_group(self, number: int) -> None:
        for send in (os.killpg, os.kill):  # it may not have come as far as being a group
            try:
                send(self.pid, number)
            except OSError:
                continue

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            self.code = os.waitstatus_to_exitcode(status)


def _start(text: bytes, environment: Mapping[str, str], cwd: str) -> _Child:
    """Raises OSError: no process, no descriptor to be had."""
    fds: list[int] = []
    try:
        for _ in range(2):
            fds += _pipe()
        stdin, our_stdin, our_stdout, stdout = fds
        os.set_blocking(our_stdin, False)
        os.set_blocking(our_stdout, False)
        # No handler of ours may run in the child: signals wait until it has set them all to their defaults.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become_command(text, environment, cwd, stdin, stdout)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    os.close(stdin)
    os.close(stdout)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1
    return _Child(pid, our_stdin, our_stdout, pidfd)


def _pipe() -> tuple[int, int]:
    """(read end, write end), neither of them 0, 1 or 2 even in a process that was started without those."""
    ends = os.pipe()
    taken: list[int] = []
    while min(ends) <= 2:
        taken += ends
        ends = os.pipe()
    for fd in taken:
        os.close(fd)
    return ends


def _become_command(text: bytes, environment: Mapping[str, str], cwd: str, stdin: int, stdout: int) -> NoReturn:
    """In the child: everything that is not the command's goes, then the shell. Any trouble on the way means "later"."""
    try:
        identity.clean({stdin, stdout})
        for fd, number in ((stdin, 0), (stdout, 1), (stdout, 2)):
            os.dup2(fd, number)
        os.close(stdin)
        os.close(stdout)
        # The saved group may be that of the mail spool (agent.py): a command must not be able to take it.
        gid, uid = os.getgid(), os.getuid()
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresgid() != (gid, gid, gid) or os.getresuid() != (uid, uid, uid):
            raise identity.NotBecome("ids are not the user's")
        try:
            os.chdir(cwd)
        except OSError:
            os.chdir("/")
        os.execve(SHELL, [b"sh", b"-c", text], environment)  # noqa: S606 - a shell is what it starts
    except BaseException as problem:  # noqa: BLE001 - nothing of ours may go on in the child
        os.write(2, f"cannot run a command: {problem}".encode("utf-8", "replace"))
    finally:
        os._exit(identity.EX_TEMPFAIL)
