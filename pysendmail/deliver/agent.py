"""The process that delivers as the recipient: mailbox, .forward, files and commands of one user.

It is a fork of the spawner that has become the user before its first instruction here, and it lives for a burst of
messages. Requests and replies are those of request.py. Deliveries that wait for the same mailbox are written together:
one lock, one fsync, one reply each; the reply comes after the fsync.

root's own agent can only append to root's mailbox: no .forward, no file, no command. The effective group is the mailbox
group only while mbox.py works on the mailbox directory; files and commands of a .forward never see it.
"""

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..mail import headers, trace
from ..mail.outcome import Outcome, deferred, failed
from ..mail.target import CHANGED, MAILBOX, Target
from ..route import values
from ..route.aliases import Aliases, Broken
from ..users import User
from . import command, forward, identity, maildir, mbox
from .packet import MAX_PACKET
from .parcel import Parcel
from .request import REFUSED, Reply, Request

BATCH = 100  # requests written together
BATCH_BYTES = 16 * 1024 * 1024  # bytes of messages written together
LOCK_WAIT = 30.0  # seconds to wait for a mailbox that somebody else has locked
HEARD_WITHIN = 60.0  # seconds for a refusal to be heard
ORPHANED_AFTER = 3600.0  # seconds without a request: the runner ends idle agents long before


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent needs of the configuration; it inherits this by fork, so that nobody can send it a path.

    kind: "mbox", "maildir", or "lmtp:" and the address of a store. mailbox_group: what /var/mail belongs to, None =
    no such group (not root). command: what takes all mail instead, "" = nothing. command_user: who runs what aliases
    name. command_output: characters of it that are told. forward_size, forward_entries: limits of a .forward.
    own_domains: of alias keys user@domain. syncs_name: whether mail_dir is to be synced when a mailbox is made there.
    """

    kind: str
    mail_dir: str
    mailbox_group: int | None
    hostname: str
    use_forward: bool
    require_shell: bool
    mailbox_size: int
    command: str
    command_user: str
    command_time: float
    command_output: int
    forward_size: int
    forward_entries: int
    aliases: tuple[str, ...]
    own_domains: frozenset[str]
    lock_wait: float = LOCK_WAIT
    syncs_name: bool = True


@dataclass(slots=True)
class Job:
    """A request with the descriptor that came with it."""

    request: Request
    fd: int


def serve(channel: socket.socket, user: User, settings: Settings) -> None:
    """Deliver until the runner closes the channel. Whatever goes wrong with one request is that request's outcome."""
    identity.take_errors_for_signals()
    agent = Agent(user, settings)
    channel.setblocking(False)
    while True:
        batch, is_open = _receive(channel)
        for reply in agent.deliver(batch):
            _send(channel, packet_of(reply))
        for job in batch:
            os.close(job.fd)
        if not is_open:
            return


def refuse(channel: socket.socket, outcome: Outcome) -> None:
    """Tell the runner that nobody can be delivered to here, and wait until it has heard that: a socket that is closed
    with requests in it takes back what it has said."""
    channel.settimeout(HEARD_WITHIN)
    channel.send(Reply(REFUSED, outcome).to_packet())
    while channel.recv(MAX_PACKET):
        pass


def _receive(channel: socket.socket) -> tuple[list[Job], bool]:
    """Wait for one request, then take what else is there: (jobs, whether the channel is still open).

    What a runner has asked for that is gone is not done: the next one asks for it again, and it would be done twice.
    """
    jobs: list[Job] = []
    size = 0
    while len(jobs) < BATCH and size < BATCH_BYTES:
        if not jobs and not _is_ready(channel, select.POLLIN):
            return [], False
        try:
            packet, fds, _, _ = socket.recv_fds(channel, MAX_PACKET, 1)
        except BlockingIOError:
            break
        if not packet:
            return [], False
        request = Request.from_packet(packet)  # a runner that sends nonsense ends this agent, and no other
        jobs.append(Job(request, fds[0]))
        size += request.length - request.offset
    return jobs, True


def packet_of(reply: Reply) -> bytes:
    """The reply as the runner reads it: one that is too large for it is put off, with the reason."""
    packet = reply.to_packet()
    if len(packet) <= MAX_PACKET:
        return packet
    refusal = deferred("4.2.4", f".forward leads to more addresses than fit into {MAX_PACKET} bytes")
    return Reply(reply.n, refusal).to_packet()


def _send(channel: socket.socket, packet: bytes) -> None:
    """Send a reply, waiting for a runner that is behind. Raises OSError when it is gone."""
    while True:
        try:
            channel.send(packet)
            return
        except BlockingIOError:
            if not _is_ready(channel, select.POLLOUT):
                raise


def _is_ready(channel: socket.socket, event: int) -> bool:
    """Wait, at most ORPHANED_AFTER, until the channel can be read or written; False too if nobody is there any more."""
    poll = select.poll()
    poll.register(channel, event)
    found = poll.poll(ORPHANED_AFTER * 1000)
    return bool(found) and not found[0][1] & select.POLLHUP


