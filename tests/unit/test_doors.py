"""The local doors: the submission socket's conversation, what a bad client costs, and the wake-up datagram."""

import asyncio
import itertools
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pysendmail.daemon import doors
from pysendmail.daemon.doors import Clients, SubmissionDoor, calls, peer_uid
from pysendmail.daemon.main import Bell
from pysendmail.events import Events
from pysendmail.paths import Paths
from pysendmail.spool import durable, record
from pysendmail.spool.queue_id import Ids, is_queue_id
from tests.tools.loop import Loop

CONTENT = record.field_lines([(b"Recipient", b"- - bob")]) + b"Subject: x\n\nHello.\n"
SOMEBODY = 54321


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def first_line(content: bytes = CONTENT) -> bytes:
    block = content.index(b"Subject")
    return record.first_line(record.FIRST_LENGTH + block, record.FIRST_LENGTH + len(content), record.crc(content))


def conversation(content: bytes = CONTENT) -> bytes:
    return frame(content) + frame(b"") + frame(first_line(content))


class Served:
    """The submission socket. adopted: names in intake/ that were given to intake; full: uids whose share is used up."""

    def __init__(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = paths
        self.now = 1_750_000_000.0
        self.uid = 1000
        self.adopted: list[str] = []
        self.full: set[int] = set()
        self.log: list[str] = []
        monkeypatch.setattr(doors, "peer_uid", lambda _: self.uid)
        events = Events(lambda _, text: self.log.append(text))
        self.door = SubmissionDoor(paths, Ids(1, lambda: self.now), events, 100_000, self.adopted.append,
                                   self.full.__contains__, lambda: self.now)

    def during(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work` returns while the socket is served; no exception may be left behind in the loop."""
        faults: list[dict[str, Any]] = []

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: faults.append(context))
            server = await loop.create_unix_server(self.door.connect, self.paths.submit)
            try:
                return await asyncio.wait_for(work(), 20)
            finally:
                server.close()
                await asyncio.sleep(0)

        answer = asyncio.run(main())
        Path(self.paths.submit).unlink(missing_ok=True)  # Python 3.13 has removed it
        assert not faults
        return answer

    def say(self, *pieces: bytes) -> str:
        """What it answers to these bytes."""
        return str(self.during(lambda: self.talk(*pieces)))

    async def talk(self, *pieces: bytes) -> str:
        reader, writer = await asyncio.open_unix_connection(self.paths.submit)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            answer = await reader.readline()
        except ConnectionError:
            answer = b""
        writer.close()
        return answer.decode()

    @property
    def left(self) -> list[str]:
        """What lies in queue/tmp and intake."""
        return [*os.listdir(f"{self.paths.queue}/tmp"), *os.listdir(self.paths.intake)]


@pytest.fixture
def served(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(paths, monkeypatch)


# ---- a submission


@pytest.mark.parametrize("cut", [1, 3, 5, 100_000])
def test_message_is_on_disk_when_it_is_answered(served: Served, cut: int) -> None:
    data = conversation()
    answer = served.say(*(data[at:at + cut] for at in range(0, len(data), cut)))
    code, _, found = answer.rstrip("\n").partition(" ")
    assert code == "0"
    assert is_queue_id(found)
    assert served.adopted == served.left == [f"{found},U=1000"]
    with open(f"{served.paths.intake}/{found},U=1000", "rb") as file:
        assert file.read() == first_line() + CONTENT
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600


def test_large_message_comes_in_many_frames(served: Served) -> None:
    content = CONTENT + b"x" * 90_000
    answer = served.say(*(frame(content[at:at + 10_000]) for at in range(0, len(content), 10_000)), frame(b""),
                        frame(first_line(content)))
    assert answer.startswith("0 ")


def test_nothing_is_answered_before_the_sync(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "publish", broken)
    assert served.say(conversation()) == "75 cannot write to the queue: Input/output error\n"
    assert (served.adopted, served.left) == ([], [])


@pytest.mark.parametrize("name", ["create", "write_all", "write_at"])
def test_full_disk_is_said_and_leaves_nothing(served: Served, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, name, full)
    assert served.say(conversation()) == "75 cannot write to the queue: No space left on device\n"
    assert (served.adopted, served.left) == ([], [])


@pytest.mark.parametrize("data", [
    frame(CONTENT) + frame(b"") + frame(b"rubbish"),
    frame(CONTENT) + frame(b"") + frame(first_line()[:-2] + b"0\n"),
    frame(CONTENT + b"more") + frame(b"") + frame(first_line()),
    frame(CONTENT[:-1]) + frame(b"") + frame(first_line()),
    frame(b"") + frame(first_line()),
    frame(b"") + frame(b""),
    (2**32 - 1).to_bytes(4, "big") + b"x" * 100,
    (doors.MAX_FRAME + 1).to_bytes(4, "big") + b"x" * 100,
    b"GET / HTTP/1.0\r\n\r\n",
    b"".join(frame(b"x" * 60_000) for _ in range(80)),
], ids=range(10))
def test_who_breaks_the_rules_is_told_and_leaves_nothing(served: Served, data: bytes) -> None:
    answer = served.say(data)
    assert answer == "" or answer.startswith("65 "), answer
    assert (served.adopted, served.left) == ([], [])
    assert served.door.clients._by_uid == {}
    assert served.say(conversation()).startswith("0 ")


def test_too_large_a_message_is_refused_by_its_size(served: Served) -> None:
    content = CONTENT + b"x" * (100_000 + record.MAX_BLOCK)
    answer = served.say(*(frame(content[at:at + 50_000]) for at in range(0, len(content), 50_000)))
    assert answer in ("", "65 message is larger than 100000 bytes\n")  # it may not hear us before we hang up
    assert served.log == ["NOQUEUE: submission of uid 1000: message is larger than 100000 bytes"]
    assert served.left == []


def test_client_that_goes_away_leaves_nothing(served: Served) -> None:
    async def go_away() -> None:
        _, writer = await asyncio.open_unix_connection(served.paths.submit)
        writer.write(frame(CONTENT))
        await writer.drain()
        while not os.listdir(f"{served.paths.queue}/tmp"):
            await asyncio.sleep(0)
        writer.transport.abort()
        while os.listdir(f"{served.paths.queue}/tmp"):
            await asyncio.sleep(0)

    served.during(go_away)
    assert (served.left, served.door.clients._by_uid) == ([], {})


def test_silent_client_is_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "IDLE", 0.05)
    assert served.say(frame(CONTENT)) == "75 timed out\n"
    assert served.left == []


def test_slow_client_is_sent_away_in_the_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame now and then keeps no place for ever."""
    monkeypatch.setattr(doors, "SESSION", 0.2)

    async def drip() -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as client:  # a stream would forget the answer if the next frame fails
            client.setblocking(False)
            await loop.sock_connect(client, served.paths.submit)
            answer = asyncio.ensure_future(loop.sock_recv(client, 100))
            while not answer.done():
                with suppress(BrokenPipeError):
                    client.send(frame(b"x"))
                await asyncio.wait([answer], timeout=0.01)
            return answer.result()

    assert served.during(drip) == b"75 timed out\n"
    assert served.left == []


# ---- who may


def test_users_share_is_asked_for(served: Served) -> None:
    served.full.add(1000)
    assert served.say(conversation()) == "75 too much mail of yours is waiting, try again later\n"
    served.uid = SOMEBODY
    assert served.say(conversation()).startswith("0 ")
    assert served.adopted[0].endswith(f",U={SOMEBODY}")


def test_rate_of_one_user_is_bounded_and_that_of_others_is_not(served: Served) -> None:
    async def many() -> list[str]:
        return [await served.talk(conversation()) for _ in range(doors.MAX_PER_MINUTE + 1)]

    answers = served.during(many)
    assert [answer[:2] for answer in answers] == ["0 "] * doors.MAX_PER_MINUTE + ["75"]
    served.uid = SOMEBODY
    assert served.say(conversation()).startswith("0 ")
    served.uid = 1000
    served.now += 60
    assert served.say(conversation()).startswith("0 ")


def test_connections_of_one_user_are_bounded(served: Served) -> None:
    async def crowd() -> list[str]:
        silent = [await asyncio.open_unix_connection(served.paths.submit) for _ in range(doors.MAX_CLIENTS_PER_USER)]
        refused = await served.talk(conversation())
        served.uid = SOMEBODY
        taken = await served.talk(conversation())
        for _, writer in silent:
            writer.close()
        return [refused, taken]

    refused, taken = served.during(crowd)
    assert refused == "75 too many submissions, try again later\n"
    assert taken.startswith("0 ")


def test_clients_counts_come_back() -> None:
    clients = Clients(3, 2)
    assert [clients.enter(uid) for uid in (1, 1, 1, 2, 3)] == [True, True, False, True, False]
    clients.leave(1)
    assert [clients.enter(uid) for uid in (3, 2)] == [True, False]
    for uid in (1, 2, 3):
        clients.leave(uid)
    assert clients._by_uid == {}


def test_peer_is_the_kernels_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()


@pytest.fixture
def bell() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the daemon's end of the wake-up socket, a caller's)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


NAME, OTHER = "0123456789abcdef" * 2, "f" * 32


@pytest.mark.parametrize(("sent", "names", "is_all"), [
    ([], [], False),
    ([NAME.encode()], [NAME], False),
    ([NAME.encode(), OTHER.encode()], [NAME, OTHER], False),
    ([b"\n"], [], True),
    ([NAME.encode(), b""], [NAME], True),
    ([NAME.encode() + b"x"], [], True),
    ([b"../../../../../../../../etc/shado"[:32]], [], True),
    ([b"\xc3\xa9" * 16], [], True),
    ([b"\0" * 32], [], True),
    ([NAME.encode()] * (doors.SHORTEST_QUEUE - 1), [NAME] * (doors.SHORTEST_QUEUE - 1), False),
    ([NAME.encode()] * doors.SHORTEST_QUEUE, [NAME] * doors.SHORTEST_QUEUE, True),
], ids=itertools.count())
def test_what_a_call_says(bell: tuple[socket.socket, socket.socket], sent: list[bytes], names: list[str],
                          is_all: bool) -> None:
    """Where the kernel may have thrown calls away, everything is looked at."""
    for word in sent:
        bell[1].send(word)
    assert calls(bell[0]) == (names, is_all)


def test_datagrams_are_read_and_forgotten(bell: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = bell
    sent = 0
    try:
        while sent < 300:
            theirs.send(b"x" * 1000)
            sent += 1
    except BlockingIOError:
        pass
    assert sent > 0
    while sent > 0:
        calls(ours)
        sent -= doors.DATAGRAMS
    calls(ours)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


def test_new_mail_name_is_told_again_where_the_spawner_did_not_hear_it(
        tmp_path: Path, bell: tuple[socket.socket, socket.socket]) -> None:
    """A runner that has stopped taking mail in, and is not replaced, would be stuck for ever."""
    ours, theirs = bell
    link, spawner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mailname = tmp_path / "mailname"
    mailname.write_text("old.example\n")
    runner: Any = SimpleNamespace(is_stopping=False, told=lambda _: None, wake=lambda: None)
    loop = Loop()
    with link, spawner:
        link.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                link.send(b"x" * 10_000)
        rings = Bell(cast(Any, loop), cast(Any, SimpleNamespace(link=link, wake=ours)), str(mailname), runner)
        mailname.write_text("new.host.example\n")
        theirs.send(b"")
        rings.rung()
        assert not runner.is_stopping
        while spawner.recv(20_000)[:1] == b"x" and select.select([spawner], [], [], 0)[0]:
            pass
        rings.rung()
        assert runner.is_stopping
        assert spawner.recv(100) == b'{"reload":true}'
