"""Trace fields: their form, what they never tell, and that no value can add a line."""

import email
import email.policy
import email.utils
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import trace
from pysendmail.mail.envelope import Envelope, Origin, Recipient, text

NOW = 1057049557.0  # Tue, 1 Jul 2003 08:52:37 UTC
# What stands between the sender and the date in an mbox reader's eyes.
FROM_LINE = re.compile(rb"From (\S+) \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n")
ANYTHING = st.one_of(
    st.text(), st.text("a@.\"\\ ()<>;,:[]\n\r\t\0\x1b\x7f\x85\u2028\udc85\udcff"), st.binary().map(text))
LINE_ENDS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029\0]")


def envelope(*recipients: str, origin: Origin | None = None, sender: str = "bob@host.example",
             queue_id: str = "0abcdef1001001") -> Envelope:
    return Envelope(queue_id, sender, tuple(map(Recipient, recipients)), NOW,
                    origin or Origin("command", uid=1000, user="bob"))


@pytest.mark.parametrize(("now", "offset", "expected"), [
    (NOW, 0, b"Tue, 1 Jul 2003 08:52:37 +0000"),
    (NOW, 7200, b"Tue, 1 Jul 2003 10:52:37 +0200"),
    (NOW, -12600, b"Tue, 1 Jul 2003 05:22:37 -0330"),
    (NOW, 20700, b"Tue, 1 Jul 2003 14:37:37 +0545"),
    (NOW, -1800, b"Tue, 1 Jul 2003 08:22:37 -0030"),
    (NOW + 0.999, 0, b"Tue, 1 Jul 2003 08:52:37 +0000"),
    (1709208000.0, 0, b"Thu, 29 Feb 2024 12:00:00 +0000"),
    (1735689599.0, 3600, b"Wed, 1 Jan 2025 00:59:59 +0100"),
    (0.0, 0, b"Thu, 1 Jan 1970 00:00:00 +0000"),
    (-5.0, 0, b"Thu, 1 Jan 1970 00:00:00 +0000"),
    (4102444800.0, 0, b"Fri, 1 Jan 2100 00:00:00 +0000"),
    (NOW, 1172, b"Tue, 1 Jul 2003 09:11:37 +0019"),  # local mean time of Amsterdam: seconds cannot be written
])
def test_date(now: float, offset: int, expected: bytes) -> None:
    assert trace.date(now, offset) == expected


@given(st.integers(0, 4 * 10**9), st.integers(-14 * 60, 14 * 60))
def test_a_date_is_read_back_by_others(now: int, minutes: int) -> None:
    expected = datetime.fromtimestamp(now, UTC)
    zone = timezone(timedelta(minutes=minutes))
    if expected.astimezone(zone).year >= 1970:
        read = email.utils.parsedate_to_datetime(trace.date(now, minutes * 60).decode())
        assert read == expected
        if minutes:
            assert read.utcoffset() == timedelta(minutes=minutes)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), float("-inf"), 1e300, -1e300])
@pytest.mark.parametrize("offset", [0, 10**9, -10**9])
def test_no_number_breaks_a_date(now: float, offset: int) -> None:
    assert email.utils.parsedate_tz(trace.date(now, offset).decode())
    assert FROM_LINE.fullmatch(trace.from_line("a@b", now, offset))
    assert re.fullmatch(rb"\d{14}", trace.digits(now))


def test_digits_are_utc() -> None:
    assert trace.digits(NOW) == b"20030701085237"


@pytest.mark.parametrize(("sender", "expected"), [
    ("bob@host.example", b"From bob@host.example Tue Jul  1 08:52:37 2003\n"),
    ("", b"From MAILER-DAEMON Tue Jul  1 08:52:37 2003\n"),
    ('"a b"@host.example', b'From "a?b"@host.example Tue Jul  1 08:52:37 2003\n'),
    ("a b@host.example", b'From "a?b"@host.example Tue Jul  1 08:52:37 2003\n'),
    ("a\nFrom b@x", b'From "a?From?b"@x Tue Jul  1 08:52:37 2003\n'),
    ("j\u00f6rg@host.example", "From j\u00f6rg@host.example Tue Jul  1 08:52:37 2003\n".encode()),
])
def test_from_line(sender: str, expected: bytes) -> None:
    assert trace.from_line(sender, NOW, 0) == expected


