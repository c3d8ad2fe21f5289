"""sendmail -bv and -bt: what is said of addresses, and the exit code of -bv."""

import io

import pytest

from pysendmail.cli import addresstest, verify
from pysendmail.paths import Paths

UNKNOWN = "nobody-of-that-name@host.example... unknown user: nobody-of-that-name (5.1.1)"
SHUT = "shut@host.example... no more (5.2.1)"


def relayed(address: str, asked: str = "") -> str:
    return f"{asked or address}... deliverable: mailer esmtp, {address} by the mail hosts of example.com"


@pytest.fixture(autouse=True)
def _aliases(paths: Paths) -> None:
    with open(paths.aliases, "w", encoding="ascii") as file:
        file.write("postmaster: root\nteam: carol@example.com, dave@example.com\nshut: error:no more\n"
                   "wait: :defer: later\n")


@pytest.mark.parametrize(("words", "code", "lines"), [
    (["carol@example.com"], 0, [relayed("carol@example.com")]),
    (["-v", "<a@example.com>, Bob <b@example.com>"], 0, [relayed("a@example.com"), relayed("b@example.com")]),
    (['"x,y"@example.com'], 0, [relayed('"x,y"@example.com')]),
    (["team"], 0, [relayed("carol@example.com", "team"), relayed("dave@example.com", "team")]),
    (["nobody-of-that-name"], 67, [UNKNOWN]),
    (["a@example.com", "nobody-of-that-name", "shut"], 67, [relayed("a@example.com"), UNKNOWN, SHUT]),
    (["shut"], 69, [SHUT]),
    (["wait"], 75, ["wait@host.example... later (4.2.1)"]),
    (["|cat"], 69, ["|cat... mail cannot name a program or file directly (5.7.1)"]),
    (["\udcff@example.com"], 0, [relayed("\\xff@example.com")]),
])
def test_each_place_is_a_line(
        words: list[str], code: int, lines: list[str], paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(words, paths) == code
    assert capsys.readouterr().out.split("\n")[:-1] == lines


@pytest.mark.parametrize("words", [[], ["-v"], ["<>"], [","]])
def test_without_an_address_there_is_nothing_to_say(
        words: list[str], paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(words, paths) == 64
    assert capsys.readouterr() == ("", "sendmail: -bv needs an address\n")


def test_an_address_that_cannot_be_read_is_refused_as_in_a_submission(
        paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["a@example.com", '"open@example.com'], paths) == 65
    assert capsys.readouterr() == ("", "sendmail: quote that is not closed\n")


@pytest.mark.parametrize("main", [verify.main, addresstest.main])
def test_wrong_settings_are_named(main: object, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    with open(paths.settings, "w", encoding="ascii") as file:
        file.write("nonsense = 1\n")
    assert callable(main)
    assert main(["x"], paths) == 78
    assert "nonsense: there is no such setting" in capsys.readouterr().err


def test_address_test_mode_passes_over_rulesets(
        paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("3,0 shut\n\na b\n/quit\nteam\n"))
    assert addresstest.main([], paths) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("> alias: shut@host.example: ")
    assert "unknown user: a b" in printed
    assert "team" not in printed
