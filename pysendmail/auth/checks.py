"""What can be found out about who a stranger's message is from: SPF, DKIM and DMARC together, off the loop.

    found = await checks.find(client, helo, draft)
    found.field       the Authentication-Results field to put on top, b"" = nothing was checked
    found.refusal     the reply instead of 250, where the domain in From wants that and so do we

The libraries wait and compute, so they run in WORKERS threads, each of which holds one message of a bounded size; the
loop never does. Who has to wait too long for them gets "nothing was found out", which refuses nobody. `dmarc_reject`
refuses what fails by the policy "reject" of its domain, as its share of mail ("pct") says.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..mail.changes import Draft
from ..net.resolver import Resolver
from ..smtp.reply import Reply, reply
from . import Client, Findings, dkim, dmarc, results, spf
from .author import claimed_domains, from_domain
from .dmarc import DmarcResult
from .lookups import Lookups

WORKERS = 4
LIMIT = 100.0  # seconds for one message: until a worker is free, then for SPF, DKIM and DMARC with the slowest servers

_UNSURE = frozenset(("temperror", "neutral"))  # of a signature


def are_available() -> bool:
    """Whether anything can be checked here."""
    return results.is_available() and (spf.is_available() or dkim.is_available())


class Checks:
    """hostname: ours, by which readers know the field. chance: 0 <= chance() < 1, for policies that want a share."""

    def __init__(self, resolver: Resolver, hostname: str, *, dmarc_reject: bool, chance: Callable[[], float]) -> None:
        self._resolver = resolver
        self._hostname = hostname
        self._rejects = dmarc_reject
        self._chance = chance
        self._pool = ThreadPoolExecutor(WORKERS, "auth")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def find(self, client: Client, draft: Draft) -> Findings:
        """client: with an address, and no friend of ours."""
        loop = asyncio.get_running_loop()
        lookups = Lookups(self._resolver, loop)
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._pool, self._find, client, draft, lookups), LIMIT)
        except TimeoutError:
            return Findings(words="authentication: no result in time")

    def _find(self, client: Client, draft: Draft, lookups: Lookups) -> Findings:
        """In a worker."""
        envelope, text = draft.envelope, draft.text
        by_spf = by_dkim = by_dmarc = None
        passed: list[tuple[str, bool]] = []
        if spf.is_available():
            by_spf = spf.check(client.address, envelope.sender, envelope.origin.helo, self._hostname, lookups)
            passed += [(by_spf.domain, False)] if by_spf.result == "pass" else []
        if dkim.is_available():
            by_dkim = dkim.check(text.head, self._body(draft), lookups)
            passed += [(one.domain, True) for one in by_dkim if one.result == "pass"]
        if by_spf is not None and by_dkim is not None:
            by_dmarc = self._by_dmarc(text.head, passed, lookups)
            unsure = [(by_spf.domain, False)] if by_spf.result == "temperror" else []
            unsure += [(one.domain or by_dmarc.domain, True) for one in by_dkim if one.result in _UNSURE]
            if by_dmarc.result == "fail" and dmarc.check(by_dmarc.domain, unsure, lookups).result != "fail":
                by_dmarc = DmarcResult("temperror", by_dmarc.domain, by_dmarc.policy)  # it might have been a pass
        words = [f"spf={by_spf.result}"] if by_spf is not None else []
        words += [f"dkim={one.result} ({one.domain})" for one in by_dkim or ()]
        words += [f"dmarc={by_dmarc.result} ({by_dmarc.domain})"] if by_dmarc is not None else []
        return Findings(results.field(self._hostname, by_spf, by_dkim, by_dmarc), self._refusal(by_dmarc),
                        "authentication: " + ", ".join(words))

    def _by_dmarc(self, head: bytes, passed: list[tuple[str, bool]], lookups: Lookups) -> DmarcResult:
        """Where From has several authors, or is there twice, or cannot be read, the strictest of their domains counts:
        a reader may show any of them (RFC 7489 section 6.6.1)."""
        domain = from_domain(head)
        for other in [] if domain else claimed_domains(head):
            found = dmarc.check(other, passed, lookups)
            if found.result == "fail" and found.policy == "reject":
                return found
        return dmarc.check(domain, passed, lookups)

    def _body(self, draft: Draft) -> bytes:
        """The body; of one that is too large to be checked, so much that this shows."""
        pieces, size = [], 0
        for piece in draft.text.body():
            pieces.append(piece)
            size += len(piece)
            if size > dkim.MAX_MESSAGE:
                break
        return b"".join(pieces)

    def _refusal(self, found: DmarcResult | None) -> Reply | None:
        if found is None or not self._rejects or found.result != "fail" or found.policy != "reject":
            return None
        if self._chance() * 100 >= found.percent:
            return None
        return reply(550, "5.7.1", f"the policy of {found.domain} (DMARC) does not permit this message")
