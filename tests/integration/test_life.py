"""The daemon's life: killed, stopped, reloaded, started twice, watched. Whatever happens to it, no mail is lost."""

import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from pysendmail.config import load
from pysendmail.daemon import main
from tests.tools import elsewhere, processes
from tests.tools.foreign import children_of
from tests.tools.host import CODE, QUICK, RUNNER, STARTED, Host, Table
from tests.tools.watch import WITHIN, NotifySocket, Watch, wait_for_end

MakeHost = Callable[..., Host]
EX_TEMPFAIL, EX_CONFIG = 75, 78
SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"


@pytest.fixture
def service(make_host: MakeHost) -> Iterator[tuple[Host, NotifySocket]]:
    """A host whose daemon has a service manager and has said that it is ready; no log on standard error."""
    host = make_host()
    path = f"{host.paths.root}/notify"
    notify = NotifySocket(path)
    host.environment |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000"}
    host.launch()
    notify.wait_for("READY=1")
    yield host, notify
    notify.close()


def stopped_with_mail_everywhere(host: Host) -> dict[str, str]:
    """A daemon that was killed when mail lay in every place of the spool: the message names by place."""
    home = host.users["dave"].home
    host.forward("dave", f'"|test -e {home}/good || exit 75"\n')
    host.start()
    mails = {"cur": host.send("dave"), "hold": host.send("dave"), "new": host.send("dave")}
    ids = {place: host.queue_id(mail) for place, mail in mails.items()}
    for mail in mails.values():
        assert "stat=Deferred" in host.outcome(mail, "dave")
    host.ask("hold", filter={"id": ids["hold"]})
    host.stop()
    spool = host.paths.spool
    name, = (one for one in os.listdir(f"{spool}/queue/cur") if one.startswith(ids["new"]))
    os.rename(f"{spool}/queue/cur/{name}", f"{spool}/queue/new/{ids['new']}")  # as when its first pass was cut off
    mails["intake"] = host.send("bob")
    name, = os.listdir(f"{spool}/drop/new")
    os.rename(f"{spool}/drop/new/{name}", f"{spool}/intake/{ids['new'][:8]}000999")  # as when it was claimed just now
    mails["drop"] = host.send("bob")
    places = ("queue/cur", "queue/hold", "queue/new", "intake", "drop/new")
    assert [len(host.files(place)) for place in places] == [1] * 5
    host.write_home("dave", "good", "")
    return {place: mail.name for place, mail in mails.items()}


def test_start_finds_mail_wherever_it_lies(make_host: MakeHost) -> None:
    host = make_host(settings="[queue]\nretry_first = 1\nretry_max = 1\n")
    names = stopped_with_mail_everywhere(host)
    host.start()
    host.wait_until(lambda: host.status()["waiting"] + host.status()["active"] == 0 and not host.files("drop/new"),
                    "only the held one left")
    assert [host.box("bob").count(f"<{names[place]}@test>") for place in ("intake", "drop")] == [1, 1]
    assert len(host.files("queue/hold")) == len(host.files()) == 1
    host.ask("release", filter={})
    host.wait_empty()
    assert len(host.log.find(r"to=<dave@.*stat=Sent")) == 3


def test_killed_runner_at_rest_comes_back(host: Host) -> None:
    before = host.runner
    host.kill_runner()
    assert host.runner != before
    mail = host.send("bob")
    host.wait_empty()
    assert host.copies("bob", mail) == 1


def test_killed_runner_under_way_loses_nothing(host: Host) -> None:
    mails = []
    for _ in range(3):
        mails += [host.send("alice", "bob", "carol") for _ in range(15)]
        host.kill_runner()
    host.wait_empty()
    copies = [host.copies(name, mail) for mail in mails for name in ("alice", "bob", "carol")]
    assert min(copies) == 1
    assert max(copies) <= 2


def test_runner_whose_daemon_is_killed_ends(host: Host) -> None:
    runner = host.runner
    mails = [host.send("bob") for _ in range(5)]
    os.kill(host.supervisor, signal.SIGKILL)
    assert host.ended() == -signal.SIGKILL
    wait_for_end(runner)
    mails.append(host.send("bob"))
    host.start()
    host.wait_empty()
    assert [host.copies("bob", mail) for mail in mails] == [1] * 6


def test_next_daemon_starts_while_the_old_runner_is_still_busy(make_host: MakeHost) -> None:
    """The old one waits for an answer of its agent, the new one for the lock of the spool."""
    host = make_host()
    home = host.users["bob"].home
    host.forward("bob", f'"|touch {home}/runs; test -e {home}/good || {{ touch {home}/good; sleep 1; }}"\n')
    host.start()
    mail = host.send("bob")
    host.wait_for_file(f"{home}/runs")
    os.kill(host.supervisor, signal.SIGKILL)
    host.ended()
    host.start()
    host.wait_empty()
    assert "stat=Sent" in host.outcome(mail, "bob")


