"""Findings in our name that are not ours: Authentication-Results that a message brings along.

A reader believes every such field that bears our name. So one that is there before we have written any is a forgery,
and goes (completion.py), also where our name stands beside a comment or cannot be read with certainty; others' fields
stay. RFC 8601 section 5.
"""

NAME = b"authentication-results"


def bears(field: bytes, name: bytes) -> bool:
    """Whether a reader might take this field for one of the host with this name: it is one of the words in front of
    the first semicolon."""
    words = field.partition(b":")[2].partition(b";")[0].lower()
    for mark in b'()"\\\r\n\t/':
        words = words.replace(bytes((mark,)), b" ")
    return name.lower().rstrip(b".") in [word.rstrip(b".") for word in words.split()]
