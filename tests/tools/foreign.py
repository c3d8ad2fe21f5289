"""Processes that need not be our children, as the kernel shows them: what they are, have and may, and their end."""

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.tools import elsewhere
from tests.tools.watch import WITHIN, wait_for_end


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on: each before its own children."""
    found = [pid]
    for one in found:
        found += children_of(one)
    return found[1:]


def end(pid: int) -> None:
    """SIGKILL a process, and wait until it has ended; who was its parent does not matter."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for_end(pid)


def children_of(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:
        return []


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").split("\n")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open: number and what it is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it has closed it meanwhile
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def limit(pid: int, what: int, most: int) -> int:
    """Set the soft limit of a running process, as the user that it is; what it was."""
    seen = status_of(pid)
    uid, gid = int(seen["Uid"].split()[0]), int(seen["Gid"].split()[0])

    def set_it() -> int:
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (most, before[1]))
        return before[0]

    return elsewhere.run(set_it, uid=uid if uid != os.geteuid() else None, gid=gid)


def wait_until_it_is(is_so: Callable[[], bool], what: str, within: float = WITHIN) -> None:
    """Until something in /proc is so: the kernel says that it is, and gives no sign when it becomes so."""
    end_of_patience = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < end_of_patience, f"not within {within:g} s: {what}"
        time.sleep(0.01)


def wait_until_traced(pid: int) -> None:
    """Until a tracer has a process."""
    wait_until_it_is(lambda: status_of(pid)["TracerPid"] != "0", f"somebody traces {pid}")
