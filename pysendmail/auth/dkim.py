"""DKIM: whose signatures a message bears, and whether they hold. The work is dkimpy's (Debian: python3-dkim).

A signature that covers only the beginning of the body ("l=", where that is not all of it) proves nothing about the
rest, which anybody may have added, and one that is made with SHA-1 proves nothing at all: neither counts ("policy").
Runs in a worker thread, on the whole message in memory, so that only messages up to MAX_MESSAGE are looked at. Our own
signatures are made in auth/signing.py.

A regular expression or a power that takes a minute stops the whole process, threads or not. So the library gets no
signature or key with which its take more than linear time, and a linear one in the place of that for bodies.
RFC 6376, 8301, 8463, 8601 section 2.7.1.
"""

import re
from dataclasses import dataclass
from typing import Any

from ..mail import headers
from ..mail.outcome import one_line
from .lookups import Lookups
from .optional import optional

MAX_MESSAGE = 5 * 1024 * 1024  # bytes; the library needs several times as much memory
MAX_SIGNATURES = 5  # that are looked at; whoever sends more wants us busy
MAX_TEXT = 255  # characters of a domain or selector
MAX_FIELD = 8192  # bytes of a signature; one by an RSA key of 4096 bits, over fifty names, has 2000; "z=" adds a header
MAX_BLANKS = 64  # in a row in a signature, line ends included
MAX_KEY = 1000  # bytes of a key's record; one with 4096 bits, the largest that RFC 8301 wants read, has 760

_BLANKS = re.compile(rb"\s+")
_LAST_BLANKS = re.compile(rb"(?<![ \t])[ \t]+\r\n")
_WORDS = {"temperror": "no answer from DNS about the key", "permerror": "no key", "neutral": "key is too large"}


@dataclass(frozen=True, slots=True)
class DkimResult:
    """result: pass, fail, policy, neutral, permerror or temperror. domain, selector: as the signature names them,
    untrusted. words: why, for people."""

    result: str
    domain: str = ""
    selector: str = ""
    words: str = ""


def is_available() -> bool:
    return optional("dkim") is not None


def check(head: bytes, body: bytes, lookups: Lookups) -> list[DkimResult]:
    """The result of each signature; none without any. head, body: with LF line ends. Waits."""
    library = optional("dkim")
    fields = [head[start:end] for name, start, end in headers.scan(head)[0] if name == b"dkim-signature"]
    if library is None or not fields:
        return []
    if len(head) + len(body) > MAX_MESSAGE:
        return [DkimResult("neutral", words="message is too large to be checked")]
    message = head.replace(b"\n", b"\r\n") + b"\r\n" + body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    library.canonicalization.strip_trailing_whitespace = _without_last_blanks
    return [_check(library, message, number, lookups) if _is_short(field) else DkimResult("permerror", words="too long")
            for number, field in enumerate(fields[:MAX_SIGNATURES])]


def _is_short(field: bytes) -> bool:
    return len(field) <= MAX_FIELD and all(len(one) <= MAX_BLANKS for one in _BLANKS.findall(field))


def _without_last_blanks(body: bytes) -> bytes:
    """Without those at the ends of lines; a run of them is looked at once, wherever it ends."""
    return _LAST_BLANKS.sub(b"\r\n", body)


def _check(library: Any, message: bytes, number: int, lookups: Lookups) -> DkimResult:
    troubles: list[str] = []  # that the library takes for a signature which does not match

    def find_key(name: bytes | str, timeout: float = 0.0) -> bytes | None:
        records, is_whole = lookups.text(name.decode("ascii", "replace") if isinstance(name, bytes) else name)
        if not is_whole:
            troubles.append("temperror")
            raise library.DnsTimeoutError("no answer from DNS")
        if not records or len(records[0]) > MAX_KEY:
            troubles.append("neutral" if records else "permerror")
            return None
        return records[0]

    verifier = None
    try:
        verifier = library.DKIM(message)
        is_good = verifier.verify(idx=number, dnsfunc=find_key)
        result, words = ("pass", "") if is_good else ("fail", "signature does not match")
    except library.ValidationError as problem:
        is_body = str(problem).startswith("body hash")
        result, words = ("fail", "body has been changed") if is_body else ("permerror", "not a valid signature")
    except (MemoryError, library.NaClNotFoundError) as problem:
        result, words = "neutral", type(problem).__name__
    except Exception as problem:  # noqa: BLE001 - the library raises what it likes for what strangers sign with
        result, words = "permerror", type(problem).__name__
    signature = getattr(verifier, "signature_fields", None) or {}
    if troubles and result != "pass":
        result, words = troubles[-1], _WORDS[troubles[-1]]
    elif result == "pass" and b"l" in signature and not _covers_all(library, verifier, signature):
        result, words = "policy", "covers a part of the body"
    elif result == "pass" and signature.get(b"a") == b"rsa-sha1":
        result, words = "policy", "made with SHA-1"
    return DkimResult(result, _text(signature.get(b"d", b"")), _text(signature.get(b"s", b"")), words)


def _covers_all(library: Any, verifier: Any, signature: dict[bytes, bytes]) -> bool:
    """Whether a good signature with "l=" is one of the whole body."""
    form = library.CanonicalizationPolicy.from_c_value(signature.get(b"c"))
    return int(signature[b"l"]) >= len(form.canonicalize_body(verifier.body))


def _text(value: bytes) -> str:
    return one_line(value.decode("utf-8", "replace"), MAX_TEXT)
