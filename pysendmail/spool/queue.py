"""The queue on disk: queue/{tmp,new,cur,hold,bad,journal}, and intake/ beside it.

Only the runner changes it, and one runner has it at a time (its lock file). A message file never changes once it is
whole; what happens to it goes into journal/ID. The *name* carries what the scheduler must know after a restart:

    new/ID                                   accepted, not tried to its end yet
    cur/ID,T=1795500000,A=3,H=9f86d081,U=1000:2,   tried: due, attempts, hash of the destination, submitter's uid
    hold/NAME                                the same name as in new or cur, out of the schedule
    bad/NAME                                 damaged or fatal three times; for people
    bad/NAME,told                            the postmaster has been told of it; never touched again

    state                              on disk                                after a crash
    S1 submitted                       drop/new/X                             taken in by the next sweep
    S2 claimed                         intake/ID                              copied again, under the same id
    S3 copied, not synced              intake/ID + new/ID (perhaps torn)      new/ID is thrown away; as S2
    S4 queued                          new/ID or cur/ID,... or hold/...       delivered from the journal's state on
       its source not yet gone         + intake/ID                            intake/ID is thrown away
    S5 done                            new/ID (perhaps torn), journal/ID,     new/ID is delivered once more or, if torn,
                                       or nothing                             goes to bad/; journal/ID is removed

What tells S4 from S3 when intake/ID is there: a message leaves new/, and gets a journal, only after `secure`.

Invariant: at every instant an accepted message has a synced file: the submitter's own in drop/new or intake, until
`secure` has synced our copy; then ours, until every target is final and every report about it is synced (`finish`).
A message that is done in its first pass never pays for the sync of its copy: the mailbox's sync covers it. Everything
that is appended to a journal happens after `secure`.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern

from ..mail.envelope import Envelope
from ..mail.outcome import Outcome, failed
from ..paths import Paths
from . import claims, durable, journal, queue_id
from .queue_file import read_envelope, write_message
from .record import Damaged

PLACES = ("new", "cur", "hold")
DIRECTORIES = ("tmp", "new", "cur", "hold", "bad", "journal")
MAX_JOURNAL = 64 * 1024 * 1024  # bytes: more is damage
FULL_JOURNAL = 16 * 1024 * 1024  # bytes: beyond this deferrals are left out, which only repeat what is in it already


class Broken(Exception):
    """A file of the queue that cannot be used. The text says why; the file belongs into bad/."""


@dataclass(slots=True)
class Entry:
    """What a file name in the queue says. due: seconds since the epoch. uid: of the submitter, -1 = not local."""

    id: str
    place: str
    name: str
    due: int = 0
    attempts: int = 0
    destination: str = ""
    uid: int = -1


@dataclass(slots=True)
class Message:
    """A queued message in memory while somebody works on it. offset: where its text begins; length: of the file.

    source: its file in intake/ while that is what makes it safe, else "". sound: bytes of the journal that are whole
    lines; is_torn: something else may follow them, which must not swallow the next line. is_given_up: the sync of our
    copy has failed, and it must never be relied on.
    """

    entry: Entry
    envelope: Envelope
    offset: int
    length: int
    source: str = ""
    state: journal.State = field(default_factory=journal.State)
    is_journalled: bool = False
    is_torn: bool = False
    sound: int = 0
    is_given_up: bool = False
    is_put_off: bool = False  # its submitter wants it queued, not tried at once

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def refusal(self) -> Outcome | None:
        """What every recipient gets, because of the message itself."""
        status, _, reason = self.envelope.refusal.partition(" ")
        return failed(status, reason) if status else None


def entry_of(place: str, name: str) -> Entry | None:
    """The entry that a file name stands for, None if no runner made it. Unreadable attributes are left out."""
    found = queue_id.id_of(name)
    if not found:
        return None
    if len(name) == queue_id.LENGTH:
        return Entry(found, place, name)
    values = dict([part.split("=", 1) for part in name[queue_id.LENGTH:].split(":", 1)[0].split(",") if "=" in part])
    # Thousands of names have the same destination: one string for all of them.
    return Entry(found, place, name, _number(values.get("T", "")), _number(values.get("A", "")),
                 intern(values.get("H", "")), _number(values.get("U", ""), -1))


def name_of(entry: Entry) -> str:
    """The name in cur/ for an entry."""
    uid = f",U={entry.uid}" if entry.uid >= 0 else ""
    return f"{entry.id},T={entry.due:010d},A={entry.attempts},H={entry.destination}{uid}:2,"


def _number(digits: str, default: int = 0) -> int:
    return int(digits) if len(digits) <= 12 and digits.isascii() and digits.isdecimal() else default


class Queue:
    """The queue of one spool. sync_directories: for file systems that are not SYNCED_WITH_FILE."""

    def __init__(self, paths: Paths, clock: Callable[[], float], *, sync_directories: bool = False) -> None:
        self._root = paths.queue
        self.bad = paths.queue + "/bad"
        self._intake = paths.intake
        self._quarantine = paths.quarantine
        self._journals = paths.journal
        self._clock = clock
        self._sync_directories = sync_directories

    # ---- putting messages in

    def adopt(self, envelope: Envelope, content: Iterable[bytes], source: str) -> Message:
        """Copy a claimed message from intake/`source` into new/: not synced, since the source is (S3).

        content: the message as chunks. Raises OSError, and leaves nothing but the source then. The copy's modification
        time is when the message was received, since a Maildir names a message by it: another copy is the same message.
        """
        path = f"{self._root}/new/{envelope.id}"
        try:
            fd = durable.create(path)
        except FileExistsError:  # of a try that failed and could not be removed then: S3, as our source shows
            durable.unlink(path)
            fd = durable.create(path)
        try:
            offset, length = write_message(fd, envelope, content)
            durable.stamp(fd, envelope.received_at)
        except BaseException:
            durable.unlink(path)
            raise
        finally:
            os.close(fd)
        return Message(_new_entry(envelope), envelope, offset, length, source)

    def commit(self, envelope: Envelope, content: Iterable[bytes]) -> Message:
        """Queue a message that has no other home, durably (S4). Raises OSError, and has queued nothing then."""
        tmp, new = f"{self._root}/tmp/{envelope.id}", f"{self._root}/new/{envelope.id}"
        fd = durable.create(tmp)
        try:
            try:
                offset, length = write_message(fd, envelope, content)
                durable.publish(fd, tmp, new, f"{self._root}/new" if self._sync_directories else "")
            except BaseException:
                durable.unlink(tmp)
                raise
        finally:
            os.close(fd)
        # From here on the message is safe.
        return Message(_new_entry(envelope), envelope, offset, length)

    def secure(self, message: Message) -> None:
        """Make our own copy what the promise rests on: sync it, then let the submitter's file go (S3 -> S4).

        If the sync fails the copy is given up and the source stays: OSError, and the message must be adopted again. A
        second sync of it would lie, so there is none, even if the copy cannot be removed. Having no descriptor for it
        is another matter: nothing has been tried then, and it can be tried later.
        """
        if not message.source:
            return
        path = self.path(message)
        try:
            if message.is_given_up:
                raise OSError(5, "the copy in the queue could not be synced")
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                durable.sync(fd)
            finally:
                os.close(fd)
            if self._sync_directories:
                durable.sync_directory(f"{self._root}/{message.entry.place}")
        except OSError as trouble:
            if trouble.errno not in (errno.EMFILE, errno.ENFILE):
                message.is_given_up = True
                durable.unlink(path)
            raise
        # From here on our copy is safe by itself.
        durable.unlink(f"{self._intake}/{message.source}")
        message.source = ""

    # ---- finding them again

    def entries(self) -> Iterator[Entry]:
        """What new, cur and hold hold, by one directory scan each; foreign names are passed over."""
        for place in PLACES:
            with os.scandir(f"{self._root}/{place}") as found:
                for file in found:
                    entry = entry_of(place, file.name)
                    if entry is not None:
                        yield entry

    def find(self, wanted: str) -> Entry | None:
        """The entry with this id, wherever it is: a scan of three directories."""
        return next((entry for entry in self.entries() if entry.id == wanted), None)

    def load(self, entry: Entry) -> Message:
        """Read and check a whole message and its journal. Raises Broken (for bad/), InWork or another OSError (try
        again)."""
        self.check_claim(entry)
        try:
            fd = self.open_entry(entry)
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENXIO):
                raise Broken("not a regular file") from problem
            raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Damaged("not a regular file")
            envelope, offset, length = read_envelope(fd, entry.id, verify=True)
        except (Damaged, ValueError) as problem:
            raise Broken(str(problem)) from problem
        finally:
            os.close(fd)
        message = Message(entry, envelope, offset, length)
        self.load_journal(message)
        return message

    def load_journal(self, message: Message) -> None:
        """Read the journal into the message's state. Raises Broken or OSError."""
        try:
            with open(f"{self._journals}/{message.id}", "rb") as file:
                data = file.read(MAX_JOURNAL + 1)
        except FileNotFoundError:
            return
        if len(data) > MAX_JOURNAL:
            raise Broken("journal is too large")
        try:
            events, message.sound = journal.decode(data)
            message.state = journal.fold(events)
        except ValueError as problem:
            raise Broken(str(problem)) from problem
        message.is_journalled = True
        message.is_torn = message.sound < len(data)

    def claim(self, message: Message) -> int:
        """Keep other runners from working on a message, until the descriptor is closed (claims.py). Raises OSError."""
        return claims.make(f"{self._journals}/{message.id}")

    def check_claim(self, entry: Entry) -> None:
        """Raises InWork if an earlier runner has a message, or another OSError."""
        if claims.exists(f"{self._journals}/{entry.id}"):
            raise claims.InWork

    def open(self, message: Message) -> int:
        """A new descriptor of its file, read-only: readers use explicit offsets."""
        return self.open_entry(message.entry)

    def open_entry(self, entry: Entry) -> int:
        """A new read-only descriptor of the file of an entry; whatever lies there, this does not wait."""
        return os.open(f"{self._root}/{entry.place}/{entry.name}", durable.READ)

    def path(self, message: Message) -> str:
        return f"{self._root}/{message.entry.place}/{message.entry.name}"

    # ---- what happens to them

    def write_down(self, message: Message, events: Sequence[journal.Event], *, sync: bool = False) -> None:
        """Append events, which its state has taken in already, to the journal. Raises OSError: nothing is written.

        The message must be secured: a journal says what need not be done again, and it must not outlive its message.
        """
        if message.source:
            raise ValueError("a journal needs a secured message")
        if message.sound > FULL_JOURNAL:
            events = [event for event in events if event.verb != "deferred"]
        data = b"".join(map(journal.encode, events))
        if not data:
            return
        path = f"{self._journals}/{message.id}"
        if message.is_torn:
            durable.truncate(path, message.sound)
        fd = durable.open_append(path)
        message.is_journalled = message.is_torn = True
        try:
            durable.write_all(fd, data)
            if sync:
                durable.sync(fd)
        finally:
            os.close(fd)
        message.is_torn = False
        message.sound += len(data)

    def reschedule(self, message: Message, due: float, attempts: int, destination: str) -> None:
        """Back to waiting, with a new due time in its name. The rename needs no sync: its loss means an early try."""
        entry = message.entry
        entry.due, entry.attempts, entry.destination = int(due), attempts, destination
        self._move(entry, "cur", name_of(entry))

    def hold(self, entry: Entry) -> None:
        self._move(entry, "hold", entry.name)

    def release(self, entry: Entry) -> None:
        self._move(entry, "cur" if "," in entry.name else "new", entry.name)

    def bring_forward(self, entry: Entry, due: float) -> None:
        """Let a message that was tried before be due earlier; a new one always is."""
        if entry.place == "cur" and entry.due > due:
            entry.due = int(due)
            self._move(entry, "cur", name_of(entry))

    def _move(self, entry: Entry, place: str, name: str) -> None:
        durable.rename(f"{self._root}/{entry.place}/{entry.name}", f"{self._root}/{place}/{name}")
        entry.place, entry.name = place, name

    def finish(self, message: Message) -> None:
        """Every target is final and every report is queued: forget the message (S5).

        If we die in between, a message without a journal is delivered once more, with the same bytes, which a mailbox
        notices. The journal goes last, or recipients that are done would not be known as such.
        """
        if message.source:
            durable.unlink(f"{self._intake}/{message.source}")
            message.source = ""
        durable.unlink(self.path(message))
        if message.is_journalled:
            durable.unlink(f"{self._journals}/{message.id}")

    def set_aside(self, entry: Entry) -> None:
        """Into bad/, for people to look at. The journal stays where it is."""
        self._move(entry, "bad", entry.name)

    # ---- at start

    def taken_ids(self) -> set[str]:
        """Every id that a file of the spool has, whatever it is: a new message must not get one of them."""
        directories = [f"{self._root}/{name}" for name in DIRECTORIES] + [self._intake, self._quarantine]
        found: set[str] = set()
        for directory in directories:
            found.update([name[:queue_id.LENGTH] for name in os.listdir(directory)])
        return set(filter(queue_id.is_queue_id, found))

    def recover(self, sources: Mapping[str, str]) -> list[Entry]:
        """Bring the directories from any crash state to S1, S2 or S4, and say what is in the queue then. sources: ids
        in intake/ and their file names."""
        for name in os.listdir(f"{self._root}/tmp"):
            durable.unlink(f"{self._root}/tmp/{name}")
        journals = set(os.listdir(self._journals))
        alive: list[Entry] = []
        for entry in list(self.entries()):
            if entry.id not in sources:
                alive.append(entry)
            elif (entry.place != "new" or entry.id in journals) and self._is_whole(entry):
                durable.unlink(f"{self._intake}/{sources[entry.id]}")  # S4
                alive.append(entry)
            else:
                durable.unlink(f"{self._root}/{entry.place}/{entry.name}")  # S3: perhaps torn; its source is whole
        for name in journals.difference([entry.id for entry in alive]):
            if queue_id.is_queue_id(name):
                self._bury(name)
        return alive

    def _is_whole(self, entry: Entry) -> bool:
        try:
            self.load(entry)
        except Broken:
            return False
        except claims.InWork:
            pass
        return True

    def _bury(self, name: str) -> None:
        """Remove the journal of a message that is gone; keep it while the message is in bad/."""
        if not any(bad.startswith(name) for bad in os.listdir(f"{self._root}/bad")):
            durable.unlink(f"{self._journals}/{name}")


def _new_entry(envelope: Envelope) -> Entry:
    return Entry(envelope.id, "new", envelope.id, int(envelope.received_at), 0, "", envelope.origin.uid)


def prepare(paths: Paths) -> None:
    """Make the queue's private directories where they are missing (a fresh private root; the package makes its own)."""
    for path in (*(f"{paths.queue}/{name}" for name in DIRECTORIES), paths.intake, paths.quarantine):
        os.makedirs(path, 0o700, exist_ok=True)

