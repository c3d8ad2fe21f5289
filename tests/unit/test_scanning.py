"""Examining what does not come by SMTP: verdicts between runner and scanner, and the queue file that comes of them."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.config import Config
from pysendmail.daemon import scanning, starts, verdict
from pysendmail.daemon.scanner import Scanner, client_of, draft_of
from pysendmail.daemon.scanning import Scanning
from pysendmail.daemon.verdict import NewText, Verdict, changed, outcome_of
from pysendmail.events import Events
from pysendmail.mail.changes import Draft, Text, split
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import deferred, failed
from pysendmail.paths import Paths
from pysendmail.smtp.reply import reply
from pysendmail.spool.queue import Message, Queue
from tests.tools.fakemilter import CLOSE, FakeMilter, JumpingLoop, by_letter, jump, packet, run_jumping

ID = "6BO5HVZB000001"
ORIGIN = Origin("command", 1000, "alice")
ENVELOPE = Envelope(ID, "alice@host.example", (Recipient("bob@host.example"), Recipient("carol@host.example")), 1e9,
                    ORIGIN)
TRACE = b"Received: from alice (uid 1000)\n\tby host.example id X; today\n"
HEAD = b"From: alice@host.example\nSubject: s\n"
BODY = b"text\nmore\n"
LARGE = b"a line of text\n" * 50_000
GOOD = {b"E": packet(b"h", b"X-Seen\0yes\0") + packet(b"c")}

NAMES = frozenset(("n", "outcome", "drop", "sender", "removed", "added", "hold", "notes", "text"))


class Host:
    """A queue, its runner's end of scanning, and scanners that are granted when asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, paths: Paths, sockets: tuple[str, ...],
                 grant: Callable[["Host", int], None] | None = None) -> None:
        self.loop = loop
        self.paths = paths
        self.config = Config(hostname="host.example", domain="host.example")
        self.config = replace(self.config, milter=replace(self.config.milter, sockets=sockets))
        self.queue = Queue(paths, lambda: 1e9)
        self.log: list[str] = []
        self.asked: list[dict[str, object]] = []
        self.grant = grant or Host.grant_scanner
        self.scanners: list[Scanner] = []
        self.ends: list[socket.socket] = []
        self.scanning = Scanning(loop, self.config, paths, self.queue, self.ask,
                                 Events(lambda _, text: self.log.append(text)))

    def ask(self, value: dict[str, object]) -> None:
        self.asked.append(value)
        if value.get("scan") is True:
            self.loop.call_soon(self.grant, self, value["n"])

    def grant_scanner(self, n: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.scanners.append(Scanner(self.loop, theirs, self.config, self.paths))
        self.ends.append(theirs)
        self.scanning.granted({"n": n, "scan": True, "pid": 4711}, [ours.detach()])

    def commit(self, envelope: Envelope = ENVELOPE, text: bytes = TRACE + HEAD + b"\n" + BODY) -> Message:
        return self.queue.commit(envelope, [text])

    async def examine(self, message: Message) -> Verdict:
        """The verdict; what passes is stored."""
        done: asyncio.Future[Verdict] = self.loop.create_future()

        def take(examined: scanning.Examined) -> None:
            if examined.verdict.outcome is None and not examined.verdict.is_dropped:
                examined.store()
            done.set_result(examined.verdict)

        assert self.scanning.wants(message)
        self.scanning.examine(message, take)
        return await done

    def text(self, message: Message) -> bytes:
        """What the queue file holds, envelope and checksum proved to be sound."""
        loaded = self.queue.load(message.entry)
        assert (loaded.envelope, loaded.offset, loaded.length) == (message.envelope, message.offset, message.length)
        return Path(self.queue.path(message)).read_bytes()[message.offset:]

    def close(self) -> None:
        self.scanning.close()
        for scanner, end in zip(self.scanners, self.ends, strict=True):
            self.loop.remove_reader(end.fileno())
            scanner.close()
            end.close()


def run(paths: Paths, answers: list[Any], play: Callable[[Host], Awaitable[Any]],
        grant: Callable[[Host, int], None] | None = None) -> tuple[Any, list[FakeMilter], Host]:
    async def session() -> tuple[Any, list[FakeMilter], Host]:
        async with AsyncExitStack() as stack:
            filters = [await stack.enter_async_context(FakeMilter(f"{paths.run}/{n}", one))
                       for n, one in enumerate(answers)]
            endpoints = tuple(one.endpoint for one in filters) or (f"unix:{paths.run}/nobody",)
            host = Host(asyncio.get_running_loop(), paths, endpoints, grant)
            result = await play(host)
            host.close()
            for one in filters:
                await one.has_heard_the_end()
            return result, filters, host

    before = set(os.listdir("/proc/self/fd"))
    found = run_jumping(session())
    assert len(set(os.listdir("/proc/self/fd"))) == len(before), "descriptors are left"
    assert os.listdir(f"{paths.queue}/tmp") == []
    return found


def test_what_passes_is_queued_anew_with_changes_and_mark(paths: Paths) -> None:
    async def play(host: Host) -> tuple[Message, bytes]:
        message = host.commit()
        await host.examine(message)
        return message, host.text(message)

    said = (packet(b"h", b"X-Seen\0yes\0") + packet(b"i", b"\0\0\0\0X-Top\0yes\0") + packet(b"e", b"<>\0")
            + packet(b"-", b"<bob@host.example>\0") + packet(b"2", b"<dave@host.example>\0NOTIFY=NEVER\0")
            + packet(b"c"))
    (message, text), (one,), host = run(paths, [by_letter({b"E": said})], play)
    assert text == b"X-Top: yes\n" + TRACE + HEAD + b"X-Seen: yes\n\n" + BODY
    assert message.envelope.scanned
    assert message.envelope.sender == ""
    assert message.envelope.recipients == (
        Recipient("carol@host.example"), Recipient("dave@host.example", frozenset(("never",))))
    assert message.envelope.origin == ORIGIN
    assert os.stat(host.queue.path(message)).st_mtime == 1e9
    assert not host.scanning.wants(message)
    assert one.data(b"C") == [b"localhost\x004\0\x00127.0.0.1\0"]
    assert one.data(b"H") == [b"host.example\0"]
    assert one.data(b"L") == [b"From\0alice@host.example\0", b"Subject\0s\0"]
    assert one.data(b"B") == [BODY.replace(b"\n", b"\r\n")]


def test_what_passes_unchanged_gets_the_mark(paths: Paths) -> None:
    async def play(host: Host) -> tuple[Message, bytes]:
        message = host.commit(text=TRACE + HEAD + b"\n" + LARGE)
        await host.examine(message)
        return message, host.text(message)

    (message, text), _, host = run(paths, [by_letter({})], play)
    assert text == TRACE + HEAD + b"\n" + LARGE
    assert message.envelope == replace(ENVELOPE, scanned=True)
    assert host.log == []


def test_a_large_new_body(paths: Paths) -> None:
    async def play(host: Host) -> bytes:
        message = host.commit()
        await host.examine(message)
        return host.text(message)

    pieces = [LARGE[at:at + 60_000].replace(b"\n", b"\r\n") for at in range(0, len(LARGE), 60_000)]
    said = b"".join(packet(b"b", piece) for piece in pieces) + packet(b"c")
    text, _, _ = run(paths, [by_letter({b"E": said})], play)
    assert text == TRACE + HEAD + b"\n" + LARGE


@pytest.mark.parametrize(("said", "expected"), [
    (packet(b"r"), failed("5.7.1", "rejected by a mail filter")),
    (packet(b"y", b"554 5.7.0 virus\0"), failed("5.7.0", "virus")),
    (packet(b"t"), deferred("4.7.1", "a mail filter asks you to try again later")),
    (packet(b"4"), deferred("4.7.0", "a mail filter ends this session")),
    (packet(b"z"), deferred("4.7.1", "a mail filter is out of order, try again later")),
    (packet(b"h", b"X\0y\0") + CLOSE, deferred("4.7.1", "a mail filter is out of order, try again later")),
])
def test_what_does_not_pass_has_an_outcome_and_stays_as_it_is(paths: Paths, said: bytes, expected: Any) -> None:
    async def play(host: Host) -> tuple[Verdict, Message, bytes]:
        message = host.commit()
        found = await host.examine(message)
        assert host.scanning.wants(message)
        return found, message, host.text(message)

    (found, message, text), _, host = run(paths, [by_letter({b"E": said})], play)
    assert found.outcome == expected
    assert message.envelope == ENVELOPE
    assert text == TRACE + HEAD + b"\n" + BODY
    assert all(line.startswith(f"{ID}: ") for line in host.log)


def test_a_discarded_message(paths: Paths) -> None:
    async def play(host: Host) -> Verdict:
        return await host.examine(host.commit())

    found, _, host = run(paths, [by_letter({b"B": packet(b"d")})], play)
    assert found.is_dropped
    assert host.log == [f"{ID}: milter=unix:{paths.run}/0, action=eom, discard"]


def test_a_quarantined_message_is_to_be_held(paths: Paths) -> None:
    async def play(host: Host) -> Message:
        message = host.commit()
        await host.examine(message)
        return message

    message, _, _ = run(paths, [by_letter({b"E": packet(b"q", b"odd\0") + packet(b"c")})], play)
    assert (message.envelope.hold, message.envelope.scanned) == ("odd", True)


def test_nobody_is_renumbered_once_recipients_have_targets(paths: Paths) -> None:
    async def play(host: Host) -> tuple[Verdict, Message]:
        message = host.commit()
        message.state.expanded.add(0)
        return await host.examine(message), message

    said = packet(b"-", b"<bob@host.example>\0") + packet(b"+", b"<dave@host.example>\0") + packet(b"c")
    (found, message), _, _ = run(paths, [by_letter({b"E": said})], play)
    assert found.removed == (0,)
    assert [one.address for one in message.envelope.recipients] == [
        "bob@host.example", "carol@host.example", "dave@host.example"]


@pytest.mark.parametrize("envelope", [
    replace(ENVELOPE, scanned=True), replace(ENVELOPE, origin=Origin("runner")),
    replace(ENVELOPE, refusal="5.3.4 message is too large")])
def test_what_need_not_be_examined(paths: Paths, envelope: Envelope) -> None:
    async def play(host: Host) -> bool:
        return host.scanning.wants(host.commit(envelope))

    assert not run(paths, [by_letter({})], play)[0]


def test_without_filters_nothing_is_examined(paths: Paths) -> None:
    loop = JumpingLoop()
    host = Host(loop, paths, ())
    assert not host.scanning.wants(host.commit())
    loop.close()


def test_mail_by_smtp_is_shown_as_it_came(paths: Paths) -> None:
    origin = Origin("smtp", client="[IPv6:2001:db8::7]", helo="client.example", protocol="ESMTP")

    async def play(host: Host) -> Verdict:
        return await host.examine(host.commit(replace(ENVELOPE, origin=origin)))

    _, (one,), _ = run(paths, [by_letter({})], play)
    assert one.data(b"C") == [b"[IPv6:2001:db8::7]\x006\0\x002001:db8::7\0"]
    assert one.data(b"H") == [b"client.example\0"]


def test_many_at_once_share_one_scanner(paths: Paths) -> None:
    async def play(host: Host) -> list[Verdict]:
        messages = [host.commit(replace(ENVELOPE, id=f"6BO5HVZB0001{n:02d}")) for n in range(50)]
        return await asyncio.gather(*map(host.examine, messages))

    found, (one,), host = run(paths, [by_letter(GOOD)], play)
    assert len(found) == 50
    assert all(each.text == NewText(0, len(HEAD) + len(b"X-Seen: yes\n")) for each in found)
    assert len(host.asked) == 1
    assert one.connections == 50


def test_a_file_that_cannot_be_read_is_not_scanned(paths: Paths) -> None:
    async def play(host: Host) -> Verdict:
        message = host.commit()
        os.truncate(host.queue.path(message), message.length - 3)
        return await host.examine(message)

    found, _, host = run(paths, [by_letter({})], play)
    assert found.outcome is not None
    assert found.outcome.is_deferred
    assert "shorter" in host.log[0]


# ---- scanners that fail

def peer(act: Callable[[Host, socket.socket], None]) -> Callable[[Host, int], None]:
    """Grants a scanner that is no scanner: `act` gets the other end of the channel."""
    def grant(host: Host, n: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        host.scanning.granted({"n": n, "scan": True, "pid": 4711}, [ours.detach()])
        theirs.setblocking(False)

        def readable() -> None:
            _, fds, _, _ = socket.recv_fds(theirs, 1000, 2)
            for fd in fds:
                os.close(fd)
            host.loop.remove_reader(theirs.fileno())
            act(host, theirs)

        host.loop.add_reader(theirs.fileno(), readable)

    return grant


def answer(data: bytes) -> Callable[[Host, socket.socket], None]:
    def act(_host: Host, end: socket.socket) -> None:
        end.send(data)
        end.close()

    return act


def hang(host: Host, end: socket.socket) -> None:
    loop = host.loop
    assert isinstance(loop, JumpingLoop)
    loop.ahead += scanning.LIMIT + 1000
    loop.call_later(0, lambda: None)
    host.ends_of_others = [end]  # type: ignore[attr-defined]


SOUND = Verdict(1)
NONSENSE = {
    "nothing": b"",
    "no JSON": b"hello",
    "no object": b"[1]",
    "another message": Verdict(99).to_packet(),
    "deep": b'{"n":' + b"[" * 50_000,
    "bad outcome": SOUND.to_packet().replace(b'"outcome":null', b'"outcome":["9.9.9","x","",""]'),
    "delivered": SOUND.to_packet().replace(b'"outcome":null', b'"outcome":["2.0.0","x","",""]'),
    "bad index": SOUND.to_packet().replace(b'"removed":[]', b'"removed":[2]'),
    "bad address": SOUND.to_packet().replace(b'"added":[]', b'"added":["a\\nb@x"]'),
    "bad sender": SOUND.to_packet().replace(b'"sender":null', b'"sender":"a\\u0000b"'),
    "bad sizes": SOUND.to_packet().replace(b'"text":null', b'"text":[-1,0,0]'),
    "a huge header": SOUND.to_packet().replace(b'"text":null', b'"text":[100000,100000,0]'),
    "truth for a number": SOUND.to_packet().replace(b'"removed":[]', b'"removed":[true]'),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_scanner_that_sends_nonsense_has_scanned_nothing(paths: Paths, what: str) -> None:
    async def play(host: Host) -> tuple[Verdict, bool]:
        message = host.commit()
        return await host.examine(message), host.scanning.wants(message)

    (found, is_wanted), _, host = run(paths, [], play, peer(answer(NONSENSE[what])))
    assert found.outcome == scanning.GONE
    assert is_wanted
    assert "scanner process 4711 ended" in host.log[0]


def test_a_scanner_that_claims_what_is_not_there(paths: Paths) -> None:
    """Sizes beyond what it has written: the message stays as it was, and is not marked."""
    async def play(host: Host) -> tuple[Exception | None, bytes, bool]:
        message = host.commit()
        done: asyncio.Future[Exception | None] = host.loop.create_future()

        def take(examined: scanning.Examined) -> None:
            try:
                examined.store()
                done.set_result(None)
            except OSError as trouble:
                done.set_result(trouble)

        host.scanning.examine(message, take)
        return await done, host.text(message), host.scanning.wants(message)

    claim = Verdict(1, text=NewText(0, 50, -1)).to_packet()
    (trouble, text, is_wanted), _, _ = run(paths, [], play, peer(answer(claim)))
    assert isinstance(trouble, OSError)
    assert text == TRACE + HEAD + b"\n" + BODY
    assert is_wanted


def test_a_scanner_that_hangs_is_killed(paths: Paths) -> None:
    async def play(host: Host) -> Verdict:
        found = await host.examine(host.commit())
        for end in host.ends_of_others:  # type: ignore[attr-defined]
            end.close()
        return found

    found, _, host = run(paths, [], play, peer(hang))
    assert found.outcome == scanning.SLOW
    assert {"end": 4711} in host.asked


def test_no_scanner_to_be_had(paths: Paths) -> None:
    def refuse(host: Host, n: int) -> None:
        host.scanning.granted({"n": n, "scan": True, "error": ["4.3.0", "fork failed", "", ""]}, [])

    async def play(host: Host) -> list[Verdict]:
        first = await host.examine(host.commit())
        second = asyncio.ensure_future(host.examine(host.commit(replace(ENVELOPE, id="6BO5HVZB000002"))))
        await asyncio.sleep(0.01)
        assert len(host.asked) == 1, "not asked again at once"
        jump(starts.RESTART_FIRST)
        return [first, await second]

    (first, second), _, host = run(paths, [], play, refuse)
    assert first.outcome == second.outcome == deferred("4.3.0", "fork failed")
    assert len(host.asked) == 2


def test_what_waits_at_the_end_has_not_been_scanned(paths: Paths) -> None:
    async def play(host: Host) -> tuple[bool, bool]:
        message = host.commit()
        asking = asyncio.ensure_future(host.examine(message))
        await asyncio.sleep(0)
        host.scanning.close()
        await asyncio.sleep(0)
        found = asking.done(), host.queue.load(message.entry).envelope.scanned
        asking.cancel()
        return found

    found, _, _ = run(paths, [], play, lambda host, n: None)
    assert found == (False, False)


def test_an_answer_that_nobody_asked_for_is_thrown_away(paths: Paths) -> None:
    async def play(host: Host) -> None:
        ours, theirs = socket.socketpair()
        host.scanning.granted({"n": 77, "scan": True}, [ours.detach()])
        assert theirs.recv(1) == b""
        theirs.close()

    run(paths, [], play)


def test_an_idle_scanner_is_let_go(paths: Paths) -> None:
    async def play(host: Host) -> None:
        await host.examine(host.commit())
        loop = host.loop
        assert isinstance(loop, JumpingLoop)
        loop.ahead += scanning.IDLE + scanning.TICK
        await host.scanners[0].ended
        await host.examine(host.commit(replace(ENVELOPE, id="6BO5HVZB000002")))

    _, _, host = run(paths, [by_letter({})], play)
    assert len(host.scanners) == 2


def test_a_filter_that_is_silent_about_one_message_does_not_stop_the_others(paths: Paths) -> None:
    def answers(letter: bytes, data: bytes) -> bytes:
        return b"" if letter == b"M" and b"alice" in data else by_letter({})(letter, data)

    async def play(host: Host) -> list[Verdict]:
        slow = asyncio.ensure_future(host.examine(host.commit()))
        quick = await host.examine(host.commit(replace(ENVELOPE, id="6BO5HVZB000002", sender="x@host.example")))
        assert not slow.done()
        jump(host.config.milter.timeout + 1.0)
        return [await slow, quick]

    (slow, quick), _, host = run(paths, [answers], play)
    assert slow.outcome is not None
    assert slow.outcome.is_deferred
    assert quick.outcome is None
    assert f"{ID}: Milter (unix:{paths.run}/0): no answer in time" in host.log


# ---- packets

def test_a_verdict_comes_back_as_it_went() -> None:
    added = (Recipient("x@y.example", frozenset(("failure", "delay")), "rfc822;z@y.example"), Recipient("ä@y.example"))
    one = Verdict(7, None, False, "", (0, 2), added, "odd", NewText(1, 2, 3), ("a", "b"))
    assert Verdict.from_packet(one.to_packet(), 3) == one
    refused = Verdict(8, failed("5.7.1", "no"))
    assert Verdict.from_packet(refused.to_packet(), 1) == refused


def test_a_question_comes_back_as_it_went() -> None:
    assert verdict.read_question(verdict.question(ID, 7)) == (ID, 7)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"scan":"../x","n":1}', b'{"scan":"A","n":-1}',
                                  b'{"scan":"A","n":true}', b"[" * 9999], ids=lambda data: repr(data[:30]))
