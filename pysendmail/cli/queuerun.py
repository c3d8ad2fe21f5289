"""`sendmail -q...`: try the queue now.

The runner does the work; this asks it to. Without arguments everything that waits is tried; -qI, -qR and -qS choose
by id, recipient and sender (with "!" the others); the same letter twice means either, two letters mean both. A daemon that is down has nothing to be asked: EX_TEMPFAIL, and the
queue is tried when it starts. sendmail(8).
"""

import sys

from ..paths import Paths
from . import ask

EX_OK, EX_USAGE, EX_TEMPFAIL = 0, 64, 75

_KEYS = {"I": "id", "R": "recipient", "S": "sender"}


def selection(options: list[str]) -> dict[str, object]:
    """The filter for the values of -q: "", "f", "30m" (all of it), "Rexample.org", "!Iabc". Raises ValueError."""
    chosen: dict[str, list[str]] = {}
    turned: set[str] = set()
    for option in options:
        body = option[1:] if option.startswith("!") else option
        if body[:1] in _KEYS and len(body) > 1:
            key, value = _KEYS[body[0]], body[1:]
            chosen.setdefault(key, []).append(value)
            if option.startswith("!"):
                turned.add(key)
        elif option.startswith("!") or body[:1] in ("G", "L", "Q"):
            raise ValueError(f"cannot select by -q{option}")
    return {**chosen, "not": sorted(turned)} if turned else dict(chosen)


def main(args: list[str], paths: Paths) -> int:
    """args: the values of all -q options. The exit code."""
    try:
        wanted = selection(args)
    except ValueError as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return EX_USAGE
    try:
        for _ in ask.ask(paths, {"do": "flush", "filter": wanted}):
            pass
    except ask.Unanswered as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return problem.code
    return EX_OK
