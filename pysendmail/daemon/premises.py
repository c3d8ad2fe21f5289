"""What the supervisor prepares before anybody is served: it is the only daemon here, its sockets are bound, and the
drop is closed to readers. As root, and before the first child.

The sockets are for everybody (0666); who a peer is, the kernel says. They outlive runners, so that no client is refused
while one is replaced.
"""

import fcntl
import os
import socket
import stat
import struct

from ..events import NOTICE, Log
from ..paths import Paths
from ..spool.queue_file import needs_directory_sync

BACKLOG = 64
OPEN_DROP, CLOSED_DROP = 0o3777, 0o3733
# acl(5) as the kernel stores it: version 2; then tag, permissions, id: owner rw-, group r--, others ---.
PRIVATE_ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)
_SOCKETS = {"wake": socket.SOCK_DGRAM, "submit": socket.SOCK_STREAM, "control": socket.SOCK_STREAM}


def lock(paths: Paths) -> int:
    """A descriptor that says that this daemon is alone, to be kept; -1: another one serves these sockets. It would lose
    them to us, and with them everybody's way to it. (The spool has a lock of its own, which the runner takes.)"""
    os.makedirs(paths.run, 0o755, exist_ok=True)
    held = os.open(f"{paths.run}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return -1
    return held


def open_sockets(paths: Paths) -> dict[str, socket.socket]:
    """Bind what the runner listens on."""
    opened = {}
    for name, kind in _SOCKETS.items():
        path = f"{paths.run}/{name}"
        if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)  # of an earlier daemon
        one = opened[name] = socket.socket(socket.AF_UNIX, kind)
        one.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - whoever submits; peers are known by their uid
        if kind == socket.SOCK_STREAM:
            one.listen(BACKLOG)
    return opened


def close_drop(paths: Paths, log: Log) -> None:
    """Whatever a user makes in the drop, with whatever umask, shall be readable for no other user.

    bin/sendmail sees to that itself; a default ACL (acl(5)) makes it so for everybody. File systems without ACLs
    lack this one safety.
    """
    # Where a file's sync does not cover its name, submitters sync the directory, and must be able to open it.
    mode = OPEN_DROP if needs_directory_sync(paths.drop_new) else CLOSED_DROP
    for path in (paths.drop_tmp, paths.drop_new):
        try:
            if stat.S_IMODE(os.stat(path).st_mode) != mode:
                os.chmod(path, mode)
            os.setxattr(path, "system.posix_acl_default", PRIVATE_ACL)
        except OSError as trouble:
            log(NOTICE, f"mode and default ACL of {path} are not what they should be: {trouble.strerror}")
