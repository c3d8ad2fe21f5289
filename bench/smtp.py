"""Workloads that come by SMTP, and those that go to another host: as workloads.py, whose table they are in.

Load comes from smtp-source with ten sessions and 4 KB messages, the next hop is smtp-sink (network.py).
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

from tests.e2e.debian import FQDN

from . import accounts
from .hosts import USERS, Failed, Host
from .network import RECIPIENT
from .size import Size

Result = Iterator[tuple[str, float]]
POLL, SHORT = 0.02, 0.005  # seconds
BIG = 25 * 1024 * 1024  # bytes
STORED = 0.97  # of the octets on the wire: line ends are shorter on the disk
LONG = 900.0  # seconds for what a large queue takes
FLUSH_EVERY = 5.0  # seconds
READY = 120.0  # seconds until a service greets
PATIENCE = 90.0  # seconds for the messages of one workload


def _wait(count: Callable[[], int], wanted: int, end: float, each: Callable[[], None]) -> int:
    """Until there are so many, or until the monotonic second `end`; how many there are."""
    while (found := count()) < wanted and time.monotonic() < end:
        each()
        time.sleep(POLL)
    return found


def _flow(host: Host, count: int, recipients: tuple[str, ...], arrived: Callable[[], int], *, lasting: bool) -> Result:
    """Messages that come by SMTP, until all have arrived. Whoever is not done in time is as fast as what it managed."""
    host.settle()
    peak, cpu, begin = accounts.Peak(host.pids), host.cpu(), time.monotonic()
    accepted = 0.0
    with host.network.sending(count, recipients, lasting=lasting) as source:
        try:
            accepted = source.wait(peak.look, POLL, PATIENCE)
        except TimeoutError:
            pass
        found = _wait(arrived, count, begin + PATIENCE, peak.look)
        end = time.monotonic()
        if found == count:
            host.settle()
        cpu = host.cpu() - cpu
    if not found:
        raise Failed(f"none of {count} messages after {PATIENCE:g} s")
    if accepted:
        yield "accept_per_s", count / accepted
    yield "per_s", found / (end - begin)
    yield "cpu_ms", cpu * 1e3 / found
    yield "peak_pss_mb", peak.mb
    if found < count:
        yield "missing", float(count - found)
        raise Failed(f"{found} of {count} messages after {PATIENCE:g} s; its rate is that of these")


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


def smtp_big(host: Host, size: Size) -> Result:
    """One message of 25 MB by SMTP, until all of it is in the mailbox."""
    host.use("mbox")
    peak, cpu, begin = accounts.Peak(host.pids), host.cpu(), time.monotonic()
    with host.network.sending(1, (f"{USERS[0]}@{FQDN}",), lasting=False, size=BIG) as source:
        accepted = source.wait(peak.look, SHORT)
        while host.mailboxes.bytes() < STORED * BIG and time.monotonic() - begin < 60:
            peak.look()
            time.sleep(SHORT)
    yield "accepted_s", accepted
    yield "arrived_s", time.monotonic() - begin
    if host.mailboxes.count() != 1:
        raise Failed("the message has not arrived")
    host.settle()
    yield "cpu_s", host.cpu() - cpu
    yield "peak_pss_mb", peak.mb


def waiting(host: Host, size: Size) -> Result:
    """3,000 messages that wait for the next hop, from its return to the last of them."""
    yield from _deferred(host, size.drain)


def deferred10000(host: Host, size: Size) -> Result:
    """10,000 messages that wait for the next hop, what they do to others, and their end."""
    yield from _deferred(host, size.deferred, is_looked_at=True)


def deferred100000(host: Host, size: Size) -> Result:
    """The same with 100,000."""
    yield from _deferred(host, size.many_deferred, is_looked_at=True)


def _deferred(host: Host, count: int, *, is_looked_at: bool = False) -> Result:
    host.use("mbox")
    if is_looked_at:
        yield "empty_local_ms", _latency(host)
    peak = accounts.Peak(host.pids)
    with host.network.sending(count, (RECIPIENT,), lasting=True) as source:
        yield "inject_per_s", count / source.wait(peak.look, POLL)
    host.settle(LONG)
    if is_looked_at:
        yield from _looked_at(host, count)
    peak, cpu = accounts.Peak(host.pids), host.cpu()
    with host.network.sink() as sink:
        begin = time.monotonic()
        flushed = 0.0

        def look() -> None:  # what was being put off when the queue was flushed would wait for minutes
            nonlocal flushed
            peak.look()
            if time.monotonic() - flushed > FLUSH_EVERY:
                host.debian.run(*host.flush)
                flushed = time.monotonic()

        look()
        found = _wait(sink.count, count, begin + LONG, look)
        if found < count:
            raise Failed(f"{found} of {count} messages after {LONG:g} s")
        yield "drain_per_s", count / (time.monotonic() - begin)
        host.settle(LONG)
    yield "drain_cpu_ms", (host.cpu() - cpu) * 1e3 / count
    yield "drain_peak_pss_mb", peak.mb


def _looked_at(host: Host, count: int) -> Result:
    """mailq, a local message, memory, and a start, with that much in the queue."""
    yield "pss_mb", accounts.pss_mb(host.pids())
    yield "local_ms", _latency(host)
    yield "mailq_s", _mailq(host, count)
    begin = time.monotonic()
    host.stop()
    stopped = time.monotonic()
    host.start(wait=False)
    host.network.wait_for_greeting(READY)
    yield "stop_s", stopped - begin
    yield "ready_s", time.monotonic() - stopped
    yield "local_after_ms", _latency(host)
    host.settle(LONG)
    yield "pss_after_mb", accounts.pss_mb(host.pids())


def _latency(host: Host) -> float:
    """How long a message of a local user for another takes, milliseconds from the start of sendmail; median of nine."""
    found = []
    for _ in range(9):
        host.mailboxes.empty()
        begin = host.submit(1, 1, USERS[0])["began"]
        _, _, end = host.wait_for(1, 60, pause=0.002)
        found.append((end - begin) * 1e3)
    return median(found)


def _mailq(host: Host, count: int) -> float:
    begin = time.monotonic()
    listed = host.debian.run("mailq", timeout=LONG).stdout
    took = time.monotonic() - begin
    if listed.count(RECIPIENT.encode()) < count:
        raise Failed("mailq does not list all of it")
    return took
