"""Durable writes: the order of system calls that the promise rests on, and what is left behind when one fails."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysendmail.spool import durable


class Recorder:
    """Stands for `os` in durable: notes what changes something, and fails where it is told to."""

    def __init__(self, fail: str = "", error: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self._fail, self._error = fail, error

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "pwrite", "rename", "fsync", "fdatasync", "unlink", "fchmod", "close"):
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == self._fail:
                raise OSError(self._error, os.strerror(self._error))
            return real(*args, **options)
        return call


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    def install(fail: str = "", error: int = errno.EIO) -> Recorder:
        made = Recorder(fail, error)
        monkeypatch.setattr(durable, "os", made)
        return made
    return install


def test_a_file_gets_its_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        os.close(durable.create(str(tmp_path / "x"), 0o640))
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "x").st_mode & 0o7777 == 0o640


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"theirs"), lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.symlink_to(str(path) + "-nowhere"), lambda path: os.mkfifo(path), lambda path: path.mkdir()])
def test_create_takes_nothing_that_is_there(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x")
    with pytest.raises(FileExistsError):
        durable.create(str(tmp_path / "x"))
    assert os.listdir(tmp_path) == ["x"]


def test_create_that_fails_half_way_leaves_nothing(tmp_path: Path, recorder: Callable[..., Recorder]) -> None:
    recorder("fchmod")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Input/output"):
        durable.create(str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


def test_the_lock_says_whether_its_writer_is_still_at_it(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    fd = durable.create(path)
    durable.lock(fd)
    reader = os.open(path, durable.READ)
    assert not durable.is_committed(reader)
    os.close(fd)
    assert durable.is_committed(reader)
    os.close(reader)


def test_a_reader_of_an_unfinished_file_does_not_wait(tmp_path: Path) -> None:
    """It must not: a submitter may hold his lock for ever."""
    path = str(tmp_path / "x")
    with open(path, "w"), subprocess.Popen(["flock", "-x", path, "sh", "-c", "echo; read x"], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdin
        other.stdout.readline()
        reader = os.open(path, durable.READ)
        assert not durable.is_committed(reader)
        os.close(reader)
        other.stdin.close()


@pytest.mark.parametrize("lengths", [[10], [4, 6], [1] * 10, [9, 1]])
def test_short_writes_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                               lengths: list[int]) -> None:
    real, steps = os.write, iter(lengths)
    fd = durable.create(str(tmp_path / "x"))
    monkeypatch.setattr(durable.os, "write", lambda fd, data: real(fd, data[:next(steps)]))
    durable.write_all(fd, b"0123456789")
    monkeypatch.undo()
    os.close(fd)
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_write_that_does_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable.os, "write", lambda fd, data: 0)
    with pytest.raises(OSError, match="returned 0"):
        durable.write_all(99, b"x")
    monkeypatch.setattr(durable.os, "pwrite", lambda fd, data, offset: 2)
    with pytest.raises(OSError, match="short"):
        durable.write_at(99, b"xyz", 0)


def test_a_file_size_limit_is_an_error_and_not_a_short_file(tmp_path: Path) -> None:
    """setrlimit(2): write(2) is short first, and only the next one says EFBIG."""
    code = ("import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
            "from pysendmail.spool import durable\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "fd = durable.create(sys.argv[1])\n"
            "try: durable.write_all(fd, bytes(5000))\n"
            "except OSError as trouble: sys.exit(trouble.errno)\n")
    root = str(Path(durable.__file__).parents[2])
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code, str(tmp_path / "x"), root], check=False)
    assert done.returncode == errno.EFBIG


def publish(tmp_path: Path, directory: bool) -> int:
    for name in ("tmp", "new"):
        (tmp_path / name).mkdir()
    fd = durable.create(str(tmp_path / "tmp/x"))
    durable.write_all(fd, b"data")
    durable.publish(fd, str(tmp_path / "tmp/x"), str(tmp_path / "new/x"), str(tmp_path / "new") if directory else "")
    return fd


@pytest.mark.parametrize(("directory", "expected"), [
    (False, ["rename", "fsync"]),
    (True, ["rename", "fsync", "open", "fsync", "close"])])
def test_the_commit_point(tmp_path: Path, recorder: Callable[..., Recorder], directory: bool,
                          expected: list[str]) -> None:
    """The rename comes first and the sync after it: only then does the sync cover the name, on ext4, xfs and btrfs."""
    made = recorder()
    fd = publish(tmp_path, directory)
    assert made.calls == ["open", "fchmod", "write", *expected]
    assert os.listdir(tmp_path / "new") == ["x"]
    os.close(fd)


@pytest.mark.parametrize(("fail", "error", "left"), [
    ("rename", errno.EIO, {"tmp": ["x"], "new": []}),  # the caller has it, and removes it
    ("fsync", errno.EIO, {"tmp": [], "new": []}),
    ("fsync", errno.ENOSPC, {"tmp": [], "new": []}),
    ("fsync", errno.EDQUOT, {"tmp": [], "new": []})])
def test_a_commit_that_fails_publishes_nothing(tmp_path: Path, recorder: Callable[..., Recorder], fail: str, error: int,
                                               left: dict[str, list[str]]) -> None:
    made = recorder(fail, error)
    with pytest.raises(OSError) as caught:
        publish(tmp_path, directory=False)
    assert caught.value.errno == error
    assert {name: os.listdir(tmp_path / name) for name in left} == left
    assert made.calls.count("fsync") <= 1, "a sync that failed is never repeated"


def test_the_error_of_the_sync_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an I/O error a file system may have become read-only, and the name cannot be removed either."""
    def fail(number: int) -> Callable[..., None]:
        def call(*_: object) -> None:
            raise OSError(number, os.strerror(number))
        return call
    monkeypatch.setattr(durable.os, "fsync", fail(errno.EIO))
    monkeypatch.setattr(durable.os, "unlink", fail(errno.EROFS))
    with pytest.raises(OSError) as caught:
        publish(tmp_path, directory=False)
    assert caught.value.errno == errno.EIO


def test_unlink_says_whether_there_was_something(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert durable.unlink(str(tmp_path / "x"))
    assert not durable.unlink(str(tmp_path / "x"))
    with pytest.raises(IsADirectoryError):
        durable.unlink(str(tmp_path))


def test_append_and_truncate(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    for text in (b"one", b"two"):
        fd = durable.open_append(path)
        durable.write_all(fd, text)
        os.close(fd)
    assert Path(path).read_bytes() == b"onetwo"
    assert os.stat(path).st_mode & 0o777 == 0o600
    durable.truncate(path, 3)
    assert Path(path).read_bytes() == b"one"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        durable.open_append(str(tmp_path / "link"))
