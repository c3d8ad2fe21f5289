"""What became of one recipient or one target: a value, not an exception.

Status and reason are never empty; absent text is the empty string, never None. Anything unclear is temporary: only a
positive answer ("no such user", a 5xx reply) may become a permanent failure. RFC 3463 (codes), RFC 3464 (action).
"""

from dataclasses import dataclass
from typing import Any, Self

MAX_REASON = 400  # characters: what a log line, a mailq line and a report can carry

_DIGITS = frozenset("0123456789")


def is_status(text: str) -> bool:
    """Whether the text is an enhanced status code (RFC 3463 section 2): class 2, 4 or 5, then two numbers."""
    parts = text.split(".")
    return (len(parts) == 3 and parts[0] in ("2", "4", "5")
            and all(0 < len(p) <= 3 and not set(p) - _DIGITS for p in parts[1:]))


def one_line(text: str, limit: int = MAX_REASON) -> str:
    """The text as one printable line: control characters become spaces (log and header injection), length is capped."""
    clean = text if text.isprintable() else "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else " " for c in text)
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[:limit - 3] + "..."


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt.

    status: RFC 3463 code. reason: one line for people. diagnostic: the words of the other side, such as
    "smtp; 550 5.1.1 no such user" or "x-unix; exit 70". remote_mta: the host that said so.
    """

    status: str
    reason: str
    diagnostic: str = ""
    remote_mta: str = ""

    def __post_init__(self) -> None:
        if not is_status(self.status):
            raise ValueError(f"not a status: {self.status!r}")
        if not self.reason:
            raise ValueError("an outcome needs a reason")

    @property
    def is_delivered(self) -> bool:
        return self.status[0] == "2"

    @property
    def is_deferred(self) -> bool:
        return self.status[0] == "4"

    @property
    def is_failed(self) -> bool:
        return self.status[0] == "5"

    @property
    def is_final(self) -> bool:
        """No further attempt: delivered or failed."""
        return self.status[0] != "4"

    def to_json(self) -> list[str]:
        return [self.status, self.reason, self.diagnostic, self.remote_mta]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The reverse of to_json, for what another process wrote. Raises ValueError for anything else."""
        if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, str) for v in value):
            raise ValueError("not an outcome")
        status, reason, diagnostic, remote_mta = value
        return cls(status, one_line(reason) or "no reason given", one_line(diagnostic), one_line(remote_mta, 255))


def delivered(reason: str, status: str = "2.0.0") -> Outcome:
    return Outcome(status, one_line(reason))


def deferred(status: str, reason: str, diagnostic: str = "") -> Outcome:
    return Outcome(status, one_line(reason), one_line(diagnostic))


def failed(status: str, reason: str, diagnostic: str = "") -> Outcome:
    return Outcome(status, one_line(reason), one_line(diagnostic))


# What an exit code of a delivery program means (sysexits.h; Postfix and sendmail agree on these).
# (status, words). 4.x.x: tried again.
_EXIT_CODES = {
    64: ("5.3.0", "command line usage error"),
    65: ("5.6.0", "data format error"),
    66: ("5.3.0", "cannot open input"),
    67: ("5.1.1", "user unknown"),
    68: ("5.1.2", "host name unknown"),
    69: ("5.3.0", "service unavailable"),
    70: ("5.3.0", "internal software error"),
    71: ("4.3.0", "system resource problem"),
    72: ("5.3.0", "critical system file missing"),
    73: ("5.2.0", "cannot create output"),
    74: ("4.3.0", "input/output error"),
    75: ("4.3.0", "temporary failure"),
    76: ("5.3.0", "remote error in protocol"),
    77: ("5.7.0", "permission denied"),
    78: ("5.3.5", "configuration error"),
    126: ("5.3.0", "command is not executable"),
    127: ("5.3.0", "command not found"),
}


def from_exit_code(code: int, output: str = "", told: int = 300) -> Outcome:
    """The outcome of a delivery program that ended with this code; negative = killed by that signal (deferral).

    `output` is the start of what it printed, of which `told` characters are the reason; an enhanced status at its very
    beginning replaces the status where the class agrees with the exit code (Postfix pipe(8) does the same).
    """
    words = one_line(output)[:told]
    if code == 0:
        return delivered(words or "delivered to command")
    if code < 0:
        return deferred("4.3.0", words or f"command killed by signal {-code}", f"x-unix; signal {-code}")
    status, meaning = _EXIT_CODES.get(code, ("5.3.0", f"exit code {code}"))
    first = words.split(" ", 1)[0]
    if is_status(first) and first[0] == status[0]:
        status, words = first, words[len(first):].strip()
    return Outcome(status, one_line(words or meaning), f"x-unix; exit {code}: {meaning}")
