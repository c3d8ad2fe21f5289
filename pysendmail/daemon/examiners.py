"""Who looks at mail, put together from the settings: filters for all mail, and findings about strangers' mail.

A listener gets both. A scanner gets the filters alone: what it is shown comes from this host, or has been
authenticated when it came.
"""

import random
import time
from collections.abc import Callable

from ..auth.examination import MailExaminer
from ..config import Config
from ..net.milter import Limits
from ..net.milter_chain import Terms
from ..paths import Paths
from ..route.router import Router

Note = Callable[[str, str], None]  # (queue id, a line for the log)


def terms_of(config: Config, paths: Paths) -> Terms | None:
    """How [milter] wants filters to be treated; None without any."""
    milter = config.milter
    if not milter.sockets:
        return None
    # Large new bodies are kept in smtp/tmp, where _pysmtpd may write; their files have no names there.
    limits = Limits(float(milter.timeout), config.limits.message_size, paths.smtp_tmp)
    return Terms(milter.sockets, milter.on_failure, limits)


def for_scanner(config: Config, paths: Paths, note: Note) -> MailExaminer:
    return MailExaminer(config.hostname or "localhost", note, Router(config).qualify, terms_of(config, paths))


def for_listener(config: Config, paths: Paths, note: Note, *, is_public: bool) -> MailExaminer | None:
    """None: mail need not be looked at. is_public: strangers can reach it."""
    terms, found = terms_of(config, paths), None
    hostname = config.hostname or "localhost"
    if is_public and config.auth.results:
        from ..auth.checks import Checks, are_available  # 10 MB that a host without strangers can do without
        from ..net.resolver import Resolver

        if are_available():
            resolver = Resolver(time.monotonic)
            found = Checks(resolver, hostname, dmarc_reject=config.auth.dmarc_reject, chance=random.random)
    if terms is None and found is None:
        return None
    return MailExaminer(hostname, note, Router(config).qualify, terms, found)
