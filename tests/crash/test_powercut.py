"""The power is cut on real ext4 and xfs: what was acknowledged, delivered or reported is there, and nothing is half.

The spool and /var/mail are on a disk of their own, homes with Maildirs on a second one. The cut comes the moment the
promise is made; then everything is killed, the disks are mounted again and the daemon is started.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import make_tree
from tests.crash.disk import MAKE, Disk, why_not
from tests.crash.effort import IS_FULL, say
from tests.crash.harness import age_locks, die
from tests.tools.host import Host, Mail

RETRY_SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"
MAILDIR = RETRY_SOON + '[local]\nmailbox = "maildir"\n'
TEXT = b"BEGIN\n" + b"From here on every line is like the last one.\n" * 200 + b"END\n"
QUOTED = TEXT.decode().replace("\nFrom ", "\n>From ").rstrip("\n")

pytestmark = [pytest.mark.root, pytest.mark.limit(300)]


class Machine:
    """A host whose spool and mailboxes are on one disk, and the homes on another."""

    def __init__(self, root: str, kind: str, settings: str) -> None:
        self.var, self.home = (Disk(kind, f"{root}/{name}.image", f"{root}/r/{name}") for name in ("var", "home"))
        self.host = Host(make_tree(f"{root}/r"), settings=settings)
        for disk in (self.var, self.home):
            disk.sync()  # the directories are there as on an installed system

    def cut(self) -> None:
        """The power fails, and comes back."""
        for disk in (self.var, self.home):
            disk.cut()
        die(self.host)
        for disk in (self.var, self.home):
            disk.remount()
        age_locks(self.host)

    def close(self) -> None:
        self.host.close()
        for disk in (self.var, self.home):
            disk.close()

    def maildir(self, user: str, mail: Mail) -> list[str]:
        """The copies of a message in somebody's Maildir."""
        directory = Path(f"{self.host.users[user].home}/Maildir/new")
        found = [path.read_text() for path in directory.iterdir()] if directory.is_dir() else []
        return [text for text in found if f"\nMessage-ID: <{mail.name}@test>\n" in text]


@pytest.fixture(params=sorted(MAKE))
def make_machine(request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine | None]]:
    """Makes a machine with disks of one kind; None, and a line at the end of the run, if this kernel has none."""
    kind = request.param
    root = tempfile.mkdtemp(prefix="pysm-", dir="/tmp")
    os.chmod(root, 0o755)
    made: list[Machine] = []

    def make(settings: str = RETRY_SOON) -> Machine | None:
        reason = why_not(kind)
        test = request.node.originalname
        if reason:
            say(f"NOT RUN: {test} on {kind}: {reason}")
            return None
        made.append(Machine(root, kind, settings))
        say(f"power cut on {kind}: {test}")
        return made[-1]

    yield make
    for machine in made:
        machine.close()
    shutil.rmtree(root)


def check_whole(host: Host) -> None:
    """Whole messages and nothing else, in every mailbox."""
    for name in ("alice", "bob", "carol"):
        for message in host.messages(name):
            head, _, body = message.partition("\n\n")
            if "multipart/report" not in head:
                assert body.rstrip("\n") == QUOTED, f"half a message of {name}: {body[:100]!r}...{body[-100:]!r}"


MakeMachine = Callable[..., Machine | None]


def test_the_cut_loses_what_nobody_has_synced(make_machine: MakeMachine) -> None:
    """Otherwise the tests below would prove nothing. And it shows the property that the commit point rests on."""
    machine = make_machine()
    if machine is None:
        return
    directory = f"{machine.var.path}/tmp"
    os.mkdir(directory)
    machine.var.sync()
    for name in ("not synced", "synced", "synced then renamed", "renamed then synced"):
        fd = os.open(f"{directory}/{name}, old", os.O_CREAT | os.O_WRONLY)
        os.write(fd, name.encode())
        for step in name.split(" then ") if name != "not synced" else ():
            if step == "synced":
                os.fsync(fd)
            else:
                os.rename(f"{directory}/{name}, old", f"{directory}/{name}, new")
        os.close(fd)
        machine.cut()
    found = {name: Path(f"{directory}/{name}").read_text() for name in os.listdir(directory)}
    assert found == {"synced, old": "synced", "synced then renamed, old": "synced then renamed",
                     "renamed then synced, new": "renamed then synced"}


def test_whoever_holds_on_to_the_old_file_system_is_no_hindrance(make_machine: MakeMachine) -> None:
    """A sandbox anywhere on this host that is started meanwhile has every mount in its own namespace."""
    machine = make_machine()
    if machine is None:
        return
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; read -r word"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdout
        assert elsewhere.stdout.readline() == b"\n"
        machine.cut()
        elsewhere.communicate()
    assert os.path.isdir(machine.host.paths.queue)


def test_submitted_while_the_daemon_is_down(make_machine: MakeMachine) -> None:
    machine = make_machine()
    if machine is None:
        return
    host = machine.host
    mails = []
    for _ in range(3):
        mails.append(host.send("alice", sender="bob", text=TEXT))
        machine.cut()
    host.start()
    host.wait_empty()
    assert [host.copies("alice", mail) for mail in mails] == [1, 1, 1]
    check_whole(host)


