"""The runner's end of the relays, with relay processes that do what a test wants: sharing, outages, their end."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pysendmail.config import Config, LimitSettings, QueueSettings
from pysendmail.daemon import fleet, lanes, relays, starts
from pysendmail.daemon.relays import Job, Relays, mark
from pysendmail.deliver import shipment
from pysendmail.deliver.packet import MAX_PACKET
from pysendmail.deliver.shipment import DOWN, FINE, LOGIN, ROUGH, Answer, Shipment
from pysendmail.events import Events
from pysendmail.mail.envelope import Recipient
from pysendmail.mail.outcome import Outcome, deferred, delivered

NOW = 1_800_000_000.0
LATER = deferred("4.4.1", "cannot connect to mx: Connection refused")
TOOK = delivered("250 2.0.0 taken")


class FakeRelay:
    """The other end of one channel. held: shipments that came and are not answered, oldest first. fds: of all, open."""

    def __init__(self, channel: socket.socket, came: Callable[[], None]) -> None:
        self.channel, self._came = channel, came
        self.held: list[Shipment] = []
        self.seen: list[Shipment] = []
        self.packets = 0
        self.forgot = 0
        self.fds: list[int] = []
        self.is_closed = False
        channel.setblocking(False)
        asyncio.get_running_loop().add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        packet, fds, _, _ = socket.recv_fds(self.channel, MAX_PACKET, shipment.MAX_BATCH)
        self.fds += fds
        self.packets += bool(packet)
        if not packet:
            self.end()
        else:
            found = shipment.read_shipments(packet)
            if found is None:
                self.forgot += 1
            else:
                assert len(found) == len(fds)
                self.held += found
                self.seen += found
        self._came()

    def answer(self, *held: Shipment, outcome: Outcome = TOOK, **more: Any) -> None:
        answers = [Answer(one.n, (outcome,) * len(one.recipients), "mx [192.0.2.1]", **more) for one in held]
        for one in held:
            self.held.remove(one)
        for packet in shipment.answer_packets(answers):
            self.channel.send(packet)

    def end(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.channel.close()
            for fd in self.fds:
                os.close(fd)
            self.fds = []


class Runner:
    """A runner that has nothing but relays. back: what came back, {n: (answer, due)}."""

    def __init__(self, **limits: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.log: list[str] = []
        self.asked: list[dict[str, object]] = []
        self.made: list[FakeRelay] = []
        self.back: dict[int, tuple[Answer, float]] = {}
        self.revived: list[str] = []
        self.refusal: Outcome | None = None
        self.is_deaf = False  # the spawner does not answer
        self.now = NOW
        self._changed = asyncio.Event()
        self._number = 0
        config = Config(queue=QueueSettings(retry_first=300, retry_max=3600), limits=LimitSettings(**limits))
        self.relays = Relays(self.loop, config, self._ask, Events(lambda _, text: self.log.append(text)),
                             lambda: self.now, self.revived.append, chance=lambda: 0.5)

    def _ask(self, value: dict[str, object]) -> None:
        self.asked.append(value)
        if self.is_deaf or "relay" not in value:
            return
        if self.refusal is not None:
            self.loop.call_soon(self.relays.granted, {"n": value["n"], "error": self.refusal.to_json()}, [])
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.made.append(FakeRelay(theirs, self._changed.set))
        self.loop.call_soon(self.relays.granted, {"n": value["n"], "relay": True, "pid": 4000 + len(self.made)},
                            [ours.detach()])

    def deliver(self, domain: str = "example.net", *, count: int = 1, recipients: int = 1,
                sender: str = "a@example.org", open_file: Callable[[], int] | None = None) -> list[int]:
        """Hand over shipments; their numbers."""
        numbers = []
        for _ in range(count):
            self._number += 1
            whom = tuple(Recipient(f"u{n}@{domain}") for n in range(recipients))
            sent = Shipment(self._number, "0WkDdmTe001000", 0, 10, sender, whom, domain)
            numbers.append(self._number)
            self.relays.deliver(Job(sent, open_file or _null, self._done(self._number)))
        return numbers

    def _done(self, n: int) -> Callable[[Answer, float], None]:
        def done(answer: Answer, due: float) -> None:
            assert n not in self.back, "answered twice"
            assert answer.n == n
            self.back[n] = answer, due
            self._changed.set()
        return done

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(20):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def relay(self, number: int = 0, held: int = 1) -> FakeRelay:
        """A relay process that has so many shipments."""
        await self.until(lambda: len(self.made) > number and len(self.made[number].held) >= held)
        return self.made[number]

    async def settled(self, numbers: list[int]) -> list[tuple[Answer, float]]:
        await self.until(lambda: all(n in self.back for n in numbers))
        return [self.back[n] for n in numbers]

    async def quiet(self) -> None:
        """Let everything happen that can happen without anybody doing something."""
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def outstanding(self) -> int:
        """Shipments that are with a relay or wait for one."""
        return sum(lane.sent + len(lane.waiting) for lane in self.relays._lanes)

    def close(self) -> None:
        self.relays.close()
        for one in self.made:
            one.end()


def _null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def run(scenario: Callable[[Runner], Awaitable[None]], **limits: int) -> None:
    async def whole() -> None:
        before = len(os.listdir("/proc/self/fd"))
        runner = Runner(**limits)
        try:
            await scenario(runner)
        finally:
            runner.close()
            await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left open"
        assert runner.outstanding == 0
    asyncio.run(whole())


# ---- going out and coming back


def test_a_shipment_goes_out_and_its_answer_comes_back() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(recipients=2)
        relay = await runner.relay()
        assert runner.outstanding == 1
        relay.answer(*relay.held, dsn_is_passed=True)
        ((answer, due),) = await runner.settled(numbers)
        assert answer.outcomes == (TOOK, TOOK)
        assert (answer.relay, answer.dsn_is_passed, due) == ("mx [192.0.2.1]", True, 0.0)
        assert runner.asked == [{"relay": True, "n": 1}]
    run(scenario)


def test_what_is_there_at_the_same_moment_shares_a_packet() -> None:
    async def scenario(runner: Runner) -> None:
        runner.deliver(count=10)
        relay = await runner.relay(held=10)
        assert relay.packets == 1
    run(scenario)


def test_notes_of_a_relay_are_logged_with_the_message() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held, notes=("something odd",))
        await runner.settled(numbers)
        assert runner.log == ["0WkDdmTe001000: something odd"]
    run(scenario)


def test_what_became_of_tls_is_logged() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held, handshakes=("relay=mx.example [192.0.2.1], version=TLSv1.3",))
        await runner.settled(numbers)
        assert runner.log == ["STARTTLS=client, relay=mx.example [192.0.2.1], version=TLSv1.3"]
    run(scenario)


def test_a_message_that_cannot_be_opened_does_not_keep_others_back() -> None:
    def gone() -> int:
        raise FileNotFoundError(2, "No such file or directory")

    async def scenario(runner: Runner) -> None:
        bad, good = runner.deliver(open_file=gone), runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held)
        ((answer, _), (other, _)) = await runner.settled([*bad, *good])
        assert (answer.outcomes[0].status, answer.is_tried) == ("4.3.0", False)
        assert "No such file" in answer.outcomes[0].reason
        assert other.outcomes == (TOOK,)
    run(scenario)


def test_addresses_too_long_for_a_packet_are_refused_and_others_go() -> None:
    async def scenario(runner: Runner) -> None:
        long = Shipment(900, "0WkDdmTe001000", 0, 10, "x" * 300_000, (Recipient("a@example.net"),), "example.net")
        runner.relays.deliver(Job(long, _null, runner._done(900)))
        numbers = runner.deliver(count=3)
        relay = await runner.relay(held=3)
        relay.answer(*relay.held)
        found = await runner.settled([900, *numbers])
        assert [answer.outcomes[0].status for answer, _ in found] == ["4.3.0", "2.0.0", "2.0.0", "2.0.0"]
    run(scenario)


def test_an_answer_that_does_not_fit_its_shipment_is_none() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(recipients=2)
        relay = await runner.relay()
        relay.channel.send(shipment.answer_packets([Answer(numbers[0], (TOOK,)), Answer(777, (TOOK,))])[0])
        ((answer, _),) = await runner.settled(numbers)
        assert [outcome.status for outcome in answer.outcomes] == ["4.3.0", "4.3.0"]
    run(scenario)


# ---- sharing


def test_a_destination_has_no_more_with_a_relay_than_its_connections_can_use() -> None:
    async def scenario(runner: Runner) -> None:
        runner.deliver(count=100)
        relay = await runner.relay(held=2 * lanes.DEPTH)
        await runner.quiet()
        assert len(relay.held) == 2 * lanes.DEPTH
        while len(relay.seen) < 100:
            relay.answer(relay.held[0])
            await runner.quiet()
        assert relay.seen[0].width == 2
        assert relay.seen[-1].width == 5
    run(scenario, deliveries_per_destination=5)


def test_one_message_for_another_destination_does_not_wait_behind_a_thousand() -> None:
    async def scenario(runner: Runner) -> None:
        runner.deliver("big.example", count=1000)
        relay = await runner.relay(held=lanes.DEPTH)
        for _ in range(20):
            relay.answer(relay.held[0])
            await runner.quiet()
        (small,) = runner.deliver("small.example")
        answered = 0
        while not any(one.n == small for one in relay.held):
            relay.answer(relay.held[0])
            answered += 1
            await runner.quiet()
        assert answered <= lanes.TURN
    run(scenario, deliveries=4, deliveries_per_destination=4)


def test_slow_destinations_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SILENT_AFTER", 0.05)
    monkeypatch.setattr(relays, "TICK", 0.02)

    async def scenario(runner: Runner) -> None:
        for n in range(2):
            runner.deliver(f"slow{n}.example")
        relay = await runner.relay(held=2)
        (quick,) = runner.deliver("quick.example")
        await runner.quiet()
        assert len(relay.held) == 2
        await runner.relay(held=3)
        assert relay.held[2].n == quick
    run(scenario, deliveries=2)


def test_what_waits_behind_a_stalled_destination_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "STALLED_AFTER", 0.05)
    monkeypatch.setattr(relays, "TICK", 0.02)

    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=30)
        relay = await runner.relay(held=16)
        waiting = await runner.settled(numbers[16:])
        assert {(answer.outcomes[0].status, answer.is_tried) for answer, _ in waiting} == {("4.4.5", False)}
        ((answer, _),) = await runner.settled(runner.deliver())
        assert not answer.is_tried
        relay.answer(*relay.held)
        await runner.settled(numbers)
    run(scenario)


def test_a_second_process_comes_when_the_first_is_busy() -> None:
    async def scenario(runner: Runner) -> None:
        for n in range(9):
            runner.deliver(f"d{n}.example", count=8)
        await runner.until(lambda: len(runner.made) == 2)
        runner.deliver("new.example")
        second = await runner.relay(1)
        assert [one.domain for one in second.held] == ["new.example"]
        runner.deliver("d0.example")  # where the others for it are
        await runner.quiet()
        assert len(second.held) == 1
        assert runner.asked == [{"relay": True, "n": 1}, {"relay": True, "n": 2}]
    run(scenario, deliveries=1000, deliveries_per_destination=1)


# ---- outages


def test_a_destination_that_is_down_is_tried_by_one_and_answers_all() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=20)
        relay = await runner.relay(held=16)
        relay.answer(relay.held[0], outcome=LATER, state=DOWN)
        waiting = await runner.settled([numbers[0], *numbers[16:]])
        assert {(answer.outcomes[0], due) for answer, due in waiting} == {(LATER, NOW + 300)}
        assert [answer.is_tried for answer, _ in waiting] == [True, False, False, False, False]
        relay.answer(*relay.held, outcome=LATER, state=DOWN, is_tried=False)
        assert {due for _, due in await runner.settled(numbers)} == {NOW + 300}
        ((answer, due),) = await runner.settled(runner.deliver())
        assert (answer.outcomes[0], answer.is_tried, due) == (LATER, False, NOW + 300)
        assert runner.relays.left_alone(mark("example.net")) == pytest.approx(NOW + 300, abs=20)
        assert runner.relays.left_alone(mark("other.example")) == 0.0
        assert len(relay.seen) == 16
    run_with_frozen_time(scenario)


def run_with_frozen_time(scenario: Callable[[Runner], Awaitable[None]], **limits: int) -> None:
    """The loop's time stands still but for what `advance` adds, so that due times can be compared."""
    async def whole(runner: Runner) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        loop.time = lambda: at + runner.now - NOW  # type: ignore[method-assign]
        try:
            await scenario(runner)
        finally:
            del loop.time  # type: ignore[method-assign]
    run(whole, **limits)


