"""What a host can run out of: disk, inodes, the right to write, descriptors, file size. Mail waits; none comes back."""

import itertools
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path

import pytest

from pysendmail.paths import Paths
from tests.tools.foreign import end, limit, wait_until_traced
from tests.tools.host import QUICK, RUNNER, STARTED, Host

MakeHost = Callable[..., Host]
SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"
EX_TEMPFAIL = 75
MOUNT = 'mount --make-rprivate / && mount -t tmpfs -o "$1" tmpfs "$2" && echo mounted && exec sleep 1000'


class SmallSpool:
    """A mount namespace in which a host's spool is a tmpfs of its own; daemons are started in it."""

    def __init__(self, host: Host, options: str) -> None:
        self._host = host
        spool = host.paths.spool
        modes = {path: os.stat(path) for path in (spool, *map(str, sorted(Path(spool).rglob("*"))))}
        self.holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", MOUNT, "sh", options, spool],
                                       stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"mounted\n"
        self.inside = f"/proc/{self.holder.pid}/root"
        for path, seen in modes.items():
            if path != spool:
                os.mkdir(self.inside + path)
            os.chown(self.inside + path, seen.st_uid, seen.st_gid)
            os.chmod(self.inside + path, seen.st_mode & 0o7777)
        host.outside = Paths(self.inside + host.paths.root)
        host.namespace = f"/proc/{self.holder.pid}/ns/mnt"
        host.runs_as = [*self.enter, *host.runs_as]

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--"]

    def remount(self, how: str) -> None:
        subprocess.run([*self.enter, "mount", "-o", f"remount,{how}", self._host.paths.spool], check=True)

    def fill(self, *, inodes: bool) -> None:
        """Leave no room at all."""
        directory = f"{self.inside}{self._host.paths.spool}/filler"
        os.mkdir(directory)
        if inodes:
            with pytest.raises(OSError, match="No space left"):
                make_files(directory)
            return
        with open(f"{directory}/1", "wb", buffering=0) as file:
            for size in (1024 * 1024, 512):  # the last pages too
                with pytest.raises(OSError, match="No space left"):
                    write_for_ever(file, bytes(size))

    def empty(self) -> None:
        directory = f"{self.inside}{self._host.paths.spool}/filler"
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)

    def close(self) -> None:
        self.holder.kill()
        self.holder.communicate()


def make_files(directory: str) -> None:
    for number in itertools.count():
        Path(f"{directory}/{number}").touch()


def write_for_ever(file: RawIOBase, data: bytes) -> None:
    while True:
        file.write(data)


@pytest.fixture
def make_small(make_host: MakeHost) -> Iterator[Callable[..., tuple[Host, SmallSpool]]]:
    """Makes a host whose spool is small, or can become read-only."""
    made: list[tuple[Host, SmallSpool]] = []

    def make(options: str, **more: str) -> tuple[Host, SmallSpool]:
        host = make_host(constants=QUICK, **more)
        made.append((host, SmallSpool(host, options)))
        return made[-1]

    yield make
    for host, spool in made:
        host.close()
        spool.close()


MakeSmall = Callable[..., tuple[Host, SmallSpool]]


def slow_command(host: Host, user: str, code: int) -> str:
    """A .forward whose command waits for a word at its gate, and then exits with this code; the gate."""
    home = host.users[user].home
    os.mkfifo(f"{home}/gate")
    os.chown(f"{home}/gate", host.users[user].uid, host.users[user].gid)
    host.forward(user, f'"|test -e {home}/good || {{ read x < {home}/gate; exit {code}; }}"\n')
    return f"{home}/gate"


@pytest.mark.root
@pytest.mark.parametrize(("options", "inodes"), [("size=80m", False), ("size=80m,nr_inodes=1200", True)],
                         ids=["space", "inodes"])
