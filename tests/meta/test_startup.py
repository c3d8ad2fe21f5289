"""What starting sendmail costs: the modules it loads, exactly, and its CPU time as a ratio to the bare interpreter's.

Scripts send mail by the thousand, and the interpreter's own start is most of what a message costs; an import that looks
harmless may add half of it again (`re` 5 ms, `email` 17, `asyncio` 41).
"""

import compileall
import itertools
import os
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

from pysendmail.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
OURS = {"pysendmail", "pysendmail.cli", "pysendmail.cli.options", "pysendmail.cli.sendmail", "pysendmail.paths",
        "pysendmail.spool", "pysendmail.spool.dropbox", "pysendmail.spool.durable", "pysendmail.spool.record"}
PARSERS = {"pysendmail.mail", "pysendmail.mail.address", "pysendmail.mail.headers"}
IN_C = {"fcntl", "zlib", "_socket"}
PAIRS = 15
MOST = 1.8  # times the bare interpreter; it is about 1.3
LAUNCHER = """#!{python} -IS
import sys
sys.path.insert(0, {code!r})
from pysendmail.cli.sendmail import main
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""
# The same, saying at the end what has been loaded.
TELLING = LAUNCHER.replace("import sys\n", "import sys\nbefore = set(sys.modules)\n").replace("main(sys.argv", """
import posix
leave = posix._exit

def tell(code):
    posix.write(1, " ".join(set(sys.modules) - before).encode())
    leave(code)

posix._exit = tell
main(sys.argv""")


@pytest.fixture
def code(tmp_path: Path) -> str:
    """A compiled copy of the package, as an installed one is, whoever owns the tree."""
    place = tmp_path / "code"
    shutil.copytree(ROOT / "pysendmail", place / "pysendmail", ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(place, quiet=1)
    return str(place)


def program(text: str, name: str, code: str, paths: Paths, python: str) -> str:
    path = f"{paths.root}/{name}"
    Path(path).write_text(text.format(python=python, code=code, root=paths.root))
    os.chmod(path, 0o755)
    return path


def loaded(path: str, *words: str, text: bytes) -> set[str]:
    done = subprocess.run([path, *words], input=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=50,
                          check=True)
    return set(done.stdout.decode().split())


@pytest.mark.parametrize(("words", "text", "more"), [
    (["-oi", "-f", "bob", "-FBob", "alice", "carol@example.org"], b"Subject: x\n\nbody\n", set()),
    (["alice"], b"x" * 300_000, set()),
    (["alice"], b"From: cron\n\nbody\n", set()),
    (["Alice <alice@x>"], b"Subject: x\n\nbody\n", {"pysendmail.mail", "pysendmail.mail.address"}),
    (["-ti"], b"To: alice\n\nbody\n", PARSERS),
    (["alice"], b"From x Tue Jul  1 10:52:37 2003\nTo: x\n\n", PARSERS),
    (["-Z", "alice"], b"", {"syslog"}),
], ids=itertools.count())
def test_exactly_what_is_needed_is_loaded(paths: Paths, code: str, python: str, words: list[str], text: bytes,
                                          more: set[str]) -> None:
    telling = program(TELLING, "telling", code, paths, python)
    assert loaded(telling, *words, text=text) == OURS | IN_C | more


def test_starting_takes_little_longer_than_the_bare_interpreter(paths: Paths, code: str, python: str) -> None:
    """Medians of pairs of CPU times, so that neither other work of the machine nor a slow disk matters."""
    path = program(LAUNCHER, "sendmail", code, paths, python)

    def seconds(command: list[str]) -> float:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    pairs = [(seconds([python, "-IS", "-c", "pass"]), seconds([path, "-oi", "alice"])) for _ in range(PAIRS)]
    bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{ours / bare:.2f}")
    assert ours / bare < MOST, f"{ours * 1000:.1f} ms instead of {bare * 1000:.1f} ms"


@pytest.mark.parametrize("name", ["sendmail", "mailq", "newaliases"])
def test_a_launcher_finds_the_tree_it_lies_in(tmp_path: Path, name: str) -> None:
    """Whatever the directory it is called from, and by whatever path; the real root is not an argument."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pysendmail/cli").mkdir(parents=True)
    for package in ("pysendmail", "pysendmail/cli"):
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(ROOT / "pysendmail/paths.py", tmp_path / "pysendmail")
    (tmp_path / "pysendmail/cli/sendmail.py").write_text(
        "def main(argv, paths):\n    print(argv[0].rpartition('/')[2], argv[1:], repr(paths.root))\n")
    path = shutil.copy(ROOT / "bin" / name, tmp_path / "bin")
    trap = tmp_path / "trap"
    (trap / "pysendmail").mkdir(parents=True)
    expected = f"{name} ['-x', 'y'] ''\n"
    for command, where in ((path, trap), (f"../bin/{name}", trap), (f"bin/{name}", tmp_path)):
        assert subprocess.check_output([command, "-x", "y"], cwd=where, text=True, timeout=50) == expected
    assert Path(path).read_text().startswith("#!/usr/bin/python3 -IS\n")


@pytest.mark.parametrize("process", ["supervisor", "main", "listener"])
def test_what_has_no_use_for_openssl_and_dns_does_not_load_them(process: str, code: str, python: str) -> None:
    """OpenSSL is 3 MB in each process, what a relay needs another 4; ssl is blocked where the supervisor does that."""
    telling = (f"import sys; sys.path.insert(0, {code!r}); sys.modules['ssl'] = None\n"
               f"import pysendmail.daemon.{process}\n"
               "print(*{'hashlib', '_hashlib', '_ssl', 'dns', 'pysendmail.deliver.remote'} & set(sys.modules))")
    told = subprocess.run([python, "-I", "-c", telling], capture_output=True, text=True, check=True).stdout
    assert told.split() == []
