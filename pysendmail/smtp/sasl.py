"""AUTH: what is said in a login, as client and as server. Bytes and secrets in, bytes out; no base64, no lines.

A client mechanism is one object per attempt: `initial` is what goes along with the AUTH command (None = the server
speaks first), `respond` answers one challenge. `choose` takes the best mechanism that both sides have and that the link
permits: whatever shows the secret to a listener is used under TLS alone.

A server reads PLAIN and LOGIN, the two that let it hand a password to whatever knows passwords.

Secrets appear in no repr, no exception and no log. RFC 4954, RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5), RFC 7628
(OAUTHBEARER); LOGIN and XOAUTH2 are written down by their vendors only.
"""

import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..mail.outcome import one_line
from .wire import RemoteError

MAX_CREDENTIAL = 1024  # bytes of a name or a password that a server takes

PROMPTS = (b"Username:", b"Password:")  # of LOGIN, for servers


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a relay logs in with. token: an OAuth access token, which replaces the password."""

    user: str
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


class Mechanism:
    """One login. Each challenge is answered once and in order; one too many is an error, so no exchange is endless."""

    name = ""

    def __init__(self, credentials: Credentials) -> None:
        self._user = credentials.user.encode("utf-8", "surrogateescape")
        self._secret = (credentials.token or credentials.password).encode("utf-8", "surrogateescape")
        self._round = 0
        self.complaint = ""  # what the server wrote into its last challenge instead of refusing, for the log

    def initial(self) -> bytes | None:
        """What goes along with the AUTH command; None = nothing."""
        return None

    def respond(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Raises RemoteError for one that does not belong here."""
        self._round += 1
        return self._answer(challenge)

    def _answer(self, _challenge: bytes) -> bytes:
        raise RemoteError(f"a challenge that {self.name} does not have")


class Plain(Mechanism):
    name = "PLAIN"

    def initial(self) -> bytes:
        return b"\0%s\0%s" % (self._user, self._secret)

    def _answer(self, _challenge: bytes) -> bytes:
        if self._round > 1:
            return super()._answer(_challenge)
        return self.initial()  # a server that has not understood the initial response asks for it


class Login(Mechanism):
    name = "LOGIN"

    def _answer(self, _challenge: bytes) -> bytes:
        if self._round > 2:
            return super()._answer(_challenge)
        return self._user if self._round == 1 else self._secret  # by position: the prompts' words vary


class CramMd5(Mechanism):
    name = "CRAM-MD5"

    def _answer(self, challenge: bytes) -> bytes:
        if self._round > 1:
            return super()._answer(challenge)
        import hmac  # with OpenSSL, of which no server has a use

        return b"%s %s" % (self._user, hmac.new(self._secret, challenge, "md5").hexdigest().encode("ascii"))


class XOAuth2(Mechanism):
    name = "XOAUTH2"
    _end_of_complaint = b""

    def initial(self) -> bytes:
        return b"user=%s\x01auth=Bearer %s\x01\x01" % (self._user, self._secret)

    def _answer(self, challenge: bytes) -> bytes:
        if self._round > 1:
            return super()._answer(challenge)
        self.complaint = one_line(challenge.decode("utf-8", "replace"))
        return self._end_of_complaint


class OAuthBearer(XOAuth2):
    name = "OAUTHBEARER"
    _end_of_complaint = b"\x01"

    def initial(self) -> bytes:
        user = self._user.replace(b"=", b"=3D").replace(b",", b"=2C")  # RFC 5801 section 4
        return b"n,a=%s,\x01auth=Bearer %s\x01\x01" % (user, self._secret)


# Best first: (mechanism, whether it needs a token, whether it needs TLS).
_MECHANISMS: tuple[tuple[Callable[[Credentials], Mechanism], str, bool, bool], ...] = (
    (OAuthBearer, "OAUTHBEARER", True, True),
    (XOAuth2, "XOAUTH2", True, True),
    (Plain, "PLAIN", False, True),
    (Login, "LOGIN", False, True),
    (CramMd5, "CRAM-MD5", False, False),
)


def choose(offered: Iterable[str], credentials: Credentials, *, is_encrypted: bool,
           refused: Iterable[str] = ()) -> Mechanism | None:
    """The mechanism to try, of those offered and not refused before; None if there is none to be used on this link."""
    names = {name.upper() for name in offered} - set(refused)
    for make, name, needs_token, needs_tls in _MECHANISMS:
        if name in names and needs_token == bool(credentials.token) and (is_encrypted or not needs_tls):
            return make(credentials)
    return None


def encode(data: bytes) -> bytes:
    """Base64 as it stands in an AUTH exchange: one line; "=" for an empty initial response is the caller's affair."""
    return binascii.b2a_base64(data, newline=False)


def decode(text: bytes) -> bytes:
    """The reverse of encode. Raises ValueError for anything but one run of base64."""
    return binascii.a2b_base64(text, strict_mode=True) if text else b""


class Exchange:
    """A login as a server sees it: PLAIN or LOGIN. Complete when `prompt` is None."""

    __slots__ = ("identity", "mechanism", "password", "prompt", "user")

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism
        self.prompt: bytes | None = b"" if mechanism == "PLAIN" else PROMPTS[0]
        self.identity = self.user = self.password = ""

    def take(self, response: bytes) -> None:
        """The client's response to the prompt. Raises ValueError for what is none."""
        if self.mechanism == "PLAIN":
            self.identity, self.user, self.password = _read_plain(response)
            self.prompt = None
        elif self.prompt == PROMPTS[0]:
            self.user, self.prompt = _read_name(response), PROMPTS[1]
        else:
            self.password, self.prompt = _read_name(response), None


def _read_plain(response: bytes) -> tuple[str, str, str]:
    """(authorization identity, user, password)."""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise ValueError("PLAIN has three parts")
    return _read_name(parts[0]), _read_name(parts[1]), _read_name(parts[2])


def _read_name(value: bytes) -> str:
    """A name or a password: UTF-8, bounded, without NUL."""
    if len(value) > MAX_CREDENTIAL or b"\0" in value:
        raise ValueError("not a name or password")
    return value.decode("utf-8")
