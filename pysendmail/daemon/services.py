"""What the spawner can start besides agents: relays, and scanners. Each is a child that becomes a user of its own.

What a child needs and its user may not read, passwords and the key for DKIM, it reads while it is root still, anew each
time: what was corrected works at once. Modules with asyncio, ssl and dns are loaded in the children alone.
"""

import socket
import time
from collections.abc import Callable

from .. import config
from ..config import Config
from ..deliver import landlock
from ..deliver.spawner import Service
from ..events import ERROR, Log
from ..paths import Paths
from ..users import User

Serve = Callable[[socket.socket], None]


def of(paths: Paths, settings: Config, log: Log, relay_user: User | None, scan_user: User | None) -> dict[str, Service]:
    """By the name under which the runner asks for them. settings: without secrets."""
    def relay() -> Serve:
        from ..auth import signing
        from . import relay

        found = config.with_secrets(config.load(paths))
        sign = signing.sign_for(found.dkim, time.time, lambda why: log(ERROR, f"SYSERR(root): {why}"))

        def serve(channel: socket.socket) -> None:
            if not found.relay.token_command:  # which may keep its tokens wherever it likes
                landlock.confine()
            relay.serve(channel, found, sign=sign)
        return serve

    def scanner() -> Serve:
        from . import scanner

        def serve(channel: socket.socket) -> None:
            landlock.confine(paths.smtp_tmp)
            scanner.serve(channel, settings, paths)
        return serve

    return {"relay": Service(relay_user, relay), "scan": Service(scan_user, scanner)}
