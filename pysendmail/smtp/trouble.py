"""What each failure at a remote host means: the one place that turns trouble into outcomes.

A Trouble says what happened and at which stage; `judge` says what that means for a recipient: an Outcome, whether
another host of the same destination may do better, and what else the trouble concerns. Nothing else in the relay
decides any of these, and a driver states its own failures (no connection, no TLS, time is up) as a Trouble too.

Permanent is only what a host has said about this message or recipient, with 5xx, or about us after HELO. Whatever is
unclear is temporary: silence, a broken conversation, a refused login, a refused greeting (a block list's 554 passes). A
host that vanishes after the final dot may have the message: it is tried again later, and nowhere else right now, since
a second host would only make the second copy certain (RFC 1047).

RFC 5321 sections 4.2 and 4.5.3, RFC 3463 and 5248 (status codes), RFC 4954 section 6.
"""

from dataclasses import dataclass
from enum import Enum

from ..mail.outcome import Outcome, deferred, delivered, failed
from .reply import Reply


class Stage(Enum):
    """Where a conversation is: what is awaited, in words that end "while ..."."""

    CONNECT = "connecting"
    GREETING = "waiting for its greeting"
    HELLO = "introducing ourselves"
    STARTTLS = "starting TLS"
    AUTH = "logging in"
    IDLE = "waiting for the next message"
    RSET = "resetting the session"
    MAIL = "giving the sender"
    RCPT = "giving a recipient"
    DATA = "asking to send the message"
    CONTENT = "sending the message"
    END = "waiting for the answer to the message"
    QUIT = "taking leave"


class Kind(Enum):
    """What happened."""

    REPLY = "a reply of 4xx or 5xx"
    LOST = "lost connection"
    TIMEOUT = "conversation timed out"
    PROTOCOL = "protocol error"
    TLS = "no TLS"
    LOGIN = "no login"
    MESSAGE = "the message cannot go to this host as it is"
    ABORTED = "conversation given up"


class Scope(Enum):
    """What the trouble concerns besides the recipient: what had better not be tried in the same way at once."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    TRANSACTION = "transaction"  # too many recipients in one: the same host takes these in another transaction
    HOST = "host"
    LOGIN = "login"  # every message for this relay, until somebody has seen to it


@dataclass(frozen=True, slots=True)
class Peer:
    """The host we talk to. name: for reports. address: IP address or socket path, for people; "" = not known yet."""

    name: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.name}[{self.address}]" if self.address and self.address != self.name else self.name


@dataclass(frozen=True, slots=True)
class Trouble:
    """words: what happened, for people. reply: of REPLY alone. status: of MESSAGE alone."""

    stage: Stage
    kind: Kind
    words: str = ""
    reply: Reply | None = None
    status: str = ""

    def __post_init__(self) -> None:
        if (self.reply is None) == (self.kind is Kind.REPLY) or (self.kind is Kind.MESSAGE) != bool(self.status):
            raise ValueError("a trouble that does not say what happened")


def refusal(stage: Stage, reply: Reply) -> Trouble:
    """The trouble of a reply of 4xx or 5xx."""
    return Trouble(stage, Kind.REPLY, reply=reply)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one recipient at one host. may_try_elsewhere: before the outcome is taken for the last word."""

    outcome: Outcome
    may_try_elsewhere: bool = False
    scope: Scope = Scope.RECIPIENT


_COMMANDS = {Stage.HELLO: "EHLO or HELO", Stage.STARTTLS: "STARTTLS", Stage.AUTH: "AUTH", Stage.RSET: "RSET",
             Stage.MAIL: "MAIL FROM", Stage.RCPT: "RCPT TO", Stage.DATA: "DATA", Stage.CONTENT: "the message",
             Stage.END: "end of message"}

# What a code without an enhanced status means: (subject, detail) by code, where the stage does not say more.
_BY_CODE = {421: "3.2", 450: "2.0", 451: "3.0", 452: "3.1", 454: "7.0", 455: "5.4",
            500: "5.2", 501: "5.4", 502: "5.1", 503: "5.1", 504: "5.4", 521: "3.2", 530: "7.0", 534: "7.9", 535: "7.8",
            538: "7.11", 550: "0.0", 551: "1.6", 552: "3.4", 553: "1.0", 554: "0.0", 555: "5.4", 556: "1.10"}
