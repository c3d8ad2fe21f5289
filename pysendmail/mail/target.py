"""Where one copy of a message goes: what an envelope recipient becomes once aliases and .forward have been read.

A target never carries a command or a file name that somebody could act on: `digest` names a line which the agent
finds again, in /etc/aliases or in the user's own .forward, and only such a line is ever carried out. A broken queue
process can therefore not invent a command (OpenSMTPD CVE-2020-7247, CVE-2020-8794). `words` is for logs and people.
"""

from dataclasses import dataclass
from typing import Any, Self

from .digest import sha256
from .outcome import Outcome

MAILBOX, FILE, COMMAND, RELAY, KNOWN, FORWARDED = "mailbox", "file", "command", "relay", "known", "forwarded"
CHANGED = "4.2.4"  # status of a FILE or COMMAND whose line is not there any more: its address is looked up anew
KINDS = frozenset((MAILBOX, FILE, COMMAND, RELAY, KNOWN, FORWARDED))


@dataclass(frozen=True, slots=True)
class Target:
    """One place, one outcome.

    kind: MAILBOX (of `user`), FILE or COMMAND (of `user`'s .forward, or of alias `source`), RELAY (to `address`), KNOWN
    (nothing to deliver: `outcome` is known already, such as an unknown user or /dev/null), FORWARDED (an address from a
    .forward, on its way from the agent to the runner, who looks for aliases and users; never journalled).
    address: as reached last: what Delivered-To, RCPT and reports name. detail: of user+detail. sender: what replaces
    the envelope sender (owner- of a list; "" = null), None = unchanged. use_forward: False after "\\user". via: users
    whose .forward led here, oldest first, with ":" between them; where one is met again, the loop ends in that mailbox.
    """

    kind: str
    address: str
    user: str = ""
    detail: str = ""
    source: str = ""
    digest: str = ""
    words: str = ""
    sender: str | None = None
    use_forward: bool = True
    via: str = ""
    outcome: Outcome | None = None

    def key(self) -> tuple[str, ...]:
        """Two targets of one message with the same key are duplicates: one copy is enough.

        A mailbox without its .forward is another place: "\\alice" in alice's own .forward is no duplicate of alice.
        """
        if self.kind == MAILBOX:
            return (self.kind, self.user, self.detail, "" if self.use_forward else "\\")
        if self.kind in (FILE, COMMAND):
            return (self.kind, self.user, self.source, self.digest)
        return (self.kind, self.address)

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in _TEXT if getattr(self, name)}
        if self.sender is not None:
            found["sender"] = self.sender
        if not self.use_forward:
            found["use_forward"] = False
        if self.outcome is not None:
            found["outcome"] = self.outcome.to_json()
        return found

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The reverse of to_json, for what another process wrote. Raises ValueError for anything else."""
        if not isinstance(value, dict) or value.keys() - _NAMES:
            raise ValueError("not a target")
        texts = {name: value.get(name, "") for name in _TEXT}
        sender, use_forward = value.get("sender"), value.get("use_forward", True)
        if not all(isinstance(v, str) for v in texts.values()) or not isinstance(sender, str | None):
            raise ValueError("not a target")
        if texts["kind"] not in KINDS:
            raise ValueError("not a target")
        known = Outcome.from_json(value["outcome"]) if "outcome" in value else None
        return cls(**texts, sender=sender, use_forward=use_forward is not False, outcome=known)


_TEXT = ("kind", "address", "user", "detail", "source", "digest", "words", "via")
_NAMES = frozenset((*_TEXT, "sender", "use_forward", "outcome"))


def digest_of(line: bytes) -> str:
    """What stands for a command or file line of aliases or .forward: its SHA-256 in hex."""
    return sha256(line).hexdigest()
