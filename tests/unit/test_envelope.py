"""The envelope on disk: it comes back as it was, and nothing is believed that we would not have written."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import envelope
from pysendmail.mail.envelope import NOTIFY, Envelope, Origin, Recipient, from_fields, raw, text, to_fields
from pysendmail.spool import record

ID = "5abcDEFG001001"
CONTROL = bytes(range(32)) + b"\x7f"
CLEAN = st.binary(max_size=40).map(lambda data: text(data.translate(None, CONTROL)))
WORD = st.binary(max_size=40).map(lambda data: text(data.translate(None, CONTROL + b" "))).filter(
    lambda value: value != "-")
RECIPIENTS = st.builds(Recipient, CLEAN.filter(bool), st.frozensets(st.sampled_from(sorted(NOTIFY))), WORD)
ORIGINS = st.builds(Origin, st.sampled_from(envelope.ORIGINS), st.integers(-1, 2**32 - 1),
                    CLEAN, CLEAN, CLEAN, CLEAN, CLEAN, CLEAN, CLEAN)
ENVELOPES = st.builds(
    Envelope, st.just(ID), CLEAN, st.lists(RECIPIENTS, min_size=1, max_size=5).map(tuple),
    st.integers(0, 10**12).map(lambda milliseconds: milliseconds / 1000), ORIGINS,
    st.sampled_from(["", "7bit", "8bitmime"]), st.booleans(),
    st.sampled_from(["", "full", "hdrs"]), CLEAN, st.sampled_from(["", "m", "q"]), st.booleans(), CLEAN,
    CLEAN.map(lambda reason: f"5.3.4 {reason}" if reason else ""))
PLAIN = Envelope(ID, "bob@else.test", (Recipient("alice@host.example"),), 1_795_500_000.25, Origin("smtp"))


@given(ENVELOPES)
def test_an_envelope_comes_back(made: Envelope) -> None:
    fields = to_fields(made)
    assert from_fields(ID, record.fields(record.field_lines(fields))) == made


@given(st.binary())
def test_bytes_of_an_address_come_back(data: bytes) -> None:
    assert raw(text(data)) == data


@given(ENVELOPES, st.sampled_from("\0\n\r\x1b\x7f"))
def test_no_line_break_gets_into_a_queue_file(made: Envelope, control: str) -> None:
    evil = control + "Pysendmail-Recipient: - - root"
    for one in (replace(made, sender="a" + evil), replace(made, recipients=(Recipient("a" + evil),)),
                replace(made, envid=evil), replace(made, origin=replace(made.origin, helo=evil)),
                replace(made, recipients=(Recipient("a", orcpt=evil),))):
        with pytest.raises(ValueError):
            record.field_lines(to_fields(one))


FIELDS = to_fields(PLAIN)


@pytest.mark.parametrize("field", [
    (b"Uid", b"0"), (b"Path", b"/etc/passwd"), (b"Command", b"id"), (b"Sender", b"<twice@x>"), (b"", b""),
    (b"Recipient", b""), (b"Recipient", b"a@b"), (b"Recipient", b"- a@b"), (b"Recipient", b"- - "),
    (b"Recipient", b"sometimes - a@b"), (b"Recipient", b"never,maybe - a@b"), (b"Recipient", b"\xff - a@b"),
    (b"Origin-Uid", b"1_0"), (b"Origin-Uid", b"-1"), (b"Origin-Uid", b" 1"), (b"Origin-Uid", "\u0661".encode()),
    (b"Refusal", b"4.0.0 later"), (b"Refusal", b"5.0.0"), (b"Refusal", b"no")])
def test_fields_that_we_never_write(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError):
        from_fields(ID, [*FIELDS, field])


@pytest.mark.parametrize(("name", "value"), [
    (b"Sender", b"bob@else.test"), (b"Sender", b"<"), (b"Sender", b""),
    (b"Received-At", b"nan"), (b"Received-At", b"inf"),
    (b"Received-At", b"-5"), (b"Received-At", b"1e9"), (b"Received-At", b""), (b"Received-At", b"1.2.3"),
    (b"Received-At", b"1."), (b"Origin", b"root"), (b"Origin", b""), (b"Recipient", None), (b"Sender", None),
    (b"Received-At", None), (b"Origin", None)])
def test_fields_that_are_missing_or_wrong(name: bytes, value: bytes | None) -> None:
    fields = [(one, value if one == name else old) for one, old in FIELDS if one != name or value is not None]
    with pytest.raises(ValueError):
        from_fields(ID, fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("recipient", "expected"), [
    (Recipient("a@b"), b"- - a@b"),
    (Recipient("a b@c"), b"- - a b@c"),
    (Recipient(" a "), b"- -  a "),
    (Recipient("a@b", frozenset(("failure", "delay"))), b"delay,failure - a@b"),
    (Recipient("a@b", frozenset(("never",)), "rfc822;x+2By"), b"never rfc822;x+2By a@b"),
    (Recipient(text(b"\xff\xfe@b")), b"- - \xff\xfe@b")])
def test_recipients(recipient: Recipient, expected: bytes) -> None:
    notify = ",".join(sorted(recipient.notify)).encode()
    value = envelope.recipient_value(raw(recipient.address), notify, raw(recipient.orcpt))
    assert value == expected
    assert envelope.read_recipient(value) == recipient


@given(st.binary(max_size=60))
def test_recipient_fields_of_anybody(value: bytes) -> None:
    try:
        read: Any = envelope.read_recipient(value)
    except ValueError:
        return
    assert read.address
    assert read.notify <= NOTIFY


def test_a_clock_before_1970_does_not_make_an_unreadable_file() -> None:
    assert from_fields(ID, to_fields(replace(PLAIN, received_at=-3600.0))).received_at == 0
