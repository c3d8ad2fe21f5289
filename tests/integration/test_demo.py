"""`./dev demo`: what it shows is what happens, and it leaves nothing behind, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pysendmail.cli import demo
from tests.tools import elsewhere
from tests.tools.host import CODE, WITHIN

NOBODY = 65534


def left_behind() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("pysendmail-")}


def start(*words: str) -> "subprocess.Popen[str]":
    program = (f"import sys\nsys.path.insert(0, {CODE!r})\n"
               "from pysendmail.cli.demo import main\nsys.exit(main(sys.argv[1:]))")
    return subprocess.Popen([sys.executable, "-I", "-c", program, *words], stdout=subprocess.PIPE, text=True)


def test_demo_shows_the_main_job_and_leaves_nothing() -> None:
    before = left_behind()
    with start() as process:
        shown, _ = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, shown
    for words in ("All 42 files are saved.", "Lunch at noon?", "multipart/report", "nobody-here@demo.example",
                  "is empty", "stat=User unknown", "nothing lost"):
        assert words in shown
    assert "Permission denied" not in shown
    assert "cannot listen" not in shown
    assert left_behind() == before


def test_demo_that_stays_takes_mail_until_it_is_interrupted() -> None:
    before = left_behind()
    with start("--stay") as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "It goes on." not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        root = lines[-1].split("| ")[1].split("/bin/sendmail")[0]
        uid = NOBODY if os.geteuid() == 0 else os.geteuid()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{root}/run/pysendmail/control")
        assert os.stat(f"{root}/var/mail/you").st_uid == uid
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WITHIN)
    assert left_behind() == before


def test_demo_that_fails_says_so_and_ends_its_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def play() -> tuple[int, str]:
        demo.WITHIN = 1.0
        demo.ALIASES = "root: colleague\n"  # the mail will never be where the demo expects it
        root = demo.make_root(CODE)
        one = demo.Demo(root)
        try:
            one.play()
        except SystemExit as why:
            pid = one.daemon
            one.close(keep=False)
            return pid, str(why)
        return 0, "it played"

    pid, why = elsewhere.run(play, uid=NOBODY if os.geteuid() == 0 else None)
    assert "did not get All 42 files" in why
    assert pid > 0
    end = time.monotonic() + WITHIN
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the daemon is still there"
