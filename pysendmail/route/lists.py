"""List files, named by :include: in an alias: read when mail comes, since list managers rewrite them at any time.

Anybody may be in charge of a list: all that a list can do is to name addresses. Lines that are no users come back in a
bounce, though, and whoever owns a directory on the way to a list could point its name at any file that this process can
read, such as other people's mail in the queue. So a list must be a file that everybody can read, or root's own in
directories that only root can change. One that everybody can write is not used either: nobody is in charge of it.
"""

import os
import stat
from collections.abc import Callable

from . import textfile, values
from .values import Line

Fetch = Callable[[str, int], tuple[bytes, str]]


def read(path: str, limit: int, fetcher: Fetch | None = None) -> tuple[list[Line], str]:
    """(lines of a list of at most `limit` bytes, why it cannot be used or ""). fetcher: instead of `fetch`.

    An empty list is one that cannot be used: it is being written, or there is nobody to get the mail.
    """
    data, trouble = (fetcher or fetch)(path, limit)
    if trouble:
        return [], trouble
    lines = values.parse_lines(data)
    return lines, "" if lines else f"list {path} is empty"


def fetch(path: str, limit: int) -> tuple[bytes, str]:
    """(the content of a list, why it cannot be used or "")."""
    try:
        data, status = textfile.read(path, limit)
        if not is_shown(path, status):
            return b"", f"list {path}: must be readable by everybody, or root's in directories of root's alone"
    except OSError as trouble:
        return b"", f"cannot read list {path}: {trouble.strerror}"
    if status.st_mode & stat.S_IWOTH:
        return b"", f"list {path} is writable by everybody"
    if b"\0" in data:
        return b"", f"list {path} has NUL bytes: it is damaged"
    return data, ""


def is_shown(path: str, status: os.stat_result) -> bool:
    """Whether lines of this file, open with this status, may appear in a report to a stranger. Raises OSError."""
    if status.st_mode & stat.S_IROTH:
        return True
    if status.st_uid != 0:
        return False
    parts = os.path.normpath(path).split("/")
    for count in range(2, len(parts) + 1):
        found = os.lstat("/".join(parts[:count]))
        if found.st_uid != 0 or stat.S_ISLNK(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True
