"""Sessions with scripted filters on Unix sockets: order, verdicts, changes, and everything that can break."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pysendmail.mail.changes import Draft, Text
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.headers import MAX_HEADER
from pysendmail.net.milter import CONTINUE, HELD, LONGEST, Limits, NewBody
from pysendmail.net.milter_chain import FAILED, Chain, Terms, body_chunks
from pysendmail.smtp.milter_replies import DEFERRED, REJECTED, Answer, Verdict
from pysendmail.smtp.reply import reply
from tests.tools.fakemilter import CLOSE, SILENT, WAIT, FakeMilter, agreement, by_letter, packet, run_jumping

TRACE = b"Received: by mx.example id X\n"
HEAD = b"From: a@example.org\nSubject: one\n two\nX-Tight:v\n"
BODY = b"hello\n.\nworld\n"
MACROS = {"j": "mx.example", "i": "ABC", "{mail_addr}": "a@example.org"}


def old_body() -> Iterable[bytes]:
    return (BODY,)


DRAFT = Draft(Envelope("X", "a@example.org", (Recipient("b@example.org"), Recipient("c@example.org")), 1.0,
                       Origin("smtp")), Text(TRACE, HEAD, old_body))
TIMEOUT = 30.0

Play = Callable[[Chain], Awaitable[Any]]


async def whole(chain: Chain, draft: Draft = DRAFT) -> tuple[Answer, Draft]:
    """A session with one message; the first answer that is no CONTINUE ends it."""
    steps: list[Callable[[], Awaitable[Answer]]] = [
        lambda: chain.connected("client.example", "192.0.2.7", 4711), lambda: chain.hello("client.example"),
        lambda: chain.sender("a@example.org", ("SIZE=100",)), lambda: chain.recipient("b@example.org"),
        lambda: chain.recipient("c@example.org")]
    for step in steps:
        answer = await step()
        if answer != CONTINUE:
            return answer, draft
    return await chain.examine(draft)


def run(tmp_path: Path, answers: list[Any], play: Play = whole, *, on_failure: str = "tempfail",
        max_body: int = 10_000_000, wait: float = 1.0) -> tuple[Any, list[FakeMilter], list[str]]:
    """(what play returned, the filters, the log)."""
    notes: list[str] = []

    async def session() -> tuple[Any, list[FakeMilter]]:
        filters = [FakeMilter(str(tmp_path / str(n)), one) for n, one in enumerate(answers)]
        for one in filters:
            one.wait = wait
            if one.answers is not None:
                await one.__aenter__()
        terms = Terms(tuple(one.endpoint for one in filters), on_failure, Limits(TIMEOUT, max_body, str(tmp_path)))
        chain = Chain(terms, dict(MACROS), notes.append)
        result = await play(chain)
        chain.close()
        for one in filters:
            if one.answers is not None:
                await one.has_heard_the_end()
                await one.__aexit__(None, None, None)
        return result, filters

    return *run_jumping(session()), notes


def text_of(draft: Draft) -> bytes:
    return b"".join(draft.text.chunks())


def test_a_filter_hears_a_message_in_order(tmp_path: Path) -> None:
    (answer, draft), (one,), notes = run(tmp_path, [by_letter({})])
    assert (answer, draft) == (CONTINUE, DRAFT)
    assert one.letters() == "OCHMRRTLLLNBEQ"
    assert one.data(b"C") == [b"client.example\x004\x12\x67192.0.2.7\0"]
    assert one.data(b"H") == [b"client.example\0"]
    assert one.data(b"M") == [b"<a@example.org>\0SIZE=100\0"]
    assert one.data(b"R") == [b"<b@example.org>\0", b"<c@example.org>\0"]
    assert one.data(b"L") == [b"From\0a@example.org\0", b"Subject\0one\n two\0", b"X-Tight\0v\0"]
    assert one.data(b"B") == [b"hello\r\n.\r\nworld\r\n"]
    assert b"Cj\0mx.example\0" in one.data(b"D")
    assert notes == []


def test_a_filter_that_wants_the_blanks_gets_them_and_sends_its_own(tmp_path: Path) -> None:
    answers = by_letter({b"E": packet(b"h", b"X-New\0v\0") + packet(b"c")}, terms=agreement(options=0x100000))
    (_, draft), (one,), _ = run(tmp_path, [answers])
    assert one.data(b"L") == [b"From\0 a@example.org\0", b"Subject\0 one\n two\0", b"X-Tight\0v\0"]
    assert draft.text.head == HEAD + b"X-New:v\n"


def test_a_client_on_a_socket_has_no_address(tmp_path: Path) -> None:
    _, (one,), _ = run(tmp_path, [by_letter({})], lambda chain: chain.connected("localhost", "", 0))
    assert one.data(b"C") == [b"localhost\0L\0\0local\0"]


def test_all_changes_are_applied_in_order_and_the_next_filter_sees_them(tmp_path: Path) -> None:
    first = by_letter({b"E": packet(b"h", b"X-First\0yes\0") + packet(b"m", b"\0\0\0\1Subject\0\0")
                       + packet(b"b", b"new\r") + packet(b"b", b"\nbody") + packet(b"+", b"<d@example.org>\0")
                       + packet(b"p") + packet(b"e", b"<>\0") + packet(b"c")})
    second = by_letter({b"E": packet(b"i", b"\0\0\0\0X-Second\0yes\0") + packet(b"-", b"<b@example.org>\0")
                        + packet(b"q", b"odd\0") + packet(b"a")})
    (answer, draft), (_, two), notes = run(tmp_path, [first, second])
    assert answer.verdict is Verdict.ACCEPT
    assert two.data(b"L") == [b"From\0a@example.org\0", b"X-Tight\0v\0", b"X-First\0yes\0"]
    assert two.data(b"B") == [b"new\r\nbody"]
    assert text_of(draft) == (b"X-Second: yes\n" + TRACE + b"From: a@example.org\nX-Tight:v\nX-First: yes\n\nnew\nbody")
    assert draft.envelope.sender == ""
    assert [one.address for one in draft.envelope.recipients] == ["c@example.org", "d@example.org"]
    assert draft.envelope.hold == "odd"
    assert notes == [f"milter=unix:{tmp_path}/1, quarantine=odd"]


@pytest.mark.parametrize(("letter", "said", "expected"), [
    (b"C", packet(b"r"), Answer(Verdict.REJECT, REJECTED)),
    (b"H", packet(b"t"), Answer(Verdict.TEMPFAIL, DEFERRED)),
    (b"M", packet(b"y", b"550 5.7.1 not you\0"), Answer(Verdict.REJECT, reply(550, "5.7.1", "not you"))),
    (b"R", packet(b"t"), Answer(Verdict.TEMPFAIL, DEFERRED)),
    (b"T", packet(b"r"), Answer(Verdict.REJECT, REJECTED)),
    (b"L", packet(b"d"), Answer(Verdict.DISCARD)),
    (b"N", packet(b"r"), Answer(Verdict.REJECT, REJECTED)),
    (b"B", packet(b"t"), Answer(Verdict.TEMPFAIL, DEFERRED)),
    (b"E", packet(b"h", b"X\0y\0") + packet(b"r"), Answer(Verdict.REJECT, REJECTED)),
    (b"E", packet(b"4"), Answer(Verdict.SHUT_DOWN, reply(421, "4.7.0", "a mail filter ends this session"))),
])
def test_the_first_refusal_is_the_last_word(tmp_path: Path, letter: bytes, said: bytes, expected: Answer) -> None:
    (answer, draft), (_, two), notes = run(tmp_path, [by_letter({letter: said}), by_letter({})])
    assert (answer, draft) == (expected, DRAFT)
    assert letter.decode() not in two.letters()
    assert len(notes) == 1
    assert notes[0].startswith(f"milter=unix:{tmp_path}/0, action=")


def test_who_accepts_early_is_asked_no_more_and_others_are(tmp_path: Path) -> None:
    (answer, _), (one, two), _ = run(tmp_path, [by_letter({b"M": packet(b"a")}), by_letter({})])
    assert answer == CONTINUE
    assert one.letters() == "OCHMAQ"
    assert two.letters() == "OCHMRRTLLLNBEQ"


def test_who_has_seen_enough_of_the_body_gets_no_more(tmp_path: Path) -> None:
    large = Draft(DRAFT.envelope, Text(TRACE, HEAD, lambda: (b"x" * 99 + b"\n" for _ in range(3000))))
    answers = by_letter({b"B": packet(b"s")}, terms=agreement(options=0x400))
    (answer, _), (one,), _ = run(tmp_path, [answers], lambda chain: whole(chain, large))
    assert answer == CONTINUE
    assert one.letters() == "OCHMRRTLLLNBEQ"


def test_a_refused_recipient_leaves_the_others(tmp_path: Path) -> None:
    def answers(letter: bytes, data: bytes) -> bytes:
        return packet(b"r") if data == b"<b@example.org>\0" else by_letter({})(letter, data)

    async def play(chain: Chain) -> list[Answer]:
        return [await chain.connected("x", "192.0.2.7", 1), await chain.hello("x"), await chain.sender("a@example.org"),
                await chain.recipient("b@example.org"), await chain.recipient("c@example.org"),
                (await chain.examine(DRAFT))[0]]

    found, _, _ = run(tmp_path, [by_letter({}), answers], play)
    assert found == [CONTINUE, CONTINUE, CONTINUE, Answer(Verdict.REJECT, REJECTED), CONTINUE, CONTINUE]


@pytest.mark.parametrize(("said", "verdict"), [
    (packet(b"c"), Verdict.CONTINUE), (packet(b"r"), Verdict.CONTINUE), (packet(b"a"), Verdict.CONTINUE),
    (packet(b"d"), Verdict.DISCARD), (packet(b"4"), Verdict.SHUT_DOWN), (packet(b"z"), Verdict.TEMPFAIL)])
def test_who_wants_to_hears_of_recipients_that_others_refuse(tmp_path: Path, said: bytes, verdict: Verdict) -> None:
    answers = by_letter({}, terms=agreement(options=0x800))

    def counts(letter: bytes, data: bytes) -> bytes:
        return said if (letter, data[:3]) == (b"R", b"<no") else answers(letter, data)

    async def play(chain: Chain) -> Verdict:
        await chain.connected("x", "192.0.2.7", 1)
        await chain.sender("a@example.org")
        await chain.refused("nobody@example.org", ["NOTIFY=NEVER"], reply(550, "5.1.1", "unknown user"))
        await chain.recipient("b@example.org")
        return (await chain.examine(DRAFT))[0].verdict

    found, (one, two), _ = run(tmp_path, [counts, by_letter({})], play)
    assert found is verdict
    assert one.data(b"R")[0] == b"<nobody@example.org>\0NOTIFY=NEVER\0"
    assert (b"Ri\0ABC\0{rcpt_addr}\x00550 5.1.1 unknown user\0{rcpt_host}\x005.1.1\0{rcpt_mailer}\0error\0"
            in one.data(b"D"))
    assert b"<nobody@example.org>\0" not in two.data(b"R")
    assert ("E" in two.letters()) is (verdict is Verdict.CONTINUE)


def test_a_refused_session_stays_refused_and_a_refused_message_does_not(tmp_path: Path) -> None:
    async def messages(chain: Chain) -> list[Verdict]:
        await chain.connected("x", "192.0.2.7", 1)
        return [(await chain.sender(f"u{n}@example.org")).verdict for n in range(3)]

    found, (one,), _ = run(tmp_path, [by_letter({b"C": packet(b"r")})], messages)
    assert found == [Verdict.REJECT] * 3
    assert one.letters() == "OCQ"
    found, (one,), _ = run(tmp_path, [by_letter({b"M": packet(b"r")})], messages)
    assert found == [Verdict.REJECT] * 3
    assert one.letters() == "OCMAMAMQ"


def test_a_session_is_refused_for_good_by_a_filter_that_heard_of_it_late(tmp_path: Path) -> None:
    """It was out of order when the client came."""
    def answers(letter: bytes, data: bytes) -> bytes:
        if letter == b"C" and not broken:
            broken.append(letter)
            return CLOSE
        return by_letter({b"C": packet(b"r")})(letter, data)

    async def messages(chain: Chain) -> list[Answer]:
        await chain.connected("x", "192.0.2.7", 1)
        return [await chain.sender(f"u{n}@example.org") for n in range(3)]

    broken: list[bytes] = []
    found, (one,), _ = run(tmp_path, [answers], messages)
    assert found == [Answer(Verdict.REJECT, REJECTED)] * 3
    assert one.letters() == "OC" + "OCQ"


def test_a_filter_sees_all_of_the_longest_header_behind_what_others_put_on_top(tmp_path: Path) -> None:
    last = b"Content-Type: multipart/mixed\n"
    line = b"X-Padding: " + b"x" * 900 + b"\n"
    count, rest = divmod(MAX_HEADER - len(last), len(line))
    head = line * count + (b"X: " + b"x" * (rest - 4) + b"\n") + last
    assert len(head) == MAX_HEADER
    long = Draft(DRAFT.envelope, Text(TRACE, head, old_body, b"Authentication-Results: mx.example; spf=pass\n"))
    _, (one,), _ = run(tmp_path, [by_letter({})], lambda chain: whole(chain, long))
    assert one.data(b"L")[0] == b"Authentication-Results\0mx.example; spf=pass\0"
    assert one.data(b"L")[-1] == b"Content-Type\0multipart/mixed\0"


def test_reasons_of_a_quarantine_are_one_line_in_the_log(tmp_path: Path) -> None:
    said = packet(b"q", b"odd\nthing " + b"x" * 5000 + b"\0") * 100 + packet(b"c")
    (_, draft), _, notes = run(tmp_path, [by_letter({b"E": said})])
    assert draft.envelope.hold.startswith("odd thing xxx")
    assert notes == [f"milter=unix:{tmp_path}/0, quarantine={draft.envelope.hold}"]


def test_several_messages_in_one_session(tmp_path: Path) -> None:
    async def play(chain: Chain) -> list[Answer]:
        await chain.connected("x", "192.0.2.7", 1)
        await chain.hello("x")
        await chain.sender("void@example.org")
        await chain.hello("x")  # which voids it
        found = []
        for _ in range(2):
            await chain.sender("a@example.org")
            await chain.recipient("b@example.org")
            found.append((await chain.examine(DRAFT))[0])
        return found

    found, (one,), _ = run(tmp_path, [by_letter({})], play)
    assert found == [CONTINUE, CONTINUE]
    assert one.letters() == "OCHMAH" + "MRTLLLNBE" * 2 + "Q"
    assert one.connections == 1


STEPS = [b"O", b"C", b"H", b"M", b"R", b"T", b"L", b"N", b"B", b"E"]
# What a filter may do instead of answering.
FAULTS = {
    "closes": CLOSE,
    "is silent": SILENT,
    "garbage": b"\xff" * 20,
    "unknown": packet(b"z"),
    "fails": packet(b"f"),
    "half a packet": packet(b"c")[:3] + SILENT,
    "closes within a packet": packet(b"c")[:3] + CLOSE,
    "too much": packet(b"c") + packet(b"c"),
}


@pytest.mark.parametrize("on_failure", ["tempfail", "reject", "accept"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("letter", STEPS)
def test_a_fault_at_any_step(tmp_path: Path, letter: bytes, fault: str, on_failure: str) -> None:
    """It fails once, in its first connection; whoever comes back to it finds it well."""
    broken: list[bytes] = []

    def answers(found: bytes, data: bytes) -> bytes:
        if found == letter and not broken:
            broken.append(found)
            return FAULTS[fault]
        return by_letter({b"E": packet(b"h", b"X-First\0yes\0") + packet(b"c")})(found, data)

    second = by_letter({b"E": packet(b"h", b"X-Second\0yes\0") + packet(b"c")})
    is_early = letter in (b"O", b"C", b"H") or (letter == b"M" and fault.startswith("closes"))  # it gets another chance
    is_late = fault == "too much" and letter == b"E"  # the message has had its answer by then
    (answer, draft), _, notes = run(tmp_path, [answers, second], on_failure=on_failure)
    assert broken
    if is_early:
        assert answer == CONTINUE
        assert draft.text.head == HEAD + b"X-First: yes\nX-Second: yes\n"
    elif is_late or on_failure == "accept":
        assert answer == CONTINUE
        assert draft.text.head == HEAD + b"X-Second: yes\n"
    else:
        assert answer == FAILED[on_failure]
        assert draft is DRAFT
    if not is_late:
        assert len(notes) == 1
        assert notes[0].startswith(f"Milter (unix:{tmp_path}/0): ")


@pytest.mark.parametrize("on_failure", ["tempfail", "reject", "accept"])
@pytest.mark.parametrize("letter", [b"M", b"R"])
def test_nobody_gets_past_a_filter_that_failed_before_the_end(tmp_path: Path, letter: bytes, on_failure: str) -> None:
    """A client that goes on after a refusal: whatever it sends, the message has not been seen by the filter."""
    async def play(chain: Chain) -> list[Verdict]:
        await chain.connected("x", "192.0.2.7", 1)
        found = [await chain.sender("a@example.org"), await chain.recipient("b@example.org"),
                 await chain.recipient("c@example.org"), (await chain.examine(DRAFT))[0]]
        return [one.verdict for one in found]

    found, _, _ = run(tmp_path, [by_letter({letter: packet(b"z")})], play, on_failure=on_failure)
    expected = {"tempfail": Verdict.TEMPFAIL, "reject": Verdict.REJECT, "accept": Verdict.CONTINUE}[on_failure]
    assert found[1:] == [expected] * 3


HALF_CHANGED = {
    "closes": packet(b"h", b"X\0y\0") + CLOSE,
    "falls silent": packet(b"h", b"X\0y\0") + SILENT,
    "dies within a new body": packet(b"b", b"half of it") + packet(b"b", b"more")[:7] + CLOSE,
    "impossible field": packet(b"h", b"X: y\0z\0") + packet(b"c"),
    "impossible recipient": packet(b"+", b"a b c\0") + packet(b"c"),
    "unknown letter": packet(b"h", b"X\0y\0") + packet(b"z"),
    "too large a body": packet(b"b", b"x" * 60_000) * 4 + packet(b"c"),
}


@pytest.mark.parametrize("on_failure", ["tempfail", "accept", "reject"])
@pytest.mark.parametrize("said", HALF_CHANGED)
def test_half_a_change_is_none_and_the_message_waits(tmp_path: Path, said: str, on_failure: str) -> None:
    def answers(letter: bytes, data: bytes) -> bytes:
        return HALF_CHANGED[said] if letter == b"E" else by_letter({})(letter, data)

    (answer, draft), _, notes = run(tmp_path, [answers], on_failure=on_failure, max_body=200_000)
    assert answer == FAILED["tempfail"]
    assert draft is DRAFT
    assert len(notes) == 1


def test_a_filter_that_is_not_there(tmp_path: Path) -> None:
    (answer, _), _, notes = run(tmp_path, [None])
    assert answer == FAILED["tempfail"]
    assert notes == [f"Milter (unix:{tmp_path}/0): no connection: No such file or directory"] * 2
    (answer, draft), _, _ = run(tmp_path, [None, by_letter({})], on_failure="accept")
    assert (answer, draft) == (CONTINUE, DRAFT)


def test_a_filter_that_comes_back_is_told_everything(tmp_path: Path) -> None:
    broken: list[bytes] = []

    def answers(letter: bytes, data: bytes) -> bytes:
        if letter == b"R" and not broken:
            broken.append(letter)
            return CLOSE
        return by_letter({})(letter, data)

    async def play(chain: Chain) -> list[Answer]:
        first = await whole(chain)
        await chain.sender("a@example.org")
        await chain.recipient("c@example.org")
        return [first[0], (await chain.examine(DRAFT))[0]]

    found, (one,), _ = run(tmp_path, [answers], play)
    assert found == [FAILED["tempfail"], CONTINUE]
    assert one.letters() == "OCHMR" + "OCHMRTLLLNBEQ"


@pytest.mark.parametrize(("turns", "is_in_time"), [(10, True), (int(LONGEST / TIMEOUT / 0.8) + 2, False)])
def test_a_busy_filter_has_its_time_again_but_not_for_ever(tmp_path: Path, turns: int, is_in_time: bool) -> None:
    async def play(chain: Chain) -> Answer:
        return (await whole(chain))[0]

    answers = by_letter({b"E": (WAIT + packet(b"p")) * turns + packet(b"c")})
    answer, _, notes = run(tmp_path, [answers], play, wait=TIMEOUT * 0.8)
    assert answer == (CONTINUE if is_in_time else FAILED["tempfail"])
    assert notes == ([] if is_in_time else [f"Milter (unix:{tmp_path}/0): no answer in time"])


def test_who_gives_up_waiting_leaves_no_answer_behind(tmp_path: Path) -> None:
    """A client that hangs up in the middle: the next question does not get the last one's answer."""
    async def play(chain: Chain) -> Answer:
        await chain.connected("x", "192.0.2.7", 1)
        asking = asyncio.ensure_future(chain.hello("x"))
        await asked.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return await chain.sender("a@example.org")

    def answers(letter: bytes, data: bytes) -> bytes:
        if letter == b"H" and not asked.is_set():
            asked.set()
            return b""
        return by_letter({})(letter, data)

    asked = asyncio.Event()
    answer, (one,), _ = run(tmp_path, [answers], play)
    assert answer == CONTINUE
    assert one.letters() == "OCH" + "OCHMQ"


