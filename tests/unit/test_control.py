"""The control socket: what is shown to whom, what an administrator's changes do, and what a bad client costs."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pysendmail.config import QueueSettings
from pysendmail.daemon import control
from pysendmail.daemon.control import ControlDoor
from pysendmail.mail.outcome import deferred
from pysendmail.mail.target import COMMAND, FORWARDED, MAILBOX, Target
from pysendmail.paths import Paths
from tests.tools.running import Running

LATER = deferred("4.2.0", "mailbox is locked")
SOMEBODY = 54321


class Served:
    """A runner and its control socket, for questions one after the other. uid: who asks."""

    def __init__(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running = Running(paths)
        self.path = f"{paths.run}/control"
        self.uid = 0
        self.begins: list[dict[str, Any]] = []
        self.door = ControlDoor(paths, self.running.config, self.running.runner, self.running.events)
        monkeypatch.setattr(control, "peer_uid", lambda _: self.uid)

    def ask(self, *requests: bytes | dict[str, Any]) -> list[list[dict[str, Any]]]:
        """The answers, each to its end."""
        return self.during(lambda: self._ask_all(requests))

    def during(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work` returns while the socket is served; no exception may be left behind in the loop."""
        faults: list[dict[str, Any]] = []

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: faults.append(context))
            server = await loop.create_unix_server(self.door.connect, self.path)
            try:
                return await asyncio.wait_for(work(), 20)
            finally:
                server.close()

        answer = asyncio.run(main())
        if os.path.lexists(self.path):  # from Python 3.13 on the server has removed it
            os.unlink(self.path)
        assert not faults
        return answer

    async def _ask_all(self, requests: tuple[bytes | dict[str, Any], ...]) -> list[list[dict[str, Any]]]:
        return [await self.ask_one(request) for request in requests]

    async def ask_one(self, request: bytes | dict[str, Any]) -> list[dict[str, Any]]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        data = b""
        try:
            while chunk := await reader.read(65536):
                data += chunk
        except ConnectionResetError:
            pass  # it has closed without having read everything
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
        self.begins = [line["begin"] for line in lines if "begin" in line]  # how many there are, shown first
        return [line for line in lines if "begin" not in line]

    def one(self, verb: str, **more: Any) -> list[dict[str, Any]]:
        answer, = self.ask({"do": verb, **more})
        return answer

    def waiting(self, *recipients: str) -> str:
        """A message that waits after a first attempt; its id."""
        found = self.running.submit(*recipients)
        for one in self.running.deliveries():
            one.answer(LATER)
        self.running.loop.run()
        return found

    @property
    def places(self) -> dict[str, str]:
        return self.running.places()


