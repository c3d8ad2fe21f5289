"""What a submitter may ask for: a closed list, and every value within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import submission
from pysendmail.mail.envelope import NOTIFY, Origin, Recipient
from pysendmail.mail.submission import read
from pysendmail.spool import record

TO = (b"Recipient", b"- - alice")
BOB = Origin("command", 1000, "bob")


def qualify(address: str) -> str:
    return address if "@" in address else address + "@host.example"


def test_the_least_that_can_be_asked_for() -> None:
    asked = read([TO])
    assert asked.recipients == (Recipient("alice"),)
    assert (asked.sender, asked.full_name, asked.hops, asked.is_gateway) == (None, "", 0, False)


def test_everything_that_can_be_asked_for() -> None:
    asked = read([
        (b"Recipient", b"success,delay rfc822;al alice"), TO, (b"Sender", b"<bob@else.test>"), (b"Full-Name", b"B. Ob"),
        (b"Body", b"8BITMIME"), (b"Return", b"hdrs"), (b"Envid", b"x+3D"), (b"Hops", b"12"), (b"Errors", b"q"),
        (b"Delivery", b"i"), (b"Gateway", b"yes"), (b"Tag", b"cron"), (b"Smtputf8", b"yes"), (b"Protocol", b"ESMTP")])
    assert asked.recipients[0] == Recipient("alice", frozenset(("success", "delay")), "rfc822;al")
    assert len(asked.recipients) == 2
    assert (asked.sender, asked.full_name, asked.body, asked.ret, asked.envid, asked.hops) == (
        "bob@else.test", "B. Ob", "8bitmime", "hdrs", "x+3D", 12)
    assert (asked.errors, asked.delivery, asked.is_gateway, asked.tag, asked.smtputf8, asked.protocol) == (
        "q", "i", True, "cron", True, "ESMTP")


@pytest.mark.parametrize("fields", [
    [], [(b"Sender", b"<a>")], [TO] * (submission.MAX_RECIPIENTS + 1),
    # What only we may say, of a queue file.
    *([TO, field] for field in (
        (b"Origin", b"smtp"), (b"Origin-Uid", b"0"), (b"Received-At", b"0"), (b"Scanned", b"yes"), (b"Hold", b"x"),
        (b"Refusal", b"5.0.0 x"), (b"Origin-Auth", b"root"))),
    *([TO, field] for field in (
        (b"recipient", b"- - a"), (b"Command", b"id"), (b"Path", b"/"), (b"", b"x"), (b"Recipient", b"- - "),
        (b"Recipient", b"a"), (b"Recipient", b"- - " + b"x" * submission.MAX_ADDRESS),
        (b"Recipient", b"always - a"), (b"Sender", b"a"), (b"Sender", b"<a"), (b"Sender", b""),
        (b"Sender", b"<" + b"x" * submission.MAX_ADDRESS + b">"), (b"Body", b"9bit"), (b"Return", b"body"),
        (b"Hops", b""),
        (b"Hops", b"-1"), (b"Hops", b"1_0"), (b"Hops", b"1000"), (b"Hops", "\u0663".encode()), (b"Hops", b" 1"),
        (b"Errors", b"qq"), (b"Delivery", b"bg"), (b"Full-Name", b"x" * 5000), (b"Envid", b"x" * 5000),
        (b"Tag", b"x" * 5000), (b"Protocol", b"x" * 5000))),
    [TO, (b"Sender", b"<a>"), (b"Sender", b"<a>")], [TO, (b"Hops", b"1"), (b"Hops", b"2")]])
def test_what_is_refused(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError):
        read(fields)


NAMES = st.sampled_from([b"Recipient", b"Sender", b"Full-Name", b"Body", b"Return", b"Envid", b"Hops", b"Errors",
                         b"Delivery", b"Gateway", b"Tag", b"Smtputf8", b"Protocol", b"Origin", b"X"])
VALUES = st.binary(max_size=30) | st.sampled_from([b"- - a", b"<a@b>", b"<>", b"7", b"yes", b"7bit", b"full", b"m"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_fields_of_anybody_are_refused_or_within_bounds(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        asked = read(fields)
    except ValueError:
        return
    assert asked.recipients
    assert all(r.address and r.notify <= NOTIFY for r in asked.recipients)
    assert 0 <= asked.hops <= 999
    # What was read can be written into a queue file, but for control characters, which no record carries.
    if not any(value.translate(None, bytes(range(32)) + b"\x7f") != value for _, value in fields):
        made = submission.envelope(asked, "5abcDEFG001001", BOB, 1.0, qualify, qualify)
        record.field_lines([(b"X", made.sender.encode("utf-8", "surrogateescape"))])


@pytest.mark.parametrize(("sender", "expected"), [
    (None, "bob@host.example"), (b"<>", ""), (b"<carol>", "carol@host.example"),
    (b"<carol@else.test>", "carol@else.test"), (b"<a@b>,<c@d>", "a@b>,<c@d")])
def test_the_sender_of_the_envelope(sender: bytes | None, expected: str) -> None:
    asked = read([TO] if sender is None else [TO, (b"Sender", sender)])
    made = submission.envelope(asked, "5abcDEFG001001", BOB, 5.0, qualify, qualify)
    assert made.sender == expected
    assert made.recipients == (Recipient("alice@host.example"),)
    assert (made.id, made.received_at, made.origin, made.scanned, made.hold, made.refusal) == (
        "5abcDEFG001001", 5.0, BOB, False, "", "")
