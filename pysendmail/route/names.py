"""Which of this host's names a local part is: an alias, a user, one that always exists, or none.

The most exact name first: user+detail, user+*, user; an alias with its domain before one without, and aliases before
users. postmaster and mailer-daemon always exist; our own service accounts have no mailbox, their mail is root's.

`Names.judge` answers what SMTP asks at RCPT: is there such a recipient? It goes no further than the first alias, so
that an answer costs the same whatever that alias leads to.
"""

from ..mail.outcome import Outcome, deferred, failed
from ..users import LookupTrouble, User, Users, fold
from . import values
from .aliases import Aliases, Broken, Entry
from .router import Router, problem, split

OWN_ACCOUNTS = frozenset(("_pysendmail", "_pysmtpd", "_pysmrelay", "_pysmlocal"))
ALWAYS_THERE = {"mailer-daemon": "postmaster", "postmaster": "root"}


class Names:
    """The names of one host. Whoever looks something up refreshes the aliases first."""

    def __init__(self, router: Router, aliases: Aliases, users: Users) -> None:
        self._router = router
        self._aliases = aliases
        self._users = users

    def alias(self, local: str, domain: str) -> tuple[Entry | Broken | None, str]:
        """(alias, detail): the most exact one first."""
        user, mark, detail = self._router.detail(local)
        tries = ((local, ""), (f"{user}{mark}*", detail), (user, detail)) if mark else ((local, ""),)
        domains = self._router.same_as(domain) if self._aliases.has_domains else ()
        for name, rest in tries:
            name = fold(name)
            for key in (*(f"{name}@{one}" for one in domains), name):
                found = self._aliases.lookup(key)
                if found is not None:
                    return found, rest
        return None, ""

    def user(self, local: str) -> tuple[User | None, str]:
        """(user, detail) for a local part. Raises LookupTrouble.

        With "-" as delimiter "www-data" is a user first of all; "+" is in no name of a user.
        """
        user, mark, detail = self._router.detail(local)
        if not mark:
            return self._users.lookup(local), ""
        tries = ((user, harmless(detail)), (local, ""))
        for name, rest in tries if mark == "+" else reversed(tries):
            found = self._users.lookup(name)
            if found is not None:
                return found, rest
        return None, ""

    def instead(self, local: str, user: User | None) -> str | None:
        """The name whose mail it is where there is no alias and `user` is what was found: one that always exists."""
        return "root" if user is not None else ALWAYS_THERE.get(fold(self._router.detail(local)[0]))

    def judge(self, address: str) -> Outcome | None:
        """Whether there is such a local recipient: None = there is, else a failure or, in trouble, a deferral.

        Mail to an alias that consists of an error gets that error. May block, for as long as the user database does.
        """
        wrong = problem(address)
        if wrong:
            return failed("5.1.3", wrong)
        local, domain = split(address)
        if local.startswith(("|", "/")) or fold(local).startswith(":include:"):
            return _UNKNOWN  # a name of a program or a file is no name of a user
        found, _ = self.alias(local, domain)
        if isinstance(found, Broken):
            return deferred("4.3.5", found.reason)
        if found is not None:
            only = found.values[0] if len(found.values) == 1 else None
            return values.outcome_of(only) if only and only.kind in (values.ERROR, values.DEFER) else None
        try:
            user, _ = self.user(local)
        except LookupTrouble as trouble:
            return cannot_look_up(local, trouble)
        return None if user is not None or self.instead(local, None) else _UNKNOWN


_UNKNOWN = failed("5.1.1", "User unknown")


def harmless(detail: str) -> str:
    """The detail, unless it would lead elsewhere as part of a file name: ~/.forward+detail."""
    return "" if "/" in detail else detail


def cannot_look_up(name: str, trouble: LookupTrouble) -> Outcome:
    return deferred("4.3.0", f"cannot look up user {name}: {trouble.strerror}")
