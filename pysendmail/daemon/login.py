"""What the relay logs in with: a password, or a token that a command prints.

The command is root's own ([relay] token_command), run by /bin/sh as the relay's user, with nothing on its standard
input and a time limit. Its first line is the token, which is used for TOKEN_KEPT seconds; a token that was refused is
never used again. RFC 6749 (OAuth 2), RFC 7628.
"""

import asyncio
import os
import signal
from collections.abc import Callable

from ..config import RelaySettings
from ..smtp.sasl import Credentials

LIMIT = 30.0  # seconds for the command
MAX_OUTPUT = 64 * 1024  # bytes that it may print
MAX_TOKEN = 8192  # characters; an AUTH line takes no more (RFC 4954 section 4)
TOKEN_KEPT = 300.0  # seconds; tokens live for an hour or so, and the command knows for how long
SHELL = "/bin/sh"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NoToken(Exception):
    """The command gave none. The text says why."""


class Login:
    """The login of one relay process. clock: seconds that never go back."""

    def __init__(self, settings: RelaySettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._token = ""
        self._until = 0.0
        self._lock = asyncio.Lock()

    @property
    def is_wanted(self) -> bool:
        return bool(self._settings.username)

    def forget(self) -> None:
        """The token was refused, or may have been replaced."""
        self._token = ""

    async def credentials(self) -> Credentials:
        """Raises NoToken."""
        settings = self._settings
        if not settings.token_command:
            return Credentials(settings.username, settings.password)
        async with self._lock:  # one command at a time, whose token all connections use
            if not self._token or self._clock() >= self._until:
                self._token = await self._run(settings.token_command)
                self._until = self._clock() + TOKEN_KEPT
            return Credentials(settings.username, token=self._token)

    async def _run(self, command: str) -> str:
        loop = asyncio.get_running_loop()
        read, write = os.pipe()
        reader = asyncio.StreamReader()
        file = open(read, "rb", 0)  # noqa: SIM115 - the pipe closes it
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        try:
            child = await asyncio.create_subprocess_exec(
                SHELL, "-c", command, stdin=asyncio.subprocess.DEVNULL, stdout=write,
                stderr=asyncio.subprocess.DEVNULL, env={"PATH": PATH, "LANG": "C.UTF-8"}, cwd="/",
                start_new_session=True)
        except OSError as trouble:
            pipe.close()
            raise NoToken(f"cannot start the token command: {trouble.strerror}")
        finally:
            os.close(write)
        try:
            async with asyncio.timeout(LIMIT):
                output = await _first_line(reader)
                code = await child.wait()
        except TimeoutError:
            raise NoToken(f"the token command did not end within {LIMIT:g} seconds")
        finally:
            pipe.close()
            if child.returncode is None:
                _end(child.pid)
                await child.wait()
        if code != 0:
            raise NoToken(f"the token command failed (exit code {code})")
        return _token_of(output)


async def _first_line(reader: asyncio.StreamReader) -> bytes:
    """What it prints, up to the end of the first line, or to a limit beyond which it cannot be a token.

    Nothing waits for the end of the pipe, which what the command leaves behind may keep open for ever.
    """
    output = b""
    while b"\n" not in output and len(output) <= MAX_OUTPUT and (data := await reader.read(MAX_OUTPUT)):
        output += data
    return output


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _token_of(output: bytes) -> str:
    """The first line. What went wrong is said without repeating any of it: it is a secret, or part of one."""
    line = output.split(b"\n", 1)[0].strip(b" \t\r").decode("ascii", "replace")
    if not line or len(line) > MAX_TOKEN or not line.isprintable() or " " in line or not line.isascii():
        raise NoToken("the token command printed no token")
    return line
