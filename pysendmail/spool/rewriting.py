"""Another text in the place of a queue file's: the one case in which a message is queued anew, under the same name.

It happens before anything of the message is delivered: whoever examines mail has changed it, or has found nothing and
leaves the mark "scanned". The file itself is never changed; a new one takes its name.

    the old file's source is still there (S3)     write tmp/ID -> rename. Nothing is synced: after a crash both are
                                                  thrown away and the source is copied, and examined, again
    the old file is all that there is (S4)        write tmp/ID -> fsync -> rename -> fsync. Before the rename is on the
                                                  disk the old file is, whole; after it the new one is. The second sync
                                                  makes sure which, before the journal says anything about the new one

States are those of spool/queue.py. What a crash leaves in tmp/ is removed at the next start.
"""

import os
from collections.abc import Iterable

from ..mail.envelope import Envelope
from . import durable
from .queue_file import write_message


class Unsure(Exception):
    """The second sync has failed: either file may be there after a crash, and nothing may be said of the recipients,
    which the journal has by number. The message is to be read again, as it is then."""


def rewrite(path: str, tmp: str, envelope: Envelope, content: Iterable[bytes], *, is_all_there_is: bool,
            directory: str = "") -> tuple[int, int]:
    """Put a file with this envelope and content in the place of `path`; (offset of its text, its length).

    tmp: an unused name on the same file system. directory: that of path, where the file system needs it synced
    (durable.py), else "". Raises OSError or ValueError: the old file is in place; or Unsure.
    """
    fd = durable.create(tmp)
    try:
        try:
            offset, length = write_message(fd, envelope, content)
            durable.stamp(fd, envelope.received_at)
            if is_all_there_is:
                durable.sync(fd)
            durable.rename(tmp, path)
        except BaseException:
            durable.unlink(tmp)
            raise
        if is_all_there_is:
            try:
                durable.sync(fd)
                if directory:
                    durable.sync_directory(directory)
            except OSError as trouble:
                raise Unsure(f"{path}: {trouble.strerror}") from trouble
    finally:
        os.close(fd)
    return offset, length
