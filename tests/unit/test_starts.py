"""Asking for processes: which answer is ours, and how long it is before the next question."""

import asyncio
import os
import socket
from typing import cast

from pysendmail.daemon.starts import ASK_WITHIN, LOST, RESTART_FIRST, RESTART_MOST, STEADY_AFTER, Starts
from pysendmail.mail.outcome import deferred
from tests.tools.loop import Loop

BUSY = deferred("4.3.0", "cannot start a process: Resource temporarily unavailable")


class Spawner:
    """What is asked of it. is_gone: nobody hears it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.is_gone = False
        self.loop = Loop()
        self.starts = Starts(cast(asyncio.AbstractEventLoop, self.loop), "relay", self._ask)

    def _ask(self, value: dict[str, object]) -> None:
        if self.is_gone:
            raise BrokenPipeError(32, "Broken pipe")
        self.asked.append(value)

    def refuse(self) -> object:
        """Ask and be refused."""
        assert self.starts.ask() is None
        return self.starts.granted({"n": self.asked[-1]["n"], "error": BUSY.to_json()}, [])


def test_a_process_is_its_socket_and_its_pid() -> None:
    spawner = Spawner()
    assert spawner.starts.ask() is None
    assert spawner.starts.is_asked
    assert spawner.asked == [{"relay": True, "n": 1}]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found = spawner.starts.granted({"n": 1, "relay": True, "pid": 4711}, [ours.detach()])
    assert isinstance(found, tuple)
    channel, pid = found
    with theirs, channel:
        assert (pid, channel.getblocking(), channel.send(b"x")) == (4711, False, 1)
    assert not spawner.starts.is_asked
    assert spawner.starts.wait == 0


def test_an_answer_to_something_else_is_closed_and_changes_nothing() -> None:
    spawner = Spawner()
    for is_asked in (False, True):
        if is_asked:
            spawner.starts.ask()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            assert spawner.starts.granted({"n": 77, "relay": True, "pid": 1}, [ours.detach()]) is None
            assert theirs.recv(1) == b""
        assert spawner.starts.granted({"n": 77, "error": BUSY.to_json()}, []) is None
        assert (spawner.starts.is_asked, spawner.starts.wait) == (is_asked, 0)


def test_whoever_is_refused_waits_twice_as_long_each_time() -> None:
    spawner = Spawner()
    wanted = RESTART_FIRST
    for _ in range(10):
        assert spawner.refuse() == BUSY
        assert not spawner.starts.is_asked
        assert spawner.starts.wait == wanted
        spawner.loop.now += wanted
        assert spawner.starts.wait == 0
        wanted = min(wanted * 2, RESTART_MOST)
    spawner.starts.answered()
    spawner.refuse()
    assert spawner.starts.wait == RESTART_FIRST


def test_a_process_for_which_no_descriptor_was_free_is_one_that_was_refused() -> None:
    spawner = Spawner()
    spawner.starts.ask()
    assert spawner.starts.granted({"n": 1, "relay": True, "pid": 4711}, []) == LOST
    assert (spawner.starts.is_asked, spawner.starts.wait) == (False, RESTART_FIRST)


def test_an_answer_that_got_lost_is_not_waited_for_without_end() -> None:
    spawner = Spawner()
    spawner.starts.ask()
    spawner.loop.now += ASK_WITHIN
    assert (spawner.starts.is_asked, spawner.starts.wait) == (False, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        assert spawner.starts.granted({"n": 1, "relay": True, "pid": 4711}, [ours.detach()]) is None
        assert theirs.recv(1) == b""
    assert spawner.starts.ask() is None
    assert spawner.asked[-1] == {"relay": True, "n": 2}


def test_a_spawner_that_is_gone_refuses() -> None:
    spawner = Spawner()
    spawner.is_gone = True
    outcome = spawner.starts.ask()
    assert outcome is not None
    assert (outcome.status, os.strerror(32) in outcome.reason) == ("4.3.0", True)
    assert (spawner.starts.is_asked, spawner.starts.wait) == (False, RESTART_FIRST)
    spawner.starts.end(4711)  # nobody hears it, and nothing comes of that


def test_only_a_process_that_ended_at_once_makes_a_pause() -> None:
    spawner = Spawner()
    spawner.starts.ended(spawner.loop.now - STEADY_AFTER)
    assert spawner.starts.wait == 0
    spawner.starts.ended(spawner.loop.now - STEADY_AFTER + 1)
    assert spawner.starts.wait == RESTART_FIRST


def test_a_process_can_be_ended() -> None:
    spawner = Spawner()
    spawner.starts.end(4711)
    assert spawner.asked == [{"end": 4711}]
