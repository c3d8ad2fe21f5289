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


def rewrite(path: str, tmp: str, envelope: Envelope, content: Iterable[bytes], *, is_all_there_is: bool,
            directory: str = "") -> tuple[int, int]:
    """Put a file with this envelope and content in the place of `path`; (offset of its text, its length).

    tmp: an unused name on the same file system. directory: that of path, where the file system needs it synced
    (durable.py), else "". Raises OSError or ValueError. The old file is in place then; after a failed second sync, one
    of the two is.
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
            durable.sync(fd)
            if directory:
                durable.sync_directory(directory)
    finally:
        os.close(fd)
    return offset, length
