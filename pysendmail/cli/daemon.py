"""sendmail -bd, -bD and smtpd: start pysendmaild(8), for containers and scripts that know no other way.

-bD becomes it. -bd returns when it is ready, as told by sd_notify(3), or says why it is not; it goes on without our
terminal, directory and environment. Other options have no effect: intervals and sockets come from the settings. Root
only, since the daemon is to become the recipients.
"""

import os
import select
import socket
import sys
import tempfile
import time

from ..paths import Paths

PROGRAM = "/usr/sbin/pysendmaild"
READY_WITHIN = 30.0  # seconds; the queue may be long
MAX_NOTE = 4096  # bytes
MAX_WORDS = 4096  # bytes of what it says before it ends
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
EX_OK, EX_UNAVAILABLE, EX_NOPERM = 0, 69, 77


def main(args: list[str], paths: Paths, *, program: str = PROGRAM) -> int:
    """The exit code; with -bD only where the daemon cannot be started."""
    del paths
    if os.geteuid() != 0:
        return _say("only root can start the daemon", EX_NOPERM)
    try:
        if "-bD" in args:
            os.execve(program, [program], ENVIRONMENT)  # noqa: S606 - ours, no shell wanted
        return _start(program)
    except OSError as trouble:
        return _say(f"cannot start {program}: {trouble.strerror}", EX_UNAVAILABLE)


def _start(program: str) -> int:
    """Start it and wait until it says that it is ready, or ends. Raises OSError."""
    os.chdir("/")
    with tempfile.TemporaryDirectory(prefix="sendmail-") as place, tempfile.TemporaryFile() as words, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, open("/dev/null", "r+b", 0) as null:
        told.bind(f"{place}/notify")
        # Its words go to a file: whoever reads our standard error to its end shall not wait for the daemon's.
        files = [(os.POSIX_SPAWN_DUP2, one.fileno(), fd) for fd, one in enumerate((null, null, words))]
        pid = os.posix_spawn(program, [program], {**ENVIRONMENT, "NOTIFY_SOCKET": f"{place}/notify"}, setsid=True,
                             file_actions=files)
        with open(os.pidfd_open(pid), "rb", 0) as child:
            poll = select.poll()
            poll.register(told, select.POLLIN)
            poll.register(child, select.POLLIN)
            until = time.monotonic() + READY_WITHIN
            while ready := dict(poll.poll(max(0.0, until - time.monotonic()) * 1000)):
                if told.fileno() in ready:
                    if b"READY=1" in told.recv(MAX_NOTE).split(b"\n"):
                        return EX_OK
                elif child.fileno() in ready:
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    words.seek(0)
                    sys.stderr.write(words.read(MAX_WORDS).decode("utf-8", "replace"))
                    return code if code > 0 else _say("the daemon has ended", EX_UNAVAILABLE)
    return _say(f"the daemon is not ready after {READY_WITHIN:.0f} seconds; it goes on", EX_UNAVAILABLE)


def _say(text: str, code: int) -> int:
    print(f"sendmail: {text}", file=sys.stderr)
    return code
