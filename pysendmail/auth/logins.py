"""Who logs in at a listener: the password to whoever knows passwords, the answer to the client, a line to the log.

There may be three who know: Dovecot (auth/dovecot.py), a password file and PAM (both in auth/keeper.py, a process of
its own). One that says yes is enough; only if all of them say no, the password is wrong. Where one cannot tell and
none says yes, the client hears 454, and its mail program keeps the password and tries again. A wrong password is
answered after DELAY, and after too many of them a client is shown out (auth/limits.py), unless it may relay anyhow: a
web mail program on this host speaks for many. What a login may send as stands in [auth] senders.

RFC 4954 sections 4 and 6; the log's words are sendmail's, which fail2ban looks for.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable

from ..config import Config
from ..events import ClientEvents
from ..mail import address
from ..smtp.profile import MECHANISMS
from ..smtp.reply import Reply, reply
from ..smtp.requests import LoginGiven
from . import Client, dovecot, keeper
from .limits import FailedLogins

DELAY = 2.0  # seconds before the answer to a wrong password
KEEPER_TIME = 45.0  # seconds for an answer of the keeper, which has limits of its own
PACKETS_AT_ONCE = 16  # read before others have their turn
EVERYBODY = "*"

_YES = reply(235, "2.7.0", "logged in")
_NO = reply(535, "5.7.8", "name or password is wrong")
_NOT_FOR_OTHERS = reply(535, "5.7.8", "nobody logs in for somebody else here")
_UNKNOWN = reply(454, "4.7.0", "passwords cannot be checked now, try again later")
_BLOCKED = reply(421, "4.7.0", "too many failed logins, come back later")


class Trouble(Exception):
    """Somebody who knows passwords cannot tell. The text says why."""


class Keeper:
    """The listener's end of auth/keeper.py. ended: called when it is gone, with which nobody can log in any more."""

    def __init__(self, channel: socket.socket, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._ended = ended
        self._number = 0
        self._asked: dict[int, asyncio.Future[bool]] = {}
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._readable)

    async def check(self, user: str, password: str) -> bool:
        """Raises Trouble."""
        self._number = (self._number + 1) & 0x7FFFFFFF
        number = self._number
        try:
            packet = keeper.question(number, user, password)
        except ValueError:
            return False  # no such name, no such password
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._asked[number] = answer
        try:
            self._channel.send(packet)
            async with asyncio.timeout(KEEPER_TIME):
                return await answer
        except TimeoutError:
            raise Trouble("no answer in time")
        except OSError as trouble:
            raise Trouble(f"it cannot be asked: {trouble.strerror}")
        finally:
            del self._asked[number]

    def close(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()

    def _readable(self) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = self._channel.recv(keeper.MAX_PACKET)
                number, verdict, words = keeper.read_answer(packet)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                self._lose()
                return
            answer = self._asked.get(number)
            if answer is None or answer.done():
                continue
            if verdict == keeper.TROUBLE:
                answer.set_exception(Trouble(words or "it cannot tell"))
            else:
                answer.set_result(verdict == keeper.YES)

    def _lose(self) -> None:
        self.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Trouble("it has ended"))
        self._ended()


class Logins:
    """The Authenticator of one listener. channel: to its keeper, None = there is none. clock: never goes back."""

    def __init__(self, config: Config, events: ClientEvents, channel: socket.socket | None,
                 clock: Callable[[], float], delay: float = DELAY) -> None:
        self._events = events
        self._channel = channel
        self._delay = delay
        self._failures = FailedLogins(clock)
        self._dovecot = dovecot.Dovecot(config.auth.dovecot) if config.auth.dovecot else None
        self._keeper: Keeper | None = None
        self._senders = dict(config.auth.senders)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return MECHANISMS if self._dovecot is not None or self._channel is not None else ()

    def begin(self) -> None:
        """From now on it shows when the keeper ends, also before there was a login: that one would hear 454."""
        if self._channel is not None:
            self._keeper = Keeper(self._channel, self._keeper_ended)

    async def authenticate(self, login: LoginGiven, client: Client) -> tuple[Reply, str]:
        user = login.user
        if self._failures.is_blocked(client.address) and not client.is_trusted:
            self._events.attacked("NOQUEUE", client.shown, self._failures.count(client.address))
            return _BLOCKED, ""
        if login.identity and login.identity != login.user:
            answer = _NOT_FOR_OTHERS
        elif not login.user or not login.password:
            answer = _NO
        else:
            answer, user = await self._ask(login, client)
        if answer is _YES:
            self._events.logged_in(client.shown, user, login.mechanism)
        elif answer.kind == 5:
            self._failures.failed(client.address)
            self._events.login_failed(client.shown, login.user, login.mechanism)
            await asyncio.sleep(self._delay)
        return answer, user

    async def _ask(self, login: LoginGiven, client: Client) -> tuple[Reply, str]:
        """_YES and the name of the user, _NO or _UNKNOWN."""
        is_known = True
        if self._dovecot is not None:
            try:
                name = await self._dovecot.check(login.user, login.password, client.address)
                if name:
                    return _YES, name
            except dovecot.Trouble as problem:
                is_known = False
                self._events.trouble(f"Dovecot cannot check a password: {problem}")
        if self._keeper is not None:
            try:
                if await self._keeper.check(login.user, login.password):
                    return _YES, login.user
            except Trouble as problem:
                is_known = False
                self._events.trouble(f"a password cannot be checked: {problem}")
        return (_NO if is_known else _UNKNOWN), login.user

    def _keeper_ended(self) -> None:
        """Only root can make another one: this listener ends, and the supervisor starts the two of them anew."""
        self._events.trouble("the process that knows passwords has ended, and this listener with it")
        os.kill(os.getpid(), signal.SIGTERM)

    def may_send(self, user: str, sender: str) -> bool:
        if not self._senders or not sender:
            return True
        allowed = self._senders.get(user) or self._senders.get(EVERYBODY, "")
        return any(_covers(one, sender) for one in allowed.split(" ") if one)

    def close(self) -> None:
        if self._dovecot is not None:
            self._dovecot.close()
        if self._keeper is not None:
            self._keeper.close()
        elif self._channel is not None:
            self._channel.close()


def _covers(allowed: str, sender: str) -> bool:
    """Whether an address or a domain that is allowed is that of a sender."""
    local, domain = address.split_text(sender)
    if "@" not in allowed:
        return domain.lower() == allowed.lower()
    allowed_local, allowed_domain = address.split_text(allowed)
    return local == allowed_local and domain.lower() == allowed_domain.lower()
