"""Delivery reports: their exact form (tests/golden), what others read in them, and that no stranger changes it."""

import email
import email.policy
import re
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import dsn
from pysendmail.mail.dsn import DELAYED, DELIVERED, EXPANDED, FAILED, RELAYED, Original, Reporter, Result
from pysendmail.mail.envelope import Envelope, Origin, Recipient, text
from pysendmail.mail.outcome import Outcome

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NOW = 1057049557.0  # Tue, 1 Jul 2003 10:52:37 +0200
GONE = Recipient("gone@remote.test", frozenset(), "rfc822;gone@remote.test")
ENVELOPE = Envelope("0abcdef1001001", "bob@host.example", (GONE,), NOW - 5.0, Origin("command", 1000, "bob"))
REPORTER = Reporter("0abcdef1001002", "host.example", NOW, 7200)
HEAD = (b"Received: from bob (uid 1000)\n\tby host.example (pysendmail) id 0abcdef1001001;\n"
        b"\tTue, 1 Jul 2003 10:52:32 +0200\nSubject: backup report\nDate: Tue, 1 Jul 2003 10:52:30 +0200\n"
        b"Message-ID: <one@host.example>\nTo: gone@remote.test\n")
ORIGINAL = Original(HEAD, b"line one\n.\nFrom here\n", 21)
REFUSED = Outcome("5.1.1", "no such user here", "smtp; 550 5.1.1 no such user here", "mx.remote.test")
FAILURE = Result(GONE, "gone@remote.test", REFUSED, FAILED)
OK = Outcome("2.0.0", "delivered to mailbox")
HEADER = ["Received", "From", "To", "Subject", "Date", "Message-ID", "References", "Auto-Submitted", "MIME-Version",
          "Content-Type", "Content-Transfer-Encoding"]
ABOUT_MESSAGE = ["Original-Envelope-Id", "Reporting-MTA", "Received-From-MTA", "Arrival-Date"]
ABOUT_RECIPIENT = ["Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code",
                   "Last-Attempt-Date", "Final-Log-ID", "Will-Retry-Until"]


class Parsed:
    """A report as the standard library reads it; making one fails where the form is wrong."""

    def __init__(self, report: bytes, recipients: int) -> None:
        assert b"\r" not in report
        assert b"\0" not in report
        assert report.endswith(b"--\n")
        message = email.message_from_bytes(report)
        assert in_order(message.keys(), HEADER), message.keys()
        assert all(part.defects == [] for part in message.walk()), [part.defects for part in message.walk()]
        assert message.get_content_type() == "multipart/report"
        assert message.get_param("report-type") == "delivery-status"
        assert message.preamble == "This is a report in MIME format.\n"
        assert message.epilogue in ("", None)
        self.message = message
        self.words, self.status, self.original = message.get_payload()
        for part in message.get_payload():
            assert in_order(part.keys(), ["Content-Type", "Content-Description", "Content-Transfer-Encoding"])
        assert self.words.get_content_type() == "text/plain"
        self.text = self.words.get_payload(decode=True).decode(self.words.get_content_charset())
        assert self.status.get_content_type() == "message/delivery-status"
        groups = self.status.get_payload()
        assert len(groups) == recipients + 1
        self.about, *self.recipients = groups
        assert in_order(self.about.keys(), ABOUT_MESSAGE)
        assert all(in_order(group.keys(), ABOUT_RECIPIENT) for group in self.recipients)
        assert all(group.get_payload() == "" for group in groups)

    @property
    def returned(self) -> Message:
        """The original, where it came back as a message."""
        assert self.original.get_content_maintype() == "message"
        return self.original.get_payload()[0]


def in_order(found: list[str], allowed: list[str]) -> bool:
    """Whether these are allowed names, each once, in this order."""
    return found == [name for name in allowed if name in found]


def golden(name: str, report: bytes) -> None:
    """Compare with a file in which "*" stands for the rest of a word and "?" for a character."""
    expected = (GOLDEN / name).read_bytes()
    pattern = re.escape(expected).replace(rb"\*", rb"[^ \n]*").replace(rb"\?", rb".")
    assert re.fullmatch(pattern, report), report.decode("utf-8", "replace")


FROM_OUTSIDE = replace(ENVELOPE, envid="a+2Bb", ret="hdrs",
                       origin=Origin("smtp", client="[192.0.2.1]", helo="client.test", protocol="ESMTP"))
