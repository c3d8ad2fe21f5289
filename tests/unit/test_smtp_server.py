"""The server core: what a dialogue in a file cannot show. Order by a model of its own, turns, TLS, limits, the end."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pysendmail.mail.envelope import Recipient
from pysendmail.smtp import profile, requests
from pysendmail.smtp.grammar import MailParameters
from pysendmail.smtp.order import TABLE, State
from pysendmail.smtp.patience import ERROR_DELAY
from pysendmail.smtp.profile import Limits, Settings
from pysendmail.smtp.reply import ReplyReader, reply
from pysendmail.smtp.server import Server
from pysendmail.smtp.session import FULL
from pysendmail.smtp.wire import MAX_SKIPPED, LineEnds, LocalError
from tests.tools.dialog import Porter, talk

TAKEN = reply(250, "2.0.0", "taken")


def settings(**more: object) -> Settings:
    return Settings("server.example", **more)  # type: ignore[arg-type]


def opened(*lines: bytes, **more: object) -> tuple[Server, Porter]:
    """A session after the greeting and these lines, whose replies have been read."""
    server = Server(settings(**more))
    server.greet()
    porter = Porter(server)
    for line in lines:
        say(porter, line)
    server.data_to_send()
    return server, porter


def say(porter: Porter, line: bytes) -> bytes:
    porter.server.receive(line + b"\r\n")
    porter.work()
    return porter.server.data_to_send()


ENVELOPE = (b"EHLO client.example", b"MAIL FROM:<a@example.org>", b"RCPT TO:<alice>")


# ---- the order of commands, against a model that was written apart from it

class Model:
    """RFC 5321 4.1.4 in a few lines: the code that each command must get."""

    def __init__(self) -> None:
        self.hello = False
        self.sender = False
        self.recipients = 0

    def command(self, line: bytes) -> int:
        verb = line[:4]
        if verb in (b"EHLO", b"HELO"):
            self.hello, self.sender, self.recipients = True, False, 0
            return 250
        if verb == b"RSET":
            self.sender, self.recipients = False, 0
            return 250
        if verb == b"MAIL":
            if not self.hello or self.sender:
                return 503
            self.sender = b"evil@" not in line
            return 250 if self.sender else 550
        if verb == b"RCPT":
            if not self.sender:
                return 503
            if b"nobody" in line:
                return 550
            if b"busy>" in line:
                return 451
            self.recipients += 1
            return 250
        if verb == b"DATA":
            return 354 if self.recipients else 503
        is_early_or_late = not self.hello or self.sender
        return {b"NOOP": 250, b"VRFY": 252, b"EXPN": 502, b"HELP": 214, b"STAR": 503 if is_early_or_late else 502,
                b"AUTH": 503, b"XCLI": 503 if self.sender else 550, b"WHAT": 500}[verb]

    def content(self, is_taken: bool) -> int:
        self.sender, self.recipients = False, 0
        return 250 if is_taken else 452


PATIENT = Limits(soft_errors=10_000, hard_errors=10_000, unknown_commands=10_000, junk_commands=10_000, messages=10_000)


class Conversation(RuleBasedStateMachine):
    """Random commands; the server's codes must be the model's, and each command gets one reply."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.porter = opened(limits=PATIENT)
        self.model = Model()
        self.expected: list[tuple[str, list[str]]] = []
        self.now: tuple[str, list[str]] | None = None

    @rule(line=st.sampled_from([
        b"EHLO client.example", b"HELO client.example", b"RSET", b"MAIL FROM:<>", b"MAIL FROM:<a@example.org>",
        b"MAIL FROM:<evil@example.org>", b"RCPT TO:<alice>", b"RCPT TO:<bob>", b"RCPT TO:<nobody>", b"RCPT TO:<busy>",
        b"NOOP", b"VRFY x", b"EXPN x", b"HELP", b"STARTTLS", b"AUTH PLAIN", b"XCLIENT ADDR=192.0.2.1", b"WHAT"]))
    def command(self, line: bytes) -> None:
        self.check(say(self.porter, line), self.model.command(line))

    @rule(content=st.sampled_from([
        b".\r\n", b"x\r\n.\r\n", b"X-Full: yes\r\n.\r\n", b"..\r\nRSET\r\n.\r\n", b"QUIT\r\n.\r\n"]))
    def message(self, content: bytes) -> None:
        before = len(self.porter.taken)
        code = self.model.command(b"DATA")
        self.check(say(self.porter, b"DATA"), code)
        if code == 354:
            is_taken = b"X-Full" not in content
            recipients = self.model.recipients
            self.server.receive(content)
            self.porter.work()
            self.check(self.server.data_to_send(), self.model.content(is_taken))
            assert len(self.porter.taken) == before + is_taken
            if is_taken:
                assert len(self.porter.taken[-1][1]) == recipients

    def check(self, said: bytes, code: int) -> None:
        assert said.startswith(b"%d" % code), said
        assert len(replies(said)) == 1

    @invariant()
    def has_what_the_model_has(self) -> None:
        assert (self.server.transaction.sender is not None) == self.model.sender
        assert len(self.server.transaction.recipients) == self.model.recipients
        assert not self.server.is_closed


