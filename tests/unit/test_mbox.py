"""Appending to an mbox: hazards at the path, locks, full and broken disks, batches, crashes, other programs."""

import errno
import fcntl
import mailbox as mailbox_module
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pysendmail.deliver import locks, mbox, mboxrd
from pysendmail.deliver.parcel import Parcel
from pysendmail.mail.outcome import Outcome
from tests.tools import calls, elsewhere
from tests.tools.parcels import FROM_LINE, HEAD, Parcels, message

EARLIER = b"From x@y.test Mon Jun 30 10:00:00 2003\nSubject: an earlier message\n\nIts body.\n\n"
ME = os.getuid()


@pytest.fixture
def parcels(tmp_path: Path) -> Iterator[Parcels]:
    directory = tmp_path / "queue"
    directory.mkdir()
    made = Parcels(directory)
    yield made
    made.close()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """Where the mailbox is, or will be, in a directory of its own."""
    directory = tmp_path / "mail"
    directory.mkdir()
    return directory / "alice"


def append(box: Path, *parcels: Parcel, wait: float = 0, owner: int = ME, **more: int) -> list[Outcome]:
    return mbox.append(str(box), parcels, owner=owner, wait=wait, **more)


def append_file(path: Path | str, *parcels: Parcel, wait: float = 0) -> list[Outcome]:
    return mbox.append_file(str(path), parcels, hostname="host.example", wait=wait)


def written(*parcels: Parcel) -> bytes:
    return b"".join(b"".join(mboxrd.render(p)) for p in parcels)


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


# ---- what is written


def test_a_mailbox_is_made_private_and_gets_the_message(box: Path, parcels: Parcels) -> None:
    before = os.umask(0)
    try:
        assert append(box, parcels.make()) == [Outcome("2.0.0", "delivered to mailbox")]
    finally:
        os.umask(before)
    assert box.read_bytes() == FROM_LINE + HEAD + message() + b"\n"
    assert stat.S_IMODE(box.stat().st_mode) == 0o600
    assert os.listdir(box.parent) == ["alice"], "a lock was left behind"


def test_an_existing_mailbox_keeps_its_mode_and_its_messages(box: Path, parcels: Parcels) -> None:
    box.write_bytes(EARLIER)
    box.chmod(0o640)
    before = box.stat()
    append(box, parcels.make())
    assert box.read_bytes() == EARLIER + written(parcels.make())
    assert (box.stat().st_mode, box.stat().st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize(("directory_mode", "mode"), [(0o775, 0o660), (0o2775, 0o660), (0o755, 0o600), (0o1777, 0o660)])
def test_a_new_mailbox_is_shared_with_the_group_of_the_spool_only(box: Path, parcels: Parcels, directory_mode: int,
                                                                 mode: int) -> None:
    box.parent.chmod(directory_mode)
    append(box, parcels.make())
    assert stat.S_IMODE(box.stat().st_mode) == mode


@pytest.mark.parametrize(("there", "separator"), [
    (b"", b""),
    (b"\n", b""),
    (EARLIER, b""),
    (EARLIER + b"\n\n", b""),
    (EARLIER[:-1], b"\n"),  # no empty line at its end
    (EARLIER[:-2], b"\n\n"),  # its last line is torn
    (EARLIER + b"From z", b"\n\n"),
    (b"x", b"\n\n"),
    (b"\r\n", b"\n"),
])
def test_our_from_line_is_not_swallowed_by_what_is_there(box: Path, parcels: Parcels, there: bytes,
                                                        separator: bytes) -> None:
    box.write_bytes(there)
    append(box, parcels.make())
    assert box.read_bytes() == there + separator + written(parcels.make())


def test_a_batch_is_one_lock_and_one_sync(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    box.write_bytes(EARLIER)
    made: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            made.append(name)
            return real(*args)
        return call
    for module, name in ((os, "fsync"), (fcntl, "lockf"), (os, "write")):
        calls.replace(monkeypatch, name, counted(name, getattr(module, name)), module)
    batch = [parcels.make(message(n), number=n) for n in range(1, 51)]
    assert statuses(append(box, *batch)) == ["2.0.0"] * 50
    assert made == ["lockf", "write", "write", "fsync"]  # the first write is the pid in the dot lock
    assert box.read_bytes() == EARLIER + written(*batch)


@pytest.mark.parametrize(("syncs_name", "synced"), [(True, ["directory", "file"]), (False, ["file"])])
def test_the_name_of_a_new_mailbox_is_synced_where_that_is_needed(
        box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch, syncs_name: bool, synced: list[str]) -> None:
    real, made = os.fsync, []

    def fsync(fd: int) -> None:
        made.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)
    calls.replace(monkeypatch, "fsync", fsync)
    for _ in range(2):
        assert statuses(append(box, parcels.make(), syncs_name=syncs_name)) == ["2.0.0"]
    assert made == [*synced, "file"]


def test_a_large_message_among_small_ones_keeps_its_place(box: Path, parcels: Parcels) -> None:
    batch = [parcels.make(message(n, b"From %d\n" % n * size), number=n)
             for n, size in enumerate((1, 200_000, 2, 3, 100_000, 1), 1)]
    assert statuses(append(box, *batch)) == ["2.0.0"] * 6
    assert box.read_bytes() == written(*batch)
    read = mailbox_module.mbox(box)
    assert len(read) == 6
    read.close()


def test_the_mailbox_group_is_held_for_the_mailbox_only(box: Path, parcels: Parcels) -> None:
    seen: list[object] = []

    @contextmanager
    def privileged() -> Iterator[None]:
        seen.append(box.exists())
        yield
        seen.append(box.exists() and os.listdir(box.parent))
    made = parcels.make()
    assert statuses(mbox.append(str(box), [made], owner=ME, wait=0, privileged=privileged)) == ["2.0.0"]
    assert seen == [False, ["alice"]]


def test_without_the_mailbox_group_mail_waits(box: Path, parcels: Parcels) -> None:
    @contextmanager
    def privileged() -> Iterator[None]:
        raise PermissionError(errno.EPERM, "Operation not permitted")
        yield
    made = [parcels.make(), parcels.make()]
    outcomes = mbox.append(str(box), made, owner=ME, wait=0, privileged=privileged)
    assert statuses(outcomes) == ["4.2.0", "4.2.0"]
    assert not box.exists()


# ---- what stands at the path


def plant_symlink(box: Path) -> None:
    box.symlink_to(box.parent / "victim")


def plant_hard_link(box: Path) -> None:
    box.hardlink_to(box.parent / "victim")


def plant_socket(box: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box))