def test_when_it_is_due_one_goes_first_and_its_success_revives_the_others() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held, outcome=LATER, state=DOWN)
        await runner.settled(numbers)
        runner.now += 301
        probe, other = runner.deliver(count=2)
        ((answer, due),) = await runner.settled([other])
        assert (answer.is_tried, due) == (False, runner.now + 600)
        await runner.relay()
        assert [one.n for one in relay.held] == [probe]
        relay.answer(*relay.held)
        await runner.settled([probe])
        assert runner.revived == [mark("example.net")]
        assert runner.relays.left_alone(mark("example.net")) == 0.0
        runner.deliver(count=5)
        await runner.relay(held=5)
    run_with_frozen_time(scenario)


def test_each_failed_probe_doubles_the_wait() -> None:
    async def scenario(runner: Runner) -> None:
        waits = []
        for _ in range(6):
            numbers = runner.deliver()
            relay = await runner.relay()
            relay.answer(*relay.held, outcome=LATER, state=DOWN)
            ((_, due),) = await runner.settled(numbers)
            waits.append(due - runner.now)
            runner.now = due + 1
        assert waits == [300, 600, 1200, 2400, 3600, 3600]
        assert runner.revived == []
    run_with_frozen_time(scenario)


def test_a_probe_that_is_lost_makes_the_next_shipment_one() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held, outcome=LATER, state=DOWN)
        await runner.settled(numbers)
        runner.now += 301
        probe = runner.deliver()
        await runner.relay()
        relay.answer(*relay.held, outcome=LATER, is_tried=False)  # it found no time for it
        await runner.settled(probe)
        (again,) = runner.deliver()
        await runner.relay()
        assert [one.n for one in relay.held] == [again]
    run_with_frozen_time(scenario)


