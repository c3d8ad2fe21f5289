"""sendmail killed before each system call that touches the spool, and each such call failing: exit 0 means delivered.

All messages go into one spool while no daemon runs; then one is started, and the ledger has to balance: every message
that got exit 0 is there once; of the others there may be none or one, and never half.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash import harness
from tests.crash.effort import say, some
from tests.crash.harness import KILL, Point
from tests.tools.host import CODE, Host

LAUNCHER = """import sys
sys.path.insert(0, {code!r})
from pysendmail.cli.sendmail import main
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""
SUBMITTER = "alice"
EX_TEMPFAIL = 75
SMALL, LARGE = b"BEGIN\nHello.\nEND\n", b"BEGIN\n%sEND\n" % (b"x" * 99 + b"\n") * 1000


@dataclass(frozen=True)
class Submission:
    """One run of sendmail. code: its exit code, -9 = killed."""

    mark: str
    code: int
    struck: int
    said: str


def submit(host: Host, mark: str, text: bytes, trace: str, *, inject: str = "", record: bool = False) -> Submission:
    """Run sendmail under strace, as an ordinary user."""
    launcher = f"{host.paths.root}/sendmail.py"
    if not os.path.exists(launcher):
        Path(launcher).write_text(LAUNCHER.format(code=CODE, root=host.paths.root))
    user = host.users[SUBMITTER]
    identity = {"user": user.uid, "group": user.gid, "extra_groups": []} if host.is_root else {}
    done = subprocess.run(
        [*harness.command(trace, inject=inject, record=record), sys.executable, "-IS", launcher, "-i", "bob"],
        input=b"Subject: %s\n\n%s" % (mark.encode(), text), capture_output=True, timeout=harness.WITHIN, check=False,
        env=host.environment, cwd="/", **identity)  # type: ignore[call-overload]
    code = -signal.SIGKILL if done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) else done.returncode
    struck = harness.struck(Path(trace).read_text("utf-8", "replace"))
    return Submission(mark, code, struck, done.stderr.decode("utf-8", "replace"))


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.limit(300)
def test_exit_0_means_delivered(make_host: Callable[..., Host], size: str, tmp_path: Path) -> None:
    """The large message is in several writes, which the last write of the first line follows."""
    host, text = make_host(), SMALL if size == "small" else LARGE
    directory = f"{host.paths.root}/traces"
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    assert submit(host, "recorded", text, f"{directory}/record", record=True).code == 0
    found = harness.points(f"{directory}/record", [host.paths.spool])
    assert {point.call for point in found} >= {"openat", "fchmod", "flock", "write", "rename", "fsync", "close"}
    assert sum(point.call == "fsync" for point in found) == 1, "one sync per promise"
    runs = [(point, fault) for point in found for fault in harness.faults(point)]
    done: list[Submission] = []
    for number, (point, fault) in enumerate(some(runs, 60)):
        one = submit(host, f"m{number}", text, f"{directory}/{number}", inject=point.expression(fault))
        check(point, fault, one)
        done.append(one)
    left = os.listdir(host.paths.drop_tmp)
    host.start()
    host.wait_empty()
    balance(host, done, text)
    say(f"sendmail, {size} message: {len(found)} calls, {len(done)} faults of {len(runs)} tried; exit codes "
          f"{dict(Counter(one.code for one in done))}; {len(left)} files left in drop/tmp by killed ones")
    assert len(left) <= sum(one.code == -signal.SIGKILL for one in done), "only who is killed leaves a file in drop/tmp"


def check(point: Point, fault: str, one: Submission) -> None:
    """What a run may end with. A fault that stopped nothing ends with 0."""
    if fault == KILL:  # strace dies as its child has, and forgets to write down why
        assert one.code == -signal.SIGKILL, f"killed at {point.what}, but it ends with {one.code}: {one.said}"
    else:
        assert one.struck, f"{fault} at {point.what} has not happened: {one.said}"
        assert one.code in (0, EX_TEMPFAIL), f"{fault} at {point.what}: exit {one.code}: {one.said}"
        assert one.code == 0 or one.said.count("\n") == 1, f"{fault} at {point.what}: not one line: {one.said!r}"


def balance(host: Host, done: list[Submission], text: bytes) -> None:
    """Every message that was accepted is in the mailbox, whole and once; of the others at most one, and whole."""
    messages = host.messages("bob")
    subjects = Counter(line for message in messages for line in message.split("\n") if line.startswith("Subject: "))
    for message in messages:
        body = message.partition("\n\n")[2]
        assert body.rstrip("\n") == text.decode().rstrip("\n"), f"half a message: {message[-200:]}"
    for one in done:
        count = subjects[f"Subject: {one.mark}"]
        assert count == 1 or (count == 0 and one.code), f"{one}: {count} times"
    assert host.files("quarantine", "queue/bad") == []
