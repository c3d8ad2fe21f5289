"""Alias files, aliases(5): their grammar, and their live text.

    name: value, value ...          the values are those of values.py
        , more values               a line that begins with a blank goes on with the alias, and so does
    name: value, \\                  the line after one that ends in a backslash
    value
    # comment                       also after blanks; comments and empty lines may stand within an alias after a comma
    "odd name": value               quotes for names that need them
    name@example.org: value         for one local domain only

Names are folded to lower case. Of two aliases with the same name the later one counts, as in sendmail.

What cannot be read never means "no alias": mail for root would end in root's mailbox, and mail for a list would come
back as "user unknown" (OpenSMTPD had both). The first word of a broken line becomes a name that defers, unless a sound
line has it too; a file that is missing, unreadable, too large or has NUL bytes makes every name defer.

There is no database beside the text and nothing to rebuild: each pass looks at the file's signature and reads it again
when that is another. A file that was touched this very moment may be half written, so its old text counts a moment
longer. No lock is taken.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..mail.envelope import text as decoded
from ..users import fold
from . import router, textfile, values, words
from .values import Value
from .words import ALNUM, BLANK, NAME

MAX_FILE = 16 * 1024 * 1024  # bytes of one alias file
MAX_NAME = 256  # bytes of an alias name
MAX_PROBLEMS = 1000  # kept for each file
SETTLED_AFTER = 0.01  # seconds since a file's last change: several ticks of the clock that stamps files

_TO_BLANK = bytes.maketrans(b'\t,"', b"   ")
_USUAL = ALNUM + b"-._+"  # names that need no closer look


class Entry(NamedTuple):
    """One alias. name: as looked up. text: right-hand side, already found sound. line: of its beginning, from 1."""

    name: str
    text: bytes
    file: str
    line: int

    @property
    def values(self) -> list[Value]:
        """Parsed when asked for: most aliases of a large file never are."""
        return values.parse(self.text)

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


class Problem(NamedTuple):
    """What is wrong with a line; with line 0, with a file. is_error: False = a warning, nothing is lost by it."""

    file: str
    line: int
    text: str
    is_error: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        return f"{place}{'' if self.is_error else 'warning: '}{self.text}"


class Broken(NamedTuple):
    """There may be an alias of this name, but it cannot be read. reason: names the file, and the line if it is one."""

    reason: str


@dataclass(slots=True)
class Table:
    """One alias file. broken: reasons by name. errors: all of them, also beyond MAX_PROBLEMS.

    longest, total: bytes of right-hand sides, and of those with the names, as sendmail counts. trouble: why the file as
    a whole cannot be used, "" = it can. danger: why its commands, files and lists are not to be used, "" = they are.
    """

    file: str
    entries: dict[str, Entry] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    errors: int = 0
    longest: int = 0
    total: int = 0
    trouble: str = ""
    danger: str = ""
    has_domains: bool = False  # whether any name has a domain

    def note(self, line: int, text: str, *, name: str = "", is_error: bool = True) -> None:
        """Keep a problem; `name` is what it makes unusable."""
        problem = Problem(self.file, line, text, is_error)
        self.errors += is_error
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        if name:
            self.broken.setdefault(name, str(problem))

    def lookup(self, name: str) -> Entry | Broken | None:
        if self.trouble:
            return Broken(self.trouble)
        found = self.entries.get(name)
        if found is None and name in self.broken:
            return Broken(self.broken[name])
        return found


def _nowhere(_domain: str) -> bool:
    return False


def parse(data: bytes, file: str, is_local: Callable[[str], bool] = _nowhere) -> Table:
    """The aliases in a file's text. is_local: whether a name may have this domain (in lower case). Never raises."""
    table = Table(file)
    for number, text in _logical_lines(data, table):
        try:
            name, rest = _name(text, is_local)
        except ValueError as problem:
            table.note(number, str(problem), name=_first_word(text))
            continue
        try:
            _check(values.parse(rest))
        except ValueError as problem:
            table.note(number, f"{_shown(name)}: {problem}", name=name)
            continue
        before = table.entries.get(name)
        if before is not None:
            table.note(number, f"{_shown(name)}: also in line {before.line}, which no longer counts", is_error=False)
        table.entries[name] = Entry(name, rest, file, number)
        table.longest = max(table.longest, len(rest))
        table.total += len(name) + len(rest)
    table.has_domains = any("@" in name for names in (table.entries, table.broken) for name in names)
    return table