def test_flushing_tries_everything_again_at_once() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held, outcome=LATER, state=DOWN)
        await runner.settled(numbers)
        runner.relays.flush()
        await runner.until(lambda: relay.forgot == 1)
        runner.deliver(count=3)
        await runner.relay(held=3)
        assert runner.relays.left_alone(mark("example.net")) == 0.0
    run(scenario)


def test_a_refused_login_is_told_once_and_mail_waits() -> None:
    refused = deferred("4.7.8", "smarthost said: 535 5.7.8 wrong password")

    async def scenario(runner: Runner) -> None:
        for _ in range(3):
            numbers = runner.deliver()
            relay = await runner.relay()
            relay.answer(*relay.held, outcome=refused, state=LOGIN)
            ((_, due),) = await runner.settled(numbers)
            runner.now = due + 1
        assert [line for line in runner.log if "535" in line] == [
            "SYSERR(root): mail for example.net waits: smarthost said: 535 5.7.8 wrong password"]
        assert runner.relays.status()[0]["state"] == "login"
    run_with_frozen_time(scenario)


def test_a_broken_conversation_is_no_outage_but_three_in_a_row_are() -> None:
    broke = deferred("4.4.2", "lost connection")

    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=20)
        relay = await runner.relay(held=16)
        dues = []
        for state in (ROUGH, ROUGH, FINE, ROUGH, ROUGH, ROUGH):
            first = relay.held[0]
            relay.answer(first, outcome=TOOK if state == FINE else broke, state=state)
            dues.append((await runner.settled([first.n]))[0][1])
        assert dues == [0.0, 0.0, 0.0, 0.0, 0.0, NOW + 300]
        waiting = [n for n in numbers if n in runner.back][6:]
        assert {(runner.back[n][0].outcomes[0], runner.back[n][1]) for n in waiting} <= {(broke, NOW + 300)}
    run_with_frozen_time(scenario)


