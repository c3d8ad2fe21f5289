"""A mail filter that says what a test wants: one function from what it hears to what it answers, on a Unix socket.

    async with FakeMilter(path, answers) as filter: ... filter.heard ...

`answers` is asked for each command with (letter, data) and gives the packets to send, or an act: CLOSE, SILENT, WAIT.
Time costs nothing: on a JumpingLoop the clock goes on by as much as anybody might wait, at WAIT by `wait` seconds.
Nothing in it knows the code under test: packets are built and cut here by hand.
"""

import asyncio
import os
import struct
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

CLOSE, SILENT, WAIT = b"<close>", b"<silent>", b"<wait>"  # the first two also behind packets, the last between them
LONGER_THAN_ANYBODY_WAITS = 100_000.0  # seconds
CONTINUE = struct.pack("!I", 1) + b"c"

Answers = Callable[[bytes, bytes], bytes]
Result = TypeVar("Result")


def packet(letter: bytes, data: bytes = b"") -> bytes:
    return struct.pack("!I", len(data) + 1) + letter + data


def agreement(version: int = 6, actions: int = 0x1FF, options: int = 0, rest: bytes = b"") -> bytes:
    return packet(b"O", struct.pack("!III", version, actions, options) + rest)


def by_letter(table: Mapping[bytes, bytes], *, terms: bytes = agreement()) -> Answers:
    """What to answer to each command; CONTINUE to those that are not in the table."""
    silent = frozenset((b"D", b"A", b"Q", b"K"))

    def answer(letter: bytes, _data: bytes) -> bytes:
        if letter in table:
            return table[letter]
        return terms if letter == b"O" else b"" if letter in silent else CONTINUE

    return answer


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock can be set forward; what is due by then happens next."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run_jumping(work: Coroutine[Any, Any, Result]) -> Result:
    """asyncio.run on a JumpingLoop."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


def jump(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    loop.ahead += seconds


class FakeMilter:
    """heard: every packet of every connection as (letter, data). connections: how many there have been."""

    def __init__(self, path: str, answers: Answers) -> None:
        self.path = path
        self.endpoint = f"unix:{path}"
        self.answers = answers
        self.heard: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.wait = 1.0
        self._open = 0
        self._ended = asyncio.Event()

    async def has_heard_the_end(self) -> None:
        """Wait until all connections that there were are closed."""
        while self._open:
            self._ended.clear()
            await self._ended.wait()

    def letters(self) -> str:
        """What it heard, macros left out, bodies and fields as they came."""
        return b"".join(letter for letter, _ in self.heard if letter != b"D").decode("ascii")

    def data(self, letter: bytes) -> list[bytes]:
        return [data for found, data in self.heard if found == letter]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._server.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open += 1
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                found = await reader.readexactly(length)
                self.heard.append((found[:1], found[1:]))
                answer = self.answers(found[:1], found[1:])
                first, *others = answer.removesuffix(CLOSE).removesuffix(SILENT).split(WAIT)
                writer.write(first)
                for other in others:
                    jump(self.wait)
                    await asyncio.sleep(0.001)  # for those whose time is up, to notice
                    writer.write(other)
                await writer.drain()
                if answer.endswith(SILENT):
                    jump(LONGER_THAN_ANYBODY_WAITS)
                if answer.endswith(CLOSE):
                    break
        except (asyncio.IncompleteReadError, OSError):
            pass  # the MTA has gone
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass
        self._open -= 1
        if not self._open:
            self._ended.set()
