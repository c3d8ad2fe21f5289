"""From a pass to shipments: what of a message goes to other hosts, or by LMTP into a mailbox store.

Targets that go to the same hosts with the same sender travel together, one transaction for all of them. An answer comes
back as one outcome for each target, with what it means for reports: HANDED_ON, the next host will report what was asked
for; RELAYED, it takes part in no reports, so that "relayed" is the last that the sender hears (RFC 3461 section 5.2.2).

What leaves because of a .forward carries Delivered-To with the address whose .forward it was, as if it had been
delivered there: when another host sends it back, the loop is seen the first time (deliver/agent.py).
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ..config import Config
from ..deliver.shipment import MAX_HEAD, Answer, Shipment, groups
from ..mail import trace
from ..mail.envelope import Origin, Recipient
from ..mail.outcome import Outcome
from ..mail.target import MAILBOX, RELAY, Target
from ..route.router import Hop, Router
from ..spool.queue import Message, Queue
from .relays import Job, Relays

HANDED_ON, RELAYED = "handed on", "relayed"
LMTP = "lmtp:"

# (target number, outcome, how it was handed over, the answer: relay, is_tried; when to try again, 0.0 = by the
# schedule)
Returned = Callable[[int, Outcome, str, Answer, float], None]


class Outgoing:
    """Groups targets, and hands them to the relays."""

    def __init__(self, queue: Queue, relays: Relays, router: Router, config: Config) -> None:
        self._queue = queue
        self._relays = relays
        self._router = router
        self._store = config.local.mailbox if config.local.mailbox.startswith(LMTP) else ""
        self._relay_from = tuple(map(ip_network, config.smtpd.relay_from))
        self._number = 0

    @property
    def has_store(self) -> bool:
        """Whether mailboxes are somebody else's business."""
        return bool(self._store)

    def hop(self, target: Target) -> Hop:
        """Where a target goes next."""
        if target.kind == MAILBOX:
            return Hop(self._router.hostname, (self._store,))
        return self._router.hop(target.address)

    def ship(self, message: Message, numbers: list[int], returned: Returned) -> None:
        """Send these targets of a message on their way; `returned` is called once for each, later."""
        progress, sender = message.state.progress, message.envelope.sender
        together: dict[tuple[Hop, str, bytes], list[int]] = {}
        for number in numbers:
            target = progress[number].target
            key = (self.hop(target), sender if target.sender is None else target.sender, _head(message, target))
            together.setdefault(key, []).append(number)
        for (hop, from_, head), members in together.items():
            recipients = [_recipient(message, number) for number in members]
            first = 0
            for group in groups(recipients):
                self._send(message, hop, from_, head, group, members[first:first + len(group)], returned)
                first += len(group)

    def _send(self, message: Message, hop: Hop, sender: str, head: bytes, group: tuple[Recipient, ...],
              members: list[int], returned: Returned) -> None:
        envelope = message.envelope
        is_list = sender != envelope.sender  # a list is the sender of its own mail, and hears of it itself
        self._number += 1
        ret, envid = ("", "") if is_list else (envelope.ret, envelope.envid)
        shipment = Shipment(self._number, message.id, message.offset, message.length, sender, group, hop.domain,
                            hop.hosts, envelope.smtputf8, ret, envid, head=head,
                            is_own=is_own(envelope.origin, self._relay_from))

        def done(answer: Answer, due: float) -> None:
            handed = HANDED_ON if answer.dsn_is_passed else RELAYED
            for number, outcome in zip(members, answer.outcomes, strict=True):
                returned(number, outcome, handed if outcome.is_delivered else "", answer, due)

        self._relays.deliver(Job(shipment, lambda: self._queue.open(message), done))


def is_own(origin: Origin, relay_from: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether whoever has sent a message may speak in our name: local users, logins, ourselves, clients that relay."""
    if origin.kind != "smtp" or origin.auth or origin.client in ("", "localhost"):  # the last two: a Unix socket
        return True
    try:
        address = ip_address(origin.client.strip("[]").removeprefix("IPv6:").partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or any(address in network for network in relay_from)


def _head(message: Message, target: Target) -> bytes:
    """Delivered-To for each .forward that led to a target, the last one first. Too many: the oldest are left out."""
    if target.kind != RELAY or not target.via:
        return b""
    forwarded = {progress.target.user: progress.target.address for progress in message.state.progress.values()
                 if progress.is_replaced and progress.target.kind == MAILBOX}
    head = b""
    for user in reversed(target.via.split(":")):
        line = trace.delivered_to(forwarded.get(user, user))
        if len(head) + len(line) > MAX_HEAD:
            break
        head += line
    return head


def _recipient(message: Message, number: int) -> Recipient:
    """The recipient of a target as the next host is to know it: what was asked for goes along (RFC 3461 section
    5.2)."""
    progress = message.state.progress[number]
    asked, target = message.envelope.recipients[progress.recipient], progress.target
    if target.sender is not None or not (asked.notify or asked.orcpt):
        return Recipient(target.address)
    return Recipient(target.address, asked.notify, asked.orcpt or f"rfc822;{asked.address}")
