"""`sendmail -bs`: SMTP on standard input and output, for the program that has started us (Symfony, Laravel, mutt).

The server core on a pipe, as the caller and without privilege: each message becomes a file in the drop as one does that
comes without SMTP (spool/dropbox.py), and gets its 250 once it is safe there. Nothing is decided here that intake does
not decide for every submission; what a recipient comes to is told by a report. LF is as good as CRLF, and input may
come all at once.

It ends with 0 after QUIT, and at the end of input where no message is under way; with 1 otherwise. Options besides -bs
change nothing.
"""

import os
import select
import signal
from types import FrameType

from ..config import identity
from ..mail.envelope import Fields, raw, recipient_value
from ..paths import Paths
from ..smtp import profile, requests
from ..smtp.profile import Limits
from ..smtp.reply import Reply, reply
from ..smtp.server import Server
from ..spool.dropbox import EX_DATAERR, Refused, Submission
from .sendmail import MAX_MESSAGE

CHUNK = 64 * 1024  # bytes read at once
IDLE = 3600.0  # seconds that the other side may be silent
STALLED = 300.0  # seconds that it may not read what we say
MANY = 1_000_000  # messages, and errors: the other side is whoever pays for them

EX_OK, EX_FAILED = 0, 1

_LIMITS = Limits(message_size=MAX_MESSAGE, messages=MANY, soft_errors=MANY, hard_errors=MANY, unknown_commands=MANY,
                 junk_commands=MANY)


class Stalled(Exception):
    """The other side has gone, or does not move."""


class Pipe:
    """One conversation. hostname: in the greeting."""

    def __init__(self, paths: Paths, hostname: str) -> None:
        self._paths = paths
        self._server = Server(profile.for_pipe(hostname, _LIMITS))
        self._drop: Submission | None = None
        self._is_clean = True  # nothing was lost

    def run(self) -> int:
        """Until it ends; the exit code."""
        server = self._server
        server.greet()
        try:
            while True:
                self._work()
                _write(server.data_to_send())
                if server.is_closed:
                    return EX_OK if self._is_clean else EX_FAILED
                data = _read()
                if data:
                    server.receive(data)
                else:
                    server.lost()
        except Stalled:
            self.give_up()
            return EX_FAILED

    def give_up(self) -> None:
        """Take back the message that is under way."""
        drop, self._drop = self._drop, None
        if drop is not None:
            drop.give_up()

    def _work(self) -> None:
        while (event := self._server.next_event()) is not None:
            if isinstance(event, requests.Content):
                self._add(event.data)
            elif isinstance(event, requests.ContentWanted):
                self._server.answer(self._begin())
            elif isinstance(event, requests.ContentEnded):
                self._server.answer(self._commit())
            elif isinstance(event, requests.TransactionDropped):
                self._is_clean = self._is_clean and self._drop is None
                self.give_up()
            elif not isinstance(event, requests.SessionEnded | requests.TlsWanted):
                self._server.answer()

    def _begin(self) -> Reply | None:
        """Begin a submission with the envelope."""
        self._drop = Submission(self._paths)
        try:
            self._drop.begin(self._fields())
        except (Refused, ValueError) as problem:
            return self._refused(problem)
        return None

    def _fields(self) -> Fields:
        """The fields of the drop file (docs/ARCHITECTURE.md)."""
        server = self._server
        given = server.transaction.parameters
        fields = [(b"Sender", b"<%s>" % raw(server.transaction.sender or "")),
                  (b"Protocol", b"ESMTP" if server.is_extended else b"SMTP")]
        fields += [(name, raw(value)) for name, value in (
            (b"Body", given.body), (b"Return", given.ret), (b"Envid", given.envid),
            (b"Smtputf8", "yes" if given.smtputf8 else "")) if value]
        for one in server.transaction.recipients:
            notify = ",".join(sorted(one.notify)).encode("ascii")
            fields.append((b"Recipient", recipient_value(raw(one.address), notify, raw(one.orcpt))))
        return fields

    def _add(self, data: bytes) -> None:
        if self._drop is None:
            return
        try:
            self._drop.write(data)
        except Refused as problem:
            self._server.refuse_content(self._refused(problem))

    def _commit(self) -> Reply:
        drop = self._drop
        if drop is None:
            return reply(451, "4.3.0", "the message was lost")
        try:
            drop.commit()
        except Refused as problem:
            return self._refused(problem)
        # The message is safe from here on.
        self._drop = None
        return reply(250, "2.0.0", f"{drop.name} Message accepted for delivery")

    def _refused(self, problem: Refused | ValueError) -> Reply:
        self.give_up()
        if isinstance(problem, Refused) and problem.code != EX_DATAERR:
            return reply(451, "4.3.0", str(problem))
        return reply(554, "5.6.0", str(problem))


def _read() -> bytes:
    """What the other side says, b"" at its end. Raises Stalled."""
    while True:
        _wait_for(0, select.POLLIN, IDLE)
        try:
            return os.read(0, CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            return b""


def _write(data: bytes) -> None:
    """Say something. Raises Stalled."""
    while data:
        try:
            data = data[os.write(1, data):]
        except BlockingIOError:  # node.js hands out pipes like that
            _wait_for(1, select.POLLOUT, STALLED)
        except OSError:
            raise Stalled


def _wait_for(fd: int, what: int, seconds: float) -> None:
    poll = select.poll()
    poll.register(fd, what)
    if not poll.poll(seconds * 1000):
        raise Stalled


def main(argv: list[str], paths: Paths) -> int:
    """The exit code."""
    pipe = Pipe(paths, identity.find(paths, identity.node_name()).hostname)

    def stop(number: int, _frame: FrameType | None) -> None:
        pipe.give_up()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    return pipe.run()
