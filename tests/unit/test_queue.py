"""The queue on disk: names, what a start makes of every state (the table in spool/queue.py), and calls that fail."""

import errno
import os
import posix
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import deferred, delivered
from pysendmail.mail.target import MAILBOX, Target
from pysendmail.paths import Paths
from pysendmail.spool import journal, queue
from pysendmail.spool.journal import Event
from pysendmail.spool.queue import Broken, Entry, Message, Queue, entry_of, name_of
from pysendmail.spool.record import crc

ID, OTHER = "5abcDEFG000001", "5abcDEFG000002"
NOW = 1_795_500_000.25
ENVELOPE = Envelope(ID, "bob@host.example", (Recipient("alice@host.example"),), NOW, Origin("command", 1000, "bob"))
TEXT = b"Subject: x\n\nHello.\n"
WAITING = f"{ID},T=1795500300,A=1,H=,U=1000:2,"
EXPANDED = Event("expanded", NOW, {"r": 0, "t": [[0, Target(MAILBOX, "alice@host.example", user="alice").to_json()]]})
DONE = Event("delivered", NOW, {"n": 0, "o": delivered("done").to_json()})
LATER = Event("deferred", NOW, {"n": [0], "o": deferred("4.2.0", "x" * 300).to_json()})


@pytest.fixture
def spool(paths: Paths) -> Queue:
    return Queue(paths, lambda: NOW)


def claim(paths: Paths, content: bytes = b"a drop file") -> None:
    Path(f"{paths.intake}/{ID}").write_bytes(content)


def adopt(spool: Queue, paths: Paths) -> Message:
    claim(paths)
    return spool.adopt(ENVELOPE, [TEXT], ID)


def files(paths: Paths) -> dict[str, bytes]:
    """Everything in intake/ and the queue, by its path there."""
    found = {}
    places = {"intake": paths.intake} | {name: f"{paths.queue}/{name}" for name in queue.DIRECTORIES}
    for place, directory in places.items():
        for path in Path(directory).iterdir():
            found[f"{place}/{path.name}"] = path.read_bytes()
    return found


def names(paths: Paths) -> list[str]:
    return sorted(files(paths))


# ---- names

@pytest.mark.parametrize(("place", "name", "expected"), [
    ("new", ID, Entry(ID, "new", ID)),
    ("cur", WAITING, Entry(ID, "cur", WAITING, 1795500300, 1, "", 1000)),
    ("cur", f"{ID},T=1,A=2,H=9f86d081:2,S", Entry(ID, "cur", f"{ID},T=1,A=2,H=9f86d081:2,S", 1, 2, "9f86d081")),
    ("cur", f"{ID}:2,RS", Entry(ID, "cur", f"{ID}:2,RS")),  # mutt without -R was here
    ("cur", f"{ID},T=x,A=-1,U=\u0661,Z=5,=,,:2,", Entry(ID, "cur", f"{ID},T=x,A=-1,U=\u0661,Z=5,=,,:2,")),
    ("cur", f"{ID},T=99999999999999999999:2,", Entry(ID, "cur", f"{ID},T=99999999999999999999:2,")),
    ("new", "lost+found", None), ("new", ".nfs0001", None), ("new", ID + "x", None), ("new", "", None)])
def test_what_a_name_says(place: str, name: str, expected: Entry | None) -> None:
    assert entry_of(place, name) == expected


@given(st.integers(0, 10**10 - 1), st.integers(0, 10**6), st.sampled_from(["", "9f86d081"]), st.integers(-1, 2**32 - 1))
def test_names_come_back(due: int, attempts: int, destination: str, uid: int) -> None:
    entry = Entry(ID, "cur", "", due, attempts, destination, uid)
    entry.name = name_of(entry)
    assert entry_of("cur", entry.name) == entry
    assert len(entry.name) < 255
    assert entry.name.endswith(":2,")


