"""What happens to a submitted header: nothing but what the manual says, whatever is in it."""

import email
import email.header
import email.policy
import email.utils
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import completion, headers
from pysendmail.mail.completion import Facts, complete
from pysendmail.mail.envelope import text

FACTS = Facts("0abcdef1001001", "bob@host.example", "mail.example", "host.example", 1057049557.0, 7200, "Bob Builder")
FROM = b"From: Bob Builder <bob@host.example>\n"
DATE = b"Date: Tue, 1 Jul 2003 10:52:37 +0200\n"
MESSAGE_ID = b"Message-ID: <20030701085237.0abcdef1001001@host.example>\n"
NOBODY = b"To: undisclosed-recipients:;\n"
ADDED = FROM + DATE + MESSAGE_ID
# A header that lacks nothing: what is added then is added for the field under test.
WHOLE = b"From: a@x.test\nDate: d\nMessage-ID: <i@x>\nTo: b@x.test\n"
ANYTHING = st.one_of(st.text(), st.text("ab@.\"\\ ()<>;,:[]=?\n\r\t\0\x1b\x85\u2028\udc85"), st.binary().map(text))


@pytest.mark.parametrize(("head", "expected"), [
    (b"", ADDED + NOBODY),
    (b"Subject: x\n", b"Subject: x\n" + ADDED + NOBODY),
    (b"Subject: x", b"Subject: x\n" + ADDED + NOBODY),
    (b"To: b@x.test\n", b"To: b@x.test\n" + ADDED),
    (b"cc: b@x.test\n", b"cc: b@x.test\n" + ADDED),
    (b"FROM: a@x.test\nDATE : d\nmessage-id: i\nTO: b@x.test\n",
     b"FROM: a@x.test\nDATE: d\nmessage-id: i\nTO: b@x.test\n"),
    (WHOLE + b"X-A \t : b : c\n", WHOLE + b"X-A: b : c\n"),  # Python's email and others see the header's end there
    (b"Date: d\nTo: b@x.test\nFrom: a@x.test\n", b"Date: d\nTo: b@x.test\nFrom: a@x.test\n" + MESSAGE_ID),
    (b"From alice Tue Jul  1 10:52:37 2003\n" + WHOLE, WHOLE),  # an mbox's From_ line is no field
])
def test_what_is_missing_is_added_behind_what_is_there(head: bytes, expected: bytes) -> None:
    assert complete(head, FACTS) == expected


@pytest.mark.parametrize("name", [b"From", b"Date", b"Message-ID", b"To", b"Cc"])
def test_a_blank_field_is_a_missing_one(name: bytes) -> None:
    """PHP programs write "From: " when their setting is empty; receivers refuse that."""
    head = complete(b"Subject: x\n" + name + b":  \n\t\n", FACTS)
    assert head == b"Subject: x\n" + ADDED + NOBODY


@pytest.mark.parametrize(("value", "is_removed"), [
    (b"host.example; spf=pass", True),
    (b"HOST.Example; spf=pass", True),
    (b"host.example. 1; spf=pass", True),
    (b"(comment) host.example; spf=pass", True),
    (b'"host.example"; spf=pass', True),
    (b"\n\thost.example\n\t; spf=pass", True),
    (b"host.example", True),
    (b"host.example/1; none", True),
    (b"(a;b) host.example; spf=pass", True),
    (b"(a (b) host.example; x) other.example.net; spf=pass", True),
    (b"host(c).example; spf=pass", True),
    (b'"ho\\st.example"; spf=pass', True),
    (b"(x\\); host.example) other.example.net; spf=pass", True),
    (b"=?utf-8?b?aG9zdC5leGFtcGxl?=; spf=pass", True),
    (b"\xc2\xa0host.example; spf=pass", True),
    (b"\x1fhost.example\x1c; spf=pass", True),
    (b"other.example.net (a b); spf=pass (host.example is allowed)", False),
    (b"other.example.net; spf=pass", False),
    (b"shost.example; x=host.example", False),
    (b"", False),
])
@pytest.mark.parametrize("is_gateway", [False, True])
def test_findings_in_our_name_are_forged(value: bytes, is_removed: bool, is_gateway: bool) -> None:
    field = b"Authentication-Results: " + value + b"\n"
    head = complete(field + WHOLE + field, replace(FACTS, is_gateway=is_gateway))
    assert head == (WHOLE if is_removed else field + WHOLE + field)


