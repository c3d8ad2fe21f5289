"""What we sign, others can verify: dkimpy checks every signature, whatever the message and whatever its pieces."""

import base64
import hashlib
import itertools
import subprocess
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.auth.signing import BadKey, BodyHash, Signer, domain_of, load, relaxed, sign_for
from pysendmail.config import DkimSettings
from pysendmail.smtp.wire import DataEncoder

NOW = 1_700_000_000.0


def pem(key: Any) -> bytes:
    made = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())
    assert isinstance(made, bytes)
    return made


def record(key: Any) -> bytes:
    """What stands in DNS."""
    public = key.public_key()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return b"v=DKIM1; k=ed25519; p=" + base64.b64encode(raw)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)


RSA, ED25519 = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()
KEYS = {"rsa": RSA, "ed25519": ED25519}
SIGNERS = {name: Signer(["example.org", "sub.example.net"], "sel", pem(key), lambda: NOW) for name, key in KEYS.items()}
HEAD = b"Received: x\nFrom: A <a@example.org>\nTo: b@example.net\nSubject:  folded\n\tand  more \nDate: today\n"


def on_the_wire(message: bytes) -> bytes:
    """A message as the other host gets it, dots undone."""
    encoder = DataEncoder()
    data = encoder.feed(message) + encoder.finish()
    return data.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")


def verifies(message: bytes, key: str = "rsa") -> bool:
    """Whether dkimpy finds that the first signature holds."""
    asked: list[bytes] = []

    def find(name: bytes, timeout: float = 0) -> bytes:
        asked.append(name)
        return record(KEYS[key])

    try:
        found = dkimpy.DKIM(on_the_wire(message)).verify(dnsfunc=find)
    except dkimpy.ValidationError:
        found = False  # so it says that the body is another
    assert asked == [b"sel._domainkey.example.org."]
    return bool(found)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("body", [b"", b"\n", b"text\n", b"text", b"\n\ntext\n\n\n", b"a  b\t\n \n\t\n", b".\n..\n",
                                  b"x" * 998 + b"\n", b"line\n" * 100_000], ids=lambda body: repr(body[:20]))
def test_signatures_hold(key: str, body: bytes) -> None:
    message = HEAD + b"\n" + body
    field = SIGNERS[key].sign([message])
    assert verifies(field + message, key)
    assert not verifies(field + message.replace(b"folded", b"changed"), key)
    assert not verifies(field + message + b"more\n", key)


@pytest.mark.parametrize("name", ["From", "To", "Cc", "Subject", "Date", "Message-ID"])
def test_no_field_can_be_added_that_says_something_else(name: str) -> None:
    message = HEAD + b"\ntext\n"
    field = SIGNERS["rsa"].sign([message])
    assert not verifies(field + name.encode() + b": evil@example.com\n" + message)


def test_what_hosts_add_on_their_way_breaks_nothing() -> None:
    message = HEAD + b"\ntext\n"
    field = SIGNERS["rsa"].sign([message])
    assert verifies(b"Received: y\nX-Spam: no\nAuthentication-Results: z\n" + field + message)


@pytest.mark.parametrize("size", [1, 2, 7, 65536])
def test_pieces_make_no_difference(size: int) -> None:
    message = HEAD + b"\nsome  text \r\n\n with\tblanks \n\n\n and more\n\n\n"
    pieces = [message[at:at + size] for at in range(0, len(message), size)]
    assert SIGNERS["ed25519"].sign(pieces) == SIGNERS["ed25519"].sign([message])


def test_the_field_is_one_that_every_host_takes() -> None:
    field = SIGNERS["rsa"].sign([HEAD + b"\ntext\n"])
    lines = field.split(b"\n")
    assert lines[0] == b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel;"
    assert lines[-1] == b""
    assert all(line.startswith(b"\t") and len(line) < 100 for line in lines[1:-1])
    assert b"t=1700000000;" in field


@pytest.mark.parametrize(("whom", "domain"), [
    (b"a@example.org", "example.org"), (b"a@EXAMPLE.ORG", "example.org"), (b"a@mail.example.org", "example.org"),
    (b"a@x.sub.example.net", "sub.example.net"), (b"a@example.net", ""), (b"a@notexample.org", ""), (b"a", ""),
    (b"a@example.org, b@example.com", ""), (b"", ""),
])
def test_which_domain_signs(whom: bytes, domain: str) -> None:
    head = b"From: " + whom + b"\n"
    assert domain_of(head, {"example.org", "sub.example.net"}) == domain
    assert bool(SIGNERS["rsa"].sign([head + b"\ntext\n"])) is bool(domain)


