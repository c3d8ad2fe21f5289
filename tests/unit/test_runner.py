"""The runner's decisions: when what is tried, what the clock and the disk may do to it, and what is never forgotten."""

import errno
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pysendmail.config import LimitSettings
from pysendmail.daemon import runner as runner_module
from pysendmail.daemon import scanning
from pysendmail.daemon.agents import DROPPED
from pysendmail.daemon.load import LOADED_PAUSE
from pysendmail.daemon.runner import IN_WORK_AGAIN
from pysendmail.daemon.scanning import Scanning
from pysendmail.daemon.settle import BUSY_AGAIN
from pysendmail.daemon.verdict import Verdict
from pysendmail.deliver.request import Reply
from pysendmail.mail.outcome import deferred, failed
from pysendmail.mail.target import FORWARDED, Target
from pysendmail.paths import Paths
from pysendmail.spool import durable
from pysendmail.spool.queue import Message
from tests.tools.running import SENT, Running

YEAR = 365 * 86_400.0
LATER = deferred("4.2.0", "mailbox is locked")


@pytest.fixture
def running(paths: Paths) -> Running:
    return Running(paths)


def only(running: Running) -> Any:
    """The one delivery that agents have been given."""
    one, = running.deliveries()
    return one


def test_delivered_message_is_forgotten(running: Running) -> None:
    found = running.submit("bob")
    assert (found in running.runner.active, running.places()) == (True, {found: "new"})
    only(running).answer()
    running.loop.run()
    assert (running.runner.active, running.places(), os.listdir(running.paths.intake)) == ({}, {}, [])
    assert running.runner.shares._files == {}


def test_deferred_message_waits_longer_each_time(running: Running) -> None:
    found = running.submit("bob")
    waits = []
    for _ in range(6):
        only(running).answer(LATER)
        before = running.loop.now
        while not running.agents.given:
            running.loop.advance(1)
        waits.append(running.loop.now - before)
    assert waits == sorted(waits)
    assert 300 <= waits[0] <= 302
    assert 3600 <= waits[-1] <= 3602
    assert running.places() == {found: "cur"}


# ---- clocks that jump


@pytest.mark.parametrize("jump", [10 * YEAR, YEAR, 6 * 86_400.0])
def test_clock_that_jumps_ahead_expires_nothing_new(running: Running, jump: float) -> None:
    running.submit("bob")
    only(running).answer(LATER)
    running.skew = jump
    running.loop.advance(11)
    only(running).answer(LATER)
    running.loop.run()
    assert len(running.runner.waiting.entries) == 1
    assert not running.lines("gave up")


def test_clock_that_jumps_ahead_makes_all_due(running: Running) -> None:
    numbers = [running.submit("bob") for _ in range(5)]
    for one in running.deliveries():
        one.answer(LATER)
    running.skew = 3600.0
    running.loop.advance(11)
    assert sorted(one.queue_id for one in running.deliveries()) == numbers


@pytest.mark.parametrize("jump", [3600.0, 10 * YEAR])
def test_nothing_waits_for_the_time_by_which_the_clock_went_back(running: Running, jump: float) -> None:
    running.submit("bob")
    only(running).answer(LATER)
    running.skew = -jump
    running.loop.advance(3600 * 1.2)
    only(running).answer(SENT)
    running.loop.run()
    assert running.places() == {}


def test_start_after_the_clock_went_back(running: Running) -> None:
    running.submit("bob")
    only(running).answer(LATER)
    running.loop.run()
    running.skew = -10 * YEAR
    running.restart()
    running.loop.advance(3600 * 1.2)
    only(running).answer(SENT)
    running.loop.run()
    assert running.places() == {}


def test_mail_from_the_future_is_new_mail(running: Running) -> None:
    found = running.submit("bob")
    running.skew = -YEAR
    only(running).answer(LATER)
    running.loop.run()
    entry = running.runner.waiting.entries[found]
    assert entry.due - running.clock() < 3600 * 1.2
    assert running.lines(rf"^{found}: to=<bob.*delay=00:00:00")


def test_ids_do_not_repeat_when_the_clock_goes_back(running: Running) -> None:
    first = running.submit("bob")
    running.skew = -YEAR
    second = running.submit("bob")
    running.restart()
    third = running.submit("bob")
    assert len({first, second, third}) == 3
    assert running.places().keys() == {first, second, third}


# ---- time that passes