def test_a_forged_field_is_one_whatever_stands_between_its_name_and_its_colon() -> None:
    head = b"AUTHENTICATION-Results \t: host.example; spf=pass\nAuthentication\0-Results:\n host.example; spf=pass\n"
    assert complete(head + WHOLE, FACTS) == WHOLE


@pytest.mark.parametrize("field", [
    b"Bcc: carol@x.test\n", b"BCC: carol@x.test,\n dora\n", b"Bcc:\n", b"Bcc : carol\n", b"Resent-Bcc: carol\n",
    b"Return-Path: <x@y>\n", b"Content-Length: 17\n", b"Full-Name: Root\n", b"B\0cc: carol\n"])
def test_fields_that_never_leave(field: bytes) -> None:
    first, second = WHOLE[:15], WHOLE[15:]
    head = complete(first + field + second + field, FACTS)
    assert [line for line in head.split(b"\n") if not line.startswith(b"Resent-")] == WHOLE.split(b"\n")


def test_a_message_to_hidden_recipients_only_says_so() -> None:
    assert complete(b"From: a@x.test\nDate: d\nMessage-ID: i\nBcc: carol@x.test\n", FACTS).endswith(b"i\n" + NOBODY)
    silent = replace(FACTS, add_undisclosed=False)
    assert complete(b"From: a@x.test\nDate: d\nMessage-ID: i\n", silent).endswith(b"Message-ID: i\n")


@pytest.mark.parametrize(("before", "after"), [
    (b"From: root\n", b"From: root@mail.example\n"),
    (b"From:root\n", b"From:root@mail.example\n"),
    (b"From: root (Cron Daemon)\n", b"From: root@mail.example (Cron Daemon)\n"),
    (b"From: Cron <root>\n", b"From: Cron <root@mail.example>\n"),
    (b"From: <root>\n", b"From: <root@mail.example>\n"),
    (b'From: "a@b" <root>\n', b'From: "a@b" <root@mail.example>\n'),
    (b'Sender: "r t"\n', b'Sender: "r t"@mail.example\n'),
    (b'Reply-To: "a@b"\n', b'Reply-To: "a@b"@mail.example\n'),
    (b"To: alice, b@x.test, Carol\n\t<carol>,\n dora\n",
     b"To: alice@mail.example, b@x.test, Carol\n\t<carol@mail.example>,\n dora@mail.example\n"),
    (b"Cc: friends: alice, Carol C <carol>;\n", b"Cc: friends: alice@mail.example, Carol C <carol@mail.example>;\n"),
    (b"To: undisclosed-recipients:;\n", b"To: undisclosed-recipients:;\n"),
    (b"To: j\xc3\xb6rg\n", b"To: j\xc3\xb6rg@mail.example\n"),
    (b"To: alice@[192.0.2.1], bob\n", b"To: alice@[192.0.2.1], bob@mail.example\n"),
    (b"To:\n alice\n", b"To:\n alice@mail.example\n"),
    # no address can be made of these
    (b"From: Cron Daemon\n", b"From: Cron Daemon\n"),
    (b"From: <>\n", b"From: <>\n"),
    (b"From: John Smith, alice\n", b"From: John Smith, alice@mail.example\n"),
    (b"To: alice (unclosed\n", b"To: alice (unclosed\n"),
    (b'To: "alice\n', b'To: "alice\n'),
    (b"To: <alice\n", b"To: <alice\n"),
    (b"To: a@\n", b"To: a@\n"),
    # not an address field
    (b"Subject: root\n", b"Subject: root\n"),
    (b"X-To: root\n", b"X-To: root\n"),
])
def test_bare_addresses_are_completed_in_place(before: bytes, after: bytes) -> None:
    silent = replace(FACTS, add_undisclosed=False)
    fields = complete(before, silent)
    assert fields == after + b"".join(
        line for line in (FROM, DATE, MESSAGE_ID) if not (line is FROM and before.startswith(b"From:")))