PARTS = [b"a", b"word", b" ", b"\t", b"\n", b"\n\n", b" \n", b"\r\n", b"  \t", b".", b"\xc3\xa4"]
BODY = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)


@given(BODY, st.lists(st.integers(0, 60), max_size=5))
def test_the_body_is_hashed_as_dkimpy_hashes_what_goes_out(body: bytes, cuts: list[int]) -> None:
    made = BodyHash()
    places = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        made.add(body[start:end])
    wire = on_the_wire(b"X: y\n\n" + body).partition(b"\r\n\r\n")[2] if body else b""
    assert made.digest() == hashlib.sha256(Relaxed.canonicalize_body(wire)).digest()


VALUE = st.lists(st.sampled_from([b"x", b" ", b"\t", b"\n ", b"\n\t", b":"]), max_size=12).map(b"".join)


@given(st.from_regex("[aB-]{1,9} {0,2}", fullmatch=True), VALUE)
def test_fields_are_relaxed_as_dkimpy_does_it(name: str, value: bytes) -> None:
    raw_name = name.encode()
    found, = Relaxed.canonicalize_headers([(raw_name, value.replace(b"\n", b"\r\n") + b"\r\n")])
    assert relaxed(raw_name + b":" + value + b"\n") + b"\r\n" == found[0] + b":" + found[1]


@given(BODY, BODY)
def test_any_message_of_ours_verifies(head: bytes, body: bytes) -> None:
    extra = b"X-Y: " + head.replace(b"\n", b"").replace(b"\r", b"") + b"\n"
    message = extra + HEAD + b"\n" + body
    assert verifies(SIGNERS["ed25519"].sign([message]) + message, "ed25519")


def test_memory_is_that_of_a_piece() -> None:
    def endless() -> Iterable[bytes]:
        yield HEAD + b"\n"
        for _ in range(300):
            yield b"a line of text\n" * 4000
        for _ in range(100):
            yield b"\n" * 10_000

    tracemalloc.start()
    assert SIGNERS["ed25519"].sign(endless())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# ---- keys

def short_key() -> bytes:
    """Newer versions of the library make none so short, but read it."""
    return subprocess.run(["/usr/bin/openssl", "genrsa", "-traditional", "768"], check=True, capture_output=True,
                          timeout=30).stdout


@pytest.mark.parametrize(("key", "words"), [
    (b"", "no private key"), (b"hello", "no private key"), (pem(ec.generate_private_key(ec.SECP256R1())), "neither"),
    (short_key(), "768 bits"),
    (RSA.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                       serialization.BestAvailableEncryption(b"x")), "no private key"),
], ids=["empty", "text", "curve", "short", "passphrase"])
def test_keys_that_cannot_sign(key: bytes, words: str) -> None:
    with pytest.raises(BadKey, match=words):
        Signer(["example.org"], "sel", key, lambda: NOW)


def test_a_key_from_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(RSA))
    path.chmod(0o600)
    settings = DkimSettings(("example.org",), "sel", str(path))
    made = load(settings, lambda: NOW)
    assert made is not None
    assert made.sign([HEAD + b"\ntext\n"]) == SIGNERS["rsa"].sign([HEAD + b"\ntext\n"])
    assert load(DkimSettings(), lambda: NOW) is None
    path.chmod(0o644)
    with pytest.raises(BadKey, match="read by everybody"):
        load(settings, lambda: NOW)
    with pytest.raises(BadKey, match="selector"):
        load(DkimSettings(("example.org",)), lambda: NOW)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load(settings, lambda: NOW)


@pytest.mark.parametrize("has_key", [True, False])
def test_without_a_key_nothing_goes_out_that_has_to_be_signed(tmp_path: Path, has_key: bool) -> None:
    """What others' domains send is no matter."""
    path, said = tmp_path / "key.pem", list[str]()
    if has_key:
        path.write_bytes(b"no key")
        path.chmod(0o600)
    sign = sign_for(DkimSettings(("example.org",), "sel", str(path)), lambda: NOW, said.append)
    assert sign is not None
    assert len(said) == 1
    assert str(path) in said[0]
    assert sign([HEAD.replace(b"a@example.org", b"a@example.net") + b"\n", b"text\n"]) == b""
    with pytest.raises(BadKey, match=r"no key for DKIM: .*key\.pem"):
        sign([HEAD + b"\n", b"text\n"])
    assert sign_for(DkimSettings(), lambda: NOW, said.append) is None
