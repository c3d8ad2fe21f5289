"""Which names are this host, how addresses come apart, where mail for others goes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.config import Config, LocalSettings, RelaySettings
from pysendmail.route.router import Hop, Router, problem, split

CONFIG = Config(hostname="web1.example.org", domain="example.org",
                local_domains=("localhost", "web1.example.org", "localhost.localdomain", "web1", "example.org",
                               "lists.example"))


def router(**relay: object) -> Router:
    return Router(replace(CONFIG, relay=RelaySettings(**relay)))  # type: ignore[arg-type]


@pytest.mark.parametrize("domain", [
    "localhost", "LOCALHOST", "web1", "Web1.Example.ORG", "example.org", "example.org.", "lists.example",
    "localhost.localdomain", "[127.0.0.1]", "[127.1.2.3]", "[IPv6:::1]", "[ipv6:0:0:0:0:0:0:0:1]"])
def test_names_of_this_host_are_local(domain: str) -> None:
    assert router().is_local(domain)


@pytest.mark.parametrize("domain", [
    "", "org", "remote.test", "mail.example.org", "example.org.remote.test", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[",
    "[127.0.0.1", "[localhost]", "127.0.0.1", "example.org..", "web1.other.example", "\u212aexample.org"])
def test_other_names_are_not(domain: str) -> None:
    assert not router().is_local(domain)


@pytest.mark.parametrize(("address", "expected"), [
    ("alice", ("alice", "")), ("alice@example.org", ("alice", "example.org")), ("a@b@c", ("a@b", "c")),
    ("alice@", ("alice", "")), ("@example.org", ("", "example.org")), ("", ("", "")),
    ('"john doe"@example.org', ("john doe", "example.org")), ('"john doe"', ("john doe", "")),
    ('"a@b"@c', ("a@b", "c")), ('"a@b"', ("a@b", "")), ('"a\\"b\\\\"@c', ('a"b\\', "c")), ('"open@c', ("open@c", "")),
    ('"a"b@c', ("ab@c", "")), ("a%b@c", ("a%b", "c")), ("host!user", ("host!user", "")), ("a+b@c.", ("a+b", "c.")),
    ('""@c', ("", "c")), ('"\\', ("", "")), ("J\u00f6RG@B\u00fccher", ("J\u00f6RG", "B\u00fccher"))])
def test_split(address: str, expected: tuple[str, str]) -> None:
    assert split(address) == expected


@given(st.text(max_size=40) | st.text('"\\@ab', max_size=12))
def test_any_address_is_split_and_judged(address: str) -> None:
    local, domain = split(address)
    assert len(local) + len(domain) <= len(address)
    assert isinstance(problem(address), str)


@pytest.mark.parametrize("address", [
    "alice", "alice@example.org", '"john doe"@example.org', "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "a@example.org.",
    "a..b@example.org", ".a@example.org", "j\u00f6rg@b\u00fccher.example", "a@x_y.example", "-a@example.org",
    "x" * 512 + "@example.org", "postmaster"])
def test_addresses_without_a_problem(address: str) -> None:
    assert problem(address) == ""


@pytest.mark.parametrize(("address", "words"), [
    ("", "no local part"), ("@example.org", "no local part"), ('""@example.org', "no local part"),
    ("a@", "empty"), ("a@.", "empty"), ("a@a..b", "label"), ("a@-a.b", "label"), ("a@a-.b", "label"),
    ("a@" + "x" * 64 + ".b", "label"), ("a@" + "x.y" * 90, "too long"), ("a@b c", "character"), ("a@b/c", "character"),
    ("a@b\udcff", "character"), ("a@[b]", "literal"), ("a@[1.2.3.4", "literal"), ("a@[IPv6:1.2.3.4]", "literal"),
    ("a\nb@c", "control"), ("a@c\r\nRCPT TO:<x>", "control"), ("a\0", "control"), ("a\x7f", "control"),
    ("a\ud800@b", "is none"), ("a@\udc7f", "is none"),
    ("x" * 513 + "@example.org", "too long"), ("x" * 100_000, "too long")])
def test_addresses_with_one(address: str, words: str) -> None:
    assert words in problem(address)


@pytest.mark.parametrize(("address", "expected"), [
    ("alice", "alice@example.org"), ("alice@web1", "alice@web1"), ('"john doe"', '"john doe"@example.org'),
    ("a%b", "a%b@example.org"), ("host!user", "host!user@example.org"), ('"a@b"', '"a@b"@example.org')])
def test_what_completes_a_bare_address(address: str, expected: str) -> None:
    assert router().qualify(address) == expected


def test_local_users_are_not_named_after_a_mail_name_that_is_another_host() -> None:
    """A null client: /etc/mailname is the company's domain, whose mail is elsewhere."""
    null_client = Router(replace(CONFIG, local_domains=("localhost", "web1.example.org")))
    assert not null_client.is_local("example.org")
    assert null_client.qualify("alice") == "alice@example.org"
    assert null_client.local_name == "web1.example.org"
    assert router().local_name == "example.org"


