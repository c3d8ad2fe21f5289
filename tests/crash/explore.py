"""Every crash state of a run: what the disk may be before each change, and what has been promised by then."""

from collections.abc import Callable
from dataclasses import dataclass

from pysendmail.spool import record
from tests.crash.model import Snapshot
from tests.crash.world import PATHS, World

# Where messages lie, and what that is called here. What is in a tmp/ counts for nothing.
PLACES = {PATHS.drop_new: "drop/new", PATHS.smtp_new: "smtp/new", PATHS.intake: "intake",
          PATHS.quarantine: "quarantine",
          **{f"{PATHS.queue}/{name}": name for name in ("new", "cur", "hold", "bad", "journal")}}


@dataclass
class Crash:
    """One state after a crash, at the time `now`. promised: what had been acknowledged. where: before which change."""

    snapshot: Snapshot
    promised: frozenset[str]
    where: str
    is_kill: bool
    now: float = 0.0


def crashes(world: World, drive: Callable[[World], object], *, power_cuts: bool = True) -> list[Crash]:
    """Let `drive` work on the world, and note each different state that a crash before any change could leave.

    Of one state met more than once the greatest promise is kept; a process that is killed leaves one state, a power cut
    many.
    """
    found: dict[Snapshot, Crash] = {}
    changes = 0

    def note(name: str) -> None:
        nonlocal changes
        changes += 1
        promised = frozenset(world.promised)
        where, now = f"change {changes}, {name}", world.model.now
        _add(found, Crash(world.model.after_kill(), promised, where, True, now))
        if power_cuts:
            for snapshot in world.model.after_power_cut():
                _add(found, Crash(snapshot, promised, where, False, now))

    world.model.on_change = note
    try:
        drive(world)
    finally:
        note("the end")
        world.model.on_change = lambda name: None
    return list(found.values())


def _add(found: dict[Snapshot, Crash], crash: Crash) -> None:
    known = found.get(crash.snapshot)
    if known is None or known.promised < crash.promised:
        found[crash.snapshot] = crash


def on_disk(snapshot: Snapshot) -> str:
    """What the spool holds, in the words of the table in spool/queue.py: "intake + new~", ~ for a torn file."""
    found = []
    for path, content, _, _, _ in snapshot:
        place = PLACES.get(path.rpartition("/")[0])
        if place is None or path in PLACES:
            continue
        is_report = path.rpartition("/")[2][:1].isalpha()
        name = f"report {place}" if is_report and place in ("new", "cur", "hold", "journal") else place
        found.append(name + ("~" if place != "journal" and not is_whole(content) else ""))
    order = [*PLACES.values()]
    return " + ".join(sorted(found, key=lambda name: order.index(name.rstrip("~").split()[-1]))) or "nothing"


def is_whole(content: bytes) -> bool:
    try:
        _, length, checksum = record.read_first(content[:record.FIRST_LENGTH])
    except record.Damaged:
        return False
    return length == len(content) and record.crc(content[record.FIRST_LENGTH:]) == checksum
