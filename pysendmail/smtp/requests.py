"""What the server core tells its driver. Those marked "asks" wait for Server.answer(), before which nothing is read."""

from dataclasses import dataclass, field

from ..mail.envelope import Recipient
from .grammar import MailParameters


@dataclass(frozen=True, slots=True)
class HelloGiven:
    """Asks. The client has introduced itself; is_extended: with EHLO or LHLO."""

    name: str
    is_extended: bool


@dataclass(frozen=True, slots=True)
class ProxyTold:
    """Asks. A listed proxy says who its client is: XCLIENT attributes, decoded; untrusted text like any other."""

    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """Make TLS of the connection, then Server.tls_started(), or lost(). What was read so far is all there is of
    plaintext."""


@dataclass(frozen=True, slots=True)
class LoginGiven:
    """Asks: 235, 535 or 454. identity: who the client wants to act for, "" = itself."""

    mechanism: str
    identity: str
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SenderGiven:
    """Asks. address "" = null."""

    address: str
    parameters: MailParameters


@dataclass(frozen=True, slots=True)
class RecipientGiven:
    """Asks."""

    recipient: Recipient


@dataclass(frozen=True, slots=True)
class ContentWanted:
    """Asks. The client is about to send the message: there should be a file for it."""


@dataclass(frozen=True, slots=True)
class Content:
    """The message's next bytes, with LF line ends."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ContentEnded:
    """Asks, and there is no reply but the driver's: is it safe on disk? size: octets as they came, undoubled."""

    size: int


@dataclass(frozen=True, slots=True)
class TransactionDropped:
    """The transaction is void, and so is what has come of its content. why: for the log."""

    why: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Write what there is to write, then close. why: for the log."""

    why: str


Asking = HelloGiven | ProxyTold | LoginGiven | SenderGiven | RecipientGiven | ContentWanted | ContentEnded
Event = Asking | TlsWanted | Content | TransactionDropped | SessionEnded
