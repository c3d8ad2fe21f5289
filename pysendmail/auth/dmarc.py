"""DMARC: whether the domain in From is that of an SPF or DKIM pass, and what its owner wants done otherwise.

From its policy record a domain says what becomes of mail in its name that nobody stands for. The record is looked for
at the domain itself and then at its organizational domain, which the Public Suffix List tells (Debian:
python3-publicsuffix2 with the package publicsuffix; without it, only the domain itself). A record that cannot be got
now is "temperror", and nothing is refused for it; so is what would pass if another domain were of the same
organization, where there is no list to tell. Runs in a worker thread. RFC 7489; no reports are sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .author import to_ascii
from .lookups import Lookups
from .optional import optional

POLICIES = frozenset(("none", "quarantine", "reject"))
PUBLIC_SUFFIXES = "/usr/share/publicsuffix/public_suffix_list.dat"
MAX_RECORD = 2000  # bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy record. subdomains: the policy for those. is_strict_*: the domains have to be the same. percent: of
    failing mail to which the policy applies."""

    policy: str
    subdomains: str
    is_strict_dkim: bool = False
    is_strict_spf: bool = False
    percent: int = 100


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """result: pass, fail, none, permerror or temperror. domain: of From. policy: what its owner asks for, "" = nothing.

    percent: as in Policy.
    """

    result: str
    domain: str = ""
    policy: str = ""
    percent: int = 100


@cache
def _suffixes() -> Any | None:
    library = optional("publicsuffix2")
    if library is None:
        return None
    try:
        return library.PublicSuffixList(PUBLIC_SUFFIXES)
    except OSError:
        return None


def organization(domain: str) -> str:
    """The organizational domain of a domain (RFC 7489 section 3.2); itself where there is no list."""
    suffixes = _suffixes()
    if suffixes is None:
        return domain
    found = str(suffixes.get_sld(domain, strict=False) or domain)
    # Of a top-level domain that is not in the list the library makes one organization; the list's own rule is "*".
    return found if "." in found else ".".join(domain.split(".")[-2:])


def read_policy(records: Iterable[bytes]) -> Policy | None:
    """The policy in the TXT records of a name; None if there is not exactly one."""
    found = [one for one in map(_tags, records) if one is not None]
    if len(found) != 1:
        return None
    tags = found[0]
    policy = tags.get("p", "").lower()
    if policy not in POLICIES:
        if "rua" not in tags:  # RFC 7489 section 6.6.3
            return None
        policy = "none"
    subdomains = tags.get("sp", "").lower()
    percent = tags.get("pct", "")
    is_percent = percent.isascii() and percent.isdigit() and len(percent) <= 3
    return Policy(policy, subdomains if subdomains in POLICIES else policy, tags.get("adkim", "").lower() == "s",
                  tags.get("aspf", "").lower() == "s", min(100, int(percent)) if is_percent else 100)


def _tags(record: bytes) -> dict[str, str] | None:
    """The tags of a record, None if it is none of DMARC's."""
    if len(record) > MAX_RECORD:
        return None
    parts = [part.partition("=") for part in record.decode("latin-1").split(";")]
    if parts[0][0].strip() != "v" or parts[0][2].strip() != "DMARC1":
        return None
    return {name.strip().lower(): value.strip() for name, equals, value in reversed(parts) if equals}


def check(domain: str, passed: Iterable[tuple[str, bool]], lookups: Lookups) -> DmarcResult:
    """domain: of From. passed: (domain, whether by DKIM) of everything that has passed. Waits."""
    if not domain:
        return DmarcResult("permerror")
    top = organization(domain)
    policy, is_whole = _find(domain, top, lookups)
    if policy is None:
        return DmarcResult("none" if is_whole else "temperror", domain)
    result = "fail"
    for other, is_dkim in passed:
        other = to_ascii(other)
        is_strict = policy.is_strict_dkim if is_dkim else policy.is_strict_spf
        if other and (other == domain or (not is_strict and organization(other) == top)):
            return DmarcResult("pass", domain, policy.policy, policy.percent)
        if _suffixes() is None and not is_strict and other.split(".")[-2:] == domain.split(".")[-2:]:
            result = "temperror"
    return DmarcResult(result, domain, policy.policy, policy.percent)


def _find(domain: str, top: str, lookups: Lookups) -> tuple[Policy | None, bool]:
    """(the policy that holds for a domain, whether DNS has said all that it knows)."""
    records, is_whole = lookups.text(f"_dmarc.{domain}")
    policy = read_policy(records)
    if policy is not None or domain == top or not is_whole:
        return policy, is_whole
    records, is_whole = lookups.text(f"_dmarc.{top}")
    policy = read_policy(records)
    return (None if policy is None else replace(policy, policy=policy.subdomains)), is_whole