@pytest.mark.parametrize("name", [b"Resent-From", b"Resent-Sender", b"Resent-Reply-To", b"Resent-To", b"Resent-Cc"])
def test_addresses_of_a_resending_are_completed_too(name: bytes) -> None:
    assert name + b": root@mail.example\n" in complete(name + b": root\n" + WHOLE, FACTS)


@pytest.mark.parametrize("comma", [b", ", b","])
@pytest.mark.parametrize("count", [80, 1])
def test_completing_never_makes_a_line_too_long(comma: bytes, count: int) -> None:
    """So many bare addresses, then others: a line that was in bounds stays so, and names the same people."""
    names = [b"user%02d" % n for n in range(count)]
    while len(comma.join(names)) < 970:
        names.append(b"user%d@x.test" % len(names))
    bare = b"To: " + comma.join(names) + b"\n"
    head = complete(bare, replace(FACTS, mailname="mail.department.example"))
    assert max(map(len, bare.split(b"\n"))) <= 998 < len(bare) + count * len("@mail.department.example")
    assert max(map(len, head.split(b"\n"))) <= 998
    parsed = email.message_from_bytes(head + b"\n")
    assert email.utils.getaddresses([parsed["To"].replace("\n", "")]) == [
        ("", name.decode() if b"@" in name else f"{name.decode()}@mail.department.example") for name in names]


def test_a_header_does_not_outgrow_what_is_read_of_it() -> None:
    head = b"To: " + b", ".join([b"a"] * 40_000) + b"\nCc: b\n"
    result = complete(head, replace(FACTS, mailname="m" * 250))
    assert result.startswith(head.replace(b"Cc: b\n", b"Cc: b@" + b"m" * 250 + b"\n"))
    assert headers.scan(result)[1] == len(result) < headers.MAX_HEADER


TWINS = (b"Resent-From: Bob Builder <bob@host.example>\nResent-Date: Tue, 1 Jul 2003 10:52:37 +0200\n"
         b"Resent-Message-ID: <resent-20030701085237.0abcdef1001001@host.example>\n")


TWINS_BUT_FROM = TWINS.partition(b"\n")[2]
OLDER = b"Resent-From: r@x.test\nResent-Date: d\nResent-Message-ID: <r>\n"


@pytest.mark.parametrize(("head", "added", "rest"), [  # what is added stands between head and rest
    (b"", TWINS, b"Resent-To: c@x.test\n" + WHOLE),
    (b"Subject: x\n", TWINS, b"Resent-To: c@x.test\n" + WHOLE),
    (b"", b"", b"Resent-To: c@x.test\n" + OLDER + WHOLE),
    (b"", b"", b"Resent-To: c@x.test\nResent-To: d@x.test\n" + OLDER + WHOLE),  # a name twice in a row: one block
    # an older resending further down does not stand in for what the newest one lacks
    (b"", TWINS_BUT_FROM, b"Resent-To: c@x.test\nResent-From: q@x.test\nResent-To: d@x.test\n" + OLDER + WHOLE),
    (b"", TWINS, b"Resent-To: c@x.test\nReceived: x\n" + OLDER + WHOLE),
    (b"Received: x\n", b"", b"Resent-To: c@x.test\n" + OLDER + WHOLE),
])
def test_the_newest_resending_is_completed(head: bytes, added: bytes, rest: bytes) -> None:
    assert complete(head + rest, FACTS) == head + added + rest


def test_a_resending_to_hidden_recipients_is_one_too() -> None:
    assert complete(b"Resent-Bcc: c@x.test\n" + WHOLE, FACTS) == TWINS + WHOLE


def test_who_resends_is_not_the_author() -> None:
    """The message's own fields are judged by themselves."""
    head = b"Resent-From: r@x.test\nResent-To: c@x.test\nSubject: x\n"
    assert complete(head, FACTS) == TWINS_BUT_FROM + head + ADDED


def test_a_gateway_adds_nothing_and_still_hides_bcc() -> None:
    head = b"X: y\nTo: alice\nFull-Name: Al\nResent-To: bob\nSubject: x\r\n"
    facts = replace(FACTS, is_gateway=True)
    assert complete(b"Bcc: carol\nReturn-Path: <x>\n" + head, facts) == head.replace(b"\r", b" ")
    assert complete(b"", facts) == b""