def test_full_disk_loses_and_returns_nothing(make_small: MakeSmall, options: str, inodes: bool) -> None:
    """It fills up when one message is under way and another one waits in the drop; later there is room again."""
    host, spool = make_small(options, settings=SOON)
    gate = slow_command(host, "dave", 75)
    host.start()
    under_way = host.send("bob", "nobody-there", "dave", sender="alice")
    found = host.queue_id(under_way)
    host.wait_for_journal(found, "delivered", "failed")
    runner = host.runner
    os.kill(runner, signal.SIGSTOP)  # so that the next one stays in the drop
    waiting = host.send("carol", sender="alice")
    spool.fill(inodes=inodes)
    code, words = host.submit(["-i", "bob"], b"Subject: x\n\n", host.users["alice"].uid)
    assert code == EX_TEMPFAIL
    assert "nearly full" in words or "no room" in words or "No space" in words
    os.kill(runner, signal.SIGCONT)
    Path(gate).write_text("go\n")
    host.log.wait_for("No space left on device")
    assert host.files("queue/new", "queue/cur"), "the message under way is still there"
    assert not host.log.find("stat=.*returned")
    spool.empty()
    host.write_home("dave", "good", "")
    host.wait_empty()
    assert (host.copies("bob", under_way), host.copies("carol", waiting)) == (1, 1)
    report, = host.reports("alice", under_way)
    assert report.count("\nFinal-Recipient: ") == 1
    assert len(host.log.find(rf"^{found}: to=<dave@.*stat=Sent")) == 1


@pytest.mark.root
def test_start_with_a_full_disk(make_small: MakeSmall) -> None:
    host, spool = make_small("size=80m", settings=SOON)
    mails = [host.send("bob") for _ in range(3)]
    spool.fill(inodes=False)
    host.start()
    host.log.wait_for("cannot take in .*: No space left on device")
    assert host.box("bob") == ""
    spool.empty()
    host.wait_empty()
    assert [host.copies("bob", mail) for mail in mails] == [1, 1, 1]


@pytest.mark.root
def test_spool_that_becomes_read_only_repeats_nothing(make_host: MakeHost) -> None:
    """As when the kernel finds an error: nothing can be removed or renamed any more, in the middle of work."""
    host = make_host(constants=QUICK)
    gate = slow_command(host, "dave", 0)
    host.start()
    mail = host.send("bob", "dave")
    found = host.queue_id(mail)
    host.wait_for_journal(found, "delivered")
    runner, calls = host.runner, "unlink,rename"
    tracer = subprocess.Popen(["strace", "-qq", "-p", str(runner), "-o", "/dev/null", "-e", f"trace={calls}",
                               "-e", f"inject={calls}:error=EROFS"])
    wait_until_traced(runner)
    Path(gate).write_text("go\n")
    host.log.wait_for(f"{found}: cannot settle: Read-only file system")
    tracer.kill()
    tracer.wait()
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert len(host.log.find(rf"^{found}: to=<dave@")) == 1


@pytest.mark.root
def test_submission_to_a_read_only_spool_is_refused(make_small: MakeSmall) -> None:
    host, spool = make_small("size=80m")
    spool.remount("ro")
    code, words = host.submit(["-i", "bob"], b"Subject: x\n\n", host.users["alice"].uid)
    assert (code, "Read-only file system" in words) == (EX_TEMPFAIL, True)


@pytest.mark.root
def test_start_on_a_read_only_spool_says_so_and_goes_on_by_itself(make_small: MakeSmall) -> None:
    host, spool = make_small("size=80m")
    mail = host.send("bob")
    spool.remount("ro")
    host.launch()
    host.log.wait_for("Read-only file system")
    spool.remount("rw")
    host.log.wait_for(STARTED)
    host.wait_empty()
    assert host.copies("bob", mail) == 1


