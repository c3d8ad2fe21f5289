"""The control socket: who is queued, and what shall become of it.

A client sends one JSON object in one line and gets JSON lines: {"item": ...} for each message, then {"end": {...}} or
{"error": text, "code": sysexits}. Who asks is the kernel's word: root and our own user may see and do everything,
others see what they have submitted themselves (or all of it, by setting) and may change nothing. A client that sends
rubbish, or reads slowly, costs its own connection.
"""

import asyncio
import json
import os
import time
import traceback
from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..config import Config
from ..events import Events
from ..paths import Paths
from ..spool import listing, selection
from ..spool.queue import Broken
from ..spool.record import Damaged
from . import changes
from .doors import Clients, peer_uid
from .runner import Runner

MAX_REQUEST = 64 * 1024  # bytes
MAX_CLIENTS = 32
MAX_CLIENTS_PER_USER = 4
IDLE = 30.0  # seconds for the request to come
SESSION = 300.0  # seconds in all
ITEMS_AT_ONCE = 100  # listed before others are served
EX_USAGE, EX_SOFTWARE, EX_NOPERM, EX_TEMPFAIL = 64, 70, 77, 75


class BadRequest(Exception):
    """(sysexits code, words)."""


class ControlDoor:
    """The server of the control socket."""

    def __init__(self, paths: Paths, config: Config, runner: Runner, events: Events) -> None:
        self.paths, self.config, self.runner, self.events = paths, config, runner, events
        self.clients = Clients(MAX_CLIENTS, MAX_CLIENTS_PER_USER)
        self.own_uid = os.geteuid()

    def connect(self) -> "ControlProtocol":
        return ControlProtocol(self)

    def may_all(self, uid: int) -> bool:
        return uid in (0, self.own_uid)

    # ---- finding

    def items(self, uid: int, wanted: selection.Predicate) -> Iterator[listing.Item | None]:
        """Messages that this uid may see and wants, oldest first; None where others may be served meanwhile."""
        runner, sees_all = self.runner, self.may_all(uid) or self.config.queue.visible_to_all
        for count, queue_id in enumerate(sorted({*runner.active, *runner.waiting.entries}), start=1):
            if count % ITEMS_AT_ONCE == 0:
                yield None
            p, entry = runner.active.get(queue_id), runner.waiting.entries.get(queue_id)
            if p is None and (entry is None or (not sees_all and entry.uid not in (uid, -1))):
                continue
            try:
                item = self._describe(queue_id)
            except (OSError, Broken, Damaged, ValueError):
                continue  # it has just left, or the next attempt moves it to bad/
            if (sees_all or item["uid"] == uid) and wanted(item):
                yield item

    def _describe(self, queue_id: str) -> listing.Item:
        lifetime = self.config.queue.lifetime
        p = self.runner.active.get(queue_id)
        if p is not None:
            return listing.describe(p.message, lifetime=lifetime, is_active=True)
        message = listing.peek(self.runner.queue, self.runner.waiting.entries[queue_id])
        return listing.describe(message, lifetime=lifetime)

    # ---- changing

    def change(self, verb: str, queue_id: str) -> str:
        """Carry out one change; "" or why not."""
        runner = self.runner
        if verb == "flush":
            runner.flush([queue_id])
            return ""
        if queue_id in runner.active:
            if verb != "hold":
                return "is being delivered at this moment"
            runner.active[queue_id].hold = changes.BY_ADMINISTRATOR
            return ""
        entry = runner.waiting.entries.get(queue_id)
        if entry is None:
            return "not in the queue"
        try:
            changes.CHANGES[verb](runner, entry)
        except (OSError, Broken, Damaged, ValueError) as trouble:
            return str(trouble)
        return ""

    def status(self) -> dict[str, Any]:
        runner = self.runner
        held = sum(1 for entry in runner.waiting.entries.values() if entry.place == "hold")
        return {"version": __version__, "pid": os.getpid(), "active": len(runner.active), "held": held,
                "waiting": len(runner.waiting.entries) - held, "counts": dict(self.events.counts)}


class ControlProtocol(asyncio.Protocol):
    """One question and its answer."""

    def __init__(self, door: ControlDoor) -> None:
        self._door = door
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._uid = -1
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._uid = peer_uid(transport.get_extra_info("socket"))
        self._may_write.set()
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(IDLE, self._late), loop.call_later(SESSION, transport.abort)]
        self._is_counted = self._door.clients.enter(self._uid)
        if not self._is_counted:
            self._fail(EX_TEMPFAIL, "too many questions at once, ask again later")

    def _late(self) -> None:
        if self._task is None:
            self._fail(EX_USAGE, "no request")

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self._transport is None or self._transport.is_closing():
            return
        self._buffer += data
        line, newline, _ = self._buffer.partition(b"\n")
        if newline:
            self._task = asyncio.get_running_loop().create_task(self._serve(bytes(line)))
        elif len(self._buffer) > MAX_REQUEST:
            self._fail(EX_USAGE, "request is too long")

    async def _serve(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise BadRequest(EX_USAGE, "request is not an object")
            await self._answer(request)
        except BadRequest as problem:
            self._fail(*problem.args)
        except (ValueError, RecursionError):
            self._fail(EX_USAGE, "request is not JSON")
        except Exception:  # noqa: BLE001 - one client's question must not cost more than its answer
            self._door.events.trouble(f"control socket: {traceback.format_exc(limit=-3)}")
            self._fail(EX_SOFTWARE, "a fault of pysendmaild, which is in its log")
        if self._transport is not None:
            self._transport.close()

    async def _answer(self, request: dict[str, Any]) -> None:
        door, verb = self._door, request.get("do")
        try:
            wanted = selection.predicate(request.get("filter") or {}, time.time())
        except ValueError as problem:
            raise BadRequest(EX_USAGE, str(problem)) from problem
        if verb == "status":
            self._write({"end": door.status()})
        elif verb == "list":
            count = 0
            async for item in self._matching(wanted):
                self._write({"item": item})
                count += 1
            self._write({"end": {"count": count}})
        elif verb == "show":
            await self._show(str(request.get("id", "")))
        elif isinstance(verb, str) and (verb == "flush" or verb in changes.CHANGES):
            await self._change(verb, wanted, is_dry=bool(request.get("dry_run")))
        else:
            raise BadRequest(EX_USAGE, "unknown request")

    async def _matching(self, wanted: selection.Predicate) -> Any:
        for item in self._door.items(self._uid, wanted):
            if item is None:
                await asyncio.sleep(0)
            else:
                await self._may_write.wait()  # for a client that reads slowly: an item may be large
                yield item

    async def _show(self, queue_id: str) -> None:
        async for item in self._matching(lambda item: item["id"] == queue_id):
            self._write({"item": item})
            self._write({"end": {"count": 1}})
            return
        raise BadRequest(EX_USAGE, "no such message in the queue")

    async def _change(self, verb: str, wanted: selection.Predicate, *, is_dry: bool) -> None:
        if not self._door.may_all(self._uid) and verb != "flush":
            raise BadRequest(EX_NOPERM, f"only root may {verb} messages")
        done = 0
        async for item in self._matching(wanted):
            why = "" if is_dry else self._door.change(verb, item["id"])
            self._write({"item": item | {"result": why or "ok"}})
            done += not why
        self._write({"end": {"count": done}})

    def _write(self, value: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")

    def _fail(self, code: int, text: str) -> None:
        self._write({"error": text, "code": code})
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()
        if self._is_counted:
            self._door.clients.leave(self._uid)

