"""The certificate that listeners show, read by root in the process that will be one, before it gives root up.

Where the settings name none, Debian's self-signed one (ssl-cert) does for strangers, whose servers encrypt rather than
not and believe nobody's name; where there are no strangers it is not looked for. Programs on this host are not offered
it, since some of them (PHPMailer) take up every offer and then refuse the certificate. Never less than TLS 1.2.
RFC 8446, RFC 3207, RFC 7435.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import SmtpdSettings

if TYPE_CHECKING:
    from ssl import SSLContext

SNAKE_OIL = ("/etc/ssl/certs/ssl-cert-snakeoil.pem", "/etc/ssl/private/ssl-cert-snakeoil.key")


@dataclass(frozen=True, slots=True)
class Certificates:
    """own: that of the settings, for everybody. makeshift: what strangers get instead. None = there is none."""

    own: "SSLContext | None" = None
    makeshift: "SSLContext | None" = None

    def for_client(self, *, is_local: bool) -> "SSLContext | None":
        return self.own if self.own is not None or is_local else self.makeshift


def read(settings: SmtpdSettings, *, is_public: bool) -> tuple[Certificates, str]:
    """(what there is, what is wrong with the one in the settings). Without one mail flows in the clear."""
    if not are_wanted(settings, is_public=is_public):
        return Certificates(), ""
    if not settings.tls_cert:
        try:
            return Certificates(makeshift=_context(*SNAKE_OIL)), ""
        except OSError:
            return Certificates(), ""
    try:
        return Certificates(own=_context(settings.tls_cert, settings.tls_key)), ""
    except OSError as trouble:
        words = trouble.strerror or str(trouble)
        return Certificates(), f"no TLS: {settings.tls_cert}, {settings.tls_key}: {words}"


def are_wanted(settings: SmtpdSettings, *, is_public: bool) -> bool:
    """Whether TLS is spoken at all; a listener for this host alone has no use for OpenSSL, a sixth of its memory."""
    return is_public or bool(settings.tls_cert)


def _context(certificate: str, key: str) -> "SSLContext":
    """Raises OSError, ssl.SSLError among them."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password="")  # (or OpenSSL asks the terminal for one)
    return context
