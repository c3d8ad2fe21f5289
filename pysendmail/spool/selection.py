"""Which messages of a listing somebody means: one language for the control socket and for whoever reads the spool.

A filter is an object; all of its conditions must hold, and {} means every message:

    id, sender, recipient, domain, reason, hold    a text or a list of texts, one of which must fit
    older, younger                                 seconds since the message arrived
    held                                           true or false
    not                                            names of the conditions above that are to be turned round

Texts fit anywhere and in any case, as sendmail's -qI, -qR and -qS have it; an id is compared as it is written, a domain
with the whole domain of a recipient, as DNS has both. The sender "<>" is that of reports. An empty text would fit
everything, and is refused: it is a variable that somebody has not set. Recipients that are done with count as little as
they do in the listing.
"""

from collections.abc import Callable
from typing import Any

from .listing import Item

TEXTS = frozenset(("id", "sender", "recipient", "domain", "reason", "hold"))
AGES = frozenset(("older", "younger"))
MAX_TEXTS = 10_000  # in one condition
NULL_SENDER = "<>"

Predicate = Callable[[Item], bool]


def predicate(asked: object, now: float) -> Predicate:
    """The filter as a function of one listing. now: seconds since the epoch. Raises ValueError in words for people."""
    if not isinstance(asked, dict):
        raise ValueError("a filter is an object")
    turned = asked.get("not", [])
    if not isinstance(turned, list) or not all(isinstance(name, str) for name in turned):
        raise ValueError("filter not is not of the right kind")
    tests = [(_test(name, value, now), name in turned) for name, value in asked.items() if name != "not"]
    return lambda item: all(test(item) != is_turned for test, is_turned in tests)


def _test(name: object, value: Any, now: float) -> Predicate:
    if name in TEXTS:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or len(texts) > MAX_TEXTS or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"filter {name} is not of the right kind")
        if "" in texts:
            raise ValueError(f"filter {name} is empty")
        return _text_test(str(name), texts)
    if name in AGES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"filter {name} is not of the right kind")
        if name == "older":
            return lambda item: bool(now - item["arrived"] >= value)
        return lambda item: bool(now - item["arrived"] < value)
    if name == "held":
        if not isinstance(value, bool):
            raise ValueError("filter held is not of the right kind")
        return lambda item: (item["where"] == "hold") == value
    raise ValueError("unknown filter")


def _text_test(name: str, texts: list[str]) -> Predicate:
    if name == "id":
        whole = frozenset(texts)
        return lambda item: item["id"] in whole or any(text in item["id"] for text in texts)
    wanted = [text.lower() for text in texts]
    if name == "domain":
        domains = frozenset(_in_dns(text.removeprefix("@").removesuffix(".")) for text in wanted)
        return lambda item: any(_in_dns(address.rpartition("@")[2]) in domains for address in _open_addresses(item))
    if name == "recipient":
        return lambda item: any(text in address for address in _open_addresses(item) for text in wanted)
    if name == "sender" and NULL_SENDER in wanted:
        return lambda item: any(text in item["sender"].lower() for text in wanted) or (
            not item["sender"] and bool(item["recipients"]))  # without any, nobody knows who sent it
    return lambda item: any(text in item[name].lower() for text in wanted)


def _in_dns(domain: str) -> str:
    """A domain in lower case, or its A-labels where it has letters beyond ASCII."""
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain


def open_recipients(item: Item) -> list[Item]:
    """The recipients that the message still waits for; all of them if only a report is left to do."""
    waiting = [one for one in item["recipients"] if one["status"] in ("queued", "deferred")]
    return waiting or item["recipients"]


def _open_addresses(item: Item) -> list[str]:
    return [one["address"].lower() for one in open_recipients(item)]
