"""The command line of the bench: `./dev bench`, or `python3 -m bench` from the top of the tree, as root."""

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from . import figures
from .disk import Disk
from .figures import Figures, Sample
from .hosts import CACHE, Failed, Host, Postfix, Pysendmail
from .network import NotSent
from .size import QUICK, Size
from .workloads import WORKLOADS

SETTLING = 2.0  # seconds between workloads, for the disk


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
    parser.add_argument("--only", choices=(figures.OURS, figures.THEIRS), help="measure one of the two")
    parser.add_argument("--here", action="store_true", help="on the file system of /var/tmp, not on an ext4 of its own")
    parser.add_argument("--log", type=Path, help="append each figure to this file, a line of JSON each")
    parser.add_argument("--table", type=Path, help="print the table of such a file and measure nothing")
    return parser.parse_args()


def measure(hosts: list[Host], workloads: list[str], rounds: int, size: Size, results: Figures) -> None:
    """Each workload on each host in turn, round by round."""
    for number in range(1, rounds + 1):
        for name in workloads:
            for host in hosts:
                time.sleep(SETTLING)
                try:
                    for figure, value in WORKLOADS[name](host, size):
                        results.add(Sample(name, figure, host.label, number, value))
                except (Failed, NotSent, AssertionError, OSError, subprocess.SubprocessError) as problem:
                    print(f"bench: {name} on {host.label}, round {number}: {problem}", flush=True)
            print(f"bench: round {number} of {rounds}: {name} done", flush=True)


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
    makers = {figures.OURS: lambda: Pysendmail(given.suite, package), figures.THEIRS: lambda: Postfix(given.suite)}
    with ExitStack() as stack:
        if given.log is not None:
            results.log = stack.enter_context(given.log.open("a"))
        tools = Postfix(given.suite).image()
        hosts = [make() for label, make in makers.items() if given.only in (None, label)]
        disk = Disk(CACHE, is_machines_own=given.here)
        stack.callback(disk.remove)
        disk.mount()
        for host in hosts:
            stack.callback(host.remove)
            host.boot(disk.path, tools)
        print(f"bench: {conditions(disk.path)}", flush=True)
        measure(hosts, given.workload or list(WORKLOADS), given.rounds, QUICK if given.quick else Size(), results)
    print(results.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
