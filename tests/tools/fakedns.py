"""A DNS server on loopback that says what a test wants, over UDP and TCP.

    async with FakeDns({("example.net", "MX"): ["10 mx.example.net."]}) as dns: ... dns.port ...

A value may also be a rcode ("SERVFAIL", "NXDOMAIN", "REFUSED", "FORMERR"), "silent" (no answer at all), "truncated"
(TC over UDP, the next entry of the list over TCP), "garbage" (what is no DNS message, then the answer), "forged" (an
answer to another question and one with another id, then the answer), "lost" (the first query is), "referral" (a
delegation instead of an answer). Names that are not in the table do not exist; those that are there with another type
have no data. CNAME entries are followed within the table, as a resolver does.
"""

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 300
TRIES = 50
Table = Mapping[tuple[str, str], Any]


class FakeDns:
    def __init__(self, table: Table, *, has_edns: bool = True, follows: bool = True) -> None:
        self.table = dict(table)
        self.has_edns = has_edns
        self.follows = follows  # a server that does not leaves the alias to whoever asks
        self.asked: list[tuple[str, str, str]] = []  # (name, type, "udp" or "tcp")
        self.port = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(TRIES):
            self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", 0))
            self.port = self._udp.get_extra_info("sockname")[1]
            try:
                self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", self.port)
            except OSError:  # somebody has this port for TCP
                self._udp.close()
                continue
            return self
        raise AssertionError("no port that is free for UDP and TCP")

    async def __aexit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()
        await asyncio.sleep(0)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2), "big")
            for reply in self.replies(await reader.readexactly(length), "tcp"):
                writer.write(len(reply).to_bytes(2, "big") + reply)
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client went away
        writer.close()

    def replies(self, wire: bytes, transport: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, transport))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if query.edns >= 0 and not self.has_edns:
            reply.set_rcode(dns.rcode.FORMERR)
            return [reply.to_wire()]
        entry = self.table.get((name, kind))
        if isinstance(entry, list) and entry[:1] == ["lost"]:
            self.table[name, kind] = entry[1:]
            return []
        if isinstance(entry, list) and entry and entry[0] in ("truncated", "garbage", "forged"):
            return self._oddly(entry, query, reply, transport)
        if entry == "silent":
            return []
        if entry == "referral":
            reply.authority.append(dns.rrset.from_text(question.name, TTL, "IN", "NS", "ns.example."))
            return [reply.to_wire()]
        if isinstance(entry, str):
            reply.set_rcode(dns.rcode.from_text(entry))
            return [reply.to_wire()]
        self._fill(reply, name, kind, entry)
        return [reply.to_wire(max_size=65535)]

    def _oddly(self, entry: list[str], query: Any, reply: Any, transport: str) -> list[bytes]:
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        if entry[0] == "truncated" and transport == "udp":
            reply.flags |= dns.flags.TC
            return [reply.to_wire()]
        reply.answer.append(dns.rrset.from_text(question.name, TTL, "IN", kind, *entry[1:]))
        if entry[0] == "garbage":
            return [b"", b"\0", os.urandom(40), reply.to_wire()[:20], reply.to_wire()]
        if entry[0] == "forged":
            other = dns.message.make_response(dns.message.make_query("evil.example", question.rdtype))
            other.id = query.id
            guess = dns.message.make_response(query)
            guess.id = query.id ^ 1
            return [other.to_wire(), guess.to_wire(), reply.to_wire()]
        return [reply.to_wire(max_size=65535)]

    def _fill(self, reply: Any, name: str, kind: str, entry: list[str] | None) -> None:
        for _ in range(20):
            alias = self.table.get((name, "CNAME"))
            if entry is not None or alias is None:
                break
            reply.answer.append(dns.rrset.from_text(name + ".", TTL, "IN", "CNAME", alias[0]))
            if not self.follows:
                return
            name = alias[0].rstrip(".")
            entry = self.table.get((name, kind))
        if entry:
            reply.answer.append(dns.rrset.from_text(name + ".", TTL, "IN", kind, *entry))
        elif not any(known == name for known, _ in self.table):
            reply.set_rcode(dns.rcode.NXDOMAIN)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: FakeDns) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        for reply in self._server.replies(data, "udp"):
            self._transport.sendto(reply, addr)  # type: ignore[attr-defined]
