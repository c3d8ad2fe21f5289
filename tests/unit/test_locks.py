"""Mailbox locks: fcntl and dot lock, held, stale, foreign, and exchanged at the wrong moment."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.deliver import locks
from tests.tools import elsewhere

OLD = locks.STALE + 60


@pytest.fixture
def mailbox(tmp_path: Path) -> str:
    path = tmp_path / "alice"
    path.write_bytes(b"")
    return str(path)


class Clock:
    """time.monotonic and time.sleep of the module under test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(locks.time, "monotonic", fake.monotonic)
    monkeypatch.setattr(locks.time, "sleep", fake.sleep)
    return fake


# ---- waiting


def test_the_first_try_is_at_once_even_without_time_to_wait(clock: Clock) -> None:
    assert len(list(locks.pauses(clock.now))) == 1
    assert clock.slept == []


def test_pauses_grow_stay_bounded_and_end_with_the_deadline(clock: Clock) -> None:
    tries = len(list(locks.pauses(clock.now + 10)))
    assert clock.now == pytest.approx(1010)
    assert 20 < tries < 100
    assert max(clock.slept) <= locks.LONGEST_PAUSE * 1.5
    assert min(clock.slept[:-1]) >= locks.FIRST_PAUSE * 0.5
    assert len(set(clock.slept)) > 10, "two programs that pause alike meet again and again"


# ---- fcntl


def lock_it(path: str) -> Callable[[], object]:
    def take() -> object:
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        return fd
    return take


def test_fcntl_lock_is_refused_while_another_process_has_it_and_granted_after(mailbox: str) -> None:
    fd = os.open(mailbox, os.O_RDWR)
    try:
        with elsewhere.holding(lock_it(mailbox)) as end:
            assert not locks.try_fcntl(fd)
            end()
            assert locks.try_fcntl(fd)
        assert not elsewhere.run(lambda: locks.try_fcntl(os.open(mailbox, os.O_RDWR)))
    finally:
        os.close(fd)
    assert elsewhere.run(lambda: locks.try_fcntl(os.open(mailbox, os.O_RDWR)))


def test_a_shared_lock_of_a_reader_counts(mailbox: str) -> None:
    def take() -> object:
        fd = os.open(mailbox, os.O_RDONLY)
        fcntl.lockf(fd, fcntl.LOCK_SH)
        return fd
    fd = os.open(mailbox, os.O_RDWR)
    try:
        with elsewhere.holding(take):
            assert not locks.try_fcntl(fd)
    finally:
        os.close(fd)


def test_a_file_system_without_locks_is_an_error_not_a_held_lock(mailbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")
    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)
    with pytest.raises(OSError, match="No locks"):
        locks.try_fcntl(0)


# ---- dot lock


def test_dot_lock_is_made_with_our_pid_readable_for_all_and_removed(mailbox: str) -> None:
    before = os.umask(0o077)
    try:
        lock = locks.try_dot(mailbox)
    finally:
        os.umask(before)
    assert lock
    assert Path(mailbox + ".lock").read_bytes() == b"%d\n" % os.getpid()
    assert os.stat(mailbox + ".lock").st_mode & 0o777 == 0o644
    assert locks.holder(mailbox) == os.getpid()
    assert locks.try_dot(mailbox) is None
    lock.release()
    assert not os.path.exists(mailbox + ".lock")
    assert locks.holder(mailbox) == 0


def dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize(("content", "age", "is_stale"), [
    ("dead", 0, True),
    ("dead", OLD, True),
    ("alive", 0, False),
    ("alive", OLD, True),  # a holder that lives touches its lock
    ("", 0, False),  # just made by a program that writes no pid, or has not yet
    ("", OLD, True),
    ("0", 0, False),  # procmail writes this
    ("123:other.host", 0, False),  # Dovecot writes this
    ("123:other.host", OLD, True),
    ("99999999999999999999", 0, False),
    ("-1", 0, False),
    ("١٢", 0, False),  # digits of another script
    ("dead", -OLD, True),
    ("alive", -OLD, False),  # from the future
])
def test_which_dot_locks_are_stale(mailbox: str, content: str, age: float, is_stale: bool) -> None:
    text = {"dead": f"{dead_pid()}\n", "alive": f"{os.getppid()}\n"}.get(content, content)
    path = Path(mailbox + ".lock")
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    lock = locks.try_dot(mailbox)
    assert (lock is not None) == is_stale
    if lock:
        lock.release()
        assert not path.exists()
    else:
        assert path.read_text() == text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/nonexistent", path)],
                         ids=["directory", "fifo", "symlink"])
