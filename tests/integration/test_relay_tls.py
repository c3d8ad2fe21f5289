"""TLS and logins of the relay, against a host with a certificate of our own authority."""

import asyncio
import base64
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pysendmail.daemon import login
from pysendmail.deliver.shipment import DOWN, FINE, LOGIN, Answer
from pysendmail.net import hosts
from tests.tools import certificates
from tests.tools.relaying import PATIENCE, Relaying, config, statuses, world
from tests.tools.smtphost import CLOSE, OFFERS, STALL
from tests.tools.smtpsink import Sink

NAME = "localhost"  # needs no DNS
TLS = "STARTTLS"
USERS = {"relay": "secret"}
PLAIN = "AHJlbGF5AHNlY3JldA=="  # of these


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return certificates.make(tmp_path_factory.mktemp("ca"), NAME, "127.0.0.1")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ssl.SSLContext]:
    """Contexts of hosts that do not prove who they are."""
    return {"other name": certificates.make(tmp_path_factory.mktemp("ca"), "other.example")[1],
            "other CA": certificates.make(tmp_path_factory.mktemp("ca"), NAME)[1],
            "expired": certificates.make(tmp_path_factory.mktemp("ca"), NAME, expired=True)[1]}


def run(sink: Sink, *, times: int = 1, as_mx: bool = False, patience: float = 3.0, **relay: Any) -> list[Answer]:
    """Send `times` messages to a host as smarthost (or as a stranger) with these settings."""
    async def scenario() -> list[Answer]:
        given = f"{NAME}:{sink.address[1]}"
        settings = config(smarthost=() if as_mx else (given,), ipv6=False, **relay)
        async with Relaying(settings, world(patience=patience)) as relaying:
            return [await relaying.send(hosts=[given]) for _ in range(times)]
    return asyncio.run(scenario())


