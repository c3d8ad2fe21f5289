"""mailq: sendmail's layout to the letter, for programs that read it; and what it says when there is nobody to ask."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.cli import ask, mailq
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.paths import Paths
from pysendmail.spool import selection
from pysendmail.spool.queue import Queue
from tests.tools.control import Control, item, listing, recipient

ROOT = Path(__file__).resolve().parents[2]
FOOTER = "\t\tTotal requests: "


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs mailq: (exit code, stdout, stderr), the private root left out."""
    def run(paths: Paths, *args: str) -> tuple[int, str, str]:
        code = mailq.main(list(args), paths)
        printed = capsys.readouterr()
        return code, printed.out.replace(paths.root, ""), printed.err.replace(paths.root, "")
    return run


def text_of(*items: dict[str, Any], is_verbose: bool = False) -> str:
    return "".join("".join(mailq.entry(one, is_verbose=is_verbose)) for one in items)


# ---- layout


def test_the_layout_is_sendmails(paths: Paths, out: Any) -> None:
    waiting = item(body="8bitmime", reason="connection refused by mx.example.com", recipients=[
        recipient("bob@example.com"), recipient("carol@example.net"), recipient("done@example.com", "delivered")])
    busy = item("0WkDdmTe001001", active=True, sender="", size=3, recipients=[recipient("dave@example.com", "queued")])
    with Control(paths, listing(waiting, busy)):
        code, printed, errors = out(paths)
    assert (code, errors) == (0, "")
    assert printed.split("\n") == [
        "\t\t/var/spool/pysendmail/queue (2 requests)",
        "-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------",
        "0WkDdmTe001000     1201 Sun Jun 15 15:06 <alice@example.org>",
        "      8BITMIME   (Deferred: connection refused by mx.example.com)",
        "\t\t\t\t\t <bob@example.com>",
        "\t\t\t\t\t <carol@example.net>",
        "0WkDdmTe001001*       3 Sun Jun 15 15:06 MAILER-DAEMON",
        "\t\t\t\t\t <dave@example.com>",
        "\t\tTotal requests: 2",
        ""]


def test_verbose_adds_the_priority_and_each_recipients_reason(paths: Paths, out: Any) -> None:
    waiting = item(attempts=2, reason="one",
                   recipients=[recipient("a@x", reason="one"), recipient("b@x", reason="two")])
    with Control(paths, listing(waiting)):
        _, printed, _ = out(paths, "-v")
    assert printed.split("\n")[:7] == [
        "\t\t/var/spool/pysendmail/queue (1 request)",
        "-----Q-ID----- --Size-- -Priority- ---Q-Time--- --------Sender/Recipient--------",
        f"0WkDdmTe001000     1201 {1201 + 2 * 30_000 + 2 * 90_000:10d} Jun 15 15:06 <alice@example.org>",
        "                 (Deferred: one)",
        "\t\t\t\t\t\t<a@x>",
        "\t\t\t\t\t\t<b@x>",
        "\t\t (two)"]


def test_a_held_message_is_in_quarantine() -> None:
    lines = text_of(item(where="hold", hold="held by the administrator", reason="later")).split("\n")
    assert lines[1:3] == ["     QUARANTINE: held by the administrator", "                 (Deferred: later)"]


@pytest.mark.parametrize(("reason", "expected"), [
    ("", ""), ("busy", "Deferred: busy"), ("Deferred: busy", "Deferred: busy"), ("damaged: torn", "damaged: torn")])
def test_reasons(reason: str, expected: str) -> None:
    assert mailq.reason_of(item(reason=reason)) == expected


def test_what_nobody_has_looked_into_yet_has_an_owner_only(paths: Paths, out: Any) -> None:
    new = item("Hq3xV0.tmp1234", where="drop", sender="", recipients=[], uid=1234)
    with Control(paths, listing(new)):
        _, printed, _ = out(paths)
    assert "\nHq3xV0.tmp1234     1201 Sun Jun 15 15:06 (uid 1234)\n" in printed
    assert "   (queued, to be taken in)\n" in printed


