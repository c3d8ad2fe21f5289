"""sendmail -bP: what the daemon has done since its start, as `pysendmail status`."""

from ..paths import Paths
from . import admin


def main(args: list[str], paths: Paths) -> int:
    """The exit code. args: options of sendmail, none of which changes anything here."""
    del args
    return admin.main(["status"], paths)
