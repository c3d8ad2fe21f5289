"""`pysendmail queue shape`: how old what waits for which domain is, as a table (Postfix's qshape has the same idea).

    age in minutes        T    5   10   20   40   80  160  320  640 1280 1280+
    TOTAL                12    0    1    0    0   11    0    0    0    0     0
    example.com          11    0    0    0    0   11    0    0    0    0     0
    example.org           1    0    1    0    0    0    0    0    0    0     0

A column counts recipients that are still waited for, or messages by their sender's domain, which have come no longer
ago than its heading says and longer than the one before it. A full row of one domain is a host that is down; many
senders' messages of one age are an account that somebody else uses.
"""

import json
import time
from collections.abc import Iterable

import click

from ..events import shown
from ..spool.selection import open_recipients
from .ask import Item

LIMITS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)  # minutes
MINUTE = 60.0  # seconds
MAX_DOMAIN = 40  # characters shown
NO_DOMAIN = "(local)"  # of an address without a domain
NULL = "MAILER-DAEMON"  # of reports

Counts = list[int]


def count(items: Iterable[Item], now: float, *, by_sender: bool) -> dict[str, Counts]:
    """The rows, by domain: a number for each limit and one for what is older."""
    rows: dict[str, Counts] = {}
    for item in items:
        minutes = (now - item["arrived"]) / MINUTE
        column = next((k for k, limit in enumerate(LIMITS) if minutes <= limit), len(LIMITS))
        addresses = [item["sender"]] if by_sender else [one["address"] for one in open_recipients(item)]
        for address in addresses:
            domain = address.rpartition("@")[2].lower() if "@" in address else NO_DOMAIN if address else NULL
            rows.setdefault(domain, [0] * (len(LIMITS) + 1))[column] += 1
    return dict(sorted(rows.items(), key=lambda row: (-sum(row[1]), row[0])))


def show(items: Iterable[Item], *, by_sender: bool, as_json: bool) -> None:
    """Print the table."""
    rows = count(items, time.time(), by_sender=by_sender)
    if as_json:
        click.echo(json.dumps({"minutes": LIMITS, "domains": [
            {"domain": domain, "total": sum(counts), "counts": counts} for domain, counts in rows.items()]}))
        return
    total = [sum(column) for column in zip(*rows.values(), strict=True)] or [0] * (len(LIMITS) + 1)
    headings = ["T", *map(str, LIMITS), f"{LIMITS[-1]}+"]
    table = [("age in minutes", headings)] + [
        (shown(name, MAX_DOMAIN), [str(sum(counts)), *map(str, counts)])
        for name, counts in (("TOTAL", total), *rows.items())]
    first = max(len(name) for name, _ in table)
    widths = [max(5, *(len(cells[k]) for _, cells in table)) for k in range(len(headings))]
    for name, cells in table:
        row = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(f"{name:<{first}} {row}")
