"""Killing a process before a system call, or making that call fail: strace(1) does it, on the real processes.

First a run is recorded, to learn which calls touch the spool or a mailbox: "the 3rd openat of the runner after it was
attached to". Then each of them is a point at which the run is repeated with a fault. strace kills at the entry of a
call, so the call is not made; an error replaces it. The counters are strace's own: per call name and per process.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pysendmail.deliver import locks
from tests.tools import processes
from tests.tools.host import Host

ERRORS = ("EIO", "ENOSPC", "EMFILE", "EDQUOT")
KILL = "SIGKILL"
# Calls about files. With "?" those that this machine does not have are no error.
TRACED = ("openat", "?open", "write", "pwrite64", "pread64", "?rename", "renameat", "renameat2", "?unlink", "unlinkat",
          "fsync", "fchmod", "ftruncate", "?truncate", "flock", "fcntl", "?newfstatat", "?fstat", "?fstatat64",
          "?statfs", "fstatfs", "utimensat", "getdents64", "mkdirat", "?mkdir", "?link", "linkat", "close")
# strace does not make a call that it lets fail: a lock or a descriptor would stay for ever, and no kernel does that.
ONLY_KILLED = frozenset(("fcntl", "close"))
WITHIN = 20.0  # seconds for strace to attach, and for a fault to happen

_LINE = re.compile(r"^(?:(?P<pid>\d+) +)?(?P<call>\w+)\((?P<rest>.*)$")


@dataclass(frozen=True)
class Point:
    """A call to strike at: the `number`-th of this name, from 1."""

    call: str
    number: int
    what: str  # the call as it was recorded, for people

    def expression(self, fault: str) -> str:
        """For strace -e inject=."""
        how = f"signal={fault}" if fault == KILL else f"error={fault}"
        return f"inject={self.call}:{how}:when={self.number}"

    def __str__(self) -> str:
        return f"{self.call} {self.number}"


def faults(point: Point) -> tuple[str, ...]:
    """What is tried at a point."""
    return (KILL,) if point.call in ONLY_KILLED else (KILL, *ERRORS)


def points(trace: str, places: Sequence[str], *, pid: int | None = None) -> list[Point]:
    """The calls in a recording (made with -f and -y) that touch one of these directories. pid: of that process only."""
    counted: Counter[str] = Counter()
    found = []
    for line in Path(trace).read_text("utf-8", "replace").split("\n"):
        seen = _LINE.match(line)
        if seen is None or (pid is not None and seen["pid"] != str(pid)):
            continue
        counted[seen["call"]] += 1
        if any(place in seen["rest"] for place in places):
            found.append(Point(seen["call"], counted[seen["call"]], line[:200]))
    return found


def command(trace: str, *, inject: str = "", record: bool = False) -> list[str]:
    """strace and its options. trace: the file it writes, "" = standard error, where each line comes at once."""
    options = ["strace", "-f", "-e", "trace=" + ",".join(TRACED), "-e", "signal=SIGKILL"]
    options += ["-o", trace] if trace else []
    options += ["-y"] if record else []
    return options + (["-e", inject] if inject else [])


class Attached:
    """strace attached to a running process, and to what that forks from then on. trace: a file for a recording."""

    def __init__(self, pid: int, *, trace: str = "", inject: str = "") -> None:
        self._process = subprocess.Popen([*command(trace, inject=inject, record=bool(trace)), "-p", str(pid)],
                                         stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._process.stderr
        self._fd = self._process.stderr.fileno()
        self._said = b""
        end = time.monotonic() + WITHIN
        while b"attached" not in self._said:
            assert self.wait(end - time.monotonic()), f"strace cannot attach to {pid}: {self._said.decode()}"

    def wait(self, within: float) -> bool:
        """Until it says something. False: it said nothing more, or has ended."""
        if not select.select([self._fd], [], [], max(0.0, within))[0]:
            return False
        more = os.read(self._fd, 65536)
        self._said += more
        return bool(more)

    def detach(self) -> int:
        """Let the process go. How often the fault has happened."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        while self.wait(WITHIN):
            pass
        self._process.wait(WITHIN)
        assert self._process.stderr
        self._process.stderr.close()
        return self.struck()

    def struck(self) -> int:
        """How often the fault has happened so far."""
        return struck(self._said.decode("utf-8", "replace"))


def struck(text: str) -> int:
    """How often the fault has happened, by what strace has written."""
    return text.count("(INJECTED)") + text.count("+++ killed by SIGKILL +++")


# ---- the end of a whole host

def die(host: Host) -> None:
    """Everything dies at once."""
    if host.process is not None:
        spared = processes.children() - {host.process.pid}
        host.process.kill()  # first: it would start others
        host.ended()
        processes.end_all_but(spared)  # what it has left is ours now, down to what it forked a moment ago
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:  # we are the parent of the orphans now, and a zombie would keep its locks
            pass
    except ChildProcessError:
        pass


def crash(host: Host) -> None:
    """Everything dies, and comes up again."""
    die(host)
    age_locks(host)
    host.start()


def age_locks(host: Host) -> None:
    """Whoever dies between making a dot lock and writing his number into it has locked the mailbox for as long as
    locks.STALE says, and after a loss of power the number may be somebody else's. Let that time have passed."""
    long_ago = time.time() - locks.STALE
    for name in os.listdir(host.paths.mail):
        if name.endswith(".lock"):
            os.utime(f"{host.paths.mail}/{name}", (long_ago, long_ago))