def test_the_from_line_has_local_time() -> None:
    assert trace.from_line("a@b", NOW, 7200) == b"From a@b Tue Jul  1 10:52:37 2003\n"


@pytest.mark.parametrize(("origin", "expected"), [
    (Origin("command", uid=1000, user="bob"),
     b"Received: from bob (uid 1000)\n\tby host.example (pysendmail) id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("command", uid=12345),  # a user of a container, known to nobody here
     b"Received: from unknown (uid 12345)\n\tby host.example (pysendmail) id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("command", uid=33, user="www-data", protocol="ESMTP"),  # -bs
     b"Received: from www-data (uid 33)\n\tby host.example (pysendmail) with ESMTP id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("smtp", client="[192.0.2.1]", helo="client.test", protocol="SMTP"),
     b"Received: from client.test ([192.0.2.1])\n\tby host.example (pysendmail) with SMTP id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("smtp", client="[2001:db8::1]", helo="[IPv6:2001:db8::1]", protocol="ESMTPSA", auth="bob",
            tls="TLSv1.3 with cipher TLS_AES_256_GCM_SHA384"),
     b"Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\n\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\n"
     b"\tby host.example (pysendmail) with ESMTPSA id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("smtp", client="[IPv6:::1]", helo="", protocol="made up"),  # only registered names are written
     b"Received: from unknown ([IPv6:::1])\n\tby host.example (pysendmail) id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
    (Origin("runner"),
     b"Received: by host.example (pysendmail) id 0abcdef1001001\n"
     b"\tfor <alice@host.example>;\n\tTue, 1 Jul 2003 10:52:37 +0200\n"),
])
def test_received(origin: Origin, expected: bytes) -> None:
    assert trace.received(envelope("alice@host.example", origin=origin), "host.example", 7200) == expected


def test_received_names_nobody_when_there_are_two_recipients() -> None:
    """One of them may be a Bcc."""
    line = trace.received(envelope("alice@host.example", "carol@host.example"), "host.example", 0)
    assert b"alice" not in line
    assert b"carol" not in line


def test_received_leaves_out_an_address_that_would_make_an_endless_line() -> None:
    assert b"for" not in trace.received(envelope("a" * 100_000 + "@x"), "host.example", 0)


def test_a_helo_opens_no_comment_and_adds_no_field() -> None:
    origin = Origin("smtp", client="[192.0.2.1]", helo="a\r\nX-Evil: yes (", protocol="SMTP")
    first = trace.received(envelope("x@y", "z@y", origin=origin), "host.example", 0).split(b"\n")[0]
    assert first == b"Received: from a??X-Evil:?yes?? ([192.0.2.1])"


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.sampled_from(["command", "smtp"]))
def test_received_is_one_field_whatever_it_is_made_of(
        user: str, helo: str, client: str, tls: str, protocol: str, host: str, rest: str, kind: str) -> None:
    origin = Origin(kind, 1000, user, client, helo, protocol, tls)
    line = trace.received(envelope(rest, origin=origin, queue_id=rest), host, 0)
    assert line.endswith(b";\n\tTue, 1 Jul 2003 08:52:37 +0000\n")
    assert one_field(line, folded=True) == "Received"
    assert max(map(len, line.split(b"\n"))) <= 998


@given(ANYTHING)
def test_address_fields_are_one_line_whatever_the_address(address: str) -> None:
    assert one_field(trace.return_path(address)) == "Return-Path"
    assert one_field(trace.delivered_to(address)) == "Delivered-To"
    assert one_field(trace.original_to(address)) == "X-Original-To"
    assert FROM_LINE.fullmatch(trace.from_line(address, NOW, 0))


def one_field(line: bytes, *, folded: bool = False) -> str:
    """The name of the only field in the line; fails when there is more than a field, or a line break of any script."""
    shown = line.decode("utf-8", "surrogateescape")
    assert shown[-1] == "\n"
    assert not LINE_ENDS.search(shown[:-1].replace("\n\t", "") if folded else shown[:-1]), shown
    message = email.message_from_bytes(line + b"\n")
    assert len(message.keys()) == 1
    assert message.get_payload() == ""
    return message.keys()[0]


