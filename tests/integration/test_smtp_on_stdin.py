"""`sendmail -bs`: as callers drive it, with a drop that fails, pipes that block, and signals."""

import errno
import fcntl
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pysendmail.paths import Paths
from tests.tools.frontend import drops, the_drop
from tests.tools.host import CODE, WITHIN
from tests.tools.processes import has_ended

LAUNCHER = """
import sys
sys.path.insert(0, {code!r})
{before}
from pysendmail.cli.sendmail import main
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(paths: Paths) -> Iterator[Start]:
    """Starts `sendmail -bs`, with pipes if nothing else is said. before: Python that runs in it first."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*options: str, before: str = "", stdin: int = subprocess.PIPE, stdout: int = subprocess.PIPE,
              fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        program = LAUNCHER.format(code=CODE, root=paths.root, before=before)
        made.append(subprocess.Popen([sys.executable, "-I", "-c", program, "-bs", *options], stdin=stdin, stdout=stdout,
                                     pass_fds=fds))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def codes(said: bytes) -> list[str]:
    """The codes of the replies, each once."""
    return [line[:3].decode() for line in said.split(b"\r\n") if line[3:4] == b" "]


MESSAGE = b"MAIL FROM:<bob@example.org>\nRCPT TO:<alice>\nDATA\nSubject: x\n\nHello.\n.\n"


@pytest.mark.parametrize("options", [(), ("-i",), ("-f", "x@example.org"), ("-oi", "-oem", "-v"), ("-ba",)])
def test_options_change_nothing(start: Start, paths: Paths, options: tuple[str, ...]) -> None:
    said, _ = start(*options).communicate(MESSAGE + b"QUIT\n", WITHIN)
    assert codes(said) == ["220", "250", "250", "354", "250", "221"]
    drop = the_drop(paths)
    assert (drop.fields["Sender"], drop.addresses, drop.message) == (
        b"<bob@example.org>", [b"alice"], b"Subject: x\n\nHello.\n")


def test_dsn_and_body_types_are_handed_on(start: Start, paths: Paths) -> None:
    start().communicate(b"EHLO x\r\nMAIL FROM:<> RET=HDRS ENVID=a+2Bb BODY=8BITMIME SMTPUTF8\r\n"
                        b"RCPT TO:<alice@example.org> NOTIFY=DELAY,FAILURE ORCPT=rfc822;bob@x\r\nDATA\r\nx\r\n.\r\n",
                        WITHIN)
    drop = the_drop(paths)
    assert drop.fields == {"Sender": b"<>", "Protocol": b"ESMTP", "Body": b"8bitmime", "Return": b"hdrs",
                           "Envid": b"a+2Bb", "Smtputf8": b"yes"}
    assert drop.recipients == [b"delay,failure rfc822;bob@x alice@example.org"]


def test_one_submission_for_each_message(start: Start, paths: Paths) -> None:
    said, _ = start().communicate(MESSAGE * 50 + b"QUIT\n", WITHIN)
    assert codes(said).count("354") == 50
    assert len(drops(paths)) == 50


def test_python_speaks_to_it_over_a_socket(start: Start, paths: Paths) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(stdin=theirs.fileno(), stdout=theirs.fileno())
        theirs.close()
        client = smtplib.SMTP()
        client.sock = ours
        assert client.getreply()[0] == 220
        client.sendmail("bob@example.org", ["alice", "carol"], "Subject: x\r\n\r\n.Hello.\r\n")
        client.quit()
    assert process.wait(WITHIN) == 0
    assert the_drop(paths).message == b"Subject: x\n\n.Hello.\n"


@pytest.mark.parametrize(("text", "code"), [
    (b"", 0), (b"QUIT\n", 0), (b"NOOP\n", 0), (MESSAGE, 0), (MESSAGE + b"MAIL FROM:<x@y>\n", 0),
    (MESSAGE[:-2], 1), (MESSAGE[:-2] + b"." * 100_000, 1)])
def test_how_it_ends(start: Start, paths: Paths, text: bytes, code: int) -> None:
    process = start()
    process.communicate(text, WITHIN)
    assert process.returncode == code
    assert len(drops(paths)) == (text.endswith(b"\n.\n") or b"\n.\nMAIL" in text)


# ---- trouble with the drop


def failing(name: str, code: int) -> str:
    return (f"from pysendmail.spool import durable\ndef fail(*words):\n    raise OSError({code}, 'trouble')\n"
            f"durable.{name} = fail\n")


