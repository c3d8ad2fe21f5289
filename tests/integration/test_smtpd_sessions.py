"""One listener and its clients: what the log says, TLS, those who examine mail, proxies, the clock, the end."""

import os
import select
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysendmail import auth
from pysendmail.auth import Judgement
from pysendmail.daemon import connection, inbox, session
from pysendmail.mail.changes import AddField, Draft, InsertField, Quarantine, RemoveRecipient, ReplaceBody, apply
from pysendmail.mail.envelope import Origin, Recipient
from pysendmail.paths import Paths
from pysendmail.smtp.grammar import MailParameters
from pysendmail.smtp.reply import Reply, reply
from tests.tools import certificate
from tests.tools.door import STRANGER, Client, Door, Logins, anybody, settings, until

ALICE = "alice@server.example"
MakeDoor = Callable[..., Door]


@pytest.fixture
def make_door(paths: Paths) -> Iterator[MakeDoor]:
    """Makes the door of this test, open. changes: settings by section."""
    made: list[Door] = []

    def make(*, changes: dict[str, dict[str, Any]] | None = None, **more: Any) -> Door:
        door = Door(paths, settings(paths, **changes or {}), **more)
        made.append(door)
        door.start()
        return door

    yield make
    for door in made:
        door.close()


@pytest.fixture
def door(make_door: MakeDoor) -> Door:
    return make_door()


# ---- the log, as those who read it expect


def test_a_message_is_one_line(door: Door) -> None:
    with door.connect_from() as client:
        client.hello()
        assert client.mail(ALICE, "bob@server.example", text=b"Message-ID: <x@y>\n\nHello.\n").startswith("250 2.0.0 ")
    (found,) = door.taken()
    assert door.log.wait_for("from=")[0].string == (
        f"{found.envelope.id}: from=<a@example.org>, size=29, class=0, nrcpts=2, msgid=<x@y>, proto=ESMTP, daemon=MTA, "
        f"relay=[{STRANGER}]")


@pytest.mark.parametrize(("lines", "pattern"), [
    (["MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>"],
     r"^\w{14}: ruleset=check_rcpt, arg1=<b@example\.org>, relay=\[192\.0\.2\.7\], "
     r"reject=550 5\.7\.1 <b@example\.org>\.\.\. Relaying denied\. Proper authentication required\.$"),
    (["MAIL FROM:<a@example.org>", "RCPT TO:<nobody@server.example>"],
     r"^\w{14}: ruleset=check_rcpt, arg1=<nobody@server\.example>, relay=\[192\.0\.2\.7\], "
     r"reject=550 5\.1\.1 <nobody@server\.example>\.\.\. User unknown$"),
    (["MAIL FROM:<alice@server.example>"],
     r"^\w{14}: ruleset=check_mail, arg1=<alice@server\.example>, relay=\[192\.0\.2\.7\], reject=550 5\.7\.1 "),
    (["MAIL FROM:<a@example.org>", 'RCPT TO:<"x>, relay=[192.0.2.9], reject=550 5.1.1 <x>... Rejected: "@x.example>'],
     r"^\w{14}: ruleset=check_rcpt, arg1=<\"x\\x3e,\\x20relay=\[192\.0\.2\.9\],\S*>, relay=\[192\.0\.2\.7\], "),
])
def test_refusals(door: Door, lines: list[str], pattern: str) -> None:
    with door.connect_from() as client:
        client.hello()
        for line in lines[:-1]:
            assert client.cmd(line).startswith("250 ")
        assert client.cmd(lines[-1]).startswith("550 ")
    door.log.wait_for(pattern)


@pytest.mark.parametrize("last", ["RSET", "QUIT"])
def test_a_message_without_a_recipient_has_its_line(door: Door, last: str) -> None:
    """logwatch counts these, and expects one for each id that a refusal names."""
    with door.connect_from() as client:
        client.hello()
        client.cmd("MAIL FROM:<a@example.org>")
        assert client.cmd("RCPT TO:<nobody@server.example>").startswith("550 ")
        client.cmd(last)
    found, = door.log.wait_for("nrcpts=0")
    refusal, = door.log.wait_for("ruleset=check_rcpt")
    assert found.string == (f"{refusal.string[:14]}: from=<a@example.org>, size=0, class=0, nrcpts=0, proto=ESMTP, "
                            f"daemon=MTA, relay=[{STRANGER}]")