TestConversation = Conversation.TestCase


def replies(said: bytes) -> list[int]:
    reader = ReplyReader()
    reader.feed(said)
    found = []
    while (one := reader.next_reply()) is not None:
        found.append(one.code)
    assert reader.is_empty
    return found


COMMANDS = [
    b"EHLO client.example", b"HELO client.example", b"LHLO client.example", b"MAIL FROM:<>", b"RCPT TO:<alice>",
    b"MAIL FROM:<a@example.org> SIZE=5", b"RCPT TO:<nobody>", b"DATA", b".", b"..", b"", b"RSET", b"QUIT", b"NOOP",
    b"HELP", b"VRFY x", b"EXPN x", b"STARTTLS", b"AUTH PLAIN", b"AUTH LOGIN", b"*", b"YQ==", b"XCLIENT NAME=x",
    b"GET / HTTP/1.1", b"\x16\x03\x01", b"X-Full: yes", b"MAIL FROM:<\xff>", b"RCPT TO:<a b>", b"NOOP \0",
    b"x" * 3000, b"a\rb", b"a\nb"]
TERMS = [settings(), settings(profile=profile.LMTP),
         settings(profile=profile.SUBMISSION, mechanisms=("PLAIN", "LOGIN")),
         settings(line_ends=LineEnds.NORMALISE, forbids_early=False), profile.for_pipe("server.example", Limits()),
         settings(offers_tls=True, allows_xclient=True, mechanisms=("PLAIN",))]


@given(st.sampled_from(TERMS), st.booleans(), st.lists(st.sampled_from(COMMANDS), max_size=40),
       st.lists(st.integers(1, 60)))
def test_whatever_a_client_sends_it_gets_replies(
        terms: Settings, is_encrypted: bool, lines: list[bytes], steps: list[int]) -> None:
    """Any input is answered or waited on: no exception, whole replies, a status on each, nothing after the end, and the
    same however the bytes are cut (where early talk is no crime)."""
    data = b"".join(line + b"\r\n" for line in lines)
    said, porter = talk(terms, is_encrypted, cut(data, steps))
    for line in said.split(b"\r\n")[:-1]:
        assert re.fullmatch(rb"[2-5][0-9][0-9][ -][ -~]*", line), line
        if line[:3] not in (b"220", b"250", b"354", b"334"):
            assert re.match(rb"(...)[ -]\1?([245])\.[0-9]+\.[0-9]+ ", line), line
    assert porter.server.is_closed == bool(porter.ended)
    assert sum(content.count(b"\r") for _, _, content in porter.taken) == 0 or terms.line_ends is not LineEnds.STRICT
    if not terms.forbids_early and b"STARTTLS" not in lines:
        other, again = talk(terms, is_encrypted, [data])
        assert (said, porter.taken) == (other, again.taken)


def cut(data: bytes, steps: list[int]) -> Iterator[bytes]:
    while data:
        step = steps.pop() if steps else 7
        yield data[:step]
        data = data[step:]


@given(st.binary(max_size=200))
def test_any_bytes_at_all(data: bytes) -> None:
    for terms in TERMS:
        said, _ = talk(terms, False, cut(data, []))
        assert said.isascii()


def test_no_reply_repeats_what_was_sent() -> None:
    """ALPACA: what a server repeats, a browser may take for a page."""
    mark = b"<script>"
    for line in (b"%s", b"NOOP %s", b"EHLO %s", b"VRFY %s", b"EXPN %s", b"MAIL FROM:<%s@a>", b"MAIL FROM:<a@b> %s=1",
                 b"MAIL FROM:<a@b> SIZE=%s", b"HELP %s", b"AUTH %s", b"QUIT %s", b"X%s"):
        _, porter = opened(ENVELOPE[0])
        assert b"script" not in say(porter, line % mark)