LISTED = Recipient("list@host.example", frozenset(("success", "failure")), "rfc822;List+2Bx@host.example")
SIX = [
    FAILURE,
    Result(LISTED, "j\u00f6rg+x@remote.test", Outcome("5.2.2", "\u00fcber Quota", "smtp; 552 5.2.2 \u00fcber Quota"),
           FAILED),
    Result(Recipient("slow@remote.test"), "slow@remote.test", Outcome("4.4.1", "connection timed out"), DELAYED,
           NOW - 60),
    Result(LISTED, "alice@host.example", OK, DELIVERED),
    Result(LISTED, "far@remote.test", Outcome("2.1.5", "sent", "smtp; 250 2.1.5 Ok", "mx.remote.test"), RELAYED),
    Result(LISTED, "list@host.example", Outcome("2.0.0", "expanded"), EXPANDED),
]


def test_a_failure() -> None:
    golden("failed.eml", dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER))


def test_a_delay() -> None:
    result = Result(GONE, "gone@remote.test", Outcome("4.4.1", "connection to mx.remote.test timed out"), DELAYED)
    golden("delayed.eml", dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER, retry_until=NOW + 86400))


def test_a_success() -> None:
    asked = Recipient("alice@host.example", frozenset(("success",)))
    result = Result(asked, "alice@host.example", OK, DELIVERED)
    golden("delivered.eml", dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER))


def test_everything_at_once() -> None:
    golden("all.eml", dsn.report(FROM_OUTSIDE, SIX, ORIGINAL, REPORTER, retry_until=NOW + 86400))


def test_a_notice_to_the_postmaster() -> None:
    envelope = replace(ENVELOPE, sender="", origin=Origin("runner"))
    golden("postmaster.eml", dsn.postmaster_notice(envelope, [FAILURE], ORIGINAL, REPORTER))


def test_the_original_comes_back_as_it_was() -> None:
    report = dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER)
    assert b"\n\n" + HEAD + b"\n" + ORIGINAL.body + b"\n--=_" in report
    parsed = Parsed(report, 1)
    assert parsed.original.get_content_type() == "message/rfc822"
    assert parsed.returned["Subject"] == "backup report"
    assert parsed.returned.get_payload() == "line one\n.\nFrom here\n"


@pytest.mark.parametrize(("ret", "action", "has_body"), [
    ("", FAILED, True), ("full", FAILED, True), ("hdrs", FAILED, False),
    ("full", DELAYED, False), ("full", DELIVERED, False)])
def test_the_body_returns_only_with_a_failure_and_unless_ret_forbids(ret: str, action: str, has_body: bool) -> None:
    result = replace(FAILURE, action=action)
    report = dsn.report(replace(ENVELOPE, ret=ret), [result], ORIGINAL, REPORTER)
    assert (b"line one" in report) is has_body
    kind = Parsed(report, 1).original.get_content_type()
    assert kind == ("message/rfc822" if has_body else "text/rfc822-headers")


@pytest.mark.parametrize(("body", "size", "kept"), [
    (b"a\n" * 4096, 10000, b"a\n" * 4096),
    (b"a\nbbb\ncc", 100, b"a\nbbb\n"),  # the caller's excerpt ends in the middle of a line
    (b"a\nbbb\ncc", 8, b"a\nbbb\ncc\n"),
    (b"x" * 8192, 9000, b"\n".join([b"x" * 997] * 8) + b"\n" + b"x" * (8192 - 8 * 997) + b"\n"),
    (b"", 0, b""),
])
def test_a_long_body_is_cut_at_the_end_of_a_line(body: bytes, size: int, kept: bytes) -> None:
    report = dsn.report(ENVELOPE, [FAILURE], Original(HEAD, body, size), REPORTER)
    parsed = Parsed(report, 1)
    assert parsed.returned.get_payload().encode() == kept
    is_cut = len(kept.replace(b"\n", b"")) < size - body.count(b"\n")
    assert ("cut off" in parsed.text) is is_cut
    assert ("cut off" in parsed.original["Content-Description"]) is is_cut


def test_no_line_is_too_long_for_the_next_host() -> None:
    head = HEAD + b"X-Long: " + b"y" * 5000 + b"\nX-Last: z\n"
    report = dsn.report(ENVELOPE, [FAILURE], Original(head, b"z" * 5000 + b"\n", 5001), REPORTER)
    assert max(map(len, report.split(b"\n"))) <= 998
    assert Parsed(report, 1).returned["X-Last"] == "z"
    result = replace(FAILURE, final="\u65e5" * 400, outcome=Outcome("5.1.1", "\u65e5" * 400, "smtp; " + "\u672c" * 400))
    report = dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER)
    assert max(map(len, report.split(b"\n"))) <= 998
    huge = dsn.report(ENVELOPE, [FAILURE], Original(b"X: " + b"y" * 100 + b"\n y" * 10**6, b"", 0), REPORTER)
    assert len(huge) < dsn.MAX_HEAD + 5000


