"""What the service manager hears, and that one which does not listen stops nothing."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.daemon.notify import Notify


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(10)
        yield one


def test_lines_go_out_as_one_datagram(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    Notify().tell("READY=1", "STATUS=running")
    assert manager.recv(1000) == b"READY=1\nSTATUS=running"


def test_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"pysm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notify().tell("WATCHDOG=1")
        assert manager.recv(1000) == b"WATCHDOG=1"


def test_children_do_not_inherit_the_address(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, manager.getsockname())
    Notify()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"} & set(os.environ)


@pytest.mark.parametrize("address", ["", "/nonexistent/socket", "@nobody-listens-here", "x" * 300])
def test_manager_that_is_not_there_is_no_trouble(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notify().tell("READY=1")