_BY_CODE_AND_STAGE = {(550, Stage.RCPT): "1.1", (552, Stage.RCPT): "2.2", (553, Stage.RCPT): "1.3",
                      (452, Stage.RCPT): "5.3", (450, Stage.MAIL): "1.0", (553, Stage.MAIL): "1.7",
                      (550, Stage.END): "6.0", (554, Stage.END): "6.0", (450, Stage.END): "6.0",
                      (554, Stage.GREETING): "3.2"}
_STATUS = {Kind.LOST: "4.4.2", Kind.TIMEOUT: "4.4.2", Kind.PROTOCOL: "4.5.0", Kind.ABORTED: "4.3.0"}
_ABOUT_THE_HOST = frozenset((Stage.CONNECT, Stage.GREETING, Stage.HELLO, Stage.STARTTLS, Stage.IDLE, Stage.RSET,
                             Stage.QUIT))


def judge(trouble: Trouble, peer: Peer) -> Result:
    """What a trouble means for a recipient that it struck."""
    kind, stage, words = trouble.kind, trouble.stage, trouble.words
    if trouble.reply is not None:
        return _judge_reply(stage, trouble.reply, peer, words)
    if kind is Kind.MESSAGE:
        return Result(_outcome(trouble.status, f"{words} ({peer})", peer), False, Scope.MESSAGE)
    if kind is Kind.LOGIN:
        return Result(_outcome("4.7.8", f"cannot log in to {peer}: {words}", peer), False, Scope.LOGIN)
    if kind is Kind.TLS:
        return Result(_outcome("4.7.5", f"no TLS with {peer}: {words}", peer), True, Scope.HOST)
    if stage is Stage.CONNECT:
        return Result(_outcome("4.4.1", f"cannot connect to {peer}: {words or kind.value}", peer), True, Scope.HOST)
    status = _STATUS[kind]
    reason = f"{kind.value} with {peer} while {stage.value}" + (f": {words}" if words else "")
    if stage is Stage.END:
        reason += "; it may have the message, which may then arrive twice"
    if kind is Kind.ABORTED:
        return Result(deferred(status, reason), False, Scope.MESSAGE)
    return Result(_outcome(status, reason, peer), stage is not Stage.END, Scope.HOST)


def _judge_reply(stage: Stage, reply: Reply, peer: Peer, words: str) -> Result:
    status = status_of(reply, stage)
    scope = Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE
    if stage in _ABOUT_THE_HOST or reply.code == 421:
        scope = Scope.HOST
        if stage is not Stage.HELLO:
            status = "4" + status[1:]
    elif stage is Stage.AUTH:
        # A wrong or expired password is the operator's trouble and lasts until he notices: no mail may bounce for it.
        status, scope = "4" + status[1:], Scope.LOGIN
    elif stage is Stage.RCPT and status[1:] == ".5.3":  # RFC 5321 section 4.5.3.1.10: 552 means the same as 452 here
        status, scope = "4.5.3", Scope.TRANSACTION
    where = _COMMANDS.get(stage)
    reason = f"{peer} said: {reply.words}" + (f" (in reply to {where})" if where else "") + (
        f"; {words}" if words else "")
    elsewhere = stage is Stage.HELLO or (status[0] == "4" and scope is not Scope.LOGIN)
    return Result(_outcome(status, reason, peer, f"smtp; {reply.words}"), elsewhere, scope)


def taken(reply: Reply, peer: Peer) -> Result:
    """The result of a recipient whose message the host has taken."""
    found = delivered(reply.words, reply.status or "2.0.0")
    return Result(Outcome(found.status, found.reason, f"smtp; {found.reason}", peer.name))


def status_of(reply: Reply, stage: Stage) -> str:
    """The enhanced status of a negative reply: its own, else what code and stage tell."""
    if reply.status:
        return reply.status
    known = _BY_CODE_AND_STAGE.get((reply.code, stage)) or _BY_CODE.get(reply.code) or "0.0"
    return f"{reply.kind}.{known}"


def _outcome(status: str, reason: str, peer: Peer, diagnostic: str = "") -> Outcome:
    found = (deferred if status[0] == "4" else failed)(status, reason, diagnostic)
    return Outcome(found.status, found.reason, found.diagnostic, peer.name)
