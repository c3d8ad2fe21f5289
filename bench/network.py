"""The network of a booted Debian: one cable, at whose other end are the clients and the next hop.

The far end is a network namespace without processes of its own. smtp-source and smtp-sink run in it, from the root file
system of Postfix's image; their time and memory are nobody's.
"""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tests.e2e.debian import PATH

HERE, FAR, NETWORK = "10.98.0.2", "10.98.0.1", "10.98.0.0/24"
FAR_NAME = "far.example.test"
SENDER, RECIPIENT = f"sender@{FAR_NAME}", f"someone@{FAR_NAME}"
CABLE = "bench0"
MESSAGE = 4096  # bytes
SESSIONS = 10
READY = 10.0  # seconds for a namespace, or for a program to listen
LIMIT = 600.0  # seconds for one run of smtp-source
_GREETING = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], 25), 30) as one:
            if one.recv(3) == b"220":
                sys.exit(0)
    except OSError:
        pass
    time.sleep(0.01)
sys.exit(1)
"""
_COUNTED = re.compile(rb"mesg=(\d+)")


class NotSent(Exception):
    """smtp-source has failed; the text says why."""


class Network:
    """The far end of the cable. leader: a process in the Debian. tools: a root file system with Postfix in it."""

    def __init__(self, leader: int, tools: Path) -> None:
        self._tools = tools
        self._holder = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "unshare", "--net", "sleep", "infinity"])
        _until(lambda: _network_of(self._holder.pid) != _network_of("self"))
        far, here = str(self._holder.pid), str(leader)
        _run("ip", "link", "add", CABLE, "netns", far, "type", "veth", "peer", "name", CABLE, "netns", here)
        for pid, address in ((far, FAR), (here, HERE)):
            _run("nsenter", f"--target={pid}", "--net", "sh", "-c",
                 f"ip link set lo up; ip address add {address}/24 dev {CABLE}; ip link set {CABLE} up")

    def words(self, *command: str) -> list[str]:
        """What runs a program of `tools` at the far end."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--", "setpriv", "--pdeathsig=KILL",
                "chroot", str(self._tools), "env", "-i", f"PATH={PATH}", *command]

    def sending(self, count: int, recipients: tuple[str, ...], *, lasting: bool, size: int = MESSAGE) -> "Source":
        """Begin to send so many messages, in ten sessions at a time.

        lasting: sessions are kept for further messages. Several recipients get the same number each, one after the
        other as sessions become free.
        """
        source = ["smtp-source", *(["-d"] if lasting else []), "-l", str(size), "-f", SENDER, "-M", FAR_NAME]
        if len(recipients) == 1:
            source += ["-s", str(min(SESSIONS, count)), "-m", str(count), "-t", recipients[0], f"{HERE}:25"]
        else:
            each = " ".join([*source, "-s", "1", "-m", str(count // len(recipients)), "-t", "@", f"{HERE}:25"])
            source = ["sh", "-c", f"printf '%s\\n' {' '.join(recipients)} | xargs -P{SESSIONS} -I@ {each}"]
        return Source(self.words(*source))

    def sink(self) -> "Sink":
        return Sink(self.words("smtp-sink", "-c", "-u", "nobody", f"{FAR}:25", "1024"))

    def wait_for_greeting(self, limit: float) -> None:
        """Until a client is greeted. Raises NotSent."""
        words = self.words()
        words[words.index("chroot"):] = ["python3", "-I", "-c", _GREETING, HERE, str(limit)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            raise NotSent(f"no greeting within {limit:g} s")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Source:
    """Clients at work."""

    def __init__(self, words: list[str]) -> None:
        self._begin = time.monotonic()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def wait(self, each: Callable[[], None], pause: float, limit: float = LIMIT) -> float:
        """Until all is accepted; how many seconds that took since the start. Raises NotSent, TimeoutError."""
        while self._process.poll() is None:
            if time.monotonic() - self._begin > limit:
                raise TimeoutError(f"not accepted within {limit:g} s")
            each()
            time.sleep(pause)
        took = time.monotonic() - self._begin
        if self._process.returncode:
            self._log.seek(0)
            raise NotSent(self._log.read()[-200:].decode("utf-8", "replace").strip())
        return took


class Sink:
    """A next hop that takes everything, with one message after the other in a session."""

    def __init__(self, words: list[str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def count(self) -> int:
        """How many messages it has taken."""
        if self._process.poll() is not None:
            raise NotSent("smtp-sink has ended")
        end = self._log.seek(0, 2)
        self._log.seek(max(0, end - 200))
        found = _COUNTED.findall(self._log.read())
        self._log.seek(end)
        return int(found[-1]) if found else 0


def _network_of(pid: object) -> str:
    try:
        return Path(f"/proc/{pid}/ns/net").readlink().name
    except OSError:
        return _network_of("self")


def _until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + READY
    while not claim():
        if time.monotonic() > end:
            raise TimeoutError("no network namespace")
        time.sleep(0.01)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
