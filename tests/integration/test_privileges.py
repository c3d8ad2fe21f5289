"""Privilege separation, seen from outside: what each process is, has and may; no step towards it can fail unseen.

All of it needs root: without that nobody becomes anybody.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import make_tree
from tests.tools.foreign import children_of, descriptors, status_of, wait_until_it_is, wait_until_traced
from tests.tools.host import CODE, LISTENER, LOCAL, MAIL_GROUP, QUICK, RELAY, RUNNER, Host

pytestmark = pytest.mark.root
MakeHost = Callable[..., Host]
SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"
OURS_IGNORED = 1 << 12 | 1 << 24  # SIGPIPE and SIGXFSZ, as errors, in processes of our own code
NOTHING = "0000000000000000"


def waiting_command(host: Host, user: str) -> str:
    """A .forward whose command writes down what it is, and waits; the path of its gate."""
    home = host.users[user].home
    os.mkfifo(f"{home}/gate")
    os.chown(f"{home}/gate", host.users[user].uid, host.users[user].gid)
    script = host.write_home(user, "look", f"""#!/bin/sh
cd {home}
cat /proc/self/status > status
ls -l /proc/$$/fd | sed -n 's/.* \\([0-9]*\\) -> \\(.*\\)/\\1 \\2/p' > fds
env > environment
umask > umask
cut -d' ' -f6 /proc/$$/stat > session
ulimit -c > core
echo done > done
read x < gate
""", 0o755)
    host.forward(user, f'"|pwd > {home}/cwd; exec {script}"\n')
    return f"{home}/gate"


def ids(pid: int) -> tuple[list[int], list[int], set[int]]:
    """(real, effective, saved and file system uid; the same of the gid; groups)."""
    seen = status_of(pid)
    return ([int(one) for one in seen["Uid"].split()], [int(one) for one in seen["Gid"].split()],
            {int(one) for one in seen["Groups"].split()})


def signals(pid: int) -> tuple[int, str]:
    """(ignored signals, blocked signals)."""
    seen = status_of(pid)
    return int(seen["SigIgn"], 16), seen["SigBlk"]


def kinds(pid: int) -> list[str]:
    """What its descriptors are, but for the log on 2."""
    return sorted(re.sub(r":?\[.*\]$", "", where) for number, where in descriptors(pid).items() if number != 2)


# ---- what everybody is


def test_runner_is_its_own_user_and_can_become_nobody_else(host: Host) -> None:
    runner, uid = host.runner, host.users[RUNNER].uid
    gids = {host.users[RUNNER].gid, host.users[LISTENER].gid}  # the listener's mail is in a directory of that group
    assert ids(runner)[:2] == ([uid] * 4, [host.users[RUNNER].gid] * 4)
    assert ids(runner)[2] <= gids
    seen = status_of(runner)
    assert [seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")] == [NOTHING] * 4 + ["1"]
    assert signals(runner)[0] & ~OURS_IGNORED == 0
    assert signals(runner)[1] == NOTHING


def test_runner_has_its_sockets_and_its_lock_alone(host: Host) -> None:
    runner = host.runner
    kept = kinds(runner)
    allowed = {"/dev/null", "socket", "anon_inode", host.paths.lock}
    assert set(kept) <= allowed, kept
    inherited = {where for where in descriptors(host.supervisor).values() if where.startswith("pipe:")}
    assert not inherited & set(descriptors(runner).values()), "the supervisor's wake-up pipe"


def test_agent_is_the_recipient(host: Host) -> None:
    host.outcome(host.send("bob"), "bob")
    agent, = host.agents
    bob = host.users["bob"]
    uids, gids, groups = ids(agent)
    assert (uids, gids) == ([bob.uid] * 4, [bob.gid, bob.gid, MAIL_GROUP, bob.gid])
    assert groups == {bob.gid}
    seen = status_of(agent)
    assert [seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [NOTHING] * 4
    assert seen["NoNewPrivs"] == "0", "a user's program may be a set-id one"
    assert signals(agent) == (OURS_IGNORED, NOTHING)
    assert seen["Umask"] == "0077"


def test_agent_has_its_channel_alone(host: Host) -> None:
    host.outcome(host.send("bob"), "bob")
    agent, = host.agents
    wait_until_it_is(lambda: kinds(agent) == ["/dev/null", "/dev/null", "socket"], "its channel alone")
    assert os.readlink(f"/proc/{agent}/cwd") == "/"


def test_command_is_the_user_entirely(host: Host) -> None:
    """No group of ours is left for it to take, no descriptor, no ignored signal, no variable."""
    gate = waiting_command(host, "bob")
    bob = host.users["bob"]
    mail = host.send("bob", sender="alice")
    host.wait_for_file(f"{bob.home}/done")
    status = dict(line.split(":\t", 1) for line in Path(f"{bob.home}/status").read_text().split("\n") if ":\t" in line)
    assert (status["Uid"].split(), status["Gid"].split()) == ([str(bob.uid)] * 4, [str(bob.gid)] * 4)
    assert status["Groups"].split() == [str(bob.gid)]
    assert (status["SigIgn"], status["SigBlk"], status["CapEff"]) == (NOTHING, NOTHING, NOTHING)
    fds = dict(line.split(" ", 1) for line in Path(f"{bob.home}/fds").read_text().split("\n") if line)
    assert set(fds) - {"10", "255"} == {"0", "1", "2"}, "what the shell opens for itself has a high number"
    assert all(where.startswith("pipe:") for number, where in fds.items() if number in "012")
    names = {line.partition("=")[0] for line in Path(f"{bob.home}/environment").read_text().split("\n") if line}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "SENDER", "RECIPIENT", "ORIGINAL_RECIPIENT", "EXTENSION",
        "LOCAL", "DOMAIN"}
    assert Path(f"{bob.home}/umask").read_text() == "0077\n"
    assert Path(f"{bob.home}/core").read_text() == "0\n"
    assert Path(f"{bob.home}/cwd").read_text() == f"{bob.home}\n"
    agent, = (one for one in host.agents if children_of(one))
    assert int(Path(f"{bob.home}/session").read_text()) == children_of(agent)[0] != agent
    Path(gate).write_text("go\n")
    host.outcome(mail, "bob")


def test_command_of_an_alias_is_the_alias_user(make_host: MakeHost) -> None:
    host = make_host()
    work = f"{host.paths.root}/work"
    os.mkdir(work)
    os.chmod(work, 0o777)
    Path(host.paths.aliases).write_text(f'robot: "|cat /proc/self/status > {work}/status"\npostmaster: root\n')
    host.start()
    host.outcome(host.send("robot"), "robot")
    local = host.users[LOCAL]
    assert f"\nUid:\t{local.uid}\t{local.uid}\t{local.uid}\t{local.uid}\n" in Path(f"{work}/status").read_text()
    assert f"\nGid:\t{local.gid}\t{local.gid}\t{local.gid}\t{local.gid}\n" in Path(f"{work}/status").read_text()


def test_relay_is_its_own_user_and_sees_neither_queue_nor_root(host: Host) -> None:
    host.send("somebody@elsewhere.invalid")
    relay = host.users[RELAY]

    def relays() -> list[int]:
        return [pid for pid in children_of(host.supervisor) if ids(pid)[0] == [relay.uid] * 4]

    host.wait_until(lambda: bool(relays()), "a relay process")
    pid, = relays()
    assert ids(pid)[1:] == ([relay.gid] * 4, {relay.gid})
    seen = status_of(pid)
    assert [seen[name] for name in ("CapPrm", "CapEff", "NoNewPrivs")] == [NOTHING, NOTHING, "1"]
    assert not any(where.startswith(host.paths.run) or where == host.paths.lock for where in descriptors(pid).values())


def test_who_talks_to_others_or_owns_the_queue_confines_itself(make_host: MakeHost, tmp_path: Path) -> None:
    """Runner, relay and listener; what that means is in tests/unit/test_landlock.py."""
    trace = tmp_path / "trace"
    host = make_host(runs_as=["strace", "-f", "-qq", "-o", str(trace), "-e",
                              "trace=landlock_create_ruleset,landlock_restrict_self"],
                     settings='[smtpd]\nlisten = ["127.0.0.1:0"]\nprocesses = 1\n')
    host.start()
    host.send("somebody@elsewhere.invalid")

    def confined() -> int:
        text = trace.read_text("ascii", "replace")
        if re.search(r"landlock_create_ruleset\(NULL.* = -1 E", text):
            return len(set(re.findall(r"^(\d+) .*VERSION", text, re.MULTILINE)))  # a kernel without it was asked
        return len(set(re.findall(r"^(\d+) .*landlock_restrict_self\b.* = 0$", text, re.MULTILINE)))

    host.wait_until(lambda: confined() >= 3, "runner, relay and listener")


def test_nobody_but_root_can_look_into_an_agent(host: Host) -> None:
    """It is a fork of root's process: what was in that one's memory must stay closed to the user it has become."""
    host.outcome(host.send("bob"), "bob")
    agent, = host.agents
    assert os.stat(f"/proc/{agent}/mem").st_uid == 0, "the process can be dumped and traced by its user"


def test_forward_to_another_users_mailbox_gets_nowhere(make_host: MakeHost) -> None:
    """The group that may write to the mailbox directory is in use for the user's own mailbox only."""
    host = make_host(settings=SOON)
    host.start()
    host.outcome(host.send("carol"), "carol")
    os.chmod(f"{host.paths.mail}/carol", 0o660)
    before = host.box("carol")
    host.forward("bob", f"{host.paths.mail}/carol\n{host.paths.mail}/new-file\n")
    mail = host.send("bob", sender="alice")
    found = host.queue_id(mail)
    host.log.wait_for(rf"^{found}: to=<bob@", count=2)
    assert not host.log.find(rf"^{found}: to=<bob@.*stat=Sent")
    assert host.box("carol") == before
    assert sorted(os.listdir(host.paths.mail)) == ["carol"]


