"""The relay against a host that fails at each step in each way: what its messages become, and who is asked next.

Every cell of (step of the conversation) x (fault) is in a table here: status of the recipient, how the destination
fared, and whether the second MX was tried. The relay, its resolver and both hosts are real and talk over sockets.
"""

import asyncio

import pytest

from pysendmail.deliver.shipment import DOWN, FINE, ROUGH, Answer
from tests.tools.fakedns import FakeDns
from tests.tools.relaying import PATIENCE, Relaying, config, endpoint, statuses, world
from tests.tools.smtphost import CLOSE, DRIP, ENDLESS, OFFERS, RESET, STALL
from tests.tools.smtpsink import Sink

FAULTS = {
    "4xx": b"451 4.3.0 later\r\n", "421": b"421 4.3.2 closing\r\n" + CLOSE, "5xx": b"550 5.7.1 never\r\n",
    "close": CLOSE, "reset": RESET, "stall": STALL, "drip": DRIP, "endless": ENDLESS,
    "garbage": bytes(range(256)) + b"\r\n", "half": b"250 never finished" + CLOSE,
}
BROKEN = ("close", "reset", "half", "stall", "drip")
NONSENSE = ("garbage", "endless")

# Per step: what the only host's fault makes of a message, (status, state).
# 2xx and 4xx/5xx of the host itself are its own words; a broken conversation is 4.4.2, nonsense 4.5.0.
ALONE: dict[str, dict[str, tuple[str, str]]] = {
    "greeting": {"4xx": ("4.3.0", DOWN), "421": ("4.3.2", DOWN), "5xx": ("4.7.1", DOWN)},
    "ehlo": {"4xx": ("4.3.0", DOWN), "421": ("4.3.2", DOWN), "5xx": ("2.0.0", FINE)},  # 5xx: HELO does it
    "mail": {"4xx": ("4.3.0", FINE), "421": ("4.3.2", ROUGH), "5xx": ("5.7.1", FINE)},
    "rcpt": {"4xx": ("4.3.0", FINE), "421": ("4.3.2", ROUGH), "5xx": ("5.7.1", FINE)},
    "data": {"4xx": ("4.3.0", FINE), "421": ("4.3.2", ROUGH), "5xx": ("5.7.1", FINE)},
    "end": {"4xx": ("4.3.0", FINE), "421": ("4.3.2", ROUGH), "5xx": ("5.7.1", FINE)},
}
for _step, _cells in ALONE.items():
    _state = DOWN if _step in ("greeting", "ehlo") else ROUGH
    _cells |= {name: ("4.4.2", _state) for name in BROKEN} | {name: ("4.5.0", _state) for name in NONSENSE}

ALONE["greeting"]["reset"] = ("4.4.", DOWN)  # the connection may be gone before it is known to be made

CELLS = [(step, fault, *ALONE[step][fault]) for step in ALONE for fault in FAULTS]

# Where another host gets the message: after everything but a last word, and but a message that the first may have.
STAYS = {("mail", "5xx"), ("rcpt", "5xx"), ("data", "5xx"), ("ehlo", "5xx"), ("end", "5xx"),
         *(("end", fault) for fault in (*BROKEN, *NONSENSE))}

