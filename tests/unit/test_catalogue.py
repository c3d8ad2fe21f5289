"""Listings kept ready: equal to what the files say, gone with their message, bounded."""

import time
from pathlib import Path

import pytest

from pysendmail.config import QueueSettings
from pysendmail.daemon import catalogue as catalogue_module
from pysendmail.daemon.catalogue import Catalogue, item_of
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import deferred
from pysendmail.mail.target import RELAY, Target
from pysendmail.paths import Paths
from pysendmail.spool import listing
from pysendmail.spool.journal import Event
from pysendmail.spool.queue import Message, Queue, prepare

LIFETIME = QueueSettings().lifetime_of
NOW = 1_795_500_000.0


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    paths = Paths(str(tmp_path))
    prepare(paths)
    return Queue(paths, time.time)


def waiting(queue: Queue, number: int = 0, recipients: int = 1) -> Message:
    """A message that has been put off once."""
    addresses = [f"user{k}@example.net" for k in range(recipients)]
    envelope = Envelope(f"0WkDdmTe000{number:03d}", "alice@example.org", tuple(map(Recipient, addresses)), NOW,
                        Origin("command", 1000, "alice"), body="8bitmime")
    message = queue.commit(envelope, [b"Subject: x\n\ntext\n"])
    events = [Event("expanded", NOW, {"r": k, "t": [[k, Target(RELAY, address).to_json()]]})
              for k, address in enumerate(addresses)]
    events.append(Event("deferred", NOW, {"n": list(range(recipients)), "o": deferred("4.4.1", "is down").to_json()}))
    events.append(Event("tried", NOW, {"attempts": 1}))
    for event in events:
        message.state.apply(event)
    queue.write_down(message, events)
    queue.reschedule(message, NOW + 300, 1, "9f86d081")
    return message


def from_files(queue: Queue, message: Message) -> listing.Item:
    return listing.describe(listing.peek(queue, message.entry), LIFETIME)


def test_a_kept_line_says_what_the_files_say(queue: Queue) -> None:
    message = waiting(queue)
    catalogue = Catalogue(queue, LIFETIME)
    catalogue.keep(message)
    expected = from_files(queue, message)
    queue.finish(message)  # so that nothing can be read any more
    assert item_of(catalogue.line(message.entry)) == expected
    assert expected["recipients"] == [{"address": "user0@example.net", "status": "deferred", "reason": "is down"}]


def test_a_line_that_is_not_known_is_read_once(queue: Queue) -> None:
    message = waiting(queue)
    catalogue = Catalogue(queue, LIFETIME)
    first = catalogue.line(message.entry)
    expected = from_files(queue, message)
    queue.finish(message)
    assert catalogue.line(message.entry) == first
    assert item_of(first) == expected


def test_place_and_due_time_are_those_of_the_entry(queue: Queue) -> None:
    message = waiting(queue)
    catalogue = Catalogue(queue, LIFETIME)
    catalogue.keep(message)
    message.entry.due += 1000
    assert item_of(catalogue.line(message.entry))["next_try"] == NOW + 1300
    queue.hold(message.entry)
    item = item_of(catalogue.line(message.entry))
    assert (item["where"], item["next_try"]) == ("hold", None)


def test_what_is_forgotten_is_read_again(queue: Queue) -> None:
    message = waiting(queue)
    catalogue = Catalogue(queue, LIFETIME)
    catalogue.keep(message)
    event = Event("held", NOW, {"why": "by root"})
    message.state.apply(event)
    queue.write_down(message, [event])
    catalogue.forget(message.id)
    assert item_of(catalogue.line(message.entry))["hold"] == "by root"


def test_warming_reads_a_few_at_a_time_and_survives_what_has_left(queue: Queue) -> None:
    messages = [waiting(queue, number) for number in range(5)]
    entries = {message.id: message.entry for message in messages}
    catalogue = Catalogue(queue, LIFETIME)
    catalogue.expect(entries)
    queue.finish(messages[0])
    del entries[messages[1].id]
    assert catalogue.warm(entries, 2)
    assert not catalogue.warm(entries, 10)
    for message in messages[2:]:
        expected = from_files(queue, message)
        queue.finish(message)
        assert item_of(catalogue.line(message.entry)) == expected


def test_bytes_are_bounded(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "MAX_BYTES", 700)
    messages = [waiting(queue, number) for number in range(4)] + [waiting(queue, 9, recipients=60)]
    catalogue = Catalogue(queue, LIFETIME)
    for message in messages:
        catalogue.keep(message)
    assert len(catalogue._lines) == 2
    catalogue.forget(messages[0].id)
    catalogue.forget(messages[0].id)
    catalogue.keep(messages[3])
    assert len(catalogue._lines) == 2
    assert catalogue._size == sum(map(len, catalogue._lines.values()))
    assert [item_of(catalogue.line(message.entry)) for message in messages] == [
        from_files(queue, message) for message in messages]


def test_a_report_is_given_up_sooner_than_other_mail_is_returned(queue: Queue) -> None:
    for number, (sender, lifetime) in enumerate({"alice@example.org": 432_000, "": 172_800}.items()):
        envelope = Envelope(f"5abcDEFG{number:06d}", sender, (Recipient("bob@example.net"),), NOW, Origin("runner"))
        assert listing.describe(queue.commit(envelope, [b"x: y\n\n"]), LIFETIME)["expires"] == NOW + lifetime
