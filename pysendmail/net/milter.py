"""One connection to one mail filter: what moves the protocol core (smtp/milter.py), and watches the time.

    filter = await meet(endpoint, terms)           connected, and agreed on terms
    answer = await filter.ask(stage, data, macros) what it says; CONTINUE where it has nothing to say
    filter.changes                                 what it wants changed, complete once END has been answered
    filter.abort(), filter.leave()                 the message is over; the session is

Whatever goes wrong, no connection, no answer in time, a broken protocol, is FilterError, and the connection is closed;
what that means for mail is decided in net/milter_chain.py. An answer has `timeout` seconds. A filter that says it is
busy ("progress") has as many again, LONGEST in all. Writing stops while the filter does not read.
"""

import asyncio
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..config import split_endpoint
from ..mail.changes import Change, ReplaceBody
from ..smtp.milter import Agreed, Conversation
from ..smtp.milter_replies import Answer, BodyPiece, Progress, Verdict
from ..smtp.milter_terms import Terms
from ..smtp.milter_wire import FilterError, Stage
from . import stream

LONGEST = 600.0  # seconds for one answer, however busy the filter says it is
HELD = 256 * 1024  # bytes of a new body in memory; beyond that it is in a file
PIECE = 64 * 1024  # bytes read from that file at once

CONTINUE = Answer(Verdict.CONTINUE)


class FilterGone(FilterError):
    """The filter has closed the connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """timeout: seconds for an answer. max_body: bytes of a new body. scratch: directory for a large one."""

    timeout: float
    max_body: int
    scratch: str


class NewBody:
    """The body that takes the place of the old one, with LF line ends. The file has no name, and goes with this."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._held = bytearray()
        self._fd = -1
        self._size = 0  # bytes in the file
        self._has_cr = False  # the last piece ended in CR, which may be half a line end

    def add(self, piece: bytes) -> None:
        """More of it, with CRLF line ends. Raises OSError."""
        if self._has_cr:
            piece = b"\r" + piece
        self._has_cr = piece.endswith(b"\r")
        self._held += (piece[:-1] if self._has_cr else piece).replace(b"\r\n", b"\n")
        if len(self._held) > HELD:
            self._flush()

    def finish(self) -> None:
        """All has come."""
        if self._has_cr:
            self._held += b"\r"
        if self._fd >= 0:
            self._flush()

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd, name = tempfile.mkstemp(prefix=".body", dir=self._scratch)
            weakref.finalize(self, os.close, self._fd)
            os.unlink(name)
        with memoryview(self._held) as rest:
            done = 0
            while done < len(rest):
                done += os.write(self._fd, rest[done:])
        self._size += len(self._held)
        self._held.clear()

    def pieces(self) -> Iterator[bytes]:
        """It, from its start. Raises OSError."""
        at = 0
        while at < self._size:
            data = os.pread(self._fd, PIECE, at)
            if not data:
                raise OSError(5, "a body has become shorter")
            at += len(data)
            yield data
        if self._held:
            yield bytes(self._held)


async def meet(endpoint: str, limits: Limits) -> "Filter":
    """A filter that is ready to be told about mail. endpoint: "unix:/path" or "host:port". Raises FilterError."""
    if endpoint.startswith("unix:"):
        address, port = endpoint.removeprefix("unix:"), 0
    else:
        address, port = split_endpoint(endpoint)
    made = Filter(limits)
    try:
        await stream.connect(lambda: made, address, port, limits.timeout)
        await made.agree()
    except TimeoutError:
        raise FilterError("no connection in time")
    except OSError as trouble:
        raise FilterError(f"no connection: {os.strerror(trouble.errno) if trouble.errno else trouble}")
    except BaseException:
        made.close()
        raise
    return made


