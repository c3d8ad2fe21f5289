"""Who looks at mail, as a listener sees it: refusals at their time, a judgement at the end, the mark "scanned"."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pysendmail.auth import Client, Judgement
from pysendmail.auth.checks import Checks
from pysendmail.auth.examination import MailExaminer, Session
from pysendmail.mail.changes import Draft, Text
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.net.milter import Limits
from pysendmail.net.milter_chain import FAILED, Terms
from pysendmail.net.resolver import Resolver
from pysendmail.smtp.grammar import MailParameters
from pysendmail.smtp.milter_replies import DEFERRED, REJECTED
from pysendmail.smtp.reply import Reply
from tests.tools.fakedns import FakeDns
from tests.tools.fakemilter import FakeMilter, by_letter, packet, run_jumping

TRACE, HEAD, BODY = b"Received: by mx.example id X\n", b"From: a@example.org\nSubject: s\n", b"text\n"
STRANGER = Client("192.0.2.7", 4711, "client.example.org")
FRIEND = Client("192.0.2.8", 4712, "", True)
ORIGIN = Origin("smtp", client="[192.0.2.7]", helo="client.example.org", protocol="ESMTPS", tls="TLSv1.3 AES")
ENVELOPE = Envelope("ABC123", "a@example.org", (Recipient("b@host.example"), Recipient("c@host.example")), 1.0, ORIGIN)
TABLE = {("example.org", "TXT"): ['"v=spf1 -all"'], ("_dmarc.example.org", "TXT"): ['"v=DMARC1; p=reject"']}
NO_WORDS = MailParameters()

Play = Callable[[Session], Awaitable[Any]]


def draft(head: bytes = HEAD, envelope: Envelope = ENVELOPE) -> Draft:
    return Draft(envelope, Text(TRACE, head, lambda: (BODY,)))


def text_of(found: Judgement) -> bytes:
    return b"".join(found.draft.text.chunks())


def run(tmp_path: Path, answers: list[Any], play: Play, *, client: Client = STRANGER, has_checks: bool = False,
        dmarc_reject: bool = False, on_failure: str = "tempfail") -> tuple[Any, list[FakeMilter], list[str]]:
    """(what play returned, the filters, the log)."""
    notes: list[str] = []

    async def session() -> tuple[Any, list[FakeMilter]]:
        async with AsyncExitStack() as stack:
            filters = [await stack.enter_async_context(FakeMilter(str(tmp_path / str(n)), one))
                       for n, one in enumerate(answers)]
            checks = None
            if has_checks:
                dns = await stack.enter_async_context(FakeDns(TABLE))
                (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
                loop = asyncio.get_running_loop()
                checks = Checks(Resolver(loop.time, conf=str(tmp_path / "resolv.conf"), port=dns.port),
                                "host.example", dmarc_reject=dmarc_reject, chance=lambda: 0.0)
                stack.callback(checks.close)
            terms = None
            if filters:
                terms = Terms(tuple(one.endpoint for one in filters), on_failure, Limits(30.0, 100_000, str(tmp_path)))
            examiner = MailExaminer("host.example", lambda queue_id, text: notes.append(f"{queue_id}: {text}"),
                                    lambda whom: f"{whom}@host.example", terms, checks)
            one_session = examiner.begin(client)
            result = await play(one_session)
            one_session.close()
            for one in filters:
                await one.has_heard_the_end()
            return result, filters

    return *run_jumping(session()), notes


async def as_listener(session: Session) -> Judgement | Reply:
    """Tell everything at its time; the first refusal, or the judgement."""
    refusals = [
        await session.connected(STRANGER), await session.hello("client.example.org", ORIGIN),
        await session.sender("a@example.org", ORIGIN, "ABC123", NO_WORDS),
        await session.recipient(Recipient("b@host.example")), await session.recipient(Recipient("c@host.example"))]
    refused = next((one for one in refusals if one is not None), None)
    return refused or await session.judge(draft())


async def only_judge(session: Session) -> Judgement:
    return await session.judge(draft())


@pytest.mark.parametrize("play", [as_listener, only_judge])
def test_a_message_that_passes_is_marked_and_otherwise_the_same(tmp_path: Path, play: Play) -> None:
    found, (one,), notes = run(tmp_path, [by_letter({})], play)
    assert found.refusal is None
    assert not found.is_dropped
    assert found.draft.envelope.scanned
    assert found.draft.envelope.id == "ABC123"
    assert text_of(found) == TRACE + HEAD + b"\n" + BODY
    assert one.letters() == "OCHMRRTLLNBEQ"
    assert one.data(b"C") == [b"client.example.org\x004\x12\x67192.0.2.7\0"]
    assert notes == []


def test_facts_about_session_and_message_are_macros(tmp_path: Path) -> None:
    _, (one,), _ = run(tmp_path, [by_letter({})], as_listener)
    macros = one.data(b"D")
    assert macros[0].startswith(b"Cj\0host.example\0_\0client.example.org [192.0.2.7]\0v\0pysendmail\0")
    assert b"{client_addr}\x00192.0.2.7\0" in macros[0]
    assert b"Mi\0ABC123\0{mail_addr}\0a@example.org\0{mail_host}\0example.org\0{mail_mailer}\0esmtp\0" in macros
    assert b"Ri\0ABC123\0{rcpt_addr}\0c@host.example\0{rcpt_host}\0host.example\0{rcpt_mailer}\0esmtp\0" in macros
    assert b"H{tls_version}\0TLSv1.3\0{cipher}\0AES\0" in macros
    assert [one for one in macros if one[:1] in b"TNE"] == [b"Ti\0ABC123\0", b"Ni\0ABC123\0", b"Ei\0ABC123\0"]


@pytest.mark.parametrize(("mechanism", "shown"), [("LOGIN", b"LOGIN"), ("PLAIN", b"PLAIN"), ("", b"PLAIN")])
def test_filters_hear_who_is_logged_in_and_how(tmp_path: Path, mechanism: str, shown: bytes) -> None:
    """Of mail from before the mechanism was kept, at least that there was a login."""
    origin = Origin("smtp", auth="alice", mechanism=mechanism)
    envelope = Envelope("ABC123", "", (Recipient("b@host.example"),), 1.0, origin)
    _, (one,), _ = run(tmp_path, [by_letter({})], lambda session: session.judge(draft(envelope=envelope)))
    assert (b"Mi\0ABC123\0{auth_type}\0" + shown + b"\0{auth_authen}\0alice\0{mail_mailer}\0esmtp\0"
            in one.data(b"D"))
    assert one.data(b"M") == [b"<>\0"]


def test_parameters_of_a_client_reach_a_filter(tmp_path: Path) -> None:
    async def play(session: Session) -> None:
        await session.connected(STRANGER)
        login = replace(ORIGIN, auth="alice", mechanism="LOGIN")
        for origin in (login, ORIGIN):
            await session.sender("a@example.org", origin, "ABC123", MailParameters(
                1000, "8bitmime", smtputf8=True, ret="hdrs", envid="a+2Bb", auth="joe+40example.org"))
        await session.recipient(Recipient("b@host.example", frozenset(("failure", "delay")), "rfc822;B@host.example"))

    _, (one,), _ = run(tmp_path, [by_letter({})], play)
    assert one.data(b"M") == [b"<a@example.org>\0SIZE=1000\0BODY=8BITMIME\0RET=HDRS\0ENVID=a+2Bb\0"
                              b"AUTH=joe+40example.org\0SMTPUTF8\0"] * 2
    assert one.data(b"R") == [b"<b@host.example>\0NOTIFY=FAILURE,DELAY\0ORCPT=rfc822;B@host.example\0"]
    authors = [b"{auth_author}\0joe@example.org\0" in macros for macros in one.data(b"D") if macros[:1] == b"M"]
    assert authors == [True, False], "whoever has not logged in vouches for nobody"


def test_what_an_envelope_asks_for_reaches_a_filter_later(tmp_path: Path) -> None:
    """Mail by command, which may bear an id that no client could give."""
    recipients = (Recipient("b@host.example", frozenset(("never",)), "rfc822;b@host.example"),
                  Recipient("c@host.example", orcpt="rfc822;not one"))
    envelope = replace(ENVELOPE, recipients=recipients, body="8bitmime", ret="full", envid="not one")
    found, (one,), _ = run(tmp_path, [by_letter({})], lambda session: session.judge(draft(envelope=envelope)))
    assert found.refusal is None
    assert one.data(b"M") == [b"<a@example.org>\0BODY=8BITMIME\0RET=FULL\0"]
    assert one.data(b"R") == [b"<b@host.example>\0NOTIFY=NEVER\0ORCPT=rfc822;b@host.example\0",
                              b"<c@host.example>\0"]


@pytest.mark.parametrize(("letter", "said", "expected"), [
    (b"C", packet(b"r"), REJECTED), (b"M", packet(b"t"), DEFERRED), (b"R", packet(b"r"), REJECTED)])
def test_refusals_at_their_time_or_at_the_end(tmp_path: Path, letter: bytes, said: bytes, expected: Reply) -> None:
    found, _, _ = run(tmp_path, [by_letter({letter: said})], as_listener)
    assert found == expected
    found, _, notes = run(tmp_path, [by_letter({letter: said})], only_judge)
    assert found.refusal == expected
    assert not found.draft.envelope.scanned
    assert notes[0].startswith(f"ABC123: milter=unix:{tmp_path}/0, action=")


@pytest.mark.parametrize("said", [packet(b"r"), packet(b"t"), packet(b"y", b"550 5.7.1 virus\0"), packet(b"z")])
def test_a_refused_message_is_not_marked(tmp_path: Path, said: bytes) -> None:
    found, _, _ = run(tmp_path, [by_letter({b"E": said})], as_listener)
    assert found.refusal is not None
    assert not found.draft.envelope.scanned


@pytest.mark.parametrize("letter", [b"M", b"R", b"T", b"B", b"E"])
def test_a_discarded_message_is_dropped(tmp_path: Path, letter: bytes) -> None:
    found, _, notes = run(tmp_path, [by_letter({letter: packet(b"d")}), by_letter({})], as_listener)
    assert found.is_dropped
    assert found.refusal is None
    assert len(notes) == 1
    assert notes[0].endswith(", discard")


def test_a_message_without_recipients_is_dropped(tmp_path: Path) -> None:
    said = packet(b"-", b"<b@host.example>\0") + packet(b"-", b"<c@host.example>\0") + packet(b"c")
    found, _, notes = run(tmp_path, [by_letter({b"E": said})], as_listener)
    assert found.is_dropped
    assert notes == ["ABC123: no recipient is left, the message is dropped"]


def test_a_quarantined_message_is_held(tmp_path: Path) -> None:
    found, _, _ = run(tmp_path, [by_letter({b"E": packet(b"q", b"odd\0") + packet(b"c")})], as_listener)
    assert (found.draft.envelope.hold, found.draft.envelope.scanned) == ("odd", True)


def test_names_without_a_domain_are_ours(tmp_path: Path) -> None:
    said = packet(b"+", b"<postmaster>\0") + packet(b"e", b"root\0") + packet(b"c")
    found, _, _ = run(tmp_path, [by_letter({b"E": said})], as_listener)
    assert found.draft.envelope.sender == "root@host.example"
    assert found.draft.envelope.recipients[-1].address == "postmaster@host.example"


def test_a_second_message_begins_anew(tmp_path: Path) -> None:
    async def play(session: Session) -> Any:
        first = await as_listener(session)
        await session.sender("x@example.org", ORIGIN, "ABC123", NO_WORDS)
        session.drop()
        await session.sender("a@example.org", ORIGIN, "ABC123", NO_WORDS)
        await session.recipient(Recipient("b@host.example"))
        return first, await session.judge(draft())

    (first, second), (one,), _ = run(tmp_path, [by_letter({})], play)
    assert first.draft.envelope.scanned
    assert second.draft.envelope.scanned
    assert one.letters() == "OCHMRRTLLNBE" + "MA" + "MRRTLLNBE" + "Q"


def test_a_body_that_cannot_be_read_is_no_accepted_message(tmp_path: Path) -> None:
    def broken() -> Any:
        yield b"some of it\n" * 10_000
        raise OSError(5, "Input/output error")

    found, (one,), notes = run(tmp_path, [by_letter({})],
                               lambda session: session.judge(Draft(ENVELOPE, Text(TRACE, HEAD, broken))))
    assert found.refusal is not None
    assert found.refusal.code == 451
    assert notes == ["ABC123: cannot be examined: Input/output error"]
    assert one.letters().endswith("BAQ")


def test_findings_are_on_top_and_filters_see_them(tmp_path: Path) -> None:
    found, (one,), notes = run(tmp_path, [by_letter({})], as_listener, has_checks=True)
    assert text_of(found).startswith(b"Authentication-Results: host.example;\n\tspf=fail ")
    assert found.draft.text.trace + found.draft.text.head == TRACE + HEAD
    assert one.data(b"L")[0].startswith(b"Authentication-Results\0host.example;\n\tspf=fail ")
    assert notes == ["ABC123: authentication: spf=fail, dmarc=fail (example.org)"]


def test_findings_alone_do_not_make_a_message_scanned(tmp_path: Path) -> None:
    """A filter that is set up later has to see it."""
    found, _, _ = run(tmp_path, [], only_judge, has_checks=True)
    assert text_of(found).startswith(b"Authentication-Results: ")
    assert not found.draft.envelope.scanned


def test_a_policy_of_rejection_is_obeyed_where_that_is_set(tmp_path: Path) -> None:
    found, (one,), _ = run(tmp_path, [by_letter({})], as_listener, has_checks=True, dmarc_reject=True)
    assert found.refusal is not None
    assert found.refusal.code == 550
    assert "T" not in one.letters(), "filters need not look at it"
    found, _, _ = run(tmp_path, [], only_judge, has_checks=True, dmarc_reject=True)
    assert found.refusal is not None


@pytest.mark.parametrize(("client", "origin"), [
    (FRIEND, ORIGIN), (Client(), ORIGIN), (STRANGER, Origin("smtp", client="[192.0.2.7]", auth="alice"))])
def test_friends_are_not_authenticated(tmp_path: Path, client: Client, origin: Origin) -> None:
    envelope = Envelope("ABC123", "a@example.org", (Recipient("b@host.example"),), 1.0, origin)
    found, _, _ = run(tmp_path, [], lambda session: session.judge(draft(envelope=envelope)), client=client,
                      has_checks=True, dmarc_reject=True)
    assert found.refusal is None
    assert text_of(found) == TRACE + HEAD + b"\n" + BODY


@pytest.mark.parametrize("on_failure", ["tempfail", "reject", "accept"])
def test_a_filter_out_of_order(tmp_path: Path, on_failure: str) -> None:
    found, _, _ = run(tmp_path, [by_letter({b"T": packet(b"z")})], as_listener, on_failure=on_failure)
    if on_failure == "accept":
        assert found.draft.envelope.scanned
    else:
        assert found.refusal == FAILED[on_failure].reply
