"""One message at one host: the commands that open it, what each reply means, and one Result per recipient at the end.

Pure bookkeeping for the client: it sends nothing and awaits nothing. What the host's extensions do not allow (too big,
an address that needs SMTPUTF8, an address that is none) is settled here before anything is said.

RFC 5321 section 3.3, RFC 2033 section 4.2 (LMTP: a reply for each accepted recipient after the final dot), RFC 1870
section 6.1, RFC 3461 section 5, RFC 6531 section 3.6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..mail.envelope import Recipient
from . import grammar
from .reply import Reply
from .trouble import Kind, Peer, Result, Scope, Stage, Trouble, judge, refusal, taken
from .wire import LocalError

Offers = Mapping[str, tuple[str, ...]]  # what EHLO listed: {KEYWORD: words behind it}


@dataclass(frozen=True, slots=True)
class Message:
    """What the peer must know of a message before it comes. sender "" = null.

    size: octets on the wire, 0 = not known. is_8bit: there are bytes above 127. is_irregular: it has lines over 998
    bytes, NUL or bare CR, and is recoded for every peer. smtputf8: its header needs that. ret, envid: as the envelope
    has them.
    """

    sender: str
    size: int = 0
    is_8bit: bool = False
    is_irregular: bool = False
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


class Step(NamedTuple):
    """A command whose reply is awaited. number: of its recipient (RCPT, END of LMTP)."""

    stage: Stage
    number: int = -1


class Transaction:
    """Results are given once: who has one keeps it, whatever comes later."""

    __slots__ = ("_message", "_peer", "_recipients", "_results", "accepted", "dsn_is_passed", "is_answered", "is_reuse")

    def __init__(self, message: Message, recipients: Sequence[Recipient], peer: Peer, *, is_reuse: bool) -> None:
        self._message = message
        self._recipients = tuple(recipients)
        self._peer = peer
        self._results: list[Result | None] = [None] * len(self._recipients)
        self.accepted: list[int] = []  # indexes of recipients whose RCPT got 2xx
        self.is_reuse = is_reuse  # of a session that has carried a message
        self.is_answered = False  # whether the peer has answered any of its commands
        self.dsn_is_passed = False

    def results(self) -> tuple[Result, ...]:
        """One per recipient. Raises LocalError as long as one is open."""
        found = tuple(result for result in self._results if result is not None)
        if len(found) != len(self._results):
            raise LocalError("a recipient without a result")
        return found

    def settle(self, trouble: Trouble, indexes: Sequence[int] | None = None) -> None:
        """The result of a trouble for these recipients, None = for all, as far as they are open."""
        self._give(judge(trouble, self._peer), range(len(self._results)) if indexes is None else indexes)

    def _give(self, result: Result, indexes: Sequence[int]) -> None:
        for index in indexes:
            if self._results[index] is None:
                self._results[index] = result

    # ---- what to say

    def commands(self, offers: Offers) -> list[tuple[Step, bytes]]:
        """MAIL, RCPT and DATA for this host; nothing if no recipient is left for them."""
        message = self._message
        has_utf8 = "SMTPUTF8" in offers
        limit = grammar.size_limit(offers.get("SIZE", ()))
        if limit and message.size > limit:
            self._refuse("5.3.4", f"message of {message.size} bytes is over the limit of {limit}")
            return []
        if message.smtputf8 and not has_utf8:
            self._refuse("5.6.7", "the header needs SMTPUTF8, which is not offered")
            return []
        try:
            sender = _path(message.sender, has_utf8)
        except ValueError as error:
            self._refuse("5.1.7" if message.sender.isascii() else "5.6.7", f"sender: {error}")
            return []
        paths = []
        for index, recipient in enumerate(self._recipients):
            try:
                paths.append((index, _path(recipient.address, has_utf8)))
            except ValueError as error:
                self._refuse("5.1.3" if recipient.address.isascii() else "5.6.7", str(error), (index,))
        if not paths:
            return []
        needs_utf8 = message.smtputf8 or not all(path.isascii() for path in (sender, *(p for _, p in paths)))
        self.dsn_is_passed = "DSN" in offers
        found = [(Step(Stage.MAIL), grammar.mail(sender, self._mail_parameters(offers, needs_utf8)))]
        found += [(Step(Stage.RCPT, index), grammar.rcpt(path, self._rcpt_parameters(index))) for index, path in paths]
        return [*found, (Step(Stage.DATA), grammar.command("DATA"))]

    def _refuse(self, status: str, words: str, indexes: Sequence[int] | None = None) -> None:
        self.settle(Trouble(Stage.MAIL, Kind.MESSAGE, words, status=status), indexes)

    def _mail_parameters(self, offers: Offers, needs_utf8: bool) -> grammar.MailParameters:
        message = self._message
        return grammar.MailParameters(
            size=message.size if "SIZE" in offers else 0,
            body="8bitmime" if message.is_8bit and "8BITMIME" in offers else "",
            smtputf8=needs_utf8,
            ret=message.ret if self.dsn_is_passed else "",
            envid=message.envid if self.dsn_is_passed and grammar.is_envid(message.envid) else "")

    def _rcpt_parameters(self, index: int) -> grammar.RcptParameters:
        recipient = self._recipients[index]
        if not self.dsn_is_passed:
            return grammar.RcptParameters()
        return grammar.RcptParameters(recipient.notify, recipient.orcpt if grammar.is_orcpt(recipient.orcpt) else "")

    def needs_7bit(self, offers: Offers) -> bool:
        return self._message.is_8bit and "8BITMIME" not in offers

    def must_recode(self, offers: Offers) -> bool:
        return self._message.is_irregular or self.needs_7bit(offers)

    # ---- what was answered; `reply` is of class 2, 4 or 5, to DATA of 3, 4 or 5

    def on_mail(self, reply: Reply) -> None:
        if reply.kind != 2:
            self.settle(refusal(Stage.MAIL, reply))

    def on_rcpt(self, index: int, reply: Reply) -> None:
        if self._results[index] is not None:  # MAIL was refused, and this was on its way already
            return
        if reply.kind == 2:
            self.accepted.append(index)
            return
        result = judge(refusal(Stage.RCPT, reply), self._peer)
        if result.scope is Scope.TRANSACTION and not self.accepted:  # then "too many" would be none at all
            result = replace(result, scope=Scope.RECIPIENT)
        self._give(result, (index,))

    def on_data(self, reply: Reply) -> None:
        if reply.kind != 3:
            self.settle(refusal(Stage.DATA, reply), self.accepted)

    def on_end(self, index: int, reply: Reply) -> None:
        """index -1: the reply is for all accepted recipients (SMTP), else for this one (LMTP)."""
        indexes = self.accepted if index < 0 else (index,)
        if reply.kind == 2:
            self._give(taken(reply, self._peer), indexes)
        else:
            self.settle(refusal(Stage.END, reply), indexes)


def _path(address: str, has_utf8: bool) -> bytes:
    """An address as this host can take it. Raises ValueError, whose text is for people."""
    path = grammar.path(address if has_utf8 else grammar.to_ascii(address))
    if not has_utf8 and not path.isascii():
        raise ValueError("address needs SMTPUTF8, which is not offered")
    return path
