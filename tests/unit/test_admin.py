"""pysendmail(8): what each command asks the daemon, prints and exits with."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail import __version__, config
from pysendmail.cli import admin, admin_queue, ask
from pysendmail.config import document, identity
from pysendmail.paths import Paths
from tests.tools.control import Control, item, listing, recipient

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(paths: Paths, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs pysendmail: (exit code, stdout, stderr), the private root left out."""
    def call(*args: str) -> tuple[int, str, str]:
        code = admin.main(list(args), paths)
        printed = capsys.readouterr()
        return code, printed.out.replace(paths.root, ""), printed.err.replace(paths.root, "")
    return call


@pytest.fixture(autouse=True)
def _name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "node_name", lambda: "box.example.net")


@pytest.fixture
def _stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are somebody who may not read the spool."""
    monkeypatch.setattr(ask, "may_read", lambda paths: False)


# ---- the frame


def test_version(run: Any) -> None:
    assert run("version") == (0, f"pysendmail {__version__}\n", "")


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["queue", "--help"], ["config", "-h"], ["status", "--help"],
                                  *(["queue", verb, "--help"] for verb in (
                                      "list", "show", "flush", "hold", "release", "delete", "bounce", "requeue"))])
def test_every_command_explains_itself(run: Any, args: list[str]) -> None:
    code, printed, errors = run(*args)
    assert (code, errors) == (0, "")
    assert printed.startswith("Usage: pysendmail ")


@pytest.mark.parametrize("args", [
    [], ["nonsense"], ["queue"], ["config"], ["queue", "nonsense"], ["version", "x"], ["queue", "list", "--nonsense"],
    ["queue", "list", "--older", "soon"], ["queue", "show"]])
def test_a_command_line_that_makes_no_sense_is_one_line(run: Any, args: list[str]) -> None:
    code, printed, errors = run(*args)
    assert (code, printed) == (64, "")
    assert errors.startswith("pysendmail: ")
    assert re.search(r"\(see pysendmail[ a-z]* --help\)\n\Z", errors)
    assert errors.count("\n") == 1


def test_help_is_that_of_the_command_that_was_typed_wrong(run: Any) -> None:
    said = run("queue", "lst")[2]
    assert said.startswith("pysendmail: No such command 'lst'.")  # newer versions of click add what may be meant
    assert said.endswith(" (see pysendmail queue --help)\n")


def test_what_was_found_counts_though_nobody_reads_it(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="ascii") as nobody, Control(paths, listing()):
        monkeypatch.setattr(sys, "stdout", nobody)
        assert admin.main(["queue", "list", "--json", "0WkDdmTe001000"], paths) == 66


@pytest.mark.parametrize(("redirection", "code", "words"), [
    (">/dev/full", 74, b"pysendmail: [Errno 28] No space left on device\n"), (">&-", 0, b""), ("| exec true", 0, b"")])
@pytest.mark.parametrize("form", ["", "--json"])
def test_output_without_a_place(paths: Paths, form: str, redirection: str, code: int, words: bytes) -> None:
    program = (f"from pysendmail.cli.admin import main; from pysendmail.paths import Paths; import sys\n"
               f"sys.exit(main(sys.argv[1:], Paths({paths.root!r})))")
    command = f'set -o pipefail; "$0" -c "$1" queue list {form} {redirection}'
    with Control(paths, listing(*[item(f"0WkDdmTe{n:06d}") for n in range(2000)])):
        done = subprocess.run(["bash", "-c", command, sys.executable, program], cwd=ROOT, capture_output=True,
                              timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, words)


def test_what_the_locale_cannot_print_is_escaped(paths: Paths) -> None:
    program = (f"from pysendmail.cli.admin import main; from pysendmail.paths import Paths; import sys\n"
               f"sys.exit(main(['queue', 'list'], Paths({paths.root!r})))")
    with Control(paths, listing(item(sender="é@münchen.example", recipients=[recipient("日@x")]))):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30, check=True,
                              env={"PYTHONIOENCODING": "latin-1"})
    assert "<é@münchen.example>".encode("latin-1") in done.stdout
    assert b"<\\u65e5@x>" in done.stdout


def test_an_error_cannot_move_the_cursor(run: Any) -> None:
    assert "\x1b" not in run("queue", "list", "--older", "\x1b[2J")[2]


@pytest.mark.usefixtures("_stranger")
@pytest.mark.parametrize("args", [
    ["status"], ["queue", "list"], ["queue", "show", "0WkDdmTe001000"], ["queue", "flush"],
    ["queue", "delete", "0WkDdmTe001000"]])
def test_with_the_daemon_down_there_is_one_line_and_75(run: Any, args: list[str]) -> None:
    assert run(*args) == (75, "", "pysendmail: pysendmaild is not running\n")


@pytest.mark.parametrize(("verb", "why"), [("flush", ""), ("bounce", ", and only it can return messages")])
def test_what_only_the_daemon_can_do_says_so(run: Any, verb: str, why: str) -> None:
    assert run("queue", verb, "0WkDdmTe001000") == (75, "", f"pysendmail: pysendmaild is not running{why}\n")


def test_what_the_daemon_refuses_is_said_in_its_words(run: Any, paths: Paths) -> None:
    with Control(paths, b'{"error": "only root may delete messages", "code": 77}\n'):
        assert run("queue", "delete", "--all") == (77, "", "pysendmail: only root may delete messages\n")


def test_the_program_starts_in_a_source_tree_and_loads_only_what_it_needs(paths: Paths) -> None:
    """Every command pays for what the frame imports: the queue's and the settings' modules come later."""
    program = str(ROOT / "bin" / "pysendmail")
    code = (f"import runpy, sys; sys.argv = [{program!r}, 'version']\n"
            f"try: runpy.run_path({program!r}, run_name='__main__')\n"
            "except SystemExit as end: print(end.code)\n"
            "print([name for name in sys.modules if name.startswith('pysendmail.cli.admin_') or name == 'asyncio'])")
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True, timeout=30,
                          check=True)
    assert done.stdout == f"pysendmail {__version__}\n0\n[]\n"


def test_the_program_itself_runs_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('the directory of a stranger was searched')\n")
    os.symlink(ROOT / "bin" / "pysendmail", tmp_path / "link")
    done = subprocess.run([sys.executable, "-I", str(tmp_path / "link"), "version"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=30, check=True, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.stdout == f"pysendmail {__version__}\n"


# ---- queue


CHOSEN = [
    ([], {}), (["0WkDdmTe001000", "0WkDdmTe001001"], {"id": ["0WkDdmTe001000", "0WkDdmTe001001"]}),
    (["--sender", "alice"], {"sender": "alice"}), (["--sender", "a", "--sender", "b"], {"sender": ["a", "b"]}),
    (["--recipient", "x", "--domain", "example.org", "--reason", "refused"],
     {"recipient": "x", "domain": "example.org", "reason": "refused"}),
    (["--older", "1d12h", "--younger", "2w"], {"older": 129_600, "younger": 1_209_600}),
    (["--held"], {"held": True}), (["--not-held"], {"held": False}),
]


@pytest.mark.parametrize(("args", "wanted"), CHOSEN)
def test_options_become_a_filter(run: Any, paths: Paths, args: list[str], wanted: dict[str, Any]) -> None:
    with Control(paths, listing(item(result="ok"))) as control:
        assert run("queue", "list", *args)[0] == 0
        assert run("queue", "flush", *args)[0] == 0
        if wanted:
            assert run("queue", "hold", *args, "--dry-run")[0] == 0
    assert control.requests[:2] == [
        {"do": "list", "filter": wanted}, {"do": "flush", "filter": wanted, "dry_run": False}]
    assert control.requests[2:] == ([{"do": "hold", "filter": wanted, "dry_run": True}] if wanted else [])


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("30m", 1800), ("4h", 14_400), ("2d", 172_800), ("1w", 604_800), ("1h30m", 5400), ("0s", 0)])
def test_ages(text: str, seconds: int) -> None:
    assert admin_queue.Age().convert(text, None, None) == seconds


@given(st.text(st.sampled_from("0123456789smhdw- .٣"), max_size=12))
def test_an_age_is_read_or_refused(text: str) -> None:
    try:
        seconds = admin_queue.Age().convert(text, None, None)
    except click.BadParameter:
        return
    assert 0 <= seconds <= admin_queue.MAX_AGE
    assert text[-1] in admin_queue.UNITS


@pytest.mark.parametrize("wrong", ["0", "0WkDdmTe00100", "0WkDdmTe0010000", "0WkDdmTe00100x", "../../etc/pass", ""])
def test_a_part_of_an_id_chooses_nothing(run: Any, wrong: str) -> None:
    """It could be a part of others too."""
    for verb in ("list", "show", "delete"):
        code, _, errors = run("queue", verb, wrong)
        assert code == 64
        assert "is no queue id" in errors


@pytest.mark.parametrize("verb", ["hold", "release", "delete", "bounce", "requeue"])
def test_the_whole_queue_is_changed_only_when_that_is_said(run: Any, paths: Paths, verb: str) -> None:
    with Control(paths, listing(item(result="ok"))) as control:
        assert run("queue", verb)[0] == 64
        assert run("queue", verb, "--all", "--sender", "x")[0] == 64
        assert run("queue", verb, "--all") == (0, f"0WkDdmTe001000: {admin_queue.PAST[verb]}\n", "")
    assert control.requests == [{"do": verb, "filter": {"held": True} if verb == "release" else {}, "dry_run": False}]


@pytest.mark.parametrize(("args", "wanted"), [
    (["--sender", "x"], {"sender": "x", "held": True}), (["0WkDdmTe001000"], {"id": ["0WkDdmTe001000"]}),
    (["--not-held"], {"held": False})])
def test_release_means_what_is_held(run: Any, paths: Paths, args: list[str], wanted: dict[str, Any]) -> None:
    with Control(paths, listing(item(result="ok"))) as control:
        assert run("queue", "release", *args)[0] == 0
    assert control.requests[0]["filter"] == wanted


@pytest.mark.parametrize("name", ["sender", "recipient", "domain", "reason"])
def test_a_variable_that_is_not_set_chooses_nothing(run: Any, paths: Paths, name: str) -> None:
    for verb in ("list", "delete"):
        assert run("queue", verb, f"--{name}", "") == (64, "", f"pysendmail: filter {name} is empty\n")


def test_each_message_is_answered_for(run: Any, paths: Paths) -> None:
    with Control(paths, listing(item(result="ok"), item("0WkDdmTe001001", result="is being delivered at this moment"))):
        assert run("queue", "delete", "--sender", "x") == (
            75, "0WkDdmTe001000: deleted\n", "0WkDdmTe001001: is being delivered at this moment\n")
    with Control(paths, listing(item(result="ok"))):
        assert run("queue", "bounce", "--sender", "x", "--dry-run") == (0, "0WkDdmTe001000: would be returned\n", "")


def test_a_named_message_that_is_not_there_is_an_error_and_an_empty_choice_is_none(run: Any, paths: Paths) -> None:
    with Control(paths, listing()):
        assert run("queue", "delete", "0WkDdmTe001000") == (66, "", "no message in the queue fits\n")
        assert run("queue", "delete", "--older", "5d") == (0, "", "no message in the queue fits\n")
        assert run("queue", "list", "0WkDdmTe001000") == (66, "0 messages\n", "")
        assert run("queue", "list", "0WkDdmTe001000", "--json") == (66, "[]\n", "")
        assert run("queue", "list", "--older", "5d") == (0, "0 messages\n", "")


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("command", [("list",), ("flush",), ("hold", "--all")])
def test_json_is_one_array(run: Any, paths: Paths, number: int, command: tuple[str, ...]) -> None:
    items = [item(f"0WkDdmTe00100{n}", sender="é\x1b\udcff@x", result="ok") for n in range(number)]
    with Control(paths, listing(*items)):
        code, printed, errors = run("queue", *command, "--json")
    assert (code, errors) == (0, "")
    assert json.loads(printed) == items
    assert printed.isascii()
    assert "\x1b" not in printed


def test_json_of_a_change_that_failed_exits_as_the_text_does(run: Any, paths: Paths) -> None:
    with Control(paths, listing(item(result="cannot"))):
        assert run("queue", "hold", "--all", "--json")[0] == 75


def test_the_list_says_what_waits_for_what(run: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_queue.time, "time", lambda: 1_750_000_000.0 + 7300)
    waiting = item(attempts=3, next_try=1_750_008_000.0, recipients=[
        recipient("bob@example.com", reason="refused\n"), recipient("gone@example.com", "delivered")])
    held = item("0WkDdmTe001001", where="hold", hold="by hand", next_try=None)
    new = item("Hq3xV0.tmp1234", where="drop", sender="", recipients=[], uid=1234, attempts=0, next_try=None)
    report = item("0WkDdmTe001002", sender="", next_try=1_750_008_000.0, expires=1_750_172_800.0)
    with Control(paths, listing(waiting, held, new, report)):
        _, printed, _ = run("queue", "list")
    assert printed.split("\n") == [
        "0WkDdmTe001000  deferred     2 h       1201  <alice@example.org>",
        "    attempt 4 in 11 min, returned in 4 d",
        "    <bob@example.com>: refused\\x0a",
        "0WkDdmTe001001  held         2 h       1201  <alice@example.org>",
        "    held: by hand",
        "    <bob@example.com>",
        "Hq3xV0.tmp1234  arriving     2 h       1201  (uid 1234)",
        "0WkDdmTe001002  deferred     2 h       1201  <>",
        "    attempt 2 in 11 min, given up in 45 h",
        "    <bob@example.com>",
        "4 messages", ""]


@pytest.mark.parametrize(("seconds", "words"), [
    (-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_799, "47 h"),
    (172_800, "2 d")])
def test_durations(seconds: float, words: str) -> None:
    assert admin_queue.duration(seconds) == words


@pytest.mark.parametrize(("changes", "state"), [
    ({}, "deferred"), ({"attempts": 0}, "waiting"), ({"active": True}, "active"), ({"where": "hold"}, "held"),
    ({"where": "intake"}, "arriving"), ({"reason": "damaged: no envelope"}, "damaged")])
def test_states(changes: dict[str, Any], state: str) -> None:
    assert admin_queue.state_of(item(**changes)) == state


def test_a_long_list_of_recipients_is_counted(paths: Paths) -> None:
    lines = admin_queue.summary(item(recipients=[recipient(f"u{n}@x") for n in range(25)]), 0.0)
    assert lines[-1] == "    and 5 more"


def test_show_tells_everything_about_one_message(run: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    admin_queue.time.tzset()
    one = item(reason="later\x1b", recipients=[recipient("bob@example.com", reason="busy"),
                                               recipient("c@x", "delivered")])
    with Control(paths, listing(one)) as control:
        code, printed, _ = run("queue", "show", "0WkDdmTe001000")
        as_json = run("queue", "show", "--json", "0WkDdmTe001000")[1]
    assert code == 0
    assert control.requests[0] == {"do": "show", "id": "0WkDdmTe001000"}
    lines = printed.strip().split("\n")
    assert "arrived: 2025-06-15 15:06:40 +0000" in lines
    assert "reason: later\\x1b" in lines
    assert lines[-2:] == ["recipient: <bob@example.com> deferred: busy", "recipient: <c@x> delivered"]
    assert not any(line.startswith(("hold:", "body:")) for line in lines)
    assert json.loads(as_json) == one


def test_as_many_ids_as_xargs_gives_are_taken_as_mailq_prints_them(run: Any, paths: Paths) -> None:
    ids = [f"0WkDdmTe{n:06d}" for n in range(128 * 1024 // 15)]
    with Control(paths, listing(item(result="ok"))) as control:
        assert run("queue", "delete", *ids[:-1], ids[-1] + "*")[0] == 0
    assert control.requests[0]["filter"] == {"id": ids}


def test_too_many_ids_are_one_line(run: Any, paths: Paths) -> None:
    with Control(paths, listing(), deaf=True):
        code, _, errors = run("queue", "delete", *[f"0WkDdmTe{n:06d}" for n in range(20_000)])
    assert (code, errors) == (64, "pysendmail: too much to ask for at once; name fewer messages\n")


def test_the_owner_of_a_spool_sees_it_with_the_daemon_down(run: Any, paths: Paths) -> None:
    assert run("queue", "list", "--json") == (0, "[]\n", "")
    assert run("queue", "show", "0WkDdmTe001000") == (66, "", "pysendmail: no such message in the queue\n")


# ---- status


def test_status(run: Any, paths: Paths) -> None:
    state = {"version": "1", "pid": 7, "active": 0, "counts": {"queued": 3, "evil\x1b": 1}}
    with Control(paths, json.dumps({"end": state}).encode() + b"\n") as control:
        assert run("status") == (0, "version: 1\npid: 7\nactive: 0\ncounts:\n  queued: 3\n  evil\\x1b: 1\n", "")
        assert json.loads(run("status", "--json")[1]) == state
    assert control.requests == [{"do": "status"}] * 2


# ---- config


@pytest.fixture
def settings(paths: Paths) -> Iterator[Any]:
    def write(text: str, mode: int = 0o600) -> None:
        Path(paths.settings).write_text(text)
        os.chmod(paths.settings, mode)
    return write


def test_config_show_prints_what_is_in_force(run: Any, paths: Paths, settings: Any) -> None:
    settings('[queue]\nlifetime = 7\n[relay]\nusername = "u"\npassword = "hunter2"\n')
    code, printed, errors = run("config", "show", "--origin")
    assert (code, errors) == (0, "")
    assert "\nlifetime = 7  # /etc/pysendmail/pysendmail.toml:2\n" in printed
    assert "hunter2" not in printed
    assert "# " not in run("config", "show")[1]
    assert json.loads(run("config", "show", "--json")[1])["queue"]["lifetime"] == 7
    assert json.loads(run("config", "show", "--json", "--origin")[1])["relay"]["password"] == {
        "value": "(set)", "origin": "/etc/pysendmail/pysendmail.toml:5"}


def test_config_check_finds_nothing_wrong(run: Any) -> None:
    assert run("config", "check") == (0, "settings are sound\n", "")


def test_config_check_names_every_problem(run: Any, settings: Any) -> None:
    settings("[queue]\nlifetme = 7\nretry_max = 0\n")
    assert run("config", "check") == (
        78, "", "pysendmail: /etc/pysendmail/pysendmail.toml:2: [queue] lifetme: there is no such setting; did you "
        "mean 'lifetime'?\n"
        "pysendmail: /etc/pysendmail/pysendmail.toml:3: [queue] retry_max: must be at least 1, not 0\n")
    assert run("config", "show")[0] == 78


def test_config_check_warns_of_a_password_that_others_can_read(run: Any, settings: Any) -> None:
    settings('[relay]\nusername = "u"\npassword = "hunter2"\n', 0o644)
    assert run("config", "check") == (
        0, "settings are sound\n", "pysendmail: warning: /etc/pysendmail/pysendmail.toml:3: [relay] password: "
        "everybody can read this file; chmod it to 0600\n")


def test_config_check_looks_at_the_files_that_settings_name(run: Any, paths: Paths, settings: Any) -> None:
    modes = {"secret": 0o604, "cert": 0o644, "key": 0o644, "sign": 0o640, "alias": 0o664}
    for name, mode in modes.items():
        Path(f"{paths.etc}/{name}").write_text("x\n")
        os.chmod(f"{paths.etc}/{name}", mode)
    settings(f'[local]\naliases = ["{paths.etc}/alias", "{paths.etc}/none", "{paths.etc}"]\n'
             f'[relay]\nusername = "u"\npassword_file = "{paths.etc}/secret"\n'
             f'[smtpd]\ntls_cert = "{paths.etc}/cert"\ntls_key = "{paths.etc}/key"\n'
             f'[dkim]\nkey_file = "{paths.etc}/sign"\n')
    assert run("config", "check") == (78, "", "".join(f"pysendmail: /etc/pysendmail{line}\n" for line in (
        "/secret: [relay] password_file: can be read by everybody (mode 0604)",
        "/key: [smtpd] tls_key: can be read by everybody",
        "/alias: [local] aliases: can be changed by others (mode 0664)",
        "/none: [local] aliases: No such file or directory",
        ": [local] aliases: is not a regular file")))


def test_config_check_misses_the_alias_file(run: Any, paths: Paths) -> None:
    """Without it local mail waits."""
    os.unlink(paths.aliases)
    assert run("config", "check") == (78, "", "pysendmail: /etc/aliases: [local] aliases: No such file or directory\n")


def test_config_sample_is_the_sample_file(run: Any) -> None:
    assert run("config", "sample") == (0, document.sample(), "")


def test_warnings_do_not_get_into_the_output(run: Any, paths: Paths) -> None:
    Path(paths.mailname).write_text("not a domain\n")
    code, printed, errors = run("config", "show", "--json")
    assert code == 0
    assert json.loads(printed)["domain"] == config.load(paths).hostname
    assert errors == "pysendmail: warning: /etc/mailname: not a domain, so it is not used\n"


# ---- the manual


def test_the_manual_names_every_command_option_and_key() -> None:
    """pysendmail(8) against the program, both ways for commands and options."""
    text = (ROOT / "man" / "pysendmail.8").read_text("utf-8")
    commands, options = set(), set()
    for name in admin.pysendmail.list_commands(click.Context(admin.pysendmail)):
        command = admin.pysendmail.get_command(click.Context(admin.pysendmail), name)
        for path, one in leaves(name, command):
            commands.add(path)
            options |= {word for part in one.params for word in (*part.opts, *part.secondary_opts) if word[:2] == "--"}
    entries = {line.removeprefix(".It Cm ") for line in text.split("\n") if line.startswith(".It Cm ")}
    assert entries == commands
    named = {f"--{word}" for word in re.findall(r"Fl -([a-z-]+)", text)}
    assert named == options
    keys = {key for line in text.split("\n") if line.startswith((".It Va ", ".Va "))
            for key in line.replace(" ,", "").removeprefix(".It").split()[1:]}
    assert keys >= {*item(), "result", *recipient("x")}


def leaves(path: str, command: click.Command | None) -> Iterator[tuple[str, click.Command]]:
    """Every command below this one, with the words that call it."""
    assert command is not None
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(f"{path} {name}", inner)
