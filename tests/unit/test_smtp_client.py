"""The client core: what it says to which host, and what becomes of each recipient."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.envelope import Recipient
from pysendmail.smtp.client import TIMEOUTS, Client, Closed, Finished, SendMessage, StartTls
from pysendmail.smtp.opening import Options, Tls
from pysendmail.smtp.reply import Reply
from pysendmail.smtp.sasl import Credentials
from pysendmail.smtp.transaction import Message, Transaction
from pysendmail.smtp.trouble import Peer, Result, Scope, Stage
from pysendmail.smtp.wire import LocalError
from tests.tools.smtphost import CLOSE, CONTENT, MESSAGE, OFFERS, Cut, Host, Told, bytewise, converse, whole

PEER = Peer("mx.example", "192.0.2.1")
BOTH = (Recipient("one@example.net"), Recipient("two@example.net"))
PLAIN = tuple(o for o in OFFERS if o != "PIPELINING")

cuts = pytest.mark.parametrize("cut", [whole, bytewise])


def options(**more: object) -> Options:
    return Options("client.example", PEER, **more)  # type: ignore[arg-type]


def started(message: Message = MESSAGE, recipients: tuple[Recipient, ...] = BOTH, **more: object) -> Client:
    client = Client(options(**more))
    client.begin(message, recipients)
    return client


@cuts
def test_a_message_goes_out_in_one_group_of_commands(cut: Cut) -> None:
    client, host = started(), Host()
    told = converse(client, host, cut=cut)
    assert host.commands == ["EHLO client.example", "MAIL FROM:<sender@example.org> SIZE=20",
                             "RCPT TO:<one@example.net>", "RCPT TO:<two@example.net>", "DATA"]
    assert host.messages == [b"Subject: x\r\n\r\n..dot\r\n.\r\n"]
    assert [type(e) for e in told.events] == [SendMessage, Finished]
    assert told.statuses() == ["2.0.0", "2.0.0"]
    result = told.finished[0].results[0]
    assert (result.outcome.diagnostic, result.outcome.remote_mta) == ("smtp; 250 2.0.0 taken", "mx.example")
    assert client.is_ready


@cuts
def test_without_pipelining_each_command_waits_for_its_reply(cut: Cut) -> None:
    client, host = started(), Host(offers=PLAIN)
    assert converse(client, host, cut=cut).statuses() == ["2.0.0", "2.0.0"]
    assert (len(host.commands), host.early) == (5, [])


def test_with_pipelining_the_envelope_is_one_write() -> None:
    client = started()
    client.receive(b"220 host\r\n")
    client.next_event()
    assert client.data_to_send() == b"EHLO client.example\r\n"
    client.receive(b"250-host\r\n250 PIPELINING\r\n")
    client.next_event()
    assert client.data_to_send().count(b"\r\n") == 4


@cuts
def test_next_message_goes_over_the_same_session(cut: Cut) -> None:
    client, host = started(), Host()
    converse(client, host, cut=cut)
    client.begin(MESSAGE, BOTH)
    told = converse(client, host, cut=cut, said=b"")
    assert told.statuses() == ["2.0.0", "2.0.0"]
    assert host.commands[5:] == host.commands[1:5], "no RSET after a message that went through"
    client.quit()
    told = converse(client, host, cut=cut, said=b"")
    assert told.events == [Closed(None)]
    assert host.commands[-1] == "QUIT"


@pytest.mark.parametrize("offers", [OFFERS, PLAIN])
@pytest.mark.parametrize("replies", [
    {"mail 1": b"451 4.3.0 later\r\n"}, {"rcpt 1": b"550 no\r\n", "rcpt 2": b"450 later\r\n"},
    {"data 1": b"451 later\r\n"},
])
def test_a_transaction_that_did_not_end_is_reset_before_the_next(
        offers: tuple[str, ...], replies: dict[str, bytes]) -> None:
    client, host = started(), Host(offers=offers, replies=replies)
    converse(client, host)
    before = len(host.commands)
    client.begin(MESSAGE, BOTH)
    assert converse(client, host, said=b"").statuses() == ["2.0.0", "2.0.0"]
    assert host.commands[before:before + 2] == ["RSET", "MAIL FROM:<sender@example.org> SIZE=20"]
    assert host.early == []


def test_a_message_that_was_refused_after_its_dot_needs_no_reset() -> None:
    client, host = started(), Host(replies={"end 1": b"550 5.7.1 spam\r\n"})
    assert converse(client, host).statuses() == ["5.7.1", "5.7.1"]
    client.begin(MESSAGE, BOTH)
    assert converse(client, host, said=b"").statuses() == ["2.0.0", "2.0.0"]
    assert "RSET" not in host.commands


@cuts
def test_each_recipient_has_its_own_result(cut: Cut) -> None:
    recipients = tuple(Recipient(f"{name}@example.net") for name in ("good", "gone", "later", "fine"))
    host = Host(replies={"rcpt 2": b"550-5.1.1 gone for good,\r\n550 5.1.1 really\r\n",
                         "rcpt 3": b"450 4.2.0 later\r\n"})
    told = converse(started(recipients=recipients), host, cut=cut)
    assert told.statuses() == ["2.0.0", "5.1.1", "4.2.0", "2.0.0"]
    gone, later = told.finished[0].results[1:3]
    assert gone.outcome.reason == ("mx.example[192.0.2.1] said: 550 5.1.1 gone for good, really (in reply to RCPT TO)")
    assert gone.outcome.diagnostic == "smtp; 550 5.1.1 gone for good, really"
    assert (gone.may_try_elsewhere, gone.scope) == (False, Scope.RECIPIENT)
    assert (later.may_try_elsewhere, later.scope) == (True, Scope.RECIPIENT)
    assert len(host.messages) == 1


@cuts
@pytest.mark.parametrize("answer", [b"503 5.5.1 no recipients\r\n", b"354 go ahead\r\n"])
@pytest.mark.parametrize("end", [b"554 5.5.1 nobody\r\n", b"250 taken\r\n"])
def test_all_recipients_refused_while_data_is_under_way(cut: Cut, answer: bytes, end: bytes) -> None:
    """RFC 2920 3.1: after 354 nothing but the dot may follow, and whatever comes then counts for nobody."""
    host = Host(replies={"rcpt": b"550 5.1.1 no\r\n", "data": answer, "end": end})
    client = started()
    told = converse(client, host, cut=cut)
    assert told.statuses() == ["5.1.1", "5.1.1"]
    assert (told.sends, host.messages) == ([], [b".\r\n"] if answer.startswith(b"3") else [])
    assert client.is_ready


def test_without_pipelining_data_is_not_sent_when_nobody_is_left() -> None:
    host = Host(offers=PLAIN, replies={"rcpt": b"550 5.1.1 no\r\n"})
    assert converse(started(), host).statuses() == ["5.1.1", "5.1.1"]
    assert "DATA" not in host.commands


def test_without_pipelining_a_refused_sender_ends_it() -> None:
    host = Host(offers=PLAIN, replies={"mail": b"550 5.7.1 not you\r\n"})
    assert converse(started(), host).statuses() == ["5.7.1", "5.7.1"]
    assert host.commands == ["EHLO client.example", "MAIL FROM:<sender@example.org> SIZE=20"]


def test_too_many_recipients_go_in_another_transaction() -> None:
    for reply in (b"452 4.5.3 too many\r\n", b"452 too many\r\n", b"552 5.5.3 too many\r\n"):
        results = converse(started(), Host(replies={"rcpt 2": reply})).finished[0].results
        found = [(r.outcome.status, r.scope) for r in results]
        assert found == [("2.0.0", Scope.RECIPIENT), ("4.5.3", Scope.TRANSACTION)]
        results = converse(started(), Host(replies={"rcpt": reply})).finished[0].results
        assert [(r.outcome.status, r.scope) for r in results] == [("4.5.3", Scope.RECIPIENT)] * 2


# ---- what the host offers

@pytest.mark.parametrize(("message", "offers", "line"), [
    (Message("a@b", size=5), ("SIZE",), "MAIL FROM:<a@b> SIZE=5"),
    (Message("a@b", size=5), ("SIZE 0",), "MAIL FROM:<a@b> SIZE=5"),
    (Message("a@b", size=5), (), "MAIL FROM:<a@b>"),
    (Message("a@b", is_8bit=True), ("8BITMIME",), "MAIL FROM:<a@b> BODY=8BITMIME"),
    (Message("a@b"), ("8BITMIME",), "MAIL FROM:<a@b>"),
    (Message("a@b", ret="hdrs", envid="x+20y"), ("DSN",), "MAIL FROM:<a@b> RET=HDRS ENVID=x+20y"),
    (Message("a@b", ret="hdrs", envid="x y"), ("DSN",), "MAIL FROM:<a@b> RET=HDRS"),
    (Message("a@b", ret="hdrs", envid="xy"), (), "MAIL FROM:<a@b>"),
    (Message("j\u00f6rg@b"), ("SMTPUTF8",), "MAIL FROM:<j\u00f6rg@b> SMTPUTF8"),
    (Message("a@b", smtputf8=True), ("SMTPUTF8",), "MAIL FROM:<a@b> SMTPUTF8"),
    (Message("a@b\u00fccher.example"), (), "MAIL FROM:<a@xn--bcher-kva.example>"),
    (Message(""), OFFERS, "MAIL FROM:<>"),
])
def test_parameters_go_to_hosts_that_offer_them(message: Message, offers: tuple[str, ...], line: str) -> None:
    host = Host(offers=offers)
    assert converse(started(message), host).statuses() == ["2.0.0", "2.0.0"]
    assert host.commands[1] == line


@pytest.mark.parametrize(("offers", "line", "is_passed"), [
    (OFFERS, "RCPT TO:<a@b> NOTIFY=FAILURE,DELAY ORCPT=rfc822;x+40y", True),
    ((), "RCPT TO:<a@b>", False),
])
def test_wanted_reports_are_passed_on(offers: tuple[str, ...], line: str, is_passed: bool) -> None:
    host = Host(offers=offers)
    recipient = Recipient("a@b", frozenset({"failure", "delay"}), "rfc822;x+40y")
    assert converse(started(recipients=(recipient,)), host).finished[0].dsn_is_passed is is_passed
    assert host.commands[2] == line


def test_an_orcpt_that_is_none_is_left_out() -> None:
    host = Host()
    converse(started(recipients=(Recipient("a@b", orcpt="rfc822;a b"),)), host)
    assert host.commands[2] == "RCPT TO:<a@b>"


@pytest.mark.parametrize(("message", "offers", "event"), [
    (Message("a@b"), OFFERS, SendMessage(False, False)),
    (Message("a@b", is_8bit=True), OFFERS, SendMessage(False, False)),
    (Message("a@b", is_8bit=True), (), SendMessage(True, True)),
    (Message("a@b", is_irregular=True), OFFERS, SendMessage(True, False)),
    (Message("a@b", is_irregular=True), (), SendMessage(True, False)),
    (Message("a@b", is_8bit=True, is_irregular=True), OFFERS, SendMessage(True, False)),
    (Message("a@b", is_8bit=True, is_irregular=True), (), SendMessage(True, True)),
])
def test_the_driver_is_told_whether_to_recode(message: Message, offers: tuple[str, ...], event: SendMessage) -> None:
    assert converse(started(message), Host(offers=offers)).sends == [event]


@pytest.mark.parametrize(("message", "recipients", "offers", "statuses"), [
    (Message("a@b", size=100_001), BOTH, OFFERS, ["5.3.4", "5.3.4"]),
    (Message("a@b", smtputf8=True), BOTH, (), ["5.6.7", "5.6.7"]),
    (Message("j\u00f6rg@b"), BOTH, (), ["5.6.7", "5.6.7"]),
    (Message("a@b\r\nRCPT TO:<x@y>"), BOTH, OFFERS, ["5.1.7", "5.1.7"]),
    (Message("a@b"), (Recipient("a\r\nDATA@b"), Recipient("@")), OFFERS, ["5.1.3", "5.1.3"]),
])
def test_what_the_host_cannot_have_is_not_offered_to_it(
        message: Message, recipients: tuple[Recipient, ...], offers: tuple[str, ...], statuses: list[str]) -> None:
    client, host = started(message, recipients), Host(offers=offers)
    told = converse(client, host)
    assert told.statuses() == statuses
    assert host.commands == ["EHLO client.example"]
    assert all(r.outcome.is_failed and not r.may_try_elsewhere for r in told.finished[0].results)
    client.begin(MESSAGE, BOTH)
    assert converse(client, host, said=b"").statuses() == ["2.0.0", "2.0.0"]
    assert "RSET" not in host.commands


def test_one_recipient_that_cannot_be_written_spoils_nothing_for_the_others() -> None:
    recipients = (Recipient("j\u00f6rg@example.net"), BOTH[0], Recipient("a\nb@c"), BOTH[1])
    host = Host(offers=("PIPELINING",))
    assert converse(started(recipients=recipients), host).statuses() == ["5.6.7", "2.0.0", "5.1.3", "2.0.0"]
    assert host.commands[2:] == ["RCPT TO:<one@example.net>", "RCPT TO:<two@example.net>", "DATA"]


@cuts
@pytest.mark.parametrize("reply", [b"500 what\r\n", b"502 5.5.1 no\r\n", b"550 no\r\n", b"554-no\r\n554 no\r\n"])
def test_helo_where_ehlo_is_not_known(cut: Cut, reply: bytes) -> None:
    host = Host(replies={"ehlo": reply})
    assert converse(started(), host, cut=cut).statuses() == ["2.0.0", "2.0.0"]
    assert host.commands[:3] == ["EHLO client.example", "HELO client.example", "MAIL FROM:<sender@example.org>"]


# ---- TLS and login

TLS = (*OFFERS, "STARTTLS")


@cuts
@pytest.mark.parametrize("tls", [Tls.MAY, Tls.MUST])
def test_tls_is_used_where_it_is_offered(cut: Cut, tls: Tls) -> None:
    client, host = started(tls=tls), Host(offers=TLS, replies={"ehlo 2": b"250-host\r\n250 SIZE\r\n"})
    told = converse(client, host, cut=cut)
    assert [type(e) for e in told.events] == [StartTls, SendMessage, Finished]
    assert host.commands[:3] == ["EHLO client.example", "STARTTLS", "EHLO client.example"]
    assert client.is_encrypted
    assert dict(client.offers) == {"SIZE": ()}, "what was said in the clear is forgotten"


def test_no_tls_where_it_must_not_be() -> None:
    host = Host(offers=TLS)
    assert converse(started(tls=Tls.NEVER), host).statuses() == ["2.0.0", "2.0.0"]
    assert "STARTTLS" not in host.commands


def test_an_encrypted_connection_is_not_encrypted_again() -> None:
    host = Host(offers=TLS)
    assert converse(started(is_encrypted=True, tls=Tls.MUST), host).statuses() == ["2.0.0", "2.0.0"]
    assert "STARTTLS" not in host.commands


@pytest.mark.parametrize("host", [
    Host(), Host(offers=TLS, replies={"starttls": b"454 4.7.0 no certificate\r\n"}),
    Host(offers=TLS, replies={"starttls": b"502 no\r\n"}), Host(offers=TLS, replies={"ehlo": b"502 no\r\n"})])
def test_without_the_tls_that_must_be_nothing_is_sent(host: Host) -> None:
    told = converse(started(tls=Tls.MUST), host)
    for result in told.finished[0].results:
        assert (result.outcome.status[0], result.may_try_elsewhere, result.scope) == ("4", True, Scope.HOST)
    assert not any(line.startswith("MAIL") for line in host.commands)


@pytest.mark.parametrize("reply", [b"454 4.7.0 not now\r\n", b"502 what\r\n"])
def test_where_tls_may_be_a_refused_one_does_without(reply: bytes) -> None:
    host = Host(offers=TLS, replies={"starttls": reply})
    assert converse(started(), host).statuses() == ["2.0.0", "2.0.0"]


def test_a_failed_handshake_is_the_hosts_trouble() -> None:
    client = started()
    client.receive(b"220 host\r\n")
    client.next_event()
    client.receive(b"250-host\r\n250 STARTTLS\r\n")
    client.next_event()
    client.receive(b"220 go\r\n")
    assert client.next_event() == StartTls()
    client.tls_failed("certificate of other.example")
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert finished.results[0].outcome.reason == "no TLS with mx.example[192.0.2.1]: certificate of other.example"
    assert (finished.results[0].outcome.status, finished.results[0].scope) == ("4.7.5", Scope.HOST)
    assert client.is_closed


@cuts
@pytest.mark.parametrize("after", [b"250 injected\r\n", b"2", b"\r\n", b"250-x\r\n"])
def test_plaintext_before_tls_is_never_read_after_it(cut: Cut, after: bytes) -> None:
    """CVE-2021-38371: a reply that came in the clear must not answer a command that was given under TLS."""
    client = started()
    told = Told()
    for data in (b"220 host\r\n", b"250-host\r\n250 STARTTLS\r\n"):
        client.receive(data)
        assert client.next_event() is None
        said = client.data_to_send()
    assert said == b"STARTTLS\r\n"
    for piece in cut(b"220 go\r\n" + after):
        client.receive(piece)
        while (event := client.next_event()) is not None:
            told.events.append(event)
    if told.events == [StartTls()]:  # the surplus came later, and the driver did not see it
        client.tls_started()
        while (event := client.next_event()) is not None:
            told.events.append(event)
    assert told.statuses() == ["4.5.0", "4.5.0"]
    assert client.data_to_send() == b"", "nothing was said after it"


CREDENTIALS = Credentials("relay", "s3cret")


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@cuts
@pytest.mark.parametrize(("offer", "credentials", "replies", "lines"), [
    ("AUTH PLAIN LOGIN", CREDENTIALS, {}, ["AUTH PLAIN " + b64("\0relay\0s3cret")]),
    ("AUTH=PLAIN", CREDENTIALS, {}, ["AUTH PLAIN " + b64("\0relay\0s3cret")]),
    ("AUTH plain", CREDENTIALS, {"auth": b"334 \r\n"},
     ["AUTH PLAIN " + b64("\0relay\0s3cret"), b64("\0relay\0s3cret")]),
    ("AUTH LOGIN", CREDENTIALS, {"answer 1": b"334 UGFzc3dvcmQ6\r\n"}, ["AUTH LOGIN", b64("relay"), b64("s3cret")]),
    ("AUTH CRAM-MD5", Credentials("tim", "tanstaaftanstaaf"),
     {"auth": b"334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\r\n"},
     ["AUTH CRAM-MD5", "dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw"]),
    ("AUTH PLAIN XOAUTH2", Credentials("a@b", token="t0ken"), {},
     ["AUTH XOAUTH2 " + b64("user=a@b\x01auth=Bearer t0ken\x01\x01")]),
    ("AUTH OAUTHBEARER XOAUTH2", Credentials("a,b", token="t0ken"), {},
     ["AUTH OAUTHBEARER " + b64("n,a=a=2Cb,\x01auth=Bearer t0ken\x01\x01")]),
    ("AUTH PLAIN LOGIN", CREDENTIALS, {"auth 1": b"504 5.5.4 not PLAIN\r\n", "answer 1": b"334 UGFzc3dvcmQ6\r\n"},
     ["AUTH PLAIN " + b64("\0relay\0s3cret"), "AUTH LOGIN", b64("relay"), b64("s3cret")]),
])
def test_logins(cut: Cut, offer: str, credentials: Credentials, replies: dict[str, bytes], lines: list[str]) -> None:
    host = Host(offers=(*OFFERS, offer), replies=replies)
    client = started(is_encrypted=True, credentials=credentials)
    assert converse(client, host, cut=cut).statuses() == ["2.0.0", "2.0.0"]
    assert host.commands[1:len(lines) + 1] == lines
    client.begin(MESSAGE, BOTH)
    assert converse(client, host, cut=cut, said=b"").statuses() == ["2.0.0", "2.0.0"], "one login per session"


LOGIN_LATER = [("4.7.8", False, Scope.LOGIN)] * 2


@pytest.mark.parametrize(("offers", "replies", "is_encrypted"), [
    (("AUTH PLAIN",), {"auth": b"535 5.7.8 bad credentials\r\n"}, True),
    (("AUTH PLAIN",), {"auth": b"535 bad credentials\r\n"}, True),
    (("AUTH LOGIN",), {"answer": b"535 5.7.8 no\r\n"}, True),
    (("AUTH PLAIN",), {"auth": b"454 4.7.8 not now\r\n"}, True),
    (("AUTH GSSAPI",), {}, True),
    (("AUTH",), {}, True),
    ((), {}, True),
    (("AUTH PLAIN LOGIN",), {}, False),
    (("AUTH XOAUTH2",), {}, True),
])
def test_a_failed_login_holds_the_mail_and_bounces_nothing(
        offers: tuple[str, ...], replies: dict[str, bytes], is_encrypted: bool) -> None:
    host = Host(offers=offers, replies=replies)
    told = converse(started(is_encrypted=is_encrypted, credentials=CREDENTIALS), host)
    assert [(r.outcome.status, r.may_try_elsewhere, r.scope) for r in told.finished[0].results] == LOGIN_LATER
    assert told.closed is not None
    assert not any(line.startswith("MAIL") for line in host.commands)
    if not is_encrypted:
        assert not any(line.startswith("AUTH") for line in host.commands), "the password went out in the clear"


def test_what_a_token_server_complains_of_is_told() -> None:
    complaint = base64.b64encode(b'{"status":"401"}').decode()
    replies = {"auth": f"334 {complaint}\r\n".encode(), "answer": b"535 5.7.8 no\r\n"}
    host = Host(offers=("AUTH XOAUTH2",), replies=replies)
    told = converse(started(is_encrypted=True, credentials=Credentials("a", token="t")), host)
    assert host.commands[-1] == ""
    assert '{"status":"401"}' in told.finished[0].results[0].outcome.reason


@pytest.mark.parametrize(("offer", "replies"), [
    ("AUTH PLAIN", {"auth": b"334 \r\n", "answer": b"334 \r\n"}), ("AUTH LOGIN", {"answer": b"334 x\r\n"}),
    ("AUTH LOGIN", {"auth": b"334 !!!\r\n"}), ("AUTH CRAM-MD5", {"auth": b"334 YQ==\r\n", "answer": b"334 YQ==\r\n"}),
])
def test_a_login_without_end_is_broken_off(offer: str, replies: dict[str, bytes]) -> None:
    told = converse(started(is_encrypted=True, credentials=CREDENTIALS), Host(offers=(offer,), replies=replies))
    assert told.statuses() == ["4.5.0", "4.5.0"]
    assert "s3cret" not in repr(told)
    assert b64("s3cret") not in repr(told)


def test_secrets_are_in_no_repr() -> None:
    assert "s3cret" not in repr(options(credentials=Credentials("a", "s3cret", "s3cret")))


# ---- LMTP

@cuts
def test_lmtp_answers_for_each_recipient_after_the_dot(cut: Cut) -> None:
    recipients = tuple(Recipient(f"{name}@example.net") for name in "abcd")
    host = Host(lmtp=True, replies={"rcpt 2": b"550 5.1.1 no\r\n", "end 2": b"452 4.2.2 full\r\n",
                                    "end 3": b"554 5.6.0 bad\r\n"})
    client = started(recipients=recipients, lmtp=True)
    told = converse(client, host, cut=cut)
    assert host.commands[0] == "LHLO client.example"
    assert told.statuses() == ["2.0.0", "5.1.1", "4.2.2", "5.6.0"]
    assert client.is_ready


def test_lmtp_never_falls_back_to_helo() -> None:
    host = Host(lmtp=True, replies={"lhlo": b"500 what\r\n"})
    assert converse(started(lmtp=True), host).statuses() == ["5.5.2", "5.5.2"]
    assert host.commands == ["LHLO client.example"]


def test_lmtp_that_wants_a_message_for_nobody_ends_there() -> None:
    host = Host(lmtp=True, replies={"rcpt": b"550 5.1.1 no\r\n", "data": b"354 go\r\n"})
    client = started(lmtp=True)
    assert converse(client, host).statuses() == ["5.1.1", "5.1.1"]
    assert client.is_closed


@cuts
def test_lmtp_keeps_the_answers_that_came_before_the_connection_was_lost(cut: Cut) -> None:
    host = Host(lmtp=True, replies={"end 1": b"250 2.1.5 kept\r\n", "end 2": CLOSE})
    told = converse(started(lmtp=True), host, cut=cut)
    assert told.statuses() == ["2.1.5", "4.4.2"]
    assert told.finished[0].results[1].outcome.reason.endswith("it may have the message, which may then arrive twice")


# ---- everything that can go wrong, everywhere

FAULTS = {
    "4xx": b"451 4.3.0 later\r\n", "4xx bare": b"451 later\r\n",
    "5xx": b"554 5.7.1 never\r\n", "5xx bare": b"554 never\r\n",
    "421": b"421 4.3.2 closing\r\n" + CLOSE, "421 and on": b"421 closing\r\n", "close": CLOSE,
    "half a line": b"25" + CLOSE, "half a reply": b"250-and\r\n" + CLOSE,
    "garbage": b"HTTP/1.1 400 Bad Request\r\n", "binary": b"\x00\xff\x16\x03\n", "endless line": b"2" * 100_000,
    "endless reply": b"250-x\r\n" * 100_000, "two codes": b"250-x\r\n550 y\r\n", "1xx": b"150 wait\r\n",
    "wrong class": b"",
}
LATER, NEVER = "4", "5"
HOST, MESSAGE_, ONE, LOGIN = Scope.HOST, Scope.MESSAGE, Scope.RECIPIENT, Scope.LOGIN
BROKEN = (("4.5.0", True, HOST),)
LOST = (("4.4.2", True, HOST),)
LOST_AT_END = (("4.4.2", False, HOST),)
BROKEN_AT_END = (("4.5.0", False, HOST),)
NO_REPLIES = ("garbage", "binary", "endless line", "endless reply", "two codes", "1xx", "wrong class")
UNCLEAR = dict.fromkeys(NO_REPLIES, BROKEN)
UNCLEAR |= dict.fromkeys(("close", "half a line", "half a reply"), LOST)
UNCLEAR_AT_END = dict.fromkeys(NO_REPLIES, BROKEN_AT_END)
UNCLEAR_AT_END |= dict.fromkeys(("close", "half a line", "half a reply"), LOST_AT_END)
CLOSING = {"421": (("4.3.2", True, HOST),), "421 and on": (("4.3.2", True, HOST),)}

# (status, may try elsewhere, scope) for both recipients, or for each.
TABLE: dict[str, dict[str, tuple[tuple[str, bool, Scope], ...]]] = {
    "greeting": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, HOST),), "4xx bare": (("4.3.0", True, HOST),),
        "5xx": (("4.7.1", True, HOST),), "5xx bare": (("4.3.2", True, HOST),)},
    "ehlo": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, HOST),), "4xx bare": (("4.3.0", True, HOST),),
        "5xx": (("5.7.1", True, HOST),), "5xx bare": (("5.0.0", True, HOST),)},  # to HELO as well
    "starttls": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, HOST),), "4xx bare": (("4.3.0", True, HOST),),
        "5xx": (("4.7.1", True, HOST),), "5xx bare": (("4.0.0", True, HOST),)},
    "auth": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", False, LOGIN),), "4xx bare": (("4.3.0", False, LOGIN),),
        "5xx": (("4.7.1", False, LOGIN),), "5xx bare": (("4.0.0", False, LOGIN),)},
    "mail": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, MESSAGE_),), "4xx bare": (("4.3.0", True, MESSAGE_),),
        "5xx": (("5.7.1", False, MESSAGE_),), "5xx bare": (("5.0.0", False, MESSAGE_),)},
    "rcpt 2": UNCLEAR | CLOSING | {
        "4xx": (("2.0.0", False, ONE), ("4.3.0", True, ONE)), "4xx bare": (("2.0.0", False, ONE), ("4.3.0", True, ONE)),
        "5xx": (("2.0.0", False, ONE), ("5.7.1", False, ONE)),
        "5xx bare": (("2.0.0", False, ONE), ("5.0.0", False, ONE))},
    "data": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, MESSAGE_),), "4xx bare": (("4.3.0", True, MESSAGE_),),
        "5xx": (("5.7.1", False, MESSAGE_),), "5xx bare": (("5.0.0", False, MESSAGE_),)},
    "end": UNCLEAR_AT_END | CLOSING | {
        "4xx": (("4.3.0", True, MESSAGE_),), "4xx bare": (("4.3.0", True, MESSAGE_),),
        "5xx": (("5.7.1", False, MESSAGE_),), "5xx bare": (("5.6.0", False, MESSAGE_),)},
    "rset": UNCLEAR | CLOSING | {
        "4xx": (("4.3.0", True, HOST),), "4xx bare": (("4.3.0", True, HOST),),
        "5xx": (("4.7.1", True, HOST),), "5xx bare": (("4.0.0", True, HOST),)},
}


def test_the_table_is_complete() -> None:
    assert all(cells.keys() == FAULTS.keys() for cells in TABLE.values())


@cuts
@pytest.mark.parametrize("offers", [TLS, (*PLAIN, "STARTTLS")], ids=["pipelining", "one by one"])
@pytest.mark.parametrize(("stage", "fault"), [(stage, fault) for stage, cells in TABLE.items() for fault in cells])
def test_trouble(cut: Cut, offers: tuple[str, ...], stage: str, fault: str) -> None:
    reply = FAULTS[fault]
    if fault == "wrong class":
        reply = b"250 fine\r\n" if stage == "data" else b"354 go\r\n"
    host = Host(offers=(*offers, "AUTH PLAIN"), replies={stage: reply})
    if stage == "ehlo":
        host.replies["helo"] = reply
    client = started(tls=Tls.MUST, credentials=CREDENTIALS)
    if stage == "rset":
        host.replies["mail 1"] = b"451 later\r\n"
        converse(client, host, cut=cut)
        client.begin(MESSAGE, BOTH)
        told = converse(client, host, cut=cut, said=b"")
    else:
        told = converse(client, host, cut=cut)
    expected = TABLE[stage][fault]
    assert len(told.finished) == 1
    found = [(r.outcome.status, r.may_try_elsewhere, r.scope) for r in told.finished[0].results]
    assert found == list(expected if len(expected) == 2 else expected * 2)
    assert all(r.outcome.reason.isprintable() and len(r.outcome.reason) <= 400 for r in told.finished[0].results)
    assert client.is_closed == (told.closed is not None)
    if fault not in ("4xx", "4xx bare", "5xx", "5xx bare"):
        assert client.is_closed


USUAL = {"greeting": b"220 hi\r\n", "ehlo": b"250-host\r\n250 SIZE\r\n", "data": b"354 go\r\n"}


# A second line that comes after 354 and after our dot cannot be told from the answer to the dot: so "data" only whole.
@pytest.mark.parametrize(("stage", "cut"), [
    *((s, c) for s in ("greeting", "ehlo", "mail", "rcpt 1", "rcpt 2") for c in (whole, bytewise)), ("data", whole)])
@pytest.mark.parametrize("offers", [OFFERS, PLAIN], ids=["pipelining", "one by one"])
def test_a_reply_too_many_never_makes_a_message_delivered(cut: Cut, offers: tuple[str, ...], stage: str) -> None:
    """A line nobody asked for shifts all later ones by one, unless the session ends (aiosmtplib, 2026)."""
    host = Host(offers=offers)
    host.replies[stage] = USUAL.get(stage, b"250 fine\r\n") + b"250 surplus\r\n"
    client = started()
    assert converse(client, host, cut=cut).statuses() == ["4.5.0", "4.5.0"]
    assert client.is_closed
    assert host.messages == []


def test_a_reply_too_many_after_the_last_one_ends_the_session() -> None:
    client = started()
    told = converse(client, Host(replies={"end": b"250 2.0.0 taken\r\n250 surplus\r\n"}))
    assert told.statuses() == ["2.0.0", "2.0.0"]
    assert told.closed is not None
    assert client.is_closed


@pytest.mark.parametrize(("reply", "status", "elsewhere"), [
    (b"552 5.3.4 too big\r\n", "5.3.4", False), (b"451 4.3.0 disk is full\r\n", "4.3.0", True),
    (b"421 4.3.2 going down\r\n", "4.3.2", True), (b"250 done already\r\n", "4.5.0", True),
    (b"354 go\r\n", "4.5.0", True)])
def test_an_answer_in_the_middle_of_the_message(reply: bytes, status: str, elsewhere: bool) -> None:
    client, host = started(), Host()
    data = host.greet()
    while not isinstance(event := next_event(client, data), SendMessage):
        assert event is None
        data = host.hear(client.data_to_send())
    client.send_message(b"Subject: x\n")
    client.data_to_send()
    finished = next_event(client, reply)
    assert isinstance(finished, Finished)
    assert [(r.outcome.status, r.may_try_elsewhere) for r in finished.results] == [(status, elsewhere)] * 2
    assert isinstance(client.next_event(), Closed)
    client.send_message(b"more")
    client.end_message()
    assert client.data_to_send() == b"", "no final dot may follow"


def next_event(client: Client, data: bytes) -> object:
    client.receive(data)
    return client.next_event()


def sending() -> Client:
    """A client in the middle of its message."""
    client, host = started(), Host()
    data = host.greet()
    while not isinstance(next_event(client, data), SendMessage):
        data = host.hear(client.data_to_send())
    client.send_message(b"Subject: x\n")
    return client


@pytest.mark.parametrize(("how", "status", "words"), [
    ("lost", "4.4.2", "lost connection with mx.example[192.0.2.1] while sending the message: reset"),
    ("timed out", "4.4.2", "conversation timed out with mx.example[192.0.2.1] while sending the message"),
    ("aborted", "4.3.0", "conversation given up with mx.example[192.0.2.1] while sending the message: cannot read it"),
])
def test_an_end_in_the_middle_of_the_message(how: str, status: str, words: str) -> None:
    client = sending()
    if how == "lost":
        client.lost("reset")
    elif how == "timed out":
        client.timed_out()
    else:
        client.abort("cannot read it")
    finished = client.next_event()
    assert isinstance(finished, Finished)
    result = finished.results[0]
    assert (result.outcome.status, result.outcome.reason) == (status, words)
    assert result.may_try_elsewhere is (how != "aborted")
    assert client.data_to_send() == b""


def test_a_message_that_cannot_be_made_lawful_for_this_host() -> None:
    client = sending()
    client.abort("too many parts", "5.6.3")
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert [(r.outcome.status, r.scope) for r in finished.results] == [("5.6.3", Scope.MESSAGE)] * 2
    assert finished.results[0].outcome.reason == "too many parts (mx.example[192.0.2.1])"


@pytest.mark.parametrize("how", ["lost", "timed_out", "abort"])
def test_after_the_final_dot_nothing_is_known(how: str) -> None:
    client = sending()
    client.end_message()
    client.data_to_send()
    getattr(client, how)(*(["stopping"] if how == "abort" else []))
    finished = client.next_event()
    assert isinstance(finished, Finished)
    result = finished.results[0]
    assert (result.outcome.status[0], result.may_try_elsewhere) == ("4", False)
    assert "may have the message" in result.outcome.reason


@pytest.mark.parametrize(("said", "is_gone"), [
    (b"421 4.4.2 idle for too long\r\n", True), (b"", True), (b"250 what\r\n", False)])
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_kept_session_that_was_gone_is_told_apart(said: bytes, is_gone: bool, is_seen: bool) -> None:
    """Between two messages the host hung up: the second one deserves a fresh connection, not a deferral."""
    client, host = started(), Host()
    converse(client, host)
    if is_seen and said:
        assert next_event(client, said) is not None
        assert client.is_closed
        return
    client.receive(said)
    client.begin(MESSAGE, BOTH)
    if not said:
        client.lost()
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert finished.is_stale is is_gone
    assert all(r.outcome.is_deferred for r in finished.results)


@pytest.mark.parametrize("said", [b"502 5.5.1 no such command\r\n", b"451 4.7.0 not here\r\n", None])
def test_a_kept_session_that_does_not_forget_is_no_fault_of_the_next_message(said: bytes | None) -> None:
    client = started()
    converse(client, Host(replies={"rcpt": b"550 5.1.1 unknown\r\n"}))
    client.begin(MESSAGE, BOTH)
    assert client.data_to_send().startswith(b"RSET\r\n")
    if said is None:
        client.timed_out()
    else:
        client.receive(said)
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert finished.is_stale


def test_a_fresh_session_is_never_stale() -> None:
    assert not converse(started(), Host(replies={"mail": CLOSE})).finished[0].is_stale


def test_a_session_without_a_message_tells_why_it_ended() -> None:
    client = Client(options())
    told = converse(client, Host(replies={"greeting": b"554 5.7.1 no mail here\r\n"}))
    assert told.finished == []
    assert told.closed is not None
    assert told.closed.result is not None
    assert (told.closed.result.outcome.status, told.closed.result.scope) == ("4.7.1", Scope.HOST)


def test_a_lost_connection_does_not_lose_the_replies_that_came_first() -> None:
    client = sending()
    client.end_message()
    client.receive(b"250 2.0.0 taken\r\n")
    client.lost()
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert [r.outcome.status for r in finished.results] == ["2.0.0", "2.0.0"]
    assert isinstance(client.next_event(), Closed)


def test_a_peer_that_drips_gains_no_time() -> None:
    client = Client(options())
    assert (client.timeout, client.stage) == (TIMEOUTS[Stage.GREETING], Stage.GREETING)
    for byte in b"220-hello\r\n" * 10:
        client.receive(bytes((byte,)))
        client.next_event()
    assert client.steps == 0
    client.receive(b"220 hello\r\n")
    client.next_event()
    assert (client.steps, client.stage, client.timeout) == (1, Stage.HELLO, TIMEOUTS[Stage.HELLO])


@cuts
def test_a_session_may_open_before_there_is_a_message(cut: Cut) -> None:
    client, host = Client(options()), Host()
    assert converse(client, host, cut=cut).events == []
    assert (client.is_ready, client.stage) == (True, Stage.IDLE)
    client.begin(MESSAGE, BOTH)
    assert converse(client, host, cut=cut, said=b"").statuses() == ["2.0.0", "2.0.0"]


@pytest.mark.parametrize(("reply", "status"), [
    (b"250 2.0.0 taken\r\n", "4.5.0"), (b"552 5.3.4 too big\r\n", "5.3.4"), (b"25", "4.5.0")])
def test_an_answer_before_the_dot_is_no_answer_to_it(reply: bytes, status: str) -> None:
    client = sending()
    client.data_to_send()
    client.receive(reply)
    client.end_message()
    assert client.data_to_send() == b""
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert [r.outcome.status for r in finished.results] == [status, status]


def test_timeouts_of_a_handshake_are_those_of_starttls() -> None:
    client, host = started(), Host(offers=TLS)
    data = host.greet()
    while not isinstance(next_event(client, data), StartTls):
        data = host.hear(client.data_to_send())
    assert client.stage is Stage.STARTTLS
    client.timed_out()
    finished = client.next_event()
    assert isinstance(finished, Finished)
    assert finished.results[0].outcome.status == "4.4.2"


def test_every_stage_has_a_timeout() -> None:
    assert TIMEOUTS.keys() == set(Stage)


def test_a_transaction_has_no_results_before_all_are_known() -> None:
    transaction = Transaction(MESSAGE, BOTH, PEER, is_reuse=False)
    transaction.on_rcpt(0, Reply(550))
    with pytest.raises(LocalError):
        transaction.results()


def test_what_the_core_refuses_as_our_own_mistake() -> None:
    client = Client(options())
    with pytest.raises(LocalError):
        client.begin(MESSAGE, ())
    client.begin(MESSAGE, BOTH)
    for call in (lambda: client.begin(MESSAGE, BOTH), lambda: client.send_message(b"x"), client.end_message,
                 client.tls_started, lambda: client.tls_failed(""), client.quit):
        with pytest.raises(LocalError):
            call()


@given(st.lists(st.sampled_from([
    b"220 x\r\n", b"250 x\r\n", b"250-PIPELINING\r\n", b"250 PIPELINING\r\n", b"354 x\r\n", b"334 \r\n", b"450 x\r\n",
    b"550 5.1.1 x\r\n", b"421 x\r\n", b"\r\n", b"garbage\r\n", b"2", b"50", b"\xff\n", b"235 x\r\n",
    b"250 STARTTLS\r\n", b"250-AUTH LOGIN CRAM-MD5\r\n"]), max_size=25), st.booleans(), st.booleans())
def test_whatever_a_server_says_every_recipient_gets_one_result(said: list[bytes], lmtp: bool, logs_in: bool) -> None:
    """Any input gives results or waits for more; no exception, no second result, nothing delivered without a dot."""
    client = started(lmtp=lmtp, credentials=CREDENTIALS if logs_in else None)
    told = Told()
    has_sent = False
    for data in (*said, None):
        if data is None:
            client.lost()
        else:
            client.receive(data)
        while (event := client.next_event()) is not None:
            told.events.append(event)
            if isinstance(event, StartTls):
                client.tls_started()
            elif isinstance(event, SendMessage):
                client.send_message(CONTENT)
                client.end_message()
                has_sent = True
        wire = client.data_to_send()
        assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    assert len(told.finished) == 1
    assert len(told.finished[0].results) == 2
    assert all(isinstance(r, Result) for r in told.finished[0].results)
    assert has_sent or not any(r.outcome.is_delivered for r in told.finished[0].results)
    assert client.is_closed
