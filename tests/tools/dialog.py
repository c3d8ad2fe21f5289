"""Dialogues as data: one SMTP conversation in each file of tests/dialogs, to be run against anything that serves SMTP.

    # a comment; what stands above the first turn are settings
    profile smtp              smtp submission submissions lmtp bs
    ends strict               line ends: strict normalise pipe
    limit message_size 1000   any field of profile.Limits
    tls                       STARTTLS is on offer
    login                     AUTH is on offer, for "alice" with the password "secret"
    only core                 the ways it can be run, of core, tcp and bs; all if not said

    C: EHLO client.example    sent with CRLF; C lines that follow one another are one write
    R: a\r\nb\x00             sent as it is, with Python's escapes
    S: 250-host*              a reply line; * is any text
    S: 250-...                any further lines of this reply but its last
    S: 250 HELP
    TLS                       the handshake, after 220 to STARTTLS
    CLOSED                    the server has ended the session
    EOF                       the client closes
    TAKEN <a@b> alice bob     the message that was taken, and for whom; then its lines as it lies at rest:
    M: Subject: x

Known recipients are alice, bob, carol and postmaster, with any domain or none. What only the core's driver here knows:
"busy" gets 451, a sender "evil@..." 550, a message with "X-Full: yes" 452, and over LMTP the copy for "busy2" gets 452.
A dialogue for bs has no limits set, no TLS, and no recipient that would be refused.
"""

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pysendmail.smtp import profile, requests
from pysendmail.smtp.profile import Limits, Settings
from pysendmail.smtp.reply import Reply, reply
from pysendmail.smtp.server import Server
from pysendmail.smtp.wire import LineEnds

DIALOGS = Path(__file__).resolve().parents[1] / "dialogs"
HOSTNAME = "server.example"
KNOWN = frozenset(("alice", "bob", "carol", "postmaster", "busy2"))


@dataclass
class Turn:
    """kind: send, expect, tls, closed, eof, taken."""

    kind: str
    line: int
    data: bytes = b""
    patterns: list[str] = field(default_factory=list)
    sender: str = ""
    recipients: list[str] = field(default_factory=list)


@dataclass
class Dialog:
    name: str
    profile: str = "smtp"
    ends: str = "strict"
    limits: dict[str, int] = field(default_factory=dict)
    tls: bool = False
    login: bool = False
    only: tuple[str, ...] = ("core", "tcp", "bs")
    turns: list[Turn] = field(default_factory=list)

    def settings(self, way: str = "core") -> Settings:
        limits = Limits(**self.limits)
        if "bs" in (self.profile, way):
            return profile.for_pipe(HOSTNAME, limits)
        ends = LineEnds(self.ends)
        return Settings(HOSTNAME, profile.PROFILES[self.profile], limits, self.tls,
                        profile.MECHANISMS if self.login else (), ends, ends is LineEnds.STRICT)


def read(path: Path) -> Dialog:
    found = Dialog(path.stem)
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if line and not line.startswith("#"):
            _read_line(found, number, line)
    return found


def _read_line(dialog: Dialog, number: int, line: str) -> None:
    word, _, rest = line.partition(" ")
    last = dialog.turns[-1] if dialog.turns else None
    if word in ("C:", "R:"):
        data = rest.encode() + b"\r\n" if word == "C:" else ast.literal_eval(f'b"{rest}"')
        if last is None or last.kind != "send":
            dialog.turns.append(Turn("send", number, data))
        else:
            last.data += data
    elif word == "S:":
        if last is None or last.kind != "expect":
            dialog.turns.append(Turn("expect", number, patterns=[rest]))
        else:
            last.patterns.append(rest)
    elif word == "TAKEN":
        sender, *recipients = rest.split(" ")
        dialog.turns.append(Turn("taken", number, sender=sender[1:-1], recipients=recipients))
    elif word == "M:" and last is not None and last.kind == "taken":
        last.data += ast.literal_eval(f'b"""{rest}"""') + b"\n"
    elif word in ("TLS", "CLOSED", "EOF"):
        dialog.turns.append(Turn(word.lower(), number))
    elif word == "limit":
        name, value = rest.split(" ")
        dialog.limits[name] = int(value)
    elif word in ("profile", "ends"):
        setattr(dialog, word, rest)
    elif word in ("tls", "login"):
        setattr(dialog, word, True)
    elif word == "only":
        dialog.only = tuple(rest.split(" "))
    else:
        raise ValueError(f"{dialog.name}:{number}: {line}")


