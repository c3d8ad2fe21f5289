"""A Debian of our own: made by debootstrap, installed by apt, entered as a chroot or booted by systemd-nspawn.

The base (Debian, the programs that send mail, users, no mail system) is built once for each suite and kept in CACHE;
every Debian is a copy of it. Packages come from the mirror that this machine's apt uses, with this machine's apt
settings. Commands that install see this machine's network; a booted Debian has a loopback interface and nothing else.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CACHE = Path("/var/tmp/pysendmail-e2e")
PACKAGES = ("systemd", "systemd-sysv", "cron", "python3", "procps", "php-cli", "mutt", "sudo")
USERS = ("alice", "bob", "carol")
HOST, FQDN = "host", "host.example.test"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_TIME = 900  # seconds for debootstrap or one run of apt
BOOT_TIME = 90
STOP_TIME = 30
COMMAND_TIME = 60
POLL = 0.05
VERSION = 1  # of the recipe below; a new number makes a new base

# Before the command, in its new namespace of host names.
_PREPARE = 'hostname "$1"; shift; exec "$@"'

Result = subprocess.CompletedProcess[bytes]


class CommandFailed(AssertionError):
    """A command in the Debian did not exit 0. The text has what it printed."""


def until(claim: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait for something that happens in another process without telling us."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(POLL)


def mirrors(suite: str) -> list[str]:
    """Lines for sources.list: this machine's Debian mirrors, and what it has of the suite."""
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)", "Created-By: Packages"],
                            capture_output=True, text=True, check=True).stdout
    uris = sorted({line.split()[0].rstrip("/") for line in listed.split("\n") if line.endswith(" Debian")})
    main = next((uri for uri in uris if uri.endswith("/debian")), "http://deb.debian.org/debian")
    security = next((uri for uri in uris if uri.endswith("/debian-security")), "")
    found = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
    return found + ([f"deb {security} {suite}-security main"] if security else [])


def apt_settings() -> str:
    """How this machine's apt fetches (proxies, checks of dates), without what it fetches."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    return "".join(f"{line}\n" for line in dump.split("\n") if line and "IndexTargets" not in line)


def base(suite: str) -> Path:
    """The base of a suite, built if it is not there."""
    recipe = repr((VERSION, suite, PACKAGES, USERS))
    root = CACHE / f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    if root.exists():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{suite}-building-", dir=CACHE))
    building.chmod(0o755)
    print(f"building {root} (some minutes, once)", flush=True)
    sources = mirrors(suite)
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(building), sources[0].split()[1]], check=True,
                   stdout=subprocess.DEVNULL, timeout=BUILD_TIME)
    debian = Debian(building)
    debian.write("/etc/apt/sources.list", "\n".join(sources) + "\n")
    debian.write("/etc/apt/apt.conf.d/01machine", apt_settings())
    debian.write("/etc/hostname", f"{HOST}\n")
    debian.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {FQDN} {HOST}\n")
    debian.chroot("apt-get", "-qq", "update", timeout=BUILD_TIME)
    debian.install(*PACKAGES)
    for user in USERS:
        debian.chroot("useradd", "--create-home", "--shell", "/bin/bash", user)
    debian.chroot("apt-get", "clean")
    building.rename(root)
    return root


class Debian:
    """One root file system, and the machine it becomes when it is booted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._groups: list[Path] = []

    @classmethod
    def copy_of(cls, suite: str) -> "Debian":
        root = Path(tempfile.mkdtemp(prefix=f"{suite}-run-", dir=base(suite).parent))
        subprocess.run(["cp", "-a", "--reflink=auto", f"{base(suite)}/.", str(root)], check=True, timeout=BUILD_TIME)
        root.chmod(0o755)
        return cls(root)

    def path(self, place: str) -> Path:
        return self.root / place.lstrip("/")

    def write(self, place: str, text: str, mode: int = 0o644) -> None:
        self.path(place).parent.mkdir(parents=True, exist_ok=True)
        self.path(place).write_text(text)
        self.path(place).chmod(mode)

    def install(self, *packages: str) -> Result:
        """As apt installs; no daemon is started (policy-rc.d)."""
        self.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        self.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        try:
            return self.chroot("apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends", "install",
                               *packages, timeout=BUILD_TIME)
        finally:
            self.path("/usr/sbin/policy-rc.d").unlink()

    def chroot(self, *command: str, content: bytes = b"", check: bool = True, timeout: float = COMMAND_TIME) -> Result:
        """Run a command in the file system as root, in a pid namespace of its own: nothing outlives it."""
        return run(chroot_words(self.root, command), command, content, check, timeout)

    def boot(self, hostname: str = HOST) -> None:
        """systemd as pid 1, a loopback interface, and the end of whatever is left once `halt` is called."""
        log = (self.root.parent / f"{self.root.name}.console").open("wb")
        self._groups = own_groups(self.root.name)
        words = ["setpriv", "--pdeathsig=KILL", "systemd-nspawn", "--quiet", "--register=no", "--console=read-only",
                 "--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
                 f"--hostname={hostname}", f"--machine=pysendmail-{os.getpid()}-{self.root.stat().st_ino}", "--boot",
                 f"--directory={self.root}"]
        if not os.path.isdir("/run/systemd/system"):
            words.insert(3, "--keep-unit")  # nobody here who could make one
        # The caller may itself be in a sandbox that allows no further system call filter.
        environment = {"PATH": PATH, "SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_LOCK": "0"}
        groups = [str(len(self._groups)), *map(str, self._groups)]
        self._nspawn = subprocess.Popen(["sh", "-c", _ENTER_GROUPS, "sh", *groups, *words], stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, env=environment, start_new_session=True)
        log.close()
        until(self._is_booted, "the Debian has booted", BOOT_TIME)

    def _is_booted(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError((self.root.parent / f"{self.root.name}.console").read_text("utf-8", "replace"))
        if self.leader() == 0:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in (b"running", b"degraded")

    def leader(self) -> int:
        """The pid, as seen from here, of the Debian's pid 1; 0 before there is one."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        except OSError:
            return 0
        return int(children[0]) if children else 0

    def run(self, *command: str, user: str = "", content: bytes = b"", check: bool = True,
            timeout: float = COMMAND_TIME) -> Result:
        """Run a command in the booted Debian, as root or as a user."""
        home = f"/home/{user}" if user else "/root"
        words = ["nsenter", f"--target={self.leader()}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root",
                 "--wd", "--", "env", "-i", f"PATH={PATH}", f"HOME={home}", f"USER={user or 'root'}", "LANG=C.UTF-8"]
        if user:
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return run([*words, *command], command, content, check, timeout)

    def network(self, *command: str) -> None:
        """Run one of this machine's commands in the network of the booted Debian."""
        run(["nsenter", f"--target={self.leader()}", "--net", "--", *command], command, b"", True, COMMAND_TIME)

    def mailbox(self, user: str) -> str:
        try:
            return self.path(f"/var/mail/{user}").read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def wait_for_mail(self, user: str, text: str, seconds: float = 30) -> str:
        """The mailbox, once the text is in it."""
        until(lambda: text in self.mailbox(user), f"{text!r} in the mailbox of {user}: {self.mailbox(user)!r}", seconds)
        return self.mailbox(user)

    def halt(self) -> None:
        """The power switch."""
        if self._nspawn is None:
            return
        leader = self.leader()
        if leader:
            os.kill(leader, signal.SIGKILL)
        try:
            self._nspawn.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(STOP_TIME)
        self._nspawn = None
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:  # its last process is still on its way out; an empty group costs nothing
                    continue

    def remove(self) -> None:
        self.halt()
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().split("\n") if line]
        assert not [at for at in mounted if at.startswith(f"{self.root}/")], "never delete through a mount"
        shutil.rmtree(self.root)
        (self.root.parent / f"{self.root.name}.console").unlink(missing_ok=True)


