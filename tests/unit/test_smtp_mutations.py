"""Conversations that went wrong: the dialogues of tests/dialogs with pieces cut out, doubled, exchanged and put in.

Whatever comes of that is answered in whole replies, is the same however it is cut, and what is taken for a message is
what stood between the beginning of a line and the next CR LF . CR LF, for every client and server in the world.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pysendmail.net import policyserver
from pysendmail.smtp import profile
from pysendmail.smtp.profile import Limits, Settings
from pysendmail.smtp.wire import LineEnds
from tests.tools.dialog import DIALOGS, read, talk

CORPUS = sorted({b"".join(turn.data for turn in read(path).turns if turn.kind == "send")
                 for path in DIALOGS.glob("*.txt")})
WORDS = (b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n", b"\n", b"\r", b".", b"..",
         b"\0", b"\xff", b" ", b"<", b">", b"@", b'"', b"\\", b":", b"=", b"+", b"DATA\r\n", b"RSET\r\n", b"EHLO x\r\n",
         b"MAIL FROM:<>\r\n", b"RCPT TO:<alice>\r\n", b"QUIT\r\n", b"STARTTLS\r\n", b"AUTH LOGIN\r\n", b"*\r\n",
         b"BDAT 5 LAST\r\n", b"XCLIENT ADDR=192.0.2.1\r\n", b"SIZE=1", b"x" * 2100, b"x" * 13_000)
LIMITS = Limits(soft_errors=1000, hard_errors=1000, unknown_commands=1000)
TERMS = (Settings("server.example", limits=LIMITS), Settings("server.example", limits=LIMITS, forbids_early=False),
         Settings("server.example", profile.LMTP, LIMITS, forbids_early=False),
         Settings("server.example", limits=LIMITS, line_ends=LineEnds.NORMALISE, forbids_early=False, offers_tls=True,
                  mechanisms=profile.MECHANISMS, allows_xclient=True),
         Settings("server.example", profile.SUBMISSION, LIMITS, mechanisms=profile.MECHANISMS),
         profile.for_pipe("server.example", LIMITS))


@dataclass(frozen=True)
class Edit:
    """At `at` thousandths of the whole: what takes the place of `length` bytes. "" = the same bytes once more."""

    at: int
    length: int
    new: bytes | None

    def apply(self, data: bytes) -> bytes:
        start = self.at * len(data) // 1000
        old = data[start:start + self.length]
        return data[:start] + (2 * old if self.new is None else self.new) + data[start + self.length:]


EDITS = st.lists(st.builds(Edit, st.integers(0, 1000), st.integers(0, 40) | st.integers(0, 400),
                           st.none() | st.sampled_from(WORDS) | st.binary(max_size=8)), max_size=6)


def cut(data: bytes, step: int) -> Iterator[bytes]:
    return (data[at:at + step] for at in range(0, len(data), step))


def messages(data: bytes) -> set[bytes]:
    """Whatever could be a message in it, as it would lie at rest."""
    found = set()
    start = 0
    while start <= len(data):
        end = (b"\r\n" + data[start:]).find(b"\r\n.\r\n")
        if end >= 0:
            content = (b"\r\n" + data[start:start + end]).replace(b"\r\n.", b"\r\n")[2:]
            found.add(content.replace(b"\r\n", b"\n"))
        line_end = data.find(b"\n", start)
        if line_end < 0:
            break
        start = line_end + 1
    return found


@given(st.sampled_from(CORPUS), st.sampled_from(CORPUS), EDITS, st.sampled_from(TERMS), st.booleans(),
       st.integers(1, 50))
def test_what_is_taken_stood_between_a_line_end_and_a_dot(
        first: bytes, second: bytes, edits: list[Edit], terms: Settings, is_encrypted: bool, step: int) -> None:
    data = first + second
    for edit in edits:
        data = edit.apply(data)
    said, porter = talk(terms, is_encrypted, cut(data, step))
    assert said.endswith(b"\r\n")
    for line in said.split(b"\r\n")[:-1]:
        assert re.fullmatch(rb"[2-5][0-9][0-9][ -][ -~]*", line), line
    possible = messages(re.sub(rb"\r?\n", b"\r\n", data) if terms.line_ends is LineEnds.PIPE else data)
    assert {content for _, _, content in porter.taken} <= possible
    if not terms.forbids_early and not terms.offers_tls:
        other, again = talk(terms, is_encrypted, [data])
        assert (said, porter.taken) == (other, again.taken)


VERBS = ("OK", "dunno", "REJECT", "450", "599", "PREPEND", "hold", "DEFER", "\u0664\u0665\u0660")


@given(st.text(max_size=200) | st.builds("action={} {}\n".format, st.sampled_from(VERBS), st.text(max_size=1000)))
def test_whatever_a_policy_server_says_it_is_an_action_or_trouble(answer: str) -> None:
    try:
        action = policyserver.read_action(answer)
    except policyserver.Trouble:
        return
    if action.refusal is not None:
        assert action.refusal.kind in (4, 5)
        assert action.refusal.render().count(b"\r\n") == 1
    assert "\n" not in action.hold + action.field + action.note
