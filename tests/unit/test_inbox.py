"""The way into smtp/new: one file, one sync, and nothing left behind by whatever fails."""

import asyncio
import errno
import fcntl
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysendmail.daemon import inbox as module
from pysendmail.daemon.inbox import ABANDONED, Inbox, Incoming, taken_ids
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.paths import Paths
from pysendmail.spool import durable
from pysendmail.spool.queue_id import Ids
from tests.tools.door import Taken, read
from tests.tools.host import WITHIN

ENVELOPE = Envelope("", "a@example.org", (Recipient("alice@here.example"),), 1000.0, Origin("smtp"))


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def box(paths: Paths) -> Iterator["Box"]:
    made = Box(paths)
    yield made
    made.inbox.close()
    made.loop.close()


class Box:
    """An inbox with a loop. results: what each commit came to, by id."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.results: dict[str, OSError | None] = {}
        self.inbox = Inbox(self.loop, paths, Ids(100, lambda: 1000.0), free_space=1, free_inodes=0, clock=self.clock)

    def begin(self, *pieces: bytes) -> Incoming:
        incoming = self.inbox.begin(self.inbox.new_id())
        for piece in pieces:
            incoming.add(piece)
        return incoming

    def commit(self, *all_of_them: Incoming) -> None:
        """Commit and wait until all have been answered."""
        async def run() -> None:
            answered = asyncio.Event()

            def done(found: str) -> Callable[[OSError | None], None]:
                def note(trouble: OSError | None) -> None:
                    assert found not in self.results, "answered twice"
                    self.results[found] = trouble
                    if len(self.results) >= before + len(all_of_them):
                        answered.set()
                return note

            before = len(self.results)
            for incoming in all_of_them:
                self.inbox.commit(incoming, done(incoming.id))
            assert len(self.results) == before, "answered before the sync"
            await asyncio.wait_for(answered.wait(), WITHIN)

        self.loop.run_until_complete(run())

    def taken(self) -> list[Taken]:
        return [read(f"{self.paths.smtp_new}/{name}") for name in sorted(os.listdir(self.paths.smtp_new))]

    @property
    def is_clean(self) -> bool:
        return os.listdir(self.paths.smtp_tmp) == []


def opened(incoming: Incoming, *content: bytes) -> Incoming:
    incoming.open(ENVELOPE, content)
    return incoming


# ---- files


@pytest.mark.parametrize("content", [
    (), (b"",), (b"Subject: x\n\nbody\n",), (b"Subject: x\n\n", b"body\n"), (b"head\n\n", b"a" * 70_000, b"b", b"c"),
], ids=["nothing", "empty", "one", "two", "many"])
def test_a_message_is_a_queue_file(box: Box, content: tuple[bytes, ...]) -> None:
    incoming = opened(box.begin(b"what was held is not it"), *content)
    box.commit(incoming)
    (found,) = box.taken()
    assert found.text == b"".join(content)
    assert found.envelope.recipients == ENVELOPE.recipients
    assert found.envelope.id == incoming.id
    assert box.results == {incoming.id: None}
    assert box.is_clean
    assert os.stat(incoming.path).st_mode & 0o777 == 0o640


def test_what_is_all_there_is_one_write(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("create", "write_all", "write_at", "rename", "sync"):
        real = getattr(durable, name)
        monkeypatch.setattr(durable, name, lambda *args, real=real, name=name: (calls.append(name), real(*args))[1])
    box.commit(opened(box.begin(), b"Subject: x\n\n", b"body\n"))
    assert calls == ["create", "write_all", "rename", "sync"]


def test_a_long_message_goes_into_the_file_as_it_comes(box: Box) -> None:
    incoming = box.begin(b"start")
    assert incoming.held() == b"start"
    opened(incoming, b"START\n")
    assert not incoming.is_held
    for n in range(100):
        incoming.add(b"%d\n" % n)
    box.commit(incoming)
    assert box.taken()[0].text == b"START\n" + b"".join(b"%d\n" % n for n in range(100))
    assert incoming.size == 5 + 190 + 100


def test_a_message_in_many_pieces_takes_no_more_memory(box: Box) -> None:
    incoming = box.inbox.begin("x")
    pieces = os.urandom(200_000)
    tracemalloc.start()
    try:
        for at in range(0, len(pieces), 2):
            incoming.add(pieces[at:at + 2])
        assert tracemalloc.get_traced_memory()[0] < 2 * len(pieces)
    finally:
        tracemalloc.stop()
    assert incoming.held() == pieces


def test_another_file_takes_its_place_while_it_is_read(box: Box) -> None:
    incoming = opened(box.begin(), b"head\n\n", b"body " * 100_000)

    def content() -> Iterator[bytes]:
        yield b"X-Scanned: yes\nhead\n\n"
        yield from incoming.read(6)

    incoming.replace(ENVELOPE, content())
    assert os.listdir(box.paths.smtp_tmp) == [f"{incoming.id},2"]
    box.commit(incoming)
    assert box.taken()[0].text == b"X-Scanned: yes\nhead\n\n" + b"body " * 100_000
    assert box.is_clean


def test_a_message_that_is_given_up_leaves_nothing(box: Box) -> None:
    box.begin(b"held").give_up()
    incoming = opened(box.begin(), b"x")
    incoming.give_up()
    incoming.give_up()
    assert box.is_clean
    assert box.taken() == []


def test_more_recipients_than_an_envelope_takes(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.record, "MAX_BLOCK", 100)
    with pytest.raises(OSError, match="recipients"):
        opened(box.begin(), b"x")
    assert box.is_clean


# ---- the commit point


def test_the_file_is_locked_until_the_sync_has_returned(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = opened(box.begin(), b"x")
    seen: list[bool] = []
    real = durable.sync

    def sync(fd: int) -> None:
        with open(incoming.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                seen.append(True)
        real(fd)

    monkeypatch.setattr(durable, "sync", sync)
    box.commit(incoming)
    assert seen == [True]
    with open(incoming.path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_syncs_happen_side_by_side(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them returns before all have begun."""
    together = threading.Barrier(module.SYNCS)
    monkeypatch.setattr(durable, "sync", lambda fd: together.wait(WITHIN))
    box.commit(*(opened(box.begin(), b"x") for _ in range(module.SYNCS)))
    assert set(box.results.values()) == {None}
    assert len(box.taken()) == module.SYNCS


