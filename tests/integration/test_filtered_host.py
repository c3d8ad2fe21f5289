"""Mail that does not come by SMTP on a host with mail filters: nothing of it is delivered that they have not passed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.fakemilter import CONTINUE, FakeMilter, by_letter, packet
from tests.tools.host import QUICK, Host, Mail
from tests.tools.watch import WITHIN

MakeHost = Callable[..., Host]
MakeFilter = Callable[[dict[bytes, bytes]], FakeMilter]
MARKS = packet(b"h", b"X-Seen\0yes\0") + CONTINUE
MARKED = "\nX-Seen: yes\n"
SECRET = "PYSENDMAIL-SECRET-TEXT"


def settings(*filters: FakeMilter, more: str = "") -> str:
    sockets = ", ".join(f'"{one.endpoint}"' for one in filters)
    return f"[milter]\nsockets = [{sockets}]\n{more}\n[queue]\nretry_first = 3600\n"


def flush(host: Host) -> None:
    host.ask("flush")


def wait_sent(host: Host, mail: Mail, user: str, since: int) -> None:
    host.log.wait_for(rf"{host.queue_id(mail)}: to=<{user}@.*stat=Sent", since=since)


def test_a_filter_sees_what_comes_by_command(make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": MARKS})
    host = make_host(settings=settings(seen))
    host.start()
    mail = host.send("bob", "carol")
    for user in ("bob", "carol"):
        host.outcome(mail, user)
        (message,) = host.messages(user)
        assert MARKED in message
    assert seen.data(b"C") == [b"localhost\x004\0\x00127.0.0.1\0"]
    assert seen.data(b"M") == [b"<alice@host.example>\0"]
    assert seen.data(b"R") == [b"<bob@host.example>\0", b"<carol@host.example>\0"]
    assert seen.data(b"B") == [b"Hello.\r\n"]


def test_refused_mail_comes_back_without_its_text(make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": packet(b"y", b"550 5.7.1 a virus\0")})
    host = make_host(settings=settings(seen))
    host.start()
    mail = host.send("bob", text=SECRET.encode() + b"\n")
    assert "dsn=5.7.1, stat=a virus" in host.outcome(mail, "bob")
    host.wait_empty()
    (report,) = host.messages("alice")
    assert "a virus" in report
    assert "text/rfc822-headers" in report
    assert SECRET not in report
    assert host.messages("bob") == []
    assert len(seen.data(b"E")) == 1, "our own report is shown to nobody"


def test_mail_waits_for_a_filter_that_is_down(make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": MARKS})
    os.rename(seen.path, f"{seen.path}.away")
    host = make_host(settings=settings(seen))
    host.start()
    mail = host.send("bob")
    assert "dsn=4.7.1, stat=Deferred: a mail filter is out of order" in host.outcome(mail, "bob")
    assert host.messages("bob") == []
    (item,) = host.ask("list")
    assert "a mail filter is out of order" in item["reason"]

    os.rename(f"{seen.path}.away", seen.path)
    since = host.log.mark()
    flush(host)
    wait_sent(host, mail, "bob", since)
    (message,) = host.messages("bob")
    assert MARKED in message


def test_a_filter_that_is_down_is_passed_over_where_that_is_set(make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": MARKS})
    os.unlink(seen.path)
    host = make_host(settings=settings(seen, more='on_failure = "accept"'))
    host.start()
    assert "stat=Sent" in host.outcome(host.send("bob"), "bob")


def test_mail_that_was_queued_before_there_was_a_filter(make_host: MakeHost, filters: MakeFilter) -> None:
    """It has a journal and targets already; those that a filter takes out of it get nothing, those it adds do."""
    seen = filters({b"E": packet(b"-", b"<carol@host.example>\0") + packet(b"+", b"<dave@host.example>\0") + MARKS})
    host = make_host(settings="[queue]\nretry_first = 3600\n")
    down = Path(f"{host.paths.root}/users.down")
    host.start()
    down.touch()
    mail = host.send("bob", "carol")
    for user in ("bob", "carol"):
        assert "stat=Deferred" in host.outcome(mail, user)
    host.configure(settings(seen))
    host.reload()
    down.unlink()
    since = host.log.mark()
    flush(host)
    for user in ("bob", "dave"):
        wait_sent(host, mail, user, since)
        (message,) = host.messages(user)
        assert MARKED in message
    host.wait_empty()
    assert host.messages("carol") == []
    assert host.messages("alice") == []


@pytest.mark.parametrize("is_old", [False, True])
def test_quarantine_is_a_hold_until_it_is_released(make_host: MakeHost, filters: MakeFilter, is_old: bool) -> None:
    """Also for mail that has a journal already, and across a kill; what was released is not examined again."""
    seen = filters({b"E": packet(b"q", b"look at this\0") + MARKS})
    host = make_host(settings=settings(seen) if not is_old else "[queue]\nretry_first = 3600\n")
    down = Path(f"{host.paths.root}/users.down")
    host.start()
    if is_old:
        down.touch()
    mail = host.send("bob")
    if is_old:
        host.outcome(mail, "bob")
        host.configure(settings(seen))
        host.reload()
        down.unlink()
        flush(host)
    host.log.wait_for(r"quarantine: look at this")
    host.wait_until(lambda: host.status()["held"] == 1, "it is held")
    host.kill_runner()
    assert host.status()["held"] == 1
    (item,) = host.ask("list")
    assert item["hold"] == "look at this"
    assert host.messages("bob") == []

    since = host.log.mark()
    host.ask("release", filter={"id": item["id"]})
    wait_sent(host, mail, "bob", since)
    (message,) = host.messages("bob")
    assert MARKED in message
    assert len(seen.data(b"E")) == 1


def test_what_a_filter_discards_goes_nowhere(make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": packet(b"d")})
    host = make_host(settings=settings(seen))
    host.start()
    host.send("bob")
    host.log.wait_for(r"action=eom, discard")
    host.wait_empty()
    assert host.messages("bob") == []
    assert host.messages("alice") == []


def test_a_kill_in_the_middle_lets_nothing_through(make_host: MakeHost, filters: MakeFilter) -> None:
    seen, heard, usual = filters({}), threading.Event(), by_letter({b"E": b""})

    def never(letter: bytes, data: bytes) -> bytes:
        if letter == b"E":
            heard.set()
        return usual(letter, data)

    seen.answers = never
    host = make_host(settings=settings(seen), constants=QUICK)
    host.start()
    mail = host.send("bob")
    assert heard.wait(WITHIN)
    host.kill_runner()
    assert host.messages("bob") == []
    seen.answers = by_letter({b"E": MARKS})
    wait_sent(host, mail, "bob", 0)
    (message,) = host.messages("bob")
    assert MARKED in message


def test_a_new_body_takes_the_place_of_the_old_one(make_host: MakeHost, filters: MakeFilter) -> None:
    """And a filter that comes later in the chain sees it."""
    first = filters({b"E": packet(b"b", b"new\r\n.\r\ntext\r\n") + packet(b"m", b"\0\0\0\1Subject\0changed\0")
                     + CONTINUE})
    second = filters({b"E": MARKS})
    host = make_host(settings=settings(first, second))
    host.start()
    mail = host.send("bob", headers=b"Subject: old\n")
    host.outcome(mail, "bob")
    (message,) = host.messages("bob")
    assert message.rstrip("\n").endswith("\n\nnew\n.\ntext")
    assert "\nSubject: changed\n" in message
    assert second.data(b"B") == [b"new\r\n.\r\ntext\r\n"]
