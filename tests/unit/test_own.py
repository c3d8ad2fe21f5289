"""Which addresses are this host, for routes and for address literals."""

import pytest

from pysendmail.config import Config, Listener
from pysendmail.route import own
from pysendmail.route.router import Router


@pytest.mark.parametrize(("listening", "address", "expected"), [
    ([], "127.0.0.1", True), ([], "::1", True), ([], "127.9.9.9", True), ([], "0.0.0.0", True), ([], "::", True),
    ([], "::ffff:127.0.0.1", True), ([], "192.0.2.1", False), (["192.0.2.1"], "192.0.2.1", True),
    (["127.0.0.1", "::1"], "192.0.2.1", False),
    (["0.0.0.0"], "192.0.2.1", False),  # not an address of this host
    (["::"], "2001:db8:a::1", False), ([""], "192.0.2.1", False),
])
def test_whose_address_it_is(listening: list[str], address: str, expected: bool) -> None:
    assert own.own_addresses(listening)(address) is expected


def test_a_listener_has_an_address_or_none() -> None:
    found = [own.endpoint_address(one) for one in ("127.0.0.1:25", "[::1]:25", "unix:/run/x")]
    assert found == ["127.0.0.1", "::1", ""]


def test_who_listens_everywhere_is_at_every_address_of_its_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "is_loopback", lambda address: False)  # the only addresses that every host has
    assert own.own_addresses(["0.0.0.0"])("127.0.0.1")
    assert not own.own_addresses(["0.0.0.0"])("192.0.2.1")
    assert not own.own_addresses(["127.0.0.2"])("127.0.0.1")


def test_a_literal_of_an_interface_is_local_where_mail_is_taken_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_is_bindable", lambda address: address == "192.0.2.1")
    everywhere, loopback = (Router(Config(hostname="h.example", listeners=(Listener(address=one),)))
                            for one in ("0.0.0.0:25", "127.0.0.1:25"))
    assert everywhere.is_local("[192.0.2.1]")
    assert not everywhere.is_local("[192.0.2.2]")
    assert not loopback.is_local("[192.0.2.1]")
    assert loopback.is_local("[127.0.0.1]")
