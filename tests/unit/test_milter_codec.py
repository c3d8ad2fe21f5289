"""The milter protocol as bytes: what goes to a filter, what its answers mean, and what is no answer."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.changes import (
    AddField,
    AddRecipient,
    InsertField,
    Quarantine,
    RemoveRecipient,
    ReplaceField,
    ReplaceSender,
)
from pysendmail.smtp import milter_terms, milter_wire
from pysendmail.smtp.milter import MAX_CHANGES, Agreed, Conversation
from pysendmail.smtp.milter_replies import DEFERRED, REJECTED, SHUT_DOWN, Answer, BodyPiece, Progress, Verdict
from pysendmail.smtp.milter_wire import Action, FilterError, Option, Stage
from pysendmail.smtp.reply import reply
from pysendmail.smtp.wire import LocalError

ALL_ACTIONS, ALL_OPTIONS = sum(Action), sum(Option)
MACROS = {"i": "ABC123", "j": "mx.example", "{mail_addr}": "a@example.org", "{client_addr}": "192.0.2.7"}


def pack(letter: bytes, data: bytes = b"") -> bytes:
    return struct.pack("!I", len(data) + 1) + letter + data


def agreement(version: int = 6, actions: int = ALL_ACTIONS, options: int = 0, rest: bytes = b"") -> bytes:
    return pack(b"O", struct.pack("!III", version, actions, options) + rest)


def met(max_body: int = 10_000, **terms: Any) -> Conversation:
    """A conversation in which mail can begin."""
    conversation = Conversation(max_body)
    conversation.receive(agreement(**terms))
    assert conversation.next_said() == Agreed()
    conversation.data_to_send()
    return conversation


def said_of(conversation: Conversation) -> list[Any]:
    found = []
    while (one := conversation.next_said()) is not None:
        found.append(one)
    return found


def packets_of(data: bytes) -> list[tuple[bytes, bytes]]:
    reader = milter_wire.Packets()
    reader.feed(data)
    found = []
    while (one := reader.next_packet()) is not None:
        found.append(one)
    assert not len(reader)
    return found


def asked(stage: Stage, **terms: Any) -> Conversation:
    """A conversation whose filter is to answer this stage."""
    conversation = met(**terms)
    if stage not in (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.UNKNOWN):
        conversation.tell(Stage.MAIL, b"<>\0")
        conversation.receive(pack(b"c"))
        conversation.next_said()
    assert conversation.tell(stage)
    conversation.data_to_send()
    return conversation


def test_it_begins_with_an_offer_of_everything() -> None:
    assert Conversation(0).data_to_send() == pack(b"O", struct.pack("!III", 6, 0x1FF, 0x1FFFFF))


@pytest.mark.parametrize("data", [
    pack(b"O", b"\0\0\0\6"),
    agreement(version=1),
    agreement(version=7),
    agreement(actions=0x200),
    agreement(options=0x10000000),
    agreement(rest=b"\0\0\0\7i\0"),
    agreement(rest=b"\0\0\0\1i"),
    agreement(rest=b"\0\0"),
    agreement(rest=b"\0\0\0\1" + b"i " * 101 + b"\0"),
    agreement(rest=b"\0\0\0\1" + b"i" * 65 + b"\0"),
    pack(b"c"),
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
], ids=repr)
def test_an_agreement_that_is_none_ends_the_conversation(data: bytes) -> None:
    conversation = Conversation(0)
    conversation.receive(data)
    with pytest.raises(FilterError):
        conversation.next_said()
    assert not conversation.is_ready
    assert conversation.next_said() is None


def test_a_filter_gets_the_macros_that_it_has_named() -> None:
    conversation = met(rest=b"\0\0\0\2i {mail_addr},{none}\0\0\0\0\3\0")
    conversation.tell(Stage.MAIL, b"<a@example.org>\0", MACROS)
    assert packets_of(conversation.data_to_send()) == [
        (b"D", b"Mi\0ABC123\0{mail_addr}\0a@example.org\0"), (b"M", b"<a@example.org>\0")]
    conversation.receive(pack(b"c"))
    conversation.next_said()
    conversation.tell(Stage.RCPT, b"<b@example.org>\0", MACROS)
    assert packets_of(conversation.data_to_send()) == [(b"R", b"<b@example.org>\0")]


def test_a_filter_that_names_none_gets_the_usual_macros() -> None:
    conversation = met()
    conversation.tell(Stage.CONNECT, b"x\0U", MACROS)
    assert packets_of(conversation.data_to_send())[0] == (b"D", b"Cj\0mx.example\0{client_addr}\x00192.0.2.7\0")


@pytest.mark.parametrize(("stage", "version", "are_told"), [
    (Stage.MAIL, 2, True), (Stage.END, 2, True), (Stage.DATA, 3, False), (Stage.DATA, 4, True), (Stage.EOH, 2, False),
    (Stage.EOH, 5, False), (Stage.EOH, 6, True)])
def test_no_macros_where_an_old_libmilter_ends_the_session_for_them(stage: Stage, version: int, are_told: bool) -> None:
    conversation = met(version=version)
    conversation.tell(stage, b"", MACROS)
    assert (b"D" in [letter for letter, _ in packets_of(conversation.data_to_send())]) is are_told


def test_a_nul_in_a_macro_makes_no_other_macro_of_its_rest() -> None:
    conversation = met()
    conversation.tell(Stage.DATA, b"", {"i": "A\0j\0evil"})
    assert packets_of(conversation.data_to_send())[0] == (b"D", b"Ti\0A j evil\0")


@pytest.mark.parametrize(("stage", "version", "options", "is_told", "is_answered"), [
    (Stage.CONNECT, 6, 0, True, True),
    (Stage.CONNECT, 6, Option.NO_CONNECT, False, False),
    (Stage.CONNECT, 6, Option.SILENT_CONNECT, True, False),
    (Stage.HELO, 2, Option.NO_HELO, False, False),
    (Stage.HELO, 6, Option.SILENT_HELO, True, False),
    (Stage.MAIL, 2, Option.NO_MAIL, False, False),
    (Stage.MAIL, 6, Option.SILENT_MAIL, True, False),
    (Stage.RCPT, 2, Option.NO_RCPT, False, False),
    (Stage.RCPT, 6, Option.SILENT_RCPT, True, False),
    (Stage.DATA, 3, 0, False, False),
    (Stage.DATA, 4, 0, True, True),
    (Stage.DATA, 6, Option.NO_DATA, False, False),
    (Stage.DATA, 6, Option.SILENT_DATA, True, False),
    (Stage.HEADER, 2, Option.NO_HEADER, False, False),
    (Stage.HEADER, 2, Option.SILENT_HEADER, True, False),
    (Stage.EOH, 2, Option.NO_EOH, False, False),
    (Stage.EOH, 6, Option.SILENT_EOH, True, False),
    (Stage.BODY, 2, Option.NO_BODY, False, False),
    (Stage.BODY, 6, Option.SILENT_BODY, True, False),
    (Stage.END, 2, ALL_OPTIONS, True, True),
    (Stage.UNKNOWN, 2, 0, False, False),
    (Stage.UNKNOWN, 3, 0, True, True),
    (Stage.UNKNOWN, 6, Option.NO_UNKNOWN, False, False),
    (Stage.UNKNOWN, 6, Option.SILENT_UNKNOWN, True, False),
])
def test_what_a_filter_does_not_want_to_hear_is_not_said(
        stage: Stage, version: int, options: int, is_told: bool, is_answered: bool) -> None:
    conversation = met(version=version, options=options)
    conversation.tell(Stage.MAIL, b"")
    if conversation.data_to_send():
        conversation.receive(b"" if options & Option.SILENT_MAIL else pack(b"c"))
        conversation.next_said()
    assert conversation.tell(stage, b"data", MACROS) is is_answered
    told = packets_of(conversation.data_to_send())
    assert ((stage.value, b"data") in told) is is_told
    assert conversation.is_ready is not is_answered


@pytest.mark.parametrize(("letter", "data", "expected"), [
    (b"c", b"", Answer(Verdict.CONTINUE)),
    (b"a", b"", Answer(Verdict.ACCEPT)),
    (b"r", b"", Answer(Verdict.REJECT, REJECTED)),
    (b"t", b"", Answer(Verdict.TEMPFAIL, DEFERRED)),
    (b"d", b"", Answer(Verdict.DISCARD)),
    (b"4", b"", Answer(Verdict.SHUT_DOWN, SHUT_DOWN)),
    (b"p", b"", Progress()),
    (b"y", b"550 5.7.1 no\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "no"))),
    (b"y", b"550 no\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "no"))),
    (b"y", b"451 4.7.1 come 100%% back\0", Answer(Verdict.TEMPFAIL, reply(451, "4.7.1", "come 100% back"))),
    (b"y", b"550-5.7.1 a\r\n550 5.7.1 b\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "a", "b"))),
    (b"y", b"421 4.7.0 away\0", Answer(Verdict.SHUT_DOWN, reply(421, "4.7.0", "away"))),
    (b"y", b"571 spam\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "spam"))),
    (b"y", b"550 4.7.1 other class\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "4.7.1 other class"))),
    (b"y", b"550 5.7.1 a\x1b[2Jb\0", Answer(Verdict.REJECT, reply(550, "5.7.1", "a [2Jb"))),
    (b"h", b"X-A\0one\0", AddField(b"X-A", b"one")),
    (b"i", b"\0\0\0\1X-A\0one\0", InsertField(1, b"X-A", b"one")),
    (b"m", b"\0\0\0\2X-A\0\0", ReplaceField(2, b"X-A", b"")),
    (b"b", b"text\r\n", BodyPiece(b"text\r\n")),
    (b"+", b"<a@example.org>\0", AddRecipient("a@example.org")),
    (b"2", b"<a@example.org>\0", AddRecipient("a@example.org")),
    (b"2", b"<a@example.org>\0NOTIFY=NEVER  ORCPT=rfc822;b@example.org\0",
     AddRecipient("a@example.org", frozenset(("never",)), "rfc822;b@example.org")),
    (b"2", b"<a@example.org>\0SIZE=1 X notify=never\0", AddRecipient("a@example.org", frozenset(("never",)))),
    (b"e", b"<a@example.org>\0SIZE=1\0", ReplaceSender("a@example.org")),
    (b"-", b"a@example.org\0", RemoveRecipient("a@example.org")),
    (b"e", b"<>\0", ReplaceSender("")),
    (b"e", b"<b@example.org>\0SIZE=1\0", ReplaceSender("b@example.org")),
    (b"q", b"looks odd\0", Quarantine("looks odd")),
], ids=repr)
def test_each_answer_is_one_value(letter: bytes, data: bytes, expected: Any) -> None:
    whole, bytewise = asked(Stage.END), asked(Stage.END)
    whole.receive(pack(letter, data))
    assert said_of(whole) == [expected]
    found = []
    for byte in pack(letter, data):
        bytewise.receive(bytes((byte,)))
        found += said_of(bytewise)
    assert found == [expected]


@pytest.mark.parametrize("data", [
    pack(b"f"),
    pack(b"l", b"\0\0\0\1i\0"),
    pack(b"O", b""),
    pack(b"z"),
    pack(b"\0"),
    pack(b"s"),
    pack(b"y"),
    pack(b"y", b"ok\0"),
    pack(b"y", b"250 ok\0"),
    pack(b"y", b"550 a\r\n551 b\0"),
    pack(b"y", b"550-a\0"),
    pack(b"y", b"550 a\x00550 b\0"),
    pack(b"h", b"X-A\0"),
    pack(b"h", b"X-A\0a\0b\0"),
    pack(b"i", b"\0\0\0"),
    pack(b"m", b""),
    pack(b"+"),
    pack(b"2", b"<a@example.org>\0NOTIFY=SOMETIMES\0"),
    pack(b"q"),
    b"\0\0\0\0c",
    b"\xff\xff\xff\xffc",
    struct.pack("!I", milter_wire.MAX_PACKET + 2),
], ids=repr)
def test_what_is_no_answer_ends_the_conversation(data: bytes) -> None:
    conversation = asked(Stage.END)
    conversation.receive(data)
    with pytest.raises(FilterError):
        said_of(conversation)
    conversation.receive(pack(b"c"))
    assert conversation.next_said() is None
    assert not conversation.is_ready


@pytest.mark.parametrize(("letter", "data", "action"), [
    (b"h", b"X-A\0one\0", Action.ADD_FIELDS), (b"i", b"\0\0\0\1X-A\0one\0", Action.ADD_FIELDS),
    (b"m", b"\0\0\0\1X-A\0\0", Action.REPLACE_FIELDS), (b"b", b"x", Action.REPLACE_BODY),
    (b"+", b"a\0", Action.ADD_RECIPIENTS), (b"2", b"a\0", Action.ADD_RECIPIENTS_WITH_PARAMETERS),
    (b"-", b"a\0", Action.REMOVE_RECIPIENTS), (b"q", b"a\0", Action.QUARANTINE), (b"e", b"a\0", Action.REPLACE_SENDER),
])
def test_a_change_is_believed_only_if_it_was_agreed_on(letter: bytes, data: bytes, action: Action) -> None:
    allowed = asked(Stage.END, actions=int(action))
    allowed.receive(pack(letter, data))
    assert len(said_of(allowed)) == 1
    refused = asked(Stage.END, actions=ALL_ACTIONS & ~action)
    refused.receive(pack(letter, data))
    with pytest.raises(FilterError):
        said_of(refused)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.END])
def test_changes_come_with_the_end_and_not_before(stage: Stage) -> None:
    conversation = asked(stage)
    conversation.receive(pack(b"h", b"X-A\0one\0"))
    with pytest.raises(FilterError):
        conversation.next_said()


def test_it_may_not_answer_what_it_was_not_asked() -> None:
    conversation = met()
    conversation.receive(pack(b"c"))
    with pytest.raises(FilterError):
        conversation.next_said()


def test_two_answers_to_one_question_are_one_too_many() -> None:
    conversation = asked(Stage.HELO)
    conversation.receive(pack(b"c") + pack(b"c"))
    assert conversation.next_said() == Answer(Verdict.CONTINUE)
    with pytest.raises(FilterError):
        conversation.next_said()


def test_nothing_can_be_told_while_an_answer_is_awaited() -> None:
    with pytest.raises(LocalError):
        asked(Stage.HELO).tell(Stage.MAIL)
    with pytest.raises(LocalError):
        Conversation(0).tell(Stage.CONNECT)


# (stage, letter of the answer, what is still heard after it)
@pytest.mark.parametrize(("stage", "letter", "heard"), [
    (Stage.CONNECT, b"a", ()),
    (Stage.HELO, b"r", ()),
    (Stage.HELO, b"t", ()),
    (Stage.CONNECT, b"c", (Stage.HELO, Stage.MAIL, Stage.BODY)),
    (Stage.MAIL, b"a", (Stage.HELO,)),
    (Stage.MAIL, b"d", (Stage.HELO,)),
    (Stage.RCPT, b"r", (Stage.HELO, Stage.RCPT, Stage.BODY)),
    (Stage.RCPT, b"t", (Stage.HELO, Stage.RCPT, Stage.BODY)),
    (Stage.RCPT, b"a", (Stage.HELO,)),
    (Stage.RCPT, b"d", (Stage.HELO,)),
    (Stage.BODY, b"s", (Stage.HELO, Stage.END)),
    (Stage.BODY, b"c", (Stage.HELO, Stage.BODY, Stage.END)),
    (Stage.HEADER, b"a", (Stage.HELO,)),
    (Stage.DATA, b"4", ()),
    (Stage.END, b"c", (Stage.HELO,)),
])
def test_an_answer_holds_for_the_rest_of_what_it_is_about(
        stage: Stage, letter: bytes, heard: tuple[Stage, ...]) -> None:
    conversation = asked(stage, options=int(Option.SKIP))
    conversation.receive(pack(letter))
    conversation.next_said()
    for later in (Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.BODY, Stage.END):
        if later in heard:
            assert conversation.hears(later), later
    if not heard:
        assert not any(conversation.hears(later) for later in Stage)
    elif Stage.BODY not in heard:
        assert not conversation.hears(Stage.BODY)


@pytest.mark.parametrize(("stage", "letter"), [(Stage.CONNECT, b"d"), (Stage.HELO, b"d"), (Stage.HEADER, b"s"),
                                                (Stage.BODY, b"s")])
def test_an_answer_that_makes_no_sense_there_is_none(stage: Stage, letter: bytes) -> None:
    conversation = asked(stage)
    conversation.receive(pack(letter))
    with pytest.raises(FilterError):
        conversation.next_said()


def test_the_next_message_is_heard_whatever_was_said_of_the_last() -> None:
    conversation = asked(Stage.MAIL)
    conversation.receive(pack(b"r"))
    conversation.next_said()
    conversation.abort()
    assert packets_of(conversation.data_to_send()) == [(b"A", b"")]
    assert conversation.tell(Stage.MAIL, b"<>\0")
    assert packets_of(conversation.data_to_send()) == [(b"M", b"<>\0")]


def test_there_is_nothing_to_abort_without_a_message_or_after_its_end() -> None:
    conversation = met()
    conversation.abort()
    assert conversation.data_to_send() == b""
    conversation = asked(Stage.END)
    conversation.receive(pack(b"c"))
    conversation.next_said()
    conversation.abort()
    assert conversation.data_to_send() == b""


def test_leaving() -> None:
    conversation = met()
    conversation.quit()
    assert packets_of(conversation.data_to_send()) == [(b"Q", b"")]
    assert not conversation.is_ready


def feed(conversation: Conversation, packets: Iterator[bytes]) -> None:
    for one in packets:
        conversation.receive(one)
        said_of(conversation)


@pytest.mark.parametrize("one", [
    pack(b"h", b"X\0" + b"a" * 60_000 + b"\0"), pack(b"+", b"a@example.org\0"), pack(b"b", b"x" * 1000), pack(b"b"),
], ids=["fields", "recipients", "body", "empty"])
def test_changes_without_end_are_cut_off(one: bytes) -> None:
    conversation = asked(Stage.END)
    with pytest.raises(FilterError, match="more than a message"):
        feed(conversation, (one for _ in range(2 * MAX_CHANGES)))


def test_a_new_body_of_many_small_pieces_is_a_body() -> None:
    conversation = asked(Stage.END, max_body=1_000_000)
    feed(conversation, (pack(b"b", b"x" * 100) for _ in range(10_000)))
    conversation.receive(pack(b"a"))
    assert conversation.next_said() == Answer(Verdict.ACCEPT)


def test_has_changes_is_about_the_present_message() -> None:
    conversation = asked(Stage.END)
    assert not conversation.has_changes
    conversation.receive(pack(b"q", b"odd\0") + pack(b"c"))
    said_of(conversation)
    assert conversation.has_changes
    conversation.tell(Stage.MAIL, b"<>\0")
    assert not conversation.has_changes


SAID = (Answer, Progress, BodyPiece, AddField, InsertField, ReplaceField, AddRecipient, RemoveRecipient, ReplaceSender,
        Quarantine)


@given(st.lists(st.one_of(
    st.binary(max_size=200),
    st.builds(pack, st.sampled_from([bytes((c,)) for c in b"him+-2beqyctadrspf4lO\xff"]), st.binary(max_size=60)))))
def test_no_filter_makes_it_fail_otherwise_or_grow(chunks: list[bytes]) -> None:
    """Whatever a filter sends, it is a value or a FilterError; and no more is held than one packet."""
    conversation = asked(Stage.END)
    for chunk in chunks:
        conversation.receive(chunk)
        try:
            for said in said_of(conversation):
                assert isinstance(said, SAID)
        except FilterError:
            return
        assert len(conversation._packets) <= milter_wire.MAX_PACKET + 5 + len(chunk)
        if conversation.is_ready:
            conversation.abort()
            conversation.tell(Stage.MAIL)


@given(st.binary(max_size=400))
def test_no_agreement_makes_it_fail_otherwise(data: bytes) -> None:
    try:
        terms = milter_terms.read(data)
    except FilterError:
        return
    assert milter_terms.OLDEST <= terms.version <= milter_terms.VERSION
