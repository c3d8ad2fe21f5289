"""sendmail -bC: whether the settings are sound, as `pysendmail config check`."""

from ..paths import Paths
from . import admin


def main(args: list[str], paths: Paths) -> int:
    """The exit code: 0 or 78. args: options of sendmail, none of which changes anything here."""
    del args
    return admin.main(["config", "check"], paths)
