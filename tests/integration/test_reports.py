"""What senders hear: failures, delays, receipts; whom a report about a report reaches. Nothing ends in silence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pysendmail.daemon import schedule
from tests.tools.host import Host, Mail

MakeHost = Callable[..., Host]
SOON = "[queue]\nretry_first = 1\nretry_max = 1\n"


def field(report: str, name: str) -> list[str]:
    return [line.partition(": ")[2] for line in report.split("\n") if line.startswith(f"{name}: ")]


def test_unknown_user_comes_back(host: Host) -> None:
    mail = host.send("bob", "nobody-there", sender="alice", text=b"The text.\n")
    host.wait_empty()
    assert host.copies("bob", mail) == 1
    report, = host.reports("alice", mail)
    assert "\nReturn-Path: <>\n" in "\n" + report
    assert field(report, "Final-Recipient") == ["rfc822; nobody-there@host.example"]
    assert (field(report, "Action"), field(report, "Status")) == (["failed"], ["5.1.1"])
    assert "\nThe text.\n" in report
    assert "bob@host.example" not in report.partition("Reporting-MTA")[0].partition("\n\n")[2]


def test_several_failures_are_one_report(host: Host) -> None:
    mail = host.send("nobody1", "nobody2", "nobody3", sender="alice")
    host.wait_empty()
    report, = host.reports("alice", mail)
    assert len(field(report, "Final-Recipient")) == 3


def test_report_that_fails_reaches_the_postmaster(make_host: MakeHost) -> None:
    host = make_host(aliases="root: dave\n")
    host.start()
    mail = host.send("nobody-there", sender="alice", options=("-i", "-f", "ghost"))
    host.wait_empty()
    notice, = (message for message in host.messages("dave") if f"<{mail.name}@test>" in message)
    assert "ghost@host.example" in notice
    assert host.box("alice") == ""


def test_failed_mail_without_a_sender_reaches_the_postmaster(make_host: MakeHost) -> None:
    host = make_host(aliases="root: dave\n")
    host.start()
    mail = host.send("nobody-there", sender="alice", options=("-i", "-f", "<>"))
    host.wait_empty()
    notice, = (message for message in host.messages("dave") if f"<{mail.name}@test>" in message)
    assert "nobody-there@host.example" in notice


def test_mail_of_which_nobody_can_be_told_is_held_and_not_lost(make_host: MakeHost) -> None:
    """The report fails, and so does the notice to the postmaster, whose alias leads nowhere: it waits for a person."""
    host = make_host(aliases="root: nobody-at-all\n")
    host.start()
    mail = host.send("nobody-there", sender="alice", options=("-i", "-f", "ghost"))
    found = host.queue_id(mail)
    host.log.wait_for(rf"^\w{found[1:]}: to=<nobody-at-all@", count=1)
    host.wait_until(lambda: host.status()["held"] == 1 and host.status()["active"] == 0, "one held message")
    item, = host.ask("list")
    assert item["where"] == "hold"
    assert "nobody is left to be told" in item["hold"]
    text = Path(f"{host.paths.queue}/{host.files('queue/hold')[0].partition('/')[2]}").read_text()
    assert f"<{mail.name}@test>" in text
    host.stop()
    host.start()
    assert host.status()["held"] == 1


def test_mailbox_that_gets_its_own_report_makes_no_loop(host: Host) -> None:
    """A .forward that fails sends its report to its own user: once."""
    host.forward("alice", "nobody-there\n")
    mail = host.send("alice", sender="alice")
    host.wait_empty()
    assert len(host.log.find(": DSN: ")) == 1
    assert host.copies("alice", mail) == 0
    assert len([line for line in host.log.find(r"^\w+: from=")]) <= 4


def test_message_that_was_here_before_is_cut(host: Host) -> None:
    mail = host.send("bob", sender="alice", headers=b"Delivered-To: bob@host.example\n")
    host.wait_empty()
    assert host.copies("bob", mail) == 0
    report, = host.reports("alice", mail)
    assert field(report, "Status") == ["5.4.6"]


def test_alias_loop_is_one_report(make_host: MakeHost) -> None:
    host = make_host(aliases="ring: round\nround: about\nabout: ring\n")
    host.start()
    mail = host.send("ring", sender="alice")
    host.wait_empty()
    report, = host.reports("alice", mail)
    assert field(report, "Status") == ["5.4.6"]


# ---- what was asked for


@pytest.mark.parametrize(("notify", "recipients", "actions"), [
    ("never", ("bob", "nobody-there"), []),
    ("success", ("bob", "nobody-there"), ["delivered"]),
    ("success,failure", ("bob", "nobody-there"), ["delivered", "failed"]),
    ("failure", ("bob",), []),
    ("delay", ("nobody-there",), []),
])
def test_notify(host: Host, notify: str, recipients: tuple[str, ...], actions: list[str]) -> None:
    mail = host.send(*recipients, sender="alice", options=("-i", "-N", notify))
    host.wait_empty()
    told = [action for report in host.reports("alice", mail) for action in field(report, "Action")]
    assert sorted(told) == actions
    assert len(host.log.find(": DSN: Return receipt$")) == actions.count("delivered"), "logwatch counts these words"


def test_a_name_for_the_log_is_in_the_log(host: Host) -> None:
    host.send("bob", options=("-i", "-L", "backup"))
    host.wait_empty()
    assert len(host.log.find(r": from=<.*, tag=backup, relay=")) == 1


def test_failure_that_nobody_wants_to_hear_of_reaches_nobody(make_host: MakeHost) -> None:
    host = make_host(aliases="root: dave\n")
    host.start()
    host.send("nobody-there", sender="alice", options=("-i", "-oeq"))
    host.send("nobody-there", sender="alice", options=("-i", "-f", "<>", "-N", "never"))
    host.wait_empty()
    assert (host.box("alice"), host.box("dave")) == ("", "")


def test_headers_only(host: Host) -> None:
    mail = host.send("nobody-there", sender="alice", options=("-i", "-R", "hdrs", "-V", "abc"), text=b"The text.\n")
    host.wait_empty()
    report, = host.reports("alice", mail)
    assert "The text." not in report
    assert field(report, "Original-Envelope-Id") == ["abc"]


# ---- time


def test_expired_mail_comes_back_with_the_last_reason(make_host: MakeHost) -> None:
    host = make_host(settings=SOON + "lifetime = 1\ndelay_warning = 0\n")
    host.forward("bob", '"|echo the printer is on fire; exit 75"\n')
    host.start()
    mail = host.send("bob", "carol", sender="alice")
    host.wait_empty()
    report, = host.reports("alice", mail)
    assert field(report, "Status") == ["5.4.7"]
    assert "the printer is on fire" in report
    # At least: a due time is a whole second, so that some tries may follow each other closely while it is young.
    assert len(host.log.find(r"to=<bob@.*stat=Deferred")) >= schedule.MIN_ATTEMPTS
    assert host.copies("carol", mail) == 1


def test_delay_is_told_once(make_host: MakeHost) -> None:
    host = make_host(settings=SOON + "delay_warning = 1\n")
    home = host.users["bob"].home
    host.forward("bob", f'"|test -e {home}/good || exit 75"\n')
    host.start()
    mail = host.send("bob", sender="alice")
    host.log.wait_for(r"to=<alice@.*stat=Sent")
    host.log.wait_for(r"to=<bob@.*stat=Deferred", since=host.log.mark(), count=2)
    report, = host.reports("alice", mail)
    assert field(report, "Action") == ["delayed"]
    assert field(report, "Will-Retry-Until") != []
    host.write_home("bob", "good", "")
    host.wait_empty()
    assert len(host.reports("alice", mail)) == 1


def test_bulk_mail_is_not_warned_about(make_host: MakeHost) -> None:
    host = make_host(settings=SOON + "delay_warning = 1\n")
    host.forward("bob", '"|exit 75"\n')
    host.start()
    mail = host.send("bob", sender="alice", headers=b"Precedence: list\n")
    host.log.wait_for(r"to=<bob@.*stat=Deferred", count=3)
    assert host.reports("alice", mail) == []


def test_killed_runner_neither_repeats_nor_loses_a_report(make_host: MakeHost) -> None:
    """Each round: a failure, and the runner killed as soon as the log has it."""
    host = make_host()
    host.start()
    mails: list[Mail] = []
    for _ in range(3):
        since = host.log.mark()
        mails.append(host.send("nobody-there", sender="alice"))
        host.log.wait_for("stat=User unknown", since=since)
        host.kill_runner()
    host.wait_empty()
    assert [1 <= len(host.reports("alice", mail)) <= 2 for mail in mails] == [True] * 3
