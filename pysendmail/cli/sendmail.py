"""/usr/sbin/sendmail: takes a message on standard input and ends with 0 once it is safe on disk, and only then.

    standard descriptors -> options -> recipients and sender -> text from stdin -> spool/dropbox.py -> os._exit

It runs as whoever calls it, without privilege. No configuration is read; no option and no environment variable moves
the spool (NAME alone is used, as the full name); the current directory is never looked at. What the caller says becomes
the envelope of a drop file; everything else (policy, header completion, delivery) is the trusted side's.

The text is handed on as it came, but for: CRLF becomes LF, line by line; a line of one dot ends it, without -i; From_
lines in front go; the last line gets its LF. Memory is bounded whatever the size: the first MAX_HEADER bytes are kept
until the recipients are known, the rest is streamed.

Whatever happens, it ends within LAST seconds of its last input, and without 0 there is no message. SIGINT, SIGTERM and
SIGHUP take back what is in the drop and then do what they always do. Other modes (-bp, -bs, -q ...) are other programs,
loaded when asked for. Exit codes: sysexits.h, see sendmail(8).

Loaded by /usr/sbin/sendmail.
"""

import posix as os  # (`os` itself, with what it imports, is a tenth of what this program costs)
import sys
from _signal import (  # type: ignore[import-not-found]  # (the module signal is 3 ms of enum around it)
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGTERM,
    alarm,
    getsignal,
    pthread_sigmask,
    signal,
)

from ..paths import Paths
from ..spool.dropbox import EX_DATAERR, EX_TEMPFAIL, Refused, Submission
from . import options

MAX_MESSAGE = 50 * 1024 * 1024  # bytes, as stored
MAX_HEADER = 128 * 1024  # bytes: of mail/headers.py, which is loaded only when needed
MAX_PLAIN = 250  # bytes of an address that needs no parser
MAX_DRAIN = 1024 * 1024 * 1024  # bytes read for nothing, so that the writer of a refused message does not get SIGPIPE
CHUNK = 64 * 1024  # bytes
PAUSE = 0.05  # seconds, while a descriptor that somebody made non-blocking has nothing
LAST = 55  # seconds from the last input to the end

EX_OK, EX_USAGE, EX_SOFTWARE, EX_OSERR, EX_IOERR = 0, 64, 70, 71, 74
FIRST_FREE = 3  # descriptor
LAST_FREE = 1024
LIBRARIES = "/usr/lib/python3/dist-packages"  # of Debian; -S leaves it out, and submitting needs none

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-=@"


def main(argv: list[str], paths: Paths) -> None:
    """The program. argv[0] decides as for sendmail (mailq, newaliases ...). Never returns."""
    _open_standard_descriptors()
    given = options.Given()
    try:
        given = options.parse(argv[0].rpartition("/")[2], [_bytes(word) for word in argv[1:]])
        _report(given)
        if given.program:
            _become(given, paths)
        _submit(given, paths)
        code = EX_OK
    except Refused as refusal:
        code = refusal.code
        _say(str(refusal))
        if code in (EX_TEMPFAIL, EX_OSERR):
            _log(given, [str(refusal)])
    except MemoryError:
        code = EX_OSERR
        _say("out of memory")
    except Exception:  # noqa: BLE001  (a mistake of ours must not look like success, and its place must be seen)
        code = EX_SOFTWARE
        sys.excepthook(*sys.exc_info())
    os._exit(code)  # no clean-up of the interpreter: it costs a millisecond


def _become(given: options.Given, paths: Paths) -> None:
    """Another program of ours, which gets the standard input untouched. Ends the process."""
    sys.path.append(LIBRARIES)
    program = __import__("pysendmail.cli." + given.program, fromlist=["main"])
    # One that was closed is /dev/null now; and the locale may not have a character for what comes or goes.
    sys.stdin = open(0, errors="surrogateescape", closefd=False)  # noqa: SIM115  (as long as the process)
    sys.stdout = open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    code = EX_OK
    try:
        code = program.main(given.arguments(), paths)
        sys.stdout.flush()
    except OSError as trouble:
        # The reader has gone (mailq | head), or the disk is full; nothing more may be written, not even at exit.
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        if not isinstance(trouble, BrokenPipeError):
            raise Refused(EX_IOERR, f"{given.program}: {trouble}")
    raise SystemExit(code)


# -- submitting -------------------------------------------------------------------------------------------------------