def replace(monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[..., Any]) -> None:
    """Put another function in the place of a system call, for whoever calls it (durable.py goes by way of posix)."""
    for module in (os, posix):
        monkeypatch.setattr(module, name, call)


def watch(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, str]]:
    """Note these calls: (name, path)."""
    seen: list[tuple[str, str]] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: str | int, *args: Any) -> Any:
            seen.append((name, os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first))
            return real(first, *args)
        return call

    for name in names:
        replace(monkeypatch, name, watched(name, getattr(os, name)))
    return seen


# ---- one message's life

def test_from_the_drop_to_the_end(spool: Queue, paths: Paths) -> None:
    message = adopt(spool, paths)
    assert names(paths) == [f"intake/{ID}", f"new/{ID}"]
    assert os.stat(spool.path(message)).st_mode & 0o777 == 0o600
    spool.secure(message)
    assert names(paths) == [f"new/{ID}"]
    spool.write_down(message, [EXPANDED, LATER])
    spool.reschedule(message, 1795500300.9, 1, "")
    assert names(paths) == [f"cur/{WAITING}", f"journal/{ID}"]
    again = spool.load(next(spool.entries()))
    assert again.envelope == ENVELOPE
    assert [n for n, _ in again.state.open_targets()] == [0]
    fd = spool.open(again)
    assert os.pread(fd, again.length, again.offset) == TEXT
    os.close(fd)
    spool.finish(again)
    assert names(paths) == []


