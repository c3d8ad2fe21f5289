"""The log: what its readers parse, what strangers cannot do to it, and that it never stops or harms the mail."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.events import (
    INFO,
    MAX_FIELD,
    MAX_LINE,
    NOTICE,
    RECONNECT_AFTER,
    ClientEvents,
    Events,
    Syslog,
    duration,
    shown,
)
from pysendmail.mail.outcome import Outcome, deferred, delivered, failed
from tests.tools import elsewhere, processes

MakeLog = Callable[..., Syslog]
ID = "566jOp9s000000"
# What logwatch's sendmail script takes apart.
DELIVERY = re.compile(r"^(\w{14}): to=(<[^>]*>), (?:ctladdr=[^,]+, )?delay=([\d+:]+), xdelay=([\d+:]+), "
                      r"mailer=([^,]+), pri=(\d+), (?:relay=([^,]+), )?dsn=(\d\.\d+\.\d+), stat=(.*)$")


class Said:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def __call__(self, priority: int, text: str) -> None:
        self.lines.append((priority, text))

    @property
    def last(self) -> str:
        return self.lines[-1][1]


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def events(said: Said) -> Events:
    return Events(said)


@pytest.mark.parametrize(("seconds", "words"), [
    (0, "00:00:00"), (7.9, "00:00:07"), (3661, "01:01:01"), (86_399, "23:59:59"), (86_400, "1+00:00:00"),
    (183_845, "2+03:04:05"), (-5, "00:00:00"),
])
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("text", "safe"), [
    ("alice@example.org", "alice@example.org"),
    ("mit Umlaut ü", "mit Umlaut ü"),
    ("a\r\nb: stat=Sent", "a\\x0d\\x0ab: stat=Sent"),
    ("\x1b[31mred", "\\x1b[31mred"),
    ("\0", "\\x00"),
    ("\udcff", "\\xff"),
    ("%s %n {0} ${HOME}", "%s %n {0} ${HOME}"),
    ("\u202eevil", "\\x202eevil"),
    ("x" * 300, "x" * MAX_FIELD + "..."),
])
def test_outside_text_is_one_printable_line(text: str, safe: str) -> None:
    assert shown(text) == safe


@pytest.mark.parametrize(("outcome", "stat", "priority"), [
    (delivered("delivered to mailbox"), "Sent (delivered to mailbox)", INFO),
    (deferred("4.2.0", "mailbox is busy"), "Deferred: mailbox is busy", INFO),
    (failed("5.1.1", "unknown user: x"), "User unknown", NOTICE),
    (failed("5.7.1", "not here, stat=Sent"), "not here, stat=Sent", NOTICE),
])
def test_delivery_line_is_sendmails(events: Events, said: Said, outcome: Outcome, stat: str, priority: int) -> None:
    events.tried(ID, "bob@host.example", outcome, controller="alice (1000)", delay=3, took=1, mailer="local", size=300)
    found = DELIVERY.match(said.last)
    assert found, said.last
    assert found.groups() == (ID, "<bob@host.example>", "00:00:03", "00:00:01", "local", "300", "local", outcome.status,
                              stat)
    assert said.lines[-1][0] == priority


def test_sender_line_is_sendmails(events: Events, said: Said) -> None:
    events.accepted(ID, "", 612, 2, "<a@b>", "alice@localhost", body="8bitmime", protocol="SMTP", tag="backup")
    assert said.last == (f"{ID}: from=<>, size=612, class=0, nrcpts=2, msgid=<a@b>, bodytype=8BITMIME, proto=SMTP, "
                         "tag=backup, relay=alice@localhost")


def test_no_verb_lets_a_line_break_through(events: Events, said: Said) -> None:
    evil = "x\nMay  1 00:00:00 host sendmail[1]: fake"
    outcome = Outcome("4.3.0", evil, remote_mta=evil)
    events.accepted(ID, evil, 1, 1, evil, evil)
    events.tried(ID, evil, outcome, controller=evil, delay=0, took=0, mailer="local", relay=evil)
    events.reported(ID, ID, "DSN", evil)
    events.forwarded(ID, evil, 1)
    events.refused(evil, evil)
    events.noted(ID, evil)
    events.warned(evil)
    events.shook_hands(evil)
    events.trouble(evil)
    assert len(said.lines) == 9
    assert not any("\n" in text for _, text in said.lines)


# What fail2ban's sendmail-auth and sendmail-reject look for, with its idea of a host.
HOST = r"(?:IPv6:)?([0-9A-Fa-f:.]+)"
LOGIN = re.compile(rf"^AUTH failure \([^)]+\):(?: [^:]+:)? (?:authentication failure|user not found): [^,]*, "
                   rf"(?:user=(?:\S+|.*?), )?relay=(?:\S+ )?\[{HOST}\](?: \(may be forged\))?$")
RELAYING = re.compile(rf"^{ID}: ruleset=check_rcpt, arg1=(?P<email><\S+@\S+>), relay=(?:\S+ )?\[{HOST}\], reject=550 "
                      r"5\.7\.1 (?P=email)\.\.\. Relaying denied\. Proper authentication required\.$")
NAMES = st.text(max_size=1024) | st.builds(
    lambda filler, number, end: filler * number + end,
    st.sampled_from(("x", " ", "\u00fc", "\U0001f600", "\udcff")), st.integers(0, 1024),
    st.sampled_from(("x, relay=[192.0.2.66]", " relay=y [192.0.2.66]", "> [192.0.2.66]")))


@given(name=NAMES)
def test_no_name_of_a_stranger_has_another_host_banned(name: str) -> None:
    """Neither by what it says nor by its length, at which a line is cut."""
    said = Said()
    ClientEvents(said).login_failed("mail.example.org [198.51.100.7]", name, "LOGIN")
    ClientEvents(said).rejected(ID, "check_rcpt", "x@y" + name, "[IPv6:2001:db8::7]",
                                "550 5.7.1 Relaying denied. Proper authentication required.")
    assert all(len(line.encode()) < MAX_LINE - len("<21>Jan 30 00:00:00 sendmail[4194304]: ") for _, line in said.lines)
    login, relaying = LOGIN.match(said.lines[0][1]), RELAYING.match(said.lines[1][1])
    assert (login and login[1]) == "198.51.100.7", said.lines
    assert (relaying and relaying[2]) == "2001:db8::7", said.lines


def test_counters_count(events: Events) -> None:
    events.accepted(ID, "", 1, 1, "", "")
    for outcome in (delivered("x"), delivered("x"), deferred("4.0.0", "x"), failed("5.0.0", "x")):
        events.tried(ID, "a", outcome, controller="", delay=0, took=0, mailer="local")
    assert events.counts == {"accepted": 1, "delivered": 2, "deferred": 1, "failed": 1}


# ---- syslog


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    yield from listening(tmp_path)


@pytest.fixture
def make_log(tmp_path: Path) -> Iterator[Callable[..., Syslog]]:
    """Makes logs to tmp_path/log, and closes them."""
    made: list[Syslog] = []

    def make(**more: Any) -> Syslog:
        made.append(Syslog(path=str(tmp_path / "log"), **more))
        return made[-1]

    yield make
    for log in made:
        if log._socket is not None:
            log._socket.close()


def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.setblocking(False)
        yield log


def lines(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_syslog_line(make_log: MakeLog, listener: socket.socket) -> None:
    make_log(clock=Clock())(INFO, "hello")
    line, = lines(listener)
    assert re.fullmatch(rf"<22>Jun 15 \d\d:\d\d:\d\d sendmail\[{os.getpid()}\]: hello", line)


def test_long_line_is_cut_to_what_every_syslog_takes(make_log: MakeLog, listener: socket.socket) -> None:
    make_log()(INFO, "x" * 5000)
    assert [len(line) for line in lines(listener)] == [MAX_LINE]


def test_full_log_drops_lines_and_stops_nobody(make_log: MakeLog, listener: socket.socket) -> None:
    log = make_log()
    for number in range(2000):
        log(INFO, f"line {number}")
    assert 0 < len(lines(listener)) < 2000
    log(INFO, "after")
    assert lines(listener)[0].endswith("after")


def test_log_that_is_away_is_tried_again_after_a_while(tmp_path: Path, make_log: MakeLog) -> None:
    clock = Clock()
    log = make_log(clock=clock)
    log(INFO, "lost")
    for listener in listening(tmp_path):
        log(INFO, "lost too")
        clock.now += RECONNECT_AFTER
        log(INFO, "heard")
        assert [line.rpartition(" ")[2] for line in lines(listener)] == ["heard"]


def test_clock_that_goes_back_does_not_silence_the_log(tmp_path: Path, make_log: MakeLog) -> None:
    clock = Clock()
    log = make_log(clock=clock)
    log(INFO, "lost")
    clock.now -= 86_400 * 365
    for listener in listening(tmp_path):
        log(INFO, "heard")
        assert len(lines(listener)) == 1


def test_log_that_was_started_anew_gets_the_next_line(tmp_path: Path, make_log: MakeLog) -> None:
    clock = Clock()
    log = make_log(clock=clock)
    for listener in listening(tmp_path):
        log(INFO, "one")
        assert len(lines(listener)) == 1
    os.unlink(tmp_path / "log")
    clock.now += RECONNECT_AFTER
    for listener in listening(tmp_path):
        log(INFO, "two")
        assert len(lines(listener)) == 1


def test_no_descriptor_for_the_log_is_no_error(make_log: MakeLog, listener: socket.socket,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    log = make_log()
    monkeypatch.setattr(socket, "socket", no_socket)
    log(INFO, "lost")
    assert lines(listener) == []


def test_child_that_closed_everything_writes_to_no_file_of_its_own(make_log: MakeLog, listener: socket.socket) -> None:
    """A runner closes what it has inherited; the number of the log's descriptor is then another file's."""
    log = make_log()
    log(INFO, "parent")
    number, = (int(name) for name in os.listdir("/proc/self/fd") if _is_log(int(name), listener))

    def child() -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        os.dup2(ours.fileno(), number)  # as clean() and what is opened next do
        log(INFO, "child")
        theirs.setblocking(False)
        try:
            theirs.recv(100)
        except BlockingIOError:
            return os.fstat(number).st_ino == os.fstat(ours.fileno()).st_ino
        return False

    assert elsewhere.run(child), "the log was written to, or has closed, a file of the child"
    assert [line.rpartition(" ")[2] for line in lines(listener)] == ["parent", "child"]
    log(INFO, "parent again")
    assert len(lines(listener)) == 1


def _is_log(fd: int, listener: socket.socket) -> bool:
    """Whether a descriptor is a socket connected to the listener."""
    try:
        one = socket.socket(fileno=os.dup(fd))
    except OSError:
        return False
    with one:
        try:
            return one.getpeername() == listener.getsockname()
        except OSError:
            return False


def test_forked_child_says_who_it_is(make_log: MakeLog, listener: socket.socket) -> None:
    log = make_log()
    log(INFO, "parent")
    before = processes.children()
    pid = elsewhere.run(lambda: (log(INFO, "child"), os.getpid())[1])
    assert [re.search(r"\[(\d+)\]", line)[1] for line in lines(listener)] == [  # type: ignore[index]
        str(os.getpid()), str(pid)]
    assert processes.children() == before
