"""Mail both ways between a host with pysendmail and one with another mail system, found by DNS: what each makes of the
other's TLS, replies, receipts and reports. A new peer is a package and a few lines of shell."""

import email
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import PACKAGE
from .debian import FQDN, Debian, join, until

PEER, PEER_FQDN = "peer", "peer.example.test"
ADDRESS, PEER_ADDRESS, PREFIX = "192.0.2.1", "192.0.2.2", 24
CABLE = "mail0"
PACKAGES = ("ssl-cert", "ca-certificates", "dnsmasq-base")  # without the second, Postfix 3.10 does no TLS
SETUP = {
    "postfix": """
        postconf -e myhostname=PEER mydestination=PEER,localhost inet_interfaces=all 'mailbox_command='
        newaliases""",
    "exim4-daemon-light": """
        cd /etc/exim4
        sed -i -e "s/^dc_eximconfig_configtype=.*/dc_eximconfig_configtype='internet'/" \\
            -e "s/^dc_other_hostnames=.*/dc_other_hostnames='PEER'/" \\
            -e "s/^dc_local_interfaces=.*/dc_local_interfaces=''/" update-exim4.conf.conf
        cp /etc/ssl/certs/ssl-cert-snakeoil.pem exim.crt
        cp /etc/ssl/private/ssl-cert-snakeoil.key exim.key
        chown root:Debian-exim exim.crt exim.key
        chmod 640 exim.key
        echo 'MAIN_TLS_ENABLE = yes' >exim4.conf.localmacros
        update-exim4.conf""",
    "opensmtpd": """
        cp /etc/ssl/certs/ssl-cert-snakeoil.pem /etc/peer.crt
        cp /etc/ssl/private/ssl-cert-snakeoil.key /etc/peer.key
        chmod 600 /etc/peer.key
        chown root:root /etc/peer.key
        cat >/etc/smtpd.conf <<'END'
pki peer cert "/etc/peer.crt"
pki peer key "/etc/peer.key"
table aliases file:/etc/aliases
listen on 0.0.0.0 tls pki peer hostname PEER
action "local" mbox alias <aliases>
action "relay" relay helo PEER
match for local action "local"
match from any for domain "PEER" action "local"
match from local for any action "relay"
END
        smtpd -n""",
    # Its greeting comes late, it takes few connections a minute, and none from a network for documentation.
    "sendmail": r"""
        cd /etc/mail
        sed -i -e 's/, *Addr=127\.0\.0\.1//' -e '/greet_pause\|conncontrol\|ratecontrol\|CONNECTION_RATE/d' \
            -e '/use_cw_file/d' sendmail.mc
        cat >peer.m4 <<'END'
FEATURE(`use_cw_file')dnl
include(`/etc/mail/tls/starttls.m4')dnl
END
        sed -i '/^DAEMON_OPTIONS.*MTA-v4/r peer.m4' sendmail.mc
        sed -i '/^Connect:192\.0\.2/d' access
        printf '%s\n' PEER localhost >local-host-names
        yes | sendmailconfig
        newaliases
        systemctl enable sendmail""",
}
FLUSH = {"postfix": ["postqueue", "-f"], "exim4-daemon-light": ["exim4", "-qff"],
         "opensmtpd": ["smtpctl", "schedule", "all"], "sendmail": ["sendmail", "-qf"]}
# Receipts (RFC 3461). Exim neither passes a request on nor makes one; OpenSMTPD makes one, without the envelope id, and
# its own command takes no -V.
SENDS_RECEIPTS = {"postfix", "opensmtpd", "sendmail"}
ASKS_FOR_RECEIPTS = {"postfix", "sendmail"}
BROKEN_TLS = {("opensmtpd", "bookworm")}  # its 6.8 offers TLS, and with OpenSSL 3 every handshake fails


