"""The server core behind a socket, with Python's own smtplib as the client: somebody else's reading of the RFCs."""

import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysendmail.smtp import profile
from pysendmail.smtp.profile import Limits, Settings
from pysendmail.smtp.server import Server
from tests.tools import certificate
from tests.tools.dialog import HOSTNAME, Porter

PATIENCE = 20.0  # seconds


class Door(threading.Thread):
    """One session on one connection, driven as simply as can be."""

    def __init__(self, listener: socket.socket, settings: Settings, tls: ssl.SSLContext | None) -> None:
        super().__init__(daemon=True)
        self.listener, self.tls = listener, tls
        self.server = Server(settings)
        self.porter = Porter(self.server)

    def run(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        try:
            self.server.greet()
            while True:
                self.porter.work()
                connection.sendall(self.server.data_to_send())
                if self.server.is_closed:
                    return
                if self.porter.wants_tls:
                    assert self.tls is not None
                    self.porter.wants_tls = False
                    connection = self.tls.wrap_socket(connection, server_side=True)
                    self.server.tls_started()
                if data := connection.recv(65536):
                    self.server.receive(data)
                else:
                    self.server.lost()
        finally:
            connection.close()


@contextmanager
def session(settings: Settings, tls: ssl.SSLContext | None = None, *,
            client: type[smtplib.SMTP] = smtplib.SMTP) -> Iterator[tuple[smtplib.SMTP, Porter]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = Door(listener, settings, tls)
        door.start()
        listener.settimeout(PATIENCE)
        with client("127.0.0.1", listener.getsockname()[1], "client.example") as connection:
            yield connection, door.porter
        door.join(PATIENCE)
        assert not door.is_alive()


def test_messages() -> None:
    with session(Settings(HOSTNAME)) as (client, porter):
        refused = client.sendmail("a@example.org", ["alice", "nobody"], b"Subject: x\r\n\r\n.dot\r\n..\r\n.\r\nend")
        assert refused == {"nobody": (550, b"5.1.1 no such user")}
        client.sendmail("", ["bob"], "\u00fc\r\n".encode(), ["BODY=8BITMIME"], ["NOTIFY=NEVER"])
        client.sendmail("j\u00f6rg@b\u00fc.example", ["alice"], b"x\r\n", ["SMTPUTF8"])
        assert porter.taken == [
            ("a@example.org", ["alice"], b"Subject: x\n\n.dot\n..\n.\nend\n"), ("", ["bob"], "\u00fc\n".encode()),
            ("j\u00f6rg@b\u00fc.example", ["alice"], b"x\n")]
    assert porter.ended == "QUIT"


def test_what_is_refused() -> None:
    with session(Settings(HOSTNAME, limits=Limits(message_size=1024))) as (client, porter):
        assert client.vrfy("alice")[0] == 252
        assert client.expn("staff")[0] == 502
        assert client.help().startswith(b"2.0.0 EHLO")
        with pytest.raises(smtplib.SMTPSenderRefused) as too_big:
            client.sendmail("a@b", ["alice"], b"x" * 2000)
        assert too_big.value.smtp_code == 552
        with pytest.raises(smtplib.SMTPSenderRefused) as unwanted:
            client.sendmail("evil@b", ["alice"], b"x")
        assert unwanted.value.smtp_code == 550
        with pytest.raises(smtplib.SMTPDataError) as full:
            client.sendmail("a@b", ["alice"], b"X-Full: yes\r\n")
        assert full.value.smtp_code == 452
        assert porter.taken == []


def test_lmtp() -> None:
    with session(Settings(HOSTNAME, profile.LMTP), client=smtplib.LMTP) as (client, porter):
        client.sendmail("a@b", ["alice"], b"x\r\n")
        assert porter.taken == [("a@b", ["alice"], b"x\n")]


@pytest.mark.parametrize("mechanisms", [("PLAIN",), ("LOGIN",)])
def test_submission(tmp_path: Path, mechanisms: tuple[str, ...]) -> None:
    settings = Settings(HOSTNAME, profile.SUBMISSION, offers_tls=True, mechanisms=mechanisms)
    with session(settings, certificate.server_context(tmp_path)) as (client, porter):
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("a@b", ["alice"], b"x")
        client.starttls(context=certificate.client_context())
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("alice", "wrong")
        client.login("alice", "secret")
        client.sendmail("a@b", ["alice"], b"x\r\n")
        assert porter.server.user == "alice"
        assert len(porter.taken) == 1
