"""Who a client is, and whether its mail may pass: what a listener asks, as values and protocols.

A listener knows SMTP and nothing about passwords, filters or signatures. It is given an `Authenticator` and an
`Examiner` and asks them at the places that the protocols below name. Every answer is an SMTP reply that goes to the
client, or None = no objection. What cannot be found out is a 4xx, never a yes.
"""

from dataclasses import dataclass
from typing import Protocol

from ..mail.changes import Draft
from ..mail.envelope import Origin, Recipient
from ..smtp.grammar import MailParameters
from ..smtp.reply import Reply
from ..smtp.requests import LoginGiven


@dataclass(frozen=True, slots=True)
class Client:
    """The other end of a connection. address: IPv4 or IPv6 without brackets, "" = a socket in the file system.

    name: what DNS says of the address, and of that name again; "" = nothing, or not looked up. is_trusted: it may relay
    by its address (not by a login).
    """

    address: str = ""
    port: int = 0
    name: str = ""
    is_trusted: bool = False

    @property
    def literal(self) -> str:
        """The address as SMTP writes one; that of a socket is this host's name for itself."""
        if not self.address:
            return "localhost"
        return f"[IPv6:{self.address}]" if ":" in self.address else f"[{self.address}]"

    @property
    def shown(self) -> str:
        """For the log: "mail.example.org [192.0.2.1]"."""
        return f"{self.name} {self.literal}".strip()


class Authenticator(Protocol):
    """Who knows passwords."""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Those of smtp.profile.MECHANISMS that can be offered; none without a back end."""

    def begin(self) -> None:
        """The event loop runs. Called once, before anybody logs in."""

    async def authenticate(self, login: LoginGiven, client: Client) -> tuple[Reply, str]:
        """235, 535 or 454; a 421 for a client that has failed too often. It has been logged. With 235 who is logged in,
        as whoever knows passwords calls him."""

    def may_send(self, user: str, sender: str) -> bool:
        """Whether a client who is logged in may use this envelope sender ("" = null)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of a message that has come to its end.

    refusal: what the client hears instead of 250. draft: as it is to be queued, with `envelope.scanned` if filters have
    passed it; its text is the same object as the one that was judged if nothing was changed, and envelope.hold says why
    if it is to be held. is_dropped: the client hears 250, and the message goes nowhere; that has been logged.
    """

    draft: Draft
    refusal: Reply | None = None
    is_dropped: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What could be found out about who a stranger's message is from.

    field: Authentication-Results, to be put on top; b"" = nothing was checked. refusal: the reply instead of 250, where
    the domain in From wants that and so do we. words: one line for the log.
    """

    field: bytes = b""
    refusal: Reply | None = None
    words: str = ""


class Examination(Protocol):
    """One session, in the order in which things happen. What was not told before `judge` is caught up with there, from
    the envelope; but only what is told at its time can be refused at its time."""

    async def connected(self, client: Client) -> Reply | None:
        """Before the greeting. A 421 ends the session; another refusal stays in force for all of its mail."""

    async def hello(self, name: str, origin: Origin) -> Reply | None:
        """HELO, EHLO or LHLO. origin: with TLS and login as they are now."""

    async def sender(self, address: str, origin: Origin, queue_id: str, parameters: MailParameters) -> Reply | None:
        """MAIL. origin: likewise."""

    async def recipient(self, recipient: Recipient) -> Reply | None:
        """RCPT, after it has been found that this recipient is one."""

    async def refused(self, recipient: Recipient, refusal: Reply) -> None:
        """RCPT that others have refused: who counts such things may want to know."""

    async def judge(self, draft: Draft) -> Judgement:
        """The whole message, before its 250. Of a draft that is refused or dropped nothing is to be queued."""

    def drop(self) -> None:
        """The transaction is void: RSET, EHLO, or a message that came to no end."""

    def close(self) -> None:
        """The session is over."""


class Examiner(Protocol):
    """Who looks at mail."""

    def begin(self, client: Client) -> Examination:
        """A new session with this client."""
