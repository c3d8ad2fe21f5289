"""The clerk may hang; whoever asks it may not."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.daemon import clerk as module
from pysendmail.daemon.clerk import Clerk
from pysendmail.route import lists
from pysendmail.users import LookupTrouble, User
from tests.tools import processes
from tests.tools.watch import wait_for_end

ALICE = User("alice", 1000, 1001, "/home/alice", "/bin/sh", "Alice \udcff")


class Users:
    """alice; who asks for "slow" waits for ever, and "fatal" ends whoever looks."""

    def lookup(self, name: str) -> User | None:
        if name.startswith("slow"):
            signal.pause()
        if name == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "trouble":
            raise LookupTrouble(5, "Input/output error")
        return ALICE if name == "alice" else None

    def by_uid(self, uid: int) -> User | None:
        return ALICE if uid == ALICE.uid else None


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is added to the clock."""
    monkeypatch.setattr(module, "WITHIN", 0.2)
    monkeypatch.setattr(module, "HURRIED", 0.1)
    return [0.0]


@pytest.fixture
def clerk(now: list[float]) -> Iterator[Clerk]:
    one = Clerk(Users(), lambda: time.monotonic() + now[0])
    yield one
    one.close()


def test_it_knows_what_the_users_know(clerk: Clerk) -> None:
    assert (clerk.lookup("alice"), clerk.lookup("nobody"), clerk.by_uid(1000), clerk.by_uid(7)) == (
        ALICE, None, ALICE, None)
    with pytest.raises(LookupTrouble, match="Input/output error"):
        clerk.lookup("trouble")


def test_clerk_that_has_ended_is_replaced_and_costs_no_message_its_answer(clerk: Clerk) -> None:
    clerk.lookup("alice")
    os.kill(clerk._pid, signal.SIGKILL)
    wait_for_end(clerk._pid)
    assert clerk.lookup("alice") == ALICE


def test_time_that_a_clerk_takes_to_start_is_not_taken_for_a_silence(
        clerk: Clerk, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner may be large by then, and the host slow."""
    fork = module.identity.fork

    def slow() -> int:
        now[0] += module.WITHIN + 1
        return fork()

    monkeypatch.setattr(module.identity, "fork", slow)
    assert clerk.lookup("alice") == ALICE


def test_question_that_hangs_is_a_trouble_and_the_next_one_is_answered(clerk: Clerk, now: list[float]) -> None:
    for _ in range(2):
        with pytest.raises(LookupTrouble):
            clerk.lookup("slow")
        assert clerk.lookup("alice") == ALICE, "what does not hang goes on"


def test_many_questions_that_hang_cost_a_bounded_time(
        clerk: Clerk, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_VAIN", 3)
    monkeypatch.setattr(module, "HURRIED", 0.01)
    started: list[int] = []
    real = module.identity.fork
    monkeypatch.setattr(module.identity, "fork", lambda: started.append(1) or real())
    for number in range(100):
        with pytest.raises(LookupTrouble):
            clerk.lookup(f"slow{number}")
    assert len(started) <= 3
    now[0] += module.PAUSE
    assert clerk.lookup("alice") == ALICE


def test_clerks_that_cannot_be_ended_are_bounded(clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: None)  # as if the kernel waited for a file server
    monkeypatch.setattr(module, "MAX_IN_VAIN", 1000)
    monkeypatch.setattr(module, "HURRIED", 0.01)
    before = processes.children()
    for _ in range(module.MAX_LEFT + 5):
        with pytest.raises(LookupTrouble):
            clerk.lookup("slow")
    assert len(processes.children() - before) == module.MAX_LEFT
    monkeypatch.undo()
    processes.end(processes.children() - before)


def test_clerk_that_dies_of_a_question_is_replaced(clerk: Clerk) -> None:
    with pytest.raises(LookupTrouble):
        clerk.lookup("fatal")
    assert clerk.lookup("alice") == ALICE


def test_it_reads_lists(clerk: Clerk, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"carol\n" * 100_000)
    path.chmod(0o644)
    assert clerk.fetch(str(path), 1_000_000) == (b"carol\n" * 100_000, "")
    assert clerk.fetch(str(path), 1000) == lists.fetch(str(path), 1000)
    assert lists.read(str(path), 1_000_000, clerk.fetch) == lists.read(str(path), 1_000_000)


def test_list_that_hangs_is_a_trouble(clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "fetch", lambda *_: signal.pause())
    data, why = clerk.fetch("/net/list", 1000)
    assert (data, why) == (b"", "cannot read list /net/list: Connection timed out")
    assert clerk.lookup("alice") == ALICE


def test_it_keeps_nothing_open_but_its_socket(clerk: Clerk) -> None:
    with open("/dev/null") as other:
        assert other.fileno() > 2
        clerk.lookup("alice")
        opened = {int(name) for name in os.listdir(f"/proc/{clerk._pid}/fd")}
    assert len(opened - {0, 1, 2}) == 1
