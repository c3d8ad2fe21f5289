"""The resolver against a DNS server on loopback: what is knowledge, what is trouble, and what is asked how often."""

import asyncio
import os
from pathlib import Path

import pytest

from pysendmail.net import resolver
from pysendmail.net.resolver import Answer, Kind, Resolver, State, read_conf
from tests.tools.fakedns import FakeDns, Table


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(table: Table, *questions: tuple[str, Kind], lifetime: float = 5.0,
        **server: bool) -> tuple[list[Answer], FakeDns]:
    async def scenario() -> tuple[list[Answer], FakeDns]:
        async with FakeDns(table, **server) as dns:
            asking = Resolver(Clock(), conf="/nonexistent", port=dns.port, lifetime=lifetime)
            return [await asking.lookup(*question) for question in questions], dns
    return asyncio.run(scenario())


MANY = [f"10 mx{n}.example.net." for n in range(150)]
CHAIN = {(f"a{n}.example", "CNAME"): [f"a{n + 1}.example."] for n in range(30)} | {("a30.example", "A"): ["192.0.2.1"]}


@pytest.mark.parametrize(("table", "question", "state", "records"), [
    ({("x.example", "MX"): ["20 b.example.", "10 A.example."]}, ("x.example", Kind.MX), State.FOUND,
     ((20, "b.example"), (10, "A.example"))),
    ({("x.example", "MX"): ["0 ."]}, ("x.example", Kind.MX), State.FOUND, ((0, ""),)),
    ({("x.example", "A"): ["192.0.2.1", "192.0.2.2"]}, ("X.EXAMPLE.", Kind.A), State.FOUND,
     ((0, "192.0.2.1"), (0, "192.0.2.2"))),
    ({("x.example", "AAAA"): ["2001:db8::1"]}, ("x.example", Kind.AAAA), State.FOUND, ((0, "2001:db8::1"),)),
    ({("x.example", "A"): ["192.0.2.1"]}, ("x.example", Kind.MX), State.NO_DATA, ()),
    ({}, ("x.example", Kind.MX), State.NO_NAME, ()),
    ({("x.example", "MX"): "SERVFAIL"}, ("x.example", Kind.MX), State.TROUBLE, ()),
    ({("x.example", "MX"): "REFUSED"}, ("x.example", Kind.MX), State.TROUBLE, ()),
    ({("x.example", "MX"): "FORMERR"}, ("x.example", Kind.MX), State.TROUBLE, ()),
    ({("x.example", "MX"): "referral"}, ("x.example", Kind.MX), State.TROUBLE, ()),
    ({("x.example", "CNAME"): ["y.example."], ("y.example", "MX"): ["5 m.example."]}, ("x.example", Kind.MX),
     State.FOUND, ((5, "m.example"),)),
    ({("x.example", "CNAME"): ["y.example."]}, ("x.example", Kind.A), State.NO_NAME, ()),
    ({("x.example", "CNAME"): ["x.example."]}, ("x.example", Kind.A), State.TROUBLE, ()),
    ({("x.example", "MX"): ["garbage", "5 m.example."]}, ("x.example", Kind.MX), State.FOUND, ((5, "m.example"),)),
    ({("x.example", "A"): ["forged", "192.0.2.7"]}, ("x.example", Kind.A), State.FOUND, ((0, "192.0.2.7"),)),
    ({("x.example", "MX"): ["truncated", *MANY]}, ("x.example", Kind.MX), State.FOUND,
     tuple((10, f"mx{n}.example.net") for n in range(150))),
    (CHAIN, ("a25.example", Kind.A), State.FOUND, ((0, "192.0.2.1"),)),
    (CHAIN, ("a0.example", Kind.A), State.TROUBLE, ()),
])
def test_an_answer_is_knowledge_or_trouble(table: Table, question: tuple[str, Kind], state: State,
                                           records: tuple[tuple[int, str], ...]) -> None:
    (answer,), _ = ask(table, question)
    assert answer.state is state
    assert sorted(answer.records) == sorted(records)
    assert bool(answer.words) == (state is State.TROUBLE)


