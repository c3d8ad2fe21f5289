"""A Debian host whose mail system is pysendmail: installed by apt, booted by systemd. The tests run in this order."""

import re
from pathlib import Path

import pytest

from .conftest import PACKAGE
from .debian import CommandFailed, Debian, until

SPOOL = "/var/spool/pysendmail"
MINUTE = 130  # seconds within which cron has started something that it starts every minute


@pytest.fixture(scope="module")
def host(debian: Debian) -> Debian:
    """Installed with what sends mail on a Debian host, root's mail going to alice, and booted."""
    debian.install(PACKAGE, "bsd-mailx", "mailutils", "s-nail", "logwatch")
    aliases = debian.path("/etc/aliases")
    aliases.write_text(aliases.read_text() + "root: alice\n")
    debian.boot()
    return debian


def main_pid(host: Debian) -> int:
    """0 while there is none."""
    return int(host.run("systemctl", "show", "--property=MainPID", "--value", "pysendmail").stdout)


def state(host: Debian) -> str:
    return host.run("systemctl", "show", "--property=ActiveState", "--value", "pysendmail").stdout.decode().strip()


def queue_files(host: Debian) -> list[Path]:
    return [path for place in ("drop/new", "intake", "queue/new", "queue/cur", "queue/hold")
            for path in host.path(f"{SPOOL}/{place}").iterdir()]


def test_service_is_enabled_and_running(host: Debian) -> None:
    assert host.run("systemctl", "is-enabled", "pysendmail").stdout.strip() == b"enabled"
    assert state(host) == "active"
    assert host.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip() == b"running"


def test_aliases_and_mailname_are_there(host: Debian) -> None:
    """Policy 11.6."""
    assert host.path("/etc/mailname").read_text() == "host.example.test\n"
    assert re.search(r"^postmaster:\s*root\n", host.path("/etc/aliases").read_text(), re.MULTILINE)
    host.run("newaliases")


def test_cron_mails_the_output_of_a_job_to_root(host: Debian) -> None:
    host.write("/etc/cron.d/hello", "* * * * * root echo hello from cron\n")
    box = host.wait_for_mail("alice", "hello from cron", MINUTE)
    host.path("/etc/cron.d/hello").unlink()
    assert re.search(r"^From: .*root@host\.example\.test", box, re.MULTILINE)
    assert re.search(r"^X-Original-To: root@host\.example\.test\n", box, re.MULTILINE)


@pytest.mark.parametrize(("name", "command"), [
    ("bsd-mailx", "echo body | bsd-mailx -s TOKEN bob"),
    ("mailutils", "echo body | mail.mailutils -s TOKEN bob"),
    ("s-nail", "echo body | s-nail -n -s TOKEN bob"),
    ("mutt", "echo body | mutt -n -s TOKEN -- bob"),
    ("php", """php -r 'exit(mail("bob", "TOKEN", "body", "From: alice") ? 0 : 1);'"""),
    ("MIME::Lite's way", r"""printf 'To: bob\nSubject: TOKEN\n\nbody\n' | /usr/lib/sendmail -t -oi -oem"""),
])
def test_program_sends_mail(host: Debian, name: str, command: str) -> None:
    token = f"token-{re.sub('[^a-z]', '', name.lower())}"
    host.run("sh", "-c", command.replace("TOKEN", token), user="alice")
    box = host.wait_for_mail("bob", token)
    message = box[box.index(token):]
    assert "body" in message
    assert box.count(token) == 1


def test_mail_is_written_as_its_recipient(host: Debian) -> None:
    """And nobody's mailbox is open to others, whatever wrote it."""
    seen = host.path("/var/mail/bob").stat()
    bob = int(host.run("id", "-u", "bob").stdout)
    assert seen.st_uid == bob
    assert seen.st_mode & 0o007 == 0


SANDBOX = """[Service]
Type=oneshot
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
ExecStart=/bin/sh -c "printf 'Subject: from a sandbox\\n\\nx\\n' | /usr/sbin/sendmail bob"
"""


def test_a_sandboxed_service_can_send(host: Debian) -> None:
    """No new privileges, a user that exists only meanwhile, a read-only system: where a set-id helper fails."""
    host.write("/etc/systemd/system/sandbox.service", SANDBOX)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "sandbox.service")
    host.wait_for_mail("bob", "from a sandbox")


def test_users_programs_keep_what_the_unit_could_take_from_them(host: Debian) -> None:
    """NoNewPrivs 0: some settings imply it in some versions of systemd."""
    status = host.run("cat", f"/proc/{main_pid(host)}/status").stdout
    assert b"\nNoNewPrivs:\t0\n" in status


def test_processes_have_the_users_of_the_architecture(host: Debian) -> None:
    listed = host.run("ps", "-e", "-o", "user:20=,args=").stdout.decode()
    ours = {line.split()[0] for line in listed.split("\n") if "pysendmaild" in line}
    assert {"root", "_pysendmail"} <= ours


def test_who_speaks_no_tls_does_not_load_openssl(host: Debian) -> None:
    """It takes 3 MB in each process; as installed, no process has a use for it before mail leaves the host."""
    look = "for p in $(pgrep -f pysendmaild); do grep -lE 'lib(crypto|ssl)' /proc/$p/maps; done"
    loaded = host.run("sh", "-c", look, check=False).stdout
    assert loaded == b""


def test_an_unknown_user_is_reported_to_the_sender(host: Debian) -> None:
    host.run("/usr/sbin/sendmail", "nobody-of-that-name", user="carol", content=b"Subject: lost\n\nx\n")
    box = host.wait_for_mail("carol", "nobody-of-that-name")
    assert "Content-Type: multipart/report" in box
    assert "\nStatus: 5.1.1\n" in box