def test_each_command_of_the_table_leads_where_it_says() -> None:
    """Only MAIL, RCPT, DATA, STARTTLS, XCLIENT and the hellos move a session forward; nothing leads out of the end."""
    assert not any(state in (State.CLOSED, State.CONNECTED, State.HANDSHAKE) for state, _ in TABLE)
    moves = {(state, command, after) for (state, command), after in TABLE.items() if after is not state}
    assert {command for _, command, _ in moves} == {
        "HELLO", "RSET", "QUIT", "XCLIENT", "STARTTLS", "MAIL", "RCPT", "DATA", "END"}
    assert {state for state, command in TABLE if command == "DATA"} == {State.RECIPIENTS}
    assert {state for state, command in TABLE if command == "STARTTLS"} == {State.READY}


# ---- whose turn it is

def test_a_client_that_talks_before_the_greeting_is_turned_away() -> None:
    server = Server(settings())
    server.receive(b"EHLO client.example\r\n")
    server.greet()
    assert server.data_to_send().startswith(b"554 5.5.0 ")
    assert server.is_closed


@pytest.mark.parametrize("terms", [settings(forbids_early=False), profile.for_pipe("server.example", Limits())])
def test_or_not(terms: Settings) -> None:
    server = Server(terms)
    server.receive(b"EHLO client.example\r\nNOOP\r\n")
    server.greet()
    Porter(server).work()
    assert replies(server.data_to_send()) == [220, 250, 250]


@pytest.mark.parametrize("lines", [
    (b"EHLO client.example\r\nMAIL FROM:<a@b>",),
    (*ENVELOPE, b"DATA\r\nSubject: x\r\n\r\n."),
    (b"EHLO client.example", b"XCLIENT NAME=x\r\nEHLO y"),
])
def test_a_client_that_does_not_wait_where_it_must_is_shown_out(lines: tuple[bytes, ...]) -> None:
    server, porter = opened(*lines[:-1], allows_xclient=True)
    assert say(porter, lines[-1]).startswith(b"554 5.5.0 ")
    assert server.is_closed
    assert porter.taken == []


def test_a_driver_may_turn_a_client_away() -> None:
    server = Server(settings())
    server.greet(reply(554, "5.7.1", "not you"))
    assert server.data_to_send() == b"554 5.7.1 not you\r\n"
    assert isinstance(server.next_event(), requests.SessionEnded)


# ---- TLS and proxies

TLS = {"offers_tls": True}


@pytest.mark.parametrize("terms", [TLS, TLS | {"forbids_early": False, "line_ends": LineEnds.NORMALISE}])
def test_commands_that_came_with_starttls_are_never_run(terms: dict[str, object]) -> None:
    """CVE-2011-0411: whoever stands between the two could put commands in front of the encrypted ones."""
    server, porter = opened(ENVELOPE[0], **terms)
    said = say(porter, b"STARTTLS\r\nRSET\r\nMAIL FROM:<evil@example.org>")
    assert said.startswith(b"554 5.5.0 ")
    assert server.is_closed
    assert not porter.wants_tls


def test_bytes_that_come_in_the_clear_during_the_handshake_end_the_session() -> None:
    server, porter = opened(ENVELOPE[0], **TLS)
    assert say(porter, b"STARTTLS").startswith(b"220 2.0.0 ")
    server.receive(b"NOOP\r\n")
    assert server.next_event() is None
    server.tls_started()
    porter.work()
    assert porter.ended == "plaintext after STARTTLS"
    assert server.data_to_send() == b""


def test_what_was_said_before_tls_is_forgotten() -> None:
    server, porter = opened(ENVELOPE[0], b"STARTTLS", **TLS)
    server.tls_started()
    assert (server.hello, server.is_extended, server.is_encrypted) == ("", False, True)
    assert say(porter, b"MAIL FROM:<a@b>").startswith(b"503 ")


def test_a_listed_proxy_says_who_its_client_is() -> None:
    server, _ = opened(allows_xclient=True)
    server.receive(b"EHLO proxy.example\r\n")
    assert server.next_event() == requests.HelloGiven("proxy.example", True)
    server.answer()
    assert b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN" in server.data_to_send()
    server.receive(b"XCLIENT NAME=[UNAVAILABLE] ADDR=IPv6:2001:db8::1 login=a+40b\r\n")
    assert server.next_event() == requests.ProxyTold({"NAME": "", "ADDR": "IPv6:2001:db8::1", "LOGIN": "a@b"})
    server.answer()
    assert server.data_to_send() == b"220 server.example ESMTP pysendmail\r\n"
    assert server.hello == ""


