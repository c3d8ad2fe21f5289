"""Messages for hosts that cannot have them as they are: whoever reads them finds what was there before."""

import email
import email.policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.smtp import recode, transfer
from pysendmail.smtp.mime import MAX_DEPTH, MAX_HEADER, MAX_PARTS, Unreadable
from pysendmail.smtp.survey import MAX_LINE, Survey


def rewritten(message: bytes, *, to_7bit: bool = True, step: int = 0) -> bytes:
    step = step or len(message) or 1
    chunks = [message[n:n + step] for n in range(0, len(message), step)]
    return b"".join(recode.recoded(chunks, recode.plan(chunks, to_7bit=to_7bit)))


def survey(message: bytes, step: int = 0) -> Survey:
    found = Survey()
    found.feed(b"")
    step = step or len(message) or 1
    for n in range(0, len(message), step):
        found.feed(message[n:n + step])
    found.finish()
    return found


def read(message: bytes) -> EmailMessage:
    found = email.message_from_bytes(message, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


HEAD = b"From: a@b\nMIME-Version: 1.0\n"
MIXED = HEAD + b"Content-Type: multipart/mixed; boundary=x\n\n"
UMLAUTS = "gr\u00fc\u00dfe\n".encode()


@pytest.mark.parametrize("step", [0, 1, 2, 7])
@pytest.mark.parametrize(("message", "size", "facts"), [
    (b"", 0, (False, False, False)),
    (b"a: b\n\nc\n", 11, (False, False, False)),
    (b"a: b\n\nc", 11, (False, False, False)),
    (b"a\n\n" + b"x" * MAX_LINE + b"\n", MAX_LINE + 7, (False, False, False)),
    (b"a\n\n" + b"x" * (MAX_LINE + 1) + b"\n", MAX_LINE + 8, (False, False, True)),
    (b"a\n\n" + b"x" * (MAX_LINE + 1), MAX_LINE + 8, (False, False, True)),
    (b"a\n\n" + (b"x" * MAX_LINE + b"\n") * 3, (MAX_LINE + 2) * 3 + 5, (False, False, False)),
    (b"a\n\nb\0c\n", 10, (False, False, True)),
    (b"a\n\nb\rc\n", 10, (False, False, True)),
    (b"a\n\n\rc\n", 9, (False, False, True)),
    (b"a\r\n\nbc\r\n", 11, (False, False, False)),
    (b"a\n\n\xff\n", 8, (True, False, False)),
    (b"a: \xff\n\nb\n", 11, (True, True, False)),
    (b"\n\xff\n", 5, (True, False, False)),
    (b"a\nb\n\n\xff", 11, (True, False, False)),
])
def test_what_a_survey_finds(message: bytes, size: int, facts: tuple[bool, bool, bool], step: int) -> None:
    found = survey(message, step)
    assert found.size == size
    assert (found.has_8bit, found.header_has_8bit, found.is_irregular) == facts


@pytest.mark.parametrize(("body", "charset", "encoding"), [
    (b"text around " + UMLAUTS, "utf-8", "quoted-printable"),
    (b"gr\xfc\xdfe und noch viel mehr Text ohne Umlaute\n", "unknown-8bit", "quoted-printable"),
    ("\u043f\u0440\u0438\u0432\u0435\u0442\n".encode() * 30, "utf-8", "base64"),
    (b"x" * 5000 + b"\n", "us-ascii", "quoted-printable"),
    (b"10%\r20%\r100%\n", "us-ascii", "quoted-printable"),
    (b"a\0b\n", "us-ascii", "quoted-printable"),
])
@pytest.mark.parametrize("step", [0, 1, 100])
def test_a_message_without_mime(body: bytes, charset: str, encoding: str, step: int) -> None:
    made = rewritten(b"From: a@b\nSubject: x\n\n" + body, step=step)
    found = read(made)
    assert made.startswith(b"From: a@b\nSubject: x\nMIME-Version: 1.0\n")
    assert (found.get_content_type(), found.get_param("charset")) == ("text/plain", charset)
    assert found["Content-Transfer-Encoding"] == encoding
    assert found.get_payload(decode=True).replace(b"\r\n", b"\n") == body


def test_what_needs_no_change_gets_none() -> None:
    multipart = HEAD + b'Content-Type: multipart/mixed; boundary="x"\n\n--x\n\na\n--x--\n'
    for message in (b"From: a\n\nb\n", b"", b"\n", b"no header\n", multipart,
                    HEAD + b"Content-Transfer-Encoding: base64\n\nYQ==\n"):
        assert rewritten(message) == message


def test_eight_bits_stay_where_the_host_takes_them() -> None:
    long = HEAD + b'Subject: \xc3\xbc\nContent-Type: multipart/mixed; boundary="x"\n\n--x\n\n' + UMLAUTS
    long += b"--x\n\n" + b"z" * 2000 + b"\n--x--\n"
    made = rewritten(long, to_7bit=False)
    assert UMLAUTS in made
    assert b"Subject: \xc3\xbc\n" in made
    assert not survey(made).is_irregular


def test_each_part_by_itself() -> None:
    message = HEAD + b'''Subject: =?utf-8?q?x?=
Content-Type: multipart/mixed; boundary="out\\"er"; charset=x
Content-Transfer-Encoding: 8bit

preamble \xff
--out"er
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: 8bit

gr\xfc\xdfe, und das ist noch nicht alles, was hier steht
--out"er
Content-Type: text/plain

ascii
--out"er
Content-Type: application/octet-stream; name=x
Content-Transfer-Encoding: binary

\0\1\2\xff\xfe

--out"er
Content-Type: multipart/alternative; boundary=inner

--inner
Content-Type: text/html; charset=utf-8
CONTENT-TRANSFER-ENCODING:  8BIT (so it says)

<p>gr\xc3\xbc\xc3\x9fe an alle, die das lesen und nicht nur den Text sehen</p>
--inner--
--out"er
Content-Type: message/rfc822

Subject: inner
Content-Type: text/plain; charset=utf-8

inner \xc3\xbc, und noch mehr Text, damit es nicht zu viele sind

--out"er--  \t
epilogue \xfe
'''
    made = rewritten(message)
    assert made == rewritten(message, step=1)
    assert made.isascii()
    parts = [(p.get_content_type(), p["Content-Transfer-Encoding"], p.get_payload(decode=True))
             for p in read(made).walk()]
    assert parts == [
        ("multipart/mixed", "7bit", None),
        ("text/plain", "quoted-printable", b"gr\xfc\xdfe, und das ist noch nicht alles, was hier steht"),
        ("text/plain", None, b"ascii"),
        ("application/octet-stream", "base64", b"\0\1\2\xff\xfe\n"),
        ("multipart/alternative", None, None),
        ("text/html", "quoted-printable",
         "<p>gr\u00fc\u00dfe an alle, die das lesen und nicht nur den Text sehen</p>".encode()),
        ("message/rfc822", None, None),
        ("text/plain", "quoted-printable", "inner \u00fc, und noch mehr Text, damit es nicht zu viele sind\n".encode()),
    ]
    assert b"preamble ?\n" in made
    assert b"epilogue ?\n" in made


def test_what_is_encoded_already_is_only_made_lawful() -> None:
    digits = b"QUJD" * 1000
    found = read(rewritten(HEAD + b"Content-Transfer-Encoding: base64\n\n" + digits + b"\n"))
    assert found.get_payload(decode=True) == b"ABC" * 1000
    quoted = b"=C3=BC" * 500 + b" = \xc3\xbc =20\n"
    fields = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
    made = rewritten(HEAD + fields + quoted)
    assert read(made).get_payload(decode=True).decode() == "\u00fc" * 500 + " = \u00fc  \n"
    assert not survey(made).is_irregular
    assert not survey(made).has_8bit


def test_an_encoding_that_we_do_not_know_is_kept_as_far_as_it_is_lawful() -> None:
    made = rewritten(HEAD + b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 \xff\n" + b"M" * 1500 + b"\0\nend\n")
    assert made.endswith(b"\nbegin 644 ?\n" + b"M" * MAX_LINE + b"\n" + b"M" * 502 + b"\nend\n")


def test_a_digest_holds_messages() -> None:
    message = b"Content-Type: multipart/digest; boundary=d\n\n--d\n\nSubject: one \xc3\xbc\n\n" + UMLAUTS
    found = read(rewritten(HEAD + message + b"\n--d--\n"))
    inner = found.get_payload(0).get_payload(0)
    assert inner["Subject"] == "one \u00fc"
    assert inner.get_payload(decode=True) == UMLAUTS.replace(b"\n", b"\r\n"), "base64 of text has CRLF line ends"


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(("body", "made"), [
    (b"\0 a  \nb\t\n \n", b"=00 a =20\nb=09\n=20\n"),
    (b"\0a ", b"=00a=20"),
    (b"\0" + b"x" * 72 + b" ", b"=00" + b"x" * 72 + b"=\n=20"),
    (b"\0" + b"x" * 71 + b"== y\n", b"=00" + b"x" * 71 + b"=\n=3D=3D y\n"),
    (b"\0" + b"x" * 72 + b"\n", b"=00" + b"x" * 72 + b"\n"),
    (b"\0" + b"x" * 73 + b"\n", b"=00" + b"x" * 72 + b"=\nx\n"),
    (b"\0a\r\nb\rc\n", b"=00a\nb=0Dc\n"),
    (b"\0~=}\n", b"=00~=3D}\n"),
])
def test_quoted_printable(body: bytes, made: bytes, step: int) -> None:
    assert rewritten(HEAD + b"Content-Type: text/plain\n\n" + body, step=step).partition(b"\n\n")[2] == made


def test_a_blank_line_of_carriage_returns_is_a_blank_line() -> None:
    assert rewritten(b"X: y\r\n\r\r\n\0\r\n") == (
        b"X: y\nMIME-Version: 1.0\nContent-Type: text/plain; charset=us-ascii\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n=00\n")


def test_between_parts_nothing_odd_is_left() -> None:
    assert rewritten(MIXED + b"a\r\rb\0\r\n--x\n\n--x--\r\r\n") == MIXED + b"ab\n--x\n\n--x--\n"


def test_line_ends_of_base64_text_are_crlf_once() -> None:
    found = read(rewritten(HEAD + b"Content-Type: text/plain\n\n" + b"\xff\xff\r\n\xfe\n"))
    assert found.get_payload(decode=True) == b"\xff\xff\r\n\xfe\r\n"


def test_a_boundary_in_a_header_ends_that_header() -> None:
    made = rewritten(MIXED + b"--x\nX: y\n--x\nContent-Type: text/plain\n--x--\n\xff\n")
    assert made == MIXED + b"--x\nX: y\n--x\nContent-Type: text/plain\n--x--\n?\n"


@pytest.mark.parametrize(("value", "made"), [
    ("Subject: gr\u00fc\u00dfe an alle", b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?= an alle"),
    ("Subject: \u00e4 \u00f6\n \u00fc", b"Subject: =?utf-8?q?=C3=A4_=C3=B6_=C3=BC?="),
    ("From: J\u00f6rg M\u00fcller <j@x>", b"From: =?utf-8?q?J=C3=B6rg_M=C3=BCller?= <j@x>"),
    ('From: "J\u00f6rg \\"x\\" M." <j@x>, b@c', b'From: =?utf-8?q?J=C3=B6rg_=22x=22_M=2E?= <j@x>, b@c'),
    ("From: j@x (J\u00f6rg)", b"From: j@x (=?utf-8?q?J=C3=B6rg?=)"),
    ("To: <j\u00f6@x>, j\u00fc@x", b"To: <j??@x>, j??@x"),
    ("X-\u00fc: a", b"X-??: a"),
    ("Subject: plain", b"Subject: plain"),
])
def test_header_fields_in_seven_bits(value: str, made: bytes) -> None:
    assert transfer.field(value.encode(), to_7bit=True) == made


def test_a_header_in_no_charset_is_said_to_be_in_none() -> None:
    assert transfer.field(b"Subject: gr\xfc\xdfe", to_7bit=True) == b"Subject: =?unknown-8bit?q?gr=FC=DFe?="


def test_a_long_run_becomes_several_encoded_words() -> None:
    made = transfer.field(("Subject: " + "\u00e4\u00f6\u00fc" * 100).encode(), to_7bit=True)
    assert all(len(line) <= 90 for line in made.split(b"\n"))
    assert read(made + b"\n\n")["Subject"] == "\u00e4\u00f6\u00fc" * 100


@pytest.mark.parametrize("field", [
    b"X: " + b"word " * 500, b"X: " + b"w" * 5000, b"X:" + b" " * 3000 + b"y", b"X: a\0b\rc",
    b"X: " + b"\t" * 2000 + b"y" * 2000])
def test_long_fields_are_folded(field: bytes) -> None:
    made = transfer.field(field, to_7bit=False)
    lines = made.split(b"\n")
    assert all(len(line) <= MAX_LINE for line in lines)
    assert all(line.startswith((b" ", b"\t")) for line in lines[1:])
    assert made.translate(None, b" \t\n") == field.translate(None, b" \t\n\0\r")


def test_structures_beyond_the_limits_cannot_be_converted() -> None:
    many = MIXED + b"--x\n\n\xff\n" * (MAX_PARTS + 1)
    for message in (many, b"X: " + b"y" * MAX_HEADER + b"\n\n", b"X: y\n" * (MAX_HEADER // 4)):
        with pytest.raises(Unreadable):
            rewritten(message)


def test_what_is_nested_too_deep_is_content() -> None:
    message = b"".join(b"Content-Type: message/rfc822\n\n" for _ in range(MAX_DEPTH + 10)) + UMLAUTS
    made = rewritten(message)
    assert made.isascii()
    assert made.count(b"Content-Transfer-Encoding: ") == 1
    deep = b""
    for n in range(MAX_DEPTH + 10):
        deep += b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n)
    assert rewritten(deep + b"\n" + UMLAUTS).isascii()


def test_hostile_input_takes_linear_time() -> None:
    """Each was chosen to be quadratic for a careless reader; what hangs runs into the time limit of the test."""
    for message in (b'X: "' + b'\\"' * 120_000 + b"\xff\n\n", b"X: " + b"<" * 250_000 + b"\xff\n\n",
                    b"X:\n" + b" \n" * 120_000 + b"\n\xff",
                    b'Content-Type: m/x' + b';boundary="' * 20_000 + b"\n\n\xff",
                    b"X: " + b"\xff " * 80_000 + b"\n\n", b"\n" + b"--" * 1_000_000 + b"\xff",
                    MIXED + b"--x\n\n" * 4000 + b"--\n" * 300_000):
        assert rewritten(message).isascii()


PIECES = [
    b"\n", b"\n\n", b"\r\n", b"\r", b"\0", b"\t", b" ", b"=", b'"', b"<", b"text", b"\xff", b"\xc3\xbc", b"a@b",
    b"YWJj", b"z" * 1200, b"--x", b"--x--", b"--y\n", b"X: y\n", b"Content-Type: multipart/mixed; boundary=x\n",
    b"Content-Type: multipart/alternative; boundary=y\n", b"Content-Type: message/rfc822\n",
    b"Content-Type: application/x\n", b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: 8bit\n",
    b"Content-Transfer-Encoding: quoted-printable\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join), st.booleans(), st.integers(1, 40))
def test_whatever_comes_it_is_lawful_afterwards(message: bytes, to_7bit: bool, step: int) -> None:
    made = rewritten(message, to_7bit=to_7bit, step=step)
    assert made == rewritten(message, to_7bit=to_7bit)
    found = survey(made)
    assert not found.is_irregular
    assert not (to_7bit and found.has_8bit)


@given(st.binary(max_size=400), st.integers(1, 50), st.booleans())
def test_quoted_printable_is_what_it_was(body: bytes, step: int, is_high: bool) -> None:
    body = (b"\xff" if is_high else b"\0") + b"plain text, so that it is not base64" * 20 + body.replace(b"\r\n", b"\n")
    made = rewritten(HEAD + b"Content-Type: text/plain; charset=x\n\n" + body, step=step)
    found = read(made)
    if found["Content-Transfer-Encoding"] == "quoted-printable":
        assert found.get_payload(decode=True) == body.replace(b"\r\n", b"\n")
        assert all(len(line) <= transfer.WIDTH for line in made.partition(b"\n\n")[2].split(b"\n"))


@given(st.binary(max_size=400).filter(lambda b: b"\n--x" not in b"\n" + b), st.integers(1, 50))
def test_base64_is_what_it_was(body: bytes, step: int) -> None:
    message = MIXED + b"--x\nContent-Type: image/png\n\n\0" + body + b"\n--x--\n"
    part = read(rewritten(message, step=step)).get_payload(0)
    assert part["Content-Transfer-Encoding"] == "base64"
    assert part.get_payload(decode=True) == b"\0" + body
