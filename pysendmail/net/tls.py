"""TLS towards other hosts: which contexts there are, and what a finished handshake is worth.

MAY: encrypt if the peer can, whoever it is; that protects from those who only listen, and a host with an expired
certificate, or with keys that are short by now, gets its mail. ENCRYPT: the same with keys that are not, or no mail.
VERIFY: the certificate must be valid for the name that the settings give. Never less than TLS 1.2. RFC 8446, RFC 7435
(opportunistic security), RFC 6125 (names).
"""

import ssl
from collections.abc import Callable
from enum import Enum

from ..mail.outcome import one_line

WEAK = "DEFAULT:@SECLEVEL=1"  # keys of 1024 bits, where the choice is between them and no TLS


class Policy(Enum):
    """Values are those of the setting [relay] tls."""

    MAY = "may"
    ENCRYPT = "encrypt"
    VERIFY = "verify"


class Contexts:
    """The contexts for all connections, each made when it is first needed (the system's certificates take 10 ms).

    ca_file: whose certificates to believe, "" = the system's.
    """

    def __init__(self, ca_file: str) -> None:
        self._ca_file = ca_file
        self._made: dict[Policy, ssl.SSLContext] = {}

    def get(self, policy: Policy) -> ssl.SSLContext:
        """Raises OSError: the certificates cannot be read."""
        if policy not in self._made:
            self._made[policy] = _verifying(self._ca_file) if policy is Policy.VERIFY else _trusting(policy)
        return self._made[policy]


def _verifying(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 sets it; certificates of private CAs are older
    return context


def _trusting(policy: Policy) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if policy is Policy.MAY:
        context.set_ciphers(WEAK)
    return context


def words_of(trouble: Exception) -> str:
    """What went wrong in a handshake, for people."""
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return f"certificate is not accepted: {one_line(trouble.verify_message)}"
    if isinstance(trouble, ssl.SSLError):
        return one_line((trouble.reason or str(trouble)).replace("_", " ").lower()) or "handshake failed"
    if isinstance(trouble, TimeoutError):
        return "handshake took too long"
    if isinstance(trouble, OSError) and trouble.strerror:
        return trouble.strerror
    return one_line(str(trouble)) or "handshake failed"


def described(get_extra_info: Callable[[str], object]) -> str:
    """TLS of a transport, for the log, in sendmail's words; "" without TLS. verify=NOT: nobody has looked."""
    found = get_extra_info("ssl_object")
    if not isinstance(found, ssl.SSLObject):
        return ""
    cipher, _, bits = found.cipher() or ("", "", 0)
    verified = "NOT" if found.context.verify_mode is ssl.CERT_NONE else "OK"
    return f"version={found.version() or 'TLS'}, verify={verified}, cipher={cipher}, bits={bits}/{bits}"