# ---- processes


def test_a_process_that_ends_leaves_what_it_had_deferred_and_what_waited_goes_to_another() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=20)
        relay = await runner.relay(held=16)
        runner.relays._fleet._processes[0].began -= starts.STEADY_AFTER
        relay.end()
        lost = await runner.settled(numbers[:16])
        assert {(answer.outcomes[0].status, answer.is_tried) for answer, _ in lost} == {("4.3.0", True)}
        assert "that arrives twice" in lost[0][0].outcomes[0].reason
        assert any("16 shipments unanswered" in line for line in runner.log)
        second = await runner.relay(1, held=4)
        assert [one.n for one in second.held] == numbers[16:]
    run(scenario)


def test_processes_that_end_at_once_are_not_asked_for_without_end() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=3)
        relay = await runner.relay(held=3)
        relay.end()
        await runner.settled(numbers)
        ((answer, _),) = await runner.settled(runner.deliver())
        assert (answer.outcomes[0].status, answer.is_tried) == ("4.3.0", False)
        assert len(runner.asked) == 1
        runner.now += starts.RESTART_FIRST
        numbers = runner.deliver()
        relay = await runner.relay(1)
        relay.end()
        await runner.settled(numbers)
        runner.now += starts.RESTART_FIRST * 1.5
        ((answer, _),) = await runner.settled(runner.deliver())
        assert not answer.is_tried
        runner.now += starts.RESTART_FIRST
        runner.deliver()
        await runner.relay(2)
    run_with_frozen_time(scenario)


