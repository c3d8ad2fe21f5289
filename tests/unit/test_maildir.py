"""Delivery into a Maildir: layout, names, repeats after a crash, broken disks, traps."""

import errno
import mailbox as mailbox_module
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pysendmail.deliver import maildir
from pysendmail.deliver.parcel import Parcel
from pysendmail.mail.outcome import Outcome
from tests.tools import calls, elsewhere
from tests.tools.parcels import HEAD, Parcels, message

HOST = "host.example"


@pytest.fixture
def parcels(tmp_path: Path) -> Iterator[Parcels]:
    directory = tmp_path / "queue"
    directory.mkdir()
    made = Parcels(directory)
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the Maildir will be."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / "Maildir"


def deliver(place: Path | str, *parcels: Parcel, hostname: str = HOST) -> list[Outcome]:
    return maildir.deliver(str(place), parcels, hostname=hostname)


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def contents(place: Path, name: str = "new") -> list[bytes]:
    return sorted(path.read_bytes() for path in (place / name).iterdir())


def test_a_maildir_is_made_private_with_its_three_directories(place: Path, parcels: Parcels) -> None:
    assert deliver(place, parcels.make()) == [Outcome("2.0.0", "delivered to Maildir")]
    for directory in (place, place / "tmp", place / "new", place / "cur"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert contents(place) == [HEAD + message()]
    assert contents(place, "tmp") == []
    assert stat.S_IMODE(next((place / "new").iterdir()).stat().st_mode) == 0o600


def test_the_message_is_as_it_was_without_a_from_line_or_quoting(place: Path, parcels: Parcels) -> None:
    text = message(1, b"From here\n>From there\n\0\xff\r\n" + b"z" * 600_000)
    deliver(place, parcels.make(text))
    assert contents(place) == [HEAD + text]


def test_the_name_tells_queue_id_and_host_and_the_time_of_acceptance(place: Path, parcels: Parcels) -> None:
    made = parcels.make()
    os.utime(f"/proc/self/fd/{made.fd}", ns=(5, 1_057_049_557_123_456_789))
    deliver(place, made)
    name, = os.listdir(place / "new")
    assert name.startswith(f"1057049557.M123456Q{made.queue_id}D")
    assert name.endswith(f".{HOST}")


@pytest.mark.parametrize(("hostname", "last"), [
    ("a/b", ".a_b"), ("a:b,c", ".a_b_c"), ("", ".localhost"), ("ho\nst", ".ho_st"), ("é", "._"),
    ("x" * 300, "." + "x" * 100), ("../../x", "..._.._x")])
def test_a_strange_host_name_makes_no_strange_file_name(place: Path, parcels: Parcels, hostname: str,
                                                        last: str) -> None:
    assert statuses(deliver(place, parcels.make(), hostname=hostname)) == ["2.0.0"]
    name, = os.listdir(place / "new")
    assert name.endswith(last)


def test_each_file_is_synced_before_it_is_named_and_the_directory_once(place: Path, parcels: Parcels,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(place, parcels.make(number=99))
    order: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_sync(fd)

    def rename(*args: str, **more: int) -> None:
        order.append("rename")
        real_rename(*args, **more)
    calls.replace(monkeypatch, "fsync", sync)
    calls.replace(monkeypatch, "rename", rename)
    calls.replace(monkeypatch, "posix_fadvise", lambda *_: order.append("begin"))
    batch = [parcels.make(message(n), number=n) for n in range(1, 4)]
    assert statuses(deliver(place, *batch)) == ["2.0.0"] * 3
    assert order == ["begin"] * 3 + ["file", "rename"] * 3 + ["directory"]
    assert len(contents(place)) == 4


def test_a_large_batch_opens_a_bounded_number_of_files(place: Path, parcels: Parcels,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maildir, "MAX_OPEN", 3)
    opened: list[int] = []
    real = os.fsync

    def sync(fd: int) -> None:
        opened.append(len(os.listdir("/proc/self/fd")))
        real(fd)
    batch = [parcels.make(message(n), number=n) for n in range(1, 11)]
    before = len(os.listdir("/proc/self/fd"))
    calls.replace(monkeypatch, "fsync", sync)
    assert statuses(deliver(place, *batch)) == ["2.0.0"] * 10
    assert len(contents(place)) == 10
    assert max(opened) <= before + 4 + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_new_maildir_is_made_durable(place: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def sync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)
    calls.replace(monkeypatch, "fsync", sync)
    deliver(place, parcels.make())
    assert synced[:2] == [str(place.parent), str(place)]
    assert synced[-1] == str(place / "new")


def test_python_reads_the_maildir(place: Path, parcels: Parcels) -> None:
    deliver(place, *(parcels.make(message(n), number=n) for n in range(1, 4)))
    found = mailbox_module.Maildir(str(place), create=False)
    assert sorted(m["Subject"] for m in found) == ["number 1", "number 2", "number 3"]


# ---- repeats


def test_two_deliveries_of_one_message_to_different_addresses_are_two(place: Path, parcels: Parcels) -> None:
    plus = parcels.make(head=HEAD.replace(b"alice@", b"alice+tag@"), may_repeat=True)
    assert statuses(deliver(place, parcels.make(may_repeat=True), plus)) == ["2.0.0"] * 2
    assert len(contents(place)) == 2


@pytest.mark.parametrize("moved_to", [None, "cur/{}:2,S", "cur/{},S=123:2,RS", "cur/{}:2,", "cur/{}"])
def test_a_repeat_is_recognised_also_when_it_has_been_read(place: Path, parcels: Parcels, moved_to: str | None) -> None:
    made = parcels.make(may_repeat=True)
    deliver(place, made)
    name, = os.listdir(place / "new")
    if moved_to:
        os.rename(place / "new" / name, place / moved_to.format(name))
    assert deliver(place, made) == [Outcome("2.0.0", "delivered to Maildir by an earlier attempt")]
    assert len(contents(place)) + len(contents(place, "cur")) == 1


def test_a_repeat_is_synced_before_it_counts(place: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows whether the attempt that wrote it lived to sync the name."""
    made = parcels.make(may_repeat=True)
    deliver(place, made)
    name, = os.listdir(place / "new")
    os.rename(place / "new" / name, place / "cur" / f"{name}:2,")
    synced: list[str] = []

    def fail(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        if synced[-1] == "cur":
            raise OSError(errno.EIO, "Input/output error")
    calls.replace(monkeypatch, "fsync", fail)
    assert statuses(deliver(place, made)) == ["4.3.0"]
    assert synced == ["new", "cur"]
    assert len(contents(place, "cur")) == 1, "what a mail reader has is not taken away"


def test_a_batch_that_names_the_same_delivery_twice_writes_it_once(place: Path, parcels: Parcels) -> None:
    made = parcels.make()
    assert statuses(deliver(place, made, made)) == ["2.0.0", "2.0.0"]
    assert len(contents(place)) == 1


def test_a_torn_file_of_a_dead_process_is_no_obstacle_and_goes_in_time(place: Path, parcels: Parcels) -> None:
    made = parcels.make(b"x" * 600_000, may_repeat=True)

    def die() -> None:
        real = os.write

        def write(fd: int, data: bytes) -> int:
            real(fd, data[:1000])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0
        with pytest.MonkeyPatch.context() as patch:
            calls.replace(patch, "write", write)
            deliver(place, made)
    assert elsewhere.run_until_killed(die)
    assert [len(content) for content in contents(place, "tmp")] == [1000]
    assert contents(place) == []
    assert statuses(deliver(place, made)) == ["2.0.0"]
    assert contents(place) == [HEAD + b"x" * 600_000]
    assert len(contents(place, "tmp")) == 1, "removed while somebody may still be writing it"
    left, = (place / "tmp").iterdir()
    os.utime(left, (time.time() - maildir.ABANDONED - 60,) * 2)
    (place / "tmp" / "somebody-elses").write_bytes(b"")
    os.utime(place / "tmp" / "somebody-elses", (1, 1))
    deliver(place, parcels.make(number=2))
    assert os.listdir(place / "tmp") == ["somebody-elses"]


CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "fstat", "stat", "pread", "close", "scandir")


def stepped(patch: pytest.MonkeyPatch, at: int, act: Callable[[str, Callable[[], object]], object]) -> list[str]:
    """`act` instead of call number `at`; the list gets the name of each call."""
    seen: list[str] = []

    def wrapped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **more: object) -> object:
            seen.append(name)
            if len(seen) - 1 == at:
                return act(name, lambda: real(*args, **more))
            return real(*args, **more)
        return step
    for name in CALLS:
        calls.replace(patch, name, wrapped(name, getattr(os, name)))
    return seen


def fresh(place: Path) -> Path:
    """Another Maildir path of the same kind for each round."""
    number = len(os.listdir(place.parent))
    return place.parent / f"Maildir-{number}"


def deliver_and_die(at: int, place: Path, batch: list[Parcel]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stepped(patch, at, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        deliver(place, *batch)


def test_a_process_killed_at_any_call_leaves_nothing_that_is_not_made_good(place: Path, parcels: Parcels) -> None:
    batch = [parcels.make(message(n), number=n, may_repeat=True) for n in range(1, 4)]
    at = -1
    while True:
        at += 1
        here = fresh(place)
        if not elsewhere.run_until_killed(partial(deliver_and_die, at, here, batch)):
            break
        for content in contents(here) if (here / "new").exists() else []:
            assert content in [HEAD + message(n) for n in range(1, 4)], f"torn at call {at}"
        assert statuses(deliver(here, *batch)) == ["2.0.0"] * 3, f"killed at call {at}"
        assert contents(here) == [HEAD + message(n) for n in range(1, 4)], f"killed at call {at}"
    assert at > 30


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT, errno.EACCES])
def test_any_call_may_fail(place: Path, parcels: Parcels, code: int) -> None:
    batch = [parcels.make(message(n), number=n) for n in range(1, 4)]
    for at in range(200):
        here = fresh(place)

        def fail(name: str, real: Callable[[], object]) -> object:
            if name == "close":
                real()
            raise OSError(code, os.strerror(code))
        with pytest.MonkeyPatch.context() as patch:
            seen = stepped(patch, at, fail)
            outcomes = deliver(here, *batch)
        if len(seen) <= at:
            break
        found = contents(here) if (here / "new").exists() else []
        for number, outcome in enumerate(outcomes, 1):
            if outcome.is_delivered:
                found.remove(HEAD + message(number))
            assert not outcome.is_failed
        assert found == [], f"there although deferred, at call {at}, {seen[at]}"
        if seen[at] != "unlink" and (here / "tmp").exists():
            assert contents(here, "tmp") == [], f"left in tmp/ at call {at}, {seen[at]}"
    else:
        pytest.fail("more calls than expected")
    assert at > 30


def test_a_failed_sync_of_the_directory_takes_the_batch_back(place: Path, parcels: Parcels,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(place, parcels.make(message(9), number=9))
    real = os.fsync
    synced: list[int] = []

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            synced.append(fd)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)
    calls.replace(monkeypatch, "fsync", fail)
    assert statuses(deliver(place, *(parcels.make(message(n), number=n) for n in (1, 2)))) == ["4.3.0"] * 2
    assert contents(place) == [HEAD + message(9)]
    assert len(synced) == 1


@pytest.mark.root
def test_what_does_not_fit_waits_and_does_not_stop_the_rest(place: Path, parcels: Parcels) -> None:
    batch = [parcels.make(message(1), number=1), parcels.make(b"x" * 600_000, number=2),
             parcels.make(message(3), number=3)]

    def work() -> tuple[list[str], list[bytes], list[bytes]]:
        elsewhere.mount_tmpfs(str(place.parent), "size=300k")
        outcomes = deliver(place, *batch)
        return statuses(outcomes), contents(place), contents(place, "tmp")
    assert elsewhere.run(work) == (["2.0.0", "4.3.1", "2.0.0"], [HEAD + message(1), HEAD + message(3)], [])


@pytest.mark.root
def test_a_read_only_home_defers(place: Path, parcels: Parcels) -> None:
    def work() -> list[str]:
        elsewhere.mount_tmpfs(str(place.parent), "size=1m,ro")
        return statuses(deliver(place, parcels.make()))
    assert elsewhere.run(work) == ["4.2.0"]


def test_a_broken_queue_file_spoils_no_other_delivery(place: Path, parcels: Parcels, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(b"y" * 400_000)
    cut = parcels.of_file(path, number=2)
    os.truncate(path, 300_000)
    assert statuses(deliver(place, parcels.make(), cut, parcels.make(number=3))) == ["2.0.0", "4.3.0", "2.0.0"]
    assert len(contents(place)) == 2
    assert contents(place, "tmp") == []


# ---- traps


@pytest.mark.parametrize("plant", [lambda p: p.write_bytes(b"x"), os.mkfifo, lambda p: p.symlink_to("/nonexistent/x"),
                                   lambda p: p.symlink_to(p)], ids=["file", "fifo", "dangling", "circle"])
@pytest.mark.parametrize("where", ["", "new", "tmp", "cur"])
def test_what_is_no_maildir_defers(place: Path, parcels: Parcels, where: str, plant: Callable[[Path], None]) -> None:
    if where:
        place.mkdir()
    plant(place / where if where else place)
    outcome, = deliver(place, parcels.make())
    assert outcome.status == "4.2.0"
    assert str(place) in outcome.reason


def test_a_maildir_that_everybody_can_write_is_refused(place: Path, parcels: Parcels) -> None:
    place.mkdir()
    place.chmod(0o777)
    outcome, = deliver(place, parcels.make())
    assert outcome.status == "4.2.0"
    assert "can be written by everybody" in outcome.reason


def test_a_link_to_a_maildir_of_ours_is_followed(place: Path, parcels: Parcels) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to(place.parent / "real")
    assert statuses(deliver(place, parcels.make())) == ["2.0.0"]
    assert len(contents(place.parent / "real")) == 1


@pytest.mark.root
def test_a_maildir_of_a_third_person_is_refused(parcels: Parcels) -> None:
    with elsewhere.public_directory(0o1777) as directory:
        os.mkdir(f"{directory}/Maildir")
        os.chmod(f"{directory}/Maildir", 0o775)
        os.chown(f"{directory}/Maildir", elsewhere.SOMEBODY_ELSE, elsewhere.SOMEBODY)
        made = parcels.make()
        outcome, = elsewhere.run(lambda: deliver(f"{directory}/Maildir", made), uid=elsewhere.SOMEBODY)
        assert outcome.status == "4.2.0"
        assert f"belongs to uid {elsewhere.SOMEBODY_ELSE}" in outcome.reason
        assert os.listdir(f"{directory}/Maildir") == []


@pytest.mark.root
def test_a_home_that_may_not_be_read_is_no_obstacle(parcels: Parcels) -> None:
    """A directory without read permission cannot be synced; syncing what is in it has to do."""
    with elsewhere.public_directory(0o733) as directory:
        made = parcels.make()
        outcomes = elsewhere.run(lambda: deliver(f"{directory}/Maildir", made), uid=elsewhere.SOMEBODY)
        assert statuses(outcomes) == ["2.0.0"]
        assert os.stat(f"{directory}/Maildir/new").st_uid == elsewhere.SOMEBODY


def test_a_missing_home_is_not_made(tmp_path: Path, parcels: Parcels) -> None:
    outcome, = deliver(tmp_path / "nobody" / "Maildir", parcels.make())
    assert outcome.status == "4.2.0"
    assert not (tmp_path / "nobody").exists()
