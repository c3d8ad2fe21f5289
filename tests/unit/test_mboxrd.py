"""From_ quoting and the shape of a message in an mbox, against a slow reference; recognising our own copies."""

import itertools
import mailbox
import os
import re
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pysendmail.deliver import mboxrd, parcel
from pysendmail.deliver.parcel import Parcel, Unreadable
from tests.tools.parcels import FROM_LINE, HEAD, Parcels, message

# Text made of what matters here, so that chance finds the corners.
TEXT = st.lists(st.sampled_from([b"From ", b"From", b"Fro", b"F", b">", b">>", b"\n", b"\n\n", b" ", b"x", b"\0",
                                 b"\xff", b"\r\n", b"From \n", b"\nFrom "]), max_size=40).map(b"".join)


@pytest.fixture
def parcels(tmp_path: Path) -> Iterator[Parcels]:
    made = Parcels(tmp_path)
    yield made
    made.close()


def quoted(text: bytes) -> bytes:
    return b"\n".join(re.sub(rb"\A(>*From )", rb">\1", line) for line in text.split(b"\n"))


def unquoted(text: bytes) -> bytes:
    return b"\n".join(re.sub(rb"\A>(>*From )", rb"\1", line) for line in text.split(b"\n"))


def in_pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXT, st.lists(st.integers(0, 200), max_size=8))
@example(b">>>From x", [1, 3, 5])
@example(b"From From \nFrom ", [2])
@example(b"x\nFrom", [])
def test_quoting_is_the_reference_wherever_the_pieces_end(text: bytes, cuts: list[int]) -> None:
    quoter = mboxrd.Quoter()
    done = b"".join(quoter.feed(piece) for piece in in_pieces(text, cuts)) + quoter.end()
    assert done == quoted(text)
    assert unquoted(done) == text


@given(TEXT)
def test_quoting_byte_by_byte_holds_back_at_most_four_bytes(text: bytes) -> None:
    quoter, done = mboxrd.Quoter(), b""
    for at in range(len(text)):
        done += quoter.feed(text[at:at + 1])
        assert at + 1 - len(unquoted(done)) <= 4
    assert done + quoter.end() == quoted(text)


@pytest.mark.parametrize("line", [b">" * 300_000, b"From " * 60_000, b">From " * 50_000, b">\n" * 150_000,
                                  b"F" * 300_000, b"\nFrom " * 50_000, b">" * 200_000 + b"From x"],
                         ids=["bars", "from", "bar-from", "short", "f", "lines", "long-quoted"])
def test_hostile_lines_are_quoted_as_the_reference_does(line: bytes) -> None:
    quoter = mboxrd.Quoter()
    done = b"".join(quoter.feed(line[at:at + 4096]) for at in range(0, len(line), 4096)) + quoter.end()
    assert done == quoted(line)


@pytest.mark.parametrize(("text", "written"), [
    (b"Subject: x\n\nbody\n", b"Subject: x\n\nbody\n\n"),
    (b"Subject: x\n\nno newline", b"Subject: x\n\nno newline\n\n"),
    (b"Subject: x\n\nblank at the end\n\n", b"Subject: x\n\nblank at the end\n\n\n"),
    (b"Subject: x\n\n", b"Subject: x\n\n\n"),
    (b"", b"\n"),
    (b"From a header that is none\n", b">From a header that is none\n\n"),
    (b"\n\nends like a From", b"\n\nends like a From\n\n"),
    (b"\nFrom ", b"\n>From \n\n"),
    (b"\nFrom", b"\nFrom\n\n"),
    (b"\n\0\x80\xff\r\n", b"\n\0\x80\xff\r\n\n"),
])
def test_the_shape_of_a_message(parcels: Parcels, text: bytes, written: bytes) -> None:
    assert b"".join(mboxrd.render(parcels.make(text))) == FROM_LINE + HEAD + written


def test_a_small_message_is_one_piece(parcels: Parcels) -> None:
    """One write(2), which a crash of this process cannot tear."""
    assert len(list(mboxrd.render(parcels.make(b"x" * 100_000)))) == 1


def test_a_large_message_comes_in_bounded_pieces(parcels: Parcels) -> None:
    text = b"a line of text, From here to there\nFrom the start\n" * 40_000
    pieces = list(mboxrd.render(parcels.make(text)))
    assert max(map(len, pieces)) < 3 * parcel.PIECE
    assert b"".join(pieces) == FROM_LINE + HEAD + quoted(text) + b"\n"


