"""A whole host for the tests that kill its processes, and what the crash tests have tried, at the end of the run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pysendmail.paths import Paths
from tests.crash import effort
from tests.tools.host import Host


@pytest.fixture
def make_host(open_paths: Paths) -> Iterator[Callable[..., Host]]:
    """Makes the host of this test, with these settings."""
    made: list[Host] = []

    def make(**more: Any) -> Host:
        made.append(Host(open_paths, **more))
        return made[-1]

    yield make
    for host in made:
        host.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in effort.said:
        terminalreporter.write_line(f"crash tests: {line}")
