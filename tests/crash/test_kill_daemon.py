"""The daemon's processes killed before each system call that touches spool or mailbox, and each such call failing.

One message goes each way at once: delivered (alice), refused with a report to its sender (nobody), deferred and then
delivered (carol, whose mailbox is a directory at first). strace strikes once; then everything is killed, as when a
machine stops, and started again without strace. Nothing may be lost, nothing may be there more than once more for each
process that was killed, and nothing may be half.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash import harness
from tests.crash.effort import say, some
from tests.crash.harness import KILL, Attached, Point, crash
from tests.tools.host import Host, Mail

SETTINGS = "[queue]\nretry_first = 1\nretry_max = 1\n"
TEXT = b"BEGIN\n" + b"From here on every line is like the last one.\n" * 100 + b"END\n"
QUOTED = TEXT.decode().replace("\nFrom ", "\n>From ")
STRUCK_WITHIN = 4.0  # seconds for a fault to happen: longer than the message takes


@dataclass(frozen=True)
class Victim:
    """Which process is struck. pid: whom strace attaches to; is_agent: its children are meant."""

    name: str
    pid: Callable[[Host], int]
    least: int  # calls that a message costs it, at least


VICTIMS = [Victim("runner", lambda host: host.runner, 50), Victim("agent", lambda host: host.supervisor, 30)]


def block(host: Host) -> None:
    """Make carol's mailbox one that nothing can be delivered to."""
    if os.path.exists(f"{host.paths.mail}/carol"):
        os.unlink(f"{host.paths.mail}/carol")
    os.mkdir(f"{host.paths.mail}/carol")


def unblock(host: Host) -> None:
    if os.path.isdir(f"{host.paths.mail}/carol"):
        os.rmdir(f"{host.paths.mail}/carol")


def record(host: Host, victim: Victim) -> list[Point]:
    """The calls of one message on its way, when the other mailboxes are there already and no agent is."""
    host.start()
    host.send("alice", sender="bob", text=TEXT)
    host.send("bob", sender="alice", text=TEXT)
    host.wait_empty()
    crash(host)
    block(host)
    trace = f"{host.paths.root}/record"
    strace = Attached(victim.pid(host), trace=trace)
    mail = host.send("alice", "nobody", "carol", sender="bob", text=TEXT)
    host.outcome(mail, "carol")
    unblock(host)
    host.wait_empty()
    strace.detach()
    assert not host.files("queue/bad", "quarantine")
    places = [host.paths.spool, host.paths.mail]
    if victim.name == "runner":
        return harness.points(trace, places)
    # Each agent has counters of its own. Strike at what the first ones do; those of later attempts do the same.
    pids = dict.fromkeys(re.findall(r"^(\d+) ", Path(trace).read_text(), re.MULTILINE))
    found = [point for pid in pids for point in harness.points(trace, places, pid=int(pid))]
    return list({(point.call, point.number): point for point in found}.values())


def strike(host: Host, victim: Victim, point: Point, fault: str) -> tuple[Mail, int]:
    """One message while the fault happens; then everything dies. (The message, how many processes were struck.)"""
    block(host)
    since = host.log.mark()
    strace = Attached(victim.pid(host), inject=point.expression(fault))
    mail = host.send("alice", "nobody", "carol", sender="bob", text=TEXT)
    until = time.monotonic() + STRUCK_WITHIN
    while not strace.struck() and not _has(host, mail) and time.monotonic() < until:
        strace.wait(0.1)
        if host.log.find(r"stat=Deferred: ", since):  # what else there is to strike at comes when it is delivered
            unblock(host)
    unblock(host)
    return mail, strace.detach()


def _has(host: Host, mail: Mail) -> bool:
    """Whether the last recipient has it."""
    return os.path.isfile(f"{host.paths.mail}/carol") and host.copies("carol", mail) > 0


def what_is_wrong(host: Host, mail: Mail, most: int) -> str:
    found = {name: host.copies(name, mail) for name in ("alice", "carol")}
    found["bob, a report"] = len(host.reports("bob", mail))
    return "; ".join(f"{name}: {count} times" for name, count in found.items() if not 1 <= count <= most)


def check_boxes(host: Host) -> None:
    """Whole messages and nothing else."""
    for name in ("alice", "carol", "bob"):
        for message in host.messages(name):
            head, _, body = message.partition("\n\n")
            if "multipart/report" in head:
                boundary = re.search(r'boundary="([^"]+)"', head)
                assert boundary
                assert body.rstrip("\n").endswith(f"--{boundary[1]}--"), f"half a report: {body[-200:]}"
            else:
                assert body.rstrip("\n") == QUOTED.rstrip("\n"), f"half a message of {name}: {body[-200:]}"


@pytest.mark.parametrize("victim", VICTIMS, ids=[victim.name for victim in VICTIMS])
@pytest.mark.limit(3600)
def test_nothing_is_lost_and_nothing_is_half(make_host: Callable[..., Host], victim: Victim) -> None:
    host = make_host(settings=SETTINGS)
    found = record(host, victim)
    assert len(found) >= victim.least, f"{victim.name} makes only {len(found)} calls: {found}"
    runs = [(point, fault) for point in found for fault in harness.faults(point)]
    tried = struck = 0
    for point, fault in some(runs, 45):
        if victim.name == "agent":
            crash(host)  # those that still live from the last time would not be counted
        mail, times = strike(host, victim, point, fault)
        crash(host)
        host.wait_empty()
        # The last crash counts, and so does each process that was killed before it.
        wrong = what_is_wrong(host, mail, 2 + (times if fault == KILL else 0))
        assert not wrong, "\n".join([f"{fault} at {point.what}", wrong, *host.log.lines()[-60:]])
        check_boxes(host)
        tried += 1
        struck += times > 0
    say(f"{victim.name}: {len(found)} calls, {tried} faults of {len(runs)} tried, {struck} of them happened")
    assert host.files("queue/bad", "quarantine") == []
    assert struck >= tried * 3 // 4, f"only {struck} of {tried} faults have happened"
