"""Mail filters and libraries that Debian has, beside an installed pysendmail: what they say holds for all mail.

opendkim signs, opendmarc finds no DNS here, clamav-milter knows one virus of its own, rspamd does what it does. In this
order they are asked. An address besides those of loopback is the network: who comes from there is a stranger to all of
them, until he logs in.
"""

from pathlib import Path

import pytest

from .conftest import PACKAGE
from .debian import FQDN, Debian, until

VIRUS = "PYSENDMAIL-TEST-VIRUS-0123456789"
SPAM = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
KEY = "/etc/dkimkeys/test"
ADDRESS = "192.0.2.25"
PASSWORD = "of-the-file"
SETTINGS = """[milter]
sockets = ["unix:/run/opendkim/opendkim.sock", "unix:/run/opendmarc/opendmarc.sock",
           "unix:/run/clamav/clamav-milter.ctl", "127.0.0.1:11332"]
[smtpd]
listen = ["0.0.0.0:25"]
check_sender = false  # there is no DNS
[[listener]]
address = "0.0.0.0:587"
profile = "submission"
[auth]
results = false
password_file = "/etc/pysendmail/passwords"
"""
OPENDKIM = f"""Mode s
Syslog yes
UMask 007
UserID opendkim
Socket local:/run/opendkim/opendkim.sock
PidFile /run/opendkim/opendkim.pid
Domain {FQDN}
Selector test
KeyFile {KEY}.private
"""
OPENDMARC = f"""Syslog yes
UMask 007
UserID opendmarc
Socket local:/run/opendmarc/opendmarc.sock
PidFile /run/opendmarc/opendmarc.pid
AuthservID {FQDN}
IgnoreAuthenticatedClients true
RejectFailures true
"""
# From the network: $1 subject, $2 "login" or nothing. The reply to the final dot.
FROM_OUTSIDE = f"""import smtplib, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
is_user = len(sys.argv) > 2
with smtplib.SMTP("{ADDRESS}", 587 if is_user else 25, "client.example", timeout=50) as smtp:
    smtp.starttls(context=context)
    smtp.ehlo()
    if is_user:
        smtp.user, smtp.password = "carol", "{PASSWORD}"
        smtp.auth("LOGIN", smtp.auth_login)
    smtp.mail("carol@{FQDN}", ["RET=HDRS"])
    smtp.rcpt("bob@{FQDN}", ["NOTIFY=FAILURE"])
    code, words = smtp.data("From: carol@{FQDN}\\nTo: bob@{FQDN}\\nSubject: " + sys.argv[1] + "\\n\\nhello\\n")
    print(code, words.decode())
"""
# By SMTP, from the host itself: $1 text. The reply to the final dot.
BY_SMTP = f"""import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25, timeout=50) as smtp:
    smtp.ehlo()
    smtp.mail("carol@{FQDN}")
    smtp.rcpt("bob@{FQDN}")
    code, words = smtp.data("From: carol@{FQDN}\\nTo: bob@{FQDN}\\nSubject: by SMTP\\n\\n" + sys.argv[1] + "\\n")
    print(code, words.decode())
"""
# Whether a signature holds: $1 the record; the message comes on standard input.
VERIFY = """import dkim, sys
data = sys.stdin.buffer.read()
sys.exit(0 if dkim.verify(data, dnsfunc=lambda name, timeout=5: sys.argv[1].encode()) else 1)
"""


@pytest.fixture(scope="module")
def host(debian: Debian) -> Debian:
    debian.install(PACKAGE, "opendkim", "opendkim-tools", "opendmarc", "clamav-daemon", "clamav-milter", "rspamd",
                   "python3-dkim", "ssl-cert", "openssl", "iproute2")
    debian.write("/etc/pysendmail/conf.d/milter.toml", SETTINGS)
    hashed = debian.chroot("openssl", "passwd", "-6", PASSWORD).stdout.decode()
    debian.write("/etc/pysendmail/passwords", f"carol:{hashed}", 0o600)
    debian.write("/etc/opendkim.conf", OPENDKIM)
    debian.write("/etc/opendmarc.conf", OPENDMARC)
    debian.chroot("sh", "-c", f"mkdir -p /etc/dkimkeys; opendkim-genkey -D /etc/dkimkeys -s test -d {FQDN};"
                              " chown -R opendkim /etc/dkimkeys; usermod -a -G opendkim,opendmarc _pysmtpd")
    debian.write("/var/lib/clamav/local.ndb", f"Test.Virus:0:*:{VIRUS.encode().hex()}\n")
    for unit in ("service", "socket"):  # Debian's units want the database that freshclam would fetch
        debian.write(f"/etc/systemd/system/clamav-daemon.{unit}.d/local.conf", "[Unit]\nConditionPathExistsGlob=\n")
    debian.chroot("sed", "-i", "s/^OnInfected.*/OnInfected Reject/", "/etc/clamav/clamav-milter.conf")
    debian.write("/etc/rspamd/local.d/milter_headers.conf", "extended_spam_headers = true;\nskip_local = false;\n")
    debian.boot()
    debian.run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    debian.run("systemctl", "start", "opendkim", "opendmarc", "clamav-daemon", "clamav-milter", "rspamd")
    for place in ("/run/opendkim/opendkim.sock", "/run/opendmarc/opendmarc.sock", "/run/clamav/clamd.ctl",
                  "/run/clamav/clamav-milter.ctl"):
        until(lambda place=place: debian.run("test", "-S", place, check=False).returncode == 0, f"{place} is there", 60)
    # It looks for clamd when it starts, and then once a minute.
    debian.run("systemctl", "restart", "clamav-milter")
    until(lambda: debian.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 11332))",
                             check=False).returncode == 0, "rspamd listens", 60)
    return debian