def test_no_question(data: bytes) -> None:
    with pytest.raises(ValueError):
        verdict.read_question(data)


def drafts(recipients: list[str], new: list[str]) -> tuple[Draft, Draft]:
    text = Text(TRACE, HEAD, lambda: (BODY,))
    old, after = (replace(ENVELOPE, recipients=tuple(map(Recipient, whom))) for whom in (recipients, new))
    return Draft(old, text), Draft(after, text)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6),
       st.lists(st.sampled_from("bxyz"), max_size=4))
def test_what_was_changed_in_the_recipients_can_be_told(old: list[str], kept: list[bool], added: list[str]) -> None:
    new = [one for one, is_kept in zip(old, kept, strict=False) if is_kept] + added
    found = changed(1, *drafts(old, new), None, ())
    if new:
        assert [one.address for one in found.envelope(drafts(old, new)[0].envelope, is_begun=False).recipients] == new


@pytest.mark.parametrize("added", [
    "", "- -", "sometimes - a@b.example", "- - a\nb@c.example", "- rfc822;x\ny a@b.example", "- rfc822; a@b.example"])
def test_what_is_no_recipient_is_not_added(added: str) -> None:
    packet = json.loads(Verdict(1).to_packet()) | {"added": [added]}
    with pytest.raises(ValueError):
        Verdict.from_packet(json.dumps(packet).encode(), 1)