def test_a_session_does_not_outlive_its_client_for_a_filter_that_has_stopped_reading(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4 + 13)
        assert isinstance(writer.transport, asyncio.ReadTransport)
        writer.transport.pause_reading()
        writer.write(agreement(options=0xFF280))  # no answers to anything
        await over.wait()
        writer.close()

    async def play() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "filter"))
        terms = Terms((f"unix:{tmp_path}/filter",), "tempfail", Limits(TIMEOUT, 1000, str(tmp_path)))
        chain = Chain(terms, dict(MACROS), lambda _: None)
        await chain.connected("x", "192.0.2.7", 1)
        await chain.sender("a@example.org")
        (link,) = chain._links
        one = link.filter
        assert one is not None
        large = Draft(DRAFT.envelope, Text(TRACE, HEAD, lambda: (b"x" * 99 + b"\n" for _ in range(100_000))))
        asking = asyncio.ensure_future(chain.examine(large))
        while one._flow is None:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        chain.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert one.failure is not None, "the connection is closed"
        over.set()
        server.close()
        await asyncio.sleep(0.001)

    over = asyncio.Event()
    run_jumping(play())


def test_a_filter_that_was_restarted_between_messages_is_met_again(tmp_path: Path) -> None:
    async def play(chain: Chain) -> list[Answer]:
        found = [(await whole(chain))[0]]
        await gone.wait()
        await chain.sender("a@example.org")
        await chain.recipient("b@example.org")
        return [*found, (await chain.examine(DRAFT))[0]]

    def answers(letter: bytes, data: bytes) -> bytes:
        if letter == b"E" and not gone.is_set():
            gone.set()
            return packet(b"c") + CLOSE
        return by_letter({})(letter, data)

    gone = asyncio.Event()
    found, (one,), _ = run(tmp_path, [answers], play)
    assert found == [CONTINUE, CONTINUE]
    assert one.letters() == "OCHMRRTLLLNBE" + "OCHMRTLLLNBEQ"


