"""What a server is: its profile, its limits, and what it offers a client at a given moment.

The profiles are one table; what differs between port 25, 587, 465, LMTP and `sendmail -bs` stands there and nowhere
else. RFC 5321 section 4.1.1.1, RFC 6409 (submission), RFC 8314 (implicit TLS), RFC 2033 (LMTP), RFC 1870, 2034, 2920,
3207, 3461, 4954, 6152, 6531.
"""

from dataclasses import dataclass, field

from .wire import LineEnds

XCLIENT = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN")  # attributes that a listed proxy may set
MECHANISMS = ("PLAIN", "LOGIN")  # those that let us hand a password to whatever knows passwords


@dataclass(frozen=True, slots=True)
class Profile:
    """is_lmtp: LHLO, and a reply per recipient after the content. needs_hello, needs_login: before MAIL."""

    name: str
    is_lmtp: bool = False
    needs_hello: bool = True
    needs_login: bool = False


SMTP = Profile("smtp")
SUBMISSION = Profile("submission", needs_login=True)
SUBMISSIONS = Profile("submissions", needs_login=True)
LMTP = Profile("lmtp", is_lmtp=True)
PIPE = Profile("bs", needs_hello=False)  # sendmail -bs: the client is whoever started us
PROFILES = {profile.name: profile for profile in (SMTP, SUBMISSION, SUBMISSIONS, LMTP, PIPE)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one session. Sizes in bytes."""

    message_size: int = 52_428_800
    recipients: int = 1000  # of one message; RFC 5321 section 4.5.3.1.8 wants 100
    messages: int = 100
    command_line: int = 2048  # with its line end; RFC 5321 wants 512 and more for each extension
    soft_errors: int = 10  # since the last message; after these each reply takes a while
    hard_errors: int = 20  # since the last message; these end the session
    unknown_commands: int = 20
    junk_commands: int = 50  # since the last message: commands that lead nowhere
    failed_logins: int = 3
    drain: int = 67_108_864  # how far beyond message_size a message is read to its end


@dataclass(frozen=True, slots=True)
class Settings:
    """One session's terms, which the driver may choose by client.

    offers_tls: there is a certificate. mechanisms: those of MECHANISMS for which there is a back end. forbids_early: a
    client that does not wait where it must is no client of ours. allows_xclient: it is a listed proxy.
    """

    hostname: str
    profile: Profile = SMTP
    limits: Limits = field(default_factory=Limits)
    offers_tls: bool = False
    mechanisms: tuple[str, ...] = ()
    line_ends: LineEnds = LineEnds.STRICT
    forbids_early: bool = True
    allows_xclient: bool = False


def for_pipe(hostname: str, limits: Limits) -> Settings:
    """The terms of `sendmail -bs`: LF from a pipe is a line end, and input may come all at once."""
    return Settings(hostname, PIPE, limits, line_ends=LineEnds.PIPE, forbids_early=False)


def keywords(settings: Settings, *, is_encrypted: bool, is_logged_in: bool) -> tuple[str, ...]:
    """The lines of an EHLO reply after the first."""
    found = ["PIPELINING", f"SIZE {settings.limits.message_size}", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"]
    if settings.offers_tls and not is_encrypted:
        found.append("STARTTLS")
    if settings.mechanisms and is_encrypted and not is_logged_in:
        found.append("AUTH " + " ".join(settings.mechanisms))
    if settings.allows_xclient:
        found.append("XCLIENT " + " ".join(XCLIENT))
    return (*found, "HELP")