# ---- when a step towards it fails


STEPS = [("setgroups", "error=EPERM"), ("setresgid", "error=EPERM"), ("setresuid", "error=EPERM"),
         ("setresuid", "error=EAGAIN"), ("setgroups", "retval=0"), ("setresgid", "retval=0"), ("setresuid", "retval=0"),
         ("setsid", "error=EPERM"), ("dup2", "error=EBADF")]


@pytest.mark.parametrize(("call", "fault"), STEPS, ids=lambda part: part.replace("=", "-"))
def test_step_of_the_drop_that_fails_writes_nothing(make_host: MakeHost, call: str, fault: str) -> None:
    """Refused, or not done though the kernel says so: the agent ends before it has touched anything (CVE-2000-0506)."""
    host = make_host(settings=SOON, constants=QUICK, runs_as=["setpriv", "--groups=0,4"])
    home = host.users["bob"].home
    host.forward("bob", f"\\bob, {home}/file, \"|id > {home}/ran\"\n")
    host.start()
    supervisor = host.supervisor
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(supervisor), "-o", "/dev/null", "-e", f"trace={call}",
                               "-e", f"inject={call}:{fault}"])
    wait_until_traced(supervisor)
    mail = host.send("bob", sender="alice")
    assert "stat=Deferred" in host.outcome(mail, "bob")
    assert host.log.find("delivery process of bob: ")
    assert os.listdir(host.paths.mail) == []
    assert sorted(os.listdir(home)) == [".forward"]
    host.wait_until(lambda: bool(host.files("queue/cur")), "the message to wait")
    tracer.terminate()
    tracer.wait()
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert all(os.stat(f"{home}/{name}").st_uid == host.users["bob"].uid for name in ("file", "ran"))


