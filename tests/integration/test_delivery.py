"""Mail from sendmail to where it belongs: mailboxes, aliases, .forward with all its kinds; and what is repeated."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import frontend
from tests.tools.host import LOCAL, Host

MakeHost = Callable[..., Host]
RETRY_SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"


def test_each_recipient_gets_one_copy(host: Host) -> None:
    mail = host.send("alice", "bob", "Bob@HOST.example", "carol+lists@host.example", sender="dave")
    host.wait_empty()
    assert [host.copies(name, mail) for name in ("alice", "bob", "carol", "dave")] == [1, 1, 1, 0]
    assert "\nDelivered-To: carol+lists@host.example\n" in host.box("carol")
    assert "\nReturn-Path: <dave@host.example>\n" in "\n" + host.messages("bob")[0]


def test_mailbox_belongs_to_its_user_alone(host: Host) -> None:
    mail = host.send("bob")
    host.outcome(mail, "bob")
    seen = os.stat(f"{host.paths.mail}/bob")
    assert (seen.st_uid, oct(seen.st_mode & 0o7777)) == (host.users["bob"].uid, oct(0o660))


def test_what_waited_for_a_mailbox_is_written_together(make_host: MakeHost) -> None:
    """One lock and one sync for many messages: the promise is the same, the price is not."""
    host = make_host()
    mails = [host.send("bob") for _ in range(30)]
    trace = f"{host.paths.root}/trace"
    host.runs_as = ["strace", "-f", "-qq", "-y", "-e", "trace=fsync,fdatasync", "-e", "signal=none", "-o", trace]
    host.start()
    host.wait_empty()
    host.stop()
    assert [host.copies("bob", mail) for mail in mails] == [1] * 30
    syncs = [line for line in Path(trace).read_text().split("\n") if f"{host.paths.mail}/bob>" in line]
    assert 1 <= len(syncs) <= 10, f"{len(syncs)} syncs of a mailbox that got 30 messages"


def test_message_that_is_delivered_at_once_leaves_nothing_behind(host: Host) -> None:
    mail = host.send("alice", "bob")
    found = host.queue_id(mail)
    host.wait_empty()
    assert host.journal(found) == []
    assert host.files("drop/tmp", "drop/new", "intake", "queue/tmp", "queue/new", "queue/cur", "queue/journal") == []


def test_aliases_lead_on_and_cut_duplicates(make_host: MakeHost) -> None:
    host = make_host(aliases="root: alice\nteam: bob, alice, carol\nhelp: team, bob\n")
    host.start()
    mail = host.send("postmaster", "help", sender="dave")
    host.wait_empty()
    assert [host.copies(name, mail) for name in ("alice", "bob", "carol", "root")] == [1, 1, 1, 0]


def test_changed_aliases_work_at_once_and_broken_ones_put_off(make_host: MakeHost) -> None:
    host = make_host(aliases="sales: alice\n", settings=RETRY_SOON)
    host.start()
    host.outcome(host.send("sales"), "alice")
    aliases = Path(host.paths.aliases)
    aliases.write_text("sales: bob, ,,: \"carol\n")
    frontend.sendmail(host.paths, name="newaliases")
    mail = host.send("sales")
    found = host.queue_id(mail)
    assert "stat=Deferred" in host.log.wait_for(rf"^{found}: to=<sales@host.example>.*")[0][0]
    aliases.write_text("sales: bob\n")
    frontend.sendmail(host.paths, name="newaliases")
    assert host.outcome(mail, "bob").startswith("dsn=2.")
    host.wait_empty()
    assert (host.copies("alice", mail), host.copies("bob", mail)) == (0, 1)


def test_commands_and_files_of_aliases_are_the_alias_users(make_host: MakeHost) -> None:
    host = make_host()
    user = host.users[LOCAL]
    work = f"{host.paths.root}/alias"
    os.mkdir(work)
    os.chown(work, user.uid, user.gid)
    Path(host.paths.aliases).write_text(
        f'robot: "|id -u > {work}/ids; cat > {work}/seen"\narchive: {work}/archive\nvoid: /dev/null\n')
    host.start()
    mail = host.send("robot", "archive", "void")
    host.wait_empty()
    assert Path(f"{work}/ids").read_text() == f"{user.uid}\n"
    assert f"<{mail.name}@test>" in Path(f"{work}/seen").read_text()
    assert f"<{mail.name}@test>" in Path(f"{work}/archive").read_text()
    assert os.stat(f"{work}/archive").st_uid == user.uid


def test_forward_with_every_kind_of_target(host: Host) -> None:
    home = host.users["alice"].home
    host.forward("alice", f'\\alice\nbob@host.example\n"|cat > {home}/seen; id -un > /dev/null"\n{home}/archive\n')
    mail = host.send("alice", sender="carol")
    host.wait_empty()
    assert (host.copies("alice", mail), host.copies("bob", mail)) == (1, 1)
    for name in ("seen", "archive"):
        assert f"<{mail.name}@test>" in Path(f"{home}/{name}").read_text()
        assert os.stat(f"{home}/{name}").st_uid == host.users["alice"].uid
    assert "\nDelivered-To: bob@host.example\n" in host.box("bob")
    assert "\nX-Original-To: alice@host.example\n" in "\n" + host.box("bob")


def test_forwards_in_a_circle_end_in_mailboxes(host: Host) -> None:
    host.forward("alice", "bob\n")
    host.forward("bob", "carol\n")
    host.forward("carol", "alice\n")
    mail = host.send("alice", sender="dave")
    host.wait_empty()
    assert sum(host.copies(name, mail) for name in ("alice", "bob", "carol")) == 1
    assert host.box("dave") == ""


def test_sender_hears_of_a_failed_target_behind_a_forward(host: Host) -> None:
    host.forward("alice", 'bob, nobody-there, "|exit 67"\n')
    mail = host.send("alice", sender="carol")
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    report, = host.reports("carol", mail)
    assert report.count("\nAction: failed\n") == 2, report
    assert "nobody-there@host.example" in report


def test_owner_of_a_list_hears_of_a_member_that_fails_and_nobody_else_does(make_host: MakeHost) -> None:
    host = make_host(aliases="team: alice, nobody-there\nowner-team: carol\n")
    host.start()
    mail = host.send("team", sender="dave")
    host.wait_empty()
    assert host.copies("alice", mail) == 1
    report, = host.reports("carol", mail)
    assert "nobody-there@host.example" in report
    assert host.reports("dave", mail) == []


def test_sender_hears_of_a_header_that_is_too_long(host: Host) -> None:
    """bin/sendmail looks at the header for -t alone: what it has taken must not vanish."""
    mail = host.send("bob", sender="carol", headers=b"X: y\n" * 10_001)
    host.wait_empty()
    assert host.copies("bob", mail) == 0
    report, = host.reports("carol", mail)
    assert "header is longer than" in report


def test_changed_forward_is_read_again_instead_of_running_what_it_said(make_host: MakeHost) -> None:
    """A command is found by its digest: one that the user has taken out is not run, and the mail is not lost."""
    host = make_host(settings=RETRY_SOON)
    home = host.users["alice"].home
    host.forward("alice", f'"|touch {home}/first; exit 75"\n')
    host.start()
    mail = host.send("alice", sender="bob")
    assert "stat=Deferred" in host.outcome(mail, "alice")
    os.unlink(f"{home}/first")
    host.forward("alice", f'"|cat > {home}/second"\n')
    host.wait_empty()
    assert f"<{mail.name}@test>" in Path(f"{home}/second").read_text()
    assert not os.path.exists(f"{home}/first") or host.log.find("has changed") == []


def test_only_what_failed_is_tried_again(make_host: MakeHost) -> None:
    host = make_host(settings=RETRY_SOON)
    home = host.users["bob"].home
    host.forward("bob", f'\\bob, "|echo >> {home}/tries; test -e {home}/good || exit 75"\n')
    host.start()
    mail = host.send("alice", "bob", sender="carol")
    found = host.queue_id(mail)
    host.log.wait_for(rf"^{found}: to=<bob@host.example>.*stat=Deferred", count=2)
    host.write_home("bob", "good", "")
    host.wait_empty()
    assert (host.copies("alice", mail), host.copies("bob", mail)) == (1, 1)
    assert len(host.log.find(rf"^{found}: to=<alice@host.example>")) == 1
    assert Path(f"{home}/tries").read_text().count("\n") >= 3


def test_killed_runner_repeats_only_what_was_open(make_host: MakeHost) -> None:
    """Two recipients are done and journalled, a command is running, when the runner dies."""
    host = make_host()
    home = host.users["bob"].home
    os.mkfifo(f"{home}/gate", 0o600)
    os.chown(f"{home}/gate", host.users["bob"].uid, host.users["bob"].gid)
    host.forward("bob", f'\\bob\n"|echo >> {home}/runs; test -e {home}/good || read x < {home}/gate"\n')
    host.start()
    mail = host.send("alice", "bob", "nobody-there", sender="carol")
    found = host.queue_id(mail)
    host.outcome(mail, "alice")
    host.wait_for_journal(found, "forwarded", "delivered", "delivered", "failed")
    host.wait_for_file(f"{home}/runs")
    since = host.log.mark()
    host.write_home("bob", "good", "")
    host.kill_runner()
    with open(f"{home}/gate", "w") as gate:  # the dead runner's agent goes on, and tells nobody
        gate.write("go\n")
    host.log.wait_for(rf"^{found}: to=<bob@host.example>.*mailer=prog.*stat=Sent", since=since)
    host.wait_empty()
    assert (host.copies("alice", mail), host.copies("bob", mail)) == (1, 1)
    assert not host.log.find(rf"^{found}: to=<(alice|nobody-there)@", since)
    assert not host.log.find(rf"^{found}: to=<bob@.*mailer=local", since)
    assert Path(f"{home}/runs").read_text() == "\n\n"
    assert len(host.reports("carol", mail)) == 1


def test_local_command_takes_all_mail(make_host: MakeHost) -> None:
    host = make_host(settings='[local]\ncommand = "cat >> $HOME/taken"\n')
    host.start()
    mails = [host.send("alice", "bob") for _ in range(3)]
    host.wait_empty()
    for name in ("alice", "bob"):
        taken = Path(f"{host.users[name].home}/taken")
        assert [taken.read_text().count(f"<{mail.name}@test>") for mail in mails] == [1, 1, 1]
        assert taken.stat().st_uid == host.users[name].uid
        assert host.box(name) == ""


def test_maildir(make_host: MakeHost) -> None:
    host = make_host(settings='[local]\nmailbox = "maildir"\n')
    host.start()
    mail = host.send("alice", "bob")
    found = host.queue_id(mail)
    host.wait_empty()
    for name in ("alice", "bob"):
        path, = Path(f"{host.users[name].home}/Maildir/new").iterdir()
        assert found in path.name
        assert f"<{mail.name}@test>" in path.read_text()
        assert path.stat().st_uid == host.users[name].uid


def test_user_database_without_an_answer_puts_mail_off(make_host: MakeHost) -> None:
    host = make_host(settings=RETRY_SOON)
    host.start()
    Path(f"{host.paths.root}/users.down").touch()
    mail = host.send("bob", "nobody-there", sender="alice")
    assert "stat=Deferred" in host.outcome(mail, "bob")
    assert "stat=Deferred" in host.outcome(mail, "nobody-there")
    os.unlink(f"{host.paths.root}/users.down")
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    assert len(host.reports("alice", mail)) == 1


def test_root_has_a_mailbox_and_nothing_more(make_host: MakeHost) -> None:
    host = make_host()
    if host.is_root:
        home = host.users["root"].home
        host.forward("root", f'"|touch {home}/ran"\n')
    host.start()
    mail = host.send("root")
    host.wait_empty()
    assert host.copies("root", mail) == 1
    assert not os.path.exists(f"{host.users['root'].home}/ran")


def test_mail_for_service_users_is_roots(host: Host) -> None:
    mail = host.send("_pysendmail", "_PYSMRELAY", LOCAL)
    host.wait_empty()
    assert host.copies("root", mail) == 1
    assert sorted(os.listdir(host.paths.mail)) == ["root"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_ends_in_order(host: Host, number: signal.Signals) -> None:
    mail = host.send("bob")
    assert host.stop(number) == 0
    host.start()
    host.outcome(mail, "bob")
    assert host.copies("bob", mail) == 1
