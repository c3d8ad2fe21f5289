"""Reports: who is told what, under which id, and what becomes of those that nobody can be told of."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysendmail.config import Config, LimitSettings
from pysendmail.daemon.report import Plan, Reports
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.mail.outcome import Outcome, deferred, delivered, failed
from pysendmail.mail.target import MAILBOX, Target
from pysendmail.paths import Paths
from pysendmail.spool.journal import Event
from pysendmail.spool.queue import Message, Queue

ID = "0WkDdmTe001000"
NO, LATER, YES = failed("5.1.1", "no such user"), deferred("4.2.0", "mailbox is locked"), delivered("it is there")
TEXT = b"Subject: hello\nFrom: alice\n\nThe text.\n"

Make = Callable[..., Message]
Outcomes = tuple[Outcome | None, ...]


@pytest.fixture
def queue(paths: Paths) -> Queue:
    return Queue(paths, time.time)


@pytest.fixture
def reports(queue: Queue) -> Reports:
    return Reports(Config(hostname="host.example"), queue, time.time, "postmaster@host.example")


@pytest.fixture
def make(queue: Queue) -> Make:
    """A queued message whose recipients r0, r1... have these outcomes; None: not tried yet.

    owners: of the lists that they are reached by, None = of none.
    """
    def make(*outcomes: Outcome | None, sender: str = "alice@host.example", notify: tuple[str, ...] = (),
             queue_id: str = ID, text: bytes = TEXT, owners: tuple[str | None, ...] = (), **more: Any) -> Message:
        recipients = tuple(Recipient(f"r{k}@host.example", frozenset(notify)) for k in range(len(outcomes)))
        origin = more.pop("origin", Origin("command", 1000, "alice"))
        message = queue.commit(Envelope(queue_id, sender, recipients, time.time(), origin, **more), [text])
        for k, outcome in enumerate(outcomes):
            owner = owners[k] if k < len(owners) else None
            target = Target(MAILBOX, f"r{k}@host.example", user=f"r{k}", sender=owner)
            message.state.apply(Event("expanded", 1.0, {"r": k, "t": [[k, target.to_json()]]}))
            if outcome is not None:
                verb = "deferred" if outcome.is_deferred else "failed" if outcome.is_failed else "delivered"
                n: Any = [k] if outcome.is_deferred else k
                message.state.apply(Event(verb, 1.0, {"n": n, "o": outcome.to_json()}))
        return message

    return make


def told(plans: list[Plan]) -> list[tuple[str, tuple[int, ...]]]:
    return [(plan.recipient, plan.targets) for plan in plans]


ALICE, POSTMASTER = "alice@host.example", "postmaster@host.example"


@pytest.mark.parametrize(("outcomes", "more", "expected"), [
    ((YES,), {}, []),
    ((NO,), {}, [(ALICE, (0,))]),
    ((YES, NO, LATER, NO), {}, [(ALICE, (1, 3))]),
    ((LATER, None), {}, []),
    ((NO, YES), {"notify": ("never",)}, []),
    ((NO, YES), {"notify": ("success",)}, [(ALICE, (1,))]),
    ((NO, YES), {"notify": ("success", "failure")}, [(ALICE, (0, 1))]),
    ((NO, YES), {"notify": ("delay",)}, []),
    ((NO,), {"errors": "q"}, []),
    ((NO,), {"errors": "m"}, [(ALICE, (0,))]),
    ((NO, YES), {"sender": ""}, [(POSTMASTER, (0,))]),
    ((NO,), {"sender": "", "notify": ("never",)}, []),
    ((NO,), {"sender": "", "notify": ("never",), "origin": Origin("runner")}, [(POSTMASTER, (0,))]),
    ((YES,), {"sender": "", "notify": ("success",)}, []),
])
def test_who_is_told_of_what_is_final(
        reports: Reports, make: Make, outcomes: Outcomes, more: dict[str, Any], expected: Any) -> None:
    assert told(reports.plans(make(*outcomes, **more), "final")) == expected


@pytest.mark.parametrize(("outcomes", "more", "expected"), [
    ((LATER, None, YES, NO), {}, [(ALICE, (0, 1))]),
    ((YES, NO), {}, []),
    ((LATER,), {"notify": ("never",)}, []),
    ((LATER,), {"notify": ("failure",)}, []),
    ((LATER,), {"notify": ("delay",)}, [(ALICE, (0,))]),
    ((LATER,), {"sender": ""}, []),
    ((LATER,), {"text": b"Precedence: bulk\n\nx\n"}, []),
    ((LATER,), {"text": b"List-Id: <x.example>\n\nx\n"}, []),
    ((LATER,), {"text": b"Auto-Submitted: auto-generated\n\nx\n"}, [(ALICE, (0,))]),
])
def test_who_is_told_of_a_delay(
        reports: Reports, make: Make, outcomes: Outcomes, more: dict[str, Any], expected: Any) -> None:
    assert told(reports.plans(make(*outcomes, **more), "delayed")) == expected


def test_what_is_told_is_not_told_again(reports: Reports, make: Make) -> None:
    message = make(NO, LATER, NO)
    message.state.apply(Event("planned", 1.0, {"k": 1, "kind": "final", "n": [0, 2]}))
    message.state.apply(Event("reported", 1.0, {"k": 1}))
    assert reports.plans(message, "final") == []
    message.state.apply(Event("failed", 2.0, {"n": 1, "o": NO.to_json()}))
    plan, = reports.plans(message, "final")
    assert (plan.targets, plan.number, plan.report_id) == ((1,), 2, "B" + ID[1:])


def test_plan_that_is_made_again_is_the_same(reports: Reports, make: Make) -> None:
    message = make(NO, NO)
    plan, = reports.plans(message, "final")
    assert reports.remake(message, plan.number, plan.targets) == plan


@pytest.mark.parametrize(("queue_id", "sender", "report_id"), [
    (ID, ALICE, "A" + ID[1:]), ("A" + ID[1:], "", "a" + ID[1:]), ("a" + ID[1:], "", "")])
def test_ids_end_after_the_report_about_the_report(
        reports: Reports, make: Make, queue_id: str, sender: str, report_id: str) -> None:
    plan, = reports.plans(make(NO, sender=sender, queue_id=queue_id, origin=Origin("runner")), "final")
    assert plan.report_id == report_id
    assert ("nobody is left to be told" in plan.why) == (not report_id)


def test_report_is_a_message_in_the_queue(reports: Reports, make: Make, queue: Queue, paths: Paths) -> None:
    message = make(NO)
    plan, = reports.plans(message, "final")
    report = reports.commit(message, plan)
    assert sorted(os.listdir(f"{paths.queue}/new")) == sorted([ID, plan.report_id])
    again = queue.load(report.entry)
    assert (again.envelope.sender, again.envelope.recipients[0].address) == ("", ALICE)
    assert again.envelope.recipients[0].notify == {"never"}
    with open(queue.path(report), "rb") as file:
        text = file.read()
    assert b"r0@host.example" in text
    assert b"\nThe text.\n" in text


def test_notice_goes_to_the_postmaster(reports: Reports, make: Make) -> None:
    message = make(NO, sender="")
    plan, = reports.plans(message, "final")
    report = reports.commit(message, plan)
    assert (report.envelope.recipients[0].address, plan.is_notice) == (POSTMASTER, True)


def test_very_large_and_very_strange_originals_are_cut(reports: Reports, make: Make) -> None:
    for text in (b"", b"\n", b"\0" * 1000, b"x" * 3_000_000, b"A: b\n\n" + b"\xff\r\n" * 500_000, b"A: b\n" * 100_000):
        message = make(NO, queue_id=f"{ID[:8]}001{len(text) % 1000:03}", text=text)
        plan, = reports.plans(message, "final")
        report = reports.commit(message, plan)
        assert report.length < 400_000


@pytest.mark.parametrize(("most", "part"), [(0, b"text/rfc822-headers"), (10, b"message/rfc822"),
                                            (1_000_000, b"message/rfc822")])
def test_as_much_of_the_text_is_returned_as_the_settings_say(
        queue: Queue, make: Make, paths: Paths, most: int, part: bytes) -> None:
    config = Config(hostname="host.example", limits=LimitSettings(bounce_body=most))
    reports = Reports(config, queue, time.time, POSTMASTER)
    message = make(NO, text=b"Subject: hello\n\n" + b"line\n" * 100_000)
    plan, = reports.plans(message, "final")
    report = reports.commit(message, plan)
    text = Path(paths.queue, report.entry.place, report.entry.name).read_bytes()
    assert text.count(b"line\n") == min(most // 5, 100_000)
    assert b"Content-Type: " + part in text


def test_full_disk_is_an_error_and_leaves_nothing(
        reports: Reports, make: Make, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    message = make(NO)
    plan, = reports.plans(message, "final")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pysendmail.spool.durable.publish", full)
    with pytest.raises(OSError, match="No space"):
        reports.commit(message, plan)
    assert (os.listdir(f"{paths.queue}/new"), os.listdir(f"{paths.queue}/tmp")) == ([ID], [])


def test_owner_of_a_list_hears_of_its_members_and_the_sender_of_the_others(
        reports: Reports, make: Make, queue: Queue) -> None:
    owner = "owner-list@host.example"
    message = make(NO, NO, NO, owners=(owner, None, owner), ret="hdrs", envid="Envelope-7")
    plans = reports.plans(message, "final")
    assert sorted(told(plans)) == sorted([(owner, (0, 2)), (ALICE, (1,))])
    assert len({plan.report_id for plan in plans}) == 2
    for plan in plans:
        report = reports.commit(message, plan)
        with open(queue.path(report), "rb") as file:
            text = file.read()
        assert (b"Envelope-7" in text) == (plan.recipient == ALICE), "what the sender asked for is not the owner's"
