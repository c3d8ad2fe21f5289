"""DNS for libraries that block.

SPF and DKIM are others' work: Debian's python3-spf, python3-dkim, python3-authres and python3-publicsuffix2. They wait
for DNS wherever they are, so they run in worker threads only, and what they ask goes to the resolver of the process
(net/resolver.py): one cache, one place for limits, one place that tests replace. An answer that is not there within
LIMIT is trouble, never "no such record".
"""

import asyncio
import concurrent.futures

from ..net.resolver import Answer, Kind, Resolver, State

# Seconds for one answer: one server of resolv.conf may be silent, but a forger whose own servers are slow must not use
# up the time of a whole check.
LIMIT = 7.0


class Lookups:
    """DNS for a worker thread. loop: where the resolver lives; it must not be the caller's."""

    def __init__(self, resolver: Resolver, loop: asyncio.AbstractEventLoop) -> None:
        self._resolver = resolver
        self._loop = loop

    def ask(self, name: str, kind: Kind) -> Answer:
        """Waits."""
        try:
            asking = asyncio.run_coroutine_threadsafe(self._resolver.lookup(name, kind), self._loop)
        except RuntimeError:  # the loop has ended, and the process is about to
            return Answer(State.TROUBLE, words="the resolver has ended")
        try:
            return asking.result(LIMIT)
        except (TimeoutError, concurrent.futures.CancelledError):
            asking.cancel()
            return Answer(State.TROUBLE, words=f"no answer from DNS about {name} within {LIMIT:g} seconds")

    def text(self, name: str) -> tuple[list[bytes], bool]:
        """(the TXT records of a name, whether that is all there is to know)."""
        answer = self.ask(name, Kind.TXT)
        return [value.encode("latin-1") for _, value in answer.records], answer.state is not State.TROUBLE
