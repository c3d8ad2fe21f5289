"""DKIM signatures on mail of our own that leaves this host ([dkim]): domains, selector and key are the settings'.

A message is signed by the relay process in the form in which it goes to that host, behind masquerading and recoding,
since whatever changes it later breaks the signature: one signature for each host, a fraction of a millisecond each. The
body is hashed as it streams by, so a message of any size is signed in constant memory; it is read once more for that.

Signed is what is ours and whose From names one of the domains, or a name below one. Header fields that say who wrote
what to whom are in the signature; From, To, Cc, Subject, Date and Message-ID once more than they are there, so that
none can be added. Canonicalization is relaxed/relaxed. Keys are RSA (2048 bits or more) or Ed25519; the work is
python3-cryptography's, with a key that only the relay gets to see. RFC 6376, 8301, 8463.
"""

import base64
import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from ..config import DkimSettings, files
from ..mail import headers
from .author import from_domain
from .optional import optional

MIN_RSA = 1024  # bits that receivers still take (RFC 8301); 2048 is what is made here
MAX_HEAD = headers.MAX_HEADER
WIDTH = 72  # characters of a line of the field

SIGNED = (b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"date", b"message-id", b"in-reply-to",
          b"references", b"mime-version", b"content-type", b"content-transfer-encoding", b"content-disposition",
          b"resent-from", b"resent-sender", b"resent-to", b"resent-cc", b"resent-date", b"resent-message-id",
          b"list-id", b"list-help", b"list-post", b"list-unsubscribe", b"list-unsubscribe-post", b"auto-submitted")
ONCE_MORE = frozenset((b"from", b"to", b"cc", b"subject", b"date", b"message-id"))

Sign = Callable[[Iterable[bytes]], bytes]  # as Signer.sign; raises BadKey


class BadKey(Exception):
    """The key cannot be used. The text says why, and holds nothing of it."""


