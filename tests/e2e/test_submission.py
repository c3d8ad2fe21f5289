"""A mail host that is open to the network: strangers, and users who log in with the programs they have.

The network is an address besides those of loopback: what comes from there to there comes from no client of this host.
Three know passwords: a file, PAM and Dovecot, all of them real. The tests run in this order.
"""

import json
import re

import pytest

from .conftest import PACKAGE
from .debian import Debian, until

ADDRESS = "192.0.2.25"
PROJECT = "/home/alice/project"
PASSWORDS = {"filed": "of-the-file", "alice": "of-the-host", "doved": "of-dovecot"}
PROGRAMS = ("dovecot-core", "python3-pampy", "python3-six", "swaks", "git", "git-email", "libmailtools-perl",
            "libnet-ssleay-perl", "libio-socket-ssl-perl", "libauthen-sasl-perl", "fail2ban", "postgrey", "ssl-cert",
            "iproute2", "openssl")

SETTINGS = """
[smtpd]
listen = ["0.0.0.0:25"]
check_sender = false  # there is no DNS
protect_local_senders = true
[[listener]]
address = "0.0.0.0:587"
profile = "submission"
[[listener]]
address = "0.0.0.0:465"
profile = "submissions"
[auth]
password_file = "/etc/pysendmail/passwords"
pam = true
dovecot = "/run/dovecot/auth-pysendmail"
"""
DOVECOT = {
    "2.3": "passdb {\n driver = passwd-file\n args = scheme=PLAIN /etc/dovecot/users\n}\n"
           "userdb {\n driver = static\n args = uid=65534 gid=65534 home=/nonexistent\n}\n",
    "2.4": "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"
           "passdb passwd-file {\n passwd_file_path = /etc/dovecot/users\n default_password_scheme = PLAIN\n}\n"
           "userdb static {\n fields {\n  uid = 65534\n  gid = 65534\n  home = /nonexistent\n }\n}\n",
}
DOVECOT_SOCKET = "service auth {\n unix_listener auth-pysendmail {\n  mode = 0600\n  user = _pysmtpd\n }\n}\n"

# What a stranger hears: {what: [code, text]}.
STRANGER = """
import json, smtplib, ssl
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
heard = {}
with smtplib.SMTP("ADDRESS", 25, "client.example", timeout=30) as smtp:
    smtp.ehlo()
    smtp.starttls(context=context)
    smtp.ehlo()
    heard["MAIL"] = smtp.mail("x@else.example")
    heard["ours"] = smtp.rcpt("bob@host.example.test")
    heard["unknown"] = smtp.rcpt("nobody-here@host.example.test")
    heard["relay"] = smtp.rcpt("x@else.example")
    if heard["ours"][0] == 250:
        heard["DATA"] = smtp.data("Subject: from a stranger\\r\\n\\r\\nx\\r\\n")
    heard["RSET"] = smtp.rset()
    heard["forged"] = smtp.mail("alice@host.example.test")
print(json.dumps({what: [code, text.decode()] for what, (code, text) in heard.items()}))
"""

# SendmailTransport of Symfony's mailer: `sendmail -bs`, the dialogue of its EsmtpTransport byte for byte, two messages.
SYMFONY = r"""
$child = proc_open('/usr/sbin/sendmail -bs', [['pipe', 'r'], ['pipe', 'w'], ['pipe', 'w']], $pipes);
$say = function (string $line, int $code) use ($pipes) {
    fwrite($pipes[0], $line); fflush($pipes[0]);
    do { $reply = fgets($pipes[1]); } while ($reply !== false && $reply[3] === '-');
    if ((int) $reply !== $code) { echo "$line got $reply"; exit(1); }
};
$say('', 220);
$say("EHLO [127.0.0.1]\r\n", 250);
foreach ([1, 2] as $number) {
    $say("MAIL FROM:<alice@host.example.test>\r\n", 250);
    $say("RCPT TO:<bob@host.example.test>\r\n", 250);
    $say("DATA\r\n", 354);
    fwrite($pipes[0], "From: alice@host.example.test\r\nSubject: symfony$number\r\nMIME-Version: 1.0\r\n\r\n..x\r\n");
    $say("\r\n.\r\n", 250);
    $say("NOOP\r\n", 250);
}
$say("QUIT\r\n", 221);
fclose($pipes[0]);
exit(proc_close($child));
"""


@pytest.fixture(scope="module")
def host(debian: Debian) -> Debian:
    debian.install(PACKAGE, *PROGRAMS)
    debian.write("/etc/pysendmail/conf.d/50-open.toml", SETTINGS)
    hashed = debian.chroot("openssl", "passwd", "-6", PASSWORDS["filed"]).stdout.decode()
    debian.write("/etc/pysendmail/passwords", f"filed:{hashed}", 0o600)
    debian.chroot("chpasswd", content=f"alice:{PASSWORDS['alice']}\n".encode())
    version = debian.chroot("dovecot", "--version").stdout.decode()[:3]
    debian.write("/etc/dovecot/users", f"doved:{PASSWORDS['doved']}\n")
    debian.write("/etc/dovecot/dovecot.conf",
                 DOVECOT[version] + "ssl = no\n" + DOVECOT_SOCKET)
    debian.boot()
    debian.run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    until(lambda: b":587 " in debian.run("ss", "-ltn").stdout, "submissions are taken")
    return debian


