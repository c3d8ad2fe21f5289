"""What a failure means: status, whether another host may do better, what it concerns."""

import pytest

from pysendmail.smtp.reply import Reply
from pysendmail.smtp.trouble import Kind, Peer, Scope, Stage, Trouble, judge, refusal, status_of, taken

PEER = Peer("mx.example", "192.0.2.1")


@pytest.mark.parametrize(("code", "stage", "status"), [
    (421, Stage.MAIL, "4.3.2"), (450, Stage.RCPT, "4.2.0"), (450, Stage.MAIL, "4.1.0"), (451, Stage.END, "4.3.0"),
    (452, Stage.MAIL, "4.3.1"), (452, Stage.RCPT, "4.5.3"), (550, Stage.RCPT, "5.1.1"), (550, Stage.MAIL, "5.0.0"),
    (550, Stage.DATA, "5.0.0"), (550, Stage.END, "5.6.0"), (551, Stage.RCPT, "5.1.6"), (552, Stage.RCPT, "5.2.2"),
    (552, Stage.END, "5.3.4"), (553, Stage.RCPT, "5.1.3"), (553, Stage.MAIL, "5.1.7"), (554, Stage.END, "5.6.0"),
    (556, Stage.RCPT, "5.1.10"), (530, Stage.MAIL, "5.7.0"), (535, Stage.AUTH, "5.7.8"), (500, Stage.HELLO, "5.5.2"),
    (499, Stage.RCPT, "4.0.0"), (599, Stage.RCPT, "5.0.0"),
])
def test_a_code_without_a_status(code: int, stage: Stage, status: str) -> None:
    assert status_of(Reply(code), stage) == status
    assert status_of(Reply(code, f"{code // 100}.9.9"), stage) == f"{code // 100}.9.9"


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.REPLY, Kind.MESSAGE)])
def test_what_is_no_reply_is_never_permanent(stage: Stage, kind: Kind) -> None:
    result = judge(Trouble(stage, kind, "words"), PEER)
    assert result.outcome.is_deferred
    assert "words" in result.outcome.reason
    assert result.outcome.diagnostic == ""
    if stage is Stage.END and kind in (Kind.LOST, Kind.TIMEOUT, Kind.PROTOCOL):
        assert not result.may_try_elsewhere


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("code", [421, 450, 451, 452, 454, 499])
def test_4xx_is_never_permanent(stage: Stage, code: int) -> None:
    result = judge(refusal(stage, Reply(code, "", ("later",))), PEER)
    assert result.outcome.is_deferred
    assert result.outcome.diagnostic == f"smtp; {code} later"


@pytest.mark.parametrize("stage", Stage)
def test_5xx_is_permanent_where_it_is_about_the_mail(stage: Stage) -> None:
    result = judge(refusal(stage, Reply(550, "5.7.1", ("never",))), PEER)
    is_about_mail = stage in (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.END, Stage.HELLO)
    assert result.outcome.is_failed == is_about_mail
    assert result.outcome.status == ("5.7.1" if is_about_mail else "4.7.1")


def test_a_message_that_the_host_cannot_have() -> None:
    result = judge(Trouble(Stage.MAIL, Kind.MESSAGE, "too big", status="5.3.4"), PEER)
    assert (result.outcome.status, result.outcome.reason) == ("5.3.4", "too big (mx.example[192.0.2.1])")
    assert (result.may_try_elsewhere, result.scope) == (False, Scope.MESSAGE)


def test_no_connection() -> None:
    result = judge(Trouble(Stage.CONNECT, Kind.LOST, "connection refused"), PEER)
    assert result.outcome.status == "4.4.1"
    assert result.outcome.reason == "cannot connect to mx.example[192.0.2.1]: connection refused"
    assert (result.may_try_elsewhere, result.scope, result.outcome.remote_mta) == (True, Scope.HOST, "mx.example")


@pytest.mark.parametrize(("reply", "status"), [
    (Reply(250, "2.6.0", ("queued as 1",)), "2.6.0"), (Reply(250, "", ("ok",)), "2.0.0"), (Reply(250), "2.0.0")])
def test_taken(reply: Reply, status: str) -> None:
    outcome = taken(reply, PEER).outcome
    assert (outcome.status, outcome.reason) == (status, reply.words)


@pytest.mark.parametrize("make", [
    lambda: Trouble(Stage.MAIL, Kind.REPLY), lambda: Trouble(Stage.MAIL, Kind.LOST, reply=Reply(450)),
    lambda: Trouble(Stage.MAIL, Kind.MESSAGE, "x"), lambda: Trouble(Stage.MAIL, Kind.LOST, status="4.0.0")])
def test_a_trouble_says_what_happened(make: object) -> None:
    with pytest.raises(ValueError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(("peer", "text"), [
    (Peer("mx.example", "192.0.2.1"), "mx.example[192.0.2.1]"), (Peer("192.0.2.1", "192.0.2.1"), "192.0.2.1"),
    (Peer("/run/lmtp"), "/run/lmtp")])
def test_names_of_hosts(peer: Peer, text: str) -> None:
    assert str(peer) == text