def test_long_texts_are_not_cut_as_sendmail_cuts_them() -> None:
    address, reason = f"{'x' * 64}@{'y' * 180}.example", "z" * 400
    text = text_of(item(sender=address, reason=reason, recipients=[recipient(address)]))
    assert text.count(address) == 2
    assert reason in text


def test_a_message_has_a_bounded_number_of_lines() -> None:
    many = [recipient(f"user{number}@example.com") for number in range(mailq.MAX_RECIPIENTS + 5)]
    lines = text_of(item(recipients=many)).split("\n")
    assert len(lines) == mailq.MAX_RECIPIENTS + 3
    assert lines[-2] == "\t\t\t\t\t ... and 5 more"


@given(st.text(), st.text(), st.text(), st.text(), st.booleans())
def test_no_text_of_a_stranger_makes_a_line_or_moves_the_cursor(
    sender: str, address: str, reason: str, hold: str, is_verbose: bool,
) -> None:
    one = item(sender=sender, reason=reason, hold=hold, where="hold",
               recipients=[recipient(address, reason="same"), recipient(address, reason=reason)])
    text = text_of(one, is_verbose=is_verbose)
    assert all(character.isprintable() or character in "\n\t" for character in text)
    expected = 5 if is_verbose else 4
    assert expected + 1 <= text.count("\n") + (not reason) <= expected + 3


def test_undecodable_and_control_characters_are_escaped() -> None:
    text = text_of(item(sender="a\udcff\x1b[2J@x", recipients=[recipient("b\r\n\t\tTotal requests: 0\n")]))
    assert "<a\\xff\\x1b[2J@x>" in text
    assert "<b\\x0d\\x0a\\x09\\x09Total requests: 0\\x0a>" in text


@pytest.mark.parametrize("arrived", [0.0, -5.0, 1e300, float("inf")])
def test_any_time_of_arrival_can_be_printed(arrived: float) -> None:
    assert text_of(item(arrived=arrived)).startswith("0WkDdmTe001000     1201 ")


def test_an_empty_queue_is_empty_and_no_error(paths: Paths, out: Any) -> None:
    with Control(paths, listing()):
        assert out(paths) == (0, "/var/spool/pysendmail/queue is empty\n\t\tTotal requests: 0\n", "")


# ---- readers


def check_mailq(text: str) -> int:
    """How the monitoring plugins count (mode sendmail): a line about mqueue, or the indented total at the end."""
    count = -1
    for line in text.split("\n"):
        if "mqueue" in line:
            found = re.search(r" \((\d+) request", line)
            count = int(found[1]) if found else count
        else:
            found = re.fullmatch(r"\s+Total\srequests:\s(\d+)", line, re.IGNORECASE)
            count = int(found[1]) if found else count
    return count


@pytest.mark.parametrize("number", [0, 1, 3])
def test_monitors_count_right(paths: Paths, out: Any, number: int) -> None:
    with Control(paths, listing(*[item(f"0WkDdmTe00100{n}", reason="mqueue (9 requests)") for n in range(number)])):
        _, printed, _ = out(paths)
    assert check_mailq(printed.replace("mqueue (9", "")) == number


# ---- options


