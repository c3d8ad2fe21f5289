"""Taking in what strangers left in the drop: whatever they do, nothing of others is read, lost or held up.

The intake is driven directly, below a private root, with a clock of its own. Files get their owners and groups as on a
real host where the tests run as root; otherwise all of them belong to whoever runs the tests.
"""

import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysendmail.config import Config
from pysendmail.daemon.intake import ABANDONED, AGAIN, CLEAN_EVERY, PAUSE, TRIES, UNFIT_GRACE, Intake
from pysendmail.events import Events
from pysendmail.paths import Paths
from pysendmail.route.router import Router
from pysendmail.spool import durable, queue, queue_id, record
from pysendmail.spool.queue import Message, Queue
from pysendmail.users import LookupTrouble, User
from tests.tools import elsewhere

SOMEBODY, SOMEBODY_ELSE = (elsewhere.SOMEBODY, elsewhere.SOMEBODY_ELSE) if os.geteuid() == 0 else (os.geteuid(),) * 2
QUEUE_USER = 54400  # whose the drop is
CONFIG = Config(hostname="host.example", domain="host.example")
TEXT = b"Subject: x\n\nHello.\n"
TO_ALICE = [(b"Recipient", b"- - alice")]


def submission(text: bytes = TEXT, fields: list[tuple[bytes, bytes]] | None = None) -> bytes:
    block = record.field_lines(TO_ALICE if fields is None else fields)
    offset = record.FIRST_LENGTH + len(block)
    return record.first_line(offset, offset + len(text), record.crc(text, record.crc(block))) + block + text


class Users:
    """Nobody has an account but SOMEBODY. While `trouble` is set the database does not answer."""

    trouble = False

    def lookup(self, name: str) -> User | None:
        return None

    def by_uid(self, uid: int) -> User | None:
        if self.trouble:
            raise LookupTrouble(errno.EIO, "no answer")
        return User("some", uid, uid, "/home/some", "/bin/sh", "Some Body,,,") if uid == SOMEBODY else None


class Drop:
    """A spool with its intake. now: the time, which stands still unless a test moves it."""

    def __init__(self, paths: Paths, full: Callable[[int], bool] = lambda uid: False) -> None:
        self.paths = paths
        self.group = os.getegid()
        if os.geteuid() == 0:
            self.group = QUEUE_USER
            for path in (paths.drop_tmp, paths.drop_new):
                os.chown(path, QUEUE_USER, QUEUE_USER)
                os.chmod(path, 0o3733)
        self.now = os.stat(paths.drop_new).st_mtime + 10
        self.log: list[str] = []
        self.users = Users()
        self.queue = Queue(paths, self.clock)
        self._full = full
        self.intake = self.start()
        self._count = 0

    def clock(self) -> float:
        return self.now

    def start(self) -> Intake:
        """An intake as a daemon makes it at its start."""
        ids = queue_id.Ids(0, self.clock, self.queue.taken_ids())
        events = Events(lambda priority, text: self.log.append(text))
        self.intake = Intake(self.paths, self.queue, ids, self.users, CONFIG, Router(CONFIG), events, self.clock,
                             self._full)
        return self.intake

    def name(self) -> str:
        """A name that sendmail could have chosen."""
        self._count += 1
        return f"{self._count:032x}"

    def put(self, content: bytes | None = None, *, name: str = "", uid: int = SOMEBODY, mode: int = 0o640) -> str:
        """A file in drop/new, as sendmail makes it; its path."""
        path = f"{self.paths.drop_new}/{name or self.name()}"
        Path(path).write_bytes(submission() if content is None else content)
        self.give(path, uid, mode)
        return path

    def give(self, path: str, uid: int = SOMEBODY, mode: int = 0o640) -> None:
        if os.geteuid() == 0:
            os.chown(path, uid, self.group)
        os.chmod(path, mode)

    def sweep(self, limit: int = 40) -> list[Message]:
        """Look at everything that is there."""
        self.intake.rescan()
        return self.intake.sweep(limit)

    def text(self, message: Message) -> bytes:
        fd = self.queue.open(message)
        try:
            return os.pread(fd, message.length, message.offset)
        finally:
            os.close(fd)

    def in_quarantine(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in Path(self.paths.quarantine).iterdir())

    def places(self) -> dict[str, int]:
        """How many files there are where."""
        found = {"drop": self.paths.drop_new, "intake": self.paths.intake, "queue": f"{self.paths.queue}/new",
                 "quarantine": self.paths.quarantine}
        return {name: len(os.listdir(path)) for name, path in found.items() if os.listdir(path)}


