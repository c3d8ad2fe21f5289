"""Queue ids: their shape, that they rise, and that none is ever given twice."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pysendmail.spool import queue_id
from pysendmail.spool.queue_id import Ids

NOW = 1_795_500_000.0
TICK = 1 / queue_id.TICKS_PER_SECOND
YEARS = 3650 * 86400.0
STEPS = st.lists(st.sampled_from([0.0, 0.0, TICK, 1.0, 86400.0, -TICK, -1.0, -YEARS, YEARS]), max_size=80)


def ticking(*times: float) -> Callable[[], float]:
    remaining = iter(times)
    return lambda: next(remaining)


def at(now: float) -> Callable[[], float]:
    return lambda: now


@pytest.mark.parametrize(("text", "expected"), [
    ("5abcDEFG001001", True), ("00000000000000", True), ("zzzzzzzz999999", True), ("Aabcdefg000000", True),
    ("", False), ("5abcDEFG00100", False), ("5abcDEFG0010011", False), ("5abcDEFG0010x1", False),
    ("5abc-EFG001001", False), ("../../etc/pass", False), ("5abc/EFG001001", False), ("5abcDEFG00100\n", False),
    ("5abcDEFG00100\u0661", False), ("5abcDEF\u0431001001", False), ("5abcDEFG00100\0", False)])
def test_the_shape(text: str, expected: bool) -> None:
    assert queue_id.is_queue_id(text) is expected


@pytest.mark.parametrize(("name", "expected"), [
    ("5abcDEFG001001", "5abcDEFG001001"),
    ("5abcDEFG001001,T=1795500000,A=3,H=9f86d081,U=1000:2,", "5abcDEFG001001"),
    ("5abcDEFG001001:2,S", "5abcDEFG001001"),  # a mail reader was here
    ("5abcDEFG001001,U=1000", "5abcDEFG001001"),
    ("5abcDEFG0010012", ""), ("5abcDEFG001001.lock", ""), (".nfs5abcDEFG001001", ""), ("lock", ""), ("", "")])
def test_the_id_in_a_file_name(name: str, expected: str) -> None:
    assert queue_id.id_of(name) == expected


@given(st.integers(0, 62**8 - 1), st.integers(0, 62**8 - 1))
@example(0, 62**8 - 1)
def test_letters_sort_as_ticks_do(one: int, other: int) -> None:
    assert (queue_id.encode_ticks(one) < queue_id.encode_ticks(other)) == (one < other)
    assert queue_id.decode_ticks(queue_id.encode_ticks(one)) == one


@given(STEPS)
def test_ids_rise_whatever_the_clock_does(steps: list[float]) -> None:
    now = NOW
    ids = Ids(7, lambda: now)
    made = [ids.new()]
    for step in steps:
        now += step
        made.append(ids.new())
    assert made == sorted(set(made))
    assert all(queue_id.is_queue_id(one) and one[8:11] == "007" for one in made)


def test_ids_follow_the_clock() -> None:
    ids = Ids(0, ticking(NOW, NOW, NOW + 5, NOW + 5 + TICK))
    first, later, last = ids.new(), ids.new(), ids.new()
    assert first[:8] == queue_id.encode_ticks(round(NOW * queue_id.TICKS_PER_SECOND))
    assert queue_id.decode_ticks(later[:8]) - queue_id.decode_ticks(first[:8]) == 5 * queue_id.TICKS_PER_SECOND
    assert last > later


def test_serials_that_are_used_up_take_the_next_tick() -> None:
    ids = Ids(3, at(NOW))
    made = [ids.new() for _ in range(2 * queue_id.SERIALS + 1)]
    assert made == sorted(set(made))
    assert [one[11:] for one in made[998:1001]] == ["998", "999", "000"]
    ticks = sorted({queue_id.decode_ticks(one[:8]) for one in made})
    assert ticks == [ticks[0], ticks[0] + 1, ticks[0] + 2]


@pytest.mark.parametrize("back", [0.0, TICK, 1.0, 3600.0, 86400.0 * 365, NOW])
def test_a_restart_with_a_clock_that_went_back_repeats_nothing(back: float) -> None:
    """rename(2) replaces silently: an id given twice would be somebody's message gone."""
    earlier = Ids(0, at(NOW))
    taken = {earlier.new() for _ in range(1500)}
    derived = {queue_id.derived(one, 1) for one in taken}
    ids = Ids(0, at(NOW - back), [*taken, *derived])
    made = {ids.new() for _ in range(3000)}
    assert len(made) == 3000
    assert not made & taken
    assert min(made) > max(taken)


def test_of_a_message_that_is_gone_the_report_is_enough_to_keep_its_id() -> None:
    gone = Ids(0, at(NOW)).new()
    ids = Ids(0, at(NOW - 3600), [queue_id.derived(gone, 2), queue_id.derived(queue_id.derived(gone, 3), 1)])
    assert ids.new() > gone


@pytest.mark.parametrize("writer", [-1, 1000])
def test_a_writer_has_three_digits(writer: int) -> None:
    with pytest.raises(ValueError):
        Ids(writer, at(NOW))


def test_derived_ids_are_all_different() -> None:
    ids = Ids(0, at(NOW))
    messages = [ids.new() for _ in range(50)]
    reports = [queue_id.derived(message, k) for message in messages for k in range(1, queue_id.MAX_REPORTS + 1)]
    notices = [queue_id.derived(report, 1) for report in reports]
    every = messages + reports + notices
    assert len(set(every)) == len(every)
    assert all(map(queue_id.is_queue_id, every))


@pytest.mark.parametrize(("number", "expected"), [
    (1, "AabcDEFG001001"), (2, "BabcDEFG001001"), (25, "YabcDEFG001001"), (0, ""), (26, ""), (-1, "")])
def test_reports_about_one_message(number: int, expected: str) -> None:
    assert queue_id.derived("5abcDEFG001001", number) == expected


@pytest.mark.parametrize("years", [0, 1, 3, 10.9])
def test_an_id_says_when_it_was_made_and_so_does_that_of_a_report(years: float) -> None:
    made = int(NOW)
    found = Ids(0, at(made)).new()
    for one in (found, queue_id.derived(found, 1)):
        assert queue_id.made_at(one, NOW + years * 365.25 * 86_400) == made
        assert queue_id.made_at(one, made - 3600.0) == made  # the clock went back


def test_there_is_no_report_about_a_notice() -> None:
    notice = queue_id.derived("BabcDEFG001001", 1)
    assert notice == "babcDEFG001001"
    assert queue_id.derived(notice, 1) == ""
