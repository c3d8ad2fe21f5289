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
MAX_WORD = 200  # bytes of what a stranger has made up, in a line that goes on with who the stranger is
MAX_LINE = 900  # bytes: what every syslog takes in one datagram
RECONNECT_AFTER = 5.0  # seconds between attempts to reach a log that is gone


def shown(text: str, limit: int = MAX_FIELD) -> str:
    """Outside text for a log line: printable, on one line, capped. Undecodable bytes become \\xNN."""
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text
    safe = "".join(c if c.isprintable() else _escape(c) for c in text[:limit])
    return safe if len(text) <= limit else safe + "..."


def _one_word(text: str) -> str:
    """A stranger's address or login name in a line that fail2ban reads.

    A blank or a bracket in it could end it, go on with `relay=[` and have another host banned; so could its mere length
    if the line were cut behind that. Capped in bytes, and once it is escaped.
    """
    safe = "".join(_escape(c) if c in " <>" or not c.isprintable() else c for c in text[:MAX_WORD])
    return safe.encode("utf-8")[:MAX_WORD].decode("utf-8", "ignore")


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

    def __call__(self, priority: int, text: str) -> None:
        now = self._clock()
        if self._owner != os.getpid():
            self._leave_to_parent()
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime(now))
        line = f"<{FACILITY_MAIL | priority}>{stamp} {self._tag}[{os.getpid()}]: {text}"
        self._send(line.encode("utf-8", "backslashreplace")[:MAX_LINE], now)

    def _send(self, line: bytes, now: float) -> None:
        for _ in range(2):  # the second time: to a log that was started anew
            if self._socket is None and not self._connect(now):
                return
            assert self._socket is not None
            try:
                self._socket.send(line)
                return
            except BlockingIOError:
                return
            except OSError:
                self._socket.close()
                self._socket = None

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
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass  # as above: it is full or gone


Log = Callable[[int, str], None]


class Events:
    """The verbs. `counts` is what `pysendmail status` shows. alive: for whoever has been busy without a word."""

    def __init__(self, log: Log, alive: Callable[[], None] = lambda: None) -> None:
        self._log, self.alive = log, alive
        self.counts: Counter[str] = Counter()

    def started(self, version: str) -> None:
        self._log(INFO, f"starting daemon ({version}): SMTP+queueing")

    def stopped(self, reason: str) -> None:
        self._log(INFO, f"stopping daemon, reason={reason}")

    def accepted(self, queue_id: str, sender: str, size: int, recipients: int, message_id: str, relay: str, *,
                 body: str = "", protocol: str = "", daemon: str = "", tag: str = "") -> None:
        """A message is in the queue. relay: login@localhost for a command, the client otherwise. daemon: by SMTP. tag:
        what a command called itself for the log (-L)."""
        self.counts["accepted"] += 1
        extra = (f", bodytype={body.upper()}" if body else "") + (f", proto={protocol}" if protocol else "") + (
            f", daemon={daemon}" if daemon else "") + (f", tag={shown(tag)}" if tag else "")
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
        """A report about a message is queued under its own id. kind: DSN, sender notify, postmaster notify."""
        self.counts["reports"] += 1
        self._log(INFO, f"{queue_id}: {report_id}: {kind}: {shown(reason)}")

    def forwarded(self, queue_id: str, user: str, targets: int) -> None:
        """A .forward has taken a mailbox's place. ("DEBUG:" is what log readers of sendmail pass over.)"""
        self._log(INFO, f"{queue_id}: DEBUG: .forward of {shown(user)}: {targets} targets")

    def refused(self, what: str, reason: str) -> None:
        """Something was not taken in: a drop file in quarantine, a client of a socket turned away."""
        self.counts["refused"] += 1
        self._log(WARNING, f"NOQUEUE: {shown(what)}: {shown(reason)}")

    def shook_hands(self, words: str) -> None:
        """There is TLS with a host that gets mail, or it did not work. words: relay= and what sendmail says then."""
        self._log(INFO, f"STARTTLS=client, {shown(words, MAX_LINE)}")

    def noted(self, queue_id: str, text: str) -> None:
        self._log(INFO, f"{queue_id}: {shown(text, MAX_LINE)}")

    def warned(self, text: str) -> None:
        self._log(WARNING, shown(text, MAX_LINE))

    def trouble(self, text: str) -> None:
        """Something an administrator must look at."""
        self.counts["trouble"] += 1
        self._log(ERROR, f"SYSERR(root): {shown(text, MAX_LINE)}")


