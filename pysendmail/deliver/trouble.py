"""What an error of the file system means for mail that was to be written: always "later", never "no".

sendmail and Postfix bounce on a mailbox that is over quota or not writable. A full disk, a read-only mount and a lock
that somebody forgot are things that people repair within the life of a message, so every one of them is temporary here;
the queue's lifetime turns it into a failure. RFC 3463 (status codes).
"""

import errno
import os

from ..mail.outcome import Outcome, deferred

SYSTEM_FULL, MAILBOX_FULL, MAILBOX_STATUS, SYSTEM_OTHER = "4.3.1", "4.2.2", "4.2.0", "4.3.0"

# There is no room for this message, but there may be for a smaller one.
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_STATUS = {
    errno.ENOSPC: SYSTEM_FULL,
    errno.EDQUOT: MAILBOX_FULL,
    errno.EFBIG: MAILBOX_FULL,
    errno.EIO: SYSTEM_OTHER,
    errno.EMFILE: SYSTEM_OTHER,
    errno.ENFILE: SYSTEM_OTHER,
    errno.ENOMEM: SYSTEM_OTHER,
    errno.EAGAIN: SYSTEM_OTHER,
    errno.ENOLCK: SYSTEM_OTHER,
    errno.ESTALE: SYSTEM_OTHER,
}


def from_error(error: OSError, doing: str, path: str) -> Outcome:
    """The deferral for an OSError. doing: "cannot write to", "cannot lock"; path: as people know it."""
    number = error.errno or errno.EIO
    return deferred(_STATUS.get(number, MAILBOX_STATUS), f"{doing} {path}: {os.strerror(number)}")
