"""A private host for each test: nothing runs until the test starts it, and everything has ended when it is over."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pysendmail.paths import Paths
from tests.tools.host import Host


@pytest.fixture
def make_host(open_paths: Paths) -> Iterator[Callable[..., Host]]:
    """Makes the host of this test, with these settings or aliases."""
    made: list[Host] = []

    def make(**more: Any) -> Host:
        made.append(Host(open_paths, **more))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """A host with the usual settings, running."""
    found = make_host()
    found.start()
    return found