def test_submitted_over_the_socket(make_machine: MakeMachine) -> None:
    machine = make_machine()
    if machine is None:
        return
    host = machine.host
    host.start()
    for path in (host.paths.drop_tmp, host.paths.drop_new):
        os.chmod(path, 0o700)  # as a sandbox that hides the drop
    os.mkdir(f"{host.paths.mail}/alice")  # so that nothing else syncs anything before the cut
    mail = host.send("alice", sender="bob", text=TEXT)
    machine.cut()
    if os.path.isdir(f"{host.paths.mail}/alice"):
        os.rmdir(f"{host.paths.mail}/alice")
    host.start()
    host.wait_empty()
    assert 1 <= host.copies("alice", mail) <= 2
    check_whole(host)


def test_submitted_while_the_daemon_is_at_work(make_machine: MakeMachine) -> None:
    """The cut comes at the exit of sendmail, wherever the daemon may be with it by then."""
    machine = make_machine()
    if machine is None:
        return
    host, mails = machine.host, []
    for _ in range(20 if IS_FULL else 5):
        host.start()
        mails.append(host.send("alice", "carol", sender="bob", text=TEXT))
        machine.cut()
    host.start()
    host.wait_empty()
    for mail in mails:
        assert all(1 <= host.copies(name, mail) <= 2 for name in ("alice", "carol"))
    check_whole(host)


def test_delivered_to_an_mbox(make_machine: MakeMachine) -> None:
    machine = make_machine()
    if machine is None:
        return
    host, mails = machine.host, []
    for _ in range(3):
        host.start()
        mails.append(host.send("alice", sender="bob", text=TEXT))
        assert "stat=Sent" in host.outcome(mails[-1], "alice")
        machine.cut()
        assert host.copies("alice", mails[-1]) == 1, "what is logged as sent is in the mailbox"
    host.start()
    host.wait_empty()
    assert all(1 <= host.copies("alice", mail) <= 2 for mail in mails)
    check_whole(host)


def test_deferred(make_machine: MakeMachine) -> None:
    """One has it, the other has to wait: what is left of the message is in the queue."""
    machine = make_machine()
    if machine is None:
        return
    host = machine.host
    host.start()
    os.mkdir(f"{host.paths.mail}/carol")
    machine.var.sync()
    mail = host.send("alice", "carol", sender="bob", text=TEXT)
    assert "stat=Sent" in host.outcome(mail, "alice")
    assert "stat=Deferred" in host.outcome(mail, "carol")
    machine.cut()
    os.rmdir(f"{host.paths.mail}/carol")
    host.start()
    host.wait_empty()
    assert 1 <= host.copies("alice", mail) <= 2
    assert host.copies("carol", mail) == 1
    check_whole(host)


def test_reported(make_machine: MakeMachine) -> None:
    """The moment the log says that there is a report about it, it is on the disk."""
    machine = make_machine()
    if machine is None:
        return
    host = machine.host
    host.start()
    os.mkdir(f"{host.paths.mail}/bob")
    machine.var.sync()
    mail = host.send("nobody", sender="bob", text=TEXT)
    host.log.wait_for(rf"^{host.queue_id(mail)}: \w{{14}}: DSN: ")
    machine.cut()
    os.rmdir(f"{host.paths.mail}/bob")
    host.start()
    host.wait_empty()
    assert 1 <= len(host.reports("bob", mail)) <= 2


def test_delivered_to_a_maildir_on_another_disk(make_machine: MakeMachine) -> None:
    """The queue forgets the message durably, and then the disk with the Maildir fails: peers that do not sync new/ lose
    it."""
    machine = make_machine(MAILDIR)
    if machine is None:
        return
    host = machine.host
    for _ in range(3):
        host.start()
        mail = host.send("alice", sender="bob", text=TEXT)
        assert "stat=Sent" in host.outcome(mail, "alice")
        host.wait_empty()
        machine.var.sync()
        machine.cut()
        assert host.files() == [], "nobody will deliver it again"
        copies = machine.maildir("alice", mail)
        assert len(copies) == 1
        assert copies[0].partition("\n\n")[2] == TEXT.decode()


def test_cut_after_cut(make_machine: MakeMachine) -> None:
    """A busy host whose power fails again and again, at moments of its own."""
    machine = make_machine()
    if machine is None:
        return
    host, chance, accepted = machine.host, random.Random(20), []
    for _ in range(20 if IS_FULL else 4):
        host.start()
        for _ in range(chance.randint(1, 12)):
            accepted.append(host.send("alice", "carol", "nobody", sender="bob", text=TEXT))
        if chance.random() < 0.5:
            host.outcome(accepted[-1], "alice")
        machine.cut()
    cuts = 20 if IS_FULL else 4
    host.start()
    host.wait_empty()
    for mail in accepted:
        for name in ("alice", "carol"):
            assert 1 <= host.copies(name, mail) <= 1 + cuts, f"{name} has {mail} {host.copies(name, mail)} times"
        assert host.reports("bob", mail), f"no report about {mail}"
    check_whole(host)
    say(f"power cut on {machine.var.kind}: {len(accepted)} messages, {cuts} cuts, "
        f"{sum(host.copies(name, mail) - 1 for mail in accepted for name in ('alice', 'carol'))} copies too many")