@pytest.mark.parametrize(("args", "wanted"), [
    ([], {}), (["-v"], {}), (["-bp"], {}), (["-q"], {}), (["-q30m"], {}), (["-vi"], {}),
    (["-oQ/tmp/x", "-O", "Queue=x"], {}), (["-C", "-qIabc"], {"id": ["abc"]}),
    (["-qRexample.org"], {"recipient": ["example.org"]}),
    (["-qSbob", "-qRcarol"], {"sender": ["bob"], "recipient": ["carol"]}),
    (["-q!Sbob"], {"sender": ["bob"], "not": ["sender"]}),
    (["-qQ"], {"held": True}), (["-q!Q"], {"held": False}), (["alice", "-f", "-qIx"], {}), (["--", "-qIx"], {}),
    (["-d", "-qIabc"], {"id": ["abc"]}), (["-d8.20", "-X", "/tmp/log", "-qIabc"], {"id": ["abc"]}),
])
def test_options_become_a_filter(paths: Paths, out: Any, args: list[str], wanted: dict[str, object]) -> None:
    with Control(paths, listing()) as control:
        assert out(paths, *args)[0] == 0
    assert control.requests == [{"do": "list", "filter": wanted}]


@pytest.mark.parametrize(("args", "words"), [
    (["-z"], "mailq: invalid option -- 'z'\n"), (["-vz"], "mailq: invalid option -- 'z'\n"),
    (["-bs"], "mailq: cannot do -bs here\n"), (["-qL"], "mailq: cannot select by -qL\n"),
    (["-qS"], "mailq: cannot select by -qS\n"),
    (["-\x1b"], "mailq: invalid option -- '\\x1b'\n"),
])
def test_options_that_make_no_sense(paths: Paths, out: Any, args: list[str], words: str) -> None:
    assert out(paths, *args) == (64, "", words)


def test_the_two_queues_of_sendmail(paths: Paths, out: Any) -> None:
    with Control(paths, listing(item(where="drop", recipients=[]), item("0WkDdmTe001001"), item("0WkDdmTe001002"))):
        client, main = out(paths, "-Ac")[1], out(paths, "-Am")[1]
    assert client.startswith("\t\t/var/spool/pysendmail/drop (1 request)\n")
    assert client.endswith(FOOTER + "1\n")
    assert main.startswith("\t\t/var/spool/pysendmail/queue (2 requests)\n")
    assert main.endswith(FOOTER + "2\n")


def test_quarantined_messages_are_found_by_reason(paths: Paths, out: Any) -> None:
    held = [item(where="hold", hold="virus"), item("0WkDdmTe001001", where="hold", hold="by hand")]
    with Control(paths, listing(*held)):
        _, printed, _ = out(paths, "-qQvir")
    assert printed.endswith(FOOTER + "1\n")
    assert "QUARANTINE: virus\n" in printed


# ---- without an answer


