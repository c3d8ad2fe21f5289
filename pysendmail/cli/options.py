"""The command line of sendmail(8), mailq(1) and newaliases(1): one table of options, and what they ask for.

Parsed as sendmail does: options of one letter, merged (`-ti`), values attached or separate (`-fx`, `-f x`), `-q -Q -d`
with an attached value or none, a bare `-C` too, `--` or the first other word ends the options. docs/COMPAT.md and
man/sendmail.8 say the same as OPTIONS and LONG; tests/meta compares them.

What no option does here, whoever calls: name a file to read or write, a program, a configuration or a directory.
Callers pass on what strangers typed (PHPMailer CVE-2016-10033: -X wrote a log of mail text into the web root). Such
options are accepted and put into `inert`, for the log; unknown ones into `unknown`, for the user and the log, and the
mail goes out. A value that sendmail refuses is refused with 64; a value that will stand in an envelope is one line.

Loaded by /usr/sbin/sendmail.
"""

from ..spool.dropbox import Refused

EX_USAGE = 64
MAX_FULL_NAME = 200  # bytes
MAX_TAG = 32  # bytes
MAX_PROTOCOL = 64  # bytes
MAX_ENVID = 100  # bytes, RFC 3461 4.4
MAX_HOPS_DIGITS = 3

# -b and its letter, and the program (module of pysendmail.cli) that does it; "" submits a message.
MODES = {"m": "", "p": "mailq", "i": "newaliases", "s": "smtp", "a": "smtp", "d": "daemon", "D": "daemon",
         "v": "verify", "t": "addresstest", "h": "hoststat", "H": "purgestat", "P": "counters", "C": "checkconfig"}
QUEUE_RUN, QUARANTINE = "queuerun", "quarantine"
NAMES = {"mailq": "p", "newaliases": "i", "hoststat": "h", "purgestat": "H", "smtpd": "d"}
TAKES = {"mailq": "Aqv", "newaliases": "v", QUARANTINE: "Qq"}  # the options that a program is given; the others get all

_CONTROL = bytes(range(32)) + b"\x7f"
_NO_WORD = bytes(range(33)) + bytes(range(127, 256))
_TO_BLANK = bytes.maketrans(_CONTROL, b" " * len(_CONTROL))
_TO_STAR = bytes.maketrans(_CONTROL + b"%", b"*" * (len(_CONTROL) + 1))
_TO_WORD = bytes.maketrans(_NO_WORD, b"?" * len(_NO_WORD))
_DIGITS = b"0123456789"
_XTEXT = bytes(range(33, 127)).translate(None, b"+=")
_HEX = b"0123456789ABCDEF"


class Given:
    """What a command line asks for. Values are bytes, b"" = not given (`sender`: None); programs get `words`."""

    def __init__(self) -> None:
        self.program = ""
        self.operands: list[bytes] = []
        self.is_closed = False  # "--" stood before the operands
        self.words: list[tuple[str, bytes]] = []  # (letter, value) of each option, for programs
        self.unknown: list[bytes] = []
        self.inert: list[bytes] = []
        self.sender: bytes | None = None
        self.full_name = b""
        self.from_header = False  # -t
        self.dot_ends = True
        self.is_verbose = False
        self.is_gateway = False
        self.needs_utf8 = False
        self.body = self.notify = self.ret = self.envid = self.hops = b""
        self.errors = self.delivery = self.tag = self.protocol = b""

    def arguments(self) -> list[str]:
        """For the program: the values of -q for a queue run, else the options that it takes, and the operands."""
        if self.program == QUEUE_RUN:
            return [_text(value) for letter, value in self.words if letter == "q"]
        takes = TAKES.get(self.program)
        found = [f"-{letter}{_text(value)}" for letter, value in self.words if takes is None or letter in takes]
        return found + [_text(word) for word in self.operands]


def parse(name: str, words: list[bytes]) -> Given:
    """The command line `words`, without the program's name, which is `name` (no path). Raises Refused."""
    given = Given()
    given.program = MODES[NAMES.get(name, "m")]
    position = 0
    while position < len(words):
        word = words[position]
        if word == b"--":
            given.is_closed = True
            position += 1
            break
        if word[:1] != b"-" or word == b"-":
            break
        position = _options(given, words, position)
    given.operands = words[position:]
    if given.program == QUEUE_RUN and given.operands:  # otherwise the message that comes with them would be lost
        raise Refused(EX_USAGE, "-q runs the queue and takes no recipients")
    return given


