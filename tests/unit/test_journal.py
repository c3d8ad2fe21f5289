"""The journal: any torn end is survived, nothing written whole is lost, and the fold says where a message stands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.outcome import Outcome, deferred, delivered, failed
from pysendmail.mail.target import MAILBOX, RELAY, Target
from pysendmail.spool import journal
from pysendmail.spool.journal import Event, fold
from pysendmail.spool.record import crc

ALICE = Target(MAILBOX, "alice@host.example", user="alice")
BOB = Target(MAILBOX, "bob@host.example", user="bob", detail="x", use_forward=False)
CAROL = Target(RELAY, "carol@else.test", sender="")
DONE, LATER, NEVER = delivered("done"), deferred("4.2.0", "busy"), failed("5.1.1", "no such user")


def event(verb: str, **data: Any) -> Event:
    return Event(verb, 1_795_500_000.25, data)


def expanded(recipient: int, *targets: tuple[int, Target]) -> Event:
    return event("expanded", r=recipient, t=[[number, target.to_json()] for number, target in targets])


def outcome(verb: str, number: int, what: Outcome) -> Event:
    return event(verb, n=[number] if verb == "deferred" else number, o=what.to_json())


STORY = [
    expanded(0, (0, ALICE), (1, BOB)),
    expanded(1, (2, CAROL)),
    outcome("delivered", 0, DONE),
    outcome("deferred", 1, LATER),
    outcome("failed", 2, NEVER),
    event("planned", k=1, kind="final", n=[2]),
    event("reported", k=1),
    event("tried", attempts=1),
    event("held", why="by the administrator: \u00e9 \udcff \n"),
    event("released"),
    event("forwarded", n=1, t=[[3, BOB.to_json()]]),
    outcome("delivered", 3, DONE),
]
FILE = b"".join(map(journal.encode, STORY))

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                    max_leaves=8)
EVENTS = st.lists(st.builds(
    Event, st.sampled_from(sorted(journal.VERBS)), st.integers(0, 10**10).map(float),
    st.dictionaries(st.text().filter(lambda key: key not in ("verb", "at")), JSON, max_size=4)), max_size=10)


@given(EVENTS)
def test_events_come_back(events: list[Event]) -> None:
    data = b"".join(map(journal.encode, events))
    assert journal.decode(data) == (events, len(data))
    assert data.count(b"\n") == len(events), "one line each, whatever is in it"


def test_every_prefix_of_a_journal_folds() -> None:
    """A crash may leave any of them."""
    ends = [len(b"".join(map(journal.encode, STORY[:count]))) for count in range(len(STORY) + 1)]
    for length in range(len(FILE) + 1):
        events, sound = journal.decode(FILE[:length])
        whole = sum(1 for end in ends[1:] if end <= length)
        assert events == STORY[:whole]
        assert sound == ends[whole]
        assert fold(events).open_targets() is not None


@pytest.mark.parametrize("garbage", [b"\0" * 40 + b"\n", b"\n", b"00000000 {}\n", b"x" * 100, b"deadbeef"])
@pytest.mark.parametrize("count", [0, 3, len(STORY)])
def test_what_follows_a_damaged_line_does_not_count(garbage: bytes, count: int) -> None:
    before = b"".join(map(journal.encode, STORY[:count]))
    events, sound = journal.decode(before + garbage + FILE)
    assert events == STORY[:count]
    assert sound == len(before), "this is where the next line goes"


def test_every_flipped_bit_stops_at_its_line() -> None:
    data = b"".join(map(journal.encode, STORY[:3]))
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            events, sound = journal.decode(bytes(flipped))
            count = data[:at].count(b"\n")
            assert events == STORY[:count]
            assert sound == len(b"".join(map(journal.encode, STORY[:count])))


def line(value: object) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (crc(text), text)


@pytest.mark.parametrize("value", [
    [], 5, "delivered", None, {}, {"verb": "delivered"}, {"at": 5}, {"verb": "teleported", "at": 5},
    {"verb": "delivered", "at": "noon"}, {"verb": [], "at": 5}, {"verb": {}, "at": 5}])
def test_sound_lines_that_we_do_not_know_are_not_skipped(value: object) -> None:
    """A newer version's line says something that did happen. To ignore it and cut it off would repeat deliveries."""
    with pytest.raises(ValueError):
        journal.decode(FILE + line(value))


@pytest.mark.parametrize("text", [
    b"{", b"\xff", b"[" * 100_000, b'{"verb": "held", "at": 1, "why": ' + b"9" * 5000 + b"}"])
def test_sound_lines_that_are_no_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        journal.decode(b"%08x %s\n" % (crc(text), text))


def test_the_story_as_a_state() -> None:
    state = fold(STORY)
    assert {n: (p.recipient, p.is_open, p.is_reported, p.is_replaced) for n, p in state.progress.items()} == {
        0: (0, False, False, False), 1: (0, False, False, True), 2: (1, False, True, False),
        3: (0, False, False, False)}
    assert state.progress[2].target == CAROL
    assert state.progress[3].target == BOB
    assert (state.expanded, state.attempts, state.reports, state.plan, state.held) == ({0, 1}, 1, 1, None, "")
    assert state.last == LATER
    assert state.open_targets() == []
    assert state.next_number() == 4


@pytest.mark.parametrize(("count", "open_numbers", "plan"), [
    (0, [], None), (1, [0, 1], None), (2, [0, 1, 2], None), (3, [1, 2], None), (4, [1, 2], None), (5, [1], None),
    (6, [1], (1, "final", (2,))), (7, [1], None), (11, [3], None), (12, [], None)])
def test_where_it_stood_in_between(count: int, open_numbers: list[int], plan: object) -> None:
    state = fold(STORY[:count])
    assert [number for number, _ in state.open_targets()] == open_numbers
    assert state.plan == plan


def test_a_delay_report_leaves_its_targets_to_be_reported() -> None:
    state = fold([*STORY[:4], event("planned", k=1, kind="delayed", n=[1])])
    assert state.is_warned
    assert not state.progress[1].is_reported


def test_held_and_released() -> None:
    assert fold(STORY[:9]).held
    assert not fold(STORY[:10]).held


@pytest.mark.parametrize("bad", [
    event("delivered", n=99, o=DONE.to_json()), event("delivered", n=0), event("delivered", n=0, o=None),
    event("delivered", n=0, o=["9.9.9", "", "", ""]), event("expanded", r=1, t=[[5, {"kind": "teleport"}]]),
    event("expanded", r=1, t=[[5]]),
    event("expanded", r=1, t=7), event("deferred", n=0, o=LATER.to_json()), event("tried"), event("planned", k=1),
    event("planned", k="x", kind="final", n=[]), event("planned", k=1, kind="final", n=[77]), event("held"),
    event("forwarded", n=9, t=[]), event("expanded", r=[], t=[])])
def test_sound_lines_that_make_no_sense_are_said_to(bad: Event) -> None:
    with pytest.raises(ValueError, match="no sense"):
        fold([*STORY[:2], bad])


@given(st.lists(st.sampled_from(STORY), max_size=20))
def test_events_in_any_order_fold_or_make_no_sense(events: list[Event]) -> None:
    try:
        state = fold(events)
    except ValueError:
        return
    assert set(dict(state.open_targets())) <= set(state.progress)