@pytest.fixture
def served(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(paths, monkeypatch)


def ids(answer: list[dict[str, Any]]) -> list[str]:
    return [line["item"]["id"] for line in answer if "item" in line]


# ---- looking


def test_list_shows_what_waits_and_what_is_in_work(served: Served) -> None:
    first = served.waiting("bob")
    second = served.running.submit("carol")
    answer = served.one("list")
    assert ids(answer) == [first, second]
    assert [line["item"]["active"] for line in answer[:-1]] == [False, True]
    assert answer[0]["item"]["reason"] == "mailbox is locked"
    assert answer[-1] == {"end": {"count": 2}}


def test_show_finds_one(served: Served) -> None:
    first, second = served.waiting("bob"), served.waiting("carol")
    assert ids(served.one("show", id=second)) == [second]
    assert served.one("show", id=first[:13]) == [{"error": "no such message in the queue", "code": 66}]


def test_status_counts(served: Served) -> None:
    served.waiting("bob")
    served.running.submit("carol")
    end = served.one("status")[-1]["end"]
    assert (end["active"], end["waiting"], end["held"], end["pid"]) == (1, 1, 0, os.getpid())
    assert end["counts"]["accepted"] == 2


def test_others_see_their_own_mail_only(served: Served) -> None:
    found = served.waiting("bob")
    served.uid = SOMEBODY
    assert served.one("list") == [{"end": {"count": 0}}]
    assert served.begins == [{"count": 1}]  # for monitors
    assert served.one("list", filter={"recipient": "bob"}) == [{"end": {"count": 0}}]
    assert served.begins == [{}]  # of whose mail there is some is nobody's business
    assert served.one("show", id=found)[0]["code"] == 66
    served.uid = os.geteuid() or 0
    assert ids(served.one("list")) == [found]


def test_setting_shows_everybody_everything(served: Served) -> None:
    found = served.waiting("bob")
    served.uid = SOMEBODY
    object.__setattr__(served.running.config, "queue", QueueSettings(visible_to_all=True))
    assert ids(served.one("list")) == [found]


@pytest.mark.parametrize("verb", ["hold", "release", "delete", "bounce", "requeue"])
def test_others_may_change_nothing_not_even_their_own(served: Served, verb: str) -> None:
    found = served.waiting("bob")
    served.uid = SOMEBODY
    object.__setattr__(served.running.config, "queue", QueueSettings(visible_to_all=True))
    before = served.places
    assert served.one(verb, filter={"id": found}) == [{"error": f"only root may {verb} messages", "code": 77}]
    assert served.places == before


def test_list_needs_no_file(served: Served) -> None:
    first, second = served.waiting("bob"), served.waiting("carol")
    for name in os.listdir(f"{served.running.paths.queue}/cur"):
        if name.startswith(first):
            Path(f"{served.running.paths.queue}/cur/{name}").write_bytes(b"rubbish")
    assert ids(served.one("list")) == [first, second]


def test_damaged_message_does_not_stop_a_list(served: Served) -> None:
    """It is shown as such, to those who could do something about it."""
    first, second = served.waiting("bob"), served.waiting("carol")
    served.running.restart()  # nothing is remembered
    served.door.runner = served.running.runner
    for name in os.listdir(f"{served.running.paths.queue}/cur"):
        if name.startswith(first):
            Path(f"{served.running.paths.queue}/cur/{name}").write_bytes(b"rubbish")
    answer = served.one("list")
    assert ids(answer) == [first, second]
    assert answer[0]["item"]["reason"].startswith("damaged: ")
    assert abs(answer[0]["item"]["arrived"] - time.time()) < 3600  # as its id says
    served.uid = SOMEBODY
    assert ids(served.one("list")) == []


# ---- changing


def test_hold_and_release(served: Served) -> None:
    found = served.waiting("bob")
    assert served.one("hold", filter={"id": found})[-1] == {"end": {"count": 1}}
    assert served.places == {found: "hold"}
    assert served.one("list")[0]["item"]["hold"] == "held by the administrator"
    served.running.loop.advance(10_000)
    assert served.running.deliveries() == []
    served.running.restart()
    served.door.runner = served.running.runner
    served.running.loop.advance(10_000)
    assert served.running.deliveries() == []
    served.one("release", filter={"held": True})
    assert [one.queue_id for one in served.running.deliveries()] == [found]


def test_hold_of_what_is_in_work_waits_for_its_end(served: Served) -> None:
    found = served.running.submit("bob")
    served.one("hold", filter={"id": found})
    served.running.deliveries()[0].answer(LATER)
    served.running.loop.run()
    assert served.places == {found: "hold"}


def test_hold_of_what_is_in_work_keeps_nothing_that_is_delivered_by_then(served: Served) -> None:
    found = served.running.submit("bob")
    served.one("hold", filter={"id": found})
    served.running.deliveries()[0].answer()
    served.running.loop.run()
    assert served.places == {}


def test_delete_leaves_nothing_and_gives_the_share_back(served: Served) -> None:
    found = served.waiting("bob")
    assert os.listdir(served.running.paths.journal) == [found]
    served.one("delete", filter={"id": found})
    assert (served.places, os.listdir(served.running.paths.journal)) == ({}, [])
    assert served.running.runner.shares._bytes == {}
    served.waiting("bob")
    served.waiting("bob")
    served.one("delete", filter={})
    assert sum(served.running.runner.shares._bytes.values()) == 0
    assert served.running.lines(rf"^{found}: deleted by the administrator")


def test_bounce_tells_the_sender(served: Served) -> None:
    found = served.waiting("bob", "carol")
    served.one("bounce", filter={"id": found})
    report, = served.running.deliveries()
    assert (report.user, report.queue_id) == ("alice", "A" + found[1:])
    assert served.places == {report.queue_id: "new"}


def test_bounce_of_what_was_never_tried_delivers_nothing(served: Served) -> None:
    """Found in new/ after a start: nobody knows yet what its recipients are, and nobody is to get it any more."""
    found = served.running.submit("bob")
    served.running.runner.active.clear()
    served.running.queue.secure(_message(served, found))
    served.running.restart()
    served.running.runner.active.clear()
    entry = served.running.queue.find(found)
    assert entry is not None
    served.running.runner.waiting.put(entry, 2**33)
    served.running.agents.given.clear()
    served.door.runner = served.running.runner
    served.one("bounce", filter={"id": found})
    assert [one.user for one in served.running.deliveries()] == ["alice"]


def _message(served: Served, found: str) -> Any:
    entry = served.running.queue.find(found)
    assert entry is not None
    message = served.running.queue.load(entry)
    message.source = found
    return message


def test_bounce_of_what_is_held(served: Served) -> None:
    found = served.waiting("bob")
    served.one("hold", filter={})
    served.one("bounce", filter={"id": found})
    assert [one.user for one in served.running.deliveries()] == ["alice"]


def test_requeue_reads_the_aliases_again(served: Served) -> None:
    aliases = Path(served.running.paths.aliases)
    aliases.write_text("team: bob\npostmaster: root\n")
    found = served.waiting("team")
    served.one("hold", filter={"id": found})
    aliases.write_text("team: carol, bob, alice\npostmaster: root\n")
    os.utime(aliases, (1, 1))
    served.running.runner.expander.aliases._clock = lambda: 2.0**33
    served.one("requeue", filter={"id": found})
    assert sorted(one.user for one in served.running.deliveries()) == ["alice", "bob", "carol"]
    assert served.one("list")[0]["item"]["hold"] == ""


@pytest.mark.parametrize("verb", ["hold", "delete", "bounce", "requeue"])
def test_change_of_a_damaged_message_says_so_and_leaves_it(served: Served, verb: str) -> None:
    found = served.waiting("bob")
    name, = os.listdir(f"{served.running.paths.queue}/cur")
    answer = served.door.change(verb, found, "")
    assert answer == ""
    found = served.waiting("bob")
    name, = (one for one in os.listdir(f"{served.running.paths.queue}/cur") if one.startswith(found))
    Path(f"{served.running.paths.queue}/cur/{name}").write_bytes(b"rubbish")
    assert served.door.change(verb, found, "") != ""
    assert served.places[found] == "cur"
    assert found in served.running.runner.waiting


def test_change_that_cannot_be_written_leaves_the_message(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found = served.waiting("bob")
    for verb in ("hold", "delete", "bounce", "requeue"):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("pysendmail.spool.durable.write_all", full)
            patched.setattr("pysendmail.spool.durable.unlink", full)
            line = served.one(verb, filter={"id": found})[0]
        assert "No space left" in line["item"]["result"]
        assert (served.places, found in served.running.runner.waiting) == ({found: "cur"}, True)


def test_dry_run_changes_nothing(served: Served) -> None:
    found = served.waiting("bob")
    assert served.one("delete", filter={}, dry_run=True)[-1] == {"end": {"count": 1}}
    assert served.places == {found: "cur"}


def test_changes_of_many_need_no_list_of_all_and_are_not_cut_off(
        served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bob", "carol", "dave"):
        served.waiting(name)
    seen: list[str] = []

    def watch(place: Any, name: str) -> None:
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args: seen.append(name) or original(*args))

    monkeypatch.setattr(control, "CHANGES_AT_ONCE", 1)
    watch(control.ControlProtocol, "_limit")
    watch(control.ControlDoor, "_line")
    watch(control.ControlDoor, "change")
    assert served.one("delete", filter={})[-1] == {"end": {"count": 3}}
    assert seen == ["_limit", *["_line", "change", "_limit"] * 3]


def test_change_of_what_is_in_work_is_refused(served: Served) -> None:
    found = served.running.submit("bob")
    line = served.one("delete", filter={"id": found})[0]
    assert line["item"]["result"] == "is being delivered at this moment"
    assert served.door.change("delete", "0000000000aaaa", "") == "not in the queue"


def test_anybody_may_have_his_own_mail_tried_again(served: Served) -> None:
    found = served.waiting("bob")
    served.uid = SOMEBODY
    assert served.one("flush", filter={}) == [{"end": {"count": 0}}]
    assert served.running.deliveries() == []
    served.uid = served.running.queue.find(found).uid  # type: ignore[union-attr]
    served.one("flush", filter={})
    assert [one.queue_id for one in served.running.deliveries()] == [found]


def test_only_root_has_hosts_tried_that_are_down(served: Served) -> None:
    served.waiting("bob")
    served.uid = SOMEBODY
    served.one("flush", filter={}, quiet=True)
    object.__setattr__(served.running.config, "queue", QueueSettings(visible_to_all=True))
    served.one("flush", filter={})
    assert served.running.relays.flushes == 0
    served.uid = 0
    served.one("flush", filter={})
    assert served.running.relays.flushes == 1


# ---- bad clients


@pytest.mark.parametrize("request_line", [
    b"\n", b"garbage\n", b"\xff\xfe\n", b"[]\n", b"7\n", b'"list"\n', b"null\n", b"{}\n", b'{"do": 5}\n',
    b'{"do": ["list"]}\n', b'{"do": {}}\n', b'{"do": "List"}\n', b'{"do": "__init__"}\n',
    b'{"do": "list", "filter": 5}\n', b'{"do": "list", "filter": []}\n', b'{"do": "list", "filter": null}\n',
    b'{"do": "list", "filter": {"id": 5}}\n', b'{"do": "list", "filter": {"nonsense": "x"}}\n',
    b'{"do": "list", "filter": {"not": [{}]}}\n', b'{"do": "list", "filter": {"older": "x"}}\n', b"[" * 60_000 + b"\n",
    b"x" * (control.MAX_REQUEST + 1), b'{"do": "show", "id": {"a": 1}}\n',
    b'{"do": "list", "filter": {"older": 1e999}}\n',
], ids=lambda line: ascii(line[:40]))
def test_nonsense_costs_one_connection(served: Served, request_line: bytes) -> None:
    found = served.waiting("bob")
    first, second = served.ask(request_line, {"do": "list"})
    assert len(first) == 1
    assert first[0].get("code") in (64, 66) or first == [{"end": {"count": 0}}], first
    assert ids(second) == [found]
    assert served.door.clients._by_uid == {}


def test_fault_of_ours_is_said_and_logged(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.door, "status", lambda: 1 // 0)
    assert served.one("status") == [{"error": "a fault of pysendmaild, which is in its log", "code": 70}]
    assert served.running.lines("ZeroDivisionError")


def test_client_that_says_nothing_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE", 0.05)
    answer, = served.ask(b'{"do": "li')
    assert answer == [{"error": "no request", "code": 64}]


def test_clients_are_counted_and_root_is_never_locked_out(served: Served) -> None:
    async def crowd() -> list[Any]:
        served.uid = SOMEBODY
        silent = [await asyncio.open_unix_connection(served.path) for _ in range(control.MAX_CLIENTS_PER_USER)]
        one_more = await served.ask_one({"do": "status"})
        served.uid += 1
        other = await served.ask_one({"do": "status"})
        served.uid = 0
        silent += [await asyncio.open_unix_connection(served.path) for _ in range(control.MAX_CLIENTS)]
        root = await served.ask_one({"do": "status"})
        for _, writer in silent:
            writer.close()
        return [one_more, other, root]

    refused, answered, root = served.during(crowd)
    assert refused == [{"error": "too many questions at once, ask again later", "code": 75}]
    assert "end" in answered[-1]
    assert "end" in root[-1]
    served.uid = 0
    assert "end" in served.one("status")[-1]


def test_slow_reader_costs_no_memory(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is made as fast as it is read, and no faster."""
    found = [served.waiting("bob") for _ in range(60)]
    monkeypatch.setattr(served.door, "_line",
                        lambda queue_id: control.line_of({"id": queue_id, "uid": 0, "text": "x" * 20_000}))
    most = 0

    async def slow() -> list[str]:
        nonlocal most
        reader, writer = await asyncio.open_unix_connection(served.path, limit=4096)
        writer.write(b'{"do": "list"}\n')
        lines = 0
        data = b""
        while chunk := await reader.read(4096):
            most = max(most, max(one._transport.get_write_buffer_size() for one in protocols))
            data += chunk
            lines += 1
        writer.close()
        return [json.loads(line)["item"]["id"] for line in data.split(b"\n")[1:-2]]  # between begin and end

    protocols: list[Any] = []
    connect = served.door.connect

    def watched() -> Any:
        protocols.append(connect())
        return protocols[-1]

    monkeypatch.setattr(served.door, "connect", watched)
    assert served.during(slow) == found
    assert most < 200_000, f"{most} bytes wait for a slow reader"


def test_client_that_hangs_up_costs_nothing(served: Served) -> None:
    for _ in range(30):
        served.waiting("bob")

    async def hang_up() -> list[dict[str, Any]]:
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(served.path)
            writer.write(b'{"do": "list"}\n')
            writer.transport.abort()
            await asyncio.sleep(0)
        return await served.ask_one({"do": "status"})

    answers = served.during(hang_up)
    assert "end" in answers[-1] or answers[-1]["code"] == 75
    assert served.door.clients._by_uid == {}


def test_requeue_forgets_nobody_whom_anothers_alias_had_served(served: Served) -> None:
    """bob is in the alias, and a recipient himself: one copy. When the alias leads elsewhere he still gets his."""
    aliases = served.running.runner.expander.aliases
    Path(served.running.paths.aliases).write_text("team: bob\npostmaster: root\n")
    served.waiting("team", "bob", "carol")
    Path(served.running.paths.aliases).write_text("team: alice, carol\npostmaster: root\n")
    aliases._clock = lambda: 2.0**33
    served.one("requeue", filter={})
    assert sorted(one.user for one in served.running.deliveries()) == ["alice", "bob", "carol"]


def test_requeue_does_not_repeat_what_is_delivered(served: Served) -> None:
    served.running.submit("bob", "carol")
    first, second = served.running.deliveries()
    first.answer()
    second.answer(LATER)
    served.running.loop.run()
    served.one("requeue", filter={})
    assert [one.user for one in served.running.deliveries()] == ["carol"]


def test_requeue_of_a_forwards_command_loses_nothing(served: Served) -> None:
    """The .forward is read again; that it says the same as before must not look like a duplicate."""
    served.running.submit("bob")
    one, = served.running.deliveries()
    parent = one.target
    command = replace(parent, kind=COMMAND, digest="1" * 64, words="procmail")
    one.answer(targets=(command, Target(FORWARDED, "bob", use_forward=False)))
    first, second = served.running.deliveries()
    first.answer(LATER)
    second.answer()
    served.running.loop.run()
    served.one("requeue", filter={})
    again, = served.running.deliveries()
    assert (again.target.kind, again.user) == (MAILBOX, "bob")
    again.answer(targets=(command, Target(FORWARDED, "bob", use_forward=False)))
    last, = served.running.deliveries()
    assert last.target.kind == COMMAND
