"""Packets between runner, spawner and agents: what is written is read back, and nothing else is believed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.deliver.agent import packet_of
from pysendmail.deliver.packet import MAX_PACKET, decode, encode
from pysendmail.deliver.request import MAX_TARGETS, Reply, Request
from pysendmail.mail.outcome import Outcome, delivered, failed
from pysendmail.mail.target import COMMAND, FORWARDED, MAILBOX, Target

ANY_TEXT = st.text(st.characters(blacklist_categories=("Cs",)) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=50)
TARGET = st.builds(Target, st.sampled_from([MAILBOX, COMMAND, FORWARDED]), ANY_TEXT, user=ANY_TEXT, detail=ANY_TEXT,
                   digest=ANY_TEXT, words=ANY_TEXT, sender=st.none() | ANY_TEXT, use_forward=st.booleans())
REQUEST = Request(7, "566jOp9s000000", 212, 400, "a@b", "c@d", Target(MAILBOX, "c@d", user="c"), 1_750_000_000.5)


@given(n=st.integers(0, 2**40), offset=st.integers(0, 2**40), size=st.integers(0, 2**40), sender=ANY_TEXT,
       original=ANY_TEXT, target=TARGET, now=st.floats(0, 2**40))
def test_request_is_read_back(n: int, offset: int, size: int, sender: str, original: str, target: Target,
                              now: float) -> None:
    request = Request(n, "566jOp9s000000", offset, offset + size, sender, original, target, now)
    assert Request.from_packet(request.to_packet()) == request


@given(targets=st.lists(TARGET, max_size=5), notes=st.lists(ANY_TEXT, max_size=20))
def test_reply_is_read_back(targets: list[Target], notes: list[str]) -> None:
    reply = Reply(3, None, tuple(targets), tuple(notes))
    assert Reply.from_packet(reply.to_packet()) == reply
    assert reply.is_answer == bool(targets)
    reply = Reply(3, delivered("it is there"), (), tuple(notes))
    assert Reply.from_packet(reply.to_packet()) == reply
    assert reply.is_answer


def changed(packet: bytes, **changes: Any) -> bytes:
    """The packet with other values; None takes one away."""
    value = json.loads(packet) | changes
    return json.dumps({name: one for name, one in value.items() if one is not None}).encode()


@pytest.mark.parametrize("changes", [
    {"n": None}, {"n": "7"}, {"n": 7.5}, {"id": None}, {"id": 5}, {"id": "../../etc"}, {"id": ""}, {"id": "a b"},
    {"offset": -1}, {"offset": 401}, {"offset": "0"}, {"length": 100}, {"length": None}, {"sender": None},
    {"original": ["x"]}, {"now": None}, {"now": "today"}, {"now": 5}, {"target": None}, {"target": "mailbox"},
    {"target": {"kind": "root", "address": "x"}}, {"target": {"kind": "mailbox", "path": "/etc/passwd"}},
], ids=str)
def test_request_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Request.from_packet(changed(REQUEST.to_packet(), **changes))


@pytest.mark.parametrize("changes", [
    {"n": None}, {"n": "7"}, {"targets": {}}, {"targets": ["x"]}, {"targets": [{"kind": "x", "address": "y"}]},
    {"notes": "x"}, {"notes": [5]}, {"outcome": []}, {"outcome": ["2.0.0", 5, "", ""]},
    {"outcome": ["1.0.0", "x", "", ""]},
    {"outcome": ["2.0.0", "x", "", ""], "targets": [Target(MAILBOX, "a", user="a").to_json()]},
    {"targets": [Target(MAILBOX, "a", user="a").to_json()] * (MAX_TARGETS + 1)},
], ids=lambda changes: str(changes)[:60])
def test_reply_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Reply.from_packet(changed(Reply(7).to_packet(), **changes))


@pytest.mark.parametrize("packet", [b"", b"x", b"[]", b"5", b"null", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff",
                                    b"{}" * 2], ids=lambda packet: ascii(packet[:10]))
def test_only_one_object_is_decoded(packet: bytes) -> None:
    with pytest.raises(ValueError):
        decode(packet)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(packet: bytes) -> None:
    for read in (decode, Request.from_packet, Reply.from_packet):
        try:
            read(packet)
        except ValueError:
            continue


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["n", "id", "offset", "length", "sender", "original", "target", "now", "outcome", "targets", "notes", "kind"]),
        inner, max_size=8), max_leaves=20))
def test_no_json_does_more_than_be_refused(value: Any) -> None:
    packet = json.dumps(value).encode()
    for read in (decode, Request.from_packet, Reply.from_packet):
        try:
            read(packet)
        except ValueError:
            continue


def test_notes_are_bounded() -> None:
    assert len(Reply.from_packet(encode({"n": 1, "notes": ["x"] * 500})).notes) == 20


def test_reply_that_no_runner_could_read_becomes_one_that_says_so() -> None:
    """Else the runner would take the agent for broken, and try the same again for days."""
    targets = tuple(Target(FORWARDED, "x" * 200 + f"{number}@host.example") for number in range(MAX_TARGETS))
    packet = packet_of(Reply(9, None, targets))
    assert len(packet) <= MAX_PACKET
    reply = Reply.from_packet(packet)
    assert (reply.n, reply.targets) == (9, ())
    assert reply.outcome is not None
    assert reply.outcome.status == "4.2.4"


def test_forward_may_have_as_many_targets_as_the_settings_allow() -> None:
    targets = (Target(FORWARDED, "a"),) * 1500
    assert Reply.from_packet(packet_of(Reply(9, None, targets))).targets == targets


def test_outcome_from_an_agent_is_one_line() -> None:
    reply = Reply.from_packet(encode({"n": 1, "outcome": ["5.1.1", "no\r\nX-Evil: yes\x00", "smtp; 550\n", "a\nb"]}))
    assert reply.outcome == Outcome("5.1.1", "no X-Evil: yes", "smtp; 550", "a b")
    assert failed("5.1.1", "x").is_failed