HAZARDS = [
    (plant_symlink, "is a symbolic link"),
    (lambda box: box.symlink_to("/nonexistent/x"), "is a symbolic link"),
    (lambda box: box.symlink_to(box), "is a symbolic link"),
    (plant_hard_link, "has 2 links"),
    (os.mkfifo, "is not a regular file"),
    (os.mkdir, "is a directory"),
    (plant_socket, "is not a regular file"),
]
HAZARD_NAMES = ["symlink", "dangling", "circle", "hard link", "fifo", "directory", "socket"]


@pytest.mark.parametrize(("plant", "why"), HAZARDS, ids=HAZARD_NAMES)
def test_what_is_no_mailbox_defers_and_is_not_touched(box: Path, parcels: Parcels, plant: Callable[[Path], None],
                                                     why: str) -> None:
    victim = box.parent / "victim"
    victim.write_bytes(b"precious\n")
    plant(box)
    before = os.lstat(box)
    outcome, = append(box, parcels.make())
    assert outcome.status == "4.2.0"
    assert why in outcome.reason
    assert str(box) in outcome.reason
    assert victim.read_bytes() == b"precious\n"
    after = os.lstat(box)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert sorted(os.listdir(box.parent)) == ["alice", "victim"]


def test_a_file_of_another_owner_is_not_written(box: Path, parcels: Parcels) -> None:
    box.write_bytes(b"")
    outcome, = append(box, parcels.make(), owner=ME + 1)
    assert outcome.status == "4.2.0"
    assert f"belongs to uid {ME}, not to uid {ME + 1}" in outcome.reason
    assert box.read_bytes() == b""


