"""Becoming somebody else for good, and starting clean: what every child of the root process does first.

Order: session, descriptors, signals, umask, limits, supplementary groups, group, user; then everything is read back,
and a child that is not exactly what it should be ends without having done anything (sendmail and Linux capabilities
CVE-2000-0506, Exim CVE-2011-0017: the result of setuid was not looked at; maildrop CVE-2010-0301: the group stayed
root).
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps: that makes enums of 62 numbers at each fork
import ctypes
import gc
import os
import resource
import signal

from ..users import User

UMASK = 0o077
MAX_FILES = 1024
EX_TEMPFAIL = 75

_ALL = tuple(int(number) for number in signal.valid_signals())
_HANDLED = tuple(number for number in _ALL if number not in (signal.SIGKILL, signal.SIGSTOP))


class NotBecome(Exception):
    """The process is not what it should be now. The only thing left to do is to end it."""


def fork() -> int:
    """As os.fork, for a child that calls `clean` or `shed` first: no signal reaches it before that. A handler of its
    parent's would otherwise run in it, and tell the parent of a signal that was not the parent's."""
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)
    pid = -1
    try:
        pid = os.fork()
        if pid == 0:
            gc.freeze()  # a collector that looked at what was the parent's would make a copy of every page of it
        return pid
    finally:
        if pid != 0:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def shed(keep: set[int]) -> None:
    """No descriptors above 2 but `keep`, and default signals: nothing that comes from the parent's event loop is left.

    Python ignores SIGPIPE and SIGXFSZ at start, and children inherit that: all handlers are reset here.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    last = 3
    for fd in sorted(keep - {0, 1, 2}):
        os.closerange(last, fd)
        last = fd + 1
    os.closerange(last, 65536 if limit == resource.RLIM_INFINITY else max(limit, last))
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        if _signal.getsignal(number) not in (_signal.SIG_DFL, None):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def clean(keep: set[int]) -> None:
    """A session of its own, no descriptors but `keep` and, on /dev/null, what is missing of 0-2, default signals, a
    safe umask."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in {0, 1, 2} - keep:
        os.dup2(null, fd)
    shed(keep)
    os.umask(UMASK)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    os.chdir("/")


def take_errors_for_signals() -> None:
    """For processes of our own code: writing to somebody who has gone, or beyond RLIMIT_FSIZE, is an OSError to deal
    with and not the end. What runs commands calls `clean` again, so that those get the signals they expect."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)


def become(user: User, *, saved_group: int | None = None, more_groups: frozenset[int] = frozenset()) -> None:
    """Take on a user's groups, gid and uid, irrevocably; then read it all back. Raises NotBecome or OSError.

    saved_group: a group that stays reachable by setegid (the mailbox group), and only by that. more_groups: besides
    those that the user is a member of.
    """
    saved = user.gid if saved_group is None else saved_group
    groups = sorted({*os.getgrouplist(user.name, user.gid), *more_groups})
    os.setgroups(groups)
    os.setresgid(user.gid, user.gid, saved)
    os.setresuid(user.uid, user.uid, user.uid)
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid, user.gid, saved):
        raise NotBecome("ids are not the user's")
    if set(os.getgroups()) - {user.gid} != set(groups) - {user.gid}:
        raise NotBecome("groups are not the user's")
    if user.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise NotBecome("the way back to root is open")


def harden(supervisor: int) -> None:
    """What a process without privilege still can give up: new privileges by exec, and a life without its supervisor.

    `supervisor` is that one's pid; 1 where it is all that runs in a container.
    """
    pr_set_no_new_privs, pr_set_pdeathsig = 38, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    libc.prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:  # it ended before the line above
        raise OSError(3, "the supervisor is gone")
