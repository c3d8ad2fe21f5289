"""What is written about the command line is what its table says."""

import re
from pathlib import Path

import pytest

from pysendmail.cli import options

ROOT = Path(__file__).resolve().parents[2]
COMPAT = (ROOT / "docs/COMPAT.md").read_text()
MANUAL = (ROOT / "man/sendmail.8").read_text()
INERT = {"C", "D", "X"}


def rows() -> dict[str, str]:
    """Option (`-x`, `-bx`): status, from the tables of COMPAT.md."""
    found = {}
    for line in COMPAT.split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) >= 3 and cells[1] in ("done", "ignored", "inert"):
            for option in re.findall(r"`(-\w+)`", cells[0]):
                assert option not in found, f"{option} stands there twice"
                found[option] = cells[1]
    return found


def test_every_option_has_a_line_and_nothing_else_has() -> None:
    assert set(rows()) == {f"-{letter}" for letter in options.OPTIONS if letter != "b"} | {
        f"-b{letter}" for letter in options.MODES}


def test_each_mode_has_its_program() -> None:
    programs = {f"-b{letter}": name for letter, name in options.MODES.items() if name}
    programs |= {"-q": options.QUEUE_RUN, "-Q": options.QUARANTINE, "-I": options.MODES["i"]}
    for option, name in programs.items():
        assert (ROOT / f"pysendmail/cli/{name}.py").exists(), option
        assert rows()[option] == "done", option


def test_ignored_means_no_effect() -> None:
    for letter, (_, effect) in options.OPTIONS.items():
        if letter != "b":
            status = rows()[f"-{letter}"]
            assert (status == "ignored") == (effect is None), letter
            assert (status == "inert") == (letter in INERT), letter


@pytest.mark.parametrize("letter", sorted(INERT))
def test_inert_options_do_nothing_but_be_remembered(letter: str) -> None:
    given, empty = vars(options.parse("sendmail", [f"-{letter}/x".encode()])), vars(options.Given())
    assert {key for key in given if given[key] != empty[key]} == {"inert", "words"}


def test_long_names_and_short_letters_are_named() -> None:
    listed = COMPAT.partition("Long options")[2].partition("\n\n")[0]
    assert {name.lower() for name in re.findall(r"`(\w+)` \(", listed)} == {name.decode() for name in options.LONG}
    short = next(line for line in COMPAT.split("\n") if line.startswith("| `-o` "))
    effective, ignored = (set(letters.split()) for letters in re.findall(r"`([\w ]+)` (?:as here|are ignored)", short))
    assert effective == {letter.decode() for letter in options.SHORT}
    assert ignored == {letter.decode() for letter in options.SHORT_IGNORED}


def test_the_manual_has_every_option() -> None:
    items = set()
    for line in MANUAL.split("\n"):
        if line.startswith(".It Fl "):
            items.update(re.findall(r"Fl (\w+)", line))
    expected = {letter for letter in options.OPTIONS if letter != "b"} | {f"b{letter}" for letter in options.MODES}
    assert items == expected
