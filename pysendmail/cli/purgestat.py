"""purgestat(8), also `sendmail -bH`: the daemon shall forget what it has found out about other hosts.

Those that were down are tried again with the next message for them; `sendmail -q` does this too, and tries all mail.
"""

import sys

from ..paths import Paths
from . import ask

EX_OK = 0


def main(args: list[str], paths: Paths) -> int:
    """The exit code. There is nothing to be chosen: one failed connection brings a record back."""
    try:
        for _ in ask.ask(paths, {"do": "forget"}):
            pass
    except ask.Unanswered as problem:
        print(f"purgestat: {problem}", file=sys.stderr)
        return problem.code
    return EX_OK