def test_nul_and_bare_cr_do_not_come_back() -> None:
    report = dsn.report(ENVELOPE, [FAILURE], Original(b"Subject: a\0b\rX-Evil: c\n", b"d\0e\rf\n", 6), REPORTER)
    returned = Parsed(report, 1).returned
    assert returned.items() == [("Subject", "ab X-Evil: c")]
    assert returned.get_payload() == "de f\n"


def test_8bit_parts_say_so_and_nothing_else_does() -> None:
    def labels(report: bytes) -> list[str | None]:
        parsed = Parsed(report, 1)
        return [part["Content-Transfer-Encoding"]
                for part in (parsed.message, parsed.words, parsed.status, parsed.original)]

    assert labels(dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER)) == [None] * 4
    report = dsn.report(ENVELOPE, [FAILURE], Original(HEAD, b"gr\xc3\xbc\xdf\n", 7), REPORTER)
    assert labels(report) == ["8bit", None, None, "8bit"]
    assert b"\ngr\xc3\xbc\xdf\n" in report


def test_an_internationalized_message_comes_back_under_its_own_type() -> None:
    """RFC 6533 section 4; the addresses of the delivery-status stay ASCII."""
    head = "Subject: gr\u00fc\u00dfe\n".encode()
    envelope = replace(ENVELOPE, smtputf8=True, sender="b\u00f6b@host.example")
    recipient = Recipient("\u00fc@x.test", frozenset(), "utf-8;\\x{FC}@x.test")
    result = replace(FAILURE, recipient=recipient, final="\u00fc+1@x.test")
    parsed = Parsed(dsn.report(envelope, [result], Original(head, b"", 0), REPORTER), 1)
    assert parsed.original.get_content_type() == "message/global"
    assert parsed.recipients[0]["Original-Recipient"] == "utf-8; \\x{FC}@x.test"
    assert parsed.recipients[0]["Final-Recipient"] == "utf-8; \\x{FC}\\x{2B}1@x.test"
    headers_only = dsn.report(replace(envelope, ret="hdrs"), [result], Original(head, b"", 0), REPORTER)
    assert b"\nContent-Type: message/global-headers\n" in headers_only


@pytest.mark.parametrize(("orcpt", "expected"), [
    ("", None),
    ("rfc822;bob@x.test", "rfc822; bob@x.test"),
    ("RFC822;b+2Bob+40x", "RFC822; b+ob@x"),
    ("x400;/s=+43+41/", "x400; /s=CA/"),
    ("rfc822;bob+0AEvil:+20yes", "rfc822; bob Evil: yes"),
    ("rfc822;j+C3+B6rg@x", "utf-8; j\\x{F6}rg@x"),
    ("no type", None),
    (";bob", None),
    ("rf c822;bob", None),
    ("rfc\u00fc;bob", None),
    ("utf-8;a+41\\x{FC}@x", "utf-8; a+41\\x{FC}@x"),
    ("rfc822;", None),
])
def test_original_recipient(orcpt: str, expected: str | None) -> None:
    result = replace(FAILURE, recipient=Recipient("gone@remote.test", frozenset(), orcpt))
    assert Parsed(dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER), 1).recipients[0]["Original-Recipient"] == expected


@pytest.mark.parametrize(("value", "expected"), [
    ("", ""), ("abc", "abc"), ("a+2Bb", "a+b"), ("a+2bb", "a+b"), ("+41+42", "AB"), ("a+", "a+"), ("a+4", "a+4"),
    ("a+zz", "a+zz"), ("a++41", "a+A"), ("+C3+BC", "\u00fc"), ("+FF", "\udcff"), ("+1\u0661", "+1\u0661")])
def test_xtext(value: str, expected: str) -> None:
    assert dsn.xtext_decoded(value) == expected


NOTIFY = {"unset": frozenset(), "never": frozenset(("never",)), "failure": frozenset(("failure",)),
          "delay": frozenset(("delay",)), "success": frozenset(("success",)),
          "all": frozenset(("success", "failure", "delay"))}
