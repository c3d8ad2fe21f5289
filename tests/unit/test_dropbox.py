"""Submissions: what is on disk at each step, what happens when a step fails, and the conversation with the daemon."""

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysendmail.paths import Paths
from pysendmail.spool import dropbox, durable, record
from pysendmail.spool.dropbox import HOLD, MAX_FRAME, Refused, Submission
from tests.tools.frontend import call, drops, the_drop

FIELDS = [(b"Sender", b"<me>"), (b"Recipient", b"- - alice")]
SMALL = [b"Subject: x\n", b"\nbody\n"]
LARGE = [b"Subject: x\n\n", *(b"%06d %s\n" % (n, b"x" * 1000) for n in range(400))]
NOBODY = 65534


def submit(paths: Paths, pieces: list[bytes]) -> Submission:
    """As cli/sendmail.py does it."""
    submission = Submission(paths)
    try:
        submission.begin(FIELDS)
        for piece in pieces:
            submission.write(piece)
        submission.commit()
    except BaseException:
        submission.give_up()
        raise
    return submission


def content(pieces: list[bytes]) -> bytes:
    return record.field_lines(FIELDS) + b"".join(pieces)


# -- the drop ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pieces", [[], SMALL, LARGE, [b"x" * HOLD], [b"x" * (HOLD + 1)], [b"x" * 200_000, b"", b"y"]])
def test_the_drop_holds_what_was_written(paths: Paths, pieces: list[bytes]) -> None:
    submission = submit(paths, pieces)
    found = the_drop(paths)
    assert (found.fields, found.recipients) == ({"Sender": b"<me>"}, [b"- - alice"])
    assert found.message == b"".join(pieces)
    assert os.path.basename(found.path) == submission.name


def test_names_are_128_random_bits(paths: Paths) -> None:
    names = {submit(paths, SMALL).name for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) == 32 and not set(name) - set("0123456789abcdef") for name in names)
    assert all(sum(name[place] != "0" for name in names) > 10 for place in range(32)), "a digit that is no chance"


@pytest.mark.parametrize(("pieces", "steps"), [
    (SMALL, ["create", "lock", "write_all", "publish"]),
    ([b"x" * 70_000, b"y" * 70_000, b"z"],
     ["create", "lock", "write_all", "write_all", "write_all", "write_at", "publish"]),
])
def test_the_order_of_the_commit_point(paths: Paths, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes],
                                       steps: list[str]) -> None:
    seen: list[str] = []

    def watch(name: str) -> None:
        original = getattr(durable, name)

        def step(*arguments: Any) -> Any:
            seen.append(name)
            return original(*arguments)

        monkeypatch.setattr(durable, name, step)

    for name in ("create", "lock", "write_all", "write_at", "publish", "sync", "unlink", "rename", "sync_directory"):
        watch(name)
    submit(paths, pieces)
    assert seen == steps


