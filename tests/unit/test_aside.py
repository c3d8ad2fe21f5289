"""Damaged files: out of the way, and the postmaster is told once, however many they are."""

import errno
import os
from pathlib import Path

import pytest

from pysendmail.daemon.aside import GATHER, NOTICE_EVERY
from pysendmail.mail.outcome import deferred, failed
from pysendmail.paths import Paths
from pysendmail.spool import durable
from tests.tools.running import Running

LATER = deferred("4.2.0", "mailbox is locked")
SOON = 305.0  # seconds: after the first retry


@pytest.fixture
def running(paths: Paths) -> Running:
    Path(paths.aliases).write_text("postmaster: root\n")
    return Running(paths)


def damage(running: Running, count: int = 1) -> list[str]:
    """Messages that wait, and whose files are damaged when they are tried again."""
    found = [running.submit("bob") for _ in range(count)]
    for one in running.deliveries():
        one.answer(LATER)
    running.loop.run()
    for name in os.listdir(f"{running.paths.queue}/cur"):
        if name[:14] in found:
            Path(running.paths.queue, "cur", name).write_bytes(b"rubbish")
    running.loop.advance(SOON)
    return found


def bad(running: Running) -> list[str]:
    return os.listdir(f"{running.paths.queue}/bad")


def text_of(running: Running, queue_id: str) -> str:
    found = running.queue.find(queue_id)
    assert found is not None
    return Path(running.paths.queue, found.place, found.name).read_text("utf-8")


def test_many_damaged_files_are_one_notice(running: Running) -> None:
    found = damage(running, 30)
    running.loop.advance(GATHER)
    notice, = running.deliveries()
    assert (notice.user, notice.queue_id[0]) == ("root", "z")
    text = text_of(running, notice.queue_id)
    assert "Subject: 30 messages moved to queue/bad on host.example\n" in text
    assert (text.count(found[0]), "and 10 more" in text, "Auto-Submitted: auto-generated" in text) == (1, True, True)
    notice.answer()
    running.loop.advance(NOTICE_EVERY * 2)
    assert (running.deliveries(), len(running.places())) == ([], 30), "told once, and kept"
    assert all(name.endswith(",told") for name in bad(running))


def test_those_that_come_later_are_told_of_later(running: Running) -> None:
    damage(running)
    running.loop.advance(GATHER)
    running.deliveries()[0].answer()
    damage(running, 2)
    running.loop.advance(GATHER)
    assert running.deliveries() == []
    running.loop.advance(NOTICE_EVERY)
    later, = running.deliveries()
    assert "Subject: 2 messages moved" in text_of(running, later.queue_id)


def test_a_file_that_cannot_be_moved_is_moved_later(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(running.queue, "set_aside", fail)
        found, = damage(running)
        assert bad(running) == []
    running.loop.advance(GATHER)
    assert [name[:14] for name in bad(running)] == [found]


def test_crash_before_the_notice_is_made_up_for(running: Running) -> None:
    damage(running)
    running.restart()
    running.loop.advance(GATHER)
    first, = running.deliveries()
    running.restart()
    running.loop.advance(GATHER * 2)
    again, = running.deliveries()
    assert again.queue_id == first.queue_id, "the notice is in the queue, and there is no second one"


def test_full_disk_delays_the_notice(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(running)
    real = durable.publish
    monkeypatch.setattr(durable, "publish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    running.loop.advance(GATHER)
    assert (running.deliveries(), running.lines("cannot tell the postmaster")) != ([], [])
    monkeypatch.setattr(durable, "publish", real)
    running.loop.advance(NOTICE_EVERY + GATHER)
    notice, = running.deliveries()
    assert notice.user == "root"


def test_notice_that_fails_is_held_and_nobody_is_told_of_it(running: Running) -> None:
    damage(running)
    running.loop.advance(GATHER)
    notice, = running.deliveries()
    notice.answer(failed("5.2.1", "mailbox is closed"))
    running.loop.advance(NOTICE_EVERY * 2)
    assert running.deliveries() == []
    assert running.places()[notice.queue_id] == "hold"


def test_notice_that_is_damaged_itself_makes_no_other(running: Running) -> None:
    damage(running)
    running.loop.advance(GATHER)
    notice, = running.deliveries()
    notice.answer(LATER)
    running.loop.run()
    place = running.queue.find(notice.queue_id)
    assert place is not None
    Path(running.paths.queue, place.place, place.name).write_bytes(b"rubbish")
    running.loop.advance(NOTICE_EVERY * 3)
    assert running.deliveries() == []
    assert running.places()[notice.queue_id] == "bad"