def test_ipv6_clients_are_named_as_sendmail_names_them(door: Door) -> None:
    with door.connect_from("2001:db8::7") as client:
        client.hello()
        assert client.mail("x@example.org").startswith("550 5.7.1")
    door.log.wait_for(r"relay=\[IPv6:2001:db8::7\], reject=550 5\.7\.1")


def test_who_goes_without_a_word(door: Door) -> None:
    with door.connect_from() as client:
        client.hello()
        client.cmd("MAIL FROM:<a@example.org>")
        client.cmd(f"RCPT TO:<{ALICE}>")
        client.reset()
    door.log.wait_for(r"^\w{14}: lost input channel from \[192\.0\.2\.7\] to MTA after rcpt$")


def test_who_wants_nothing(door: Door) -> None:
    with door.connect_from() as client:
        client.hello()
        client.cmd("QUIT")
    door.log.wait_for(r"^\w{14}: \[192\.0\.2\.7\] did not issue MAIL/EXPN/VRFY/ETRN during connection to MTA$")


def test_control_characters_stay_out_of_the_log(door: Door) -> None:
    with door.connect_from() as client:
        assert client.reply()[0].startswith("220 ")
        client.send(b"EHLO x\r\nMAIL FROM:<\x1b[2J\n@x>\r\n")
        assert client.rest()
    with door.connect_from() as client:
        client.hello()
        client.mail(ALICE, text=b"Message-ID: <\x1b[2J\x00\x07>\n\nx\n")
    door.log.wait_for("from=")
    assert all(line.isprintable() for line in door.log.lines())


# ---- what becomes of a session


def test_all_at_once_and_then_silence(door: Door) -> None:
    """printf ... | nc: the client has said all it has to say, and still hears everything."""
    with door.connect() as client:
        client.send(f"EHLO x\r\nMAIL FROM:<root>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\n".encode())
        client.shut()
        said = client.rest().split(b"\r\n")
    assert [line[:3] for line in said if line[3:4] == b" "] == [b"220", b"250", b"250", b"250", b"354", b"250"]
    assert len(door.taken()) == 1


def test_many_messages_in_one_write(door: Door) -> None:
    one = f"MAIL FROM:<root>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\nx\r\n.\r\nRSET\r\n".encode()
    with door.connect() as client:
        client.hello()
        client.send(one * 200 + b"QUIT\r\n")
        said = client.rest()
    assert said.count(b"\r\n250 2.0.0 ") == 400
    assert len(door.taken()) == 200


def test_the_client_may_be_gone_before_its_message_is_safe(make_door: MakeDoor) -> None:
    """Then it has been taken, and may come twice; it is not lost."""
    door = make_door()
    with door.connect() as client:
        client.hello()
        client.send(f"MAIL FROM:<root>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\nx\r\n.\r\n".encode())
        client.shut()
        client.rest()
    assert len(door.wait_taken(1)) == 1
    assert door.stop() == [0]
    assert door.unfinished() == []


def test_a_long_message_is_not_held_in_memory(make_door: MakeDoor) -> None:
    door = make_door()
    text = b"Subject: large\n\n" + b"0123456789" * 10 + b"\n"
    lines = 200_000
    with door.connect_from() as client:
        client.hello()
        before = peak(door.pids[0])
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        body = text.replace(b"\n", b"\r\n") + (b"0123456789" * 10 + b"\r\n") * lines
        client.send(body + b".\r\n")
        assert client.reply()[-1].startswith("250 2.0.0")
        assert peak(door.pids[0]) - before < 8 * 1024  # of 20 MB
    (found,) = door.taken()
    assert found.rest == body.replace(b"\r\n", b"\n")


