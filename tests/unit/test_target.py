"""Targets: what another process says is one, and which two are the same place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail.outcome import failed
from pysendmail.mail.target import COMMAND, FILE, KINDS, KNOWN, MAILBOX, RELAY, Target, digest_of

ALICE = Target(MAILBOX, "alice@host.example", user="alice")
TEXT = st.text(max_size=20)
TARGETS = st.builds(Target, st.sampled_from(sorted(KINDS)), TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, st.none() | TEXT,
                    st.booleans(), TEXT, st.none() | st.just(failed("5.1.1", "unknown")))


@given(TARGETS)
def test_json_and_back(target: Target) -> None:
    assert Target.from_json(target.to_json()) == target


@pytest.mark.parametrize("value", [
    None, [], "mailbox", {}, {"kind": "mailbox", "path": "/etc/passwd"}, {"kind": "root"}, {"kind": ["mailbox"]},
    {"kind": "mailbox", "user": 0}, {"kind": "mailbox", "user": None}, {"kind": "mailbox", "sender": 5},
    {"kind": "command", "command": "id"}, {"kind": "known", "outcome": "5.1.1"}, {"kind": "known", "outcome": None}])
def test_json_of_nobody_we_know(value: Any) -> None:
    with pytest.raises(ValueError):
        Target.from_json(value)


@pytest.mark.parametrize(("one", "other", "is_same"), [
    (ALICE, Target(MAILBOX, "ALICE@host.example", user="alice", sender="owner"), True),
    (ALICE, Target(MAILBOX, "alice+x@host.example", user="alice", detail="x"), False),
    (ALICE, Target(MAILBOX, "alice@host.example", user="alice", use_forward=False), False),
    (ALICE, Target(KNOWN, "alice@host.example", user="alice"), False),
    (Target(COMMAND, "a", user="u", digest="1"), Target(COMMAND, "b", user="u", digest="1"), True),
    (Target(COMMAND, "a", user="u", digest="1"), Target(FILE, "a", user="u", digest="1"), False),
    (Target(COMMAND, "a", user="u", digest="1"), Target(COMMAND, "a", user="v", digest="1"), False),
    (Target(COMMAND, "a", source="list", digest="1"), Target(COMMAND, "a", source="other", digest="1"), False),
    (Target(RELAY, "x@else.test"), Target(RELAY, "x@else.test", sender=""), True),
    (Target(RELAY, "x@else.test"), Target(RELAY, "y@else.test"), False)])
def test_which_two_need_one_copy(one: Target, other: Target, is_same: bool) -> None:
    assert (one.key() == other.key()) is is_same


def test_a_digest_tells_lines_apart() -> None:
    assert digest_of(b"|id") != digest_of(b"|id ")
    assert len(digest_of(b"")) == 64
