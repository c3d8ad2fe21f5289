"""Landlock: what a process without privilege may still write and start, for good (landlock(7)).

Other users' files are safe from such a process by their modes. This takes away what modes leave: directories that
anybody may write (/tmp, the drop), programs that anybody may start, and, from Linux 6.12 on, signals to processes
that happen to have the same user. Whoever takes over a listener has no shell to start and no place to keep anything.

Reading is left alone: what must not be read is not readable. A kernel without Landlock, or with its first version,
which knows no rename between directories, confines nothing; everything else works the same.
"""

import ctypes
import os
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_WITH_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_FIRST, _TRUNCATE_FROM, _NETWORK_FROM, _SCOPE_FROM = 2, 3, 4, 6  # versions of the interface
_EXECUTE, _WRITE_FILE = 1 << 0, 1 << 1
_REMOVE_AND_MAKE = 0x3FF << 4  # REMOVE_DIR .. REFER: names
_TRUNCATE = 1 << 14
_SCOPE_SIGNAL = 1 << 1


def confine(*writable: str) -> bool:
    """From now on this process and its children write nothing but below these directories, and start no program.

    Whether the kernel can do it. Call it after prctl(PR_SET_NO_NEW_PRIVS), before there are threads. Raises OSError
    for a directory that cannot be opened, and where a kernel that can does not.
    """
    version = _syscall(_CREATE_RULESET, None, 0, _WITH_VERSION)
    if version < _FIRST:
        return False
    names = _REMOVE_AND_MAKE | _WRITE_FILE | (_TRUNCATE if version >= _TRUNCATE_FROM else 0)
    # A kernel knows as many of these fields as its version has: files, network, scope.
    fields = [names | _EXECUTE, *([0] * (version >= _NETWORK_FROM)), *([_SCOPE_SIGNAL] * (version >= _SCOPE_FROM))]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = _checked(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in writable:
            directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _checked(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", names, directory), 0)
            finally:
                os.close(directory)
        _checked(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def _checked(number: int, *arguments: int | bytes) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return result


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """syscall(2); -1 with errno set. Numbers go as long, so that none is cut."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one
                                                     for one in arguments)))
