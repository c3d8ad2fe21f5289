"""What DNS says about clients and senders, with DNS as a table."""

import asyncio
from dataclasses import dataclass, field

import pytest

from pysendmail.daemon import standing
from pysendmail.daemon.policy import Standing
from pysendmail.daemon.standing import Standings
from pysendmail.net.resolver import Answer, Kind, State

TROUBLE = Answer(State.TROUBLE, words="no answer")
NO_NAME = Answer(State.NO_NAME)
NO_DATA = Answer(State.NO_DATA)
CLIENT = "192.0.2.7"
POINTER = "7.2.0.192.in-addr.arpa"


def found(*values: str, preference: int = 0) -> Answer:
    return Answer(State.FOUND, tuple((preference, value) for value in values))


@dataclass
class Dns:
    """What is not in the table does not exist. slow: names whose answer never comes."""

    table: dict[tuple[str, Kind], Answer]
    slow: tuple[str, ...] = ()
    asked: list[tuple[str, Kind]] = field(default_factory=list)

    async def lookup(self, name: str, kind: Kind) -> Answer:
        self.asked.append((name, kind))
        if name.endswith(self.slow) and self.slow:
            await asyncio.Event().wait()
        return self.table.get((name, kind), NO_NAME)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def stand(dns: Dns, address: str = CLIENT, zones: tuple[str, ...] = ()) -> Standing:
    return asyncio.run(Standings(dns.lookup, zones, Clock()).find(address))


# ---- names


@pytest.mark.parametrize(("table", "name"), [
    ({(POINTER, Kind.PTR): found("Mail.Example.org"), ("Mail.Example.org", Kind.A): found(CLIENT)}, "mail.example.org"),
    ({(POINTER, Kind.PTR): found("evil.example", "mail.example.org"), ("evil.example", Kind.A): found("192.0.2.1"),
      ("mail.example.org", Kind.A): found("192.0.2.1", CLIENT)}, "mail.example.org"),
    ({(POINTER, Kind.PTR): found("bank.example"), ("bank.example", Kind.A): found("192.0.2.1")}, ""),
    ({(POINTER, Kind.PTR): found("bank.example")}, ""),
    ({(POINTER, Kind.PTR): TROUBLE}, ""),
    ({(POINTER, Kind.PTR): found("a b.example], relay=[192.0.2.9"), ("a b.example], relay=[192.0.2.9", Kind.A): found(
        CLIENT)}, ""),
    ({}, ""),
])
def test_a_name_counts_if_it_has_the_address(table: dict[tuple[str, Kind], Answer], name: str) -> None:
    assert stand(Dns(table)).name == name


def test_names_of_ipv6_clients() -> None:
    address = "2001:db8::7"
    pointer = "7." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa"
    dns = Dns({(pointer, Kind.PTR): found("six.example"), ("six.example", Kind.AAAA): found("2001:DB8:0::7")})
    assert stand(dns, address).name == "six.example"


def test_a_client_with_a_thousand_names_is_not_asked_about_all() -> None:
    dns = Dns({(POINTER, Kind.PTR): found(*(f"n{n}.example" for n in range(1000)))})
    assert stand(dns).name == ""
    assert len(dns.asked) == 1 + standing.MAX_NAMES


# ---- block lists


