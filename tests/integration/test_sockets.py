"""The local sockets as others meet them: submission where the drop cannot be written, changes by root, rubbish by
anybody. Whatever comes, the daemon stays the same process and mail flows."""

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.cli import ask
from pysendmail.route import aliases
from tests.tools import elsewhere
from tests.tools.host import NOBODY_KNOWN, RUNNER, WITHIN, Host

MakeHost = Callable[..., Host]
EX_NOPERM, EX_TEMPFAIL = 77, 75


def close_drop(host: Host) -> None:
    """Nobody but root can write into it, as on a read-only file system."""
    for path in (host.paths.drop_tmp, host.paths.drop_new):
        os.chmod(path, 0o500)


# ---- submission


def test_submission_without_the_drop(host: Host) -> None:
    close_drop(host)
    mail = host.send("bob", sender="alice", text=b"x" * 200_000 + b"\n")
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert "\nReturn-Path: <alice@host.example>\n" in "\n" + host.messages("bob")[0]
    assert "x" * 200_000 in host.box("bob")


@pytest.mark.root
def test_submitter_is_whom_the_kernel_says_he_is(host: Host) -> None:
    close_drop(host)
    mails = [host.send("bob", uid=host.users["carol"].uid), host.send("bob", uid=NOBODY_KNOWN)]
    host.wait_empty()
    first, second = host.messages("bob")
    assert [host.copies("bob", mail) for mail in mails] == [1, 1]
    assert "from carol (uid 54412)" in first
    assert f"(uid {NOBODY_KNOWN})" in second
    assert f"Return-Path: <uid{NOBODY_KNOWN}@host.example>" in second


def test_submission_waits_for_a_runner_that_is_being_replaced(host: Host) -> None:
    close_drop(host)
    os.kill(host.runner, 9)
    mail = host.send("bob")
    host.wait_empty()
    assert host.copies("bob", mail) == 1


def test_submission_with_neither_drop_nor_daemon_is_refused(make_host: MakeHost) -> None:
    host = make_host()
    close_drop(host)
    code, words = host.submit(["-i", "bob"], b"Subject: x\n\n", host.users["alice"].uid)
    assert code == EX_TEMPFAIL
    assert "daemon" in words


# ---- changes


def deferred(host: Host, count: int = 1) -> list[str]:
    """Messages to bob that wait; their ids."""
    home = host.users["bob"].home
    host.forward("bob", f'"|test -e {home}/good || exit 75; cat >> {home}/got"\n')
    mails = [host.send("bob", sender="alice") for _ in range(count)]
    for mail in mails:
        host.outcome(mail, "bob")
    host.wait_until(lambda: host.status()["active"] == 0, "all put off")
    return [host.queue_id(mail) for mail in mails]


def test_hold_release_and_flush(host: Host) -> None:
    first, second = deferred(host, 2)
    host.ask("hold", filter={"id": first})
    host.write_home("bob", "good", "")
    host.ask("flush", filter={})
    host.log.wait_for(f"^{second}: to=<bob@.*stat=Sent")
    assert [item["id"] for item in host.ask("list")] == [first]
    host.ask("release", filter={"held": True})
    host.wait_empty()
    assert len(host.log.find(f"^{first}: to=<bob@.*stat=Sent")) == 1


def test_delete(host: Host) -> None:
    first, second = deferred(host, 2)
    host.ask("delete", filter={"id": first})
    assert [item["id"] for item in host.ask("list")] == [second]
    assert host.box("alice") == ""
    assert not [name for name in host.files("queue/cur", "queue/journal") if first in name]


def test_bounce(host: Host) -> None:
    found, = deferred(host)
    host.ask("bounce", filter={"id": found})
    host.wait_empty()
    report, = host.messages("alice")
    assert "returned by the administrator" in report


def test_requeue_finds_the_new_alias(make_host: MakeHost) -> None:
    host = make_host(aliases="team: bob\n")
    host.start()
    host.forward("bob", '"|exit 75"\n')
    mail = host.send("team", sender="alice")
    host.outcome(mail, "bob")
    Path(host.paths.aliases).write_text("postmaster: root\nteam: carol\n")
    host.wait_until(lambda: host.status()["active"] == 0, "put off")
    while time.time() - os.stat(host.paths.aliases).st_ctime < aliases.SETTLED_AFTER:
        os.sched_yield()  # a file that has just been changed may be half of one
    host.ask("requeue", filter={})
    host.wait_empty()
    assert host.copies("carol", mail) == 1


