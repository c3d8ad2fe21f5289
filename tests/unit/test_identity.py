"""Becoming somebody else: what a child has left, and that a step that fails, or lies, ends it."""

import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from pysendmail.deliver import identity
from pysendmail.users import User
from tests.tools import elsewhere

BOB = User("bob", 54411, 54411, "/nonexistent", "/bin/sh")
MAIL = 54450


def after_clean(keep: Callable[[], set[int]], look: Callable[[], Any]) -> Any:
    """What `look` sees in a child that has been cleaned; its pipe to us is kept."""
    def child() -> Any:
        pipes = {int(name) for name in os.listdir("/proc/self/fd")} & _pipes()
        identity.clean(keep() | pipes)
        return look()

    return elsewhere.run(child)


def _pipes() -> set[int]:
    """The descriptors with which elsewhere.run hears from its child."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:") and int(name) > 2:
                found.add(int(name))
        except OSError:
            continue
    return found


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def test_clean_leaves_what_is_kept_and_nothing_else() -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    extra = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(20)]
    with ours, theirs:
        sent = ours.fileno()
        seen = after_clean(lambda: {ours.fileno()}, open_descriptors)
    for fd in extra:
        os.close(fd)
    kept = {number: where for number, where in seen.items() if not where.startswith("pipe:")}
    assert [kept.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
    (number, where), *others = ((number, where) for number, where in kept.items() if not where.startswith("/proc/"))
    assert (number, where.partition(":")[0], others) == (sent, "socket", [])


def test_descriptors_above_the_limit_are_closed_too() -> None:
    def look() -> bool:
        return any(where == "/etc/passwd" for where in open_descriptors().values())

    def child() -> bool:
        high = 900
        os.dup2(os.open("/etc/passwd", os.O_RDONLY), high)
        pipes = _pipes()
        identity.clean(pipes)
        return look()

    assert elsewhere.run(child) is False


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_missing_standard_descriptors_are_filled(closed: tuple[int, ...]) -> None:
    """Else the next file that is opened is what somebody's message to standard error goes to."""
    def child() -> dict[int, str]:
        pipes = _pipes()
        for fd in closed:
            os.close(fd)
        identity.clean(pipes)
        return open_descriptors()

    seen = elsewhere.run(child)
    assert [seen[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_clean_resets_signals() -> None:
    def child() -> tuple[list[int], set[int]]:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        identity.clean(_pipes())
        changed = [int(number) for number in signal.valid_signals()
                   if signal.getsignal(number) not in (signal.SIG_DFL, None)]
        return changed, {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}

    assert elsewhere.run(child) == ([], set())


def test_clean_starts_a_session_in_a_harmless_place() -> None:
    def child() -> Any:
        os.chdir("/usr")
        os.umask(0)
        identity.clean(_pipes())
        return (os.getsid(0) == os.getpid(), os.getcwd(), os.umask(0), resource.getrlimit(resource.RLIMIT_CORE),
                resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= identity.MAX_FILES)

    seen = elsewhere.run(child)
    assert seen == (True, "/", 0o077, (0, 0), True)


def test_errors_instead_of_signals() -> None:
    def child() -> list[int]:
        identity.clean(_pipes())
        identity.take_errors_for_signals()
        numbers = []
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"x")
        except BrokenPipeError as problem:
            numbers.append(problem.errno or 0)
        path = f"/tmp/pysm-large-{os.getpid()}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.unlink(path)
        try:
            os.write(fd, b"0123456789")
            os.write(fd, b"0123456789")
        except OSError as problem:
            numbers.append(problem.errno or 0)
        return numbers

    assert elsewhere.run(child) == [32, 27]


# ---- fork


def test_fork_gives_the_child_no_signal_and_the_parent_all_of_them() -> None:
    """Not even one that came in between: it would run the parent's handler in the child."""
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    try:
        pid = identity.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0)
                os._exit(3 if handled else 0 if signal.SIGUSR1 in signal.sigpending() else 4)
            finally:
                os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert handled == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_a_parent_had_is_left_alone_by_the_collector_of_its_child() -> None:
    before = gc.get_freeze_count()  # a runner of another test may have frozen something
    pid = identity.fork()
    if pid == 0:
        os._exit(0 if gc.get_freeze_count() > before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert gc.get_freeze_count() == before, "the parent's own goes on as it was"


def test_fork_that_fails_leaves_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    with pytest.raises(OSError, match="Resource"):
        identity.fork()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


# ---- becoming


@pytest.mark.root
def test_user_is_become_for_good() -> None:
    def child() -> Any:
        os.setgroups([0, 4])
        identity.become(BOB)
        return os.getresuid(), os.getresgid(), os.getgroups()

    assert elsewhere.run(child) == ((54411,) * 3, (54411,) * 3, [54411])


@pytest.mark.root
def test_mailbox_group_is_kept_in_reserve_only() -> None:
    def child() -> Any:
        identity.become(BOB, saved_group=MAIL)
        before = os.getresgid()
        os.setegid(MAIL)
        return before, os.getresgid()

    assert elsewhere.run(child) == ((54411, 54411, MAIL), (54411, MAIL, MAIL))


@pytest.mark.root
def test_root_is_become_too() -> None:
    def child() -> Any:
        os.setgroups([4, 54450])
        identity.become(User("root", 0, 0, "/root", "/bin/sh"))
        return os.getresuid(), os.getresgid(), set(os.getgroups()) <= set(os.getgrouplist("root", 0))

    assert elsewhere.run(child) == ((0,) * 3, (0,) * 3, True)


@pytest.mark.root
@pytest.mark.parametrize("name", ["setgroups", "setresgid", "setresuid"])
def test_step_that_only_seems_to_work_is_noticed(name: str) -> None:
    """Linux capabilities CVE-2000-0506: the call came back, and the process was still root."""
    def child() -> str:
        os.setgroups([0, 4])
        setattr(os, name, lambda *_: None)
        try:
            identity.become(BOB, saved_group=MAIL)
        except identity.NotBecome as problem:
            return str(problem)
        return "become"

    assert elsewhere.run(child) in ("ids are not the user's", "groups are not the user's")


@pytest.mark.root
def test_way_back_that_is_open_is_noticed() -> None:
    def child() -> str:
        os.setuid = lambda uid: None  # type: ignore[assignment]
        try:
            identity.become(BOB)
        except identity.NotBecome as problem:
            return str(problem)
        return "become"

    assert elsewhere.run(child) == "the way back to root is open"


def test_nobody_without_privilege_becomes_anybody() -> None:
    def child() -> str:
        try:
            identity.become(User("bob", 54412, 54412, "/", "/bin/sh"))
        except OSError as problem:
            return type(problem).__name__
        return "become"

    assert elsewhere.run(child, uid=elsewhere.SOMEBODY if os.geteuid() == 0 else None) == "PermissionError"


def test_hardened_process_gets_no_new_privileges() -> None:
    def child() -> str:
        identity.harden(os.getppid())
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(line for line in status if line.startswith("NoNewPrivs"))

    assert elsewhere.run(child) == "NoNewPrivs:\t1\n"


def test_process_whose_parent_is_gone_already_does_not_begin() -> None:
    def child() -> str:
        try:
            identity.harden(os.getppid() + 100_000)
        except OSError as problem:
            return str(problem.strerror)
        return "began"

    assert elsewhere.run(child) == "the supervisor is gone"
