"""sendmail as a process: what callers say, and what is in the drop when it has ended with 0."""

import itertools
import os
import posix
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pysendmail.cli import options
from pysendmail.cli import sendmail as front
from pysendmail.cli.sendmail import MAX_MESSAGE
from pysendmail.mail import submission
from pysendmail.paths import Paths
from pysendmail.spool import dropbox
from tests.tools import frontend
from tests.tools.frontend import Called, call, drops, launcher, sendmail, the_drop

CRON = b"From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@host> x\nMIME-Version: 1.0\n\nout\n.\nput\n"
MAIL = b"Subject: x\n\nbody\n"

# How real programs call: argv, the text, the recipients, the other fields, and the message (None: as it came).
CALLERS = {
    "cron": ("-FCronDaemon -i -B8BITMIME -oem root", CRON, ["root"],
             {"Full-Name": b"CronDaemon", "Body": b"8bitmime", "Errors": b"m"}, None),
    "vixie cron": ("-FCronDaemon -odi -oem -or0s root", MAIL, ["root"],
                   {"Full-Name": b"CronDaemon", "Delivery": b"i", "Errors": b"m"}, None),
    "cronie": ("-FCronDaemon -i -odi -oem -oi -t -f <>", b"From: x\nTo: root\n\nout\n", ["root"],
               {"Full-Name": b"CronDaemon", "Delivery": b"i", "Errors": b"m", "Sender": b"<>"}, None),
    "anacron": ("-FAnacron -odi root", b"Subject: x\n\nbefore\n.\nafter\n", ["root"],
                {"Full-Name": b"Anacron", "Delivery": b"i"}, b"Subject: x\n\nbefore\n"),
    "at": ("-i alice", MAIL, ["alice"], {}, None),
    "systemd-cron": ("-i -B8BITMIME root", MAIL, ["root"], {"Body": b"8bitmime"}, None),
    "bsd-mailx": ("-i -t", b"To: alice, bob\nSubject: x\n\nbody\n", ["alice", "bob"], {}, None),
    "bsd-mailx with a sender": ("-i -t -f carol@x", b"To: alice\n\nbody\n", ["alice"], {"Sender": b"<carol@x>"}, None),
    "s-nail": ("-i -f me@x -- alice bob@y", MAIL, ["alice", "bob@y"], {"Sender": b"<me@x>"}, None),
    "mailutils": ("-oi -f root@host -t", b"To: <alice@x>\n\nbody\n", ["alice@x"], {"Sender": b"<root@host>"}, None),
    "mutt": ("-oem -oi -f me -B 8BITMIME -N success -R hdrs -- alice", MAIL, ["alice"],
             {"Errors": b"m", "Sender": b"<me>", "Body": b"8bitmime", "Return": b"hdrs"}, None),
    "logwatch": ("-t", b"To: root \nFrom: Logwatch <logwatch@h>\n\n.x\n", ["root"], {}, None),
    "mdadm, sudo": ("-t", b"To: root\n\nbody\n", ["root"], {}, None),
    "unattended-upgrades": ("-oi -t", b"To: root\nAuto-Submitted: auto-generated\n\nbody\n", ["root"], {}, None),
    "fail2ban": ("-f fail2ban root", b"Subject: x\n\nbody\n", ["root"], {"Sender": b"<fail2ban>"}, None),
    "rkhunter": ("root", b"To: root\nSubject: x\n\nbody\n", ["root"], {}, None),
    "php": ("-t -i -fwww@x", b"To: alice@x\r\nSubject: x\r\nX-PHP: y\r\n\r\nbody\n.\nline", ["alice@x"],
            {"Sender": b"<www@x>"}, b"To: alice@x\nSubject: x\nX-PHP: y\n\nbody\n.\nline\n"),
    "git": ("-f me@x -i alice@x bob@x", MAIL, ["alice@x", "bob@x"], {"Sender": b"<me@x>"}, None),
    "ruby, Email::Sender": ("-i -f me@x -- alice@x", b"Subject: x\n\n.leading\n..dots\n.\n", ["alice@x"],
                            {"Sender": b"<me@x>"}, None),
    "MIME::Lite": ("-t -oi -oem -fme@x", b"To: alice\n\nbody\n", ["alice"],
                   {"Errors": b"m", "Sender": b"<me@x>"}, None),
    "procmail": ("-oi alice bob", b"From x Tue Jul  1 10:52:37 2003\nTo: y\n\nbody\n", ["alice", "bob"], {},
                 b"To: y\n\nbody\n"),
    "maildrop": ("-oi -f '' alice", b"From x Tue Jul  1 10:52:37 2003\nTo: y\n\nbody\n", ["alice"], {"Sender": b"<>"},
                 b"To: y\n\nbody\n"),
    "vacation": ("-f <> -- alice", MAIL, ["alice"], {"Sender": b"<>"}, None),
    "mutt bounce": ("-oem -oi -t", b"Resent-From: me\nResent-To: bob\nTo: alice\n\nbody\n", ["bob"],
                    {"Errors": b"m"}, None),
    "mailhog users": ("-t -i -oi -fx -FMe", b"To: a\nBcc: b\n\nbody\n", ["a", "b"],
                      {"Sender": b"<x>", "Full-Name": b"Me"}, None),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_real_callers(paths: Paths, caller: str) -> None:
    line, text, recipients, fields, message = CALLERS[caller]
    done = sendmail(paths, *(word if word != "''" else "" for word in line.split()), text=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), "success says nothing"
    found = the_drop(paths)
    assert [address.decode() for address in found.addresses] == recipients
    assert found.fields == fields
    assert found.message == (text if message is None else message)


def test_notify_goes_to_every_recipient(paths: Paths) -> None:
    assert sendmail(paths, "-N", "success,failure", "alice", "bob", text=MAIL).returncode == 0
    assert the_drop(paths).recipients == [b"failure,success - alice", b"failure,success - bob"]


def test_every_field_of_the_drop_is_one_that_intake_takes(paths: Paths) -> None:
    line = "-f me -F Me -B7BIT -R full -V x+20y -h 3 -oem -odq -G -L tag -O SMTPUTF8=yes -p smtp:h -N never u@x"
    assert sendmail(paths, *line.split(), text=MAIL).returncode == 0
    found = the_drop(paths)
    asked = submission.read([(name.encode(), value) for name, value in found.fields.items()]
                            + [(b"Recipient", value) for value in found.recipients])
    assert set(found.fields) == {name.decode() for name in submission._ONCE}
    assert (asked.sender, asked.full_name, asked.hops, asked.is_gateway) == ("me", "Me", 3, True)
    assert dropbox.MAX_RECIPIENTS <= submission.MAX_RECIPIENTS


@pytest.mark.parametrize(("words", "text", "expected"), [
    (["alice,bob"], MAIL, ["alice", "bob"]),
    (["alice bob\ncarol"], MAIL, ["alice", "bob", "carol"]),
    (["Al Ice <alice@x>", "(x) bob"], MAIL, ["alice@x", "bob"]),
    (["alice", "bob", "alice", "Alice <alice>"], MAIL, ["alice", "bob"]),
    (["-t", "carol", "alice"], b"To: alice\nBcc: bob\n\n", ["carol", "alice", "bob"]),  # arguments are added
    (["-t", "carol"], b"Subject: x\n\n", ["carol"]),
    (["-t"], b"To: undisclosed-recipients:;\nBcc: bob\n\n", ["bob"]),
    (["-t"], b"To: alice\nnot a field\nCc: bob\n", ["alice"]),
    (["--", "-alice"], MAIL, ["-alice"]),
    (["--", "|touch /tmp/x,y"], MAIL, ['"|touch /tmp/x"', "y"]),
    (['"|touch x"', "/etc/passwd", ":include:/etc/passwd"], MAIL,
     ['"|touch x"', "/etc/passwd", ":include:/etc/passwd"]),
    ([b"m\xfcller", "müller@exämple.org".encode()], MAIL, ["m\udcfcller", "müller@exämple.org"]),
    (["alice", "<>"], MAIL, ["alice"]),
])
def test_recipients(paths: Paths, words: list[str | bytes], text: bytes, expected: list[str]) -> None:
    done = sendmail(paths, *words, text=text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [os.fsdecode(address) for address in the_drop(paths).addresses] == expected


@pytest.mark.parametrize("spelling", ["", " ", "<>", " <> ", "< >", '""'])
def test_the_null_sender(paths: Paths, spelling: str) -> None:
    assert sendmail(paths, "-f", spelling, "alice", text=MAIL).returncode == 0
    assert the_drop(paths).fields == {"Sender": b"<>"}


@pytest.mark.parametrize(("given", "expected"), [
    ("bob", b"<bob>"), ("<bob@x>", b"<bob@x>"), ("Bob <bob@x>", b"<bob@x>"), ("bob@x (Bob)", b"<bob@x>"),
    ("x$HOME|y`z@z", b"<x$HOME|y`z@z>")])
def test_the_sender(paths: Paths, given: str, expected: bytes) -> None:
    done = sendmail(paths, "-f", given, "alice", text=MAIL)
    assert (done.returncode, done.stderr) == (0, b"")
    assert the_drop(paths).fields["Sender"] == expected


@pytest.mark.parametrize(("words", "text", "code", "complaint"), [
    ([], MAIL, 64, "recipients must be named"),
    (["<>"], MAIL, 64, "recipients must be named"),
    ([""], MAIL, 64, "recipients must be named"),
    (["-t"], MAIL, 64, "no recipient addresses found in header"),
    (["-t"], b"", 64, "no recipient addresses found in header"),
    (["-t"], b"To: undisclosed-recipients:;\n\n", 64, "no recipient addresses found in header"),
    (["-t"], b"\nTo: alice\n", 64, "no recipient addresses found in header"),
    (["-t"], b"Resent-From: x\nTo: alice\n\n", 64, "no recipient addresses found in header"),
    (["-F"], MAIL, 64, "option requires an argument"),
    (["-by", "alice"], MAIL, 64, "no such mode"),
    (["alice", "-v"], MAIL, 64, "put -- before -v"),
    (["alice", "-X/tmp/x"], MAIL, 64, "put -- before"),
    (["-f", "bob\nBcc: eve", "alice"], MAIL, 65, "control character in the sender"),
    (["-f", "a, b", "alice"], MAIL, 65, "not one sender"),
    (["-f", "a b", "alice"], MAIL, 65, "not one sender"),
    (["-f", "<a", "alice"], MAIL, 65, "'<'"),
    (["alice\x1b[2J"], MAIL, 65, "control character"),
    (["alice", '"bob'], MAIL, 65, "quote that is not closed"),
    (["alice@"], MAIL, 65, "after '@'"),
    (["a" * 2000], MAIL, 65, "not an address"),
    (["a" * 100_000 + "@x"], MAIL, 65, "not an address"),
    (["-f", "a" * 2000, "alice"], MAIL, 65, "not an address"),
    (["-t"], b"To: " + b"a" * 2000 + b"\n\n", 65, "not an address"),
    (["-t"], b'To: alice, "bob\n\n', 65, "in the header"),
    (["-t"], b"To: alice\n" + b"X: y\n" * 10_000 + b"\n", 65, "header is longer than"),
    (["-t"], b"To: alice\n" + b"X: " + b"y" * 140_000 + b"\n\n", 65, "header is longer than"),
    (["-t"], b"To: " + b"x\n ,".join(b"a%d" % n for n in range(21_000)) + b"\n\n", 65, "header is longer than"),
], ids=itertools.count())
def test_refusals_leave_nothing_and_say_why(paths: Paths, words: list[str], text: bytes, code: int,
                                            complaint: str) -> None:
    done = sendmail(paths, *words, text=text)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"sendmail: ")
    assert done.stderr.count(b"\n") == 1, "one line"
    assert complaint in done.stderr.decode()
    assert done.stderr[:-1].isascii()
    assert b"\x1b" not in done.stderr
    assert drops(paths) == []


def test_too_many_recipients_are_refused_here_and_not_put_aside_by_intake(paths: Paths) -> None:
    words = [",".join(f"a{n}@x" for n in range(start, start + 5000)) for start in range(0, 25_000, 5000)]
    done = sendmail(paths, *words, text=MAIL)
    assert (done.returncode, done.stderr) == (65, b"sendmail: too many recipients for one message\n")
    assert drops(paths) == []


@pytest.mark.parametrize(("text", "expected"), [
    (b"", b""),
    (b"hello", b"hello\n"),
    (b"From here on it is text\n", b"From here on it is text\n"),
    (b">From x Tue Jul  1 10:52:37 2003\r\nTo: y\r\n\r\nb\r\n", b"To: y\n\nb\n"),
    (b"From x 10:10\n" * 20_000 + b"To: y\n\nb\n", None),  # no more than the start of a message is looked at
    (b"a\0b\rc\xff\n", b"a\0b\rc\xff\n"),
], ids=itertools.count())
def test_text(paths: Paths, text: bytes, expected: bytes | None) -> None:
    assert sendmail(paths, "alice", text=text).returncode == 0
    found = the_drop(paths).message
    if expected is None:
        assert found.endswith(b"To: y\n\nb\n")
        assert len(found) > len(text) - 200_000, "text was lost"
    else:
        assert found == expected


def test_a_dot_ends_the_message_while_the_pipe_stays_open(paths: Paths) -> None:
    with subprocess.Popen([launcher(paths), "alice"], stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"Subject: x\n\nbody\n.\n")
        process.stdin.flush()
        assert process.wait(frontend.WITHIN) == 0
    assert the_drop(paths).message == b"Subject: x\n\nbody\n"


def test_the_writer_of_a_refused_message_is_heard_out(paths: Paths) -> None:
    """Otherwise it dies of SIGPIPE, and nobody sees what sendmail said."""
    done = subprocess.run(f"head -c 3000000 /dev/zero | {{ {launcher(paths)}; echo $? >&2; }}; exit ${{PIPESTATUS[0]}}",
                          shell=True, executable="/bin/bash", capture_output=True, timeout=frontend.WITHIN, check=False)
    assert done.returncode == 0, "the writer was cut off"
    assert done.stderr.endswith(b"\n64\n")


def test_verbose_says_who_was_accepted(paths: Paths) -> None:
    done = sendmail(paths, "-v", "alice", "bob@x", text=MAIL)
    name = os.path.basename(the_drop(paths).path)
    assert done.stdout.decode() == f"alice... accepted ({name})\nbob@x... accepted ({name})\n"


# -- surroundings -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_closed_standard_descriptors(paths: Paths, redirection: str) -> None:
    text = b"" if redirection.startswith("<") else MAIL
    done = subprocess.run(f"exec {launcher(paths)} -v -Z alice {redirection}", shell=True, input=text,
                          timeout=frontend.WITHIN, check=False, capture_output=True)
    assert done.returncode == 0
    assert the_drop(paths).message == text, "output went into the message, or the message was lost"


def test_all_descriptors_used_up_by_the_caller(paths: Paths) -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
    program = launcher(paths)

    def few_descriptors() -> None:
        for fd in held:
            os.set_inheritable(fd, True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 8, max(held) + 8))

    done = subprocess.run([program, "alice"], input=MAIL, close_fds=False, preexec_fn=few_descriptors,
                          timeout=frontend.WITHIN, check=False)
    for fd in held:
        os.close(fd)
    assert done.returncode == 0
    the_drop(paths)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask_does_not_matter(paths: Paths, umask: int) -> None:
    program = launcher(paths)
    done = subprocess.run([program, "alice"], input=MAIL, umask=umask, timeout=frontend.WITHIN, check=False)
    assert done.returncode == 0
    found = os.stat(the_drop(paths).path)
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_gid == os.stat(paths.drop_new).st_gid