def test_without_any_name_the_host_is_localhost() -> None:
    nameless = Router(Config())
    assert nameless.qualify("root") == "root@localhost"
    assert nameless.is_local("localhost")
    assert not nameless.is_local("")


@pytest.mark.parametrize(("delimiters", "local", "expected"), [
    ("+", "alice", ("alice", "", "")), ("+", "alice+tag", ("alice", "+", "tag")),
    ("+", "alice+a+b", ("alice", "+", "a+b")), ("+", "alice+", ("alice", "+", "")),
    ("+", "+tag", ("+tag", "", "")), ("", "alice+tag", ("alice+tag", "", "")),
    ("-", "www-data", ("www", "-", "data")), ("-+", "a+b-c", ("a", "+", "b-c")), ("+-", "a-b+c", ("a", "-", "b+c")),
    ("-", "owner-team", ("owner-team", "", "")), ("-", "Owner-Team", ("Owner-Team", "", "")),
    ("-", "team-request", ("team-request", "", "")), ("-", "MAILER-DAEMON", ("MAILER-DAEMON", "", ""))])
def test_detail(delimiters: str, local: str, expected: tuple[str, str, str]) -> None:
    config = replace(CONFIG, local=LocalSettings(recipient_delimiter=delimiters))
    assert Router(config).detail(local) == expected


def test_all_names_of_the_host_mean_the_same_place() -> None:
    names = router().same_as("example.org")
    assert names == {"localhost", "localhost.localdomain", "web1", "web1.example.org", "example.org"}
    assert router().same_as("") == router().same_as("WEB1.") == router().same_as("[127.0.0.1]") == names
    assert router().same_as("Lists.Example") == {"lists.example"}


@pytest.mark.parametrize(("relay", "address", "expected"), [
    ({}, "x@Remote.TEST.", Hop("remote.test")),
    ({"smarthost": ("relay.test:587", "[192.0.2.1]:25")}, "x@remote.test",
     Hop("remote.test", ("relay.test:587", "[192.0.2.1]:25"))),
    ({"transport": (("remote.test", "mx.test:25"),)}, "x@remote.test", Hop("remote.test", ("mx.test:25",))),
    ({"transport": (("remote.test", "mx.test:25"),)}, "x@sub.remote.test", Hop("sub.remote.test")),
    ({"transport": ((".remote.test", "mx.test:25"),)}, "x@a.sub.remote.test",
     Hop("a.sub.remote.test", ("mx.test:25",))),
    ({"transport": ((".remote.test", "mx.test:25"),)}, "x@remote.test", Hop("remote.test")),
    ({"transport": ((".test", "far:25"), (".remote.test", "near:25"))}, "x@a.remote.test",
     Hop("a.remote.test", ("near:25",))),
    ({"transport": (("x@remote.test", "lmtp:unix:/run/x"),)}, "X@remote.test",
     Hop("remote.test", ("lmtp:unix:/run/x",))),
    ({"transport": (("x@remote.test", "one:25"), ("remote.test", "two:25"))}, "y@remote.test",
     Hop("remote.test", ("two:25",))),
    ({"transport": (("*", "mx.test:25"),)}, "x@remote.test", Hop("remote.test", ("mx.test:25",))),
    ({"transport": (("remote.test", "mx"),), "smarthost": ("relay.test:25",)}, "x@remote.test", Hop("remote.test")),
    ({"transport": (("other.test", "mx"),), "smarthost": ("relay.test:25",)}, "x@remote.test",
     Hop("remote.test", ("relay.test:25",))),
    ({"transport": (("remote.test", "mx.test:25"),)}, '"x@other.test"@remote.test',
     Hop("remote.test", ("mx.test:25",)))])
def test_hops(relay: dict[str, object], address: str, expected: Hop) -> None:
    assert router(**relay).hop(address) == expected


def test_deliveries_are_counted_by_where_they_really_go() -> None:
    assert Hop("remote.test").destination == "remote.test"
    for domain in ("remote.test", "other.test"):
        assert Hop(domain, ("a:25", "b:25")).destination == "a:25,b:25"
