"""A claim on a message: no other runner works on it as long as some process has the claim's descriptor open.

It is the journal that is locked, not the message: agents, which belong to users, get descriptors of that. See
daemon/vigil.py.
"""

import errno
import os

from . import durable


class InWork(OSError):
    """A runner that was replaced still waits for an outcome of this message."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "it is being delivered by an earlier runner")

    def __str__(self) -> str:
        return str(self.strerror)


def make(journal: str) -> int:
    """The descriptor of a claim. Raises OSError."""
    fd = os.open(journal, durable.READ)
    try:
        durable.lock(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def exists(journal: str) -> bool:
    """Raises OSError."""
    try:
        fd = os.open(journal, durable.READ)
    except FileNotFoundError:
        return False
    try:
        return not durable.is_committed(fd)  # that is: whether it is locked
    finally:
        os.close(fd)
