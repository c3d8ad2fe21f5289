"""The client core over real sockets, against the sink that does wrong on purpose: both are tried at once.

The driver here is the least there can be; the real one is in the relay.
"""

import socket
import ssl
from pathlib import Path

import pytest

from pysendmail.mail.envelope import Recipient
from pysendmail.smtp.client import Client, Finished, SendMessage, StartTls
from pysendmail.smtp.opening import Options, Tls
from pysendmail.smtp.sasl import Credentials
from pysendmail.smtp.trouble import Kind, Peer, Result, Stage, Trouble, judge
from tests.tools import certificate
from tests.tools.smtphost import CLOSE, CONTENT, DRIP, ENDLESS, MESSAGE, RESET, STALL
from tests.tools.smtpsink import Sink

PATIENCE = 20.0  # seconds for whatever is to happen
LOOK = 0.02  # seconds between two looks at whether the sink means to be silent
DRIPS = 20  # bytes of a dripping reply that are watched
BOTH = [Recipient("one@example.net"), Recipient("two@example.net")]


def deliver(sink: Sink, content: bytes = CONTENT, context: ssl.SSLContext | None = None,
            **more: object) -> list[Result]:
    """One message to the sink, as a driver would; its results."""
    peer = Peer("host.example", "127.0.0.1")
    client = Client(Options("client.example", peer, **more))  # type: ignore[arg-type]
    client.begin(MESSAGE, BOTH)
    try:
        connection = socket.create_connection(sink.address, PATIENCE)
    except OSError as error:  # a reset can be faster than the news of the connection
        client.lost(str(error))
        finished = client.next_event()
        assert isinstance(finished, Finished)
        return list(finished.results)
    if client.is_encrypted:
        assert context is not None
        connection = context.wrap_socket(connection, server_hostname="host.example")
    return Driver(client, connection, sink, content, context).run()


class Driver:
    def __init__(self, client: Client, connection: socket.socket, sink: Sink, content: bytes,
                 context: ssl.SSLContext | None = None) -> None:
        self.client, self.connection, self.sink, self.content, self.context = client, connection, sink, content, context
        self.drips = 0

    def run(self) -> list[Result]:
        try:
            while True:
                while (event := self.client.next_event()) is not None:
                    if isinstance(event, Finished):
                        return list(event.results)
                    self.act(event)
                self.exchange()
        finally:
            self.connection.close()

    def act(self, event: object) -> None:
        if isinstance(event, SendMessage):
            self.client.send_message(self.content)
            self.client.end_message()
        elif isinstance(event, StartTls):
            assert self.context is not None
            self.connection.settimeout(PATIENCE)
            try:
                self.connection = self.context.wrap_socket(self.connection, server_hostname="host.example")
            except OSError as error:
                self.client.tls_failed(str(error))
            else:
                self.client.tls_started()

    def exchange(self) -> None:
        """Write what there is and read what comes. Time is up as soon as the sink is known to say nothing more."""
        try:
            self.connection.settimeout(PATIENCE)
            self.connection.sendall(self.client.data_to_send())
            data = self.read()
        except OSError as error:
            self.client.lost(str(error))
            return
        if data is None:
            self.client.timed_out()
        elif data:
            self.client.receive(data)
        else:
            self.client.lost()

    def read(self) -> bytes | None:
        self.connection.settimeout(LOOK)
        for _ in range(int(PATIENCE / LOOK)):
            host = self.sink.sessions[-1] if self.sink.sessions else None
            self.drips += host is not None and host.fault == DRIP
            if self.drips > DRIPS:
                return None
            is_silent = host is not None and host.is_waiting
            try:
                return self.connection.recv(65536)
            except TimeoutError:
                if is_silent:  # it was so before, and nothing has come since
                    return None
        raise AssertionError("the sink says nothing")


def statuses(results: list[Result]) -> list[str]:
    return [result.outcome.status for result in results]


def test_a_message() -> None:
    with Sink() as sink:
        assert statuses(deliver(sink)) == ["2.0.0", "2.0.0"]
        assert [(e.mail, e.rcpts, e.content) for e in sink.envelopes] == [
            ("FROM:<sender@example.org> SIZE=20", ["TO:<one@example.net>", "TO:<two@example.net>"], CONTENT)]
        assert (len(sink.sessions), sink.peak) == (1, 1)
        assert sink.commands("rcpt") == ["RCPT TO:<one@example.net>", "RCPT TO:<two@example.net>"]


