"""The root process's one task: who gets a child, who does not, and what a broken runner can make it do."""

import ctypes
import grp
import os
import pwd
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pysendmail.deliver import agent, spawner
from pysendmail.deliver.agent import Settings
from pysendmail.deliver.packet import MAX_PACKET, decode, encode
from pysendmail.deliver.request import REFUSED, Reply, Request
from pysendmail.deliver.spawner import Service, Spawner, wait_readable
from pysendmail.mail.outcome import Outcome
from pysendmail.mail.target import MAILBOX, Target
from pysendmail.users import LookupTrouble, User
from tests.tools import processes
from tests.tools.foreign import children_of
from tests.tools.watch import wait_for_end

SETTINGS = Settings("mbox", "/nonexistent", None, "host.example", True, True, 0, "", "_pysmlocal", 10.0, 300, 65_536,
                    100, (), frozenset())
WITHIN = 20.0


class Users:
    """alice, the service accounts, and somebody of whom nothing can be learnt."""

    def lookup(self, name: str) -> User | None:
        if name == "slow":
            signal.pause()
        if name == "trouble":
            raise LookupTrouble(5, "the directory does not answer")
        known = name.lower() if name.lower() in ("alice", "_pysendmail", "_pysmtpd", "_pysmrelay", "_pysmlocal") else ""
        return User(known, os.geteuid(), os.getegid(), "/nonexistent", "/bin/sh") if known else None

    def by_uid(self, uid: int) -> User | None:
        return None


class Runner:
    """The runner's end of a spawner that works in this process and becomes nobody."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.link.settimeout(WITHIN)
        self.log: list[str] = []
        self.signs: list[str] = []
        self._theirs = theirs
        self.spawner = Spawner(Users(), SETTINGS, lambda _, text: self.log.append(text), theirs,
                               lambda: self.signs.append("ready"), lambda: self.signs.append("beat"),
                               lambda: self.signs.append("reload"), is_root=False)
        self.channels: list[socket.socket] = []

    def say(self, packet: bytes | dict[str, Any]) -> None:
        self.link.send(packet if isinstance(packet, bytes) else encode(packet))
        assert self.spawner.answer()

    def hear(self) -> dict[str, Any]:
        """Its answer; a descriptor that comes with it is the last of `channels`."""
        packet, fds, _, _ = socket.recv_fds(self.link, MAX_PACKET, 1)
        self.channels += [socket.socket(fileno=fd) for fd in fds]
        return decode(packet)

    def ask(self, user: str, n: int = 1) -> dict[str, Any]:
        self.say({"agent": user, "n": n})
        return self.hear()

    def is_silent(self) -> bool:
        self.link.setblocking(False)
        try:
            self.link.recv(1)
            return False
        except BlockingIOError:
            return True
        finally:
            self.link.settimeout(WITHIN)

    def close(self) -> None:
        for one in (self.link, self._theirs, *self.channels):
            one.close()


@pytest.fixture
def runner() -> Iterator[Runner]:
    one = Runner()
    yield one
    one.close()


def test_user_gets_an_agent_that_ends_with_its_channel(runner: Runner) -> None:
    answer = runner.ask("alice", 7)
    assert (answer["n"], answer.keys()) == (7, {"n", "pid"})
    assert runner.spawner.agents == {answer["pid"]: "alice"}
    assert not processes.has_ended(answer["pid"])
    runner.channels[0].close()
    wait_for_end(answer["pid"])
    assert runner.spawner.reap() == []
    assert runner.spawner.agents == {}


@pytest.mark.parametrize("ends", ["before it is looked at", "meanwhile"])
def test_agent_does_not_do_what_nobody_will_hear_of(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """The next runner asks for it again."""
    done: list[agent.Job] = []
    monkeypatch.setattr(agent.Agent, "deliver", lambda self, batch: done.extend(batch) or ())
    if ends == "meanwhile":
        monkeypatch.setattr(agent, "_is_ready", lambda channel, event: True)
    request = Request(1, "566jOp9s000000", 0, 10, "", "alice", Target(MAILBOX, "alice", user="alice"), 1_750_000_000.0)
    link, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, open("/dev/null", "rb") as message:
        with link:
            socket.send_fds(link, [request.to_packet()], [message.fileno()])
        agent.serve(channel, User("alice", 1000, 1000, "/nonexistent", "/bin/sh"), SETTINGS)
    assert done == []


@pytest.mark.parametrize(("name", "status"), [
    ("nobody-there", "5.1.1"), ("", "5.1.1"), ("../etc", "5.1.1"), ("trouble", "4.3.0"), ("_pysendmail", "5.1.1"),
    ("_pysmrelay", "5.1.1"), ("_pysmtpd", "5.1.1"), ("_PysmRelay", "5.1.1"), ("_PYSENDMAIL", "5.1.1"),
])
def test_nobody_else_gets_one(runner: Runner, name: str, status: str) -> None:
    """Not under another spelling either: the relay's account would be a way from the queue to its secrets."""
    pid = runner.ask(name)["pid"]
    channel, = runner.channels
    channel.send(b"a request that comes before the refusal is heard")
    channel.settimeout(WITHIN)
    refusal = Reply.from_packet(channel.recv(MAX_PACKET))
    assert (refusal.n, refusal.outcome and refusal.outcome.status) == (REFUSED, status)
    channel.close()
    wait_for_end(pid)


