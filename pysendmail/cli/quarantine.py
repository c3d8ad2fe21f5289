"""`sendmail -Q[reason] -q...`: put the chosen messages on hold for that reason; without a reason, let them go again.

The messages are chosen as for a queue run (-qI, -qR, -qS, each with "!" for the others); -qQ[text] chooses those that
are on hold, with this text in their reason, and -q!Q those that are not; -q means all. To let go what was held because
of a virus:

    sendmail -Q -qQvirus

Without any -q nothing is chosen, and that is an error, as one slip would hold all mail. Only root may do this.
"""

import sys

from ..events import shown
from ..paths import Paths
from . import ask, queuerun

EX_OK, EX_USAGE = 0, 64
MAX_SHOWN = 1000  # characters of a result


def main(args: list[str], paths: Paths) -> int:
    """args: "-Qreason" and the -q options. The exit code: 75 if a message could not be changed at this moment."""
    reasons = [word[2:] for word in args if word.startswith("-Q")]
    selectors = [word[2:] for word in args if word.startswith("-q")]
    why = reasons[-1].strip() if reasons else ""
    if not selectors:
        return _fail("-Q needs -q, -qI, -qR, -qS or -qQ to say which messages", EX_USAGE)
    try:
        wanted = queuerun.selection(selectors)
        wanted.setdefault("held", not why)
        answer = ask.ask(paths, {"do": "hold" if why else "release", "filter": wanted, "why": why})
        refused = [(item["id"], item["result"]) for item in answer if item.get("result", "ok") != "ok"]
    except ValueError as problem:
        return _fail(str(problem), EX_USAGE)
    except ask.Unanswered as problem:
        return _fail(str(problem), problem.code)
    for queue_id, result in refused:
        _fail(f"{queue_id}: {result}", ask.EX_TEMPFAIL)
    return ask.EX_TEMPFAIL if refused else EX_OK


def _fail(words: str, code: int) -> int:
    print(f"sendmail: {shown(words, MAX_SHOWN)}", file=sys.stderr)
    return code
