"""Our child processes, as the kernel sees them.

The test process is a subreaper (tests/conftest.py): a process whose parent died becomes our child and stays a zombie
until somebody waits for it. `has_ended` therefore counts zombies as ended, which kill(pid, 0) does not.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
REAP_ROUNDS = 50  # each round kills what the last one brought to us; a fork bomb is not our business


def become_subreaper() -> None:
    """Orphans of our children become our children, so that none can outlive its test unseen."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def state(pid: int) -> str:
    """The letter of /proc/PID/stat, "" if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or dead and merely not waited for."""
    return state(pid) in ("", "Z", "X")


def children() -> set[int]:
    """The pids of our children, zombies included."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text("ascii").split())
        except OSError:  # the thread has ended
            continue
    return found


def end(pids: set[int]) -> None:
    """SIGKILL these children of ours and wait for them."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # somebody has waited for it meanwhile
            continue


def end_all_but(spared: set[int]) -> None:
    """End every child of ours that is not spared, and those that become ours by that."""
    for _ in range(REAP_ROUNDS):
        left = children() - spared
        if not left:
            return
        end(left)
        time.sleep(0)
    raise RuntimeError(f"processes keep appearing: {sorted(left)}")
