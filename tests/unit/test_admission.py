"""Who gets in: counts that several listeners share, rates of the last minute, places that are kept."""

import os
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.config import LimitSettings
from pysendmail.daemon.admission import (
    LOADED,
    MAX_COUNT,
    MAX_LISTENERS,
    TOO_FAST,
    TOO_MANY,
    Admission,
    Rate,
    Table,
    Tally,
    TurnedAway,
    client_key,
)

A, B = client_key("192.0.2.1"), client_key("192.0.2.2")


class Clock:
    def __init__(self, now: float = 120_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    return Table()


def limits(**changes: int) -> LimitSettings:
    return replace(LimitSettings(), **changes)


# ---- who a client is


@pytest.mark.parametrize(("one", "other", "is_same"), [
    ("192.0.2.1", "192.0.2.1", True),
    ("192.0.2.1", "192.0.2.2", False),
    ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ("fe80::1%eth0", "fe80::2%eth1", True),
])
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, is_same: bool) -> None:
    assert (client_key(one) == client_key(other)) is is_same


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "::g", "1.2.3.4.5", "/run/socket"])
def test_what_is_no_address_has_no_limits_of_its_own(text: str) -> None:
    assert client_key(text) == b""


# ---- sessions


def test_listeners_see_each_others_sessions(table: Table, clock: Clock) -> None:
    first, second = Tally(table, 0, clock), Tally(table, MAX_LISTENERS - 1, clock)
    first.entered(A)
    second.entered(A)
    second.entered(B)
    assert (first.sessions, first.sessions_of(A), first.sessions_of(B)) == (3, 2, 1)
    first.left(A)
    assert (second.sessions, second.sessions_of(A), second.sessions_of(B)) == (2, 1, 1)


def test_a_listener_that_dies_takes_its_row_with_it(table: Table, clock: Clock) -> None:
    dying, other = Tally(table, 0, clock), Tally(table, 1, clock)
    dying.entered(A)
    other.entered(A)
    dying.add(Rate.MESSAGES, A)
    table.wipe(0)
    assert (other.sessions, other.sessions_of(A), other.rate(Rate.MESSAGES, A)) == (1, 1, 0)


def test_rows_are_shared_between_processes(table: Table) -> None:
    pid = os.fork()
    if pid == 0:
        Tally(table, 1).entered(A)
        os._exit(0)
    os.waitpid(pid, 0)
    assert Tally(table, 0).sessions_of(A) == 1


def test_a_client_without_limits_counts_as_one_of_all(table: Table, clock: Clock) -> None:
    tally = Tally(table, 0, clock)
    tally.entered(b"")
    assert (tally.sessions, tally.sessions_of(b"")) == (1, 0)
    tally.left(b"")
    assert tally.sessions == 0


def test_other_clients_are_hardly_ever_taken_for_one(table: Table, clock: Clock) -> None:
    """A thousand clients: whose two places both belong to others as well is a matter of chance, and a small one."""
    tally = Tally(table, 0, clock)
    clients = [n.to_bytes(4, "big") for n in range(1000)]
    for client in clients:
        tally.entered(client)
    assert sum(tally.sessions_of(client) > 1 for client in clients) < 250
    assert sum(tally.sessions_of(client) > 4 for client in clients) < 4


def test_nobody_can_tell_whose_places_are_his() -> None:
    places = {Tally(Table(), 0)._places(A) for _ in range(20)}
    assert len(places) > 1


def test_a_sign_of_life(table: Table, clock: Clock) -> None:
    tally = Tally(table, 3, clock)
    tally.beat()
    assert table.beat(3) == int(clock.now)


# ---- rates


@given(st.lists(st.floats(0, 25), max_size=80))
def test_a_rate_is_nearly_what_happened_in_the_last_minute(pauses: list[float]) -> None:
    """Against the exact times: it is never below by more than the unevenness of the minute before, and never above by
    more than that."""
    clock, table = Clock(), Table()
    tally = Tally(table, 0, clock)
    times: deque[float] = deque()
    for pause in pauses:
        clock.now += pause
        tally.add(Rate.CONNECTIONS, A)
        times.append(clock.now)
        start = clock.now // 60 * 60
        since = [sum(start <= one for one in times), sum(start - 60 <= one < start for one in times)]
        weight = 1 - (clock.now - start) / 60
        assert tally.rate(Rate.CONNECTIONS, A) == pytest.approx(since[0] + weight * since[1])


