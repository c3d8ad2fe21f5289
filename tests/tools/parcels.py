"""Parcels for tests of the last hop: a message in a file, as the queue has one."""

import os
from pathlib import Path

from pysendmail.deliver.parcel import Parcel

HEAD = b"Return-Path: <bob@else.test>\nDelivered-To: alice@host.example\n"
FROM_LINE = b"From bob@else.test Tue Jul  1 10:52:37 2003\n"
ENVELOPE = b"Pysendmail-Message: what stands before the text in a queue file\n"


def queue_id(number: int) -> str:
    return f"0abcDEFG001{number:03}"


def message(number: int = 1, body: bytes = b"Hello.\n") -> bytes:
    """A message as it lies in the queue: its Received field carries the queue id."""
    return b"Received: by host.example id %s;\n\tTue, 1 Jul 2003 10:52:37 +0200\nSubject: number %d\n\n%s" % (
        queue_id(number).encode("ascii"), number, body)


class Parcels:
    """Makes parcels out of files below a directory; `close` gives the descriptors back."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: list[int] = []

    def make(self, text: bytes | None = None, *, number: int = 1, head: bytes = HEAD, from_line: bytes = FROM_LINE,
             may_repeat: bool = False) -> Parcel:
        path = self._directory / f"queue-file-{len(self._fds)}"
        path.write_bytes(ENVELOPE + (message(number) if text is None else text))
        return self.of_file(path, number=number, head=head, from_line=from_line, may_repeat=may_repeat)

    def of_file(self, path: Path, *, number: int = 1, head: bytes = HEAD, from_line: bytes = FROM_LINE,
                may_repeat: bool = False) -> Parcel:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        return Parcel(queue_id(number), fd, len(ENVELOPE), os.fstat(fd).st_size, head, from_line, may_repeat)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
