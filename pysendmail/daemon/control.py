"""The control socket: who is queued, and what shall become of it.

A client sends one JSON object in one line and gets JSON lines: {"begin": {}} at once where a list is asked for, without
a filter with the "count" of all messages; {"item": ...} for each message, then {"end": {...}} or {"error": text,
"code": sysexits}. Who asks is the kernel's word: root and our own user may see and do everything, others see what they
have submitted themselves (or all of it, by setting) and may change nothing. A client that sends rubbish, or reads
slowly, costs its own connection; how many there are is bounded for all but root.
"""

import asyncio
import json
import os
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .. import __version__
from ..config import Config
from ..events import Events
from ..mail.outcome import one_line
from ..paths import Paths
from ..spool import listing, selection
from ..spool.queue import Broken
from ..spool.queue_id import is_queue_id
from ..spool.record import Damaged
from . import changes
from .catalogue import item_of, line_of
from .doors import Clients, peer_uid
from .runner import Runner

MAX_REQUEST = 256 * 1024  # bytes
MAX_CLIENTS = 32
MAX_CLIENTS_PER_USER = 4
IDLE = 30.0  # seconds for the request to come
SESSION = 300.0  # seconds in all, or since the last changes
BYTES_AT_ONCE = 64 * 1024  # written together
ITEMS_AT_ONCE = 100  # listed before others are served
CHANGES_AT_ONCE = 20  # made before others are served
EX_USAGE, EX_NOINPUT, EX_SOFTWARE, EX_TEMPFAIL, EX_NOPERM = 64, 66, 70, 75, 77


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

    def lines(self, uid: int, asked: dict[str, Any], wanted: selection.Predicate) -> Iterator[bytes | None]:
        """Listings of messages that this uid may see and wants, oldest first; None where others may be served
        meanwhile. asked: the filter that `wanted` stands for."""
        runner, sees_all = self.runner, self.may_all(uid) or self.config.queue.visible_to_all
        for count, queue_id in enumerate(self._candidates(asked), start=1):
            if count % ITEMS_AT_ONCE == 0:
                yield None
            p, entry = runner.active.get(queue_id), runner.waiting.entries.get(queue_id)
            if p is None and (entry is None or (not sees_all and entry.uid not in (uid, -1))):
                continue
            try:
                line = self._line(queue_id)
            except FileNotFoundError:
                continue  # it has just left
            except (OSError, Broken, Damaged, ValueError) as problem:
                if not sees_all or entry is None:
                    continue
                line = line_of(listing.damaged(entry, problem, time.time()))  # the next attempt moves it to bad/
            if sees_all and not asked:
                yield line
                continue
            item = item_of(line)
            if (sees_all or item["uid"] == uid) and wanted(item):
                yield line

    def _candidates(self, asked: dict[str, Any]) -> list[str]:
        """Ids of all messages, or of those that can be meant."""
        runner, ids = self.runner, asked.get("id")
        ids = [ids] if isinstance(ids, str) else ids
        if ids and not asked.get("not") and all(map(is_queue_id, ids)):  # a whole id is part of no other
            return sorted({one for one in ids if one in runner.active or one in runner.waiting})
        return sorted({*runner.active, *runner.waiting.entries})

    @property
    def count(self) -> int:
        """How many messages there are."""
        return len(self.runner.active) + len(self.runner.waiting.entries)

    def _line(self, queue_id: str) -> bytes:
        p = self.runner.active.get(queue_id)
        if p is None:
            return self.runner.catalogue.line(self.runner.waiting.entries[queue_id])
        return line_of(listing.describe(p.message, self.config.queue.lifetime_of, is_active=True))

    # ---- changing

    def change(self, verb: str, queue_id: str, why: str) -> str:
        """Carry out one change; "" or why not. why: the reason for a hold, "" = none given."""
        runner = self.runner
        if queue_id in runner.active:
            if verb != "hold":
                return "is being delivered at this moment"
            runner.active[queue_id].hold = why or changes.BY_ADMINISTRATOR
            return ""
        entry = runner.waiting.entries.get(queue_id)
        if entry is None:
            return "not in the queue"
        try:
            if verb == "hold":
                changes.hold(runner, entry, why or changes.BY_ADMINISTRATOR)
            else:
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
        self._idle: asyncio.TimerHandle | None = None
        self._session: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._uid = -1
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._uid = peer_uid(transport.get_extra_info("socket"))
        self._may_write.set()
        self._idle = asyncio.get_running_loop().call_later(IDLE, self._late)
        self._limit()
        self._is_counted = self._door.clients.enter(self._uid)
        if not self._is_counted and not self._door.may_all(self._uid):  # root is never locked out by others
            self._fail(EX_TEMPFAIL, "too many questions at once, ask again later")

    def _limit(self) -> None:
        """From now on it may take SESSION seconds."""
        assert self._transport is not None
        if self._session is not None:
            self._session.cancel()
        self._session = asyncio.get_running_loop().call_later(SESSION, self._transport.abort)

    def _late(self) -> None:
        if self._task is None:
            self._fail(EX_USAGE, "no request")

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self._transport is None or self._transport.is_closing():
            return
        self._buffer += data
        if b"\n" in data:
            line = bytes(self._buffer.partition(b"\n")[0])
            self._task = asyncio.get_running_loop().create_task(self._serve(line))
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
        asked = request.get("filter", {})
        try:
            wanted = selection.predicate(asked, time.time())
        except ValueError as problem:
            raise BadRequest(EX_USAGE, str(problem)) from problem
        if not isinstance(verb, str):
            raise BadRequest(EX_USAGE, "unknown request")
        if verb == "status":
            self._write({"end": door.status()})
        elif verb == "list":
            await self._list(asked, wanted)
        elif verb == "show":
            await self._show(str(request.get("id", "")))
        elif verb == "hosts":
            self._hosts()
        elif verb == "forget":
            self._forget()
        elif verb == "flush":
            await self._flush(asked, wanted, is_dry=bool(request.get("dry_run")), is_quiet=bool(request.get("quiet")))
        elif verb in changes.CHANGES:
            await self._change(verb, asked, wanted, request)
        else:
            raise BadRequest(EX_USAGE, "unknown request")

    async def _matching(self, asked: dict[str, Any], wanted: selection.Predicate) -> AsyncIterator[bytes]:
        for line in self._door.lines(self._uid, asked, wanted):
            if line is None:
                await self._give_way()
            else:
                yield line

    async def _give_way(self) -> None:
        """Serve others, and wait for a client that is behind."""
        await asyncio.sleep(0)
        await self._may_write.wait()

    async def _list(self, asked: dict[str, Any], wanted: selection.Predicate) -> None:
        count = size = 0
        held: list[bytes] = []  # written together
        # How many there are is no secret: monitors run as ordinary users.
        self._write({"begin": {} if asked else {"count": self._door.count}})
        async for line in self._matching(asked, wanted):
            held.append(line)
            count += 1
            size += len(line)
            if size >= BYTES_AT_ONCE:
                self._send(b"".join(held))
                held, size = [], 0
                await self._give_way()
        self._send(b"".join(held))
        self._write({"end": {"count": count}})

    async def _show(self, queue_id: str) -> None:
        async for line in self._matching({"id": queue_id}, lambda item: bool(item["id"] == queue_id)):
            self._send(line)
            self._write({"end": {"count": 1}})
            return
        raise BadRequest(EX_NOINPUT, "no such message in the queue")

    def _hosts(self) -> None:
        """What is known of other hosts, one item each."""
        if not self._door.may_all(self._uid):
            raise BadRequest(EX_NOPERM, "only root may see what is known of other hosts")
        found = self._door.runner.relays.status()
        for one in found:
            self._write({"item": one})
        self._write({"end": {"count": len(found)}})

    def _forget(self) -> None:
        """Forget what is known of other hosts. It costs a connection each, so that it is no stranger's business."""
        if not self._door.may_all(self._uid):
            raise BadRequest(EX_NOPERM, "only root may forget what is known of other hosts")
        self._door.runner.relays.flush()
        self._write({"end": {}})

    async def _flush(self, asked: dict[str, Any], wanted: selection.Predicate, *, is_dry: bool, is_quiet: bool) -> None:
        """Try messages now, all at once when they are known. is_quiet: do not list them.

        Of others than root only those are tried whose destination is not down: to look again is theirs to say who see
        the cost of it, as with `_forget`.
        """
        is_root = self._door.may_all(self._uid)
        if is_quiet and not is_dry and not asked and is_root:  # no file need be opened for that
            everything = list(self._door.runner.waiting.entries)
            self._door.runner.flush(everything)
            self._write({"end": {"count": len(everything)}})
            return
        ids = []
        async for line in self._matching(asked, wanted):
            item = item_of(line)
            ids.append(item["id"])
            if not is_quiet:
                self._write({"item": item | {"result": "ok"}})
        if not is_dry and is_root and (ids or not asked):
            self._door.runner.flush(ids)
        elif not is_dry:
            self._door.runner.make_ready(ids)
        self._write({"end": {"count": len(ids)}})

    async def _change(self, verb: str, asked: dict[str, Any], wanted: selection.Predicate,
                      request: dict[str, Any]) -> None:
        if not self._door.may_all(self._uid):
            raise BadRequest(EX_NOPERM, f"only root may {verb} messages")
        seen = done = 0
        is_dry, why = bool(request.get("dry_run")), one_line(str(request.get("why") or ""))
        async for line in self._matching(asked, wanted):  # each is changed before the next is looked at: no list of all
            item = item_of(line)
            result = "" if is_dry else self._door.change(verb, item["id"], why)
            self._write({"item": item | {"result": result or "ok"}})
            seen, done = seen + 1, done + (not result)
            if seen % CHANGES_AT_ONCE == 0:
                await self._give_way()
                self._limit()  # 100,000 changes may take longer
        self._write({"end": {"count": done}})

    def _write(self, value: dict[str, Any]) -> None:
        self._send(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _fail(self, code: int, text: str) -> None:
        self._write({"error": text, "code": code})
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle, self._session):
            if timer is not None:
                timer.cancel()
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()
        if self._is_counted:
            self._door.clients.leave(self._uid)