class Filter(asyncio.Protocol):
    """One connection. changes: of the present message."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._conversation = Conversation(limits.max_body)
        self._transport: asyncio.Transport | None = None
        self._awaited: asyncio.Future[Answer] | None = None
        self._flow: asyncio.Future[None] | None = None  # done when the filter reads on
        self._failure: FilterError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ends = 0.0  # loop time at which an answer is late, whatever its filter says
        self._body: NewBody | None = None
        self.changes: list[Change] = []

    @property
    def terms(self) -> Terms:
        return self._conversation.terms

    @property
    def failure(self) -> FilterError | None:
        """Why nothing can be asked any more."""
        return self._failure

    @property
    def has_changes(self) -> bool:
        """Whether it has begun to change the present message."""
        return self._conversation.has_changes

    def hears(self, stage: Stage) -> bool:
        return self._conversation.hears(stage)

    async def agree(self) -> None:
        """Wait until it has taken our offer. Raises FilterError."""
        await self._answer()

    async def ask(self, stage: Stage, data: bytes = b"", macros: Mapping[str, str] | None = None) -> Answer:
        """Tell it something, and wait for its answer if there is to be one. Raises FilterError."""
        if self._failure is not None:
            raise self._failure
        if stage is Stage.MAIL:
            self.changes, self._body = [], None
        if self._conversation.tell(stage, data, macros):
            return await self._answer()
        self._write()
        await self._drained()
        return CONTINUE

    async def _answer(self) -> Answer:
        if self._failure is not None:
            raise self._failure
        self._awaited = self._loop.create_future()
        self._ends = self._loop.time() + LONGEST
        self._write()
        self._watch()
        try:
            return await self._awaited
        finally:
            if not self._awaited.done() or self._awaited.cancelled():
                self.close()  # nobody waits for it any more, and it would be taken for the next one
            self._awaited = None
            self._stop_watching()

    async def _drained(self) -> None:
        """Wait until it reads. Raises FilterError."""
        if self._flow is None:
            return
        try:
            async with asyncio.timeout(self._limits.timeout):
                await asyncio.shield(self._flow)
        except TimeoutError:
            self._fail(FilterError(f"it has not read for {self._limits.timeout:g} seconds"))
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """The present message is over."""
        self._conversation.abort()
        self._write()

    def leave(self) -> None:
        """The session is over."""
        if self._failure is None and self._conversation.is_ready:
            self._conversation.quit()
            self._write()
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():  # it does not read: nobody waits until it does
            self._transport.abort()
        else:
            self._transport.close()

    def close(self) -> None:
        """Break it off."""
        self._fail(FilterError("broken off"))

    # ---- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._conversation.receive(data)
        try:
            while (said := self._conversation.next_said()) is not None:
                if isinstance(said, Agreed):
                    self._answered(CONTINUE)
                elif isinstance(said, Answer):
                    self._answered(said)
                elif isinstance(said, Progress):
                    self._watch()
                else:
                    self._changed(said)
        except FilterError as error:
            self._fail(error)
        except OSError as trouble:
            self._fail(FilterError(f"its new body cannot be kept: {trouble.strerror}"))

    def _changed(self, said: Change | BodyPiece) -> None:
        if not isinstance(said, BodyPiece):
            self.changes.append(said)
            return
        if self._body is None:
            self._body = NewBody(self._limits.scratch)
            self.changes.append(ReplaceBody(self._body.pieces))
        self._body.add(said.data)

    def _answered(self, answer: Answer) -> None:
        if self._body is not None:
            self._body.finish()
            self._body = None
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(answer)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(FilterGone("it has closed the connection"))

    def pause_writing(self) -> None:
        if self._flow is None:
            self._flow = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._flow is not None and not self._flow.done():
            self._flow.set_result(None)
        self._flow = None

    # ----

    def _write(self) -> None:
        data = self._conversation.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _fail(self, error: FilterError) -> None:
        """It is of no use any more. The first reason stands."""
        if self._failure is not None:
            return
        self._failure = error
        self._stop_watching()
        self.resume_writing()
        if self._transport is not None:
            self._transport.abort()
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(error)

    def _watch(self) -> None:
        """From now on it has its time again."""
        self._stop_watching()
        self._timer = self._loop.call_at(min(self._loop.time() + self._limits.timeout, self._ends), self._late)

    def _late(self) -> None:
        self._fail(FilterError("no answer in time"))

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
