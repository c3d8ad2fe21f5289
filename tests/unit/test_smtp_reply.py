"""Replies: read from a server with bounds on everything, rendered as ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.smtp import reply as replies
from pysendmail.smtp.reply import Reply, ReplyReader, reply
from pysendmail.smtp.wire import RemoteError


def read(data: bytes, step: int = 0) -> list[Reply]:
    reader = ReplyReader()
    found = []
    for n in range(0, len(data), step or len(data) or 1):
        reader.feed(data[n:n + (step or len(data))])
        while (one := reader.next_reply()) is not None:
            found.append(one)
    return found


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(("data", "found"), [
    (b"250 ok\r\n", [Reply(250, "", ("ok",))]),
    (b"250\r\n", [Reply(250, "", ("",))]),
    (b"250 \r\n", [Reply(250, "", ("",))]),
    (b"250 ok\n", [Reply(250, "", ("ok",))]),
    (b"250-a\r\n250-\r\n250 b\r\n", [Reply(250, "", ("a", "", "b"))]),
    (b"250-a\r\n251 b\r\n", [Reply(251, "", ("a", "b"))]),
    (b"550 5.1.1 no such user\r\n", [Reply(550, "5.1.1", ("no such user",))]),
    (b"550-5.1.1 no\r\n550 5.1.1 such user\r\n", [Reply(550, "5.1.1", ("no", "such user"))]),
    (b"550-no\r\n550 5.1.1 such user\r\n", [Reply(550, "5.1.1", ("no", "such user"))]),
    (b"550 5.1.1\r\n", [Reply(550, "5.1.1", ("",))]),
    (b"550 4.1.1 another class\r\n", [Reply(550, "", ("4.1.1 another class",))]),
    (b"550 5.1 short\r\n", [Reply(550, "", ("5.1 short",))]),
    (b"550 5.1.1.1 long\r\n", [Reply(550, "", ("5.1.1.1 long",))]),
    (b"220 a\r\n250 b\r\n", [Reply(220, "", ("a",)), Reply(250, "", ("b",))]),
    (b"250 gr\xc3\xbc\xff\r\n", [Reply(250, "", ("gr\u00fc\udcff",))]),
    (b"250-a\r\n", []),
    (b"250 a", []),
])
def test_replies_are_read(data: bytes, found: list[Reply], step: int) -> None:
    assert read(data, step) == found


@pytest.mark.parametrize("data", [
    b"\r\n", b"25\r\n", b"2500 x\r\n", b"250x\r\n", b"abc x\r\n", b"050 x\r\n", b"HTTP/1.1 200 OK\r\n", b"\0\0\0\0\n",
    "\u0662\u0665\u0660 x\r\n".encode(), b"250-a\r\n550 b\r\n", b"250-a\r\nb\r\n", b" 250 x\r\n", b"+OK\r\n",
    b"250 " + b"x" * replies.MAX_LINE + b"\r\n", b"250 " + b"x" * replies.MAX_LINE,
    b"250-x\r\n" * (replies.MAX_LINES + 1), (b"250-" + b"x" * 4000 + b"\r\n") * 20,
])
@pytest.mark.parametrize("step", [0, 1])
def test_what_is_no_reply(data: bytes, step: int) -> None:
    with pytest.raises(RemoteError):
        read(data, step)


def test_words_are_one_printable_line() -> None:
    """A line end in a reply once became a line of an envelope (OpenSMTPD CVE-2020-8794)."""
    one = read(b"550-5.1.1 a\x1b[2Jb\rc\0d\r\n550 5.1.1 " + b"x" * 2000 + b"\r\n")[0]
    assert one.words.startswith("550 5.1.1 a [2Jb c d xxx")
    assert one.words.isprintable()
    assert len(one.words) == 400


def test_a_part_of_a_reply_is_noticed() -> None:
    reader = ReplyReader()
    assert reader.is_empty
    for data in (b"2", b"50-a\r\n", b"25"):
        reader.feed(data)
        assert reader.next_reply() is None
        assert not reader.is_empty
    reader.feed(b"0 b\r\n")
    assert reader.next_reply() == Reply(250, "", ("a", "b"))
    assert reader.is_empty


@given(st.binary(max_size=300))
def test_any_input_is_replies_or_a_remote_error(data: bytes) -> None:
    try:
        found = read(data, 7)
    except RemoteError:
        return
    assert all(100 <= one.code <= 999 for one in found)
    assert all(c.isprintable() or "\udc80" <= c <= "\udcff" for one in found for c in one.words)


@pytest.mark.parametrize(("one", "line"), [
    (reply(250, "2.1.0", "sender ok"), b"250 2.1.0 sender ok\r\n"),
    (reply(250, "", "host", "PIPELINING", "SIZE 5"), b"250-host\r\n250-PIPELINING\r\n250 SIZE 5\r\n"),
    (reply(554, "5.7.1", "a", "b"), b"554-5.7.1 a\r\n554 5.7.1 b\r\n"),
    (reply(354, ""), b"354 \r\n"),
    (reply(550, "5.7.1", "evil\r\n250 ok"), b"550 5.7.1 evil 250 ok\r\n"),
    (reply(550, "5.7.1", "gr\u00fc\udcff"), b"550 5.7.1 gr??\r\n"),
])
def test_our_replies(one: Reply, line: bytes) -> None:
    assert one.render() == line


def test_our_lines_are_never_too_long() -> None:
    assert len(reply(550, "5.7.1", "x" * 10_000).render()) <= 512


@pytest.mark.parametrize(("code", "status"), [
    (100, ""), (600, ""), (250, "5.0.0"), (550, "2.0.0"), (550, "5.0"), (354, "3.0.0")])
def test_a_status_must_agree_with_its_code(code: int, status: str) -> None:
    with pytest.raises(ValueError):
        reply(code, status, "x")


@given(st.integers(200, 559), st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_what_we_say_can_be_read(code: int, texts: list[str]) -> None:
    one = reply(code, "", *texts)
    found = read(one.render())
    assert len(found) == 1
    assert (found[0].code, len(found[0].lines)) == (code, len(texts))