def test_old_message_is_given_up_after_enough_attempts(paths: Paths) -> None:
    running = Running(paths, lifetime=4000, delay_warning=0)
    found = running.submit("bob")
    attempts = 0
    while found not in {line[:14] for line in running.lines("gave up after 4000 s: mailbox is locked")}:
        only(running).answer(LATER)
        attempts += 1
        while not running.agents.given and found in running.runner.waiting:
            running.loop.advance(10)
        assert attempts < 20
    assert attempts >= 3
    report, = running.deliveries()
    assert (report.user, report.queue_id[1:]) == ("alice", found[1:])


@pytest.mark.parametrize(("lifetime", "bounce_lifetime"), [(400_000, 4000), (4000, 400_000)])
def test_report_is_given_up_no_later_than_mail(paths: Paths, lifetime: int, bounce_lifetime: int) -> None:
    running = Running(paths, lifetime=lifetime, bounce_lifetime=bounce_lifetime)
    found = running.submit("nobody-there")
    while not running.lines("gave up after 4000 s"):
        for one in running.deliveries():
            one.answer(LATER)
        running.loop.advance(60)
    assert running.lines(rf"^A{found[1:]}: to=<alice.*dsn=5.4.7")


def test_delay_is_told_once(paths: Paths) -> None:
    running = Running(paths, delay_warning=1000, retry_first=600)
    found = running.submit("bob")
    only(running).answer(LATER)
    running.loop.advance(700)
    only(running).answer(LATER)
    running.loop.run()
    assert running.deliveries() == []
    running.loop.advance(1300)
    only(running).answer(LATER)
    warning = only(running)
    assert warning.user == "alice"
    assert running.lines(rf"^{found}: A{found[1:]}: sender notify: mailbox is locked")
    warning.answer()
    running.loop.advance(3700)
    only(running).answer(LATER)
    assert running.deliveries() == [], "a second warning"


# ---- users who keep their agents busy


def test_busy_agent_is_asked_again_soon_and_costs_no_attempt(running: Running) -> None:
    found = running.submit("bob")
    for _ in range(5):
        only(running).busy()
        running.loop.advance(BUSY_AGAIN * 2)
    only(running).answer(LATER)
    running.loop.run()
    assert running.runner.waiting.entries[found].attempts == 1


def test_who_is_busy_for_long_is_asked_less_often(running: Running) -> None:
    """Thousands of messages for one stopped agent must not be read from the disk every few seconds."""
    running.submit("bob")
    asked = 0
    for _ in range(3600):
        for one in running.deliveries():
            asked += 1
            one.busy()
        running.loop.advance(1)
    assert 10 < asked < 100


# ---- the end of a runner


def test_what_was_dropped_at_the_end_has_not_been_tried(running: Running) -> None:
    found = running.submit("bob", "carol")
    first, second = running.deliveries()
    first.job.done(Reply(first.job.request.n, DROPPED))
    second.answer(SENT)
    running.restart()
    running.loop.advance(BUSY_AGAIN + 1)
    again = only(running)
    assert (again.user, running.runner.active[found].message.state.attempts) == ("bob", 0)


def test_message_that_an_earlier_runner_waits_for_is_left_alone(running: Running) -> None:
    found = running.submit("bob", "carol")
    running.deliveries()[0].answer(SENT)
    running.loop.advance(1)
    message = running.runner.active[found].message
    held = running.queue.claim(message)
    running.restart()
    running.loop.advance(60)
    assert (running.deliveries(), running.places()) == ([], {found: "new"})
    os.close(held)
    running.loop.advance(IN_WORK_AGAIN + 1)
    assert only(running).user == "carol"


# ---- a host that has too much to do


