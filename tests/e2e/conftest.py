"""Which Debian, which package: `./dev e2e SUITE` says so in PYSENDMAIL_E2E_SUITE; bookworm otherwise."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .debian import BUILD_TIME, Debian, copy_source

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "/var/tmp/pysendmail.deb"  # where it lies in the Debian


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them install a Debian; building its base the first time takes minutes."""
    for item in items:
        item.add_marker(pytest.mark.root)
        if not item.get_closest_marker("limit"):
            item.add_marker(pytest.mark.limit(2 * BUILD_TIME))


@pytest.fixture(scope="session")
def suite() -> str:
    return os.environ.get("PYSENDMAIL_E2E_SUITE", "bookworm")


@pytest.fixture(scope="session")
def package(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built by `./dev deb` in a Debian of that suite which has never seen the project."""
    debian = Debian.copy_of(suite)
    try:
        copy_source(ROOT, debian.path("/root/pysendmail"))
        debian.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        debian.chroot("/root/pysendmail/dev", "deb", timeout=BUILD_TIME)
        built = sorted(debian.path("/root/pysendmail/dist").glob("*.deb"))
        assert len(built) == 1
        return Path(shutil.copy(built[0], tmp_path_factory.mktemp("package")))
    finally:
        debian.remove()


@pytest.fixture(scope="module")
def debian(suite: str, package: Path) -> Iterator[Debian]:
    """A Debian with the package's file in it, not yet installed."""
    found = Debian.copy_of(suite)
    try:
        shutil.copy(package, found.path(PACKAGE))
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="session")
def contents(package: Path) -> list[str]:
    """The lines of the package's table of contents: mode, owner, size, date, time, path."""
    listed = subprocess.run(["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.split("\n") if line]
