"""The two commands of the README on a Debian that has never seen the project."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT
from .debian import BUILD_TIME, Debian, copy_source

TREE = "/home/alice/pysendmail"


@pytest.fixture(scope="module")
def fresh(suite: str) -> Iterator[Debian]:
    """A fresh clone in the home of a user who may use sudo."""
    debian = Debian.copy_of(suite)
    try:
        copy_source(ROOT, debian.path(TREE))
        debian.chroot("chown", "-R", "alice:alice", TREE)
        debian.write("/etc/sudoers.d/alice", "alice ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        debian.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        yield debian
    finally:
        debian.remove()


def as_alice(debian: Debian, *command: str) -> str:
    return debian.chroot("setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", "HOME=/home/alice",
                         *command, timeout=BUILD_TIME).stdout.decode("utf-8", "replace")


def test_demo_runs_as_an_ordinary_user(fresh: Debian) -> None:
    said = as_alice(fresh, f"{TREE}/dev", "demo")
    assert "Subject: hello" in said
    assert "Status: 5.1.1" in said
    assert "nothing lost" in said


def test_tests_install_what_they_need_and_say_what_needs_root(fresh: Debian) -> None:
    said = as_alice(fresh, f"{TREE}/dev", "test", "-q", "tests/unit", "tests/meta")
    assert " passed" in said
    assert " failed" not in said
    assert "NOT RUN: " in said
