"""What a confined process can no longer do, as a user and as root, on a kernel that has Landlock."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysendmail.deliver import landlock
from tests.tools import elsewhere

VERSION = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)


def confined(tmp_path: Path, work: Callable[[Path], Any]) -> str:
    """What `work` comes to in a child confined to `in`, a directory below the one it is given."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "file").write_text("old")

    def child() -> str:
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        assert landlock.confine(str(tmp_path / "in")) is (VERSION >= 2)
        try:
            work(tmp_path)
        except OSError as problem:
            return type(problem).__name__
        return "done"

    return elsewhere.run(child)


def exchange(path: Path) -> None:
    """As a message moves through the spool."""
    (path / "in" / "a").write_text("text")
    (path / "in" / "a").rename(path / "in" / "sub" / "b")
    (path / "in" / "sub" / "b").write_text("other")
    (path / "in" / "sub" / "b").unlink()


@pytest.mark.parametrize("work", [
    exchange, lambda path: (path / "file").read_text(), lambda path: os.listdir("/etc"),
    lambda path: os.kill(os.getpid(), 0),
], ids=["write_inside", "read", "list", "own_signals"])
def test_what_is_left(tmp_path: Path, work: Callable[[Path], Any]) -> None:
    assert confined(tmp_path, work) == "done"


FROM_VERSION = [
    (2, "create", lambda path: (path / "new").write_text("x")),
    (2, "append", lambda path: (path / "file").open("a")),
    (2, "unlink", lambda path: (path / "file").unlink()),
    (2, "mkdir", lambda path: (path / "new").mkdir()),
    (2, "symlink", lambda path: (path / "new").symlink_to("file")),
    (2, "fifo", lambda path: os.mkfifo(path / "new")),
    (2, "move_out", lambda path: ((path / "in" / "a").write_text("x"), (path / "in" / "a").rename(path / "new"))),
    (2, "move_in", lambda path: (path / "file").rename(path / "in" / "a")),
    (2, "link", lambda path: os.link(path / "file", path / "in" / "a")),
    (2, "execute", lambda path: os.execv("/bin/true", ["true"])),
    (3, "truncate", lambda path: os.truncate(path / "file", 0)),
    (6, "signal", lambda path: os.kill(os.getppid(), signal.SIGCONT)),
]


@pytest.mark.parametrize(("version", "work"), [(version, work) for version, _, work in FROM_VERSION],
                         ids=[name for _, name, _ in FROM_VERSION])
def test_what_is_no_longer_possible(tmp_path: Path, version: int, work: Callable[[Path], Any]) -> None:
    result = confined(tmp_path, work)
    if version <= VERSION:
        assert result in ("PermissionError", "OSError"), "OSError: other file system, as it is called"
        assert (tmp_path / "file").read_text() == "old"
        assert not (tmp_path / "new").exists()


def test_a_directory_that_is_missing_is_said() -> None:
    def child() -> str:
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        try:
            landlock.confine("/nonexistent/directory")
        except OSError as problem:
            return str(problem.strerror)
        return "confined"

    assert elsewhere.run(child) == ("No such file or directory" if VERSION >= 2 else "confined")