@pytest.fixture
def drop(paths: Paths) -> Drop:
    return Drop(paths)


# ---- what it is for

def test_a_submission_is_claimed_and_copied(drop: Drop) -> None:
    drop.put(submission(b"Subject: x\nBcc: secret\n\nHello.\n", [(b"Sender", b"<>"), (b"Recipient", b"- - alice")]))
    message, = drop.sweep()
    assert drop.places() == {"intake": 1, "queue": 1}
    assert message.source == message.id
    assert (message.envelope.sender, [r.address for r in message.envelope.recipients]) == ("", ["alice@host.example"])
    assert (message.envelope.origin.kind, message.envelope.origin.uid) == ("command", SOMEBODY)
    text = drop.text(message)
    assert text.startswith(b"Received: from some (uid %d)" % SOMEBODY)
    assert text.endswith(b"\n\nHello.\n")
    assert b"secret" not in text


def test_a_file_that_its_submitter_names_is_taken_without_a_scan(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drop.sweep() == []
    names = [os.path.basename(drop.put()) for _ in range(3)]
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"scan of {path}"))
    drop.intake.expect([*names, "f" * 32, "../" + names[0], "", names[0]])
    assert len(drop.intake.sweep(2)) == 2
    assert drop.intake.has_more
    assert len(drop.intake.sweep(40)) == 1
    assert not drop.intake.has_more
    assert drop.places() == {"intake": 3, "queue": 3}


def test_a_file_that_nobody_names_is_found_by_the_next_scan(drop: Drop) -> None:
    assert drop.sweep() == []
    drop.put()
    assert drop.intake.sweep(40) == [], "nobody has called"
    assert len(drop.sweep()) == 1


@pytest.mark.root
def test_named_files_of_one_with_too_many_stay_until_there_is_room(paths: Paths) -> None:
    full = {SOMEBODY}
    drop = Drop(paths, lambda uid: uid in full)
    assert drop.sweep() == []
    names = [os.path.basename(drop.put()), os.path.basename(drop.put(uid=SOMEBODY_ELSE))]
    drop.intake.expect(names)
    assert [message.envelope.origin.uid for message in drop.intake.sweep(40)] == [SOMEBODY_ELSE]
    full.clear()
    drop.now += 1
    assert [message.envelope.origin.uid for message in drop.intake.sweep(40)] == [SOMEBODY]


def test_an_owner_without_an_account_is_legal(drop: Drop) -> None:
    path = drop.put(uid=SOMEBODY_ELSE)
    drop.users.by_uid = lambda uid: None  # type: ignore[method-assign]
    message, = drop.sweep()
    assert message.envelope.origin.user == f"uid{SOMEBODY_ELSE}"
    assert not os.path.exists(path)


def test_a_copy_made_again_has_the_same_bytes(drop: Drop) -> None:
    """A mailbox that has it already shall know it."""
    drop.put()
    message, = drop.sweep()
    before = Path(drop.queue.path(message)).read_bytes(), os.stat(drop.queue.path(message)).st_mtime_ns
    os.unlink(drop.queue.path(message))
    drop.now += 5000
    again, = drop.start().recover()
    assert (Path(drop.queue.path(again)).read_bytes(), os.stat(drop.queue.path(again)).st_mtime_ns) == before


