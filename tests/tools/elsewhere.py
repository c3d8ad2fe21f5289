"""Something done by another process, perhaps another user, in a mount namespace of its own if need be."""

import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
SOMEBODY, SOMEBODY_ELSE = 54321, 54322  # uids that nobody has


def _child(work: Callable[[], Any], uid: int | None, gid: int | None, out: int) -> NoReturn:
    try:
        if uid is not None:
            group = uid if gid is None else gid
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
        answer = (True, work())
    except BaseException as problem:  # noqa: BLE001 - the parent says what it was
        answer = (False, f"{type(problem).__name__}: {problem}")
    with os.fdopen(out, "wb") as pipe:
        pickle.dump(answer, pipe)
    sys.stdout.flush()
    os._exit(0)


def run(work: Callable[[], T], *, uid: int | None = None, gid: int | None = None) -> T:
    """What `work` returns in a child process, which is that user by then. Its exceptions fail the test."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(work, uid, gid, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    assert data, "the child process died"
    succeeded, answer = pickle.loads(data)
    assert succeeded, answer
    return answer  # type: ignore[no-any-return]


def run_until_killed(work: Callable[[], object]) -> bool:
    """Run `work` in a child; True if it killed itself, False if it came to its end. It has been waited for."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@contextmanager
def holding(take: Callable[[], Any], *, uid: int | None = None) -> Iterator[Callable[[], None]]:
    """Another process that has called `take` and lives on; the value given ends it early."""
    ready_read, ready_write = os.pipe()
    stop_read, stop_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(stop_write)
            if uid is not None:
                os.setresuid(uid, uid, uid)
            kept = take()  # noqa: F841 - what is taken must not be collected
            os.write(ready_write, b".")
            os.read(stop_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(stop_read)
    is_over = False

    def end() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            os.close(stop_write)
            os.waitpid(pid, 0)

    try:
        assert os.read(ready_read, 1) == b".", "the other process could not take it"
        yield end
    finally:
        end()
        os.close(ready_read)


@contextmanager
def public_directory(mode: int = 0o755) -> Iterator[str]:
    """A directory that other users reach too."""
    path = tempfile.mkdtemp(prefix="pysm-", dir="/tmp")
    try:
        os.chmod(path, mode)
        yield path
    finally:
        shutil.rmtree(path)


def mount_tmpfs(path: str, options: str) -> None:
    """In this process, which must be one of `run`: a tmpfs that nobody else sees and that ends with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]):
        subprocess.run(command, check=True)
