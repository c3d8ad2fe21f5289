"""How a message looks in an mbox, and whether a mailbox ends in one that we have written before. Reads only.

A message is a From_ line, header, body, and an empty line. A line of it that would look like a From_ line to a reader
gets one ">" in front, and so does every line that already looks quoted (`^>*From `, "mboxrd"): taking one away again
gives the message back, byte for byte. NUL and 8-bit bytes are left alone. RFC 4155 and its appendix.

Quoting never holds back more than four bytes, whatever the lines look like: one more ">" in a run of them may be added
at its end just as well as at its start.

`Tail` is for the attempt after a crash. An append that was killed leaves part of a message at the end of the mailbox,
or the whole of it without our having said so. Nothing unquoted inside a message of ours can look like a From_ line, so
the last one in the file is where that message starts, and it can be compared with the one in hand, byte for byte.
A whole copy is looked for a little further up too, since other mail may have been written behind it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .parcel import PIECE, Parcel

_FROM = b"From "
_START = b"\n\nFrom "  # where a message starts, unless it is the first
_WINDOW = 64 * 1024  # bytes looked at in one step backwards; also how far down a header our queue id is looked for


class Quoter:
    """Turns a message, in pieces of any size, into its quoted form. Feed every piece, then take the end."""

    __slots__ = ("_begins", "_held")

    def __init__(self) -> None:
        self._held = b""  # the start of a "From " that may go on in the next piece
        self._begins = True  # whether the line so far, without what is held, is empty or only ">"

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece if self._held else piece
        self._held = b""
        for length in range(len(_FROM) - 1, 0, -1):
            if data.endswith(_FROM[:length]):
                self._held = _FROM[:length]
                data = data[:-length]
                break
        if b"\nFrom " in data or b">From " in data or (self._begins and data.startswith(_FROM)):
            return self._quote(data)
        self._pass(data)
        return data

    def end(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _quote(self, data: bytes) -> bytes:
        """Every byte is looked at a fixed number of times, however many "From " there are in a line."""
        parts: list[bytes] = []
        done = 0
        while (at := data.find(_FROM, done)) >= 0:
            before = data[done:at]
            self._pass(before)
            parts += (before, b">From " if self._begins else _FROM)
            self._begins = False
            done = at + len(_FROM)
        self._pass(data[done:])
        parts.append(data[done:])
        return b"".join(parts)

    def _pass(self, data: bytes) -> None:
        """Note where in its line the end of data is."""
        line_start = data.rfind(b"\n") + 1
        if line_start:
            self._begins = True
        if self._begins and data[line_start:].strip(b">"):
            self._begins = False


def render(parcel: Parcel) -> Iterator[bytes]:
    """The parcel as an mbox has it, From_ line to empty line; in one piece if it is small. Raises Unreadable."""
    return _render(parcel.from_line, parcel)


def _render(before: bytes, parcel: Parcel) -> Iterator[bytes]:
    quoter, waiting, last, size = Quoter(), [before], before, len(before)
    for piece in parcel.pieces():
        quoted = quoter.feed(piece)
        waiting.append(quoted)
        size += len(quoted)
        last = quoted or last
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    held = quoter.end()
    last = held or last
    yield b"".join((*waiting, held, b"\n" if not last or last.endswith(b"\n") else b"\n\n"))


@dataclass(slots=True)
class Tail:
    """What the end of a mailbox is. end: where to append. repeats: which parcels are in it, whole (indexes).

    floor: where the first of those at the very end starts, else `end`. Nothing from there on is known to be on disk,
    nor is what is in `above`: (start, end) of those repeats behind which there is other mail.
    """

    end: int
    floor: int
    repeats: set[int]
    above: list[tuple[int, int]] = field(default_factory=list)


def inspect(fd: int, size: int, parcels: Sequence[Parcel]) -> Tail:
    """Look for copies of these parcels at the end of a locked mailbox; the last may be torn, `end` then excludes it.

    A whole copy counts only if it contains our queue id: two messages may well be equal, and both are wanted. A torn
    one is the start of what is about to be written in full, perhaps with zeros in place of some of it (`_is_holed`).
    Raises OSError for the mailbox, Unreadable for the queue file.
    """
    tail = Tail(size, size, set())
    asked = {index: parcel for index, parcel in enumerate(parcels) if parcel.may_repeat}
    if not asked or not size:
        return tail
    waiting = dict(asked)
    # Quoting adds a byte to a line of at least five, and separators may have been put in.
    sizes = [parcel.size + parcel.size // 5 + len(parcel.from_line) + 16 for parcel in asked.values()]
    reach, end = max(sizes), size
    while waiting and end > 0:
        start = _last_start(fd, end, max(0, end - reach))
        index, is_whole = _recognise(fd, start, end, waiting, may_be_torn=end == size) if start >= 0 else (-1, False)
        if is_whole:
            tail.repeats.add(index)
            del waiting[index]
        elif index >= 0:
            tail.end = start
        else:
            start = _find_scrap(fd, end, max(0, end - sum(sizes)), asked)
            if start < 0:
                break
            # What stands behind it, whole or not, is cut off with it and written again.
            tail.end, tail.repeats, waiting = start, set(), dict(asked)
        tail.floor = end = start
    _look_above(fd, tail, waiting)
    return tail


def _look_above(fd: int, tail: Tail, waiting: dict[int, Parcel]) -> None:
    """Add to the tail which parcels are whole in the last _WINDOW bytes above its floor. After a runner was killed its
    agents may have written them, and more of their mail behind them, before the next has them delivered again."""
    end = tail.floor
    low = max(0, end - _WINDOW)
    data, shift = _read(fd, low, end - low), low
    if low == 0:  # the first message starts without the separator
        data, shift = b"\n\n" + data, -2
    for index, parcel in waiting.items():
        queue_id, at = parcel.queue_id.encode("ascii"), 0
        while index not in tail.repeats and (at := data.find(queue_id, at)) >= 0:
            start, after = data.rfind(_START, 0, at), data.find(_START, at)
            after = after + 2 if after >= 0 else len(data)
            place = (shift + start + 2, shift + after)
            if start >= 0 and _compare(fd, *place, parcel) == "whole":
                tail.repeats.add(index)
                tail.above.append(place)
            at = after


def _recognise(fd: int, start: int, end: int, waiting: dict[int, Parcel], *,
               may_be_torn: bool) -> tuple[int, bool]:
    """(index, is whole) of the parcel that file[start:end] is a copy of, index -1 = of none."""
    begin = _read(fd, start, min(_WINDOW, end - start))
    for index, parcel in waiting.items():
        has_id = parcel.queue_id.encode("ascii") in begin
        # Without our id it can only be ours if it broke off inside the header: nobody's message ends there.
        if not has_id and (not may_be_torn or len(begin) == _WINDOW or b"\n\n" in begin):
            continue
        verdict = _compare(fd, start, end, parcel)
        if verdict == "whole" and has_id:
            return index, True
        if verdict == "torn" and may_be_torn:
            return index, False
    return -1, False


def _compare(fd: int, start: int, end: int, parcel: Parcel) -> str:
    """ "whole", "torn" or "other". The date in the From_ line may differ; what follows a whole copy is empty lines."""
    line = _read(fd, start, min(len(parcel.from_line) + 64, end - start))
    sender = parcel.from_line[:parcel.from_line.find(b" ", len(_FROM)) + 1]
    if b"\0" in line:
        return "other"
    if not line.startswith(sender):
        return "torn" if len(line) < len(sender) and sender.startswith(line) and start + len(line) == end else "other"
    line_end = line.find(b"\n") + 1
    if not line_end:
        return "torn" if start + len(line) == end else "other"
    at = start + line_end
    for piece in _render(b"", parcel):
        there = _read(fd, at, min(len(piece), end - at))
        if there != piece:
            return "torn" if at + len(there) == end and piece.startswith(there) else "other"
        at += len(there)
    return "other" if _read(fd, at, min(end - at, _WINDOW)).strip(b"\n") else "whole"


# ---- after a loss of power

def _find_scrap(fd: int, end: int, floor: int, asked: dict[int, Parcel]) -> int:
    """Where something starts, at the end of file[:end], that only a torn append can have left; -1 = nothing."""
    written = _without_zeros(fd, end, floor)
    for length in range(1, len(_FROM)):  # of a From_ line that broke off in its first word
        if _read(fd, max(0, written - length), length) == _FROM[:length] and _is_between(fd, written - length):
            return written - length
    batch = list(asked.values())
    for start in (_last_start(fd, end, floor), _last_hole(fd, end, floor)):
        if start >= 0 and any(_is_holed(fd, start, end, batch[first:]) for first in range(len(batch))):
            return start
    return -1


def _without_zeros(fd: int, end: int, floor: int) -> int:
    """Where the zeros begin that file[:end] ends in, not looking below `floor`."""
    while end > floor and _read(fd, end - 1, 1) == b"\0":
        low = max(floor, end - _WINDOW)
        end = low + len(_read(fd, low, end - low).rstrip(b"\0"))
    return end


def _is_between(fd: int, at: int) -> bool:
    """Whether a message may start there."""
    return at == 0 or (at >= 2 and _read(fd, at - 2, 2) == b"\n\n")


def _last_hole(fd: int, end: int, floor: int) -> int:
    """Where the last message starts whose first word is lost in zeros, not looking below `floor`; -1 = nowhere."""
    high = end
    while high > floor:
        low = max(floor, high - _WINDOW)
        data = _read(fd, low, min(end, high + len(_START)) - low)
        at = max(data.rfind(_START[:length] + b"\0") for length in range(2, len(_START)))
        if at >= 0:
            return low + at + 2
        high = low
    begin, zero, _ = _read(fd, 0, min(end, len(_FROM))).partition(b"\0")
    return 0 if floor == 0 and zero and _FROM.startswith(begin) else -1


def _is_holed(fd: int, start: int, end: int, batch: Sequence[Parcel]) -> bool:
    """Whether file[start:end] is what a torn append of these parcels leaves: zeros, and the right bytes besides.

    ext4 notes how long a file is before it has the data, where that goes into a block which the file had already. So
    after a loss of power there may be zeros from where we began to write up to the next block, or to the end.
    """
    at, has_zeros = start, False
    for parcel in batch:
        for piece, is_date in _expected(parcel):
            there = _read(fd, at, min(len(piece), end - at))
            at += len(there)
            if there != piece[:len(there)]:
                if not is_date and not all(byte in (0, wanted) for byte, wanted in zip(there, piece, strict=False)):
                    return False
                has_zeros = has_zeros or b"\0" in there
            if at == end:
                return has_zeros
    return False


def _expected(parcel: Parcel) -> Iterator[tuple[bytes, bool]]:
    """The parcel in pieces, and whether a piece is the date, which is another one in each attempt."""
    date = parcel.from_line.find(b" ", len(_FROM)) + 1
    yield parcel.from_line[:date], False
    yield parcel.from_line[date:], True
    for piece in _render(b"", parcel):
        yield piece, False


def _last_start(fd: int, end: int, floor: int) -> int:
    """Where the last message before `end` starts, not looking below `floor`; -1 = not found."""
    high = end
    while high > floor:
        low = max(floor, high - _WINDOW)
        at = _read(fd, low, min(end, high + len(_START) - 1) - low).rfind(_START)
        if at >= 0:
            return low + at + 2
        high = low
    return 0 if floor == 0 and end >= len(_FROM) and _read(fd, 0, len(_FROM)) == _FROM else -1


def _read(fd: int, at: int, length: int) -> bytes:
    """Exactly file[at:at + length], less at its end."""
    parts = []
    while length > 0:
        data = os.pread(fd, length, at)
        if not data:
            break
        parts.append(data)
        at += len(data)
        length -= len(data)
    return b"".join(parts)