def test_killed_agent_is_replaced(host: Host) -> None:
    host.outcome(host.send("bob"), "bob")
    agent, = host.agents
    os.kill(agent, signal.SIGKILL)
    mails = [host.send("bob") for _ in range(10)]
    host.wait_empty()
    assert not host.log.find("stat=Deferred") or host.log.find("agent ended without an answer")
    assert [host.copies("bob", mail) for mail in mails] == [1] * 10


def test_agent_killed_in_the_middle_puts_its_mail_off(make_host: MakeHost) -> None:
    host = make_host(settings="[queue]\nretry_first = 1\nretry_max = 1\n")
    home = host.users["bob"].home
    host.forward("bob", f'"|test -e {home}/good || {{ touch {home}/runs; sleep 100; }}"\n')
    host.start()
    mail = host.send("bob", "carol")
    host.wait_for_file(f"{home}/runs")
    host.write_home("bob", "good", "")
    for agent in host.agents:
        if children_of(agent):
            os.kill(agent, signal.SIGKILL)
    found = host.queue_id(mail)
    assert "stat=Deferred" in host.log.wait_for(rf"^{found}: to=<bob@.*")[0][0]
    host.wait_empty()
    assert host.copies("carol", mail) == 1
    assert "stat=Sent" in host.outcome(mail, "bob", count=2)


def test_mail_is_taken_while_the_daemon_is_down(make_host: MakeHost) -> None:
    host = make_host()
    mails = [host.send("bob") for _ in range(3)]
    assert len(host.files("drop/new")) == 3
    host.start()
    host.wait_empty()
    assert [host.messages("bob")[n].count(f"<{mail.name}@test>") for n, mail in enumerate(mails)] == [1, 1, 1]


def test_second_daemon_refuses_and_takes_nothing_from_the_first(host: Host) -> None:
    first, runner = host.process, host.runner
    host.launch()
    assert host.ended() == EX_TEMPFAIL
    assert host.log.find("another pysendmaild is running here")
    host.process = first
    assert host.runner == runner
    mail = host.send("bob")
    host.wait_empty()
    assert host.copies("bob", mail) == 1


def test_two_runners_never_share_a_spool(make_host: MakeHost) -> None:
    """The spool may be shared by two hosts, whose sockets are not: its own lock decides."""
    host = make_host()
    said: list[str] = []

    def second() -> tuple[int, list[str]]:
        main.LOCK_WITHIN = 0.1
        links = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        config = load(host.paths)
        return main.run(host.paths, config, Table(host.paths.root), lambda _, text: said.append(text),
                        main.Sockets(*links)), said

    uid = host.users[RUNNER].uid if host.is_root else None
    with elsewhere.holding(lambda: FileLock(host.paths.lock).acquire(), uid=uid):
        code, said = elsewhere.run(second, uid=uid)
        assert code == EX_TEMPFAIL
        assert re.search("another runner has .*/lock; this one ends", said[0])
    host.start()
    host.outcome(host.send("bob"), "bob")


# ---- reload


def test_reload_takes_new_settings(host: Host) -> None:
    host.configure("[local]\nmailbox = \"maildir\"\n")
    pid = host.supervisor
    host.reload()
    assert host.supervisor == pid
    mail = host.send("bob")
    host.wait_empty()
    assert host.copies("bob", mail) == 0
    assert len(os.listdir(f"{host.users['bob'].home}/Maildir/new")) == 1
    assert not host.log.find("SYSERR"), "an orderly end is no trouble"


@pytest.mark.parametrize(("code", "outcome", "runs"), [(0, "stat=Sent", 1), (70, "stat=", 1), (75, "stat=Deferred", 2)])
def test_command_that_runs_longer_than_a_reload_takes_is_waited_for(
        make_host: MakeHost, code: int, outcome: str, runs: int) -> None:
    """It is not run a second time, unless it says so itself; meanwhile the next runner delivers everything else."""
    host = make_host(settings=SOON, constants=QUICK | {
        "pysendmail.daemon.main.STOP_WITHIN": 0.2, "pysendmail.daemon.runner.IN_WORK_AGAIN": 0.5})
    home = host.users["dave"].home
    host.forward("dave", f'"|echo >> {home}/runs; while [ ! -e {home}/go ]; do sleep 0.1; done; '
                         f'[ -e {home}/ran ] || {{ touch {home}/ran; exit {code}; }}"\n')
    host.start()
    mail = host.send("dave", "bob")
    host.wait_for_file(f"{home}/runs")
    host.reload()
    host.reload()
    other = host.send("bob")
    host.outcome(other, "bob")
    host.write_home("dave", "go", "")
    assert outcome in host.outcome(mail, "dave")
    host.wait_empty()
    assert Path(f"{home}/runs").read_text() == "\n" * runs
    assert (host.copies("bob", mail), len(host.reports("alice", mail))) == (1, 1 if code == 70 else 0)
    assert not host.log.find("SYSERR")