@pytest.mark.parametrize("argument", [b"", b"NAME", b"NAME=", b"NAME=a NAME=b", b"FOO=x", b"NAME=a+0Ab", b"NAME=+zz"])
def test_attributes_that_are_none(argument: bytes) -> None:
    _, porter = opened(ENVELOPE[0], allows_xclient=True)
    assert say(porter, b"XCLIENT " + argument).startswith(b"501 ")


# ---- decisions and content

def test_the_driver_hears_everything_in_order() -> None:
    server = Server(settings())
    server.greet()
    events = []
    for line in (b"EHLO c", b"MAIL FROM:<a@b> RET=FULL", b"RCPT TO:<x@y> NOTIFY=DELAY ORCPT=rfc822;z", b"DATA",
                 b"Subject: x\r\n", b".", b"MAIL FROM:<c@d>", b"QUIT"):
        server.receive(line + b"\r\n")
        while (event := server.next_event()) is not None:
            events.append(event)
            if isinstance(event, requests.ContentEnded):
                server.answer(TAKEN)
            elif not isinstance(event, requests.Content | requests.TransactionDropped | requests.SessionEnded):
                server.answer()
    assert events == [
        requests.HelloGiven("c", True), requests.SenderGiven("a@b", MailParameters(ret="full")),
        requests.RecipientGiven(Recipient("x@y", frozenset({"delay"}), "rfc822;z")), requests.ContentWanted(),
        requests.Content(b"Subject: x\n"), requests.Content(b"\n"), requests.ContentEnded(14),
        requests.SenderGiven("c@d", MailParameters()), requests.TransactionDropped("QUIT"),
        requests.SessionEnded("QUIT")]


def test_nothing_is_read_while_a_decision_is_open() -> None:
    server = Server(settings(forbids_early=False))
    server.greet()
    server.receive(b"EHLO c\r\nNOOP\r\nMAIL FROM:<a@b>\r\n")
    assert isinstance(server.next_event(), requests.HelloGiven)
    for _ in range(3):
        assert server.next_event() is None
    assert server.data_to_send() == b"220 server.example ESMTP pysendmail\r\n"
    server.answer()
    assert isinstance(server.next_event(), requests.SenderGiven)
    assert replies(server.data_to_send()) == [250, 250]