def test_no_process_means_that_mail_waits() -> None:
    async def scenario(runner: Runner) -> None:
        runner.refusal = deferred("4.3.0", "cannot start a process: Resource temporarily unavailable")
        found = await runner.settled(runner.deliver(count=2) + runner.deliver("other.example"))
        assert {answer.outcomes[0].reason for answer, _ in found} == {runner.refusal.reason}
        assert not any(answer.is_tried for answer, _ in found)
    run(scenario)


def test_a_process_that_no_descriptor_was_free_for_is_asked_for_again() -> None:
    async def scenario(runner: Runner) -> None:
        runner.is_deaf = True
        numbers = runner.deliver()
        await runner.quiet()
        runner.relays.granted({"n": runner.asked[0]["n"], "relay": True, "pid": 4000}, [])
        ((answer, _),) = await runner.settled(numbers)
        assert (answer.outcomes[0].status, answer.is_tried) == ("4.3.0", False)
        runner.is_deaf = False
        runner.now += starts.RESTART_FIRST
        runner.deliver()
        await runner.relay()
    run_with_frozen_time(scenario)


def test_a_spawner_that_is_gone_means_the_same() -> None:
    async def scenario(runner: Runner) -> None:
        def gone(value: dict[str, object]) -> None:
            raise BrokenPipeError(32, "Broken pipe")
        runner.relays._fleet._starts._ask = gone
        ((answer, _),) = await runner.settled(runner.deliver())
        assert answer.outcomes[0].status == "4.3.0"
        assert "Broken pipe" in answer.outcomes[0].reason
    run(scenario)


