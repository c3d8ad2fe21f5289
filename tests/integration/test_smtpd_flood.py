"""Many clients, and hostile ones: memory stays flat, and this host's own mail goes through."""

import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pysendmail.paths import Paths
from pysendmail.spool.queue_id import is_queue_id
from tests.tools.door import Client, Door, settings
from tests.tools.host import WITHIN

ALICE = "alice@server.example"
MakeDoor = Callable[..., Door]


@pytest.fixture
def make_door(paths: Paths) -> Iterator[MakeDoor]:
    made: list[Door] = []

    def make(*, limits: dict[str, Any] | None = None, **more: Any) -> Door:
        made.append(Door(paths, settings(paths, limits=limits or {}), **more))
        made[-1].start()
        return made[-1]

    yield make
    for door in made:
        door.close()


def memory(door: Door) -> int:
    """What the listeners have in memory that is their own, in KB."""
    total = 0
    for pid in door.pids:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    return total


def test_a_thousand_silent_strangers(make_door: MakeDoor) -> None:
    door = make_door(processes=2)
    with door.connect() as client:
        client.hello()
    before = memory(door)
    answers: Counter[str] = Counter()
    with ExitStack() as stack:
        for n in range(1000):
            client = stack.enter_context(door.connect_from(f"203.{n % 250}.113.{n // 250}"))
            answers[client.reply()[0][:9]] += 1
        assert answers == {"220 serve": 90, "421 4.3.2": 910}
        with door.connect() as friend:  # whose places are kept
            friend.hello()
            assert friend.mail(ALICE).startswith("250 2.0.0")
        assert memory(door) - before < 16 * 1024
    with door.connect_from() as client:
        client.hello()


def test_a_stranger_that_keeps_coming(make_door: MakeDoor) -> None:
    door = make_door(limits={"connections_per_minute": 20})
    answers = []
    for _ in range(30):
        with door.connect_from() as client:
            answers.append(client.reply()[0])
    assert all(answer.startswith("220 ") for answer in answers[:20])
    assert set(answers[20:]) == {"421 4.3.2 Connection rate limit exceeded."}
    door.log.wait_for(r"ruleset=check_relay, arg1=\[192\.0\.2\.7\], arg2=192\.0\.2\.7, relay=\[192\.0\.2\.7\], "
                      r"reject=421 4\.3\.2 Connection rate limit exceeded\.$")
    with door.connect_from("192.0.2.8") as client:
        client.hello()


def test_a_stranger_that_sends_and_sends(make_door: MakeDoor) -> None:
    door = make_door(limits={"messages_per_minute": 5})
    with door.connect_from() as client:
        client.hello()
        answers = [client.mail(ALICE) for _ in range(8)]
    assert [answer[:9] for answer in answers] == ["250 2.0.0"] * 5 + ["450 4.7.1"] * 3
    with door.connect() as client:
        client.hello()
        assert {client.mail(ALICE)[:9] for _ in range(20)} == {"250 2.0.0"}


def test_who_guesses_addresses(make_door: MakeDoor) -> None:
    door = make_door(limits={"soft_errors": 1000, "hard_errors": 20})
    with door.connect_from() as client:
        client.hello()
        client.cmd("MAIL FROM:<a@example.org>")
        for n in range(19):
            assert client.cmd(f"RCPT TO:<guess{n}@server.example>").startswith("550 5.1.1")
        client.send(b"RCPT TO:<guess@server.example>\r\n" * 5)
        assert client.rest().split(b"\r\n")[1].startswith(b"421 4.7.0 ")


JUNK = [b"", b"\0" * 5000, b"\r\n" * 500, b"\n" * 500, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"A" * 300_000,
        b"EHLO " + b"x" * 5000 + b"\r\n", b"EHLO x\r\n" + b"NOOP\r\n" * 300, b"EHLO x\r\n" + b"RSET\r\n" * 300,
        b"EHLO x\r\nMAIL FROM:<" + b"a" * 2000 + b">\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\xff" * 1000,
        b"EHLO x\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<alice@server.example>\r\n" * 2000,
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@server.example>\r\nDATA\r\n" + b"\n.\n\r.\r" * 10_000]


def test_junk(make_door: MakeDoor) -> None:
    """Whatever it is, however it is cut, and however the client goes: one listener outlives it all."""
    door = make_door(limits={"sessions_per_client": 1000, "connections_per_minute": 100_000, "soft_errors": 1000})
    chance = random.Random(20)
    pid = door.pids[0]
    before = 0
    for turn in range(150):
        data = chance.choice(JUNK) if turn % 2 else chance.randbytes(chance.randrange(2000))
        with door.connect_from() as client:
            try:
                cut = chance.randrange(len(data) + 1)
                client.send(data[:cut])
                client.send(data[cut:])
                chance.choice([client.reset, client.shut, lambda: None])()
            except (BrokenPipeError, ConnectionResetError):
                pass
        if turn == 50:
            before = memory(door)
    with door.connect() as client:
        client.hello()
        assert client.mail(ALICE).startswith("250 2.0.0")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert memory(door) - before < 4 * 1024
    assert door.log.find("SYSERR") == []


def test_many_messages_from_many_sessions(make_door: MakeDoor) -> None:
    """Each 250 names a message of its own, all of which are there."""
    door = make_door(processes=2, limits={"sessions": 100})
    with door.connect() as client:
        client.hello()
    before = memory(door)
    answers: list[str] = []
    trouble: list[BaseException] = []

    def send() -> None:
        try:
            with Client(socket.create_connection(("127.0.0.1", door.port), WITHIN)) as client:
                client.hello()
                answers.extend(client.mail(ALICE, text=b"Subject: x\n\n" + b"x" * 4000 + b"\n") for _ in range(60))
        except BaseException as problem:  # noqa: BLE001 - for the test's own thread
            trouble.append(problem)

    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert trouble == []
    ids = [answer.split(" ")[2] for answer in answers if answer.startswith("250 2.0.0 ")]
    assert len(ids) == len(set(ids)) == 1200
    assert all(map(is_queue_id, ids))
    assert set(ids) == set(os.listdir(door.paths.smtp_new))
    assert memory(door) - before < 16 * 1024
