"""newaliases(1): counts on standard output, what is wrong on standard error, and an exit code that says which."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.cli import newaliases
from pysendmail.events import INFO, NOTICE
from pysendmail.paths import Paths
from pysendmail.users import LookupTrouble, by_uid
from tests.tools import elsewhere

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """What one run came to."""

    def __init__(self, code: int, out: str, err: str, log: list[tuple[int, str]]) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.log = log


@pytest.fixture
def run(paths: Paths, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def call(*args: str) -> Run:
        log: list[tuple[int, str]] = []
        code = newaliases.main(list(args), paths, log=lambda priority, text: log.append((priority, text)))
        return Run(code, *capsys.readouterr(), log)
    return call


def write(paths: Paths, text: str, mode: int = 0o644) -> None:
    Path(paths.aliases).write_text(text)
    os.chmod(paths.aliases, mode)


def test_a_good_file_is_counted_and_logged(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "# system\npostmaster: root\nroot: alice,\n  bob\n")
    counts = f"{paths.aliases}: 2 aliases, longest 10 bytes, 28 bytes total"
    done = run()
    assert (done.code, done.out, done.err) == (0, counts + "\n", "")
    who = by_uid(os.getuid())
    name = who.name if who is not None else f"uid {os.getuid()}"
    assert done.log == [(NOTICE, f"alias database {paths.aliases} rebuilt by {name}"), (INFO, counts)]


def test_options_change_nothing(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "root: alice\n")
    assert run("-v").out == run().out


def test_every_bad_line_is_named_and_the_rest_is_counted(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "good1: alice\nthis line has no colon\ngood2: a b\ngood3: alice\n")
    done = run()
    assert done.code == 65
    assert done.out == f"{paths.aliases}: 2 aliases, longest 5 bytes, 20 bytes total\n"
    assert done.err.split("\n")[:-1] == [
        f"{paths.aliases}:2: no colon after the name",
        f"{paths.aliases}:3: 'good2': blank inside an address; is a comma missing? 'a b'"]


def test_warnings_leave_the_exit_code_alone(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "dup: a\ndup: b\n")
    done = run()
    assert (done.code, done.err) == (
        0, f"{paths.aliases}:2: warning: 'dup': also in line 1, which no longer counts\n")


def test_many_errors_are_summed_up(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "word\n" * 3000)
    done = run()
    assert done.code == 65
    assert done.err.endswith(f"{paths.aliases}: 3000 errors in all\n")
    assert done.err.count("\n") == 1001


def test_a_missing_file_is_an_error(run: Callable[..., Run], paths: Paths) -> None:
    os.unlink(paths.aliases)
    done = run()
    assert (done.code, done.out, done.log) == (78, "", [])
    assert done.err == f"cannot read {paths.aliases}: No such file or directory\n"


@pytest.mark.parametrize(("mode", "words"), [
    (0o664, "is writable by its group"), (0o666, "is writable by everybody")])
def test_a_file_that_others_can_write_is_refused(mode: int, words: str, run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "root: alice\n", mode)
    done = run()
    assert (done.code, done.out, done.log) == (78, "", [])
    assert done.err == f"{paths.aliases}: unsafe: {words}\n"


@pytest.mark.root
@pytest.mark.parametrize(("mode", "code"), [(0o600, 78), (0o640, 78), (0o604, 0)])
def test_a_file_that_the_runner_cannot_read_is_refused(mode: int, code: int, run: Callable[..., Run],
                                                       paths: Paths) -> None:
    """Root can, and would not see why all mail waits."""
    with elsewhere.public_directory() as place:
        file = Path(place, "aliases")
        file.write_text("root: alice\n")
        file.chmod(mode)
        Path(paths.settings).write_text(f'[local]\naliases = ["{file}"]\n')
        os.chown(paths.queue, elsewhere.SOMEBODY_ELSE, elsewhere.SOMEBODY_ELSE)
        done = run()
    assert done.code == code
    assert ("own user cannot read it" in done.err) == bool(code)


@pytest.mark.parametrize(("mode", "is_refused"), [(0o755, False), (0o775, True), (0o777, True), (0o1777, False)])
def test_a_file_in_a_directory_that_others_can_write_is_refused(
        mode: int, is_refused: bool, run: Callable[..., Run], paths: Paths) -> None:
    """They could put another in its place; in a sticky directory they cannot."""
    write(paths, "root: alice\n")
    folder = os.path.dirname(paths.aliases)
    os.chmod(folder, mode)
    done = run()
    assert (done.code, bool(done.out)) == ((78, False) if is_refused else (0, True))
    assert (f"unsafe: its directory {folder} is writable by" in done.err) == is_refused


@pytest.mark.root
def test_a_file_or_directory_of_another_user_is_refused(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "root: alice\n")
    os.chown(paths.aliases, 4242, 0)
    assert run().err == f"{paths.aliases}: unsafe: belongs to uid 4242\n"
    os.chown(paths.aliases, 0, 0)
    folder = os.path.dirname(paths.aliases)
    os.chown(folder, 4242, 0)
    assert run().err == f"{paths.aliases}: unsafe: its directory {folder} belongs to uid 4242\n"
    os.chmod(folder, 0o1777)
    assert run().code == 78


def test_the_place_behind_a_link_is_what_counts(run: Callable[..., Run], paths: Paths, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    (other / "aliases").write_text("root: alice\n")
    os.unlink(paths.aliases)
    os.symlink(other / "aliases", paths.aliases)
    assert run().code == 0
    other.chmod(0o777)
    assert run().code == 78


def test_all_files_of_the_settings_are_checked(run: Callable[..., Run], paths: Paths, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_text("a: b\n")
    second.write_text("c d\n")
    Path(paths.settings).write_text(f'[local]\naliases = ["{first}", "{second}"]\n')
    done = run()
    assert done.code == 65
    assert done.out == (f"{first}: 1 aliases, longest 1 bytes, 2 bytes total\n"
                        f"{second}: 0 aliases, longest 0 bytes, 0 bytes total\n")
    assert done.err == f"{second}:1: no colon after the name\n"


def test_names_for_other_hosts_are_judged_by_the_settings(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "info@lists.example: a\n")
    assert run().code == 65
    Path(paths.settings).write_text('local_domains = ["lists.example"]\n')
    assert run().code == 0


def test_with_unusable_settings_the_usual_file_is_checked(run: Callable[..., Run], paths: Paths) -> None:
    write(paths, "root: alice\n")
    Path(paths.settings).write_text("no such thing\n")
    done = run()
    assert done.code == 78
    assert done.out.startswith(f"{paths.aliases}: 1 aliases")
    assert done.err.startswith(f"{paths.settings}:1: ")


def test_what_is_printed_is_harmless_to_a_terminal(run: Callable[..., Run], paths: Paths) -> None:
    Path(paths.aliases).write_bytes(b"\x1b]0;x\x07: y\n\xff\x9b2J z\n")
    done = run()
    assert done.code == 65
    assert done.err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["newaliases", "sendmail"])
def test_the_installed_names_lead_here(name: str, paths: Paths, python: str, tmp_path: Path) -> None:
    """Through the front-end, as newaliases and as sendmail -bi, in a process of its own."""
    write(paths, "root: alice\nbad line\n")
    launcher = tmp_path / name
    launcher.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pysendmail.cli.sendmail import main\n"
                        f"from pysendmail.paths import Paths\nmain([{name!r}, *sys.argv[1:]], Paths({paths.root!r}))\n")
    words = [python, "-I", str(launcher)] + (["-bi"] if name == "sendmail" else [])
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 65, done.stderr
    assert done.stdout == f"{paths.aliases}: 1 aliases, longest 5 bytes, 9 bytes total\n"
    assert done.stderr == f"{paths.aliases}:2: no colon after the name\n"


def test_without_an_answer_about_the_caller_his_number_is_logged(
        run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_uid: int) -> None:
        raise LookupTrouble(24, "Too many open files")

    monkeypatch.setattr(newaliases, "by_uid", broken)
    done = run()
    assert done.code == 0
    assert done.log[0][1].endswith(f" rebuilt by uid {os.getuid()}")


def test_a_directory_that_cannot_be_looked_at_is_no_safe_one() -> None:
    assert newaliases.danger_above("/nonexistent/etc/aliases") == (
        "cannot look at /nonexistent/etc: No such file or directory")