def peak(pid: int) -> int:
    """The most memory that a process had, in KB."""
    lines = Path(f"/proc/{pid}/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_too_large_is_said_at_the_end_and_nothing_is_left(make_door: MakeDoor) -> None:
    door = make_door(changes={"limits": {"message_size": 500_000}})
    with door.connect_from() as client:
        client.hello()
        assert client.cmd("MAIL FROM:<a@example.org> SIZE=500001").startswith("552 5.3.4")
        assert client.mail(ALICE, text=b"x" * 99 + b"\n" + (b"x" * 99 + b"\n") * 8000).startswith("552 5.3.4")
        assert client.mail(ALICE).startswith("250 2.0.0")
    assert len(door.taken()) == 1
    assert door.unfinished() == []


def test_too_many_hops(make_door: MakeDoor) -> None:
    door = make_door()
    with door.connect_from() as client:
        client.hello()
        assert client.mail(ALICE, text=b"Received: x\n" * 60 + b"\nx\n").startswith("554 5.4.6")
        assert client.mail(ALICE, text=b"X: 1\n" * 2000 + b"\nx\n").startswith("552 5.6.0")
        long = b"X: 1\n" * 2000 + b"\n" + (b"x" * 99 + b"\n") * 5000  # refused before it has ended
        assert client.mail(ALICE, text=long).startswith("552 5.6.0")
        assert client.mail(ALICE).startswith("250 2.0.0")
    assert len(door.taken()) == 1
    door.log.wait_for(r"content is not taken, reject=554 5\.4\.6")


# ---- TLS


@pytest.fixture
def tls_door(make_door: MakeDoor, tmp_path: Path) -> Door:
    return make_door(certificate=certificate.server_context(tmp_path), logins=Logins())


def test_starttls_is_in_received_and_in_the_log(tls_door: Door) -> None:
    with tls_door.connect_from() as client:
        assert "250-STARTTLS" in client.hello()
        assert client.cmd("STARTTLS").startswith("220 ")
        client.start_tls(certificate.client_context())
        client.send(b"EHLO client.example\r\n")
        assert "250-AUTH PLAIN LOGIN" in client.reply()
        assert client.cmd("AUTH LOGIN QUxJQ0U=").startswith("334 ")
        assert client.cmd("c2VjcmV0").startswith("235 ")
        assert client.mail("x@example.org", sender="alice@server.example").startswith("250 2.0.0")
        assert client.mail("x@example.org", sender="bob@server.example").startswith("553 5.7.1")
    (found,) = tls_door.taken()
    assert found.envelope.origin == Origin("smtp", client=f"[{STRANGER}]", helo="client.example", protocol="ESMTPSA",
                                           tls="TLSv1.3 TLS_AES_256_GCM_SHA384", auth="alice", mechanism="LOGIN")
    assert b"(using TLSv1.3 TLS_AES_256_GCM_SHA384)" in found.received
    assert b"with ESMTPSA id" in found.received
    assert b"Message-ID: " in found.rest  # as a submission's
    tls_door.log.wait_for(
        r"^STARTTLS=server, relay=\[192\.0\.2\.7\], version=TLSv1\.3, verify=NO, cipher=\S+, bits=256/256$")


@pytest.mark.parametrize("more", [b"NOOP injected\r\n", b"EHLO x\r\nMAIL FROM:<a@b>\r\n", b"x"])
def test_what_is_said_before_tls_is_never_heard_after_it(tls_door: Door, more: bytes) -> None:
    with tls_door.connect_from() as client:
        client.hello()
        client.send(b"STARTTLS\r\n" + more)
        assert client.reply()[0].startswith("554 5.5.0")
        assert client.rest() == b""


@pytest.mark.parametrize("talk", [b"EHLO x\r\n" * 100, b"\x16\x03\x01\x02\x00" + bytes(600), b"\x80"],
                         ids=["plaintext", "broken hello", "nothing"])
def test_a_handshake_that_fails_ends_the_session_and_no_other(tls_door: Door, talk: bytes) -> None:
    with tls_door.connect_from() as client:
        client.hello()
        assert client.cmd("STARTTLS").startswith("220 ")
        client.send(talk)
        client.shut()
        client.rest()
    tls_door.log.wait_for(r"^STARTTLS=server, error: accept failed: .*, relay=\[192\.0\.2\.7\]$")
    until(lambda: open_sockets(tls_door.pids[0]) == 2, "the connection is closed")
    with tls_door.connect_from() as client:
        client.hello()


def open_sockets(pid: int) -> int:
    """Its listening sockets, of this test two, and those of its clients."""
    links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    return sum(link.startswith("socket:") for link in links) - 2  # (asyncio's own pair)


def test_a_client_that_never_begins_a_handshake(tls_door: Door) -> None:
    """The clock of the handshake is asyncio's; here it is enough that others are served meanwhile."""
    with tls_door.connect_from() as silent:
        silent.hello()
        silent.cmd("STARTTLS")
        with tls_door.connect_from() as client:
            client.hello()
            assert client.mail(ALICE).startswith("250 2.0.0")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_tls(tls_door: Door, version: ssl.TLSVersion) -> None:
    context = anybody()
    context.minimum_version = context.maximum_version = version
    with tls_door.connect_from() as client:
        client.hello()
        client.cmd("STARTTLS")
        client.start_tls(context)
        client.cmd("EHLO x")
        client.send(b"NOOP\r\n" * 3 + b"QUIT\r\n")
        assert client.rest().count(b"250 2.0.0 ok\r\n") == 3


def test_a_door_for_tls_without_a_certificate_serves_nobody(make_door: MakeDoor) -> None:
    door = make_door(profile="submissions")
    assert len(door.log.wait_for("is for TLS, and there is no certificate", count=2)) == 2


def test_a_wrong_password_is_no_trouble_and_trouble_no_wrong_password(tls_door: Door) -> None:
    with tls_door.connect_from() as client:
        client.hello()
        client.cmd("STARTTLS")
        client.start_tls(anybody())
        client.cmd("EHLO x")
        assert client.cmd("AUTH PLAIN AHRyb3VibGUAeA==").startswith("454 ")
        assert client.cmd("AUTH PLAIN AGFsaWNlAHdyb25n").startswith("535 ")
        assert client.cmd("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("235 ")


# ---- those who examine mail


class Examination:
    """Objects to whatever the client's words ask for; notes what it is told in a file, since it is in the listener."""

    def __init__(self, client: auth.Client, notes: str) -> None:
        self._notes = notes
        self._note(f"begin {client.address} {client.is_trusted}")

    def _note(self, line: str) -> None:
        with open(self._notes, "a") as file:
            file.write(line + "\n")

    async def connected(self, client: auth.Client) -> Reply | None:
        refused = {"192.0.2.66": reply(421, "4.7.0", "not now"), "192.0.2.67": reply(554, "5.7.1", "never")}
        return refused.get(client.address)

    async def hello(self, name: str, origin: Origin) -> Reply | None:
        self._note(f"hello {name}")
        return reply(550, "5.7.1", "no such name") if name == "evil.example" else None

    async def sender(self, address: str, origin: Origin, queue_id: str, parameters: MailParameters) -> Reply | None:
        self._note(f"sender {address} {origin.helo}")
        return reply(550, "5.7.1", "no such sender") if address.startswith("evil@") else None

    async def recipient(self, recipient: Recipient) -> Reply | None:
        self._note(f"recipient {recipient.address}")
        return reply(450, "4.7.1", "greylisted") if recipient.address.startswith("bob@") else None

    async def refused(self, recipient: Recipient, refusal: Reply) -> None:
        self._note(f"refused {recipient.address} {refusal.status}")

    async def judge(self, draft: Draft) -> Judgement:
        head = draft.text.head
        self._note(f"judge {len(draft.envelope.recipients)} {sum(map(len, draft.text.body()))}")
        if b"X-Wait" in head:
            Path(f"{self._notes}.waits").touch()
            import asyncio

            await asyncio.Event().wait()
        if b"X-Fault" in head:
            raise RuntimeError("a fault of ours")
        if b"X-Virus" in head:
            return Judgement(draft, reply(554, "5.7.1", "virus found"))
        if b"X-Discard" in head:
            return Judgement(draft, is_dropped=True)
        changes = {b"X-Add": [AddField(b"X-Added", b"yes"), InsertField(0, b"X-Top", b"yes")],
                   b"X-Body": [ReplaceBody(lambda: [b"another ", b"body\n"])],
                   b"X-Hold": [Quarantine("looks bad")], b"X-Nobody": [RemoveRecipient(ALICE)]}
        for name, wanted in changes.items():
            if name in head:
                return Judgement(apply(draft, wanted))
        return Judgement(draft)

    def drop(self) -> None:
        self._note("drop")

    def close(self) -> None:
        self._note("close")


class Examiner:
    def __init__(self, notes: str) -> None:
        self._notes = notes

    def begin(self, client: auth.Client) -> Examination:
        return Examination(client, self._notes)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def judged(make_door: MakeDoor, notes: Path) -> Door:
    filters = {"sockets": ("unix:/nowhere",)}  # what is examined counts as scanned only where filters take part
    return make_door(examiner=Examiner(str(notes)), changes={"milter": filters})


def test_whoever_examines_mail_hears_everything_in_order(judged: Door, notes: Path) -> None:
    with judged.connect_from() as client:
        client.hello()
        assert client.mail(ALICE, text=b"Subject: x\n\nHello.\n").startswith("250 2.0.0")
        client.cmd("MAIL FROM:<a@example.org>")
        assert client.cmd("RCPT TO:<nobody@server.example>").startswith("550 5.1.1")
        client.cmd("RSET")
        client.cmd("QUIT")
    until(lambda: "close" in notes.read_text(), "it hears of the end")
    assert notes.read_text().split("\n")[:-1] == [
        f"begin {STRANGER} False", "hello client.example", "sender a@example.org client.example", f"recipient {ALICE}",
        "judge 1 7", "sender a@example.org client.example", "refused nobody@server.example 5.1.1", "drop", "close"]
    (found,) = judged.taken()
    assert found.envelope.scanned


def test_without_anybody_nothing_is_called_scanned(door: Door) -> None:
    with door.connect() as client:
        client.hello()
        client.mail(ALICE)
    assert not door.taken()[0].envelope.scanned


def test_refusals_of_whoever_examines_mail(judged: Door) -> None:
    with judged.connect_from("192.0.2.66") as client:
        assert client.reply()[0] == "421 4.7.0 not now"
        assert client.rest() == b""
    with judged.connect_from("192.0.2.67") as client:
        client.hello()
        assert client.cmd("MAIL FROM:<a@example.org>").startswith("554 5.7.1")
        assert client.cmd("MAIL FROM:<>").startswith("554 5.7.1")
    with judged.connect_from() as client:
        assert client.reply()[0].startswith("220 ")
        assert client.cmd("EHLO evil.example").startswith("550 5.7.1")
        assert client.cmd("MAIL FROM:<a@example.org>").startswith("503 ")
        assert client.cmd("EHLO client.example").startswith("250 ")
        assert client.cmd("MAIL FROM:<evil@example.org>").startswith("550 5.7.1")
        assert client.mail("bob@server.example").startswith("450 4.7.1")
        client.cmd("RSET")
        assert client.mail(ALICE, text=b"X-Virus: yes\n\nx\n").startswith("554 5.7.1")
        assert client.mail(ALICE, text=b"X-Discard: yes\n\nx\n").startswith("250 2.0.0")
        assert client.mail(ALICE, text=b"X-Nobody: yes\n\nx\n").startswith("250 2.0.0")
        assert judged.taken() == []
        assert client.mail(ALICE).startswith("250 2.0.0")
    assert len(judged.taken()) == 1
    assert judged.unfinished() == []
    judged.log.wait_for(r"content is not taken, reject=554 5\.7\.1 virus found")


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["held", "in a file"])
@pytest.mark.parametrize(("mark", "head", "is_other_body"), [
    (b"X-Add", b"X-Add: 1\nX-Added: yes\n", False), (b"X-Body", b"X-Body: 1\n", True),
    (b"X-Hold", b"X-Hold: 1\n", False)])
def test_changes_are_what_is_queued(judged: Door, size: int, mark: bytes, head: bytes, is_other_body: bool) -> None:
    body = b"0123456789\n" * (size // 10)
    with judged.connect_from() as client:
        client.hello()
        assert client.mail(ALICE, text=mark + b": 1\n\n" + body).startswith("250 2.0.0")
    (found,) = judged.taken()
    assert found.text.endswith(b"\n" + head + b"\n" + (b"another body\n" if is_other_body else body))
    assert found.text.startswith(b"X-Top: yes\nReceived: " if mark == b"X-Add" else b"Received: ")
    assert found.envelope.hold == ("looks bad" if mark == b"X-Hold" else "")
    assert judged.unfinished() == []


def test_a_fault_in_judging_is_temporary_and_leaves_nothing(judged: Door) -> None:
    with judged.connect_from() as client:
        client.hello()
        assert client.mail(ALICE, text=b"X-Fault: 1\n\nx\n").startswith("451 4.3.0")
        assert client.mail(ALICE, text=b"X-Fault: 1\n\n" + b"x" * 90 + b"\n" * 400_000).startswith("451 4.3.0")
        assert judged.unfinished() == []
        assert client.mail(ALICE).startswith("250 2.0.0")
    judged.log.wait_for("RuntimeError: a fault of ours")
    assert len(judged.taken()) == 1


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["held", "in a file"])
def test_a_client_that_goes_while_it_is_judged_leaves_nothing(judged: Door, notes: Path, size: int) -> None:
    """It has had no 250, and will come again."""
    with judged.connect_from() as client:
        client.hello()
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        client.send(b"X-Wait: 1\r\n\r\n" + b"x\r\n" * size + b".\r\n")
        until(Path(f"{notes}.waits").exists, "it is being judged")
        client.reset()
    until(lambda: "close" in notes.read_text(), "the session is over")
    assert judged.unfinished() == judged.taken() == []
    assert judged.stop() == [0]


# ---- proxies


def test_xclient(door: Door) -> None:
    with door.connect() as client:
        assert any(line.startswith("250-XCLIENT NAME ADDR") for line in client.hello())
        assert client.cmd("XCLIENT ADDR=192.0.2.99 PORT=1234 NAME=[UNAVAILABLE] LOGIN=alice").startswith("220 ")
        client.send(b"EHLO there.example\r\n")
        client.reply()
        assert client.mail("x@example.org").startswith("250 2.0.0")
        assert client.cmd("XCLIENT ADDR=nonsense").startswith("501 ")
        assert client.cmd("XCLIENT ADDR=192.0.2.98 LOGIN=[UNAVAILABLE]").startswith("220 ")
        client.send(b"EHLO there.example\r\n")
        client.reply()
        assert client.mail("x@example.org").startswith("550 5.7.1")
    (found,) = door.taken()
    origin = found.envelope.origin
    assert (origin.client, origin.auth, origin.mechanism) == ("[192.0.2.99]", "alice", "XCLIENT")


def test_the_client_of_a_proxy_has_the_terms_of_its_own(make_door: MakeDoor) -> None:
    """A stranger's line ends and limits, not those of programs on this host, where the proxy is."""
    door = make_door(changes={"limits": {"messages_per_session": 1}})
    with door.connect() as client:
        client.hello()
        assert client.cmd("XCLIENT ADDR=192.0.2.99").startswith("220 ")
        client.send(b"EHLO there.example\r\n")
        assert any(line.startswith("250-XCLIENT") for line in client.reply())
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        client.send(b"Subject: x\r\n\r\nx\n.\nx\r\n.\r\n")
        assert client.reply()[0].startswith("550 5.5.2")
        assert client.cmd("MAIL FROM:<a@example.org>").startswith("421 4.7.0 too many messages")
    assert door.taken() == []


def test_strangers_are_no_proxies(door: Door) -> None:
    with door.connect_from() as client:
        assert not any("XCLIENT" in line for line in client.hello())
        assert client.cmd("XCLIENT ADDR=127.0.0.1").startswith("550 5.7.0")


@pytest.mark.parametrize("header", [b"EHLO x\r\n", b"PROXY TCP4 x\r\n", b""], ids=["none", "nonsense", "nothing"])
def test_a_connection_without_its_header_is_closed(door: Door, header: bytes) -> None:
    with socket.create_connection(("127.0.0.1", door.proxied_port), 30) as one:
        one.sendall(header)
        one.shutdown(socket.SHUT_WR)
        try:
            assert one.recv(100) == b""
        except ConnectionResetError:
            pass
    door.log.wait_for(r"^(DEBUG: )?proxy localhost \[127\.0\.0\.1\]: ")


def test_only_proxies_talk_to_a_proxied_port(make_door: MakeDoor) -> None:
    door = make_door(changes={"smtpd": {"proxies": ("203.0.113.1/32",)}})
    with door.connect_from() as client:
        assert client.reply()[0].startswith("421 4.3.2 Only proxies")


def test_a_proxied_client_has_limits_of_its_own(make_door: MakeDoor) -> None:
    door = make_door(changes={"limits": {"sessions_per_client": 1}})
    first, second = "192.0.2.1", "192.0.2.2"
    with door.connect_from(first) as one, door.connect_from(second) as two, door.connect_from(first) as three:
        one.hello()
        two.hello()
        assert three.reply()[0] == "421 4.3.2 Too many open connections."
    door.log.wait_for(r"^\w{14}: ruleset=check_relay, arg1=\[192\.0\.2\.1\], arg2=192\.0\.2\.1, "
                      r"relay=\[192\.0\.2\.1\], reject=421 4\.3\.2 Too many open connections\.$")


# ---- room


def begin_message(client: Client) -> None:
    client.hello()
    for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
        client.cmd(line)
    client.send(b"Subject: x\r\n")


def test_a_message_that_leaves_others_no_room_is_put_off_in_the_middle(make_door: MakeDoor) -> None:
    def filling() -> None:
        answers = iter((True, True))
        inbox.Inbox.has_room = lambda *_: next(answers, False)  # type: ignore[method-assign]

    door = make_door(before=filling)
    with door.connect_from() as client:
        begin_message(client)
        client.send(b"\r\n" + (b"x" * 98 + b"\r\n") * 20_000)
        until(lambda: door.log.find("cannot store a message: No space left on device") != [], "it is put off")
        assert door.unfinished() == []
        client.send(b".\r\n")
        assert client.reply()[0].startswith("452 4.3.1")
    assert door.taken() == []


# ---- the clock


@pytest.fixture
def hasty() -> Callable[[], None]:
    """Seconds become tenths, in the listener."""
    def change() -> None:
        session.SLOW_START = 0.2
        connection.LINGER = 0.2

    return change


def test_a_silent_client(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"command_timeout": 1}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        assert client.reply()[0].startswith("421 4.4.2")
        assert client.rest() == b""
    door.log.wait_for(r"^\w{14}: timeout waiting for input from \[192\.0\.2\.7\] during server cmd read$")


def test_a_client_that_stops_in_the_middle_of_its_message(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"data_timeout": 1, "data_rate": 0}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        client.send(b"x\r\n" * 200_000)
        assert client.reply()[0].startswith("421 4.4.2")
    door.log.wait_for(r"during message read$")
    until(lambda: door.unfinished() == [], "nothing is left")


def test_a_client_that_drips(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"data_rate": 1_000_000}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        client.send(b"x\r\n")
        assert client.reply()[0].startswith("421 4.4.2")
    door.log.wait_for(r"during message read$")


def drip(client: Client, piece: bytes) -> str:
    """Say it again every tenth of a second; what the server says in the end. A listener looks once a second."""
    for _ in range(60):
        client.send(piece)
        if client.has_reply(0.1):
            return client.reply()[0]
    raise AssertionError("it waits and waits")


def test_a_command_that_trickles_in_is_as_late_as_one_that_does_not_come(
        make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"command_timeout": 1}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        assert drip(client, b"N").startswith("421 4.4.2")


def test_a_message_that_goes_on_and_on(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"session_time": 1, "data_rate": 0}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            client.cmd(line)
        assert drip(client, b"x\r\n").startswith("421 4.4.2")
    door.log.wait_for(r"during message read$")


def test_a_message_that_is_refused_in_the_middle_is_not_late(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    """A client that heard 421 would come again with it, for days."""
    door = make_door(changes={"limits": {"message_size": 1024, "data_rate": 1, "command_timeout": 1}}, before=hasty)
    with door.connect_from() as slow, door.connect_from() as clock:
        slow.hello()
        for line in ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA"):
            slow.cmd(line)
        slow.send(b"x\r\n" * 1000)
        clock.hello()
        assert clock.reply()[0].startswith("421 4.4.2")  # the listener has looked at the clock
        slow.send(b".\r\n")
        assert slow.reply()[0].startswith("552 5.3.4")


def test_a_session_has_an_end(make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"session_time": 1, "junk_commands": 1_000_000}}, before=hasty)
    with door.connect_from() as client:
        client.hello()
        while (answer := client.cmd("NOOP")).startswith("250"):
            pass
        assert answer.startswith("421 4.4.2")


