"""Queue ids: sendmail's shape, because logwatch, mailgraph and people recognise it.

Fourteen characters: eight that sort by time, three digits for the writer (given by the supervisor), three for a serial.
The eight are base 62 in ASCII order and count ticks of 100 microseconds since the epoch, so ids sort as they were made.

A report of our own gets an id *derived* from the message it is about, so that a crash cannot make two of them: the
first character, a digit until the year 2080, becomes a letter: A for the first report, B for the second; a notice to
the postmaster about a report that could not be delivered has the same letter in lower case. Nothing is derived from
that, nor from a notice about damaged files (daemon/aside.py), whose letter is z.
"""

from collections.abc import Callable, Iterable

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 14
TICKS_PER_SECOND = 10_000
SERIALS = 1000  # ids of one writer in one tick
CLOCK_ERROR = 86_400.0  # seconds that an id may lie in the future
MAX_REPORTS = 25  # about one message: A to Y

_DIGITS = frozenset("0123456789")


def is_queue_id(text: str) -> bool:
    """Whether this is the shape of an id: nothing else may become part of a path in the queue."""
    return len(text) == LENGTH and text.isascii() and text.isalnum() and text[8:].isdecimal()


def id_of(name: str) -> str:
    """The id in the name of a queue file (`ID` or `ID,T=...:2,`), or "" if it is not one of ours."""
    queue_id = name[:LENGTH]
    return queue_id if is_queue_id(queue_id) and name[LENGTH:LENGTH + 1] in ("", ",", ":") else ""


def encode_ticks(ticks: int) -> str:
    letters = []
    for _ in range(8):
        ticks, digit = divmod(ticks, 62)
        letters.append(ALPHABET[digit])
    return "".join(reversed(letters))


def decode_ticks(letters: str) -> int:
    ticks = 0
    for letter in letters:
        ticks = ticks * 62 + ALPHABET.index(letter)
    return ticks


def made_at(queue_id: str, now: float) -> float:
    """When an id was made, or that of the message which a report is about; both seconds since the epoch.

    The first character is not asked, as a derived id has a letter there: it is the last time that fits the others.
    """
    round_, since = 62**7, decode_ticks(queue_id[1:8])
    latest = int((now + CLOCK_ERROR) * TICKS_PER_SECOND)
    return ((latest - since) // round_ * round_ + since) / TICKS_PER_SECOND


class Ids:
    """Makes ids for one writer. They rise even when the clock falls; a tick that is used up is followed by the next.

    taken: ids that exist already. New ones are later than all of them, even if the clock went back while we were not
    running: a name given twice would replace somebody's message, since rename(2) does that silently.
    """

    def __init__(self, writer: int, clock: Callable[[], float], taken: Iterable[str] = ()) -> None:
        if not 0 <= writer < 1000:
            raise ValueError("a writer has three digits")
        self._writer = writer
        self._clock = clock
        century = encode_ticks(int(clock() * TICKS_PER_SECOND))[0]  # what a derived id has a letter for
        last = max([found[:8] if found[0] in _DIGITS else century + found[1:8] for found in taken], default="")
        latest = decode_ticks(last) if last else -1
        self._tick = max(latest, 0)
        self._serial = SERIALS - 1 if latest >= 0 else 0

    def new(self) -> str:
        now = int(self._clock() * TICKS_PER_SECOND)
        if now > self._tick:
            self._tick, self._serial = now, 0
        else:
            self._serial += 1
            if self._serial == SERIALS:
                self._tick, self._serial = self._tick + 1, 0
        return f"{encode_ticks(self._tick)}{self._writer:03d}{self._serial:03d}"


def derived(queue_id: str, number: int) -> str:
    """The id of report `number` (1 = the first) about a message; "" when there must be none.

    About a report (letter in upper case) there is one notice, to the postmaster; about a notice there is nothing.
    """
    first = queue_id[0]
    if first in _DIGITS:
        return ALPHABET[9 + number] + queue_id[1:] if 1 <= number <= MAX_REPORTS else ""
    return first.lower() + queue_id[1:] if first.isupper() else ""
