"""Each dialogue of tests/dialogs against the server core, in one piece and byte by byte."""

from pathlib import Path

import pytest

from tests.tools import dialog
from tests.tools.smtphost import Cut, bytewise, whole

FILES = sorted(dialog.DIALOGS.glob("*.txt"))


def test_there_are_dialogues() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue(path: Path, cut: Cut) -> None:
    found = dialog.read(path)
    dialog.run_core(found, cut)
    if "bs" in found.only:
        dialog.run_core(found, cut, "bs")


def test_dialogues_for_a_pipe_ask_for_nothing_that_it_has_not() -> None:
    for path in FILES:
        found = dialog.read(path)
        assert "bs" not in found.only or not (found.limits or found.tls or found.login), path


def test_a_dialogue_that_goes_otherwise_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    for text in ("S: 220 other.example*\n", "S: 220 *\nC: NOOP\nS: 550 *\n", "S: 220 *\nC: NOOP\n",
                 "S: 220 *\nCLOSED\n", "S: 220 *\nTAKEN <> alice\n", "C: NOOP\nS: 250 *\n"):
        path.write_text(text)
        with pytest.raises((AssertionError, IndexError)):
            dialog.run_core(dialog.read(path), whole)
