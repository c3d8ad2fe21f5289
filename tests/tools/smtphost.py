"""An SMTP or LMTP server without I/O that follows a script, and a conversation between it and our client core.

It reads what the client sends by rules of its own, so that it shares no mistake with the code under test.
tests/tools/smtpsink.py is its counterpart on a socket.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pysendmail.smtp.client import Client, Closed, Event, Finished, SendMessage, StartTls
from pysendmail.smtp.transaction import Message

OFFERS = ("PIPELINING", "SIZE 100000", "8BITMIME", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES")
CLOSE = b"<close>"  # as a reply: no word, and the connection is gone

Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[n:n + 1] for n in range(len(data))]


@dataclass
class Host:
    """replies: {stage: bytes} in place of the usual ones; "rcpt 2" is the second RCPT of the session, "rcpt" every one.

    Stages: greeting ehlo helo lhlo starttls auth answer mail rcpt data end rset quit. CLOSE in a reply closes there.
    """

    offers: tuple[str, ...] = OFFERS
    replies: dict[str, bytes] = field(default_factory=dict)
    lmtp: bool = False
    commands: list[str] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)  # as on the wire, with the final dot
    early: list[str] = field(default_factory=list)  # commands that came with others without PIPELINING on offer
    is_closed: bool = False
    _input: bytes = b""
    _uses: dict[str, int] = field(default_factory=dict)
    _in_data: bool = False
    _in_auth: bool = False
    _has_sender: bool = False
    _recipients: int = 0

    def answer(self, stage: str, usual: bytes) -> bytes:
        use = self._uses[stage] = self._uses.get(stage, 0) + 1
        reply = self.replies.get(f"{stage} {use}", self.replies.get(stage, usual))
        if CLOSE in reply:
            self.is_closed = True
            reply = reply.partition(CLOSE)[0]
        return reply

    def greet(self) -> bytes:
        return self.answer("greeting", b"220 host.example ESMTP\r\n")

    def hear(self, data: bytes) -> bytes:
        """What it says to these bytes."""
        self._input += data
        said = b""
        while not self.is_closed:
            if self._in_data:
                end = self._end_of_data()
                if end < 0:
                    break
                self.messages.append(self._input[:end])
                self._input, self._in_data = self._input[end:], False
                said += self._end_replies()
                continue
            line, newline, rest = self._input.partition(b"\r\n")
            if not newline:
                break
            self._input = rest
            said += self._command(line.decode("utf-8"))
        return said

    def _end_of_data(self) -> int:
        if self._input.startswith(b".\r\n"):
            return 3
        end = self._input.find(b"\r\n.\r\n")
        return end + 5 if end >= 0 else -1

    def _end_replies(self) -> bytes:
        count, self._recipients, self._has_sender = (self._recipients if self.lmtp else 1), 0, False
        return b"".join(self.answer("end", b"250 2.0.0 taken\r\n") for _ in range(count))

    def _command(self, line: str) -> bytes:
        self.commands.append(line)
        if "PIPELINING" not in self.offers and self._input:
            self.early.append(line)
        if self._in_auth:
            return self._auth("answer", b"235 2.7.0 welcome\r\n")
        verb = line.split(" ")[0].lower()
        if verb in ("ehlo", "lhlo"):
            lines = ("host.example", *self.offers)
            usual = "".join(f"250{'-' if n < len(lines) - 1 else ' '}{text}\r\n" for n, text in enumerate(lines))
            return self.answer(verb, usual.encode())
        if verb == "auth":
            return self._auth("auth", b"235 2.7.0 welcome\r\n" if line.count(" ") > 1 else b"334 \r\n")
        said = self.answer(verb, self._usual(verb))
        is_good = said[:1] in (b"2", b"3")
        if verb == "rcpt":
            self._recipients += is_good
        elif verb == "data":
            self._in_data = is_good
        elif verb in ("mail", "rset"):
            self._has_sender, self._recipients = is_good and verb == "mail", 0
        return said

    def _usual(self, verb: str) -> bytes:
        if (verb == "rcpt" and not self._has_sender) or (verb == "data" and not self._recipients):
            return b"503 5.5.1 out of order\r\n"
        return {"starttls": b"220 2.0.0 go ahead\r\n", "data": b"354 go ahead\r\n", "quit": b"221 2.0.0 bye\r\n",
                }.get(verb, b"250 2.0.0 fine\r\n")

    def _auth(self, stage: str, usual: bytes) -> bytes:
        said = self.answer(stage, usual)
        self._in_auth = said.startswith(b"334")
        return said


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
