"""What every test gets: a private tree, a time limit, and an end to the processes it left behind.

A test that needs root carries `@pytest.mark.root`. Without root those are left out, and the end of the run says how
many; they are never skipped one by one, since a skipped test looks like a passed one.
"""

import faulthandler
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest

from pysendmail.paths import Paths
from tests.tools import processes

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
# Seconds for one test, fixtures included; @pytest.mark.limit(seconds) changes it.
LIMIT = 60.0 if PROFILE != "fuzz" else 600.0
GRACE = 30.0  # seconds after which a test that cannot be interrupted (stuck in C) ends the whole run

# Directories of docs/ARCHITECTURE.md, "The spool"; a test in tests/meta compares the modes with those of the package.
DROP_MODE, SMTP_MODE, PRIVATE_MODE = 0o3733, 0o3770, 0o700

# No example database: the tree may be root's or read-only, and a failing example is printed with its blob.
hypothesis.settings.register_profile("dev", max_examples=50, deadline=None, database=None, print_blob=True)
# The gate judges a change, so it has the same examples each time; looking for new ones is what "fuzz" is for.
hypothesis.settings.register_profile("ci", max_examples=500, deadline=None, database=None, print_blob=True,
                                     derandomize=True)
hypothesis.settings.register_profile("fuzz", max_examples=2000, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile(PROFILE)

_left_out = pytest.StashKey[int]()
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    processes.become_subreaper()
    os.umask(0o022)  # whatever the caller's is: tests compare modes
    config.stash[_stderr] = os.dup(2)  # the real one, for the last resort; pytest captures 2


def pytest_unconfigure(config: pytest.Config) -> None:
    faulthandler.cancel_dump_traceback_later()
    os.close(config.stash[_stderr])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    root_only = [item for item in items if item.get_closest_marker("root")]
    items[:] = [item for item in items if not item.get_closest_marker("root")]
    config.hook.pytest_deselected(items=root_only)
    config.stash[_left_out] = len(root_only)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    count = config.stash.get(_left_out, 0)
    if count:
        terminalreporter.write_line(f"NOT RUN: {count} tests that need root; `sudo ./dev test` runs them", yellow=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A bound on each test: an exception in the test when its time is up, the end of the run if that does not help."""
    marker = item.get_closest_marker("limit")
    limit = float(marker.args[0]) if marker else LIMIT

    def time_is_up(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not done after {limit:g} s")

    before = signal.signal(signal.SIGALRM, time_is_up)
    signal.setitimer(signal.ITIMER_REAL, limit, 1.0)  # again each second, should something swallow the first
    faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=item.config.stash[_stderr])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """Children that were there before (of fixtures with a wider scope) are spared."""
    spared = processes.children()
    yield
    processes.end_all_but(spared)


def make_tree(root: str) -> Paths:
    """The directories of an installed system below `root`, owned by the caller."""
    paths = Paths(root)
    for path in (paths.conf_dir, paths.mail, paths.run):
        os.makedirs(path)
    os.makedirs(paths.spool, 0o755)
    modes = {paths.drop_tmp: DROP_MODE, paths.drop_new: DROP_MODE, paths.smtp_tmp: SMTP_MODE, paths.smtp_new: SMTP_MODE,
             paths.intake: PRIVATE_MODE, paths.queue: PRIVATE_MODE, paths.quarantine: PRIVATE_MODE}
    modes |= {f"{paths.queue}/{name}": PRIVATE_MODE for name in ("tmp", "new", "cur", "hold", "bad", "journal")}
    for path, mode in modes.items():
        os.makedirs(path)
        os.chmod(path, mode)
    Path(paths.mailname).write_text("host.example\n")
    Path(paths.aliases).write_text("postmaster: root\n")
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A private tree. Nobody but the user who runs the tests can reach it."""
    return make_tree(str(tmp_path / "r"))


@pytest.fixture
def open_paths() -> Iterator[Paths]:
    """A tree that other users reach too, for tests that run as root and become somebody else."""
    root = tempfile.mkdtemp(prefix="pysm-", dir="/tmp")
    os.chmod(root, 0o755)
    try:
        yield make_tree(f"{root}/r")
    finally:
        shutil.rmtree(root)


@pytest.fixture
def python() -> str:
    """The interpreter under test, for processes that a test starts."""
    return sys.executable
