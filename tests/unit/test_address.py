"""Address lists as people write them: who is meant, where it stands, and what is refused."""

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.mail import address
from pysendmail.mail.address import AddressError, is_valid, parse_list, split, split_text, unquote


def specs(value: bytes) -> list[bytes]:
    return [spec for spec, _, _ in parse_list(value)]


@pytest.mark.parametrize(("value", "expected"), [
    (b"", []),
    (b" \t\n ", []),
    (b"alice", [b"alice"]),
    (b" alice@example.org ", [b"alice@example.org"]),
    (b"alice,bob", [b"alice", b"bob"]),
    (b"alice;bob;", [b"alice", b"bob"]),
    (b",, alice ,;, bob,", [b"alice", b"bob"]),
    (b"<alice@x>", [b"alice@x"]),
    (b"Alice <alice@x>", [b"alice@x"]),
    (b"Alice Liddell <alice@x>, Bob\t<bob>", [b"alice@x", b"bob"]),
    (b'"Liddell, Alice" <alice@x>, bob', [b"alice@x", b"bob"]),
    (b'"a \\" , <x>" <alice@x>', [b"alice@x"]),
    (b"alice (Liddell, of \"Ops\" (night))", [b"alice"]),
    (b"(nobody) alice(x)@(y)example(z).org", [b"alice@example.org"]),
    (b"root (Cron Daemon)", [b"root"]),
    (b"J. R. <jr@x>", [b"jr@x"]),
    (b"alice @ example . org", [b"alice@example.org"]),
    (b"< alice @ x >", [b"alice@x"]),
    (b"alice@x <alice@y>", [b"alice@y"]),  # an address as display name
    (b"alice@x\n\t<alice@y>", [b"alice@y"]),
    (b"alice at work <alice@x> (later)", [b"alice@x"]),
    (b"<alice@x> <bob@x>", [b"alice@x", b"bob@x"]),  # the comma forgotten
    (b"<alice@x> bob@x", [b"alice@x", b"bob@x"]),
    (b"alice@x bob@x, carol", [b"alice@x", b"bob@x", b"carol"]),
    (b"<alice@x> (c) and more words, bob", [b"alice@x", b"bob"]),
    (b"Bob bob@x, carol", [b"bob@x", b"carol"]),
    # Domain literals, more than one "@", 8-bit.
    (b"alice@[192.0.2.1], bob@[IPv6:2001:db8::1]", [b"alice@[192.0.2.1]", b"bob@[IPv6:2001:db8::1]"]),
    (b"a@b@c", [b"a@b@c"]),
    ("müller@exämple.org".encode(), ["müller@exämple.org".encode()]),
    (b"m\xfcller", [b"m\xfcller"]),
    # Quoted local parts.
    (b'"a b"@x', [b'"a b"@x']),
    (b'"a@b"', [b'"a@b"']),
    (b'"a\n b"@x', [b'"a b"@x']),
    (b'""@x', [b'""@x']),
    (b'"|touch /tmp/x"@x', [b'"|touch /tmp/x"@x']),
    # Groups.
    (b"undisclosed-recipients:;", []),
    (b"undisclosed-recipients:", []),
    (b"friends: alice, Carol C <carol>;", [b"alice", b"carol"]),
    (b"friends:alice;, bob", [b"alice", b"bob"]),
    (b'"the a: b" list: alice;bob', [b"alice", b"bob"]),
    (b"mailto:alice@x", [b"alice@x"]),
    # Routes.
    (b"<@a,@b:c@d>", [b"c@d"]),
    (b"<@a:c@d>, e", [b"c@d", b"e"]),
    (b"@a,@b:c@d, e", [b"c@d", b"e"]),
    (b"@a:c@d", [b"c@d"]),
    # Blanks separate where nothing else does, as in sendmail; words beside a name do not.
    (b"alice bob\ncarol", [b"alice", b"bob", b"carol"]),
    (b"alice@x bob@y", [b"alice@x", b"bob@y"]),
    (b"team: alice bob", [b"alice", b"bob"]),
    (b"John Smith, alice", [b'"John Smith"', b"alice"]),
    (b'John "the" Smith, alice', [b'"John the Smith"', b"alice"]),
    # What the trusted side refuses is an address here.
    (b"|/bin/sh", [b"|/bin/sh"]),
    (b"/etc/passwd", [b"/etc/passwd"]),
    (b":include:/etc/passwd", [b":include:/etc/passwd"]),
    (b"alice, :include:/etc/passwd", [b"alice", b":include:/etc/passwd"]),
    (b"\\alice", [b"\\alice"]),
    (b"a\\,b", [b"a\\,b"]),
    (b"host!alice, alice%x@y", [b"host!alice", b"alice%x@y"]),
    (b"-Xfile", [b"-Xfile"]),
    # The null address, and what closes nothing.
    (b"<>", [b""]),
    (b"alice, <>", [b"alice", b""]),
    (b"alice), bob>", [b"alice", b"bob"]),
])
def test_who_is_meant(value: bytes, expected: list[bytes]) -> None:
    assert specs(value) == expected