def test_a_rate_ends(table: Table, clock: Clock) -> None:
    tally = Tally(table, 0, clock)
    for _ in range(50):
        tally.add(Rate.MESSAGES, A)
    assert tally.rate(Rate.MESSAGES, A) == 50
    clock.now += 60
    assert tally.rate(Rate.MESSAGES, A) == pytest.approx(50)
    clock.now += 30
    assert tally.rate(Rate.MESSAGES, A) == pytest.approx(25)
    clock.now += 30
    assert tally.rate(Rate.MESSAGES, A) == 0
    clock.now += 86_400
    assert tally.rate(Rate.MESSAGES, A) == 0


def test_rates_do_not_mix(table: Table, clock: Clock) -> None:
    tally, other = Tally(table, 0, clock), Tally(table, 1, clock)
    tally.add(Rate.MESSAGES, A)
    other.add(Rate.MESSAGES, A)
    other.add(Rate.CONNECTIONS, A)
    assert (tally.rate(Rate.MESSAGES, A), tally.rate(Rate.CONNECTIONS, A)) == (2, 1)
    assert tally.rate(Rate.MESSAGES, B) == 0


def test_a_count_has_an_end(table: Table, clock: Clock) -> None:
    tally = Tally(table, 0, clock)
    for _ in range(MAX_COUNT + 10):
        tally.add(Rate.MESSAGES, A)
    assert tally.rate(Rate.MESSAGES, A) == MAX_COUNT


# ---- admission


def entered(admission: Admission, *clients: bytes, is_local: bool = False) -> list[TurnedAway | None]:
    return [admission.enter(client, is_local=is_local) for client in clients]


def make(table: Table, clock: Clock, load: float = 0.0, **changes: int) -> Admission:
    return Admission(Tally(table, 0, clock), limits(**changes), lambda: load)


def test_places_are_kept_for_this_host(table: Table, clock: Clock) -> None:
    admission = make(table, clock, sessions=4, reserved_sessions=2)
    assert entered(admission, A, B, A) == [None, None, TOO_MANY]
    assert entered(admission, b"", b"", b"", is_local=True) == [None, None, TOO_MANY]
    admission.leave(b"")
    assert entered(admission, b"", is_local=True) == [None]


def test_one_place_is_left_for_the_network_whatever_is_kept(table: Table, clock: Clock) -> None:
    assert entered(make(table, clock, sessions=5, reserved_sessions=10), A, B) == [None, TOO_MANY]


def test_each_stranger_has_a_share(table: Table, clock: Clock) -> None:
    admission = make(table, clock, sessions_per_client=2)
    assert entered(admission, A, A, A, B) == [None, None, TOO_MANY, None]
    admission.leave(A)
    assert entered(admission, A) == [None]


def test_a_stranger_comes_so_often_in_a_minute(table: Table, clock: Clock) -> None:
    admission = make(table, clock, connections_per_minute=3)
    for answer in (None, None, None, TOO_FAST):
        assert admission.enter(A, is_local=False) is answer
        if answer is None:
            admission.leave(A)
    assert entered(admission, B, b"") == [None, None]
    clock.now += 120
    assert entered(admission, A) == [None]


def test_clients_without_limits_of_their_own_come_as_often_as_they_like(table: Table, clock: Clock) -> None:
    admission = make(table, clock, connections_per_minute=1, sessions_per_client=1, messages_per_minute=1)
    assert entered(admission, b"", b"", b"") == [None] * 3
    assert [admission.may_send(b"") for _ in range(5)] == [True] * 5


def test_a_busy_host_takes_mail_of_its_own_only(table: Table, clock: Clock) -> None:
    admission = make(table, clock, load=13.0, load_refuse=12)
    assert entered(admission, A, b"") == [LOADED, LOADED]
    assert entered(admission, b"", is_local=True) == [None]
    assert entered(make(table, clock, load=12.0, load_refuse=12), A) == [None]


def test_messages_of_a_stranger_are_counted_over_its_sessions(table: Table, clock: Clock) -> None:
    first = make(table, clock, messages_per_minute=3)
    second = Admission(Tally(table, 1, clock), limits(messages_per_minute=3), lambda: 0.0)
    assert [one.may_send(A) for one in (first, second, first, second)] == [True, True, True, False]
    assert second.may_send(B)


@pytest.mark.parametrize(("sessions", "is_stressed"), [(0, False), (7, False), (8, True), (10, True)])
def test_stress_is_when_most_places_are_taken(table: Table, clock: Clock, sessions: int, is_stressed: bool) -> None:
    admission = make(table, clock, sessions=10, reserved_sessions=0)
    for _ in range(sessions):
        admission.enter(b"", is_local=False)
    assert admission.is_stressed is is_stressed