@pytest.mark.root
@pytest.mark.parametrize("verb", ["hold", "release", "delete", "bounce", "requeue"])
def test_ordinary_users_may_change_nothing(host: Host, verb: str) -> None:
    found, = deferred(host)

    def change() -> tuple[int, str]:
        try:
            list(ask.ask(host.paths, {"do": verb, "filter": {"id": found}}))
        except ask.Unanswered as refusal:
            return refusal.code, str(refusal)
        return 0, ""

    code, words = elsewhere.run(change, uid=host.users["alice"].uid)
    assert (code, words) == (EX_NOPERM, f"only root may {verb} messages")
    assert [item["where"] for item in host.ask("list")] == ["cur"]


@pytest.mark.root
def test_users_see_their_own_mail_only(host: Host) -> None:
    found, = deferred(host)
    see = lambda: [item["id"] for item in ask.ask(host.paths, {"do": "list"})]  # noqa: E731
    assert elsewhere.run(see, uid=host.users["alice"].uid) == [found]
    assert elsewhere.run(see, uid=host.users["carol"].uid) == []
    assert elsewhere.run(see, uid=host.users[RUNNER].uid) == [found]


# ---- rubbish


def rubbish(seed: int) -> bytes:
    """Bytes that are nearly what the sockets expect, or nothing like it."""
    rng = random.Random(seed)
    pieces = [b'{"do":"list"}', b'{"do":"status","filter":', b'{"do":"show","id":"', b"\n", b"[" * 100, b"\0" * 10,
              b"\xff" * 10, b"GET / HTTP/1.1\r\n\r\n", (5).to_bytes(4, "big"), (0).to_bytes(4, "big"),
              (2**31).to_bytes(4, "big"), b"Pysendmail-Recipient: - - bob\n", rng.randbytes(50), b"}" * 50,
              b'{"do":["list"]}\n', b'{"do":"list","filter":{"id":["x","y"]}}\n']
    return b"".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12)))


@pytest.mark.parametrize("name", ["control", "submit"])
def test_rubbish_costs_its_own_connection(host: Host, name: str) -> None:
    """OpenSMTPD CVE-2025-62875: a bad length on a socket that anybody may connect to ended the whole service."""
    runner, path = host.runner, f"{host.paths.run}/{name}"

    def throw() -> None:
        for seed in range(300):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(WITHIN)
                client.connect(path)
                try:
                    client.sendall(rubbish(seed))
                    if seed % 3:
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(4096):
                            pass
                except (BrokenPipeError, ConnectionResetError):
                    continue

    elsewhere.run(throw, uid=host.users["carol"].uid if host.is_root else None)
    mail = host.send("bob")
    host.wait_empty()
    assert host.runner == runner
    assert host.copies("bob", mail) == 1
    assert not host.log.find("Traceback|Error:")
    assert host.files("queue/tmp", "intake") == []


@pytest.mark.root
@pytest.mark.parametrize("name", ["control", "submit"])
def test_silent_clients_of_one_user_keep_nobody_else_out(host: Host, name: str) -> None:
    path, clients = f"{host.paths.run}/{name}", []

    def crowd() -> list[socket.socket]:
        for _ in range(60):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(path)
        return clients

    with elsewhere.holding(crowd, uid=host.users["carol"].uid):
        if name == "submit":
            close_drop(host)
        mail = host.send("bob", sender="alice")
        host.outcome(mail, "bob")
        assert host.copies("bob", mail) == 1
        elsewhere.run(lambda: list(ask.ask(host.paths, {"do": "list"})), uid=host.users["alice"].uid)


def test_wake_up_calls_without_end_are_survived(host: Host) -> None:
    runner = host.runner

    def ring() -> int:
        rung = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bell:
            for number in range(5000):
                try:
                    bell.sendto(b"x" * (number % 3000), host.paths.wake)
                    rung += 1
                except BlockingIOError:
                    continue
        return rung

    assert elsewhere.run(ring, uid=host.users["carol"].uid if host.is_root else None) > 0
    mail = host.send("bob")
    host.wait_empty()
    assert (host.copies("bob", mail), host.runner) == (1, runner)
