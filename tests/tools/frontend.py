"""/usr/sbin/sendmail below a private root, as a process or forked and watched, and what it left in the drop."""

import _socket
import errno
import json
import os
import posix
import subprocess
import sys
import syslog
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pysendmail.cli.sendmail import main
from pysendmail.mail import address, headers
from pysendmail.paths import Paths
from pysendmail.spool import record

CODE = str(Path(__file__).resolve().parents[2])
WITHIN = 50.0  # seconds
LAUNCHER = """#!{python} -IS
import sys
sys.path.insert(0, {code!r})
from pysendmail.cli.sendmail import main
from pysendmail.mail import address, headers
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""


@dataclass(frozen=True)
class Drop:
    """One file of the drop, its record checked. fields: without the recipients, which are whole field values."""

    path: str
    fields: dict[str, bytes]
    recipients: list[bytes] = field(default_factory=list)
    message: bytes = b""

    @property
    def addresses(self) -> list[bytes]:
        return [value.split(b" ", 2)[2] for value in self.recipients]


def launcher(paths: Paths, name: str = "sendmail") -> str:
    """A program that is sendmail for this root; its path."""
    path = f"{paths.root}/{name}"
    if not os.path.exists(path):
        Path(path).write_text(LAUNCHER.format(python=sys.executable, code=CODE, root=paths.root))
        os.chmod(path, 0o755)
    return path


def sendmail(paths: Paths, *words: str | bytes, text: bytes = b"", name: str = "sendmail",
             **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run([launcher(paths, name), *words], input=text, capture_output=True, timeout=WITHIN, check=False,
                          **more)


def read_drop(path: str) -> Drop:
    """The file as intake reads it; an AssertionError if its record is not sound."""
    data = Path(path).read_bytes()
    block, length, checksum = record.read_first(data[:record.FIRST_LENGTH])
    assert length == len(data)
    assert record.crc(data[record.FIRST_LENGTH:]) == checksum
    one: dict[str, bytes] = {}
    recipients = []
    for name, value in record.fields(data[record.FIRST_LENGTH:block]):
        if name == b"Recipient":
            recipients.append(value)
        else:
            assert name.decode() not in one
            one[name.decode()] = value
    return Drop(path, one, recipients, data[block:])


def drops(paths: Paths) -> list[Drop]:
    """What waits in the drop. Nothing unfinished may lie beside it."""
    assert os.listdir(paths.drop_tmp) == []
    return [read_drop(f"{paths.drop_new}/{name}") for name in sorted(os.listdir(paths.drop_new))]


def the_drop(paths: Paths) -> Drop:
    found = drops(paths)
    assert len(found) == 1, f"{len(found)} messages in the drop"
    return found[0]


@dataclass(frozen=True)
class Called:
    """What a forked `main` did. events: (name, arguments as text) of each audit event, imports left out."""

    code: int
    out: bytes
    err: bytes
    events: list[tuple[str, list[str]]]


def call(paths: Paths, words: list[bytes], text: bytes = b"", name: str = "sendmail",
         before: Callable[[], None] = lambda: None) -> Called:
    """`main` in a forked child, watched by an audit hook: no process start, and every file it opens is seen.

    `before` runs in the child, just before `main`.
    """
    files = {what: f"{paths.root}/call.{what}" for what in ("in", "out", "err", "events")}
    Path(files["in"]).write_bytes(text)
    Path(files["events"]).touch()
    os.chmod(files["events"], 0o666)  # `before` may become another user
    pid = os.fork()
    if pid == 0:
        try:
            _child(paths, [name, *(os.fsdecode(word) for word in words)], files, before)
        finally:
            _exit(99)  # main came back, or the set-up failed
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = Path(files["events"]).read_text() if code >= 0 else "[]"
    events = [(event, arguments) for event, arguments in json.loads(seen)]
    return Called(code, Path(files["out"]).read_bytes(), Path(files["err"]).read_bytes(), events)


LOADED = (address, headers, syslog, errno, _socket)  # here already, so that loading them is no event in the child
_exit = os._exit
_UNWATCHED = ("import", "compile", "exec", "object.__getattr__", "sys._getframe", "marshal", "code.__new__",
              "builtins.id")  # what the interpreter does to itself


def _child(paths: Paths, argv: list[str], files: dict[str, str], before: Callable[[], None]) -> None:
    for fd, what in enumerate(("in", "out", "err")):
        os.dup2(os.open(files[what], os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fd else 0), 0o600), fd)
    events: list[tuple[str, list[str]]] = []

    def end(code: int) -> None:
        seen = list(events)
        with open(files["events"], "w", encoding="ascii") as file:
            json.dump(seen, file)
        _exit(code)

    posix._exit = end  # what the front-end knows of `os`
    before()
    sys.addaudithook(lambda event, arguments: event.startswith(_UNWATCHED) or events.append(
        (event, [ascii(argument) for argument in arguments])))
    try:
        main(argv, paths)
    except SystemExit as ended:
        end(int(ended.code or 0))
