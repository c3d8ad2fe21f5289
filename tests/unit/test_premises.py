"""The sockets that everybody may use, and the lock that says whose they are."""

import os
import socket
import stat

import pytest

from pysendmail.daemon import premises
from pysendmail.paths import Paths
from tests.tools import elsewhere


def test_sockets_are_for_everybody_and_take_the_place_of_stale_ones(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(paths.submit)
    opened = premises.open_sockets(paths)
    for path in (paths.wake, paths.submit, paths.control):
        seen = os.stat(path)
        assert stat.S_ISSOCK(seen.st_mode)
        assert stat.S_IMODE(seen.st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(paths.submit)
    for one in opened.values():
        one.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_socket_is_not_removed(paths: Paths) -> None:
    with open(paths.wake, "w", encoding="utf-8") as file:
        file.write("somebody's")
    with pytest.raises(OSError, match="in use"):
        premises.open_sockets(paths)
    assert os.path.getsize(paths.wake) == 10


def test_a_second_daemon_knows_that_it_is_not_alone(paths: Paths) -> None:
    held = premises.lock(paths)
    assert held >= 0
    assert stat.S_IMODE(os.stat(f"{paths.run}/lock").st_mode) == 0o600

    def second() -> int:
        os.close(held)  # of the fork; the first one's stays
        return premises.lock(paths)

    assert elsewhere.run(second) == -1
    os.close(held)
    held = premises.lock(paths)
    assert held >= 0
    os.close(held)
