"""The arithmetic of bench/: what is counted, and how figures become medians, ratios and verdicts. Nothing is timed."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import accounts, driver, figures, smtp
from bench.figures import GOALS, OURS, THEIRS, Figures, Goal, Sample, at_least, at_most, ours
from bench.hosts import Failed
from bench.peers import BESIDES
from bench.workloads import WORKLOADS


def filled(*rounds: tuple[float, float], workload: str = "mbox", figure: str = "per_s") -> Figures:
    """Figures with (ours, theirs) of each round."""
    found = Figures()
    for number, (left, right) in enumerate(rounds, 1):
        found.add(Sample(workload, figure, OURS, number, left))
        found.add(Sample(workload, figure, THEIRS, number, right))
    return found


# ---- figures


def test_ratio_is_the_median_of_the_rounds_not_of_the_values() -> None:
    """A round in which the machine was slow is slow for both; the ratio of medians would compare different rounds."""
    table = filled((10, 5), (100, 20), (30, 30)).table()
    line = next(line for line in table.split("\n") if "per_s" in line)
    assert re.search(r"30\.0 \[10\.0-100\] +20\.0 \[5\.00-30\.0\] +2\.00 \[1\.00-5\.00\]", line), line


def test_rounds_that_one_of_them_missed_have_no_ratio() -> None:
    found = filled((10, 5))
    found.add(Sample("mbox", "per_s", OURS, 2, 99.0))
    found.add(Sample("mbox", "per_s", THEIRS, 3, 0.0))
    assert list(figures.ratios(found.values("mbox", "per_s", OURS), found.values("mbox", "per_s", THEIRS))) == [2.0]


@pytest.mark.parametrize(("goal", "value", "met"), [
    (at_least(5), 5.0, True), (at_least(5), 4.99, False), (at_most(0.8), 0.8, True), (at_most(0.8), 0.81, False),
    (ours(40), 40.0, True), (ours(40), 41.0, False)])
def test_a_goal_is_met_on_its_side_of_the_limit(goal: Goal, value: float, met: bool) -> None:
    assert goal.is_met(value) is met


@pytest.mark.parametrize(("pair", "verdict"), [((50.0, 10.0), "goal >= 5: met"), ((49.0, 10.0), "goal >= 5: MISSED")])
def test_the_table_says_whether_a_goal_is_met(pair: tuple[float, float], verdict: str) -> None:
    assert verdict in filled(pair).table()


def test_a_goal_of_our_own_is_not_judged_by_the_ratio() -> None:
    table = filled((39.0, 7.0), workload="idle", figure="pss_mb").table()
    assert "goal <= 40 (ours): met" in table
    assert "5.57" in table


def test_a_host_that_was_not_measured_shows_as_a_dash_and_is_not_judged() -> None:
    found = Figures()
    found.add(Sample("mbox", "per_s", OURS, 1, 3000.0))
    line = found.table().split("\n")[-1]
    assert line.split() == ["per_s", "3000", "-", "-"]


def test_each_goal_is_for_a_figure_that_a_workload_yields() -> None:
    """A goal with a misspelt name would never be missed."""
    source = "".join((Path(figures.__file__).parent / name).read_text() for name in ("workloads.py", "smtp.py"))
    for workload, figure in GOALS:
        assert WORKLOADS[workload].__name__ == workload
        stem = re.sub(r"^(one|eight|idle|junk)_", "{name}_", figure)
        assert f'"{figure}"' in source or f'"{stem}"' in source, figure


def test_other_hosts_have_their_figure_and_ratio_behind_the_verdict() -> None:
    found = filled((30, 15))
    found.add(Sample("mbox", "per_s", "exim4", 1, 10.0))
    assert found.table().endswith("2.00   goal >= 5: MISSED   exim4 10.0: 3.00")


def test_each_peer_is_in_a_workload_that_there_is() -> None:
    assert set(BESIDES) <= set(WORKLOADS)


def test_who_is_not_done_in_time_is_as_fast_as_what_it_managed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        pids = staticmethod(list)

        def settle(self) -> None:
            pass

        def cpu(self) -> float:
            return 1.0

        def wait(self, *_: object) -> float:
            raise TimeoutError

        @contextmanager
        def sending(self, *_: object, **__: object) -> Iterator["Slow"]:
            yield self

        @property
        def network(self) -> "Slow":
            return self

    monkeypatch.setattr(smtp, "PATIENCE", 0.01)
    found: dict[str, float] = {}
    with pytest.raises(Failed, match="3 of 200 messages"):
        found.update(smtp._flow(Slow(), 200, ("bob",), lambda: 3, lasting=True))  # type: ignore[arg-type]
    assert found["missing"] == 197
    assert found["per_s"] > 0
    assert "accept_per_s" not in found


def test_the_log_gives_the_same_table_again() -> None:
    log = io.StringIO()
    first = Figures(log)
    for sample in filled((10, 5), (12, 4)).samples:
        first.add(sample)
    again = Figures()
    again.load(log.getvalue().split("\n"))
    assert again.samples == first.samples
    assert again.table() == first.table()


@pytest.mark.parametrize(("value", "text"), [(0.345, "0.34"), (9.996, "10.00"), (12.34, "12.3"), (1234.5, "1234"),
                                             (-123.0, "-123")])
def test_values_have_about_three_digits(value: float, text: str) -> None:
    assert figures.short(value) == text


def test_percentile_is_a_value_that_was_measured() -> None:
    assert figures.percentile(range(1, 101), 0.95) == 96
    assert figures.percentile([7.0], 0.95) == 7.0


# ---- mailboxes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "var/mail").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    return tmp_path


def test_messages_in_an_mbox_are_counted_once_however_it_grows(root: Path) -> None:
    boxes = accounts.Mailboxes(root)
    whole = b"From bob Tue\nx\n\nFrom here is no such line\n\n>From quoted\n"  # (two separators: a line "From " is one)
    with (root / "var/mail/alice").open("ab", buffering=0) as file:
        seen = []
        for byte in whole:
            file.write(bytes([byte]))
            seen.append(boxes.count())
    assert seen == sorted(seen)
    assert seen[-1] == 2


def test_mail_in_maildirs_and_mboxes_is_counted_together_and_locks_are_not_mail(root: Path) -> None:
    boxes = accounts.Mailboxes(root)
    (root / "var/mail/alice").write_bytes(b"From bob Tue\n\n\nFrom bob Tue\n\n\n")
    (root / "var/mail/alice.lock").write_bytes(b"From bob Tue\n\n\n")
    (root / "home/bob/Maildir/new").mkdir(parents=True)
    (root / "home/bob/Maildir/new/1").touch()
    assert boxes.count() == 2
    boxes.has_maildirs = True
    assert boxes.count() == 3
    boxes.empty()
    assert boxes.count() == 0
    (root / "var/mail/alice").write_bytes(b"From bob Tue\n\n\n")
    assert boxes.count() == 1


# ---- processes


def test_cpu_time_of_children_counts_once_they_are_waited_for() -> None:
    before = accounts.cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert accounts.cpu_seconds(os.getpid()) - before >= 0.4


def test_memory_of_processes_that_are_gone_is_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        pass
    assert accounts.pss_mb([process.pid]) == 0
    assert accounts.peaks_mb([process.pid]) == {}
    accounts.reset_peaks([process.pid])


def test_memory_of_this_process_is_seen() -> None:
    assert accounts.pss_mb([os.getpid()]) > 1
    assert max(accounts.peaks_mb([os.getpid()]).values()) > 1


# ---- the driver


def test_a_message_has_about_the_size_that_was_asked_for() -> None:
    for size in (2048, 100_000):
        file = io.BytesIO()
        driver.write_message(file, size)
        assert size - 100 < len(file.getvalue()) <= size
        assert b"\nFrom " not in file.getvalue(), "it would count as a message"


def test_the_driver_submits_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\ncat >"{tmp_path}/$2.$$"\n[ "$2" != bad ]\n')
    program.chmod(0o755)
    monkeypatch.setattr(driver, "SENDMAIL", str(program))
    result = driver.submit(5, 2, 2048, ["alice", "bad"])
    assert result["failed"] == 2
    assert len(result["ms"]) == 5  # type: ignore[arg-type]
    assert sorted(path.name.split(".")[0] for path in tmp_path.glob("*.*")) == ["alice"] * 3 + ["bad"] * 2
    json.dumps(result)
