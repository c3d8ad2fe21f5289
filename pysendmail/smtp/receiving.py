"""One message on its way in: the transaction it belongs to, and its content as it comes.

A message that will be refused is still read to its end, since a client that hears its answer in the middle takes the
rest of its own content for a conversation; but nothing of it comes out any more, and there is a bound on that too. RFC
1870, RFC 5321 section 2.3.8.
"""

from dataclasses import dataclass, field

from ..mail.envelope import Recipient
from .grammar import MailParameters
from .profile import Settings
from .reply import Reply, reply
from .wire import DataDecoder, LineEnds

TOO_BIG = reply(552, "5.3.4", "message is over the size limit")
BARE = reply(550, "5.5.2", "message has a bare CR or LF")


@dataclass
class Transaction:
    """Replaced whole whenever it ends, however it ends. sender None = there is none yet, "" = null."""

    sender: str | None = None
    parameters: MailParameters = field(default_factory=MailParameters)
    recipients: list[Recipient] = field(default_factory=list)


class Receiving:
    """The content of one message. refusal: the answer it will get; None = that is for the driver to say."""

    __slots__ = ("_decoder", "_drain", "_is_strict", "refusal")

    def __init__(self, settings: Settings) -> None:
        self._decoder = DataDecoder(settings.limits.message_size)
        self._drain = settings.limits.message_size + settings.limits.drain
        self._is_strict = settings.line_ends is LineEnds.STRICT
        self.refusal: Reply | None = None

    @property
    def size(self) -> int:
        return self._decoder.size

    @property
    def is_complete(self) -> bool:
        return self._decoder.is_complete

    @property
    def is_endless(self) -> bool:
        """Whether it goes on long after it became too big."""
        return self._decoder.size > self._drain

    @property
    def rest(self) -> bytes:
        """What came behind the final dot."""
        return self._decoder.rest

    def feed(self, data: bytes) -> bytes:
        """The message's next bytes, at rest; none once it is refused."""
        found = self._decoder.feed(data)
        if self.refusal is None and self._decoder.is_too_big:
            self.refusal = TOO_BIG
        # Refused, not repaired: between two opinions about what ends a line, a message can be hidden in another.
        elif self.refusal is None and self._decoder.has_bare and self._is_strict:
            self.refusal = BARE
        return b"" if self.refusal else found
