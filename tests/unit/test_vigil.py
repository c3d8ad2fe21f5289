"""What waits for deliveries that outlive their runner: each outcome is written down, whatever becomes of the others."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.daemon import changes
from pysendmail.daemon.agents import Job, Lane
from pysendmail.daemon.passes import Passes
from pysendmail.daemon.vigil import Vigil
from pysendmail.deliver.packet import MAX_PACKET
from pysendmail.deliver.request import REFUSED, Reply
from pysendmail.mail.outcome import Outcome, failed
from pysendmail.paths import Paths
from pysendmail.spool.claims import InWork
from tests.tools.running import SENT, Running

WITHIN = 10.0  # seconds; no test takes them


class Agent:
    """The other end of a lane that has one delivery."""

    def __init__(self, job: Job) -> None:
        ours, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(WITHIN)
        self.n = job.request.n
        self.lane = Lane("somebody", "somebody", WITHIN, 1, 0.0, sent={self.n: job}, channel=ours)

    def answer(self, outcome: Outcome = SENT, n: int | None = None) -> None:
        self.channel.send(Reply(self.n if n is None else n, outcome).to_packet())

    def is_left(self) -> bool:
        """Whether our end is closed. Waits for it, and fails if it is not."""
        return self.channel.recv(MAX_PACKET) == b""


class Scene:
    """A message for bob and one for carol, which agents have, and a vigil that has claimed them."""

    def __init__(self, paths: Paths, claimed: tuple[str, ...] = ("bob", "carol")) -> None:
        self.running = Running(paths)
        self.ids = {user: self.running.submit(user) for user in ("bob", "carol")}
        self.agents = {one.user: Agent(one.job) for one in self.running.deliveries()}
        asyncio.run(self.running.runner.stop(0.0))
        passes = self.running.runner.passes
        passes.is_over = True
        self.vigil = Vigil(passes, self.running.events, [agent.lane for agent in self.agents.values()])
        self.queue, active = self.running.queue, self.running.runner.active
        for user in claimed:
            p = active[self.ids[user]]
            self.vigil.claims[self.ids[user]] = p, self.queue.claim(p.message)
        self.supervisor, self._alive = os.pipe()

    def end_supervisor(self) -> None:
        os.close(self._alive)
        self._alive = -1

    def keep(self) -> None:
        self.vigil.keep(self.supervisor, WITHIN)

    def verbs(self, user: str) -> list[str]:
        """What has happened to somebody's message, by its journal."""
        lines = Path(f"{self.running.paths.journal}/{self.ids[user]}").read_text().split("\n")[:-1]
        return [line.partition('"verb":"')[2].partition('"')[0] for line in lines]

    def close(self) -> None:
        for agent in self.agents.values():
            agent.channel.close()
            if agent.lane.channel is not None:
                agent.lane.channel.close()
        for _, fd in self.vigil.claims.values():
            os.close(fd)
        for fd in (self.supervisor, self._alive):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def scene(paths: Paths) -> Iterator[Scene]:
    made = Scene(paths)
    yield made
    made.close()


def test_outcomes_are_in_the_journal_and_claims_gone(scene: Scene) -> None:
    scene.agents["bob"].answer()
    scene.agents["carol"].answer(failed("5.2.1", "no"))
    scene.keep()
    assert (scene.verbs("bob"), scene.verbs("carol")) == (["expanded", "delivered"], ["expanded", "failed"])
    assert scene.vigil.claims == {}
    assert scene.running.places() == dict.fromkeys(scene.ids.values(), "new")


def test_answer_for_a_message_without_a_claim_costs_no_other(paths: Paths) -> None:
    """There was no descriptor for its claim, say."""
    scene = Scene(paths, claimed=("carol",))
    scene.agents["bob"].answer()
    scene.agents["carol"].answer()
    scene.keep()
    assert (scene.verbs("bob"), scene.verbs("carol")) == (["expanded"], ["expanded", "delivered"])
    scene.close()


def test_fault_of_ours_meets_one_message_and_touches_no_file(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Passes.take_outcome

    def fail_for_bob(self: Passes, p: object, number: int, outcome: Outcome) -> None:
        if outcome.is_failed:
            raise ValueError("something that cannot be")
        take(self, p, number, outcome)  # type: ignore[arg-type]

    monkeypatch.setattr(Passes, "take_outcome", fail_for_bob)
    scene.agents["bob"].answer(failed("5.2.1", "no"))
    scene.agents["carol"].answer()
    scene.keep()
    assert (scene.verbs("bob"), scene.verbs("carol")) == (["expanded"], ["expanded", "delivered"])
    assert scene.running.places() == dict.fromkeys(scene.ids.values(), "new")
    assert len(scene.running.lines("something that cannot be")) == 1


def test_answer_that_is_there_when_the_supervisor_ends_is_not_lost(scene: Scene) -> None:
    scene.agents["bob"].answer()
    scene.end_supervisor()
    scene.keep()
    assert scene.verbs("bob") == ["expanded", "delivered"]
    assert set(scene.vigil.claims) == {scene.ids["carol"]}


def test_agent_that_has_nothing_more_to_do_is_let_go(scene: Scene) -> None:
    """Else it would stay as long as the others work."""
    scene.agents["bob"].answer()
    scene.agents["carol"].answer(failed("4.3.0", "the user database is away"), n=REFUSED)
    scene.end_supervisor()
    scene.keep()
    assert scene.agents["bob"].is_left()
    assert scene.agents["carol"].is_left()
    assert (scene.verbs("carol"), scene.vigil.claims) == (["expanded"], {}), "it is looked up again by the next runner"


# ---- the next runner


def test_next_runner_changes_nothing_of_what_is_claimed(scene: Scene) -> None:
    """The process that waits writes to the same journal."""
    scene.running.restart()
    runner, found = scene.running.runner, scene.ids["bob"]
    before = scene.verbs("bob")
    for change in changes.CHANGES.values():
        if change is changes.release:
            continue  # nothing to do for what is not held
        with pytest.raises(InWork, match="it is being delivered by an earlier runner"):
            change(runner, runner.waiting.entries[found])
    assert (scene.verbs("bob"), scene.running.places()[found]) == (before, "new")


def test_report_that_is_claimed_is_in_the_queue(scene: Scene) -> None:
    scene.running.restart()
    assert scene.running.runner.is_known(scene.ids["bob"])


def test_message_that_is_to_be_held_is_held_after_a_reload(paths: Paths) -> None:
    running = Running(paths)
    found = running.submit("bob")
    running.runner.active[found].hold = "by the administrator"
    asyncio.run(running.runner.stop(0.0))
    running.restart()
    assert running.places() == {found: "hold"}
