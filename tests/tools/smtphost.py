"""An SMTP or LMTP server without I/O that follows a script, and a conversation between it and our client core.

It reads what the client sends by rules of its own, so that it shares no mistake with the code under test.
tests/tools/smtpsink.py puts it on a socket.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field

from pysendmail.smtp.client import Client, Closed, Event, Finished, SendMessage, StartTls
from pysendmail.smtp.transaction import Message

OFFERS = ("PIPELINING", "SIZE 100000", "8BITMIME", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES")

# Within a reply: what comes before it is said, nothing after it. Only a socket can do more than close.
CLOSE = b"<close>"
RESET = b"<reset>"  # RST instead of FIN
STALL = b"<stall>"  # silence, while the connection stays
DRIP = b"<drip>"  # a reply without end, a byte now and then
ENDLESS = b"<endless>"  # a reply without end, as fast as it goes
FAULTS = (CLOSE, RESET, STALL, DRIP, ENDLESS)

Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[n:n + 1] for n in range(len(data))]


@dataclass
class Envelope:
    """A message that was sent whole: MAIL and RCPT arguments, and the content as on the wire with its final dot."""

    mail: str
    rcpts: list[str]
    wire: bytes
    user: str = ""
    is_encrypted: bool = False
    is_taken: bool = False  # the reply to the dot was positive

    @property
    def content(self) -> bytes:
        """As it lay at rest."""
        lines = self.wire[:-3].split(b"\r\n")
        return b"\n".join(line[1:] if line.startswith(b".") else line for line in lines)


@dataclass
class Host:
    """replies: {stage: bytes} in place of the usual ones; "rcpt 2" is the second RCPT of the session, "rcpt" every one.

    Stages: greeting ehlo helo lhlo starttls auth answer mail rcpt data end rset quit. A fault in a reply ends the talk.
    users: {name: password}; None = every login is good.
    """

    offers: tuple[str, ...] = OFFERS
    replies: dict[str, bytes] = field(default_factory=dict)
    lmtp: bool = False
    users: dict[str, str] | None = None
    commands: list[str] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    early: list[str] = field(default_factory=list)  # commands that came with others without PIPELINING on offer
    fault: bytes = b""
    wants_tls: bool = False
    is_encrypted: bool = False
    user: str = ""
    _input: bytes = b""
    _uses: dict[str, int] = field(default_factory=dict)
    _in_data: bool = False
    _login: list[str] | None = None  # mechanism and responses so far
    _sender: str | None = None
    _recipients: list[str] = field(default_factory=list)

    @property
    def messages(self) -> list[bytes]:
        return [envelope.wire for envelope in self.envelopes]

    @property
    def is_closed(self) -> bool:
        return bool(self.fault)

    def answer(self, stage: str, usual: bytes) -> bytes:
        use = self._uses[stage] = self._uses.get(stage, 0) + 1
        reply = self.replies.get(f"{stage} {use}", self.replies.get(stage, usual))
        for fault in FAULTS:
            if fault in reply:
                self.fault = fault
                reply = reply.partition(fault)[0]
        return reply

    def greet(self) -> bytes:
        return self.answer("greeting", b"220 host.example ESMTP\r\n")

    def hear(self, data: bytes) -> bytes:
        """What it says to these bytes."""
        self._input += data
        said = b""
        while not self.fault:
            if self._in_data:
                end = self._end_of_data()
                if end < 0:
                    break
                wire, self._input, self._in_data = self._input[:end], self._input[end:], False
                said += self._end(wire)
                continue
            line, newline, rest = self._input.partition(b"\r\n")
            if not newline:
                break
            self._input = rest
            said += self._command(line.decode("utf-8"))
        return said

    def tls_started(self) -> None:
        self.wants_tls, self.is_encrypted, self._input = False, True, b""

    def _end_of_data(self) -> int:
        if self._input.startswith(b".\r\n"):
            return 3
        end = self._input.find(b"\r\n.\r\n")
        return end + 5 if end >= 0 else -1

    def _end(self, wire: bytes) -> bytes:
        envelope = Envelope(self._sender or "", self._recipients, wire, self.user, self.is_encrypted)
        count, self._recipients, self._sender = (len(self._recipients) if self.lmtp else 1), [], None
        said = b"".join(self.answer("end", b"250 2.0.0 taken\r\n") for _ in range(count))
        envelope.is_taken = said.startswith(b"2") and said.endswith(b"\r\n")
        self.envelopes.append(envelope)
        return said

    def _command(self, line: str) -> bytes:
        self.commands.append(line)
        if "PIPELINING" not in self.offers and self._input:
            self.early.append(line)
        if self._login is not None:
            return self._auth("answer", line)
        verb, _, argument = line.partition(" ")
        verb = verb.lower()
        if verb in ("ehlo", "lhlo"):
            lines = ("host.example", *(o for o in self.offers if o != "STARTTLS" or not self.is_encrypted))
            usual = "".join(f"250{'-' if n < len(lines) - 1 else ' '}{text}\r\n" for n, text in enumerate(lines))
            return self.answer(verb, usual.encode())
        if verb == "auth":
            mechanism, _, response = argument.partition(" ")
            self._login = [mechanism.upper()]
            return self._auth("auth", response or None)
        said = self.answer(verb, self._usual(verb))
        is_good = said[:1] in (b"2", b"3")
        if verb == "starttls":
            self.wants_tls = is_good
        elif verb == "data":
            self._in_data = is_good
        elif verb == "rcpt" and is_good:
            self._recipients.append(argument)
        elif verb in ("mail", "rset"):
            self._sender, self._recipients = (argument if is_good and verb == "mail" else None), []
        return said

    def _usual(self, verb: str) -> bytes:
        if (verb == "rcpt" and self._sender is None) or (verb == "data" and not self._recipients):
            return b"503 5.5.1 out of order\r\n"
        return {"starttls": b"220 2.0.0 go ahead\r\n", "data": b"354 go ahead\r\n", "quit": b"221 2.0.0 bye\r\n",
                }.get(verb, b"250 2.0.0 fine\r\n")

    def _auth(self, stage: str, response: str | None) -> bytes:
        login, self._login = self._login or [], None
        if response is not None:
            login.append(response)
        needed = 3 if login[0] == "LOGIN" else 2
        usual = b"334 \r\n" if len(login) < needed else self._judged(login)
        said = self.answer(stage, usual)
        if said.startswith(b"334"):
            self._login = login
        return said

    def _judged(self, login: list[str]) -> bytes:
        try:
            words = [base64.b64decode(word, validate=True).decode() for word in login[1:]]
        except (binascii.Error, UnicodeDecodeError):
            return b"501 5.5.2 not base64\r\n"
        name, password = words if login[0] == "LOGIN" else [*words[0].split("\0"), "", ""][1:3]
        if self.users is not None and self.users.get(name) != password:
            return b"535 5.7.8 no\r\n"
        self.user = name
        return b"235 2.7.0 welcome\r\n"


@dataclass
class Told:
    """What the client told its driver in a conversation."""

    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> list[Finished]:
        return [e for e in self.events if isinstance(e, Finished)]

    @property
    def closed(self) -> Closed | None:
        ends = [e for e in self.events if isinstance(e, Closed)]
        assert len(ends) <= 1
        return ends[0] if ends else None

    @property
    def sends(self) -> list[SendMessage]:
        return [e for e in self.events if isinstance(e, SendMessage)]

    def statuses(self, transaction: int = -1) -> list[str]:
        return [r.outcome.status for r in self.finished[transaction].results]


MESSAGE = Message("sender@example.org", size=20)
CONTENT = b"Subject: x\n\n.dot\n"


def converse(client: Client, host: Host, *, cut: Cut = whole, content: bytes = CONTENT,
             said: bytes | None = None) -> Told:
    """Let the two talk until neither has anything to say. `said`: what the host says first, None = its greeting."""
    told = Told()
    data = host.greet() if said is None else said
    while True:
        for piece in cut(data):
            client.receive(piece)
            _work(client, told, content)
        if host.is_closed:
            client.lost()
            _work(client, told, content)
        out = client.data_to_send()
        data = host.hear(out)
        if not out and not data:
            return told


def _work(client: Client, told: Told, content: bytes) -> None:
    """What a driver does with the events that there are."""
    while (event := client.next_event()) is not None:
        told.events.append(event)
        if isinstance(event, StartTls):
            client.tls_started()
        elif isinstance(event, SendMessage):
            for piece in bytewise(content):
                client.send_message(piece)
            client.end_message()
