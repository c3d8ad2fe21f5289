"""The listener processes as the supervisor keeps them: how many, what happens to dead, silent and leaving ones."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pysendmail.config import Config, Listener
from pysendmail.daemon import listeners as module
from pysendmail.daemon.admission import MAX_LISTENERS, Tally
from pysendmail.daemon.listeners import RESTART_FIRST, SILENT_AFTER, STOP_WITHIN, Listeners
from pysendmail.daemon.ports import Ports, address_of
from pysendmail.paths import Paths
from tests.tools.door import Client, Users, settings, until
from tests.tools.host import WITHIN


class Clock:
    """The time of day, and what a test puts on top."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Keeper:
    """What the supervisor does with Listeners, one step at a time."""

    def __init__(self, paths: Paths) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.address = address_of(one)
        self.clock = Clock()
        self.log: list[str] = []

        def log(priority: int, line: str) -> None:
            self.log.append(line)

        self.listeners = Listeners(paths, Users(), log, None, Ports(log), frozenset(), self.clock)
        self.config = replace(settings(paths), listeners=(Listener(self.address),))
        self.ended: list[int] = []

    def use(self, **smtpd: Any) -> Config:
        self.config = replace(self.config, smtpd=replace(self.config.smtpd, **smtpd))
        self.listeners.use(self.config)
        return self.config

    @property
    def pids(self) -> list[int]:
        return list(self.listeners._processes)

    @property
    def working(self) -> list[int]:
        return [pid for pid, process in self.listeners._processes.items() if not process.is_leaving]

    def reap(self, block: bool = False) -> None:
        for pid in self.pids:
            found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
            if found:
                self.ended.append(pid)
                assert self.listeners.ended(pid, os.waitstatus_to_exitcode(status))

    def wait_ended(self, count: int) -> None:
        def is_so() -> bool:
            self.reap()
            return len(self.ended) >= count

        until(is_so, f"{count} have ended")

    def greet(self) -> None:
        host, _, port = self.address.rpartition(":")
        with Client(socket.create_connection((host, int(port)), WITHIN)) as client:
            client.hello()


@pytest.fixture
def keeper(paths: Paths) -> Iterator[Keeper]:
    made = Keeper(paths)
    yield made
    for pid in made.pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    made.listeners._ports.close()


@pytest.mark.parametrize(("processes", "cpus", "is_public", "expected"), [
    (0, 1, True, 1), (0, 2, True, 2), (0, 64, True, 4), (0, 64, False, 1), (3, 2, False, 3)])
