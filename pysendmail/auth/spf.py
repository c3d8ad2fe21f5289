"""SPF: whether a domain lets this client send in its name. The work is pyspf's (Debian: python3-spf).

The identity that is checked is the envelope sender, or the name in HELO where that is null (RFC 7208 section 2.4). Runs
in a worker thread. What the library cannot cope with is "temperror": nobody's mail is refused for it. It gets no record
over which its regular expressions take more than linear time: they stop the whole process, threads or not.
"""

import threading
from dataclasses import dataclass
from typing import Any

from ..mail.outcome import one_line
from ..net.resolver import Kind, State
from .lookups import Lookups
from .optional import optional

RESULTS = frozenset(("pass", "fail", "softfail", "neutral", "none", "permerror", "temperror"))  # RFC 7208 section 2.6
MAX_WORDS = 200  # characters of an explanation, which is a stranger's text
MAX_RECORD = 8192  # characters of a record; RFC 7208 section 3.4 wants less than 512
QUERIES = 20  # seconds for all of DNS (RFC 7208 section 4.6.4)
MAX_TERM = 512  # characters of a term in it, and of an explanation

_KINDS = {"A": Kind.A, "AAAA": Kind.AAAA, "MX": Kind.MX, "PTR": Kind.PTR, "TXT": Kind.TXT}
_here = threading.local()


@dataclass(frozen=True, slots=True)
class SpfResult:
    """result: one of RESULTS. domain: that was asked. is_helo: it is that of HELO. words: for people, untrusted."""

    result: str
    domain: str
    is_helo: bool = False
    words: str = ""


def is_available() -> bool:
    return optional("spf") is not None


def check(client: str, sender: str, helo: str, hostname: str, lookups: Lookups) -> SpfResult:
    """client: IP address. sender "" = null. hostname: ours. Waits."""
    library = optional("spf")
    is_helo = "@" not in sender
    domain = helo if is_helo else sender.rpartition("@")[2]
    if library is None or not domain.isascii() or "." not in domain or domain.startswith("["):
        return SpfResult("none", domain, is_helo)
    library.DNSLookup = _lookup
    _here.lookups = lookups
    try:
        query = library.query(client, "" if is_helo else sender, helo, receiver=hostname, querytime=QUERIES)
        result, _, words = query.check()
    except Exception as problem:  # noqa: BLE001 - the library raises what it likes for what strangers put into DNS
        return SpfResult("temperror", domain, is_helo, type(problem).__name__)
    finally:
        _here.lookups = None
    if result not in RESULTS:
        result = "permerror"
    return SpfResult(result, domain, is_helo, one_line(words, MAX_WORDS))


def _lookup(name: str, kind: str, _strict: object = True, _timeout: float = 0.0) -> list[tuple[tuple[str, str], Any]]:
    """What the library asks DNS with, in the form that it knows: [((name, type), data), ...]."""
    library, lookups = optional("spf"), _here.lookups
    assert library is not None
    if kind not in _KINDS:  # the record type SPF, which RFC 7208 section 3.1 has given up
        return []
    answer = lookups.ask(name, _KINDS[kind])
    if answer.state is State.TROUBLE:
        raise library.TempError(f"DNS: {answer.words}")
    if kind == "MX":
        return [((name, kind), record) for record in answer.records]
    if kind == "TXT":
        return [((name, kind), [value.encode("latin-1")]) for _, value in answer.records if _is_wanted(library, value)]
    return [((name, kind), value) for _, value in answer.records]


def _is_wanted(library: Any, record: str) -> bool:
    """Whether the library is to see a TXT record. Raises its TempError for a policy that is too long."""
    if record[:6].lower() != "v=spf1":
        return len(record) <= MAX_TERM  # an explanation, or nothing of ours
    if len(record) > MAX_RECORD or any(len(term) > MAX_TERM for term in record.split()):
        raise library.TempError("a policy that is too long to be read")
    return True
