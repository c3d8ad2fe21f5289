"""The runner's lanes: who gets an agent, what a user can and cannot do to others, and what becomes of every job."""

import os
import select
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from pysendmail.daemon import agents
from pysendmail.daemon.agents import Agents, Job
from pysendmail.deliver.packet import MAX_PACKET, decode
from pysendmail.deliver.request import REFUSED, Reply, Request
from pysendmail.events import Events
from pysendmail.mail.outcome import Outcome, deferred, delivered, failed
from pysendmail.mail.target import MAILBOX, Target
from tests.tools.loop import Loop

SENT = delivered("delivered to mailbox")


class Agent:
    """The other end of an agent's socket."""

    def __init__(self, user: str, channel: socket.socket) -> None:
        self.user = user
        self.channel = channel
        channel.setblocking(False)

    def requests(self) -> list[Request]:
        """What has been asked of it since the last call; its descriptors are closed at once."""
        found = []
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(self.channel, MAX_PACKET, 1)
            except BlockingIOError:
                return found
            if not packet:
                return found
            for fd in fds:
                os.close(fd)
            found.append(Request.from_packet(packet))

    def answer(self, asked: Request, outcome: Outcome = SENT) -> None:
        self.channel.send(Reply(asked.n, outcome).to_packet())

    @property
    def is_ended(self) -> bool:
        """Whether the other end is closed, whatever has not been read yet."""
        poll = select.poll()
        poll.register(self.channel, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


class Desk:
    """An Agents with a spawner that the test plays. outcomes: what came of each job, by its number."""

    def __init__(self, most: int = 4, commands: int = agents.COMMAND_LANES) -> None:
        self.loop = Loop()
        self.warnings: list[str] = []
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self.link.setblocking(False)
        theirs.setblocking(False)
        self.agents = Agents(self.loop, theirs, Events(lambda _, text: self.warnings.append(text)),  # type: ignore[arg-type]
                             most=most, command_time=1000.0, commands=commands)
        self.outcomes: dict[int, Outcome | None] = {}
        self.replies: dict[int, list[Reply]] = {}
        self.serving: list[Agent] = []
        self._next = 0

    def close(self) -> None:
        self.agents.close()
        for one in (self.link, self._theirs, *(agent.channel for agent in self.serving)):
            one.close()

    def deliver(self, user: str, *, is_slow: bool = False, alias: str = "", error: int = 0) -> int:
        """One delivery; its number."""
        self._next += 1
        n = self._next
        asked = Request(n, "566jOp9s000000", 0, 10, "", user, Target(MAILBOX, user, user=user, source=alias), 1.0)

        def open_file() -> int:
            if error:
                raise OSError(error, os.strerror(error))
            return os.open("/dev/null", os.O_RDONLY)

        def done(reply: Reply) -> None:
            self.replies.setdefault(n, []).append(reply)
            if reply.is_answer:
                assert n not in self.outcomes, f"job {n} was answered twice"
                self.outcomes[n] = reply.outcome

        self.agents.deliver(user, Job(asked, open_file, done), is_slow=is_slow)
        return n

    def words(self) -> list[dict[str, Any]]:
        """What the spawner has been told since the last call."""
        found = []
        while True:
            try:
                found.append(decode(self.link.recv(MAX_PACKET)))
            except BlockingIOError:
                return found

    def grant(self) -> list[Agent]:
        """Give an agent to everybody who has asked for one."""
        given = []
        for word in self.words():
            if "agent" in word:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                given.append(Agent(word["agent"], ours))
                self.agents.granted({"n": word["n"], "pid": 4711 + len(self.serving)}, [theirs.detach()])
                self.serving.append(given[-1])
        self.loop.run()
        return given


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


def test_delivery_goes_to_an_agent_of_the_user_and_its_outcome_comes_back(desk: Desk) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    asked, = agent.requests()
    assert (agent.user, asked.n, asked.target.user) == ("alice", n, "alice")
    agent.answer(asked)
    desk.loop.run()
    assert desk.outcomes == {n: SENT}


def test_one_agent_serves_all_of_a_users_mail(desk: Desk) -> None:
    numbers = [desk.deliver("alice") for _ in range(10)]
    agent, = desk.grant()
    assert [asked.n for asked in agent.requests()] == numbers
    desk.deliver("alice")
    assert len(agent.requests()) == 1
    assert desk.words() == []


def test_agent_has_at_most_a_window_of_requests(desk: Desk) -> None:
    for _ in range(agents.WINDOW + 10):
        desk.deliver("alice")
    agent, = desk.grant()
    first = agent.requests()
    assert len(first) == agents.WINDOW
    for asked in first[:5]:
        agent.answer(asked)
    desk.loop.run()
    assert len(agent.requests()) == 5


def test_commands_go_one_at_a_time_in_a_few_lanes_beside_the_mailbox(desk: Desk) -> None:
    for _ in range(6):
        desk.deliver("alice", is_slow=True)
    desk.deliver("alice")
    assert [agent.user for agent in desk.grant()] == ["alice"] * 3  # half of the places for commands, and the mailbox
    assert sorted(len(agent.requests()) for agent in desk.serving) == [1, 1, 1]


@pytest.mark.parametrize("commands", [1, 3])
def test_commands_of_one_recipient_at_a_time_are_as_many_as_the_settings_say(commands: int) -> None:
    one = Desk(most=20, commands=commands)
    try:
        for _ in range(6):
            one.deliver("_pysmlocal", is_slow=True, alias="list")
            one.deliver("_pysmlocal", is_slow=True, alias="tickets")  # an alias of its own is a recipient of its own
        assert len(one.grant()) == 2 * commands
    finally:
        one.close()


def test_idle_agents_are_ended(desk: Desk) -> None:
    desk.deliver("alice")
    agent, = desk.grant()
    agent.answer(*agent.requests())
    desk.loop.advance(agents.IDLE - 1)
    assert not agent.is_ended
    desk.loop.advance(3)
    assert agent.is_ended
    desk.deliver("alice")
    assert len(desk.grant()) == 1


def test_when_all_places_are_taken_the_longest_idle_makes_room(desk: Desk) -> None:
    for user in "abcd":
        desk.deliver(user)
        agent, = desk.grant()
        agent.answer(*agent.requests())
        desk.loop.advance(0.5)
    desk.deliver("e")
    assert [agent.is_ended for agent in desk.serving] == [True, False, False, False]
    assert [agent.user for agent in desk.grant()] == ["e"]


def test_who_waits_for_a_place_gets_one_when_an_agent_is_done(desk: Desk) -> None:
    for user in "abcd":
        desk.deliver(user)
    desk.grant()
    desk.deliver("e")
    assert desk.words() == []
    desk.serving[1].answer(*desk.serving[1].requests())
    desk.loop.run()
    assert [word["agent"] for word in desk.words()] == ["e"]
    assert desk.serving[1].is_ended


# ---- when it goes wrong


@pytest.mark.parametrize("refusal", [failed("5.1.1", "no such user: alice"), deferred("4.3.0", "cannot fork")])
def test_refusal_of_the_spawner_is_everybodys_outcome(desk: Desk, refusal: Outcome) -> None:
    numbers = [desk.deliver("alice") for _ in range(3)]
    word, = desk.words()
    desk.agents.granted({"n": word["n"], "error": refusal.to_json()}, [])
    desk.loop.run()
    assert desk.outcomes == dict.fromkeys(numbers, refusal)


@pytest.mark.parametrize("refusal", [failed("5.1.1", "no such user: alice"), deferred("4.3.0", "cannot look up")])
def test_refusal_of_an_agent_is_everybodys_outcome(desk: Desk, refusal: Outcome) -> None:
    numbers = [desk.deliver("alice") for _ in range(agents.WINDOW + 3)]
    agent, = desk.grant()
    agent.channel.send(Reply(REFUSED, refusal).to_packet())
    desk.loop.run()
    assert desk.outcomes == dict.fromkeys(numbers, refusal)
    assert agent.is_ended


def test_descriptor_that_got_lost_on_the_way_puts_off(desk: Desk) -> None:
    """We had no room for one more: the kernel passes the packet on and drops what came with it."""
    n = desk.deliver("alice")
    word, = desk.words()
    desk.agents.granted({"n": word["n"], "pid": 4711}, [])
    desk.loop.run()
    assert desk.outcomes[n] == agents.NO_AGENT
    n = desk.deliver("alice")
    assert len(desk.grant()) == 1


def test_spawner_that_does_not_answer_puts_off(desk: Desk) -> None:
    """Its answer may have been lost, and the place must not be."""
    n = desk.deliver("alice")
    word, = desk.words()
    desk.loop.advance(agents.ASK_WITHIN + 2)
    assert desk.outcomes[n] is not None
    assert desk.outcomes[n].is_deferred
    for user in "abcd":
        desk.deliver(user)
    assert len(desk.words()) == 4
    read, write = os.pipe()
    os.close(read)
    desk.agents.granted({"n": word["n"], "pid": 4711}, [write])  # too late
    with pytest.raises(OSError):
        os.fstat(write)


def test_spawner_that_is_gone_puts_off(desk: Desk) -> None:
    desk.link.close()
    n = desk.deliver("alice")
    desk.loop.run()
    assert desk.outcomes[n] is not None
    assert desk.outcomes[n].is_deferred
    desk.link = socket.socket()


def test_agent_that_ends_leaves_its_requests_deferred(desk: Desk) -> None:
    numbers = [desk.deliver("alice") for _ in range(3)]
    agent, = desk.grant()
    agent.answer(agent.requests()[0])
    agent.channel.close()
    desk.loop.run()
    assert [desk.outcomes[n] for n in numbers] == [SENT, agents.GONE, agents.GONE]
    n = desk.deliver("alice")
    agent, = desk.grant()
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes[n] == SENT


@pytest.mark.parametrize("packet", [
    b"garbage", b"[]", b"{}", b'{"n": "1"}', b'{"n": 1, "outcome": ["2.0.0"]}', b'{"n": 1, "outcome": 5}',
    b'{"n": 1, "targets": 7}', b'{"n": 1, "targets": [{"kind": "root"}]}', b'{"n": 1, "notes": [1]}', b"[" * 100_000,
    b'{"n": 1, "outcome": ["9.9.9", "x", "", ""]}', b"\xff\xfe",
], ids=lambda packet: ascii(packet[:30]))
def test_agent_that_talks_nonsense_is_ended_and_its_mail_put_off(desk: Desk, packet: bytes) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    agent.channel.send(packet)
    desk.loop.run()
    assert desk.outcomes == {n: agents.GONE}
    assert agent.is_ended


def test_answers_nobody_asked_for_are_ignored(desk: Desk) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    asked, = agent.requests()
    for number in (n, n, n + 1, -5, 10**30):
        agent.channel.send(Reply(number, SENT).to_packet())
    desk.loop.run()
    assert desk.outcomes == {n: SENT}
    assert asked.n == n


def test_notes_are_no_answer(desk: Desk) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    agent.channel.send(Reply(n, notes=("about .forward",)).to_packet())
    desk.loop.run()
    assert n not in desk.outcomes
    assert desk.replies[n][0].notes == ("about .forward",)
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes == {n: SENT}


def test_message_that_cannot_be_opened_is_put_off_and_the_others_go(desk: Desk) -> None:
    first, second = desk.deliver("alice", error=24), desk.deliver("alice")
    agent, = desk.grant()
    asked, = agent.requests()
    assert (desk.outcomes[first], asked.n) == (
        deferred("4.3.0", "cannot open the message: Too many open files"), second)


def test_kernel_that_takes_no_more_descriptors_in_flight_is_asked_again(
        desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """ETOOMANYREFS (unix(7)): stalled agents hold the descriptors that they have not read."""
    send_fds, full = socket.send_fds, [True]

    def send(*args: Any) -> int:
        if full[0]:
            raise OSError(109, "Too many references: cannot splice")
        return send_fds(*args)

    monkeypatch.setattr(socket, "send_fds", send)
    n = desk.deliver("alice")
    agent, = desk.grant()
    assert agent.requests() == []
    assert desk.outcomes == {}
    full[0] = False
    desk.loop.advance(agents.TICK)
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes == {n: SENT}


# ---- when users stall


def test_stalled_lane_hands_back_what_waits_and_takes_nothing_more(desk: Desk) -> None:
    numbers = [desk.deliver("alice") for _ in range(agents.WINDOW + 20)]
    agent, = desk.grant()
    asked = agent.requests()
    desk.loop.advance(agents.STALLED_AFTER + 2)
    assert desk.outcomes == dict.fromkeys(numbers[agents.WINDOW:], agents.BUSY)
    later = desk.deliver("alice")
    assert later not in desk.outcomes, "job.done is called later, never at once"
    desk.loop.run()
    assert desk.outcomes[later] is agents.BUSY
    agent.answer(asked[0])
    desk.loop.run()
    again = desk.deliver("alice")
    desk.loop.run()
    assert [one.n for one in agent.requests()] == [again]


def test_slow_command_does_not_keep_the_users_other_mail_in_work(desk: Desk) -> None:
    """500 messages to "|sleep 1000" must not be all that is in work."""
    numbers = [desk.deliver("alice", is_slow=True) for _ in range(100)]
    desk.grant()
    desk.loop.advance(agents.STALLED_AFTER + 2)
    assert len(desk.outcomes) == 98
    assert all(outcome is agents.BUSY for outcome in desk.outcomes.values())
    assert len(set(numbers) - desk.outcomes.keys()) == 2
    n = desk.deliver("alice")
    agent = desk.grant()[-1]
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes[n] == SENT


def test_commands_leave_places_for_mailboxes(desk: Desk) -> None:
    for user in "abcdefgh":
        desk.deliver(user, is_slow=True)
    assert len(desk.grant()) == 2
    n = desk.deliver("i")
    agent, = desk.grant()
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes[n] == SENT


def test_who_gets_no_place_for_long_is_handed_back(desk: Desk) -> None:
    for user in "abcd":
        desk.deliver(user)
    desk.grant()
    n = desk.deliver("e")
    desk.loop.advance(agents.STALLED_AFTER + 2)
    assert desk.outcomes[n] is agents.BUSY


def test_who_waits_while_others_get_places_waits_longer_but_not_for_ever(desk: Desk) -> None:
    for user in "abcd":
        desk.deliver(user)
    desk.grant()
    users = [f"u{number}" for number in range(30)]
    numbers = [desk.deliver(user) for user in users]
    for _ in range(8):
        desk.loop.advance(agents.STALLED_AFTER - 1)
        agent = desk.serving[-1]
        agent.answer(*agent.requests())
        desk.loop.run()
        desk.grant()
    assert [desk.outcomes.get(n) for n in numbers[:7]] == [SENT] * 7
    assert [desk.outcomes.get(n) for n in numbers[8:]] == [agents.BUSY] * 22


def test_mailboxes_share_the_usual_places() -> None:
    """Fifty users take turns. Agents that are silent do not count, so that twenty stalled users stop nobody."""
    desk = Desk(most=50)
    users = [f"u{number}" for number in range(agents.USUAL + 5)]
    numbers = [desk.deliver(user) for user in users]
    first = desk.grant()
    assert [agent.user for agent in first] == users[:agents.USUAL]
    first[0].answer(*first[0].requests())
    desk.loop.run()
    assert [agent.user for agent in desk.grant()] == users[agents.USUAL:agents.USUAL + 1], "the idle one has made room"
    assert desk.outcomes == {numbers[0]: SENT}
    desk.loop.advance(agents.PATIENCE + agents.TICK)
    assert [agent.user for agent in desk.grant()] == users[agents.USUAL + 1:], "the others say nothing"
    desk.close()


def test_commands_take_no_usual_place_from_mailboxes() -> None:
    desk = Desk(most=50)
    for number in range(10):
        desk.deliver(f"c{number}", is_slow=True)
    for number in range(agents.USUAL):
        desk.deliver(f"u{number}")
    assert len(desk.grant()) == 10 + agents.USUAL
    desk.close()


def test_work_for_thousands_of_users_is_linear(desk: Desk) -> None:
    """One message to a long list of users: each delivery looks at those who have a place, not at all who wait."""
    looks = 0

    class Watched(agents.Lane):
        @property
        def is_slow(self) -> bool:
            nonlocal looks
            looks += 1
            return self.window == 1

    with mock.patch.object(agents, "Lane", Watched):
        numbers = [desk.deliver(f"u{number}") for number in range(2000)]
        while len(desk.outcomes) < len(numbers):
            for agent in desk.grant():
                agent.answer(*agent.requests())
            desk.loop.run()
            for agent in desk.serving:
                if agent.is_ended:
                    agent.channel.close()
            desk.serving = [agent for agent in desk.serving if agent.channel.fileno() >= 0]
    assert set(desk.outcomes.values()) == {SENT}
    assert looks < 40 * len(numbers)


def test_silent_agent_is_ended_for_those_who_wait_for_its_place(desk: Desk) -> None:
    for user in "abcd":
        desk.deliver(user)
    desk.grant()
    desk.loop.advance(agents.CROWDED_AFTER + 5)
    assert not any(agent.is_ended for agent in desk.serving), "nobody needs their places"
    desk.deliver("e")
    desk.loop.advance(2)
    words = desk.words()
    assert [word["end"] for word in words if "end" in word] != []
    assert [word["agent"] for word in words if "agent" in word] == ["e"]


def test_agent_that_never_answers_is_ended_at_its_deadline(desk: Desk) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    desk.loop.advance(agents.DEADLINE - 1)
    assert n not in desk.outcomes
    desk.loop.advance(3)
    assert desk.outcomes == {n: agents.SLOW}
    assert desk.words() == [{"end": 4711}]
    assert agent.is_ended
    assert any("alice" in text and "stuck" in text for text in desk.warnings)


def test_command_has_its_own_limit(desk: Desk) -> None:
    n = desk.deliver("alice", is_slow=True)
    desk.grant()
    desk.loop.advance(1000 + agents.COMMAND_GRACE - 1)
    assert n not in desk.outcomes
    desk.loop.advance(3)
    assert desk.outcomes == {n: agents.SLOW}


def test_notes_keep_no_agent_alive(desk: Desk) -> None:
    n = desk.deliver("alice")
    agent, = desk.grant()
    for _ in range(int(agents.DEADLINE // 10) + 1):
        agent.channel.send(Reply(n, notes=("still here",)).to_packet())
        desk.loop.advance(10)
    assert desk.outcomes == {n: agents.SLOW}


def test_what_no_agent_has_been_given_is_dropped_and_what_one_has_is_left(desk: Desk) -> None:
    given = desk.deliver("alice", is_slow=True)
    agent, = desk.grant()
    waiting = [desk.deliver("bob"), *(desk.deliver("alice", is_slow=True) for _ in range(3))]
    desk.agents.drop()
    assert desk.outcomes == dict.fromkeys(waiting, agents.DROPPED)
    lane, = desk.agents.leave()
    assert (list(lane.sent), [asked.n for asked in agent.requests()]) == ([given], [given])
    desk.agents.close()
    assert given not in desk.outcomes, "somebody else waits for it"
    assert lane.channel is not None
    lane.channel.close()


def test_close_answers_for_everything(desk: Desk) -> None:
    numbers = [desk.deliver(user) for user in "abcdef"]
    desk.grant()
    desk.agents.close()
    desk.loop.run()
    assert desk.outcomes.keys() == set(numbers)
    assert set(desk.outcomes.values()) == {agents.GONE, agents.DROPPED}
    assert all(agent.is_ended for agent in desk.serving)


def test_delivery_that_is_ordered_from_within_an_answer_is_not_lost(desk: Desk) -> None:
    """A .forward leads to more deliveries while answers are being taken, or an agent's end is being told."""
    seen: list[int] = []
    n = desk.deliver("alice")
    agent, = desk.grant()
    asked, = agent.requests()
    desk.replies[n] = _Again(desk, seen)
    agent.channel.close()
    desk.loop.run()
    agent, = desk.grant()
    agent.answer(*agent.requests())
    desk.loop.run()
    assert desk.outcomes[seen[0]] == SENT
    assert asked.n == n


class _Again(list[Reply]):
    """Orders one more delivery for the same user when a reply is added."""

    def __init__(self, desk: Desk, seen: list[int]) -> None:
        super().__init__()
        self._desk, self._seen = desk, seen

    def append(self, reply: Reply) -> None:
        super().append(reply)
        self._seen.append(self._desk.deliver("alice"))
