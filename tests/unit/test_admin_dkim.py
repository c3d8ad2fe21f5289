"""`pysendmail dkim`: a key is made once, and what is printed can be pasted into DNS and the settings."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import dkim as dkimpy
import dns.rdatatype
import dns.zone
import pytest

from pysendmail.auth import keys
from pysendmail.auth.signing import Signer
from pysendmail.cli import admin_dkim
from pysendmail.config import load
from pysendmail.paths import Paths


def run(paths: Paths, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        code = admin_dkim.dkim.main(list(args), "dkim", standalone_mode=False, obj=paths) or 0
        words = ""
    except click.ClickException as problem:
        code, words = problem.exit_code, problem.format_message()
    return code, capsys.readouterr().out, words


def record_of(printed: str, name: str) -> bytes:
    """The TXT record of a name in what was printed, read as a name server reads it."""
    text = printed.partition("\n\n")[0]
    zone = dns.zone.from_text("$ORIGIN .\n$TTL 60\n@ IN SOA a. b. 1 1 1 1 1\n@ IN NS a.\n" + text + "\n", ".")
    found = zone.get_rdataset(name, dns.rdatatype.TXT)
    assert found is not None
    return b"".join(found[0].strings)


@pytest.mark.parametrize("kind", keys.KINDS)
def test_a_key_signs_and_its_record_verifies(paths: Paths, capsys: Any, kind: str) -> None:
    code, printed, _ = run(paths, capsys, "genkey", "--type", kind, "--selector", "sel", "--domain", "Example.ORG",
                           "--domain", "example.net")
    assert code == 0
    path = f"{paths.etc}/dkim/sel.pem"
    assert os.stat(path).st_mode & 0o777 == 0o600
    settings = tomllib.loads(printed.partition("settings:\n")[2])["dkim"]
    assert settings == {"domains": ["example.org", "example.net"], "selector": "sel", "key_file": path}
    Path(paths.settings).write_text(printed.partition("settings:\n")[2])
    assert load(paths).dkim.domains == ("example.org", "example.net")
    signer = Signer(settings["domains"], "sel", Path(path).read_bytes(), lambda: 1_700_000_000.0)
    message = b"From: a@example.net\nSubject: s\n\ntext\n"
    asked = record_of(printed, "sel._domainkey.example.net")
    assert dkimpy.verify(signer.sign([message]) + message, dnsfunc=lambda name, timeout=0: asked)
    assert record_of(printed, "sel._domainkey.example.org") == asked
    code, again, _ = run(paths, capsys, "record")
    assert code == 0
    assert record_of(again, "sel._domainkey.example.net") == asked


def test_a_key_is_never_replaced(paths: Paths, capsys: Any) -> None:
    assert run(paths, capsys, "genkey", "--selector", "sel", "--type", "ed25519")[0] == 0
    before = Path(f"{paths.etc}/dkim/sel.pem").read_bytes()
    code, printed, words = run(paths, capsys, "genkey", "--selector", "sel", "--type", "ed25519")
    assert (code, printed) == (73, "")
    assert "never replaced" in words
    assert Path(f"{paths.etc}/dkim/sel.pem").read_bytes() == before


def test_names_have_defaults(paths: Paths, capsys: Any) -> None:
    code, printed, _ = run(paths, capsys, "genkey", "--type", "ed25519")
    assert code == 0
    assert re.search(r"^s20\d\d\d\d\._domainkey\.host\.example\. IN TXT ", printed, re.MULTILINE)


@pytest.mark.parametrize("args", [
    ["--domain", "a b"], ["--domain", "x;y"], ["--selector", "a\nb"], ["--selector", "../x"],
    ["--domain", "bücher.example"], ["--bits", "512"], ["--type", "dsa"]])
def test_what_no_key_can_be_made_for(paths: Paths, capsys: Any, args: list[str]) -> None:
    code, printed, words = run(paths, capsys, "genkey", *args)
    assert code == 2
    assert words
    assert printed == ""
    assert not os.path.exists(f"{paths.etc}/dkim")


def test_a_place_that_cannot_be_written(paths: Paths, capsys: Any) -> None:
    code, _, words = run(paths, capsys, "genkey", "--type", "ed25519", "--output", f"{paths.etc}/none/key.pem")
    assert code == 73
    assert "No such file or directory" in words


@pytest.mark.parametrize(("settings", "words"), [
    ("", "nothing is signed"),
    ('[dkim]\ndomains = ["example.org"]\nselector = "sel"\nkey_file = "/nonexistent/key.pem"\n', "No such file"),
    ('[dkim]\ndomains = ["example.org"]\n', "selector"),
])
def test_a_record_needs_a_key(paths: Paths, capsys: Any, settings: str, words: str) -> None:
    Path(paths.settings).write_text(settings)
    try:
        code, printed, found = run(paths, capsys, "record")
    except Exception as problem:  # noqa: BLE001 - settings that are refused as such say so
        code, printed, found = 78, "", str(problem)
    assert (code, printed) == (78, "")
    assert words in found


def test_long_records_are_cut_into_strings() -> None:
    lines = keys.zone_lines("s", "example.org", "x" * 600)
    assert lines[0].startswith('s._domainkey.example.org. IN TXT ( "')
    assert lines[-1].endswith(" )")
    assert all(len(line.strip().strip('()" ').rpartition('"')[2]) <= 255 for line in lines)
    assert keys.zone_lines("s", "example.org", "short") == ['s._domainkey.example.org. IN TXT "short"']
