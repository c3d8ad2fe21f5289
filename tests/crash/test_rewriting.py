"""A queue file that another takes the place of: at every instant one of the two is there, whole."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import pytest

from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.spool import durable, queue_file, rewriting
from pysendmail.spool.queue_file import read_envelope, write_message
from pysendmail.spool.rewriting import Unsure, rewrite
from tests.crash.model import Model, Snapshot

ID = "6BO5HVZB000001"
DIRECTORY, PATH, TMP = "/queue/new", f"/queue/new/{ID}", f"/queue/tmp/{ID}"
OLD = Envelope(ID, "a@example.org", (Recipient("b@example.org"),), 1e9, Origin("command", 1000))
NEW = Envelope(ID, "", (Recipient("c@example.org"), Recipient("d@example.org")), 1e9, Origin("command", 1000),
               scanned=True)
OLD_TEXT, NEW_TEXT = [b"Subject: old\n\n", b"old text\n" * 700], [b"X-Seen: yes\nSubject: old\n\n", b"old text\n" * 700]


@contextmanager
def on(model: Model) -> Iterator[None]:
    with ExitStack() as stack:
        for module in (durable, queue_file, rewriting):
            stack.enter_context(mock.patch.object(module, "os", model))
        yield


def with_old_file(**disk: Any) -> Model:
    """A machine with the old file, all of it on the disk."""
    first = Model(**disk)
    for path in (DIRECTORY, "/queue/tmp"):
        first.make(path)
    with on(first):
        fd = durable.create(PATH)
        write_message(fd, OLD, OLD_TEXT)
        first.close(fd)
    return first.restart_from(first.after_kill(), first.now)


def what_is_there(model: Model, snapshot: Snapshot) -> str:
    """ "old" or "new" if that is whole in its place, else what is wrong."""
    after = model.restart_from(snapshot, model.now)
    with on(after):
        try:
            fd = after.open(PATH, after.O_RDONLY)
        except FileNotFoundError:
            return "nothing"
        try:
            envelope, offset, length = read_envelope(fd, ID, verify=True)
        except Exception as problem:  # noqa: BLE001 - whatever is wrong with it
            return f"torn: {problem}"
        text = after.pread(fd, length - offset, offset)
    for name, one, chunks in (("old", OLD, OLD_TEXT), ("new", NEW, NEW_TEXT)):
        if (envelope, text) == (one, b"".join(chunks)):
            return name
    return "another"


DISKS: dict[str, dict[str, Any]] = {
    "fsync covers the name": {"orders_growth": True},
    "fsync covers the name, anything may be lost": {},
    "fsync covers no name, the directory is synced": {"covers_names": False},
}


@pytest.mark.parametrize("disk", DISKS)
def test_no_crash_leaves_neither(disk: str) -> None:
    model = with_old_file(**DISKS[disk])
    directory = DIRECTORY if "covers_names" in DISKS[disk] else ""
    found: set[str] = set()

    def note(_name: str) -> None:
        found.add(what_is_there(model, model.after_kill()))
        found.update(what_is_there(model, snapshot) for snapshot in model.after_power_cut())

    model.on_change = note
    with on(model):
        rewrite(PATH, TMP, NEW, NEW_TEXT, is_all_there_is=True, directory=directory)
    assert found == {"old", "new"}
    model.on_change = lambda name: None
    assert {what_is_there(model, snapshot) for snapshot in model.after_power_cut()} == {"new"}


def test_without_the_first_sync_a_torn_file_would_be_all_that_is_left() -> None:
    """The reason for it; with the source still in intake/ nothing rests on this file, and so it is not synced."""
    model = with_old_file()
    with on(model):
        rewrite(PATH, TMP, NEW, NEW_TEXT, is_all_there_is=False)
    found = {what_is_there(model, snapshot).partition(":")[0] for snapshot in model.after_power_cut()}
    assert found == {"old", "new", "torn"}
    assert not [call for call in model.calls if call.startswith("fsync")]


@pytest.mark.parametrize("is_all_there_is", [True, False])
@pytest.mark.parametrize("call", ["create", "write", "pwrite", "fchmod", "utime", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_call_that_fails_leaves_one_of_them(call: str, number: int, is_all_there_is: bool) -> None:
    for turn in range(3):
        model = with_old_file()
        left = [turn]

        def fault(name: str, _path: str, left: list[int] = left) -> int:
            if name != call:
                return 0
            left[0] -= 1
            return number if left[0] == -1 else 0

        model.fault = fault
        problem: OSError | None = None
        with on(model):
            try:
                rewrite(PATH, TMP, NEW, NEW_TEXT, is_all_there_is=is_all_there_is)
            except OSError as trouble:
                problem = trouble
                assert (call, turn) != ("fsync", 1)
            except Unsure as trouble:
                problem = cast(OSError, trouble.__cause__)
        has_failed = left[0] < 0
        assert has_failed or turn or (call == "fsync" and not is_all_there_is), f"{call} is never called"
        assert (problem.errno if problem else 0) == (number if has_failed else 0)
        is_replaced = not has_failed or (call, turn) == ("fsync", 1)
        assert what_is_there(model, model.after_kill()) == ("new" if is_replaced else "old")
        assert not [path for path, content, *_ in model.after_kill() if path.startswith("/queue/tmp/")]


def test_an_interrupted_source_of_content_changes_nothing() -> None:
    def content() -> Iterator[bytes]:
        yield NEW_TEXT[0]
        yield NEW_TEXT[1]
        raise OSError(errno.EIO, "a file is shorter than it was said to be")

    model = with_old_file()
    with on(model), pytest.raises(OSError, match="shorter"):
        rewrite(PATH, TMP, NEW, content(), is_all_there_is=True)
    assert what_is_there(model, model.after_kill()) == "old"
    assert not [path for path, content, *_ in model.after_kill() if path.startswith("/queue/tmp/")]