@pytest.fixture
def _stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are somebody who may not read the spool."""
    monkeypatch.setattr(ask, "may_read", lambda paths: False)


@pytest.mark.usefixtures("_stranger")
def test_a_stranger_gets_one_line_when_the_daemon_is_down(paths: Paths, out: Any) -> None:
    assert out(paths) == (75, "", "mailq: pysendmaild is not running\n")


@pytest.mark.usefixtures("_stranger")
def test_a_socket_that_nobody_listens_on_is_a_daemon_that_is_down(paths: Paths, out: Any) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(paths.control)
    assert out(paths) == (75, "", "mailq: pysendmaild is not running\n")


@pytest.mark.parametrize(("reply", "code", "words"), [
    (b"", 75, "pysendmaild broke off in the middle of its answer"),
    (json.dumps({"item": item()}).encode(), 75, "pysendmaild broke off in the middle of its answer"),
    (b'{"error": "too many\\u001b[1m questions", "code": 75}\n', 75, "too many\\x1b[1m questions"),
    (b'{"error": "no", "code": 0}\n', 69, "no"),
    (b'{"error": "no", "code": "77"}\n', 69, "no"),
    (b"not json\n", 76, "pysendmaild said something that makes no sense"),
    (b"[]\n", 76, "pysendmaild said something that makes no sense"),
    (b'{"item": 5}\n', 76, "pysendmaild said something that makes no sense"),
    (b'{"end": []}\n', 76, "pysendmaild said something that makes no sense"),
    (b"\xff\n", 76, "pysendmaild said something that makes no sense"),
])
def test_an_answer_that_is_none(paths: Paths, out: Any, reply: bytes, code: int, words: str) -> None:
    with Control(paths, reply):
        assert out(paths) == (code, "", f"mailq: {words}\n")


def test_a_daemon_that_refuses_before_it_listens(paths: Paths, out: Any) -> None:
    with Control(paths, b'{"error": "too many questions at once", "code": 75}\n', deaf=True):
        assert out(paths) == (75, "", "mailq: too many questions at once\n")


@pytest.mark.usefixtures("_stranger")
def test_a_daemon_that_says_nothing_is_given_up(paths: Paths, out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "TIMEOUT", 0.05)
    with Control(paths, b"", hangs=True):
        assert out(paths) == (75, "", "mailq: pysendmaild does not answer\n")


def test_of_a_daemon_that_hangs_the_owner_of_the_spool_sees_the_files(
        paths: Paths, out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queued(paths, "0WkDdmTe001000", ["bob@example.net"])
    monkeypatch.setattr(ask, "PATIENCE", 0.05)
    with Control(paths, b"", hangs=True):
        code, printed, errors = out(paths)
    assert (code, errors) == (0, "pysendmaild does not answer; this is what the files say\n")
    assert "<bob@example.net>" in printed


@pytest.mark.parametrize("gives_up", [True, False])
def test_where_as_many_wait_as_may_one_waits_for_a_place(
        paths: Paths, out: Any, monkeypatch: pytest.MonkeyPatch, gives_up: bool) -> None:
    """Clients that have given up go on taking places at a socket whose daemon hangs."""
    queued(paths, "0WkDdmTe001000", ["bob@example.net"])
    monkeypatch.setattr(ask, "PATIENCE", 0.0 if gives_up else 10.0)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other, ExitStack() as accepted:
        server.bind(paths.control)
        server.listen(0)
        other.connect(paths.control)

        def wait(_seconds: float) -> None:
            accepted.enter_context(server.accept()[0])
            server.close()  # whoever comes too late is refused, and reads the files
        monkeypatch.setattr(time, "sleep", wait)
        code, printed, errors = out(paths)
    assert code == 0
    assert errors == ("pysendmaild does not answer; this is what the files say\n" if gives_up else "")
    assert "<bob@example.net>" in printed


def test_a_line_without_end_is_given_up(paths: Paths, out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "MAX_LINE", 1000)
    with Control(paths, b"x" * 100_000, hangs=True):
        assert out(paths)[0] == 76


def test_lines_may_come_in_any_pieces(paths: Paths, out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Control(paths, listing(item(), item("0WkDdmTe001001"))):
        whole = out(paths)
        monkeypatch.setattr(ask, "CHUNK", 7)
        assert out(paths) == whole
    assert whole[1].endswith(FOOTER + "2\n")


def test_a_reader_that_goes_away_is_no_error(paths: Paths) -> None:
    code = ("from pysendmail.cli.sendmail import main; from pysendmail.paths import Paths; "
            f"main(['mailq'], Paths({paths.root!r}))")
    with Control(paths, listing(*[item(f"0WkDdmTe{n:06d}") for n in range(2000)])):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"(2000 requests)\n")
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()


# ---- from the spool


def queued(paths: Paths, queue_id: str, recipients: list[str], now: float = 1_750_000_000.0) -> None:
    envelope = Envelope(queue_id, "alice@example.org", tuple(map(Recipient, recipients)), now,
                        Origin("command", 1000, "alice"))
    Queue(paths, lambda: now).commit(envelope, [b"Subject: x\n\nhello\n"])


def test_with_the_daemon_down_whoever_owns_the_spool_reads_it(paths: Paths, out: Any) -> None:
    queued(paths, "0WkDdmTe001000", ["bob@example.com"])
    queued(paths, "0WkDdmTe001001", ["carol@example.com"])
    Path(f"{paths.drop_new}/1234.abc").write_bytes(b"\x1b[2J evil\n")
    Path(f"{paths.smtp_new}/0WkDdmTe004000").write_bytes(b"\x1b[2J evil\n")
    Path(f"{paths.queue}/new/0WkDdmTe001002").write_bytes(b"torn")
    Path(f"{paths.queue}/new/.nfs0001").write_bytes(b"foreign")
    code, printed, errors = out(paths)
    assert (code, errors) == (0, "")
    assert printed.startswith("\t\t/var/spool/pysendmail/queue (5 requests)\n")
    assert printed.endswith(FOOTER + "5\n")
    assert re.search(r"^0WkDdmTe004000 +10 .* \(by SMTP\)$", printed, re.MULTILINE)
    assert "0WkDdmTe001000       18 Sun Jun 15 15:06 <alice@example.org>\n\t\t\t\t\t <bob@example.com>\n" in printed
    assert "(damaged: " in printed
    assert "evil" not in printed
    assert "0WkDdmTe001001 " in out(paths, "-qRcarol")[1]
    assert out(paths, "-qRcarol")[1].endswith(FOOTER + "1\n")
    assert out(paths, "-qRnobody")[1] == "/var/spool/pysendmail/queue is empty\n\t\tTotal requests: 0\n"


@pytest.mark.parametrize("shown", [(), ("0WkDdmTe001001",)], ids=["nothing of one's own", "one of one's own"])
def test_a_monitor_counts_what_it_may_not_see(paths: Paths, out: Any, shown: tuple[str, ...]) -> None:
    with Control(paths, b'{"begin": {"count": 3}}\n' + listing(*map(item, shown))):
        code, printed, _ = out(paths)
    assert code == 0
    assert check_mailq(printed) == 3
    assert printed.startswith("\t\t/var/spool/pysendmail/queue (3 requests)\n")
    assert printed.count("<alice@") == len(shown)


def test_an_empty_spool_is_an_empty_queue(paths: Paths, out: Any) -> None:
    assert out(paths) == (0, "/var/spool/pysendmail/queue is empty\n\t\tTotal requests: 0\n", "")


def test_the_first_line_comes_before_the_messages_are_read(paths: Paths) -> None:
    """With 100,000 of them that makes the difference."""
    for number in range(3):
        queued(paths, f"0WkDdmTe00100{number}", ["bob@example.com"])
    answer = ask.ask(paths, {"do": "list", "filter": {}})
    assert answer.count == 3
    assert [one["id"] for one in answer] == ["0WkDdmTe001000", "0WkDdmTe001001", "0WkDdmTe001002"]


def test_a_spool_that_is_not_there_is_one_line(paths: Paths, out: Any) -> None:
    os.rename(paths.queue, paths.queue + "-away")
    code, printed, errors = out(paths)
    assert (code, printed) == (75, "")
    assert errors.count("\n") == 1


@pytest.mark.root
def test_root_reads_the_spool_as_its_owner_and_stays_that(open_paths: Paths) -> None:
    """Strangers wrote what is in there: a crafted file must not meet root."""
    queued(open_paths, "0WkDdmTe001000", ["bob@example.com"])
    for directory, _, files in os.walk(open_paths.spool):
        for path in (directory, *(f"{directory}/{name}" for name in files)):
            os.chown(path, 65534, 65533)
    code = ("import os, sys\nfrom pysendmail.cli.mailq import main\nfrom pysendmail.paths import Paths\n"
            f"code = main([], Paths({open_paths.root!r}))\nprint(code, os.getresuid(), os.getresgid(), os.getgroups())")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30,
                          check=True)
    *listed, ids = done.stdout.strip().split("\n")
    assert "0WkDdmTe001000" in listed[2]
    assert ids == "0 (65534, 65534, 65534) (65533, 65533, 65533) []"


# ---- filters


MESSAGES = [
    item("0WkDdmTe001000", sender="Alice@Example.org", arrived=1000.0, reason="Connection refused",
         recipients=[recipient("bob@One.example"), recipient("gone@three.example", "delivered")]),
    item("0WkDdmTe001001", sender="", arrived=2000.0, where="hold", hold="by hand",
         recipients=[recipient("carol@two.example")]),
    item("0WkDdmTe001002", sender="dave@x", arrived=3000.0, recipients=[recipient("gone@three.example", "failed")]),
    item("0WkDdmTe001003", sender="eve@x", arrived=4000.0, recipients=[recipient("eve@m\xfcnchen.example")]),
    item("0WkDdmTe001004", sender="", arrived=5000.0, where="drop", recipients=[]),
]


@pytest.mark.parametrize(("asked", "expected"), [
    ({}, "01234"), ({"id": "001001"}, "1"), ({"id": ["001001", "0WkDdmTe001002"]}, "12"), ({"id": []}, ""),
    ({"sender": "alice@"}, "0"), ({"sender": ["alice", "dave"]}, "02"), ({"recipient": "TWO"}, "1"),
    ({"recipient": "three"}, "2"), ({"domain": "one.example"}, "0"), ({"domain": "example"}, ""),
    ({"domain": ["two.example", "One.Example"]}, "01"), ({"reason": "refused"}, "0"), ({"hold": "hand"}, "1"),
    ({"held": True}, "1"), ({"held": False}, "0234"), ({"older": 1500}, "01"), ({"younger": 1500}, "234"),
    ({"older": 2e3}, "0"),
    ({"older": 500, "younger": 1500}, "2"), ({"sender": "alice", "recipient": "carol"}, ""),
    ({"sender": "<>"}, "1"), ({"sender": ["<>", "dave"]}, "12"), ({"sender": "<>", "not": ["sender"]}, "0234"),
    ({"domain": "@One.Example."}, "0"), ({"domain": "xn--mnchen-3ya.example"}, "3"),
    ({"domain": "MÜNCHEN.example"}, "3"), ({"domain": "\udcff.example"}, ""),
    ({"sender": "alice", "not": ["sender"]}, "1234"), ({"sender": "alice", "held": True, "not": ["held"]}, "0"),
])
def test_what_a_filter_chooses(asked: dict[str, Any], expected: str) -> None:
    fits = selection.predicate(asked, 3500.0)
    assert "".join(one["id"][-1] for one in MESSAGES if fits(one)) == expected


@pytest.mark.parametrize("asked", [
    None, [], "x", {"x": 1}, {"sender": ""}, {"id": ["x", ""]},
    {"sender": 1}, {"sender": [1]}, {"id": {}}, {"held": 1}, {"older": "1d"}, {"older": True},
    {"not": "sender"}, {"not": [1]}, {"id": ["x"] * 10_001}])
def test_what_is_no_filter(asked: object) -> None:
    with pytest.raises(ValueError):
        selection.predicate(asked, 0.0)


def test_outneeds_the_standard_library_only(paths: Paths) -> None:
    """It runs as /usr/sbin/sendmail does, where nothing else can be found."""
    code = ("import sys\nsys.path.insert(0, '.')\n"
            "from pysendmail.cli.mailq import main\nfrom pysendmail.paths import Paths\n"
            f"code = main([], Paths({paths.root!r}))\n"
            "print(code, [name for name in ('click', 'asyncio', 'email', 'ssl') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-IS", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30,
                          check=True)
    assert done.stdout.strip().split("\n")[-1] == "0 []"


def test_the_daemon_says_how_many_there_are_before_it_lists_them(
        out: Any, paths: Paths) -> None:
    with Control(paths, b'{"begin": {"count": 2}}\n' + listing(item(), item("0WkDdmTe001001"))):
        code, printed, _ = out(paths)
    assert code == 0
    assert printed.startswith("\t\t/var/spool/pysendmail/queue (2 requests)\n")
    assert printed.endswith("\t\tTotal requests: 2\n")