def test_many_more_than_there_are_threads(box: Box) -> None:
    everything = [opened(box.begin(), b"%d" % n) for n in range(100)]
    box.commit(*everything)
    assert set(box.results.values()) == {None}
    assert sorted(one.text for one in box.taken()) == sorted(b"%d" % n for n in range(100))
    assert box.inbox.pending == 0


def test_the_runner_is_called_when_messages_are_safe(box: Box) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(box.paths.wake)
        bell.settimeout(WITHIN)
        box.commit(opened(box.begin(), b"x"))
        box.loop.run_until_complete(asyncio.sleep(0))
        bell.recv(1)
        assert len(box.taken()) == 1
    os.unlink(box.paths.wake)
    box.commit(opened(box.begin(), b"nobody listens"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(box.paths.wake)  # another daemon
        bell.settimeout(WITHIN)
        box.commit(opened(box.begin(), b"x"))
        box.loop.run_until_complete(asyncio.sleep(0))
        bell.recv(1)


@pytest.mark.parametrize("step", ["rename", "sync"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_step_that_fails_leaves_nothing_and_is_said(box: Box, monkeypatch: pytest.MonkeyPatch, step: str,
                                                      code: int) -> None:
    failing = opened(box.begin(), b"x")
    good = opened(box.begin(), b"y")

    def fail(fd_or_path: int | str, *more: str) -> None:
        is_his = fd_or_path == failing_fd if isinstance(fd_or_path, int) else failing.id in fd_or_path
        if is_his:
            raise OSError(code, os.strerror(code))
        real(fd_or_path, *more)

    assert failing._file is not None
    failing_fd = failing._file.fd
    real = getattr(durable, step)
    monkeypatch.setattr(durable, step, fail)
    box.commit(failing, good)
    trouble = box.results[failing.id]
    assert trouble is not None
    assert trouble.errno == code
    assert box.results[good.id] is None
    assert [one.text for one in box.taken()] == [b"y"]
    assert box.is_clean
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(failing_fd)


def test_a_file_whose_sync_failed_is_not_synced_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def sync(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(durable, "sync", sync)
    box.commit(opened(box.begin(), b"x"))
    assert len(calls) == 1


def test_elsewhere_the_directory_is_synced_too(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(module, "needs_directory_sync", lambda path: True)
    monkeypatch.setattr(durable, "sync", lambda fd: calls.append("file"))
    monkeypatch.setattr(durable, "sync_directory", calls.append)
    box = Box(paths)
    box.commit(opened(box.begin(), b"x"))
    box.inbox.close()
    box.loop.close()
    assert calls == ["file", paths.smtp_new]


@pytest.mark.parametrize("step", ["create", "lock", "write_all"])
def test_a_file_that_cannot_be_made_leaves_nothing(box: Box, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(durable, step, fail)
    with pytest.raises(OSError, match="full"):
        opened(box.begin(), b"x")
    assert box.is_clean


# ---- room


@pytest.mark.parametrize(("free", "inodes", "size", "has_room"), [
    (10_000, 100, 0, True), (999, 100, 0, False), (10_000, 9, 0, False), (10_000, 0, 0, True),
    (10_000, 100, 6666, True), (10_000, 100, 6668, False),
])
def test_room(box: Box, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, size: int, has_room: bool) -> None:
    class Seen:
        f_bavail, f_frsize, f_files, f_favail = free, 1, inodes and 1000, inodes

    box.inbox._free_space, box.inbox._free_inodes = 1000, 10
    monkeypatch.setattr(os, "statvfs", lambda path: Seen)
    assert box.inbox.has_room(size) is has_room


def test_room_is_looked_at_once_a_second(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: (looks.append(path), real(path))[1])
    for _ in range(5):
        box.inbox.has_room(0)
    box.clock.now += module.ROOM_EVERY
    box.inbox.has_room(0)
    assert len(looks) == 2


# ---- what others have left


def test_what_a_killed_listener_left_goes(box: Box) -> None:
    old, young = Path(box.paths.smtp_tmp, "old"), Path(box.paths.smtp_tmp, "young")
    old.touch()
    young.touch()
    changed = os.stat(old).st_ctime
    assert box.inbox.sweep(changed + ABANDONED - 10) == 0
    assert box.inbox.sweep(max(os.stat(one).st_ctime for one in (old, young)) + ABANDONED + 1) == 2
    assert box.is_clean


def test_ids_that_are_taken(paths: Paths) -> None:
    for path in (paths.smtp_new, paths.smtp_tmp):
        Path(path, Ids(100, lambda: 1.0).new() if path == paths.smtp_new else "leftover").touch()
    assert len(taken_ids(paths)) == 1
