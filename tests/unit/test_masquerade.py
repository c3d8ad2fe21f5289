"""Senders of mail that leaves this host: which address becomes which, in the envelope and in the header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.masquerade import Masquerade

OWN = {"host.lan", "localhost"}
DOMAIN = [("*", "example.org")]
ONE_OWNER = [("*", "owner@isp.example")]
TABLE = [("*", "example.org"), ("root", "admin@example.org"), ("bob", "work.example"),
         ("carol@host.lan", "c@isp.example"), ("dan@else.example", "dan@isp.example")]


def made(table: list[tuple[str, str]]) -> Masquerade:
    return Masquerade(table, lambda domain: domain in OWN)


@pytest.mark.parametrize(("table", "sender", "expected"), [
    ([], "root@host.lan", "root@host.lan"),
    (DOMAIN, "root@host.lan", "root@example.org"),
    (DOMAIN, "root@HOST.lan.", "root@example.org"),
    (DOMAIN, "root", "root@example.org"),
    (DOMAIN, '"a b"@localhost', '"a b"@example.org'),
    (DOMAIN, "user+detail@host.lan", "user+detail@example.org"),
    (DOMAIN, "somebody@else.example", "somebody@else.example"),
    (DOMAIN, "", ""),
    (ONE_OWNER, "root@host.lan", "owner@isp.example"),
    (ONE_OWNER, "somebody@else.example", "somebody@else.example"),
    (ONE_OWNER, "", ""),
    (TABLE, "root@localhost", "admin@example.org"),
    (TABLE, "ROOT@localhost", "admin@example.org"),
    (TABLE, '"root"@localhost', "admin@example.org"),
    (TABLE, "root@else.example", "root@else.example"),
    (TABLE, "bob@host.lan", "bob@work.example"),
    (TABLE, "carol@host.lan", "c@isp.example"),
    (TABLE, "carol@localhost", "carol@example.org"),
    (TABLE, "dan@else.example", "dan@isp.example"),
    (TABLE, "dan@Else.Example", "dan@isp.example"),
    (TABLE, "\udcff@host.lan", "\udcff@example.org"),
])
def test_an_envelope_sender(table: list[tuple[str, str]], sender: str, expected: str) -> None:
    assert made(table).sender(sender) == expected


@pytest.mark.parametrize(("before", "after"), [
    (b"From: root@host.lan\n", b"From: admin@example.org\n"),
    (b"From: Cron <root@host.lan> (x)\n", b"From: Cron <admin@example.org> (x)\n"),
    (b"From: \"a, b\" <x@host.lan>,\n\tdan@else.example\n", b"From: \"a, b\" <x@example.org>,\n\tdan@isp.example\n"),
    (b"Sender:bob@localhost\nReply-To: bob\n", b"Sender:bob@work.example\nReply-To: bob@work.example\n"),
    (b"resent-from: root@localhost\n", b"resent-from: admin@example.org\n"),
    (b"From: group: root@host.lan;\n", b"From: group: admin@example.org;\n"),
    (b"From: x@else.example\n", b"From: x@else.example\n"),
    (b"From: <>\n", b"From: <>\n"),
    (b"From: broken <root@host.lan\n", b"From: broken <root@host.lan\n"),  # what cannot be read stays
    (b"To: root@host.lan\nCc: root@host.lan\nReturn-Path: <root@host.lan>\n", None),  # recipients and trace fields
    (b"Subject: From: root@host.lan\n", None),
])
def test_a_header(before: bytes, after: bytes | None) -> None:
    body = b"\nFrom: root@host.lan\n"
    head = b"Received: by x\n" + before + b"X: y\n"
    expected = b"Received: by x\n" + (before if after is None else after) + b"X: y\n"
    assert made(TABLE).header(head + body) == expected + body


def test_an_empty_table_is_false() -> None:
    assert not made([])
    assert made(DOMAIN)


@given(st.binary(max_size=300))
def test_whatever_the_header_holds_the_body_stays(value: bytes) -> None:
    """A field that is garbage, down to one that makes the header end early, never reaches into the body."""
    head = b"From: " + value.replace(b"\n", b"") + b"\n"
    result = made(DOMAIN).header(head + b"\nbody of root@host.lan\n")
    assert result.endswith(b"\nbody of root@host.lan\n")
    assert result.count(b"\n") == 3
