"""The tools for the queue that work without the daemon, and what they print."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pysendmail.cli import admin, admin_shape, admin_trace, ask, hoststat, mailq, purgestat, quarantine, queuerun
from pysendmail.daemon import offline
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import deferred
from pysendmail.mail.target import RELAY, Target
from pysendmail.paths import Paths
from pysendmail.spool import listing, queue_id
from pysendmail.spool.journal import Event
from pysendmail.spool.queue import Queue
from tests.tools.control import Control, item
from tests.tools.control import listing as answer

ROOT = Path(__file__).resolve().parents[2]
ID = "0WkDdmTe000"
TEXT = b"Subject: x\n\nFrom here on\ntext\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(paths: Paths, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*args: str) -> tuple[int, str, str]:
        code = admin.main(list(args), paths)
        printed = capfdbinary.readouterr()
        return code, printed.out.decode(), printed.err.decode()
    return call


@pytest.fixture
def queue(paths: Paths) -> Queue:
    return Queue(paths, time.time)


def waiting(queue: Queue, number: int = 0, *, age: float = 3600.0, address: str = "user@example.net") -> str:
    """A message that was put off and is due in an hour; its id."""
    now = time.time()
    envelope = Envelope(f"{ID}{number:03d}", "alice@example.org", (Recipient(address),), now - age,
                        Origin("command", 1000, "alice"))
    message = queue.commit(envelope, [TEXT])
    events = [Event("expanded", now, {"r": 0, "t": [[0, Target(RELAY, address).to_json()]]}),
              Event("deferred", now, {"n": [0], "o": deferred("4.4.1", "is down").to_json()}),
              Event("tried", now, {"attempts": 1})]
    for event in events:
        message.state.apply(event)
    queue.write_down(message, events)
    queue.reschedule(message, now + 3600, 1, "9f86d081")
    return message.id


# ---- changes without the daemon


def test_hold_and_release_in_the_files(run: Run, queue: Queue) -> None:
    one, other = waiting(queue), waiting(queue, 1)
    assert run("queue", "hold", one) == (0, f"{one}: held\n", "")
    entry = queue.find(one)
    assert entry is not None
    assert (entry.place, listing.peek(queue, entry).state.held) == ("hold", "held by the administrator")
    assert run("queue", "release", "--held") == (0, f"{one}: released\n", "")
    entry, untouched = queue.find(one), queue.find(other)
    assert entry is not None
    assert untouched is not None
    assert (entry.place, entry.due <= time.time(), listing.peek(queue, entry).state.held) == ("cur", True, "")
    assert untouched.due > time.time()


def test_delete_leaves_nothing_of_it_and_all_of_the_others(run: Run, queue: Queue, paths: Paths) -> None:
    one, other = waiting(queue), waiting(queue, 1)
    assert run("queue", "delete", one, "--dry-run")[:2] == (0, f"{one}: would be deleted\n")
    assert queue.find(one)
    assert run("queue", "delete", one) == (0, f"{one}: deleted\n", "")
    assert [entry.id for entry in queue.entries()] == [other]
    assert os.listdir(paths.journal) == [other]


def test_requeue_finds_new_targets(run: Run, queue: Queue, paths: Paths) -> None:
    with open(paths.settings, "w", encoding="ascii") as file:
        file.write('hostname = "host.example"\nlocal_domains = ["example.net"]\n')
    one = waiting(queue, address="nobody-of-that-name@example.net")
    assert run("queue", "requeue", one) == (0, f"{one}: requeued\n", "")
    entry = queue.find(one)
    assert entry is not None
    assert entry.due <= time.time()
    kinds = [progress.target.kind for _, progress in listing.peek(queue, entry).state.open_targets()]
    assert kinds == ["known"]  # it was for another host before


def test_a_runner_that_has_the_spool_is_left_alone(
        run: Run, queue: Queue, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    one = waiting(queue)
    monkeypatch.setattr(offline, "LOCK_WITHIN", 0.0)
    with FileLock(paths.lock):
        code, printed, errors = run("queue", "delete", one)
    assert (code, printed) == (75, "")
    assert "another change is at work" in errors
    assert queue.find(one)


@pytest.mark.parametrize(("settings", "lifetime"), [("lifetime = 7200", 7200), ("lifetime = 'no'", 432_000)])
def test_the_settings_say_when_mail_expires(
        run: Run, queue: Queue, paths: Paths, settings: str, lifetime: int) -> None:
    with open(paths.settings, "w", encoding="ascii") as file:
        file.write(f"[queue]\n{settings}\n")
    waiting(queue)
    listed, = json.loads(run("queue", "list", "--json")[1])
    assert round(listed["expires"] - listed["arrived"]) == lifetime


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_leaves_no_change_half_done(queue: Queue, paths: Paths, form: list[str]) -> None:
    """pysendmail queue hold --all | head"""
    known = [waiting(queue, number) for number in range(3)]
    damaged = known.pop()
    entry = queue.find(damaged)
    assert entry is not None
    with open(f"{paths.queue}/cur/{entry.name}", "wb") as file:
        file.write(b"rubbish")
    program = (f"from pysendmail.cli.admin import main; from pysendmail.paths import Paths; import sys\n"
               f"sys.exit(main(['queue', 'hold', '--all', *sys.argv[1:]], Paths({paths.root!r})))")
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as nobody:
        done = subprocess.run([sys.executable, "-c", program, *form], cwd=ROOT, stdout=nobody, stderr=nobody,
                              timeout=30, check=False)
    assert done.returncode == 75, "the damaged one"
    assert {one.place for one in queue.entries() if one.id in known} == {"hold"}


def test_what_a_crash_left_half_taken_in_is_refused(run: Run, queue: Queue, paths: Paths) -> None:
    one = waiting(queue)
    with open(f"{paths.intake}/{one}", "wb"):
        pass
    code, printed, errors = run("queue", "delete", one)
    assert (code, printed) == (75, "")
    assert "needs the daemon" in errors
    assert queue.find(one)


def test_a_damaged_message_is_an_answer_of_its_own(run: Run, queue: Queue, paths: Paths) -> None:
    one, other = waiting(queue), waiting(queue, 1)
    entry = queue.find(one)
    assert entry is not None
    with open(f"{paths.queue}/cur/{entry.name}", "r+b") as file:
        file.write(b"rubbish")
    code, printed, errors = run("queue", "hold", "--all")
    assert (code, printed) == (75, f"{other}: held\n")
    assert errors == f"{one}: no envelope of version 1\n"


def test_a_damaged_message_is_listed_with_the_time_in_its_id(run: Run, queue: Queue, paths: Paths) -> None:
    one = waiting(queue)
    entry = queue.find(one)
    assert entry is not None
    made = int(time.time()) - 7200
    name = queue_id.encode_ticks(made * queue_id.TICKS_PER_SECOND) + "000000"
    with open(f"{paths.queue}/cur/{name},T=1,A=1,U=1000:2,", "wb") as file:
        file.write(b"rubbish")
    listed = {item["id"]: item for item in json.loads(run("queue", "list", "--json")[1])}
    assert listed[name]["arrived"] == made
    assert "  damaged      2 h          0  (uid 1000)" in run("queue", "list")[1]
    assert mailq.sender(listed[name]) == "(uid 1000)"


# ---- export


def test_export_as_mbox(run: Run, queue: Queue) -> None:
    waiting(queue)
    waiting(queue, 1, address="other@example.net")
    code, printed, errors = run("queue", "export")
    assert (code, errors) == (0, "")
    first, second = printed.split("\n\nFrom alice@example.org ")
    assert first.startswith("From alice@example.org ")
    assert first.partition("\n")[2] == ("Return-Path: <alice@example.org>\nX-Envelope-To: <user@example.net>\n"
                                        "Subject: x\n\n>From here on\ntext")
    assert "X-Envelope-To: <other@example.net>\n" in second


def test_export_of_one_message_as_it_is(run: Run, queue: Queue) -> None:
    one = waiting(queue)
    waiting(queue, 1)
    code, printed, _ = run("queue", "export", "--eml", one)
    assert (code, printed.partition("X-Envelope-To: <user@example.net>\n")[2]) == (0, TEXT.decode())
    assert run("queue", "export", "--eml")[0] == 64
    assert run("queue", "export", f"{ID}999")[::2] == (66, "no message in the queue fits\n")


def test_export_of_what_leaves_meanwhile(run: Run, queue: Queue, paths: Paths) -> None:
    one = waiting(queue)
    with Control(paths, answer(item(one), item(f"{ID}777"))):
        code, printed, errors = run("queue", "export")
    assert (code, printed.count("Return-Path"), errors) == (75, 1, f"{ID}777: has left the queue\n")


def test_a_stranger_exports_nothing(run: Run, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "may_read", lambda paths: False)
    with Control(paths, answer(item())):
        assert run("queue", "export") == (77, "", "pysendmail: only root may export messages\n")


# ---- shape


@pytest.mark.parametrize(("minutes", "column"), [(0, 0), (4.9, 0), (5.1, 1), (79, 4), (1279, 8), (1281, 9), (9999, 9)])
def test_ages_have_their_columns(minutes: float, column: int) -> None:
    rows = admin_shape.count([item(arrived=1e9 - minutes * 60)], 1e9, by_sender=False)
    assert rows == {"example.com": [int(k == column) for k in range(10)]}


def test_shape_counts_recipients_or_senders(run: Run, queue: Queue) -> None:
    waiting(queue)
    waiting(queue, 1, address="x@EXAMPLE.net", age=30.0)
    waiting(queue, 2, address="local")
    code, printed, _ = run("queue", "shape")
    lines = [line.split() for line in printed.splitlines()]
    assert code == 0
    assert lines[0][-11:] == ["T", "5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"]
    assert lines[1:] == [["TOTAL", "3", "1", "0", "0", "0", "2", *"00000"],
                         ["example.net", "2", "1", "0", "0", "0", "1", *"00000"],
                         ["(local)", "1", "0", "0", "0", "0", "1", *"00000"]]
    found = json.loads(run("queue", "shape", "--by-sender", "--json")[1])
    assert found["domains"] == [{"domain": "example.org", "total": 3, "counts": [1, 0, 0, 0, 2, 0, 0, 0, 0, 0]}]
    assert found["minutes"][-1] == 1280


def test_shape_of_an_empty_queue(run: Run, queue: Queue) -> None:
    assert run("queue", "shape")[1].splitlines()[1].split() == ["TOTAL", *"00000000000"]


# ---- other hosts


def test_hoststat_has_sendmails_columns(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    down = {"destination": "mx.example.com", "state": "down", "reason": "connection refused", "status": "4.4.1",
            "failures": 2, "heard": 64.2, "next_try": 1e9}
    busy = {"destination": "example.net", "state": "busy", "waiting": 120, "sent": 24, "connections": 1, "silent": 2.0}
    with Control(paths, answer(down, busy)) as control:
        assert hoststat.main([], paths) == 0
        assert hoststat.main(["MX.example"], paths) == 0
    heading, first, second, again, only = capsys.readouterr().out.splitlines()
    assert heading == again == hoststat.HEADING
    assert first == only == "mx.example.com                              00:01:04 4.4.1 connection refused"
    assert second == ("example.net                                 00:00:02 busy: 1 connection, "
                      "24 messages under way, 120 waiting")
    assert control.requests == [{"do": "hosts"}] * 2


def test_purgestat_asks_to_forget(paths: Paths) -> None:
    with Control(paths, b'{"end": {}}\n') as control:
        assert purgestat.main([], paths) == 0
    assert control.requests == [{"do": "forget"}]


@pytest.mark.parametrize("program", [hoststat.main, purgestat.main])
def test_without_the_daemon_nothing_is_known(
        program: Any, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert program([], paths) == 75
    assert "pysendmaild is not running" in capsys.readouterr().err


# ---- sendmail -Q


@pytest.mark.parametrize(("args", "verb", "wanted"), [
    (["-Qvirus", "-qRexample.org"], "hold", {"recipient": ["example.org"], "held": False}),
    (["-q", "-Qa reason"], "hold", {"held": False}),
    (["-Qanother", "-qQvirus"], "hold", {"hold": ["virus"], "held": True}),
    (["-Q", "-qQvirus"], "release", {"hold": ["virus"], "held": True}),
    (["-Q", "-qQ"], "release", {"held": True}),
    (["-Q", "-q!Salice"], "release", {"sender": ["alice"], "held": True, "not": ["sender"]}),
    (["-Q", "-q!Qvirus"], "release", {"hold": ["virus"], "held": True, "not": ["hold"]}),
    (["-Qx", "-q!Q"], "hold", {"held": False}),
])
def test_quarantine_asks_for(paths: Paths, args: list[str], verb: str, wanted: dict[str, Any]) -> None:
    why = next(word[2:] for word in args if word.startswith("-Q"))
    with Control(paths, answer(item(result="ok"))) as control:
        assert quarantine.main(args, paths) == 0
    assert control.requests == [{"do": verb, "filter": wanted, "why": why}]


@pytest.mark.parametrize("args", [["-Qvirus"], ["-Q"], ["-Q", "-qLx"], ["-Qx", "-q!G"], ["-Qx", "-qS"], ["-Q", "-q!R"],
                                  ["-Qx", "-qx"]])
def test_quarantine_never_guesses(paths: Paths, args: list[str]) -> None:
    assert quarantine.main(args, paths) == 64


def test_quarantine_says_what_could_not_be_changed(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    with Control(paths, answer(item(result="is being delivered at this moment"))):
        assert quarantine.main(["-Q", "-q"], paths) == 75
    assert capsys.readouterr().err == "sendmail: 0WkDdmTe001000: is being delivered at this moment\n"


@pytest.mark.parametrize("value", ["Q", "Qvirus", "!Qvirus"])
def test_a_queue_run_does_not_try_what_is_on_hold(
        paths: Paths, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert queuerun.main([value], paths) == 64
    assert capsys.readouterr().err == "sendmail: messages on hold are not tried; -Q -qQ lets them go\n"


def test_a_queue_run_does_not_ask_for_a_list(paths: Paths) -> None:
    with Control(paths, b'{"end": {"count": 3}}\n') as control:
        assert queuerun.main(["!Q", "Ix"], paths) == 0
    assert control.requests == [{"do": "flush", "filter": {"id": ["x"], "held": False}, "quiet": True}]


# ---- trace

LOG = """\
2026-11-24T07:41:02+0000 host sendmail[9]: 0WkDdmTe000001: from=<a@x>, size=7, class=0, nrcpts=1, msgid=<m@x>, \
relay=alice@localhost
2026-11-24T07:41:02+0000 host sendmail[9]: 0WkDdmTe000002: from=<b@x>, size=7, class=0, nrcpts=2, msgid=<n@x>, \
relay=[192.0.2.1]
Nov  4 07:41:03 host sendmail[9]: 0WkDdmTe000001: to=<c@y>, ctladdr=alice (1000), delay=00:00:01, xdelay=00:00:01, \
mailer=esmtp, pri=7, relay=mx.y [192.0.2.9], dsn=4.4.1, stat=Deferred: refused
2026-11-24T07:41:04+0000 host sendmail[9]: 0WkDdmTe000001: to=<c@y>, delay=00:00:02, xdelay=00:00:00, mailer=esmtp, \
pri=7, relay=mx.y [192.0.2.9], dsn=5.1.1, stat=no such user, msgid=<n@x>, x
2026-11-24T07:41:04+0000 host sendmail[9]: 0WkDdmTe000001: AWkDdmTe000001: DSN: no such user
2026-11-24T07:41:05+0000 host sendmail[9]: AWkDdmTe000001: to=<a@x>, delay=00:00:00, xdelay=00:00:00, mailer=local, \
pri=7, relay=local, dsn=2.0.0, stat=Sent (delivered to mailbox)
something else
""".splitlines()
STORY = ["accepted from <a@x> by alice@localhost: 7 bytes, 1 recipient",
         "put off for <c@y> (mx.y [192.0.2.9]): refused (4.4.1)",
         "failed for <c@y> (mx.y [192.0.2.9]): no such user, msgid=<n@x>, x (5.1.1)",
         "reported to its sender with message AWkDdmTe000001: DSN: no such user",
         "delivered to <a@x> (local) 00:00:00 after it came: Sent (delivered to mailbox)"]


@pytest.mark.parametrize(("wanted", "ids"), [("0WkDdmTe000001", {"0WkDdmTe000001"}), ("<m@x>", set()), ("m@x", set())])
def test_the_log_is_told_in_words(wanted: str, ids: set[str]) -> None:
    lines = list(admin_trace.select(LOG, wanted, ids))
    assert [admin_trace.tell(line.words) for line in lines] == STORY
    assert ids == {"0WkDdmTe000001", "AWkDdmTe000001"}
    assert lines[1].when == "Nov  4 07:41:03"


def test_a_message_id_that_a_stranger_has_put_elsewhere_is_no_message_id() -> None:
    lines = list(admin_trace.select(LOG, "n@x", set()))
    assert [line.queue_id for line in lines] == ["0WkDdmTe000002"]


def test_trace_tells_what_the_queue_knows(run: Run, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_trace, "_log", lambda sources: iter(()))
    one = waiting(queue)
    code, printed, errors = run("trace", one)
    assert code == 0
    assert f"{one} is in the queue since " in printed
    assert "tried 1 time\n  <user@example.net> deferred: is down\n  it is tried again at " in printed
    assert errors.startswith("read: ")
    code, printed, errors = run("trace", f"{ID}999")
    assert (code, printed, errors.split("\n")[0]) == (66, "", "nothing is known of it")
