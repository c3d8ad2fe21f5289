"""Connections: those in memory behave as those over sockets do, and those over sockets have limits."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pysendmail.net import stream
from tests.tools.memory import MemoryTransport, pair

ROOT = Path(__file__).resolve().parents[2]


class Heard(asyncio.Protocol):
    """Writes down what happens to it. keeps_open: after the other side's end (half-closed)."""

    def __init__(self, keeps_open: bool = False) -> None:
        self.told: list[object] = []
        self.transport: MemoryTransport | None = None
        self._keeps_open = keeps_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, MemoryTransport)
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(type(exc).__name__ if exc else "lost")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Callable[[Heard, MemoryTransport, Heard, MemoryTransport], Awaitable[None]],
        right: Heard | None = None) -> tuple[Heard, Heard]:
    async def whole() -> tuple[Heard, Heard]:
        one, other = Heard(), right or Heard()
        ours, theirs = pair(one, other)
        await settle()
        await scenario(one, ours, other, theirs)
        await settle()
        return one, other
    return asyncio.run(whole())


def test_what_one_writes_the_other_reads_in_order() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, _other: Heard, theirs: MemoryTransport) -> None:
        ours.write(b"a")
        ours.write(bytearray(b"b"))
        ours.write(b"")
        theirs.write(memoryview(b"c"))
    one, other = run(scenario)
    assert one.told == ["made", b"c"]
    assert other.told == ["made", b"a", b"b"]


def test_closing_comes_after_what_was_written() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, _other: Heard, theirs: MemoryTransport) -> None:
        ours.write(b"a")
        ours.close()
        ours.write(b"too late")
        assert ours.is_closing()
        await settle()
        assert theirs.is_closing()
        theirs.write(b"nobody hears")
    one, other = run(scenario)
    assert one.told == ["made", "lost"]
    assert other.told == ["made", b"a", "eof", "lost"]


def test_a_side_that_wants_to_may_go_on_writing_after_the_end_of_the_other() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, _other: Heard, theirs: MemoryTransport) -> None:
        ours.close()
        await settle()
        assert not theirs.is_closing()
    _, other = run(scenario, Heard(keeps_open=True))
    assert other.told == ["made", "eof"]


def test_aborting_is_a_reset_for_the_other() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, _other: Heard, _theirs: MemoryTransport) -> None:
        ours.abort()
        ours.abort()
    one, other = run(scenario)
    assert one.told == ["made", "lost"]
    assert other.told == ["made", "ConnectionResetError"]


def test_nothing_is_read_while_reading_is_paused_not_even_the_end() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, other: Heard, theirs: MemoryTransport) -> None:
        theirs.pause_reading()
        ours.write(b"a")
        ours.close()
        await settle()
        assert other.told == ["made"]
        assert not theirs.is_reading()
        theirs.resume_reading()
    _, other = run(scenario)
    assert other.told == ["made", b"a", "eof", "lost"]


def test_a_writer_is_told_to_pause_and_to_go_on() -> None:
    async def scenario(_one: Heard, ours: MemoryTransport, _other: Heard, _theirs: MemoryTransport) -> None:
        ours.hold_back()
        ours.let_go()
        ours.set_write_buffer_limits(1)
        assert ours.get_write_buffer_size() == 0
        assert ours.get_extra_info("peername") == "memory"
        assert ours.get_extra_info("ssl_object") is None
    one, _ = run(scenario)
    assert one.told == ["made", "pause", "resume"]


def test_connecting_has_a_limit_and_its_own_errors(tmp_path: object) -> None:
    async def scenario() -> None:
        with pytest.raises(FileNotFoundError):
            await stream.connect(Heard, f"{tmp_path}/none", 0, 5.0)
        with pytest.raises(TimeoutError):
            await stream.connect(Heard, "127.0.0.1", 1, 0.0)
    asyncio.run(scenario())


@pytest.mark.parametrize("module", ["daemon.listener", "daemon.examiners", "auth.logins", "net.policyserver"])
def test_a_listener_without_tls_needs_no_openssl(module: str) -> None:
    """It has filters, policy servers and logins all the same (daemon/listeners.py)."""
    code = f"import sys; sys.modules['ssl'] = None; sys.path.insert(0, {str(ROOT)!r}); import pysendmail.{module}"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=30)
