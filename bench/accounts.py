"""What a booted Debian uses and has delivered, read from outside: /proc of its processes, files of its mailboxes.

CPU time is that of every process in the Debian, so rsyslog, journald, service manager and daemons that have ended are
in it: the sum over living processes of their own time and of that of the children they have waited for (proc(5)). Units
are the kernel's ticks, 10 ms, so that a workload has to take seconds to be known to a percent.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOKS = 0.5  # seconds between looks at memory
TICK = os.sysconf("SC_CLK_TCK")


def processes(leader: int) -> Iterator[int]:
    """The processes in the same pid namespace as `leader`, itself included."""
    space = os.readlink(f"/proc/{leader}/ns/pid")
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == space:
                    yield int(name)
            except OSError:
                continue  # it has ended


def cpu_seconds(leader: int) -> float:
    """User and system time of all that has ever run there, except for what waits to be waited for."""
    total = 0
    for pid in processes(leader):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / TICK


def of_service(leader: int, unit: re.Pattern[str]) -> list[int]:
    """The processes of a service, by the name of their control group."""
    found = []
    for pid in processes(leader):
        try:
            if unit.search(Path(f"/proc/{pid}/cgroup").read_text("ascii", "replace")):
                found.append(pid)
        except OSError:
            continue
    return found


def pss_mb(pids: list[int]) -> float:
    """Proportional set size together: shared pages are counted once."""
    return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids) / 1024


class Peak:
    """The largest memory of processes together, looked at now and then: a look takes time from what it looks at."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._next = 0.0
        self.mb = 0.0

    def look(self) -> None:
        if time.monotonic() >= self._next:
            self.mb = max(self.mb, pss_mb(self._pids()))
            self._next = time.monotonic() + LOOKS


def reset_peaks(pids: list[int]) -> None:
    """From now on the peak is what comes from now on (proc(5), clear_refs)."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            continue


def peaks_mb(pids: list[int]) -> dict[str, float]:
    """The largest resident size so far of each kind of process: its name, or its user where it is a Python."""
    found: dict[str, float] = {}
    for pid in pids:
        try:
            name = Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
            if name.startswith(("python", "pysendmaild")):
                name = f"uid{os.stat(f'/proc/{pid}').st_uid}"
        except OSError:
            continue
        found[name] = max(found.get(name, 0.0), _kilobytes(f"/proc/{pid}/status", "VmHWM") / 1024)
    return found


def _kilobytes(path: str, name: str) -> int:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text("ascii", "replace"), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


class Mailboxes:
    """All mailboxes of a Debian; counts what is delivered by reading each byte once.

    has_maildirs: whether mail goes to Maildirs now. To look for them in thousands of homes takes 9 ms of the processors
    that are being measured.
    """

    has_maildirs = False

    def __init__(self, root: Path) -> None:
        self._mail, self._home = root / "var/mail", root / "home"
        self._read: dict[str, int] = {}
        self._found = 0

    def count(self) -> int:
        """Messages in all mailboxes together: From_ lines in mboxes, files in the new/ of Maildirs."""
        with os.scandir(self._mail) as entries:
            for entry in entries:
                try:
                    grown = not entry.name.endswith(".lock") and entry.stat().st_size > self._read.get(entry.path, 0)
                except FileNotFoundError:
                    continue  # somebody's temporary file
                if grown:
                    self._count_mbox(entry.path)
        maildirs = self._home.glob("*/Maildir/new") if self.has_maildirs else ()
        return self._found + sum(len(os.listdir(new)) for new in maildirs)

    def _count_mbox(self, path: str) -> None:
        """Whole lines only, so that a From_ line in two halves is counted once."""
        seen = self._read.get(path, 0)
        with open(path, "rb") as file:
            file.seek(seen)
            new = file.read()
        new = new[:new.rfind(b"\n") + 1]
        self._found += new.count(b"\nFrom ") + new.startswith(b"From ")
        self._read[path] = seen + len(new)

    def bytes(self) -> int:
        """How large all mboxes are together."""
        return sum(file.stat().st_size for file in self._mail.iterdir())

    def empty(self) -> None:
        """Remove all mail."""
        for file in self._mail.iterdir():
            file.unlink()
        for maildir in self._home.glob("*/Maildir"):
            shutil.rmtree(maildir)
        self._read, self._found = {}, 0
