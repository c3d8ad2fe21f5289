"""Findings in our name that are not ours: Authentication-Results that a message brings along.

A reader believes every such field that bears our name. So one that is there before we have written any is a forgery,
and goes (completion.py); others' fields stay. The name stands in front of the first semicolon, perhaps beside a comment
and a version. Readers differ in what they make of more than that (comments with semicolons or in one another, quotes,
backslashes, encoded words), so there our name is one too many wherever it stands. RFC 8601 section 5.
"""

import re

NAME = b"authentication-results"

_COMMENT = re.compile(rb"\([^()]*\)")
_PLAIN = re.compile(rb'[^()"\\\x80-\xff]*(?:\([^()"\\\x80-\xff]*\)[^()"\\\x80-\xff]*)*')
_SEPARATORS = b'()"/;' + bytes(range(32)) + bytes(range(127, 256))  # for some reader or other
_TO_BLANK = bytes.maketrans(_SEPARATORS, b" " * len(_SEPARATORS))


def bears(field: bytes, name: bytes) -> bool:
    """Whether a reader might take this field for one of the host with this name."""
    value = field.partition(b":")[2].lower()
    start = value.partition(b";")[0]
    if b"=?" in start:  # nobody has to encode a name, and who decodes it may see any
        return True
    text = start if _PLAIN.fullmatch(start) else value.replace(b"\\", b"")
    words = (_COMMENT.sub(b"", text) + b" " + text).translate(_TO_BLANK).split()
    return name.lower().rstrip(b".") in [word.rstrip(b".") for word in words]
