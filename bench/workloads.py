"""What is done to a mail system, and what is measured: a workload yields (figure, value).

Figures: `_ms` milliseconds, `_s` seconds, `_per_s` messages per second, `_mb` mebibytes, `cpu_ms` milliseconds of CPU
per message of everything in the host, submitting programs and logging included.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

from . import accounts, figures, smtp
from .hosts import LISTED, USERS, Failed, Host, Pysendmail
from .size import Size

Result = Iterator[tuple[str, float]]
BIG = 25 * 1024 * 1024  # bytes


def submit(host: Host, size: Size) -> Result:
    """`sendmail -oi alice` with 2 KB as an ordinary user: one after the other, then eight at a time."""
    host.use("mbox")
    bare = host.drive("floor", str(size.sequential), "/home/bob")
    floor = median(bare["start_ms"]) + median(bare["sync_ms"])
    yield "floor_ms", floor
    for name, count, parallel in (("one", size.sequential, 1), ("eight", size.parallel, 8)):
        host.mailboxes.empty()
        host.settle()
        cpu, begin = host.cpu(), time.monotonic()
        result = host.submit(count, parallel, "alice")
        _, _, end = host.wait_for(count, 120)
        host.settle()
        if parallel == 1:
            yield "one_ms", median(result["ms"])
            yield "one_p95_ms", figures.percentile(result["ms"], 0.95)
            yield "one_by_floor", median(result["ms"]) / floor
        else:
            yield f"{name}_per_s", count / result["wall_s"]
            yield f"{name}_arrive_s", count / (end - begin)
        yield f"{name}_cpu_ms", (host.cpu() - cpu + result["cpu_s"]) * 1e3 / count


def _drain(host: Host, size: Size, kind: str, users: tuple[str, ...]) -> Result:
    """Messages submitted while the daemon is stopped; then it is started, and its start is part of the time."""
    host.use(kind)
    host.stop()
    try:
        result = host.submit(size.drain, 8, *users)
        yield "stopped_per_s", size.drain / result["wall_s"]
        host.settle()
        peak = accounts.Peak(host.pids)
        cpu, begin = host.cpu(), time.monotonic()
    finally:
        host.start(wait=False)
    first, early, end = host.wait_for(size.drain, 180, peak.look)
    host.settle()
    yield "per_s", size.drain / (end - begin)
    yield "first_s", first - begin
    if end > first:
        yield "flow_per_s", (size.drain - early) / (end - first)
    yield "cpu_ms", (host.cpu() - cpu) * 1e3 / size.drain
    yield "peak_pss_mb", peak.mb


def mbox(host: Host, size: Size) -> Result:
    """3,000 waiting messages to one mbox."""
    return _drain(host, size, "mbox", USERS[:1])


def mbox50(host: Host, size: Size) -> Result:
    """3,000 waiting messages to fifty mboxes."""
    return _drain(host, size, "mbox", USERS)


def maildir(host: Host, size: Size) -> Result:
    """3,000 waiting messages to one Maildir."""
    return _drain(host, size, "maildir", USERS[:1])


def maildir50(host: Host, size: Size) -> Result:
    """3,000 waiting messages to fifty Maildirs."""
    return _drain(host, size, "maildir", USERS)


def idle(host: Host, size: Size) -> Result:
    """Memory of a daemon that has just been started, and after some mail, once it is at rest again."""
    host.use("default")
    host.stop()
    host.start()
    host.settle()
    yield "pss_mb", accounts.pss_mb(host.pids())
    host.submit(size.sequential, 8, *USERS)
    host.wait_for(size.sequential, 120)
    host.settle()
    time.sleep(8)  # agents of ours are kept for 5 s
    yield "after_pss_mb", accounts.pss_mb(host.pids())
    yield "processes", float(len(host.pids()))


def big(host: Host, size: Size) -> Result:
    """One message of 25 MB: by how much each process grows over what a small message takes."""
    host.use("mbox")
    peaks: list[dict[str, float]] = []
    for length in (2048, BIG):
        host.mailboxes.empty()
        accounts.reset_peaks(host.pids())
        cpu = host.cpu()
        found: dict[str, float] = {}

        def look(found: dict[str, float] = found) -> None:
            for name, value in accounts.peaks_mb(host.pids()).items():
                found[name] = max(found.get(name, 0.0), value)

        result = host.submit(1, 1, "alice", size=length)
        begin = result["began"]
        while host.mailboxes.bytes() < length - 100 and time.monotonic() - begin < 60:
            look()
            time.sleep(0.005)
        if host.mailboxes.count() != 1:
            raise Failed("message has not arrived")
        arrived = time.monotonic() - begin
        look()
        found["sendmail"] = result["peak_mb"]
        peaks.append(found)
        host.settle()
    yield "accepted_s", result["wall_s"]
    yield "arrived_s", arrived
    yield "cpu_s", host.cpu() - cpu + result["cpu_s"]
    small, large = peaks
    yield "growth_mb", max(value - small.get(name, value) for name, value in large.items())
    yield "peak_mb", max(large.values())


def flood(host: Host, size: Size) -> Result:
    """1,000 strangers who say nothing; junk, HTTP and slow clients; 90 sessions with 100 messages each. Ours only."""
    if not isinstance(host, Pysendmail):
        return
    host.use("mbox")
    with host.flooded():
        quiet = accounts.pss_mb(host.pids())
        yield "quiet_pss_mb", quiet
        worst = 0.0
        for name, number in (("idle", size.strangers), ("junk", size.strangers // 3)):
            with host.clients(name, str(number)) as told:
                if name == "idle":
                    yield "let_in", float(told["let_in"])
                worst = max(worst, max(host.submit(20, 1, "alice")["ms"]))
                yield f"{name}_growth_mb", accounts.pss_mb(host.pids()) - quiet
        yield "submit_most_ms", worst
        host.wait_for(40, 60)
        with host.clients("send", "90", str(size.flood)) as told:
            yield "per_s", told["taken"] / told["seconds"]
            host.wait_for(40 + int(told["taken"]), 180)
            yield "refused", 90.0 * size.flood - told["taken"]
        yield "send_growth_mb", accounts.pss_mb(host.pids()) - quiet


def _list(host: Host, name: str, count: int) -> Result:
    host.use("mbox")
    cpu, begin = host.cpu(), time.monotonic()
    result = host.submit(1, 1, name)
    yield "accepted_s", time.monotonic() - begin
    peak = accounts.Peak(host.pids)
    _, _, end = host.wait_for(count, 300, peak.look, 0.05)
    yield "all_s", end - begin
    host.settle()
    yield "cpu_s", host.cpu() - cpu + result["cpu_s"]
    yield "peak_pss_mb", peak.mb


def alias2000u(host: Host, size: Size) -> Result:
    """One message to an alias of 2,000 users, none of whom has a mailbox yet."""
    names = LISTED[:size.listed]
    _alias_once(host, "everybody", "everybody: " + ", ".join(names))
    return _list(host, "everybody", len(names))


def alias2000(host: Host, size: Size) -> Result:
    """One message to an alias of 2,000 addresses, forty of each of fifty users."""
    names = [f"{user}+{number}" for number in range(size.listed // len(USERS)) for user in USERS]
    _alias_once(host, "many", "many: " + ", ".join(names))
    return _list(host, "many", len(names))


def include10000(host: Host, size: Size) -> Result:
    """One message to an :include: of 10,000 addresses with an owner, two hundred of each of fifty users."""
    names = [f"{user}+{number}" for number in range(size.details) for user in USERS]
    host.debian.write("/etc/mail-list", "".join(f"{name}\n" for name in names))
    _alias_once(host, "owner-subscribers", "owner-subscribers: bob\nsubscribers: :include:/etc/mail-list")
    return _list(host, "subscribers", len(names))


def _alias_once(host: Host, key: str, lines: str) -> None:
    if f"\n{key}:" not in host.debian.path("/etc/aliases").read_text():
        host.aliases(f"\n{lines}\n")


WORKLOADS: dict[str, Callable[[Host, Size], Result]] = {
    "submit": submit, "mbox": mbox, "mbox50": mbox50, "maildir": maildir, "maildir50": maildir50, "idle": idle,
    "big": big, "alias2000": alias2000, "alias2000u": alias2000u, "include10000": include10000,
    "flood": flood, "smtp_mbox": smtp.smtp_mbox, "smtp_mbox50": smtp.smtp_mbox50,
    "smtp_maildir50": smtp.smtp_maildir50, "smtp_big": smtp.smtp_big, "relay": smtp.relay,
    "relay_lasting": smtp.relay_lasting, "waiting": smtp.waiting, "deferred10000": smtp.deferred10000,
    "deferred100000": smtp.deferred100000}
