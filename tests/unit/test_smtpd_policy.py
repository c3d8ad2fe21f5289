"""What a listener lets its clients do: closed to strangers but for mail to this host, open to those who may relay."""

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pysendmail.auth import Authenticator
from pysendmail.config import Config
from pysendmail.daemon import policy as module
from pysendmail.daemon.policy import Client, Opinion, Policy, Refusal, plain_address
from pysendmail.route.aliases import Aliases
from pysendmail.route.router import Router
from pysendmail.users import LookupTrouble, User

ALIASES = """\
postmaster: root
team: alice, bob
moved: error:550 5.1.6 has moved
later: :defer: come back
broken: "not closed
shout: "|/bin/cat"
list+*: alice
"""


class Users:
    """is_down: no answer about anybody. asked: names."""

    def __init__(self) -> None:
        self.is_down = False
        self.asked: list[str] = []

    def lookup(self, name: str) -> User | None:
        self.asked.append(name)
        if self.is_down:
            raise LookupTrouble(5, "down")
        known = name.lower() in ("root", "alice", "bob", "_pysendmail")
        return User(name.lower(), 1, 1, "/", "/bin/sh") if known else None

    def by_uid(self, uid: int) -> User | None:
        return None


class Logins:
    mechanisms = ("PLAIN",)

    def may_send(self, user: str, sender: str) -> bool:
        return sender == f"{user}@here.example"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def users() -> Users:
    return Users()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def usual() -> Config:
    found = Config(hostname="mx.here.example", domain="here.example", local_domains=("here.example",))
    return replace(found, smtpd=replace(found.smtpd, relay_from=("127.0.0.0/8", "::1/128", "198.51.100.0/24"),
                                        proxies=("203.0.113.9/32",)),
                   relay=replace(found.relay, domains=("backup.example",)))


@pytest.fixture
def policy(usual: Config, users: Users, clock: Clock, tmp_path: Path) -> Iterator[Policy]:
    made = make(usual, users, clock, tmp_path)
    yield made
    made.close()


def make(config: Config, users: Users, clock: Clock, tmp_path: Path, logins: Authenticator | None = None) -> Policy:
    (tmp_path / "aliases").write_text(ALIASES)
    router = Router(config)
    return Policy(config, router, Aliases([str(tmp_path / "aliases")], router.is_local), users, logins, clock,
                  lambda line: None)


STRANGER, NEIGHBOUR, HERE = "192.0.2.1", "198.51.100.7", "127.0.0.1"


def answer(opinion: Opinion) -> str:
    """"" for yes, else code and status."""
    async def wait(waiting: Awaitable[Refusal | None]) -> Refusal | None:
        return await waiting

    found = opinion if opinion is None or isinstance(opinion, Refusal) else asyncio.run(wait(opinion))
    return f"{found.reply.code} {found.reply.status}" if found else ""


# ---- clients


@pytest.mark.parametrize(("address", "is_local", "may_relay", "literal"), [
    ("127.0.0.1", True, True, "[127.0.0.1]"),
    ("::1", True, True, "[IPv6:::1]"),
    ("::ffff:127.0.0.1", True, True, "[127.0.0.1]"),
    ("198.51.100.7", False, True, "[198.51.100.7]"),
    ("::ffff:198.51.100.7", False, True, "[198.51.100.7]"),
    ("192.0.2.1", False, False, "[192.0.2.1]"),
    ("2001:db8::1", False, False, "[IPv6:2001:db8::1]"),
    ("fe80::1%eth0", False, False, "[IPv6:fe80::1%eth0]"),
    ("", True, True, ""),
])
def test_who_a_client_is(policy: Policy, address: str, is_local: bool, may_relay: bool, literal: str) -> None:
    client = policy.client(address, 40000)
    assert (client.is_local, client.may_relay, client.literal) == (is_local, may_relay, literal)
    assert client.is_stranger is not (is_local or may_relay)
    assert bool(client.key) is client.is_stranger
    assert client.as_seen.is_trusted is not client.is_stranger


