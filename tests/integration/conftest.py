"""A private host for each test: nothing runs until the test starts it, and everything has ended when it is over."""

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysendmail.paths import Paths
from tests.tools.fakemilter import FakeMilter, by_letter
from tests.tools.host import Host
from tests.tools.watch import WITHIN


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


@pytest.fixture
def filters() -> Iterator[Callable[[dict[bytes, bytes]], FakeMilter]]:
    """Starts filters, in a thread that ends with the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    place = Path(tempfile.mkdtemp(prefix="pysm-"))
    place.chmod(0o755)
    made: list[FakeMilter] = []

    def start(answers: dict[bytes, bytes]) -> FakeMilter:
        one = FakeMilter(str(place / f"filter{len(made)}"), by_letter(answers))
        asyncio.run_coroutine_threadsafe(one.__aenter__(), loop).result(WITHIN)
        os.chmod(one.path, 0o666)
        made.append(one)
        return one

    yield start
    for one in made:
        asyncio.run_coroutine_threadsafe(one.__aexit__(None, None, None), loop).result(WITHIN)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WITHIN)
    loop.close()
    shutil.rmtree(place)
