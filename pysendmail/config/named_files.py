"""Whether the files that settings name are there and safe: what `pysendmail config check` looks at besides.

The daemon meets the same troubles when it reads them; here they are found before it is started or reloaded. Files that
the caller may not read are passed over: only root can judge them.
"""

import os

from . import files
from .table import Config

OPEN, KEY, SECRET = "open", "key", "secret"  # who may read it: anybody; a group for keys, such as ssl-cert; the owner


def check(config: Config) -> list[str]:
    """The problems, one line each; [] if all is well."""
    named = [
        ("[relay] password_file", config.relay.password_file, SECRET),
        ("[relay] ca_file", config.relay.ca_file, OPEN),
        ("[smtpd] tls_cert", config.smtpd.tls_cert, OPEN),
        ("[smtpd] tls_key", config.smtpd.tls_key, KEY),
        ("[auth] password_file", config.auth.password_file, KEY),
        ("[dkim] key_file", config.dkim.key_file, KEY),
        *(("[local] aliases", path, OPEN) for path in config.local.aliases),
    ]
    return [f"{path}: {place}: {problem}" for place, path, kind in named if path and (problem := _problem(path, kind))]


def _problem(path: str, kind: str) -> str:
    try:
        if kind == SECRET:
            files.read_secret(path)
            return ""
        seen = files.look_at(path)
    except PermissionError:
        return ""
    except OSError as trouble:
        return os.strerror(trouble.errno or 0)
    except files.Untrusted as problem:
        return str(problem)
    return "can be read by everybody" if kind == KEY and seen.st_mode & 0o004 else ""