def test_aliases_mail_does_not_come_back_for_want_of_our_own_user(
        runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Users, "lookup", lambda self, name: None)
    runner.ask("_pysmlocal")
    runner.channels[0].settimeout(WITHIN)
    refusal = Reply.from_packet(runner.channels[0].recv(MAX_PACKET))
    assert refusal.outcome
    assert (refusal.n, refusal.outcome.status) == (REFUSED, "4.3.5")


def test_root_process_asks_no_directory_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the start of a runner either; but what its children will ask is loaded by then."""
    loaded: list[str] = []
    for module, name in ((os, "getgrouplist"), (pwd, "getpwnam"), (grp, "getgrnam")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("somebody is asked"))
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    spawner.load_modules()
    Runner().close()
    loaded.clear()
    (tmp_path / "conf").write_text("#passwd: no\npasswd: files ldap [NOTFOUND=return] ../x\ngroup:\tfiles\nhosts: z\n")
    spawner.load_modules(f"{tmp_path}/conf")
    assert sorted(loaded) == ["libnss_files.so.2", "libnss_ldap.so.2"]
    spawner.load_modules(f"{tmp_path}/nothing")


def test_directory_that_does_not_answer_stops_nobody_else(runner: Runner) -> None:
    slow = runner.ask("slow", 1)
    quick = runner.ask("alice", 2)
    assert runner.spawner.agents == {slow["pid"]: "slow", quick["pid"]: "alice"}
    runner.say({"end": slow["pid"]})
    wait_for_end(slow["pid"])


@pytest.mark.parametrize("packet", [
    b"", b"garbage", b"[]", b"{}", b"7", b"\xff", b"[" * 50_000,
    b'{"agent": 7, "n": 1}', b'{"agent": "alice"}', b'{"agent": "alice", "n": "1"}',
    b'{"end": 1}', b'{"end": "1"}', b'{"end": null}', b'{"nonsense": true, "n": 1}', b'{"relay": 1, "n": 1}',
    b'{"agent": ["alice"], "n": 1}', b'{"agent": {"name": "root"}, "n": 1}', b'{"root": true, "n": 1}',
], ids=lambda packet: ascii(packet[:40]))
def test_nonsense_makes_it_do_nothing(runner: Runner, packet: bytes) -> None:
    before = processes.children()
    runner.link.send(packet)
    assert runner.spawner.answer() is (packet != b"")  # an empty packet is the end of the runner
    assert runner.is_silent()
    assert (runner.spawner.agents, processes.children() - before) == ({}, set())


def test_it_ends_only_its_own_agents(runner: Runner) -> None:
    bystander = os.fork()
    if bystander == 0:
        signal.pause()
        os._exit(0)
    runner.say({"end": bystander})
    runner.say({"end": os.getpid()})
    runner.say({"end": 1})
    runner.say({"end": -1})
    assert not processes.has_ended(bystander)
    processes.end({bystander})


def test_stuck_agent_is_killed_and_takes_no_place_while_it_dies(runner: Runner) -> None:
    pid = runner.ask("alice")["pid"]
    os.kill(pid, signal.SIGSTOP)
    runner.say({"end": pid})
    assert (runner.spawner.agents, runner.spawner.ending) == ({}, {pid: "alice"})
    wait_for_end(pid)
    assert runner.spawner.reap() == []
    assert runner.spawner.ending == {}


def test_number_of_agents_is_bounded(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawner, "SPARE", 1)
    runner.spawner.most = 2
    answers = [runner.ask("alice", n) for n in range(4)]
    assert ["error" in answer for answer in answers] == [False, False, False, True]
    assert Outcome.from_json(answers[3]["error"]) == Outcome("4.3.0", "too many delivery agents")


@pytest.mark.parametrize("name", ["fork", "socketpair"])
def test_host_that_has_no_more_to_give_defers(runner: Runner, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os if name == "fork" else socket, name, fail)
    answer = runner.ask("alice")
    assert Outcome.from_json(answer["error"]).is_deferred
    assert "Resource temporarily unavailable" in answer["error"][1]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "signals stay blocked"


def test_signs_of_life_are_passed_on(runner: Runner) -> None:
    for word in ({"ready": True}, {"beat": True}, {"reload": True}):
        runner.say(word)
    assert runner.signs == ["ready", "beat", "reload"]


def test_all_that_the_runner_has_sent_before_it_ended_is_done(runner: Runner) -> None:
    for packet in (encode({"ready": True}), b"garbage", encode({"beat": True})):
        runner.link.send(packet)
    runner.link.close()
    assert runner.spawner.answer() is False
    assert (runner.signs, len(runner.log)) == (["ready", "beat"], 1)


def test_runner_that_sends_without_end_is_not_listened_to_without_end(runner: Runner) -> None:
    for _ in range(spawner.AT_ONCE):
        runner.link.send(b"garbage")
    runner.say({"beat": True})
    assert runner.signs == []
    assert runner.spawner.answer()
    assert runner.signs == ["beat"]


def test_runner_that_does_not_listen_stops_nothing(runner: Runner) -> None:
    """Its socket fills up with answers; the service manager would take a process that waits for it for dead."""
    runner.spawner.most = -spawner.SPARE
    for n in range(2000):
        runner.link.settimeout(WITHIN)
        runner.say({"agent": "nobody-there", "n": n})
    assert runner.hear()["n"] == 0


def test_end_of_the_runner_is_seen(runner: Runner) -> None:
    runner.link.close()
    assert runner.spawner.answer() is False


def test_other_children_are_told_of(runner: Runner) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    wait_for_end(pid)
    assert runner.spawner.reap() == [(pid, 3)]


def test_service_is_prepared_in_its_own_process(runner: Runner) -> None:
    def prepare() -> Any:
        mine = os.getpid()  # what it reads here stays here
        return lambda channel: channel.send(b"%d %d" % (mine, os.getpid()))

    runner.spawner.services["relay"] = Service(None, prepare)
    runner.say({"relay": True, "n": 5})
    answer = runner.hear()
    assert (answer["n"], answer["relay"]) == (5, True)
    runner.channels[0].settimeout(WITHIN)
    assert runner.channels[0].recv(100) == b"%d %d" % (answer["pid"], answer["pid"])


def test_child_that_fails_ends_and_says_so_in_the_log(runner: Runner) -> None:
    def prepare() -> Any:
        raise RuntimeError("no secrets today")

    read, write = os.pipe()
    runner.spawner.log = lambda _, text: os.write(write, text.encode()) and None
    runner.spawner.kept = frozenset({write})
    runner.spawner.services["relay"] = Service(None, prepare)
    runner.say({"relay": True, "n": 5})
    pid = runner.hear()["pid"]
    wait_for_end(pid)
    os.close(write)
    assert os.read(read, 1000) == b"delivery process of relay: RuntimeError: no secrets today"
    os.close(read)
    assert children_of(pid) == []


def test_waiting_ends_with_the_time() -> None:
    read, write = os.pipe()
    assert wait_readable([read], 0.01) == set()
    os.write(write, b"x")
    assert wait_readable([read], 10) == {read}
    os.close(write)
    os.close(read)