@given(st.binary(max_size=300))
def test_no_packet_of_a_scanner_makes_the_runner_fail(data: bytes) -> None:
    for one in (data, b'{"n":1,' + data + b"}"):
        try:
            Verdict.from_packet(one, 3)
        except ValueError:
            continue


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), VALUES))
def test_no_object_of_a_scanner_makes_the_runner_fail(value: dict[str, Any]) -> None:
    try:
        found = Verdict.from_packet(json.dumps(value).encode(), 3)
    except ValueError:
        return
    assert all(0 <= index < 3 for index in found.removed)


def test_too_much_for_a_packet() -> None:
    many = [f"user{n}@{'x' * 200}.example" for n in range(900)]
    with pytest.raises(ValueError):
        Verdict(1, added=tuple(map(Recipient, many))).to_packet()
    with pytest.raises(ValueError):
        changed(1, *drafts(["a"], ["a", *many]), None, ())


@pytest.mark.parametrize(("refusal", "expected"), [
    (reply(550, "5.7.1", "no", "really"), failed("5.7.1", "no really")),
    (reply(451, "4.3.0", "later"), deferred("4.3.0", "later")),
    (reply(421, "4.7.0", "away"), deferred("4.7.0", "away")),
])
def test_what_a_refusal_means(refusal: Any, expected: Any) -> None:
    assert outcome_of(refusal) == expected


