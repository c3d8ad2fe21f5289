"""Authentication-Results: what this host has found out about who a message is from, for readers and filters to believe.

A reader believes every such field that bears our name; those that a message brings along are removed
(mail/forged.py). The field is put together by the library authres (Debian: python3-authres), from values that are
strangers' text and are made harmless here first. It is put above everything else, our own Received included. RFC 8601.
"""

import re
from collections.abc import Sequence

from ..mail.envelope import raw
from ..mail.outcome import one_line
from .dkim import DkimResult
from .dmarc import DmarcResult
from .optional import optional
from .spf import SpfResult

MAX_VALUE = 255  # characters of a domain or an address in the field
WIDTH = 76  # characters of a line, where it can be folded

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-/=?^_`{|}~.@")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = re.compile(rf"(?:{_ATOM}(?:\.{_ATOM})*)?@[\w-]+(?:\.[\w-]+)*", re.ASCII)  # RFC 8601 2.2: pvalue with "@"
_COMMENT = frozenset(" ,:") | (_PLAIN - frozenset("%"))


def is_available() -> bool:
    return optional("authres") is not None


def field(hostname: str, spf: SpfResult | None, dkim: Sequence[DkimResult] | None, dmarc: DmarcResult | None) -> bytes:
    """The field with its LF; None: that was not checked. b"" if nothing was."""
    library = optional("authres")
    if library is None:
        return b""
    found = []
    if spf is not None:
        where = {"smtp_helo" if spf.is_helo else "smtp_mailfrom": _plain(spf.domain)} if spf.domain else {}
        found.append(library.SPFAuthenticationResult(result=spf.result, result_comment=_comment(spf.words), **where))
    if dkim is not None:
        found += [library.DKIMAuthenticationResult(
            result=one.result, result_comment=_comment(one.words), header_d=_plain(one.domain) or None,
            header_s=_plain(one.selector) or None) for one in dkim]
        if not dkim:
            found.append(library.DKIMAuthenticationResult(result="none"))
    if dmarc is not None:
        make = optional("authres.dmarc")
        if make is not None:
            found.append(make.DMARCAuthenticationResult(
                result=dmarc.result, result_comment=f"p={dmarc.policy}" if dmarc.policy else None,
                header_from=_plain(dmarc.domain) or None))
    if not found:
        return b""
    return _folded(str(library.AuthenticationResultsHeader(authserv_id=hostname, results=found)))


def _plain(value: str) -> str:
    """A domain or address without blank, quote, semicolon or line end.

    The library puts quotes around what needs them, but never around what holds "@" (a selector "@@" would make the
    whole field unreadable, and with it the verdict): only a real address keeps it.
    """
    plain = "".join(c if c in _PLAIN else "?" for c in value[:MAX_VALUE])
    return plain if _ADDRESS.fullmatch(plain) else plain.replace("@", "?")


def _comment(words: str) -> str | None:
    return "".join(c if c in _COMMENT else "?" for c in one_line(words)) or None


def _folded(line: str) -> bytes:
    """One result a line; what is too long for that as well, word by word."""
    lines = []
    for part in line.split("; "):
        current = ""
        for word in part.split(" "):
            if current and len(current) + len(word) > WIDTH:
                lines.append(current)
                current = word
            else:
                current = f"{current} {word}" if current else word
        lines.append(current + ";")
    return raw("\n\t".join(lines).removesuffix(";")) + b"\n"