@pytest.mark.parametrize("lines", [(), ("MAIL FROM:<a@example.org>", f"RCPT TO:<{ALICE}>", "DATA")],
                         ids=["command", "message"])
def test_under_stress_strangers_must_be_quick(
        make_door: MakeDoor, hasty: Callable[[], None], lines: tuple[str, ...]) -> None:
    door = make_door(changes={"limits": {"sessions": 2, "reserved_sessions": 0, "stress_timeout": 1}}, before=hasty)
    with door.connect() as friend, door.connect_from() as stranger:
        friend.hello()
        stranger.hello()
        for line in lines:
            stranger.cmd(line)
        assert stranger.reply()[0].startswith("421 4.4.2")
        assert friend.cmd("NOOP").startswith("250")


def test_who_talks_before_the_greeting(make_door: MakeDoor) -> None:
    door = make_door(changes={"smtpd": {"greeting_delay": 1, "proxies": ("127.0.0.1/32",)}})
    with door.connect_from() as client:
        client.send(b"EHLO x\r\n")
        assert client.reply()[0].startswith("554 5.5.0")
        assert client.rest() == b""
    door.log.wait_for(r"^\w{14}: rejecting commands from \[192\.0\.2\.7\] due to pre-greeting traffic after 1 seconds$")
    with door.connect_from() as client:
        client.hello()
    with door.connect() as client:  # those of this host may
        client.send(b"EHLO x\r\nQUIT\r\n")
        assert client.rest().startswith(b"220 ")


