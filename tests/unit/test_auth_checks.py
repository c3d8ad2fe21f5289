"""SPF, DKIM and DMARC against a scripted DNS, with Debian's libraries; the field that says what was found."""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import authres
import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st

from pysendmail.auth import Client, Findings, checks, dkim, dmarc, lookups, results, spf
from pysendmail.auth.author import from_domain
from pysendmail.auth.checks import Checks, are_available
from pysendmail.auth.dkim import DkimResult
from pysendmail.auth.dmarc import DmarcResult, Policy, organization, read_policy
from pysendmail.auth.lookups import Lookups
from pysendmail.auth.spf import SpfResult
from pysendmail.mail.changes import Draft, Text
from pysendmail.mail.envelope import Envelope, Origin, Recipient
from pysendmail.net.resolver import Answer, Kind, Resolver, State
from tests.tools.fakedns import FakeDns

HOST = "mx.example.net"
CLIENT = Client("192.0.2.7", 4711)
BODY = b"hello\n\nworld\n"


@pytest.fixture(scope="module")
def key() -> tuple[bytes, str]:
    """(private key in PEM, the TXT record of its public key)."""
    made = rsa.generate_private_key(65537, 2048)
    private = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                                 serialization.NoEncryption())
    public = made.public_key().public_bytes(serialization.Encoding.PEM,
                                            serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    inner = "".join(public.split("\n")[1:-2])
    return private, f'"v=DKIM1; k=rsa; p={inner[:200]}" "{inner[200:]}"'


def signed(head: bytes, body: bytes, private: bytes, **more: Any) -> bytes:
    """The head with a signature of example.org, made by dkimpy."""
    message = (head + b"\n" + body).replace(b"\n", b"\r\n")
    signature = dkimpy.sign(message, b"sel", b"example.org", private,
                            canonicalize=(b"relaxed", b"relaxed"), include_headers=[b"from", b"subject"], **more)
    return signature.replace(b"\r\n", b"\n") + head


def draft(head: bytes, body: bytes = BODY, sender: str = "a@example.org") -> Draft:
    origin = Origin("smtp", client="[192.0.2.7]", helo="client.example.org", protocol="ESMTP")
    return Draft(Envelope("X", sender, (Recipient("b@example.net"),), 1.0, origin),
                 Text(b"Received: x\n", head, lambda: (body,)))


def found(tmp_path: Path, table: Mapping[tuple[str, str], Any], what: Draft, *, reject: bool = False,
          chance: float = 0.0) -> Findings:
    async def session() -> Findings:
        async with FakeDns(table) as dns:
            conf = tmp_path / "resolv.conf"
            conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            loop = asyncio.get_running_loop()
            resolver = Resolver(loop.time, conf=str(conf), port=dns.port, lifetime=5.0)
            checks = Checks(resolver, HOST, dmarc_reject=reject, chance=lambda: chance)
            try:
                return await checks.find(CLIENT, what)
            finally:
                checks.close()

    return asyncio.run(session())


def read(field: bytes) -> dict[str, Any]:
    """The field as a reader understands it: {method: (result, {property: value})}."""
    assert field.endswith(b"\n")
    assert all(len(line) <= 100 for line in field.split(b"\n"))
    header = authres.AuthenticationResultsHeader.parse(field.decode().replace("\n\t", " ").strip())
    assert header.authserv_id == HOST
    return {one.method: (one.result, {f"{p.type}.{p.name}": p.value for p in one.properties})
            for one in header.results}


HEAD = b"From: A <a@example.org>\nSubject: s\n"


def test_the_libraries_are_there() -> None:
    assert are_available()


@pytest.mark.parametrize(("record", "expected"), [
    ('"v=spf1 ip4:192.0.2.0/24 -all"', "pass"),
    ('"v=spf1 ip4:198.51.100.0/24 -all"', "fail"),
    ('"v=spf1 ~all"', "softfail"),
    ('"v=spf1 ?all"', "neutral"),
    ('"v=spf1 moo -all"', "permerror"),
    ('"v=spf1 a:host.example.org -all"', "pass"),
    ('"v=spf1 mx:example.com -all"', "pass"),
    ('"v=spf1 include:other.example -all"', "pass"),
    ('"v=spf1 include:down.example -all"', "temperror"),
    ('"v=spf1 exists:%{i}.list.example -all"', "pass"),
    ('"v=spf1 include:loop.example -all"', "permerror"),
])
def test_spf(tmp_path: Path, record: str, expected: str) -> None:
    table = {("example.org", "TXT"): [record], ("host.example.org", "A"): ["192.0.2.7"],
             ("example.com", "MX"): ["10 mx.example.com."], ("mx.example.com", "A"): ["192.0.2.7"],
             ("other.example", "TXT"): ['"v=spf1 ip4:192.0.2.7 -all"'], ("down.example", "TXT"): "SERVFAIL",
             ("192.0.2.7.list.example", "A"): ["127.0.0.2"], ("loop.example", "TXT"): ['"v=spf1 include:loop.example"']}
    by = read(found(tmp_path, table, draft(HEAD)).field)
    assert by["spf"] == (expected, {"smtp.mailfrom": "example.org"})


def test_spf_of_the_null_sender_is_that_of_helo(tmp_path: Path) -> None:
    table = {("client.example.org", "TXT"): ['"v=spf1 ip4:192.0.2.7 -all"']}
    by = read(found(tmp_path, table, draft(HEAD, sender="")).field)
    assert by["spf"] == ("pass", {"smtp.helo": "client.example.org"})


def test_a_domain_that_says_nothing(tmp_path: Path) -> None:
    by = read(found(tmp_path, {}, draft(HEAD)).field)
    assert by == {"spf": ("none", {"smtp.mailfrom": "example.org"}), "dkim": ("none", {}),
                  "dmarc": ("none", {"header.from": "example.org"})}


def test_dns_that_does_not_answer_is_no_verdict(tmp_path: Path, key: tuple[bytes, str]) -> None:
    table = {("example.org", "TXT"): "SERVFAIL", ("sel._domainkey.example.org", "TXT"): "SERVFAIL",
             ("_dmarc.example.org", "TXT"): "SERVFAIL"}
    result = found(tmp_path, table, draft(signed(HEAD, BODY, key[0])), reject=True)
    by = read(result.field)
    assert [by[name][0] for name in ("spf", "dkim", "dmarc")] == ["temperror"] * 3
    assert result.refusal is None


@pytest.mark.parametrize(("change", "expected"), [
    (lambda head, body: (head, body), "pass"),
    (lambda head, body: (head, body + b"more\n"), "fail"),
    (lambda head, body: (head.replace(b"Subject: s", b"Subject: t"), body), "fail"),
    (lambda head, body: (head.replace(b"s=sel", b"s=none"), body), "permerror"),
    (lambda head, body: (head.replace(b"v=1", b"v=2"), body), "permerror"),
    (lambda head, body: (head.replace(b"bh=", b"zz="), body), "permerror"),
    (lambda head, body: (b"From: evil@example.com\n" + head, body), "fail"),
])
def test_dkim(tmp_path: Path, key: tuple[bytes, str], change: Any, expected: str) -> None:
    head, body = change(signed(HEAD, BODY, key[0]), BODY)
    by = read(found(tmp_path, {("sel._domainkey.example.org", "TXT"): [key[1]]}, draft(head, body)).field)
    assert by["dkim"][0] == expected
    if expected == "pass":
        assert by["dkim"][1] == {"header.d": "example.org", "header.s": "sel"}


def test_a_signature_of_the_beginning_of_a_body_does_not_count(tmp_path: Path, key: tuple[bytes, str]) -> None:
    head = signed(HEAD, BODY, key[0], length=True)
    table = {("sel._domainkey.example.org", "TXT"): [key[1]], ("_dmarc.example.org", "TXT"): ['"v=DMARC1; p=reject"']}
    by = read(found(tmp_path, table, draft(head, BODY + b"something else\n")).field)
    assert by["dkim"][0] == "policy"
    assert by["dmarc"][0] == "fail"
    by = read(found(tmp_path, table, draft(head, BODY)).field)
    assert by["dkim"][0] == "pass", "it is one of all of it"


def test_a_signature_may_be_long(tmp_path: Path, key: tuple[bytes, str]) -> None:
    """Some have copies of the fields that they cover (RFC 6376 section 3.5, "z=")."""
    names = [b"from", *(b"x-a-name-that-is-not-there-%d" % n for n in range(150))]
    message = (HEAD + b"\n" + BODY).replace(b"\n", b"\r\n")
    one = dkimpy.sign(message, b"sel", b"example.org", key[0], include_headers=names).replace(b"\r\n", b"\n")
    assert len(one) > 5000
    by = read(found(tmp_path, {("sel._domainkey.example.org", "TXT"): [key[1]]}, draft(one + HEAD)).field)
    assert by["dkim"][0] == "pass"


def test_a_signature_made_with_sha1_does_not_count(tmp_path: Path, key: tuple[bytes, str]) -> None:
    """RFC 8301 section 3.1."""
    head = signed(HEAD, BODY, key[0], signature_algorithm=b"rsa-sha1")
    by = read(found(tmp_path, {("sel._domainkey.example.org", "TXT"): [key[1]]}, draft(head)).field)
    assert by["dkim"][0] == "policy"


@pytest.mark.limit(20)
def test_a_body_of_blanks_takes_no_minutes(tmp_path: Path, key: tuple[bytes, str]) -> None:
    """The whole listener would stand still meanwhile."""
    what = draft(signed(HEAD, b" x\n", key[0]), b" " * 500_000 + b"x\n")
    by = read(found(tmp_path, {("sel._domainkey.example.org", "TXT"): [key[1]]}, what).field)
    assert by["dkim"][0] == "pass"


@pytest.mark.parametrize("signature", [b"AAAA" + b"\n " * 50_000, b"AAAA" + b" " * 3000 + b"!", b"A" * 10_000])
@pytest.mark.limit(20)
def test_a_strange_signature_takes_no_minutes(tmp_path: Path, key: tuple[bytes, str], signature: bytes) -> None:
    head = (b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=from; bh=%s; b=%s;\n"
            % (base64.b64encode(hashlib.sha256(b"x\r\n").digest()), signature)) + HEAD
    one = found(tmp_path, {("sel._domainkey.example.org", "TXT"): [key[1]]}, draft(head, b"x\n"))
    assert b"dkim=permerror (too long)" in one.field


def test_a_key_too_large_to_be_used_is_not_used(tmp_path: Path, key: tuple[bytes, str]) -> None:
    table = {("sel._domainkey.example.org", "TXT"): [f'{key[1]} "; n=" ' + f'"{"x" * 250}" ' * 3],
             ("_dmarc.example.org", "TXT"): ['"v=DMARC1; p=reject"'], ("example.org", "TXT"): ['"v=spf1 -all"']}
    one = found(tmp_path, table, draft(signed(HEAD, BODY, key[0])), reject=True)
    assert (read(one.field)["dkim"][0], read(one.field)["dmarc"][0]) == ("neutral", "temperror")
    assert one.refusal is None


@pytest.mark.parametrize("record", [
    "a:x." + "a" * 1000 + "!", "exists:%{ir" + "." * 1000 + "}.example.org", "a " * 4100])
def test_no_policy_takes_minutes(tmp_path: Path, record: str) -> None:
    text = f"v=spf1 {record} -all"
    strings = " ".join(f'"{text[at:at + 250]}"' for at in range(0, len(text), 250))
    by = read(found(tmp_path, {("example.org", "TXT"): [strings]}, draft(HEAD)).field)
    assert by["spf"][0] == "temperror"


def test_what_cannot_be_found_out_about_others_makes_no_forgery_a_doubt(tmp_path: Path, key: tuple[bytes, str]) -> None:
    """A client whose own domain does not answer forges mail of another."""
    table = {("_dmarc.bank.example", "TXT"): ['"v=DMARC1; p=reject"'], ("example.org", "TXT"): "SERVFAIL",
             ("sel._domainkey.example.org", "TXT"): "SERVFAIL"}
    what = draft(signed(b"From: x@bank.example\nSubject: s\n", BODY, key[0]))
    one = found(tmp_path, table, what, reject=True)
    by = read(one.field)
    assert (by["spf"][0], by["dkim"][0], by["dmarc"][0]) == ("temperror", "temperror", "fail")
    assert one.refusal is not None


def test_a_forger_with_slow_servers_does_not_use_up_the_time() -> None:
    """SPF has its limit, which its last answer may exceed; then there is an answer for each signature, and two for
    DMARC."""
    answers = 1 + dkim.MAX_SIGNATURES + 2
    assert spf.QUERIES + answers * lookups.LIMIT < checks.LIMIT


def test_an_answer_that_does_not_come_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def lookup(self, _name: str, _kind: Kind) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

    async def ask() -> Answer:
        loop = asyncio.get_running_loop()
        resolver: Any = Silent()
        return await loop.run_in_executor(None, Lookups(resolver, loop).ask, "example.org", Kind.TXT)

    monkeypatch.setattr(lookups, "LIMIT", 0.01)
    assert asyncio.run(ask()).state is State.TROUBLE


def test_only_so_many_signatures_are_looked_at(tmp_path: Path, key: tuple[bytes, str]) -> None:
    one = signed(HEAD, BODY, key[0]).removesuffix(HEAD)
    text = found(tmp_path, {}, draft(one * 40 + HEAD)).field
    assert text.count(b"dkim=") == dkim.MAX_SIGNATURES


def test_a_message_too_large_to_be_checked_is_not_refused(tmp_path: Path, key: tuple[bytes, str]) -> None:
    body = b"x" * 99 + b"\n"
    what = draft(signed(HEAD, BODY, key[0]), body * (dkim.MAX_MESSAGE // 100 + 1))
    table = {("_dmarc.example.org", "TXT"): ['"v=DMARC1; p=reject"']}
    result = found(tmp_path, table, what, reject=True)
    assert read(result.field)["dkim"][0] == "neutral"
    assert read(result.field)["dmarc"][0] == "temperror"
    assert result.refusal is None


SPF = {("example.org", "TXT"): ['"v=spf1 ip4:192.0.2.7 -all"'], ("example.com", "TXT"): ['"v=spf1 ip4:192.0.2.7 -all"']}


# (From, records of _dmarc, policy in force and result)
@pytest.mark.parametrize(("whom", "table", "result"), [
    (b"a@example.org", {"_dmarc.example.org": "v=DMARC1; p=reject"}, "pass"),
    (b"a@sub.example.org", {"_dmarc.example.org": "v=DMARC1; p=reject"}, "pass"),
    (b"a@sub.example.org", {"_dmarc.example.org": "v=DMARC1; p=reject; aspf=s"}, "fail"),
    (b"a@sub.example.org", {"_dmarc.sub.example.org": "v=DMARC1; p=none"}, "pass"),
    (b"a@other.example", {"_dmarc.other.example": "v=DMARC1; p=reject"}, "fail"),
    (b"a@other.example", {}, "none"),
    (b"a@other.example, b@third.example", {"_dmarc.other.example": "v=DMARC1; p=reject"}, "fail"),
    (b"a@other.example, b@third.example", {"_dmarc.third.example": "v=DMARC1; p=quarantine"}, "permerror"),
    (b"a@example.org, b@third.example", {"_dmarc.example.org": "v=DMARC1; p=reject"}, "permerror"),
    (b"a@example.org\nFrom: x@other.example", {"_dmarc.other.example": "v=DMARC1; p=reject"}, "fail"),
    (b"<a@other.example> <x@example.org>", {"_dmarc.other.example": "v=DMARC1; p=reject"}, "fail"),
    (b"a", {}, "permerror"),
])
def test_dmarc(tmp_path: Path, whom: bytes, table: dict[str, str], result: str) -> None:
    records: dict[tuple[str, str], Any] = {(name, "TXT"): [f'"{text}"'] for name, text in table.items()}
    by = read(found(tmp_path, SPF | records, draft(b"From: " + whom + b"\n")).field)
    assert by["dmarc"][0] == result


@pytest.mark.parametrize(("whom", "result"), [
    (b"a@sub.example.org", "temperror"), (b"a@example.org", "pass"), (b"a@other.example", "fail")])
def test_without_a_list_of_suffixes_nobody_is_refused_for_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whom: bytes, result: str) -> None:
    monkeypatch.setattr(dmarc, "_suffixes", lambda: None)
    records = {(f"_dmarc.{whom.decode()[2:]}", "TXT"): ['"v=DMARC1; p=reject"']}
    one = found(tmp_path, SPF | records, draft(b"From: " + whom + b"\n"), reject=True)
    assert read(one.field)["dmarc"][0] == result
    assert (one.refusal is not None) is (result == "fail")


@pytest.mark.parametrize("trouble", [MemoryError, dkimpy.NaClNotFoundError])
def test_a_signature_that_cannot_be_checked_here_refuses_nobody(
        tmp_path: Path, key: tuple[bytes, str], monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]) -> None:
    def verify(*_: Any, **__: Any) -> bool:
        raise trouble

    monkeypatch.setattr(dkimpy.DKIM, "verify", verify)
    table = {("_dmarc.example.org", "TXT"): ['"v=DMARC1; p=reject"'], ("example.org", "TXT"): ['"v=spf1 -all"']}
    one = found(tmp_path, table, draft(signed(HEAD, BODY, key[0])), reject=True)
    assert (read(one.field)["dkim"][0], read(one.field)["dmarc"][0]) == ("neutral", "temperror")
    assert one.refusal is None


@pytest.mark.parametrize(("policy", "reject", "chance", "is_refused"), [
    ("p=reject", True, 0.0, True),
    ("p=reject", False, 0.0, False),
    ("p=quarantine", True, 0.0, False),
    ("p=reject; pct=50", True, 0.49, True),
    ("p=reject; pct=50", True, 0.5, False),
    ("p=none; sp=reject", True, 0.0, False),
    ("p=reject; pct=0", True, 0.0, False),
])
def test_refusal_by_policy(tmp_path: Path, policy: str, reject: bool, chance: float, is_refused: bool) -> None:
    table = {("_dmarc.example.org", "TXT"): [f'"v=DMARC1; {policy}"'],
             ("example.org", "TXT"): ['"v=spf1 -all"']}
    result = found(tmp_path, table, draft(HEAD), reject=reject, chance=chance)
    assert (result.refusal is not None) is is_refused
    if result.refusal is not None:
        assert result.refusal.words.startswith("550 5.7.1 the policy of example.org")


@pytest.mark.parametrize(("records", "expected"), [
    ([], None),
    ([b"v=spf1 -all"], None),
    ([b"v=DMARC1; p=reject"], Policy("reject", "reject")),
    ([b"v=DMARC1;p=Reject;sp=none;adkim=s;aspf=S;pct=7;"], Policy("reject", "none", True, True, 7)),
    ([b"v=DMARC1; p=reject; pct=1000"], Policy("reject", "reject")),
    ([b"v=DMARC1; p=reject; pct=\xb2"], Policy("reject", "reject")),
    ([b"v=DMARC1; p=reject; pct=999"], Policy("reject", "reject")),
    ([b"v=DMARC1; p=bogus"], None),
    ([b"v=DMARC1; p=bogus; rua=mailto:x@example.org"], Policy("none", "none")),
    ([b"p=reject; v=DMARC1"], None),
    ([b"v=DMARC1; p=reject", b"v=DMARC1; p=none"], None),
    ([b"v=DMARC1; p=reject", b"v=spf1 -all"], Policy("reject", "reject")),
    ([b"v=DMARC1; p=none; p=reject"], Policy("none", "none")),
    ([b"v=DMARC1; p=reject; x=" + b"y" * 3000], None),
])
def test_policy_records(records: list[bytes], expected: Policy | None) -> None:
    assert read_policy(records) == expected


@pytest.mark.parametrize(("head", "expected"), [
    (b"From: a@Example.ORG.\n", "example.org"),
    (b"From: X <a@example.org>, b@example.org\n", "example.org"),
    (b"From: a@example.org\nFrom: b@example.org\n", ""),
    (b"From: a@[192.0.2.1]\n", ""),
    (b"From: a@localhost\n", ""),
    ("From: a@bücher.example\n".encode(), "xn--bcher-kva.example"),
    (b"From: a@\xff.example\n", ""),
    (b"Subject: x\n", ""),
    (b"From: (\n", ""),
])
def test_the_domain_in_from(head: bytes, expected: str) -> None:
    assert from_domain(head) == expected


def test_organizational_domains() -> None:
    assert organization("a.b.example.co.uk") == "example.co.uk"
    assert organization("example.org") == "example.org"
    assert organization("co.uk") == "co.uk"
    assert organization("a.bank.internal") == "bank.internal", "domains below what the list lacks are strangers"
    assert organization("bank.internal") == "bank.internal"


STRANGE = st.text(max_size=300) | st.text(alphabet="@.;=/?\"\\( \n\u00e4ab", max_size=8)


@given(STRANGE, STRANGE, STRANGE)
@example("@", "@@", "@")
@example("a@", "a@b@c", ";")
@example("a..b@c", "@a", "a@b..c")
@example("a@b/c", "x;y=z", "(")
def test_no_text_of_strangers_breaks_the_field(domain: str, selector: str, words: str) -> None:
    field = results.field(HOST, SpfResult("fail", domain, False, words), [DkimResult("fail", domain, selector, words)],
                          DmarcResult("fail", domain, "reject"))
    assert all(line.startswith(b"\t") for line in field.split(b"\n")[1:-1])
    header = authres.AuthenticationResultsHeader.parse(field.decode().replace("\n\t", " ").strip())
    assert [one.method for one in header.results] == ["spf", "dkim", "dmarc"]
    assert [one.result for one in header.results] == ["fail", "fail", "fail"]


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_signature_makes_the_check_fail_otherwise(value: bytes, body: bytes) -> None:
    """Whatever stands in a signature, the result is one of RFC 8601's."""
    class NoDns:
        def text(self, _name: str) -> tuple[list[bytes], bool]:
            return [value], True

    clean = value.replace(b"\n", b" ").replace(b"\r", b" ")
    head = b"From: a@example.org\nDKIM-Signature: v=1; a=rsa-sha256; d=x; s=y; h=from; bh=; b=" + clean + b"\n"
    for one in (head, b"DKIM-Signature:" + clean + b"\n"):
        for result in dkim.check(one, body, NoDns()):  # type: ignore[arg-type]
            assert result.result in ("pass", "fail", "policy", "neutral", "permerror", "temperror")


@given(st.lists(st.binary(max_size=100), max_size=4))
def test_no_policy_record_makes_the_check_fail_otherwise(records: list[bytes]) -> None:
    policy = read_policy(records)
    assert policy is None or policy.policy in dmarc.POLICIES