@pytest.mark.parametrize("policy", ["may", "encrypt", "verify"])
def test_what_is_offered_is_used(policy: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    ca, context = certificate
    with Sink(tls=context) as sink:
        (answer,) = run(sink, tls=policy, ca_file=str(ca))
    assert statuses(answer) == ["2.0.0"]
    assert [one.is_encrypted for one in sink.envelopes] == [True]
    (told,) = answer.handshakes
    verified = "OK" if policy == "verify" else "NOT"
    assert re.fullmatch(rf"relay={NAME} \[127\.0\.0\.1\], version=TLSv1\.3, verify={verified}, cipher=\w+, "
                        r"bits=(\d+)/\1", told)
    verbs = [line.split(" ")[0] for line in sink.commands("")]
    assert verbs[:6] == ["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA"]


def test_certificates_of_private_authorities_need_not_be_of_the_latest_form(
        certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    """With any Python: since 3.13 it asks for more unless told not to."""
    def as_of_python_3_13(*args: Any, **more: Any) -> ssl.SSLContext:
        context = usual(*args, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    usual = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", as_of_python_3_13)
    ca, context = certificate
    with Sink(tls=context) as sink:
        (answer,) = run(sink, tls="verify", ca_file=str(ca))
    assert statuses(answer) == ["2.0.0"]


@pytest.mark.parametrize("kind", ["other name", "other CA", "expired"])
@pytest.mark.parametrize(("policy", "status"), [("may", "2.0.0"), ("encrypt", "2.0.0"), ("verify", "4.7.5")])
def test_only_verify_asks_who_it_is(policy: str, status: str, kind: str, certificate: tuple[Path, ssl.SSLContext],
                                    wrong: dict[str, ssl.SSLContext]) -> None:
    with Sink(tls=wrong[kind]) as sink:
        (answer,) = run(sink, tls=policy, ca_file=str(certificate[0]))
    assert statuses(answer) == [status]
    if status != "2.0.0":
        assert answer.state == DOWN
        assert "certificate" in answer.outcomes[0].reason
        assert not sink.commands("MAIL")


@pytest.mark.parametrize(("policy", "status"), [("may", "2"), ("encrypt", "4"), ("verify", "4")])
@pytest.mark.parametrize("replies", [{}, {"starttls": b"454 4.7.0 not now\r\n"}], ids=["not offered", "refused"])
def test_a_host_without_tls(policy: str, status: str, replies: dict[str, bytes],
                            certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(offers=(*OFFERS, TLS) if replies else OFFERS, replies=replies) as sink:
        (answer,) = run(sink, tls=policy, ca_file=str(certificate[0]))
    assert statuses(answer)[0][0] == status
    assert answer.outcomes[0].is_delivered or "TLS" in answer.outcomes[0].reason
    assert len(sink.commands("MAIL")) == (status == "2")


BROKEN = {"starttls": b"220 2.0.0 go ahead\r\n" + CLOSE}


def test_tls_that_does_not_work_is_done_without_where_nobody_asks_for_it() -> None:
    """A host that says 220 and then cannot: its mail goes in the clear, over another connection, and so does the
    next."""
    with Sink(offers=(*OFFERS, TLS), replies=BROKEN) as sink:
        answers = run(sink, tls="may", times=2, as_mx=True)
    assert [statuses(answer) for answer in answers] == [["2.0.0"], ["2.0.0"]]
    (told,) = answers[0].handshakes
    assert told.startswith(f"relay={NAME} [127.0.0.1], error: connect failed: ")
    assert not answers[1].handshakes
    assert len(sink.sessions) == 3
    assert sink.commands("STARTTLS") == ["STARTTLS"]


@pytest.mark.parametrize(("settings", "status"), [
    ({"tls": "may"}, "2.0.0"), ({"tls": "encrypt"}, "4.7.5"),
    ({"tls": "may", "username": "relay", "password": "secret"}, "4.7.5")])
def test_short_keys_are_better_than_none_but_for_a_password(settings: dict[str, str], status: str,
                                                            tmp_path: Path) -> None:
    short, key, chain = (tmp_path / name for name in ("dh.pem", "key.pem", "chain.pem"))
    for words in (["dhparam", "-dsaparam", "-out", short, "1024"],
                  ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", chain]):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DHE-RSA-AES256-GCM-SHA384:@SECLEVEL=0")
    context.load_dh_params(short)
    with Sink(tls=context, users=USERS if "username" in settings else None) as sink:
        (answer,) = run(sink, **settings)
    assert statuses(answer) == [status]
    assert [one.is_encrypted for one in sink.envelopes] == ([True] if status == "2.0.0" else [])


@pytest.mark.parametrize("policy", ["may", "encrypt"])
@pytest.mark.parametrize("how", ["hangs up at STARTTLS", "wants our certificate"])
def test_tls_that_comes_to_nothing_is_done_without_where_nobody_asks_for_it(
        how: str, policy: str, certificate: tuple[Path, ssl.SSLContext], tmp_path: Path) -> None:
    """The second kind shakes hands with TLS 1.3, and only then says no."""
    if how == "hangs up at STARTTLS":
        sink = Sink(offers=(*OFFERS, TLS), replies={"starttls": CLOSE})
    else:
        context = certificates.make(tmp_path, NAME)[1]
        context.verify_mode = ssl.CERT_REQUIRED
        sink = Sink(tls=context)
    with sink:
        (answer,) = run(sink, tls=policy)
    assert statuses(answer) == ["2.0.0" if policy == "may" else "4.4.2"]
    assert [one.is_encrypted for one in sink.envelopes] == ([False] if policy == "may" else [])
    assert "error: connect failed: " in answer.handshakes[0]


@pytest.mark.parametrize("policy", ["encrypt", "verify"])
def test_tls_that_does_not_work_is_no_reason_to_go_in_the_clear(
        policy: str, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(offers=(*OFFERS, TLS), replies=BROKEN) as sink:
        (answer,) = run(sink, tls=policy, ca_file=str(certificate[0]))
    assert statuses(answer) == ["4.7.5"]
    assert not sink.commands("MAIL")


def test_tls_that_does_not_work_is_what_a_login_waits_for() -> None:
    """Not an AUTH that is missing because there is no TLS."""
    with Sink(offers=(*OFFERS, TLS), replies=BROKEN) as sink:
        answers = run(sink, tls="may", times=2, username="relay", password="secret")
    assert [statuses(answer) for answer in answers] == [["4.7.5"], ["4.7.5"]]
    assert "TLS" in answers[0].outcomes[0].reason
    assert not sink.commands("AUTH")
    assert not sink.commands("MAIL")


def test_nothing_that_came_in_the_clear_is_read_after_tls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    """CVE-2021-38371: replies put behind the go-ahead by somebody in between."""
    with Sink(tls=certificate[1], replies={"starttls": b"220 2.0.0 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"}) as sink:
        (answer,) = run(sink, tls="encrypt")
    assert statuses(answer)[0].startswith("4.")
    assert not sink.commands("MAIL")


def test_a_handshake_may_not_take_for_ever() -> None:
    with Sink(offers=(*OFFERS, TLS), replies={"starttls": b"220 2.0.0 go ahead\r\n" + STALL}) as sink:
        (answer,) = run(sink, tls="encrypt", patience=PATIENCE)
    assert (statuses(answer), answer.state) == (["4.7.5"], DOWN)


def test_certificates_that_cannot_be_read_are_the_reason() -> None:
    with Sink() as sink:
        (answer,) = run(sink, tls="verify", ca_file="/nonexistent/ca.pem")
    assert statuses(answer) == ["4.7.5"]
    assert "/nonexistent/ca.pem" in answer.outcomes[0].reason
    assert not sink.sessions


def test_the_setting_is_for_the_smarthost_alone(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink() as sink:
        (answer,) = run(sink, tls="verify", as_mx=True, ca_file=str(certificate[0]))
    assert statuses(answer) == ["2.0.0"]


# ---- logins


def test_the_login_is_for_the_smarthost_alone(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(tls=certificate[1], users=USERS) as sink:
        (answer,) = run(sink, as_mx=True, username="relay", password="secret")
    assert statuses(answer) == ["2.0.0"]
    assert not sink.commands("AUTH")


@pytest.mark.parametrize(("offer", "lines"), [("AUTH PLAIN LOGIN", [f"AUTH PLAIN {PLAIN}"]),
                                              ("AUTH LOGIN", ["AUTH LOGIN", "cmVsYXk=", "c2VjcmV0"])])
def test_the_login_comes_after_tls(offer: str, lines: list[str], certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(tls=certificate[1], offers=(*OFFERS, offer)) as sink:
        (answer,) = run(sink, username="relay", password="secret")
    assert statuses(answer) == ["2.0.0"]
    assert sink.envelopes[0].user == "relay"
    commands = sink.commands("")
    assert commands[1] == "STARTTLS"
    assert commands[3:3 + len(lines)] == lines


@pytest.mark.parametrize("reply", [b"535 5.7.8 wrong\r\n", b"550 5.7.1 no\r\n", b"454 4.7.0 later\r\n"])
def test_a_refused_login_keeps_the_mail(reply: bytes, certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(tls=certificate[1], users=USERS, replies={"auth": reply}) as sink:
        (answer,) = run(sink, username="relay", password="secret")
    assert statuses(answer)[0].startswith("4.7.")
    assert answer.state == LOGIN
    assert not sink.commands("MAIL")
    assert "secret" not in answer.outcomes[0].reason + answer.outcomes[0].diagnostic


def test_a_host_that_lets_nobody_log_in_gets_no_mail(certificate: tuple[Path, ssl.SSLContext]) -> None:
    with Sink(tls=certificate[1]) as sink:
        (answer,) = run(sink, username="relay", password="secret")
    assert (statuses(answer), answer.state) == (["4.7.8"], LOGIN)
    assert not sink.commands("MAIL")


def test_on_loopback_a_login_needs_no_tls() -> None:
    """A tunnel's end on this host: nobody can listen in."""
    with Sink(users=USERS) as sink:
        (answer,) = run(sink, username="relay", password="secret")
    assert statuses(answer) == ["2.0.0"]
    assert sink.envelopes[0].user == "relay"


def test_a_token_comes_from_a_command_and_is_asked_for_again_when_refused(
        tmp_path: Path, certificate: tuple[Path, ssl.SSLContext]) -> None:
    counter = tmp_path / "count"
    command = f"echo x >> {counter}; echo token$(wc -l < {counter})"
    offers = (*OFFERS, "AUTH XOAUTH2")
    replies = [{"auth": b"535 5.7.8 expired\r\n"}, {"auth": b"235 2.7.0 welcome\r\n"}]
    with Sink(tls=certificate[1], offers=offers, replies=replies) as sink:
        first, second, third = run(sink, times=3, username="relay", token_command=command)
    assert (statuses(first)[0][0], first.state) == ("4", LOGIN)
    assert statuses(second) == statuses(third) == ["2.0.0"]
    assert counter.read_text() == "x\nx\n"
    tokens = [base64.b64decode(line.split(" ")[2]) for line in sink.commands("AUTH")]
    assert tokens == [b"user=relay\x01auth=Bearer token%d\x01\x01" % n for n in (1, 2, 2)]


@pytest.mark.parametrize("command", ["exit 3", "true", "echo a b", "printf '\\377\\n'", "sleep 100 & echo",
                                     "head -c 100000 /dev/zero | tr '\\0' x", "/nonexistent/command"])
def test_a_command_without_a_token_keeps_the_mail(command: str) -> None:
    with Sink() as sink:
        (answer,) = run(sink, username="relay", token_command=command)
    assert (statuses(answer), answer.state) == (["4.7.8"], LOGIN)
    assert "token command" in answer.outcomes[0].reason
    assert not sink.sessions


def test_a_command_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LIMIT", 0.1)
    with Sink() as sink:
        (answer,) = run(sink, username="relay", token_command="sleep 100; echo token")
    assert statuses(answer) == ["4.7.8"]
    assert "did not end" in answer.outcomes[0].reason


# ---- TLS from the beginning. Port 465 is not ours to bind in a test: another port is taken for it.


def test_implicit_tls(certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    ca, context = certificate
    with Sink(tls=context, is_encrypted=True, users=USERS) as sink:
        monkeypatch.setattr(hosts, "SUBMISSIONS_PORT", sink.address[1])
        (answer,) = run(sink, tls="verify", ca_file=str(ca), username="relay", password="secret")
    assert (statuses(answer), answer.state) == (["2.0.0"], FINE)
    assert not sink.commands("STARTTLS")


@pytest.mark.parametrize("policy", ["may", "encrypt", "verify"])
def test_a_host_that_speaks_first_where_tls_should_begin_is_not_believed(
        policy: str, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    with Sink() as sink:  # no TLS: a greeting in the clear
        monkeypatch.setattr(hosts, "SUBMISSIONS_PORT", sink.address[1])
        (answer,) = run(sink, patience=PATIENCE, tls=policy, ca_file=str(certificate[0]))
    assert statuses(answer) == ["4.7.5"]
    assert not sink.commands("EHLO")