def test_no_connection_at_all() -> None:
    with Sink() as sink:
        address = sink.address
    with pytest.raises(OSError) as caught:
        socket.create_connection(address, PATIENCE)
    result = judge(Trouble(Stage.CONNECT, Kind.LOST, caught.value.strerror or ""), Peer("host.example", "127.0.0.1"))
    assert result.outcome.reason == "cannot connect to host.example[127.0.0.1]: Connection refused"


STAGES = ("greeting", "ehlo", "mail", "rcpt 2", "data", "end")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("fault", "status"), [
    (CLOSE, "4.4.2"), (RESET, "4.4.2"), (STALL, "4.4.2"), (b"25" + STALL, "4.4.2"), (DRIP, "4.4.2"), (ENDLESS, "4.5.0"),
    (b"garbage\r\n", "4.5.0")])
def test_every_fault_at_every_command_is_a_deferral(stage: str, fault: bytes, status: str) -> None:
    with Sink(replies={stage: fault}) as sink:
        results = deliver(sink)
        assert statuses(results) == [status, status]
        assert all(result.may_try_elsewhere == (stage != "end") for result in results)
        assert sink.envelopes == []


@pytest.mark.parametrize(("reply", "found"), [(b"450 4.2.0 later\r\n", "4.2.0"), (b"550 5.1.1 never\r\n", "5.1.1")])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "end"])
def test_refusals(stage: str, reply: bytes, found: str) -> None:
    with Sink(replies={stage: reply}) as sink:
        assert statuses(deliver(sink)) == [found, found]


def test_each_session_may_have_its_own_script() -> None:
    with Sink(replies=[{"rcpt": b"450 4.7.1 greylisted\r\n"}, {}]) as sink:
        assert statuses(deliver(sink)) == ["4.7.1", "4.7.1"]
        assert statuses(deliver(sink)) == ["2.0.0", "2.0.0"]
        assert len(sink.sessions) == 2


def test_waiting_first() -> None:
    with Sink(delays={"mail": 60.0}) as sink:
        results = deliver(sink)
        assert statuses(results) == ["4.4.2", "4.4.2"]
        assert "timed out" in results[0].outcome.reason


@pytest.mark.parametrize("tls", [Tls.MAY, Tls.MUST])
def test_tls_and_login(tmp_path: Path, tls: Tls) -> None:
    with Sink(tls=certificate.server_context(tmp_path), users={"joe": "secret"}) as sink:
        good = deliver(sink, context=certificate.client_context(), tls=tls, credentials=Credentials("joe", "secret"))
        assert statuses(good) == ["2.0.0", "2.0.0"]
        assert [(e.user, e.is_encrypted) for e in sink.envelopes] == [("joe", True)]
        wrong = deliver(sink, context=certificate.client_context(), tls=tls, credentials=Credentials("joe", "wrong"))
        assert statuses(wrong) == ["4.7.8", "4.7.8"]


def test_tls_from_the_first_byte(tmp_path: Path) -> None:
    with Sink(tls=certificate.server_context(tmp_path), is_encrypted=True) as sink:
        assert statuses(deliver(sink, context=certificate.client_context(), is_encrypted=True)) == ["2.0.0", "2.0.0"]


def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    with Sink(tls=certificate.server_context(tmp_path)) as sink:
        results = deliver(sink, context=ssl.create_default_context(), tls=Tls.MUST)
        assert statuses(results) == ["4.7.5", "4.7.5"]
        assert "certificate verify failed" in results[0].outcome.reason


def test_a_handshake_that_breaks() -> None:
    with Sink(replies={"ehlo": b"250-host\r\n250 STARTTLS\r\n", "starttls": b"220 go\r\n" + CLOSE}) as sink:
        results = deliver(sink, context=certificate.client_context(), tls=Tls.MUST)
        assert statuses(results) == ["4.7.5", "4.7.5"]


def test_lmtp_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "lmtp")
    with Sink(lmtp=True, path=path, replies={"end 2": b"452 4.2.2 full\r\n"}) as sink:
        client = Client(Options("client.example", Peer(path), lmtp=True))
        client.begin(MESSAGE, BOTH)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            assert statuses(Driver(client, connection, sink, CONTENT).run()) == ["2.0.0", "4.2.2"]


def test_a_megabyte() -> None:
    content = b"Subject: x\n\n" + b".0123456789\n" * 100_000
    with Sink() as sink:
        assert statuses(deliver(sink, content)) == ["2.0.0", "2.0.0"]
        assert sink.envelopes[0].content == content