def test_mail_sent_while_the_daemon_is_down_waits_for_it(host: Debian) -> None:
    host.run("systemctl", "stop", "pysendmail")
    host.run("/usr/sbin/sendmail", "bob", user="alice", content=b"Subject: waited\n\nx\n")
    assert len(queue_files(host)) == 1
    host.run("systemctl", "start", "pysendmail")
    host.wait_for_mail("bob", "waited")
    until(lambda: not queue_files(host), "the queue is empty")


def test_it_comes_back_after_kill(host: Debian) -> None:
    for number in range(3):
        before = main_pid(host)
        assert before > 0, "kill 0 would hit the tests themselves"
        host.run("kill", "-KILL", str(before))
        until(lambda before=before: main_pid(host) not in (0, before) and state(host) == "active", "a new daemon")
        host.run("/usr/sbin/sendmail", "bob", user="alice", content=f"Subject: after kill {number}\n\nx\n".encode())
        host.wait_for_mail("bob", f"after kill {number}")


def test_a_killed_queue_process_is_replaced(host: Debian) -> None:
    listed = host.run("pgrep", "-u", "_pysendmail").stdout.split()
    host.run("kill", "-KILL", *(pid.decode() for pid in listed))
    host.run("/usr/sbin/sendmail", "bob", user="alice", content=b"Subject: after the runner\n\nx\n")
    host.wait_for_mail("bob", "after the runner")


def test_reload_keeps_it_running(host: Debian) -> None:
    before = main_pid(host)
    host.run("systemctl", "reload", "pysendmail")
    host.run("/usr/sbin/sendmail", "bob", user="alice", content=b"Subject: after reload\n\nx\n")
    host.wait_for_mail("bob", "after reload")
    assert main_pid(host) == before
    assert b"empty" in host.run("mailq", user="carol").stdout  # the sockets are the new queue process's


def test_mailq_works_for_everybody(host: Debian) -> None:
    for user in ("", "carol"):
        assert b"empty" in host.run("mailq", user=user).stdout


def test_configuring_again_keeps_what_the_administrator_wrote(host: Debian) -> None:
    """Policy 10.7.3."""
    host.path("/etc/aliases").write_text("root: alice\nmine: bob")  # neither postmaster nor a last line end
    host.run("dpkg-reconfigure", "pysendmail")
    assert host.path("/etc/aliases").read_text() == "root: alice\nmine: bob\npostmaster: root\n"
    host.path("/etc/mailname").write_text("another.example\n")
    host.run("dpkg-reconfigure", "pysendmail")
    assert host.path("/etc/aliases").read_text() == "root: alice\nmine: bob\npostmaster: root\n"
    assert host.path("/etc/mailname").read_text() == "another.example\n"


def test_log_lines_are_sendmails(host: Debian) -> None:
    """logwatch and others know these tags and this shape of queue id."""
    log = host.run("journalctl", "--no-pager", "--output=short").stdout.decode("utf-8", "replace")
    line = r"(?:sendmail|sm-mta)\[\d+\]: \w{8}\d{6}: "
    assert re.search(line + r"from=<alice@host\.example\.test>, size=\d+, .*nrcpts=1, .*relay=", log)
    assert re.search(line + r"to=.*bob.*, .*mailer=local, .*dsn=2\.0\.0, stat=Sent", log)


def test_logwatch_understands_every_line(host: Debian) -> None:
    """From the journal, by the example that the package brings."""
    example = host.path("/usr/share/doc/pysendmail/examples/logwatch-sendmail.conf")
    host.write("/etc/logwatch/conf/services/sendmail.conf", example.read_text())
    report = host.run("logwatch", "--output", "stdout", "--range", "all", "--service", "sendmail", "--detail", "high")
    assert re.search(rb"Messages To Recipients: +[1-9]", report.stdout)
    assert b"Unmatched" not in report.stdout, report.stdout


def test_purge_keeps_undelivered_mail_and_a_new_installation_delivers_it(host: Debian) -> None:
    host.run("systemctl", "stop", "pysendmail")
    host.run("/usr/sbin/sendmail", "bob", user="alice", content=b"Subject: survives a purge\n\nx\n")
    mailbox = host.mailbox("bob")
    done = host.run("dpkg", "--purge", "--force-depends", "pysendmail", timeout=120)
    assert b"1 undelivered message" in done.stderr + done.stdout
    assert len(queue_files(host)) == 1
    assert host.mailbox("bob") == mailbox
    assert host.path("/etc/aliases").exists()
    assert host.path("/etc/mailname").exists()
    assert not host.path("/etc/pysendmail").exists()
    for place in ("/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/bin/mailq", "/usr/share/pysendmail"):
        assert not host.path(place).is_symlink()
        assert not host.path(place).exists()
    host.run("getent", "passwd", "_pysendmail")
    host.run("dpkg", "--install", PACKAGE, timeout=120)
    host.wait_for_mail("bob", "survives a purge")


def test_purge_with_an_empty_queue_leaves_nothing_of_ours(host: Debian) -> None:
    until(lambda: not queue_files(host), "the queue is empty")
    host.run("dpkg", "--purge", "--force-depends", "pysendmail", timeout=120)
    assert not host.path(SPOOL).exists()
    assert not host.path("/run/pysendmail").exists()
    assert "survives a purge" in host.mailbox("bob")
    for user in ("_pysendmail", "_pysmtpd", "_pysmrelay"):
        with pytest.raises(CommandFailed):
            host.run("getent", "passwd", user)