def test_vigil_ends_with_the_daemon(make_host: MakeHost) -> None:
    host = make_host(constants={"pysendmail.daemon.main.STOP_WITHIN": 0.2})
    home = host.users["dave"].home
    host.forward("dave", f'"|touch {home}/runs; while [ ! -e {home}/go ]; do sleep 0.1; done"\n')
    host.start()
    found = host.queue_id(host.send("dave"))
    host.wait_for_file(f"{home}/runs")
    host.reload()
    with open(f"{host.paths.journal}/{found}") as journal:
        print(host.log.lines())
        with pytest.raises(BlockingIOError):
            fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
        host.stop()
        fcntl.flock(journal, fcntl.LOCK_SH)  # waits for its end
    host.write_home("dave", "go", "")


def test_reload_with_broken_settings_changes_nothing(host: Host) -> None:
    host.configure("[local]\nmailbocks = \"maildir\"\n")
    pids = host.supervisor, host.runner
    os.kill(host.supervisor, signal.SIGHUP)
    complaint, = host.log.wait_for("settings are not changed: .*")
    assert "test.toml:2" in complaint[0]
    assert "mailbox" in complaint[0]
    mail = host.send("bob")
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert (host.supervisor, host.runner) == pids


def test_start_with_broken_settings_says_where(make_host: MakeHost) -> None:
    host = make_host(settings="[queue]\nlifetime = -1\n")
    host.launch()
    assert host.ended() == EX_CONFIG
    assert host.log.find(r"^pysendmaild: .*test.toml:2: .*lifetime")


def test_many_reloads_at_once_are_survived(host: Host) -> None:
    """A signal that comes while the next runner is being forked is neither lost nor taken for another."""
    supervisor = host.supervisor
    mails = []
    for _ in range(10):
        for _ in range(40):
            os.kill(supervisor, signal.SIGHUP)
        mails.append(host.send("bob"))
    host.reload()
    host.wait_empty()
    assert not processes.has_ended(supervisor)
    assert [host.copies("bob", mail) for mail in mails] == [1] * 10


def test_runner_that_dies_at_once_is_not_started_without_end(host: Host) -> None:
    """After a reload too: nothing may burn the processor that the administrator needs."""
    host.reload()
    os.rename(host.paths.queue, host.paths.queue + ".away")
    if not host.is_root:
        Path(host.paths.queue).touch()  # prepare() makes what is missing, if it may
    since = host.log.mark()
    os.kill(host.runner, signal.SIGKILL)
    host.log.wait_for("runner ended", since=since, count=3)
    ended = [host.log.lines()[since:].index(found[0]) for found in host.log.find("^.*runner ended.*$", since)]
    assert len(ended) < 6
    if not host.is_root:
        os.unlink(host.paths.queue)
    os.rename(host.paths.queue + ".away", host.paths.queue)
    host.log.wait_for(STARTED, since=since)
    host.outcome(host.send("bob"), "bob")


# ---- the service manager, and what a daemon may be born with


def test_service_manager_hears_of_start_reload_and_end(service: tuple[Host, NotifySocket]) -> None:
    host, notify = service
    os.kill(host.supervisor, signal.SIGHUP)
    seen = notify.wait_for("READY=1")
    assert "RELOADING=1" in seen
    assert any(re.fullmatch(r"MONOTONIC_USEC=\d+", line) for line in seen)
    host.configure("nonsense = 1\n")
    os.kill(host.supervisor, signal.SIGHUP)
    seen = notify.wait_for("STATUS=settings are broken, running with the old ones")
    assert "READY=1" in seen
    notify.wait_for("WATCHDOG=1")
    os.kill(host.supervisor, signal.SIGTERM)
    notify.wait_for("STOPPING=1")
    assert host.ended() == 0


