"""DKIM: whose signatures a message bears, and whether they hold. The work is dkimpy's (Debian: python3-dkim).

A signature that covers only the beginning of the body ("l=") proves nothing about the rest, which anybody may have
added, and one that is made with SHA-1 proves nothing at all: neither counts ("policy"). Runs in a worker thread, on the
whole message in memory, so that only messages up to MAX_MESSAGE are looked at. Our own signatures are made in
auth/signing.py. RFC 6376, 8301, 8463, 8601 section 2.7.1.
"""

from dataclasses import dataclass
from typing import Any

from ..mail import headers
from ..mail.outcome import one_line
from .lookups import Lookups
from .optional import optional

MAX_MESSAGE = 5 * 1024 * 1024  # bytes; the library needs several times as much memory
MAX_SIGNATURES = 5  # that are looked at; whoever sends more wants us busy
MAX_TEXT = 255  # characters of a domain or selector


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
    count = sum(name == b"dkim-signature" for name, _, _ in headers.scan(head)[0])
    if library is None or not count:
        return []
    if len(head) + len(body) > MAX_MESSAGE:
        return [DkimResult("neutral", words="message is too large to be checked")]
    message = head.replace(b"\n", b"\r\n") + b"\r\n" + body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return [_check(library, message, number, lookups) for number in range(min(count, MAX_SIGNATURES))]


def _check(library: Any, message: bytes, number: int, lookups: Lookups) -> DkimResult:
    troubles: list[str] = []  # that the library takes for a signature which does not match

    def find_key(name: bytes | str, timeout: float = 0.0) -> bytes | None:
        records, is_whole = lookups.text(name.decode("ascii", "replace") if isinstance(name, bytes) else name)
        if not is_whole:
            troubles.append("temperror")
            raise library.DnsTimeoutError("no answer from DNS")
        if not records:
            troubles.append("permerror")
        return records[0] if records else None

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
        result, words = troubles[-1], "no answer from DNS about the key" if troubles[-1] == "temperror" else "no key"
    elif result == "pass" and b"l" in signature:
        result, words = "policy", "covers a part of the body"
    elif result == "pass" and signature.get(b"a") == b"rsa-sha1":
        result, words = "policy", "made with SHA-1"
    return DkimResult(result, _text(signature.get(b"d", b"")), _text(signature.get(b"s", b"")), words)


def _text(value: bytes) -> str:
    return one_line(value.decode("utf-8", "replace"), MAX_TEXT)