WANTED = {  # RFC 3461 section 4.1
    FAILED: ("unset", "failure", "all"),
    DELAYED: ("unset", "delay", "all"),
    DELIVERED: ("success", "all"),
    RELAYED: ("success", "all"),
    EXPANDED: ("success", "all"),
}


@pytest.mark.parametrize("notify", NOTIFY)
@pytest.mark.parametrize("action", WANTED)
def test_who_is_told_what(notify: str, action: str) -> None:
    recipient = Recipient("x@y", NOTIFY[notify])
    assert dsn.wanted(ENVELOPE, recipient, action) is (notify in WANTED[action])
    assert not dsn.wanted(replace(ENVELOPE, sender=""), recipient, action)
    assert not dsn.wanted(replace(ENVELOPE, errors="q"), recipient, action)
    for mode in "empw":
        assert dsn.wanted(replace(ENVELOPE, errors=mode), recipient, action) is (notify in WANTED[action])


@pytest.mark.parametrize(("head", "expected"), [
    (b"Precedence: bulk\n", True), (b"precedence:\tJUNK\n", True), (b"Precedence: list\n", True),
    (b"Precedence: first-class\n", False), (b"X-Precedence: bulk\n", False), (b"", False)])
def test_mass_mail(head: bytes, expected: bool) -> None:
    assert dsn.is_bulk(head) is expected


def test_the_senders_own_subject_and_id_are_shown() -> None:
    report = dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER)
    parsed = Parsed(report, 1)
    assert parsed.message["References"] == "<one@host.example>"
    assert "\n  Subject: backup report\n" in parsed.text
    odd = Original(b"Subject: =?UTF-8?Q?x?=\nMessage-ID: <a b@c>\n", b"", 0)
    parsed = Parsed(dsn.report(ENVELOPE, [FAILURE], odd, REPORTER), 1)
    assert parsed.message["References"] is None
    assert "Subject" not in parsed.text


def test_the_other_sides_words_are_not_said_twice() -> None:
    assert "mx.remote.test said: 550 5.1.1" in Parsed(dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER), 1).text
    result = replace(FAILURE, outcome=replace(REFUSED, reason="mx refused: 550 5.1.1 no such user here"))
    parsed = Parsed(dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER), 1)
    assert parsed.text.count("no such user here") == 1


@pytest.mark.parametrize(("results", "subject"), [
    ([FAILURE], "Undelivered mail: gone@remote.test: no such user here"),
    ([FAILURE, FAILURE, SIX[3]], "Undelivered mail: gone@remote.test and 1 more"),
    ([SIX[3], SIX[2]], "Delayed mail: slow@remote.test: connection timed out"),
    ([SIX[3], SIX[4]], "Delivered mail: alice@host.example"),
    ([SIX[4]], "Relayed mail: far@remote.test"),
    ([SIX[5]], "Distributed mail: list@host.example"),
])
def test_the_subject_names_the_worst(results: list[Result], subject: str) -> None:
    parsed = Parsed(dsn.report(ENVELOPE, results, ORIGINAL, REPORTER), len(results))
    assert parsed.message["Subject"].replace("\n", "") == subject


@pytest.mark.parametrize(("status", "words"), [
    ("5.1.1", "Check the address"), ("5.1.2", "after the @"), ("5.1.10", "no mail"), ("5.1.3", "Check the address"),
    ("5.2.2", "make room"), ("5.3.4", "smaller"), ("5.2.3", "smaller"), ("5.4.6", "circle"), ("4.4.7", "later"),
    ("5.4.1", "later"), ("5.7.1", "this mail system: its rules"),
    ("5.0.0", "your postmaster"), ("5.3.0", "your postmaster")])
def test_people_are_told_what_to_do(status: str, words: str) -> None:
    result = replace(FAILURE, outcome=Outcome(status, "because"))
    parsed = Parsed(dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER), 1)
    advice = " ".join(parsed.text.partition("what to do: ")[2].split())
    assert words in advice
    assert f"why: because ({status})" in parsed.text


def test_rules_are_those_of_whoever_has_refused() -> None:
    result = replace(FAILURE, outcome=Outcome("5.7.1", "because", remote_mta="mx.example.net"))
    assert "recipient's postmaster: that host" in " ".join(Parsed(
        dsn.report(ENVELOPE, [result], ORIGINAL, REPORTER), 1).text.split())