def by_smtp(host: Debian, text: str) -> str:
    return host.run("python3", "-c", BY_SMTP, text).stdout.decode()


def by_command(host: Debian, subject: str, text: str) -> None:
    host.run("/usr/sbin/sendmail", "-i", "bob", user="alice",
             content=f"To: bob\nSubject: {subject}\n\n{text}\n".encode())


def record(host: Debian) -> str:
    quoted = Path(host.path(f"{KEY}.txt")).read_text().split('"')[1::2]
    return "".join(quoted)


def message(box: str, subject: str) -> str:
    """The one with this subject, without its From_ line."""
    found = [part for part in box.split("\nFrom ") if f"\nSubject: {subject}\n" in part]
    assert len(found) == 1
    return found[0].partition("\n")[2]


@pytest.mark.parametrize("door", ["command", "SMTP"])
def test_what_passes_is_signed_and_marked(host: Debian, door: str) -> None:
    if door == "SMTP":
        assert by_smtp(host, "hello").startswith("250 ")
    else:
        by_command(host, "by command", "hello")
    found = message(host.wait_for_mail("bob", f"Subject: by {door}\n", 60), f"by {door}")
    assert "\nX-Virus-Status: Clean\n" in found
    assert "\nX-Rspamd-Server: " in found
    assert f"d={FQDN}; s=test;" in " ".join(found.split())
    host.run("python3", "-c", VERIFY, record(host), content=found.rstrip("\n").encode() + b"\n")


def test_filters_know_who_is_logged_in(host: Debian) -> None:
    """opendkim signs a user's mail, wherever he is; opendmarc does not judge it; rspamd puts no fields into it."""
    said = host.run("python3", "-c", FROM_OUTSIDE, "of a user", "login").stdout.decode()
    assert said.startswith("250 ")
    found = message(host.wait_for_mail("bob", "Subject: of a user\n", 60), "of a user")
    assert " with ESMTPSA id " in found
    assert "\nX-Virus-Status: Clean\n" in found
    assert f"d={FQDN}; s=test;" in " ".join(found.split())
    assert "dmarc=" not in found
    assert "\nX-Rspamd-Server: " not in found
    host.run("python3", "-c", VERIFY, record(host), content=found.rstrip("\n").encode() + b"\n")


def test_a_stranger_gets_no_signature_in_the_name_of_a_user(host: Debian) -> None:
    said = host.run("python3", "-c", FROM_OUTSIDE, "of a stranger").stdout.decode()
    assert said.startswith("250 ")
    found = message(host.wait_for_mail("bob", "Subject: of a stranger\n", 60), "of a stranger")
    assert "DKIM-Signature" not in found
    assert "\nX-Rspamd-Server: " in found


def test_a_virus_is_refused_by_smtp(host: Debian) -> None:
    assert by_smtp(host, VIRUS).startswith("550 5.7.1 ")


def test_a_virus_by_command_comes_back_without_itself(host: Debian) -> None:
    by_command(host, "a virus", VIRUS)
    box = host.wait_for_mail("alice", "Subject: Undelivered mail", 60)
    assert "rejected by a mail filter" in box
    assert VIRUS not in box
    assert VIRUS not in host.mailbox("bob")


def test_spam_is_refused_in_the_words_of_the_filter(host: Debian) -> None:
    assert by_smtp(host, SPAM) == "554 5.7.1 Gtube pattern\n"


def test_quarantine_is_a_hold(host: Debian) -> None:
    host.run("sed", "-i", "s/^OnInfected.*/OnInfected Quarantine/", "/etc/clamav/clamav-milter.conf")
    host.run("systemctl", "restart", "clamav-milter")
    by_command(host, "quarantined", VIRUS)
    until(lambda: b"QUARANTINE: quarantined by clamav-milter" in host.run("mailq").stdout, "mailq shows it", 60)
    assert VIRUS not in host.mailbox("bob")
    held = host.run("pysendmail", "queue", "list").stdout.decode().split()[0]
    host.run("pysendmail", "queue", "release", held)
    host.wait_for_mail("bob", VIRUS)


def test_mail_waits_for_a_filter_that_is_down(host: Debian) -> None:
    host.run("systemctl", "stop", "opendkim")
    try:
        by_command(host, "waiting", "hello")
        until(lambda: b"a mail filter is out of order" in host.run("mailq").stdout, "it waits", 60)
        with pytest.raises(AssertionError):
            message(host.mailbox("bob"), "waiting")
    finally:
        host.run("systemctl", "start", "opendkim")
    until(lambda: host.run("test", "-S", "/run/opendkim/opendkim.sock", check=False).returncode == 0, "its socket")
    host.run("sendmail", "-q")
    assert "DKIM-Signature" in message(host.wait_for_mail("bob", "Subject: waiting\n", 60), "waiting")
