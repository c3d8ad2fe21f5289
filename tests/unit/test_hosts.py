"""From a destination to the places where its mail is taken: tables of what DNS says and what follows from it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pysendmail.mail.outcome import Outcome
from pysendmail.net import hosts
from pysendmail.net.hosts import Place, Surroundings
from pysendmail.net.resolver import Answer, Kind, State
from pysendmail.route import own

OWN = {"198.51.100.1", "2001:db8::1"}


def find(table: dict[tuple[str, str], Any], domain: str = "x.example", named: tuple[str, ...] = (),
         **here: Any) -> hosts.Found:
    """table: {(name, type): records}; a str is a trouble. A name that is in it nowhere does not exist."""
    async def lookup(name: str, kind: Kind) -> Answer:
        found = table.get((name, kind.value))
        if isinstance(found, str):
            return Answer(State.TROUBLE, words=found)
        if found is None:
            return Answer(State.NO_DATA if any(name == known for known, _ in table) else State.NO_NAME)
        return Answer(State.FOUND, tuple(found if kind is Kind.MX else ((0, address) for address in found)))
    settings = {"hosts_file": "/nonexistent", "is_own": lambda a: a in OWN or own.is_loopback(a),
                "shuffle": lambda names: None} | here
    return asyncio.run(hosts.find(domain, named, lookup, Surroundings("us.example", **settings)))


def shown(found: hosts.Found) -> list[str]:
    assert not isinstance(found, Outcome), found
    return [f"{place.name} {place.address} {place.port}" for place in found]


MX3 = {("x.example", "MX"): [(30, "c.example"), (10, "a.example"), (20, "B.Example.")],
       ("a.example", "A"): ["192.0.2.1"], ("a.example", "AAAA"): ["2001:db8:a::1"], ("b.example", "A"): ["192.0.2.2"],
       ("c.example", "A"): ["192.0.2.3"]}


@pytest.mark.parametrize(("table", "expected"), [
    (MX3, ["a.example 2001:db8:a::1 25", "a.example 192.0.2.1 25", "b.example 192.0.2.2 25", "c.example 192.0.2.3 25"]),
    ({("x.example", "A"): ["192.0.2.9"]}, ["x.example 192.0.2.9 25"]),
    ({("x.example", "AAAA"): ["2001:db8:a::9"]}, ["x.example 2001:db8:a::9 25"]),
    # More addresses of one family than are tried: the other one has its turn, should there be no way to the first.
    ({("x.example", "AAAA"): [f"2001:db8:a::{n}" for n in range(1, 13)],
      ("x.example", "A"): ["192.0.2.8", "192.0.2.9"]},
     ["x.example 2001:db8:a::1 25", "x.example 192.0.2.8 25", "x.example 2001:db8:a::2 25", "x.example 192.0.2.9 25",
      *(f"x.example 2001:db8:a::{n} 25" for n in range(3, 9))]),
    # A best host of which nothing is known now: the others are there.
    (MX3 | {("a.example", "A"): "SERVFAIL", ("a.example", "AAAA"): "SERVFAIL"},
     ["b.example 192.0.2.2 25", "c.example 192.0.2.3 25"]),
    # We are one of the worse hosts, by name or by address: neither ourselves nor anybody worse.
    (MX3 | {("x.example", "MX"): [(10, "a.example"), (20, "us.example"), (30, "c.example")]},
     ["a.example 2001:db8:a::1 25", "a.example 192.0.2.1 25"]),
    (MX3 | {("x.example", "MX"): [(10, "a.example"), (20, "US.EXAMPLE."), (20, "b.example"), (30, "c.example")]},
     ["a.example 2001:db8:a::1 25", "a.example 192.0.2.1 25"]),
    (MX3 | {("b.example", "A"): ["192.0.2.2", "198.51.100.1"]},
     ["a.example 2001:db8:a::1 25", "a.example 192.0.2.1 25"]),
    # Names that no host has, and addresses on which nobody is.
    (MX3 | {("x.example", "MX"): [(1, ""), (2, "a\\010b.example"), (3, "-a.example"), (4, "x y.example"),
                                  (5, "b.example")]}, ["b.example 192.0.2.2 25"]),
    (MX3 | {("a.example", "A"): ["224.0.0.1", "255.255.255.255"], ("a.example", "AAAA"): ["ff02::1"]},
     ["b.example 192.0.2.2 25", "c.example 192.0.2.3 25"]),
])
def test_places_come_best_first(table: dict[tuple[str, str], Any], expected: list[str]) -> None:
    assert shown(find(table)) == expected


@pytest.mark.parametrize(("table", "domain", "status"), [
    ({}, "x.example", "5.1.2"),
    ({("x.example", "MX"): [(0, "")]}, "x.example", "5.1.10"),
    ({("x.example", "MX"): [(0, "")], ("x.example", "A"): ["192.0.2.1"]}, "x.example", "5.1.10"),
    ({("x.example", "MX"): "SERVFAIL"}, "x.example", "4.4.3"),
    ({("x.example", "TXT"): []}, "x.example", "5.4.4"),
    ({("x.example", "A"): "SERVFAIL"}, "x.example", "4.4.3"),
    ({("x.example", "MX"): [(10, "gone.example")]}, "x.example", "5.4.4"),
    ({("x.example", "MX"): [(10, "gone.example"), (20, "b.example")], ("b.example", "A"): "timeout"},
     "x.example", "4.4.3"),
    ({("x.example", "MX"): [(10, "a.example")], ("a.example", "A"): ["127.0.0.1"]}, "x.example", "5.4.6"),
    ({("x.example", "MX"): [(10, "a.example")], ("a.example", "A"): ["0.0.0.0"]}, "x.example", "5.4.6"),
    ({("x.example", "MX"): [(10, "a.example")], ("a.example", "AAAA"): ["::ffff:127.0.0.1"]}, "x.example", "5.4.6"),
    ({("x.example", "MX"): [(10, "us.example")]}, "x.example", "5.4.6"),
    ({("x.example", "MX"): [(10, "us.example"), (5, "a.example")], ("a.example", "A"): "SERVFAIL"},
     "x.example", "4.4.3"),
    ({("x.example", "A"): ["198.51.100.1"]}, "x.example", "5.4.6"),
    ({}, "x_y..example", "5.1.2"),
    ({}, "[192.0.2.300]", "5.1.2"),
    ({}, "[127.0.0.1]", "5.4.6"),
    ({}, "[IPv6:::1]", "5.4.6"),
    ({}, "[224.0.0.1]", "5.4.4"),
    ({}, "\u00e4" * 300 + ".example", "5.1.2"),
])
def test_no_place_has_a_reason(table: dict[tuple[str, str], Any], domain: str, status: str) -> None:
    found = find(table, domain)
    assert isinstance(found, Outcome)
    assert found.status == status


@pytest.mark.parametrize(("domain", "expected"), [
    ("[192.0.2.1]", "[192.0.2.1] 192.0.2.1 25"), ("[IPv6:2001:db8:a::1]", "[IPv6:2001:db8:a::1] 2001:db8:a::1 25"),
    ("[ipv6:2001:db8:a::1]", "[ipv6:2001:db8:a::1] 2001:db8:a::1 25")])
def test_an_address_literal_is_its_address(domain: str, expected: str) -> None:
    assert shown(find({}, domain)) == [expected]


def test_a_domain_beyond_ascii_is_looked_up_in_its_ascii_form() -> None:
    table = {("xn--bcher-kva.example", "MX"): [(1, "a.example")], ("a.example", "A"): ["192.0.2.1"]}
    assert shown(find(table, "b\u00fccher.example")) == ["a.example 192.0.2.1 25"]


def test_equals_are_tried_in_random_order() -> None:
    table: dict[tuple[str, str], Any] = {("x.example", "MX"): [(10, "a.example"), (10, "b.example"), (5, "c.example")]}
    table |= {(f"{name}.example", "A"): [f"192.0.2.{n}"] for n, name in enumerate("abc", 1)}
    assert [one.split()[0] for one in shown(find(table))] == ["c.example", "a.example", "b.example"]
    assert [one.split()[0] for one in shown(find(table, shuffle=lambda names: names.reverse()))] == [
        "c.example", "b.example", "a.example"]


def test_a_hundred_hosts_are_too_many_to_look_at() -> None:
    asked = []

    async def lookup(name: str, kind: Kind) -> Answer:
        asked.append((name, kind))
        if kind is Kind.MX:
            return Answer(State.FOUND, tuple((10, f"mx{n}.example") for n in range(100)))
        return Answer(State.FOUND, ((0, f"192.0.2.{name[2:-8]}"),)) if kind is Kind.A else Answer(State.NO_DATA)
    here = Surroundings("us.example", lambda _: False, lambda names: None)
    found = asyncio.run(hosts.find("x.example", (), lookup, here))
    assert len(shown(found)) == hosts.MAX_PLACES
    assert len(asked) <= 1 + 2 * hosts.MAX_NAMES


@pytest.mark.parametrize(("table", "expected"), [
    (MX3, ["a.example 192.0.2.1 25", "b.example 192.0.2.2 25", "c.example 192.0.2.3 25"]),
    ({("x.example", "AAAA"): ["2001:db8:a::9"]}, "4.4.4"),
])
def test_without_ipv6(table: dict[tuple[str, str], Any], expected: Any) -> None:
    found = find(table, ipv6=False)
    assert (found.status if isinstance(found, Outcome) else shown(found)) == expected


@pytest.mark.parametrize(("named", "expected"), [
    ("mail.isp.example", ["mail.isp.example 192.0.2.8 25"]),
    ("mail.isp.example:587", ["mail.isp.example 192.0.2.8 587"]),
    ("[192.0.2.5]:2525", ["192.0.2.5 192.0.2.5 2525"]),
    ("[2001:db8:a::5]", ["2001:db8:a::5 2001:db8:a::5 25"]),
    ("localhost:1025", ["localhost 127.0.0.1 1025", "localhost ::1 1025"]),
    ("smart", ["smart 192.0.2.7 25"]),  # by the search list
    ("lmtp:mail.isp.example", ["mail.isp.example 192.0.2.8 24"]),
    ("lmtp:unix:/run/dovecot/lmtp", ["us.example /run/dovecot/lmtp 0"]),
    ("x.example", ["x.example 192.0.2.6 25"]),  # the MX of a host that the settings name does not count
    ("gone.example", "4.4.3"), ("broken.example", "4.4.3"), ("127.0.0.1:99999", "4.3.5"), ("a b", "4.3.5"),
])
def test_hosts_of_the_settings(named: str, expected: Any) -> None:
    table: dict[tuple[str, str], Any] = {
        ("mail.isp.example", "A"): ["192.0.2.8"], ("smart.lan.example", "A"): ["192.0.2.7"],
        ("x.example", "MX"): [(10, "a.example")], ("x.example", "A"): ["192.0.2.6"],
        ("broken.example", "A"): "SERVFAIL"}
    found = find(table, named=(named,), search=lambda: ("none.example", "lan.example"))
    assert (found.status if isinstance(found, Outcome) else shown(found)) == expected


def test_several_hosts_keep_their_order_and_one_without_address_is_passed_over() -> None:
    table: dict[tuple[str, str], Any] = {("b.example", "A"): ["192.0.2.2"], ("a.example", "A"): ["192.0.2.1"]}
    found = find(table, named=("gone.example:25", "b.example:587", "a.example"))
    assert shown(found) == ["b.example 192.0.2.2 587", "a.example 192.0.2.1 25"]


def test_etc_hosts_counts_for_hosts_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"127.0.0.1 localhost\n192.0.2.4 Relay.lan relay # ours\n#192.0.2.5 relay\n2001:db8:a::4\trelay\n"
                     b"\xff x\nbad relay\n")
    assert shown(find({}, named=("relay:26",), hosts_file=str(file))) == [
        "relay 192.0.2.4 26", "relay 2001:db8:a::4 26"]



def test_places_know_how_their_connection_begins() -> None:
    assert Place("a.example", "192.0.2.1", 465).is_encrypted
    assert not Place("a.example", "192.0.2.1", 587).is_encrypted
    assert not Place("a.example", "192.0.2.1", 465, is_lmtp=True).is_encrypted
    assert Place("[192.0.2.1]", "192.0.2.1", 25).server_name == "192.0.2.1"
    assert str(Place("a.example", "192.0.2.1", 25)) == "a.example [192.0.2.1]"
