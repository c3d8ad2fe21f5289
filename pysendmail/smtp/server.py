"""The server side of SMTP and LMTP without I/O: bytes in, events out; replies in, bytes out. One Server is one session.

    server = Server(settings); server.greet()
    then, whenever there is something:  server.receive(data), or server.lost()
                                        server.next_event()    until it is None
                                        server.answer(reply)   for each event that asks (requests.py)
                                        server.data_to_send()  to be written

The session answers by itself whatever needs no opinion: syntax, order, announced size, line ends, too much of anything.
The driver answers what does: may this sender, may this recipient, is it safe on disk.

Rules that hold everywhere, besides the table in order.py:

- Only `_moved` follows the table, and only after a positive reply.
- A transaction is one object, and replaced whole at every end: taken, refused, reset, EHLO, lost. (Exim 2017 and 2020
  and Postfix 2026 each forgot a field on one path.)
- While a decision is open nothing is read. After SessionEnded nothing is read or said.
- There is one buffer. Bytes that came before TLS are never read after it (CVE-2011-0411), and TLS makes the session
  new: hello, login and transaction are forgotten.
- No reply repeats what the client sent, and every reply has an enhanced status but those that RFC 2034 excepts.

RFC 5321, 2033, 2034, 2920, 3207, 3461, 4954, 6409, 6531.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..mail.envelope import Recipient
from . import grammar, requests, sasl
from .grammar import BadSyntax
from .order import FOREIGN, HELLOS, NOT_OFFERED, TABLE, State
from .profile import XCLIENT, Settings, keywords
from .receiving import TOO_BIG, Receiving, Transaction
from .reply import Reply, reply
from .session import TOO_LONG, Session
from .wire import LocalError

_EXTENSIONS = frozenset(("SIZE", "8BITMIME", "SMTPUTF8", "DSN"))  # those that bring parameters
_EXTENSIONS_AND_AUTH = _EXTENSIONS | {"AUTH"}

_OK = reply(250, "2.0.0", "ok")
_EARLY = reply(554, "5.5.0", "you talked before it was your turn")


class Server(Session):
    def __init__(self, settings: Settings, *, is_encrypted: bool = False) -> None:
        super().__init__(settings, is_encrypted=is_encrypted)
        self._is_lmtp = settings.profile.is_lmtp
        self._login: sasl.Exchange | None = None  # one that goes on

    # ---- what the driver tells and asks

    def greet(self, refusal: Reply | None = None) -> None:
        """Begin, or turn the client away; also one that has talked before its turn, where that is forbidden."""
        if self._state is not State.CONNECTED:
            raise LocalError("greeted twice")
        if refusal is None and self._is_leaving:
            self._leave()
            return
        if refusal is None and self.settings.forbids_early and len(self._reader):
            refusal = _EARLY
        if refusal is not None:
            self._end(refusal, f"turned away: {refusal.words}")
            return
        self._say(self._greeting())
        self._state = State.GREETED if self.settings.profile.needs_hello else State.READY

    def answer(self, answer: Reply | None = None) -> None:
        """The decision that is awaited. None = yes, in our words; a 421 ends the session.

        ContentEnded takes no None, and in LMTP one answer for every recipient; a yes to EHLO is always in our words.
        Nothing happens once the session has ended underneath the decision. Raises LocalError for what is no answer.
        """
        asked = self._open
        if self._state is State.CLOSED:
            return
        if isinstance(asked, requests.ContentEnded) and answer is not None:
            self.answer_each((answer,) * self._replies_due)
            return
        wanted = 3 if isinstance(asked, requests.ContentWanted) else 2
        if asked is None or isinstance(asked, requests.ContentEnded) or (answer and answer.kind not in (wanted, 4, 5)):
            raise LocalError("no answer to what was asked")
        self._open = None
        if answer is None or answer.kind == wanted:
            self._say(self._agreed(asked, answer))
            self._moved(self._command)
        elif isinstance(asked, requests.LoginGiven) and self._patience.failed_login():
            self._end(answer, "too many failed logins")
        else:
            self._refuse(answer)

    def answer_each(self, answers: Sequence[Reply]) -> None:
        """To ContentEnded: one answer in SMTP, in LMTP one for each of transaction.recipients, in their order."""
        if self._state is State.CLOSED:
            return
        is_asked = isinstance(self._open, requests.ContentEnded) and len(answers) == self._replies_due
        if not is_asked or any(answer.kind not in (2, 4, 5) for answer in answers):
            raise LocalError("no answer to what was asked")
        self._open = None
        self.transaction = Transaction()
        self._content_is_over(answers)

    def tls_started(self) -> None:
        """The handshake is done."""
        if self._state is not State.HANDSHAKE:
            raise LocalError("nobody wanted TLS")
        if len(self._reader):  # it came in the clear, and somebody wants it read as if it had not
            self._close("plaintext after STARTTLS")
            return
        self.is_encrypted, self.is_extended = True, False
        self.hello = self.user = self.mechanism = ""
        self._state = State.GREETED

    # ---- lines

    def _take_line(self, line: bytes) -> None:
        if self._login is not None:
            self._respond(self._login, line)
        else:
            self._take(line)

    def _lose_line(self) -> None:
        self._login = None

    def _take(self, line: bytes) -> None:
        """One command. Raises BadSyntax."""
        if line and not line[:1].isalpha() and not line.startswith((b" ", b"\t")):  # a TLS hello, JSON, ...
            self._end(reply(500, "5.5.2", "this is SMTP"), "another protocol")
            return
        verb, argument = grammar.parse_command(line)
        if verb in FOREIGN:
            self._end(reply(502, "5.5.1", "this is SMTP"), "another protocol")
        elif len(line) + 2 > self.settings.limits.command_line and verb != "AUTH":
            self._refuse(TOO_LONG)
        elif verb not in self._HANDLERS or (verb in HELLOS and (verb == "LHLO") != self._is_lmtp):
            self._refuse_unknown(verb)
        elif (self._state, "HELLO" if verb in HELLOS else verb) not in TABLE:
            self._refuse(reply(503, "5.5.1", f"out of order: {self._state.value}"))
        else:
            self._HANDLERS[verb](self, verb, argument)

    def _refuse_unknown(self, verb: str) -> None:
        if self._patience.unknown():
            self._end(reply(421, "4.7.0", "too many unknown commands"), "too many unknown commands")
        elif verb in NOT_OFFERED:
            self._refuse(reply(502, "5.5.1", "command is not implemented"))
        else:
            self._refuse(reply(500, "5.5.1", "command is not known"))

    # ---- commands; each may raise BadSyntax

    def _on_hello(self, verb: str, argument: str) -> None:
        name = grammar.parse_hello(argument)
        if self._waits_its_turn() and not (self.hello and self._is_junk()):
            self._ask(requests.HelloGiven(name, verb != "HELO"), "HELLO")

    def _on_xclient(self, _verb: str, argument: str) -> None:
        if not self.settings.allows_xclient:
            self._refuse(reply(550, "5.7.0", "not for you"))
        elif self._waits_its_turn():
            self._ask(requests.ProxyTold(grammar.parse_xclient(argument, XCLIENT)), "XCLIENT")

    def _on_starttls(self, _verb: str, argument: str) -> None:
        _no(argument)
        if not self.settings.offers_tls or self.is_encrypted:
            self._refuse(reply(502, "5.5.1", "STARTTLS is not offered"))
        elif len(self._reader):  # wherever early talk is let pass otherwise, here it is an attack
            self._end(_EARLY, "plaintext after STARTTLS")
        else:
            self._say(reply(220, "2.0.0", "ready for TLS"))
            self._moved("STARTTLS")
            self._events.append(requests.TlsWanted())

    def _on_auth(self, _verb: str, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        mechanism = mechanism.upper()
        if not self.settings.mechanisms or self.user:
            self._refuse(reply(503, "5.5.1", "AUTH is not offered"))
        elif not self.is_encrypted:  # the password would be everybody's
            self._refuse(reply(538, "5.7.11", "AUTH needs TLS"))
        elif mechanism not in self.settings.mechanisms:
            self._refuse(reply(504, "5.5.4", "mechanism is not offered"))
        else:
            self._login = sasl.Exchange(mechanism)
            if initial:
                self._respond(self._login, b"" if initial == "=" else initial.encode("utf-8", "surrogateescape"))
            else:
                self._prompt(self._login)

    def _respond(self, login: sasl.Exchange, line: bytes) -> None:
        """A line of the client in a login."""
        self._login = None
        if line == b"*":
            raise BadSyntax("login cancelled", "5.7.0")
        try:
            login.take(sasl.decode(line))
        except ValueError:
            raise BadSyntax("not a response in base64", "5.5.2")
        if login.prompt is not None:
            self._login = login
            self._prompt(login)
        else:
            self._ask(requests.LoginGiven(login.mechanism, login.identity, login.user, login.password), "AUTH")

    def _prompt(self, login: sasl.Exchange) -> None:
        self._say(reply(334, "", sasl.encode(login.prompt or b"").decode("ascii")))

    def _on_mail(self, _verb: str, argument: str) -> None:
        sender, parameters = grammar.parse_mail(argument, self._extensions())
        if self.settings.profile.needs_login and not self.user:
            words = "login is required" if self.is_encrypted else "login is required, and before it STARTTLS"
            self._refuse(reply(530, "5.7.0", words))
        elif parameters.size > self.settings.limits.message_size:
            self._refuse(TOO_BIG)
        elif not self.user and not self._patience.has_room:
            self._end(reply(421, "4.7.0", "too many messages in one session"), "too many messages")
        else:
            self._ask(requests.SenderGiven(sender, parameters), "MAIL")

    def _extensions(self) -> frozenset[str]:
        return _EXTENSIONS_AND_AUTH if self.settings.mechanisms else _EXTENSIONS

    def _on_rcpt(self, _verb: str, argument: str) -> None:
        transaction = self.transaction
        address, parameters = grammar.parse_rcpt(argument, self._extensions(), smtputf8=transaction.parameters.smtputf8)
        if len(transaction.recipients) >= self.settings.limits.recipients:
            self._refuse(reply(452, "4.5.3", "too many recipients"))
        else:
            recipient = Recipient(address, parameters.notify, parameters.orcpt)
            self._ask(requests.RecipientGiven(recipient), "RCPT")

    def _on_data(self, _verb: str, argument: str) -> None:
        _no(argument)
        if self._waits_its_turn():
            self._ask(requests.ContentWanted(), "DATA")

    def _on_rset(self, _verb: str, argument: str) -> None:
        _no(argument)
        if not self._is_junk():
            self._drop("RSET")
            self._say(_OK)
            self._moved("RSET")

    def _on_idle(self, verb: str, argument: str) -> None:
        """NOOP, HELP, VRFY, EXPN: nothing comes of them."""
        if self._is_junk():
            return
        if verb == "VRFY" and not argument:
            raise BadSyntax("an address is required")
        if _IDLE[verb].kind == 2:
            self._say(_IDLE[verb])
        else:
            self._refuse(_IDLE[verb])

    def _on_quit(self, _verb: str, argument: str) -> None:
        _no(argument)
        self._end(reply(221, "2.0.0", f"{self.settings.hostname} closing"), "QUIT")

    def _is_junk(self) -> bool:
        """Count a command that leads nowhere; True if it was one too many, and the session is over."""
        if self._patience.junk():
            self._end(reply(421, "4.7.0", "too many commands without a message"), "too many commands without a message")
        return self._state is State.CLOSED

    def _waits_its_turn(self) -> bool:
        """False, and the end, for a client that did not wait for the reply where it must (RFC 2920 section 3.1)."""
        if self.settings.forbids_early and len(self._reader):
            self._end(_EARLY, "talked before its turn")
        return self._state is not State.CLOSED

    def _greeting(self) -> Reply:
        return reply(220, "", f"{self.settings.hostname} {'LMTP' if self._is_lmtp else 'ESMTP'} pysendmail")

    # ---- decisions

    def _agreed(self, asked: requests.Asking, answer: Reply | None) -> Reply:
        """What a positive decision changes, and what the client hears of it."""
        if isinstance(asked, requests.HelloGiven):
            self._drop("EHLO")
            self.hello, self.is_extended = asked.name, asked.is_extended
            offered = keywords(self.settings, is_encrypted=self.is_encrypted, is_logged_in=bool(self.user))
            return reply(250, "", self.settings.hostname, *(offered if asked.is_extended else ()))
        if isinstance(asked, requests.ProxyTold):
            self._drop("XCLIENT")
            self.hello = ""
            return self._greeting()
        if isinstance(asked, requests.LoginGiven):
            self.user, self.mechanism = asked.user, asked.mechanism
            return answer or reply(235, "2.7.0", "logged in")
        if isinstance(asked, requests.SenderGiven):
            self.transaction = Transaction(asked.address, asked.parameters)
            return answer or reply(250, "2.1.0", "sender ok")
        if isinstance(asked, requests.RecipientGiven):
            self.transaction.recipients.append(asked.recipient)
            return answer or reply(250, "2.1.5", "recipient ok")
        self._content = Receiving(self.settings)
        self._replies_due = len(self.transaction.recipients) if self._is_lmtp else 1
        return answer or reply(354, "", "end with <CR><LF>.<CR><LF>")

    _HANDLERS: ClassVar[Mapping[str, Callable[["Server", str, str], None]]] = {
        "EHLO": _on_hello, "HELO": _on_hello, "LHLO": _on_hello, "XCLIENT": _on_xclient, "STARTTLS": _on_starttls,
        "AUTH": _on_auth, "MAIL": _on_mail, "RCPT": _on_rcpt, "DATA": _on_data, "RSET": _on_rset, "NOOP": _on_idle,
        "HELP": _on_idle, "VRFY": _on_idle, "EXPN": _on_idle, "QUIT": _on_quit}


_IDLE = {
    "NOOP": _OK,
    "HELP": reply(214, "2.0.0", "EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP STARTTLS AUTH", "see RFC 5321"),
    "VRFY": reply(252, "2.1.5", "not verified; whether it can be delivered shows when it is sent"),
    "EXPN": reply(502, "5.5.1", "lists are not expanded"),
}


def _no(argument: str) -> None:
    if argument:
        raise BadSyntax("no argument is allowed here")