def test_runner_on_a_slow_disk_gives_signs_of_life(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this happens before it is back in its loop, and a sync may take half a minute."""
    happened: list[str] = []
    sync = durable.sync

    def slow(fd: int) -> None:
        happened.append("sync")
        sync(fd)

    monkeypatch.setattr(durable, "sync", slow)
    running.events.alive = lambda: happened.append("alive")
    Path(running.paths.aliases).write_text('prog: "|cat"\n')
    queue_only = ((b"Delivery", b"q"), (b"Recipient", b"- - bob"))
    for _ in range(10):
        running.drop([(b"Recipient", b"- - prog")])
        running.drop(queue_only)
    running.runner.wake()
    running.loop.run()
    assert happened.count("sync") == 30
    assert "sync sync sync" not in " ".join(happened)


def test_new_mail_of_a_loaded_host_waits_and_is_tried_all_the_same(running: Running) -> None:
    running.load = 8.5
    running.loop.advance(11)
    found = running.submit("bob")
    assert (running.deliveries(), running.places()) == ([], {found: "cur"})
    running.loop.advance(LOADED_PAUSE + 1)
    one = only(running)
    assert running.runner.active[found].message.state.attempts == 0
    one.answer()
    running.load = 1.0
    running.loop.advance(11)
    running.submit("bob")
    only(running)
    assert len(running.lines("load 8.5 for each processor: new mail is put off")) == 1


def test_reports_that_leave_this_host_are_bounded_and_late_but_lost_is_none(paths: Paths) -> None:
    running = Running(paths, limits=LimitSettings(bounces_per_minute=5))
    for _ in range(12):
        running.submit("nobody-here", sender="stranger@elsewhere.example")
    running.submit("nobody-here", sender="bob@host.example")
    assert [one.user for one in running.deliveries()] == ["bob"], "a report that stays here is no matter of pace"
    counts = [len(running.relays.shipped)]
    for _ in range(3):
        running.loop.advance(59)
        counts.append(len(running.relays.shipped))
        running.loop.advance(1)
    running.loop.advance(120)
    assert counts[0] == 5
    assert all(later - earlier <= 5 for earlier, later in itertools.pairwise(counts))
    assert len(running.relays.shipped) == len({one for one, _ in running.relays.shipped}) == 12


# ---- disks that fail


def failing(monkeypatch: pytest.MonkeyPatch, name: str, is_failing: Callable[..., bool], number: int = 28) -> list[str]:
    """Make a function of durable.py fail; the calls that failed."""
    real, calls = getattr(durable, name), []

    def call(*args: Any, **more: Any) -> Any:
        if is_failing(*args):
            calls.append(name)
            raise OSError(number, os.strerror(number))
        return real(*args, **more)

    monkeypatch.setattr(durable, name, call)
    return calls


def test_full_disk_delays_the_end_of_a_pass_and_counts_it_once(
        running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    found = running.submit("bob", "carol")
    full = [True]
    failing(monkeypatch, "write_all", lambda *_: full[0])
    first, second = running.deliveries()
    first.answer(SENT)
    second.answer(LATER)
    running.loop.advance(200)
    assert found in running.runner.active
    full[0] = False
    running.loop.advance(11)
    assert running.runner.waiting.entries[found].attempts == 1
    running.restart()
    running.loop.advance(400)
    assert only(running).user == "carol"


def test_full_disk_runs_no_command_and_is_no_fault_of_the_message(
        paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was expanded is in the journal before a command runs. Without that the message waits, however often."""
    running = Running(paths, delay_warning=0)
    Path(running.paths.aliases).write_text('robot: "|/bin/true"\npostmaster: root\n')
    full = [True]
    failing(monkeypatch, "open_append", lambda *_: full[0])
    found = running.submit("robot")
    for _ in range(6):
        assert running.deliveries() == [], running.log
        running.loop.advance(4000)
    assert running.places()[found] in ("new", "cur")
    full[0] = False
    running.loop.advance(4000)
    assert only(running).is_slow
    assert '"verb":"expanded"' in Path(f"{running.paths.journal}/{found}").read_text()


def test_sync_that_failed_sends_the_message_back_to_its_source(
        running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is never trusted again; what the submitter wrote is taken in anew, under the same id."""
    found = running.submit("bob")
    broken = [True]
    failing(monkeypatch, "sync", lambda *_: broken[0], 5)
    only(running).answer(LATER)
    running.loop.run()
    assert (os.listdir(running.paths.intake), running.places()) == ([found], {})
    broken[0] = False
    running.loop.advance(21)
    again = only(running)
    assert again.queue_id == found
    again.answer()
    running.loop.run()
    assert (os.listdir(running.paths.intake), running.places()) == ([], {})


def test_no_report_goes_before_its_plan_is_in_the_journal(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    found = running.submit("bob", "nobody-there")
    full = [True]
    failing(monkeypatch, "open_append", lambda *_: full[0])
    only(running).answer(LATER)
    running.loop.advance(100)
    assert running.places() == {found: "new"}
    full[0] = False
    running.loop.advance(11)
    assert only(running).queue_id == "A" + found[1:]
    assert '"verb":"planned"' in Path(f"{running.paths.journal}/{found}").read_text()


def test_report_that_cannot_be_written_keeps_the_message(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]
    failing(monkeypatch, "publish", lambda *args: full[0] and "/queue/tmp/" in args[1])
    found = running.submit("nobody-there")
    running.loop.advance(100)
    assert found in running.runner.active
    assert found in running.places()
    full[0] = False
    running.loop.advance(11)
    report = only(running)
    assert report.user == "alice"
    assert running.places() == {report.queue_id: "new"}


def test_file_that_somebody_removed_is_not_looked_for_without_end(running: Running) -> None:
    found = running.submit("bob")
    running.loop.run()
    only(running).answer(LATER)
    running.loop.run()
    running.loop.advance(310)
    one = only(running)
    os.unlink(f"{running.paths.queue}/cur/" + next(name for name in os.listdir(f"{running.paths.queue}/cur")))
    one.answer(LATER)
    running.loop.run()
    assert found not in running.runner.active
    assert running.lines(rf"^SYSERR\(root\): {found}: its file is gone")


class Scanner(Scanning):
    """A scanner process whose filter takes away the first recipient."""

    def examine(self, message: Message, done: scanning.Done) -> None:
        self._hand_over(scanning._Job(message, done), Verdict(0, removed=(0,)))


def test_filters_word_whose_sync_failed_is_not_mixed_with_what_was_before(
        running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipients in the file may be either these or those, so that nothing is said of them by number."""
    filtered = replace(running.config, milter=replace(running.config.milter, sockets=("unix:/nowhere",)))
    runner = running.runner
    runner._screening._scanning = Scanner(cast(Any, running.loop), filtered, running.paths, runner.queue,
                                          lambda _: None, running.events, sync_directories=True)
    used_up = [True]
    failing(monkeypatch, "sync_directory", lambda *_: used_up[0], errno.EMFILE)
    running.load = 100.0
    running.loop.advance(11)
    found = running.submit("bob", "carol")  # put off, and so without a source
    running.load = 0.0
    running.loop.advance(LOADED_PAUSE + 1)
    assert running.deliveries() == []
    used_up[0] = False
    for _ in range(4):
        running.loop.advance(1000)
    assert running.places()[found] != "bad", running.log
    assert [one.user for one in running.deliveries()] == ["carol"]


# ---- faults of ours


def test_message_that_makes_us_fail_is_put_aside_after_three_times(running: Running,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other message notices."""
    real = running.runner.expander.again

    def again(target: Target, **more: Any) -> list[Target]:
        if target.address.startswith("evil"):
            raise RuntimeError("our own mistake")
        return real(target, **more)

    monkeypatch.setattr(running.runner.expander, "expand", lambda address, **more: again(
        Target("known", address, outcome=LATER)))
    found = running.submit("evil")
    for _ in range(runner_module.MAX_CRASHES - 1):
        assert running.places()[found] != "bad"
        running.loop.advance(301)
    assert running.places()[found] == "bad"
    assert running.lines("RuntimeError: our own mistake")
    other = running.submit("bob")
    only(running).answer()
    running.loop.run()
    assert other not in running.places()


def test_memory_that_is_used_up_is_no_fault_of_a_message(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(_address: str, **_: Any) -> list[Target]:
        raise MemoryError

    monkeypatch.setattr(running.runner.expander, "expand", expand)
    found = running.submit("bob")
    for _ in range(runner_module.MAX_CRASHES + 1):
        running.loop.advance(301)
    assert running.places()[found] != "bad"
    monkeypatch.undo()
    running.loop.advance(301)
    only(running).answer()
    running.loop.run()
    assert running.places() == {}


@pytest.mark.parametrize("is_held", [False, True], ids=["failed", "held"])
def test_message_without_a_descriptor_to_secure_it_goes_back_to_its_source(
        running: Running, monkeypatch: pytest.MonkeyPatch, is_held: bool) -> None:
    """Else its copy would be relied on that was never synced, and the source delivered again at the next start."""
    used_up = [True]
    failing(monkeypatch, "sync", lambda *_: used_up[0], errno.EMFILE)
    real = running.runner.expander.expand

    def expand(address: str, **more: Any) -> list[Target]:
        if used_up[0]:
            raise RuntimeError("our own mistake")
        return real(address, **more)

    monkeypatch.setattr(running.runner.expander, "expand", expand)
    start = running.runner.start

    def hold(message: Message) -> None:
        message.state.held = "odd" if is_held and used_up[0] else ""
        start(message)

    monkeypatch.setattr(running.runner, "start", hold)
    found = running.submit("bob")
    running.loop.run()
    assert (os.listdir(running.paths.intake), running.places()) == ([found], {found: "new"})
    used_up[0] = False
    running.loop.advance(301)
    only(running).answer()
    running.loop.run()
    assert (os.listdir(running.paths.intake), running.places()) == ([], {})
    assert not running.runner.shares._files


def test_answer_after_a_crash_of_the_pass_changes_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    found = running.submit("bob", "carol")
    first, second = running.deliveries()
    monkeypatch.setattr(running.events, "tried", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("oops")))
    first.answer()
    monkeypatch.undo()
    second.answer()
    running.loop.run()
    assert found in running.runner.waiting
    running.loop.advance(301)
    assert [one.user for one in running.deliveries()] == ["bob", "carol"]


# ---- who is in work


def test_no_more_than_a_bounded_number_is_in_work(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_ACTIVE", 10)
    for _ in range(15):
        try:
            running.submit("bob")
        except StopIteration:
            pass  # it stays in the drop
    assert len(running.runner.active) == 10
    given = running.deliveries()
    for one in given:
        one.answer()
    assert len(running.deliveries()) == 5


def test_start_resumes_what_is_in_the_queue(running: Running) -> None:
    found = running.submit("bob", "carol")
    running.deliveries()[0].answer(SENT)
    running.loop.advance(1)  # its line is in the journal by now
    running.restart()
    one = only(running)
    assert (one.queue_id, one.user) == (found, "carol")
    one.answer(SENT)
    running.loop.run()
    assert running.places() == {}


def test_crash_between_plan_and_report_makes_one_report(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan in the journal is carried out by whoever finds it."""
    found = running.submit("bob", "nobody-there")
    full = [True]
    failing(monkeypatch, "publish", lambda *args: full[0] and "/queue/tmp/" in args[1])
    only(running).answer(LATER)
    running.loop.run()
    assert '"verb":"planned"' in Path(f"{running.paths.journal}/{found}").read_text()
    full[0] = False
    running.restart()
    only(running).answer(LATER)
    report = only(running)
    assert (report.user, report.queue_id) == ("alice", "A" + found[1:])
    running.restart()
    report = only(running)
    assert (report.user, report.queue_id) == ("alice", "A" + found[1:])
    report.answer()
    running.loop.advance(400)
    only(running).answer()
    running.loop.run()
    assert running.places() == {}
    assert len(running.lines(": DSN: ")) == 1


def test_stop_takes_nothing_new(running: Running) -> None:
    running.runner.is_stopping = True
    running.runner.wake()
    with pytest.raises(StopIteration):
        running.submit("bob")
    assert running.deliveries() == []
    assert len(os.listdir(running.paths.drop_new)) == 1


# ---- .forward


def test_targets_of_a_forward_replace_the_mailbox(running: Running) -> None:
    found = running.submit("bob")
    only(running).answer(targets=(Target(FORWARDED, "carol"), Target(FORWARDED, "bob", use_forward=False)))
    first, second = running.deliveries()
    assert [(one.user, one.target.use_forward) for one in (first, second)] == [("carol", True), ("bob", False)]
    first.answer()
    second.answer(failed("5.7.1", "no"))
    report = only(running)
    assert (report.user, report.queue_id) == ("alice", "A" + found[1:])


def test_flush_tries_at_once(running: Running) -> None:
    found = running.submit("bob")
    only(running).answer(LATER)
    running.loop.run()
    running.runner.flush([found, "0000000000000000", found])
    one = only(running)
    assert one.queue_id == found
    assert running.relays.flushes == 1
    assert re.match(r"\w{14}$", one.queue_id)


# ---- destinations that are down


def test_what_waits_for_a_host_that_is_down_is_left_alone_but_looked_at_now_and_then(paths: Paths) -> None:
    running = Running(paths, retry_first=300, retry_max=3600)
    found = running.submit("bob")
    only(running).answer(LATER)
    entry = running.runner.waiting.entries[found]
    entry.destination = "9f86d081"
    running.relays.down["9f86d081"] = running.clock() + 86_400
    seen = running.loop.now
    while not running.agents.given:
        running.relays.down["9f86d081"] = running.clock() + 600
        running.loop.advance(60)
    assert 3600 <= running.loop.now - seen - 300 <= 3600 + 700


def test_a_host_that_is_down_keeps_up_no_mail_for_others(paths: Paths) -> None:
    running = Running(paths)
    found = running.submit("bob")
    only(running).answer(LATER)
    running.relays.down["9f86d081"] = running.clock() + 86_400
    running.runner.make_ready([found])
    assert only(running).queue_id == found
