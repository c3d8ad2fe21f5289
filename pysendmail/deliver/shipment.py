"""What goes between the runner and a relay process: one JSON object a packet, over SOCK_SEQPACKET.

runner -> relay   {"s": [SHIPMENT, ...]} + one read-only descriptor of a queue file for each, in the same order
                  {"forget": true}             try everything again, whatever was found out about hosts
relay -> runner   {"a": [ANSWER, ...]}

A shipment is one message for recipients at one destination: one transaction, if all goes well. Shipments that are there
at the same moment share a packet, since a packet costs as much as a small message. The relay knows nothing else of the
queue: it gets an open file and an envelope, and says what became of each recipient.

Neither end believes the other: sizes are capped, types are checked, and what does not fit raises ValueError.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..mail.envelope import NOTIFY, Recipient, raw, text
from ..mail.outcome import Outcome, one_line
from .packet import MAX_PACKET, decode, encode

MAX_BATCH = 32  # shipments in one packet
MAX_RECIPIENTS = 100  # of one shipment: what every host takes in one transaction (RFC 5321 section 4.5.3.1.8)
MAX_ADDRESSES = 48 * 1024  # bytes that the recipients of one shipment take in a packet
MAX_CUT = 80  # characters that are left of each text of an answer that fits into no packet
MAX_HEAD = 8192  # bytes put before the message
MAX_HOSTS = 32  # named for one destination
MAX_NOTES = 5
MAX_WIDTH = 1000
LIMIT = 1800.0  # seconds that a relay has for one message, whatever its size
SLOWEST = 1000.0  # bytes per second: a large message has more time

# How the destination itself fared, for whoever plans its next deliveries.
FINE, ROUGH, DOWN, LOGIN = "", "rough", "down", "login"
STATES = frozenset((FINE, ROUGH, DOWN, LOGIN))


def groups(recipients: Sequence[Recipient]) -> list[tuple[Recipient, ...]]:
    """Recipients at one destination, divided into as few shipments as there must be."""
    found: list[list[Recipient]] = [[]]
    size = 0
    for recipient in recipients:
        length = len(json.dumps(_recipient(recipient)))
        if found[-1] and (len(found[-1]) >= MAX_RECIPIENTS or size + length > MAX_ADDRESSES):
            found.append([])
            size = 0
        found[-1].append(recipient)
        size += length
    return [tuple(group) for group in found if group]


@dataclass(frozen=True, slots=True)
class Shipment:
    """One message for recipients at one destination.

    n: chosen by the runner, comes back in the Answer. offset, length: of the text in the file, bytes. recipients: one
    of groups(). smtputf8, ret, envid: as the envelope has them. domain: of the recipients. hosts: as route.router.Hop
    has them. width: how many connections this destination may have, all its shipments together; the newest word
    counts. head: whole lines that go before the text. is_own: it is mail of ours, which may bear our signature.
    """

    n: int
    queue_id: str
    offset: int
    length: int
    sender: str
    recipients: tuple[Recipient, ...]
    domain: str
    hosts: tuple[str, ...] = ()
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    width: int = 1
    head: bytes = b""
    is_own: bool = False

    @property
    def destination(self) -> str:
        """What connections are kept by; the same as Hop.destination."""
        return ",".join(self.hosts) or self.domain

    def to_json(self, width: int) -> dict[str, Any]:
        found: dict[str, Any] = {"n": self.n, "id": self.queue_id, "at": self.offset, "to": self.length,
                                 "from": self.sender, "rcpt": [_recipient(one) for one in self.recipients],
                                 "domain": self.domain, "width": width}
        if self.hosts:
            found["hosts"] = self.hosts
        if self.smtputf8:
            found["utf8"] = True
        if self.ret:
            found["ret"] = self.ret
        if self.envid:
            found["envid"] = self.envid
        if self.head:
            found["head"] = text(self.head)
        if self.is_own:
            found["own"] = True
        return found

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The reverse of to_json. Raises ValueError."""
        if not isinstance(value, dict):
            raise ValueError("not a shipment")
        get = value.get
        n, offset, length, width = (_number(get(name)) for name in ("n", "at", "to", "width"))
        texts = [get("id"), get("from"), get("domain"), get("ret", ""), get("envid", ""), get("head", "")]
        hosts, recipients = get("hosts", []), get("rcpt")
        if not (all(isinstance(text, str) for text in texts) and isinstance(hosts, list) and len(hosts) <= MAX_HOSTS
                and all(isinstance(host, str) for host in hosts) and isinstance(recipients, list)
                and 0 < len(recipients) <= MAX_RECIPIENTS and offset <= length and 0 < width <= MAX_WIDTH
                and texts[0].isalnum() and len(texts[5]) <= MAX_HEAD and texts[5][-1:] in ("", "\n")):
            raise ValueError("not a shipment")
        return cls(n, texts[0], offset, length, texts[1], tuple(map(_read_recipient, recipients)), texts[2],
                   tuple(hosts), get("utf8") is True, texts[3], texts[4], width, raw(texts[5]), get("own") is True)


