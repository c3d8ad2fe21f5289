"""How much of everything a workload does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. sequential, parallel: messages submitted one by one, and eight at a time. drain: waiting
    messages. listed: accounts of the large list. details: addresses for each of the fifty users in the largest.
    strangers: clients that say nothing, and a third of it hostile ones. flood: messages in each of 90 sessions. smtp:
    messages by SMTP. deferred, many_deferred: messages for a next hop that is away."""

    sequential: int = 200
    parallel: int = 400
    drain: int = 3000
    listed: int = 2000
    details: int = 200
    strangers: int = 1000
    flood: int = 100
    smtp: int = 3000
    deferred: int = 10_000
    many_deferred: int = 100_000


QUICK = Size(sequential=20, parallel=40, drain=150, listed=100, details=4, strangers=200, flood=5, smtp=200,
             deferred=300, many_deferred=600)
