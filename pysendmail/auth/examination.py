"""Who looks at mail: mail filters ([milter]) and the authentication of strangers' mail ([auth] results), in one place.

One Session follows one session of a client, or one message that came by another door, and ends in a Judgement. In
front of the filters it puts on top what was found out, so that filters can believe it. What a filter wants is applied
by the chain (net/milter_chain.py); here it becomes what the listener, or the runner, has to do with the message:

    a refusal       what the client hears, or what becomes of each recipient
    dropped         a filter discards it, or has removed its last recipient
    envelope.hold   a filter has put it into quarantine
    otherwise       the message as it is to be queued, which bears the mark "scanned"

Nothing else ever sets that mark, and nothing without it is delivered while there is a filter.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ..mail import address
from ..mail.changes import Draft
from ..mail.envelope import Envelope, Origin, Recipient
from ..net.milter_chain import Chain, Terms
from ..smtp import grammar
from ..smtp.grammar import MailParameters, RcptParameters
from ..smtp.milter_replies import Answer, Verdict
from ..smtp.reply import Reply, reply
from . import Client, Findings, Judgement

NO_QUEUE = "NOQUEUE"  # what the log calls a message that has no id yet
SOFTWARE = "pysendmail"  # without a version, as in Received

_GONE = reply(451, "4.3.0", "the message could not be examined, try again later")
_REFUSING = frozenset((Verdict.REJECT, Verdict.TEMPFAIL, Verdict.SHUT_DOWN))


class Finder(Protocol):
    """Who finds out what can be known about a stranger's mail: auth/checks.py, which needs libraries."""

    async def find(self, client: Client, draft: Draft) -> Findings:
        """Takes a while, and never fails."""


@dataclass(frozen=True, slots=True)
class MailExaminer:
    """terms: of the filters, None = there are none. checks: None = strangers' mail is not authenticated.

    note: a line for the log, (queue id, text). qualify: completes an address that a filter gives without a domain.
    """

    hostname: str
    note: Callable[[str, str], None]
    qualify: Callable[[str], str]
    terms: Terms | None = None
    checks: Finder | None = None

    def begin(self, client: Client) -> "Session":
        return Session(self, client)


