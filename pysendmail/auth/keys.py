"""Keys for DKIM: made, and turned into what DNS has to say about them. RFC 6376 section 3.6.1, RFC 8463.

The work is python3-cryptography's. A private key is bytes in PEM (PKCS#8, without a passphrase, since a daemon signs
with it); it appears in no exception and no log.
"""

import base64
from typing import Any

from .optional import optional
from .signing import BadKey

KINDS = ("rsa", "ed25519")
BITS = 2048  # of an RSA key: what every receiver takes and DNS carries well (RFC 8301 section 3.2)
MAX_STRING = 255  # bytes of one string of a TXT record


def generate(kind: str, bits: int = BITS) -> bytes:
    """A new private key. Raises BadKey if the library is not there."""
    serialization = _library("serialization")
    if kind == "ed25519":
        made = _library("asymmetric.ed25519").Ed25519PrivateKey.generate()
    else:
        made = _library("asymmetric.rsa").generate_private_key(65537, bits)
    return bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                    serialization.NoEncryption()))


def record(key: bytes) -> str:
    """The text of the TXT record for a private key. Raises BadKey."""
    serialization = _library("serialization")
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except Exception as problem:  # noqa: BLE001 - whatever it raises, it has the key in mind
        raise BadKey(f"is no private key in PEM without a passphrase ({type(problem).__name__})") from None
    encoding, form = serialization.Encoding, serialization.PublicFormat
    if "ed25519" in type(public).__name__.lower():
        return "v=DKIM1; k=ed25519; p=" + base64.b64encode(public.public_bytes(encoding.Raw, form.Raw)).decode("ascii")
    der = public.public_bytes(encoding.DER, form.SubjectPublicKeyInfo)
    return "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode("ascii")


def zone_lines(selector: str, domain: str, text: str) -> list[str]:
    """The record as it stands in a zone file: a string of a TXT record has an end, so that it may take several."""
    strings = [text[at:at + MAX_STRING] for at in range(0, len(text), MAX_STRING)]
    quoted = [f'"{one}"' for one in strings]
    name = f"{selector}._domainkey.{domain}."
    if len(quoted) == 1:
        return [f"{name} IN TXT {quoted[0]}"]
    return [f"{name} IN TXT ( {quoted[0]}", *(f"    {one}" for one in quoted[1:-1]), f"    {quoted[-1]} )"]


def _library(name: str) -> Any:
    found = optional(f"cryptography.hazmat.primitives.{name}")
    if found is None:
        raise BadKey("python3-cryptography is not installed")
    return found