def listing(answer: Answer, zone: str = "bl.example") -> dict[tuple[str, Kind], Answer]:
    return {(f"7.2.0.192.{zone}", Kind.A): answer}


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if documentation addresses were public ones."""
    monkeypatch.setattr(standing, "ip_address", lambda text: _Public(text))


class _Public:
    def __init__(self, text: str) -> None:
        from ipaddress import ip_address

        self._address = ip_address(text)
        self.is_private = False
        self.reverse_pointer = self._address.reverse_pointer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Public) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize(("answer", "is_listed"), [
    (found("127.0.0.2"), True), (found("127.0.1.11", "127.0.0.9"), True), (NO_NAME, False), (NO_DATA, False),
    (TROUBLE, False), (found("192.0.2.1"), False), (found("127.255.255.254"), False), (found("nonsense"), False),
])
def test_a_list_names_a_client(answer: Answer, is_listed: bool) -> None:
    assert stand(Dns(listing(answer)), zones=("bl.example",)).listed == (("bl.example",) if is_listed else ())


@pytest.mark.usefixtures("public")
def test_a_list_that_does_not_answer_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "LIMIT", 0.05)
    dns = Dns(listing(found("127.0.0.2"), "good.example"), slow=("dead.example",))
    assert stand(dns, zones=("dead.example", "good.example")).listed == ("good.example",)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "fd00::1", "fe80::1%eth0"])
def test_private_addresses_are_on_no_list(address: str) -> None:
    dns = Dns({})
    assert stand(dns, address, zones=("bl.example",)).listed == ()
    assert not any("bl.example" in name for name, _ in dns.asked)


# ---- memory


def test_a_client_that_comes_again_is_known_for_a_while() -> None:
    dns, clock = Dns({}), Clock()
    standings = Standings(dns.lookup, (), clock)
    assert standings.known(CLIENT) is None
    asyncio.run(standings.find(CLIENT))
    assert standings.known(CLIENT) == Standing()
    clock.now += standing.KEEP
    assert standings.known(CLIENT) is None


def test_what_was_not_all_heard_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "LIMIT", 0.05)
    standings = Standings(Dns({}, slow=("arpa",)).lookup, (), Clock())
    assert asyncio.run(standings.find(CLIENT)) == Standing()
    assert standings.known(CLIENT) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MAX_KEPT", 3)
    standings = Standings(Dns({}).lookup, (), Clock())
    for n in range(10):
        asyncio.run(standings.find(f"192.0.2.{n}"))
    assert [n for n in range(10) if standings.known(f"192.0.2.{n}")] == [7, 8, 9]


# ---- senders


@pytest.mark.parametrize(("table", "answer"), [
    ({("x.example", Kind.MX): found("mx.x.example", preference=10)}, ""),
    ({("x.example", Kind.MX): found("")}, "550 5.7.27"),
    ({}, "553 5.1.8"),
    ({("x.example", Kind.MX): NO_DATA, ("x.example", Kind.A): found("192.0.2.1")}, ""),
    ({("x.example", Kind.MX): NO_DATA, ("x.example", Kind.A): NO_DATA, ("x.example", Kind.AAAA): found("::2")}, ""),
    ({("x.example", Kind.MX): NO_DATA, ("x.example", Kind.A): NO_DATA, ("x.example", Kind.AAAA): NO_DATA}, "553 5.1.8"),
    ({("x.example", Kind.MX): NO_DATA, ("x.example", Kind.A): NO_DATA, ("x.example", Kind.AAAA): TROUBLE}, "451 4.1.8"),
    ({("x.example", Kind.MX): TROUBLE}, "451 4.1.8"),
])
def test_the_domain_of_a_sender(table: dict[tuple[str, Kind], Answer], answer: str) -> None:
    refusal = asyncio.run(Standings(Dns(table).lookup, (), Clock()).sender("x.example"))
    assert (refusal.reply.words[:len(answer)] if refusal else "") == answer
    assert (refusal is None) == (answer == "")


def test_a_sender_beyond_ascii_is_looked_up_as_dns_has_it() -> None:
    dns = Dns({("xn--bcher-kva.example", Kind.MX): found("mx", preference=1)})
    assert asyncio.run(Standings(dns.lookup, (), Clock()).sender("bücher.example")) is None


@pytest.mark.parametrize("domain", ["[192.0.2.1]", "[IPv6:::1]"])
def test_an_address_literal_is_not_looked_up(domain: str) -> None:
    dns = Dns({})
    assert asyncio.run(Standings(dns.lookup, (), Clock()).sender(domain)) is None
    assert dns.asked == []


def test_a_sender_that_dns_is_silent_about_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "SENDER_LIMIT", 0.05)
    refusal = asyncio.run(Standings(Dns({}, slow=("x.example",)).lookup, (), Clock()).sender("x.example"))
    assert refusal is not None
    assert refusal.reply.code == 451


