"""The command line of the bench: `./dev bench`, or `python3 -m bench` from the top of the tree, as root."""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from . import figures
from .disk import Disk
from .figures import Figures, Sample
from .hosts import CACHE, Failed, Host, Postfix, Pysendmail
from .network import NotSent
from .peers import BESIDES, PEERS
from .size import QUICK, Size
from .workloads import WORKLOADS

SETTLING = 2.0  # seconds between workloads, for the disk
TROUBLE = (Failed, NotSent, AssertionError, OSError, subprocess.SubprocessError)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure pysendmail against Postfix on this machine.",
        epilog="workloads: " + "; ".join(f"{name}: {(work.__doc__ or '').split(chr(10))[0]}"
                                         for name, work in WORKLOADS.items()))
    parser.add_argument("workload", nargs="*", choices=[*WORKLOADS, []], help="default: all of them")
    parser.add_argument("--deb", type=Path, help="the package to measure (default: the newest in dist/)")
    parser.add_argument("--suite", default="bookworm", help="the Debian to measure on (default: bookworm)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small counts: whether it works, not how fast")
    parser.add_argument("--only", nargs="+", choices=(figures.OURS, figures.THEIRS, *PEERS),
                        help="measure these, in all of the workloads")
    parser.add_argument("--here", action="store_true", help="on the file system of /var/tmp, not on an ext4 of its own")
    parser.add_argument("--log", type=Path, help="append each figure to this file, a line of JSON each")
    parser.add_argument("--table", type=Path, help="print the table of such a file and measure nothing")
    return parser.parse_args()


def measure(hosts: list[Host], workloads: list[str], rounds: int, size: Size, results: Figures, *,
            is_all: bool) -> None:
    """Each workload on each host in turn, round by round. is_all: also where peers.py does not ask for it."""
    begin = time.monotonic()
    for number in range(1, rounds + 1):
        for name in workloads:
            for host in hosts:
                if is_all or host.label not in PEERS or name in BESIDES:
                    time.sleep(SETTLING)
                    measure_one(host, name, number, size, results)
            print(f"bench: round {number} of {rounds}: {name} done, {time.monotonic() - begin:.0f} s since the start",
                  flush=True)


def measure_one(host: Host, workload: str, number: int, size: Size, results: Figures) -> None:
    """One workload on one host. A failure is told, and what it has left undone is thrown away."""
    try:
        if host.label in PEERS:
            host.start()
        for figure, value in WORKLOADS[workload](host, size):
            results.add(Sample(workload, figure, host.label, number, value))
    except TROUBLE as problem:
        print(f"bench: {workload} on {host.label}, round {number}: {problem}", flush=True)
        with suppress(*TROUBLE):  # already told
            host.forget()
    finally:
        if host.label in PEERS:  # it shall not disturb the others
            host.stop()


def conditions(disk: Path) -> str:
    """What the figures were taken on."""
    kind = subprocess.run(["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(disk)], capture_output=True, text=True,
                          check=False).stdout.strip()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} processors, Linux {os.uname().release}, "
            f"{disk} on {kind}, load {load}")


def main() -> int:
    given = arguments()
    results = Figures()
    if given.table is not None:
        with given.table.open() as file:
            results.load(file)
        print(results.table())
        return 0
    if os.geteuid() != 0:
        print("bench: needs root, for file systems and users of its own", file=sys.stderr)
        return 1
    package = given.deb or max(Path("dist").glob("pysendmail_*_all.deb"), key=lambda file: file.stat().st_mtime,
                               default=None)
    if package is None:
        print("bench: no package in dist/; ./dev deb builds one", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended"))  # no Debian and no mount stays behind
    workloads = given.workload or list(WORKLOADS)
    asked = given.only or [figures.OURS, figures.THEIRS,
                           *(PEERS if set(workloads) & set(BESIDES) else ())]
    with ExitStack() as stack:
        if given.log is not None:
            results.log = stack.enter_context(given.log.open("a"))
        tools = Postfix(given.suite).image()
        hosts = [Pysendmail(given.suite, package) if label == figures.OURS else
                 {figures.THEIRS: Postfix, **PEERS}[label](given.suite) for label in asked]
        disk = Disk(CACHE, is_machines_own=given.here)
        stack.callback(disk.remove)
        disk.mount()
        for host in hosts:
            stack.callback(host.remove)
            host.boot(disk.path, tools)
        print(f"bench: {conditions(disk.path)}", flush=True)
        measure(hosts, workloads, given.rounds, QUICK if given.quick else Size(), results, is_all=bool(given.only))
    print(results.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
