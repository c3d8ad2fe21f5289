"""Promises that are made at the same moment share a sync: several files, one journal commit.

Each file is synced by an fsync of its own, and whoever asked for it hears of that one's result: what is promised does
not rest on anything in here. What is shared is the work. Before the first fsync every file's data is sent on its way
(sync_file_range(2)), which makes the file system allocate all of it; the first fsync then commits one transaction that
has all files and all names in it, and the others find nothing left to commit. Ten files of 4 KB take one commit of an
ext4 journal instead of ten, and a third of the time.

sync_file_range alone makes nothing durable, and where it is missing everything is as safe and merely slower.
"""

import ctypes
from collections.abc import Sequence

from . import durable

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def sync_all(fds: Sequence[int], directory: str = "") -> list[OSError | None]:
    """fsync each descriptor: what came of it, one for one. Blocks; nothing is raised.

    directory: where their names are, if the file system needs that synced too (durable.py).
    """
    if len(fds) > 1:
        for fd in fds:
            _begin_writing(fd)
    results: list[OSError | None] = [_attempt(fd) for fd in fds]
    if directory:
        try:
            durable.sync_directory(directory)
        except OSError as trouble:
            results = [result or trouble for result in results]
    return results


def _attempt(fd: int) -> OSError | None:
    try:
        durable.sync(fd)
    except OSError as trouble:
        return trouble
    return None


def _begin_writing(fd: int) -> None:
    """A hint to the kernel. Errors do not matter here: the fsync that follows reports them."""
    function = getattr(_libc, "sync_file_range", None)
    if function is not None:
        function(ctypes.c_int(fd), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


