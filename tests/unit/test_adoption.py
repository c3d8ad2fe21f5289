"""What the runner takes over from listeners: whole files of theirs, by rename, and nothing else."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pysendmail.daemon.adoption import Adoption
from pysendmail.events import Events
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.paths import Paths
from pysendmail.spool import durable
from pysendmail.spool.queue_file import write_message
from pysendmail.spool.queue_id import Ids, is_queue_id

ENVELOPE = Envelope("", "a@example.org", (Recipient("alice@here.example"),), 1000.0, Origin("smtp"))
LISTENER = Ids(100, lambda: 1000.0)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def taken() -> set[str]:
    return set()


@pytest.fixture
def adoption(paths: Paths, log: list[str], taken: set[str]) -> Adoption:
    return Adoption(paths, Ids(2, lambda: 2000.0), Events(lambda priority, line: log.append(line)), taken.__contains__,
                    lambda: 5000.0)


def put(paths: Paths, text: bytes = b"Subject: x\n\nHello.\n", name: str = "", envelope: Envelope = ENVELOPE) -> str:
    """A message of a listener, as it lies in smtp/new; its name."""
    name = name or LISTENER.new()
    fd = durable.create(f"{paths.smtp_new}/{name}", 0o640)
    write_message(fd, replace(envelope, id=name), [text])
    os.close(fd)
    return name


def listed(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_message_is_renamed_not_copied(paths: Paths, adoption: Adoption) -> None:
    name = put(paths)
    inode = os.stat(f"{paths.smtp_new}/{name}").st_ino
    (message,) = adoption.sweep(10)
    assert os.stat(f"{paths.queue}/new/{name}").st_ino == inode
    assert (message.id, message.entry.place, message.entry.name, message.entry.uid) == (name, "new", name, -1)
    assert message.envelope == replace(ENVELOPE, id=name)
    assert message.source == ""
    data = Path(f"{paths.queue}/new/{name}").read_bytes()
    assert data[message.offset:] == b"Subject: x\n\nHello.\n"
    assert message.length == len(data)
    assert listed(paths.smtp_new) == []


def test_oldest_first_and_so_many_at_a_time(paths: Paths, adoption: Adoption) -> None:
    names = [put(paths) for _ in range(5)]
    assert [message.id for message in adoption.sweep(2)] == names[:2]
    assert adoption.has_more
    assert [message.id for message in adoption.sweep(10)] == names[2:]
    assert not adoption.has_more


def test_the_directory_is_looked_at_when_somebody_calls(paths: Paths, adoption: Adoption) -> None:
    assert adoption.sweep(10) == []
    name = put(paths)
    assert adoption.sweep(10) == []
    adoption.call()
    assert [message.id for message in adoption.sweep(10)] == [name]


def test_what_is_not_synced_yet_stays(paths: Paths, adoption: Adoption, log: list[str]) -> None:
    name = put(paths)
    with open(f"{paths.smtp_new}/{name}", "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert adoption.sweep(10) == []
        adoption.recover(set())
        assert listed(paths.smtp_new) == [name]
    adoption.call()
    assert [message.id for message in adoption.sweep(10)] == [name]
    assert log == []


# ---- what is no message of a listener


def torn(paths: Paths) -> str:
    name = put(paths)
    os.truncate(f"{paths.smtp_new}/{name}", 100)
    return name


def rotten(paths: Paths) -> str:
    name = put(paths)
    with open(f"{paths.smtp_new}/{name}", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"X")
    return name


def linked(paths: Paths) -> str:
    name = put(paths)
    os.link(f"{paths.smtp_new}/{name}", f"{paths.root}/other")
    return name


def symlink(paths: Paths) -> str:
    name = LISTENER.new()
    os.symlink("/etc/passwd", f"{paths.smtp_new}/{name}")
    return name


def fifo(paths: Paths) -> str:
    name = LISTENER.new()
    os.mkfifo(f"{paths.smtp_new}/{name}")
    return name


def directory(paths: Paths) -> str:
    name = LISTENER.new()
    os.mkdir(f"{paths.smtp_new}/{name}")
    return name


def unix_socket(paths: Paths) -> str:
    name = LISTENER.new()
    place = os.open(paths.smtp_new, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{place}/{name}")  # (the whole path is too long for a socket's)
    os.close(place)
    return name


def of_a_user(paths: Paths) -> str:
    return put(paths, envelope=replace(ENVELOPE, origin=Origin("command", 0, "root")))


def of_a_client_with_a_uid(paths: Paths) -> str:
    return put(paths, envelope=replace(ENVELOPE, origin=Origin("smtp", 1000, "alice")))


def of_the_runner(paths: Paths) -> str:
    return put(paths, envelope=replace(ENVELOPE, origin=Origin("runner")))


def another_name(paths: Paths) -> str:
    return put(paths, name="evil")


def a_name_that_leads_on(paths: Paths) -> str:
    return put(paths, name=LISTENER.new() + ",T=1:2,")


def no_record(paths: Paths) -> str:
    name = LISTENER.new()
    Path(f"{paths.smtp_new}/{name}").write_bytes(b"Subject: x\n\nHello.\n")
    return name


UNFIT = [torn, rotten, linked, symlink, fifo, directory, unix_socket, of_a_user, of_a_client_with_a_uid, of_the_runner,
         another_name, a_name_that_leads_on, no_record]


@pytest.mark.parametrize("make", UNFIT)
@pytest.mark.parametrize("at_start", [False, True], ids=["sweep", "recover"])
def test_what_is_unfit_goes_to_quarantine_and_others_flow(paths: Paths, adoption: Adoption, log: list[str],
                                                         make: Callable[[Paths], str], at_start: bool) -> None:
    name = make(paths)
    before = os.lstat(f"{paths.smtp_new}/{name}").st_ino
    good = put(paths)
    if at_start:
        adoption.recover(set())
    else:
        assert [message.id for message in adoption.sweep(10)] == [good]
    assert listed(f"{paths.queue}/new") == [good]
    assert listed(paths.smtp_new) == []
    assert [os.lstat(f"{paths.quarantine}/{one}").st_ino for one in listed(paths.quarantine)] == [before]
    assert len(log) == 1
    assert name in log[0]


def test_quarantine_replaces_nothing(paths: Paths, adoption: Adoption) -> None:
    name = torn(paths)
    Path(f"{paths.quarantine}/{name}").write_text("of another day")
    adoption.sweep(10)
    assert Path(f"{paths.quarantine}/{name}").read_text() == "of another day"
    assert len(listed(paths.quarantine)) == 2


# ---- ids


@pytest.mark.parametrize("where", ["in memory", "at the start", "journal"])
def test_an_id_that_is_taken_is_replaced(paths: Paths, adoption: Adoption, taken: set[str], log: list[str],
                                         where: str) -> None:
    """A clock that was set back makes an id twice; rename(2) would replace the other message without a word."""
    name = put(paths)
    if where == "in memory":
        taken.add(name)
    elif where == "journal":
        Path(f"{paths.journal}/{name}").touch()
    if where == "at the start":
        adoption.recover({name})
        (found,) = listed(f"{paths.queue}/new")
    else:
        (message,) = adoption.sweep(10)
        found = message.id
        assert message.entry.name == message.envelope.id == found
    assert found != name
    assert is_queue_id(found)
    assert listed(f"{paths.queue}/new") == [found]
    assert log == [f"{name}: this id is in use already; the message goes on as {found}"] or found in log[0]


# ---- trouble


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = os.open

    def fail(path: str, *more: int) -> int:
        if "/smtp/new/" in str(path):
            raise OSError(errno.EACCES, "Permission denied")
        return real(path, *more)

    monkeypatch.setattr(os, "open", fail)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("unreadable")
def test_trouble_leaves_the_message_where_it_is_and_is_said_once(paths: Paths, adoption: Adoption,
                                                                log: list[str]) -> None:
    for name in ("1", "2", "3"):
        os.link(paths.aliases, f"{paths.smtp_new}/{name}")
    for _ in range(3):
        adoption.call()
        assert adoption.sweep(10) == []
    assert len(listed(paths.smtp_new)) == 3
    assert len(log) == 1
    assert "Permission denied" in log[0]


def test_a_directory_that_cannot_be_listed(paths: Paths, adoption: Adoption, log: list[str]) -> None:
    os.rmdir(paths.smtp_new)
    assert adoption.sweep(10) == []
    adoption.recover(set())
    assert len(log) == 1
