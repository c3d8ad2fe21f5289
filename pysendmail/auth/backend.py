"""What knows names and passwords, as a listener sees it: one question, one of three answers.

Whoever implements it keeps to this: nothing of a password in a log, an exception or a repr; the same time for a name
that is unknown and for a password that is wrong; nothing that blocks the loop. Trouble is never NO: a client whose
mail program asks for another password because a server was restarting has been told a lie.
"""

from enum import Enum
from typing import Protocol


class Verdict(Enum):
    """YES, NO (name or password is wrong), TROUBLE (not known)."""

    YES = "yes"
    NO = "no"
    TROUBLE = "trouble"


class Backend(Protocol):
    """Dovecot's socket, a password file, PAM ..."""

    async def authenticate(self, mechanism: str, name: str, password: str, address: str) -> Verdict:
        """mechanism: "PLAIN" or "LOGIN", for the record. address: of the client, "" = not known. Raises nothing.

        A question may be cancelled.
        """