@pytest.mark.parametrize("name", ["create", "write_all", "publish"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_message_that_cannot_be_stored_is_put_off(start: Start, paths: Paths, name: str, code: int) -> None:
    said, _ = start(before=failing(name, code)).communicate(MESSAGE + MESSAGE[:40] + b"\nRSET\nNOOP\nQUIT\n", WITHIN)
    assert "451" in codes(said)
    assert said.endswith(b"closing\r\n")
    assert drops(paths) == []


def test_a_long_message_that_cannot_be_stored_is_put_off_at_its_end(start: Start, paths: Paths) -> None:
    text = MESSAGE[:-2] + (b"x" * 99 + b"\n") * 5000 + b".\n"
    said, _ = start(before=failing("write_all", errno.ENOSPC)).communicate(text + b"NOOP\nQUIT\n", WITHIN)
    assert codes(said) == ["220", "250", "250", "354", "451", "250", "221"]
    assert drops(paths) == []


def test_a_message_that_is_too_large(start: Start, paths: Paths) -> None:
    said, _ = start().communicate(b"EHLO x\nMAIL FROM:<x@y> SIZE=52428801\n" + MESSAGE + b"QUIT\n", WITHIN)
    assert codes(said) == ["220", "250", "552", "250", "250", "354", "250", "221"]


def test_nobody_names_a_file_or_a_program(start: Start, paths: Paths) -> None:
    said, _ = start().communicate(
        b'MAIL FROM:<x@y>\nRCPT TO:</etc/passwd>\nRCPT TO:<|/bin/sh>\nRCPT TO:<"|/bin/sh">\nQUIT\n', WITHIN)
    assert codes(said)[:2] == ["220", "250"]
    assert drops(paths) == []


# ---- pipes


def test_descriptors_that_do_not_block(start: Start, paths: Paths) -> None:
    """node.js hands out pipes like that; they are slow here, too."""
    to_read, to_write = os.pipe(), os.pipe()
    for fd in (*to_read, *to_write):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    fcntl.fcntl(to_write[1], fcntl.F_SETPIPE_SZ, 4096)
    process = start(stdin=to_read[0], stdout=to_write[1])
    os.close(to_read[0])
    os.close(to_write[1])
    os.set_blocking(to_read[1], True)
    os.write(to_read[1], b"HELP\n" * 300 + MESSAGE + b"QUIT\n")  # its replies do not fit into the pipe
    os.close(to_read[1])
    os.set_blocking(to_write[0], True)
    said = b""
    while data := os.read(to_write[0], 100_000):
        said += data
    os.close(to_write[0])
    assert process.wait(WITHIN) == 0
    assert codes(said).count("214") == 300
    assert codes(said)[-2:] == ["250", "221"]
    assert the_drop(paths).message == b"Subject: x\n\nHello.\n"


def test_somebody_who_does_not_listen(start: Start, paths: Paths) -> None:
    """Its message is not taken, since nobody would know."""
    read, write = os.pipe()
    process = start(stdout=write)
    os.close(write)
    os.close(read)
    try:
        process.communicate(MESSAGE, WITHIN)
    except BrokenPipeError:
        pass
    assert process.wait(WITHIN) == 1
    assert drops(paths) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_takes_back_what_is_under_way(start: Start, paths: Paths, number: int) -> None:
    process = start()
    assert process.stdin
    assert process.stdout
    process.stdin.write(MESSAGE + MESSAGE[:-2] + b"x" * 200_000)
    process.stdin.flush()
    while not (os.listdir(paths.drop_tmp) and os.listdir(paths.drop_new)):
        assert not has_ended(process.pid)
        os.sched_yield()
    process.send_signal(number)
    assert process.wait(WITHIN) == -number
    assert len(drops(paths)) == 1


def test_nohup(start: Start, paths: Paths) -> None:
    process = start(before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert process.stdout
    assert process.stdout.readline().startswith(b"220 ")
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(MESSAGE + b"QUIT\n", WITHIN)
    assert codes(said)[-1] == "221"
    assert process.returncode == 0


def test_asyncio_is_not_loaded(start: Start, paths: Paths) -> None:
    """Each message of a script starts one; the core needs no loop."""
    report = f"{paths.root}/loaded"
    before = ("import atexit\nimport sys\n"
              f"atexit.register(lambda: open({report!r}, 'w').write(' '.join(sys.modules)))\n")
    start(before=before).communicate(MESSAGE + b"QUIT\n", WITHIN)
    loaded = Path(report).read_text().split() if Path(report).exists() else []
    assert not {"asyncio", "socket", "email", "json", "logging", "tomllib"} & set(loaded)