def test_a_client_cannot_fill_our_memory_meanwhile() -> None:
    server = Server(settings(forbids_early=False))
    server.greet()
    server.receive(b"EHLO c\r\n")
    server.next_event()
    assert not server.is_full
    server.receive(b"NOOP\r\n" * (FULL // 6 + 1))
    assert server.is_full


def content(server: Server, data: bytes, step: int = 50_000) -> list[requests.Event]:
    """Send content; what the driver hears."""
    heard = []
    for n in range(0, len(data), step):
        server.receive(data[n:n + step])
        while (event := server.next_event()) is not None:
            heard.append(event)
    return heard


def test_content_streams() -> None:
    server, _ = opened(*ENVELOPE, b"DATA")
    assert server.is_receiving
    heard = content(server, b"0123456789\r\n" * 100_000)
    assert all(isinstance(event, requests.Content) for event in heard)
    assert len(heard) == 24
    assert [type(e) for e in content(server, b".\r\n")] == [requests.Content, requests.ContentEnded]
    assert not server.is_receiving


@pytest.mark.parametrize("step", [1, 1000])
def test_the_driver_may_give_a_message_up_in_the_middle(step: int) -> None:
    server, _ = opened(*ENVELOPE, b"DATA")
    content(server, b"one\r\n", step)
    server.refuse_content(reply(452, "4.3.1", "disk is full"))
    server.refuse_content(reply(550, "5.0.0", "the first one counts"))
    assert isinstance(server.next_event(), requests.TransactionDropped)
    assert content(server, b"two\r\n" * 100 + b".\r\nNOOP\r\n", step) == []
    assert server.data_to_send() == b"452 4.3.1 disk is full\r\n250 2.0.0 ok\r\n"


@pytest.mark.parametrize("step", [1, 1000])
def test_a_message_too_big_comes_out_no_more_and_is_dropped_once(step: int) -> None:
    server, _ = opened(*ENVELOPE, b"DATA", limits=Limits(message_size=1024))
    heard = content(server, b"0123456789\r\n" * 200 + b".\r\n", step)
    assert sum(len(e.data) for e in heard if isinstance(e, requests.Content)) <= 1024
    assert [e for e in heard if not isinstance(e, requests.Content)] == [
        requests.TransactionDropped("refused: 552 5.3.4 message is over the size limit")]
    assert replies(server.data_to_send()) == [552]


def test_a_message_without_end_is_not_read_for_ever() -> None:
    server, _ = opened(*ENVELOPE, b"DATA", limits=Limits(message_size=1024, drain=5000))
    heard = content(server, b"0123456789\r\n" * 1000)
    assert heard[-1] == requests.SessionEnded("content without end")
    assert replies(server.data_to_send()) == [552]


def test_a_line_without_end_is_not_read_for_ever() -> None:
    server, porter = opened()
    for _ in range(MAX_SKIPPED // 1000 + 20):
        server.receive(b"x" * 1000)
        porter.work()
    assert replies(server.data_to_send()) == [500, 421]
    assert porter.ended == "line without end"


@pytest.mark.parametrize("answers", [[TAKEN], [TAKEN] * 3])
def test_lmtp_takes_one_answer_per_recipient(answers: list[object]) -> None:
    server, _ = opened(b"LHLO c", *ENVELOPE[1:], b"RCPT TO:<bob>", b"DATA", profile=profile.LMTP)
    content(server, b".\r\n")
    with pytest.raises(LocalError):
        server.answer_each(answers)  # type: ignore[arg-type]
    server.answer(TAKEN)
    assert replies(server.data_to_send()) == [250, 250]


@pytest.mark.parametrize("answer", [None, reply(354, "", "x")])
def test_what_is_no_answer_to_a_message_is_our_bug(answer: object) -> None:
    server, _ = opened(*ENVELOPE, b"DATA")
    content(server, b".\r\n")
    with pytest.raises(LocalError):
        server.answer(answer)  # type: ignore[arg-type]


def test_misuse() -> None:
    server, _ = opened()
    for call in (server.answer, server.greet, server.tls_started, lambda: server.answer_each([TAKEN])):
        with pytest.raises(LocalError):
            call()
    server.receive(b"EHLO c\r\n")
    server.next_event()
    with pytest.raises(LocalError):
        server.answer(reply(354, "", "x"))


# ---- patience

def test_replies_are_held_back_after_some_errors() -> None:
    server, porter = opened(limits=Limits(soft_errors=3))
    for _ in range(2):
        say(porter, b"DATA")
    assert server.delay == 0.0
    say(porter, b"DATA")
    assert server.delay == ERROR_DELAY


def test_a_password_is_not_to_be_guessed_in_one_session() -> None:
    server, porter = opened(limits=Limits(failed_logins=2), mechanisms=("PLAIN",), offers_tls=True)
    server.is_encrypted = True
    say(porter, b"EHLO c")
    assert replies(say(porter, b"AUTH PLAIN AGEAYg==")) == [535]
    assert replies(say(porter, b"AUTH PLAIN AGEAYg==")) == [535]
    assert porter.ended == "too many failed logins"


def test_a_line_that_is_too_long_ends_a_login() -> None:
    server, porter = opened(mechanisms=("LOGIN",), offers_tls=True)
    server.is_encrypted = True
    say(porter, b"EHLO c")
    assert replies(say(porter, b"AUTH LOGIN")) == [334]
    assert replies(say(porter, b"x" * 20_000)) == [500]
    assert replies(say(porter, b"NOOP")) == [250]


def test_who_has_logged_in_sends_as_much_as_he_likes() -> None:
    server, porter = opened(limits=Limits(messages=1), mechanisms=("PLAIN",), offers_tls=True)
    server.is_encrypted, server.user = True, "alice"
    say(porter, b"EHLO c")
    for _ in range(3):
        for line in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<alice>", b"DATA"):
            say(porter, line)
        assert replies(say(porter, b"x\r\n.")) == [250]


def test_a_password_is_in_no_repr() -> None:
    assert "s3cret" not in repr(requests.LoginGiven("PLAIN", "", "a", "s3cret"))


def test_a_driver_that_says_421_ends_the_session() -> None:
    server, _ = opened(ENVELOPE[0])
    server.receive(b"MAIL FROM:<a@b>\r\nNOOP\r\n")
    server.next_event()
    server.answer(reply(421, "4.3.2", "load is too high"))
    assert server.data_to_send() == b"421 4.3.2 load is too high\r\n"
    assert server.is_closed
    assert server.next_event() == requests.SessionEnded("421 4.3.2 load is too high")
    assert server.next_event() is None


def test_resets_without_end_end_the_session() -> None:
    _, porter = opened(ENVELOPE[0], limits=Limits(junk_commands=1))
    assert replies(say(porter, b"RSET")) == [250]
    assert replies(say(porter, b"RSET")) == [421]


def test_errors_count_from_the_last_message_that_was_taken() -> None:
    """A relay may keep its session for long; addresses that it has wrong now and then are no attack."""
    server, porter = opened(ENVELOPE[0], limits=Limits(hard_errors=3))
    for _ in range(5):
        for line in (ENVELOPE[1], b"RCPT TO:<nobody>", b"RCPT TO:<nobody>", ENVELOPE[2], b"DATA", b"."):
            say(porter, line)
    assert len(porter.taken) == 5
    assert not server.is_closed


# ---- the end

@pytest.mark.parametrize(("terms", "codes"), [(profile.SMTP, [421]), (profile.LMTP, [421])])
def test_a_421_to_a_message_ends_the_session(terms: profile.Profile, codes: list[int]) -> None:
    hello = b"LHLO c" if terms.is_lmtp else b"EHLO c"
    server, _ = opened(hello, *ENVELOPE[1:], b"RCPT TO:<bob>", b"DATA", profile=terms)
    content(server, b".\r\n")
    server.answer(reply(421, "4.3.2", "going down"))
    assert replies(server.data_to_send()) == codes
    assert server.is_closed


def test_a_lost_connection_voids_the_transaction() -> None:
    server, porter = opened(*ENVELOPE)
    server.lost("reset by peer")
    server.lost()
    porter.work()
    assert (porter.dropped, porter.ended) == (["reset by peer"], "reset by peer")
    server.receive(b"NOOP\r\n")
    server.answer(TAKEN)
    server.answer_each([TAKEN])
    server.refuse_content(TAKEN)
    assert (server.next_event(), server.data_to_send()) == (None, b"")


def test_but_not_a_message_that_is_being_decided_on() -> None:
    """It is on its way to the disk; what the driver decides about it stands, though nobody hears it (RFC 1047)."""
    server, _ = opened(*ENVELOPE, b"DATA")
    content(server, b".\r\n")
    server.lost()
    assert server.next_event() == requests.SessionEnded("lost connection")
    server.answer(TAKEN)
    assert server.data_to_send() == b""


@pytest.mark.parametrize("lines", [(), ENVELOPE, (*ENVELOPE, b"DATA")])
def test_a_silent_client_is_told(lines: tuple[bytes, ...]) -> None:
    server, porter = opened(*lines)
    server.timed_out()
    porter.work()
    assert server.data_to_send() == b"421 4.4.2 server.example closing: timed out\r\n"
    assert porter.dropped == (["timed out"] if lines else [])


@pytest.mark.parametrize(("before", "after", "codes"), [
    ((), (), [421]),
    (ENVELOPE[:1], (), [421]),
    (ENVELOPE, (b"DATA", b"."), [354, 250, 421]),
    (ENVELOPE, (b"RSET",), [250, 421]),
    ((*ENVELOPE, b"DATA"), (b"x", b"."), [250, 421]),
    (ENVELOPE[:2], (b"EHLO client.example",), [250, 421]),
])
def test_a_stop_waits_for_the_message_under_way(
        before: tuple[bytes, ...], after: tuple[bytes, ...], codes: list[int]) -> None:
    server, porter = opened(*before)
    server.shut_down()
    said = server.data_to_send()
    porter.work()
    for line in after:
        said += say(porter, line)
    assert replies(said) == codes
    assert server.is_closed
    assert porter.ended == "shut down"


def test_a_stop_before_the_greeting() -> None:
    server = Server(settings())
    server.shut_down()
    server.greet()
    assert server.data_to_send().startswith(b"421 4.3.2 ")


def test_profiles_differ_in_what_their_table_says() -> None:
    assert set(profile.PROFILES) == {"smtp", "submission", "submissions", "lmtp", "bs"}
    assert [p.name for p in profile.PROFILES.values() if p.needs_login] == ["submission", "submissions"]
    assert [p.name for p in profile.PROFILES.values() if p.is_lmtp] == ["lmtp"]