def test_children_cannot_speak_to_the_service_manager(service: tuple[Host, NotifySocket]) -> None:
    host, _ = service
    home = host.users["bob"].home
    host.forward("bob", f'"|env > {home}/environment"\n')
    host.outcome(host.send("bob"), "bob")
    words = Path(f"{home}/environment").read_text()
    assert "HOME=" in words
    assert "NOTIFY_SOCKET" not in words
    assert "WATCHDOG" not in words


def test_daemon_without_standard_descriptors(make_host: MakeHost) -> None:
    """Whatever gets the numbers 0 to 2 must not be written to by mistake, nor be lost on the way to a child."""
    host = make_host(runs_as=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    notify = NotifySocket(f"{host.paths.root}/notify")
    host.environment["NOTIFY_SOCKET"] = f"{host.paths.root}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{host.paths.root}/syslog")
        os.chmod(f"{host.paths.root}/syslog", 0o666)
        log.settimeout(WITHIN)
        host.launch()
        notify.wait_for("READY=1")
        host.forward("carol", '\\carol, "|cat > /dev/null; echo noise; echo more noise >&2"\n')
        mail = host.send("bob", "carol")
        seen = ""
        while seen.count("stat=Sent") < 3:
            seen += log.recv(4096).decode()
        notify.close()
    assert (host.copies("bob", mail), host.copies("carol", mail)) == (1, 1)


def test_log_that_listens_to_nobody_stops_no_mail(make_host: MakeHost) -> None:
    host = make_host()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{host.paths.root}/syslog")
        os.chmod(f"{host.paths.root}/syslog", 0o666)
        host.launch()
        mails = [host.send("bob") for _ in range(30)]
        watch = Watch(host.paths.mail)
        watch.wait_until(lambda: len(host.messages("bob")) == 30, "30 messages in a mailbox")
        watch.close()
    assert [host.copies("bob", mail) for mail in mails] == [1] * 30


@pytest.mark.root
def test_daemon_is_all_that_runs_in_a_container(make_host: MakeHost) -> None:
    host = make_host(runs_as=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    host.start()
    mail = host.send("bob")
    host.outcome(mail, "bob")
    os.kill(host.supervisor, signal.SIGTERM)
    assert host.ended() == 0
    assert host.copies("bob", mail) == 1


@pytest.mark.root
def test_start_as_root_needs_the_runners_user(make_host: MakeHost) -> None:
    host = make_host()
    del host.users[RUNNER]
    host.write_users()
    host.launch()
    assert host.ended() == 71
    assert host.log.find(f"there is no user {RUNNER}")
    host.users[RUNNER] = host.users["bob"]
    host.write_users()
    Path(f"{host.paths.root}/users.down").touch()
    host.launch()
    assert host.ended() == 71
    assert host.log.find(f"cannot look up user {RUNNER}")


def test_usage_and_version() -> None:
    text = (f"import sys\nsys.path.insert(0, {CODE!r})\nfrom pysendmail.paths import Paths\n"
            "from pysendmail.daemon.supervisor import main\nsys.exit(main(sys.argv, Paths('/nonexistent')))")
    program = [sys.executable, "-c", text]
    done = subprocess.run([*program, "--version"], capture_output=True, timeout=WITHIN, check=False)
    assert (done.returncode, done.stdout[:12]) == (0, b"pysendmaild ")
    for words, code in (["--help"], 0), (["--foreground"], 64):
        done = subprocess.run([*program, *words], capture_output=True, timeout=WITHIN, check=False)
        assert (done.returncode, b"usage: pysendmaild" in done.stdout + done.stderr) == (code, True)


def test_limit_on_processes_puts_mail_off(make_host: MakeHost) -> None:
    """A host that cannot fork any more (reliability: EAGAIN) defers, and goes on when it can."""
    host = make_host(settings="[queue]\nretry_first = 1\nretry_max = 1\n")
    host.start()
    supervisor = host.supervisor
    before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, before[1]))  # no socket pair for an agent
    mail = host.send("bob")
    assert "stat=Deferred" in host.outcome(mail, "bob")
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
    host.wait_empty()
    assert host.copies("bob", mail) == 1


# ---- a directory service that hangs


def test_user_database_that_hangs_for_one_stops_no_other_mail(make_host: MakeHost) -> None:
    host = make_host(settings=SOON, constants=QUICK | {"pysendmail.daemon.clerk.WITHIN": 0.5})
    gate = Path(f"{host.paths.root}/users.down.carol")
    gate.touch()
    host.start()
    slow, other = host.send("carol"), host.send("bob")
    assert "stat=Sent" in host.outcome(other, "bob")
    assert "the user database does not answer" in host.outcome(slow, "carol")
    gate.unlink()
    host.wait_empty()
    assert (host.copies("carol", slow), host.copies("bob", other)) == (1, 1)
