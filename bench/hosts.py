"""The two Debians: installed once, kept as images in CACHE, and run as copies of them.

The base (Debian without a mail system) is the one of tests/e2e. Added are rsyslog, as on hosts whose /var/log/mail.log
somebody reads, and accounts: u01 to u50 for mailboxes, and a few thousand for lists. Everything that differs between
the mail systems is in the two classes at the end.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.debian import FQDN, Debian

from . import accounts, figures, flood
from .network import FAR, NETWORK, Network

CACHE = Path("/var/tmp/pysendmail-bench")
FILES = Path(__file__).parent
VERSION = 1  # of the images
SUBMITTER = "bob"
USERS = tuple(f"u{number:02}" for number in range(1, 51))
LISTED = tuple(f"l{number:04}" for number in range(1, 2001))
FIRST_UID = 20_000
QUIET = 0.5  # seconds without CPU time that count as rest
DRIVER, FLOOD = "/opt/bench/driver.py", "/opt/bench/flood.py"
# Services of a Debian that would disturb: they run at times of their own.
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "man-db.timer",
          "dpkg-db-backup.timer", "logrotate.timer", "systemd-tmpfiles-clean.timer")


class Failed(Exception):
    """A workload could not be carried out; the text says why."""


class Host:
    """One booted Debian with a mail system. label: as in figures. unit: its control groups. service: its unit."""

    label = ""
    service = ""
    unit = re.compile("")
    flush: tuple[str, ...] = ("sendmail", "-q")  # try everything now
    spool: tuple[str, ...] = ()  # directories with what waits

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.kind = "mbox"

    # ---- for each mail system

    def recipe(self) -> str:
        """What the image depends on."""
        raise NotImplementedError

    def install(self, debian: Debian) -> None:
        raise NotImplementedError

    def configure(self, kind: str) -> None:
        """Settings for a kind of mailbox, "mbox" or "maildir", or as installed, "default"; for a service that is not
        running."""
        raise NotImplementedError

    # ---- images

    def image(self) -> Path:
        """The installed Debian, made if it is not there; only the newest of a mail system is kept."""
        name = f"{self.label}-{self.suite}-{hashlib.sha256(repr((VERSION, self.recipe())).encode()).hexdigest()[:12]}"
        image = CACHE / name
        if image.exists():
            return image
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{self.label}-{self.suite}-*"):
            shutil.rmtree(old)
        print(f"bench: installing {name}", flush=True)
        building = Debian.copy_of(self.suite)
        try:
            building.install("rsyslog")
            self.install(building)
            building.chroot("apt-get", "clean")
            for timer in TIMERS:
                building.chroot("systemctl", "mask", timer, check=False)
            add_users(building, (*USERS, *LISTED))
            subprocess.run(["cp", "-a", f"{building.root}/.", f"{image}.part"], check=True)
        finally:
            building.remove()
        Path(f"{image}.part").rename(image)
        return image

    # ---- its life

    def boot(self, disk: Path, tools: Path) -> None:
        """Copy the image into `disk` and boot it. tools: a root file system with smtp-source and smtp-sink. Call
        `remove` after it, whatever it raises."""
        self.debian = Debian(Path(tempfile.mkdtemp(prefix=f"run-{self.label}-", dir=disk)))
        subprocess.run(["cp", "-a", "--reflink=auto", f"{self.image()}/.", str(self.debian.root)], check=True)
        self.debian.root.chmod(0o755)
        self.debian.write(DRIVER, (FILES / "driver.py").read_text())
        self.mailboxes = accounts.Mailboxes(self.debian.root)
        self.configure(self.kind)
        self.debian.boot()
        self.network = Network(self.leader, tools)

    def remove(self) -> None:
        if hasattr(self, "network"):
            self.network.close()
        if hasattr(self, "debian"):
            self.debian.remove()

    @property
    def leader(self) -> int:
        return self.debian.leader()

    def stop(self) -> None:
        self.debian.run("systemctl", "stop", self.service)

    def start(self, *, wait: bool = True) -> None:
        self.debian.run("systemctl", *([] if wait else ["--no-block"]), "start", self.service)

    def forget(self) -> None:
        """Throw away what has been left undone, so that it does not disturb what comes next."""
        self.stop()
        self.debian.run("find", *self.spool, "-type", "f", "-delete", check=False)
        self.start()

    def use(self, kind: str) -> None:
        """Deliver to this kind of mailbox from now on; mailboxes are empty afterwards."""
        if kind != self.kind:
            self.stop()
            self.configure(kind)
            self.kind = kind
            self.start()
        self.mailboxes.has_maildirs = kind == "maildir"
        self.mailboxes.empty()
        self.settle()

    def settle(self, limit: float = 60.0) -> None:
        """Wait until nothing happens any more. Raises Failed."""
        end = time.monotonic() + limit
        before = self.cpu()
        while time.monotonic() < end:
            time.sleep(QUIET)
            now = self.cpu()
            if now - before < 2 / accounts.TICK:
                return
            before = now
        raise Failed("does not come to rest")

    def cpu(self) -> float:
        return accounts.cpu_seconds(self.leader)

    def pids(self) -> list[int]:
        """Processes of the mail system."""
        return accounts.of_service(self.leader, self.unit)

    # ---- work

    def drive(self, *words: str, seconds: float = 600.0) -> dict[str, Any]:
        """Run driver.py as an ordinary user. Raises Failed."""
        done = self.debian.run("python3", "-I", DRIVER, *words, user=SUBMITTER, timeout=seconds)
        result: dict[str, Any] = json.loads(done.stdout)
        if result.get("failed"):
            raise Failed(f"{result['failed']} submissions were refused")
        return result

    def submit(self, count: int, parallel: int, *recipients: str, size: int = 2048) -> dict[str, Any]:
        return self.drive("submit", str(count), str(parallel), str(size), *recipients)

    def wait_for(self, count: int, limit: float, each: Callable[[], None] = lambda: None,
                 pause: float = 0.01) -> tuple[float, int, float]:
        """Wait for so many messages in the mailboxes: (when the first were seen, how many these were, when all were).

        Monotonic seconds. Raises Failed.
        """
        end = time.monotonic() + limit
        first = (0.0, 0)
        while (found := self.mailboxes.count()) < count:
            now = time.monotonic()
            if found and not first[1]:
                first = (now, found)
            if now > end:
                raise Failed(f"{found} of {count} messages after {limit:g} s")
            each()
            time.sleep(pause)
        now = time.monotonic()
        return (*first, now) if first[1] else (now, found, now)

    def aliases(self, lines: str) -> None:
        """Add lines to /etc/aliases and make them known."""
        with self.debian.path("/etc/aliases").open("a") as file:
            file.write(lines)
        self.debian.run("newaliases")


class Pysendmail(Host):
    """Our package. Nothing is tuned but what the load itself asks for: one submitter, thousands of messages."""

    label = figures.OURS
    service = "pysendmail.service"
    spool = tuple(f"/var/spool/pysendmail/{name}" for name in ("drop", "smtp", "intake", "queue"))
    unit = re.compile(r"/pysendmail\.service(/|$)", re.MULTILINE)

    def __init__(self, suite: str, package: Path) -> None:
        self._package = package
        super().__init__(suite)

    def recipe(self) -> str:
        return hashlib.sha256(self._package.read_bytes()).hexdigest()

    def install(self, debian: Debian) -> None:
        shutil.copy(self._package, debian.path("/var/tmp/pysendmail.deb"))
        debian.install("/var/tmp/pysendmail.deb")

    def configure(self, kind: str) -> None:
        if kind == "default":
            self.debian.path("/etc/pysendmail/conf.d/50-bench.toml").unlink(missing_ok=True)
            return
        self.debian.write("/etc/pysendmail/conf.d/50-bench.toml", (
            f'[local]\nmailbox = "{kind}"\n[relay]\nsmarthost = "{FAR}:25"\ntls = "may"\n'
            f'[smtpd]\nlisten = ["0.0.0.0:25"]\nrelay_from = ["127.0.0.0/8", "::1/128", "{NETWORK}"]\n'))

    @contextmanager
    def flooded(self) -> Iterator[None]:
        """Open to the network, with the usual limits but for how much one client may send."""
        settings = "/etc/pysendmail/conf.d/60-flood.toml"
        self.debian.write(settings, '[smtpd]\nlisten = ["0.0.0.0:25"]\n[limits]\nmessages_per_minute = 1000000\n'
                                    'messages_per_session = 1000000\n')
        self.debian.write(FLOOD, (FILES / "flood.py").read_text())
        subprocess.run(["nsenter", f"--target={self.leader}", "--net", "ip", "address", "replace", flood.NETWORK,
                        "dev", "lo"], check=True)
        self.stop()
        self.start()
        try:
            self.settle()
            yield
        finally:
            self.debian.path(settings).unlink()
            self.stop()
            self.start()

    @contextmanager
    def clients(self, *words: str) -> Iterator[dict[str, Any]]:
        """What flood.py tells, while its clients are there."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd", "setpriv", "--pdeathsig=KILL"]
        words = (*enter, "python3", "-I", FLOOD, *words)
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
            try:
                assert it.stdout is not None
                line = it.stdout.readline()
                if not line:
                    raise Failed("the clients have failed")
                yield json.loads(line)
            finally:
                it.kill()


