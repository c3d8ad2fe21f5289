"""How a message looks in an mbox, and whether a mailbox ends in one that we have written before. Reads only.

A message is a From_ line, header, body, and an empty line. A line of it that would look like a From_ line to a reader
gets one ">" in front, and so does every line that already looks quoted (`^>*From `, "mboxrd"): taking one away again
gives the message back, byte for byte. NUL and 8-bit bytes are left alone. RFC 4155 and its appendix.

Quoting never holds back more than four bytes, whatever the lines look like: one more ">" in a run of them may be added
at its end just as well as at its start.

`Tail` is for the attempt after a crash. An append that was killed leaves part of a message at the end of the mailbox,
or the whole of it without our having said so. Nothing unquoted inside a message of ours can look like a From_ line, so
the last one in the file is where that message starts, and it can be compared with the one in hand, byte for byte.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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

    floor: where the first of those starts, else `end`. Nothing from there on is known to be on disk.
    """

    end: int
    floor: int
    repeats: set[int]


def inspect(fd: int, size: int, parcels: Sequence[Parcel]) -> Tail:
    """Look for copies of these parcels at the end of a locked mailbox; the last may be torn, `end` then excludes it.

    A whole copy counts only if it contains our queue id: two messages may well be equal, and both are wanted. A torn
    one is the start of what is about to be written in full. Raises OSError for the mailbox, Unreadable for the queue
    file.
    """
    tail = Tail(size, size, set())
    waiting = {index: parcel for index, parcel in enumerate(parcels) if parcel.may_repeat}
    # Quoting adds a byte to a line of at least five, and separators may have been put in.
    reach = max((p.size + p.size // 5 + len(p.from_line) + 16 for p in waiting.values()), default=0)
    end = size
    while waiting:
        start = _last_start(fd, end, max(0, end - reach))
        if start < 0:
            break
        begin = _read(fd, start, min(_WINDOW, end - start))
        found = _recognise(fd, start, end, begin, waiting, may_be_torn=end == size)
        if found is None:
            break
        index, is_whole = found
        if is_whole:
            tail.repeats.add(index)
            del waiting[index]
        else:
            tail.end = start
        tail.floor = end = start
    return tail


def _recognise(fd: int, start: int, end: int, begin: bytes, waiting: dict[int, Parcel], *,
               may_be_torn: bool) -> tuple[int, bool] | None:
    """(index, is whole) of the parcel that file[start:end] is a copy of; begin: its first bytes."""
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
    return None


def _compare(fd: int, start: int, end: int, parcel: Parcel) -> str:
    """ "whole", "torn" or "other". The date in the From_ line may differ; what follows a whole copy is empty lines."""
    line = _read(fd, start, min(len(parcel.from_line) + 64, end - start))
    sender = parcel.from_line[:parcel.from_line.find(b" ", len(_FROM)) + 1]
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
