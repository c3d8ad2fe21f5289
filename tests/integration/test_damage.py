"""What may have happened to a queue file: bits that flipped, a cut, zeros, something else in its place. It is put where
people look at it, never deleted and never delivered in part; everything else goes on."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.paths import Paths
from pysendmail.spool.queue import Broken, Queue
from tests.tools.host import Host, Mail
from tests.tools.running import Running

MakeHost = Callable[..., Host]
SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x20
        path.write_bytes(data)

    return damage


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def field(old: bytes, new: bytes) -> Callable[[Path], None]:
    """A change of the envelope with length and checksum made to fit: damage that only its meaning shows."""
    return rewrite(lambda data: _sealed(data.replace(old, new, 1)))


def _sealed(data: bytes) -> bytes:
    block = data.index(b"\nReceived:") + 1
    return b"Pysendmail-Record: 1 %08d %012d %08x\n" % (block, len(data), zlib.crc32(data[52:])) + data[52:]


def replaced(make: Callable[[str], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        seen = path.stat()
        path.unlink()
        make(str(path))
        os.chown(path, seen.st_uid, seen.st_gid, follow_symlinks=False)

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    "version": flip(19),
    "block length": flip(24),
    "file length": flip(35),
    "checksum": flip(48),
    "envelope": flip(70),
    "text": flip(-3),
    "empty": rewrite(lambda data: b""),
    "cut in the first line": rewrite(lambda data: data[:30]),
    "cut in the envelope": rewrite(lambda data: data[:100]),
    "cut at the end": rewrite(lambda data: data[:-1]),
    "grown": rewrite(lambda data: data + b"more\n"),
    "zeros": rewrite(lambda data: bytes(len(data))),
    "second half zeros": rewrite(lambda data: data[:len(data) // 2] + bytes(len(data) - len(data) // 2)),
    "another mail": rewrite(lambda data: b"Subject: hello\n\nI am no queue file.\n"),
    "unknown field": field(b"\nReceived:", b"\nPysendmail-Probe: yes\nReceived:"),
    "no recipient": field(b"Pysendmail-Recipient: ", b"Pysendmail-Origin-Tls: "),
    "control character": field(b"Pysendmail-Sender: <", b"Pysendmail-Sender: <\x01"),
    "symbolic link": replaced(lambda path: os.symlink("/etc/passwd", path)),
    "directory": replaced(os.mkdir),
    "FIFO": replaced(os.mkfifo),
}


def waiting(host: Host, count: int) -> list[tuple[Mail, str]]:
    """Messages to dave that wait for his command to be good, the daemon stopped; each with its id."""
    home = host.users["dave"].home
    host.forward("dave", f'"|test -e {home}/good || exit 75; cat >> {home}/got"\n')
    host.start()
    mails = [host.send("dave", sender="alice") for _ in range(count)]
    found = [(mail, host.queue_id(mail)) for mail in mails]
    for mail in mails:
        host.outcome(mail, "dave")
    host.stop()
    host.write_home("dave", "good", "")
    return found


def file_of(host: Host, found: str) -> Path:
    name, = (name for name in os.listdir(f"{host.paths.queue}/cur") if name.startswith(found))
    return Path(f"{host.paths.queue}/cur/{name}")


def got(host: Host) -> str:
    return Path(f"{host.users['dave'].home}/got").read_text()


def test_every_kind_of_damage_goes_to_bad_and_the_others_flow(make_host: MakeHost) -> None:
    host = make_host(settings="[queue]\nretry_first = 3600\n")
    mails = waiting(host, len(DAMAGE) + 2)
    sound = [mails.pop(0), mails.pop()]
    for (_, found), damage in zip(mails, DAMAGE.values(), strict=True):
        damage(file_of(host, found))
    host.start()
    runner = host.runner
    host.ask("flush", filter={})
    host.wait_until(lambda: host.status()["waiting"] + host.status()["active"] == 0, "nothing left to do")
    assert [got(host).count(f"<{mail.name}@test>") for mail, _ in sound] == [1, 1]
    bad = {name[:14] for name in os.listdir(f"{host.paths.queue}/bad")}
    missing = [kind for (_, found), kind in zip(mails, DAMAGE, strict=True) if found not in bad]
    assert not missing, "not put aside"
    assert not any(f"<{mail.name}@test>" in got(host) for mail, _ in mails)
    assert host.box("alice") == "", "damage is no reason to send mail back"
    assert len(host.log.find("moved to queue/bad: ")) == len(DAMAGE)
    assert host.runner == runner


def test_damaged_message_is_still_there_and_can_be_read(make_host: MakeHost) -> None:
    host = make_host(settings=SOON)
    (mail, found), = waiting(host, 1)
    flip(-3)(file_of(host, found))
    host.start()
    host.log.wait_for(f"{found}: moved to queue/bad")
    host.wait_until(lambda: not host.files("queue/cur"), "it to be moved")
    name, = os.listdir(f"{host.paths.queue}/bad")
    assert f"<{mail.name}@test>" in Path(f"{host.paths.queue}/bad/{name}").read_text()
    assert found in os.listdir(host.paths.journal), "what was done for it already"
    host.stop()
    host.start()
    assert os.listdir(f"{host.paths.queue}/bad") == [name]
    assert found in os.listdir(host.paths.journal)


@pytest.mark.parametrize(("text", "is_bad"), [
    (b"", False),  # torn before the first line was whole: nothing is known to be done, everything is done again
    (b"00000000 {}\n", False),
    (b"rubbish", False),
    (None, True),  # a line that is sound, and that this version does not understand
], ids=["empty", "wrong checksum", "torn", "unknown event"])
def test_damaged_journal_costs_at_most_a_second_copy(make_host: MakeHost, text: bytes | None, is_bad: bool) -> None:
    host = make_host(settings=SOON)
    (mail, found), = waiting(host, 1)
    journal = Path(f"{host.paths.journal}/{found}")
    if text is None:
        line = b'{"verb":"teleported","at":1.0}'
        text = journal.read_bytes() + b"%08x %s\n" % (zlib.crc32(line), line)
    journal.write_bytes(text)
    host.start()
    host.wait_until(lambda: not host.files("queue/cur", "queue/new"), "nothing left to do")
    assert (len(os.listdir(f"{host.paths.queue}/bad")) == 1) == is_bad
    if not is_bad:
        assert got(host).count(f"<{mail.name}@test>") == 1


@pytest.mark.parametrize("name", ["notes.txt", "0", "x" * 200, "0WkDdmTe00100", "0WkDdmTe001000.bak", ".hidden"])
def test_what_the_runner_has_not_made_is_left_alone(make_host: MakeHost, name: str) -> None:
    host = make_host()
    paths = [Path(f"{host.paths.queue}/{place}/{name}") for place in ("new", "cur", "hold", "bad", "journal")]
    for path in paths:
        path.write_text("somebody's\n")
    host.start()
    host.outcome(host.send("bob"), "bob")
    host.wait_empty()
    assert [path.read_text() for path in paths] == ["somebody's\n"] * 5


def test_no_flipped_bit_of_a_queue_file_is_overlooked(paths: Paths) -> None:
    """Each byte, three ways: the file is refused, or reads as it did."""
    running = Running(paths)
    found = running.submit("bob")
    queue = Queue(paths, running.clock)
    entry = queue.find(found)
    assert entry is not None
    path = Path(f"{paths.queue}/new/{found}")
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1:])
            with pytest.raises(Broken):
                queue.load(entry)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Broken):
            queue.load(entry)
