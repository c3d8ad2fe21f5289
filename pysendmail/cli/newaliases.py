"""newaliases(1), sendmail -bi: checks the alias files and says what is in them.

There is no database to rebuild: the runner reads the text itself, and a changed file works at once. What is left of the
command is what people run it for: the counts, each bad line by file and line number, an exit code that says whether all
is well, and the two log lines that logwatch knows.

A file that somebody other than root could have written is refused, as sendmail does: who runs this would vouch for it.
So is one that the runner, which is not root, cannot read: all local mail would wait.
"""

import os
import stat
import sys

from ..config import Config, ConfigError, read
from ..events import INFO, NOTICE, Log, Syslog, shown
from ..paths import Paths
from ..route import aliases, textfile
from ..route.router import Router
from ..users import LookupTrouble, by_uid
from .ask import Unanswered
from .explain import as_user, owner_of

EX_OK, EX_DATAERR, EX_CONFIG = 0, 65, 78
MAX_LINE = 1000  # characters of a complaint


def main(args: list[str], paths: Paths, *, log: Log | None = None) -> int:
    """Check all alias files; the exit code. args: options of sendmail, none of which changes anything here."""
    del args
    log = log or Syslog()
    code = EX_OK
    try:
        config = read(paths, partial=True).config
    except ConfigError as trouble:
        code = EX_CONFIG
        for line in trouble.problems:
            _complain(line)
        config = Config(hostname="localhost", domain="localhost")
    router = Router(config)
    for file in config.local.aliases or (paths.aliases,):
        code = max(code, _check(file, router, log, paths))
    return code


def _check(file: str, router: Router, log: Log, paths: Paths) -> int:
    """One alias file: what is in it goes to standard output, what is wrong with it to standard error."""
    table, _ = aliases.load(file, router.is_local)
    if table.trouble:
        _complain(table.trouble)
        return EX_CONFIG
    danger = table.danger or danger_above(file)
    if danger:
        _complain(f"{file}: unsafe: {danger}")
        return EX_CONFIG
    if not _is_readable(file, paths):
        _complain(f"{file}: the mail system's own user cannot read it, and all local mail waits; chmod 644")
        return EX_CONFIG
    for problem in table.problems:
        _complain(str(problem))
    if table.errors > len(table.problems):
        _complain(f"{file}: {table.errors} errors in all")
    counts = f"{file}: {len(table.entries)} aliases, longest {table.longest} bytes, {table.total} bytes total"
    print(counts, flush=True)
    log(NOTICE, f"alias database {shown(file)} rebuilt by {shown(_caller())}")
    log(INFO, shown(counts))
    return EX_DATAERR if table.errors else EX_OK


def _is_readable(file: str, paths: Paths) -> bool:
    """Whether the runner, whose the queue is, may read a file; True if that cannot be found out."""
    try:
        answer = as_user(owner_of(paths.queue), lambda: {"may": os.access(file, os.R_OK)})
    except Unanswered:
        return True
    return bool(answer["may"])


def danger_above(path: str) -> str:
    """Why somebody could replace a file: a directory on the way to it that others can write; "" if nobody can.

    A sticky directory is fine as long as what is in it is ours, which is looked at as well.
    """
    place = os.path.dirname(os.path.realpath(path))
    while True:
        try:
            status = os.stat(place)
        except OSError as trouble:
            return f"cannot look at {place}: {trouble.strerror}"
        if not status.st_mode & stat.S_ISVTX or status.st_uid not in (0, os.geteuid()):
            danger = textfile.danger(status)
            if danger:
                return f"its directory {place} {danger}"
        if place == "/":
            return ""
        place = os.path.dirname(place)


def _caller() -> str:
    uid = os.getuid()
    try:
        user = by_uid(uid)
    except LookupTrouble:
        user = None
    return user.name if user is not None else f"uid {uid}"


def _complain(line: str) -> None:
    """On standard error, harmless to a terminal: file names and texts may have anything in them."""
    print(shown(line, MAX_LINE), file=sys.stderr, flush=True)