@pytest.mark.parametrize("line", [b"\0" * 1024, b">" * 1024, b"x\nFrom y\n" * 128, b"\n" * 1024],
                         ids=["one-line", "bars", "quoted", "empty-lines"])
def test_memory_stays_flat_for_a_huge_message(parcels: Parcels, tmp_path: Path, line: bytes) -> None:
    def peak(kilobytes: int) -> int:
        path = tmp_path / f"huge-{kilobytes}"
        path.write_bytes(line * kilobytes)
        huge = parcels.of_file(path)
        tracemalloc.start()
        try:
            assert sum(map(len, mboxrd.render(huge))) > kilobytes * 1000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak(10 * 1024) < 1.2 * peak(1024)


def test_python_reads_back_what_was_written(parcels: Parcels, tmp_path: Path) -> None:
    bodies = [b"one\n", b"From me to you\n\nFrom here\n>From there\n", b"", b"\n\n\n", b"no newline", b"\xff\0\n"]
    box = tmp_path / "box"
    with box.open("wb") as file:
        for number, body in enumerate(bodies, 1):
            file.writelines(mboxrd.render(parcels.make(message(number, body), number=number)))
    reader = mailbox.mbox(box)
    found = list(reader)
    assert [m["Subject"] for m in found] == [f"number {n}" for n in range(1, len(bodies) + 1)]
    assert [m.get_from() for m in found] == ["bob@else.test Tue Jul  1 10:52:37 2003"] * len(bodies)
    for number, (read, body) in enumerate(zip(found, bodies, strict=True), 1):
        raw = reader.get_bytes(number - 1)
        expected = HEAD + message(number, body)
        assert unquoted(raw) == (expected if expected.endswith(b"\n") else expected + b"\n")
        assert read["Delivered-To"] == "alice@host.example"
    reader.close()


# ---- the queue file


def test_a_queue_file_that_is_too_short_is_no_message(parcels: Parcels, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 5000)
    short = parcels.of_file(path)
    os.truncate(path, 3000)
    with pytest.raises(Unreadable, match="ends after 3000 of 5000"):
        list(mboxrd.render(short))


