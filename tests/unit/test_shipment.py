"""Packets between the runner and a relay: whatever goes in comes out, and what does not fit is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.deliver import shipment
from pysendmail.deliver.packet import MAX_PACKET
from pysendmail.deliver.shipment import Answer, Shipment
from pysendmail.mail.envelope import NOTIFY, Recipient
from pysendmail.mail.outcome import Outcome, deferred, delivered, failed

TEXT = st.text(max_size=40) | st.binary(max_size=40).map(lambda b: b.decode("utf-8", "surrogateescape"))
RECIPIENTS = st.lists(st.builds(Recipient, TEXT, st.frozensets(st.sampled_from(sorted(NOTIFY))), TEXT),
                      min_size=1, max_size=5)


@given(st.integers(0, 1 << 50), TEXT, RECIPIENTS, TEXT, st.lists(TEXT, max_size=3), st.booleans(), TEXT, TEXT,
       st.integers(1, 1000), st.binary(max_size=100))
def test_a_shipment_arrives_as_it_was(n: int, sender: str, recipients: list[Recipient], domain: str, hosts: list[str],
                                      smtputf8: bool, ret: str, envid: str, width: int, head: bytes) -> None:
    sent = Shipment(n, "0WkDdmTe001000", 200, 4000, sender, tuple(recipients), domain, tuple(hosts), smtputf8, ret,
                    envid, width, head + b"\n" if head else b"")
    assert shipment.read_shipments(shipment.shipments_packet([(sent, width)])) == [sent]


def test_the_destination_is_that_of_the_hop() -> None:
    whom = (Recipient("x@y.example"),)
    assert Shipment(1, "a", 0, 1, "", whom, "y.example").destination == "y.example"
    assert Shipment(1, "a", 0, 1, "", whom, "y.example", ("h:25", "i")).destination == "h:25,i"


def test_forgetting_is_no_shipment() -> None:
    assert shipment.read_shipments(shipment.forget_packet()) is None


GOOD: dict[str, Any] = {"n": 1, "id": "0WkDdmTe001000", "at": 5, "to": 10, "from": "", "rcpt": [["x@y.example"]],
                        "domain": "y.example", "width": 1}


@pytest.mark.parametrize("change", [
    {"n": -1}, {"n": True}, {"n": 1.0}, {"n": "1"}, {"n": 1 << 60}, {"at": 11}, {"at": -1}, {"to": None},
    {"id": "../x"}, {"id": ""}, {"id": 7}, {"from": None}, {"domain": 1}, {"rcpt": []}, {"rcpt": [["a"]] * 101},
    {"rcpt": ["a"]}, {"rcpt": [["a", "b"]]}, {"rcpt": [["a", "sometimes", ""]]}, {"rcpt": [[1]]}, {"rcpt": "a"},
    {"hosts": "a"}, {"hosts": [1]}, {"hosts": ["a"] * 33}, {"width": 0}, {"width": 1001}, {"ret": 1}, {"envid": []},
    {"head": "no line end"}, {"head": 1}, {"head": "x" * 8192 + "\n"},
])
def test_a_shipment_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    assert shipment.read_shipments(json.dumps({"s": [GOOD]}).encode())
    with pytest.raises(ValueError):
        shipment.read_shipments(json.dumps({"s": [GOOD | change]}).encode())


@pytest.mark.parametrize("packet", [
    b"", b"\xff", b"[]", b"1", b"{}", b'{"s": []}', b'{"s": {}}', b'{"s": [1]}', b'{"s": [' + b"[" * 5000,
    b"[" * 100_000, json.dumps({"s": [GOOD] * 33}).encode(), b'{"forget": 1}',
])
def test_no_shipments_at_all(packet: bytes) -> None:
    with pytest.raises(ValueError):
        shipment.read_shipments(packet)


OUTCOMES = st.sampled_from([delivered("250 ok"), deferred("4.3.0", "later", "smtp; 450 later"),
                            failed("5.1.1", "unknown \u00e4 \udcff"),
                            Outcome("5.7.1", "no", "smtp; 550 no", "mx.example")])


@given(st.integers(0, 1 << 50), st.lists(OUTCOMES, min_size=1, max_size=5), st.sampled_from(sorted(shipment.STATES)),
       st.booleans(), st.booleans(), st.lists(st.sampled_from(["a note", "another"]), max_size=3),
       st.lists(st.sampled_from(["relay=mx.example [192.0.2.1], version=TLSv1.3", "another"]), max_size=3))
def test_an_answer_arrives_as_it_was(n: int, outcomes: list[Outcome], state: str, dsn: bool, tried: bool,
                                     notes: list[str], handshakes: list[str]) -> None:
    sent = Answer(n, tuple(outcomes), "mx.example [192.0.2.1]", state, dsn, tried, tuple(notes),
                  tuple(handshakes))
    (packet,) = shipment.answer_packets([sent])
    assert shipment.read_answers(packet) == [sent]


@pytest.mark.parametrize("answer", [
    1, {}, {"n": 1, "o": []}, {"n": 1, "o": [], "count": 0}, {"n": 1, "o": [["2.0.0", "a", "", ""]], "count": 101},
    {"n": 1, "o": [["2.0.0", "a", "", ""]] * 2, "count": 3}, {"n": 1, "o": [["9.0.0", "a", "", ""]], "count": 1},
    {"n": 1, "o": [["2.0.0", "a", "", ""]], "count": 1, "state": "fine"},
    {"n": 1, "o": [["2.0.0", "a", "", ""]], "count": 1, "relay": 1},
    {"n": 1, "o": [["2.0.0", "a", "", ""]], "count": 1, "notes": [1]},
    {"n": 1, "o": [["2.0.0", "a", "", ""]], "count": 1, "tls": "TLSv1.3"},
    {"n": "1", "o": [["2.0.0", "a", "", ""]], "count": 1},
])
def test_an_answer_that_does_not_fit_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError):
        shipment.read_answers(json.dumps({"a": [answer]}).encode())


def test_many_long_answers_go_in_several_packets() -> None:
    outcomes = tuple(failed("5.1.1", f"{n} " + "x" * 390, "smtp; " + "y" * 390) for n in range(100))
    answers = [Answer(n, outcomes, "mx.example [192.0.2.1]") for n in range(5)]
    packets = shipment.answer_packets(answers)
    assert len(packets) > 1
    assert all(len(packet) <= MAX_PACKET for packet in packets)
    assert [one.n for packet in packets for one in shipment.read_answers(packet)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("character", ["\u4e00", "\U0001f600", "\udcff", '"'], ids=ascii)
def test_an_answer_too_long_for_any_packet_loses_words_and_no_recipient(character: str) -> None:
    outcomes = tuple(failed("5.1.1", f"{n} " + character * 390, "smtp; " + character * 390) for n in range(100))
    (packet,) = shipment.answer_packets([Answer(1, outcomes)])
    assert len(packet) <= MAX_PACKET
    (answer,) = shipment.read_answers(packet)
    assert [one.status for one in answer.outcomes] == ["5.1.1"] * 100


@pytest.mark.parametrize(("addresses", "sizes"), [
    ([], []), (["a@x"], [1]), (["a@x"] * 100, [100]), (["a@x"] * 101, [100, 1]), (["a@x"] * 250, [100, 100, 50]),
    (["\u4e00" * 900] * 20, [9, 9, 2]),
])
def test_recipients_are_divided_into_what_fits(addresses: list[str], sizes: list[int]) -> None:
    recipients = [Recipient(address) for address in addresses]
    found = shipment.groups(recipients)
    assert [len(group) for group in found] == sizes
    assert [one for group in found for one in group] == recipients
    for group in found:
        sent = Shipment(1, "0WkDdmTe001000", 0, 1, "\u4e00" * 1000, group, "y.example")
        assert len(shipment.shipments_packet([(sent, 1)])) <= MAX_PACKET
