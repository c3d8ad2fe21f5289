"""What an MTA and a filter agree on when they meet: version, what may be changed, what need not be said or answered.

We offer version 6 and everything in it; the filter takes what it wants. Filters that speak 2 to 5 lack the later
commands, and are not told what they do not know. A filter that takes what was not offered is refused.

Macros are facts about session and message that go in front of a command. A filter may name those it wants for each
stage (version 6); otherwise it gets those of `MACROS`, which are sendmail's and Postfix's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .milter_wire import NEGOTIATE, Action, FilterError, Option, Stage, packet, read_number, read_terms, terms

VERSION = 6
OLDEST = 2
MAX_NAMES = 100  # macros that a filter may want for one stage
MAX_NAME = 64  # bytes

ACTIONS = sum(Action)
OPTIONS = sum(Option)

# By stage: (what leaves it out, what makes it silent, the version that has brought it).
STAGES: Mapping[Stage, tuple[int, int, int]] = {
    Stage.CONNECT: (Option.NO_CONNECT, Option.SILENT_CONNECT, 2),
    Stage.HELO: (Option.NO_HELO, Option.SILENT_HELO, 2),
    Stage.MAIL: (Option.NO_MAIL, Option.SILENT_MAIL, 2),
    Stage.RCPT: (Option.NO_RCPT, Option.SILENT_RCPT, 2),
    Stage.DATA: (Option.NO_DATA, Option.SILENT_DATA, 4),
    Stage.HEADER: (Option.NO_HEADER, Option.SILENT_HEADER, 2),
    Stage.EOH: (Option.NO_EOH, Option.SILENT_EOH, 2),
    Stage.BODY: (Option.NO_BODY, Option.SILENT_BODY, 2),
    Stage.END: (0, 0, 2),
    Stage.UNKNOWN: (Option.NO_UNKNOWN, Option.SILENT_UNKNOWN, 3),
}
_SYMBOL_STAGES = (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END, Stage.EOH)  # SMFIM_

MACROS: Mapping[Stage, tuple[str, ...]] = {
    Stage.CONNECT: ("j", "_", "v", "{daemon_name}", "{daemon_addr}", "{daemon_port}", "{if_name}", "{if_addr}",
                    "{client_addr}", "{client_name}", "{client_port}", "{client_ptr}"),
    Stage.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Stage.MAIL: ("i", "{auth_type}", "{auth_authen}", "{auth_author}", "{mail_addr}", "{mail_host}", "{mail_mailer}"),
    Stage.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    Stage.DATA: ("i",),
    Stage.EOH: ("i",),
    Stage.END: ("i",),
}
_MACROS_SINCE = {Stage.DATA: 4, Stage.EOH: 6}  # an older libmilter ends a session in which they come


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed on. wanted: macros that the filter has named, by stage."""

    version: int
    actions: int
    options: int
    wanted: Mapping[Stage, tuple[str, ...]] = field(default_factory=dict)

    def hears(self, stage: Stage) -> bool:
        """Whether the filter wants to be told."""
        left_out, _, since = STAGES[stage]
        return not self.options & left_out and self.version >= since

    def answers(self, stage: Stage) -> bool:
        """Whether it answers when it is told."""
        return not self.options & STAGES[stage][1]

    def macros(self, stage: Stage) -> tuple[str, ...]:
        if self.version < _MACROS_SINCE.get(stage, OLDEST):
            return ()
        return self.wanted.get(stage, MACROS.get(stage, ()))

    @property
    def hears_refused(self) -> bool:
        """Whether the filter wants to be told of recipients that others have refused."""
        return bool(self.options & Option.REJECTED_RCPT)

    @property
    def keeps_blank(self) -> bool:
        """Whether the blank behind a field's colon is part of its value."""
        return bool(self.options & Option.LEADING_BLANK)


def offer() -> bytes:
    """The packet with which a conversation begins."""
    return packet(NEGOTIATE, terms(VERSION, ACTIONS, OPTIONS))


def read(data: bytes) -> Terms:
    """What the filter has taken of it. Raises FilterError."""
    version, actions, options, rest = read_terms(data)
    if not OLDEST <= version <= VERSION:
        raise FilterError(f"it speaks version {version}")
    if actions & ~ACTIONS or options & ~OPTIONS:
        raise FilterError(f"it wants what was not offered: actions {actions:#x}, options {options:#x}")
    wanted: dict[Stage, tuple[str, ...]] = {}
    while rest:
        stage, names, rest = read_symbols(rest)
        wanted[stage] = names
    return Terms(version, actions, options, wanted)


def read_symbols(data: bytes) -> tuple[Stage, tuple[str, ...], bytes]:
    """(stage, macros wanted there, what is behind them). Raises FilterError."""
    number, rest = read_number(data)
    names, nul, rest = rest.partition(b"\0")
    if number >= len(_SYMBOL_STAGES) or not nul:
        raise FilterError("a list of macros that makes no sense")
    found = tuple(names.decode("ascii", "replace").replace(",", " ").split())
    if len(found) > MAX_NAMES or any(len(name) > MAX_NAME for name in found):
        raise FilterError("a list of macros that is too long")
    return _SYMBOL_STAGES[number], found, rest