def _options(given: Given, words: list[bytes], position: int) -> int:
    """The options merged in one word; the position behind it and its value."""
    word = words[position]
    position += 1
    for index in range(1, len(word)):
        letter = chr(word[index])
        if letter not in OPTIONS:
            given.unknown.append(word if index == 1 else b"-" + word[index:])
            break
        kind, effect = OPTIONS[letter]
        value = word[index + 1:] if kind != FLAG else b""
        if kind == VALUE and not value:
            if letter == "C" and (position == len(words) or words[position][:1] == b"-"):
                pass  # a bare -C is the usual configuration
            elif position == len(words):
                raise Refused(EX_USAGE, f"option requires an argument -- '{letter}'")
            else:
                value = words[position]
                position += 1
        given.words.append((letter, value))
        if effect:
            effect(given, value)
        if kind != FLAG:
            break
    return position


# -- effects: what an option does with its value ----------------------------------------------------------------------

def _body(given: Given, value: bytes) -> None:
    given.body = value.lower()
    if given.body not in (b"7bit", b"8bitmime"):
        raise Refused(EX_USAGE, "-B takes 7BIT or 8BITMIME")


def _mode(given: Given, value: bytes) -> None:
    letter = chr(value[0]) if value else ""
    if letter not in MODES:
        raise Refused(EX_USAGE, f"no such mode: -b{_shown(value)}")
    given.program = MODES[letter]


def _rebuild_aliases(given: Given, value: bytes) -> None:
    given.program = MODES["i"]


def _run_queue(given: Given, value: bytes) -> None:
    """-q goes with -bd and -bp, which keep the upper hand."""
    if given.program == "":
        given.program = QUEUE_RUN


def _quarantine(given: Given, value: bytes) -> None:
    given.program = QUARANTINE


def _sender(given: Given, value: bytes) -> None:
    if given.sender is not None:
        raise Refused(EX_USAGE, "more than one sender (-f, -r)")
    given.sender = value


def _full_name(given: Given, value: bytes) -> None:
    given.full_name = one_line(value, MAX_FULL_NAME)


def _from_header(given: Given, value: bytes) -> None:
    given.from_header = True


def _ignore_dots(given: Given, value: bytes) -> None:
    given.dot_ends = value[:1] not in (b"", b"t", b"T", b"y", b"Y")  # what sendmail takes for true


def _verbose(given: Given, value: bytes) -> None:
    given.is_verbose = value[:1] in (b"", b"t", b"T", b"y", b"Y")


def _gateway(given: Given, value: bytes) -> None:
    given.is_gateway = True


def _hops(given: Given, value: bytes) -> None:
    if not value or len(value) > MAX_HOPS_DIGITS or value.translate(None, _DIGITS):
        raise Refused(EX_USAGE, f"bad hop count: -h {_shown(value)}")
    given.hops = value


def _tag(given: Given, value: bytes) -> None:
    given.tag = value.translate(_TO_STAR)[:MAX_TAG].strip()


def _protocol(given: Given, value: bytes) -> None:
    given.protocol = value.translate(_TO_WORD)[:MAX_PROTOCOL]


def _notify(given: Given, value: bytes) -> None:
    asked = set(value.lower().split(b","))
    if asked != {b"never"} and asked - {b"success", b"failure", b"delay"}:
        raise Refused(EX_USAGE, "-N takes never, or a list of success, failure and delay")
    given.notify = b",".join(sorted(asked))


def _return(given: Given, value: bytes) -> None:
    if given.ret:
        raise Refused(EX_USAGE, "-R given twice")
    given.ret = value.lower()
    if given.ret not in (b"full", b"hdrs"):
        raise Refused(EX_USAGE, "-R takes full or hdrs")