def test_an_error_of_the_queue_s_disk_is_not_one_of_the_mailbox(parcels: Parcels,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")
    made = parcels.make()
    monkeypatch.setattr(parcel.os, "pread", broken)
    with pytest.raises(Unreadable, match="Input/output error"):
        list(mboxrd.render(made))


@pytest.mark.parametrize(("name", "value"), [
    ("queue_id", "../../etc/x"), ("queue_id", ""), ("queue_id", "a:2,S"), ("queue_id", "é" * 14),
    ("head", b"Return-Path: <>"), ("from_line", b"x y z\n"), ("from_line", b"From x\nFrom y\n"),
    ("from_line", b"From x"), ("offset", -1), ("length", 3),
])
def test_a_parcel_that_makes_no_sense_is_the_callers_mistake(name: str, value: object) -> None:
    sound = {"queue_id": "0abcDEFG001001", "fd": 0, "offset": 10, "length": 20, "head": b"", "from_line": FROM_LINE}
    Parcel(**sound)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Parcel(**(sound | {name: value}))  # type: ignore[arg-type]


# ---- the end of a mailbox


OTHERS = b"From x@y.test Mon Jun 30 10:00:00 2003\nSubject: an earlier message\n\nFrom here\n\n"
LATER = FROM_LINE.replace(b"10:52:37", b"11:13:05")


def look(tmp_path: Path, content: bytes, *asked: Parcel) -> mboxrd.Tail:
    path = tmp_path / "box"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return mboxrd.inspect(fd, len(content), asked)
    finally:
        os.close(fd)


def written(*asked: Parcel, separator: bytes = b"") -> bytes:
    return separator.join(b"".join(mboxrd.render(p)) for p in asked)


@pytest.mark.parametrize("before", [b"", OTHERS, OTHERS + b"\n\n"], ids=["empty", "others", "blank-lines"])
@pytest.mark.parametrize("body", [b"Hello.\n", b"a\n\n>From b\nFrom c\n\n\nno newline", b"x" * 200_000,
                                  b"y\n" * 400_000, b"From \n" * 2000],
                         ids=["small", "quoted", "middling", "large", "all-quoted"])
def test_a_torn_copy_is_found_wherever_it_broke_off(parcels: Parcels, tmp_path: Path, before: bytes,
                                                   body: bytes) -> None:
    made = parcels.make(message(1, body), may_repeat=True)
    whole = written(made)
    near, far = range(len(b"From bob@"), min(len(whole), 400)), range(401, len(whole), max(1, len(whole) // 7))
    for cut in {*near, *far, len(whole) - 1}:
        tail = look(tmp_path, before + whole[:cut], made)
        assert (tail.end, tail.floor, tail.repeats) == (len(before), len(before), set()), f"broken off after {cut}"


@pytest.mark.parametrize("before", [b"", OTHERS], ids=["empty", "others"])
def test_zeros_in_a_torn_copy_are_torn_too(parcels: Parcels, tmp_path: Path, before: bytes) -> None:
    """ext4 after a loss of power: zeros from anywhere to anywhere, then the rest or nothing; the date is another."""
    made = parcels.make(message(1, b"Hello.\n" * 100), may_repeat=True)
    whole = written(parcels.make(message(1, b"Hello.\n" * 100), from_line=LATER))
    steps = [0, 3, 7, 20, 30, 43, 44, 60, 120, 180, 240, 300, 700, len(whole) - 1, len(whole)]
    for start, end in itertools.combinations(steps, 2):
        for cut in (end, len(whole)):
            torn = (whole[:start] + bytes(end - start) + whole[end:])[:cut]
            tail = look(tmp_path, before + torn, made)
            assert tail == mboxrd.Tail(len(before), len(before), set()), f"zeros from {start} to {end} of {cut}"


def test_zeros_behind_a_whole_copy(parcels: Parcels, tmp_path: Path) -> None:
    """Two messages were written together, and of the second nothing is there but its length: both are written again."""
    one, two = (parcels.make(message(n), number=n, may_repeat=True) for n in (1, 2))
    content = OTHERS + written(one) + bytes(len(written(two)))
    assert look(tmp_path, content, one, two) == mboxrd.Tail(len(OTHERS), len(OTHERS), set())


def test_zeros_before_the_rest_of_a_batch(parcels: Parcels, tmp_path: Path) -> None:
    batch = [parcels.make(message(n), number=n, may_repeat=True) for n in (1, 2, 3)]
    whole = written(*batch)
    for hole in range(0, len(whole), 50):
        tail = look(tmp_path, OTHERS + bytes(hole) + whole[hole:-10], *batch)
        assert tail.end == len(OTHERS) if hole else tail.end > len(OTHERS), f"zeros up to {hole}"


def test_zeros_in_one_of_a_batch(parcels: Parcels, tmp_path: Path) -> None:
    """Those before it are whole, and those that come after it now were not there then."""
    batch = [parcels.make(message(n), number=n, may_repeat=True) for n in (1, 2, 3, 4)]
    content = OTHERS + written(*batch[:2])
    tail = look(tmp_path, content + written(batch[2])[:-90] + bytes(90), *batch)
    assert tail == mboxrd.Tail(len(content), len(OTHERS), {0, 1})


@pytest.mark.parametrize("last", [
    b"From x@y.test Mon Jun 30 10:00:00 2003\nSubject: zeros\n\n\0\0\0\n\n",
    b"From x@y.test Mon Jun 30 10:00:00 2003\nSubject: zeros\n\nabc\0\0\0",
    b"From x@y.test Mon Jun 30 10:00:00 2003\nSubject: zeros\n\n\0\0\0abc\n\n",
    b"From bob@else.test Mon Jun 30 10:00:00 2003\nReturn-Path: <bob@else.test>\nSubject: zeros\n\n\0\0\0\n\n"])
def test_zeros_that_somebody_was_sent_stay(parcels: Parcels, tmp_path: Path, last: bytes) -> None:
    content = OTHERS + last
    assert look(tmp_path, content, parcels.make(may_repeat=True)) == mboxrd.Tail(len(content), len(content), set())


@pytest.mark.parametrize("scrap", [b"F", b"Fr", b"Fro", b"From"])
@pytest.mark.parametrize("before", [b"", OTHERS], ids=["empty", "others"])
def test_a_from_line_that_broke_off_in_its_first_word(parcels: Parcels, tmp_path: Path, before: bytes,
                                                      scrap: bytes) -> None:
    tail = look(tmp_path, before + scrap, parcels.make(may_repeat=True))
    assert tail == mboxrd.Tail(len(before), len(before), set())


@pytest.mark.parametrize("after", [b"", b"\n", b"\n\n"])
def test_a_whole_copy_is_found_although_its_date_differs(parcels: Parcels, tmp_path: Path, after: bytes) -> None:
    content = OTHERS + written(parcels.make()) + after
    again = parcels.make(from_line=LATER, may_repeat=True)
    assert look(tmp_path, content, again) == mboxrd.Tail(len(content), len(OTHERS), {0})


def test_a_batch_that_broke_off_is_found_from_its_end(parcels: Parcels, tmp_path: Path) -> None:
    batch = [parcels.make(message(n), number=n, may_repeat=True) for n in range(1, 6)]
    content = OTHERS + written(*batch[:3])
    tail = look(tmp_path, content + written(batch[3])[:-20], *reversed(batch))
    assert tail == mboxrd.Tail(len(content), len(OTHERS), {4, 3, 2})


@pytest.mark.parametrize("before", [b"", OTHERS, OTHERS.replace(b"From here", b"0abcDEFG001001, 0abcDEFG001002")],
                         ids=["empty", "others", "ids"])
def test_whole_copies_are_found_behind_which_there_is_other_mail(
        parcels: Parcels, tmp_path: Path, before: bytes) -> None:
    """Agents of a runner that was killed have written a batch, and of that the next runner asks for some again."""
    batch = [parcels.make(message(n), number=n, may_repeat=True) for n in (1, 2, 3, 4)]
    content = before + written(*batch[:3]) + OTHERS
    edges = [len(before + written(*batch[:count])) for count in range(4)]
    places = list(pairwise(edges))
    tail = look(tmp_path, content, *batch[1:])
    assert tail == mboxrd.Tail(len(content), len(content), {0, 1}, places[1:]), "others' mail is never below the floor"
    content += written(batch[3])
    tail = look(tmp_path, content, *batch)
    assert tail == mboxrd.Tail(len(content), len(content) - len(written(batch[3])), {0, 1, 2, 3}, places)


@pytest.mark.parametrize("change", ["nothing asked", "other id", "no id in the text", "other text", "status line",
                                    "other head"])
def test_what_is_not_surely_ours_is_left_alone(parcels: Parcels, tmp_path: Path, change: str) -> None:
    content = OTHERS + written(parcels.make())
    asked = {
        "nothing asked": parcels.make(),
        # Two messages may be equal down to the last byte but for the id; both are wanted.
        "other id": parcels.make(message(2), number=2, may_repeat=True),
        "no id in the text": parcels.make(number=7, may_repeat=True),
        "other text": parcels.make(message(1, b"Hallo.\n"), may_repeat=True),
        "other head": parcels.make(head=HEAD.replace(b"alice", b"alice+x"), may_repeat=True),
    }.get(change, parcels.make(may_repeat=True))
    if change == "status line":  # a mail reader has it already
        content = content.replace(b"Subject: number", b"Status: O\nSubject: number")
    assert look(tmp_path, content, asked) == mboxrd.Tail(len(content), len(content), set())


@pytest.mark.parametrize("content", [b"", b"\n", b"F", b"From", b"From bob", b"\n\n\nFrom ", b"no mailbox at all",
                                     b"x" * 200_000, b"\n\nFrom " * 50_000],
                         ids=["empty", "newline", "f", "from", "name", "blank-from", "text", "long", "many"])
def test_any_content_is_looked_at_without_harm(parcels: Parcels, tmp_path: Path, content: bytes) -> None:
    tail = look(tmp_path, content, parcels.make(may_repeat=True))
    assert tail.repeats == set()
    assert content[tail.end:] in (b"", b"F", b"From", b"From ", b"From bob")


def test_the_end_of_a_whole_message_of_others_is_never_cut_off(parcels: Parcels, tmp_path: Path) -> None:
    """A message that is the beginning of ours, whole in itself, is somebody's message."""
    made = parcels.make(b"\nfirst\n\nsecond\n", may_repeat=True)
    content = FROM_LINE + HEAD + b"\nfirst\n\n"
    assert look(tmp_path, content, made) == mboxrd.Tail(len(content), len(content), set())
