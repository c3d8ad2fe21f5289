"""The dialogues of tests/dialogs against the processes: a listener over TCP, and `sendmail -bs` on pipes.

Over TCP a dialogue with strict line ends is held by a stranger, one with line ends as they come by a client of this
host; each is run twice, as it is written and byte by byte.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pysendmail.config import identity
from pysendmail.paths import Paths
from pysendmail.smtp.wire import LineEnds
from tests.tools import certificate, dialog
from tests.tools.dialog import HOSTNAME, Dialog, Turn
from tests.tools.door import Client, Door, Logins, anybody, settings
from tests.tools.frontend import Drop, drops
from tests.tools.host import CODE

ALL = [dialog.read(path) for path in sorted(dialog.DIALOGS.glob("*.txt"))]
OVER_TCP = [one for one in ALL if "tcp" in one.only and one.profile != "bs"]
ON_A_PIPE = [one for one in ALL if "bs" in one.only]
# [limits] by the name that the core has for it.
LIMITS = {"messages": "messages_per_session"}
LAUNCHER = """
import sys
sys.path.insert(0, {code!r})
from pysendmail.cli.sendmail import main
from pysendmail.config import identity
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""


def names(dialogs: list[Dialog]) -> list[str]:
    return [one.name for one in dialogs]


@dataclass
class Conversation:
    """client: at the other end of the server. taken: messages in their order: (sender, recipients, text)."""

    dialog: Dialog
    client: Client
    is_slow: bool
    taken: list[tuple[str, list[str], bytes]] = field(default_factory=list)

    def hold(self) -> None:
        for turn in self.dialog.turns:
            getattr(self, f"_{turn.kind}")(turn)

    def _send(self, turn: Turn) -> None:
        try:
            for piece in [turn.data[n:n + 1] for n in range(len(turn.data))] if self.is_slow else [turn.data]:
                self.client.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough: what it said about it comes next

    def _expect(self, turn: Turn) -> None:
        where = f"{self.dialog.name}.txt:{turn.line}"
        said = b""
        for pattern in turn.patterns:
            if pattern.endswith("-..."):
                while not (line := self.client.line()).startswith(pattern[:3].encode() + b" "):
                    assert line.startswith(pattern[:4].encode()), where
                self.client.put_back(line)
            else:
                said = self.client.line() + b"\r\n"
                assert dialog.expect([pattern.replace(HOSTNAME, self.hostname)], said, where) == b"", where

    hostname = HOSTNAME

    def _tls(self, turn: Turn) -> None:
        self.client.start_tls(anybody())

    def _taken(self, turn: Turn) -> None:
        self.taken.append((turn.sender, turn.recipients, turn.data))

    def _eof(self, turn: Turn) -> None:
        self.client.shut()

    def _closed(self, turn: Turn) -> None:
        assert self.client.rest() == b"", f"{self.dialog.name}.txt:{turn.line}"


def whole(found: str) -> list[str]:
    """An address as written in a dialogue, and as the envelope has it."""
    return [found, f"{found}@{HOSTNAME}"]


@pytest.fixture
def make_door(paths: Paths, tmp_path: Path) -> Iterator[list[Door]]:
    made: list[Door] = []
    yield made
    for door in made:
        door.close()


@pytest.mark.parametrize("is_slow", [False, True], ids=["whole", "by byte"])
@pytest.mark.parametrize("one", OVER_TCP, ids=names(OVER_TCP))
def test_over_tcp(one: Dialog, is_slow: bool, paths: Paths, tmp_path: Path, make_door: list[Door]) -> None:
    limits = {LIMITS.get(name, name): value for name, value in one.limits.items()}
    door = Door(paths, settings(paths, limits=limits, relay={"domains": ("bücher.example",)}), one.profile,
                certificate.server_context(tmp_path) if one.tls or one.profile == "submissions" else None,
                Logins() if one.login else None)
    make_door.append(door)
    door.start()
    connect = door.connect if LineEnds(one.ends) is LineEnds.NORMALISE else door.connect_from
    with connect() as client:
        if one.profile == "submissions":
            client.start_tls(anybody())
        conversation = Conversation(one, client, is_slow)
        conversation.hold()
    assert door.stop() == [0]
    found = door.taken()
    assert [(taken.envelope.sender, len(taken.envelope.recipients)) for taken in found] == [
        (sender, len(recipients)) for sender, recipients, _ in conversation.taken]
    for taken, (_, recipients, text) in zip(found, conversation.taken, strict=True):
        for address, written in zip(taken.envelope.recipients, recipients, strict=True):
            assert address.address in whole(written)
        if not taken.envelope.origin.client.startswith("[127."):  # (whose header is completed)
            assert taken.rest in (text, b"\n" + text)
        assert text.partition(b"\n\n")[2] in taken.rest
    assert door.unfinished() == []


class Process(Client):
    """`sendmail -bs` as a client sees it."""

    def __init__(self, paths: Paths) -> None:
        program = LAUNCHER.format(code=CODE, root=paths.root)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", program, "-bs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._buffer = b""

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def shut(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _more(self) -> None:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            raise EOFError
        self._buffer += data

    def ended(self) -> int:
        return self._process.wait(30)


@pytest.mark.parametrize("is_slow", [False, True], ids=["whole", "by byte"])
@pytest.mark.parametrize("one", ON_A_PIPE, ids=names(ON_A_PIPE))
def test_on_a_pipe(one: Dialog, is_slow: bool, paths: Paths) -> None:
    with Process(paths) as client:
        conversation = Conversation(one, client, is_slow)
        conversation.hostname = identity.find(paths, identity.node_name()).hostname
        conversation.hold()
        assert client.ended() == (1 if one.name == "eof_in_content" else 0)

    def as_said(drop: Drop) -> tuple[str, list[str], bytes]:
        recipients = [address.decode() for address in drop.addresses]
        return drop.fields["Sender"].decode()[1:-1], recipients, drop.message

    found = [as_said(drop) for drop in sorted(drops(paths), key=lambda drop: os.stat(drop.path).st_mtime_ns)]
    assert found == conversation.taken