def test_environment_and_current_directory_change_nothing(paths: Paths, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("os", "sys", "zlib", "pysendmail", "encodings", "sitecustomize", "usercustomize", "syslog", "errno"):
        (trap / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    env = {"PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": str(trap / "os.py"), "HOME": str(trap),
           "USER": "root", "LOGNAME": "root", "EMAIL": "x@x", "MAIL_CONFIG": str(trap), "TMPDIR": str(trap),
           "LC_ALL": "tlh", "PATH": str(trap), "IFS": "/", "PYTHONINSPECT": "1", "PYTHONDEVMODE": "1"}
    done = sendmail(paths, "-Zx", "alice", text=MAIL, env=env, cwd=trap)
    assert (done.returncode, done.stderr) == (0, b"sendmail: unknown option -Zx ignored\n")
    assert the_drop(paths).fields == {}
    assert not (tmp_path / "sprung").exists()


def test_a_current_directory_that_is_gone(paths: Paths, tmp_path: Path) -> None:
    command = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec {launcher(paths)} alice"
    assert subprocess.run(command, shell=True, input=MAIL, timeout=frontend.WITHIN, check=False).returncode == 0
    the_drop(paths)


@pytest.mark.parametrize(("name", "words", "expected"), [
    ("Al Ice", [], b"Al Ice"), ("A\nBcc: x\x1b", [], b"A Bcc: x"), ("x" * 500, [], b"x" * options.MAX_FULL_NAME),
    ("Al Ice", ["-F", "Bob"], b"Bob"), ("", [], None)])
def test_the_full_name_is_all_that_the_environment_says(paths: Paths, name: str, words: list[str],
                                                        expected: bytes | None) -> None:
    assert sendmail(paths, *words, "alice", text=MAIL, env={"NAME": name}).returncode == 0
    assert the_drop(paths).fields.get("Full-Name") == expected


def test_standard_input_that_cannot_be_read(paths: Paths) -> None:
    with open("/dev/null", "wb") as for_writing:
        done = subprocess.run([launcher(paths), "alice"], stdin=for_writing, capture_output=True,
                              timeout=frontend.WITHIN, check=False)
    assert done.returncode == 74
    assert done.stderr == b"sendmail: cannot read the message: Bad file descriptor\n"
    assert drops(paths) == []


def test_a_pipe_that_the_caller_made_non_blocking(paths: Paths) -> None:
    answers = iter([b"Subject: x\n\n", None, None, b"late\n", None, b""])
    pauses = []

    def read(_fd: int, _size: int) -> bytes:
        answer = next(answers)
        if answer is None:
            raise BlockingIOError
        return answer

    def set_up() -> None:
        posix.read = read
        time.sleep = pauses.append

    done = call(paths, [b"alice"], before=set_up)
    assert (done.code, done.err) == (0, b"")
    assert the_drop(paths).message == b"Subject: x\n\nlate\n"


# -- size -------------------------------------------------------------------------------------------------------------

def test_a_message_of_the_largest_size(paths: Paths) -> None:
    line = b"x" * 1023 + b"\n"
    assert sendmail(paths, "alice", text=line * (MAX_MESSAGE // 1024)).returncode == 0
    assert len(the_drop(paths).message) == MAX_MESSAGE


def test_a_larger_message_is_refused(paths: Paths) -> None:
    done = sendmail(paths, "alice", text=b"x" * MAX_MESSAGE)  # and its LF
    assert (done.returncode, done.stderr) == (65, b"sendmail: message is larger than 52428800 bytes\n")
    assert drops(paths) == []


def test_memory_does_not_grow_with_the_message(paths: Paths) -> None:
    with subprocess.Popen([launcher(paths), "-t"], stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"To: alice\n\n" + b"x\r\n.y\n" * 100_000)
        process.stdin.flush()  # all but a pipe's capacity has been read
        before = peak_memory(process.pid)
        for _ in range(25):
            process.stdin.write(b"some text\r\n" * 95_000)
        process.stdin.flush()
        after = peak_memory(process.pid)
        process.stdin.close()
        assert process.wait(frontend.WITHIN) == 0
    assert after - before < 1024, f"grew from {before} to {after} KiB"
    assert len(the_drop(paths).message) > 20_000_000


def peak_memory(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


# -- signals and time -------------------------------------------------------------------------------------------------

def begun(paths: Paths, **more: Any) -> subprocess.Popen[bytes]:
    """A sendmail in the middle of its input, with an unfinished file in drop/tmp."""
    process = subprocess.Popen([launcher(paths), "alice"], stdin=subprocess.PIPE, **more)
    assert process.stdin
    process.stdin.write(b"x" * 70 + b"\n" + b"line\n" * 100_000)
    process.stdin.flush()
    while not os.listdir(paths.drop_tmp):
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_message_back(paths: Paths, number: signal.Signals) -> None:
    # A shell that runs the tests in the background has SIGINT ignored.
    with begun(paths, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)) as process:
        process.send_signal(number)
        assert process.wait(frontend.WITHIN) == -number
    assert drops(paths) == []


def test_an_ignored_hangup_stays_ignored(paths: Paths) -> None:
    with begun(paths, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate()
        assert process.returncode == 0
    the_drop(paths)


def test_signals_that_the_caller_blocked_work(paths: Paths) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())

    with begun(paths, preexec_fn=block) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(frontend.WITHIN) == -signal.SIGTERM
    assert drops(paths) == []


def test_a_signal_during_the_commit_takes_the_message_back(paths: Paths) -> None:
    done = call(paths, [b"alice"], MAIL,
                before=lambda: replace(posix, "fsync", lambda fd: os.kill(os.getpid(), signal.SIGTERM)))
    assert done.code == -signal.SIGTERM
    assert drops(paths) == []


def test_a_signal_after_the_commit_comes_too_late(paths: Paths) -> None:
    done = call(paths, [b"alice"], MAIL,
                before=lambda: replace(dropbox, "_wake", lambda path, name: os.kill(os.getpid(), signal.SIGTERM)))
    assert done.code == 0
    the_drop(paths)


def test_a_disk_that_hangs_is_given_up(paths: Paths) -> None:
    def hang(_fd: int) -> None:
        time.sleep(1000)

    def set_up() -> None:
        replace(posix, "fsync", hang)
        replace(front, "LAST", 1)

    done = call(paths, [b"alice"], MAIL, before=set_up)
    assert (done.code, done.err) == (75, b"sendmail: the mail spool takes too long, try again later\n")
    assert drops(paths) == []


def test_a_message_that_was_taken_meanwhile_is_in(paths: Paths) -> None:
    """Its reader did not respect the lock; but taken is taken, and a failure would be sent again by the caller."""
    def hang(_fd: int) -> None:
        for name in os.listdir(paths.drop_new):
            os.rename(f"{paths.drop_new}/{name}", f"{paths.intake}/{name}")
        time.sleep(1000)

    def set_up() -> None:
        replace(posix, "fsync", hang)
        replace(front, "LAST", 1)

    assert call(paths, [b"alice"], MAIL, before=set_up).code == 0
    assert len(os.listdir(paths.intake)) == 1


def test_waiting_for_input_takes_as_long_as_it_takes(paths: Paths) -> None:
    answers = iter([(0.0, b"Subject: x\n\n"), (1.1, b"late\n"), (0.0, b"")])

    def read(_fd: int, _size: int) -> bytes:
        pause, answer = next(answers)
        time.sleep(pause)
        return answer

    def set_up() -> None:
        replace(posix, "read", read)
        replace(front, "LAST", 1)

    assert call(paths, [b"alice"], before=set_up).code == 0
    assert the_drop(paths).message == b"Subject: x\n\nlate\n"


def replace(place: Any, name: str, value: Any) -> None:
    """In the child only: nothing to undo."""
    assert hasattr(place, name)
    setattr(place, name, value)


# -- other programs ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "words", "module", "arguments"), [
    ("sendmail", [b"-bp", b"-v"], "mailq", ["-v"]), ("mailq", [], "mailq", []), ("newaliases", [], "newaliases", []),
    ("sendmail", [b"-bs"], "smtp", ["-bs"]), ("sendmail", [b"-q"], "queuerun", [""]),
    ("sendmail", [b"-bv", b"alice\xff"], "verify", ["-bv", "alice\udcff"])])
def test_other_modes_are_other_programs(paths: Paths, name: str, words: list[bytes], module: str,
                                        arguments: list[str]) -> None:
    program = ModuleType("program")

    def main(args: list[str], where: Paths) -> int:
        assert (args, where.root) == (arguments, paths.root)
        os.write(1, os.read(0, 100))
        return 42

    program.main = main  # type: ignore[attr-defined]
    done = call(paths, words, b"input", name, before=lambda: sys.modules.update({f"pysendmail.cli.{module}": program}))
    assert (done.code, done.out) == (42, b"input"), "it gets the standard input whole"


@pytest.mark.parametrize(("redirection", "code", "words"), [
    (">/dev/full", 74, b"sendmail: newaliases: [Errno 28] No space left on device\n"), (">&-", 0, b""),
    ("<&- >&-", 0, b""), (">&- 2>&-", 0, b"")])
def test_other_programs_without_a_place_for_what_they_print(paths: Paths, redirection: str, code: int,
                                                            words: bytes) -> None:
    file = Path(paths.aliases)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("postmaster: root\n")
    done = subprocess.run(f"exec {launcher(paths)} -bi {redirection}", shell=True, timeout=frontend.WITHIN, check=False,
                          capture_output=True)
    assert (done.returncode, done.stderr) == (code, words)


@pytest.mark.parametrize(("words", "code"), [
    (["-bi"], 0), (["-bv", "root"], 0), (["-bt"], 0), (["-bv", "nobody-of-that-name"], 67)])
def test_a_reader_of_other_programs_that_has_gone_is_no_error(paths: Paths, words: list[str], code: int) -> None:
    file = Path(paths.aliases)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("postmaster: root\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([launcher(paths), *words], input=b"alice\n", stdout=writing, stderr=subprocess.PIPE,
                          timeout=frontend.WITHIN, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, b"")


# -- options of strangers ---------------------------------------------------------------------------------------------

ALLOWED = {"open", "os.rename", "os.chmod", "os.remove", "fcntl.flock", "socket.__new__", "socket.sendto",
           "syslog.openlog", "syslog.syslog"}


def watched(done: Called, paths: Paths) -> None:
    """Nothing started, nothing opened or renamed outside the drop."""
    for event, arguments in done.events:
        assert event in ALLOWED, f"{event} {arguments}"
        if event in ("open", "os.rename", "os.remove"):
            places = (paths.drop_tmp, paths.drop_new)
            assert arguments[0].strip("'").rpartition("/")[0] in places, f"{event} {arguments}"


INJECTED = [b"-X/tmp/x", b"-C/etc/shadow", b"-D/tmp/x", b"-OQueueDirectory=/tmp", b"-oQ/tmp", b"-oA/tmp/x",
            b"-be${run{x}}", b"-Mtmp", b"-OLogFile=/tmp/x", b"-oP/tmp/x", b"@/etc/passwd", b"-f|touch /tmp/x",
            b"-F$(touch /tmp/x)", b"-L/../x", b"|touch /tmp/x", b"/tmp/x", b":include:/etc/passwd", b"\\alice", b"-v",
            b"-t", b"-i", b"-Z", b"-d99.100", b"--"]
WORDS = st.sampled_from(INJECTED) | st.binary(max_size=12).map(lambda word: word.replace(b"\0", b""))


@given(st.lists(WORDS, max_size=5), st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_line_opens_a_file_or_starts_a_program(paths: Paths, words: list[bytes], text: bytes) -> None:
    programs = (*options.MODES.values(), options.QUEUE_RUN, options.QUARANTINE)
    missing: dict[str, Any] = {f"pysendmail.cli.{name}": None for name in programs if name}
    done = call(paths, words, b"To: alice\n" + text, before=lambda: sys.modules.update(missing))
    assert done.code in (0, 64, 65, 69), done.err
    assert b"Traceback" not in done.err
    watched(done, paths)
    for drop in drops(paths):
        os.unlink(drop.path)


def test_what_was_ignored_is_logged_as_one_line_of_text(paths: Paths) -> None:
    done = call(paths, ["-X/tmp/a\nb\x1b[2J\u202e".encode(), b"-Zq", b"-Lapp", b"alice"], MAIL)
    assert (done.code, done.err) == (0, b"sendmail: unknown option -Zq ignored\n")
    logged = [arguments for event, arguments in done.events if event.startswith("syslog.")]
    assert logged[0][0] == "'app'"
    assert [line[1].split(": ", 2)[2].strip("'") for line in logged[1:]] == [
        "unknown option -Zq ignored", "option without effect: -X/tmp/a?b?[2J?"]
    watched(done, paths)


def test_an_ordinary_submission_logs_nothing_itself(paths: Paths) -> None:
    done = call(paths, [b"-oi", b"alice"], MAIL)
    assert [event for event, _ in done.events] == [
        "open", "os.chmod", "fcntl.flock", "os.rename", "socket.__new__", "socket.sendto"]
    watched(done, paths)


def test_a_mistake_of_ours_is_no_success_and_leaves_nothing(paths: Paths) -> None:
    def broken(*_: object) -> bytes:
        raise KeyError("oops")

    done = call(paths, [b"alice"], MAIL, before=lambda: replace(dropbox.record, "first_line", broken))
    assert done.code == 70
    assert b"KeyError" in done.err
    assert drops(paths) == []
