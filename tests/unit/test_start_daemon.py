"""sendmail -bd and -bD: what is started, and when the caller hears of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.foreign import end
from tests.tools.watch import wait_for_end

WITHIN = 30
TREE = Path(__file__).parents[2]
CALL = """
import sys; sys.path.insert(0, sys.argv[1])
from pysendmail.cli import daemon
from pysendmail.paths import Paths
sys.exit(daemon.main(sys.argv[3:], Paths(""), program=sys.argv[2]))
"""
READY = """
import os, socket, sys, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
    told.sendto(b"STATUS=starting", os.environ["NOTIFY_SOCKET"])
    print("a word for its log", file=sys.stderr)
    open(sys.argv[0] + ".seen", "w").write(f"{os.getpid()} {os.getsid(0)} {os.getcwd()} {sorted(os.environ)}")
    told.sendto(b"READY=1\\nSTATUS=ready", os.environ["NOTIFY_SOCKET"])
time.sleep(600)
"""
REFUSES = "import sys\nprint('pysendmaild: wrong settings', file=sys.stderr)\nsys.exit(78)\n"
SAYS = "import os\nprint('I am', os.getpid(), sorted(os.environ))\n"

pytestmark = pytest.mark.root


def start(tmp_path: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A call that ends, and whose output ends: the daemon holds none of it."""
    program = tmp_path / "pysendmaild"
    program.write_text(f"#!{sys.executable} -I\n{source}")
    program.chmod(0o755)
    return subprocess.run([sys.executable, "-c", CALL, str(TREE), str(program), *options], capture_output=True,
                          text=True, timeout=WITHIN, cwd=tmp_path, stdin=subprocess.DEVNULL)


def test_it_returns_when_the_daemon_is_ready(tmp_path: Path) -> None:
    done = start(tmp_path, READY, "-bd", "-q30m")
    pid, session, place, names = (tmp_path / "pysendmaild.seen").read_text().split(" ", 3)
    end(int(pid))
    wait_for_end(int(pid))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (session, place) == (pid, "/")
    assert "HOME" not in names


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path) -> None:
    done = start(tmp_path, REFUSES, "-bd")
    assert (done.returncode, done.stderr) == (78, "pysendmaild: wrong settings\n")


def test_in_the_foreground_it_is_the_daemon(tmp_path: Path) -> None:
    done = start(tmp_path, SAYS, "-bD")
    assert done.returncode == 0
    assert done.stdout.startswith("I am ")
    assert "HOME" not in done.stdout


@pytest.mark.parametrize("mode", ["-bd", "-bD"])
def test_a_daemon_that_is_not_there(tmp_path: Path, mode: str) -> None:
    done = subprocess.run([sys.executable, "-c", CALL, str(TREE), str(tmp_path / "none"), mode], capture_output=True,
                          text=True, timeout=WITHIN, check=False)
    assert done.returncode == 69
    assert done.stderr == f"sendmail: cannot start {tmp_path}/none: No such file or directory\n"


def test_it_is_for_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", CALL, str(TREE), "/bin/true", "-bd"], capture_output=True, text=True,
                          timeout=WITHIN, check=False, user=54321, group=54321, extra_groups=[])
    assert (done.returncode, done.stderr) == (77, "sendmail: only root can start the daemon\n")