@pytest.mark.parametrize(("value", "words"), [
    (b'"alice', "quote"),
    (b"alice (x", "'('"),
    (b"alice (x\\)", "'('"),
    (b"alice@[192.0.2.1", "'['"),
    (b"<alice", "'<'"),
    (b"<alice, bob", "',' inside <>"),
    (b"<alice<bob>>", "'<' inside <>"),
    (b"<a;b>", "';' inside <>"),
    (b"<a:b>", "':' inside <>"),
    (b"<@a:@b:c@d>", "':' inside <>"),
    (b"alice@", "after '@'"),
    (b"@x", "before '@'"),
    (b"@x, alice@y", "before '@'"),
    (b"<@>", "'@'"),
    (b"<alice@my host>", "blank or quote in the domain"),
    (b'alice@"host"', "blank or quote in the domain"),
    (b"alice@h\\ost", "blank or quote in the domain"),
    (b"alice@h[1]", "blank or quote in the domain"),
    (b"alice\\", "backslash before nothing"),
    (b"alice\\\n b", "backslash before nothing"),
    (b'"alice\\\r\n b"', "backslash before nothing"),
    (b'"alice\\', "backslash before nothing"),
    (b"alice\0", "control character"),
    (b"alice\x7f", "control character"),
    (b"ali\x1b[2Jce", "control character"),
    (b"(" * (address.MAX_NESTING + 1) + b")" * (address.MAX_NESTING + 1), "too deeply"),
])
def test_what_is_refused_says_why(value: bytes, words: str) -> None:
    with pytest.raises(AddressError) as refusal:
        parse_list(value)
    assert words in str(refusal.value)


def test_comments_may_nest_up_to_the_limit() -> None:
    assert specs(b"alice " + b"(" * address.MAX_NESTING + b")" * address.MAX_NESTING) == [b"alice"]


@pytest.mark.parametrize(("value", "expected"), [
    (b'Alice <alice>, bob (x), carol@y\n\t, "d e", (c) f . g',
     b'Alice <alice@m>, bob@m (x), carol@y\n\t, "d e"@m, (c) f . g@m'),
    (b"alice", b"alice@m"),
    (b"friends: <a>,\n b;", b"friends: <a@m>,\n b@m;"),
    (b"a b", b"a@m b@m"),
])
def test_the_place_is_where_a_domain_can_be_put(value: bytes, expected: bytes) -> None:
    for spec, _, end in reversed(parse_list(value)):
        if not split(spec)[1]:
            value = value[:end] + b"@m" + value[end:]
    assert value == expected


@pytest.mark.parametrize(("whole", "local", "domain"), [
    (b"a@b", b"a", b"b"),
    (b"a", b"a", b""),
    (b"", b"", b""),
    (b"a@b@c", b"a@b", b"c"),
    (b'"a@b"', b'"a@b"', b""),
    (b'"a@b"@c', b'"a@b"', b"c"),
    (b'"a\\"@b"@c', b'"a\\"@b"', b"c"),
    (b'"a@b', b'"a@b', b""),
    (b"a\\", b"a\\", b""),
    (b"\xff@b", b"\xff", b"b"),
])
def test_split_is_at_the_last_at_outside_quotes(whole: bytes, local: bytes, domain: bytes) -> None:
    assert split(whole) == (local, domain)
    as_text = whole.decode("utf-8", "surrogateescape")
    assert tuple(part.encode("utf-8", "surrogateescape") for part in split_text(as_text)) == (local, domain)