def _recipient(recipient: Recipient) -> list[str]:
    if not recipient.notify and not recipient.orcpt:
        return [recipient.address]
    return [recipient.address, ",".join(recipient.notify), recipient.orcpt]


def _read_recipient(value: Any) -> Recipient:
    if not isinstance(value, list) or len(value) not in (1, 3) or not all(isinstance(text, str) for text in value):
        raise ValueError("not a recipient")
    if len(value) == 1:
        return Recipient(value[0])
    notify = frozenset(value[1].split(",")) if value[1] else frozenset()
    if notify - NOTIFY:
        raise ValueError("not a recipient")
    return Recipient(value[0], notify, value[2])


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError("not a number")
    return value


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of shipment n.

    outcomes: one for each recipient, in their order. relay: the host that spoke last, "name [address]", for the log.
    state: how the destination fared: FINE (it took the message, or said what it has against it), ROUGH (the
    conversation broke), DOWN (there was none: no connection, no greeting, no DNS), LOGIN (it does not let us in).
    dsn_is_passed: who was told "delivered" will be told the rest by that host; False = it does not know that anybody
    wants to hear, so that success has to be reported as "relayed" from here (RFC 3461 section 5.2.2). is_tried: a
    host was asked; False = it was put off unseen. notes: lines for the log.
    handshakes: what became of TLS with hosts since the last answer, for the log.
    """

    n: int
    outcomes: tuple[Outcome, ...]
    relay: str = ""
    state: str = FINE
    dsn_is_passed: bool = False
    is_tried: bool = True
    notes: tuple[str, ...] = ()
    handshakes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        outcomes = [outcome.to_json() for outcome in self.outcomes]
        if len(outcomes) > 1 and all(outcome == outcomes[0] for outcome in outcomes):
            outcomes = outcomes[:1]
        found: dict[str, Any] = {"n": self.n, "o": outcomes, "count": len(self.outcomes)}
        if self.relay:
            found["relay"] = self.relay
        if self.state:
            found["state"] = self.state
        if self.dsn_is_passed:
            found["dsn"] = True
        if not self.is_tried:
            found["unseen"] = True
        for name, lines in (("notes", self.notes), ("tls", self.handshakes)):
            if lines:
                found[name] = [one_line(line) for line in lines[:MAX_NOTES]]
        return found

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The reverse of to_json. Raises ValueError."""
        if not isinstance(value, dict):
            raise ValueError("not an answer")
        get = value.get
        count, outcomes, relay = _number(get("count")), get("o"), get("relay", "")
        if not (isinstance(outcomes, list) and 0 < count <= MAX_RECIPIENTS and len(outcomes) in (1, count)
                and isinstance(relay, str) and get("state", FINE) in STATES):
            raise ValueError("not an answer")
        found = tuple(map(Outcome.from_json, outcomes))
        return cls(_number(get("n")), found if len(found) == count else found * count, one_line(relay, 255),
                   get("state", FINE), get("dsn") is True, get("unseen") is not True,
                   _lines(get("notes", [])), _lines(get("tls", [])))


def _lines(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError("not lines")
    return tuple(map(one_line, value[:MAX_NOTES]))


def shipments_packet(shipments: Iterable[tuple[Shipment, int]]) -> bytes:
    """A packet of at most MAX_BATCH (shipment, width); it may be larger than MAX_PACKET, then send them one by one."""
    return encode({"s": [shipment.to_json(width) for shipment, width in shipments]})


def forget_packet() -> bytes:
    return encode({"forget": True})


def read_shipments(packet: bytes) -> list[Shipment] | None:
    """The shipments of a packet; None: forget what was found out. Raises ValueError."""
    value = decode(packet)
    if value.get("forget") is True:
        return None
    found = value.get("s")
    if not isinstance(found, list) or not 0 < len(found) <= MAX_BATCH:
        raise ValueError("not shipments")
    return [Shipment.from_json(one) for one in found]


def answer_packets(answers: Sequence[Answer]) -> list[bytes]:
    """The answers in as few packets as they fit in."""
    whole = encode({"a": [answer.to_json() for answer in answers]})
    if len(whole) <= MAX_PACKET:
        return [whole]
    if len(answers) > 1:
        half = len(answers) // 2
        return answer_packets(answers[:half]) + answer_packets(answers[half:])
    value = answers[0].to_json()
    value["o"] = [[status, *map(_cut, texts)] for status, *texts in value["o"]]
    return [encode({"a": [value]})]


def _cut(text: str) -> str:
    """In ASCII: any other character may take twelve bytes in a packet."""
    return one_line(text.encode("ascii", "backslashreplace").decode("ascii"), MAX_CUT)


def read_answers(packet: bytes) -> list[Answer]:
    """Raises ValueError."""
    found = decode(packet).get("a")
    if not isinstance(found, list):
        raise ValueError("not answers")
    return [Answer.from_json(one) for one in found]
