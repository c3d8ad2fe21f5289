"""One expansion on its way: from an address through aliases, lists and users to targets. The rules stand in expand.py.

Depth first and in the order written, with a stack of its own instead of recursion (Postfix 2026-06: lists that include
one another exhausted the process's). Each alias and each list is gone into once a message, so that the work is bounded
by the size of the alias files and lists, whatever refers to what; the number of targets has a limit besides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..mail.envelope import text as decoded
from ..mail.outcome import Outcome, deferred, failed, one_line
from ..mail.target import COMMAND, FILE, KNOWN, MAILBOX, RELAY, Target
from ..users import LookupTrouble, User, Users
from . import lists, values
from .aliases import Aliases, Broken, Entry
from .names import OWN_ACCOUNTS, Names, cannot_look_up, harmless
from .router import Router, normal_domain, problem, split
from .values import Line, Value

MAX_WORDS = 200  # characters of a command, a file name or a right-hand side in the log

Seen = set[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Limits:
    """depth: aliases, lists and .forward files in a row. results: targets of a message. list_size: bytes of a list."""

    depth: int = 10
    results: int = 100_000
    list_size: int = 4 * 1024 * 1024


class Step(NamedTuple):
    """One step, for those who ask why (explain, -bv, -bt). verb: what was found or decided; words: how, for people."""

    depth: int
    address: str
    verb: str
    words: str


Tell = Callable[[Step], None]


class Link(NamedTuple):
    """How the walk got where it is.

    key: alias name, or ":include:" and a path; "" at the beginning. address: what reports, Delivered-To and a later
    attempt name; local: its local part; detail: of user+detail. sender, via: as in Target. entry: the alias whose
    values are looked at; None in a list and at the beginning.
    """

    key: str
    address: str
    local: str
    detail: str
    depth: int
    sender: str | None
    via: str
    entry: Entry | None
    parent: "Link | None"


class Walk:
    """One call of Expander.

    seen: the message's memory, added to at the end. address: what is being expanded. is_again: aliases that were gone
    into before are to be gone into again, since one of their targets is being replaced. fetch: see lists.read.
    """

    def __init__(self, router: Router, aliases: Aliases, users: Users, limits: Limits, seen: Seen, tell: Tell | None,
                 address: str, *, is_again: bool = False, fetch: lists.Fetch | None = None) -> None:
        self._router = router
        self._aliases = aliases
        self._names = Names(router, aliases, users)
        self._limits = limits
        self._seen = seen
        self._tell = tell
        self._address = address
        self._is_again = is_again
        self._fetch = fetch
        self._stack: list[tuple[Iterator[Value], Link]] = []
        self._results: list[Target] = []
        self._keys: Seen = set()
        self._marks: Seen = set()  # aliases and lists that were gone into
        self._known: dict[str, int] = {}  # where the KNOWN result of an address is

    def start(self, found: list[Value], via: str, sender: str | None) -> list[Target]:
        """Go from these values to where they lead."""
        depth = via.count(":") + 1 if via else 0
        root = Link("", self._address, "", "", depth, sender, via, None, None)
        if depth > self._limits.depth:
            self._too_deep(root)
        else:
            self._stack.append((iter(found), root))
        while self._stack:
            upcoming, link = self._stack[-1]
            value = next(upcoming, None)
            if value is None:
                self._stack.pop()
                continue
            self._visit(value, link)
            if len(self._results) + len(self._seen) > self._limits.results:
                return [Target(KNOWN, self._address, sender=sender, via=via, outcome=deferred(
                    "4.2.4", f"more than {self._limits.results} addresses"))]
        self._seen |= self._keys
        if not any(target.outcome is not None and target.outcome.is_deferred for target in self._results):
            self._seen |= self._marks  # else a later attempt has to go into them again
        return self._results

    def _visit(self, value: Value, link: Link) -> None:
        kind = value.kind
        if kind == values.ADDRESS:
            self._go(decoded(value.text), link)
        elif kind == values.LOCAL:
            self._go(decoded(value.text), link, use_aliases=False)
        elif kind in (values.COMMAND, values.FILE):
            self._go_special(value, link)
        elif kind == values.INCLUDE:
            self._go_list(decoded(value.text), link)
        else:
            self.know(link.address, values.outcome_of(value), link)

    # ---- results

    def add(self, target: Target, depth: int = 0) -> None:
        """Keep a target, unless its place has one."""
        key = target.key()
        if key in self._seen or key in self._keys:
            self._say(depth, target.address, "duplicate", "gets its copy already")
            return
        self._keys.add(key)
        self._results.append(target)

    def know(self, address: str, outcome: Outcome, link: Link, *, use_forward: bool = True) -> None:
        """Keep an outcome that is clear already.

        There is one for each address, and what is deferred goes before what is final: the next attempt looks at the
        address again as a whole.
        """
        target = Target(KNOWN, address, sender=link.sender, via=link.via, use_forward=use_forward, outcome=outcome)
        place = self._known.get(address)
        if place is not None:
            if _weight(target) > _weight(self._results[place]):
                self._results[place] = target
        elif outcome.is_deferred or target.key() not in self._seen:
            self._known[address] = len(self._results)
            self._results.append(target)
        if outcome.is_final:
            self._keys.add(target.key())
        self._say(link.depth, address, "outcome", "{} {}", outcome.status, outcome.reason)

    def _say(self, depth: int, address: str, verb: str, words: str, *args: object) -> None:
        if self._tell is not None:
            self._tell(Step(depth, address, verb, words.format(*args)))

    # ---- addresses

    def _go(self, address: str, link: Link, *, use_aliases: bool = True) -> None:
        local, domain = split(address)
        if domain and not self._router.is_local(domain):
            self._relay(address, domain, link)
            return
        where = self._here(address, domain)
        found: Entry | Broken | None = None
        detail = ""
        if use_aliases:
            found, detail = self._names.alias(local, domain)
        if isinstance(found, Broken):
            self.know(where, deferred("4.3.5", found.reason), link)
        elif found is not None:
            self._go_into(found, where, local, harmless(detail), link)
        else:
            self._go_user(where, local, link, use_forward=use_aliases)

    def _here(self, address: str, domain: str) -> str:
        """The address of a local user as others see it."""
        return address[:-len(domain)] + normal_domain(domain) if domain else f"{address}@{self._router.local_name}"

    def _relay(self, address: str, domain: str, link: Link) -> None:
        wrong = problem(address)
        if wrong:
            self.know(address, failed("5.1.3", wrong), link)
            return
        where = address[:-len(domain)] + normal_domain(domain)
        if self._tell is not None:
            self._say(link.depth, where, "relay", "to {}", self._router.hop(where).destination)
        self.add(Target(RELAY, where, sender=link.sender, via=link.via), link.depth)

    def _go_into(self, entry: Entry, where: str, local: str, detail: str, link: Link) -> None:
        """Go on with the values of an alias."""
        above = _above(link, entry.name)
        if above is not None:
            self._end_loop(entry, where, local, link, above)
            return
        mark = ("alias", entry.name, link.via)
        if self._is_done(mark):
            self._say(link.depth, where, "duplicate", "alias {} is done with already", entry.name)
            return
        if link.depth >= self._limits.depth:
            self._too_deep(link)
            return
        sender = self._owner(entry)
        if isinstance(sender, Broken):
            self.know(where, deferred("4.3.5", sender.reason), link)
            return
        self._marks.add(mark)
        if self._tell is not None:
            self._say(link.depth, where, "alias", "{}: {}: {}", entry.place, entry.name, _shown(entry.text))
        if sender is None:
            sender = link.sender
        else:
            self._say(link.depth, where, "owner", "the sender becomes {}", sender)
        self._stack.append((iter(entry.values), Link(
            entry.name, where, local, detail, link.depth + 1, sender, link.via, entry, link)))

    def _is_done(self, mark: tuple[str, str, str]) -> bool:
        return mark in self._marks or (not self._is_again and mark in self._seen)

    def _owner(self, entry: Entry) -> str | Broken | None:
        """The sender for members of an alias: what owner-NAME is, if that is one address, else owner-NAME itself."""
        local, at, domain = entry.name.partition("@")
        name = "owner-owner" if local.startswith("owner-") else f"owner-{local}"
        found = self._aliases.lookup(f"{name}@{domain}") if at else None
        found = found or self._aliases.lookup(name)
        if not isinstance(found, Entry):
            return found
        members = found.values
        if len(members) == 1 and members[0].kind == values.ADDRESS:
            return self._router.qualify(decoded(members[0].text))
        return self._router.qualify(f"{name}@{domain}" if at else name)

    def _end_loop(self, entry: Entry, where: str, local: str, link: Link, above: Link) -> None:
        """An alias that leads back to itself: the first name on the way back that is a user gets the mail."""
        way = [(where, local, entry.name)]
        step = link
        while step is not above:
            way.append((step.address, step.local, step.key))
            step = step.parent or above
        way.append((above.address, above.local, above.key))
        for address, name, _ in way:
            try:
                user, detail = self._names.user(name)
            except LookupTrouble as trouble:
                self.know(address, cannot_look_up(name, trouble), link)
                return
            if user is not None:
                self._mailbox(user, detail, address, link)
                return
        if link is above:
            self.know(where, failed("5.1.1", f"unknown user: {local} (the alias means itself)"), link)
        else:
            names = " -> ".join(key for _, _, key in reversed(way))
            self.know(self._address, failed("5.4.6", f"alias loop: {names}"), link)

    def _too_deep(self, link: Link) -> None:
        self.know(self._address, failed(
            "5.4.6", f"aliases, lists and .forward files are more than {self._limits.depth} deep"), link)

    # ---- users

    def _go_user(self, where: str, local: str, link: Link, *, use_forward: bool) -> None:
        try:
            user, detail = self._names.user(local)
        except LookupTrouble as trouble:
            self.know(where, cannot_look_up(local, trouble), link, use_forward=use_forward)
            return
        if user is not None and user.name not in OWN_ACCOUNTS:
            self._mailbox(user, detail, where, link, use_forward=use_forward)
            return
        instead = self._names.instead(local, user)
        if instead is None:
            self.know(where, failed("5.1.1", f"unknown user: {local}"), link)
            return
        self._say(link.depth, where, "alias", "goes to {} where no alias says otherwise", instead)
        self._stack.append((iter((Value(values.ADDRESS, instead.encode("ascii")),)), link._replace(
            key=f"({local})", address=where, local=local, depth=link.depth + 1, entry=None, parent=link)))

    def _mailbox(self, user: User, detail: str, where: str, link: Link, *, use_forward: bool = True) -> None:
        if use_forward and link.via and user.name in link.via.split(":"):
            use_forward = False  # his .forward has led here: this is where that ends
        note = "" if use_forward else ", without .forward"
        self._say(link.depth, where, "user", "{}, uid {}{}", user.name, user.uid, note)
        self.add(Target(MAILBOX, where, user=user.name, detail=detail, sender=link.sender, use_forward=use_forward,
                        via=link.via), link.depth)

    # ---- commands, files, lists

    def _go_special(self, value: Value, link: Link) -> None:
        if value == values.NOWHERE:
            self.know(link.address, values.outcome_of(value), link)
            return
        entry = link.entry
        if entry is None:
            self.know(link.address, failed("5.7.1", f"a {value.kind} cannot stand in a list"), link)
            return
        danger = self._aliases.danger(entry.file)
        if danger:
            reason = f"{entry.place}: {value.kind} not used: {entry.file} {danger}"
            self.know(link.address, deferred("4.3.5", reason), link)
            return
        kind = COMMAND if value.kind == values.COMMAND else FILE
        shown = _shown(value.text)
        self._say(link.depth, link.address, kind, "{} ({})", shown, entry.place)
        self.add(Target(kind, link.address, detail=link.detail, source=entry.name, digest=value.digest, words=shown,
                        sender=link.sender, via=link.via), link.depth)

    def _go_list(self, path: str, link: Link) -> None:
        """Go on with the values of a list file, which is read now: list managers rewrite it at any time."""
        key, entry = f":include:{path}", link.entry
        if _above(link, key) is not None:
            self.know(self._address, failed("5.4.6", f"list {path} includes itself"), link)
            return
        mark = ("list", path, link.via)
        if self._is_done(mark):
            self._say(link.depth, link.address, "duplicate", "list {} is done with already", path)
            return
        if link.depth >= self._limits.depth:
            self._too_deep(link)
            return
        danger = self._aliases.danger(entry.file) if entry is not None else ""
        if entry is not None and danger:
            self.know(link.address, deferred("4.3.5", f"{entry.place}: list not used: {entry.file} {danger}"), link)
            return
        lines, trouble = lists.read(path, self._limits.list_size, self._fetch)
        if trouble:
            self.know(link.address, deferred("4.2.4", trouble), link)
            return
        self._marks.add(mark)
        self._say(link.depth, link.address, "list", "{}: {} values", path, len(lines))
        link = link._replace(key=key, depth=link.depth + 1, entry=None, parent=link)
        self._stack.append((self._sound(lines, path, link), link))

    def _sound(self, lines: list[Line], path: str, link: Link) -> Iterator[Value]:
        """The values of a list; what is wrong in it is a deferral beside them."""
        for number, value, wrong in lines:
            if value is None:
                self.know(link.address, deferred("4.2.4", f"{path}:{number}: {wrong}"), link)
            else:
                yield value


def _above(link: Link, key: str) -> Link | None:
    """Where on the way here this alias or list was gone into."""
    found: Link | None = link
    while found is not None and found.key != key:
        found = found.parent
    return found


def _weight(target: Target) -> int:
    """Which of two outcomes of one address to tell: deferred before failed before delivered."""
    return "254".index(target.outcome.status[0]) if target.outcome is not None else 0


def _shown(value: bytes) -> str:
    return one_line(decoded(value[:4 * MAX_WORDS]), MAX_WORDS)