def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    _, dns = ask({("x.example", "MX"): ["truncated", "5 m.example."]}, ("x.example", Kind.MX))
    assert dns.asked == [("x.example", "MX", "udp"), ("x.example", "MX", "tcp")]


def test_a_server_without_edns_is_asked_without_it() -> None:
    (answer,), dns = ask({("x.example", "A"): ["192.0.2.1"]}, ("x.example", Kind.A), has_edns=False)
    assert answer.records == ((0, "192.0.2.1"),)
    assert len(dns.asked) == 2


def test_an_alias_that_the_server_does_not_follow_is_followed() -> None:
    table = {("x.example", "CNAME"): ["y.example."], ("y.example", "CNAME"): ["z.example."],
             ("z.example", "A"): ["192.0.2.1"]}
    (answer,), dns = ask(table, ("x.example", Kind.A), follows=False)
    assert answer.records == ((0, "192.0.2.1"),)
    assert [name for name, _, _ in dns.asked] == ["x.example", "y.example", "z.example"]


def test_aliases_in_a_circle_end_even_if_no_server_follows_them() -> None:
    table = {("x.example", "CNAME"): ["y.example."], ("y.example", "CNAME"): ["x.example."]}
    (answer,), dns = ask(table, ("x.example", Kind.A), follows=False)
    assert answer.state is State.TROUBLE
    assert len(dns.asked) < 20


@pytest.mark.parametrize("name", ["a..b", ".".join(["x" * 60] * 5), "x" * 64 + ".example", "\\", "a\\"])
def test_a_name_that_dns_cannot_hold_is_not_asked_for(name: str) -> None:
    (answer,), dns = ask({}, (name, Kind.A))
    assert answer.state is State.NO_NAME
    assert not dns.asked


def test_silence_is_trouble_once_the_time_is_up() -> None:
    (answer,), _ = ask({("x.example", "MX"): "silent"}, ("x.example", Kind.MX), lifetime=0.1)
    assert answer.state is State.TROUBLE
    assert "x.example" in answer.words


def test_no_server_is_trouble_at_once() -> None:
    async def scenario() -> Answer:
        async with FakeDns({}) as dns:
            port = dns.port
        return await Resolver(Clock(), conf="/nonexistent", port=port).lookup("x.example", Kind.A)
    answer = asyncio.run(scenario())
    assert answer.state is State.TROUBLE
    assert "Connection refused" in answer.words


def test_a_query_that_got_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolver, "read_conf", lambda _: resolver.Servers(timeout=0.05))
    (tmp_path / "conf").write_text("")

    async def scenario() -> None:
        async with FakeDns({("x.example", "A"): ["lost", "192.0.2.1"], ("y.example", "A"): "silent"}) as dns:
            asking = Resolver(Clock(), conf=str(tmp_path / "conf"), port=dns.port)
            assert (await asking.lookup("x.example", Kind.A)).records == ((0, "192.0.2.1"),)
            assert len(dns.asked) == 2
            answer = await asking.lookup("y.example", Kind.A)
            assert (answer.state, answer.words) == (
                State.TROUBLE, "no answer from DNS server 127.0.0.1 about y.example")
    asyncio.run(scenario())


def test_the_oldest_answers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_KEPT", 3)
    table = {(f"{name}.example", "A"): ["192.0.2.1"] for name in "abcde"}
    order = [(f"{name}.example", Kind.A) for name in "abcdea"]
    _, dns = ask(table, *order)
    assert [name[0] for name, _, _ in dns.asked] == list("abcdea")
    _, dns = ask(table, *order[:3], *order[:3])
    assert [name[0] for name, _, _ in dns.asked] == list("abc")


def test_answers_are_kept_for_their_time_and_troubles_are_not() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with FakeDns({("x.example", "A"): ["192.0.2.1"], ("y.example", "A"): "SERVFAIL"}) as dns:
            asking = Resolver(clock, conf="/nonexistent", port=dns.port)
            for _ in range(3):
                await asking.lookup("x.example", Kind.A)
            assert len(dns.asked) == 1
            clock.now += 299
            await asking.lookup("x.example.", Kind.A)
            assert len(dns.asked) == 1
            clock.now += 2
            await asking.lookup("x.example", Kind.A)
            assert len(dns.asked) == 2
            asking.forget()
            await asking.lookup("x.example", Kind.A)
            assert len(dns.asked) == 3
            assert (await asking.lookup("y.example", Kind.A)).state is State.TROUBLE
            dns.table["y.example", "A"] = ["192.0.2.2"]
            assert (await asking.lookup("y.example", Kind.A)).state is State.FOUND
    asyncio.run(scenario())