def test_done_in_the_first_pass(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs no sync at all: the mailbox has had one."""
    replace(monkeypatch, "fsync", lambda fd: pytest.fail("a sync"))
    spool.finish(adopt(spool, paths))
    assert names(paths) == []


def test_held_and_released(spool: Queue, paths: Paths) -> None:
    message = adopt(spool, paths)
    spool.secure(message)
    for name in (ID, WAITING):
        spool.hold(message.entry)
        assert names(paths) == [f"hold/{name}"]
        spool.release(message.entry)
        assert names(paths) == [f"{'new' if name == ID else 'cur'}/{name}"]
        spool.reschedule(message, 1795500300, 1, "")


@pytest.mark.parametrize("chunks", [
    [TEXT], [TEXT, b""], [b"", TEXT], [TEXT[:5], TEXT[5:]], [bytes([byte]) for byte in TEXT], [], [b"x" * 300_000] * 4])
def test_however_it_comes_it_is_one_file(spool: Queue, paths: Paths, chunks: list[bytes]) -> None:
    message = spool.commit(ENVELOPE, iter(chunks))
    again = spool.load(next(spool.entries()))
    assert (again.offset, again.length) == (message.offset, message.length)
    assert files(paths)[f"new/{ID}"][message.offset:] == b"".join(chunks)


def test_a_commit_is_synced_once_after_its_renaming(spool: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch, "rename", "fsync")
    spool.commit(ENVELOPE, [TEXT])
    assert [name for name, _ in calls] == ["rename", "fsync"]


def test_where_the_sync_does_not_cover_names_directories_are_synced(paths: Paths,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Queue(paths, lambda: NOW, sync_directories=True)
    message = adopt(spool, paths)
    calls = watch(monkeypatch, "fsync", "unlink")
    spool.secure(message)
    assert calls == [("fsync", f"{paths.queue}/new/{ID}"), ("fsync", f"{paths.queue}/new"),
                     ("unlink", f"{paths.intake}/{ID}")]


# ---- a start

def whole(spool: Queue, paths: Paths) -> bytes:
    """The bytes of a sound queue file."""
    message = spool.commit(ENVELOPE, [TEXT])
    content = Path(spool.path(message)).read_bytes()
    os.unlink(spool.path(message))
    return content


WHOLE, TORN = "whole", "torn"
RECOVERY = [
    # (what is on the disk, what a start leaves)
    ({}, {}),
    ({"tmp/x": TORN}, {}),
    ({f"intake/{ID}": WHOLE}, {f"intake/{ID}"}),  # S2
    ({f"intake/{ID}": WHOLE, f"new/{ID}": TORN}, {f"intake/{ID}"}),  # S3
    ({f"intake/{ID}": WHOLE, f"new/{ID}": WHOLE}, {f"intake/{ID}"}),  # S3, as far as anybody can tell
    ({f"intake/{ID},U=5": WHOLE, f"new/{ID}": WHOLE}, {f"intake/{ID},U=5"}),  # the same, from the socket
    ({f"new/{ID}": WHOLE}, {f"new/{ID}"}),  # S4
    ({f"new/{ID}": TORN}, {f"new/{ID}"}),  # S5 of a first pass; the runner puts it into bad/
    ({f"intake/{ID}": WHOLE, f"new/{ID}": WHOLE, f"journal/{ID}": WHOLE}, {f"new/{ID}", f"journal/{ID}"}),  # S4
    ({f"intake/{ID}": WHOLE, f"cur/{WAITING}": WHOLE}, {f"cur/{WAITING}"}),
    ({f"intake/{ID}": WHOLE, f"cur/{WAITING}": WHOLE, f"journal/{ID}": WHOLE}, {f"cur/{WAITING}", f"journal/{ID}"}),
    ({f"intake/{ID}": WHOLE, f"hold/{WAITING}": WHOLE}, {f"hold/{WAITING}"}),
    ({f"intake/{ID}": WHOLE, f"cur/{WAITING}": TORN}, {f"intake/{ID}"}),  # no such state, but the source is whole
    ({f"cur/{WAITING}": WHOLE, f"journal/{ID}": TORN}, {f"cur/{WAITING}", f"journal/{ID}"}),
    ({f"journal/{ID}": WHOLE}, {}),  # S5
    ({f"intake/{ID}": WHOLE, f"journal/{ID}": WHOLE}, {f"intake/{ID}"}),  # S5 whose end was undone
    ({f"bad/{WAITING}": TORN, f"journal/{ID}": WHOLE}, {f"bad/{WAITING}", f"journal/{ID}"}),  # for people to look at
    ({f"new/{OTHER}": WHOLE, f"journal/{ID}": WHOLE, f"intake/{ID}": WHOLE}, {f"new/{OTHER}", f"intake/{ID}"}),
    ({"new/lost+found": TORN, "journal/README": TORN}, {"new/lost+found", "journal/README"}),
]


@pytest.mark.parametrize(("before", "after"), RECOVERY, ids=[" + ".join(f"{name} {how}" for name, how in before.items())
                                                             or "nothing" for before, _ in RECOVERY])
def test_what_a_start_makes_of_it(spool: Queue, paths: Paths, before: dict[str, str], after: set[str]) -> None:
    content = whole(spool, paths)
    for name, how in before.items():
        data = journal.encode(EXPANDED) if name.startswith("journal") else content
        place = paths.intake if name.startswith("intake") else paths.queue
        Path(f"{place}/{name.removeprefix('intake/')}").write_bytes(data if how == WHOLE else data[:-5])
    sources = {name[7:21]: name[7:] for name in before if name.startswith("intake")}
    spool.recover(sources)
    assert set(names(paths)) == set(after)
    spool.recover({id_: name for id_, name in sources.items() if f"intake/{name}" in after})
    assert set(names(paths)) == set(after), "a second start changes nothing"


def test_ids_that_are_taken(spool: Queue, paths: Paths) -> None:
    for path in (f"{paths.intake}/5abcDEFG000003,U=5", f"{paths.quarantine}/5abcDEFG000004", f"{paths.journal}/{OTHER}",
                 f"{paths.queue}/bad/{WAITING}", f"{paths.queue}/new/README"):
        Path(path).touch()
    assert spool.taken_ids() == {ID, OTHER, "5abcDEFG000003", "5abcDEFG000004"}


# ---- damage

def test_every_flipped_byte_of_a_queue_file_shows(spool: Queue, paths: Paths) -> None:
    message = spool.commit(ENVELOPE, [TEXT])
    content = Path(spool.path(message)).read_bytes()
    for at in range(len(content)):
        for damaged in (content[:at] + bytes([content[at] ^ 1]) + content[at + 1:], content[:at]):
            Path(spool.path(message)).write_bytes(damaged)
            with pytest.raises(Broken):
                spool.load(message.entry)


@pytest.mark.parametrize("content", [b'00000000 {}\n', b"\0" * 500, b"garbage"])
def test_a_damaged_journal_is_no_reason_to_lose_a_message(spool: Queue, paths: Paths, content: bytes) -> None:
    spool.commit(ENVELOPE, [TEXT])
    Path(f"{paths.journal}/{ID}").write_bytes(content)
    message = spool.load(next(spool.entries()))
    assert message.state.progress == {}
    assert message.is_torn
    spool.write_down(message, [EXPANDED])
    assert Path(f"{paths.journal}/{ID}").read_bytes() == journal.encode(EXPANDED)


def test_a_journal_of_a_newer_version_is_left_alone(spool: Queue, paths: Paths) -> None:
    text = b'{"verb":"teleported","at":5}'
    content = b"%08x %s\n" % (crc(text), text)
    spool.commit(ENVELOPE, [TEXT])
    Path(f"{paths.journal}/{ID}").write_bytes(content)
    with pytest.raises(Broken):
        spool.load(next(spool.entries()))
    assert Path(f"{paths.journal}/{ID}").read_bytes() == content


def test_a_journal_without_end(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_JOURNAL", 1000)
    spool.commit(ENVELOPE, [TEXT])
    Path(f"{paths.journal}/{ID}").write_bytes(journal.encode(LATER) * 10)
    with pytest.raises(Broken, match="too large"):
        spool.load(next(spool.entries()))


def test_deferrals_do_not_make_a_journal_grow_for_ever(spool: Queue, paths: Paths,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of 20,000 that nobody takes is deferred a hundred times. What is done has to be written down whatever."""
    monkeypatch.setattr(queue, "FULL_JOURNAL", 2000)
    spool.commit(ENVELOPE, [TEXT])
    message = spool.load(next(spool.entries()))
    spool.write_down(message, [EXPANDED])
    for _ in range(100):
        spool.write_down(message, [LATER])
    assert os.stat(f"{paths.journal}/{ID}").st_size < 3000
    spool.write_down(message, [LATER, DONE])
    again = spool.load(next(spool.entries()))
    assert again.state.open_targets() == []


# ---- calls that fail

def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.EIO, *, after: int = 0) -> list[Any]:
    """Let os.`name` fail after so many calls. The calls that failed."""
    real, calls, failed = getattr(os, name), [0], []

    def call(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            failed.append(args)
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    replace(monkeypatch, name, call)
    return failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("name", ["open", "fchmod", "write", "utime"])
def test_a_copy_that_cannot_be_made_leaves_only_its_source(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch,
                                                           name: str, number: int) -> None:
    claim(paths)
    failing(monkeypatch, name, number)
    with pytest.raises(OSError) as caught:
        spool.adopt(ENVELOPE, [TEXT], ID)
    monkeypatch.undo()
    assert caught.value.errno == number
    assert names(paths) == [f"intake/{ID}"]


def test_a_copy_that_could_not_be_removed_is_replaced(spool: Queue, paths: Paths) -> None:
    claim(paths)
    Path(f"{paths.queue}/new/{ID}").write_bytes(b"half")
    spool.adopt(ENVELOPE, [TEXT], ID)
    assert spool.load(next(spool.entries())).envelope == ENVELOPE


@pytest.mark.parametrize("name", ["open", "fchmod", "write", "rename", "fsync"])
def test_a_commit_that_fails_queues_nothing(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch,
                                            name: str) -> None:
    failing(monkeypatch, name)
    with pytest.raises(OSError, match="Input/output"):
        spool.commit(ENVELOPE, [TEXT])
    monkeypatch.undo()
    assert names(paths) == []


@pytest.mark.parametrize("name", ["open", "fsync"])
def test_a_copy_that_cannot_be_synced_is_given_up(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch,
                                                  name: str) -> None:
    message = adopt(spool, paths)
    failing(monkeypatch, name)
    with pytest.raises(OSError, match="Input/output"):
        spool.secure(message)
    monkeypatch.undo()
    assert names(paths) == [f"intake/{ID}"]
    assert message.is_given_up
    assert message.source == ID


def test_a_sync_that_failed_is_never_repeated(spool: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the copy cannot be removed: the second one would succeed, and lie."""
    message = adopt(spool, paths)
    failed = failing(monkeypatch, "fsync")
    failing(monkeypatch, "unlink", errno.EROFS)
    for _ in range(3):
        with pytest.raises(OSError, match=r"synced|Input/output|Read-only"):
            spool.secure(message)
    assert len(failed) == 1
    monkeypatch.undo()
    assert names(paths) == [f"intake/{ID}", f"new/{ID}"], "the source is what the promise rests on"


def test_a_journal_is_only_for_messages_that_are_secured(spool: Queue, paths: Paths) -> None:
    message = adopt(spool, paths)
    with pytest.raises(ValueError):
        spool.write_down(message, [EXPANDED])


@pytest.fixture
def secured(spool: Queue, paths: Paths) -> Message:
    message = adopt(spool, paths)
    spool.secure(message)
    spool.write_down(message, [EXPANDED])
    return message


@pytest.mark.parametrize("short", range(0, len(journal.encode(DONE)), 9))
def test_half_a_journal_line_swallows_no_other(spool: Queue, secured: Message, monkeypatch: pytest.MonkeyPatch,
                                               short: int) -> None:
    """The disk was full in the middle of a line, and then it was not: everything that was written after that counts."""
    real, has_written = os.write, False

    def write(fd: int, data: bytes) -> int:
        nonlocal has_written
        if has_written or not short:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        has_written = True
        return real(fd, data[:short])

    replace(monkeypatch, "write", write)
    with pytest.raises(OSError, match="No space"):
        spool.write_down(secured, [DONE])
    monkeypatch.undo()
    spool.write_down(secured, [LATER])
    spool.write_down(secured, [DONE])
    again = spool.load(next(spool.entries()))
    assert again.state.open_targets() == []
    assert again.state.last is not None
    assert not again.is_torn


@pytest.mark.parametrize("name", ["open", "write", "fsync", "truncate"])
def test_a_journal_that_cannot_be_written_is_written_later(spool: Queue, secured: Message,
                                                           monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "truncate":
        secured.is_torn = True
    failing(monkeypatch, name)
    with pytest.raises(OSError, match="Input/output"):
        spool.write_down(secured, [DONE], sync=True)
    monkeypatch.undo()
    spool.write_down(secured, [DONE], sync=True)
    assert spool.load(next(spool.entries())).state.open_targets() == []
    data = Path(f"{spool._journals}/{ID}").read_bytes()
    assert data == journal.encode(EXPANDED) + journal.encode(DONE), "once"


def test_an_end_that_fails_is_tried_again(spool: Queue, paths: Paths, secured: Message,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    for after in (0, 1):
        failing(monkeypatch, "unlink", after=after)
        with pytest.raises(OSError, match="Input/output"):
            spool.finish(secured)
        monkeypatch.undo()
        assert f"journal/{ID}" in names(paths), "what is done is known as long as there is a message"
    spool.finish(secured)
    assert names(paths) == []


def test_durable_is_where_the_queue_changes_things() -> None:
    """So that tests can fail or kill every step, and a reader finds them in one place."""
    source = Path(queue.__file__).read_text()
    calls = ("os.rename", "os.unlink", "os.write", "os.fsync", "os.truncate", "os.mkdir(", "O_CREAT")
    assert not [call for call in calls if call in source]
