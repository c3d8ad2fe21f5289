"""SMTP into a whole host: listeners under the supervisor, the runner behind them, and what happens when one is gone."""

import os
import re
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tools import certificate
from tests.tools.door import Client, anybody, until
from tests.tools.fakemilter import CONTINUE, FakeMilter, by_letter, packet
from tests.tools.foreign import children_of, descendants, status_of
from tests.tools.host import LISTENER, WITHIN, Host
from tests.tools.watch import wait_for_end

MakeHost = Callable[..., Host]
MakeFilter = Callable[[dict[bytes, bytes]], FakeMilter]
PASSWORD = "$6$abcdefgh$e1o..VsKRS0O4M9J1Qb9u.strxNEAfDkCXcaYc5TsDrJFctQ" \
           "CTMkPeis45vy3ZQtqt4dqG4vXTonFJKbQgR2Q1"  # wonderland
PROXIED = 'proxies = ["127.0.0.1/32"]\ngreeting_delay = 0\ncheck_sender = false'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Smtp:
    """A host with a port for SMTP."""

    def __init__(self, host: Host, settings: str = "", smtpd: str = "") -> None:
        self.host = host
        self.port = free_port()
        self.settings(settings, smtpd)
        host.start()

    def settings(self, settings: str = "", smtpd: str = "", processes: int = 2) -> None:
        listen = f'listen = ["127.0.0.1:{self.port}"]\nprocesses = {processes}'
        self.host.configure(f"[smtpd]\n{listen}\n{smtpd}\n{settings}")

    @contextmanager
    def connect(self) -> Iterator[Client]:
        with Client(socket.create_connection(("127.0.0.1", self.port), WITHIN)) as client:
            yield client

    def send(self, *recipients: str, name: str = "m", sender: str = "dave@else.example") -> str:
        with self.connect() as client:
            client.hello()
            text = f"Subject: {name}\nMessage-ID: <{name}@test>\n\nHello.\n".encode()
            return client.mail(*recipients, sender=sender, text=text)

    @property
    def listeners(self) -> list[int]:
        """The pids of the processes that listen on the port, but for the supervisor."""
        inode = re.search(rf"^ *\d+: 0100007F:{self.port:04X} 00000000:0000 0A .*?(\d+) 1 ",
                          Path("/proc/net/tcp").read_text(), re.MULTILINE)
        assert inode
        mine = f"socket:[{inode[1]}]"
        return [pid for pid in descendants(self.host.supervisor) if mine in links(pid)]

    def wait_listeners(self, count: int, but: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
        end = time.monotonic() + WITHIN
        while len(found := [pid for pid in self.listeners if pid not in but]) < count:
            assert time.monotonic() < end, f"{found} listen, not {count}"
            time.sleep(0.02)
        return found


def links(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


@pytest.fixture
def smtp(make_host: MakeHost) -> Smtp:
    return Smtp(make_host(aliases="team: alice, bob\n"))


def test_from_the_client_to_the_mailbox(smtp: Smtp) -> None:
    host = smtp.host
    answer = smtp.send("alice@host.example", "team@host.example", name="one")
    found = answer.split(" ")[2]
    assert answer == f"250 2.0.0 {found} Message accepted for delivery"
    for user in ("alice", "bob"):
        host.log.wait_for(rf"^{found}: to=<{user}@host\.example>.*stat=Sent")
        (message,) = host.messages(user)
        assert "Return-Path: <dave@else.example>\nDelivered-To: " in message
        assert f"with ESMTP id {found};\n" in message
        assert "Subject: one\n" in message
    host.wait_empty()
    assert host.files("smtp/new", "smtp/tmp", "queue/new") == []
    assert host.status()["counts"].get("delivered") == 2


def test_what_was_accepted_while_the_runner_was_away(smtp: Smtp) -> None:
    host = smtp.host
    runner = host.runner
    os.kill(runner, signal.SIGSTOP)
    answers = [smtp.send("alice@host.example", name=f"m{n}") for n in range(3)]
    assert len(host.files("smtp/new")) == 3
    since = host.log.mark()
    os.kill(runner, signal.SIGKILL)
    for answer in answers:
        host.log.wait_for(rf"^{answer.split(' ')[2]}: to=<alice@host.example>.*stat=Sent", since=since)
    assert len(host.messages("alice")) == 3


@pytest.mark.root
def test_a_listener_has_no_privilege(smtp: Smtp) -> None:
    uid, gid = (getattr(smtp.host.users[LISTENER], name) for name in ("uid", "gid"))
    pids = smtp.wait_listeners(2)
    assert len(pids) == 2
    until(lambda: all(status_of(pid)["NoNewPrivs"] == "1" for pid in pids), "they have given everything up")
    allowed = {"/dev/null", "socket:", "anon_inode:", f"{smtp.host.paths.root}/log"}
    for pid in pids:
        seen = status_of(pid)
        assert seen["Uid"].split() == [str(uid)] * 4
        assert seen["Gid"].split() == [str(gid)] * 4
        assert seen["Groups"].split() in ([], [str(gid)])
        assert seen["NoNewPrivs"] == "1"
        assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        # (At its start it looks once at what is mounted.)
        until(lambda pid=pid: {re.sub(r"\[.*", "", link) for link in links(pid)} <= allowed,  # type: ignore[misc]
              "it has nothing open but what it needs")
    queued = f"{smtp.host.paths.queue}/new"
    assert os.stat(queued).st_mode & 0o077 == 0


@pytest.mark.root
def test_the_runner_reads_what_a_listener_wrote(smtp: Smtp) -> None:
    """The file is the listener's and closed to others; the runner is in its group."""
    os.kill(smtp.host.runner, 0)
    assert smtp.send("alice@host.example", name="x").startswith("250 ")
    smtp.host.log.wait_for("to=<alice@host.example>.*stat=Sent")
    gid = os.stat(smtp.host.paths.smtp_new).st_gid
    assert str(gid) in status_of(smtp.host.runner)["Groups"].split()


def test_a_listener_that_is_killed_is_replaced_and_the_others_go_on(smtp: Smtp) -> None:
    before = smtp.wait_listeners(2)
    os.kill(before[0], signal.SIGKILL)
    assert smtp.send("alice@host.example", name="x").startswith("250 ")  # (or its replacement takes it)
    smtp.host.log.wait_for(r"listener ended \(-9\)")
    after = smtp.wait_listeners(1, set(before))
    assert before[1] in smtp.listeners
    assert len(after) == 1


def test_a_message_that_a_killed_listener_had_taken_arrives(smtp: Smtp) -> None:
    listeners = smtp.wait_listeners(2)
    answer = smtp.send("alice@host.example", name="x")
    for pid in listeners:
        os.kill(pid, signal.SIGKILL)
    smtp.host.log.wait_for(rf"^{answer.split(' ')[2]}: to=<alice@host.example>.*stat=Sent")


# ---- reload


def test_a_reload_drops_no_session(smtp: Smtp) -> None:
    before = smtp.wait_listeners(2)
    with smtp.connect() as client:
        client.hello()
        for line in ("MAIL FROM:<dave@else.example>", "RCPT TO:<alice@host.example>", "DATA"):
            client.cmd(line)
        smtp.settings("[limits]\nmessage_size = 5000\n")
        smtp.host.reload()
        with smtp.connect() as other:
            assert "250-SIZE 5000" in other.hello()
        client.send(b"Message-ID: <old@test>\r\n\r\n" + b"x" * 90 + b"\r\n" * 3000 + b".\r\n")
        answer = client.reply()[-1]
        assert answer.startswith("250 ")
        assert client.mail("bob@host.example", sender="dave@else.example").startswith("250 "), "nor the next message"
    for pid in before:
        wait_for_end(pid)
    smtp.host.log.wait_for(rf"^{answer.split(' ')[2]}: to=<alice@host.example>.*stat=Sent")
    assert smtp.host.log.find("listener ended") == []


def test_addresses_come_and_go(smtp: Smtp) -> None:
    host, before = smtp.host, smtp.port
    smtp.port = free_port()
    smtp.settings()
    host.reload()
    assert smtp.send("alice@host.example", name="x").startswith("250 ")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", before), WITHIN).close()
    host.configure("[smtpd]\nlisten = []\n")
    host.reload()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", smtp.port), WITHIN).close()
    assert host.send("bob")


def test_an_address_in_use_stops_neither_mail_nor_the_daemon(make_host: MakeHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        host = make_host(settings=f'[smtpd]\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n')
        host.start()
        assert host.log.find("cannot listen on 127.0.0.1:.*Address already in use")
        host.outcome(host.send("alice"), "alice")


# ---- TLS


def test_a_certificate_is_used_and_replaced(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host()
    place = Path(host.paths.etc)
    files = certificate.write(place)
    smtp = Smtp(host, smtpd=f'tls_cert = "{files[0]}"\ntls_key = "{files[1]}"')
    with smtp.connect() as client:
        assert "250-STARTTLS" in client.hello()
        client.cmd("STARTTLS")
        client.start_tls(certificate.client_context())
        assert client.cmd("EHLO x").startswith("250 ")
    before = smtp.wait_listeners(2)
    files[0].write_text("no certificate any more")
    smtp.host.log.wait_for(r"SYSERR\(root\): no TLS: ", count=2)  # it is looked at every ten seconds
    smtp.wait_listeners(2, set(before))
    with smtp.connect() as client:
        assert not any("STARTTLS" in line for line in client.hello())
        assert client.mail("alice@host.example").startswith("250 ")


def test_tls_from_the_start(make_host: MakeHost) -> None:
    host = make_host()
    files = certificate.write(Path(host.paths.etc))
    port = free_port()
    smtp = Smtp(host, smtpd=f'tls_cert = "{files[0]}"\ntls_key = "{files[1]}"',
                settings=f'[[listener]]\naddress = "127.0.0.1:{port}"\nprofile = "submissions"\n')
    with Client(socket.create_connection(("127.0.0.1", port), WITHIN)) as client:
        client.start_tls(anybody())
        assert client.reply()[0].startswith("220 ")
        assert client.cmd("EHLO x").startswith("250 ")
        assert client.cmd("MAIL FROM:<x@y>").startswith("530 5.7.0")
    assert smtp.send("alice@host.example").startswith("250 ")


# ---- LMTP, and a socket in the file system


def test_lmtp_over_a_socket(make_host: MakeHost) -> None:
    host = make_host()
    path = f"{host.paths.run}/lmtp"
    Smtp(host, settings=f'[[listener]]\naddress = "unix:{path}"\nprofile = "lmtp"\n')
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    with Client(connection) as client:
        assert client.reply()[0] == "220 host.example LMTP pysendmail"
        assert client.cmd("LHLO client.example").startswith("250 ")
        client.cmd("MAIL FROM:<dave@else.example>")
        assert client.cmd("RCPT TO:<alice@host.example>").startswith("250 ")
        assert client.cmd("RCPT TO:<nobody@host.example>").startswith("550 5.1.1")
        assert client.cmd("RCPT TO:<dave@else.example>").startswith("550 5.7.1")
        assert client.cmd("RCPT TO:<bob@host.example>").startswith("250 ")
        client.cmd("DATA")
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
        answers = [client.reply()[0], client.reply()[0]]
        assert all(answer.startswith("250 2.0.0 ") for answer in answers)
    found = answers[0].split(" ")[2]
    for user in ("alice", "bob"):
        host.log.wait_for(rf"^{found}: to=<{user}@host.example>.*stat=Sent")
    assert "with LMTP id" in host.messages("alice")[0]


# ---- what is to be held


def test_mail_that_a_policy_server_wants_held(make_host: MakeHost) -> None:
    """It waits for a person, survives restarts, and goes on when released."""
    host = make_host()
    path = f"{host.paths.run}/policy"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    os.chmod(path, 0o666)
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"action=hold look at this\n\n")
            connection.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = free_port()
    smtp = Smtp(host, smtpd=f'policy_servers = ["unix:{path}"]\n{PROXIED}',
                settings=f'[[listener]]\naddress = "127.0.0.1:{port}"\nproxy = true\n[auth]\nresults = false\n')
    with Client(socket.create_connection(("127.0.0.1", port), WITHIN)) as client:
        client.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 1 25\r\n")
        client.hello()
        answer = client.mail("alice@host.example", sender="dave@else.example")
    server.close()
    found = answer.split(" ")[2]
    host.log.wait_for(rf"^{found}: (DEBUG: )?quarantine: look at this")
    assert [name for name in host.files("queue/hold") if found in name]
    host.kill_runner()
    assert host.status()["held"] == 1
    assert host.copies("alice", host.send("alice")) in (0, 1)
    host.ask("release", filter={"id": found})
    host.log.wait_for(rf"^{found}: to=<alice@host.example>.*stat=Sent")
    assert smtp.listeners


# ---- who logs in, and who looks at mail


def test_logging_in_with_a_password_of_a_file(make_host: MakeHost) -> None:
    """The listener cannot read it; it asks a process that can. Without that one there is another listener."""
    host = make_host()
    etc = Path(host.paths.etc)
    files = certificate.write(etc)
    passwords = etc / "passwords"
    passwords.write_text("alice:" + PASSWORD + "\n")
    passwords.chmod(0o600)
    port = free_port()
    smtp = Smtp(host, smtpd=f'tls_cert = "{files[0]}"\ntls_key = "{files[1]}"\n{PROXIED}',
                settings=f'[[listener]]\naddress = "127.0.0.1:{port}"\nproxy = true\n'
                         f'[auth]\nresults = false\npassword_file = "{passwords}"\n')

    def log_in(password: str) -> tuple[str, Client]:
        client = Client(socket.create_connection(("127.0.0.1", port), WITHIN))
        client.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 1 25\r\n")
        client.hello()
        client.cmd("STARTTLS")
        client.start_tls(anybody())
        client.cmd("EHLO x")
        client.send(b"AUTH PLAIN " + b64encode(f"\0alice\0{password}".encode()) + b"\r\n")
        return client.reply()[-1], client

    answer, client = log_in("guess")
    with client:
        assert answer == "535 5.7.8 name or password is wrong"
        assert client.mail("bob@else.example").startswith("550 5.7.1")
    host.log.wait_for(r"AUTH failure \(PLAIN\).*\[192\.0\.2\.7\]")
    answer, client = log_in("wonderland")
    with client:
        assert answer == "235 2.7.0 logged in"
        assert client.mail("bob@host.example", sender="alice@host.example").startswith("250 2.0.0 ")
    before = smtp.wait_listeners(2)
    (keeper,) = children_of(before[0])  # which may have children of its own, one for each password
    os.kill(keeper, signal.SIGKILL)
    host.log.wait_for("the process that knows passwords has ended")
    smtp.wait_listeners(1, set(before))
    answer, client = log_in("wonderland")
    with client:
        assert answer == "235 2.7.0 logged in"
    (message,) = host.messages("bob")
    assert "with ESMTPSA id" in message


def test_a_filter_is_asked_before_the_client_hears_anything(
        make_host: MakeHost, filters: MakeFilter) -> None:
    seen = filters({b"E": packet(b"h", b"X-Seen\0yes\0") + CONTINUE})
    smtp = Smtp(make_host(), settings=f'[milter]\nsockets = ["{seen.endpoint}"]\n')
    answer = smtp.send("alice@host.example", name="one")
    assert answer.startswith("250 2.0.0 ")
    smtp.host.log.wait_for(rf"^{answer.split(' ')[2]}: to=<alice@host\.example>.*stat=Sent")
    (message,) = smtp.host.messages("alice")
    assert "\nX-Seen: yes\n" in message

    seen.answers = by_letter({b"E": packet(b"y", b"550 5.7.1 not this one\0")})
    assert smtp.send("alice@host.example", name="two") == "550 5.7.1 not this one"
    seen.answers = by_letter({b"R": packet(b"r")})
    assert smtp.send("alice@host.example", name="three").startswith("550 5.7.1 ")
    seen.answers = by_letter({b"E": b"<close>"})
    assert smtp.send("alice@host.example", name="four").startswith("451 4.7.1 ")
    smtp.host.wait_empty()
    assert len(smtp.host.messages("alice")) == 1