class Agent:
    """Deliveries of one user, whose identity this process has."""

    def __init__(self, user: User, settings: Settings) -> None:
        self._user = user
        self._settings = settings
        self._aliases: Aliases | None = None

    def deliver(self, batch: list[Job]) -> Iterator[Reply]:
        """A reply for each job: mailbox deliveries first and together, then the others one by one."""
        mailbox: list[Job] = []
        others: list[Job] = []
        forwards: dict[str, forward.Forward] = {}
        for job in batch:
            target = job.request.target
            if comes_again(job):
                yield Reply(job.request.n, failed("5.4.6", f"mail for {target.address} has been here: it loops"))
                continue
            if target.kind != MAILBOX:
                others.append(job)
                continue
            found = self._forward(target, forwards)
            if found.verdict == forward.TARGETS:
                yield Reply(job.request.n, None, tuple(forward.targets(found, target)), found.notes)
            elif found.verdict == forward.DEFERRED:
                yield Reply(job.request.n, found.outcome, (), found.notes)
            elif self._settings.kind.startswith("lmtp:"):  # the runner sends it to the store, there being no .forward
                yield Reply(job.request.n, None, (replace(target, use_forward=False),), found.notes)
            else:
                if found.notes:
                    yield Reply(job.request.n, notes=found.notes)
                (others if self._settings.command and self._user.uid != 0 else mailbox).append(job)
        if mailbox:
            for job, outcome in zip(mailbox, self._append(mailbox), strict=True):
                yield Reply(job.request.n, outcome)
        for job in others:
            yield Reply(job.request.n, self._run(job))

    # ---- .forward

    def _forward(self, target: Target, known: dict[str, forward.Forward]) -> forward.Forward:
        if not target.use_forward or not self._settings.use_forward:
            return forward.Forward(forward.NONE)
        if target.detail not in known:
            known[target.detail] = self._read_forward(target)
        found = known[target.detail]
        if found.notes:  # said once is enough
            known[target.detail] = replace(found, notes=())
        return found

    def _read_forward(self, target: Target) -> forward.Forward:
        settings = self._settings
        return forward.read(self._user, target.detail, settings.hostname, settings.forward_size,
                            settings.forward_entries)

    # ---- one delivery that is not to a mailbox file

    def _run(self, job: Job) -> Outcome:
        """A command or a file: found again by its digest, or not carried out at all."""
        target, user = job.request.target, self._user
        if user.uid == 0:
            return failed("5.7.1", "root's mail goes to no command and no file")
        if target.kind == MAILBOX:
            return self._command(job, self._settings.command.encode("utf-8", "surrogateescape"))
        value = self._from_alias(target) if target.source else self._from_forward(target)
        if isinstance(value, Outcome):
            return value
        if value.kind == values.COMMAND:
            return self._command(job, value.text)
        path = forward.file_path(value, user)
        return mbox.append_file(path, [parcel_of(job)], hostname=self._settings.hostname, wait=self._settings.lock_wait,
                                size_limit=self._settings.mailbox_size)[0]

    def _from_forward(self, target: Target) -> "values.Value | Outcome":
        found = self._read_forward(target)
        if found.outcome is not None:
            return found.outcome
        if self._settings.require_shell:
            refusal = forward.shell_refusal(self._user)
            if refusal is not None:
                return refusal
        return found.find(target.digest) or deferred(CHANGED, f"{found.path or '.forward'} has changed: {target.words}")

    def _from_alias(self, target: Target) -> "values.Value | Outcome":
        """A line of an alias file, which this process reads itself: only its name came from the runner."""
        settings = self._settings
        if self._user.name != settings.command_user:
            return failed("5.7.1", f"commands of aliases are not run as {self._user.name}")
        if self._aliases is None:
            self._aliases = Aliases(settings.aliases, settings.own_domains.__contains__)
        self._aliases.refresh()
        found = self._aliases.find(target.source, target.digest)
        if isinstance(found, Broken):
            return deferred(CHANGED, found.reason)
        return found

    def _command(self, job: Job, line: bytes) -> Outcome:
        request, user = job.request, self._user
        environment = command.environment(user, sender=request.sender, recipient=request.target.address,
                                          original=request.original, extension=request.target.detail)
        return command.run(line, parcel_of(job), environment=environment, cwd=user.home,
                           limit=self._settings.command_time, told=self._settings.command_output)

    # ---- the mailbox

    def _append(self, jobs: list[Job]) -> list[Outcome]:
        parcels = [parcel_of(job) for job in jobs]
        settings, user = self._settings, self._user
        try:
            if settings.kind == "maildir" and user.uid != 0:
                return maildir.deliver(f"{user.home}/Maildir", parcels, hostname=settings.hostname)
            return mbox.append(f"{settings.mail_dir}/{user.name}", parcels, owner=user.uid, wait=settings.lock_wait,
                               size_limit=settings.mailbox_size, syncs_name=settings.syncs_name,
                               privileged=self._as_mailbox_group)
        except OSError as trouble:
            outcome = deferred("4.2.0", f"cannot deliver to the mailbox of {user.name}: {trouble.strerror}")
            return [outcome] * len(jobs)

    @contextmanager
    def _as_mailbox_group(self) -> Iterator[None]:
        group = self._settings.mailbox_group
        if group is None or os.geteuid() == 0:
            yield
            return
        os.setegid(group)
        try:
            yield
        finally:
            os.setegid(self._user.gid)


def comes_again(job: Job) -> bool:
    """Whether the message was delivered to this address before: hosts that forward to each other make such loops."""
    request = job.request
    head = os.pread(job.fd, headers.MAX_HEADER, request.offset)
    if b"elivered-" not in head:
        return False
    return trace.has_delivered_to(head, headers.scan(head)[0], request.target.address)


def parcel_of(job: Job) -> Parcel:
    """The message as a mailbox gets it: our three header lines and the From_ line go before its text."""
    request, target = job.request, job.request.target
    head = trace.return_path(request.sender) + trace.delivered_to(target.address)
    if request.original != target.address:
        head = trace.original_to(request.original) + head
    return Parcel(request.queue_id, job.fd, request.offset, request.length, head,
                       trace.from_line(request.sender, request.now, time.localtime(request.now).tm_gmtoff))

