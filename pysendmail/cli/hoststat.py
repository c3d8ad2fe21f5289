"""hoststat(8), also `sendmail -bh`: what the daemon knows of other hosts now, in sendmail's columns.

    -------------- Hostname --------------- How long ago ---------Results---------
    mx.example.com                              00:01:04 451 4.4.1 connection refused
    example.net                                 00:00:02 busy: 3 connections, 24 messages under way, 120 waiting

Only hosts that are down or have work are remembered; nothing of this is on disk. It is asked of the daemon, by root.
"""

import sys

from ..events import duration, shown
from ..paths import Paths
from . import ask
from .ask import Item

EX_OK = 0
MAX_SHOWN = 200  # characters of a result
HEADING = "-------------- Hostname --------------- How long ago ---------Results---------"


def main(args: list[str], paths: Paths) -> int:
    """args: hosts, of which one must be part of a name that is shown; none = all of them. The exit code."""
    wanted = [word.lower() for word in args if not word.startswith("-")]
    try:
        hosts = ask.ask(paths, {"do": "hosts"})
        print(HEADING)
        for item in hosts:
            name = str(item["destination"])
            if not wanted or any(word in name.lower() for word in wanted):
                print(line(item))
    except ask.Unanswered as problem:
        print(f"hoststat: {shown(str(problem), MAX_SHOWN)}", file=sys.stderr)
        return problem.code
    return EX_OK


def line(item: Item) -> str:
    """One destination."""
    if item["state"] == "busy":
        ago, connections = item["silent"], item["connections"]
        words = (f"busy: {connections} connection{'' if connections == 1 else 's'}, {item['sent']} messages under way, "
                 f"{item['waiting']} waiting")
    else:
        ago, words = item["heard"], f"{item['status']} {item['reason']}"
    return f"{shown(str(item['destination']), 39):<39} {duration(ago):>12} {shown(words, MAX_SHOWN)}"
