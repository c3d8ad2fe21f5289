"""The start of a message that comes by SMTP: what is put in front, what is completed for whom, what is refused."""

import itertools
from dataclasses import replace

import pytest

from pysendmail.config import Config
from pysendmail.daemon.arrival import begin
from pysendmail.mail.envelope import Envelope, Origin, Recipient

NOW = 1_057_049_557.0  # Tue, 1 Jul 2003 08:52:37 +0000
ENVELOPE = Envelope("566jwqZm100000", "a@example.org", (Recipient("alice@here.example"),), NOW, Origin(
    "smtp", client="[192.0.2.1]", helo="client.example", protocol="ESMTPS", tls="TLSv1.3 TLS_AES_256_GCM_SHA384"))
CONFIG = Config(hostname="mx.here.example", domain="here.example")


def text_of(start: bytes, *, is_ours: bool = False) -> tuple[bytes, bytes, bytes]:
    """(our field, the header, the body) of what begins so."""
    text, refusal = begin(start, ENVELOPE, CONFIG, is_ours=is_ours)
    assert refusal is None
    assert b"".join(text.chunks()) == text.trace + text.head + b"\n" + b"".join(text.body())
    return text.trace, text.head, b"".join(text.body())


def answer(start: bytes, **limits: int) -> str:
    config = replace(CONFIG, limits=replace(CONFIG.limits, **limits))
    refusal = begin(start, ENVELOPE, config, is_ours=False)[1]
    return refusal.words if refusal else ""


def test_received_says_what_we_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert text_of(b"Subject: x\n\nHello.\n")[0] == (
        b"Received: from client.example ([192.0.2.1])\n\t(using TLSv1.3 TLS_AES_256_GCM_SHA384)\n"
        b"\tby mx.here.example (pysendmail) with ESMTPS id 566jwqZm100000\n\tfor <alice@here.example>;\n"
        b"\tTue, 1 Jul 2003 08:52:37 +0000\n")


@pytest.mark.parametrize(("start", "head", "body"), [
    (b"Subject: x\n\nHello.\n", b"Subject: x\n", b"Hello.\n"),
    (b"X: 1\nDKIM-Signature: a;\n\tb\nFrom: x\n\n\n\n", b"X: 1\nDKIM-Signature: a;\n\tb\nFrom: x\n", b"\n\n"),
    (b"Hello.\n", b"", b"Hello.\n"),
    (b"", b"", b""),
    (b"\nHello.\n", b"", b"Hello.\n"),
    (b"Subject: x\n", b"Subject: x\n", b""),
    (b"Subject: x\nBcc: secret@example.org\nReturn-Path: <y>\nTo: root\n\n", b"Subject: x\nTo: root\n", b""),
])
def test_a_strangers_header_stays_as_it_is(start: bytes, head: bytes, body: bytes) -> None:
    assert text_of(start)[1:] == (head, body)


def test_the_header_of_who_may_relay_is_completed() -> None:
    _, head, body = text_of(b"Subject: x\nTo: root\nBcc: secret@example.org\n\nHello.\n", is_ours=True)
    assert head.startswith(b"Subject: x\nTo: root@here.example\n")
    names = {line.split(b":")[0] for line in head.split(b"\n")[:-1]}
    assert names == {b"Subject", b"To", b"From", b"Date", b"Message-ID"}
    assert body == b"Hello.\n"


@pytest.mark.parametrize(("start", "limits", "expected"), [
    (b"X: 1\n" * 1000 + b"\n", {}, ""),
    (b"X: 1\n" * 1001 + b"\n", {}, "552 5.6.0"),
    (b"X: " + b"x" * 140_000 + b"\n\n", {}, "552 5.6.0"),
    (b"X: 1\nX: " + b"x" * 140_000 + b"\n\n", {}, "552 5.6.0"),
    (b"x" * 140_000 + b"\n\n", {}, ""),
    (b"x" * 140_000, {}, ""),
    (b"X: " + b"x" * 1000 + b"\n\n", {"header_size": 500}, "552 5.6.0"),
    (b"X: 1\n" * 11 + b"\n", {"header_lines": 10}, "552 5.6.0"),
    (b"X: 1\n" * 10 + b"\nY: 1\nZ: 2\n", {"header_lines": 10}, ""),
    (b"Received: x\n" * 50 + b"\n", {}, ""),
    (b"Received: x\n" * 51 + b"\n", {}, "554 5.4.6"),
    (b"Subject: x\n\n" + b"Received: x\n" * 100, {}, ""),
], ids=itertools.count())
def test_what_is_refused(start: bytes, limits: dict[str, int], expected: str) -> None:
    assert answer(start, **limits)[:len(expected) or None] == expected
