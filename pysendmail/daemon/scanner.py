"""A scanner process: it shows mail to the mail filters that did not come by SMTP, as _pysmtpd.

What comes by SMTP is examined by its listener, before the 250. Everything else, /usr/sbin/sendmail above all, is in the
queue when nobody has looked at it; the runner has no network, so it hands each such message to this process: an open
queue file and an empty file. Back goes a verdict, and in the file what is new of the text (verdict.py). A filter sees a
message of this host as one that came from 127.0.0.1, as Postfix shows it, and one that came by SMTP as it came.

It sees neither queue nor spawner, and writes nothing but what it was handed. It ends when the runner closes the
channel: what has no verdict then has not been scanned.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

from ..auth import Client, Judgement
from ..config import Config
from ..mail.changes import Draft, Text, split
from ..mail.envelope import Envelope
from ..mail.outcome import deferred
from ..paths import Paths
from ..spool.queue_file import pieces, read_envelope
from ..spool.record import Damaged
from .channel import Channel
from .examiners import for_scanner
from .verdict import NewText, Verdict, changed, outcome_of, read_question, start_of

LOCAL = Client("127.0.0.1", 0, "localhost", True)

UNREADABLE = deferred("4.3.0", "the queue file cannot be read by the scanner")


def serve(channel: socket.socket, config: Config, paths: Paths) -> None:
    """Scan until the runner closes the channel."""
    asyncio.run(_serve(channel, config, paths))


async def _serve(channel: socket.socket, config: Config, paths: Paths) -> None:
    scanner = Scanner(asyncio.get_running_loop(), channel, config, paths)
    await scanner.ended
    scanner.close()
    await asyncio.sleep(0)


class Scanner:
    """The state of the process. ended: done when the runner is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: socket.socket, config: Config, paths: Paths) -> None:
        self._loop = loop
        self._examiner = for_scanner(config, paths, lambda _id, _text: None)
        self._work: set[asyncio.Task[None]] = set()
        self._channel = Channel(loop, channel, self._take, 2)
        self.ended = self._channel.ended

    def close(self) -> None:
        for one in self._work:
            one.cancel()

    # ---- the channel

    def _take(self, packet: bytes, fds: list[int], _flags: int) -> None:
        try:
            queue_id, n = read_question(packet)
        except ValueError:  # a runner that sends nonsense has no use for a scanner
            for fd in fds:
                os.close(fd)
            self._channel.close()
            return
        if len(fds) != 2:  # no descriptor is free
            for fd in fds:
                os.close(fd)
            self._answer(Verdict(n, deferred("4.3.0", "too many open files in the scanner")))
            return
        task = self._loop.create_task(self._scan(queue_id, n, fds[0], fds[1]))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _answer(self, verdict: Verdict) -> None:
        try:
            packet = verdict.to_packet()
        except ValueError as problem:
            packet = Verdict(verdict.n, deferred("4.7.1", str(problem))).to_packet()
        self._channel.send([packet])

    # ---- one message

    async def _scan(self, queue_id: str, n: int, fd: int, scratch: int) -> None:
        notes: list[str] = []
        try:
            verdict = await self._judge(queue_id, n, fd, scratch, notes)
        except (OSError, Damaged, ValueError) as problem:
            verdict = Verdict(n, UNREADABLE, notes=(*notes, f"scanner: {problem}"))
        except Exception as problem:  # noqa: BLE001 - a fault of ours must not take other messages along: say what it is
            outcome = deferred("4.3.0", f"internal error: {type(problem).__name__}")
            verdict = Verdict(n, outcome, notes=(*notes, f"scanner: {type(problem).__name__}: {problem}"))
        finally:
            os.close(fd)
            os.close(scratch)
        self._answer(verdict)

    async def _judge(self, queue_id: str, n: int, fd: int, scratch: int, notes: list[str]) -> Verdict:
        """Raises OSError, Damaged or ValueError."""
        envelope, offset, length = read_envelope(fd, queue_id, verify=False)
        draft = draft_of(fd, envelope, offset, length)
        examiner = replace(self._examiner, note=lambda _, text: notes.append(text))
        session = examiner.begin(client_of(envelope))
        try:
            found = await session.judge(draft)
        finally:
            session.close()
        return await self._verdict(n, draft, found, scratch, notes)

    async def _verdict(self, n: int, draft: Draft, found: Judgement, scratch: int, notes: list[str]) -> Verdict:
        if found.refusal is not None:
            return Verdict(n, outcome_of(found.refusal), notes=tuple(notes))
        if found.is_dropped:
            return Verdict(n, is_dropped=True, notes=tuple(notes))
        new, old = found.draft.text, draft.text
        text = None
        if new is not old:
            _write(scratch, new.top + new.head)
            body = -1
            if new.body is not old.body:
                body = 0
                for piece in new.body():
                    _write(scratch, piece)
                    body += len(piece)
                    await asyncio.sleep(0)
            text = NewText(len(new.top), len(new.head), body)
        return changed(n, draft, found.draft, text, notes)


def client_of(envelope: Envelope) -> Client:
    """From where a message came, as filters are to see it."""
    origin = envelope.origin
    try:
        address = str(ip_address(origin.client.strip("[]").removeprefix("IPv6:").partition("%")[0]))
    except ValueError:  # "localhost", a socket in the file system; or none
        return LOCAL
    return Client(address, 0, "", True) if origin.kind == "smtp" else LOCAL


def draft_of(fd: int, envelope: Envelope, offset: int, length: int) -> Draft:
    """A message of the queue, as it is examined. Raises OSError."""
    trace, head, body_at = split(start_of(fd, offset, length))

    def body() -> Iterator[bytes]:
        return pieces(fd, offset + body_at, length)

    return Draft(envelope, Text(trace, head, body))


def _write(fd: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