def talk(terms: Settings, is_encrypted: bool, pieces: Iterable[bytes]) -> tuple[bytes, "Porter"]:
    """What a server says to a client that sends these pieces, whatever it hears, and what became of that."""
    server = Server(terms, is_encrypted=is_encrypted)
    porter = Porter(server)
    server.greet()
    said = server.data_to_send()
    for piece in pieces:
        server.receive(piece)
        porter.work()
        said += server.data_to_send()
        if porter.wants_tls:
            porter.wants_tls = False
            server.tls_started()
            porter.work()
    return said, porter


@dataclass
class Porter:
    """A driver that knows what the dialogues expect of one. taken: (sender, recipients, content)."""

    server: Server
    taken: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    ended: str = ""
    wants_tls: bool = False
    _content: bytes = b""

    def work(self) -> None:
        """Act on all events that there are."""
        while (event := self.server.next_event()) is not None:
            if isinstance(event, requests.Content):
                self._content += event.data
            elif isinstance(event, requests.TlsWanted):
                self.wants_tls = True
            elif isinstance(event, requests.TransactionDropped):
                self.dropped.append(event.why)
                self._content = b""
            elif isinstance(event, requests.SessionEnded):
                assert not self.ended
                self.ended = event.why
            elif isinstance(event, requests.ContentEnded):
                self._decide()
            else:
                self.server.answer(self._opinion(event))

    def _decide(self) -> None:
        transaction, content, self._content = self.server.transaction, self._content, b""
        names = [recipient.address for recipient in transaction.recipients]
        if b"X-Full: yes\n" in content:
            self.server.answer(reply(452, "4.3.1", "disk is full"))
            return
        good = [name for name in names if not name.startswith("busy2")]
        if self.server.settings.profile.is_lmtp:
            self.server.answer_each([reply(250, "2.0.0", f"taken for {name}") if name in good
                                     else reply(452, "4.2.2", "mailbox is full") for name in names])
        else:
            self.server.answer(reply(250, "2.0.0", "taken"))
        self.taken.append((transaction.sender or "", good, content))

    def _opinion(self, event: requests.Asking) -> Reply | None:
        if isinstance(event, requests.SenderGiven) and event.address.startswith("evil@"):
            return reply(550, "5.7.1", "sender is not wanted")
        if isinstance(event, requests.RecipientGiven):
            local = event.recipient.address.partition("@")[0].lower()
            if local == "busy":
                return reply(451, "4.3.0", "cannot tell")
            return None if local in KNOWN else reply(550, "5.1.1", "no such user")
        if isinstance(event, requests.LoginGiven) and (event.user, event.password) != ("alice", "secret"):
            return reply(535, "5.7.8", "wrong name or password")
        return None


Cut = Callable[[bytes], list[bytes]]


def run_core(dialog: Dialog, cut: Cut, way: str = "core") -> None:
    """The dialogue against the server core, on the terms of a port or of a pipe (way "bs").

    Raises AssertionError at the first turn that does not go as written.
    """
    server = Server(dialog.settings(way), is_encrypted=dialog.profile == "submissions")
    porter = Porter(server)
    server.greet()
    said = server.data_to_send()
    for turn in dialog.turns:
        where = f"{dialog.name}.txt:{turn.line}"
        if turn.kind == "send":
            assert said == b"", f"{where}: the server said {said!r} before that"
            for piece in cut(turn.data):
                server.receive(piece)
                porter.work()
                said += server.data_to_send()
        elif turn.kind == "expect":
            said = expect(turn.patterns, said, where)
        elif turn.kind == "tls":
            assert porter.wants_tls, where
            porter.wants_tls = False
            server.tls_started()
        elif turn.kind == "eof":
            server.lost()
            porter.work()
        elif turn.kind == "taken":
            assert porter.taken.pop(0) == (turn.sender, turn.recipients, turn.data), where
        else:
            assert server.is_closed, f"{where}: the session goes on"
            assert porter.ended, where
    assert said == b"", f"{dialog.name}: the server went on: {said!r}"
    assert porter.taken == [], f"{dialog.name}: taken, but not in the dialogue"


def expect(patterns: list[str], said: bytes, where: str) -> bytes:
    """What is left of the server's words after lines that match the patterns."""
    lines = said.split(b"\r\n")
    for pattern in patterns:
        if pattern.endswith("-..."):
            while lines[0].startswith(pattern[:4].encode()):
                lines.pop(0)
            continue
        regex = ".*".join(re.escape(part) for part in pattern.split("*"))
        assert re.fullmatch(regex, lines[0].decode("ascii")), f"{where}: {lines[0]!r} is not {pattern!r}"
        lines.pop(0)
    return b"\r\n".join(lines)
