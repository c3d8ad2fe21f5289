"""The process that knows passwords, so that the listener need not: it answers "does this password fit this user?".

A listener parses what strangers send and has no privilege; password hashes and PAM need some. So before it gives root
up, the process that becomes a listener forks this one, which keeps what it is and holds the other end of a socket. It
parses nothing but a number, a name and a password of bounded size, and does nothing itself: each question is answered
by a child made for it, so that a PAM module that hangs or crashes takes one answer with it and no more. At most
MAX_CHILDREN are at work; further questions wait in the socket.

    listener -> keeper   number (4 bytes), name, NUL, password
    keeper -> listener   number (4 bytes), YES | NO | TROUBLE, words for the log

It ends when the listener does. Run by anybody but root it answers as well as that user can.
"""

import os
import select
import signal
import socket
import struct

from ..config import AuthSettings
from ..config.files import Untrusted, read_trusted, readers
from ..deliver import identity
from . import pam, passwords

MAX_PACKET = 4096  # bytes; a name and a password have 1024 at most
MAX_WORDS = 200  # bytes of an explanation
MAX_CHILDREN = 8
TIME = 30  # seconds for one answer; then its child is killed
LOOK_EVERY = 500  # milliseconds between looks at children that died without a word
YES, NO, TROUBLE = b"y", b"n", b"t"

_NUMBER = struct.Struct("!I")


def is_wanted(settings: AuthSettings) -> bool:
    return bool(settings.password_file) or settings.pam


def start(settings: AuthSettings, kept: frozenset[int]) -> socket.socket:
    """Fork the keeper; the listener's end of the channel. kept: descriptors that a log needs. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = identity.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _become(settings, theirs, kept)
    theirs.close()
    return ours


def _become(settings: AuthSettings, channel: socket.socket, kept: frozenset[int]) -> None:
    """In the child. It never returns."""
    code = 1
    try:
        identity.clean({channel.fileno()} | kept)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        serve(settings, channel)
        code = 0
    finally:
        os._exit(code)


def serve(settings: AuthSettings, channel: socket.socket) -> None:
    """Answer until the listener is gone."""
    at_work: dict[int, bytes] = {}  # child: number of its question
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        _reap(at_work, channel, wait=len(at_work) >= MAX_CHILDREN)
        if not poll.poll(LOOK_EVERY if at_work else None):
            continue
        try:
            packet = channel.recv(MAX_PACKET + 1)
        except OSError:
            return
        if not packet:
            return
        number, name, secret = packet[:4], *_parts(packet[4:])
        if len(packet) > MAX_PACKET or len(number) < 4 or not name:
            return  # no listener of ours
        try:
            child = os.fork()
        except OSError as trouble:
            _say(channel, number, TROUBLE, f"fork: {trouble.strerror}")
            continue
        if child == 0:
            _answer(settings, channel, number, name, secret)
        at_work[child] = number


def _parts(data: bytes) -> tuple[bytes, bytes]:
    name, _, secret = data.partition(b"\0")
    return name, secret


def _answer(settings: AuthSettings, channel: socket.socket, number: bytes, name: bytes, secret: bytes) -> None:
    """In a child made for it: answer, and end."""
    code = 1
    try:
        signal.alarm(TIME)
        user, password = name.decode("utf-8", "surrogateescape"), secret.decode("utf-8", "surrogateescape")
        verdict, words = judge(settings, user, password)
        _say(channel, number, verdict, words)
        code = 0
    finally:
        os._exit(code)


def judge(settings: AuthSettings, user: str, password: str) -> tuple[bytes, str]:
    """(YES, NO or TROUBLE, words for the log). One that says yes is enough; a "no" needs all of them to say so."""
    troubles = []
    if settings.password_file:
        try:
            data, seen = read_trusted(settings.password_file)
            if readers(seen):
                raise Untrusted(f"can be read by {readers(seen)}")
            if passwords.fits(data, user, password):
                return YES, ""
        except (OSError, Untrusted) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else str(problem)
            troubles.append(f"{settings.password_file}: {reason}")
    if settings.pam:
        try:
            if pam.fits(user, password):
                return YES, ""
        except pam.Trouble as problem:
            troubles.append(f"PAM: {problem}")
    return (TROUBLE, "; ".join(troubles)) if troubles else (NO, "")


def _reap(at_work: dict[int, bytes], channel: socket.socket, *, wait: bool) -> None:
    """Collect children; wait: at least one. For one that died without an answer, give one."""
    while at_work:
        try:
            pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
        except ChildProcessError:
            at_work.clear()
            return
        if pid == 0:
            return
        wait = False
        number = at_work.pop(pid, b"")
        if number and os.waitstatus_to_exitcode(status) != 0:
            _say(channel, number, TROUBLE, f"check ended ({os.waitstatus_to_exitcode(status)})")


def _say(channel: socket.socket, number: bytes, verdict: bytes, words: str) -> None:
    try:
        channel.send(number + verdict + words.encode("utf-8", "backslashreplace")[:MAX_WORDS])
    except OSError:
        pass  # the listener is gone


def question(number: int, user: str, password: str) -> bytes:
    """What a listener sends. Raises ValueError for what cannot be asked."""
    name, secret = user.encode("utf-8", "surrogateescape"), password.encode("utf-8", "surrogateescape")
    packet = _NUMBER.pack(number) + name + b"\0" + secret
    if not name or b"\0" in name + secret or len(packet) > MAX_PACKET:
        raise ValueError("not a name and a password")
    return packet


def read_answer(packet: bytes) -> tuple[int, bytes, str]:
    """(number, YES, NO or TROUBLE, words). Raises ValueError."""
    if len(packet) < 5 or packet[4:5] not in (YES, NO, TROUBLE):
        raise ValueError("not an answer")
    return int(_NUMBER.unpack_from(packet)[0]), packet[4:5], packet[5:].decode("utf-8", "replace")