def test_an_answer_of_the_spawner_that_nobody_waits_for_is_closed() -> None:
    async def scenario(runner: Runner) -> None:
        read, write = os.pipe()
        runner.relays.granted({"n": 5, "relay": True, "pid": 1}, [read])
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)
    run(scenario)


def test_a_process_that_sends_nonsense_is_done_with() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        relay.channel.send(b"nonsense")
        ((answer, _),) = await runner.settled(numbers)
        assert answer.outcomes[0].status == "4.3.0"
        await runner.until(lambda: relay.is_closed)
    run(scenario)


def test_a_process_beyond_all_its_limits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "TICK", 0.01)

    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver()
        relay = await runner.relay()
        for job in runner.relays._fleet._processes[0].sent.values():
            job.until = 0.0
        ((answer, _),) = await runner.settled(numbers)
        assert answer.outcomes[0].reason == fleet.SLOW.reason
        assert runner.asked[-1] == {"end": 4001}
        await runner.until(lambda: relay.is_closed)
    run(scenario)


def test_a_process_without_work_is_ended_and_another_asked_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "TICK", 0.01)
    monkeypatch.setattr(fleet, "IDLE", 0.05)

    async def scenario(runner: Runner) -> None:
        runner.deliver()
        relay = await runner.relay()
        relay.answer(*relay.held)
        await runner.until(lambda: relay.is_closed)
        runner.deliver()
        await runner.relay(1)
    run(scenario)


def test_of_several_processes_without_work_one_is_kept_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "TICK", 0.01)
    monkeypatch.setattr(fleet, "BUSY_AT", 1)
    monkeypatch.setattr(fleet, "SPARE_IDLE", 0.0)

    async def scenario(runner: Runner) -> None:
        runner.deliver("one.example")
        first = await runner.relay()
        runner.deliver("other.example")
        await runner.until(lambda: len(runner.made) == 2 and runner.made[1].is_closed)
        first.answer(*first.held)
        await asyncio.sleep(5 * relays.TICK)
        assert not first.is_closed
    run(scenario)


def test_a_relay_that_does_not_read_gets_its_shipments_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MAX_PROCESSES", 1)

    async def scenario(runner: Runner) -> None:
        runner.deliver()
        relay = await runner.relay()
        loop = asyncio.get_running_loop()
        loop.remove_reader(relay.channel.fileno())
        for n in range(300):
            runner.deliver(f"d{n}.example", sender="x" * 2000)
            await runner.quiet()
        assert len(runner.relays._fleet._processes[0].sent) < 301
        assert runner.outstanding == 301
        loop.add_reader(relay.channel.fileno(), relay._readable)
        while len(runner.back) < 301:
            await runner.until(lambda: relay.held or len(runner.back) == 301)
            relay.answer(*relay.held)
            await runner.quiet()
    run(scenario, deliveries=1000)


def test_closing_gives_everything_back() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver(count=20)
        await runner.relay(held=16)
        runner.relays.close()
        found = await runner.settled(numbers)
        assert sum(answer.is_tried for answer, _ in found) == 16
    run(scenario)


def test_status_names_what_is_down_and_what_is_at_work() -> None:
    async def scenario(runner: Runner) -> None:
        numbers = runner.deliver("down.example")
        relay = await runner.relay()
        relay.answer(*relay.held, outcome=LATER, state=DOWN)
        await runner.settled(numbers)
        runner.deliver("up.example", count=30)
        await runner.relay(held=16)
        down, up = runner.relays.status()
        assert (down["destination"], down["state"], down["reason"], down["failures"], down["next_try"]) == (
            "down.example", "down", LATER.reason, 1, NOW + 300)
        assert (up["destination"], up["state"], up["waiting"], up["sent"], up["connections"]) == (
            "up.example", "busy", 14, 16, 2)
    run_with_frozen_time(scenario)
