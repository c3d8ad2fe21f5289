"""The supervisor's bookkeeping: when a runner is started again, what the service manager hears, its sockets."""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from pysendmail.config import Config, LimitSettings, LocalSettings
from pysendmail.daemon import main
from pysendmail.daemon import supervisor as module
from pysendmail.daemon.supervisor import Runner, Supervisor, agent_settings, service_user
from pysendmail.deliver.packet import decode
from pysendmail.paths import Paths
from pysendmail.users import LookupTrouble, User
from tests.tools import elsewhere


class Heard:
    """A service manager that keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, *lines: str) -> None:
        self.lines += lines


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the supervisor: now[0] is what it shows."""
    shown = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: shown[0])
    return shown


@pytest.fixture
def one(paths: Paths, heard: Heard, log: list[str]) -> Iterator[Supervisor]:
    """A supervisor of which nothing runs; its listeners are nobody's business here."""
    made = Supervisor(paths, mock.Mock(), lambda _, text: log.append(text), heard,  # type: ignore[arg-type]
                      Config(hostname="host.example"), None, None, mock.Mock())
    yield made
    for opened in made.sockets.values():
        opened.close()
    if made.lock >= 0:
        os.close(made.lock)


def runner(pid: int = 999_999, started: float = 1000.0) -> Runner:
    ours, theirs = socket.socketpair()
    theirs.close()
    return Runner(pid, ours, started, started)


def ends(one: Supervisor, code: int, now: list[float], after: float = 1.0) -> float:
    """A runner that lives so long and ends with this code: seconds until the next one."""
    one.runner = runner(started=now[0])
    now[0] += after
    one._runner_ended(code)
    assert one.runner is None
    return one.restart_at - now[0]


# ---- restarts