class Postfix(Host):
    """Debian's Postfix with the settings of postfix.cf."""

    label = figures.THEIRS
    service = "postfix.service"
    flush = ("postqueue", "-f")
    spool = tuple(f"/var/spool/postfix/{name}" for name in ("maildrop", "incoming", "active", "deferred", "defer",
                                                           "bounce", "trace"))
    unit = re.compile(r"/postfix(@[^/]*)?\.service(/|$)", re.MULTILINE)

    def recipe(self) -> str:
        return (FILES / "postfix.cf").read_text()

    def install(self, debian: Debian) -> None:
        debian.chroot("debconf-set-selections", content=(
            "postfix postfix/main_mailer_type select Internet Site\n"
            f"postfix postfix/mailname string {FQDN}\n"
            "postfix postfix/procmail boolean false\n").encode())
        debian.install("postfix")
        lines = [line for line in self.recipe().split("\n") if line and not line.startswith("#")]
        debian.chroot("postconf", "-e", f"myhostname={FQDN}", f"mydestination={FQDN}, localhost",
                        f"relayhost=[{FAR}]", f"mynetworks=127.0.0.0/8 {NETWORK}", *lines)
        debian.chroot("newaliases")

    def configure(self, kind: str) -> None:
        value = "Maildir/" if kind == "maildir" else ""
        self.debian.chroot("postconf", "-e", f"home_mailbox={value}")


def add_users(debian: Debian, names: tuple[str, ...]) -> None:
    """Accounts with homes, written straight into the files: useradd takes minutes for thousands."""
    passwd, group, shadow = [], [], []
    for uid, name in enumerate(names, FIRST_UID):
        passwd.append(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/bash\n")
        group.append(f"{name}:x:{uid}:\n")
        shadow.append(f"{name}:!:19000:0:99999:7:::\n")
        home = debian.path(f"/home/{name}")
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
    for place, lines in (("/etc/passwd", passwd), ("/etc/group", group), ("/etc/shadow", shadow)):
        with debian.path(place).open("a") as file:
            file.writelines(lines)