@pytest.mark.root
def test_a_device_is_not_even_opened(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mknod(box, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    opened: list[object] = []
    real = os.open

    def noted(path: str, *args: int, **more: int) -> int:
        opened.append(path)
        return real(path, *args, **more)
    calls.replace(monkeypatch, "open", noted)
    assert statuses(append(box, parcels.make()) + append_file(box, parcels.make())) == ["4.2.0", "4.2.0"]
    assert opened.count(str(box)) == 0


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_exchanged_between_check_and_open(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch,
                                          kind: str) -> None:
    victim = box.parent / "victim"
    victim.write_bytes(b"precious\n")
    box.write_bytes(b"")
    real = os.lstat

    def exchange(path: str) -> os.stat_result:
        seen = real(path)
        if path == str(box) and seen.st_size == 0:
            box.unlink()
            if kind == "symlink":
                box.symlink_to(victim)
            else:
                box.hardlink_to(victim)
        return seen
    calls.replace(monkeypatch, "lstat", exchange)
    outcome, = append(box, parcels.make(), owner=ME)
    assert outcome.is_deferred
    if kind == "symlink":
        assert os.strerror(errno.ELOOP) in outcome.reason, "it was opened"
    assert victim.read_bytes() == b"precious\n"


@pytest.mark.parametrize("kind", ["replaced", "removed"])
def test_a_mailbox_that_a_reader_replaces_under_its_lock(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch,
                                                        kind: str) -> None:
    """mutt and others write a new file and rename it, or remove an empty mailbox."""
    box.write_bytes(EARLIER)
    old = os.open(box, os.O_RDONLY)
    real = locks.try_fcntl
    done: list[int] = []

    def exchange(fd: int) -> bool:
        if not done:
            done.append(fd)
            if kind == "removed":
                box.unlink()
            else:
                new = box.parent / "new"
                new.write_bytes(b"")
                new.rename(box)
        return real(fd)
    monkeypatch.setattr(locks, "try_fcntl", exchange)
    assert statuses(append(box, parcels.make(), wait=10)) == ["2.0.0"]
    assert box.read_bytes() == written(parcels.make())
    assert os.pread(old, 10_000, 0) == EARLIER, "written to a file that has no name any more"
    os.close(old)
    assert os.listdir(box.parent) == ["alice"]


@pytest.mark.parametrize("path", ["/nonexistent/mail/alice", "/dev/null/alice"])
def test_a_spool_that_is_not_there_defers(parcels: Parcels, path: str) -> None:
    assert append(Path(path), parcels.make())[0].is_deferred


# ---- locks


def fcntl_lock(path: Path) -> Callable[[], object]:
    def take() -> object:
        handle = path.open("r+b")
        fcntl.lockf(handle, fcntl.LOCK_EX)
        return handle
    return take


def test_a_held_fcntl_lock_defers_in_bounded_time(box: Path, parcels: Parcels) -> None:
    box.write_bytes(EARLIER)
    with elsewhere.holding(fcntl_lock(box)):
        outcome, = append(box, parcels.make(), wait=0.05)
        assert outcome.status == "4.2.0"
        assert "is locked by another program" in outcome.reason
    assert box.read_bytes() == EARLIER
    assert os.listdir(box.parent) == ["alice"]


def test_a_held_dot_lock_defers_and_names_its_holder(box: Path, parcels: Parcels) -> None:
    lock = box.parent / "alice.lock"
    lock.write_text(f"{os.getppid()}\n")
    outcome, = append(box, parcels.make(), wait=0.05)
    assert outcome.status == "4.2.0"
    assert f"is locked by process {os.getppid()} with {lock}" in outcome.reason
    assert lock.read_text() == f"{os.getppid()}\n"
    assert box.read_bytes() == b""
    assert elsewhere.run(lambda: locks.try_fcntl(os.open(box, os.O_RDWR))), "the fcntl lock was kept"


def test_delivery_follows_when_the_locks_are_given_back(box: Path, parcels: Parcels,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    box.write_bytes(EARLIER)
    lock = box.parent / "alice.lock"
    lock.write_text(f"{os.getppid()}\n")
    with elsewhere.holding(fcntl_lock(box)) as end:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            assert box.read_bytes() == EARLIER
            if len(pauses) == 3:
                end()
            if len(pauses) == 6:
                lock.unlink()
        monkeypatch.setattr(locks.time, "sleep", pause)
        assert statuses(append(box, parcels.make(), wait=600)) == ["2.0.0"]
        assert len(pauses) == 6
    assert box.read_bytes() == EARLIER + written(parcels.make())


def test_a_lock_of_a_dead_process_is_no_obstacle(box: Path, parcels: Parcels) -> None:
    def die() -> None:
        locks.try_dot(str(box))
        os.kill(os.getpid(), signal.SIGKILL)
    assert elsewhere.run_until_killed(die)
    assert (box.parent / "alice.lock").exists()
    assert statuses(append(box, parcels.make())) == ["2.0.0"]
    assert os.listdir(box.parent) == ["alice"]


def test_a_long_append_keeps_its_dot_lock_fresh(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    monkeypatch.setattr(locks.DotLock, "refresh", lambda lock: touched.append(lock.path))
    append(box, parcels.make(b"x\n" * 1_000_000))
    assert len(touched) > 5


# ---- full and broken disks


def big(parcels: Parcels, number: int, size: int = 600_000) -> Parcel:
    return parcels.make(message(number, b"0123456789abcde\n" * (size // 16)), number=number)


@pytest.mark.root
def test_what_does_not_fit_waits_and_does_not_stop_the_rest(box: Path, parcels: Parcels) -> None:
    batch = [parcels.make(message(1), number=1), big(parcels, 2), parcels.make(message(3), number=3), big(parcels, 4),
             parcels.make(message(5), number=5)]

    def work() -> tuple[list[str], bytes, list[str], list[str], bytes]:
        elsewhere.mount_tmpfs(str(box.parent), "size=300k")
        first = append(box, *batch)
        content = box.read_bytes()
        elsewhere.subprocess.run(["mount", "-o", "remount,size=20m", str(box.parent)], check=True)
        later = append(box, batch[1], batch[3])
        return statuses(first), content, [o.reason for o in first], statuses(later), box.read_bytes()
    first, content, reasons, later, at_last = elsewhere.run(work)
    assert first == ["2.0.0", "4.3.1", "2.0.0", "4.3.1", "2.0.0"]
    assert "No space left on device" in reasons[1]
    assert content == written(batch[0], batch[2], batch[4])
    assert later == ["2.0.0", "2.0.0"]
    assert at_last == content + written(batch[1], batch[3])


@pytest.mark.root
def test_small_messages_are_delivered_up_to_the_last_that_fits(box: Path, parcels: Parcels) -> None:
    batch = [parcels.make(message(n, b"x" * 20_000), number=n) for n in range(1, 41)]

    def work() -> tuple[list[str], bytes]:
        elsewhere.mount_tmpfs(str(box.parent), "size=300k")
        return statuses(append(box, *batch)), box.read_bytes()
    found, content = elsewhere.run(work)
    delivered = [p for p, status in zip(batch, found, strict=True) if status == "2.0.0"]
    assert 5 < len(delivered) < 20
    assert set(found) == {"2.0.0", "4.3.1"}
    assert content == written(*delivered)


@pytest.mark.root
def test_no_inode_for_a_new_mailbox(box: Path, parcels: Parcels) -> None:
    def work() -> list[str]:
        elsewhere.mount_tmpfs(str(box.parent), "nr_inodes=1")
        return statuses(append(box, parcels.make()))
    assert elsewhere.run(work) == ["4.3.1"]


@pytest.mark.root
def test_a_read_only_spool_defers(box: Path, parcels: Parcels) -> None:
    def work() -> list[str]:
        elsewhere.mount_tmpfs(str(box.parent), "size=1m")
        box.write_bytes(EARLIER)
        elsewhere.subprocess.run(["mount", "-o", "remount,ro", str(box.parent)], check=True)
        existing = statuses(append(box, parcels.make()))
        new = statuses(append(box.parent / "bob", parcels.make()))
        assert box.read_bytes() == EARLIER
        return existing + new
    assert elsewhere.run(work) == ["4.2.0", "4.2.0"]


def test_a_limit_of_the_process_on_file_size_cuts_nothing_in_two(box: Path, parcels: Parcels) -> None:
    box.write_bytes(EARLIER)
    batch = [parcels.make(message(1), number=1), big(parcels, 2), parcels.make(message(3), number=3)]

    def work() -> list[str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return statuses(append(box, *batch))
    assert elsewhere.run(work) == ["2.0.0", "4.2.2", "2.0.0"]
    assert box.read_bytes() == EARLIER + written(batch[0], batch[2])


def test_the_size_limit_holds_back_what_would_exceed_it(box: Path, parcels: Parcels) -> None:
    box.write_bytes(EARLIER)
    batch = [parcels.make(message(1), number=1), parcels.make(message(2, b"x" * 2000), number=2),
             parcels.make(message(3), number=3)]
    outcomes = append(box, *batch, size_limit=1500)
    assert statuses(outcomes) == ["2.0.0", "4.2.2", "2.0.0"]
    assert "would grow beyond 1500 bytes" in outcomes[1].reason
    assert box.read_bytes() == EARLIER + written(batch[0], batch[2])
    assert statuses(append(box, batch[0], size_limit=len(box.read_bytes()))) == ["4.2.2"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EROFS])
def test_a_failed_sync_delivers_nothing_and_is_not_repeated(box: Path, parcels: Parcels,
                                                           monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    box.write_bytes(EARLIER)
    synced: list[int] = []

    def fail(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        raise OSError(code, os.strerror(code))
    calls.replace(monkeypatch, "fsync", fail)
    outcome, = append(box, parcels.make())
    assert outcome.is_deferred
    assert os.strerror(code) in outcome.reason
    assert box.read_bytes() == EARLIER
    assert synced == [box.stat().st_ino]


def test_a_failed_sync_defers_the_whole_batch(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")
    box.write_bytes(EARLIER)
    calls.replace(monkeypatch, "fsync", fail)
    assert statuses(append(box, *(parcels.make(message(n), number=n) for n in range(1, 9)))) == ["4.3.0"] * 8
    assert box.read_bytes() == EARLIER


def test_where_only_the_sync_says_that_there_is_no_room_small_ones_still_fit(box: Path, parcels: Parcels,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and quotas: write(2) succeeds, fsync(2) fails."""
    def fail_if_large(fd: int) -> None:
        if os.fstat(fd).st_size > 100_000:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
    box.write_bytes(EARLIER)
    calls.replace(monkeypatch, "fsync", fail_if_large)
    batch = [parcels.make(message(1), number=1), big(parcels, 2), parcels.make(message(3), number=3)]
    assert statuses(append(box, *batch)) == ["2.0.0", "4.2.2", "2.0.0"]
    assert box.read_bytes() == EARLIER + written(batch[0], batch[2])


def test_a_name_that_cannot_be_made_durable_is_no_mailbox_yet(box: Path, parcels: Parcels,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)
    calls.replace(monkeypatch, "fsync", fail)
    assert statuses(append(box, parcels.make())) == ["4.3.0"]


def test_copies_that_were_never_synced_are_not_believed_after_a_failed_sync(box: Path, parcels: Parcels,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier attempt wrote may be in memory only; when its sync fails now, a later one would lie about it."""
    again = parcels.make(may_repeat=True)
    box.write_bytes(EARLIER + written(again))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as patch:
        calls.replace(patch, "fsync", fail)
        assert statuses(append(box, again)) == ["4.3.0"]
    assert box.read_bytes() == EARLIER
    assert statuses(append(box, again)) == ["2.0.0"]
    assert box.read_bytes() == EARLIER + written(again)


def test_copies_above_others_mail_are_written_again_before_a_sync_is_believed(box: Path, parcels: Parcels,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, where they cannot be cut off: Linux has dropped what a failed sync was to write."""
    again, new = parcels.make(message(1), may_repeat=True), parcels.make(message(2), number=2)
    content = EARLIER + written(again) + EARLIER
    box.write_bytes(content)
    real, dirty = os.pwrite, []

    def pwrite(fd: int, data: bytes, at: int) -> int:
        dirty.append((at, data))
        return real(fd, data, at)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")
    calls.replace(monkeypatch, "pwrite", pwrite)
    for is_broken in (True, False):
        with monkeypatch.context() as patch:
            if is_broken:
                calls.replace(patch, "fsync", fail)
            assert statuses(append(box, again, new)) == (["4.3.0"] * 2 if is_broken else ["2.0.0"] * 2)
        assert box.read_bytes() == content + (b"" if is_broken else written(new))
        assert dirty == [(len(EARLIER), written(again))]
        dirty.clear()


@pytest.mark.parametrize("is_short", [False, True])
def test_what_cannot_be_written_again_is_not_believed(box: Path, parcels: Parcels, monkeypatch: pytest.MonkeyPatch,
                                                      is_short: bool) -> None:
    """And what was appended behind it is cut off."""
    again, new = parcels.make(message(1), may_repeat=True), parcels.make(message(2), number=2)
    content = EARLIER + written(again) + EARLIER
    box.write_bytes(content)

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if is_short:
            return len(data) - 1
        raise OSError(errno.EIO, "Input/output error")
    calls.replace(monkeypatch, "pwrite", pwrite)
    assert statuses(append(box, again, new)) == ["4.3.0"] * 2
    assert box.read_bytes() == content


def test_somebody_who_writes_without_a_lock_is_not_cut_off(box: Path, parcels: Parcels,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if len(data) < 100:
            return real(fd, data)
        real(fd, data[:50])
        with box.open("ab") as other:
            other.write(b"X" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")
    box.write_bytes(EARLIER)
    calls.replace(monkeypatch, "write", write)
    assert append(box, parcels.make())[0].is_deferred
    assert box.read_bytes().endswith(b"X" * 1000)


def test_a_broken_queue_file_spoils_no_other_delivery(box: Path, parcels: Parcels, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(b"y" * 400_000)
    cut = parcels.of_file(path, number=2)
    os.truncate(path, 300_000)
    small = parcels.make(b"z" * 1000, number=4)
    os.truncate(f"/proc/self/fd/{small.fd}", 500)
    batch = [parcels.make(message(1), number=1), cut, parcels.make(message(3), number=3), small]
    assert statuses(append(box, *batch)) == ["2.0.0", "4.3.0", "2.0.0", "4.3.0"]
    assert box.read_bytes() == written(batch[0], batch[2])


# ---- every call fails once, every call is the last one

CALLS = ((os, "open"), (os, "write"), (os, "fsync"), (os, "ftruncate"), (os, "unlink"), (os, "fchmod"), (os, "fstat"),
         (os, "lstat"), (os, "pread"), (os, "close"), (fcntl, "lockf"), (os, "utime"))


Act = Callable[[str, Callable[[], object], tuple[object, ...]], object]  # name of the call, the call, its arguments


def sweep(monkeypatch: pytest.MonkeyPatch, at: int, act: Act, only: tuple[str, ...] = ()) -> list[str]:
    """Run `act` instead of call number `at` of those that touch files; the list gets the name of each call."""
    seen: list[str] = []

    def stepped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **more: object) -> object:
            seen.append(name)
            if len(seen) - 1 == at:
                return act(name, lambda: real(*args, **more), args)
            return real(*args, **more)
        return step
    for module, name in CALLS:
        if not only or name in only:
            calls.replace(monkeypatch, name, stepped(name, getattr(module, name)), module)
    return seen


def messages_of(content: bytes) -> list[bytes]:
    """Split at From_ lines; a piece that is no whole message stays visible as one."""
    return [b"From " + piece for piece in (b"\n\n" + content).split(b"\n\nFrom ")[1:]]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT, errno.EACCES])
def test_any_call_may_fail(box: Path, parcels: Parcels, code: int) -> None:
    """Whatever is reported as delivered is there, whole; whatever is not may be there once, but never in part."""
    batch = [parcels.make(message(1), number=1), big(parcels, 2, 300_000), parcels.make(message(3), number=3)]
    whole = [b"".join(mboxrd.render(p)) for p in batch]
    for at in range(200):
        box.unlink(missing_ok=True)
        box.write_bytes(EARLIER)

        def fail(name: str, real: Callable[[], object], args: tuple[object, ...]) -> object:
            if name == "close":
                real()
            elif name == "write" and isinstance(args[1], bytes) and len(args[1]) > 100:
                os.write(int(str(args[0])), args[1][:len(args[1]) // 2])
            raise OSError(code, os.strerror(code))
        with pytest.MonkeyPatch.context() as patch:
            seen = sweep(patch, at, fail)
            outcomes = append(box, *batch)
        if len(seen) <= at:
            break
        rest = box.read_bytes().removeprefix(EARLIER)
        for text, outcome in zip(whole, outcomes, strict=True):
            if text in rest:
                rest = rest.replace(text, b"", 1)
            else:
                assert not outcome.is_delivered, f"lost at call {at}, {seen[at]}"
            assert not outcome.is_failed
        assert rest == b"", f"torn at call {at}, {seen[at]}"
        (box.parent / "alice.lock").unlink(missing_ok=True)
    else:
        pytest.fail("more calls than expected")
    assert at > 15


def append_and_die(at: int, torn: bool, box: Path, batch: list[Parcel]) -> None:
    def die(name: str, real: Callable[[], object], args: tuple[object, ...]) -> object:
        if torn and isinstance(args[1], bytes):
            os.write(int(str(args[0])), args[1][:len(args[1]) * 2 // 3])
        os.kill(os.getpid(), signal.SIGKILL)
        return real()
    with pytest.MonkeyPatch.context() as patch:
        sweep(patch, at, die, ("write",) if torn else ())
        append(box, *batch)


@pytest.mark.parametrize("torn", [False, True], ids=["before the call", "in the middle of a write"])
def test_a_process_killed_at_any_call_leaves_nothing_that_is_not_made_good(box: Path, parcels: Parcels,
                                                                          torn: bool) -> None:
    batch = [replace(parcel, may_repeat=True) for parcel in (
        parcels.make(message(1), number=1), big(parcels, 2, 700_000), parcels.make(message(3), number=3))]
    at = -1
    while True:
        at += 1
        box.unlink(missing_ok=True)
        box.write_bytes(EARLIER)
        if not elsewhere.run_until_killed(partial(append_and_die, at, torn, box, batch)):
            break
        lock = box.parent / "alice.lock"
        if lock.exists() and not lock.read_bytes():
            # Killed before it could say whose the lock is: mail waits until it is stale.
            assert statuses(append(box, *batch)) == ["4.2.0"] * 3, f"killed at call {at}"
            os.utime(lock, (1, 1))
        assert statuses(append(box, *batch)) == ["2.0.0"] * 3, f"killed at call {at}"
        found = messages_of(box.read_bytes())
        expected = messages_of(EARLIER + written(*batch))
        assert sorted(text.strip(b"\n") for text in found) == sorted(text.strip(b"\n") for text in expected), \
            f"killed at call {at}"
    assert at > (2 if torn else 15)


# ---- other programs at the same mailbox


def ours(box: Path, parcels: list[Parcel]) -> None:
    for parcel in parcels:
        outcomes = append(box, parcel, wait=50)
        assert outcomes[0].is_delivered, outcomes


def dot_lock(box: Path) -> int:
    for _ in locks.pauses(locks.time.monotonic() + 50):
        try:
            return os.open(f"{box}.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o660)
        except FileExistsError:
            continue
    raise TimeoutError


def dot_lock_first(box: Path, parcels: list[Parcel]) -> None:
    """As Postfix and procmail write."""
    for parcel in parcels:
        lock = dot_lock(box)
        with box.open("ab") as handle:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            text = written(parcel)
            handle.write(text[:70])
            handle.flush()
            handle.write(text[70:])
        os.close(lock)
        os.unlink(f"{box}.lock")


def rewriting_reader(box: Path, seen: Path, rounds: int) -> None:
    """Takes everything out of the mailbox, as a POP3 server or mutt does, in place and under both locks."""
    for _ in range(rounds):
        lock = dot_lock(box)
        with box.open("r+b") as handle:
            fcntl.lockf(handle, fcntl.LOCK_EX)
            data = handle.read()
            with seen.open("ab") as kept:
                kept.write(data)
            handle.seek(0)
            handle.truncate()
        os.close(lock)
        os.unlink(f"{box}.lock")


@pytest.mark.limit(100)
def test_many_programs_at_one_mailbox_lose_and_tear_nothing(box: Path, parcels: Parcels, tmp_path: Path) -> None:
    box.write_bytes(b"")
    seen = tmp_path / "seen"
    made = [parcels.make(message(n, b"line\n" * 100), number=n) for n in range(60)]
    work: list[Callable[[], None]] = [partial(ours, box, made[n:n + 10]) for n in range(0, 40, 10)]
    work += [partial(dot_lock_first, box, made[n:n + 10]) for n in range(40, 60, 10)]
    work.append(partial(rewriting_reader, box, seen, 15))
    pids = []
    for do in work:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                do()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)
    content = seen.read_bytes() + box.read_bytes()
    expected = [written(parcel).strip(b"\n") for parcel in made]
    assert sorted(text.strip(b"\n") for text in messages_of(content)) == sorted(expected)
    assert not (box.parent / "alice.lock").exists()


# ---- files of aliases and .forward


def test_a_file_is_made_private_although_its_directory_is_not(box: Path, parcels: Parcels) -> None:
    box.parent.chmod(0o775)
    assert append_file(box, parcels.make()) == [Outcome("2.0.0", "delivered to file")]
    assert stat.S_IMODE(box.stat().st_mode) == 0o600
    assert box.read_bytes() == written(parcels.make())


@pytest.mark.parametrize(("plant", "why"), [h for h in HAZARDS if h[0] is not plant_symlink],
                         ids=[n for n in HAZARD_NAMES if n != "symlink"])
def test_what_is_no_file_to_append_to_defers(box: Path, parcels: Parcels, plant: Callable[[Path], None],
                                            why: str) -> None:
    victim = box.parent / "victim"
    victim.write_bytes(b"precious\n")
    plant(box)
    outcome, = append_file(box, parcels.make())
    assert outcome.is_deferred
    assert victim.read_bytes() == b"precious\n"


def test_a_link_of_our_own_is_followed_and_its_target_locked(box: Path, parcels: Parcels) -> None:
    target = box.parent / "target"
    target.write_bytes(EARLIER)
    box.symlink_to(target)
    assert statuses(append_file(box, parcels.make())) == ["2.0.0"]
    assert target.read_bytes() == EARLIER + written(parcels.make())
    (box.parent / "target.lock").write_text(f"{os.getppid()}\n")
    assert statuses(append_file(box, parcels.make())) == ["4.2.0"]


def test_a_link_in_a_directory_that_everybody_can_write_is_not_followed(box: Path, parcels: Parcels) -> None:
    target = box.parent / "target"
    target.write_bytes(b"precious\n")
    box.symlink_to(target)
    box.parent.chmod(0o1777)
    outcome, = append_file(box, parcels.make())
    assert outcome.status == "4.2.0"
    assert "symbolic link that others could have made" in outcome.reason
    assert target.read_bytes() == b"precious\n"


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o610, 0o601, 0o4600, 0o2600])
def test_a_program_is_no_mailbox(box: Path, parcels: Parcels, mode: int) -> None:
    box.write_bytes(b"#!/bin/sh\n")
    box.chmod(mode)
    outcome, = append_file(box, parcels.make())
    assert outcome.status == "4.2.0"
    assert "is executable" in outcome.reason
    assert box.read_bytes() == b"#!/bin/sh\n"


@pytest.mark.parametrize("path", ["", "relative", "./x", "~/mail", "/tmp/a\0b"])
def test_a_path_that_is_not_absolute_is_not_guessed_at(parcels: Parcels, path: str) -> None:
    assert statuses(append_file(path, parcels.make())) == ["4.3.5"]


def test_a_slash_at_the_end_makes_a_maildir(box: Path, parcels: Parcels) -> None:
    assert append_file(f"{box}/", parcels.make()) == [Outcome("2.0.0", "delivered to Maildir")]
    name, = os.listdir(box / "new")
    assert (box / "new" / name).read_bytes() == HEAD + message()


def test_a_missing_directory_is_not_made(box: Path, parcels: Parcels) -> None:
    assert append_file(box / "sub" / "file", parcels.make())[0].is_deferred
    assert os.listdir(box.parent) == []


# ---- as the recipient


MAIL = 54399  # a gid for the mail spool


@pytest.mark.root
def test_the_recipient_with_the_saved_group_of_the_spool(parcels: Parcels) -> None:
    """What an agent is: all ids the user's, but for the saved gid."""
    with elsewhere.public_directory() as directory:
        os.mkdir(f"{directory}/mail")
        os.chown(f"{directory}/mail", 0, MAIL)
        os.chmod(f"{directory}/mail", 0o2775)
        box = f"{directory}/mail/alice"
        made = parcels.make()

        @contextmanager
        def privileged() -> Iterator[None]:
            os.setegid(MAIL)
            try:
                yield
            finally:
                os.setegid(elsewhere.SOMEBODY)

        def work() -> tuple[list[str], list[str], int]:
            os.setgroups([])
            os.setresgid(elsewhere.SOMEBODY, elsewhere.SOMEBODY, MAIL)
            os.setresuid(*[elsewhere.SOMEBODY] * 3)
            without = mbox.append(box, [made], owner=elsewhere.SOMEBODY, wait=0)
            done = [*mbox.append(box, [made], owner=elsewhere.SOMEBODY, wait=0, privileged=privileged),
                    *mbox.append(box, [made], owner=elsewhere.SOMEBODY, wait=0, privileged=privileged)]
            return statuses(without), statuses(done), os.getegid()
        assert elsewhere.run(work) == (["4.2.0"], ["2.0.0", "2.0.0"], elsewhere.SOMEBODY)
        seen = os.stat(box)
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (elsewhere.SOMEBODY, MAIL, 0o660)
        assert os.listdir(f"{directory}/mail") == ["alice"]


@pytest.mark.root
def test_a_new_mailbox_is_not_shared_with_a_group_that_we_do_not_have(parcels: Parcels) -> None:
    with elsewhere.public_directory() as directory:
        os.mkdir(f"{directory}/mail")
        os.chown(f"{directory}/mail", 0, MAIL)
        os.chmod(f"{directory}/mail", 0o3777)
        box, made = Path(directory) / "mail" / "alice", parcels.make()
        work = partial(append, box, made, owner=elsewhere.SOMEBODY)
        assert statuses(elsewhere.run(work, uid=elsewhere.SOMEBODY)) == ["2.0.0"]
        assert (box.stat().st_gid, stat.S_IMODE(box.stat().st_mode)) == (MAIL, 0o600)


@pytest.mark.root
def test_a_link_of_a_third_person_is_not_followed(parcels: Parcels) -> None:
    with elsewhere.public_directory() as directory:
        target, link, made = Path(directory) / "target", Path(directory) / "link", parcels.make()
        target.write_bytes(b"")
        target.chmod(0o666)
        link.symlink_to(target)
        for owner, status in ((elsewhere.SOMEBODY_ELSE, "4.2.0"), (0, "2.0.0"), (elsewhere.SOMEBODY, "2.0.0")):
            os.chown(link, owner, owner, follow_symlinks=False)
            assert statuses(elsewhere.run(lambda: append_file(link, made), uid=elsewhere.SOMEBODY)) == [status]


@pytest.mark.root
def test_in_the_spool_there_is_no_delivery_without_a_dot_lock(parcels: Parcels) -> None:
    with elsewhere.public_directory() as directory:
        box = Path(directory) / "alice"
        box.write_bytes(EARLIER)
        os.chown(box, elsewhere.SOMEBODY, 0)
        made = parcels.make()
        outcome, = elsewhere.run(lambda: append(box, made, owner=elsewhere.SOMEBODY), uid=elsewhere.SOMEBODY)
        assert outcome.status == "4.2.0"
        assert "alice.lock: Permission denied" in outcome.reason
        assert box.read_bytes() == EARLIER


@pytest.mark.root
def test_a_file_in_a_directory_of_others_is_written_under_the_fcntl_lock_alone(parcels: Parcels) -> None:
    with elsewhere.public_directory() as directory:
        box = Path(directory) / "archive"
        box.write_bytes(EARLIER)
        box.chmod(0o666)
        made = parcels.make()
        with elsewhere.holding(fcntl_lock(box)):
            assert statuses(elsewhere.run(lambda: append_file(box, made), uid=elsewhere.SOMEBODY)) == ["4.2.0"]
        assert statuses(elsewhere.run(lambda: append_file(box, made), uid=elsewhere.SOMEBODY)) == ["2.0.0"]
        assert box.read_bytes() == EARLIER + written(made)
        assert os.listdir(directory) == ["archive"]


@pytest.mark.root
@pytest.mark.parametrize(("owner", "status"), [(0, "2.0.0"), (elsewhere.SOMEBODY, "2.0.0"),
                                               (elsewhere.SOMEBODY_ELSE, "4.2.0")])
def test_in_a_directory_that_everybody_can_write_a_file_of_a_third_person_is_a_trap(parcels: Parcels, owner: int,
                                                                                   status: str) -> None:
    with elsewhere.public_directory(0o1777) as directory:
        box = Path(directory) / "archive"
        box.write_bytes(b"")
        box.chmod(0o666)
        os.chown(box, owner, owner)
        made = parcels.make()
        assert statuses(elsewhere.run(lambda: append_file(box, made), uid=elsewhere.SOMEBODY)) == [status]
        assert bool(box.read_bytes()) == (status == "2.0.0")


@pytest.mark.root
def test_the_mailbox_of_another_user_is_out_of_reach(parcels: Parcels) -> None:
    with elsewhere.public_directory() as directory:
        box = Path(directory) / "bob"
        box.write_bytes(b"")
        box.chmod(0o660)
        os.chown(box, elsewhere.SOMEBODY_ELSE, MAIL)
        made = parcels.make()
        outcome, = elsewhere.run(lambda: append_file(box, made), uid=elsewhere.SOMEBODY)
        assert outcome.status == "4.2.0"
        assert "Permission denied" in outcome.reason
        assert box.read_bytes() == b""
