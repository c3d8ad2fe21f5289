"""Logins: which mechanism, what it says, what a server reads. (Whole exchanges: test_smtp_client, test_smtp_server.)"""

import pytest

from pysendmail.smtp import sasl
from pysendmail.smtp.opening import Opening, Options
from pysendmail.smtp.reply import Reply
from pysendmail.smtp.sasl import Credentials
from pysendmail.smtp.transaction import Step
from pysendmail.smtp.trouble import Peer, Stage
from pysendmail.smtp.wire import LocalError, RemoteError

PASSWORD = Credentials("user", "secret")
TOKEN = Credentials("user", token="t0ken")


@pytest.mark.parametrize(("offered", "credentials", "is_encrypted", "refused", "name"), [
    (("LOGIN", "PLAIN", "CRAM-MD5"), PASSWORD, True, (), "PLAIN"),
    (("login", "cram-md5"), PASSWORD, True, (), "LOGIN"),
    (("PLAIN", "LOGIN", "CRAM-MD5"), PASSWORD, False, (), "CRAM-MD5"),
    (("PLAIN", "LOGIN"), PASSWORD, False, (), ""),
    (("PLAIN", "LOGIN"), PASSWORD, True, ("PLAIN",), "LOGIN"),
    (("XOAUTH2",), PASSWORD, True, (), ""),
    (("PLAIN", "XOAUTH2"), TOKEN, True, (), "XOAUTH2"),
    (("XOAUTH2", "OAUTHBEARER"), TOKEN, True, (), "OAUTHBEARER"),
    (("XOAUTH2",), TOKEN, False, (), ""),
    (("PLAIN",), TOKEN, True, (), ""),
    (("GSSAPI", "NTLM"), PASSWORD, True, (), ""),
    ((), PASSWORD, True, (), ""),
])
def test_the_best_mechanism_that_may_be_used(offered: tuple[str, ...], credentials: Credentials, is_encrypted: bool,
                                             refused: tuple[str, ...], name: str) -> None:
    found = sasl.choose(offered, credentials, is_encrypted=is_encrypted, refused=refused)
    assert (found.name if found else "") == name


@pytest.mark.parametrize(("name", "challenges"), [
    ("PLAIN", 1), ("LOGIN", 2), ("CRAM-MD5", 1), ("XOAUTH2", 1), ("OAUTHBEARER", 1)])
def test_a_challenge_too_many(name: str, challenges: int) -> None:
    mechanism = sasl.choose([name], TOKEN if "OAUTH" in name else PASSWORD, is_encrypted=True)
    assert mechanism is not None
    for _ in range(challenges):
        mechanism.respond(b"x")
    with pytest.raises(RemoteError):
        mechanism.respond(b"x")


@pytest.mark.parametrize(("response", "read"), [
    (b"\0user\0pass", ("", "user", "pass")),
    (b"admin\0us\xc3\xa9r\0", ("admin", "us\u00e9r", "")),
])
def test_plain_is_read(response: bytes, read: tuple[str, str, str]) -> None:
    exchange = sasl.Exchange("PLAIN")
    assert exchange.prompt == b""
    exchange.take(response)
    assert (exchange.prompt, exchange.identity, exchange.user, exchange.password) == (None, *read)


@pytest.mark.parametrize("response", [
    b"", b"user", b"\0user", b"\0a\0b\0c", b"\0\xff\0x", b"\0u\0\xff", b"\0" + b"u" * 1025 + b"\0p"])
def test_what_is_no_plain(response: bytes) -> None:
    with pytest.raises(ValueError):
        sasl.Exchange("PLAIN").take(response)


def test_login_asks_twice() -> None:
    exchange = sasl.Exchange("LOGIN")
    assert exchange.prompt == b"Username:"
    exchange.take(b"user")
    assert exchange.prompt == b"Password:"
    exchange.take(b"secret")
    assert (exchange.prompt, exchange.identity, exchange.user, exchange.password) == (None, "", "user", "secret")


@pytest.mark.parametrize("value", [b"a\0b", b"\xff", b"x" * 1025])
def test_what_is_no_name(value: bytes) -> None:
    with pytest.raises(ValueError):
        sasl.Exchange("LOGIN").take(value)


@pytest.mark.parametrize(("text", "data"), [(b"", b""), (b"YQ==", b"a"), (b"AGEAYg==", b"\0a\0b")])
def test_base64(text: bytes, data: bytes) -> None:
    assert sasl.decode(text) == data
    assert sasl.encode(data) == text


@pytest.mark.parametrize("text", [b"YQ", b"YQ==YQ==", b"Y Q==", b"YQ==\n", b"=", b"*", b"!!!!"])
def test_what_is_no_base64(text: bytes) -> None:
    with pytest.raises(ValueError):
        sasl.decode(text)


def test_encoded_lines_have_no_line_end_in_them() -> None:
    assert b"\n" not in sasl.encode(b"x" * 1000)


def test_a_login_that_nobody_wanted_is_our_bug() -> None:
    with pytest.raises(LocalError):
        Opening(Options("client.example", Peer("mx.example"))).take(Step(Stage.AUTH), Reply(235))
