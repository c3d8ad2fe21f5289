"""A listener killed before each system call between DATA and 250, and each such call failing: 250 means taken.

Each fault has a listener of its own. What the client heard and what lies in smtp/new have to agree: a message that got
250 is there, whole, and nobody holds its lock; one that did not may be there, since the client will send it again, but
never half of it. A call that fails costs the message a 4xx, and the session nothing.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from pysendmail.daemon import inbox, policy
from pysendmail.paths import Paths
from tests.crash import harness
from tests.crash.effort import some
from tests.crash.harness import KILL, Attached, Point
from tests.tools.door import Door, settings, until

ALICE = "alice@server.example"
SMALL, LARGE = b"Subject: x\n\nBEGIN\nEND\n", b"Subject: x\n\nBEGIN\n%sEND\n" % (b"x" * 99 + b"\n") * 4000


@dataclass(frozen=True)
class Result:
    """answer: to the final dot, "" = none. left: files in smtp/tmp. text: what lies in smtp/new, None = nothing."""

    answer: str
    left: int
    text: bytes | None
    struck: int


class InPlace(Executor):
    """Does at once what it is given to do."""

    def __init__(self, *_: object) -> None:
        """As a pool is made."""

    def submit(self, function: Callable[..., Any], /, *words: Any, **more: Any) -> Future[Any]:  # type: ignore[override]
        done: Future[Any] = Future()
        done.set_result(function(*words, **more))
        return done


class SyncsInPlace(inbox.Syncs):
    """The same for syncs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: str) -> None:
        self._loop = loop
        self._waiting = SimpleQueue()
        self._returned = deque()
        self._is_called = False
        self._directory = directory

    def put(self, fd: int, done: inbox.Done) -> None:
        super().put(fd, done)
        self._waiting.put(None)
        self._work()


def one_thread() -> None:
    """In the listener: strace does not get away from a process of several threads that it has killed."""
    inbox.Syncs = SyncsInPlace  # type: ignore[misc]
    policy.ThreadPoolExecutor = InPlace  # type: ignore[assignment,misc]


@pytest.fixture
def door(paths: Paths) -> Iterator[Door]:
    made = Door(paths, settings(paths), before=one_thread)
    yield made
    made.close()


def deliver(door: Door, text: bytes, *, trace: str = "", inject: str = "") -> Result:
    """One message through a listener under strace, from its DATA on."""
    door.start()
    answer = ""
    with door.connect_from() as client:
        client.hello()
        client.cmd("MAIL FROM:<a@example.org>")
        client.cmd(f"RCPT TO:<{ALICE}>")
        strace = Attached(door.pids[0], trace=trace, inject=inject)
        try:
            answer = client.cmd("DATA")
            if answer.startswith("354 "):
                answer = ""
                client.send(text.replace(b"\n", b"\r\n") + b".\r\n")
                answer = client.reply()[-1]
            else:
                client.cmd("RSET")
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        struck = strace.detach()
        left, found = len(door.unfinished()), door.taken()
        if answer:
            assert client.cmd("NOOP").startswith("250 "), "the session does not go on"
            assert client.mail(ALICE).startswith("250 "), "the next message is not taken"
    door.close_processes()
    for place in (door.paths.smtp_new, door.paths.smtp_tmp):
        for name in os.listdir(place):
            os.unlink(f"{place}/{name}")
    assert len(found) <= 1
    return Result(answer, left, found[0].rest if found else None, struck)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.limit(300)
def test_250_means_taken(door: Door, size: str, tmp_path: Path) -> None:
    text = SMALL if size == "small" else LARGE
    recorded = deliver(door, text, trace=str(tmp_path / "record"))
    assert recorded == Result(recorded.answer, 0, text, 0)
    assert recorded.answer.startswith("250 ")
    found = harness.points(str(tmp_path / "record"), ["/spool/pysendmail/smtp/"])
    assert {point.call for point in found} >= {"openat", "fchmod", "flock", "write", "rename", "fsync", "close"}
    assert sum(point.call == "fsync" for point in found) == 1, "one sync per promise"
    runs = [(point, fault) for point in found for fault in harness.faults(point)]
    answers: Counter[str] = Counter()
    for point, fault in some(runs, 40):
        one = deliver(door, text, inject=point.expression(fault))
        check(point, fault, one, text)
        answers[one.answer[:3]] += 1
    print(f"listener, {size} message: {len(found)} calls, {sum(answers.values())} faults of {len(runs)} tried: "
          f"{dict(answers)}")
    assert answers.keys() <= {"", "250", "451", "452"}


def check(point: Point, fault: str, one: Result, text: bytes) -> None:
    where = f"{fault} at {point.what}: {one.answer or 'no answer'}"
    assert one.text in (None, text), f"{where}: half a message"
    if one.answer.startswith("250 "):
        assert one.text == text, where
    if fault == KILL:
        assert one.answer == "" or one.answer.startswith("250 "), where
        assert one.left <= 1, where
    else:
        assert one.struck, f"{where}: it has not happened"
        assert one.answer, where
        assert one.left == 0, where
        if one.answer[0] == "4":
            assert one.text is None, f"{where}: refused, and there"


def test_files_of_killed_listeners_are_swept(door: Door) -> None:
    Path(door.paths.smtp_tmp, "old").touch()
    inbox_abandoned, inbox.ABANDONED = inbox.ABANDONED, -1.0
    try:
        door.start()
        until(lambda: door.unfinished() == [], "the file is gone")
    finally:
        inbox.ABANDONED = inbox_abandoned