@pytest.mark.parametrize(("sender", "expected"), [
    ("bob@host.example", b"Return-Path: <bob@host.example>\n"),
    ("", b"Return-Path: <>\n"),
    ("a b@x.test", b'Return-Path: <"a b"@x.test>\n'),
    ('"a b"@x.test', b'Return-Path: <"a b"@x.test>\n'),
    ("a>b\r\nBcc: c@x.test", b'Return-Path: <"a>b??Bcc: c"@x.test>\n'),
])
def test_return_path(sender: str, expected: bytes) -> None:
    assert trace.return_path(sender) == expected


@pytest.mark.parametrize(("address", "expected"), [
    ("bob@host.example", b"bob@host.example"),
    ("bob", b"bob"),
    ("", b'""'),
    ("bob+tag/x=y@host.example", b"bob+tag/x=y@host.example"),
    ("bob@[192.0.2.1]", b"bob@[192.0.2.1]"),
    ("bob@[IPv6:2001:db8::1]", b"bob@[IPv6:2001:db8::1]"),
    ('"bob@work"', b'"bob@work"'),  # no domain: the @ is inside the quotes
    ('"bob@work"@x', b'"bob@work"@x'),
    ('"b\\"ob"@x', b'"b\\"ob"@x'),
    ('"b"ob"@x', b'"\\"b\\"ob\\""@x'),
    ('"bob\\"@x', b'"\\"bob\\\\\\""@x'),
    ('"bob\\\\"@x', b'"bob\\\\"@x'),
    ("bob@a b,c", b"bob@a?b?c"),
    ("b\u00f6b@\u00e4.test", "b\u00f6b@\u00e4.test".encode()),
    ("b\udcffb@x", b"b\xffb@x"),
    ("b\x85b\u2028@x", b"b?b?@x"),
])
def test_addr_spec(address: str, expected: bytes) -> None:
    assert trace.addr_spec(address) == expected


@pytest.mark.parametrize(("session", "expected"), [
    ({"is_esmtp": False}, "SMTP"),
    ({"is_esmtp": True}, "ESMTP"),
    ({"is_esmtp": True, "tls": True}, "ESMTPS"),
    ({"is_esmtp": True, "auth": True}, "ESMTPA"),
    ({"is_esmtp": True, "tls": True, "auth": True}, "ESMTPSA"),
    ({"is_esmtp": True, "is_lmtp": True}, "LMTP"),
    ({"is_esmtp": True, "is_lmtp": True, "tls": True, "auth": True}, "LMTPSA"),
    ({"is_esmtp": True, "smtputf8": True, "tls": True}, "UTF8SMTPS"),
    ({"is_esmtp": True, "is_lmtp": True, "smtputf8": True}, "UTF8LMTP"),
])
def test_protocol_names_are_registered_ones(session: dict[str, bool], expected: str) -> None:
    assert trace.protocol_name(**session) == expected
    assert expected in trace.PROTOCOLS


HEAD = (b"Received: from a by b; Tue, 1 Jul 2003 08:52:37 +0000\nDelivered-To: Alice@Host.Example\n"
        b"X-Delivered-To: bob@host.example\nReceived: from c\n\tby d; x\nSubject: Delivered-To: carol@host.example\n"
        b"Delivered-To:\n\tdora@host.example \n")
FIELDS = [(found[1].lower(), found.start(), found.end())
          for found in re.finditer(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*", HEAD)]


def test_hops_are_received_fields() -> None:
    assert trace.hops(FIELDS) == 2
    assert trace.hops([]) == 0


@pytest.mark.parametrize(("address", "expected"), [
    ("alice@host.example", True),
    ("ALICE@HOST.EXAMPLE", True),
    ("dora@host.example", True),
    ("bob@host.example", False),
    ("carol@host.example", False),
    ("alice@host.exampl", False),
    ("lice@host.example", False),
])
def test_a_message_that_comes_by_again_is_known(address: str, expected: bool) -> None:
    assert trace.has_delivered_to(HEAD, FIELDS, address) is expected


@given(ANYTHING)
def test_our_own_mark_is_always_known(address: str) -> None:
    line = trace.delivered_to(address)
    assert trace.has_delivered_to(line, [(b"delivered-to", 0, len(line))], address)