# ---- the end


def is_refused(door: Door) -> bool:
    """Whether nobody listens any more. (A test has the socket, too.)"""
    door._plain.setblocking(False)
    with socket.create_connection(("127.0.0.1", door.port), 5):
        ready = select.select([door._plain], [], [], 0.2)[0]
        if ready:
            try:
                door._plain.accept()[0].close()
            except BlockingIOError:
                return False
        return bool(ready)


def ended(door: Door) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(door.pids.pop(), 0)[1])


@pytest.mark.parametrize("is_retired", [False, True], ids=["at once", "while it retires"])
def test_the_end_waits_for_messages_that_are_under_way(make_door: MakeDoor, is_retired: bool) -> None:
    door = make_door()
    with door.connect_from() as idle, door.connect_from() as busy:
        idle.hello()
        begin_message(busy)
        if is_retired:
            os.kill(door.pids[0], signal.SIGHUP)
            until(lambda: is_refused(door), "nobody is accepted")
        os.kill(door.pids[0], signal.SIGTERM)
        assert idle.reply()[0].startswith("421 4.3.2")
        assert idle.rest() == b""
        busy.send(b"\r\nx\r\n.\r\n")
        assert busy.reply()[0].startswith("250 2.0.0")
        assert busy.reply()[0].startswith("421 4.3.2")
    assert ended(door) == 0
    assert len(door.taken()) == 1