def test_a_time_that_is_yet_to_come_is_not_believed(drop: Drop) -> None:
    path = drop.put()
    os.utime(path, (drop.now + 10**8, drop.now + 10**8))
    message, = drop.sweep()
    assert message.envelope.received_at == pytest.approx(drop.now)


def test_from_the_socket_the_name_says_whose_it_is(drop: Drop) -> None:
    found = queue_id.Ids(1, drop.clock).new()
    path = f"{drop.paths.intake}/{found},U=4711"
    Path(path).write_bytes(submission())
    drop.give(path)
    message = drop.intake.readopt(f"{found},U=4711")
    assert message
    assert (message.id, message.envelope.origin.uid, message.source) == (found, 4711, f"{found},U=4711")


@pytest.mark.parametrize("name", [
    "core", "5abcDEFG00100", "5abcDEFG001001,U=", "5abcDEFG001001,U=-1", "5abcDEFG001001,U=1_0",
    "5abcDEFG001001,U=99999999999", "5abcDEFG001001.tmp"])
def test_what_else_lies_in_intake_goes_to_quarantine(drop: Drop, name: str) -> None:
    path = f"{drop.paths.intake}/{name}"
    Path(path).write_bytes(submission())
    drop.give(path)
    assert list(drop.start().recover()) == []
    assert drop.places() == {"quarantine": 1}


# ---- files that are none

@pytest.mark.parametrize("name", [
    "..a", ".hidden", "x\ny", "-rf", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 255, "\u0660" * 32, "0" * 31 + "\n",
    "0" * 31 + "\udcff", "core", "0" * 30 + "\x1b[", "5abcDEFG001001"])
def test_names_that_sendmail_never_makes_are_left_alone(drop: Drop, name: str) -> None:
    path = drop.put(name=name)
    drop.put()
    assert len(drop.sweep()) == 1
    assert os.path.exists(path)
    assert drop.log[1:] == []


