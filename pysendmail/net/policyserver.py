"""Policy servers: the client side of Postfix's policy delegation, so that what was written for it serves here too
(postgrey, policyd-spf and others).

A question is a list of name=value lines and an empty line; the answer is "action=..." and an empty line. A connection
is kept for the next question; one that has ended meanwhile is replaced. What a server cannot answer in time, or not
sensibly, is Trouble: whether that stops mail is for the settings to say.

Values come from strangers: a control character in one would be a line of its own, and becomes "?". Postfix
SMTPD_POLICY_README.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import split_endpoint
from ..mail.outcome import is_status, one_line
from ..smtp.reply import Reply, reply

LIMIT = 30.0  # seconds for one answer, connecting included
MAX_ANSWER = 8192  # bytes
MAX_VALUE = 1024  # characters of one attribute
MAX_IDLE = 8  # connections that are kept
UNIX = "unix:"

_PERMIT = frozenset(("OK", "PERMIT", "PERMIT_MYNETWORKS", "PERMIT_SASL_AUTHENTICATED", "PERMIT_AUTH_DESTINATION"))


class Trouble(Exception):
    """There is no answer. The text says why."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a server wants done. refusal: the answer to the client. hold: why the message is to wait for a person.

    field: a header field for the message, "" = none. is_final: no other server need be asked. note: for the log.
    """

    refusal: Reply | None = None
    hold: str = ""
    field: str = ""
    is_final: bool = False
    note: str = ""


class PolicyServer:
    """endpoint: "host:port" or "unix:/path"."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def ask(self, attributes: Mapping[str, str]) -> Action:
        """Raises Trouble."""
        question = b"".join(b"%s=%s\n" % (name.encode("ascii"), _clean(value)) for name, value in attributes.items())
        try:
            async with asyncio.timeout(LIMIT):
                answer = await self._exchange(question + b"\n")
        except TimeoutError:
            raise Trouble(f"policy server {self.endpoint}: no answer within {LIMIT:.0f} seconds")
        except (OSError, EOFError, asyncio.LimitOverrunError) as trouble:
            words = trouble.strerror if isinstance(trouble, OSError) else "connection closed"
            raise Trouble(f"policy server {self.endpoint}: {words or trouble}")
        return read_action(answer)

    async def _exchange(self, question: bytes) -> str:
        while self._idle:
            reader, writer = self._idle.popleft()
            try:
                return await self._once(reader, writer, question)
            except (OSError, EOFError):
                continue  # it was too old
        return await self._once(*await self._connect(), question)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.endpoint.startswith(UNIX):
            return await asyncio.open_unix_connection(self.endpoint.removeprefix(UNIX), limit=MAX_ANSWER)
        host, port = split_endpoint(self.endpoint)
        return await asyncio.open_connection(host, port, limit=MAX_ANSWER)

    async def _once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: bytes) -> str:
        is_good = False
        try:
            writer.write(question)
            answer = (await reader.readuntil(b"\n\n")).decode("utf-8", "replace")
            is_good = True
            return answer
        finally:
            if is_good and len(self._idle) < MAX_IDLE:
                self._idle.append((reader, writer))
            else:
                writer.transport.abort()

    def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


def read_action(answer: str) -> Action:
    """The action in an answer. Raises Trouble for one that we do not have: it may have been meant to stop the mail."""
    action = next((line.partition("=")[2] for line in answer.split("\n") if line.startswith("action=")), "")
    verb, _, text = action.strip(" ").partition(" ")
    verb, text = verb.upper(), one_line(text)
    if verb in ("DUNNO", "DEFER_IF_REJECT"):  # (nobody is asked after policy servers who could reject)
        return Action()
    if verb in _PERMIT:
        return Action(is_final=True)
    if verb in ("WARN", "INFO"):
        return Action(note=text)
    if verb == "PREPEND":
        return Action(field=text)
    if verb == "HOLD":
        return Action(hold=text or "a policy server wants it held")
    if verb == "REJECT":
        return Action(_refusal(554, "5.7.1", text or "Access denied"), is_final=True)
    if verb in ("DEFER", "DEFER_IF_PERMIT"):
        return Action(_refusal(450, "4.7.1", text or "Access denied, try again later"), is_final=True)
    if len(verb) == 3 and verb.isascii() and verb.isdigit() and verb[0] in "45" and int(verb) < 560:
        return Action(_refusal(int(verb), f"{verb[0]}.7.1", text or "Access denied"), is_final=True)
    raise Trouble(f"a policy server asks for {one_line(verb, 40) or 'nothing'}, which does not exist here")


def _refusal(code: int, status: str, text: str) -> Reply:
    """A refusal whose text may begin with a status of its own."""
    first, _, rest = text.partition(" ")
    if is_status(first) and first[0] == str(code)[0]:
        return reply(code, first, rest or "Access denied")
    return reply(code, status, text)


def _clean(value: str) -> bytes:
    text = value[:MAX_VALUE]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    return text.encode("utf-8", "replace")