class ClientEvents(Events):
    """What happens with clients of a listener. relay: `name [address]`; ids are the message's that is under way.

    The words are sendmail's, which fail2ban and logwatch look for.
    """

    def turned_away(self, queue_id: str, host: str, address: str, relay: str, words: str) -> None:
        """A client did not get in. words: code, status, text."""
        self.counts["turned away"] += 1
        self._log(NOTICE, f"{queue_id}: ruleset=check_relay, arg1={shown(host)}, arg2={shown(address)}, "
                          f"relay={shown(relay)}, reject={shown(words)}")

    def without_recipients(self, queue_id: str, sender: str, relay: str, protocol: str, daemon: str) -> None:
        """A client gave up a message none of whose recipients was taken."""
        self._log(INFO, f"{queue_id}: from=<{shown(sender)}>, size=0, class=0, nrcpts=0, proto={protocol}, "
                        f"daemon={daemon}, relay={shown(relay)}")

    def rejected(self, queue_id: str, ruleset: str, argument: str, relay: str, words: str) -> None:
        """A sender or recipient was refused, with these words behind `argument`, or put off. ruleset: check_mail ..."""
        self.counts["rejected"] += 1
        code, _, rest = words.partition(" ")
        status, _, text = rest.partition(" ")
        address = _one_word(argument)
        self._log(NOTICE, f"{queue_id}: ruleset={ruleset}, arg1=<{address}>, relay={shown(relay)}, "
                          f"reject={code} {status} <{address}>... {shown(text)}")

    def content_refused(self, queue_id: str, relay: str, words: str) -> None:
        """A message was refused at its end, or in the middle of it."""
        self.counts["rejected"] += 1
        self._log(NOTICE, f"{queue_id}: from {shown(relay)}, content is not taken, reject={shown(words)}")

    def lost(self, queue_id: str, relay: str, daemon: str, after: str) -> None:
        """A client went without a word. after: its last command."""
        self.counts["lost"] += 1
        self._log(NOTICE, f"{queue_id}: lost input channel from {shown(relay)} to {daemon} after {after}")

    def timed_out(self, queue_id: str, relay: str, where: str) -> None:
        """A client was too slow. where: "server cmd read", "message read"."""
        self.counts["timed out"] += 1
        self._log(NOTICE, f"{queue_id}: timeout waiting for input from {shown(relay)} during {where}")

    def idled(self, queue_id: str, relay: str, daemon: str) -> None:
        """A client came and went without a message."""
        self._log(INFO, f"{queue_id}: {shown(relay)} did not issue MAIL/EXPN/VRFY/ETRN during connection to {daemon}")

    def talked_early(self, queue_id: str, relay: str, seconds: float) -> None:
        """A client did not wait for the greeting."""
        self.counts["turned away"] += 1
        self._log(NOTICE, f"{queue_id}: rejecting commands from {shown(relay)} due to pre-greeting traffic after "
                          f"{int(seconds)} seconds")

    def shown_out(self, queue_id: str, relay: str, why: str) -> None:
        """We ended a session: too many errors, another protocol ..."""
        self._log(NOTICE, f"{queue_id}: {shown(relay)}: session ended: {shown(why)}")

    def encrypted(self, relay: str, version: str, cipher: str, bits: int) -> None:
        self._log(INFO, f"STARTTLS=server, relay={shown(relay)}, version={shown(version)}, verify=NO, "
                        f"cipher={shown(cipher)}, bits={bits}/{bits}")

    def not_encrypted(self, relay: str, why: str) -> None:
        self._log(NOTICE, f"STARTTLS=server, error: accept failed: {shown(why)}, relay={shown(relay)}")

    def logged_in(self, relay: str, user: str, mechanism: str) -> None:
        self.counts["logins"] += 1
        self._log(INFO, f"AUTH=server, relay={shown(relay)}, authid={shown(user)}, mech={mechanism}, bits=0")

    def login_failed(self, relay: str, user: str, mechanism: str) -> None:
        self.counts["failed logins"] += 1
        self._log(NOTICE, f"AUTH failure ({mechanism}): authentication failure: checkpass failed, "
                          f"user={_one_word(user)}, relay={shown(relay)}")

    def attacked(self, queue_id: str, relay: str, count: int) -> None:
        """A client guesses passwords."""
        self._log(NOTICE, f"{queue_id}: {shown(relay)}: possible SMTP attack: command=AUTH, count={count}")