TWO_HOSTS = {("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
             ("mx1.example.net", "A"): ["127.0.0.2"], ("mx2.example.net", "A"): ["127.0.0.3"]}
UNLIMITED = ("PIPELINING", "8BITMIME")  # no SIZE
LINE = b".a line that begins with a dot and is as long as others\n"
WIRE_LINE = b"." + LINE[:-1] + b"\r\n"


@pytest.mark.parametrize(("step", "fault", "status", "state"), CELLS)
def test_a_lone_host_fails(step: str, fault: str, status: str, state: str) -> None:
    async def scenario(host: str) -> Answer:
        async with Relaying(config(), world(patience=PATIENCE)) as relay:
            return await relay.send(hosts=[host])
    with Sink(replies={step: FAULTS[fault]}) as sink:
        answer = asyncio.run(scenario(endpoint(sink)))
    assert statuses(answer)[0].startswith(status)
    assert answer.state == state
    assert answer.outcomes[0].reason
    assert len(sink.sessions) == 1


@pytest.mark.parametrize(("step", "fault"), [(step, fault) for step in ALONE for fault in FAULTS])
def test_the_second_mx_gets_what_the_first_has_not_decided(step: str, fault: str) -> None:
    async def scenario(port: int) -> Answer:
        async with FakeDns(TWO_HOSTS) as dns, Relaying(
                config(), world(dns, port=port, patience=PATIENCE)) as relay:
            return await relay.send("b@example.net")
    with Sink(replies={step: FAULTS[fault]}, address="127.0.0.2") as first, \
            Sink(address="127.0.0.3", port=first.address[1]) as second:
        answer = asyncio.run(scenario(first.address[1]))
    assert len(first.sessions) == 1
    if (step, fault) in STAYS:
        assert not second.sessions
        assert statuses(answer) == [ALONE[step][fault][0]]
    else:
        assert statuses(answer) == ["2.0.0"]
        assert answer.relay == "mx2.example.net [127.0.0.3]"
        assert answer.state == FINE
        assert len(second.envelopes) == 1


@pytest.mark.parametrize("offers", [OFFERS, ()], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("fault", ["close", "reset", "stall", "421"])
def test_recipients_keep_what_they_were_told_before_the_conversation_broke(
        fault: str, offers: tuple[str, ...]) -> None:
    async def scenario(host: str) -> Answer:
        async with Relaying(config(), world(patience=PATIENCE)) as relay:
            return await relay.send("a@example.net", "b@example.net", "c@example.net", hosts=[host])
    with Sink(offers=offers, replies={"rcpt 1": b"550 5.1.1 unknown\r\n", "rcpt 3": FAULTS[fault]}) as sink:
        answer = asyncio.run(scenario(endpoint(sink)))
    if fault != "reset" or not offers:  # a reset takes what was said just before along
        assert statuses(answer)[0] == "5.1.1"
    assert all(status.startswith("4.") for status in statuses(answer)[1:])
    assert not sink.envelopes


def test_a_reply_before_its_command_ends_the_conversation() -> None:
    """The replies of a host that answers ahead would count for the wrong recipients."""
    async def scenario(host: str) -> Answer:
        async with Relaying(config(), world(patience=PATIENCE)) as relay:
            return await relay.send(hosts=[host])
    ahead = b"250 host.example\r\n250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n"
    with Sink(replies={"ehlo": ahead}) as sink:
        assert statuses(asyncio.run(scenario(endpoint(sink)))) == ["4.5.0"]
    assert not sink.envelopes


def test_a_host_that_stops_reading_is_left_after_a_while() -> None:
    """More than all buffers between us hold: the content has a limit of its own."""
    async def scenario(host: str) -> Answer:
        async with Relaying(config(), world(patience=PATIENCE)) as relay:
            return await relay.send(hosts=[host], text=b"Subject: x\n\n" + LINE * 200_000)
    with Sink(offers=UNLIMITED, replies={"data": b"354 go ahead\r\n" + DRIP}) as sink:
        answer = asyncio.run(scenario(endpoint(sink)))
    assert statuses(answer) == ["4.4.2"]
    assert "sending the message" in answer.outcomes[0].reason
    assert answer.state == ROUGH


def test_a_large_message_arrives_whole() -> None:
    async def scenario(host: str) -> Answer:
        async with Relaying(config(), world()) as relay:
            return await relay.send(hosts=[host], text=b"Subject: x\n\n" + LINE * 20_000)
    with Sink(offers=UNLIMITED) as sink:
        assert statuses(asyncio.run(scenario(endpoint(sink)))) == ["2.0.0"]
    assert [one.wire for one in sink.envelopes] == [b"Subject: x\r\n\r\n" + WIRE_LINE * 20_000 + b".\r\n"]