def _envid(given: Given, value: bytes) -> None:
    """xtext, RFC 3461 4: printable, with +XX for what is not."""
    first, *coded = value.split(b"+")
    is_xtext = not first.translate(None, _XTEXT) and all(
        len(p) >= 2 and not p[:2].translate(None, _HEX) and not p[2:].translate(None, _XTEXT) for p in coded)
    if not value or len(value) > MAX_ENVID or not is_xtext:
        raise Refused(EX_USAGE, "-V takes an envelope id in xtext (RFC 3461), of at most 100 characters")
    given.envid = value


def _errors(given: Given, value: bytes) -> None:
    if value[:1] in (b"e", b"m", b"p", b"q", b"w"):
        given.errors = value[:1]
    else:
        given.inert.append(b"-e" + value)


def _delivery(given: Given, value: bytes) -> None:
    letter = value[:1] or b"i"
    if letter in (b"b", b"d", b"i", b"q"):
        given.delivery = letter
    elif letter == b"f":  # foreground, of LSB and Exim
        given.delivery = b"i"
    else:
        given.inert.append(b"-od" + value)


def _set_short(given: Given, value: bytes) -> None:
    """-oX and its value: the options of sendmail.cf by letter."""
    letter, rest = value[:1], value[1:]
    if letter in SHORT:
        SHORT[letter](given, rest)
    elif letter not in SHORT_IGNORED:
        given.inert.append(b"-o" + value)


def _set_long(given: Given, value: bytes) -> None:
    """-O Name=value: the same by name."""
    name, _, rest = value.partition(b"=")
    effect = LONG.get(name.strip().lower())
    if effect:
        effect(given, rest.strip())
    else:
        given.inert.append(b"-O" + value)


def _utf8(given: Given, value: bytes) -> None:
    given.needs_utf8 = value.lower() == b"yes"


def _inert_config(given: Given, value: bytes) -> None:
    given.inert.append(b"-C" + value)


def _inert_debug_file(given: Given, value: bytes) -> None:
    given.inert.append(b"-D" + value)


def _inert_traffic_log(given: Given, value: bytes) -> None:
    given.inert.append(b"-X" + value)


def one_line(value: bytes, limit: int) -> bytes:
    """The value without control characters, cut."""
    return value.translate(_TO_BLANK)[:limit].strip()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _shown(value: bytes) -> str:
    return value[:40].translate(_TO_WORD).decode("ascii")


# -- the table --------------------------------------------------------------------------------------------------------

FLAG, VALUE, ATTACHED = range(3)  # no value; attached or the next word; attached or none

SHORT = {b"i": _ignore_dots, b"d": _delivery, b"e": _errors, b"v": _verbose}
SHORT_IGNORED = frozenset((b"7", b"8", b"m", b"o", b"s", b"r", b"T", b"f", b"h", b"j", b"l", b"n", b"x"))
LONG = {b"ignoredots": _ignore_dots, b"deliverymode": _delivery, b"errormode": _errors, b"verbose": _verbose,
        b"smtputf8": _utf8}

# letter: (kind of value, effect); no effect = accepted and ignored.
OPTIONS = {
    "A": (VALUE, None), "B": (VALUE, _body), "C": (VALUE, _inert_config), "D": (VALUE, _inert_debug_file),
    "E": (FLAG, None), "F": (VALUE, _full_name), "G": (FLAG, _gateway), "I": (FLAG, _rebuild_aliases),
    "J": (FLAG, None), "L": (VALUE, _tag), "M": (VALUE, None), "N": (VALUE, _notify), "O": (VALUE, _set_long),
    "Q": (ATTACHED, _quarantine), "R": (VALUE, _return), "T": (FLAG, None), "U": (FLAG, None), "V": (VALUE, _envid),
    "X": (VALUE, _inert_traffic_log), "b": (VALUE, _mode), "c": (FLAG, None), "d": (ATTACHED, None),
    "e": (VALUE, _errors), "f": (VALUE, _sender), "h": (VALUE, _hops), "i": (FLAG, _ignore_dots), "m": (FLAG, None),
    "n": (FLAG, None), "o": (VALUE, _set_short), "p": (VALUE, _protocol), "q": (ATTACHED, _run_queue),
    "r": (VALUE, _sender), "s": (FLAG, None), "t": (FLAG, _from_header), "v": (FLAG, _verbose), "x": (FLAG, None),
}
