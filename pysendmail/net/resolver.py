"""Questions to DNS: one at a time to the servers of resolv.conf, with answers that say what is known and what is not.

An Answer is positive knowledge or TROUBLE: FOUND, NO_DATA (the name is there, but has no such record), NO_NAME (the
name is not there). Whatever else happens, no server, no answer in time, SERVFAIL, REFUSED, a reply that makes no
sense, is TROUBLE: nobody's mail comes back because of it.

A query goes out from a socket of its own with a random port and id, connected to its server, and waits until something
comes that answers it; what does not is ignored, so that a forged or garbled packet ends nothing (CVE-2023-29483). A
truncated answer is asked for again over TCP. CNAMEs are followed, MAX_CHAIN of them. All waits together are bounded by
LIFETIME. Answers are kept for their time to live, MAX_KEPT of them; troubles are not. Two who want the same thing at
once share one query. resolv.conf is read again when it has changed.

dnspython knows the bytes; nothing here blocks. RFC 1034, 1035, 2308 (negative answers), 2181, 6604, resolv.conf(5).
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset

LIFETIME = 30.0  # seconds for one question, all servers and attempts together
PORT = 53
MAX_SERVERS = 3  # of resolv.conf, as the C library has it
MAX_CONF = 64 * 1024  # bytes
MAX_CHAIN = 8  # CNAMEs that lead to one another in several answers
MAX_RECORDS = 200  # of one answer
MAX_KEPT = 5000  # answers
MAX_KEEP = 3600.0  # seconds that an answer is kept, whatever it says of itself
WORTH_KEEPING = 30.0  # seconds; an answer with less time than this is about to change, or a balancer speaks
PAYLOAD = 1232  # bytes of a UDP answer (DNS flag day 2020): never fragmented
LOOPBACK = ("127.0.0.1",)  # where the C library looks when resolv.conf names nobody


class Kind(Enum):
    """What can be asked for."""

    A = "A"
    AAAA = "AAAA"
    MX = "MX"
    PTR = "PTR"
    TXT = "TXT"


class State(Enum):
    FOUND = "found"
    NO_DATA = "no such record"
    NO_NAME = "no such name"
    TROUBLE = "no answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """records: (preference, host) of MX, (0, name) of PTR, (0, the bytes as latin-1) of TXT, (0, address) otherwise.

    words: of TROUBLE, for people.
    """

    state: State
    records: tuple[tuple[int, str], ...] = ()
    words: str = ""
    ttl: float = 0.0


Lookup = Callable[[str, Kind], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Servers:
    """What resolv.conf says. timeout: seconds for one server, attempts: times each of them is asked."""

    addresses: tuple[str, ...] = LOOPBACK
    search: tuple[str, ...] = ()
    timeout: float = 5.0
    attempts: int = 2


def read_conf(data: bytes) -> Servers:
    """The contents of resolv.conf. What it does not know is ignored."""
    addresses: list[str] = []
    search: tuple[str, ...] = ()
    timeout, attempts = 5, 2
    for line in data.decode("utf-8", "replace").split("\n"):
        keyword, *words = line.split() or [""]
        if keyword == "nameserver" and words and _family(words[0]) is not None:
            addresses.append(words[0])
        elif keyword in ("search", "domain"):
            search = tuple(word.rstrip(".") for word in words[:6] if word.strip("."))
        elif keyword == "options":
            for word in words:
                name, _, number = word.partition(":")
                if number.isascii() and number.isdigit() and len(number) <= 3:
                    timeout = min(30, max(1, int(number))) if name == "timeout" else timeout
                    attempts = min(5, max(1, int(number))) if name == "attempts" else attempts
    return Servers(tuple(addresses[:MAX_SERVERS]) or LOOPBACK, search, float(timeout), attempts)


def _family(address: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address.partition("%")[0])
        except OSError:
            continue
        return family
    return None


class Resolver:
    """Whoever asks DNS. conf: path of resolv.conf. clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float], *, conf: str = "/etc/resolv.conf", port: int = PORT,
                 lifetime: float = LIFETIME) -> None:
        self._clock = clock
        self._conf = conf
        self._port = port
        self._lifetime = lifetime
        self._servers = Servers()
        self._stamp: tuple[int, int, int] | None = None  # of the resolv.conf that was read
        self._kept: dict[tuple[str, Kind], tuple[float, Answer]] = {}
        self._asking: dict[tuple[str, Kind], asyncio.Task[Answer]] = {}
        self._first = 0  # the server that answered last is asked first

    def forget(self) -> None:
        """Know nothing any more."""
        self._kept.clear()

    @property
    def search(self) -> tuple[str, ...]:
        """The domains in which a name without dots may lie."""
        self._look_at_conf()
        return self._servers.search

    async def lookup(self, name: str, kind: Kind) -> Answer:
        """What DNS knows of a name (ASCII, absolute with or without its last dot)."""
        key = name.lower().rstrip("."), kind
        self._look_at_conf()
        until, answer = self._kept.get(key, (0.0, None))
        if answer is not None and self._clock() < until:
            return answer
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._resolve(*key))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _resolve(self, name: str, kind: Kind) -> Answer:
        try:
            answer = await asyncio.wait_for(self._follow(name, kind), self._lifetime)
        except TimeoutError:
            return Answer(State.TROUBLE, words=f"no answer from DNS about {name} within {self._lifetime:g} seconds")
        if answer.state is not State.TROUBLE:
            self._keep((name, kind), answer)
        return answer

    def _keep(self, key: tuple[str, Kind], answer: Answer) -> None:
        self._kept.pop(key, None)
        if answer.ttl < WORTH_KEEPING:
            return
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = self._clock() + min(answer.ttl, MAX_KEEP), answer

    def _look_at_conf(self) -> None:
        """Take on a resolv.conf that has changed. One that is gone changes nothing: it is probably being replaced."""
        try:
            seen = os.stat(self._conf)
            stamp = (seen.st_mtime_ns, seen.st_ino, seen.st_size)
            if stamp == self._stamp:
                return
            with open(self._conf, "rb") as file:
                self._servers = read_conf(file.read(MAX_CONF))
        except OSError:
            return
        self._stamp = stamp
        self._first = 0
        self._kept.clear()  # another network may know other things

    # ---- one question

    async def _follow(self, name: str, kind: Kind) -> Answer:
        """The answer for a name, over CNAMEs that need questions of their own."""
        ttl = MAX_KEEP
        for _ in range(MAX_CHAIN):
            try:
                asked = dns.name.from_text(name, dns.name.root)
            except (dns.exception.DNSException, UnicodeError, ValueError):
                return Answer(State.NO_NAME, ttl=MAX_KEEP)  # what DNS cannot hold is not in it
            reply = await self._ask(asked, dns.rdatatype.from_text(kind.value))
            if isinstance(reply, Answer):
                return reply
            answer, target = read_reply(reply, kind)
            ttl = min(ttl, answer.ttl)
            if not target:
                return Answer(answer.state, answer.records, answer.words, ttl)
            name = target
        return Answer(State.TROUBLE, words=f"more than {MAX_CHAIN} aliases (CNAME) lead on from {name}")

    async def _ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.message.Message | Answer:
        """A sensible reply from any server, or the last trouble."""
        servers = self._servers
        words = "no DNS server"
        for attempt in range(servers.attempts):
            for turn in range(len(servers.addresses)):
                number = (self._first + turn) % len(servers.addresses)
                address = servers.addresses[number]
                try:
                    reply = await asyncio.wait_for(self._exchange(address, name, kind),
                                                   servers.timeout * (1 << min(attempt, 2)))
                except TimeoutError:
                    words = f"no answer from DNS server {address}"
                    continue
                except (OSError, EOFError, dns.exception.DNSException) as trouble:
                    words = f"DNS server {address}: {_words_of(trouble)}"
                    continue
                if reply.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    self._first = number
                    return reply
                words = f"DNS server {address} says {dns.rcode.to_text(reply.rcode())}"
        return Answer(State.TROUBLE, words=f"{words} about {name.to_text(omit_final_dot=True)}")

    async def _exchange(self, address: str, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.message.Message:
        """One query to one server: over TCP if its answer is too long for UDP, without EDNS if it has never heard of
        that (RFC 6891 section 7)."""
        query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
        reply = await _over_udp(address, self._port, query)
        if reply is not None and reply.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            query = dns.message.make_query(name, kind)
            reply = await _over_udp(address, self._port, query)
        return reply if reply is not None else await _over_tcp(address, self._port, query)


def _words_of(trouble: Exception) -> str:
    if isinstance(trouble, OSError) and trouble.errno:
        return os.strerror(trouble.errno)
    return str(trouble) or type(trouble).__name__


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the datagram that answers a query. result: None = truncated."""

    def __init__(self, query: dns.message.Message) -> None:
        self._query = query
        self.result: asyncio.Future[dns.message.Message | None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if self.result.done():
            return
        try:
            reply = dns.message.from_wire(data, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return  # whoever sent that is not to be believed in anything
        if self._query.is_response(reply):
            self.result.set_result(None if reply.flags & dns.flags.TC else reply)

    def error_received(self, exc: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.result.done():
            self.result.set_exception(exc or OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)))


async def _over_udp(address: str, port: int, query: dns.message.Message) -> dns.message.Message | None:
    """The reply; None = it is too long for UDP. Waits for ever: the caller has a limit."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagrams(query), remote_addr=(address, port))
    try:
        transport.sendto(query.to_wire())
        return await protocol.result
    finally:
        transport.abort()
        protocol.result.cancel()


async def _over_tcp(address: str, port: int, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await reader.readexactly(2), "big")
        reply = dns.message.from_wire(await reader.readexactly(length), ignore_trailing=True)
        if not query.is_response(reply):
            raise EOFError("the answer is to something else")
        return reply
    finally:
        writer.transport.abort()


def read_reply(reply: dns.message.Message, kind: Kind) -> tuple[Answer, str]:
    """(answer, the name to ask for instead, "" = none) of a reply with NOERROR or NXDOMAIN."""
    try:
        chain = reply.resolve_chaining()  # type: ignore[attr-defined]
    except dns.exception.DNSException as problem:
        return Answer(State.TROUBLE, words=f"DNS: {_words_of(problem)}"), ""
    if chain.answer is not None:
        return Answer(State.FOUND, _records(chain.answer, kind), ttl=float(chain.minimum_ttl)), ""
    authority = {found.rdtype for found in reply.authority}
    ttl = float(chain.minimum_ttl) if dns.rdatatype.SOA in authority else 0.0  # RFC 2308 section 5
    if reply.rcode() == dns.rcode.NXDOMAIN:  # of the last name of the chain (RFC 6604 section 3)
        return Answer(State.NO_NAME, ttl=ttl), ""
    if chain.cnames and not authority:  # the server has not looked at where the alias leads
        return Answer(State.NO_DATA, ttl=ttl), str(chain.canonical_name.to_text().rstrip("."))
    if authority == {dns.rdatatype.NS} and not reply.flags & dns.flags.AA:
        return Answer(State.TROUBLE, words="DNS server does not resolve, it refers to others"), ""
    return Answer(State.NO_DATA, ttl=ttl), ""


def _records(found: dns.rrset.RRset, kind: Kind) -> tuple[tuple[int, str], ...]:
    records: Sequence[object] = list(found)[:MAX_RECORDS]
    if kind is Kind.MX:
        return tuple((int(one.preference), one.exchange.to_text().rstrip(".")) for one in records
                     if isinstance(one, dns.rdtypes.ANY.MX.MX))
    if kind is Kind.PTR:
        return tuple((0, one.target.to_text(omit_final_dot=True)) for one in records
                     if isinstance(one, dns.rdtypes.ANY.PTR.PTR))
    if kind is Kind.TXT:
        return tuple((0, b"".join(one.strings).decode("latin-1")) for one in records
                     if isinstance(one, dns.rdtypes.ANY.TXT.TXT))
    return tuple((0, str(one.address)) for one in records
                 if isinstance(one, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA))
