"""One destination in a relay process: the shipments that wait for it, and the connections that carry them.

Each connection has a carrier, a task that takes the next shipment, sends it, and waits for another one for a moment
before it takes its leave. There are as many carriers as shipments can use, up to the width that the runner allows.

    next shipment -> a session (the one at hand, or a new one at the best place) -> one transaction
        recipients with a last word         -> answered
        "too many recipients"               -> another transaction there
        "later", a broken conversation      -> the next place, MAX_TALKS in all; then that is their outcome
        a kept connection had been closed   -> a new one, as if nothing had happened
        no place lets us in                 -> that is everybody's outcome, and the destination is down; but if it has
                                               let others in who are still there, they carry this shipment too

Where a place did not answer lately, others are tried before it. What a host means by its replies is decided in
smtp/trouble.py alone. RFC 5321 section 5.1 and 4.5.4.1.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from ..auth.signing import Sign
from ..deliver import remote
from ..deliver.content import Content, Rewrite
from ..deliver.parcel import Unreadable
from ..deliver.remote import Letter, NotOpened, Session, Terms
from ..deliver.shipment import DOWN, FINE, LOGIN, MAX_WIDTH, ROUGH, Answer, Shipment
from ..mail.outcome import Outcome, deferred
from ..net.hosts import LMTP, Found, Place
from ..smtp.client import Finished
from ..smtp.opening import Tls
from ..smtp.trouble import Result, Scope

MAX_CONNECTS = 5  # places at which one shipment tries to get a connection
MAX_TALKS = 2  # places that one shipment is offered to
MAX_ROUNDS = 110  # transactions of one shipment: each but the first few carries at least one recipient
MAX_MESSAGES = 100  # in one connection
BUSY_AFTER = 5  # messages in a connection that show that there is a stream of them, so that it is worth keeping
IDLE = 1.0  # seconds that such a connection is kept for the next shipment
OPENING = 900.0  # seconds after which no further place is tried
HAND_BACK = 10.0  # seconds that a shipment waits for a connection before the runner gets it back

BUSY = deferred("4.4.5", "all connections to this destination are busy")


@dataclass(frozen=True, slots=True)
class Means:
    """What all destinations share. find: where mail goes. terms: how to talk at a place; a Result = not at all.

    opened, failed: hear of each attempt to connect; failed also how many seconds it took. avoided: whether a place had
    better come last. sender, rewrite: masquerading. sign: makes our signature. idle: as IDLE.
    """

    find: Callable[[str, Sequence[str]], Awaitable[Found]]
    terms: Callable[[Place], Awaitable[Terms | Result]]
    opened: Callable[[Session], None]
    failed: Callable[[Place, NotOpened, float], None]
    avoided: Callable[[Place], bool]
    answer: Callable[[Answer], None]
    sender: Callable[[str], str]
    rewrite: Rewrite | None
    sign: Sign | None = None
    idle: float = IDLE


@dataclass(slots=True)
class Job:
    """A shipment on its way. since: when it came, loop time. open: indexes of recipients for the next transaction.

    elsewhere: indexes of those who are to be tried at another place. outcomes: the last word so far. session: opened
    for it.
    """

    shipment: Shipment
    fd: int
    since: float
    open: list[int] = field(default_factory=list)
    elsewhere: list[int] = field(default_factory=list)
    outcomes: list[Outcome | None] = field(default_factory=list)
    state: str = FINE
    dsn_is_passed: bool = True
    relay: str = ""
    session: Session | None = None

    def __post_init__(self) -> None:
        self.open = list(range(len(self.shipment.recipients)))
        self.outcomes = [None] * len(self.open)

    def take(self, finished: Finished, place: Place) -> None:
        """What a transaction has brought for the recipients that were open."""
        self.relay = str(place)
        again: list[int] = []
        self.state = FINE
        for index, result in zip(self.open, finished.results, strict=True):
            self.outcomes[index] = result.outcome
            if result.scope is Scope.TRANSACTION:
                again.append(index)
            elif result.may_try_elsewhere:
                self.elsewhere.append(index)
            if result.scope is Scope.HOST:
                self.state = ROUGH
            if result.outcome.is_delivered and not finished.dsn_is_passed:
                self.dsn_is_passed = False
        self.open = again

    def refuse(self, outcome: Outcome, state: str) -> None:
        """No place lets us in. Whoever has been answered by one keeps that."""
        if all(found is None for found in self.outcomes):
            self.state = state
        self.outcomes = [found or outcome for found in self.outcomes]
        self.open, self.elsewhere = [], []

    def answer(self) -> Answer:
        outcomes = tuple(found or deferred("4.3.0", "delivery ended without an outcome") for found in self.outcomes)
        return Answer(self.shipment.n, outcomes, self.relay, self.state, self.dsn_is_passed)


@dataclass(frozen=True, slots=True)
class Refused:
    """No place lets us in."""

    outcome: Outcome
    state: str


class Destination:
    """first: any shipment for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, first: Shipment, means: Means) -> None:
        self._loop = loop
        self._domain, self._hosts = first.domain, first.hosts
        self._is_lmtp = bool(first.hosts) and all(host.startswith(LMTP) for host in first.hosts)
        self._means = means
        self._waiting: deque[Job] = deque()
        self._idle: list[asyncio.Future[bool]] = []  # of carriers that wait for a shipment
        self._carriers: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()  # that may still be open
        self._opening = 0  # carriers that are about to have one
        self._width = 1
        self._ceiling = MAX_WIDTH  # connections that it takes from us

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left of it."""
        return not self._carriers and not self._waiting

    def add(self, shipment: Shipment, fd: int) -> None:
        """Take a shipment and the descriptor of its message; both are ours now. It is answered once, later."""
        self._width = min(shipment.width, self._ceiling)
        self._waiting.append(Job(shipment, fd, self._loop.time()))
        self._call()

    def _start(self) -> None:
        carrier = self._loop.create_task(self._carry())
        self._carriers.add(carrier)
        carrier.add_done_callback(self._ended)

    def _ended(self, carrier: "asyncio.Task[None]") -> None:
        self._carriers.discard(carrier)
        if self._waiting and len(self._carriers) < self._width and not carrier.cancelled():
            self._start()

    def hand_back(self) -> None:
        """Give back what has waited too long: the connections there are will not come to it soon."""
        now = self._loop.time()
        while self._waiting and now - self._waiting[0].since > HAND_BACK:
            job = self._waiting.popleft()
            self._finish(job, Answer(job.shipment.n, (BUSY,) * len(job.shipment.recipients), is_tried=False))

    def close(self) -> None:
        """End all of it now."""
        for carrier in self._carriers:
            carrier.cancel()
        for job in self._waiting:
            os.close(job.fd)
        self._waiting.clear()

    def _finish(self, job: Job, answer: Answer) -> None:
        os.close(job.fd)
        self._means.answer(answer)

    # ---- one connection

    async def _carry(self) -> None:
        session: Session | None = None
        try:
            while len(self._carriers) <= self._width:
                if self._waiting:
                    session = await self._attend(self._waiting.popleft(), session)
                    if session is not None and session.messages >= MAX_MESSAGES:
                        session.leave()
                        session = None
                elif session is None or not _is_worth_keeping(session) or not await self._has_more():
                    return
        finally:
            if session is not None:
                session.leave()

    async def _has_more(self) -> bool:
        """Wait a moment for the next shipment."""
        called: asyncio.Future[bool] = self._loop.create_future()
        self._idle.append(called)
        timer = self._loop.call_later(self._means.idle, self._dismiss, called)
        try:
            return await called
        finally:
            timer.cancel()
            if called in self._idle:
                self._idle.remove(called)

    def _dismiss(self, called: "asyncio.Future[bool]") -> None:
        self._idle.remove(called)
        called.set_result(False)

    async def _attend(self, job: Job, session: Session | None) -> Session | None:
        """Deliver one shipment, answer for it, and say which session to go on with."""
        try:
            session = await self._deliver(job, session)
            if job.state == DOWN and self._leave_to_others(job):
                return session
            answer = job.answer()
        except asyncio.CancelledError:
            os.close(job.fd)
            raise
        except Exception as problem:  # noqa: BLE001 - a fault of ours must not take other shipments along: say what it is
            for one in (session, job.session):
                if one is not None:
                    one.abort()
            session = None
            job.refuse(deferred("4.3.0", f"internal error: {type(problem).__name__}"), FINE)
            answer = replace(job.answer(), notes=(f"relay: {type(problem).__name__}: {problem} ({_where(problem)})",))
        self._finish(job, answer)
        if job.state in (DOWN, LOGIN):
            self._give_up(answer)
        return session

    def _leave_to_others(self, job: Job) -> bool:
        """Whether there are other connections: then it is only one more that the destination does not want."""
        self._sessions = {session for session in self._sessions if not session.is_over}
        others = len(self._sessions) + self._opening
        if not others:
            return False
        self._ceiling = self._width = others
        self._waiting.appendleft(Job(job.shipment, job.fd, self._loop.time()))
        self._call()
        return True

    def _give_up(self, answer: Answer) -> None:
        """Nobody lets us in: that holds for what waits, too."""
        while self._waiting:
            job = self._waiting.popleft()
            outcomes = answer.outcomes[:1] * len(job.shipment.recipients)
            self._finish(job, Answer(job.shipment.n, outcomes, "", answer.state, is_tried=False))

    def _call(self) -> None:
        """Wake a carrier for what waits."""
        if self._idle:
            self._idle.pop().set_result(True)
        elif len(self._carriers) < self._width:
            self._start()

    async def _deliver(self, job: Job, session: Session | None) -> Session | None:
        shipment = job.shipment
        try:
            rewrite = None if self._is_lmtp else self._means.rewrite
            content = Content(job.fd, shipment.offset, shipment.length, rewrite, shipment.head)
            survey = await remote.survey_of(content)
        except Unreadable as trouble:
            job.refuse(deferred("4.3.0", str(trouble)), FINE)
            return session
        sender = shipment.sender if self._is_lmtp else self._means.sender(shipment.sender)
        sign = self._means.sign if shipment.is_own and not self._is_lmtp else None
        letter = Letter(content, survey, sender, shipment.recipients, shipment.smtputf8, shipment.ret, shipment.envid,
                        sign)
        return await self._offer(job, letter, session)

    async def _offer(self, job: Job, letter: Letter, session: Session | None) -> Session | None:
        """Offer a message to one place after the other until every recipient has a last word."""
        recipients = job.shipment.recipients
        left_out: set[Place] = set()
        kept: Session | None = None  # the one to go on with, while its recipients are tried elsewhere
        for _ in range(MAX_ROUNDS):
            if session is None or not session.is_ready:
                opened = await self._open(left_out)
                if isinstance(opened, Refused):
                    job.refuse(opened.outcome, opened.state)
                    return kept
                session = job.session = opened
            letter.recipients = [recipients[index] for index in job.open]
            finished = await session.carry(letter)
            if finished.is_stale:
                continue
            job.take(finished, session.place)
            if job.open and session.is_ready:
                continue
            job.elsewhere, job.open = [], [*job.elsewhere, *job.open]
            if not job.open:
                break
            left_out.add(session.place)
            if len(left_out) >= MAX_TALKS:
                break
            if kept is None and session.is_ready:
                kept, session = session, None
            elif session.is_ready:
                session.leave()
        if kept is not None and session is not None:
            session.leave()
        return kept or session

    # ---- finding a place

    async def _open(self, left_out: set[Place]) -> Session | Refused:
        """A session at the best place that lets us in, `left_out` excepted."""
        self._opening += 1
        try:
            opened = await self._search(left_out)
        finally:
            self._opening -= 1
        if isinstance(opened, Session):
            self._sessions.add(opened)
        return opened

    async def _search(self, left_out: set[Place]) -> Session | Refused:
        means, began = self._means, self._loop.time()
        found = await means.find(self._domain, self._hosts)
        if isinstance(found, Outcome):
            return Refused(found, DOWN if found.is_deferred else FINE)
        places = [place for place in sorted(found, key=means.avoided) if place not in left_out][:MAX_CONNECTS]
        refused: Refused | None = None
        for place in places:
            if refused is not None and self._loop.time() - began > OPENING:
                break
            result = await self._open_at(place)
            if isinstance(result, Session):
                return result
            if result.scope is Scope.LOGIN:
                return Refused(result.outcome, LOGIN)
            # A host that is better than the others may just be down: what they say for good is not the last word then.
            if refused is None or refused.outcome.is_failed or result.outcome.is_deferred:
                refused = Refused(result.outcome, DOWN if result.outcome.is_deferred else FINE)
        return refused or Refused(deferred("4.4.1", "no other host is left to be tried"), FINE)

    async def _open_at(self, place: Place) -> Session | Result:
        """A session at one place; where TLS was only offered and does not work, without it (RFC 7435), unless there
        is a login: it would not be sent in the clear, and its absence would hide what is wrong."""
        terms = await self._means.terms(place)
        if isinstance(terms, Result):
            return terms
        began = self._loop.time()
        opened = await remote.open_session(place, terms)
        if isinstance(opened, Session):
            self._means.opened(opened)
            return opened
        self._means.failed(place, opened, self._loop.time() - began)
        options = terms.options
        if opened.has_broken_tls and options.tls is Tls.MAY and not place.is_encrypted and not options.credentials:
            return await self._open_at(place)  # failed() has seen to it that the terms are others now
        return opened.result


def _is_worth_keeping(session: Session) -> bool:
    return session.is_ready and session.messages >= BUSY_AFTER


def _where(problem: BaseException) -> str:
    """The innermost line of ours in a traceback."""
    trace, found = problem.__traceback__, ""
    while trace is not None:
        found = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