@dataclass(frozen=True)
class Hosts:
    ours: Debian
    peer: Debian
    name: str
    has_broken_tls: bool  # the peer's: mail for it goes in the clear

    def send(self, sender: Debian, to: str, *options: str, body: bytes = b"hello\n") -> str:
        """Hand in a message as alice; its subject."""
        subject = f"token-{secrets.token_hex(6)}"
        text = b"Subject: %s\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n" % subject.encode()
        domain = PEER_FQDN if sender is self.ours else FQDN
        sender.run("/usr/sbin/sendmail", *options, "-i", f"{to}@{domain}", user="alice", content=text + body)
        return subject


def write_names(debian: Debian, fqdn: str, hostname: str) -> None:
    debian.write("/etc/hostname", f"{hostname}\n")
    debian.write("/etc/mailname", f"{fqdn}\n")
    debian.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {fqdn} {hostname}\n")


def serve_names(debian: Debian) -> None:
    """DNS for both."""
    words = [word for fqdn, address in ((FQDN, ADDRESS), (PEER_FQDN, PEER_ADDRESS))
             for word in (f"--host-record={fqdn},{address}", f"--mx-host={fqdn},{fqdn},10")]
    debian.run("systemd-run", "--quiet", "--unit=names", "/usr/sbin/dnsmasq", "--keep-in-foreground",
               "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--local=/test/", "--user=root",
               f"--listen-address={PEER_ADDRESS}", "--bind-interfaces", *words)


@pytest.fixture(scope="module", params=sorted(SETUP))
def hosts(request: pytest.FixtureRequest, suite: str, package: Path) -> Iterator[Hosts]:
    ours, peer = Debian.copy_of(suite), Debian.copy_of(suite)
    try:
        ours.path(PACKAGE).write_bytes(package.read_bytes())
        write_names(peer, PEER_FQDN, PEER)
        ours.install(PACKAGE, "ssl-cert")
        ours.write("/etc/pysendmail/conf.d/network.toml", f'[smtpd]\nlisten = ["127.0.0.1:25", "{ADDRESS}:25"]\n')
        peer.install(request.param, *PACKAGES)
        peer.chroot("sh", "-ec", SETUP[request.param].replace("PEER", PEER_FQDN))
        for debian in (ours, peer):
            debian.write("/etc/resolv.conf", f"nameserver {PEER_ADDRESS}\n")
        ours.boot()
        peer.boot(PEER)
        join(ours, peer, CABLE, (f"{ADDRESS}/{PREFIX}", f"{PEER_ADDRESS}/{PREFIX}"))
        serve_names(peer)
        ours.run("systemctl", "restart", "pysendmail")  # its address is there now
        yield Hosts(ours, peer, request.param, (request.param, suite) in BROKEN_TLS)
    finally:
        ours.remove()
        peer.remove()


def delivered(debian: Debian, user: str, subject: str) -> str:
    """The message with this subject, which must be there once."""
    box = debian.wait_for_mail(user, f"Subject: {subject}\n")
    assert box.count(f"Subject: {subject}\n") == 1
    return next(message for message in re.split(r"(?m)^(?=From \S+ )", box) if f"Subject: {subject}\n" in message)


def reported(debian: Debian, subject: str) -> str:
    """The report to alice about the message with this subject."""
    box = debian.wait_for_mail("alice", subject)
    report, = (message for message in re.split(r"(?m)^(?=From \S+ )", box) if subject in message)
    return report


def text_of(message: str) -> str:
    """What a message says, whatever it was encoded in, without what mailboxes need."""
    parsed = email.message_from_string(message.partition("\n")[2])
    text = parsed.get_payload(decode=True) if parsed["Content-Transfer-Encoding"] == "quoted-printable" else None
    said = text.decode() if isinstance(text, bytes) else str(parsed.get_payload())
    return said.replace("\n>From ", "\nFrom ").rstrip("\n") + "\n"


def logged(hosts: Hosts, words: str) -> None:
    """Wait for a line in our log."""
    until(lambda: re.search(words, hosts.ours.run("journalctl", "--output=cat").stdout.decode("utf-8", "replace")),
          f"{words} in the log")


