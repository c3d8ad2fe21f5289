"""Settings: one table (table.py), what values may be (kinds.py), loading and checking (loader.py), text for people
(document.py). The rest of the program imports from here, and gets a frozen Config that knows no files."""

from .kinds import is_domain, is_host_name, split_endpoint
from .loader import ConfigError, Loaded, from_plain, load, read, to_plain, with_secrets, without_secrets
from .table import (
    AuthSettings,
    Config,
    DkimSettings,
    LimitSettings,
    Listener,
    LocalSettings,
    MilterSettings,
    QueueSettings,
    RelaySettings,
    SmtpdSettings,
)

__all__ = ["AuthSettings", "Config", "ConfigError", "DkimSettings", "LimitSettings", "Listener", "Loaded",
           "LocalSettings", "MilterSettings", "QueueSettings", "RelaySettings", "SmtpdSettings", "from_plain",
           "is_domain", "is_host_name", "load", "read", "split_endpoint", "to_plain", "with_secrets", "without_secrets"]
