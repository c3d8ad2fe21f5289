"""Mail both ways between a host with pysendmail and one with another mail system, found by DNS: what each makes of the
other's TLS, replies, receipts and reports. A new peer is a package and a few lines of shell."""

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
}
FLUSH = {"postfix": ["postqueue", "-f"], "exim4-daemon-light": ["exim4", "-qff"]}
SENDS_RECEIPTS = {"postfix"}  # RFC 3461; the others neither pass on a request for one nor make one


@dataclass(frozen=True)
class Hosts:
    ours: Debian
    peer: Debian
    name: str

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
        yield Hosts(ours, peer, request.param)
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


@pytest.mark.parametrize("is_out", [True, False], ids=["to the peer", "from the peer"])
def test_mail_arrives_as_it_was_by_tls(hosts: Hosts, is_out: bool) -> None:
    sender, recipient = (hosts.ours, hosts.peer) if is_out else (hosts.peer, hosts.ours)
    body = ".\n..dots\nFrom here\ngr\u00fc\u00dfe  \n" + "x" * 990 + "\n"
    message = delivered(recipient, "bob", hosts.send(sender, "bob", body=body.encode()))
    assert body.replace("\nFrom ", "\n>From ") in message
    assert re.search(r"with e?smtps", message, re.IGNORECASE)


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
    options = ["-N", "success,failure", "-V", "envelope-1"] if is_out or hosts.name in SENDS_RECEIPTS else []
    subject = hosts.send(sender, "carol", *options)
    delivered(hosts.peer if is_out else hosts.ours, "carol", subject)
    if options:
        report = reported(sender, subject)
        assert f"\nAction: {'delivered' if hosts.name in SENDS_RECEIPTS else 'relayed'}" in report
        assert "\nOriginal-Envelope-Id: envelope-1\n" in report


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
    hosts.peer.run(*FLUSH[hosts.name])
    for subject in subjects:
        delivered(hosts.ours, "bob", subject)