@pytest.mark.root
def test_runner_without_the_right_to_its_queue_says_so(make_host: MakeHost) -> None:
    host = make_host()
    mail = host.send("bob")
    os.chown(host.paths.queue, 0, 0)
    host.launch()
    host.log.wait_for(r"SYSERR.*(Permission denied|cannot)")
    os.chown(host.paths.queue, host.users[RUNNER].uid, host.users[RUNNER].gid)
    host.log.wait_for(STARTED)
    host.outcome(mail, "bob")


def test_runner_without_descriptors_puts_everything_off(make_host: MakeHost) -> None:
    host = make_host(settings=SOON, constants=QUICK)
    host.start()
    host.outcome(host.send("bob"), "bob")
    runner = host.runner
    before = limit(runner, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{runner}/fd")))
    mails = [host.send("bob", "carol", sender="alice") for _ in range(3)]
    host.log.wait_for("Too many open files")
    limit(runner, resource.RLIMIT_NOFILE, before)
    host.send("dave")
    host.wait_empty()
    assert host.box("alice") == ""
    assert [host.copies(name, mail) for mail in mails for name in ("bob", "carol")] == [1] * 6
    assert host.runner == runner


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_runner_with_few_descriptors_puts_off_what_it_cannot_do(make_host: MakeHost, room: int) -> None:
    """Whatever it lacks one for: the drop file, the copy, the agent's socket. Nobody becomes unknown by that."""
    host = make_host(settings=SOON, constants=QUICK)
    host.start()
    runner = host.runner
    before = limit(runner, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{runner}/fd")) + room)
    mails = [host.send("bob", "carol", sender="alice") for _ in range(2)]
    host.log.wait_for("Too many open files|stat=Sent|stat=Deferred")
    limit(runner, resource.RLIMIT_NOFILE, before)
    host.wait_empty()
    assert host.box("alice") == ""
    assert [host.copies(name, mail) for mail in mails for name in ("bob", "carol")] == [1] * 4
    assert host.runner == runner


@pytest.mark.root
@pytest.mark.parametrize("call", ["openat", "recvmsg", "fsync", "write", "fcntl", "lseek,newfstatat"])
@pytest.mark.parametrize("error", ["EMFILE", "EIO"])
def test_agent_whose_system_calls_fail_puts_off(make_host: MakeHost, call: str, error: str) -> None:
    """Each kind of call that a delivery needs fails, all the time: the mail waits, and its sender hears nothing."""
    host = make_host(settings=SOON, constants=QUICK)
    host.start()
    host.outcome(host.send("bob"), "bob")
    agent, = host.agents
    tracer = subprocess.Popen(["strace", "-qq", "-p", str(agent), "-o", "/dev/null", "-e", f"trace={call}",
                               "-e", f"inject={call}:error={error}"])
    wait_until_traced(agent)
    before = host.box("bob")
    mail = host.send("bob", sender="alice")
    assert "stat=Deferred" in host.outcome(mail, "bob")
    assert host.box("bob") == before
    tracer.kill()
    tracer.wait()
    end(agent)
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert host.box("alice") == ""


def test_agent_that_may_write_no_large_file_tears_no_mailbox(make_host: MakeHost) -> None:
    """RLIMIT_FSIZE: an error to deal with, not a signal that ends it in the middle of a message."""
    host = make_host(settings=SOON, constants=QUICK)
    host.start()
    first = host.send("bob")
    host.outcome(first, "bob")
    before = host.box("bob")
    end(*host.agents)
    unlimited = limit(host.supervisor, resource.RLIMIT_FSIZE, len(before) + 100)  # which the next agent inherits
    mail = host.send("bob", sender="alice", text=b"x" * 5000 + b"\n")
    assert "stat=Deferred" in host.outcome(mail, "bob")
    assert host.box("bob") == before
    limit(host.supervisor, resource.RLIMIT_FSIZE, unlimited)
    for agent in host.agents:
        end(agent)
    host.wait_empty()
    assert (host.copies("bob", first), host.copies("bob", mail)) == (1, 1)
    assert host.box("alice") == ""