def test_runner_that_ends_badly_waits_longer_each_time(one: Supervisor, now: list[float]) -> None:
    waits = [ends(one, 70, now) for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_runner_that_lived_long_is_started_soon(one: Supervisor, now: list[float]) -> None:
    for _ in range(5):
        ends(one, 70, now)
    assert ends(one, -9, now, after=3600) == module.RESTART_FIRST


def test_runner_that_was_told_to_end_is_replaced_at_once(one: Supervisor, now: list[float]) -> None:
    assert ends(one, 0, now) == 0


def test_after_a_reload_failures_count_again(one: Supervisor, now: list[float]) -> None:
    assert ends(one, 0, now) == 0
    assert [ends(one, 70, now) for _ in range(3)] == [0.5, 1, 2]


def test_end_that_was_ordered_starts_nothing(one: Supervisor, now: list[float]) -> None:
    one.is_stopping = True
    one.runner = runner()
    one._runner_ended(0)
    assert (one.runner, one.restart_at) == (None, 0.0)


def test_nobody_waits_for_a_runner_that_cannot_start(one: Supervisor, heard: Heard, now: list[float]) -> None:
    """On a disk that cannot be written, say: the boot would stand still until the service manager gives up."""
    for code, told in ((0, 0), (module.EX_SOFTWARE, 1)):
        one.runner = runner()
        one._runner_ended(code)
        assert heard.lines.count("READY=1") == told


def test_fork_that_fails_is_tried_again_later(
        one: Supervisor, now: list[float], log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", fail)
    one._restart()
    assert one.restart_at == now[0] + module.RESTART_MOST
    assert "cannot start the runner: Resource temporarily unavailable" in log[0]
    assert len(os.listdir("/proc/self/fd")) == before


# ---- watching


def test_service_manager_is_not_to_end_what_replaces_a_runner_itself(
        one: Supervisor, heard: Heard, now: list[float]) -> None:
    """A large queue may take minutes to start with, after a reload too; WatchdogSec is one."""
    one._look_after()
    one.runner = runner()
    for _ in range(20):
        now[0] += 5
        one._look_after()
    assert heard.lines == ["WATCHDOG=1"] * 21
    one.runner.link.close()


def test_signs_of_life_are_not_more_than_needed(now: list[float]) -> None:
    """A busy runner gives one with each line of its log."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        pulse = main.Pulse(theirs, lambda: now[0])
        for _ in range(3):
            for _ in range(100):
                pulse.beat()
            assert decode(ours.recv(1000)) == {"beat": True}
            with pytest.raises(BlockingIOError):
                ours.recv(1000)
            now[0] += main.BEAT_EVERY
        now[0] += main.BEAT_EVERY
        elsewhere.run(pulse.beat)  # a vigil's: who lives is not the runner
        with pytest.raises(BlockingIOError):
            ours.recv(1000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_runner_that_does_not_stop_is_killed(one: Supervisor, now: list[float], number: signal.Signals) -> None:
    """After a reload too; and being told again and again gives it no more time."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b"x")
        while True:
            signal.pause()
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)
    one.runner = runner(pid)
    one._signalled(number)
    for _ in range(4):
        now[0] += module.STOP_WITHIN / 4 + 0.1
        one._signalled(number)
        one._look_after()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    one.runner.link.close()


@pytest.mark.parametrize("is_ready", [True, False])
def test_runner_that_hangs_is_replaced_without_a_service_manager(
        one: Supervisor, now: list[float], log: list[str], is_ready: bool) -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        one.runner = Runner(pid, ours, now[0], now[0])
        if is_ready:
            one._ready()
        one._look_after()
        now[0] += 10 * module.START_WITHIN
        one._look_after()
        assert (os.waitpid(pid, os.WNOHANG)[0], log) == (0, []), "the host stood still, and it is only now that it can"
        one._beat()
        for _ in range(int((module.HUNG_AFTER if is_ready else module.START_WITHIN) / 5)):
            now[0] += 5
            one._look_after()
        assert os.waitpid(pid, os.WNOHANG)[0] == 0
        now[0] += 5
        one._look_after()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(log) == 1


def test_end_is_announced(one: Supervisor, heard: Heard) -> None:
    one._signalled(signal.SIGTERM)
    assert (heard.lines, one.is_stopping) == (["STOPPING=1"], True)


# ---- reloads


def test_reload_with_broken_settings_keeps_the_old_ones(one: Supervisor, heard: Heard, log: list[str]) -> None:
    before = one.settings
    with open(one.paths.settings, "w", encoding="utf-8") as file:
        file.write("nonsense = 1\n")
    one._signalled(signal.SIGHUP)
    assert one.settings is before
    assert heard.lines[0] == "RELOADING=1"
    assert heard.lines[-2:] == ["READY=1", "STATUS=settings are broken, running with the old ones"]
    assert any("nonsense" in line for line in log)


def test_reload_with_good_settings_takes_them(one: Supervisor, heard: Heard) -> None:
    with open(one.paths.settings, "w", encoding="utf-8") as file:
        file.write('hostname = "other.example"\n')
    one._signalled(signal.SIGHUP)
    assert one.settings.hostname == "other.example"
    assert "READY=1" not in heard.lines, "that is for the next runner to say"


# ---- what children inherit


def test_agents_know_the_group_of_the_mailboxes_and_the_limits(paths: Paths) -> None:
    settings = Config(hostname="host.example")
    group = agent_settings(settings, paths).mailbox_group
    assert group == (os.stat(paths.mail).st_gid or None if os.geteuid() == 0 else None)
    limits = LimitSettings(program_output=7, forward_size=2048, forward_entries=9)
    told = agent_settings(Config(hostname="host.example", limits=limits), paths)
    assert (told.command_output, told.forward_size, told.forward_entries) == (7, 2048, 9)
    elsewhere_ = Config(hostname="host.example", local=LocalSettings(mail_dir="/nonexistent"))
    assert agent_settings(elsewhere_, paths).mailbox_group is None
    assert agent_settings(elsewhere_, paths).syncs_name, "nothing is known of its file system"


@pytest.mark.parametrize("needed", [True, False])
def test_agents_know_whether_the_names_of_mailboxes_need_a_sync(paths: Paths, monkeypatch: pytest.MonkeyPatch,
                                                                needed: bool) -> None:
    monkeypatch.setattr("pysendmail.daemon.supervisor.needs_directory_sync", lambda path: needed and path == paths.mail)
    assert agent_settings(Config(hostname="host.example"), paths).syncs_name is needed


@pytest.mark.root
@pytest.mark.parametrize(("answer", "words"), [
    (None, "there is no user _pysendmail; is the package installed?"),
    (LookupTrouble(5, "no answer"), "cannot look up user _pysendmail: no answer")])
def test_account_that_is_not_there_is_said(answer: Any, words: str) -> None:
    users = mock.Mock()
    users.lookup = mock.Mock(side_effect=[answer])
    with pytest.raises(OSError, match="_pysendmail") as raised:
        service_user(users, "_pysendmail")
    assert raised.value.strerror == words


def test_nobody_is_become_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    users = mock.Mock()
    users.lookup.return_value = User("x", 1, 1, "/", "/bin/sh")
    assert service_user(users, "_pysendmail") is None
