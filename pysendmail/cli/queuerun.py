"""`sendmail -q...`: try the queue now.

The runner does the work; this asks it to. Without arguments everything that waits is tried; -qI, -qR and -qS choose
by id, recipient and sender (with "!" the others); the same letter twice means either, two letters mean both. -qQ means
messages on hold, which are not tried before somebody lets them go: quarantine.py. A daemon that is down has nothing to
be asked: EX_TEMPFAIL, and the queue is tried when it starts. sendmail(8).
"""

import sys

from ..paths import Paths
from . import ask

EX_OK, EX_USAGE, EX_TEMPFAIL = 0, 64, 75

_KEYS = {"I": "id", "R": "recipient", "S": "sender", "Q": "hold"}
_INTERVAL = frozenset("0123456789p")  # what one begins with


def selection(options: list[str]) -> dict[str, object]:
    """The filter for the values of -q: "", "f", "30m", "p30m" (all of it), "Rexample.org", "!Iabc", "Qvirus" (on hold
    for such a reason), "!Q" (not on hold). Raises ValueError: a letter without a text is none, not everything."""
    chosen: dict[str, list[str]] = {}
    turned: set[str] = set()
    held: bool | None = None
    for option in options:
        body = option.removeprefix("!")
        key = _KEYS.get(body[:1], "")
        if body == "Q":
            held = body == option
        elif key and len(body) > 1:
            chosen.setdefault(key, []).append(body[1:])
            if body != option:
                turned.add(key)
            if key == "hold":
                held = True
        elif option not in ("", "f") and option[:1] not in _INTERVAL:
            raise ValueError(f"cannot select by -q{option}")
    found: dict[str, object] = dict(chosen)
    if held is not None:
        found["held"] = held
    return {**found, "not": sorted(turned)} if turned else found


def main(args: list[str], paths: Paths) -> int:
    """args: the values of all -q options. The exit code."""
    try:
        wanted = selection(args)
    except ValueError as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return EX_USAGE
    if wanted.get("held"):
        print("sendmail: messages on hold are not tried; -Q -qQ lets them go", file=sys.stderr)
        return EX_USAGE
    try:
        for _ in ask.ask(paths, {"do": "flush", "filter": wanted, "quiet": True}):
            pass
    except ask.Unanswered as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return problem.code
    return EX_OK
