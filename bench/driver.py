"""Runs inside a measured Debian, as an ordinary user, with nothing but the standard library.

    driver.py submit COUNT PARALLEL SIZE RECIPIENT...   messages in turn to the recipients, through /usr/sbin/sendmail
    driver.py floor COUNT DIRECTORY                     what no sendmail in Python can beat: start, and one fsync

Prints one JSON object. Times are milliseconds from exec to exit; cpu_s is what the submitting programs used, as the
kernel counts for their parent; peak_mb is the largest of them.
"""

import json
import os
import resource
import sys
import tempfile
import time
from typing import IO

SENDMAIL = "/usr/sbin/sendmail"
PYTHON = "/usr/bin/python3"
LINE = b"x" * 71 + b"\n"


def write_message(file: IO[bytes], size: int) -> None:
    """A message of about `size` bytes; never all of it in memory, which would count as a submitting program's."""
    head = b"From: bob\nTo: alice\nSubject: a message to measure with\n\n"
    file.write(head)
    for _ in range(max(1, (size - len(head)) // len(LINE))):
        file.write(LINE)
    file.flush()


def submit(count: int, parallel: int, size: int, recipients: list[str]) -> dict[str, object]:
    """Submit `count` messages, `parallel` at a time."""
    with tempfile.NamedTemporaryFile() as file:
        write_message(file, size)
        stdin = [(os.POSIX_SPAWN_OPEN, 0, file.name, os.O_RDONLY, 0)]
        running: dict[int, float] = {}
        times: list[float] = []
        started = failed = 0
        begin = time.perf_counter()
        began = time.monotonic()
        while started < count or running:
            while started < count and len(running) < parallel:
                words = [SENDMAIL, "-oi", recipients[started % len(recipients)]]
                at = time.perf_counter()
                running[os.posix_spawn(SENDMAIL, words, os.environ, file_actions=stdin)] = at
                started += 1
            pid, status = os.wait()
            times.append((time.perf_counter() - running.pop(pid)) * 1e3)
            failed += status != 0
        wall = time.perf_counter() - begin
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"ms": times, "began": began, "wall_s": wall, "failed": failed, "cpu_s": use.ru_utime + use.ru_stime,
            "peak_mb": use.ru_maxrss / 1024}


def floor(count: int, directory: str) -> dict[str, object]:
    """Start the interpreter that sendmail is written for; make, write and sync a file of the usual size."""
    starts, syncs = [], []
    data = LINE * (2048 // len(LINE))
    path = f"{directory}/floor.{os.getpid()}"
    for _ in range(count):
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn(PYTHON, [PYTHON, "-IS", "-c", "pass"], os.environ), 0)
        middle = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        end = time.perf_counter()
        os.unlink(path)
        starts.append((middle - begin) * 1e3)
        syncs.append((end - middle) * 1e3)
    return {"start_ms": starts, "sync_ms": syncs}


def main(words: list[str]) -> None:
    if words[0] == "submit":
        result = submit(int(words[1]), int(words[2]), int(words[3]), words[4:])
    else:
        result = floor(int(words[1]), words[2])
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