@pytest.mark.parametrize(("before", "after"), [
    (b"Subject: a\0b\n", b"Subject: ab\n"),
    (b"Subject: a\rX-Evil: yes\n", b"Subject: a X-Evil: yes\n"),
    (b"Sub\0ject: a\n", b"Subject: a\n"),
    (b"To: al\0ice\rBcc: carol\n", b"To: alice Bcc: carol@mail.example\n"),  # a group of that name
])
def test_nul_goes_and_a_bare_cr_ends_no_line(before: bytes, after: bytes) -> None:
    assert complete(before + WHOLE, FACTS) == after + WHOLE


def test_the_null_sender_is_nobody_in_particular() -> None:
    assert complete(b"To: b@x.test\n", replace(FACTS, sender="")) == (
        b"To: b@x.test\nFrom: MAILER-DAEMON@mail.example\n" + DATE + MESSAGE_ID)


@pytest.mark.parametrize(("name", "expected"), [
    ("", b"bob@host.example"),
    ("Bob", b"Bob <bob@host.example>"),
    ("Bob B. Builder", b'"Bob B. Builder" <bob@host.example>'),
    ('Bob "x" <root@evil.test>', b'"Bob \\"x\\" <root@evil.test>" <bob@host.example>'),
    ("a\\", b'"a\\\\" <bob@host.example>'),
    ("Bob\nBcc: carol\0", b'"Bob Bcc: carol" <bob@host.example>'),
    ("  \t ", b"bob@host.example"),
    ("=?UTF-8?Q?J=C3=B6rg?=", b"=?UTF-8?Q?J=C3=B6rg?= <bob@host.example>"),
    ("J\u00f6rg (Ops)", b"=?UTF-8?Q?J=C3=B6rg_=28Ops=29?= <bob@host.example>"),
    ("J\udcf6rg", b"=?UTF-8?Q?J=EF=BF=BDrg?= <bob@host.example>"),
    ("B" * 70, b"B" * 70 + b"\n <bob@host.example>"),
])
def test_a_full_name_is_a_name_and_nothing_else(name: str, expected: bytes) -> None:
    assert complete(b"", replace(FACTS, full_name=name)).startswith(b"From: " + expected + b"\nDate:")


@given(ANYTHING, ANYTHING)
def test_no_name_and_no_sender_changes_who_a_message_is_from(name: str, sender: str) -> None:
    head = complete(b"Subject: x\n", replace(FACTS, full_name=name, sender=sender))
    fields, end, _ = headers.scan(head)
    assert [field for field, _, _ in fields] == [b"subject", b"from", b"date", b"message-id", b"to"]
    assert end == len(head)
    value = head[fields[1][1]:fields[1][2]]
    assert not re.search(r"[\r\0\x0b\x0c\x85\u2028]", text(value))
    parsed = email.message_from_bytes(value + b"\n", policy=email.policy.SMTP.clone(utf8=True))
    if name.isascii() and sender.isascii() and re.fullmatch(r"[a-z]+@[a-z.]*[a-z]", sender):
        assert [a.addr_spec for a in parsed["From"].addresses] == [sender]


@given(st.text(max_size=400))
def test_encoded_words_are_read_back_by_others(value: str) -> None:
    encoded = completion.encoded_words(value)
    assert encoded.isascii()
    for line in encoded.split(b"\n "):
        assert re.fullmatch(rb"=\?UTF-8\?Q\?[!*+/=_A-Za-z0-9-]*\?=", line)
        assert len(line) <= 66
    decoded = "".join(part.decode(charset or "ascii") if isinstance(part, bytes) else part
                      for part, charset in email.header.decode_header(encoded.decode().replace("\n ", "\n ")))
    assert decoded == value


@pytest.mark.parametrize(("gecos", "login", "expected"), [
    ("Robert Roe,,,", "bob", "Robert Roe"),
    ("&", "bob", "Bob"),
    ("& Builder,room 1", "bob", "Bob Builder"),
    ("", "bob", ""),
    ("&", "", ""),
    ('Bob "x" <root@evil.test>, (Ops', "bob", 'Bob "x" <root@evil.test>'),
    ("Bob\x1b[2J", "bob", "Bob [2J"),
    ("x" * 1000, "bob", "x" * 197 + "..."),
])
def test_name_of_gecos(gecos: str, login: str, expected: str) -> None:
    assert completion.name_of_gecos(gecos, login) == expected


