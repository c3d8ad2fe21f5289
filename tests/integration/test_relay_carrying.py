"""What a relay makes of its shipments at hosts that work: connections, transactions, forms of a message, LMTP."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest

from pysendmail.auth import keys
from pysendmail.auth.signing import BadKey, Signer
from pysendmail.daemon import destination, relay
from pysendmail.deliver import remote, shipment
from pysendmail.deliver.packet import MAX_PACKET
from pysendmail.deliver.shipment import DOWN, FINE, ROUGH, Answer, Shipment
from pysendmail.mail.envelope import Recipient
from tests.tools import processes
from tests.tools.fakedns import FakeDns
from tests.tools.relaying import PATIENCE, TEXT, Relaying, config, endpoint, statuses, world
from tests.tools.smtphost import CLOSE, OFFERS, STALL
from tests.tools.smtpsink import Sink

Scenario = Callable[[Relaying], Awaitable[Any]]


def run(scenario: Scenario, *, patience: float = 5.0, **relay_settings: Any) -> Any:
    async def whole() -> Any:
        async with Relaying(config(**relay_settings), world(patience=patience)) as relaying:
            return await scenario(relaying)
    return asyncio.run(whole())


def send(sink: Sink, *recipients: str | Recipient, patience: float = 5.0, settings: dict[str, Any] | None = None,
         lmtp: str = "", **more: Any) -> Answer:
    """One message to a sink, named as the settings name hosts."""
    def scenario(relaying: Relaying) -> Awaitable[Answer]:
        return relaying.send(*recipients, hosts=[lmtp or endpoint(sink)], **more)
    answer = run(scenario, patience=patience, **(settings or {}))
    assert isinstance(answer, Answer)
    return answer


def send_many(sink: Sink, count: int, *, width: int = 1, **settings: Any) -> list[Answer]:
    async def scenario(relaying: Relaying) -> list[Answer]:
        return await asyncio.gather(*(relaying.start(hosts=[endpoint(sink)], width=width) for _ in range(count)))
    answers = run(scenario, **settings)
    assert isinstance(answers, list)
    return answers


# ---- connections


def test_a_stream_of_messages_shares_a_connection() -> None:
    with Sink() as sink:
        answers = send_many(sink, 30)
    assert [statuses(answer) for answer in answers] == [["2.0.0"]] * 30
    assert len(sink.sessions) == 1
    assert len(sink.envelopes) == 30
    assert len(sink.commands("RSET")) == 0


def test_a_connection_that_had_a_stream_is_kept_for_a_moment_and_a_single_one_is_not() -> None:
    async def scenario(relaying: Relaying) -> None:
        given = [endpoint(sink)]
        for expected in (1, 2):
            await relaying.send(hosts=given)
            assert len(sink.sessions) == expected
        await asyncio.gather(*(relaying.start(hosts=given) for _ in range(destination.BUSY_AFTER)))
        await relaying.send(hosts=given)
        assert len(sink.sessions) == 3
    with Sink() as sink:
        run(scenario)


def test_a_connection_ends_after_so_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "MAX_MESSAGES", 7)
    with Sink() as sink:
        send_many(sink, 20)
    assert [len(host.envelopes) for host in sink.sessions] == [7, 7, 6]
    assert len(sink.commands("QUIT")) == 3


def test_the_width_is_how_many_connections_there_are_at_most() -> None:
    with Sink(delays={"end": 0.02}) as sink:
        send_many(sink, 24, width=3)
    assert sink.peak == 3


def test_a_host_that_wants_no_further_connection_gets_its_mail_through_those_it_has() -> None:
    full = {"greeting": b"421 4.7.0 too many connections from you\r\n" + CLOSE}
    with Sink(replies=[{}, full], delays={"end": 0.01}) as sink:
        answers = send_many(sink, 20, width=4)
    assert [(statuses(answer), answer.state) for answer in answers] == [(["2.0.0"], FINE)] * 20
    assert len(sink.sessions[0].envelopes) == 20
    assert len(sink.sessions) <= 4


def test_a_kept_connection_that_is_gone_costs_nothing() -> None:
    """The host has had enough of this connection, and says so only when the next message comes."""
    with Sink(replies=[{"mail 4": CLOSE}, {"mail 6": b"421 4.3.2 enough\r\n" + CLOSE}, {}]) as sink:
        answers = send_many(sink, 12)
    assert [statuses(answer) for answer in answers] == [["2.0.0"]] * 12
    assert [len(host.envelopes) for host in sink.sessions] == [3, 5, 4]


def test_after_a_refused_message_the_connection_is_reset_and_used_on() -> None:
    with Sink(replies={"rcpt 2": b"550 5.1.1 no\r\n"}) as sink:
        answers = send_many(sink, 6)
    assert sorted(status for answer in answers for status in statuses(answer)) == ["2.0.0"] * 5 + ["5.1.1"]
    assert len(sink.sessions) == 1


def test_one_host_that_stalls_does_not_hold_up_another() -> None:
    async def scenario(relaying: Relaying) -> None:
        slow = relaying.start(hosts=[endpoint(stalled)])
        assert statuses(await relaying.send(hosts=[endpoint(sink)])) == ["2.0.0"]
        assert not slow.done()
    with Sink(replies={"greeting": STALL}) as stalled, Sink() as sink:
        run(scenario)


def test_what_waits_too_long_for_a_connection_goes_back_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "HAND_BACK", 0.0)
    monkeypatch.setattr(relay, "TICK", 0.02)

    async def scenario(relaying: Relaying) -> None:
        first = relaying.start(hosts=[endpoint(sink)])
        second = await relaying.start(hosts=[endpoint(sink)])
        assert (statuses(second), second.is_tried) == (["4.4.5"], False)
        answer = await first
        assert (statuses(answer), answer.is_tried) == (["4.4.2"], True)
    with Sink(replies={"end": STALL}) as sink:
        run(scenario, patience=PATIENCE)


def test_a_destination_of_which_nothing_is_left_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "TICK", 0.01)

    async def scenario(relaying: Relaying) -> None:
        await relaying.send(hosts=[endpoint(sink)])
        while relaying.relay._destinations:
            await asyncio.sleep(0.01)
    with Sink() as sink:
        run(scenario)


def test_a_whole_message_has_a_limit_however_lively_the_host_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step keeps within its own limit, and there is no end of steps."""
    monkeypatch.setattr(remote, "LIMIT", 0.3)
    monkeypatch.setattr(remote.Terms.__init__, "__defaults__", (None, 0.3))
    with Sink(offers=(), delays={"rcpt": 0.05}) as sink:
        answer = send(sink, *(f"u{n}@example.net" for n in range(100)))
    assert set(statuses(answer)) == {"4.4.2"}
    assert not sink.envelopes


