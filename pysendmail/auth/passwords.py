"""A file of users and password hashes ([auth] password_file), and whether a password fits.

One user a line: NAME:HASH, and whatever stands behind a further colon is ignored, so that a passwd-file of Dovecot can
be used; "#" begins a comment. A hash is what crypt(5) calls one, as mkpasswd(1) and `doveadm pw` print it, with or
without a scheme in braces in front:

    yescrypt ($y$), gost-yescrypt ($gy$), scrypt ($7$), bcrypt ($2a$ $2b$ $2y$), SHA-512 ($6$), SHA-256 ($5$)

Older methods (DES, MD5, {PLAIN}) are no protection, and such a line lets nobody in. Where libcrypt cannot compute
a hash, which may take many megabytes, that is trouble and no wrong password. The hashing is that of libcrypt
(libxcrypt, which every Debian has, since PAM and login use it), called by its own interface. It takes time on purpose;
a user who is not in the file takes as long as one who is, or who exists would be no secret. Secrets appear in no
exception and no log.
"""

import ctypes
import errno
from functools import cache
from typing import Any

MAX_LINE = 4096  # bytes of a line that counts
MAX_PASSWORD = 511  # bytes that libcrypt takes
METHODS = (b"$y$", b"$gy$", b"$7$", b"$2a$", b"$2b$", b"$2y$", b"$6$", b"$5$")

_DATA_SIZE = 32_768  # sizeof(struct crypt_data), which libxcrypt keeps for ever
_NOBODY = b"$6$rounds=5000$nobody..........$"  # what an unknown user's password is hashed with in an empty file


class NoLibrary(OSError):
    """libcrypt cannot be had."""


def find(data: bytes, user: bytes) -> tuple[bytes, bytes]:
    """(the hash of a user, that of anybody) in the contents of a file; b"" if there is none."""
    found = anybody = b""
    for line in data.split(b"\n"):
        name, colon, rest = line.partition(b":")
        if not colon or line.startswith(b"#") or len(line) > MAX_LINE:
            continue
        hashed = _without_scheme(rest.split(b":", 1)[0].strip())
        if not hashed.startswith(METHODS):
            continue
        anybody = anybody or hashed
        if not found and name == user:
            found = hashed
    return found, anybody


def _without_scheme(hashed: bytes) -> bytes:
    """Without the name that Dovecot puts in front: {SHA512-CRYPT}$6$..."""
    if hashed.startswith(b"{"):
        scheme, _, rest = hashed[1:].partition(b"}")
        return rest if scheme.upper().endswith(b"CRYPT") else b""
    return hashed


def fits(data: bytes, user: str, password: str) -> bool:
    """Whether the password is that of this user in the contents of a file. Takes its time. Raises OSError."""
    name, secret = user.encode("utf-8", "surrogateescape"), password.encode("utf-8", "surrogateescape")
    hashed, anybody = find(data, name)
    made = _crypt(secret, hashed or anybody or _NOBODY)
    if made is None and hashed and _is_possible(secret):  # libcrypt does not say why: it may be short of memory
        raise OSError(errno.ENOMEM, "libcrypt cannot compute a hash")
    import hmac  # with OpenSSL, where there are passwords alone

    return bool(hashed) and made is not None and hmac.compare_digest(made, hashed)


@cache
def _library() -> Any:
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.crypt_rn.restype = ctypes.c_char_p
        library.crypt_rn.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
        return library
    raise NoLibrary(2, "libcrypt cannot be loaded")


def _is_possible(secret: bytes) -> bool:
    return 0 < len(secret) <= MAX_PASSWORD and b"\0" not in secret


def _crypt(secret: bytes, setting: bytes) -> bytes | None:
    """crypt(3) with memory of its own; None if it cannot be done with this setting or password."""
    if not _is_possible(secret):
        return None
    memory = ctypes.create_string_buffer(_DATA_SIZE)
    made = _library().crypt_rn(secret, setting, memory, _DATA_SIZE)
    ctypes.memset(memory, 0, _DATA_SIZE)
    return bytes(made) if made is not None else None
