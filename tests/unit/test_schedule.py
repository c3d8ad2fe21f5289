"""The schedule: waits that double, clocks that jump, and nothing that expires or waits because of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.config import QueueSettings
from pysendmail.daemon import schedule

NOW = 1_795_500_000.0
YEARS = 10 * 365 * 86400.0
SETTINGS = QueueSettings(lifetime=432_000, delay_warning=14_400, retry_first=300, retry_max=3600)
CHANCES = st.floats(0, 1, exclude_max=True)
ANY_SETTINGS = st.builds(QueueSettings, lifetime=st.integers(0, 10**7), delay_warning=st.integers(0, 10**6),
                         retry_first=st.integers(1, 86400), retry_max=st.integers(1, 86400))


@pytest.mark.parametrize(("attempts", "expected"), [
    (1, 300), (2, 600), (3, 1200), (4, 2400), (5, 3600), (6, 3600), (100, 3600), (10**9, 3600)])
def test_waits_double_up_to_the_longest(attempts: int, expected: float) -> None:
    assert schedule.wait(attempts, SETTINGS, 0.5) == expected
    assert schedule.wait(attempts, SETTINGS, 0.0) == pytest.approx(0.9 * expected)
    assert schedule.wait(attempts, SETTINGS, 0.999999) == pytest.approx(1.1 * expected)


@given(ANY_SETTINGS, st.integers(1, 10**6), CHANCES)
def test_a_wait_is_never_nothing_and_never_long(settings: QueueSettings, attempts: int, chance: float) -> None:
    wait = schedule.wait(attempts, settings, chance)
    assert 0.9 * min(settings.retry_first, settings.retry_max) <= wait <= 1.1 * settings.retry_max + 0.001


@pytest.mark.parametrize(("received", "attempts", "now", "expected"), [
    (NOW, 3, NOW + 432_000, True),
    (NOW, 3, NOW + 431_999, False),
    (NOW, 2, NOW + 432_000, False),  # the host was off for a week: every message gets its tries
    (NOW, 1, NOW + YEARS, False),  # the clock jumped
    (NOW, 3, NOW - YEARS, False),  # and back
    (NOW + YEARS, 50, NOW, False),  # accepted while it was wrong
    (0.0, 0, NOW, False)])
def test_what_is_given_up(received: float, attempts: int, now: float, expected: bool) -> None:
    assert schedule.is_expired(received, attempts, now, SETTINGS) is expected


@pytest.mark.parametrize(("age", "warning", "expected"), [
    (14_399, 14_400, False), (14_400, 14_400, True), (YEARS, 0, False), (0, 0, False), (-YEARS, 14_400, False)])
def test_when_a_sender_is_warned(age: float, warning: int, expected: bool) -> None:
    settings = QueueSettings(delay_warning=warning)
    assert schedule.is_late(NOW, NOW + age, settings) is expected


@given(ANY_SETTINGS, st.integers(1, 50), st.floats(0, 4e9), st.floats(0, 4e9), CHANCES)
def test_the_next_try_is_after_now_and_within_the_longest_wait(settings: QueueSettings, attempts: int, received: float,
                                                               now: float, chance: float) -> None:
    due = schedule.due(now, received, attempts, settings, chance)
    assert now <= due <= now + schedule.wait(attempts, settings, chance) + 0.001
    assert schedule.sane_due(due, now, settings) == pytest.approx(due), "a due time of our own is believed"


def test_the_last_try_comes_with_the_end_of_its_life() -> None:
    """And not an hour later: its sender is waiting to hear."""
    received = NOW - SETTINGS.lifetime + 1000
    assert schedule.due(NOW, received, 20, SETTINGS, 0.5) == NOW + 1000
    assert schedule.due(NOW, NOW - SETTINGS.lifetime + 10, 20, SETTINGS, 0.5) == NOW + 300


@pytest.mark.parametrize(("due", "expected"), [
    (NOW - YEARS, NOW - YEARS), (NOW, NOW), (NOW + 100, NOW + 100), (NOW + 3960, NOW + 3960), (NOW + 3961, NOW + 3960),
    (NOW + 86400 * 300, NOW + 3960), (NOW + YEARS, NOW + 3960), (9_999_999_999, NOW + 3960)])
def test_due_times_set_by_a_wrong_clock(due: float, expected: float) -> None:
    assert schedule.sane_due(due, NOW, SETTINGS) == expected
