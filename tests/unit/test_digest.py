"""Digests are those of hashlib, whatever module they come from."""

import hashlib

import pytest

from pysendmail.mail import digest


def test_they_are_the_digests_of_hashlib() -> None:
    assert digest.sha256(b"some text").hexdigest() == hashlib.sha256(b"some text").hexdigest()
    keyed = {"digest_size": 4, "key": b"secret"}
    assert digest.blake2b(b"x", **keyed).digest() == hashlib.blake2b(b"x", **keyed).digest()  # type: ignore[arg-type]


def test_a_python_without_such_a_module_has_hashlib() -> None:
    assert digest._find("sha256", "_no_such_module", "hashlib") is hashlib.sha256
    with pytest.raises(ImportError):
        digest._find("sha256", "_no_such_module")
