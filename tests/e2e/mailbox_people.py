"""Runs in the Debian: mail for one mailbox, people who read it meanwhile, and what they say they have seen.

Arguments: who writes ("smtp": us; "programs": us and all that Debian has), whose mailbox, how many messages, which
clients read ("imap", or "imap,pop3"; each takes its half of the messages away, and does not touch the others but for
flags). JSON comes on standard output. taken: by client, the number of each message that it took away; left: of each
that is there in the end; troubles: what went wrong, torn messages among them.
"""

import imaplib
import json
import poplib
import re
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

USER, PASSWORD = sys.argv[2], "of-the-host"
COUNT = int(sys.argv[3])
AHEAD = 30  # messages that are on their way or in the mailbox, at most
TIME = 50  # seconds
PAUSE = 0.1  # seconds between looks into the mailbox
TRIES = 5
EX_TEMPFAIL = 75
OURS = ["/usr/sbin/sendmail", "-i", USER]
# By the number of the message modulo 7; the others are ours.
PROGRAMS = {1: ["procmail", "-d", USER], 2: ["maildrop", "-d", USER], 3: ["/usr/lib/dovecot/dovecot-lda", "-d", USER]}

ahead = threading.Semaphore(AHEAD)
troubles: list[str] = []
taken: dict[str, dict[bytes, int]] = {}  # by client, then by UID
end = time.monotonic() + TIME


def message(number: int) -> bytes:
    """Some of a few bytes, some of more than one write or page; with lines that mailboxes take for a new message."""
    lines = [f"{line} of {number}: " + "x" * (line * number % 61) for line in range(number % 20 * 10)]
    lines += ["", "From here on", ">From there", "."] if number % 3 else []
    lines += [f"more of {number}"] * (4000 if number % 25 == 0 else 0)
    head = f"From: {USER}\nTo: {USER}\nSubject: message {number}\n\n"
    return (head + "\n".join([*lines, f"end of {number}"]) + "\n").encode()


def number_of(found: bytes) -> int:
    """Which one it is, and a trouble if not the whole of it."""
    found = found.replace(b"\r\n", b"\n")
    subject = re.search(rb"^Subject: message (\d+)$", found, re.MULTILINE)
    if subject is None:
        troubles.append(f"no message of ours: {found[:200]!r}")
        return 0
    number = int(subject[1])
    text, wanted = (re.sub(rb"^>+From ", b"From ", data.partition(b"\n\n")[2], flags=re.MULTILINE).rstrip(b"\n")
                    for data in (found, message(number)))
    if text != wanted:
        troubles.append(f"{number} is torn: {text[:200]!r} ... {text[-200:]!r}")
    return number


# ---- those who write

def by_smtp(numbers: Sequence[int]) -> None:
    with smtplib.SMTP("127.0.0.1", 25, timeout=TIME) as client:
        for number in numbers:
            if not ahead.acquire(timeout=TIME):
                raise TimeoutError(f"nobody takes away what comes before message {number}")
            client.sendmail(f"{USER}@host.example.test", [USER], message(number).replace(b"\n", b"\r\n"))


def by_program(number: int) -> None:
    """A program that says "later" is started again, as a mail system does."""
    words = PROGRAMS.get(number % 7, OURS)
    for _ in range(TRIES):
        done = subprocess.run(words, input=message(number), capture_output=True, timeout=TIME, check=False)
        if done.returncode != EX_TEMPFAIL:
            break
    if done.returncode:
        raise ValueError(f"{words}: exit {done.returncode}: {done.stderr!r}")


# ---- those who read

def imap() -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", timeout=TIME)
    client.login(USER, PASSWORD)
    client.select("INBOX")
    return client


def look(client: imaplib.IMAP4, known: dict[bytes, int]) -> list[bytes]:
    """The UIDs of messages that have come since; all of them are noted and read."""
    client.noop()
    came = [uid for uid in client.uid("search", "ALL")[1][0].split() if uid not in known]
    for uid in came:
        found = client.uid("fetch", uid.decode(), "(BODY.PEEK[])")[1]
        if isinstance(found[0], tuple):  # else the other client has deleted it meanwhile
            known[uid] = number_of(found[0][1])
    return [uid for uid in came if uid in known]


def read_by_imap(wanted: set[int]) -> None:
    """One session. What is not for us is flagged, which rewrites it; what is, is expunged."""
    client, known = imap(), {}
    while set(taken["imap"].values()) < wanted and time.monotonic() < end:
        came = look(client, known)
        for uid in came:
            flags = r"(\Deleted)" if known[uid] in wanted else r"(\Seen \Flagged)"
            client.uid("store", uid.decode(), "+FLAGS.SILENT", flags)
        client.expunge()
        for uid in came:
            if known[uid] in wanted:
                taken["imap"][uid] = known[uid]
                ahead.release()
        if not came:
            time.sleep(PAUSE)
    client.logout()


def read_by_pop3(wanted: set[int]) -> None:
    """One session after the other."""
    while set(taken["pop3"].values()) < wanted and time.monotonic() < end:
        if not pop3_session(wanted):
            time.sleep(PAUSE)


def pop3_session(wanted: set[int]) -> bool:
    """Whether anything was taken away. What is deleted counts once the server has said so."""
    client = poplib.POP3("127.0.0.1", timeout=TIME)
    mine = {}
    try:
        client.user(USER)
        client.pass_(PASSWORD)
        for line in client.uidl()[1]:
            place, uid = line.split()
            number = number_of(b"\n".join(client.retr(int(place))[1]) + b"\n")
            if number in wanted:
                client.dele(int(place))
                mine[uid] = number
        client.quit()
    except poplib.error_proto as problem:
        if b"EOF" not in problem.args[0] and b"-ERR" not in problem.args[0]:
            raise
        client.close()  # the other client has expunged what we were about to read; nothing of ours is deleted
        return False
    for _ in mine.keys() - taken["pop3"].keys():
        ahead.release()
    taken["pop3"].update(mine)
    return bool(mine)


READERS = {"imap": read_by_imap, "pop3": read_by_pop3}


def main() -> None:
    numbers = range(1, COUNT + 1)
    with ThreadPoolExecutor(COUNT + len(READERS)) as pool:  # everybody at the same time
        work: list[Future[None]] = []
        for place, name in enumerate(sys.argv[4].split(",")):
            taken[name] = {}
            work.append(pool.submit(READERS[name], {number for number in numbers if number % 2 == place}))
        if sys.argv[1] == "smtp":
            work += [pool.submit(by_smtp, numbers[first::2]) for first in (0, 1)]
        else:
            work += [pool.submit(by_program, number) for number in numbers]
    troubles.extend(repr(one.exception()) for one in work if one.exception())
    left: dict[bytes, int] = {}
    client = imap()
    while len(left) < COUNT - sum(map(len, taken.values())) and time.monotonic() < end:
        if not look(client, left):
            time.sleep(PAUSE)
    look(client, left)
    client.logout()
    result = {name: sorted(uids.values()) for name, uids in taken.items()}
    print(json.dumps({"taken": result, "left": sorted(left.values()), "troubles": troubles}))


main()
