"""Talking to the service manager: sd_notify(3), by hand, since it is one datagram."""

import os
import socket


class Notify:
    """READY, STATUS, WATCHDOG, RELOADING, STOPPING for systemd; silent where nobody listens.

    The address is taken from the environment once, at start, and removed from it, so that no child talks in our name.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        os.environ.pop("WATCHDOG_PID", None)
        os.environ.pop("WATCHDOG_USEC", None)
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, *lines: str) -> None:
        """Send NAME=value lines. A manager that does not listen changes nothing."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.settimeout(1.0)
                notify.sendto("\n".join(lines).encode("utf-8"), self._address)
        except OSError:
            pass