def socket_at(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(os.path.dirname(path))  # the whole path is too long for a socket
        made.bind(os.path.basename(path))
        os.chdir("/")


NOT_FILES: dict[str, Callable[[str], object]] = {
    "link": lambda path: os.symlink("/etc/passwd", path),
    "broken link": lambda path: os.symlink("/nowhere", path),
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "full directory": lambda path: os.makedirs(f"{path}/{'0' * 32}"),
    "socket": socket_at,
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_file_is_never_opened(drop: Drop, kind: str) -> None:
    """Opening a fifo would wait, opening a device would do something."""
    NOT_FILES[kind](f"{drop.paths.drop_new}/{drop.name()}")
    drop.put()
    assert len(drop.sweep()) == 1
    assert drop.places() == {"drop": 1, "intake": 1, "queue": 1}


@pytest.mark.root
def test_a_device_is_never_opened(drop: Drop) -> None:
    os.mknod(f"{drop.paths.drop_new}/{drop.name()}", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    assert drop.sweep() == []
    assert drop.places() == {"drop": 1}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_exchanged_for_something_else_between_look_and_claim(drop: Drop, monkeypatch: pytest.MonkeyPatch,
                                                             kind: str) -> None:
    """Only the descriptor is trusted: what was renamed has to be what was opened."""
    path, real = drop.put(), durable.rename

    def rename(old: str, new: str) -> None:
        if old == path:
            os.unlink(path)
            NOT_FILES[kind](path)
        real(old, new)

    monkeypatch.setattr(durable, "rename", rename)
    assert drop.sweep() == []
    assert drop.places() == {"quarantine": 1}


def test_exchanged_for_another_submission_between_look_and_claim(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, other = drop.put(submission(b"Subject: 1\n\none\n")), durable.rename, submission(b"Subject: 2\n\ntwo\n")

    def rename(old: str, new: str) -> None:
        if old == path and os.path.exists(path):
            os.unlink(path)
            drop.put(other, name=os.path.basename(path))
        real(old, new)

    monkeypatch.setattr(durable, "rename", rename)
    assert drop.sweep() == []
    assert drop.in_quarantine() == [other], "kept, though nobody knows whose it was"


def test_withdrawn_between_look_and_claim(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = drop.put(), durable.rename

    def rename(old: str, new: str) -> None:
        os.unlink(path)
        real(old, new)

    monkeypatch.setattr(durable, "rename", rename)
    assert drop.sweep() == []
    assert (drop.places(), drop.log) == ({}, [])


# ---- links

def test_a_second_name_for_a_submission(drop: Drop) -> None:
    """Postfix 1998: the check deleted the victim's mail. Here it waits, and is kept."""
    path = drop.put()
    outside = f"{drop.paths.root}/link"
    os.link(path, outside)
    assert drop.sweep() == []
    assert drop.places() == {"drop": 1}
    os.unlink(outside)
    assert len(drop.sweep()) == 1, "it was only for a moment"


def test_a_second_name_that_stays(drop: Drop) -> None:
    path = drop.put()
    os.link(path, f"{drop.paths.root}/link")
    drop.now = os.stat(path).st_ctime + UNFIT_GRACE + 1
    assert drop.sweep() == []
    assert drop.places() == {"quarantine": 1}
    assert drop.in_quarantine() == [submission()]
    assert "2 links" in drop.log[-1]


@pytest.mark.root
@pytest.mark.parametrize("rotated", [False, True])
def test_a_file_of_others_linked_into_the_drop(drop: Drop, rotated: bool) -> None:
    """Without protected_hardlinks anybody may link any file. Once the log is rotated only its group gives it away."""
    secret = f"{drop.paths.root}/auth.log"
    Path(secret).write_bytes(submission(b"Subject: root's\n\npassword\n"))
    os.chmod(secret, 0o600)
    path = f"{drop.paths.drop_new}/{drop.name()}"
    os.link(secret, path)
    if rotated:
        os.unlink(secret)
    drop.now = os.stat(path).st_ctime + UNFIT_GRACE + 1
    assert drop.sweep() == []
    assert drop.places() == {"quarantine": 1}
    assert os.stat(f"{drop.paths.quarantine}/{os.listdir(drop.paths.quarantine)[0]}").st_uid == 0
    assert b"group" in drop.log[-1].encode()


@pytest.mark.root
def test_the_group_of_somebody(drop: Drop) -> None:
    path = drop.put()
    os.chown(path, SOMEBODY, SOMEBODY)  # chgrp after the fact
    assert drop.sweep() == []
    assert drop.places() == {"quarantine": 1}


# ---- modes, leases, locks

@pytest.mark.parametrize("mode", [0o4640, 0o2640, 0o1640, 0o4777, 0o740, 0o650, 0o641])
def test_modes_that_sendmail_never_sets(drop: Drop, mode: int) -> None:
    path = drop.put()
    os.chmod(path, mode)
    if stat.S_IMODE(os.stat(path).st_mode) == mode:  # the kernel takes some of them away from an ordinary user
        assert drop.sweep() == []
        assert drop.places() == {"quarantine": 1}


def without_privilege(drop: Drop, path: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the intake meet this error when it opens the file, as the queue's user would; root would not."""
    real = os.open

    def open_as_queue_user(wanted: str, *args: Any, **options: Any) -> int:
        if wanted == path:
            raise OSError(error, os.strerror(error))
        return real(wanted, *args, **options)

    monkeypatch.setattr(os, "open", open_as_queue_user)


@pytest.mark.parametrize(("mode", "error"), [(0o000, errno.EACCES), (0o600, errno.EACCES), (0o640, errno.EAGAIN)])
def test_a_file_that_cannot_be_opened_is_not_tried_for_ever(drop: Drop, monkeypatch: pytest.MonkeyPatch, mode: int,
                                                            error: int) -> None:
    path = drop.put(mode=mode)
    without_privilege(drop, path, error, monkeypatch)
    drop.put()
    assert len(drop.sweep()) == 1, "the others are not held up"
    assert drop.places() == {"drop": 1, "intake": 1, "queue": 1}
    drop.now = os.stat(path).st_ctime + UNFIT_GRACE + 1
    assert drop.sweep() == []
    assert drop.places() == {"quarantine": 1, "intake": 1, "queue": 1}


def test_a_file_that_only_we_cannot_open_stays(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode is right, so it is our fault: an administrator's mistake must not empty the drop into quarantine."""
    path = drop.put()
    without_privilege(drop, path, errno.EACCES, monkeypatch)
    drop.now = os.stat(path).st_ctime + 10 * UNFIT_GRACE
    assert drop.sweep() == []
    assert drop.places() == {"drop": 1}


def open_to_all(drop: Drop) -> None:
    """Let other users reach the drop."""
    path = Path(drop.paths.drop_new)
    for parent in path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)


@pytest.mark.root
def test_a_lease_holds_nobody_up(drop: Drop) -> None:
    """open(2) would wait for the holder of a lease, 45 seconds by default."""
    path = drop.put()
    drop.put()

    def lease() -> int:
        fd = os.open(path, os.O_RDWR)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return fd

    open_to_all(drop)
    with elsewhere.holding(lease, uid=SOMEBODY):
        assert len(drop.sweep()) == 1
        assert drop.places() == {"drop": 1, "intake": 1, "queue": 1}
    assert len(drop.sweep()) == 1


def test_a_lock_that_is_held_for_ever_holds_nobody_up(drop: Drop) -> None:
    path = drop.put()
    drop.put()
    fd = os.open(path, os.O_RDWR)
    durable.lock(fd)
    assert len(drop.sweep()) == 1
    assert drop.places() == {"drop": 1, "intake": 1, "queue": 1}
    os.close(fd)
    assert len(drop.sweep()) == 1


def test_an_o_path_descriptor_changes_nothing(drop: Drop) -> None:
    fd = os.open(drop.put(), os.O_PATH)
    assert len(drop.sweep()) == 1
    os.close(fd)


@pytest.mark.root
def test_a_file_system_mounted_over_a_submission(drop: Drop) -> None:
    """What is there then is not of the spool's file system, and cannot be moved."""
    path, other = drop.put(), f"{drop.paths.root}/other"
    os.mkdir(other)
    subprocess.run(["mount", "-t", "tmpfs", "none", other], check=True)
    try:
        Path(f"{other}/file").write_bytes(submission())
        subprocess.run(["mount", "--bind", f"{other}/file", path], check=True)
        try:
            assert drop.sweep() == []
            assert drop.places() == {"drop": 1}
        finally:
            subprocess.run(["umount", path], check=True)
    finally:
        subprocess.run(["umount", other], check=True)
    assert len(drop.sweep()) == 1


# ---- contents

@pytest.mark.parametrize("content", [
    b"", b"x", b"Subject: x\n\nno envelope\n", bytes(100), submission()[:-1], submission() + b"x", submission()[1:],
    submission().replace(b"alice", b"mallo"), submission(fields=[]),
    submission(fields=[*TO_ALICE, (b"Origin-Uid", b"0")]),
    submission(fields=[*TO_ALICE, (b"Scanned", b"yes")]), submission(fields=[(b"Recipient", b"alice")]),
    submission(fields=[(b"Sender", b"alice"), *TO_ALICE]),
    record.first_line(52, 99, 0) + b"Pysendmail-Recipient: - - a\n" + b"x" * 19,
    record.first_line(99_999_999, 999_999_999_999, 0),
    submission().replace(b"Recipient: - - alice", b"Recipient: - - al\nce")])
def test_what_is_no_submission_is_kept_and_not_delivered(drop: Drop, content: bytes) -> None:
    drop.put(content)
    drop.put()
    assert len(drop.sweep()) == 1
    assert drop.in_quarantine() == [content]
    assert len(drop.log) == 2, "one line says so"


@pytest.mark.parametrize("size", [1000, 3 * 1024 * 1024], ids=["small", "large"])
@pytest.mark.parametrize("change", ["truncate", "extend", "rewrite", "mapped write", "fields"])
def test_who_changes_his_file_while_it_is_copied_spoils_his_own(drop: Drop, monkeypatch: pytest.MonkeyPatch,
                                                                change: str, size: int) -> None:
    path = drop.put(submission(b"Subject: x\n\n" + b"x" * size))
    mine = os.open(path, os.O_RDWR)  # he has it open still
    real, reads = os.pread, 0

    def tamper() -> None:
        length = os.fstat(mine).st_size
        if change == "truncate":
            os.ftruncate(mine, length - 10)
        elif change == "extend":
            os.ftruncate(mine, length + 10)
        elif change == "rewrite":
            os.pwrite(mine, b"y", length - 1)
        elif change == "fields":
            os.pwrite(mine, b"mallo", submission().index(b"alice"))
        else:
            with mmap.mmap(mine, length) as mapped:
                mapped[length - 1] = ord("y")

    def pread(fd: int, length: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == (1 if size < 10_000 else 6):
            tamper()
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    taken = drop.sweep()
    monkeypatch.undo()
    os.close(mine)
    if taken:  # what he did came too late, or does not concern what was read
        assert drop.text(taken[0]).endswith(b"x" * size)
        assert taken[0].envelope.recipients[0].address == "alice@host.example"
        assert change in ("extend", "fields")
    else:
        assert drop.places() == {"quarantine": 1}


def test_somebody_writes_all_the_time(drop: Drop) -> None:
    """Whatever comes out is a message that he submitted, or none."""
    one, two = submission(b"Subject: x\n\n" + b"1" * 5000), submission(b"Subject: x\n\n" + b"2" * 5000)
    is_over = threading.Event()

    def attack(fd: int) -> None:
        while not is_over.is_set():
            os.pwrite(fd, two, 0)
            os.pwrite(fd, one, 0)
        os.close(fd)

    for _ in range(30):
        is_over.clear()
        attacker = threading.Thread(target=attack, args=(os.open(drop.put(one), os.O_RDWR),))
        attacker.start()
        try:
            for message in drop.sweep():
                assert drop.text(message).endswith((b"\n\n" + b"1" * 5000, b"\n\n" + b"2" * 5000))
        finally:
            is_over.set()
            attacker.join()


def test_a_sparse_file_of_a_terabyte_is_not_read(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender is told that it is too large; nobody reads a terabyte of zeros for that."""
    block = record.field_lines(TO_ALICE)
    offset, length = record.FIRST_LENGTH + len(block), 10**12 - 1
    path = drop.put(record.first_line(offset, length, 0) + block + b"Subject: huge\n\n")
    try:
        os.truncate(path, length)
    except OSError:  # this file system takes no file of that size
        length = 10**10
        Path(path).write_bytes(record.first_line(offset, length, 0) + block + b"Subject: huge\n\n")
        os.truncate(path, length)
    real, read = os.pread, 0

    def pread(fd: int, wanted: int, at: int) -> bytes:
        nonlocal read
        read += wanted
        return real(fd, wanted, at)

    monkeypatch.setattr(os, "pread", pread)
    message, = drop.sweep()
    assert read < 10 * 1024 * 1024
    assert message.length < 10 * 1024 * 1024
    assert message.refusal
    assert message.refusal.status == "5.3.4"
    again = drop.queue.load(next(drop.queue.entries()))
    assert again.refusal == message.refusal, "a crash does not turn it into one that is delivered"


def test_too_many_hops_are_remembered_too(drop: Drop) -> None:
    drop.put(submission(b"Received: from x by y\n" * 60 + TEXT))
    message, = drop.sweep()
    again = drop.queue.load(next(drop.queue.entries()))
    assert message.refusal
    assert again.refusal == message.refusal
    assert message.refusal.status == "5.4.6"


# ---- many

def test_a_flood_of_one_holds_nobody_else_up(drop: Drop) -> None:
    if os.geteuid() == 0:
        for _ in range(300):
            drop.put(uid=SOMEBODY)
        late = drop.put(submission(b"Subject: one\n\nme\n"), uid=SOMEBODY_ELSE)
        taken = drop.sweep(10)
        assert not os.path.exists(late)
        assert {message.envelope.origin.uid for message in taken} == {SOMEBODY, SOMEBODY_ELSE}
        assert len(taken) == 10


def test_a_hundred_thousand_junk_names(drop: Drop) -> None:
    for number in range(100_000):
        os.mknod(f"{drop.paths.drop_new}/junk{number}")
    drop.put()
    assert len(drop.sweep()) == 1


def test_ten_thousand_files_that_are_never_finished(drop: Drop) -> None:
    """Each is opened and found locked; a sweep looks at so many and no more, and goes on later."""
    holders = []
    for _ in range(500):
        holders.append(os.open(drop.put(), os.O_RDWR))
        durable.lock(holders[-1])
    opened, real = 0, os.open

    def open_and_count(*args: Any, **options: Any) -> int:
        nonlocal opened
        opened += 1
        return real(*args, **options)

    drop.intake.rescan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_and_count)
        assert drop.intake.sweep(10) == []
    assert opened <= 10 * TRIES + 5
    assert drop.intake.has_more
    for fd in holders:
        os.close(fd)


def test_a_share_that_is_used_up_waits_in_the_drop(paths: Paths) -> None:
    full = True
    drop = Drop(paths, lambda uid: full)
    drop.put()
    assert drop.sweep() == []
    assert drop.places() == {"drop": 1}
    assert "has its share" in drop.log[-1]
    full = False
    assert len(drop.sweep()) == 1


# ---- trouble of ours

def failing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("place", ["create", "write_all", "stamp"])
def test_a_copy_that_cannot_be_made_is_made_later(drop: Drop, monkeypatch: pytest.MonkeyPatch, place: str,
                                                  number: int) -> None:
    """A claimed file is in nobody's drop any more: it must be tried again without anybody's doing."""
    drop.put()
    failing(monkeypatch, durable, place, number)
    assert drop.sweep() == []
    assert drop.places() == {"intake": 1}
    assert not drop.intake.has_more
    monkeypatch.undo()
    assert drop.sweep() == [], "not at once"
    drop.now += AGAIN + PAUSE
    message, = drop.sweep()
    assert drop.places() == {"intake": 1, "queue": 1}
    assert drop.text(message).endswith(b"Hello.\n")


def test_when_the_disk_is_full_the_drop_is_left_alone_for_a_while(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(20):
        drop.put()
    failing(monkeypatch, durable, "create", errno.ENOSPC)
    for _ in range(5):
        assert drop.sweep() == []
    assert drop.places() == {"drop": 19, "intake": 1}
    assert len(drop.log) == 1, "said once"
    monkeypatch.undo()
    drop.now += AGAIN + PAUSE
    assert len(drop.sweep()) == 20


@pytest.mark.root
def test_a_disk_that_is_really_full(paths: Paths) -> None:
    """And one without inodes: a spool on a small file system of its own."""
    for options in ("size=1m,nr_inodes=1000", "size=100m,nr_inodes=60"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", paths.spool], check=True)
        try:
            for path in (paths.drop_tmp, paths.drop_new, paths.smtp_tmp, paths.smtp_new):
                os.makedirs(path)
            queue.prepare(paths)
            drop = Drop(paths)
            drop.put(submission(b"Subject: x\n\n" + b"x" * 200_000))
            fillers = fill(paths.spool)
            assert drop.sweep() == []
            assert drop.places() == {"intake": 1}
            for path in fillers:
                os.unlink(path)
            drop.now += AGAIN + PAUSE
            message, = drop.sweep()
            assert drop.text(message).endswith(b"x" * 200_000)
        finally:
            subprocess.run(["umount", paths.spool], check=True)


def fill(directory: str) -> list[str]:
    """Files until there is no room for another."""
    made: list[str] = []
    while True:
        path = f"{directory}/filler{len(made)}"
        try:
            with open(path, "wb") as file:
                made.append(path)
                while True:
                    file.write(bytes(65536))
                    file.flush()
                    if file.tell() > 2 * 1024 * 1024:
                        break
        except OSError:
            if len(made) > 100 or not os.path.exists(path) or os.stat(path).st_size == 0:
                return made


def test_a_user_database_that_does_not_answer(drop: Drop) -> None:
    drop.put()
    drop.users.trouble = True
    assert drop.sweep() == []
    assert drop.places() == {"intake": 1}
    drop.users.trouble = False
    drop.now += AGAIN
    message, = drop.sweep()
    assert message.envelope.origin.user == "some"


def test_a_clock_that_goes_back_does_not_stop_the_second_try(drop: Drop) -> None:
    drop.put()
    drop.users.trouble = True
    assert drop.sweep() == []
    drop.users.trouble = False
    drop.now -= 10**7
    assert len(drop.sweep()) == 1


def test_a_message_that_makes_us_fail_stops_no_other(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = submission(b"Subject: poison\n\n")
    drop.put(poison)
    real = drop.intake._copier.copy

    def copy(fd: int, *args: Any) -> Message:
        if b"poison" in os.pread(fd, 1000, 0):
            raise KeyError("a mistake of ours")
        return real(fd, *args)

    monkeypatch.setattr(drop.intake._copier, "copy", copy)
    assert drop.sweep() == []
    drop.put()
    assert len(drop.sweep()) == 1
    assert drop.in_quarantine() == [poison]
    assert any("a mistake of ours" in line for line in drop.log)


def test_after_a_crash_all_of_intake_is_taken_in_once(drop: Drop) -> None:
    for _ in range(5):
        drop.put()
    ids = sorted(message.id for message in drop.sweep())
    for message in drop.queue.entries():
        os.unlink(f"{drop.paths.queue}/new/{message.name}")
    recovering = drop.start().recover()
    first = next(recovering)
    others = drop.intake.sweep(40)  # what is waiting to be recovered is found there too
    assert [first.id, *(message.id for message in others)] == ids
    assert list(recovering) == [], "and not twice"


# ---- drop/tmp

@pytest.fixture
def abandoned(drop: Drop) -> str:
    path = f"{drop.paths.drop_tmp}/{drop.name()}"
    Path(path).write_bytes(b"half")
    drop.give(path)
    return path


def sweep_at(drop: Drop, path: str, age: float) -> None:
    drop.now = max(os.stat(path).st_mtime, os.stat(path).st_ctime) + age
    drop.sweep()


def test_what_a_killed_sendmail_left_goes_after_a_while(drop: Drop, abandoned: str) -> None:
    sweep_at(drop, abandoned, ABANDONED - 60)
    assert os.path.exists(abandoned)
    drop.now += CLEAN_EVERY
    drop.sweep()
    assert not os.path.exists(abandoned)


def test_what_somebody_still_writes_stays(drop: Drop, abandoned: str) -> None:
    """tail -f | sendmail"""
    fd = os.open(abandoned, os.O_RDWR)
    durable.lock(fd)
    sweep_at(drop, abandoned, 10 * ABANDONED)
    assert os.path.exists(abandoned)
    os.close(fd)


@pytest.mark.parametrize("kind", NOT_FILES)
def test_nothing_but_files_is_removed(drop: Drop, kind: str) -> None:
    path = f"{drop.paths.drop_tmp}/{drop.name()}"
    NOT_FILES[kind](path)
    drop.now += 10 * ABANDONED
    drop.sweep()
    assert os.path.lexists(path)
