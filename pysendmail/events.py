"""Mail events as verbs: each is one line to syslog and one counter.

The lines have sendmail's grammar and tag, because logwatch, mailgraph and fail2ban read that: `ID: from=..., size=...`,
`ID: to=..., delay=..., mailer=..., dsn=..., stat=...`. What came from outside is escaped and capped here, in one place
(log injection; Exim CVE-2011-1764 used data as a format).

A log that is full or gone never stops mail: a line that /dev/log does not take at once is counted and dropped.
"""

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable

from .mail.outcome import Outcome

FACILITY_MAIL = 2 << 3
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
MAX_FIELD = 256  # characters of one value
MAX_LINE = 900  # bytes: what every syslog takes in one datagram
RECONNECT_AFTER = 5.0  # seconds between attempts to reach a log that is gone


def shown(text: str, limit: int = MAX_FIELD) -> str:
    """Outside text for a log line: printable, on one line, capped. Undecodable bytes become \\xNN."""
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text
    safe = "".join(c if c.isprintable() else _escape(c) for c in text[:limit])
    return safe if len(text) <= limit else safe + "..."


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\x{code:02x}"


def duration(seconds: float) -> str:
    """sendmail's way: 00:00:07, or 2+03:04:05 with days."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}+{clock}" if days else clock


class Syslog:
    """A line at a time to /dev/log, never blocking.

    A process that was forked may have closed all that it has inherited: it connects anew, since the number of the old
    descriptor can be that of another file by now.
    """

    def __init__(self, tag: str = "sendmail", path: str = "/dev/log", clock: Callable[[], float] = time.time) -> None:
        self._tag = tag
        self._path = path
        self._clock = clock
        self._socket: socket.socket | None = None
        self._owner = 0  # the process that has connected
        self._next_try = 0.0
        self.dropped = 0

    def __call__(self, priority: int, text: str) -> None:
        now = self._clock()
        if self._owner != os.getpid():
            self._leave_to_parent()
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(now))
        line = f"<{FACILITY_MAIL | priority}>{stamp} {self._tag}[{os.getpid()}]: {text}"
        if not self._send(line.encode("utf-8", "backslashreplace")[:MAX_LINE], now):
            self.dropped += 1

    def _send(self, line: bytes, now: float) -> bool:
        for _ in range(2):  # the second time: to a log that was started anew
            if self._socket is None and not self._connect(now):
                return False
            assert self._socket is not None
            try:
                self._socket.send(line)
                return True
            except BlockingIOError:
                return False
            except OSError:
                self._socket.close()
                self._socket = None
        return False

    def _leave_to_parent(self) -> None:
        if self._socket is not None:
            self._socket.detach()  # closing it would close whatever has its number
            self._socket = None
        self._owner, self._next_try = os.getpid(), 0.0

    def _connect(self, now: float) -> bool:
        if 0 < self._next_try - now <= RECONNECT_AFTER:  # (a clock that went back does not silence us)
            return False
        self._next_try = now + RECONNECT_AFTER
        try:
            log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return False
        log.setblocking(False)
        try:
            log.connect(self._path)
        except OSError:
            log.close()
            return False
        self._socket = log
        return True


def to_stderr(priority: int, text: str) -> None:
    """A log for the demo and for tests: one line on standard error."""
    print(text, file=sys.stderr, flush=True)


Log = Callable[[int, str], None]


class Events:
    """The verbs. `counts` is what `pysendmail status` shows."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.counts: Counter[str] = Counter()

    def started(self, version: str) -> None:
        self._log(INFO, f"starting daemon ({version}): SMTP+queueing")

    def stopped(self, reason: str) -> None:
        self._log(INFO, f"stopping daemon, reason={reason}")

    def accepted(self, queue_id: str, sender: str, size: int, recipients: int, message_id: str, relay: str, *,
                 body: str = "", protocol: str = "") -> None:
        """A message is in the queue. relay: login@localhost for a command, the client otherwise."""
        self.counts["accepted"] += 1
        extra = (f", bodytype={body.upper()}" if body else "") + (f", proto={protocol}" if protocol else "")
        self._log(INFO, f"{queue_id}: from=<{shown(sender)}>, size={size}, class=0, nrcpts={recipients}, "
                        f"msgid={shown(message_id)}{extra}, relay={shown(relay)}")

    def tried(self, queue_id: str, address: str, outcome: Outcome, *, controller: str, delay: float, took: float,
              mailer: str, relay: str = "", size: int = 0) -> None:
        """One target has an outcome. controller: who caused it, `<address> (uid/gid)`, or ""."""
        if outcome.is_delivered:
            verb, stat, priority = "delivered", f"Sent ({shown(outcome.reason)})", INFO
        elif outcome.is_deferred:
            verb, stat, priority = "deferred", f"Deferred: {shown(outcome.reason)}", INFO
        else:
            verb, priority = "failed", NOTICE
            stat = "User unknown" if outcome.status == "5.1.1" and mailer == "local" else shown(outcome.reason)
        self.counts[verb] += 1
        control = f"ctladdr={shown(controller)}, " if controller else ""
        self._log(priority, f"{queue_id}: to=<{shown(address)}>, {control}delay={duration(delay)}, "
                            f"xdelay={duration(took)}, mailer={mailer}, pri={size}, relay={shown(relay or mailer)}, "
                            f"dsn={outcome.status}, stat={stat}")

    def reported(self, queue_id: str, report_id: str, kind: str, reason: str) -> None:
        """A report about a message is queued under its own id. kind: DSN, return receipt, postmaster notify."""
        self.counts["reports"] += 1
        self._log(INFO, f"{queue_id}: {report_id}: {kind}: {shown(reason)}")

    def forwarded(self, queue_id: str, user: str, targets: int) -> None:
        self._log(INFO, f"{queue_id}: clone: owner={shown(user)}, {targets} targets from .forward")

    def refused(self, what: str, reason: str) -> None:
        """Something was not taken in: a drop file in quarantine, a client of a socket turned away."""
        self.counts["refused"] += 1
        self._log(WARNING, f"NOQUEUE: {shown(what)}: {shown(reason)}")

    def noted(self, queue_id: str, text: str) -> None:
        self._log(INFO, f"{queue_id}: {shown(text, MAX_LINE)}")

    def warned(self, text: str) -> None:
        self._log(WARNING, shown(text, MAX_LINE))

    def trouble(self, text: str) -> None:
        """Something an administrator must look at."""
        self.counts["trouble"] += 1
        self._log(ERROR, f"SYSERR(root): {shown(text, MAX_LINE)}")
