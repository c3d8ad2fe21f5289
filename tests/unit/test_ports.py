"""Sockets that listeners accept on: kept, tried again, handed over; what cannot be bound stops nobody."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.config import Listener
from pysendmail.daemon.ports import Ports, address_of, inherited_sockets, is_loopback
from tests.tools.host import CODE


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def ports(log: list[str]) -> Iterator[Ports]:
    made = Ports(lambda priority, line: log.append(line))
    yield made
    made.close()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return address_of(one)


def addresses(ports: Ports) -> list[tuple[str, str, bool]]:
    return [(address_of(port.socket), port.profile, port.is_proxied) for port in ports.get()]


def can_connect(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_what_is_wanted_is_bound(ports: Ports, log: list[str], tmp_path: Path) -> None:
    one, two = free_address(), free_address()
    path = f"unix:{tmp_path}/lmtp"
    ports.want((Listener(one), Listener(two, "submission", True), Listener(path, "lmtp")))
    assert addresses(ports) == [(one, "smtp", False), (two, "submission", True), (path, "lmtp", False)]
    assert ports.is_complete
    assert can_connect(one)
    assert len(log) == 3
    assert os.stat(tmp_path / "lmtp").st_mode & 0o777 == 0o666


def test_an_address_that_stays_keeps_its_socket(ports: Ports) -> None:
    one, two, three = free_address(), free_address(), free_address()
    ports.want((Listener(one), Listener(two)))
    before = {address_of(port.socket): port.socket for port in ports.get()}
    ports.want((Listener(three), Listener(two, "submission")))
    after = {address_of(port.socket): port.socket for port in ports.get()}
    assert after.keys() == {two, three}
    assert after[two] is before[two]
    assert before[one].fileno() == -1


def test_an_address_is_free_at_once_though_listeners_have_not_left_yet(ports: Ports, log: list[str]) -> None:
    one = free_address()
    everywhere = one.replace("127.0.0.1", "0.0.0.0")
    ports.want((Listener(one),))
    with ports.get()[0].socket.dup():  # as a child has it
        ports.want((Listener(everywhere),))
        assert ports.is_complete
        assert can_connect(one)


def test_one_that_is_in_use_stops_nobody_and_is_tried_again(ports: Ports, log: list[str]) -> None:
    good = free_address()
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = address_of(other)
        ports.want((Listener(used), Listener(good)))
        assert [address for address, _, _ in addresses(ports)] == [good]
        assert not ports.is_complete
        assert not ports.bind()
        assert sum("Address already in use" in line for line in log) == 1
    assert ports.bind()
    assert [address for address, _, _ in addresses(ports)] == [used, good]


def test_an_address_that_this_host_does_not_have(ports: Ports, log: list[str]) -> None:
    ports.want((Listener("192.0.2.1:2525"),))
    assert ports.get() == ()
    assert "192.0.2.1:2525" in log[0]


def test_the_socket_of_an_earlier_daemon_is_replaced_and_nothing_else(ports: Ports, tmp_path: Path) -> None:
    left, file = tmp_path / "left", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as earlier:
        earlier.bind(str(left))
    file.write_text("precious")
    ports.want((Listener(f"unix:{left}"), Listener(f"unix:{file}")))
    assert [address for address, _, _ in addresses(ports)] == [f"unix:{left}"]
    assert file.read_text() == "precious"
    ports.want(())
    assert not left.exists()


def test_both_families_have_one_port(ports: Ports) -> None:
    port = free_address().rpartition(":")[2]
    ports.want((Listener(f"0.0.0.0:{port}"), Listener(f"[::]:{port}")))
    assert ports.is_complete


@pytest.mark.parametrize(("host", "expected"), [
    ("127.0.0.1", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::1", True), ("::", False)])
def test_what_only_this_host_can_reach(host: str, expected: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        assert is_loopback(one) is expected


# ---- handed over by the service manager


def test_a_socket_that_was_handed_over_is_used(log: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given, socket.create_server(("127.0.0.1", 0)) as extra:
        ports = Ports(lambda priority, line: log.append(line), [("x", given), ("lmtp", extra)])
        ports.want((Listener(address_of(given), "submission"),))
        assert addresses(ports) == [(address_of(given), "submission", False), (address_of(extra), "lmtp", False)]
        ports.want(())
        assert [profile for _, profile, _ in addresses(ports)] == ["smtp", "lmtp"]
        assert given.fileno() >= 0  # it is not ours to close
        assert log == []


ACTIVATED = f"""
import os, sys
sys.path.insert(0, {CODE!r})
os.environ["LISTEN_PID"] = str(os.getpid())
from pysendmail.daemon.ports import address_of, inherited_sockets
print([(name, address_of(one), os.get_inheritable(one.fileno())) for name, one in inherited_sockets()])
print(inherited_sockets(), [name for name in os.environ if name.startswith("LISTEN")])
"""


def test_sd_listen_fds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        def hand_over() -> None:
            os.dup2(one.fileno(), 3)

        done = subprocess.run(
            [sys.executable, "-I", "-c", ACTIVATED], capture_output=True, text=True, check=True, pass_fds=[3],
            preexec_fn=hand_over, env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"})
        assert done.stdout == f"{[('smtp', address_of(one), False)]}\n[] []\n"


@pytest.mark.parametrize(("pid", "count"), [("", ""), ("1", "1"), ("me", "1"), ("{}", "x"), ("{}", "-1"), ("{}", "")])
def test_sockets_of_somebody_else(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", pid.format(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    assert inherited_sockets() == []
    assert "LISTEN_FDS" not in os.environ