def test_the_file_is_locked_until_its_sync_has_returned_and_free_when_the_daemon_is_called(
        paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    fsync = os.fsync

    def look() -> None:
        name, = os.listdir(paths.drop_new)
        fd = os.open(f"{paths.drop_new}/{name}", durable.READ)
        states.append(durable.is_committed(fd))
        os.close(fd)

    def synced(fd: int) -> None:
        look()
        fsync(fd)
        look()

    monkeypatch.setattr(durable.os, "fsync", synced)
    monkeypatch.setattr(dropbox, "_wake", lambda path, name: look())
    submit(paths, SMALL)
    assert states == [False, False, True]


@pytest.mark.parametrize(("mode", "is_synced"), [(0o3733, False), (0o3777, True)])
def test_the_directory_is_synced_where_it_can_be_read(paths: Paths, monkeypatch: pytest.MonkeyPatch, mode: int,
                                                      is_synced: bool) -> None:
    os.chmod(paths.drop_new, mode)
    synced: list[str] = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    submit(paths, SMALL)
    assert synced == ([paths.drop_new] if is_synced else [])


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_mode_is_exact(paths: Paths, umask: int) -> None:
    before = os.umask(umask)
    try:
        submit(paths, SMALL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(the_drop(paths).path).st_mode) == 0o640


@pytest.mark.root
def test_any_user_hands_in_and_only_the_daemon_can_read(open_paths: Paths) -> None:
    for path in (open_paths.drop_tmp, open_paths.drop_new):
        os.chown(path, 0, 12345)
        os.chmod(path, 0o3733)

    def become_nobody() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    done = call(open_paths, [b"alice"], b"text\n", before=become_nobody)
    assert (done.code, done.err) == (0, b"")
    found = os.stat(the_drop(open_paths).path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, 12345, 0o640)


# -- the daemon is called ---------------------------------------------------------------------------------------------

def test_one_datagram_calls_the_daemon(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(paths.wake)
        bell.setblocking(False)
        name = submit(paths, SMALL).name
        assert bell.recv(100).decode() == name
        with pytest.raises(BlockingIOError):
            bell.recv(100)


def test_a_daemon_that_does_not_listen_holds_nobody_up(paths: Paths) -> None:
    bell, ringer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with bell, ringer:
        bell.bind(paths.wake)
        ringer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ringer.sendto(b"x", paths.wake)
        submit(paths, SMALL)
    submit(paths, SMALL)  # and with nobody at the socket
    assert len(drops(paths)) == 2


# -- refusals ---------------------------------------------------------------------------------------------------------

class Full:
    """What statvfs says of a file system."""

    def __init__(self, bytes_free: int, files: int = 10**6, files_free: int = 10**6) -> None:
        self.f_frsize, self.f_bavail = 4096, bytes_free // 4096
        self.f_files, self.f_favail = files, files_free


MIB = 1024 * 1024


@pytest.mark.parametrize(("free", "size", "is_taken"), [
    (Full(65 * MIB), 100, True), (Full(63 * MIB), 100, False), (Full(0), 100, False),
    (Full(65 * MIB), 45 * MIB, False), (Full(70 * MIB), 45 * MIB, True),
    (Full(65 * MIB, files_free=999), 100, False), (Full(65 * MIB, 0, 0), 100, True)])
def test_the_last_room_is_left_to_others(paths: Paths, monkeypatch: pytest.MonkeyPatch, free: Full, size: int,
                                         is_taken: bool) -> None:
    monkeypatch.setattr(durable.os, "statvfs", lambda _path: free)
    pieces = [b"x" * MIB] * (size // MIB) + [b"x" * (size % MIB)]
    if is_taken:
        submit(paths, pieces)
        assert len(the_drop(paths).message) == size
    else:
        with pytest.raises(Refused, match="spool") as refusal:
            submit(paths, pieces)
        assert refusal.value.code == 75
        assert drops(paths) == []


def test_an_envelope_that_intake_would_not_take_is_refused(paths: Paths) -> None:
    one = (b"Recipient", b"- - " + b"a" * 100)
    for fields in ([one] * (dropbox.MAX_ENVELOPE // 100), [(b"Recipient", b"- - a")] * (dropbox.MAX_RECIPIENTS + 1)):
        with pytest.raises(Refused, match="too many recipients") as refusal:
            Submission(paths).begin(fields)
        assert refusal.value.code == 65


@pytest.mark.parametrize("value", [b"a\nPysendmail-Hold: x", b"a\r", b"a\0", b"a\x7f"])
def test_a_value_cannot_add_a_line(paths: Paths, value: bytes) -> None:
    with pytest.raises(ValueError, match="control character"):
        Submission(paths).begin([(b"Recipient", value)])


# -- trouble with the drop --------------------------------------------------------------------------------------------

STEPS = ("create", "lock", "write_all", "write_at", "publish")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT,
          errno.ELOOP, errno.EFBIG, errno.ENOTDIR, errno.ENOMEM)
SHARED = {errno.EIO, errno.EMFILE, errno.ENOMEM}  # the daemon could not help


def break_step(monkeypatch: pytest.MonkeyPatch, step: str, number: int, after: int = 0) -> None:
    """Let the step fail, from its call `after` on."""
    original: Callable[..., Any] = getattr(durable, step)
    calls = iter(range(1000))

    def broken(*arguments: Any) -> Any:
        if next(calls) < after:
            return original(*arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, step, broken)


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("step", STEPS)
def test_without_a_daemon_trouble_is_75_and_leaves_nothing(paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str,
                                                           number: int) -> None:
    break_step(monkeypatch, step, number)
    with pytest.raises(Refused) as refusal:
        submit(paths, LARGE)
    assert refusal.value.code == 75
    assert os.strerror(number) in str(refusal.value)
    assert ("daemon does not answer" in str(refusal.value)) == (number not in SHARED)
    assert drops(paths) == []


@pytest.mark.parametrize("pieces", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("call_name", ["rename", "fsync"])
def test_trouble_at_the_commit_point_leaves_nothing(paths: Paths, monkeypatch: pytest.MonkeyPatch, call_name: str,
                                                    pieces: list[bytes]) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable.os, call_name, broken)
    with pytest.raises(Refused, match="Input/output error") as refusal:
        submit(paths, pieces)
    assert refusal.value.code == 75
    assert drops(paths) == []


def test_a_missing_spool_is_named(paths: Paths) -> None:
    os.rmdir(paths.drop_tmp)
    with pytest.raises(Refused, match=r"No such file or directory.*daemon does not answer"):
        submit(paths, SMALL)


# -- the conversation -------------------------------------------------------------------------------------------------

class Daemon:
    """One conversation at the other end of the submission socket, by the words of spool/dropbox.py's docstring."""

    def __init__(self, path: str, answer: bytes, after_frames: int) -> None:
        self.answer, self.after_frames = answer, after_frames
        self.frames: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # end() before anybody came
            return
        with connection, connection.makefile("rb") as stream:
            while len(self.frames) != self.after_frames:
                head = stream.read(4)
                if len(head) < 4:
                    return
                self.frames.append(stream.read(int.from_bytes(head, "big")))
                if self.frames[-2:-1] == [b""]:
                    break
            connection.sendall(self.answer)

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    @property
    def content(self) -> bytes:
        return b"".join(self.frames[:-2])


Listen = Callable[..., Daemon]


@pytest.fixture
def listen(paths: Paths) -> Iterator[Listen]:
    daemons = []

    def start(answer: bytes = b"0 0WkDdmTe001000\n", after_frames: int = -1) -> Daemon:
        daemons.append(Daemon(paths.submit, answer, after_frames))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()


ONE_PIECE = [b"", b"x" * 300_000, b"", b"y"]


@pytest.mark.parametrize(("pieces", "step", "after"), [
    *((SMALL, step, 0) for step in ("create", "lock", "write_all", "publish")),
    *((LARGE, step, 0) for step in STEPS), *((LARGE, "write_all", after) for after in (1, 2, 5)),
    *((ONE_PIECE, step, 0) for step in STEPS), (ONE_PIECE, "write_all", 1),
], ids=itertools.count())
def test_the_daemon_gets_the_same_content(paths: Paths, listen: Listen, monkeypatch: pytest.MonkeyPatch,
                                          pieces: list[bytes], step: str, after: int) -> None:
    daemon = listen()
    break_step(monkeypatch, step, errno.EDQUOT, after)
    submission = submit(paths, pieces)
    assert drops(paths) == []
    assert submission.name == "0WkDdmTe001000"
    assert daemon.content == content(pieces)
    block, length, checksum = record.read_first(daemon.frames[-1])
    assert block == record.FIRST_LENGTH + len(record.field_lines(FIELDS))
    assert length == record.FIRST_LENGTH + len(daemon.content)
    assert checksum == record.crc(daemon.content)
    assert all(0 < len(frame) <= MAX_FRAME for frame in daemon.frames[:-2])
    assert daemon.frames[-2] == b""


def test_a_short_write_is_not_sent_twice(paths: Paths, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up takes part of a piece."""
    daemon = listen()
    write, left = os.write, iter([100_000, 30_000, 100])

    def until_full(fd: int, data: bytes) -> int:
        room = next(left, 0)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, bytes(data)[:room])

    monkeypatch.setattr(durable.os, "write", until_full)
    submit(paths, LARGE)
    assert daemon.content == content(LARGE)
    assert drops(paths) == []


def test_a_full_disk_that_shows_at_the_sync(paths: Paths, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delayed allocation: the quota is only looked at then."""
    def broken(_fd: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    daemon = listen()
    monkeypatch.setattr(durable.os, "fsync", broken)
    submit(paths, LARGE)
    assert daemon.content == content(LARGE)
    assert drops(paths) == []


@pytest.mark.parametrize(("answer", "code", "words"), [
    (b"65 message is larger than 5 bytes\n", 65, "message is larger than 5 bytes"),
    (b"75 no\x1b[2J room\xff\n", 75, "no?[2J room?"),
    (b"77 no\n0 ID\n", 77, "no"),
    (b"", 75, "no answer"), (b"0 ID", 75, "no answer"), (b"\n", 75, "no answer"), (b"OK\n", 75, "no answer"),
    (b"00 ID\n", 75, "no answer"), (b"1 x\n", 75, "no answer"), (b"63 x\n", 75, "no answer"),
    (b"79 x\n", 75, "no answer"), (b"-1 x\n", 75, "no answer"),
    (b"\xb2\xb3 x\n", 75, "no answer"), (b"x" * 5000, 75, "no answer")])
def test_what_the_daemon_answers(paths: Paths, listen: Listen, monkeypatch: pytest.MonkeyPatch, answer: bytes,
                                 code: int, words: str) -> None:
    listen(answer)
    break_step(monkeypatch, "create", errno.EROFS)
    with pytest.raises(Refused) as refusal:
        submit(paths, SMALL)
    assert refusal.value.code == code
    assert words in str(refusal.value)
    assert drops(paths) == []


@pytest.mark.parametrize(("answer", "code"), [
    (b"65 message is larger than 5 bytes\n", 65), (b"75 too many submissions\n", 75), (b"", 75), (b"0 ID\n", 75)])
def test_a_daemon_that_stops_listening_has_said_why(paths: Paths, listen: Listen, monkeypatch: pytest.MonkeyPatch,
                                                    answer: bytes, code: int) -> None:
    listen(answer, after_frames=1)
    break_step(monkeypatch, "create", errno.EROFS)
    with pytest.raises(Refused) as refusal:
        submit(paths, [b"x" * MAX_FRAME] * 200)  # more than the socket holds
    assert refusal.value.code == code


def test_a_daemon_that_hangs_is_not_waited_for_forever(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropbox, "ANSWER", 0.05)
    monkeypatch.setattr(dropbox, "CONNECT", 0.05)
    break_step(monkeypatch, "create", errno.EROFS)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.submit)
        listener.listen(1)
        for pieces in (SMALL, [b"x" * MAX_FRAME] * 200):  # at the answer, and in the middle
            with pytest.raises(Refused) as refusal:
                submit(paths, pieces)
            assert refusal.value.code == 75


def test_a_path_too_long_for_a_socket_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="daemon does not answer"):
        submit(Paths(str(tmp_path / ("x" * 150))), SMALL)


# -- giving up --------------------------------------------------------------------------------------------------------

def test_giving_up_removes_what_there_is(paths: Paths) -> None:
    submission = Submission(paths)
    assert submission.give_up(), "nothing there yet"
    submission.begin(FIELDS)
    submission.write(b"x" * 100_000)
    assert len(os.listdir(paths.drop_tmp)) == 1
    assert submission.give_up()
    assert submission.give_up(), "twice is once"
    assert drops(paths) == []


def test_giving_up_after_the_commit_is_too_late(paths: Paths) -> None:
    assert not submit(paths, SMALL).give_up()
    the_drop(paths)


@pytest.mark.parametrize("is_taken", [False, True])
def test_giving_up_at_the_commit_point(paths: Paths, monkeypatch: pytest.MonkeyPatch, is_taken: bool) -> None:
    """A handler that runs when the name is there and the sync has not returned."""
    submission, answers = Submission(paths), []

    def synced(_fd: int) -> None:
        if is_taken:
            os.rename(f"{paths.drop_new}/{submission.name}", f"{paths.intake}/1")
        answers.append(submission.give_up())

    monkeypatch.setattr(durable.os, "fsync", synced)
    submission.begin(FIELDS)
    submission.commit()
    assert answers == [not is_taken]
    assert drops(paths) == []


def test_the_lock_is_exclusive(paths: Paths) -> None:
    submission = Submission(paths)
    submission.begin(FIELDS)
    submission.write(b"x" * 100_000)
    name, = os.listdir(paths.drop_tmp)
    with open(f"{paths.drop_tmp}/{name}", "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    submission.give_up()
