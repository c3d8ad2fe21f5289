"""Findings in our name that are not ours: Authentication-Results that a message brings along.

A reader believes every such field that bears our name. So one that is there before we have written any is a forgery,
and is removed, also where our name stands beside a comment or cannot be read with certainty; others' fields stay. RFC
8601 section 5.
"""

from ..mail import headers
from ..mail.envelope import raw

NAME = b"authentication-results"


def without_forged(head: bytes, hostname: str) -> bytes:
    """The header without such fields that bear our name. The same object if there is none."""
    name = raw(hostname).lower()
    forged = [(start, end) for found, start, end in headers.scan(head)[0]
              if found == NAME and _bears(head[start:end], name)]
    if not forged:
        return head
    kept, done = [], 0
    for start, end in forged:
        kept.append(head[done:start])
        done = end
    return b"".join([*kept, head[done:]])


def _bears(field: bytes, name: bytes) -> bool:
    """Whether a reader might take this field for one of the host with this name: it is one of the words in front of
    the first semicolon."""
    words = field.partition(b":")[2].partition(b";")[0].lower()
    for mark in b'()"\\\r\n\t/':
        words = words.replace(bytes((mark,)), b" ")
    return name in words.split() or name.rstrip(b".") in [word.rstrip(b".") for word in words.split()]
