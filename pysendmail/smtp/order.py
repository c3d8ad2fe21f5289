"""The order of commands of a session, as data: which command is known, where it may come, and where it leads.

TABLE is all there is to it. A command that is not in it for the present state is out of order (503); one that is moves
the session after a positive reply, and only then. RFC 5321 sections 3.1 and 4.1.4, RFC 3207 section 4.2, RFC 2033.
"""

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """What has been said so far; the words complete "out of order: "."""

    CONNECTED = "no greeting yet"
    GREETED = "no EHLO yet"
    READY = "no sender yet"
    SENDER = "a sender, and no valid recipient yet"
    RECIPIENTS = "a message has begun"
    CONTENT = "content is under way"
    HANDSHAKE = "TLS is about to begin"
    CLOSED = "the session is over"


TALKING = (State.GREETED, State.READY, State.SENDER, State.RECIPIENTS)  # where a line is a command

# (state, command) -> state after a positive reply. HELLO is EHLO, HELO or LHLO; END is the final dot of the content.
TABLE: Mapping[tuple[State, str], State] = {
    **{(state, command): state for state in TALKING for command in ("NOOP", "HELP", "VRFY", "EXPN")},
    **{(state, "QUIT"): State.CLOSED for state in TALKING},
    **{(state, "HELLO"): State.READY for state in TALKING},
    **{(state, "RSET"): State.READY for state in TALKING},
    (State.GREETED, "RSET"): State.GREETED,
    (State.GREETED, "XCLIENT"): State.GREETED,
    (State.READY, "XCLIENT"): State.GREETED,
    (State.READY, "STARTTLS"): State.HANDSHAKE,
    (State.READY, "AUTH"): State.READY,
    (State.READY, "MAIL"): State.SENDER,
    (State.SENDER, "RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, "RCPT"): State.RECIPIENTS,
    (State.RECIPIENTS, "DATA"): State.CONTENT,
    (State.CONTENT, "END"): State.READY,
}

HELLOS = ("EHLO", "HELO", "LHLO")

# Known to us, but not offered.
NOT_OFFERED = frozenset(("ETRN", "TURN", "ATRN", "SEND", "SOML", "SAML", "VERB", "ONEX", "XFORWARD", "BURL"))

# Of other protocols: a browser that was sent here (ALPACA), HTTP/2, and BDAT, which was never offered and whose content
# would be read as commands. The session ends.
FOREIGN = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PRI", "BDAT"))
