"""Destinations that are down: left alone for longer each time, then probed by one."""

import pytest

from pysendmail.daemon import outages
from pysendmail.daemon.outages import Outages, mark
from pysendmail.mail.outcome import deferred

LATER = deferred("4.4.1", "cannot connect")
FIRST, MOST = 300.0, 3600.0


def made(chance: float = 0.5) -> Outages:
    return Outages(FIRST, MOST, lambda: chance)


def test_the_wait_doubles_up_to_the_longest() -> None:
    down, now, waits = made(), 0.0, []
    for _ in range(7):
        outage = down.failed("x", LATER, "down", now)
        waits.append(outage.due - now)
        now = outage.due
    assert waits == [300, 600, 1200, 2400, 3600, 3600, 3600]


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 270.0), (0.5, 300.0), (0.999, 329.94)])
def test_the_wait_has_a_jitter_of_a_tenth(chance: float, wait: float) -> None:
    assert made(chance).failed("x", LATER, "down", 0.0).due == pytest.approx(wait)


def test_failures_before_it_is_due_are_the_same_failure() -> None:
    down = made()
    first = down.failed("x", LATER, "down", 0.0).due
    again = down.failed("x", deferred("4.4.2", "other words"), "login", 200.0)
    assert (again.due, again.failures, again.outcome.reason, again.state) == (first, 1, "other words", "login")


def test_a_failed_probe_counts_even_if_it_came_early() -> None:
    down = made()
    outage = down.failed("x", LATER, "down", 0.0)
    outage.is_probed = True
    assert down.failed("x", LATER, "down", 100.0).due == 700.0
    assert not outage.is_probed


def test_it_is_left_alone_until_it_is_due_and_while_it_is_probed() -> None:
    down = made()
    assert down.left_alone(mark("x"), 0.0) == 0.0
    outage = down.failed("x", LATER, "down", 0.0)
    assert down.left_alone(mark("x"), 100.0) == 200.0
    assert down.left_alone(mark("x"), 300.0) == 0.0
    outage.is_probed = True
    assert down.left_alone(mark("x"), 300.0) == 600.0
    down.probe_lost("x")
    assert down.left_alone(mark("x"), 300.0) == 0.0


def test_it_ends_once() -> None:
    down = made()
    down.failed("x", LATER, "down", 0.0)
    assert down.ended("x")
    assert not down.ended("x")
    assert down.find("x") is None
    down.probe_lost("x")


def test_the_oldest_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "MAX_KEPT", 10)
    down = made()
    for n in range(30):
        down.failed(f"d{n}", LATER, "down", 0.0)
    assert [one.destination for one in down] == [f"d{n}" for n in range(20, 30)]
    down.clear()
    assert len(down) == 0


@pytest.mark.parametrize("name", ["example.net", "h:25,i:26", "b\u00fccher.example", "\udcff"])
def test_a_mark_is_eight_hex_digits(name: str) -> None:
    found = mark(name)
    assert len(found) == 8
    assert not set(found) - set("0123456789abcdef")
