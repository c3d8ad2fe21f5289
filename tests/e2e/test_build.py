"""What is in the package that was built, in the suite that it was built in."""

import subprocess
from pathlib import Path

PROGRAMS = ("usr/sbin/sendmail", "usr/bin/mailq", "usr/bin/newaliases", "usr/sbin/pysendmail", "usr/sbin/pysendmaild")


def unpacked(package: Path, place: str) -> bytes:
    listed = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    return subprocess.run(["tar", "-xO", f"./{place}"], input=listed, capture_output=True, check=True).stdout


def test_shebangs_are_as_in_the_source(package: Path) -> None:
    """Trixie's dh_python3 drops -IS if it may; the caller's PYTHONPATH would then choose the code."""
    root = Path(__file__).resolve().parents[2]
    for place in PROGRAMS:
        source = (root / "bin" / Path(place).name).read_bytes()
        assert unpacked(package, place).split(b"\n")[0] == source.split(b"\n")[0], place
    assert unpacked(package, "usr/sbin/sendmail").startswith(b"#!/usr/bin/python3 -IS\n")


def test_nothing_has_a_set_id_bit_and_everything_is_roots(contents: list[str]) -> None:
    for line in contents:
        mode, owner = line.split()[:2]
        assert "s" not in mode.lower().replace("srw", ""), line
        assert owner == "root/root", line


def test_only_system_directories_are_used(contents: list[str]) -> None:
    """Policy 9.1.2; and no compiled Python, which would make builds differ."""
    paths = [line.split()[5].removeprefix(".") for line in contents]
    assert [path for path in paths if path.startswith(("/usr/local/", "/opt/", "/home/", "/root/", "/var/mail/"))] == []
    assert [path for path in paths if path.endswith((".pyc", ".egg-info", "/__pycache__/"))] == []
    assert "/usr/lib/sendmail" in paths
