"""Outcomes: never empty, one line whatever was said, and temporary whenever it is not clear."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import outcome
from pysendmail.mail.outcome import Outcome, deferred, delivered, failed, from_exit_code, is_status, one_line

TEXT = st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(("text", "expected"), [
    ("2.0.0", True), ("4.7.500", True), ("5.999.999", True), ("5.1.10", True),
    ("", False), ("3.0.0", False), ("2.0", False), ("2.0.0.0", False), ("2.0.1000", False), ("2..0", False),
    ("5.1.1 ", False), ("5.1.1\n", False), ("5.-1.1", False), ("\u0665.1.1", False), ("5.\u0661.1", False),
    ("5.1_0.1", False)])
def test_statuses(text: str, expected: bool) -> None:
    assert is_status(text) is expected


@pytest.mark.parametrize(("status", "reason"), [("", "x"), ("2.0.0", ""), ("6.0.0", "x"), ("250", "x")])
def test_an_outcome_has_a_status_and_a_reason(status: str, reason: str) -> None:
    with pytest.raises(ValueError):
        Outcome(status, reason)


@pytest.mark.parametrize(("made", "expected"), [
    (delivered("ok"), (True, False, False, True)), (deferred("4.2.2", "full"), (False, True, False, False)),
    (failed("5.1.1", "unknown"), (False, False, True, True))])
def test_the_three_kinds(made: Outcome, expected: tuple[bool, ...]) -> None:
    assert (made.is_delivered, made.is_deferred, made.is_failed, made.is_final) == expected


@given(TEXT, st.integers(3, 500))
def test_one_line_is_one_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert all(c.isprintable() or "\udc80" <= c <= "\udcff" for c in line)
    assert line == one_line(line, limit)


@pytest.mark.parametrize(("text", "expected"), [
    ("a\r\nDSN: 2.0.0\tb", "a DSN: 2.0.0 b"), ("\x1b[2J", "[2J"), ("a\u2028b\x85c\u202ed", "a b c d"), ("  ", ""),
    ("x" * 500, "x" * 397 + "..."), ("\udcff", "\udcff")])
def test_what_becomes_of_control_characters(text: str, expected: str) -> None:
    assert one_line(text) == expected


OUTCOMES = st.builds(
    lambda status, reason, said, host: Outcome(status, one_line(reason) or "x", one_line(said), one_line(host, 255)),
    st.sampled_from(["2.0.0", "4.2.1", "5.7.100"]), TEXT, TEXT, TEXT)


@given(OUTCOMES)
def test_json_and_back(made: Outcome) -> None:
    assert Outcome.from_json(made.to_json()) == made


@pytest.mark.parametrize("value", [
    None, "2.0.0", [], ["2.0.0"], ["2.0.0", "a", "b"], ["2.0.0", "a", "b", "c", "d"], ["2.0.0", "a", "b", 5],
    ["2", "a", "b", "c"], [2, "a", "b", "c"], {"status": "2.0.0"}, ["2.0.0", None, "", ""]])
def test_json_of_nobody_we_know(value: Any) -> None:
    with pytest.raises(ValueError):
        Outcome.from_json(value)


def test_another_process_cannot_put_lines_into_an_outcome() -> None:
    made = Outcome.from_json(["5.1.1", "no\nsuch", "smtp;\r\n.", "mx\0" + "x" * 999])
    assert (made.reason, made.diagnostic, len(made.remote_mta)) == ("no such", "smtp; .", 255)
    assert Outcome.from_json(["5.1.1", "\n", "", ""]).reason


@pytest.mark.parametrize(("code", "output", "status", "reason"), [
    (0, "", "2.0.0", "delivered to command"),
    (0, "stored\n", "2.0.0", "stored"),
    (67, "", "5.1.1", "user unknown"),
    (75, "try later", "4.3.0", "try later"),
    (71, "", "4.3.0", "system resource problem"), (74, "", "4.3.0", "input/output error"),
    (1, "", "5.3.0", "exit code 1"), (255, "", "5.3.0", "exit code 255"),
    (126, "", "5.3.0", "command is not executable"), (127, "sh: x: not found", "5.3.0", "sh: x: not found"),
    (-9, "", "4.3.0", "command killed by signal 9"),
    (69, "5.2.2 mailbox is full", "5.2.2", "mailbox is full"),
    (75, "4.2.2 mailbox is full", "4.2.2", "mailbox is full"),
    (75, "5.2.2 mailbox is full", "4.3.0", "5.2.2 mailbox is full"),  # the exit code decides the class
    (69, "4.2.2 x", "5.3.0", "4.2.2 x"),
    (69, "5.2.2", "5.2.2", "service unavailable"),
    (77, "\x1b[31m5.7.1 no", "5.7.0", "[31m5.7.1 no")])
def test_exit_codes(code: int, output: str, status: str, reason: str) -> None:
    made = from_exit_code(code, output)
    assert (made.status, made.reason) == (status, reason)


@given(st.integers(-64, 255), TEXT)
def test_every_exit_code_is_an_outcome(code: int, output: str) -> None:
    made = from_exit_code(code, output)
    assert made.is_delivered == (code == 0)
    assert made.is_deferred == (code < 0 or code in (71, 74, 75))
    assert len(made.reason) <= outcome.MAX_REASON