def stranger(host: Debian) -> dict[str, tuple[int, str]]:
    said = host.run("python3", "-c", STRANGER.replace("ADDRESS", ADDRESS)).stdout
    return {what: (code, text) for what, (code, text) in json.loads(said).items()}


def test_what_a_stranger_may(host: Debian) -> None:
    """TLS with Debian's self-signed certificate, mail for users, and nothing else."""
    heard = stranger(host)
    assert {what: code for what, (code, _) in heard.items()} == {
        "MAIL": 250, "ours": 250, "unknown": 550, "relay": 550, "DATA": 250, "RSET": 250, "forged": 550}
    assert heard["unknown"][1].startswith("5.1.1 ")
    assert heard["relay"][1].startswith("5.7.1 ")
    box = host.wait_for_mail("bob", "from a stranger")
    received = r"Received: from client\.example \(\[192\.0\.2\.25\]\)\n\t\(using TLSv1\.3 .*\n.* with ESMTPS "
    assert re.search(rf"^{received}", box, re.MULTILINE)


@pytest.mark.parametrize("user", PASSWORDS)
def test_whoever_knows_the_password_lets_a_user_in(host: Debian, user: str) -> None:
    """swaks, over STARTTLS and with TLS from the start."""
    for port, tls in ((587, "-tls"), (465, "--tlsc")):
        host.run("swaks", "--server", f"{ADDRESS}:{port}", tls, "--auth-user", user, "--auth-password", PASSWORDS[user],
                 "--from", "alice@host.example.test", "--to", "bob@host.example.test",
                 "--header", f"Subject: {user} by {port}")
        assert " with ESMTPSA id " in host.wait_for_mail("bob", f"Subject: {user} by {port}")


def test_git_send_email(host: Debian) -> None:
    server = {"smtp-server": ADDRESS, "smtp-server-port": "587", "smtp-encryption": "tls", "smtp-ssl-cert-path": "",
              "smtp-user": "alice", "smtp-pass": PASSWORDS["alice"], "to": "bob@host.example.test", "confirm": "never"}
    for words in (("init", "-q", PROJECT), ("-C", PROJECT, "config", "user.email", "alice@host.example.test"),
                  ("-C", PROJECT, "config", "user.name", "Alice"),
                  ("-C", PROJECT, "commit", "-q", "--allow-empty", "-m", "by-git-send-email"),
                  ("-C", PROJECT, "format-patch", "-q", "--always", "--root", "-o", PROJECT, "HEAD")):
        host.run("git", *words, user="alice")
    options = [word for name, value in server.items() for word in (f"--{name}", value)]
    host.run("git", "-C", PROJECT, "send-email", *options, f"{PROJECT}/0001-by-git-send-email.patch", user="alice")
    host.wait_for_mail("bob", "by-git-send-email")


def test_mutt(host: Debian) -> None:
    host.write("/home/alice/muttrc", f"""
set smtp_url="smtp://alice@{ADDRESS}:587/" smtp_pass="{PASSWORDS['alice']}" ssl_starttls=yes ssl_verify_host=no
set certificate_file=/etc/ssl/certs/ssl-cert-snakeoil.pem from=alice@host.example.test use_envelope_from=yes copy=no
""")
    host.run("sh", "-c", "echo x | mutt -F ~/muttrc -s by-mutt -- bob@host.example.test", user="alice")
    assert " with ESMTPSA id " in host.wait_for_mail("bob", "by-mutt")


def test_symfony(host: Debian) -> None:
    host.run("php", "-r", SYMFONY, user="alice")
    box = host.wait_for_mail("bob", "symfony2")
    assert box.count("Subject: symfony") == 2
    assert "\n\n.x\n" in box


def test_fail2ban_finds_whoever_guesses_and_whoever_wants_to_relay(host: Debian) -> None:
    """By the filters that Debian's fail2ban brings for sendmail, and whatever name the guesser takes."""
    for user in ("alice", "nobody-here", "x, relay=[192.0.2.66]"):
        done = host.run("swaks", "--server", f"{ADDRESS}:587", "-tls", "--auth", "PLAIN", "--auth-user", user,
                        "--auth-password", "wrong", "--to", "bob@host.example.test", check=False)
        assert b" 535 5.7.8 " in done.stdout
    host.run("sh", "-c", "journalctl --no-pager --output=short --identifier=sendmail >/tmp/mail.log")
    for name, least in (("sendmail-auth", 3), ("sendmail-reject", 2)):
        config = f"/etc/fail2ban/filter.d/{name}.conf"
        addresses = host.run("fail2ban-regex", "--out", "ip", "/tmp/mail.log", config).stdout.decode().split()
        assert set(addresses) == {ADDRESS}, name
        assert len(addresses) >= least, name


def test_postgrey_puts_strangers_off(host: Debian) -> None:
    host.write("/etc/pysendmail/conf.d/60-postgrey.toml", '[smtpd]\npolicy_servers = ["127.0.0.1:10023"]\n')
    host.run("systemctl", "start", "postgrey")
    until(lambda: b":10023 " in host.run("ss", "-ltn").stdout, "postgrey listens")
    host.run("systemctl", "reload", "pysendmail")
    until(lambda: stranger(host)["ours"][0] == 450, "the listeners have been replaced")
    assert "reylisted" in stranger(host)["ours"][1]
