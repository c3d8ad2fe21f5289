"""Every state that a crash may leave of one message, on the model file system: nothing that was accepted is ever lost.

The whole way from `sendmail` to the mailboxes runs on the model (world.py). Before each change of a file every legal
crash state is made (explore.py): what a kill leaves, and whatever subset of the unsynced names and data a power cut may
leave. Each is started from again and run until it is at rest. Then every recipient of an acknowledged message must have
it.
"""

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pytest

from pysendmail.deliver import mbox, mboxrd, parcel
from pysendmail.spool import dropbox
from tests.crash.effort import IS_FULL, say, some
from tests.crash.explore import Crash, crashes, on_disk
from tests.crash.model import Model
from tests.crash.world import FILTERED, IMPATIENT, PATHS, WARNING, World, new_world

HOUR = 3600.0


@dataclass(frozen=True)
class Scenario:
    """What happens to the message "one". has: who must have it in the end; told: who must have a report about it."""

    name: str
    drive: Callable[[World], object]
    has: tuple[str, ...] = ()
    told: tuple[str, ...] = ()


def send(world: World, *recipients: str, away: str = "", seconds: float = 400.0) -> None:
    """Submit and deliver. `away`: whose mailbox cannot be had for so many seconds."""
    if away:
        world.away[away] = world.model.now + seconds
    world.submit("one", *recipients)
    world.run()


def expire(world: World) -> None:
    world.config = IMPATIENT
    send(world, "alice", "carol", away="carol", seconds=30 * 86400)


def warn(world: World) -> None:
    world.config = WARNING
    send(world, "carol", away="carol")


def send_by_socket(world: World) -> None:
    world.submit_by_socket("one", "carol")
    world.run()


def send_by_smtp(world: World) -> None:
    world.away["carol"] = world.model.now + 400
    world.submit_by_smtp("one", "alice", "carol")
    world.run()


def examine(world: World) -> None:
    world.config = FILTERED
    send(world, "alice", "carol", away="carol")


def examine_late(world: World) -> None:
    """There is a filter only when the message has been tried already."""
    world.away["carol"] = world.model.now + 400
    world.submit("one", "alice", "carol")
    world.run(100)
    world.config = FILTERED
    world.run()