@pytest.mark.parametrize(("call", "fault"), STEPS[:7], ids=lambda part: part.replace("=", "-"))
def test_runner_that_stays_root_does_not_run(make_host: MakeHost, call: str, fault: str) -> None:
    host = make_host(runs_as=["setpriv", "--groups=0,4", "strace", "-f", "-qq", "-o", "/dev/null",
                              "-e", f"trace={call}", "-e", f"inject={call}:{fault}"])
    before = {name: os.stat(f"{host.paths.queue}/{name}").st_mtime_ns for name in os.listdir(host.paths.queue)}
    host.launch()
    host.log.wait_for("SYSERR.*runner: (NotBecome|PermissionError|BlockingIOError)")
    assert not host.log.find("starting daemon")
    assert {name: os.stat(f"{host.paths.queue}/{name}").st_mtime_ns for name in os.listdir(host.paths.queue)} == before


# ---- the root process


@pytest.fixture
def safe_root() -> Iterator[str]:
    """A private root in which nobody but root could have exchanged a directory, unlike /tmp."""
    root = tempfile.mkdtemp(prefix="pysm-", dir="/run")
    os.chmod(root, 0o755)
    yield root
    shutil.rmtree(root)


FORKS = ("clone", "clone3", "fork", "vfork")
CALL = re.compile(r"^(\d+) +(\w+)\((.*)")
FORKED = re.compile(r"^(\d+) +(?:<\.\.\. )?(?:clone3?|v?fork)\b.* = (\d+)$")
DROPPED = re.compile(r"^(\d+) +(?:<\.\.\. )?setresuid\b.* = 0$")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def test_root_opens_nothing_that_others_could_have_exchanged_and_reads_no_message(safe_root: str) -> None:
    """Through a start, deliveries of all kinds, a reload and an end (Exim CVE-2020-28007, CVE-2010-4345)."""
    host = Host(make_tree(f"{safe_root}/r"), aliases="team: bob, carol\n")
    trace = f"{safe_root}/trace"
    host.runs_as = ["strace", "-f", "-qq", "-s", "4096", "-o", trace, "-e",
                    "trace=%file,bind,connect,setresuid,read,pread64,recvfrom,recvmsg,fork,vfork,clone,clone3"]
    home = host.users["bob"].home
    host.forward("bob", f'\\bob, {home}/file, "|cat > {home}/seen"\n')
    try:
        host.start()
        host.send("team", "nobody-there", "root", text=b"TheSecretText\n")
        host.wait_empty()
        host.reload()
        assert host.stop() == 0
    finally:
        host.close()
    lines = Path(trace).read_text("utf-8", "replace").split("\n")
    dropped = when_dropped(lines)
    looked_at: set[str] = set()
    for number, line in enumerate(lines):
        found = CALL.match(line)
        if found is None or number > dropped.get(found[1], len(lines)):
            continue
        if found[2] in ("read", "pread64", "recvfrom", "recvmsg"):
            assert "TheSecretText" not in line, f"root has read a message: {line[:200]}"
        elif found[2] not in FORKS:
            looked_at |= {path for path in QUOTED.findall(found[3].partition(", {")[0]) if path.startswith("/")}
    assert len(dropped) >= 4, "runner, agents of bob, carol and root were to be seen"
    assert f"{host.paths.settings}" in looked_at
    harmless = (CODE, sys.prefix, "/proc/", "/usr/lib", "/usr/local/lib")
    for path in sorted(looked_at):
        if not path.startswith(harmless) and not CODE.startswith(f"{path}/"):
            check_parents(path)


def when_dropped(lines: list[str]) -> dict[str, int]:
    """At which line each process became its user: itself, or by its parent's having done so before.

    Root's own agent is among them: by the same steps it has become root, the recipient.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(lines):
        if changed := DROPPED.match(line):
            found.setdefault(changed[1], number)
    for number, line in enumerate(lines):
        forked = FORKED.match(line)
        if forked and found.get(forked[1], len(lines)) < number:
            found[forked[2]] = -1
    return found


def check_parents(path: str) -> None:
    """Raises AssertionError if anybody but root could have put something else in the place of this path."""
    place = os.path.dirname(os.path.normpath(path))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    while True:
        seen = os.stat(place)
        assert seen.st_uid == 0, f"root goes to {path}, and {place} belongs to uid {seen.st_uid}"
        assert not seen.st_mode & 0o022, f"root goes to {path}, and others may write to {place}"
        if place == "/":
            return
        place = os.path.dirname(place)
