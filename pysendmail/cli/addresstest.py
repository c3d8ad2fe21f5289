"""`sendmail -bt`: type addresses, read what would become of them, each step in words. Nothing is ever sent.

A line is an address. What sendmail's test mode has before it, the numbers of rulesets ("3,0 alice"), is passed over;
"/quit" and the end of input end it. This program has no rulesets: aliases(5), forward(5) and the settings are all.
"""

import sys
import time

from ..config import ConfigError, read
from ..events import shown
from ..paths import Paths
from ..users import SystemUsers
from . import explain
from .ask import Unanswered
from .verify import EX_CONFIG, EX_OK, MAX_SHOWN

MAX_LINE = 2000  # characters of one line of input


def main(args: list[str], paths: Paths) -> int:
    """Read standard input to its end."""
    try:
        explainer = explain.Explainer(paths, read(paths, partial=True).config, SystemUsers(time.monotonic))
    except ConfigError as problem:
        print(f"sendmail: {problem.problems[0]}", file=sys.stderr)
        return EX_CONFIG
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("ADDRESS TEST MODE: enter an address, /quit to end")
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline(MAX_LINE)
        if not line or line.strip() == "/quit":
            print()
            return EX_OK
        address = _address(line.strip())
        if address:
            _show(explainer, address)


def _address(line: str) -> str:
    """The address in a line, without the ruleset numbers that habit puts before it."""
    first, _, rest = line.partition(" ")
    return rest.strip() if rest and not first.strip("0123456789,") else line


def _show(explainer: explain.Explainer, address: str) -> None:
    try:
        found = explainer.explain(address)
    except Unanswered as problem:
        print(problem)
        return
    for step in found.steps:
        print(shown(f"{'  ' * step.depth}{step.verb}: {step.address}: {step.words}", MAX_SHOWN))
    for place in found.places:
        print(shown(f"{place.target.kind}: {place.words}", MAX_SHOWN))
