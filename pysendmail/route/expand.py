"""From an address to the places where its mail goes: aliases, lists, users, one target for each place.

An alias is looked up for local addresses only, as user+detail, user+*, user (the detail is kept for the .forward), each
with the domain before without; where there is none, the user is. postmaster and mailer-daemon always exist, and end at
root; so do our own service accounts.

    self reference    "alice: alice, carol" is alice's own mailbox and carol
    loop              ends at the first name in it that is a user, as in sendmail; else it is one failure, 5.4.6
    owner-NAME        replaces the sender of what goes to members of NAME; owner-owner that of owner- addresses
    duplicates        a place gets one copy of a message, by whichever of its recipients it is reached first
    commands, files   only from aliases and a user's own .forward: never from an envelope, never from a list file
    trouble           an alias that cannot be read, a user who cannot be looked up, a list that is not there: deferred

`seen` is the memory of one message: Target.key() of its targets, and which aliases are done with. An empty answer means
that every place is being served already for another recipient of the message. Of a deferred KNOWN target, `again` makes
what it has become when it is tried next.

Nothing is delivered here and no privilege is used. RFC 5321 section 3.9, RFC 3463.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..mail.envelope import raw
from ..mail.outcome import failed, one_line
from ..mail.target import COMMAND, FILE, FORWARDED, KNOWN, MAILBOX, Target
from ..users import Users, fold
from . import values
from .aliases import Aliases
from .lists import Fetch
from .router import Router, problem, split
from .values import Value, outcome_of
from .walk import MAX_WORDS, Limits, Link, Seen, Step, Tell, Walk
from .words import spelled

__all__ = ["Expander", "Limits", "Seen", "Step", "outcome_of"]

USUAL = Limits()


class Expander:
    """Expands addresses with the names, alias files and users of this host. note: takes lines for the log. fetch: reads
    lists."""

    def __init__(self, router: Router, aliases: Aliases, users: Users, limits: Limits = USUAL,
                 note: Callable[[str], None] | None = None, fetch: Fetch | None = None) -> None:
        self.router = router
        self.aliases = aliases
        self.users = users
        self.limits = limits
        self._note = note
        self._fetch = fetch

    def expand(self, address: str, *, seen: Seen | None = None, tell: Tell | None = None) -> list[Target]:
        """The targets of an envelope recipient. seen: is added to. tell: hears of each step."""
        wrong = problem(address)
        if wrong:
            return [Target(KNOWN, address, outcome=failed("5.1.3", wrong))]
        local, domain = split(address)
        kind = values.ADDRESS
        if not domain or self.router.is_local(domain):
            if local.startswith(("|", "/")) or fold(local).startswith(":include:"):
                # sendmail '|command', RCPT TO:<"/etc/passwd"@here>: as old as sendmail.
                return [Target(KNOWN, address, outcome=failed("5.7.1", "mail cannot name a program or file directly"))]
            if local.startswith("\\") and len(local) > 1:
                kind, address = values.LOCAL, _spelled(local[1:], domain)
        return self._walk(seen, tell, address).start([Value(kind, raw(address))], "", None)

    def forwarded(self, parent: Target, targets: Iterable[Target], *, seen: Seen | None = None,
                  tell: Tell | None = None) -> list[Target]:
        """The targets that a mailbox's .forward asks for. `targets` is what the agent says, who is not trusted."""
        via = f"{parent.via}:{parent.user}" if parent.via else parent.user
        walk = self._walk(seen, tell, parent.address)
        beginning = Link("", parent.address, "", "", 0, parent.sender, via, None, None)
        found = []
        for target in targets:
            if target.kind == FORWARDED:
                wrong = problem(target.address)
                if wrong:
                    walk.know(parent.address, failed("5.1.3", f"in .forward: {wrong}"), beginning)
                else:
                    kind = values.ADDRESS if target.use_forward else values.LOCAL
                    found.append(Value(kind, raw(target.address)))
            elif target.kind in (COMMAND, FILE):
                walk.add(replace(parent, kind=target.kind, digest=target.digest, source="", via=via, outcome=None,
                                 words=one_line(target.words, MAX_WORDS)))
            else:
                walk.know(parent.address, target.outcome or failed("5.3.5", "no such target in a .forward"), beginning)
        # With a user, what is known about this address is what the .forward says of it: see `again`.
        return [replace(target, user=parent.user, detail=parent.detail)
                if target.kind == KNOWN and target.address == parent.address else target
                for target in walk.start(found, via, parent.sender)]

    def again(self, target: Target, *, seen: Seen | None = None, tell: Tell | None = None) -> list[Target]:
        """What takes a target's place when its address is looked up anew: after trouble, or since aliases changed.

        Of what a .forward says, its owner's mailbox takes the place once more, so that the .forward is read again.
        """
        seen = set() if seen is None else seen
        seen.discard(target.key())
        via = target.via
        if target.user and target.kind in (COMMAND, FILE, KNOWN):
            mark = ("forward", target.user, target.detail, via)
            if mark in seen:
                return []  # another line of the same .forward has done this
            seen.add(mark)
            seen.discard(Target(MAILBOX, "", user=target.user, detail=target.detail).key())
            via = via.rpartition(":")[0]
        kind = values.ADDRESS if target.use_forward else values.LOCAL
        walk = self._walk(seen, tell, target.address, is_again=True)
        return walk.start([Value(kind, raw(target.address))], via, target.sender)

    def _walk(self, seen: Seen | None, tell: Tell | None, address: str, *, is_again: bool = False) -> Walk:
        for news in self.aliases.refresh():
            if self._note is not None:
                self._note(str(news))
        return Walk(self.router, self.aliases, self.users, self.limits, set() if seen is None else seen, tell, address,
                    is_again=is_again, fetch=self._fetch)


def _spelled(local: str, domain: str) -> str:
    return spelled(raw(local), raw(domain)).decode("utf-8", "surrogateescape")
