"""The process that delivers as the recipient: mailbox, .forward, files and commands of one user.

It is a fork of the spawner that has become the user before its first instruction here, and it lives for a burst of
messages. Requests and replies are those of request.py. Deliveries that wait for the same mailbox are written together:
one lock, one fsync, one reply each; the reply comes after the fsync.

root's own agent can only append to root's mailbox: no .forward, no file, no command. The effective group is the mailbox
group only while mbox.py works on the mailbox directory; files and commands of a .forward never see it.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..mail import trace
from ..mail.outcome import Outcome, deferred, failed
from ..mail.target import COMMAND, FILE, MAILBOX, Target
from ..users import User
from . import maildir, mbox
from .parcel import Parcel
from .request import MAX_PACKET, Reply, Request

BATCH = 100  # requests written together
BATCH_BYTES = 16 * 1024 * 1024  # bytes of messages written together
LOCK_WAIT = 30.0  # seconds to wait for a mailbox that somebody else has locked
ORPHANED_AFTER = 3600.0  # seconds without a request: the runner ends idle agents long before


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent needs of the configuration; it inherits this by fork, so that nobody can send it a path.

    kind: "mbox" or "maildir". mailbox_group: what /var/mail belongs to, None = no such group (not root).
    """

    kind: str
    mail_dir: str
    mailbox_group: int | None
    hostname: str
    delimiter: str
    use_forward: bool
    mailbox_size: int
    lock_wait: float


@dataclass(slots=True)
class Job:
    """A request with the descriptor that came with it."""

    request: Request
    fd: int


def serve(channel: socket.socket, user: User, settings: Settings) -> None:
    """Deliver until the runner closes the channel. Whatever goes wrong with one request is that request's outcome."""
    agent = Agent(user, settings)
    channel.settimeout(ORPHANED_AFTER)
    while True:
        batch, is_open = _receive(channel)
        for reply in agent.deliver(batch):
            channel.send(reply.to_packet())
        for job in batch:
            os.close(job.fd)
        if not is_open:
            return


def _receive(channel: socket.socket) -> tuple[list[Job], bool]:
    """Wait for one request, then take what else is there: (jobs, whether the channel is still open)."""
    jobs: list[Job] = []
    size = 0
    while len(jobs) < BATCH and size < BATCH_BYTES:
        try:
            packet, fds, _, _ = socket.recv_fds(channel, MAX_PACKET, 1, socket.MSG_DONTWAIT if jobs else 0)
        except BlockingIOError:
            break
        except TimeoutError:
            return jobs, False
        if not packet:
            return jobs, False
        request = Request.from_packet(packet)  # a runner that sends nonsense ends this agent, and no other
        jobs.append(Job(request, fds[0]))
        size += request.length - request.offset
    return jobs, True


class Agent:
    """Deliveries of one user, whose identity this process has."""

    def __init__(self, user: User, settings: Settings) -> None:
        self._user = user
        self._settings = settings

    def deliver(self, batch: list[Job]) -> Iterator[Reply]:
        """A reply for each job: mailbox deliveries first and together."""
        mailbox = []
        for job in batch:
            if job.request.target.kind == MAILBOX:
                mailbox.append(job)
            else:
                yield Reply(job.request.n, failed("5.7.1", "not for this user"))
        if mailbox:
            for job, outcome in zip(mailbox, self._append(mailbox), strict=True):
                yield Reply(job.request.n, outcome)

    def _append(self, jobs: list[Job]) -> list[Outcome]:
        parcels = [parcel_of(job) for job in jobs]
        settings, user = self._settings, self._user
        try:
            if settings.kind == "maildir" and user.uid != 0:
                return maildir.deliver(f"{user.home}/Maildir", parcels, hostname=settings.hostname)
            return mbox.append(f"{settings.mail_dir}/{user.name}", parcels, owner=user.uid, wait=settings.lock_wait,
                               size_limit=settings.mailbox_size, privileged=self._as_mailbox_group)
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


def parcel_of(job: Job) -> Parcel:
    """The message as a mailbox gets it: our three header lines and the From_ line go before its text."""
    request, target = job.request, job.request.target
    head = trace.return_path(request.sender) + trace.delivered_to(target.address)
    if request.original != target.address:
        head = trace.original_to(request.original) + head
    return Parcel(request.queue_id, job.fd, request.offset, request.length, head,
                       trace.from_line(request.sender, request.now, time.localtime(request.now).tm_gmtoff))


__all__ = ["COMMAND", "FILE", "Agent", "Settings", "Target", "serve"]