@pytest.mark.parametrize("is_out", [True, False], ids=["to the peer", "from the peer"])
def test_mail_arrives_as_it_was_by_tls(hosts: Hosts, is_out: bool) -> None:
    sender, recipient = (hosts.ours, hosts.peer) if is_out else (hosts.peer, hosts.ours)
    body = ".\n..dots\nFrom here\ngr\u00fc\u00dfe  \n" + "x" * 990 + "\n"
    message = delivered(recipient, "bob", hosts.send(sender, "bob", body=body.encode()))
    assert text_of(message) == body
    if is_out and hosts.has_broken_tls:
        logged(hosts, rf"(?m)^STARTTLS=client, relay={PEER_FQDN} \[{PEER_ADDRESS}\], error: connect failed: ")
        return
    assert re.search(r"with e?smtps", message, re.IGNORECASE)
    logged(hosts, rf"(?m)^STARTTLS={'client' if is_out else 'server'}, relay=({PEER_FQDN} )?\[{PEER_ADDRESS}\], "
                  r"version=TLSv1\.[23], verify=NOT?, cipher=\S+, bits=\d+/\d+$")


@pytest.mark.parametrize("is_out", [True, False], ids=["to the peer", "from the peer"])
def test_sender_hears_of_unknown_user(hosts: Hosts, is_out: bool) -> None:
    sender = hosts.ours if is_out else hosts.peer
    report = reported(sender, hosts.send(sender, "nobody-there"))
    assert re.search(r"^From: .*mailer-daemon@", report, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^Final-Recipient: rfc822; ?nobody-there@", report, re.MULTILINE | re.IGNORECASE)
    assert "\nAction: failed\n" in report
    assert "\nStatus: 5." in report


@pytest.mark.parametrize("is_out", [True, False], ids=["to the peer", "from the peer"])
def test_receipt_comes_back(hosts: Hosts, is_out: bool) -> None:
    """By the last of the hosts that knows how, with what the sender gave the message to recognise it by."""
    sender = hosts.ours if is_out else hosts.peer
    options = ["-N", "success,failure", "-V", "envelope-1"] if is_out or hosts.name in ASKS_FOR_RECEIPTS else []
    subject = hosts.send(sender, "carol", *options)
    delivered(hosts.peer if is_out else hosts.ours, "carol", subject)
    if options:
        report = reported(sender, subject)
        assert f"\nAction: {'delivered' if hosts.name in SENDS_RECEIPTS else 'relayed'}" in report
        assert hosts.name == "opensmtpd" or "\nOriginal-Envelope-Id: envelope-1\n" in report


def test_nothing_is_lost_nor_doubled_by_a_cable_that_was_pulled(hosts: Hosts) -> None:
    hosts.ours.network("ip", "link", "set", CABLE, "down")
    subjects = [hosts.send(hosts.ours, "bob") for _ in range(5)]
    until(lambda: hosts.ours.run("mailq").stdout.count(b"Deferred: ") == len(subjects), "all have been tried", 60)
    hosts.ours.network("ip", "link", "set", CABLE, "up")
    hosts.ours.run("/usr/sbin/sendmail", "-q")
    for subject in subjects:
        delivered(hosts.peer, "bob", subject)
    until(lambda: b"Total requests: 0" in hosts.ours.run("mailq").stdout, "the queue is empty")


def test_mail_waits_for_a_host_that_is_killed_and_comes_back(hosts: Hosts) -> None:
    hosts.ours.run("systemctl", "kill", "--kill-whom=all", "--signal=KILL", "pysendmail")
    subjects = [hosts.send(hosts.peer, "bob") for _ in range(3)]
    hosts.ours.run("systemctl", "restart", "pysendmail")

    def have_come() -> bool:
        """Some do not try at once when told to, where they have just failed."""
        hosts.peer.run(*FLUSH[hosts.name])
        return all(f"Subject: {subject}\n" in hosts.ours.mailbox("bob") for subject in subjects)
    until(have_come, "mail that waited comes", 120)
    for subject in subjects:
        delivered(hosts.ours, "bob", subject)
