"""The driver of the client core over a connection in memory: what it reads, writes, holds back and watches."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pysendmail.deliver.content import PIECE, Content
from pysendmail.deliver.remote import BURST, Letter, Session, Terms, survey_of
from pysendmail.mail.envelope import Recipient
from pysendmail.net.hosts import Place
from pysendmail.smtp.client import TIMEOUTS
from pysendmail.smtp.opening import Options
from pysendmail.smtp.trouble import Peer, Scope, Stage
from tests.tools.memory import MemoryTransport, pair
from tests.tools.smtphost import Cut, Host, bytewise, whole

PLACE = Place("mx.example", "192.0.2.1", 25)
UNLIMITED = ("PIPELINING", "8BITMIME")
LINE = b"a line of a message that is long enough to be sent in many pieces\n"


class HostEnd(asyncio.Protocol):
    """smtphost.Host as the other end. cut: into what pieces its replies fall."""

    def __init__(self, host: Host, cut: Cut) -> None:
        self.host, self._cut = host, cut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, MemoryTransport)
        self.transport = transport
        self._say(self.host.greet())

    def data_received(self, data: bytes) -> None:
        self._say(self.host.hear(data))

    def _say(self, reply: bytes) -> None:
        for piece in self._cut(reply):
            self.transport.write(piece)
        if self.host.is_closed:
            self.transport.close()


class Conversation:
    """A session and its host. ours: the session's transport."""

    def __init__(self, host: Host, *, cut: Cut = whole, **terms: Any) -> None:
        options = Options("us.example", Peer(PLACE.name, PLACE.address))
        self.session = Session(PLACE, Terms(options, None, PLACE.name, **terms))
        self.host = host
        self.fd = -1  # of the last letter's message
        self._fds: list[int] = []
        self.end = HostEnd(host, cut)
        self.ours, self.theirs = pair(self.session, self.end)

    async def letter(self, text: bytes, recipients: int = 1) -> Letter:
        self.fd = os.memfd_create("message")
        self._fds.append(self.fd)
        os.write(self.fd, text)
        content = Content(self.fd, 0, len(text))
        return Letter(content, await survey_of(content), "a@example.org",
                      [Recipient(f"u{n}@example.net") for n in range(recipients)])

    def close(self) -> None:
        self.session.abort()
        for fd in self._fds:
            os.close(fd)


def run(scenario: Callable[[Conversation], Awaitable[None]], host: Host | None = None, **more: Any) -> Host:
    host = host or Host()

    async def full() -> None:
        conversation = Conversation(host, **more)
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(scenario(conversation), 20)
        finally:
            conversation.close()
        await asyncio.sleep(0)
    asyncio.run(full())
    return host


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_messages_go_one_after_the_other(cut: Cut) -> None:
    async def scenario(talk: Conversation) -> None:
        session = talk.session
        assert await session.open() is None
        for count in (1, 3):
            finished = await session.carry(await talk.letter(b"Subject: x\n\n.text\n", count))
            assert [one.outcome.status for one in finished.results] == ["2.0.0"] * count
            assert session.is_ready
        assert session.messages == 2
        session.leave()
        await asyncio.sleep(0.01)
        assert session.is_over
    host = run(scenario, cut=cut)
    assert [one.content for one in host.envelopes] == [b"Subject: x\n\n.text\n"] * 2
    assert host.commands[-1] == "QUIT"


def test_nothing_more_is_read_from_the_file_while_the_host_takes_nothing() -> None:
    text = b"Subject: x\n\n" + LINE * 40_000

    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        letter = await talk.letter(text)
        talk.ours.hold_back()
        carrying = asyncio.ensure_future(talk.session.carry(letter))
        while b"DATA" not in bytes(talk.ours.written[:1000]):
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(talk.ours.written) < 1000  # not even the first piece
        talk.ours.let_go()
        assert len(talk.ours.written) <= 1000 + 2 * PIECE * BURST  # then others have their turn
        await carrying
    host = run(scenario, Host(UNLIMITED))
    assert [one.content for one in host.envelopes] == [text]


def test_a_large_message_lets_others_have_their_turn() -> None:
    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        letter = await talk.letter(b"Subject: x\n\n" + LINE * 100_000)
        carrying = asyncio.ensure_future(talk.session.carry(letter))
        longest, before = 0, len(talk.ours.written)
        while not carrying.done():
            await asyncio.sleep(0)
            longest, before = max(longest, len(talk.ours.written) - before), len(talk.ours.written)
        assert longest <= 2 * PIECE * (BURST + 1)
    run(scenario, Host(UNLIMITED))


def test_a_host_that_leaves_between_messages_is_noticed() -> None:
    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        talk.end.transport.write(b"421 4.3.2 good night\r\n")
        talk.end.transport.close()
        await asyncio.sleep(0.01)
        assert talk.session.is_over
        assert not talk.session.is_ready
        talk.session.leave()  # nothing is left to be said
    assert run(scenario).commands == ["EHLO us.example"]


def test_silence_is_not_waited_for_longer_than_its_step_allows() -> None:
    """The steps before it have other limits, longer and shorter ones."""
    timeouts = dict.fromkeys(TIMEOUTS, 50.0) | {Stage.DATA: 0.05, Stage.RCPT: 10.0}

    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        finished = await talk.session.carry(await talk.letter(b"x\n"))
        (result,) = finished.results
        assert (result.outcome.status, result.scope) == ("4.4.2", Scope.HOST)
        assert "asking to send" in result.outcome.reason
        await asyncio.sleep(0.01)
        assert talk.session.is_over
        assert talk.ours.is_closing()
    run(scenario, Host(replies={"data": b""}), timeouts=timeouts)


def test_a_limit_that_ran_out_while_nothing_was_awaited_counts_for_nothing() -> None:
    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        await asyncio.sleep(0.15)
        finished = await talk.session.carry(await talk.letter(b"x\n"))
        assert finished.results[0].outcome.status == "2.0.0"
    run(scenario, timeouts=dict.fromkeys(TIMEOUTS, 0.1))


def test_a_file_that_ends_too_early_never_gets_a_final_dot() -> None:
    async def scenario(talk: Conversation) -> None:
        await talk.session.open()
        letter = await talk.letter(b"Subject: x\n\n" + LINE * 5000)
        os.ftruncate(talk.fd, 2 * PIECE)
        finished = await talk.session.carry(letter)
        assert finished.results[0].outcome.status == "4.3.0"
        assert finished.results[0].scope is Scope.MESSAGE
        assert not bytes(talk.ours.written).endswith(b"\r\n.\r\n")
    assert not run(scenario, Host(UNLIMITED)).envelopes