def test_how_many(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, processes: int, cpus: int,
                  is_public: bool, expected: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    keeper: Keeper = request.getfixturevalue("keeper")
    proxies = ("192.0.2.1",) if is_public else ()  # strangers come through it
    keeper.use(processes=processes, proxies=proxies)
    assert len(keeper.pids) == expected
    keeper.greet()


def test_without_an_address_there_is_none(keeper: Keeper) -> None:
    keeper.config = replace(keeper.config, listeners=())
    keeper.use(processes=2)
    assert keeper.pids == []
    assert keeper.listeners.are_gone


def test_one_that_died_is_replaced_later_and_later(keeper: Keeper) -> None:
    keeper.use(processes=1)
    wait = RESTART_FIRST
    for round_number in range(1, 5):
        os.kill(keeper.pids[0], signal.SIGKILL)
        keeper.wait_ended(round_number)
        keeper.listeners.look_after()
        assert keeper.pids == []
        assert 0 < keeper.listeners.pause() <= wait
        keeper.clock.ahead += wait
        keeper.listeners.look_after()
        assert len(keeper.pids) == 1
        keeper.greet()
        wait *= 2
    assert sum("listener ended (-9)" in line for line in keeper.log) == 4


def test_the_sessions_of_one_that_died_take_no_places(keeper: Keeper) -> None:
    keeper.use(processes=1)
    host, _, port = keeper.address.rpartition(":")
    tally = Tally(keeper.listeners._table, MAX_LISTENERS - 1)
    with Client(socket.create_connection((host, int(port)), WITHIN)) as client:
        client.hello()
        assert tally.sessions == 1
        os.kill(keeper.pids[0], signal.SIGKILL)
        keeper.wait_ended(1)
    assert tally.sessions == 0


def test_one_that_lived_long_is_replaced_soon(keeper: Keeper) -> None:
    keeper.use(processes=1)
    for round_number in (1, 2):
        keeper.clock.ahead += module.STEADY_AFTER + 1
        os.kill(keeper.pids[0], signal.SIGKILL)
        keeper.wait_ended(round_number)
        assert 0 < keeper.listeners.pause() <= RESTART_FIRST
        keeper.clock.ahead += RESTART_FIRST
        keeper.listeners.look_after()


def test_one_that_gives_no_sign_of_life_is_killed(keeper: Keeper) -> None:
    keeper.use(processes=1)
    (pid,) = keeper.pids
    keeper.greet()
    os.kill(pid, signal.SIGSTOP)
    keeper.listeners.look_after()
    keeper.reap()
    assert keeper.pids == [pid]
    keeper.clock.ahead += SILENT_AFTER + 2
    keeper.listeners.look_after()
    keeper.wait_ended(1)
    assert any("no sign of life" in line for line in keeper.log)


def test_a_reload_starts_others_and_lets_the_old_ones_end(keeper: Keeper) -> None:
    keeper.use(processes=2)
    before = keeper.pids
    keeper.greet()
    host, _, port = keeper.address.rpartition(":")
    with Client(socket.create_connection((host, int(port)), WITHIN)) as client:
        client.hello()
        client.cmd("MAIL FROM:<x@y>")
        keeper.use(processes=2)
        assert len(keeper.working) == 2
        assert not set(before) & set(keeper.working)
        keeper.wait_ended(1)  # one had a client
        assert client.cmd("NOOP").startswith("250 ")
    keeper.wait_ended(2)
    assert sorted(keeper.ended) == sorted(before)
    assert not any("listener ended" in line for line in keeper.log)
    keeper.greet()


def test_rows_of_leaving_ones_are_not_given_away(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTENERS", 3)
    keeper.use(processes=2)
    first = keeper.pids
    for pid in first:
        os.kill(pid, signal.SIGSTOP)  # they will not leave
    keeper.use(processes=2)  # three rows: one of the old ones has to go
    assert len(keeper.working) == 2
    assert len(keeper.pids) == 3
    numbers = [process.number for process in keeper.listeners._processes.values()]
    assert len(set(numbers)) == 3
    assert first[0] not in keeper.pids


def test_the_end(keeper: Keeper) -> None:
    keeper.use(processes=2)
    keeper.greet()
    keeper.listeners.stop()
    keeper.wait_ended(2)
    assert keeper.listeners.are_gone
    keeper.listeners.look_after()
    assert keeper.pids == []


def test_the_end_does_not_wait_for_ever(keeper: Keeper) -> None:
    keeper.use(processes=1)
    os.kill(keeper.pids[0], signal.SIGSTOP)
    keeper.listeners.stop()
    keeper.listeners.look_after()
    keeper.reap()
    assert len(keeper.pids) == 1
    keeper.clock.ahead += STOP_WITHIN
    keeper.listeners.look_after()
    keeper.wait_ended(1)


def test_a_fork_that_fails_is_tried_again(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    fork = module.identity.fork
    monkeypatch.setattr(module.identity, "fork", fail)
    keeper.use(processes=1)
    assert keeper.pids == []
    assert any("cannot start a listener: Resource" in line for line in keeper.log)
    monkeypatch.setattr(module.identity, "fork", fork)
    keeper.clock.ahead += module.RESTART_MOST
    keeper.listeners.look_after()
    assert len(keeper.pids) == 1


def test_somebody_elses_child_is_nobody(keeper: Keeper) -> None:
    assert not keeper.listeners.ended(1, 0)
