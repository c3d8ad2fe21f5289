"""What a message is after a filter's changes: fields counted as sendmail counts them, and nothing smuggled in."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import headers
from pysendmail.mail.changes import (
    MAX_ADDED_RECIPIENTS,
    MAX_VALUE,
    AddField,
    AddRecipient,
    BadChange,
    Change,
    Draft,
    InsertField,
    Quarantine,
    RemoveRecipient,
    ReplaceBody,
    ReplaceField,
    ReplaceSender,
    Text,
    apply,
    field,
)
from pysendmail.mail.envelope import Envelope, Origin, Recipient

TRACE = b"Received: by mx.example id X\n"
HEAD = b"From: a@example.org\nX-A: one\nSubject: s\n\tfolded\nx-a:two\n"
NEVER = frozenset(("never",))


def old_body() -> Iterable[bytes]:
    return (b"old\n",)


def new_body() -> Iterable[bytes]:
    return (b"new\n", b"body\n")


ENVELOPE = Envelope("X", "a@example.org", (Recipient("b@example.org", NEVER), Recipient("c@example.org")), 1.0,
                    Origin("smtp"))
DRAFT = Draft(ENVELOPE, Text(TRACE, HEAD, old_body))


@pytest.mark.parametrize(("changes", "top", "head"), [
    ([AddField(b"X-B", b"b")], b"", HEAD + b"X-B: b\n"),
    ([AddField(b"X-B", b"b\n c"), AddField(b"X-B", b"d")], b"", HEAD + b"X-B: b\n c\nX-B: d\n"),
    ([InsertField(0, b"X-B", b"b")], b"X-B: b\n", HEAD),
    ([InsertField(1, b"X-B", b"b")], b"", b"X-B: b\n" + HEAD),
    ([InsertField(2, b"X-B", b"b")], b"", HEAD.replace(b"X-A: one", b"X-B: b\nX-A: one")),
    ([InsertField(99, b"X-B", b"b")], b"", HEAD + b"X-B: b\n"),
    ([InsertField(0xFFFFFFFF, b"X-B", b"b")], b"", HEAD + b"X-B: b\n"),
    ([ReplaceField(1, b"x-a", b"new")], b"", HEAD.replace(b"X-A: one", b"x-a: new")),
    ([ReplaceField(0, b"X-A", b"new")], b"", HEAD.replace(b"X-A: one", b"X-A: new")),
    ([ReplaceField(2, b"X-A", b"new")], b"", HEAD.replace(b"x-a:two", b"X-A: new")),
    ([ReplaceField(3, b"X-A", b"new")], b"", HEAD + b"X-A: new\n"),
    ([ReplaceField(3, b"X-A", b"")], b"", HEAD),
    ([ReplaceField(1, b"X-A", b"")], b"", HEAD.replace(b"X-A: one\n", b"")),
    ([ReplaceField(1, b"X-A", b""), ReplaceField(1, b"X-A", b"")], b"",
     HEAD.replace(b"X-A: one\n", b"").replace(b"x-a:two\n", b"")),
    ([ReplaceField(1, b"Subject", b"")], b"", HEAD.replace(b"Subject: s\n\tfolded\n", b"")),
    ([ReplaceField(1, b"Received", b"")], b"", HEAD),
    ([], b"", HEAD),
    # Two fields above ours: positions 0 to 2 are among them, 3 is below our Received.
    ([InsertField(0, b"B", b"b"), InsertField(0, b"A", b"a"), InsertField(1, b"C", b"c")], b"A: a\nC: c\nB: b\n", HEAD),
    ([InsertField(0, b"B", b"b"), InsertField(0, b"A", b"a"), InsertField(3, b"C", b"c")], b"A: a\nB: b\n",
     b"C: c\n" + HEAD),
    ([InsertField(0, b"X-A", b"top"), ReplaceField(1, b"X-A", b"new"), ReplaceField(2, b"X-A", b"")],
     b"X-A: new\n", HEAD.replace(b"X-A: one\n", b"")),
    ([InsertField(0, b"X-A", b"top"), ReplaceField(1, b"X-A", b"")], b"", HEAD),
])
def test_fields_after_changes(changes: list[Change], top: bytes, head: bytes) -> None:
    found = apply(DRAFT, changes)
    assert (found.text.top, found.text.trace, found.text.head) == (top, TRACE, head)
    assert found.envelope is ENVELOPE
    assert b"".join(found.text.chunks()) == top + TRACE + head + b"\nold\n"


def test_what_is_not_changed_stays_the_same_object() -> None:
    found = apply(DRAFT, [AddRecipient("b@EXAMPLE.ORG"), RemoveRecipient("nobody@example.org")])
    assert found.text is DRAFT.text
    assert found.envelope is ENVELOPE


def test_a_new_body_replaces_all_of_the_old_one() -> None:
    found = apply(DRAFT, [ReplaceBody(new_body)])
    assert b"".join(found.text.chunks()) == TRACE + HEAD + b"\nnew\nbody\n"
    assert found.text is not DRAFT.text


@pytest.mark.parametrize(("changes", "sender", "recipients"), [
    ([ReplaceSender("")], "", ["b@example.org", "c@example.org"]),
    ([ReplaceSender("x@y.example")], "x@y.example", ["b@example.org", "c@example.org"]),
    ([AddRecipient("d@example.org")], "a@example.org", ["b@example.org", "c@example.org", "d@example.org"]),
    ([AddRecipient("C@example.org")], "a@example.org", ["b@example.org", "c@example.org", "C@example.org"]),
    ([RemoveRecipient("b@Example.Org")], "a@example.org", ["c@example.org"]),
    ([RemoveRecipient("B@example.org")], "a@example.org", ["b@example.org", "c@example.org"]),
    ([RemoveRecipient("b@example.org"), RemoveRecipient("c@example.org")], "a@example.org", []),
    ([RemoveRecipient("b@example.org"), AddRecipient("b@example.org")], "a@example.org",
     ["c@example.org", "b@example.org"]),
])
def test_envelope_after_changes(changes: list[Change], sender: str, recipients: list[str]) -> None:
    found = apply(DRAFT, changes).envelope
    assert (found.sender, [one.address for one in found.recipients]) == (sender, recipients)


def test_recipients_that_stay_keep_what_was_asked_for_them() -> None:
    found = apply(DRAFT, [RemoveRecipient("c@example.org"), AddRecipient("d@example.org")]).envelope
    assert found.recipients == (Recipient("b@example.org", NEVER), Recipient("d@example.org"))


def test_quarantine_says_why_and_the_first_reason_stays() -> None:
    assert apply(DRAFT, [Quarantine("odd\nX: y"), Quarantine("again")]).envelope.hold == "odd X: y"
    assert apply(DRAFT, [Quarantine("")]).envelope.hold
    held = replace(DRAFT, envelope=replace(ENVELOPE, hold="before"))
    assert apply(held, [Quarantine("odd")]).envelope.hold == "before"


@pytest.mark.parametrize("change", [
    AddField(b"", b"v"), AddField(b"X A", b"v"), AddField(b"X:A", b"v"), AddField(b"X\nA", b"v"),
    AddField(b"X\xc3", b"v"), AddField(b"--X", b"v"), AddField(b"X" * 101, b"v"), InsertField(0, b" X", b"v"),
    ReplaceField(1, b"X\r", b"v"), AddField(b"X", b"v" * (MAX_VALUE + 1)),
    AddRecipient(""), AddRecipient("a b@example.org"), AddRecipient("a@example.org\nRCPT"), AddRecipient("a@b,c@d"),
    AddRecipient("a" * 1000 + "@example.org"), AddRecipient("x@"), ReplaceSender("a@b>\0"), ReplaceSender("<a@b>"),
], ids=repr)
def test_a_change_that_no_message_can_take(change: Change) -> None:
    with pytest.raises(BadChange):
        apply(DRAFT, [AddField(b"X-Good", b"v"), change])


@pytest.mark.parametrize("changes", [
    [AddField(b"X", b"v" * 60_000)] * 3,
    [AddField(b"X", b"v")] * headers.MAX_LINES,
    [AddField(b"X", b"v\n" * 10 + b"w")] * (headers.MAX_LINES // 11 + 1),
], ids=["bytes", "fields", "lines"])
def test_a_header_cannot_outgrow_what_readers_take_for_a_header(changes: list[Change]) -> None:
    with pytest.raises(BadChange, match="too large"):
        apply(DRAFT, changes)


def test_recipients_without_end() -> None:
    many: list[Change] = [AddRecipient(f"u{n}@example.org") for n in range(MAX_ADDED_RECIPIENTS)]
    assert len(apply(DRAFT, many).envelope.recipients) == MAX_ADDED_RECIPIENTS + 2
    with pytest.raises(BadChange):
        apply(DRAFT, [*many, AddRecipient("one-more@example.org")])


@pytest.mark.parametrize(("value", "expected"), [
    (b"a\r\n b", b"X: a\n b\n"),
    (b"a\nBcc: evil@example.org", b"X: a\n\tBcc: evil@example.org\n"),
    (b"a\n\nbody", b"X: a\n\tbody\n"),
    (b"a\n \t \n b\n", b"X: a\n b\n"),
    (b"a\rb\0c", b"X: a b c\n"),
    (b"", b"X: \n"),
])
def test_a_value_cannot_end_its_field(value: bytes, expected: bytes) -> None:
    assert field(b"X", value) == expected


def test_a_filter_that_sends_blanks_itself_gets_none_from_us() -> None:
    assert apply(DRAFT, [AddField(b"X", b"  v")], blank=b"").text.head.endswith(b"\nX:  v\n")


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_a_field_is_one_field_whatever_is_in_it(name: bytes, value: bytes) -> None:
    try:
        made = field(name, value)
    except BadChange:
        return
    found, end, body = headers.scan(made + b"\nbody\n")
    assert [one[0] for one in found] == [name.lower()]
    assert (end, body) == (len(made), len(made) + 1)