def _submit(given: options.Given, paths: Paths) -> None:
    """Read the message and commit it. Raises Refused."""
    recipients = _operands(given)
    sender = None if given.sender is None else _sender(given.sender)
    source = Source(given.dot_ends)
    if not recipients and not given.from_header:
        if not os.isatty(0):
            source.drain()
        raise Refused(EX_USAGE, "recipients must be named as arguments, or in the header with -t")
    drop = Submission(paths)
    _watch_signals(drop)
    try:
        head = source.head()
        if head[:5] == b"From " or head[:1] == b">":
            from ..mail import headers

            head = head[headers.from_lines_end(head):]
        if given.from_header:
            recipients += _header_recipients(head, source)
        if not recipients:
            source.drain()
            raise Refused(EX_USAGE, "no recipient addresses found in header")
        drop.begin(_fields(given, recipients, sender))
        drop.write(head)
        while piece := source.more():
            drop.write(piece)
        drop.commit()
    except BaseException:
        if not drop.give_up():
            return
        raise
    if given.is_verbose:
        _print("".join(f"{_printable(recipient)}... accepted ({drop.name})\n" for recipient in recipients))


def _fields(given: options.Given, recipients: list[bytes], sender: bytes | None) -> list[tuple[bytes, bytes]]:
    """The fields of the drop file (docs/ARCHITECTURE.md)."""
    name = given.full_name or options.one_line(os.environ.get(b"NAME", b""), options.MAX_FULL_NAME)
    fields = [] if sender is None else [(b"Sender", b"<%s>" % sender)]
    fields += [(field, value) for field, value in (
        (b"Full-Name", name), (b"Body", given.body), (b"Return", given.ret), (b"Envid", given.envid),
        (b"Hops", given.hops), (b"Errors", given.errors), (b"Delivery", given.delivery),
        (b"Gateway", b"yes" if given.is_gateway else b""), (b"Tag", given.tag),
        (b"Smtputf8", b"yes" if given.needs_utf8 else b""), (b"Protocol", given.protocol)) if value]
    start = (given.notify or b"-") + b" - "  # the value of mail/envelope.py, recipient_value
    fields += [(b"Recipient", start + recipient) for recipient in dict.fromkeys(recipients)]
    return fields


def _operands(given: options.Given) -> list[bytes]:
    """The recipients in the arguments, each of which may be a list. Raises Refused."""
    found: list[bytes] = []
    for word in given.operands:
        if word[:1] == b"-" and not given.is_closed:
            # Postfix refuses too: it is an option out of place, or somebody's input that tries to be one.
            raise Refused(EX_USAGE, f"options stand before recipients; put -- before {_printable(word[:40])}")
        found += _parsed(word)
    return found


def _parsed(value: bytes) -> list[bytes]:
    """The addresses of a list, each fit for an envelope. Raises Refused."""
    if 0 < len(value) <= MAX_PLAIN and not value.translate(None, _PLAIN) and b"@" not in value[:1] + value[-1:]:
        return [value]  # nearly all are like that, and the parser need not be loaded
    from ..mail import address

    try:
        found = [spec for spec, _, _ in address.parse_list(value) if spec]
    except address.AddressError as problem:
        raise Refused(EX_DATAERR, f"{problem}: {_printable(value[:100])}")
    return _valid(found)


def _valid(addresses: list[bytes]) -> list[bytes]:
    from ..mail import address

    for one in addresses:
        if not address.is_valid(one):
            raise Refused(EX_DATAERR, f"not an address: {_printable(one[:100])}")
    return addresses


def _sender(value: bytes) -> bytes:
    """The address of -f; b"" = null, which has three spellings. Raises Refused."""
    if value.replace(b" ", b"") in (b"", b"<>", b'""'):
        return b""
    if any(c < 32 or c == 127 for c in value):  # web forms: "-f 'me\nBcc: you'"
        raise Refused(EX_DATAERR, "control character in the sender")
    found = _parsed(value)
    if len(found) != 1:
        raise Refused(EX_DATAERR, f"not one sender address: {_printable(value[:100])}")
    return found[0]


def _header_recipients(head: bytes, source: "Source") -> list[bytes]:
    """The recipients that the header names. Raises Refused."""
    from ..mail import address, headers

    fields, _, body_start = headers.scan(head)
    if headers.is_cut(head, fields, body_start):
        source.drain()
        raise Refused(EX_DATAERR, f"header is longer than {headers.MAX_HEADER} bytes or {headers.MAX_LINES} lines")
    try:
        found = headers.recipients(head, fields)
    except address.AddressError as problem:
        source.drain()
        raise Refused(EX_DATAERR, f"{problem}, in the header")
    return _valid(found)


