"""Who has a say about one client's mail, and in which order they are asked.

    the client       DNS: its name, block lists (standing.py); whoever examines mail (auth/)
    a sender         policy.py; for strangers DNS, whether there is such a domain; whoever examines mail
    a recipient      policy.py; for strangers block lists and policy servers; whoever examines mail
    a message        whoever examines mail

A stranger is a client that may not relay by its address and has not logged in. For others, on a host where nobody
examines mail, there is nobody to wait for: the opinion is there at once, and no task is made.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ..auth import Authenticator, Examination, Examiner, Judgement
from ..config import Config
from ..events import ClientEvents
from ..mail.changes import BadChange, Draft
from ..mail.changes import field as header_field
from ..mail.envelope import Origin, Recipient, raw
from ..net.policyserver import PolicyServer, Trouble
from ..route.router import split
from ..smtp.grammar import MailParameters
from ..smtp.reply import Reply, reply
from .admission import Admission
from .arrival import Arrival
from .connection import Connection
from .inbox import Inbox
from .policy import Client, Inquiries, Opinion, Policy, Refusal, Standing, listed

ALWAYS_REACHED = frozenset(("postmaster", "abuse"))  # by clients on a block list, too (RFC 2142)

_TOO_FAST = Refusal(reply(450, "4.7.1", "Too many messages in one minute, try again later"), "check_mail")
_SERVER_FAILED = Refusal(reply(451, "4.3.5", "a policy server is out of order, try again later"), "check_rcpt")


@dataclass(slots=True)
class Reception:
    """What all sessions of a listener share. now: seconds since the epoch. sessions: those that there are.

    inquiries: None = DNS is asked nothing. logins: None = nobody can log in. examiner: None = mail is not examined.
    """

    loop: asyncio.AbstractEventLoop
    config: Config
    events: ClientEvents
    policy: Policy
    admission: Admission
    inbox: Inbox
    now: Callable[[], float]
    inquiries: Inquiries | None = None
    servers: tuple[PolicyServer, ...] = ()
    logins: Authenticator | None = None
    examiner: Examiner | None = None
    sessions: set[Connection] = field(default_factory=set)


class Opinions:
    """About one client. key: by which it is counted."""

    def __init__(self, reception: Reception, client: Client) -> None:
        self._reception = reception
        self._policy = reception.policy
        self.client = client
        self._standing: asyncio.Task[Standing] | None = None
        self._examination: Examination | None = None
        self._objection: Reply | None = None  # to all of its mail

    # ---- the client

    def begin(self) -> None:
        """Begin to find out what DNS says of it; that is needed later."""
        inquiries = self._reception.inquiries
        if inquiries is None or self.client.is_local:
            return
        known = inquiries.known(self.client.address)
        if known is None:
            self._standing = self._reception.loop.create_task(inquiries.find(self.client.address))
        else:
            self.client.name = known.name

    async def _stood(self) -> Standing:
        """What DNS says of it, once that is there."""
        inquiries = self._reception.inquiries
        if inquiries is None or not self.client.is_stranger:
            return Standing()
        if self._standing is None:
            return inquiries.known(self.client.address) or Standing(self.client.name)
        standing = await asyncio.shield(self._standing)
        self.client.name = standing.name
        return standing

    @property
    def is_examined(self) -> bool:
        """Whether there is somebody who examines mail."""
        return self._reception.examiner is not None

    async def connected(self) -> Reply | None:
        """None, or why the client gets no greeting. For who examines mail."""
        examiner = self._reception.examiner
        if examiner is None:
            return None
        await self._stood()
        self._examination = examiner.begin(self.client.as_seen)
        refusal = await self._examination.connected(self.client.as_seen)
        if refusal is None or refusal.code == 421:
            return refusal
        self._objection = refusal
        return None

    async def hello(self, name: str, origin: Origin) -> Reply | None:
        """The same about a name that it gives itself."""
        return await self._examination.hello(name, origin) if self._examination is not None else None

    def drop(self) -> None:
        """The transaction is void."""
        if self._examination is not None:
            self._examination.drop()

    def close(self) -> None:
        """The session is over."""
        if self._standing is not None:
            self._standing.cancel()
        if self._examination is not None:
            self._examination.close()

    # ---- its mail

    def sender(self, address: str, key: bytes, origin: Origin, queue_id: str, parameters: MailParameters) -> Opinion:
        """May it send as `address` ("" = null)? origin: with TLS and login as they are now."""
        if not self._reception.admission.may_send(key):
            return _TOO_FAST
        if self._objection is not None:
            return Refusal(self._objection, "check_relay")
        refusal = self._policy.sender(self.client, origin.auth, address)
        asks_dns = self._reception.inquiries is not None and self.client.is_stranger
        if refusal is None and (asks_dns or self._examination is not None):
            return self._sender_later(address, origin, queue_id, parameters)
        return refusal

    async def _sender_later(self, address: str, origin: Origin, queue_id: str,
                            parameters: MailParameters) -> Refusal | None:
        inquiries, domain = self._reception.inquiries, split(address)[1]
        await self._stood()
        is_checked = self.client.is_stranger and not origin.auth and self._reception.config.smtpd.check_sender
        if is_checked and inquiries is not None and domain:
            refusal = await inquiries.sender(domain)
            if refusal is not None:
                return refusal
        if self._examination is not None:
            return _of(await self._examination.sender(address, origin, queue_id, parameters), "check_mail")
        return None

    def recipient(self, recipient: Recipient, origin: Origin, arrival: Arrival, *, may_relay: bool) -> Opinion:
        """May it send to this recipient, whose address is qualified? may_relay: False where relaying is nobody's right.

        What policy servers want of the message is noted in `arrival`.
        """
        reception, client = self._reception, self.client
        opinion = self._policy.recipient(client, origin.auth, recipient.address, may_relay=may_relay)
        asks_dns = reception.inquiries is not None and bool(reception.config.smtpd.dnsbl)
        is_asked = client.is_stranger and not origin.auth and (bool(reception.servers) or asks_dns)
        if self._examination is None and (isinstance(opinion, Refusal) or not is_asked):
            return opinion
        return self._recipient_later(opinion, recipient, origin, arrival, is_asked=is_asked)

    async def _recipient_later(self, opinion: Opinion, recipient: Recipient, origin: Origin, arrival: Arrival, *,
                               is_asked: bool) -> Refusal | None:
        refusal = opinion if opinion is None or isinstance(opinion, Refusal) else await opinion
        if refusal is None and is_asked:
            standing = await self._stood()
            if standing.listed and split(recipient.address)[0].lower() not in ALWAYS_REACHED:
                return listed(standing)
            refusal = await self._ask_servers(recipient, origin, arrival)
        if self._examination is None:
            return refusal
        if refusal is not None:
            await self._examination.refused(recipient, refusal.reply)
            return refusal
        return _of(await self._examination.recipient(recipient), "check_rcpt")

    async def _ask_servers(self, recipient: Recipient, origin: Origin, arrival: Arrival) -> Refusal | None:
        events = self._reception.events
        for server in self._reception.servers:
            try:
                action = await server.ask(attributes(self.client, origin, arrival, recipient))
                field = policy_field(action.field)
            except (Trouble, BadChange) as trouble:
                events.warned(f"policy server {server.endpoint}: {trouble}")
                if self._reception.config.smtpd.policy_failure == "accept":
                    continue
                return _SERVER_FAILED
            if action.note:
                events.noted(arrival.id, f"policy server {server.endpoint}: {action.note}")
            arrival.note(field, action.hold)
            if action.refusal is not None:
                return Refusal(action.refusal, "check_rcpt")
            if action.is_final:
                break
        return None

    async def judge(self, draft: Draft) -> Judgement:
        """The whole message, before its 250."""
        if self._examination is None:
            return Judgement(draft)
        return await self._examination.judge(draft)


def attributes(client: Client, origin: Origin, arrival: Arrival, recipient: Recipient) -> dict[str, str]:
    """What a policy server is told about a recipient (Postfix SMTPD_POLICY_README)."""
    return {
        "request": "smtpd_access_policy", "protocol_state": "RCPT", "protocol_name": origin.protocol,
        "client_address": client.address, "client_name": client.name or "unknown", "client_port": str(client.port),
        "reverse_client_name": client.name or "unknown", "helo_name": origin.helo, "queue_id": arrival.id,
        "instance": arrival.id, "sender": arrival.sender, "recipient": recipient.address,
        "recipient_count": str(len(arrival.recipients)), "size": str(arrival.parameters.size),
        "sasl_username": origin.auth, "encryption_protocol": origin.tls.partition(" ")[0],
        "encryption_cipher": origin.tls.partition(" ")[2]}


def policy_field(text: str) -> bytes:
    """A header field that a policy server wants in front of the message ("Name: value"), b"" = none. Raises
    BadChange."""
    name, _, value = text.partition(":")
    return header_field(raw(name), raw(value.strip(" "))) if text else b""


def _of(refusal: Reply | None, ruleset: str) -> Refusal | None:
    return Refusal(refusal, ruleset) if refusal is not None else None