class BodyHash:
    """The SHA-256 of a body in its relaxed form, given in pieces with LF line ends."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._ends = 0  # line ends that count only if something follows
        self._has_blank = self._has_cr = False  # so does a blank, and a CR may be half a line end
        self._is_empty = True

    def add(self, piece: bytes) -> None:
        if self._has_cr:
            piece = b"\r" + piece
        self._has_cr = piece.endswith(b"\r")
        if self._has_cr:
            piece = piece[:-1]
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b" ")  # as DataEncoder (smtp/wire.py) sends it
        text = _with_single_blanks((b" " if self._has_blank else b"") + piece).replace(b" \n", b"\n")
        self._has_blank = text.endswith(b" ")
        if self._has_blank:
            text = text[:-1]
        kept = text.rstrip(b"\n")
        if kept:
            while self._ends:
                count = min(self._ends, 10_000)
                self._hash.update(b"\r\n" * count)
                self._ends -= count
            self._hash.update(kept.replace(b"\n", b"\r\n"))
            self._is_empty = False
        self._ends += len(text) - len(kept)

    def digest(self) -> bytes:
        """All has come."""
        if not self._is_empty:
            self._hash.update(b"\r\n")
        return self._hash.digest()


def _with_single_blanks(text: bytes) -> bytes:
    text = text.replace(b"\t", b" ")
    while b"  " in text:  # each turn halves what is left of the longest run
        text = text.replace(b"  ", b" ")
    return text


def relaxed(field: bytes) -> bytes:
    """A header field in its relaxed form, without its line end."""
    name, _, value = field.partition(b":")
    value = _with_single_blanks(value.translate(None, b"\r\n"))
    return name.strip(b" \t").lower() + b":" + value.strip(b" ")


class Signer:
    """domains: in small letters. key: PEM, without a passphrase. clock: seconds since the epoch. Raises BadKey."""

    def __init__(self, domains: Iterable[str], selector: str, key: bytes, clock: Callable[[], float]) -> None:
        self._domains = frozenset(domains)
        self._selector = selector
        self._algorithm, self._sign = _load(key)
        self._clock = clock

    def sign(self, pieces: Iterable[bytes]) -> bytes:
        """The DKIM-Signature field, with LF line ends, of a message as it will be sent; b"" = it is not signed.

        pieces: the message from its start, with LF line ends; its header ends within the first MAX_HEAD bytes.
        """
        waiting = iter(pieces)
        start = _start(waiting)
        fields, end, body_at = headers.scan(start)
        domain = domain_of(start[:end], self._domains)
        if not domain:
            return b""
        body = BodyHash()
        body.add(start[body_at:])
        for piece in waiting:
            body.add(piece)
        return self._field(domain, [(name, start[at:to]) for name, at, to in fields], body.digest())

    def _field(self, domain: str, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
        names: list[bytes] = []
        hashed: list[bytes] = []
        for name in SIGNED:
            found = [relaxed(text) for other, text in fields if other == name]
            names += [name] * (len(found) + (name in ONCE_MORE))
            hashed += reversed(found)
        field = b"DKIM-Signature: v=1; a=%s; c=relaxed/relaxed; d=%s; s=%s;\n\tt=%d; bh=%s;\n%s;\n\tb=" % (
            self._algorithm, domain.encode("ascii"), self._selector.encode("ascii"), int(self._clock()),
            base64.b64encode(body), _folded(b"\th=", b":".join(names), b":"))
        signature = base64.b64encode(self._sign(b"".join(text + b"\r\n" for text in hashed) + relaxed(field)))
        return field + _folded(b"", signature, b"") + b"\n"


def _start(pieces: Iterator[bytes]) -> bytes:
    """So much of a message that its header is in it."""
    start = b""
    for piece in pieces:
        start += piece
        if len(start) > MAX_HEAD:
            break
    return start


def domain_of(head: bytes, domains: Container[str]) -> str:
    """The domain that signs a message with this header; "" = it is not signed. The longest that fits."""
    labels = from_domain(head).split(".")
    names = (".".join(labels[number:]) for number in range(len(labels)))
    return next((name for name in names if name in domains), "")


def _folded(start: bytes, text: bytes, after: bytes) -> bytes:
    """The text in lines that are not too long, broken behind a mark, or anywhere if there is none."""
    lines = [start]
    parts = text.split(after) if after else [text[at:at + WIDTH] for at in range(0, len(text), WIDTH)]
    for number, part in enumerate(parts):
        part += after if number < len(parts) - 1 else b""
        if lines[-1].strip() and len(lines[-1]) + len(part) > WIDTH:
            lines.append(b"\t ")
        lines[-1] += part
    return b"\n".join(lines)


def _load(key: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """(the name of the algorithm, what signs). Raises BadKey."""
    serialization = optional("cryptography.hazmat.primitives.serialization")
    if serialization is None:
        raise BadKey("python3-cryptography is not installed")
    try:
        found = serialization.load_pem_private_key(key, None)
    except Exception as problem:  # noqa: BLE001 - ValueError, TypeError, UnsupportedAlgorithm, all with the key in mind
        raise BadKey(f"is no private key in PEM without a passphrase ({type(problem).__name__})") from None
    kind = type(found).__name__.lower()
    if "ed25519" in kind:
        return b"ed25519-sha256", lambda data: bytes(found.sign(hashlib.sha256(data).digest()))
    if "rsa" not in kind:
        raise BadKey("is neither an RSA nor an Ed25519 key")
    if found.key_size < MIN_RSA:
        raise BadKey(f"has {found.key_size} bits, which nobody takes any more")
    padding: Any = optional("cryptography.hazmat.primitives.asymmetric.padding")
    hashes: Any = optional("cryptography.hazmat.primitives.hashes")
    return b"rsa-sha256", lambda data: bytes(found.sign(data, padding.PKCS1v15(), hashes.SHA256()))


def load(settings: DkimSettings, clock: Callable[[], float]) -> Signer | None:
    """The signer that the settings ask for; None if they do not. Raises BadKey or OSError."""
    if not settings.domains:
        return None
    if not settings.selector or not settings.key_file:
        raise BadKey("[dkim] domains also needs selector and key_file")
    try:
        data, seen = files.read_trusted(settings.key_file)
    except files.Untrusted as problem:
        raise BadKey(f"{settings.key_file} {problem}")
    others = files.readers(seen)
    if others:
        raise BadKey(f"{settings.key_file} can be read by {others}")
    try:
        return Signer(settings.domains, settings.selector, data, clock)
    except BadKey as problem:
        raise BadKey(f"{settings.key_file} {problem}")


def sign_for(settings: DkimSettings, clock: Callable[[], float], warn: Callable[[str], None]) -> Sign | None:
    """What signs mail as the settings ask for; None if they do not.

    With a key that cannot be used (`warn` hears why) no mail goes out that would have to be signed: BadKey, it waits.
    Without its signature it might be refused for good.
    """
    try:
        signer = load(settings, clock)
    except (BadKey, OSError) as problem:
        words = str(problem) if isinstance(problem, BadKey) else f"{settings.key_file}: {problem.strerror}"
        why = f"no key for DKIM: {words}"
        warn(why)

        def refuse(pieces: Iterable[bytes]) -> bytes:
            start = _start(iter(pieces))
            if domain_of(start[:headers.scan(start)[1]], settings.domains):
                raise BadKey(why)
            return b""
        return refuse
    return None if signer is None else signer.sign
