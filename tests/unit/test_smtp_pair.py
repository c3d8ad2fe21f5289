"""Our client core wired to our server core: what is sent is what is taken, however the bytes are cut."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.envelope import Recipient
from pysendmail.smtp import profile, recode
from pysendmail.smtp.client import Client, Finished, SendMessage, StartTls
from pysendmail.smtp.opening import Options, Tls
from pysendmail.smtp.profile import Settings
from pysendmail.smtp.sasl import Credentials
from pysendmail.smtp.server import Server
from pysendmail.smtp.survey import Survey
from pysendmail.smtp.transaction import Message
from pysendmail.smtp.trouble import Peer
from pysendmail.smtp.wire import LineEnds
from tests.tools.dialog import Porter

PEER = Peer("server.example")


@dataclass
class Wire:
    """The two, and what the client's driver heard. step: bytes that pass at once."""

    client: Client
    porter: Porter
    content: bytes
    step: int = 1 << 20
    finished: list[Finished] | None = None

    def run(self) -> list[str]:
        """Let them talk until both are silent; the statuses of the last transaction."""
        server, self.finished = self.porter.server, self.finished or []
        while True:
            out, back = self.client.data_to_send(), server.data_to_send()
            for n in range(0, len(out), self.step):
                server.receive(out[n:n + self.step])
                self.porter.work()
            for n in range(0, len(back), self.step):
                self.client.receive(back[n:n + self.step])
                self.work()
            if not out and not back:
                return [r.outcome.status for r in self.finished[-1].results] if self.finished else []

    def work(self) -> None:
        while (event := self.client.next_event()) is not None:
            if isinstance(event, StartTls):
                assert self.porter.wants_tls
                self.porter.server.tls_started()
                self.client.tls_started()
            elif isinstance(event, SendMessage):
                chunks = [self.content]
                if event.must_recode:
                    chunks = list(recode.recoded(chunks, recode.plan(chunks, to_7bit=event.to_7bit)))
                for chunk in chunks:
                    self.client.send_message(chunk)
                self.client.end_message()
            elif isinstance(event, Finished):
                assert self.finished is not None
                self.finished.append(event)


def wired(settings: Settings, content: bytes, step: int = 1 << 20, **more: object) -> Wire:
    server = Server(settings, is_encrypted=bool(more.get("is_encrypted")))
    server.greet()
    client = Client(Options("client.example", PEER, lmtp=settings.profile.is_lmtp, **more))  # type: ignore[arg-type]
    return Wire(client, Porter(server), content, step)


def message(content: bytes) -> Message:
    survey = Survey()
    survey.feed(content)
    survey.finish()
    return Message("sender@example.org", survey.size, survey.has_8bit, survey.is_irregular)


ALICE, BOB = Recipient("alice@server.example"), Recipient("bob@server.example")
NOBODY = Recipient("nobody@server.example", frozenset({"failure"}), "rfc822;x")
lines = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"x", b"text", b"\xc3\xbc", b"QUIT", b"\t"]), max_size=12)


@given(lines, st.integers(1, 100))
def test_what_is_sent_is_what_is_taken(parts: list[bytes], step: int) -> None:
    content = b"Subject: x\n\n" + b"".join(part + b"\n" for part in parts)
    wire = wired(Settings("server.example"), content, step)
    wire.client.begin(message(content), [ALICE, NOBODY, BOB])
    assert wire.run() == ["2.0.0", "5.1.1", "2.0.0"]
    assert wire.porter.taken == [("sender@example.org", [ALICE.address, BOB.address], content)]


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("ends", [LineEnds.STRICT, LineEnds.NORMALISE])
def test_a_message_that_breaks_the_rules_arrives_within_them(step: int, ends: LineEnds) -> None:
    content = b"Subject: x\n\n10%\r20%\nnul\0\n" + b"long" * 500 + b"\n\n.\n.\r.\r\n"
    wire = wired(Settings("server.example", line_ends=ends), content, step)
    wire.client.begin(message(content), [ALICE])
    assert wire.run() == ["2.0.0"]
    taken = wire.porter.taken[0][2]
    assert b"\r" not in taken
    assert b"\0" not in taken
    assert max(map(len, taken.split(b"\n"))) <= 76


@pytest.mark.parametrize("step", [1, 10_000])
def test_lmtp(step: int) -> None:
    wire = wired(Settings("server.example", profile.LMTP), b"x\n", step)
    wire.client.begin(message(b"x\n"), [ALICE, Recipient("busy2@server.example"), NOBODY, BOB])
    assert wire.run() == ["2.0.0", "4.2.2", "5.1.1", "2.0.0"]
    wire.client.begin(message(b"x\n"), [BOB])
    assert wire.run() == ["2.0.0"]


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize(("password", "statuses"), [("secret", ["2.0.0"]), ("wrong", ["4.7.8"])])
@pytest.mark.parametrize("mechanisms", [("PLAIN", "LOGIN"), ("LOGIN",)])
def test_tls_and_login(step: int, password: str, statuses: list[str], mechanisms: tuple[str, ...]) -> None:
    settings = Settings("server.example", profile.SUBMISSION, offers_tls=True, mechanisms=mechanisms)
    wire = wired(settings, b"x\n", step, tls=Tls.MUST, credentials=Credentials("alice", password))
    wire.client.begin(message(b"x\n"), [ALICE])
    assert wire.run() == statuses
    assert wire.porter.server.user == ("alice" if statuses == ["2.0.0"] else "")


def test_many_messages_over_one_session() -> None:
    wire = wired(Settings("server.example"), b"x\n")
    for n in range(60):
        wire.client.begin(message(b"x\n"), [ALICE] if n % 3 else [NOBODY])
        assert wire.run() == (["2.0.0"] if n % 3 else ["5.1.1"])
    assert len(wire.porter.taken) == 40
    wire.client.quit()
    wire.run()
    assert wire.porter.ended == "QUIT"


def test_a_thousand_recipients() -> None:
    wire = wired(Settings("server.example"), b"x\n")
    wire.client.begin(message(b"x\n"), [ALICE] * 1001)
    assert wire.run() == ["2.0.0"] * 1000 + ["4.5.3"]


def test_a_message_that_is_too_big_is_not_even_announced() -> None:
    wire = wired(Settings("server.example", limits=profile.Limits(message_size=1024)), b"x\n")
    wire.client.begin(Message("a@b", size=1025), [ALICE])
    assert wire.run() == ["5.3.4"]


def test_a_server_that_stops_keeps_the_message_under_way() -> None:
    wire = wired(Settings("server.example"), b"x\n")
    wire.client.begin(message(b"x\n"), [ALICE])
    assert wire.run() == ["2.0.0"]
    wire.porter.server.shut_down()
    wire.client.begin(message(b"x\n"), [ALICE])
    assert wire.run() == ["4.3.2"]
    assert wire.finished is not None
    assert wire.finished[-1].is_stale