@pytest.mark.parametrize("size", [0, 1, 1000, HELD - 1, HELD, HELD * 3 + 5])
def test_a_new_body_in_memory_and_in_a_file(tmp_path: Path, size: int) -> None:
    body = NewBody(str(tmp_path))
    text = (b"0123456789abc\n" * (size // 14 + 1))[:size]
    wire = text.replace(b"\n", b"\r\n")
    for at in range(0, len(wire), 4093):
        body.add(wire[at:at + 4093])
    body.finish()
    assert b"".join(body.pieces()) == text
    assert b"".join(body.pieces()) == text, "it can be read again"
    assert list(tmp_path.iterdir()) == []


def test_a_bare_cr_in_a_new_body_stays(tmp_path: Path) -> None:
    body = NewBody(str(tmp_path))
    for byte in b"a\rb\r\r\nc\r":
        body.add(bytes((byte,)))
    body.finish()
    assert b"".join(body.pieces()) == b"a\rb\r\nc\r"


@pytest.mark.parametrize("size", [1, 1000, 65536, 200_000])
def test_a_body_goes_out_in_chunks_that_every_filter_takes(size: int) -> None:
    text = b"line of text\n" * 20_000
    pieces = [text[at:at + size] for at in range(0, len(text), size)]
    chunks = list(body_chunks(pieces))
    assert b"".join(chunks) == text.replace(b"\n", b"\r\n")
    assert all(len(chunk) == 65_535 for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= 65_535