def join(one: Debian, other: Debian, interface: str, addresses: tuple[str, str]) -> None:
    """A cable between two booted Debians. addresses: of its ends, with the length of the network's prefix."""
    pids = [str(debian.leader()) for debian in (one, other)]
    run(["ip", "link", "add", interface, "netns", pids[0], "type", "veth", "peer", "name", interface, "netns", pids[1]],
        ("ip", "link", "add"), b"", True, COMMAND_TIME)
    for debian, address in zip((one, other), addresses, strict=True):
        debian.network("ip", "address", "add", address, "dev", interface)
        debian.network("ip", "link", "set", interface, "up")


def copy_source(source: Path, target: Path) -> None:
    """The source tree as a fresh clone has it: without what builds and tools have left."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(
        ".git", ".venv", "dist", "build", ".pybuild", "*_cache", ".hypothesis", "__pycache__", "*.egg-info"))


# $1 groups follow, then the command: move into each, then become the command.
_ENTER_GROUPS = """n=$1
shift
while [ "$n" -gt 0 ]; do
    echo $$ >"$1/cgroup.procs"
    shift
    n=$((n - 1))
done
exec "$@"
"""


def own_groups(name: str) -> list[Path]:
    """Control groups for a Debian where no systemd of this machine makes them: two must not share one."""
    if os.path.isdir("/run/systemd/system"):
        return []
    found = []
    for hierarchy in ("", "systemd", "unified"):
        top = Path("/sys/fs/cgroup", hierarchy)
        if (top / "cgroup.procs").exists():
            group = top / f"pysendmail-{name}"
            group.mkdir(exist_ok=True)
            found.append(group)
    return found


def chroot_words(root: Path, command: tuple[str, ...]) -> list[str]:
    return ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", f"--root={root}", "--mount-proc",
            "--", "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
            "sh", "-c", _PREPARE, "sh", HOST, *command]


def run(words: list[str], command: tuple[str, ...], content: bytes, check: bool, timeout: float) -> Result:
    done = subprocess.run(words, input=content, capture_output=True, timeout=timeout, check=False)
    if check and done.returncode:
        said = (done.stderr[-2000:] + done.stdout[-6000:]).decode("utf-8", "replace")
        raise CommandFailed(f"{' '.join(command)}: exit {done.returncode}\n{said}")
    return done
