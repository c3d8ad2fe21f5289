"""Workloads that come by SMTP, and those that go to another host: as workloads.py, whose table they are in.

Load comes from smtp-source with ten sessions and 4 KB messages, the next hop is smtp-sink (network.py).
"""

import time
from collections.abc import Callable, Iterator

from tests.e2e.debian import FQDN

from . import accounts
from .hosts import USERS, Failed, Host
from .network import RECIPIENT
from .size import Size

Result = Iterator[tuple[str, float]]
LOOKS = 0.5  # seconds between looks at memory
POLL = 0.02  # seconds


class Peak:
    """The largest memory of a host's mail system, looked at now and then."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._next = 0.0
        self.mb = 0.0

    def look(self) -> None:
        if time.monotonic() >= self._next:
            self.mb = max(self.mb, accounts.pss_mb(self._host.pids()))
            self._next = time.monotonic() + LOOKS


def _wait(count: Callable[[], int], wanted: int, limit: float, peak: Peak) -> None:
    """Until there are so many. Raises Failed."""
    end = time.monotonic() + limit
    while (found := count()) < wanted:
        if time.monotonic() > end:
            raise Failed(f"{found} of {wanted} messages after {limit:g} s")
        peak.look()
        time.sleep(POLL)


def _flow(host: Host, count: int, recipients: tuple[str, ...], arrived: Callable[[], int], *, lasting: bool) -> Result:
    """Messages that come by SMTP, until all have arrived."""
    host.settle()
    peak, cpu, begin = Peak(host), host.cpu(), time.monotonic()
    with host.network.sending(count, recipients, lasting=lasting) as source:
        accepted = source.wait(peak.look, POLL)
        _wait(arrived, count, 300, peak)
    end = time.monotonic()
    host.settle()
    yield "accept_per_s", count / accepted
    yield "per_s", count / (end - begin)
    yield "cpu_ms", (host.cpu() - cpu) * 1e3 / count
    yield "peak_pss_mb", peak.mb


def _in(host: Host, size: Size, kind: str, users: tuple[str, ...], *, lasting: bool) -> Result:
    host.use(kind)
    yield from _flow(host, size.smtp, tuple(f"{user}@{FQDN}" for user in users), host.mailboxes.count, lasting=lasting)


def smtp_mbox(host: Host, size: Size) -> Result:
    """SMTP to one mbox, one message a session."""
    return _in(host, size, "mbox", USERS[:1], lasting=False)


def smtp_mbox50(host: Host, size: Size) -> Result:
    """SMTP to fifty mboxes, lasting sessions."""
    return _in(host, size, "mbox", USERS, lasting=True)


def smtp_maildir50(host: Host, size: Size) -> Result:
    """SMTP to fifty Maildirs, lasting sessions."""
    return _in(host, size, "maildir", USERS, lasting=True)


def _through(host: Host, size: Size, *, lasting: bool) -> Result:
    host.use("mbox")
    with host.network.sink() as sink:
        yield from _flow(host, size.smtp, (RECIPIENT,), sink.count, lasting=lasting)


def relay(host: Host, size: Size) -> Result:
    """SMTP to the next hop, one message a session."""
    return _through(host, size, lasting=False)


def relay_lasting(host: Host, size: Size) -> Result:
    """SMTP to the next hop, lasting sessions."""
    return _through(host, size, lasting=True)