def test_the_same_question_is_asked_once_however_many_want_to_know() -> None:
    async def scenario() -> None:
        async with FakeDns({("x.example", "A"): ["192.0.2.1"]}) as dns:
            asking = Resolver(Clock(), conf="/nonexistent", port=dns.port)
            answers = await asyncio.gather(*(asking.lookup("x.example", Kind.A) for _ in range(20)))
            assert {answer.records for answer in answers} == {((0, "192.0.2.1"),)}
            assert len(dns.asked) == 1
    asyncio.run(scenario())


def test_one_who_no_longer_waits_does_not_take_the_answer_from_others() -> None:
    async def scenario() -> None:
        async with FakeDns({("x.example", "A"): ["192.0.2.1"]}) as dns:
            asking = Resolver(Clock(), conf="/nonexistent", port=dns.port)
            first = asyncio.ensure_future(asking.lookup("x.example", Kind.A))
            second = asyncio.ensure_future(asking.lookup("x.example", Kind.A))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).records == ((0, "192.0.2.1"),)
    asyncio.run(scenario())


def test_a_changed_resolv_conf_counts_from_the_next_question_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.9\noptions timeout:1 attempts:1\n")
        async with FakeDns({("x.example", "A"): ["192.0.2.1"]}) as dns:
            asking = Resolver(Clock(), conf=str(conf), port=dns.port)
            assert (await asking.lookup("x.example", Kind.A)).state is State.TROUBLE
            conf.write_text("search one.example two.example.\nnameserver 127.0.0.9\nnameserver 127.0.0.1\n")
            os.utime(conf, ns=(1, 1))
            assert (await asking.lookup("x.example", Kind.A)).state is State.FOUND
            assert asking.search == ("one.example", "two.example")
            conf.unlink()
            assert (await asking.lookup("x.example", Kind.A)).state is State.FOUND
    asyncio.run(scenario())


def test_the_server_that_answered_is_asked_first_the_next_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.9\nnameserver 127.0.0.1\noptions timeout:30\n")
        async with FakeDns({("x.example", "A"): ["192.0.2.1"], ("y.example", "A"): ["192.0.2.2"]}) as dns:
            asking = Resolver(Clock(), conf=str(conf), port=dns.port)
            await asking.lookup("x.example", Kind.A)
            assert asking._first == 1
            assert (await asking.lookup("y.example", Kind.A)).state is State.FOUND
    asyncio.run(scenario())


@pytest.mark.parametrize(("data", "addresses", "search", "timeout", "attempts"), [
    (b"", ("127.0.0.1",), (), 5.0, 2),
    (b"# nothing\n;nameserver 192.0.2.9\nnameserver\nnameserver x.example\n", ("127.0.0.1",), (), 5.0, 2),
    (b"nameserver 192.0.2.1\nnameserver\t2001:db8::1\nnameserver fe80::1%lo\nnameserver 192.0.2.4\n",
     ("192.0.2.1", "2001:db8::1", "fe80::1%lo"), (), 5.0, 2),
    (b"domain old.example\nsearch a.example b.example. .\n", ("127.0.0.1",), ("a.example", "b.example"), 5.0, 2),
    (b"options timeout:99 attempts:0 rotate timeout:x attempts:\n", ("127.0.0.1",), (), 30.0, 1),
    (b"options attempts:9 timeout:0\n", ("127.0.0.1",), (), 1.0, 5),
    (b"nameserver 192.0.2.1\xff\n\xff\n", ("127.0.0.1",), (), 5.0, 2),
])
def test_resolv_conf(data: bytes, addresses: tuple[str, ...], search: tuple[str, ...], timeout: float,
                     attempts: int) -> None:
    found = read_conf(data)
    assert (found.addresses, found.search, found.timeout, found.attempts) == (addresses, search, timeout, attempts)