def load(path: str, is_local: Callable[[str], bool] = _nowhere) -> tuple[Table, textfile.Signature | None]:
    """The table of a file, and what to compare the file with later. None: it could not be read, so try again."""
    try:
        data, status = textfile.read(path, MAX_FILE)
    except OSError as problem:
        return Table(path, trouble=f"cannot read {path}: {problem.strerror}"), None
    if b"\0" in data:
        return Table(path, trouble=f"{path} has NUL bytes: it is damaged"), textfile.signature(status)
    table = parse(data, path, is_local)
    table.danger = textfile.danger(status)
    return table, textfile.signature(status)


class Aliases:
    """Alias files as they are now. The first file that has a name wins.

    clock: seconds since the epoch, as files are stamped.
    """

    def __init__(self, files: Sequence[str], is_local: Callable[[str], bool] = _nowhere,
                 clock: Callable[[], float] = time.time) -> None:
        self._is_local = is_local
        self._clock = clock
        self.tables = [Table(file, trouble=f"{file} has not been read yet") for file in files]
        self._signatures: list[textfile.Signature | None] = [None] * len(self.tables)

    def refresh(self) -> list[Problem]:
        """Read what has changed. Called before each pass over an envelope; what is returned is for the log."""
        news = []
        for index, table in enumerate(self.tables):
            try:
                status = os.stat(table.file)
            except OSError:
                status = None
            if status is not None:
                if textfile.signature(status) == self._signatures[index]:
                    continue
                is_fresh = 0 <= self._clock() - status.st_ctime < SETTLED_AFTER
                if is_fresh and not table.trouble:
                    continue  # perhaps truncated and not yet written: the next pass sees
            else:
                is_fresh = False
            self.tables[index], read = load(table.file, self._is_local)
            self._signatures[index] = None if is_fresh else read
            news += self._news(table, self.tables[index])
        return news

    def lookup(self, name: str) -> Entry | Broken | None:
        """The alias of a folded name, None if there certainly is none."""
        for table in self.tables:
            found = table.lookup(name)
            if found is not None:
                return found
        return None

    def find(self, name: str, digest: str) -> Value | Broken:
        """The command or file that a target with this source and digest stands for: nothing else may be carried out.

        For the process that carries it out, which reads the file itself and is told names only.
        """
        entry = self.lookup(name)
        if isinstance(entry, Broken):
            return entry
        if entry is None:
            return Broken(f"there is no alias {name} any more")
        danger = self.danger(entry.file)
        if danger:
            return Broken(f"{entry.file} {danger}")
        for value in entry.values:
            if value.kind in (values.COMMAND, values.FILE) and value.digest == digest:
                return value
        return Broken(f"{entry.place}: alias {name} has changed")

    @property
    def has_domains(self) -> bool:
        """Whether to look for user@domain as well as for user."""
        return any(table.has_domains for table in self.tables)

    def danger(self, file: str) -> str:
        """Why commands, files and lists named in this alias file are not to be used, "" if they are."""
        return next((table.danger for table in self.tables if table.file == file), "not an alias file")

    @staticmethod
    def _news(old: Table, new: Table) -> list[Problem]:
        """What is wrong now and was not before."""
        known = set(old.problems)
        news = [problem for problem in new.problems if problem not in known]
        if new.trouble and new.trouble != old.trouble:
            news.append(Problem(new.file, 0, new.trouble))
        if new.danger and new.danger != old.danger:
            news.append(Problem(new.file, 0, f"{new.file} {new.danger}: its commands, files and lists are not used"))
        return news


# ---- grammar