def test_a_listener_that_retires_serves_its_clients_to_the_end(
        make_door: MakeDoor, hasty: Callable[[], None]) -> None:
    door = make_door(changes={"limits": {"stress_timeout": 2}}, before=hasty)
    with door.connect_from() as first, door.connect_from() as second, door.connect_from() as idle:
        first.hello()
        idle.hello()
        begin_message(second)
        os.kill(door.pids[0], signal.SIGHUP)
        until(lambda: is_refused(door), "nobody is accepted")
        assert first.mail(ALICE).startswith("250 ")
        second.send(b"\r\nx\r\n.\r\n")
        assert second.reply()[0].startswith("250 ")
        assert second.mail(ALICE).startswith("250 ")
        assert [client.cmd("QUIT")[:4] for client in (first, second)] == ["221 "] * 2
        assert idle.reply()[0].startswith("421 4.4.2")
    assert ended(door) == 0
    assert len(door.taken()) == 3


def test_a_fault_costs_one_client_its_connection(make_door: MakeDoor) -> None:
    def breaking() -> None:
        def fail(self: session.Session, event: object) -> None:
            raise RuntimeError("a fault of ours")

        handlers = dict(session.Session._HANDLERS)
        from pysendmail.smtp import requests

        handlers[requests.SenderGiven] = fail
        session.Session._HANDLERS = handlers

    door = make_door(before=breaking)
    with door.connect() as unlucky, door.connect() as other:
        unlucky.hello()
        other.hello()
        unlucky.send(b"MAIL FROM:<>\r\n")
        assert unlucky.rest() == b""
        assert other.cmd("NOOP").startswith("250 ")
    door.log.wait_for(r"SYSERR\(root\): session with localhost \[127\.0\.0\.1\]: RuntimeError: a fault of ours")
