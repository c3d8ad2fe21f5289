"""`sendmail -bv ADDRESS ...`: where mail for each address would go, one line a place. Nothing is ever sent.

Exit code: that of the first address which is not deliverable, as in sendmail(8): 67 for an unknown user, 69 for another
failure, 75 where it cannot be known now; 65 if it cannot be read.
"""

import sys
import time

from ..config import ConfigError, read
from ..events import shown
from ..mail.address import AddressError, parse_list
from ..mail.envelope import raw, text
from ..paths import Paths
from ..users import SystemUsers
from . import explain
from .ask import Unanswered

EX_OK, EX_USAGE, EX_DATAERR, EX_CONFIG = 0, 64, 65, 78
MAX_SHOWN = 1000  # characters of a line

_MAILERS = {"mailbox": "local", "file": "*file*", "command": "prog", "relay": "esmtp"}


def main(args: list[str], paths: Paths) -> int:
    """args: addresses, or lists of them as for a submission; options of -v and the like are passed over."""
    try:
        lists = [parse_list(raw(word)) for word in args if not word.startswith("-")]
    except AddressError as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return EX_DATAERR
    addresses = [text(one) for found in lists for one, _, _ in found if one]
    if not addresses:
        print("sendmail: -bv needs an address", file=sys.stderr)
        return EX_USAGE
    try:
        explainer = explain.Explainer(paths, read(paths, partial=True).config, SystemUsers(time.monotonic))
        codes = [verify(explainer, one) for one in addresses]
    except ConfigError as problem:
        print(f"sendmail: {problem.problems[0]}", file=sys.stderr)
        return EX_CONFIG
    except Unanswered as problem:
        print(f"sendmail: {problem}", file=sys.stderr)
        return problem.code
    return next((code for code in codes if code != EX_OK), EX_OK)


def verify(explainer: explain.Explainer, address: str) -> int:
    """Print what becomes of one address; its exit code."""
    found = explainer.explain(address)
    for place in found.places:
        target = place.target
        if target.outcome is not None and not target.outcome.is_delivered:
            print(shown(f"{target.address}... {target.outcome.reason} ({target.outcome.status})", MAX_SHOWN))
        else:
            mailer = _MAILERS.get(target.kind, "local")
            print(shown(f"{address}... deliverable: mailer {mailer}, {place.words}", MAX_SHOWN))
    return found.code
