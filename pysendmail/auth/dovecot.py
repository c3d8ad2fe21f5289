"""Dovecot as whoever knows passwords ([auth] dovecot): the client side of its authentication protocol.

    dovecot = Dovecot(path)
    await dovecot.check(user, password, client)     the user's name, "" = no; raises Trouble

The socket is that of `service auth { unix_listener ... }` in Dovecot's configuration; whoever connects to it may guess
passwords, so it should be open to _pysmtpd alone. Lines of words with tabs between them go both ways: we shake hands
once in a connection, then send AUTH with a number, and answers (OK, FAIL) bear it, in any order. What a client has sent
by LOGIN is asked as PLAIN: the answer is the same. Who the user is, Dovecot says: for it "ALICE" may be alice. "temp"
in a FAIL is trouble of Dovecot's, as is everything that goes wrong with the connection; a connection that was closed
meanwhile is opened once more.

Protocol version 1, as Dovecot 2.0 to 2.4 speak it (its documentation calls it "Authentication Protocol").
"""

import asyncio
import os
from collections.abc import Mapping

from ..net import stream
from ..smtp import sasl
from ..smtp.wire import LineReader, LineTooLong

TIMEOUT = 30.0  # seconds for an answer; Dovecot itself delays the answer to a wrong password by two
MAX_LINE = 8192  # bytes: what Dovecot keeps to itself
MAX_NUMBER = 1 << 31
SERVICE = "smtp"

_ESCAPES = {"\x01": "\x011", "\t": "\x01t", "\r": "\x01r", "\n": "\x01n", "\0": "\x010"}


class Trouble(Exception):
    """There is no answer. The text says why."""


class Closed(Trouble):
    """The connection was gone before the question had reached Dovecot."""


class Dovecot:
    """path: of the socket."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def check(self, user: str, password: str, address: str) -> str:
        """The name of the user if the password fits, else "". address: of the client, for Dovecot's log and limits.

        Raises Trouble.
        """
        try:
            async with asyncio.timeout(self._timeout):
                was_open = self._connection is not None and not self._connection.is_lost
                try:
                    return await (await self._open()).ask(user, password, address)
                except Closed:
                    if not was_open:
                        raise
                return await (await self._open()).ask(user, password, address)
        except TimeoutError:
            raise Trouble(f"no answer within {self._timeout:g} seconds")

    async def _open(self) -> "_Connection":
        async with self._opening:
            if self._connection is None or self._connection.is_lost:
                made = _Connection()
                try:
                    await stream.connect(lambda: made, self._path, 0, self._timeout)
                    await made.ready
                except OSError as trouble:
                    raise Trouble(f"no connection: {os.strerror(trouble.errno) if trouble.errno else trouble}")
                except BaseException:
                    made.close()
                    raise
                self._connection = made
            return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    """ready: done after the handshake."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = LineReader(MAX_LINE)
        self._transport: asyncio.Transport | None = None
        self._asked: dict[str, asyncio.Future[str | None]] = {}
        self._number = 0
        self._has_plain = False
        self.is_lost = False
        self.ready: asyncio.Future[None] = self._loop.create_future()

    async def ask(self, user: str, password: str, address: str) -> str:
        """As Dovecot.check. Raises Trouble."""
        if self.is_lost or self._transport is None:
            raise Closed("the connection is closed")
        self._number = self._number % MAX_NUMBER + 1
        number = str(self._number)
        response = sasl.encode(f"\0{user}\0{password}".encode("utf-8", "surrogateescape")).decode("ascii")
        words = ["AUTH", number, "PLAIN", f"service={SERVICE}", "secured", "nologin"]
        words += [f"rip={_escape(address)}"] if address else []
        answer: asyncio.Future[str | None] = self._loop.create_future()
        self._asked[number] = answer
        self._transport.write("\t".join([*words, f"resp={response}"]).encode("utf-8", "surrogateescape") + b"\n")
        try:
            name = await answer
            return name or user if name is not None else ""
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        self._lose(Closed("the connection is closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"VERSION\t1\t1\nCPID\t%d\n" % os.getpid())

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while not self.is_lost and (line := self._reader.next_line()) is not None:
                self._take(line.decode("utf-8", "replace").split("\t"))
        except LineTooLong:
            self._lose(Trouble("a line that is too long"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(Closed("the connection was closed"))

    def _take(self, words: list[str]) -> None:
        verb, number = words[0], words[1] if len(words) > 1 else ""
        if not self.ready.done():
            self._shake_hands(verb, words)
        elif verb in ("OK", "FAIL") and number in self._asked:
            self._answer(self._asked[number], verb, _parameters(words[2:]))
        elif verb == "CONT" and number in self._asked:
            self._fail(self._asked[number], Trouble("it asks for more than PLAIN has"))

    def _shake_hands(self, verb: str, words: list[str]) -> None:
        if verb == "VERSION" and words[1:2] != ["1"]:
            self._lose(Trouble("it speaks another version of its protocol"))
        elif verb == "MECH" and words[1:2] == ["PLAIN"]:
            self._has_plain = True
        elif verb == "DONE" and not self._has_plain:
            self._lose(Trouble("it does not offer PLAIN"))
        elif verb == "DONE":
            self.ready.set_result(None)

    def _answer(self, asked: "asyncio.Future[str | None]", verb: str, parameters: Mapping[str, str]) -> None:
        if verb == "FAIL" and ("temp" in parameters or parameters.get("code") == "temp_fail"):
            self._fail(asked, Trouble(parameters.get("reason", "") or "Dovecot cannot tell now"))
        elif verb == "OK" and not parameters.get("user", "").isprintable():  # escaped: no name that anybody has
            self._fail(asked, Trouble("a user whose name cannot be read"))
        elif not asked.done():
            asked.set_result(parameters.get("user", "") if verb == "OK" else None)

    def _fail(self, asked: "asyncio.Future[str | None]", problem: Trouble) -> None:
        if not asked.done():
            asked.set_exception(problem)

    def _lose(self, problem: Trouble) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(problem)
            self.ready.exception()  # whoever waits hears of it; nobody may be waiting
        for asked in list(self._asked.values()):
            self._fail(asked, problem)


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in text)


def _parameters(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}
