"""The relay against a host that fails at each step in each way: what its messages become, and who is asked next.

Every cell of (step of the conversation) x (fault) is in a table here: status of the recipient, how the destination
fared, and whether the second MX was tried. The relay, its resolver and both hosts are real and talk over sockets.
"""

import asyncio

import pytest

from pysendmail.deliver.shipment import DOWN, FINE, ROUGH
from tests.tools.fakedns import FakeDns
from tests.tools.faultyhost import DEAF, DRIP, ENDLESS, GARBAGE, RESET, STALL, FaultyHost
from tests.tools.relaying import PATIENCE, Relaying, config, statuses, world
from tests.tools.smtphost import CLOSE, OFFERS, Host

FAULTS = {
    "4xx": b"451 4.3.0 later\r\n", "421": b"421 4.3.2 closing\r\n" + CLOSE, "5xx": b"550 5.7.1 never\r\n",
    "close": CLOSE, "reset": RESET, "stall": STALL, "garbage": GARBAGE, "drip": DRIP, "endless": ENDLESS,
    "half": b"250 never finished" + CLOSE,
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

CELLS = [(step, fault, *ALONE[step][fault]) for step in ALONE for fault in FAULTS]

# Where another host gets the message: after everything but a last word, and but a message that the first may have.
STAYS = {("mail", "5xx"), ("rcpt", "5xx"), ("data", "5xx"), ("ehlo", "5xx"), ("end", "5xx"),
         *(("end", fault) for fault in (*BROKEN, *NONSENSE))}

UNLIMITED = ("PIPELINING", "8BITMIME")  # no SIZE
LINE, WIRE_LINE = b".a line that begins with a dot and is as long as others\n", b"..a line that begins with a dot and is as long as others\r\n"


def failing(step: str, fault: str) -> Host:
    return Host(replies={step: FAULTS[fault]})


@pytest.mark.parametrize(("step", "fault", "status", "state"), CELLS)
def test_a_lone_host_fails(step: str, fault: str, status: str, state: str) -> None:
    async def scenario() -> None:
        async with FaultyHost(lambda: failing(step, fault)) as host, Relaying(
                config(), world(patience=PATIENCE)) as relay:
            answer = await relay.send(hosts=[f"127.0.0.1:{host.port}"])
        assert statuses(answer) == [status]
        assert answer.state == state
        assert answer.outcomes[0].reason
        assert len(host.hosts) == 1
    asyncio.run(scenario())


@pytest.mark.parametrize(("step", "fault"), [(step, fault) for step in ALONE for fault in FAULTS])
def test_the_second_mx_gets_what_the_first_has_not_decided(step: str, fault: str) -> None:
    async def scenario() -> None:
        async with FaultyHost(lambda: failing(step, fault), address="127.0.0.2") as first, \
                FaultyHost(address="127.0.0.3", port=first.port) as second, FakeDns(two_hosts()) as dns, \
                Relaying(config(), world(dns, port=first.port, patience=PATIENCE)) as relay:
            answer = await relay.send("b@example.net")
        assert len(first.hosts) == 1
        if (step, fault) in STAYS:
            assert not second.hosts
            assert statuses(answer) == [ALONE[step][fault][0]]
        else:
            assert statuses(answer) == ["2.0.0"]
            assert answer.relay == "mx2.example.net [127.0.0.3]"
            assert answer.state == FINE
            assert len(second.messages) == 1
    asyncio.run(scenario())


def two_hosts() -> dict[tuple[str, str], list[str]]:
    return {("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
            ("mx1.example.net", "A"): ["127.0.0.2"], ("mx2.example.net", "A"): ["127.0.0.3"]}


@pytest.mark.parametrize("offers", [OFFERS, ()], ids=["pipelining", "one by one"])
@pytest.mark.parametrize("fault", ["close", "reset", "stall", "421"])
def test_recipients_keep_what_they_were_told_before_the_conversation_broke(
        fault: str, offers: tuple[str, ...]) -> None:
    replies = {"rcpt 1": b"550 5.1.1 unknown\r\n", "rcpt 3": FAULTS[fault]}

    async def scenario() -> None:
        async with FaultyHost(lambda: Host(offers=offers, replies=replies)) as host, Relaying(
                config(), world(patience=PATIENCE)) as relay:
            answer = await relay.send("a@example.net", "b@example.net", "c@example.net",
                                      hosts=[f"127.0.0.1:{host.port}"])
        assert statuses(answer)[0] == "5.1.1"
        assert all(status.startswith("4.") for status in statuses(answer)[1:])
        assert not host.messages
    asyncio.run(scenario())


def test_a_reply_before_its_command_ends_the_conversation() -> None:
    """The replies of a host that answers ahead would count for the wrong recipients."""
    async def scenario() -> None:
        ahead = Host(replies={"ehlo": b"250 host.example\r\n250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n"})
        async with FaultyHost(lambda: ahead) as host, Relaying(config(), world(patience=PATIENCE)) as relay:
            answer = await relay.send(hosts=[f"127.0.0.1:{host.port}"])
        assert statuses(answer) == ["4.5.0"]
        assert not host.messages
    asyncio.run(scenario())


def test_a_host_that_stops_reading_is_left_after_a_while() -> None:
    """More than all buffers between us hold: the content has a limit of its own."""
    async def scenario() -> None:
        async with FaultyHost(lambda: Host(UNLIMITED, {"data": b"354 go ahead\r\n" + DEAF})) as host, Relaying(
                config(), world(patience=PATIENCE)) as relay:
            answer = await relay.send(hosts=[f"127.0.0.1:{host.port}"], text=b"Subject: x\n\n" + LINE * 200_000)
        assert statuses(answer) == ["4.4.2"]
        assert "sending the message" in answer.outcomes[0].reason
        assert answer.state == ROUGH
    asyncio.run(scenario())


def test_a_large_message_arrives_whole() -> None:
    async def scenario() -> None:
        async with FaultyHost(lambda: Host(UNLIMITED)) as host, Relaying(config(), world()) as relay:
            answer = await relay.send(hosts=[f"127.0.0.1:{host.port}"], text=b"Subject: x\n\n" + LINE * 20_000)
        assert statuses(answer) == ["2.0.0"]
        assert host.messages == [b"Subject: x\r\n\r\n" + WIRE_LINE * 20_000 + b".\r\n"]
    asyncio.run(scenario())
