"""Arithmetic on figures: what was measured, medians, ratios, ranges, goals. No clock, no files but a log to write to.

A ratio is ours/theirs, taken within each round, where both were measured in turn; the median of these ratios is what
counts, and their range says how far to trust it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import IO

OURS, THEIRS = "pysendmail", "postfix"


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one host in one round."""

    workload: str
    figure: str
    host: str
    round: int
    value: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be. is_ratio: to Postfix; otherwise our own figure. is_most: at most, else at least."""

    limit: float
    is_most: bool = True
    is_ratio: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.is_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_most else '>='} {self.limit:g}{'' if self.is_ratio else ' (ours)'}"


def at_least(limit: float) -> Goal:
    return Goal(limit, is_most=False)


def at_most(limit: float) -> Goal:
    return Goal(limit)


def ours(limit: float) -> Goal:
    """At most so much, whatever Postfix needs."""
    return Goal(limit, is_ratio=False)


GOALS = {
    ("submit", "one_ms"): at_most(0.95),
    ("submit", "one_by_floor"): ours(1.35),
    ("submit", "one_cpu_ms"): at_most(0.8),
    ("submit", "eight_per_s"): at_least(1.3),
    ("submit", "eight_cpu_ms"): at_most(0.8),
    ("mbox", "per_s"): at_least(5.0),
    ("mbox", "cpu_ms"): at_most(0.5),
    ("mbox50", "per_s"): at_least(2.0),
    ("mbox50", "cpu_ms"): at_most(0.5),
    ("maildir", "per_s"): at_least(1.0),
    ("maildir", "cpu_ms"): at_most(0.5),
    ("maildir50", "per_s"): at_least(1.0),
    ("maildir50", "cpu_ms"): at_most(0.5),
    ("idle", "pss_mb"): ours(40.0),
    ("big", "growth_mb"): ours(8.0),
    ("big", "arrived_s"): at_most(1.0),
    ("alias2000", "all_s"): at_most(1.0),
    ("alias2000u", "all_s"): at_most(1.0),
    ("include10000", "all_s"): at_most(1.0),
    ("flood", "idle_growth_mb"): ours(16.0),
    ("flood", "junk_growth_mb"): ours(16.0),
    ("flood", "send_growth_mb"): ours(32.0),
    ("flood", "refused"): ours(0.0),
    ("smtp_mbox", "per_s"): at_least(2.0),
    ("smtp_mbox", "cpu_ms"): at_most(0.5),
    ("smtp_mbox50", "per_s"): at_least(2.0),
    ("smtp_mbox50", "cpu_ms"): at_most(0.5),
    ("smtp_mbox50", "peak_pss_mb"): ours(150.0),
    ("smtp_maildir50", "per_s"): at_least(1.0),
    ("smtp_maildir50", "cpu_ms"): at_most(0.5),
    ("smtp_maildir50", "peak_pss_mb"): ours(150.0),
    ("smtp_big", "arrived_s"): at_most(1.0),
    ("relay", "per_s"): at_least(1.0),
    ("relay", "cpu_ms"): at_most(0.5),
    ("relay_lasting", "per_s"): at_least(1.5),
    ("relay_lasting", "cpu_ms"): at_most(0.5),
    ("relay_lasting", "peak_pss_mb"): ours(150.0),
    ("waiting", "drain_per_s"): at_least(1.2),
    ("deferred10000", "mailq_s"): ours(0.3),
    ("deferred10000", "ready_s"): ours(1.0),
    ("deferred10000", "drain_per_s"): at_least(0.8),
    ("deferred100000", "mailq_s"): ours(2.0),
    ("deferred100000", "ready_s"): ours(1.0),
    ("deferred100000", "pss_mb"): ours(200.0),
    ("deferred100000", "pss_after_mb"): ours(200.0),
    ("deferred100000", "drain_per_s"): at_least(0.8),
}


@dataclass(slots=True)
class Figures:
    """All samples of a run. log: gets each as a line of JSON."""

    log: IO[str] | None = None
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        if self.log is not None:
            self.log.write(json.dumps(asdict(sample)) + "\n")
            self.log.flush()

    def load(self, lines: Iterable[str]) -> None:
        """Samples of an earlier run, from its log."""
        self.samples += [Sample(**json.loads(line)) for line in lines if line.strip()]

    def table(self) -> str:
        """All of it for people: ours, Postfix's, the ratio; of other hosts their figure and the ratio of ours to it."""
        lines: list[str] = []
        last = ""
        for workload, figure in dict.fromkeys((s.workload, s.figure) for s in self.samples):
            if workload != last:
                lines += ["", f"{workload:<19} {OURS:>20} {THEIRS:>20}   ours/{THEIRS}"]
                last = workload
            lines.append(self._line(workload, figure))
        return "\n".join(lines)

    def _line(self, workload: str, figure: str) -> str:
        left = self.values(workload, figure, OURS)
        right = self.values(workload, figure, THEIRS)
        quotients = list(ratios(left, right))
        goal = GOALS.get((workload, figure))
        judged = ""
        if goal is not None:
            basis = quotients if goal.is_ratio else list(left.values())
            if basis:
                judged = f"   goal {goal}: {'met' if goal.is_met(median(basis)) else 'MISSED'}"
        others = "".join(f"   {host} {spread(found.values())}: {spread(ratios(left, found))}"
                         for host in self._others() if (found := self.values(workload, figure, host)))
        return (f"  {figure:<17} {spread(left.values()):>20} {spread(right.values()):>20}   {spread(quotients)}{judged}"
                f"{others}")

    def _others(self) -> list[str]:
        """Further hosts."""
        return [host for host in dict.fromkeys(s.host for s in self.samples) if host not in (OURS, THEIRS)]

    def values(self, workload: str, figure: str, host: str) -> dict[int, float]:
        """By round."""
        return {s.round: s.value for s in self.samples if (s.workload, s.figure, s.host) == (workload, figure, host)}


def ratios(left: dict[int, float], right: dict[int, float]) -> Iterator[float]:
    """left/right of the rounds that have both."""
    for number, value in left.items():
        if right.get(number):
            yield value / right[number]


def spread(values: Iterable[float]) -> str:
    """Median and range: "9.41 [8.9-10.2]"; "-" for nothing."""
    found = list(values)
    if not found:
        return "-"
    text = short(median(found))
    return text if len(found) == 1 else f"{text} [{short(min(found))}-{short(max(found))}]"


def short(value: float) -> str:
    """Three significant digits, no exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of them do not exceed (nearest rank)."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))]