@pytest.mark.parametrize(("head", "has_8bit", "is_utf8", "charset"), [
    (b"Subject: x\n", True, True, b"utf-8"),
    (b"Subject: x\n", True, False, b"unknown-8bit"),
    (b"Subject: x\n", False, True, None),
    (b"MIME-Version: 1.0\n", True, True, None),
    (b"content-type: text/html\n", True, True, None),
    (b"Content-Transfer-Encoding: 8bit\n", True, True, None),
    (b"X-Content-Type: text/html\n", True, True, b"utf-8"),
])
def test_mime_label(head: bytes, has_8bit: bool, is_utf8: bool, charset: bytes | None) -> None:
    lines = completion.mime_label(head, has_8bit=has_8bit, is_utf8=is_utf8)
    if charset is None:
        assert lines == b""
    else:
        assert lines == (b"MIME-Version: 1.0\nContent-Type: text/plain; charset=" + charset +
                         b"\nContent-Transfer-Encoding: 8bit\n")


@pytest.mark.parametrize(("head", "expected"), [
    (b"", ""),
    (b"Subject: x\nMessage-Id:\n <a@b>\nMessage-ID: <c@d>\n", "<a@b>"),
    (b"Resent-Message-ID: <r@b>\nMessage-ID: <a@b>\n", "<a@b>"),
    (b"Message-ID: <a\x1b[2J\x07@b>\n", "<a [2J @b>"),
    (b"Message-ID: <" + b"a" * 1000 + b">\n", "<" + "a" * 246 + "..."),
])
def test_message_id_for_the_log(head: bytes, expected: str) -> None:
    assert completion.message_id_in(head) == expected


LINE = st.one_of(
    st.sampled_from([
        b"From: root", b"To: alice, Bob <bob>", b"To: (", b"Cc: a@b", b"Bcc: secret@x.test", b"bcc :\tsecret@x.test",
        b" secret@x.test", b"\tfolded", b"Date: d", b"Message-ID: <x@y>", b"Subject: s", b"X-A: b", b"X-A:",
        b"Received: r", b"Resent-To: carol", b"Resent-From: dora", b"Resent-Bcc: secret@x.test", b"Return-Path: <x>",
        b"From: ", b"From x 12:30", b">From y", b"--part", b"--x: y", b"", b"text", b"a: \0\r\rb", b"\0: x",
        b"\0--a: b", b"From : root"]),
    st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")))


@given(st.lists(LINE, max_size=15), st.sampled_from([b"", b"\n"]))
def test_whatever_is_submitted_comes_out_as_one_header(lines: list[bytes], end: bytes) -> None:
    """Complete, without Bcc, every other field in order and (addresses apart) with its bytes."""
    message = b"\n".join(lines) + end
    _, header_end, _ = headers.scan(message)
    before = message[:header_end]
    after = complete(before, FACTS)
    assert b"\0" not in after
    assert b"\r" not in after
    assert after.endswith(b"\n")
    fields, found_end, _ = headers.scan(after)
    assert found_end == len(after)
    names = [name for name, _, _ in fields]
    assert {b"from", b"date", b"message-id"} <= set(names)
    assert not {b"bcc", b"resent-bcc", b"return-path"} & set(names)
    assert {b"to", b"cc", b"resent-to", b"resent-cc"} & set(names)
    assert b"secret@x.test" not in b"".join(after[start:stop] for name, start, stop in fields
                                            if name.endswith(b"bcc"))
    kept = [before[start:stop].replace(b"\0", b"").replace(b"\r", b" ").rstrip(b"\n")
            for name, start, stop in headers.scan(before)[0] if name in (b"subject", b"x-a", b"received")]
    there = [after[start:stop].rstrip(b"\n") for name, start, stop in fields]
    assert [line for line in there if line in kept] == kept


@given(st.lists(LINE, max_size=15))
def test_completing_twice_changes_nothing_more(lines: list[bytes]) -> None:
    message = b"\n".join(lines) + b"\n"
    once = complete(message[:headers.scan(message)[1]], FACTS)
    assert complete(once, FACTS) == once
