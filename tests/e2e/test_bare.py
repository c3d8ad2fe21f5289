"""Without systemd: a chroot or container, where the daemon is the supervisor, and a host with init scripts."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .conftest import PACKAGE
from .debian import STOP_TIME, Debian, chroot_words, until

STARTED = 30  # seconds until the daemon answers


@pytest.fixture(scope="module")
def bare(debian: Debian) -> Debian:
    """Installed over another mail system, which apt removes for it."""
    debian.install("exim4-daemon-light", "bsd-mailx")
    debian.write("/etc/aliases", "postmaster: root\nroot: alice\n")
    debian.install(PACKAGE)
    return debian


@contextmanager
def process(debian: Debian, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the chroot, in a pid namespace of its own, that runs until the test is done with it."""
    started = subprocess.Popen(chroot_words(debian.root, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=STOP_TIME)


def send(debian: Debian, subject: str) -> None:
    debian.chroot("setpriv", "--reuid=bob", "--regid=bob", "--init-groups", "/usr/sbin/sendmail", "root",
                  content=f"Subject: {subject}\n\nx\n".encode())


def test_apt_swaps_the_mail_systems_and_keeps_the_aliases(bare: Debian) -> None:
    state = bare.chroot("dpkg-query", "-W", "-f", "${db:Status-Status}", "exim4-daemon-light", check=False).stdout
    assert state in (b"config-files", b"not-installed", b"")
    assert bare.path("/etc/aliases").read_text() == "postmaster: root\nroot: alice\n"
    assert bare.chroot("dpkg-query", "-W", "-f", "${db:Status-Status}", "bsd-mailx").stdout == b"installed"


def test_mail_is_accepted_before_the_daemon_has_ever_run(bare: Debian) -> None:
    send(bare, "early")
    assert bare.mailbox("alice") == ""


def test_daemon_is_its_own_supervisor(bare: Debian) -> None:
    """As the only service of a container, pid 1: it delivers what waits, and starts its queue process anew."""
    queue_user = int(bare.chroot("id", "-u", "_pysendmail").stdout)
    with process(bare, "/usr/sbin/pysendmaild") as daemon:
        bare.wait_for_mail("alice", "early", STARTED)
        [runner] = children_of(daemon.pid, queue_user)
        os.kill(runner, signal.SIGKILL)
        send(bare, "later")
        bare.wait_for_mail("alice", "later", STARTED)
        assert runner not in children_of(daemon.pid, queue_user)
        assert daemon.poll() is None


def children_of(pid: int, uid: int) -> set[int]:
    """The processes of a user below one, as seen from here, but for their own children."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,uid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.split("\n") if line]
    found = {pid}
    while more := {child for child, parent, _ in rows if parent in found} - found:
        found |= more
    own = {child for child, _, owner in rows if child in found and owner == uid}
    return {child for child, parent, _ in rows if child in own and parent not in own}


def test_init_script_starts_reloads_and_stops(bare: Debian) -> None:
    script = "/etc/init.d/pysendmail"
    # The shell is pid 1 and waits for what ends: a daemon left as a zombie would count as running.
    with process(bare, "sh", "-c", f"""
        {script} start >/dev/null; echo started $?
        {script} status >/dev/null; echo status $?
        read wait_for_the_test
        {script} reload >/dev/null; echo reload $?
        {script} restart >/dev/null
        read wait_for_the_test
        {script} stop >/dev/null; echo stopped $?
        echo left $(pgrep -c pysendmaild)
        """) as shell:
        assert shell.stdin
        assert shell.stdout
        assert shell.stdout.readline() == b"started 0\n"
        assert shell.stdout.readline() == b"status 0\n"
        send(bare, "by init")
        bare.wait_for_mail("alice", "by init", STARTED)
        shell.stdin.write(b"\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"reload 0\n"
        send(bare, "after restart")
        bare.wait_for_mail("alice", "after restart", STARTED)
        shell.stdin.write(b"\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"stopped 0\n"
        assert shell.stdout.readline() == b"left 0\n"


def test_another_mail_system_takes_over_and_undelivered_mail_stays(bare: Debian) -> None:
    send(bare, "stays")
    done = bare.install("exim4-daemon-light")
    assert re.search(rb"1 undelivered message", done.stdout + done.stderr)
    spool = bare.path("/var/spool/pysendmail/drop/new")
    assert len(list(spool.iterdir())) == 1
    bare.chroot("dpkg", "--purge", "pysendmail")
    assert len(list(spool.iterdir())) == 1
    until(lambda: bare.path("/usr/sbin/sendmail").exists(), "exim's sendmail is there")