class Source:
    """The message text on descriptor 0, normalised, piece by piece; equal whatever pieces the kernel hands over."""

    def __init__(self, dot_ends: bool) -> None:
        self.dot_ends = dot_ends
        self.size = 0  # bytes handed on
        self.has_ended = False
        self._held = b""  # the end of what was read: a CR or a dot, whose meaning depends on what follows
        self._at_line_start = True

    def head(self) -> bytes:
        """The first pieces: all of a short message, more than MAX_HEADER bytes of another."""
        pieces = []
        while self.size <= MAX_HEADER:
            piece = self.more()
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    def more(self) -> bytes:
        """The next piece, b"" at the end. Raises Refused."""
        while not self.has_ended:
            chunk = _read()
            piece = self.text(chunk) if chunk else self.rest()
            self.size += len(piece)
            if self.size > MAX_MESSAGE:
                self.drain()
                raise Refused(EX_DATAERR, f"message is larger than {MAX_MESSAGE} bytes")
            if piece:
                return piece
        return b""

    def drain(self) -> None:
        """Read to the end, and forget it."""
        read = 0
        while not self.has_ended and read < MAX_DRAIN:
            chunk = _read()
            if not chunk:
                return
            read += len(chunk)
            self.text(chunk)

    def text(self, chunk: bytes) -> bytes:
        """What a chunk of input adds to the text."""
        data = self._held + chunk
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        data = data.replace(b"\r\n", b"\n")
        if self.dot_ends:
            if self._at_line_start and data.startswith(b".\n"):
                self.has_ended = True
                return b""
            dot = data.find(b"\n.\n")
            if dot >= 0:
                self.has_ended = True
                return data[:dot + 1]
            if data.endswith(b"\n.") or (self._at_line_start and data == b"."):
                data, self._held = data[:-1], b"." + self._held
        if data:
            self._at_line_start = data.endswith(b"\n")
        return data

    def rest(self) -> bytes:
        """What the end of input adds: an LF behind the last line. A CR or a dot there is a line end, a last line."""
        self.has_ended = True
        return b"" if self._at_line_start and self._held != b"\r" else b"\n"


def _read() -> bytes:
    """A chunk of standard input, b"" at its end. Time counts from here again. Raises Refused."""
    alarm(0)
    try:
        while True:
            try:
                return os.read(0, CHUNK)
            except BlockingIOError:  # node.js hands out pipes like that
                from time import sleep

                sleep(PAUSE)
    except OSError as trouble:
        raise Refused(EX_IOERR, f"cannot read the message: {trouble.strerror}")
    finally:
        alarm(LAST)


# -- the process ------------------------------------------------------------------------------------------------------

def _open_standard_descriptors() -> None:
    """0, 1 and 2 exist, so that no file of ours becomes one of them; nothing else is inherited."""
    os.closerange(FIRST_FREE, LAST_FREE)
    for fd in range(FIRST_FREE):
        try:
            os.fstat(fd)
        except OSError:
            try:
                os.open("/dev/null", os.O_RDWR)
            except OSError:
                os._exit(EX_OSERR)


def _watch_signals(drop: Submission) -> None:
    """Handlers run between two steps of the interpreter, never inside one, so they may do this (not as in C)."""
    def stop(number: int, _frame: object) -> None:
        if drop.give_up():
            signal(number, SIG_DFL)
            os.kill(os.getpid(), number)

    def late(_number: int, _frame: object) -> None:
        if not drop.give_up():
            os._exit(EX_OK)
        _say("the mail spool takes too long, try again later")
        os._exit(EX_TEMPFAIL)

    for number in (SIGHUP, SIGINT, SIGTERM):
        if getsignal(number) != SIG_IGN:  # nohup
            signal(number, stop)
    signal(SIGALRM, late)
    pthread_sigmask(SIG_SETMASK, ())


def _report(given: options.Given) -> None:
    """Say and log what was not understood, log what was not done."""
    unknown = [f"unknown option {_printable(word)} ignored" for word in given.unknown]
    for line in unknown:
        _say(line)
    if unknown or given.inert:
        _log(given, unknown + [f"option without effect: {_printable(word)}" for word in given.inert])


def _log(given: options.Given, lines: list[str]) -> None:
    import syslog

    syslog.openlog(given.tag.decode("ascii", "replace") or "sendmail", syslog.LOG_PID, syslog.LOG_MAIL)
    for line in lines:
        syslog.syslog(syslog.LOG_NOTICE, f"NOQUEUE: uid={os.getuid()}: {line[:400]}")


def _say(text: str) -> None:
    """One line on standard error, which may be closed, full or gone."""
    _print(f"sendmail: {text}\n", 2)


def _print(text: str, fd: int = 1) -> None:
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    except OSError:
        pass


def _bytes(word: str) -> bytes:
    """An argument as the caller gave it: os.fsencode."""
    return word.encode(sys.getfilesystemencoding(), "surrogateescape")


def _printable(value: bytes) -> str:
    """A caller's bytes on a terminal or in the log."""
    return "".join(c if c.isprintable() else "?" for c in value.decode("utf-8", "replace"))
