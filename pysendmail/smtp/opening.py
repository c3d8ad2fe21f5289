"""How a client's session opens: greeting, EHLO or HELO, STARTTLS, EHLO again, AUTH. Pure: a reply in, the next move
out.

What the peer offered in the clear is forgotten once TLS stands (RFC 3207 section 4.2). There is no way back from TLS to
HELO, nor from a wanted login to none: such a session does not open. RFC 5321 sections 3.1 and 3.2, RFC 3207, RFC 4954.
"""

from dataclasses import dataclass, replace
from enum import Enum

from . import grammar, sasl
from .reply import Reply
from .transaction import Offers, Step
from .trouble import Kind, Peer, Stage, Trouble, refusal
from .wire import LocalError, RemoteError

_HELO = 1  # number of the step in which HELO was said, not EHLO


class Tls(Enum):
    """Whether to use STARTTLS. What MUST has to prove (a certificate) is between the driver and its TLS."""

    NEVER = "never"
    MAY = "may"
    MUST = "must"


@dataclass(frozen=True, slots=True)
class Options:
    """helo: our name. is_encrypted: the connection begins with TLS (port 465). lmtp: the peer speaks LMTP.

    is_private: nobody can listen in on the connection, even without TLS (loopback).
    """

    helo: str
    peer: Peer
    lmtp: bool = False
    tls: Tls = Tls.MAY
    is_encrypted: bool = False
    credentials: sasl.Credentials | None = None
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """Send this and wait for its reply."""

    step: Step
    line: bytes


class Turn(Enum):
    """A move without words."""

    HANDSHAKE = "TLS begins"
    READY = "the session is open"


Move = Say | Turn | Trouble


class Opening:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._mechanism: sasl.Mechanism | None = None
        self._refused: set[str] = set()  # mechanisms, and STARTTLS
        self._is_logged_in = False
        self.is_encrypted = options.is_encrypted
        self.is_tls_unproven = False  # from STARTTLS to the first reply after it, or that in TLS if there is some
        self.offers: Offers = {}  # of the last EHLO

    def take(self, step: Step, reply: Reply) -> Move:
        """What comes after this reply, of class 2, 4 or 5, to AUTH also 3. Raises RemoteError."""
        if step.stage is Stage.GREETING:
            return self._say_hello() if reply.kind == 2 else refusal(Stage.GREETING, reply)
        if step.stage is Stage.HELLO:
            self.is_tls_unproven = False
            return self._on_hello(step, reply)
        if step.stage is Stage.STARTTLS:
            return self._on_starttls(reply)
        return self._on_auth(reply)

    def after_handshake(self) -> Move:
        self.is_encrypted = True
        self.offers = {}
        return self._say_hello()

    def _say_hello(self) -> Move:
        return Say(Step(Stage.HELLO), grammar.command("LHLO" if self._options.lmtp else "EHLO", self._options.helo))

    def _on_hello(self, step: Step, reply: Reply) -> Move:
        is_helo = step.number == _HELO
        if reply.kind == 2:
            self.offers = {} if is_helo else grammar.capabilities(reply)
            return self._further()
        if reply.kind == 5 and not is_helo and not self._options.lmtp and not self.is_encrypted:
            return Say(Step(Stage.HELLO, _HELO), grammar.command("HELO", self._options.helo))
        return refusal(Stage.HELLO, reply)

    def _further(self) -> Move:
        options = self._options
        if not self.is_encrypted and options.tls is not Tls.NEVER and "STARTTLS" in self.offers.keys() - self._refused:
            self.is_tls_unproven = True
            return Say(Step(Stage.STARTTLS), grammar.command("STARTTLS"))
        if not self.is_encrypted and options.tls is Tls.MUST:
            return Trouble(Stage.STARTTLS, Kind.TLS, "it does not offer STARTTLS")
        if options.credentials and not self._is_logged_in:
            return self._log_in(options.credentials)
        return Turn.READY

    def _on_starttls(self, reply: Reply) -> Move:
        if reply.kind == 2:
            return Turn.HANDSHAKE
        self.is_tls_unproven = False
        if self._options.tls is Tls.MUST:
            return refusal(Stage.STARTTLS, reply)
        self._refused.add("STARTTLS")
        return self._further()

    def _log_in(self, credentials: sasl.Credentials) -> Move:
        offered = self.offers.get("AUTH", ())
        is_safe = self.is_encrypted or self._options.is_private
        self._mechanism = sasl.choose(offered, credentials, is_encrypted=is_safe, refused=self._refused)
        if self._mechanism is None:
            words = f"it offers AUTH {' '.join(offered)}" if offered else "it offers no AUTH"
            return Trouble(Stage.AUTH, Kind.LOGIN, words + ("" if self.is_encrypted else ", and there is no TLS"))
        first = self._mechanism.initial()
        word = b"" if first is None else sasl.encode(first) or b"="
        return Say(Step(Stage.AUTH), grammar.command("AUTH", self._mechanism.name, word))

    def _on_auth(self, reply: Reply) -> Move:
        mechanism, credentials = self._mechanism, self._options.credentials
        if mechanism is None or credentials is None:
            raise LocalError("a login without credentials")
        if reply.kind == 2:
            self._is_logged_in = True
            return self._further()
        if reply.kind == 3:
            answer = sasl.encode(mechanism.respond(_challenge(reply)))
            return Say(Step(Stage.AUTH), grammar.answer(answer))
        if reply.code in (504, 534):  # this mechanism will not do; another may
            self._refused.add(mechanism.name)
            return self._log_in(credentials)
        return replace(refusal(Stage.AUTH, reply), words=mechanism.complaint)


def _challenge(reply: Reply) -> bytes:
    try:
        return sasl.decode(reply.lines[0].strip(" ").encode("ascii"))
    except ValueError:
        raise RemoteError("a challenge that is not base64")