@pytest.mark.parametrize(("client", "shown"), [
    (Client("192.0.2.1", name="mail.example"), "mail.example [192.0.2.1]"),
    (Client("192.0.2.1"), "[192.0.2.1]"),
    (Client("::1", is_local=True), "localhost [IPv6:::1]"),
    (Client("", is_local=True), "localhost"),
])
def test_how_the_log_calls_a_client(client: Client, shown: str) -> None:
    assert client.shown == shown


def test_plain_addresses() -> None:
    assert [plain_address(one) for one in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "fe80::1%lo")] == [
        "192.0.2.1", "192.0.2.1", "2001:db8::1", "fe80::1%lo"]


def test_a_listed_proxy_says_who_its_client_is(policy: Policy) -> None:
    proxy = policy.client("203.0.113.9", 1)
    assert policy.is_proxy(proxy)
    assert not policy.is_proxy(policy.client("203.0.113.8", 1))
    assert not policy.is_proxy(policy.client("", 0))
    told = policy.proxied(proxy, "IPV6:2001:db8::5", "1234")
    assert told is not None
    assert (told.address, told.port, told.is_stranger) == ("2001:db8::5", 1234, True)
    assert policy.proxied(proxy, "") is proxy
    assert policy.proxied(proxy, "nonsense") is None
    assert [getattr(policy.proxied(proxy, "192.0.2.5", port), "port", None) for port in ("65535", "65536", "-1")] == [
        65535, 0, 0]


def test_those_who_judge_mail_hear_an_address_that_they_can_read(policy: Policy) -> None:
    assert policy.client("fe80::5%eth0", 1).as_seen.address == "fe80::5"


# ---- senders


@pytest.mark.parametrize(("client", "sender", "expected"), [
    (STRANGER, "", ""), (STRANGER, "a@else.example", ""), (STRANGER, "root", "553 5.5.4"),
    (STRANGER, "boss@here.example", "550 5.7.1"), (STRANGER, "boss@HERE.example.", "550 5.7.1"),
    (STRANGER, "boss@mx.here.example", "550 5.7.1"), (STRANGER, "boss@localhost", "550 5.7.1"),
    (STRANGER, "boss@[127.0.0.1]", "550 5.7.1"), (STRANGER, "a@sub.here.example", ""),
    (STRANGER, "a@backup.example", ""),
    (NEIGHBOUR, "boss@here.example", ""), (NEIGHBOUR, "root", ""), (HERE, "root", ""), (HERE, "x@anything", ""),
])
def test_senders(usual: Config, users: Users, clock: Clock, tmp_path: Path, client: str, sender: str,
                 expected: str) -> None:
    policy = make(replace(usual, smtpd=replace(usual.smtpd, protect_local_senders=True)), users, clock, tmp_path)
    assert answer(policy.sender(policy.client(client, 1), "", sender)) == expected


def test_senders_of_this_host_come_back_by_forwarders_and_lists(policy: Policy) -> None:
    assert policy.sender(policy.client(STRANGER, 1), "", "boss@here.example") is None


def test_a_login_sends_as_it_may(usual: Config, users: Users, clock: Clock, tmp_path: Path) -> None:
    policy = make(usual, users, clock, tmp_path, Logins())  # type: ignore[arg-type]
    client = policy.client(STRANGER, 1)
    assert policy.sender(client, "alice", "alice@here.example") is None
    assert answer(policy.sender(client, "alice", "bob@here.example")) == "553 5.7.1"


@pytest.mark.parametrize(("sender", "qualified"), [("", ""), ("root", "root@here.example"), ("a@b", "a@b")])
def test_senders_get_a_domain(policy: Policy, sender: str, qualified: str) -> None:
    assert policy.qualified_sender(sender) == qualified


# ---- recipients

LOCAL = [
    ("alice@here.example", ""), ("ALICE@Here.Example", ""), ("alice+detail@here.example", ""), ("alice@localhost", ""),
    ("alice@[127.0.0.1]", ""), ("team@here.example", ""), ("list+any@here.example", ""), ("shout@here.example", ""),
    ("postmaster@here.example", ""), ("Postmaster@mx.here.example", ""), ("mailer-daemon@here.example", ""),
    ("_pysendmail@here.example", ""),
    ("nobody@here.example", "550 5.1.1"), ("nobody+alice@here.example", "550 5.1.1"),
    ("a%b.example@here.example", "550 5.1.1"), ("b.example!a@here.example", "550 5.1.1"),
    ('"|/bin/sh"@here.example', "550 5.1.1"), ('"/etc/passwd"@here.example', "550 5.1.1"),
    ('":include:/etc/passwd"@here.example', "550 5.1.1"),
    ('"../alice"@here.example', "550 5.1.1"), ('""@here.example', "550 5.1.3"),
    ("moved@here.example", "550 5.1.6"), ("later@here.example", "451 4.2.1"), ("broken@here.example", "451 4.3.5"),
]