class Session:
    """One client, or one message of another door."""

    def __init__(self, examiner: MailExaminer, client: Client) -> None:
        self._examiner = examiner
        self._client = client
        self._id = NO_QUEUE
        self._chain = None if examiner.terms is None else Chain(examiner.terms, self._first_macros(client), self._note)
        self._is_connected = False
        self._hello: str | None = None
        self._sender: str | None = None
        self._recipients: set[str] = set()

    def _note(self, text: str) -> None:
        self._examiner.note(self._id, text)

    # ---- as it happens

    async def connected(self, client: Client) -> Reply | None:
        self._client, self._is_connected = client, True
        self._hello = self._sender = None
        if self._chain is None:
            return None
        self._chain.macros.update(self._first_macros(client))
        return _reply(await self._chain.connected(client.name or client.literal, client.address, client.port))

    async def hello(self, name: str, origin: Origin) -> Reply | None:
        self._hello, self._sender = name, None
        if self._chain is None:
            return None
        self._chain.macros.update(_session_macros(origin))
        return _reply(await self._chain.hello(name))

    async def sender(self, address: str, origin: Origin, queue_id: str, parameters: MailParameters) -> Reply | None:
        self._sender, self._recipients = address, set()
        if self._chain is None:
            return None
        author = grammar.from_xtext(parameters.auth) if origin.auth and parameters.auth != "<>" else ""
        self._chain.macros.update(_session_macros(origin), i=queue_id, **_path_macros("mail", address))
        self._chain.macros["{auth_author}"] = author
        return _reply(await self._chain.sender(address, grammar.mail_words(parameters)))

    async def recipient(self, recipient: Recipient) -> Reply | None:
        self._recipients.add(recipient.address)
        if self._chain is None:
            return None
        self._chain.macros.update(_path_macros("rcpt", recipient.address))
        return _reply(await self._chain.recipient(recipient.address, _words(recipient)))

    async def refused(self, recipient: Recipient, refusal: Reply) -> None:
        if self._chain is not None:
            await self._chain.refused(recipient.address, _words(recipient), refusal)

    def drop(self) -> None:
        self._sender = None
        if self._chain is not None:
            self._chain.drop()

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()

    # ---- the message

    async def judge(self, draft: Draft) -> Judgement:
        try:
            return await self._judge(draft)
        except OSError as trouble:  # its file cannot be read
            self._note(f"cannot be examined: {trouble.strerror or trouble}")
            return Judgement(draft, _GONE)
        finally:
            self.drop()
            self._id = NO_QUEUE

    async def _judge(self, draft: Draft) -> Judgement:
        envelope = draft.envelope
        self._id = envelope.id
        found = await self._authenticated(draft)
        if isinstance(found, Judgement):
            return found
        if self._chain is not None:
            refusal = await self._catch_up(envelope)
            if refusal is not None:
                return Judgement(draft, refusal)
            self._chain.macros["i"] = envelope.id
            answer, found = await self._chain.examine(found)
            if answer.verdict in _REFUSING:
                return Judgement(draft, answer.reply or _GONE)
            if answer.verdict is Verdict.DISCARD:
                return Judgement(draft, is_dropped=True)
            found = Draft(replace(self._qualified(found.envelope), scanned=True), found.text)
            if not found.envelope.recipients:
                self._note("no recipient is left, the message is dropped")
                return Judgement(draft, is_dropped=True)
        return Judgement(found)

    async def _authenticated(self, draft: Draft) -> Draft | Judgement:
        """The message with what was found on top; or that it is refused for that."""
        checks = self._examiner.checks
        is_stranger = bool(self._client.address) and not self._client.is_trusted and not draft.envelope.origin.auth
        if checks is None or not is_stranger:
            return draft
        found = await checks.find(self._client, draft)
        if found.words:
            self._note(found.words)
        if found.refusal is not None:
            return Judgement(draft, found.refusal)
        return Draft(draft.envelope, replace(draft.text, top=found.field + draft.text.top)) if found.field else draft

    async def _catch_up(self, envelope: Envelope) -> Reply | None:
        """Tell the filters what they have not been told, as it stands in the envelope; the first refusal of any of
        it."""
        refusal = None if self._is_connected else await self.connected(self._client)
        if refusal is None and self._hello is None:
            refusal = await self.hello(envelope.origin.helo or self._examiner.hostname, envelope.origin)
        if refusal is None and self._sender is None:
            refusal = await self.sender(envelope.sender, envelope.origin, envelope.id, _parameters(envelope))
        for one in envelope.recipients:
            if refusal is None and one.address not in self._recipients:
                refusal = await self.recipient(one)
        return refusal

    def _qualified(self, envelope: Envelope) -> Envelope:
        """A filter that names a user without a domain means one of ours."""
        qualify = self._examiner.qualify
        recipients = tuple(one if "@" in one.address else replace(one, address=qualify(one.address))
                           for one in envelope.recipients)
        sender = envelope.sender if "@" in envelope.sender or not envelope.sender else qualify(envelope.sender)
        if recipients == envelope.recipients and sender == envelope.sender:
            return envelope
        return replace(envelope, recipients=recipients, sender=sender)

    def _first_macros(self, client: Client) -> dict[str, str]:
        """What is known of a session from its start."""
        hostname = self._examiner.hostname  # rspamd takes daemon_name, which is that for Postfix, for our authserv-id
        found = {"j": hostname, "v": SOFTWARE, "{daemon_name}": hostname, "_": client.shown,
                 "{client_name}": client.name or client.literal, "{client_ptr}": client.name or "unknown"}
        if client.address:
            found |= {"{client_addr}": client.address, "{client_port}": str(client.port)}
        return found


def _session_macros(origin: Origin) -> dict[str, str]:
    """What may be new at HELO and MAIL. Filters take a type for a login: there is one where there is a name."""
    version, _, cipher = origin.tls.partition(" ")
    return {"{tls_version}": version, "{cipher}": cipher, "{auth_authen}": origin.auth,
            "{auth_type}": (origin.mechanism or "PLAIN") if origin.auth else ""}


def _parameters(envelope: Envelope) -> MailParameters:
    """As the client of a message, by whatever door it came, would have said them."""
    envid = envelope.envid if grammar.is_envid(envelope.envid) else ""
    return MailParameters(body=envelope.body, smtputf8=envelope.smtputf8, ret=envelope.ret, envid=envid)


def _words(recipient: Recipient) -> list[str]:
    orcpt = recipient.orcpt if grammar.is_orcpt(recipient.orcpt) else ""
    return grammar.rcpt_words(RcptParameters(recipient.notify, orcpt))


def _path_macros(what: str, whom: str) -> dict[str, str]:
    return {f"{{{what}_addr}}": whom, f"{{{what}_host}}": address.split_text(whom)[1], f"{{{what}_mailer}}": "esmtp"}


def _reply(answer: Answer) -> Reply | None:
    return (answer.reply or _GONE) if answer.verdict in _REFUSING else None