def test_a_thousand_recipients_are_all_reported_and_some_are_shown() -> None:
    names = [f"user{n}@remote.test" for n in range(1000)]
    results = [replace(FAILURE, final=name) for name in names]
    parsed = Parsed(dsn.report(ENVELOPE, results, ORIGINAL, REPORTER), 1000)
    assert [group["Final-Recipient"] for group in parsed.recipients] == [f"rfc822; {name}" for name in names]
    assert parsed.text.count("@remote.test\n    why:") == dsn.MAX_TOLD
    assert "these 1000 addresses" in parsed.text
    assert "The other 950 are" in parsed.text


@pytest.mark.parametrize("make", [
    lambda: dsn.report(replace(ENVELOPE, sender=""), [FAILURE], ORIGINAL, REPORTER),
    lambda: dsn.report(ENVELOPE, [], ORIGINAL, REPORTER),
    lambda: dsn.postmaster_notice(ENVELOPE, [], ORIGINAL, REPORTER),
    lambda: replace(FAILURE, action="vanished"),
], ids=["null sender", "nothing", "nothing for the postmaster", "unknown action"])
def test_mistakes_of_the_caller_are_not_sent(make: object) -> None:
    with pytest.raises(ValueError):
        make()  # type: ignore[operator]


def test_the_same_report_made_again_is_the_same() -> None:
    """After a crash it is made again under the same id."""
    assert dsn.report(ENVELOPE, SIX, ORIGINAL, REPORTER) == dsn.report(ENVELOPE, SIX, ORIGINAL, REPORTER)


def test_no_content_holds_the_boundary() -> None:
    """Somebody who knows everything puts the boundary that a report had into the message, and sends it again."""
    original = ORIGINAL
    for _ in range(5):
        report = dsn.report(ENVELOPE, [FAILURE], original, REPORTER)
        boundary = Parsed(report, 1).message.get_boundary()
        assert report.count(boundary.encode()) == 5
        body = original.body + b"--" + boundary.encode() + b"--\n"
        original = replace(original, body=body, body_size=len(body))


def test_a_boundary_that_is_in_the_content_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreseen:
        """A hash whose first value the sender has guessed."""

        def __init__(self, _data: bytes) -> None:
            self.value = "backup report"

        def hexdigest(self) -> str:
            return self.value

        def update(self, _data: bytes) -> None:
            self.value = "0123"

    monkeypatch.setattr(dsn, "sha256", Foreseen)
    assert Parsed(dsn.report(ENVELOPE, [FAILURE], ORIGINAL, REPORTER), 1).message.get_boundary() == "=_0123"


ANYTHING = st.one_of(
    st.text(max_size=60), st.text("a@.;+\"\\ ()<>[]:=?-\n\r\t\0\x1b\x85\u2028\udc85\u00fc", max_size=60),
    st.binary(max_size=60).map(text))
OUTCOMES = st.builds(Outcome, st.sampled_from(["5.1.1", "4.4.7", "2.0.0"]), ANYTHING.filter(bool), ANYTHING, ANYTHING)
RECIPIENTS = st.builds(Recipient, ANYTHING, st.just(frozenset()), st.one_of(ANYTHING, ANYTHING.map("rfc822;".__add__)))
RESULTS = st.builds(Result, RECIPIENTS, ANYTHING, OUTCOMES,
                    st.sampled_from([FAILED, DELAYED, DELIVERED, RELAYED, EXPANDED]), st.floats())
ORIGINALS = st.builds(Original, st.binary(max_size=200) | st.binary(max_size=100).map(HEAD.__add__),
                      st.binary(max_size=200), st.integers(0, 1000))


@given(ANYTHING.filter(bool), ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.lists(RESULTS, min_size=1, max_size=3),
       ORIGINALS, st.sampled_from(["", "hdrs"]), st.booleans(), st.floats())
def test_no_stranger_changes_the_form_of_a_report(
        sender: str, envid: str, helo: str, report_id: str, host: str, results: list[Result], original: Original,
        ret: str, smtputf8: bool, now: float) -> None:
    envelope = replace(ENVELOPE, id=report_id, sender=sender, envid=envid, ret=ret, smtputf8=smtputf8,
                       received_at=now, origin=Origin("smtp", client=helo, helo=helo, protocol=helo, tls=helo))
    reporter = Reporter(report_id, host, now)
    for report in (dsn.report(envelope, results, original, reporter, retry_until=now),
                   dsn.postmaster_notice(envelope, results, original, reporter)):
        assert max(map(len, report.split(b"\n"))) <= 998
        parsed = Parsed(report, len(results))
        assert "Status" in parsed.recipients[-1]
        for group in (parsed.about, *parsed.recipients):
            assert group.as_string().isascii()
