"""How much a client may get wrong before it is held back, and before it is shown out. One Patience is one session.

Each method counts one thing and says whether that was one too many. Whoever guesses addresses or passwords, fuzzes, or
keeps a session without use for it, runs out of it; the limits are those of profile.Limits, and count from the last
message that was taken, so that a relay may keep its session for long.
"""

from .profile import Limits

ERROR_DELAY = 1.0  # seconds that each reply is held back after limits.soft_errors


class Patience:
    __slots__ = ("_errors", "_failed_logins", "_junk", "_limits", "_messages", "_unknown")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._errors = self._unknown = self._junk = self._failed_logins = self._messages = 0

    @property
    def delay(self) -> float:
        """Seconds to hold each reply back."""
        return ERROR_DELAY if self._errors >= self._limits.soft_errors else 0.0

    @property
    def has_room(self) -> bool:
        """Whether another message may begin."""
        return self._messages < self._limits.messages

    def error(self) -> bool:
        """A reply of 4xx or 5xx."""
        self._errors += 1
        return self._errors >= self._limits.hard_errors

    def unknown(self) -> bool:
        """A command that we do not have. An error besides."""
        self._unknown += 1
        return self._unknown > self._limits.unknown_commands

    def junk(self) -> bool:
        """A command that leads nowhere."""
        self._junk += 1
        return self._junk > self._limits.junk_commands

    def failed_login(self) -> bool:
        """An error besides."""
        self._failed_logins += 1
        return self._failed_logins >= self._limits.failed_logins

    def message(self, *, is_taken: bool) -> None:
        """The end of a message. One that was taken shows that the session is of use, and errors count anew."""
        self._messages += 1
        if is_taken:
            self._errors = self._junk = 0
