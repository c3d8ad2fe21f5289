"""A relay in this process, with the test in the runner's place at the other end of its channel."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pysendmail.auth.signing import Sign
from pysendmail.config import Config, RelaySettings
from pysendmail.daemon.relay import Relay, World
from pysendmail.deliver import shipment
from pysendmail.deliver.packet import MAX_PACKET
from pysendmail.deliver.shipment import Answer, Shipment
from pysendmail.mail.envelope import Recipient
from pysendmail.smtp.client import TIMEOUTS
from tests.tools.fakedns import FakeDns
from tests.tools.smtpsink import Sink

PATIENCE = 0.25  # seconds for each step of a conversation, in tests of what happens when it is over
TEXT = b"From: a@example.org\nTo: b@example.net\nSubject: x\n\n.a dot\ntext\n"


def world(dns: FakeDns | None = None, *, port: int = 25, patience: float = 20.0, **changes: Any) -> World:
    defaults: dict[str, Any] = {"hosts_file": "/nonexistent", "loopback_is_own": False, "dns_lifetime": 5.0}
    return World(resolv_conf="/nonexistent", dns_port=dns.port if dns else 9, smtp_port=port,
                 timeouts=dict.fromkeys(TIMEOUTS, patience), **(defaults | changes))


def config(hostname: str = "us.example", **relay: Any) -> Config:
    return Config(hostname=hostname, relay=RelaySettings(**relay))


def endpoint(sink: Sink) -> str:
    """A sink as the settings name a host."""
    host, port = sink.address
    return f"{host}:{port}"


class Relaying:
    """async with Relaying(config, world) as relay: answer = await relay.send(...)."""

    def __init__(self, config: Config, world: World, sign: Sign | None = None) -> None:
        self._config, self._world, self._sign = config, world, sign
        self._number = 0
        self._awaited: dict[int, asyncio.Future[Answer]] = {}

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, self._theirs = ours, theirs
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._readable)
        self.relay = Relay(self._loop, theirs, self._config, self._world, self._sign)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._loop.remove_reader(self.channel.fileno())
        self.channel.close()
        await asyncio.wait_for(self.relay.ended, 5)
        await self.relay.close()
        self._theirs.close()
        await asyncio.sleep(0.01)  # transports are closed by callbacks

    def _readable(self) -> None:
        packet = self.channel.recv(MAX_PACKET)
        for answer in shipment.read_answers(packet) if packet else []:
            self._awaited.pop(answer.n).set_result(answer)

    def start(self, *recipients: str | Recipient, hosts: Sequence[str] = (), text: bytes = TEXT, width: int = 1,
              sender: str = "a@example.org", before: bytes = b"Pysendmail-Sender: <a@example.org>\n",
              **more: Any) -> "asyncio.Future[Answer]":
        """Hand a message to the relay; its answer comes later. before: what stands in the file before the text."""
        self._number += 1
        whom = tuple(Recipient(one) if isinstance(one, str) else one for one in recipients or ("b@example.net",))
        domain = whom[0].address.rpartition("@")[2]
        sent = Shipment(self._number, "0WkDdmTe001000", len(before), len(before) + len(text), sender, whom, domain,
                        tuple(hosts), **more)
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(before + text)
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
            socket.send_fds(self.channel, [shipment.shipments_packet([(sent, width)])], [fd])
            os.close(fd)
        return self.expect(self._number)

    def expect(self, n: int) -> "asyncio.Future[Answer]":
        """The answer to shipment n."""
        future = self._awaited[n] = self._loop.create_future()
        return future

    async def send(self, *recipients: str | Recipient, **more: Any) -> Answer:
        return await asyncio.wait_for(self.start(*recipients, **more), 20)


def statuses(answer: Answer) -> list[str]:
    return [outcome.status for outcome in answer.outcomes]