def _logical_lines(data: bytes, table: Table) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, text) of each alias, continuation lines joined."""
    parts: list[bytes] = []
    first = quotes = 0
    gap = b""  # the comment or empty line just before, b"" = none
    is_escaped = False  # the line before ended in a backslash
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.endswith(b"\r"):
            line = line[:-1]
        if not is_escaped:
            bare = line.strip(BLANK)
            if not bare or bare[0] == 35:
                gap = bare or b" "
                continue
            if line[0] in BLANK:
                if not _goes_on(table, number, bare, parts, is_quoted=quotes % 2 == 1, gap=gap):
                    continue
                line = b" " + bare
            else:
                if parts:
                    yield first, b"".join(parts)
                parts, first, quotes = [], number, 0
        gap = b""
        is_escaped = line.endswith(b"\\")
        parts.append(line[:-1] if is_escaped else line)
        quotes += line.count(b'"')
    if parts:
        yield first, b"".join(parts)


def _goes_on(table: Table, number: int, line: bytes, parts: list[bytes], *, is_quoted: bool, gap: bytes) -> bool:
    """Whether an indented line belongs to the alias before it. If not, what it is instead is noted."""
    name, colon, _ = line.partition(b":")
    name = name.rstrip(BLANK)
    if colon and name and not name.translate(None, NAME) and name.lower() != b"error" and not is_quoted:
        # A word and a colon begin an alias. Joined to the one before, the line would make both unusable.
        table.note(number, "a blank before the name; an alias begins in the first column", name=fold(decoded(name)))
        return False
    if not parts:
        table.note(number, "continuation line without an alias before it")
        return False
    if gap and not parts[-1].rstrip(BLANK).endswith(b",") and not line.startswith(b","):
        # sendmail takes an indented line after a comment as part of the comment; Postfix as part of the alias before.
        # Where that alias is complete, the former is meant: somebody has put a "#" before an alias of several lines.
        if gap.startswith(b"#"):
            table.note(number, "indented line after a comment: taken as part of the comment", is_error=False)
        else:
            table.note(number, "indented line after an empty line, and the alias before does not end in a comma")
        return False
    return True


def _name(text: bytes, is_local: Callable[[str], bool]) -> tuple[str, bytes]:
    """(folded name, right-hand side). Raises ValueError."""
    if text.startswith(b'"'):
        end = words.skip_blank(text, words.read_quoted(text, 0)[1])
        colon = text.find(b":", end)
    else:
        colon = text.find(b":")
    if colon < 0:
        raise ValueError("no colon after the name")
    key, rest = text[:colon].strip(BLANK), text[colon + 1:].strip(BLANK)
    if key and not key.translate(None, _USUAL) and len(key) <= MAX_NAME:
        return key.decode("ascii").lower(), rest
    if not key:
        raise ValueError("no name before the colon")
    if len(key) > MAX_NAME:
        raise ValueError(f"name is longer than {MAX_NAME} bytes")
    if len(key.translate(None, bytes((*range(32), 127)))) != len(key):
        raise ValueError("control character in the name")
    local, domain = router.split(decoded(words.checked(key)))
    if not domain:
        return fold(local), rest
    domain = router.normal_domain(domain)
    if not is_local(domain):
        raise ValueError(f"an alias cannot be for another host's address: {words.shown(key)}")
    return f"{fold(local)}@{domain}", rest


def _check(found: list[Value]) -> None:
    """Raises ValueError for values that an alias cannot have."""
    if not found:
        raise ValueError("no value after the name")
    for value in found:
        if value.kind == values.FILE and value.text.startswith(b"~"):
            raise ValueError(f"file name must be absolute: {words.shown(value.text)}")


def _first_word(text: bytes) -> str:
    """What a broken line seems to be about, "" if there is no telling."""
    word = text.partition(b":")[0][:MAX_NAME * 2].translate(_TO_BLANK).strip(BLANK).partition(b" ")[0]
    return fold(decoded(word))


def _shown(name: str) -> str:
    return words.shown(name.encode("utf-8", "surrogateescape"))
