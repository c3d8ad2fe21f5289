"""One user cannot stop the others: not by the amount of his mail, not by what he does to his own agents and files."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.daemon.runner import SLICE
from tests.tools import elsewhere
from tests.tools.foreign import children_of
from tests.tools.host import Host
from tests.tools.watch import wait_for_end

MakeHost = Callable[..., Host]
IMPATIENT = {"pysendmail.daemon.settle.BUSY_AGAIN": 1.0, "pysendmail.daemon.agents.STALLED_AFTER": 1.0}


def agent_of(host: Host, user: str) -> int:
    """The pid of a user's agent, after mail to him alone."""
    host.outcome(host.send(user), user)
    agent, = host.agents
    return agent


@pytest.mark.root
@pytest.mark.limit(120)
def test_ten_thousand_messages_of_one_user_hold_up_nobody(make_host: MakeHost) -> None:
    host = make_host()
    host.flood(10_000, "bob", sender="alice")
    host.start()
    host.log.wait_for("from=<alice@", count=50)
    mail = host.send("carol", sender="dave")
    host.outcome(mail, "carol")
    taken = len(host.log.find("msgid=<flood"))
    assert taken < 5000, f"carol had to wait for {taken} messages of alice"
    assert host.copies("carol", mail) == 1


@pytest.mark.root
def test_share_of_one_user_is_bounded(make_host: MakeHost) -> None:
    """What is beyond it waits in the drop, whose user pays for it; others go on."""
    host = make_host(settings="[limits]\nsubmissions = 20\n")
    host.forward("bob", '"|exit 75"\n')
    host.start()
    host.flood(120, "bob", sender="alice")
    host.log.wait_for("uid 54410 has its share of the queue")
    mail = host.send("carol", sender="dave")
    host.outcome(mail, "carol")
    seen = host.status()
    assert 20 <= seen["waiting"] + seen["active"] <= 20 + SLICE  # a sweep that has begun is finished
    left = len(host.files("drop/new"))
    assert left >= 60
    host.wait_until(lambda: host.status()["active"] == 0, "all of them deferred")
    host.ask("delete", filter={})
    host.send("carol", sender="dave")
    host.wait_until(lambda: len(host.files("drop/new")) < left, "room for more")


def test_stopped_agent_delays_its_users_mail_only(make_host: MakeHost) -> None:
    host = make_host(constants=IMPATIENT)
    host.start()
    agent = agent_of(host, "bob")
    uid = host.users["bob"].uid if host.is_root else None
    elsewhere.run(lambda: os.kill(agent, signal.SIGSTOP), uid=uid)  # as he can do himself
    host.flood(700, "bob", sender="alice")
    host.log.wait_for("msgid=<flood", count=500)
    mails = [host.send("carol", "dave", sender="dave") for _ in range(5)]
    for mail in mails:
        host.outcome(mail, "carol")
    assert not host.log.find("to=<bob@.*stat=Deferred")
    elsewhere.run(lambda: os.kill(agent, signal.SIGCONT), uid=uid)
    host.wait_empty()
    box = host.box("bob")
    assert [box.count(f"<flood.{number}@test>") for number in range(700)] == [1] * 700
    assert [host.copies(name, mail) for mail in mails for name in ("carol", "dave")] == [1] * 10


def test_commands_that_never_end_delay_their_users_mail_only(make_host: MakeHost) -> None:
    """More messages for them than may be in work at once, and still there is room for others."""
    host = make_host(constants=IMPATIENT)
    host.start()
    home = host.users["bob"].home
    os.mkfifo(f"{home}/gate")
    os.chown(f"{home}/gate", host.users["bob"].uid, host.users["bob"].gid)
    host.forward("bob", f'"|touch {home}/runs; read x < {home}/gate"\n')
    host.flood(700, "bob", sender="alice")
    host.wait_for_file(f"{home}/runs")
    mails = [host.send("carol", sender="dave") for _ in range(5)]
    for mail in mails:
        host.outcome(mail, "carol")
    assert sum(bool(children_of(agent)) for agent in host.agents) <= 3, "commands of one user at once"
    assert host.log.find("to=<bob@") == []


def test_locked_mailbox_delays_its_users_mail_only(host: Host) -> None:
    host.outcome(host.send("bob"), "bob")
    with open(f"{host.paths.mail}/bob", "r+b") as box:
        fcntl.lockf(box, fcntl.LOCK_EX)
        waiting = host.send("bob")
        for _ in range(3):
            host.outcome(host.send("carol"), "carol")
        assert host.log.find(rf"^{host.queue_id(waiting)}: to=") == []
        fcntl.lockf(box, fcntl.LOCK_UN)
    host.outcome(waiting, "bob")
    assert host.copies("bob", waiting) == 1


def test_forward_that_is_a_trap_delays_nobody(host: Host) -> None:
    """A FIFO without a writer, a directory, a link to itself, a file for others to write: none is waited for."""
    traps = {"alice": "fifo", "bob": "directory", "carol": "loop", "dave": "writable"}
    for name, trap in traps.items():
        path = f"{host.users[name].home}/.forward"
        if trap == "fifo":
            os.mkfifo(path)
        elif trap == "directory":
            os.mkdir(path)
        elif trap == "loop":
            os.symlink(".forward", path)
        else:
            Path(path).write_text("nobody-there\n")
            os.chmod(path, 0o666)
        os.chown(path, host.users[name].uid, host.users[name].gid, follow_symlinks=False)
    mail = host.send(*traps, sender="alice")
    for name in traps:
        host.log.wait_for(rf"^{host.queue_id(mail)}: to=<{name}@.*")
    assert host.copies("alice", mail) == host.copies("dave", mail) == 1
    assert len(host.log.find(r"\.forward ignored: ")) >= 2


def test_place_of_a_dead_agent_is_free_again(make_host: MakeHost) -> None:
    """Two places for everybody: agents that are killed over and over must not use them up."""
    host = make_host(settings="[limits]\nagents = 2\n")
    host.start()
    for _ in range(5):
        agent = agent_of(host, "bob")
        os.kill(agent, signal.SIGKILL)
        wait_for_end(agent)
    mail = host.send("alice", "bob", "carol", "dave")
    host.wait_empty()
    assert [host.copies(name, mail) for name in ("alice", "bob", "carol", "dave")] == [1] * 4
