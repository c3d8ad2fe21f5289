"""What a drop file becomes: the copy in the queue, with its header completed and its envelope from what we know.

The copy follows from the file alone: made again after a crash it has the same bytes, which shows a mailbox that it has
them already. The submitter may still hold the file open, so it is read with explicit offsets, and length and checksum
are compared with what was really copied: who changes it meanwhile spoils his own message and no other.

Nothing here moves or removes a file; what is wrong is raised, and intake.py decides what becomes of it.
"""

import codecs
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..config import Config
from ..events import Events
from ..mail import completion, headers, submission, trace
from ..mail.envelope import Envelope, Origin
from ..route.router import Router
from ..spool import record
from ..spool.queue import Message, Queue
from ..spool.queue_file import CHUNK

WHOLE = 1024 * 1024  # bytes: a message up to this size is handled in memory at once


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who owns a drop file. login: for addresses; full_name: of the account, "" if it has none."""

    uid: int
    login: str
    full_name: str


class Refused(Exception):
    """The file is not a submission: quarantine. The text says why."""


class Copier:
    """Copies drop files into one queue."""

    def __init__(self, queue: Queue, config: Config, router: Router, events: Events) -> None:
        self._queue = queue
        self._config = config
        self._router = router
        self._events = events

    def copy(self, fd: int, found: str, name: str, seen: os.stat_result, submitter: Submitter, now: float) -> Message:
        """The message that intake/`name`, open as `fd`, becomes under the id `found`. now: seconds since the epoch.

        Raises Refused, Damaged or ValueError for what is no submission, OSError where it cannot be copied now. It was
        received when its submitter wrote it, unless he says that this is yet to come.
        """
        size, received_at = seen.st_size, min(max(0.0, seen.st_mtime), now)
        start = os.pread(fd, min(size, WHOLE), 0)
        offset, length, checksum = record.read_first(start[:record.FIRST_LENGTH])
        if length != size or offset > len(start):
            raise record.Damaged(f"{size} bytes instead of {length}")
        asked = submission.read(record.fields(start[record.FIRST_LENGTH:offset]))
        is_too_large = size > self._config.limits.message_size
        if is_too_large:  # its sender is told, with its header; nobody reads a sparse file of a terabyte for that
            is_ascii, is_utf8 = _kind(start[offset:])
        elif size > len(start):
            is_ascii, is_utf8 = _survey(fd, offset, length, checksum)
        else:
            if record.crc(start[record.FIRST_LENGTH:]) != checksum:
                raise record.Damaged("checksum does not match")
            is_ascii, is_utf8 = _kind(start[offset:])
        origin = Origin("command", submitter.uid, submitter.login, protocol=asked.protocol)
        envelope = submission.envelope(asked, found, origin, received_at, self._router.qualify,
                                       self._router.here)
        text = start[offset:]
        fields, header_end, body_at = headers.scan(text)
        is_cut = headers.is_cut(text, fields, body_at)
        head, hops = self._head(text[:header_end], fields, asked, envelope, submitter, is_ascii, is_utf8)
        envelope = replace(envelope, refusal=self._refusal(hops, size, is_cut=is_cut))
        body = text[body_at:]
        content: Iterable[bytes] = [head + body]
        if size > len(start) and not is_too_large:
            content = _stream(fd, head + body, len(start), length, record.crc(start[record.FIRST_LENGTH:]), checksum)
        message = self._queue.adopt(envelope, content, name)
        message.is_put_off = asked.delivery in ("q", "d")
        self._events.accepted(found, envelope.sender, size - offset, len(envelope.recipients),
                              completion.message_id_in(head), f"{submitter.login}@localhost", body=envelope.body,
                              protocol=asked.protocol, tag=asked.tag)
        return message

    def _head(self, header: bytes, fields: list[headers.Field], asked: submission.Submission, envelope: Envelope,
              submitter: Submitter, is_ascii: bool, is_utf8: bool) -> tuple[bytes, int]:
        """(our Received line, the completed header and its blank line; hops so far)."""
        now = envelope.received_at
        offset = time.localtime(now).tm_gmtoff
        facts = completion.Facts(
            envelope.id, envelope.sender, self._config.domain, self._config.hostname, now, offset,
            asked.full_name or submitter.full_name, asked.is_gateway)
        head = completion.complete(header, facts)
        if not asked.is_gateway and not is_ascii:
            head += completion.mime_label(head, has_8bit=True, is_utf8=is_utf8)
        hops = asked.hops + trace.hops(fields)
        return trace.received(envelope, self._config.hostname, offset) + head + b"\n", hops

    def _refusal(self, hops: int, size: int, *, is_cut: bool) -> str:
        """Why every recipient of a message fails, "" = none does: it reached us, so its sender gets a report and not
        silence. It stands in the queue file, so that no crash turns a refused message into one that is delivered."""
        limits = self._config.limits
        if size > limits.message_size:
            return f"5.3.4 message is larger than {limits.message_size} bytes"
        if is_cut:  # what stands behind the limit would go out unseen, a Bcc for one
            return f"5.3.4 header is longer than {headers.MAX_HEADER} bytes or {headers.MAX_LINES} lines"
        if hops > limits.hops:
            return f"5.4.6 too many hops: more than {limits.hops}, this message goes in circles"
        return ""


def _kind(body: bytes) -> tuple[bool, bool]:
    """(all ASCII, all UTF-8)."""
    if body.isascii():
        return True, True
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False, False
    return False, True


def _survey(fd: int, offset: int, length: int, checksum: int) -> tuple[bool, bool]:
    """As _kind, for a message too large to hold; checks length and checksum on the way. Raises Damaged."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_ascii, is_utf8, at, found = True, True, record.FIRST_LENGTH, 0
    while at < length:
        chunk = os.pread(fd, min(CHUNK, length - at), at)
        if not chunk:
            raise record.Damaged("file became shorter")
        found = record.crc(chunk, found)
        text = chunk[max(0, offset - at):]
        is_ascii = is_ascii and text.isascii()
        if is_utf8 and not is_ascii:
            try:
                decoder.decode(text)
            except UnicodeDecodeError:
                is_utf8 = False
        at += len(chunk)
    if found != checksum:
        raise record.Damaged("checksum does not match")
    return is_ascii, is_utf8


def _stream(fd: int, first: bytes, at: int, length: int, found: int, checksum: int) -> Iterator[bytes]:
    """`first`, then the file from `at` on. Raises Damaged when the file has changed since it was surveyed."""
    yield first
    while at < length:
        chunk = os.pread(fd, min(CHUNK, length - at), at)
        if not chunk:
            raise record.Damaged("file became shorter")
        found = record.crc(chunk, found)
        at += len(chunk)
        yield chunk
    if found != checksum:
        raise record.Damaged("file was changed while it was copied")