def test_what_is_no_regular_file_is_never_removed_however_old(mailbox: str, make: Callable[[str], None]) -> None:
    path = mailbox + ".lock"
    make(path)
    os.utime(path, (time.time() - OLD,) * 2, follow_symlinks=False)
    before = os.lstat(path)
    assert locks.try_dot(mailbox) is None
    assert os.lstat(path) == before


@pytest.mark.parametrize("kind", ["made anew", "touched"])
def test_a_stale_lock_that_is_not_so_any_more_is_left_alone(mailbox: str, monkeypatch: pytest.MonkeyPatch,
                                                           kind: str) -> None:
    """Another program breaks the stale lock and makes its own while we are still thinking about the old one."""
    path = Path(mailbox + ".lock")
    path.write_text(f"{dead_pid()}\n")
    old = path.stat()
    is_gone = locks._is_gone

    def exchange(pid: int) -> bool:
        answer = is_gone(pid)
        if kind == "made anew":
            path.rename(mailbox + ".old")
        path.write_text(f"{os.getppid()}\n")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + (1 if kind == "touched" else 0)))
        return answer
    monkeypatch.setattr(locks, "_is_gone", exchange)
    assert locks.try_dot(mailbox) is None
    assert path.read_text() == f"{os.getppid()}\n"


def test_a_stale_lock_that_went_away_by_itself_is_no_obstacle(mailbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(mailbox + ".lock")
    path.write_text("")
    read = locks._read_pid

    def vanish(name: str) -> tuple[int, os.stat_result | None]:
        path.unlink()
        return read(name)
    monkeypatch.setattr(locks, "_read_pid", vanish)
    lock = locks.try_dot(mailbox)
    assert lock
    lock.release()


def test_release_leaves_a_lock_that_is_no_longer_ours(mailbox: str) -> None:
    lock = locks.try_dot(mailbox)
    assert lock
    os.rename(mailbox + ".lock", mailbox + ".old")
    Path(mailbox + ".lock").write_text("somebody else's")
    lock.release()
    assert Path(mailbox + ".lock").read_text() == "somebody else's"


def test_release_does_not_mind_that_the_lock_is_gone(mailbox: str) -> None:
    lock = locks.try_dot(mailbox)
    assert lock
    os.unlink(mailbox + ".lock")
    lock.release()


def test_refresh_touches_our_lock_now_and_then(mailbox: str, clock: Clock) -> None:
    lock = locks.try_dot(mailbox)
    assert lock
    os.utime(mailbox + ".lock", (1, 1))
    clock.now += locks.REFRESH / 2
    lock.refresh()
    assert os.stat(mailbox + ".lock").st_mtime == 1
    clock.now += locks.REFRESH
    lock.refresh()
    assert os.stat(mailbox + ".lock").st_mtime > 1
    assert locks.REFRESH < locks.STALE / 2
    lock.release()


def test_a_lock_whose_pid_cannot_be_written_is_not_left_behind(mailbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(locks.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        locks.try_dot(mailbox)
    assert not os.path.exists(mailbox + ".lock")


@pytest.mark.root
def test_a_directory_that_may_not_be_written_is_an_error_not_a_held_lock() -> None:
    def work() -> str:
        try:
            return str(locks.try_dot(f"{directory}/alice"))
        except PermissionError as problem:
            return type(problem).__name__
    with elsewhere.public_directory() as directory:
        assert elsewhere.run(work, uid=elsewhere.SOMEBODY) == "PermissionError"


@pytest.mark.root
def test_a_process_of_another_user_is_alive_too() -> None:
    """kill(2) says EPERM: there is such a process."""
    assert elsewhere.run(lambda: locks._is_gone(1), uid=elsewhere.SOMEBODY) is False