@pytest.mark.parametrize(("text", "expected"), [
    (TRACE + HEAD + b"\n" + BODY, (TRACE, HEAD)),
    (HEAD + b"\n" + BODY, (b"", HEAD)),
    (TRACE + b"\n" + BODY, (TRACE, b"")),
    (TRACE + b"Received: other\n" + HEAD + b"\n", (TRACE, b"Received: other\n" + HEAD)),
    (b"", (b"", b"")),
])
def test_where_a_message_comes_apart(text: bytes, expected: tuple[bytes, bytes]) -> None:
    trace, head, body_at = split(text)
    assert (trace, head) == expected
    assert trace + head == text[:len(trace + head)]
    assert text[body_at:] in (BODY, b"")


def test_a_message_of_the_queue_as_it_is_examined(paths: Paths) -> None:
    queue = Queue(paths, lambda: 1e9)
    message = queue.commit(ENVELOPE, [TRACE + HEAD + b"\n" + LARGE])
    fd = queue.open(message)
    draft = draft_of(fd, message.envelope, message.offset, message.length)
    assert (draft.text.trace, draft.text.head) == (TRACE, HEAD)
    assert b"".join(draft.text.body()) == LARGE
    os.close(fd)


@pytest.mark.parametrize(("origin", "address"), [
    (ENVELOPE.origin, "127.0.0.1"),
    (Origin("smtp", client="[192.0.2.7]"), "192.0.2.7"),
    (Origin("smtp", client="[IPv6:2001:db8::7]"), "2001:db8::7"),
    (Origin("smtp", client="[IPv6:fe80::7%eth0]"), "fe80::7"),
    (Origin("smtp", client="localhost"), "127.0.0.1"),
    (Origin("runner"), "127.0.0.1"),
])
def test_filters_hear_an_address_that_they_can_read(origin: Origin, address: str) -> None:
    """libmilter ends a session whose address is none; mail would wait for ever."""
    assert client_of(replace(ENVELOPE, origin=origin)).address == address