@pytest.mark.parametrize(("quoted", "plain"), [
    (b"alice", b"alice"), (b'"alice"', b"alice"), (b'"a b"', b"a b"), (b'"a\\"b\\\\c"', b'a"b\\c'),
    (b"\\alice", b"alice"), (b"a\\", b"a\\"), (b'""', b"")])
def test_unquote(quoted: bytes, plain: bytes) -> None:
    assert unquote(quoted) == plain


@pytest.mark.parametrize(("one", "expected"), [
    (b"alice", True), (b"alice@example.org", True), (b'"a b"@x', True), ("ä@ö".encode(), True),
    (b"a" * address.MAX_ADDRESS, True), (b"a" * (address.MAX_ADDRESS + 1), False),
    (b"a@" + b"d" * address.MAX_DOMAIN, True), (b"a@" + b"d" * (address.MAX_DOMAIN + 1), False),
    (b"", False), (b"a\nb", False), (b"a\rb", False), (b"a\0b", False), (b"a\tb", False), (b"a\x7fb", False),
])
def test_what_an_envelope_can_carry(one: bytes, expected: bool) -> None:
    assert is_valid(one) is expected


PIECES = st.lists(st.sampled_from([
    b"alice", b"bob@example.org", b"@", b".", b",", b";", b":", b"<", b">", b"(", b")", b'"', b"[", b"]", b"\\", b" ",
    b"\n\t", b'"x, y"', b"(c)", b"<a@b>", b"@r:", b"\xff", b"\0", b":include:"]), max_size=30).map(b"".join)


@given(PIECES | st.binary(max_size=80))
def test_any_value_gives_addresses_or_a_refusal(value: bytes) -> None:
    try:
        found = parse_list(value)
    except AddressError as problem:
        refusal = str(problem)
    else:
        refusal = ""
    assert refusal.isascii()
    assert refusal.isprintable()
    if refusal:
        return
    end_before = 0
    for spec, start, end in found:
        assert end_before <= start <= end <= len(value), "places are in order and do not overlap"
        end_before = end
        assert not set(spec) & set(b"\r\n\0"), "an address is one line"
        assert spec == b"" or start < end
        assert b" " not in split(spec)[1] or b"[" in spec, "no blanks in a domain"


@given(PIECES)
def test_an_address_read_again_in_brackets_is_itself(value: bytes) -> None:
    """What goes into an envelope or a header again means the same there."""
    try:
        found = parse_list(value)
    except AddressError:
        return
    for spec, _, _ in found:
        if not spec.startswith(b":"):  # ":include:" has no meaning in brackets
            assert specs(b"<%s>" % spec) == [spec]


ATOMS = st.text("abcXYZ09!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=8)
MAILBOX = st.tuples(ATOMS, ATOMS).map("@".join)
NAMES = st.lists(ATOMS, max_size=3).map(" ".join) | st.text("abc ,;:<>@()", max_size=8).map(lambda text: f'"{text}"')
NAMED = st.tuples(NAMES, MAILBOX).map(lambda pair: f"{pair[0]} <{pair[1]}>")


@given(st.lists(MAILBOX | NAMED, max_size=6))
def test_proper_lists_mean_the_same_to_pythons_parser(mailboxes: list[str]) -> None:
    """A second opinion: the standard library reads what the RFC allows."""
    value = ", ".join(mailboxes)
    expected = [spec for _, spec in email.utils.getaddresses([value]) if spec]
    assert [spec.decode() for spec in specs(value.encode())] == expected


@pytest.mark.parametrize("piece", [
    b"(", b"\\", b"@a,", b"a ", b'"', b"<", b":", b"a:", b"[", b"(x)", b"a@b ", b"<a>", b",", b"."])
def test_the_work_grows_with_the_length_only(piece: bytes) -> None:
    """Counted in lines of Python, not in time: four times the input takes about four times the steps."""
    def steps(size: int) -> int:
        import sys
        count = 0

        def trace(*_: object) -> object:
            nonlocal count
            count += 1
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            parse_list(piece * size)
        except AddressError:
            pass
        finally:
            sys.settrace(None)
        return count

    assert steps(2000) < 5 * steps(500) + 500