SCENARIOS = [
    Scenario("delivered in the first pass", lambda world: send(world, "alice"), has=("alice",)),
    Scenario("to two users", lambda world: send(world, "alice", "carol"), has=("alice", "carol")),
    Scenario("deferred, then delivered", lambda world: send(world, "carol", away="carol"), has=("carol",)),
    Scenario("one delivered, one deferred", lambda world: send(world, "alice", "carol", away="carol"),
             has=("alice", "carol")),
    Scenario("no such user", lambda world: send(world, "nobody"), told=("bob",)),
    Scenario("one failed, one deferred", lambda world: send(world, "nobody", "carol", away="carol"), has=("carol",),
             told=("bob",)),
    Scenario("one delivered, one failed", lambda world: send(world, "alice", "nobody"), has=("alice",), told=("bob",)),
    Scenario("one delivered, one given up", expire, has=("alice",), told=("bob",)),
    Scenario("over the submission socket", send_by_socket, has=("carol",)),
    Scenario("over SMTP, one delivered, one deferred", send_by_smtp, has=("alice", "carol")),
    Scenario("examined, one delivered, one deferred", examine, has=("alice", "carol")),
    Scenario("examined only when one is delivered and one deferred", examine_late, has=("alice", "carol")),
    Scenario("one is late and its sender is warned", warn, has=("carol",)),
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

# What is known of a file system, and what the queue then has to do.
DISKS: dict[str, dict[str, Any]] = {
    "fsync covers the name": {"orders_growth": True},
    "fsync covers the name, anything may be lost": {},
    "fsync covers no name, directories are synced": {"covers_names": False, "sync_directories": True,
                                                     "orders_growth": True},
    "Maildir, anything may be lost": {"kind": "maildir"},
    "Maildir, fsync covers no name, directories are synced": {"covers_names": False, "sync_directories": True,
                                                              "kind": "maildir"},
}


def recovered(world: World, crash: Crash) -> World:
    """The host after the crash, started again and at rest."""
    after = world.restarted(crash.snapshot, crash.promised, crash.now)
    after.run()
    left = set(on_disk(after.model.after_kill()).split(" + ")) - {"nothing", "bad", "bad~", "quarantine", "quarantine~"}
    assert not left, f"{crash.where}: {on_disk(crash.snapshot)}: {left} is left: {after.log}"
    return after


def what_is_wrong(scenario: Scenario, crash: Crash, after: World) -> str:
    """ "" if every recipient has what was promised, else what is missing or too much."""
    found = {(user, "message"): after.count(user, "one") for user in scenario.has} | {
        (user, "report"): after.count_reports(user, "one") for user in scenario.told}
    # One crash, one more at most. A power cut may take back two changes that have nothing to do with each other: the
    # claim of the drop file, and the removal of a queue file whose journal is gone. Each brings the message again.
    most = 2 if crash.is_kill else 3
    for (user, what), count in found.items():
        if crash.promised and not count:
            return f"{user} has lost the {what}"
        if count > most:
            return f"{user} has the {what} {count} times"
    return ""


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.limit(300)
def test_nothing_accepted_is_lost(name: str, disk: str) -> None:
    scenario, world = BY_NAME[name], new_world(**DISKS[disk])
    found = crashes(world, scenario.drive)
    assert not what_is_wrong(scenario, Crash((), frozenset(("one",)), "none", True), world), "without a crash"
    wrong: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    for crash in some(found, 250):
        after = recovered(world, crash)
        problem = what_is_wrong(scenario, crash, after)
        # A Maildir never has half a message. An mbox does not where a file grows in order; elsewhere a torn end can
        # only be recognised if the message comes again under the same id.
        if not problem and after.rubbish() and (world.model.orders_growth or world.kind == "maildir" or crash.is_kill):
            problem = f"half a message: {after.rubbish()[0][:80]!r}"
        if problem:
            wrong[f"{problem} after {crash.where}, with {on_disk(crash.snapshot)}"] += 1
        copies["kill" if crash.is_kill else "power cut"] += 1
        copies["again"] += any(after.count(user, "one") > 1 for user in scenario.has)
    say(f"model; {name}; {disk}: {len(found)} states, of them tried {dict(copies)}")
    assert not wrong, "\n".join(f"{count} times: {problem}" for problem, count in wrong.most_common(20))
    assert sum(bool(crash.promised) for crash in found) > 20, "hardly any state was after the promise"


# The states of one message as the docstring of spool/queue.py has them, and which of them can be met: for a message
# that one recipient gets in the first pass while the other has to wait. ~ is a file that is torn.
STATES = {
    "nothing": "S0 or S5: not accepted, or delivered to all",
    "drop/new~": "S0: never acknowledged, its sync had not returned; goes to quarantine/",
    "drop/new": "S1",
    "drop/new + new~": "S1, its claim was undone: our copy of an id that nobody waits for goes to bad/",
    "drop/new + new": "S1, its claim was undone: our copy is delivered as well",
    "drop/new + new + journal": "S1 and S4: one more copy for those who have it",
    "drop/new + cur": "S1 and S4: likewise",
    "drop/new + cur + journal": "S1 and S4: likewise",
    "drop/new + journal": "S1 and S5",
    "intake": "S2",
    "intake + new~": "S3: thrown away and copied again",
    "intake + new": "S3, perhaps S4: nobody can tell, thrown away and copied again",
    "intake + new + journal": "S4: a journal shows that our copy is safe; the source is thrown away",
    "intake + cur": "S4: so does the place",
    "intake + cur + journal": "S4",
    "intake + journal": "S5, but its end was undone: copied and delivered again",
    "new": "S4",
    "new + journal": "S4",
    "cur": "S4, done marks are lost",
    "cur + journal": "S4",
    "journal": "S5: the journal is removed",
}


def test_the_table_of_states_is_complete_and_exact() -> None:
    """A change of the code that makes a state which nobody has thought of fails here."""
    world = new_world()
    found = {on_disk(crash.snapshot) for crash in crashes(world, BY_NAME["one delivered, one deferred"].drive)}
    assert found == set(STATES)


@pytest.mark.parametrize("name", ["drop/new~", "drop/new", "intake", "intake + new~", "intake + new", "new", "cur",
                                  "intake + cur + journal", "drop/new + new~", "journal", "nothing"])
def test_what_recovery_makes_of_a_state(name: str) -> None:
    """The same as a short table that can be read: is the message promised, who has it, does anybody get it twice?"""
    scenario, world = BY_NAME["one delivered, one deferred"], new_world(orders_growth=True)
    for crash in crashes(world, scenario.drive):
        if on_disk(crash.snapshot) != name:
            continue
        after = recovered(world, crash)
        before = world.restarted(crash.snapshot, crash.promised, crash.now)
        spool = on_disk(after.model.after_kill())
        for user in scenario.has:
            had, has = before.count(user, "one"), after.count(user, "one")
            if name == "drop/new~":
                assert (crash.promised, had, has, spool) == (frozenset(), 0, 0, "quarantine~")
            elif name in ("drop/new", "drop/new + new~"):
                assert has == had + 1
                assert spool == ("bad~" if "new~" in name else "nothing")
            elif name in ("nothing", "journal"):
                assert has == had
                assert has == 1 or not crash.promised
                assert spool == "nothing"
            elif name.startswith("intake"):
                assert has == 1, "a copy that is made again is known to the mailbox"
            else:
                assert 1 <= has <= 1 + had


def test_without_the_property_a_submission_is_lost() -> None:
    """The model finds what it is for: where fsync of a file does not cover its name, exit 0 came too early."""
    scenario, world = SCENARIOS[0], new_world(covers_names=False)
    lost = [crash for crash in crashes(world, scenario.drive)
            if what_is_wrong(scenario, crash, recovered(world, crash)) == "alice has lost the message"]
    assert "nothing" in {on_disk(crash.snapshot) for crash in lost}


def test_without_the_property_a_deferred_message_is_lost() -> None:
    """The same for our own copy and for a new mailbox: the source goes when they are synced, but nobody has synced
    their names."""
    scenario, world = BY_NAME["one delivered, one deferred"], new_world()
    world.away["carol"] = world.model.now + 400
    world.submit("one", "alice", "carol")
    safe = crashes(world, lambda world: None)[0].snapshot
    for covers_names, expected in (
            (True, set()), (False, {"alice has lost the message", "carol has lost the message"})):
        world = new_world(covers_names=covers_names, orders_growth=True).restarted(safe, ["one"], world.model.now)
        world.away["carol"] = world.model.now + 400
        problems = {what_is_wrong(scenario, crash, recovered(world, crash)) for crash in crashes(world, World.run)}
        assert problems - {""} == expected


@pytest.mark.parametrize("pieces", [50, 200])
def test_a_message_of_many_writes_is_never_half_in_a_mailbox(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    for module in (parcel, mbox, mboxrd):
        monkeypatch.setattr(module, "PIECE", pieces)
    scenario, world = SCENARIOS[0], new_world(orders_growth=True)
    for crash in some(crashes(world, scenario.drive), 150):
        after = recovered(world, crash)
        assert not after.rubbish(), f"{crash.where}: {after.rubbish()}"
        assert not what_is_wrong(scenario, crash, after)


# ---- calls that fail

CALLS = ("open", "create", "write", "fsync", "rename", "unlink", "fchmod", "utime", "pread", "stat", "fstat", "flock",
         "lockf", "ftruncate", "truncate", "read", "statvfs", "scandir")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT)


def count_calls(scenario: Scenario, **disk: Any) -> Counter[str]:
    world = new_world(**disk)
    counted: Counter[str] = Counter()

    def count(name: str, path: str) -> int:
        counted[name] += 1
        return 0

    world.model.fault = count
    scenario.drive(world)
    return counted


def failing(wanted: str, number: int, error: int) -> Callable[[str, str], int]:
    """The fault of one call: the one with this name and number."""
    seen = 0

    def fault(name: str, path: str) -> int:
        nonlocal seen
        seen += name == wanted
        return error if name == wanted and seen == number else 0

    return fault


def drive_with_fault(scenario: Scenario, fault: Callable[[str, str], int], world: World) -> None:
    """As a whole: a runner that does not start is started again, a submitter who was refused is not."""
    world.model.fault = fault
    try:
        scenario.drive(world)
    except dropbox.Refused:
        pass
    except OSError:  # the runner did not start
        world.model.close_all()
    world.model.fault = lambda name, path: 0
    world.model.close_all()
    world.run()


@pytest.mark.parametrize("error", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.limit(300)
def test_a_call_that_fails_loses_nothing_and_repeats_nothing(name: str, error: int) -> None:
    """Without a crash: delivered exactly once if acknowledged, at most once otherwise."""
    scenario, tried = BY_NAME[name], 0
    for call, times in count_calls(scenario).items():
        for number in range(1, times + 1 if call in CALLS else 0):
            tried += 1
            world = new_world()
            drive_with_fault(scenario, failing(call, number, error), world)
            found = {user: world.count(user, "one") for user in scenario.has} | {
                f"report to {user}": world.count_reports(user, "one") for user in scenario.told}
            wrong = {who: count for who, count in found.items() if count > 1 or (world.promised and count != 1)}
            assert not wrong, f"{call} {number}: {wrong}\n" + "\n".join(world.log)
            assert not world.rubbish(), f"{call} {number}: {world.rubbish()}"
    say(f"model; {name}: {tried} calls failed with {errno.errorcode[error]}")
    assert tried > 40


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.limit(300)
def test_a_sync_that_fails_is_not_believed_later(name: str) -> None:
    """After EIO the dirty pages are gone and a second fsync would succeed: a crash shows who has relied on that."""
    scenario, tried = BY_NAME[name], 0
    for number in range(1, count_calls(scenario)["fsync"] + 1):
        world = new_world(orders_growth=True)
        found = crashes(world, partial(drive_with_fault, scenario, failing("fsync", number, errno.EIO)))
        for crash in some(found, 25):
            tried += 1
            problem = what_is_wrong(scenario, crash, recovered(world, crash))
            assert "lost" not in problem, f"fsync {number}, {crash.where}: {problem}"
    say(f"model; {name}: {tried} states after a failed sync")
    assert tried > 20


# ---- more than one crash

@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.limit(300)
def test_crash_after_crash(seed: int, disk: str) -> None:
    """Three messages, a crash at a random moment, another one in the recovery from it, and so on."""
    chance = random.Random(seed)
    for _ in range(200 if IS_FULL else 8):
        world = new_world(**DISKS[disk])
        world.away["carol"] = world.model.now + 400
        pending = [Mail("one", ("alice", "nobody")), Mail("two", ("alice", "carol")), Mail("three", ("carol", "alice"))]
        count, most = chance.randint(1, 4), 1
        for _ in range(count):
            world, is_kill = crash_somewhere(world, pending, chance)
            most += 1 if is_kill else 2  # as in what_is_wrong
        for mail in pending:
            world.submit(mail.mark, *mail.recipients)
        world.run()
        expected = [("one", "alice"), ("two", "alice"), ("two", "carol"), ("three", "carol"), ("three", "alice")]
        for mark, user in expected:
            has = world.count(user, mark)
            assert has <= most, f"{user} has {mark} {has} times after {count} crashes"
            assert has or mark not in world.promised, f"{user} has lost {mark} after {count} crashes: {world.log}"
        assert world.count_reports("bob", "one") or "one" not in world.promised
        if world.model.orders_growth or world.kind == "maildir":
            assert not world.rubbish()


@dataclass(frozen=True)
class Mail:
    """A message yet to be submitted."""

    mark: str
    recipients: tuple[str, ...]


class Killed(BaseException):
    """The process has died."""


def crash_somewhere(world: World, pending: list[Mail], chance: random.Random) -> tuple[World, bool]:
    """Go on, crash before a change at random, and come up again with one of the states that this may leave."""
    left = chance.randint(1, 90)

    def note(name: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise Killed

    world.model.on_change = note
    try:
        while pending:
            mail = pending.pop(0)
            world.submit(mail.mark, *mail.recipients)
        world.run()
    except Killed:
        pass
    world.model.on_change = lambda name: None
    is_kill = chance.random() < 0.3
    states = [world.model.after_kill()] if is_kill else list(islice(world.model.after_power_cut(), 3000))
    return world.restarted(chance.choice(states), world.promised, world.model.now), is_kill


# ---- the lock

def test_a_scan_takes_nothing_whose_sync_has_not_returned() -> None:
    """At every change of the submitter's a runner looks into the drop; it finds the file only after exit 0."""
    world = new_world()
    changes: list[tuple[str, bool]] = []

    def look(name: str) -> None:
        world.model.on_change = lambda name: None
        held = dict(world.model._descriptors)
        watcher = World(world.model)
        watcher.run(within=5.0)
        changes.append((name, watcher.count("alice", "one") > 0))
        world.model._descriptors = held
        world.model.on_change = look

    world.model.on_change = look
    world.submit("one", "alice")
    look("exit 0")
    assert [name for name, _ in changes] == ["create", "fchmod", "write", "rename", "fsync", "exit 0"]
    assert [is_delivered for _, is_delivered in changes] == [False] * 5 + [True]


# ---- the model itself

def contents(model: Model, path: str) -> set[bytes | None]:
    return {dict((name, data) for name, data, *_ in snapshot).get(path) for snapshot in model.after_power_cut()}


def test_the_model_loses_what_nobody_has_synced() -> None:
    model = Model()
    model.make("/d")
    fd = model.open("/d/x", os.O_CREAT | os.O_RDWR)
    model.write(fd, b"12345678")
    assert contents(model, "/d/x") == {None, b"", b"123", b"1234", b"1234" + bytes(4), bytes(8), b"12345678"}
    model.fsync(fd)
    assert contents(model, "/d/x") == {b"12345678"}


@pytest.mark.parametrize(("covers_names", "old", "new"), [
    (True, {None}, {b"data"}), (False, {None, b"data"}, {None, b"data"})])
def test_the_model_and_the_newest_name(covers_names: bool, old: set[object], new: set[object]) -> None:
    model = Model(covers_names=covers_names)
    model.make("/d")
    fd = model.open("/d/old", os.O_CREAT | os.O_RDWR)
    model.write(fd, b"data")
    model.rename("/d/old", "/d/new")
    model.fsync(fd)
    assert contents(model, "/d/old") == old
    assert contents(model, "/d/new") == new
    model.fsync(model.open("/d", os.O_RDONLY | os.O_DIRECTORY))
    assert (contents(model, "/d/old"), contents(model, "/d/new")) == ({None}, {b"data"})


def test_a_renaming_in_the_model_is_whole() -> None:
    model = Model()
    model.make("/a/x", b"data")
    model.make("/b")
    model.rename("/a/x", "/b/y")
    for snapshot in model.after_power_cut():
        assert sum(path in ("/a/x", "/b/y") for path, *_ in snapshot) == 1


def test_a_sync_after_a_failed_one_lies_in_the_model() -> None:
    model = Model()
    model.make("/x", b"")
    fd = model.open("/x", os.O_RDWR)
    model.write(fd, b"data")
    model.fault = lambda name, path: errno.EIO if name == "fsync" else 0
    with pytest.raises(OSError, match="Input/output"):
        model.fsync(fd)
    model.fault = lambda name, path: 0
    model.fsync(fd)
    assert b"" in contents(model, "/x")
    assert model.pread(fd, 10, 0) == b"data", "and nobody can see it"


def test_growth_in_order() -> None:
    model = Model(orders_growth=True)
    model.make("/log", b"")
    model.make("/a", b"")
    fd = model.open("/log", os.O_RDWR)
    model.rename("/a", "/b")
    model.write(fd, b"12")
    states = [{name: data for name, data, *_ in snapshot} for snapshot in model.after_power_cut()]
    assert {("/a" in state, state["/log"]) for state in states} == {
        (True, b""), (False, b""), (False, b"1"), (False, b"12"), (False, b"1\0"), (False, b"\0\0")}


def test_paths_of_the_world_are_those_of_an_installed_system() -> None:
    assert PATHS.root == ""
    assert sorted(new_world().names()) == []


def test_hours_pass_only_when_nothing_else_is_to_be_done() -> None:
    world = new_world()
    world.away["carol"] = world.model.now + HOUR
    world.submit("one", "carol")
    before = world.model.now
    world.run()
    assert HOUR < world.model.now - before < 3 * HOUR
