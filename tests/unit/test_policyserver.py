"""Policy servers: what they are asked, what each action means, and every way in which one can fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pysendmail.net import policyserver
from pysendmail.net.policyserver import Action, PolicyServer, Trouble, read_action
from pysendmail.smtp.reply import reply


@pytest.mark.parametrize(("action", "expected"), [
    ("dunno", Action()),
    ("DUNNO anything", Action()),
    ("ok", Action(is_final=True)),
    ("permit_sasl_authenticated", Action(is_final=True)),
    ("reject", Action(reply(554, "5.7.1", "Access denied"), is_final=True)),
    ("reject 5.7.23 SPF says no", Action(reply(554, "5.7.23", "SPF says no"), is_final=True)),
    ("reject 4.7.23 not a status of this class", Action(
        reply(554, "5.7.1", "4.7.23 not a status of this class"), is_final=True)),
    ("550 go away", Action(reply(550, "5.7.1", "go away"), is_final=True)),
    ("450 4.2.0 greylisted", Action(reply(450, "4.2.0", "greylisted"), is_final=True)),
    ("defer_if_permit Greylisted, see http://postgrey.example", Action(
        reply(450, "4.7.1", "Greylisted, see http://postgrey.example"), is_final=True)),
    ("defer", Action(reply(450, "4.7.1", "Access denied, try again later"), is_final=True)),
    ("defer_if_reject later", Action()),
    ("warn look at this", Action(note="look at this")),
    ("info look at this", Action(note="look at this")),
    ("prepend X-Greylist: delayed 301 seconds", Action(field="X-Greylist: delayed 301 seconds")),
    ("hold", Action(hold="a policy server wants it held")),
    ("hold for Anne", Action(hold="for Anne")),
])
def test_actions(action: str, expected: Action) -> None:
    assert read_action(f"action={action}\n\n") == expected
    assert read_action(f"more=1\naction={action}\n\n") == expected


@pytest.mark.parametrize("answer", [
    "\n", "\n\n", "action=\n\n", "answer=ok\n\n", "action=discard\n\n", "action=redirect root\n\n",
    "action=999 x\n\n", "action=560 x\n\n", "action=250 x\n\n", "action=45 x\n\n", "action=\u0664\u0665\u0660 x\n\n",
    "action=filter x:y\n\n"])
def test_an_action_that_does_not_exist_is_trouble(answer: str) -> None:
    with pytest.raises(Trouble):
        read_action(answer)


@pytest.mark.parametrize("text", ["a\rb", "a\x00b", "a\u2028b", "a\x1b[2J"])
def test_words_of_a_server_are_one_line(text: str) -> None:
    action = read_action(f"action=550 {text}\n\n")
    assert action.refusal is not None
    assert action.refusal.render().count(b"\r\n") == 1
    assert action.refusal.render().isascii()


class Server:
    """asked: the attributes of each question, in order. connections: how many there were."""

    def __init__(self, path: Path, answers: list[bytes]) -> None:
        self.endpoint = f"unix:{path}"
        self.path = str(path)
        self.answers = answers
        self.asked: list[dict[str, str]] = []
        self.connections = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        try:
            while self.answers:
                lines = (await reader.readuntil(b"\n\n")).decode().split("\n")[:-2]
                self.asked.append(dict(line.split("=", 1) for line in lines))
                answer = self.answers.pop(0)
                if answer == b"close":
                    return
                if answer == b"wait":
                    await reader.read()
                    return
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())], timeout=5)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    async with await asyncio.start_unix_server(server.serve, server.path):
        yield
        if server.tasks:
            await asyncio.wait(server.tasks, timeout=5)


def test_questions_share_a_connection(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", [b"action=dunno\n\n", b"action=ok\n\n"])

    async def ask() -> None:
        async with running(server):
            policy = PolicyServer(server.endpoint)
            assert await policy.ask({"request": "smtpd_access_policy", "sender": ""}) == Action()
            assert await policy.ask({"sender": "b@c"}) == Action(is_final=True)
            policy.close()

    asyncio.run(ask())
    assert server.asked == [{"request": "smtpd_access_policy", "sender": ""}, {"sender": "b@c"}]
    assert server.connections == 1


def test_a_connection_that_has_ended_is_replaced(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", [b"action=dunno\n\n", b"close", b"action=warn x\n\n"])

    async def ask() -> None:
        async with running(server):
            policy = PolicyServer(server.endpoint)
            assert await policy.ask({"n": "1"}) == Action()
            assert await policy.ask({"n": "2"}) == Action(note="x")
            policy.close()

    asyncio.run(ask())
    assert [one["n"] for one in server.asked] == ["1", "2", "2"]


def test_several_questions_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", [b"action=dunno\n\n"] * 20)

    async def ask() -> None:
        async with running(server):
            policy = PolicyServer(server.endpoint)
            await asyncio.gather(*(policy.ask({"n": str(n)}) for n in range(20)))
            policy.close()

    asyncio.run(ask())
    assert sorted(one["n"] for one in server.asked) == sorted(str(n) for n in range(20))


@pytest.mark.parametrize("value", ["a\nrequest=evil", "a\r\n\r\nb", "a\0b", "x\u2028y", "\udcff"])
def test_a_stranger_adds_no_attribute(tmp_path: Path, value: str) -> None:
    server = Server(tmp_path / "s", [b"action=dunno\n\n"])

    async def ask() -> None:
        async with running(server):
            policy = PolicyServer(server.endpoint)
            await policy.ask({"helo_name": value, "last": "1"})
            policy.close()

    asyncio.run(ask())
    assert list(server.asked[0]) == ["helo_name", "last"]


@pytest.mark.parametrize("answers", [
    [b"close"], [b"action=dunno\n"], [b"action=" + b"x" * 100_000], [b"action=nonsense\n\n"], [b"\n\n"], [b"\xff\n\n"]],
    ids=["closes", "half", "endless", "nonsense", "empty", "binary"])
def test_whatever_is_no_answer_is_trouble(tmp_path: Path, answers: list[bytes]) -> None:
    server = Server(tmp_path / "s", answers)

    async def ask() -> None:
        async with running(server):
            policy = PolicyServer(server.endpoint)
            with pytest.raises(Trouble):
                await policy.ask({"n": "1"})
            policy.close()

    asyncio.run(ask())


def test_a_server_that_is_not_there_is_trouble(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="No such file"):
        asyncio.run(PolicyServer(f"unix:{tmp_path}/none").ask({}))


def test_a_server_that_does_not_answer_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policyserver, "LIMIT", 0.05)
    server = Server(tmp_path / "s", [b"wait"])

    async def ask() -> None:
        async with running(server):
            with pytest.raises(Trouble, match="no answer within"):
                await PolicyServer(server.endpoint).ask({"n": "1"})

    asyncio.run(ask())