@pytest.mark.parametrize("client", [STRANGER, NEIGHBOUR, HERE])
@pytest.mark.parametrize(("recipient", "expected"), LOCAL)
def test_local_recipients_are_those_that_there_are(policy: Policy, client: str, recipient: str, expected: str) -> None:
    assert answer(policy.recipient(policy.client(client, 1), "", recipient)) == expected


@pytest.mark.parametrize(("client", "login", "recipient", "expected"), [
    (STRANGER, "", "a@else.example", "550 5.7.1"), (STRANGER, "", "a@sub.here.example", "550 5.7.1"),
    (STRANGER, "", "a@backup.example", ""), (STRANGER, "", "a@[192.0.2.1]", "550 5.7.1"),
    (STRANGER, "", "a@sub.backup.example", "550 5.7.1"), (STRANGER, "", "a%else.example@backup.example", ""),
    (STRANGER, "alice", "a@else.example", ""), (NEIGHBOUR, "", "a@else.example", ""), (HERE, "", "a@else.example", ""),
])
def test_relaying(policy: Policy, client: str, login: str, recipient: str, expected: str) -> None:
    assert answer(policy.recipient(policy.client(client, 1), login, recipient)) == expected


def test_where_relaying_is_nobodys_right(policy: Policy) -> None:
    here = policy.client(HERE, 1)
    assert answer(policy.recipient(here, "alice", "a@else.example", may_relay=False)) == "550 5.7.1"
    assert answer(policy.recipient(here, "", "a@backup.example", may_relay=False)) == ""
    assert answer(policy.recipient(here, "", "alice@here.example", may_relay=False)) == ""


def test_trouble_is_not_unknown(policy: Policy, users: Users) -> None:
    users.is_down = True
    client = policy.client(STRANGER, 1)
    assert answer(policy.recipient(client, "", "alice@here.example")) == "451 4.3.0"
    assert answer(policy.recipient(client, "", "team@here.example")) == ""  # aliases need no user
    users.is_down = False
    assert answer(policy.recipient(client, "", "alice@here.example")) == ""


def test_a_user_database_that_does_not_answer(policy: Policy, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(module, "LOOKUP_TIME", 0.05)
    monkeypatch.setattr(users, "lookup", lambda name: release.wait(20) and None)
    try:
        assert answer(policy.recipient(policy.client(STRANGER, 1), "", "alice@here.example")) == "451 4.3.0"
    finally:
        release.set()


def test_a_recipient_who_was_found_is_known_for_a_while(policy: Policy, users: Users, clock: Clock) -> None:
    client = policy.client(STRANGER, 1)
    for _ in range(3):
        assert answer(policy.recipient(client, "", "alice@here.example")) == ""
    assert users.asked == ["alice"]
    clock.now += module.KEEP
    assert answer(policy.recipient(client, "", "alice@here.example")) == ""
    assert users.asked == ["alice", "alice"]


def test_one_who_was_not_found_is_asked_for_again(policy: Policy, users: Users) -> None:
    client = policy.client(STRANGER, 1)
    for _ in range(2):
        assert answer(policy.recipient(client, "", "nobody@here.example")) == "550 5.1.1"
    assert users.asked == ["nobody", "nobody"]


def test_memory_is_bounded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    client = policy.client(STRANGER, 1)
    for n in range(10):
        assert answer(policy.recipient(client, "", f"alice+{n}@here.example")) == ""
    assert len(policy._kept) <= 3


@pytest.mark.parametrize(("recipient", "qualified"), [
    ("Postmaster", "Postmaster@here.example"), ("root", "root@here.example"), ("a@b", "a@b")])
def test_recipients_get_a_domain(policy: Policy, recipient: str, qualified: str) -> None:
    assert policy.qualified(recipient) == qualified