# ---- hosts


MX3 = {("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
       ("mx1.example.net", "A"): ["127.0.0.2"], ("mx2.example.net", "A"): ["127.0.0.3"]}


def test_a_host_that_refused_at_once_is_asked_again_each_time() -> None:
    async def scenario(port: int) -> None:
        async with FakeDns(MX3) as dns, Relaying(config(), world(dns, port=port)) as relaying:
            assert (await relaying.send("b@example.net")).relay == "mx2.example.net [127.0.0.3]"
            with Sink(address="127.0.0.2", port=port):
                assert (await relaying.send("b@example.net")).relay == "mx1.example.net [127.0.0.2]"
    with Sink(address="127.0.0.3") as second:
        asyncio.run(scenario(second.address[1]))


def test_a_host_that_did_not_answer_comes_last_until_it_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysendmail.daemon.relay.SLOW", 0.0)

    async def scenario(port: int) -> None:
        async with FakeDns(MX3) as dns, Relaying(config(), world(dns, port=port)) as relaying:
            for _ in range(2):  # nobody listens on 127.0.0.2
                answer = await relaying.send("b@example.net")
                assert answer.relay == "mx2.example.net [127.0.0.3]"
            place = next(iter(relaying.relay._avoided))
            assert place.address == "127.0.0.2"
            with Sink(address="127.0.0.2", port=port):
                assert (await relaying.send("b@example.net")).relay == "mx2.example.net [127.0.0.3]"
                relaying.channel.send(shipment.forget_packet())
                assert (await relaying.send("b@example.net")).relay == "mx1.example.net [127.0.0.2]"
    with Sink(address="127.0.0.3") as second:
        asyncio.run(scenario(second.address[1]))


def test_a_recipient_deferred_by_the_first_host_is_taken_by_the_second_and_the_others_keep_their_answers() -> None:
    async def scenario(port: int) -> Answer:
        async with FakeDns(MX3) as dns, Relaying(config(), world(dns, port=port)) as relaying:
            return await relaying.send("a@example.net", "b@example.net", "c@example.net")
    replies = {"rcpt 1": b"250 2.1.5 ok\r\n", "rcpt 2": b"451 4.2.0 later\r\n", "rcpt 3": b"550 5.1.1 never\r\n"}
    with Sink(address="127.0.0.2", replies=replies) as first, \
            Sink(address="127.0.0.3", port=first.address[1]) as second:
        answer = asyncio.run(scenario(first.address[1]))
    assert statuses(answer) == ["2.0.0", "2.0.0", "5.1.1"]
    assert [one.rcpts for one in first.envelopes] == [["TO:<a@example.net>"]]
    assert [one.rcpts for one in second.envelopes] == [["TO:<b@example.net>"]]


def test_a_third_host_is_not_asked_when_two_have_put_the_mail_off() -> None:
    table = MX3 | {("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net.", "30 mx3.example.net."],
                   ("mx3.example.net", "A"): ["127.0.0.4"]}

    async def scenario(port: int) -> list[Answer]:
        async with FakeDns(table) as dns, Relaying(config(), world(dns, port=port)) as relaying:
            return await asyncio.gather(*(relaying.start("b@example.net") for _ in range(3)))
    later = {"rcpt": b"451 4.7.1 greylisted\r\n"}
    with Sink(address="127.0.0.2", replies=later) as first, \
            Sink(address="127.0.0.3", port=first.address[1], replies=later) as second, \
            Sink(address="127.0.0.4", port=first.address[1]) as third:
        answers = asyncio.run(scenario(first.address[1]))
    assert [(statuses(answer), answer.state) for answer in answers] == [(["4.7.1"], FINE)] * 3
    assert len(first.sessions) == 1  # which stays the one to go on with
    assert len(second.commands("RCPT")) == 3
    assert not third.sessions


def test_what_a_worse_host_says_for_good_is_not_the_last_word_while_a_better_one_is_just_down() -> None:
    async def scenario(port: int) -> Answer:
        async with FakeDns(MX3) as dns, Relaying(config(), world(dns, port=port)) as relaying:
            return await relaying.send("b@example.net")
    no = {"ehlo": b"550 5.7.1 not you\r\n", "helo": b"550 5.7.1 not you\r\n"}
    with Sink(address="127.0.0.3", replies=no) as second:
        answer = asyncio.run(scenario(second.address[1]))
    assert (statuses(answer), answer.state) == (["4.4.1"], DOWN)
    assert len(second.sessions) == 1


@pytest.mark.parametrize(("table", "status", "state"), [
    ({}, "5.1.2", FINE), ({("example.net", "MX"): ["0 ."]}, "5.1.10", FINE),
    ({("example.net", "MX"): "SERVFAIL"}, "4.4.3", DOWN),
    ({("example.net", "MX"): ["10 mx.example.net."], ("mx.example.net", "A"): ["127.0.0.1"]}, "5.4.6", FINE),
])
def test_what_dns_says_is_the_answer(table: dict[tuple[str, str], Any], status: str, state: str) -> None:
    async def scenario() -> Answer:
        async with FakeDns(table) as dns, Relaying(config(), world(dns, loopback_is_own=True)) as relaying:
            return await relaying.send("b@example.net")
    answer = asyncio.run(scenario())
    assert (statuses(answer), answer.state) == ([status], state)


def test_nobody_listening_is_down() -> None:
    with Sink() as sink:
        given = endpoint(sink)
    answer = run(lambda relaying: relaying.send(hosts=[given]))
    assert (statuses(answer), answer.state, answer.relay) == (["4.4.1"], DOWN, "")
    assert "Connection refused" in answer.outcomes[0].reason


@pytest.mark.parametrize("width", [1, 3])
def test_a_destination_that_is_down_is_found_out_by_few_and_answers_all(width: int) -> None:
    with Sink(replies={"greeting": b"421 4.3.2 not now\r\n" + CLOSE}) as sink:
        answers = send_many(sink, 12, width=width)
    assert {(*statuses(answer), answer.state) for answer in answers} == {("4.3.2", DOWN)}
    assert 1 <= sum(answer.is_tried for answer in answers) <= width
    assert len(sink.sessions) <= width + 2


# ---- transactions


def test_many_recipients_are_one_transaction() -> None:
    with Sink() as sink:
        answer = send(sink, *(f"u{n}@example.net" for n in range(100)))
    assert statuses(answer) == ["2.0.0"] * 100
    (envelope,) = sink.envelopes
    assert envelope.rcpts == [f"TO:<u{n}@example.net>" for n in range(100)]


def test_too_many_recipients_for_one_transaction_make_several() -> None:
    replies = {f"rcpt {n}": b"452 4.5.3 too many recipients\r\n" for n in (4, 5, 6, 7, 11)}
    with Sink(replies=replies) as sink:
        answer = send(sink, *(f"u{n}@example.net" for n in range(7)))
    assert statuses(answer) == ["2.0.0"] * 7
    assert sorted(rcpt for one in sink.envelopes for rcpt in one.rcpts) == [f"TO:<u{n}@example.net>" for n in range(7)]
    assert len(sink.sessions) == 1


def test_a_host_that_always_takes_one_recipient_less_is_left_with_what_it_takes() -> None:
    with Sink(replies={"rcpt": b"452 4.5.3 too many recipients\r\n"}) as sink:
        answer = send(sink, "a@example.net", "b@example.net")
    assert {status[0] for status in statuses(answer)} == {"4"}
    assert len(sink.commands("MAIL")) <= 3


@pytest.mark.parametrize(("offers", "is_passed"), [(OFFERS, True), ((), False)])
def test_what_reports_are_wanted_is_passed_on_or_said_not_to_be(offers: tuple[str, ...], is_passed: bool) -> None:
    whom = Recipient("b@example.net", frozenset(("success", "failure")), "rfc822;alias@example.org")
    with Sink(offers=offers) as sink:
        answer = send(sink, whom, ret="hdrs", envid="x+2By")
    assert answer.dsn_is_passed is is_passed
    (envelope,) = sink.envelopes
    assert ("RET=HDRS ENVID=x+2By" in envelope.mail) is is_passed
    assert ("NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;alias@example.org" in envelope.rcpts[0]) is is_passed


def test_a_message_over_the_hosts_limit_is_not_sent() -> None:
    with Sink(offers=("SIZE 1000", "8BITMIME")) as sink:
        answer = send(sink, text=b"Subject: x\n\n" + b"0123456789\n" * 200)
    assert (statuses(answer), answer.state) == (["5.3.4"], FINE)
    assert not sink.commands("MAIL")


def test_an_address_beyond_ascii_goes_where_it_can_go() -> None:
    with Sink() as able, Sink(offers=("8BITMIME",)) as unable:
        assert statuses(send(able, "j\u00f6rg@example.net")) == ["2.0.0"]
        assert statuses(send(unable, "j\u00f6rg@example.net", "b@example.net")) == ["5.6.7", "2.0.0"]
    assert able.envelopes[0].rcpts == ["TO:<j\u00f6rg@example.net>"]
    assert able.envelopes[0].mail.endswith(" SMTPUTF8")


# ---- the message


@pytest.mark.parametrize(("text", "wire"), [
    (b"", b".\r\n"),
    (b"\n", b"\r\n.\r\n"),
    (b"A: b\n\n.\n..\n.x\n", b"A: b\r\n\r\n..\r\n...\r\n..x\r\n.\r\n"),
    (b"A: b\n\nno end", b"A: b\r\n\r\nno end\r\n.\r\n"),
    ("A: b\n\ngr\u00fc\u00dfe\n".encode(), "A: b\r\n\r\ngr\u00fc\u00dfe\r\n.\r\n".encode()),
])
def test_a_message_arrives_as_it_is(text: bytes, wire: bytes) -> None:
    with Sink() as sink:
        assert statuses(send(sink, text=text)) == ["2.0.0"]
    assert [one.wire for one in sink.envelopes] == [wire]


@pytest.mark.parametrize("size", [50, 3000], ids=["small", "large"])
def test_eight_bits_for_a_host_with_seven_are_encoded(size: int) -> None:
    text = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n" + \
        "gr\u00fc\u00dfe und noch mehr davon\n" * size
    with Sink(offers=("PIPELINING",)) as sink:
        assert statuses(send(sink, text=text.encode())) == ["2.0.0"]
    wire = sink.envelopes[0].wire
    assert wire.isascii()
    assert wire.count(b"gr=C3=BC=C3=9Fe und noch mehr davon\r\n") == size
    assert b"quoted-printable" in wire
    assert "BODY=" not in sink.envelopes[0].mail


def test_a_line_too_long_for_smtp_is_encoded_for_everybody() -> None:
    with Sink() as sink:
        assert statuses(send(sink, text=b"Subject: x\n\n" + b"z" * 50_000 + b"\n")) == ["2.0.0"]
    wire = sink.envelopes[0].wire
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    assert wire.replace(b"=\r\n", b"").count(b"z") == 50_000


def test_a_message_that_cannot_be_encoded_is_returned_and_the_connection_used_on() -> None:
    """More parts than anybody reads."""
    parts = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n\xff\n" * 6000 + b"--b--\n"

    async def scenario(relaying: Relaying) -> list[Answer]:
        return [await relaying.send(hosts=[endpoint(sink)], text=text) for text in (parts, TEXT)]
    with Sink(offers=()) as sink:
        first, second = run(scenario)
    assert (statuses(first), statuses(second)) == (["5.6.3"], ["2.0.0"])


def test_a_queue_file_that_is_too_short_is_not_sent_in_part() -> None:
    async def scenario(relaying: Relaying) -> Answer:
        path = Path(os.devnull).parent / "shm" / f"pysm-short-{os.getpid()}"
        path.write_bytes(b"Subject: x\n\n" + b"line\n" * 40_000)
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        sent = Shipment(99, "0WkDdmTe001000", 0, 400_000, "a@example.org", (Recipient("b@example.net"),), "example.net",
                        (endpoint(sink),))
        answer = relaying.expect(99)
        socket.send_fds(relaying.channel, [shipment.shipments_packet([(sent, 1)])], [fd])
        os.close(fd)
        return await answer
    with Sink() as sink:
        answer = run(scenario)
    assert statuses(answer) == ["4.3.0"]
    assert "queue file ends" in answer.outcomes[0].reason
    assert not sink.envelopes


def test_senders_are_masqueraded_in_envelope_and_header() -> None:
    settings = {"masquerade": (("*", "example.org"), ("root", "admin@example.org"))}
    text = b"From: Cron <root@us.example>\nSender: bob@us.example\nTo: root@us.example\n\nroot@us.example\n"
    with Sink() as sink:
        send(sink, sender="root@us.example", text=text, settings=settings)
        send(sink, sender="x@else.example", settings=settings)
        send(sink, sender="", settings=settings)
    assert [one.mail.split(" ")[0] for one in sink.envelopes] == [
        "FROM:<admin@example.org>", "FROM:<x@else.example>", "FROM:<>"]
    assert sink.envelopes[0].content == text.replace(b"<root@us", b"<admin@us").replace(
        b"admin@us.example", b"admin@example.org").replace(b"bob@us.example", b"bob@example.org")
    size = next(word for word in sink.envelopes[0].mail.split(" ") if word.startswith("SIZE="))
    assert size == f"SIZE={len(sink.envelopes[0].wire) - 3}"


# ---- LMTP


def test_lmtp_on_a_socket_has_an_answer_for_each_recipient(tmp_path: Path) -> None:
    replies = {"rcpt 4": b"550 5.1.1 no\r\n", "end 2": b"452 4.2.2 mailbox full\r\n",
               "end 3": b"550 5.2.1 disabled\r\n"}
    with Sink(lmtp=True, path=str(tmp_path / "lmtp"), replies=replies) as sink:
        answer = send(sink, *(f"u{n}@us.example" for n in range(4)), lmtp=f"lmtp:unix:{tmp_path}/lmtp",
                      settings={"masquerade": (("*", "example.org"),)}, sender="root@us.example")
    assert statuses(answer) == ["2.0.0", "4.2.2", "5.2.1", "5.1.1"]
    assert answer.state == FINE
    assert sink.commands("LHLO") == ["LHLO us.example"]
    assert sink.commands("MAIL")[0].startswith("MAIL FROM:<root@us.example>")  # it does not leave this host


def test_lmtp_over_tcp() -> None:
    with Sink(lmtp=True) as sink:
        answer = send(sink, "a@us.example", "b@us.example", lmtp=f"lmtp:{endpoint(sink)}")
    assert statuses(answer) == ["2.0.0", "2.0.0"]


@pytest.mark.parametrize(("fault", "state"), [(CLOSE, ROUGH), (STALL, ROUGH)])
def test_lmtp_recipients_that_were_answered_for_keep_that(fault: bytes, state: str, tmp_path: Path) -> None:
    with Sink(lmtp=True, path=str(tmp_path / "lmtp"), replies={"end 2": fault, "end 3": b""}) as sink:
        answer = send(sink, "a@us.example", "b@us.example", "c@us.example", lmtp=f"lmtp:unix:{tmp_path}/lmtp",
                      patience=PATIENCE)
    assert statuses(answer) == ["2.0.0", "4.4.2", "4.4.2"]
    assert answer.state == state


def test_no_lmtp_socket_is_down(tmp_path: Path) -> None:
    answer = run(lambda relaying: relaying.send("a@us.example", hosts=[f"lmtp:unix:{tmp_path}/none"]))
    assert (statuses(answer), answer.state) == (["4.4.1"], DOWN)
    assert "No such file" in answer.outcomes[0].reason


# ---- faults of ours


def test_a_fault_of_ours_is_one_shipments_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = destination.remote.survey_of

    async def broken(content: Any) -> Any:
        monkeypatch.setattr(destination.remote, "survey_of", real)
        raise RuntimeError("a bug")
    monkeypatch.setattr(destination.remote, "survey_of", broken)

    async def scenario(relaying: Relaying) -> list[Answer]:
        return [await relaying.send(hosts=[endpoint(sink)]) for _ in range(2)]
    with Sink() as sink:
        first, second = run(scenario)
    assert (statuses(first), first.state) == (["4.3.0"], FINE)
    assert "RuntimeError: a bug" in first.notes[0]
    assert statuses(second) == ["2.0.0"]


def test_a_message_that_recoding_chokes_on_waits_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def choking(pieces: Any, _plan: Any) -> Any:
        yield next(iter(pieces))
        raise IndexError("a bug")
    monkeypatch.setattr(remote.recode, "recoded", choking)

    async def scenario(relaying: Relaying) -> list[Answer]:
        texts = (b"Subject: x\n\n" + b"\xff\n" * 100_000, TEXT)
        return [await relaying.send(hosts=[endpoint(sink)], text=text) for text in texts]
    with Sink(offers=()) as sink:
        first, second = run(scenario)
    assert statuses(first) == ["4.3.0"]
    assert "IndexError: a bug" in first.outcomes[0].reason
    assert statuses(second) == ["2.0.0"]
    assert len(sink.envelopes) == 1


def test_a_fault_in_a_callback_ends_its_connection_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> Any:
        raise RuntimeError("a bug")

    async def scenario(relaying: Relaying) -> list[Answer]:
        with monkeypatch.context() as patch:
            patch.setattr(remote.Client, "next_event", broken)
            first = relaying.start(hosts=[endpoint(sink)])
            await asyncio.sleep(0.1)
        return [await first, await relaying.send(hosts=[endpoint(sink)])]
    with Sink() as sink:
        first, second = run(scenario)
    assert statuses(first) == ["4.3.0"]
    assert statuses(second) == ["2.0.0"]
    assert "a bug" in " ".join((*first.notes, *second.notes))


@pytest.mark.parametrize("packet", [b"nonsense", b'{"s":[]}', b'{"s":[{"n":1}]}'])
def test_a_runner_that_sends_nonsense_has_no_relay_any_more(packet: bytes) -> None:
    async def scenario(relaying: Relaying) -> None:
        relaying.channel.send(packet)
        await asyncio.wait_for(relaying.relay.ended, 5)
    run(scenario)


def test_a_packet_without_descriptors_ends_it_too() -> None:
    async def scenario(relaying: Relaying) -> None:
        sent = Shipment(1, "0WkDdmTe001000", 0, 1, "", (Recipient("b@example.net"),), "example.net")
        relaying.channel.send(shipment.shipments_packet([(sent, 1)]))
        await asyncio.wait_for(relaying.relay.ended, 5)
    run(scenario)


def test_without_a_free_descriptor_shipments_go_back_untried() -> None:
    async def scenario(relaying: Relaying) -> None:
        sent = Shipment(7, "0WkDdmTe001000", 0, 1, "", (Recipient("b@example.net"),), "example.net")
        answer = relaying.expect(7)
        relaying.relay._take(shipment.shipments_packet([(sent, 1)]), [], socket.MSG_CTRUNC)
        assert (statuses(await answer), answer.result().is_tried) == (["4.3.0"], False)
        assert not relaying.relay.ended.done()
    run(scenario)


def test_answers_that_the_runner_does_not_take_yet_come_later() -> None:
    async def scenario(relaying: Relaying) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(relaying.channel.fileno())
        answers = []
        for n in range(2000):
            answers.append(relaying.start("b@[192.0.2.999]"))
            if n % 8 == 0:
                await asyncio.sleep(0)
        while not relaying.relay._channel._unsent:
            await asyncio.sleep(0)
        loop.add_reader(relaying.channel.fileno(), relaying._readable)
        for answer in answers:
            assert statuses(await answer) == ["5.1.2"]
    run(scenario)


def test_descriptors_are_closed_when_their_shipments_are_answered() -> None:
    async def scenario(relaying: Relaying) -> None:
        before = len(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(relaying.start(hosts=[endpoint(sink)]) for _ in range(10)))
        await relaying.send("b@nowhere.example", hosts=["127.0.0.1:1"])
        await asyncio.sleep(destination.IDLE + 0.1)  # the connection itself
        assert len(os.listdir("/proc/self/fd")) == before
    with Sink() as sink:
        run(scenario)


def test_the_process_serves_until_its_channel_is_closed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            relay.serve(theirs, config(), world())
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    with ours, Sink() as sink:
        ours.settimeout(20)
        file = os.memfd_create("message")
        os.write(file, TEXT)
        for n in range(3):
            sent = Shipment(n, "0WkDdmTe001000", 0, len(TEXT), "a@example.org", (Recipient("b@example.net"),),
                            "example.net", (endpoint(sink),))
            socket.send_fds(ours, [shipment.shipments_packet([(sent, 1)])], [file])
        os.close(file)
        answers: list[Answer] = []
        while len(answers) < 3:
            answers += shipment.read_answers(ours.recv(MAX_PACKET))
        assert [statuses(answer) for answer in answers] == [["2.0.0"]] * 3
        assert not processes.has_ended(pid)
        ours.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- our signature


def signed(sink: Sink, text: bytes, *, is_own: bool = True, **settings: Any) -> tuple[Answer, bytes]:
    """A message of example.org as it comes to the sink."""
    key = keys.generate("rsa")
    signer = Signer(["example.org"], "sel", key, lambda: 1_700_000_000.0)

    async def whole() -> Answer:
        async with Relaying(config(**settings), world(patience=5.0), signer.sign) as relaying:
            return await relaying.send(hosts=[endpoint(sink)], text=text, is_own=is_own)

    answer = asyncio.run(whole())
    (found,) = [envelope.content for envelope in sink.envelopes]
    if b"DKIM-Signature" in found:
        record = keys.record(key).encode()
        assert dkimpy.verify(found, dnsfunc=lambda name, timeout=0: record)
    return answer, found


@pytest.mark.parametrize(("body", "offers"), [
    (b"text\n..\n", OFFERS), (b"caf\xc3\xa9\n", OFFERS), (b"caf\xc3\xa9\n", ("SIZE",)),
    (b"long " * 400 + b"\n", OFFERS),
    (b"many lines of it, too\n" * 4000, OFFERS), (b"caf\xc3\xa9, many lines of it\n" * 30_000, ("SIZE",)),
    (b"nul \0 and cr \r\n", OFFERS), (b"without an end", OFFERS), (b"", OFFERS),
], ids=range(9))
def test_a_signature_holds_in_whatever_form_a_peer_gets_a_message(body: bytes, offers: tuple[str, ...]) -> None:
    with Sink(offers=offers) as sink:
        answer, found = signed(sink, b"From: a@example.org\nSubject: s\n\n" + body)
    assert statuses(answer) == ["2.0.0"]
    assert found.startswith(b"DKIM-Signature: ")


def test_the_sender_is_masqueraded_before_it_is_signed() -> None:
    with Sink() as sink:
        _, found = signed(sink, b"From: a@inner.example\n\ntext\n", masquerade=(("a@inner.example", "a@example.org"),))
    assert b"d=example.org" in found
    assert b"\nFrom: a@example.org\n" in found


@pytest.mark.parametrize(("sender", "is_own"), [(b"a@example.org", False), (b"a@example.com", True)])
def test_mail_that_is_not_ours_is_not_signed(sender: bytes, is_own: bool) -> None:
    with Sink() as sink:
        _, found = signed(sink, b"From: %s\n\ntext\n" % sender, is_own=is_own)
    assert found.startswith(b"From: ")


def test_the_announced_size_counts_the_signature() -> None:
    with Sink() as sink:
        _, found = signed(sink, b"From: a@example.org\n\ntext\n")
        (command,) = sink.commands("MAIL")
    size = len(found) + found.count(b"\n")
    assert f"SIZE={size}" in command


def test_mail_waits_while_it_cannot_be_signed() -> None:
    def sign(_pieces: object) -> bytes:
        raise BadKey("no key for DKIM")

    async def whole() -> Answer:
        async with Relaying(config(), world(patience=5.0), sign) as relaying:
            return await relaying.send(hosts=[endpoint(sink)], is_own=True)

    with Sink() as sink:
        answer = asyncio.run(whole())
    assert statuses(answer) == ["4.3.0"]
    assert "no key for DKIM" in answer.outcomes[0].reason
    assert sink.envelopes == []
