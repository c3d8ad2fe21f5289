"""What travels together, and what is put before it."""

from ipaddress import ip_network
from typing import Any

import pytest

from pysendmail.config import Config
from pysendmail.daemon.outgoing import Outgoing, is_own
from pysendmail.deliver.shipment import MAX_HEAD, Shipment
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.target import MAILBOX, RELAY, Target
from pysendmail.route.router import Router
from pysendmail.spool.journal import Progress
from pysendmail.spool.queue import Entry, Message

CONFIG = Config(hostname="host.example", domain="host.example", local_domains=("host.example",))


class Relays:
    def __init__(self) -> None:
        self.shipments: list[Shipment] = []

    def deliver(self, job: Any) -> None:
        self.shipments.append(job.shipment)


def shipped(*targets: Target) -> list[Shipment]:
    """The shipments of one message with these targets; those of kind MAILBOX are forwarded elsewhere."""
    envelope = Envelope("0WkDdmTe000001", "s@example.org", (Recipient("alice@host.example"),), 0.0, Origin("command"))
    message = Message(Entry(envelope.id, "new", envelope.id), envelope, 100, 200)
    for number, target in enumerate(targets):
        message.state.progress[number] = Progress(0, target, is_replaced=target.kind == MAILBOX)
    relays: Any = Relays()
    queue: Any = None
    Outgoing(queue, relays, Router(CONFIG), CONFIG).ship(
        message, [number for number, target in enumerate(targets) if target.kind == RELAY], lambda *_: None)
    found: list[Shipment] = relays.shipments
    return found


def test_mail_for_others_is_as_it_came() -> None:
    one, = shipped(Target(RELAY, "a@example.net"), Target(RELAY, "b@example.net"))
    assert (one.head, [recipient.address for recipient in one.recipients]) == (b"", ["a@example.net", "b@example.net"])


def test_what_a_forward_sends_away_says_where_it_was() -> None:
    one, other = shipped(
        Target(MAILBOX, "alice+x@host.example", user="alice"), Target(MAILBOX, "bob@host.example", user="bob"),
        Target(RELAY, "a@example.net", via="alice:bob"), Target(RELAY, "b@example.net"))
    assert one.head == b"Delivered-To: bob@host.example\nDelivered-To: alice+x@host.example\n"
    assert [recipient.address for recipient in one.recipients] == ["a@example.net"]
    assert other.head == b""


def test_an_address_cannot_add_a_line() -> None:
    one, = shipped(Target(MAILBOX, "a\nBcc: b@host.example", user="alice"), Target(RELAY, "a@example.net", via="alice"))
    assert one.head.count(b"\n") == 1


NETWORKS = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(("origin", "expected"), [
    (Origin("command", 1000, "alice"), True), (Origin("runner"), True), (Origin("smtp"), True),
    (Origin("smtp", client="localhost"), True), (Origin("smtp", client="[127.0.0.1]"), True),
    (Origin("smtp", client="[192.0.2.7]"), True), (Origin("smtp", client="[IPv6:2001:db8::7]"), True),
    (Origin("smtp", client="[198.51.100.7]"), False), (Origin("smtp", client="[IPv6:2001:db9::7]"), False),
    (Origin("smtp", client="[198.51.100.7]", auth="alice"), True), (Origin("smtp", client="[nonsense]"), False),
    (Origin("smtp", client="[IPv6:fe80::1%eth0]"), False),
])
def test_only_mail_of_our_own_may_bear_our_signature(origin: Origin, expected: bool) -> None:
    assert is_own(origin, NETWORKS) is expected


def test_an_endless_way_is_cut() -> None:
    via = ":".join(f"user{n}" for n in range(1000))
    one, = shipped(Target(RELAY, "a@example.net", via=via))
    assert one.head.startswith(b"Delivered-To: user999\n")
    assert MAX_HEAD - 100 < len(one.head) <= MAX_HEAD
