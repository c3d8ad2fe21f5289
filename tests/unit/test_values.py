"""Right-hand sides of aliases, .forward files and lists: what they mean; nothing breaks or stalls the parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.route import values
from pysendmail.route.values import (
    ADDRESS,
    BLACKHOLE,
    COMMAND,
    DEFER,
    ERROR,
    FILE,
    INCLUDE,
    LOCAL,
    Value,
    parse,
    parse_lines,
    render,
)


def addresses(*found: bytes) -> list[Value]:
    return [Value(ADDRESS, one) for one in found]


@pytest.mark.parametrize(("text", "expected"), [
    (b"", []),
    (b" , ,\t,", []),
    (b"(nobody)", []),
    (b"alice", addresses(b"alice")),
    (b"alice, bob@example.org,carol", addresses(b"alice", b"bob@example.org", b"carol")),
    (b"  alice ,\tbob,", addresses(b"alice", b"bob")),
    (b"user+detail@example.org., www-data", addresses(b"user+detail@example.org.", b"www-data")),
    (b"a%b@example.org, host!user", addresses(b"a%b@example.org", b"host!user")),
    (b"j\xc3\xb6rg@b\xc3\xbccher.example", addresses(b"j\xc3\xb6rg@b\xc3\xbccher.example")),
    (b"a@[192.0.2.1], <b@[IPv6:2001:db8::1]>", addresses(b"a@[192.0.2.1]", b"b@[IPv6:2001:db8::1]")),
    (b"a@[192.0.2.1], b@[IPv6:2001:db8::1]", addresses(b"a@[192.0.2.1]", b"b@[IPv6:2001:db8::1]")),
    (b"alice (Alice, (really) A. \\) x), bob", addresses(b"alice", b"bob")),
    (b"(first) alice", addresses(b"alice")),
    (b"Alice A. <alice@example.org>, <bob>", addresses(b"alice@example.org", b"bob")),
    (b'"A, B" <ab@example.org> (c), d', addresses(b"ab@example.org", b"d")),
    (b"<@relay.example,@other.example:alice@example.org>", addresses(b"alice@example.org")),
    (b'"john doe"@example.org, "john doe"', addresses(b'"john doe"@example.org', b'"john doe"')),
    (b'"alice"@example.org, "alice", "alice@example.org"',
     addresses(b"alice@example.org", b"alice", b"alice@example.org")),
    (b'"a\\"b\\\\c"@example.org', addresses(b'"a\\"b\\\\c"@example.org')),
    (b'"|x"@example.org, "/y"@example.org', addresses(b'"|x"@example.org', b'"/y"@example.org')),
])
def test_addresses(text: bytes, expected: list[Value]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    (b"\\alice", [Value(LOCAL, b"alice")]),
    (b"\\alice@example.org", [Value(LOCAL, b"alice@example.org")]),
    (b'"\\alice", "\\\\bob"', [Value(LOCAL, b"alice"), Value(LOCAL, b"bob")]),
    (b'\\"john doe"', [Value(LOCAL, b'"john doe"')]),
    (b'\\eric, "|/usr/bin/vacation -a eric2 eric"',
     [Value(LOCAL, b"eric"), Value(COMMAND, b"/usr/bin/vacation -a eric2 eric")]),
    (b"/var/mail/archive, /home/a/Maildir/", [Value(FILE, b"/var/mail/archive"), Value(FILE, b"/home/a/Maildir/")]),
    (b'"/var/mail/a, b"', [Value(FILE, b"/var/mail/a, b")]),
    (b"~/Mail/in, alice", [Value(FILE, b"~/Mail/in"), *addresses(b"alice")]),
    (b"/dev/null", [values.NOWHERE]),
    (b'"|/usr/bin/x a, b", c', [Value(COMMAND, b"/usr/bin/x a, b"), *addresses(b"c")]),
    (b'|"/usr/bin/x a, b", c', [Value(COMMAND, b"/usr/bin/x a, b"), *addresses(b"c")]),
    (b"|/usr/bin/x a b, c", [Value(COMMAND, b"/usr/bin/x a b"), *addresses(b"c")]),
    (b'|/usr/bin/x "a, b" c , d', [Value(COMMAND, b'/usr/bin/x "a, b" c'), *addresses(b"d")]),
    (b'"|printf \\"%s\\\\n\\" x"', [Value(COMMAND, b'printf "%s\\n" x')]),
    (b'"| IFS=\' \' && exec /usr/bin/procmail || exit 75 #bob"',
     [Value(COMMAND, b"IFS=' ' && exec /usr/bin/procmail || exit 75 #bob")]),
    (b":include:/etc/mail/list, bob", [Value(INCLUDE, b"/etc/mail/list"), *addresses(b"bob")]),
    (b'":include:/etc/my list"', [Value(INCLUDE, b"/etc/my list")]),
    (b':INCLUDE: "/etc/my list", bob', [Value(INCLUDE, b"/etc/my list"), *addresses(b"bob")]),
    (b":blackhole:", [Value(BLACKHOLE, b"")]),
])
def test_everything_that_is_no_address(text: bytes, expected: list[Value]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(("text", "kind", "expected"), [
    (b"error:550 5.1.6 moved, sorry", ERROR, b"5.1.6 moved, sorry"),
    (b"error:5.1.6:550 moved", ERROR, b"5.1.6 moved"),
    (b"error:5.7.1 no", ERROR, b"5.7.1 no"),
    (b"error:550 no", ERROR, b"5.2.1 no"),
    (b"error:no such thing", ERROR, b"5.2.1 no such thing"),
    (b"ERROR:", ERROR, b"5.2.1 this address takes no mail"),
    (b"error:451 4.3.2 later", DEFER, b"4.3.2 later"),
    (b"error:450", DEFER, b"4.2.1 this address takes no mail"),
    (b'"error:550 a, b"', ERROR, b"5.2.1 a, b"),
    (b":fail: gone, for good", ERROR, b"5.2.1 gone, for good"),
    (b":fail:", ERROR, b"5.2.1 this address takes no mail"),
    (b":defer: not today", DEFER, b"4.2.1 not today"),
    (b":unknown:", ERROR, b"5.1.1 user unknown"),
    (b":unknown: who?", ERROR, b"5.1.1 who?"),
    (b":fail: 5501 is our number", ERROR, b"5.2.1 5501 is our number"),
    (b":fail: 5.5 is not a status", ERROR, b"5.2.1 5.5 is not a status"),
])
def test_refusals(text: bytes, kind: str, expected: bytes) -> None:
    assert parse(text) == [Value(kind, expected)]


def test_the_text_of_a_refusal_reaches_to_the_end_unless_quoted() -> None:
    assert parse(b"bob, :fail: gone, alice") == [*addresses(b"bob"), Value(ERROR, b"5.2.1 gone, alice")]
    assert parse(b'"error:gone", alice') == [Value(ERROR, b"5.2.1 gone"), *addresses(b"alice")]


@pytest.mark.parametrize(("text", "words"), [
    (b"alice bob", "blank inside an address"),
    (b"alice@example org", "unexpected|blank|not a domain"),
    (b"a@b@c", "not an address"),
    (b"alice@", "not a domain"),
    (b"@example.org", "not an address"),
    (b"alice@exam/ple", "not a domain"),
    (b"alice@.example", "not a domain"),
    (b"alice@a..b", "not a domain"),
    (b"alice@[", "not a domain"),
    (b'"alice"bob', "text after a quoted name"),
    (b'"alice', "missing quote"),
    (b'"alice\\', "missing quote"),
    (b"(alice", r"missing '\)'"),
    (b"alice)", r"unexpected '\)'"),
    (b"<alice", "missing '>'"),
    (b"<>", "empty address"),
    (b"</etc/passwd>", "not an address"),
    (b"A <alice> b", "text after '>'"),
    (b"A <alice> <bob>", "text after '>'"),
    (b"team: a, b;", "unexpected ':'"),
    (b"al\\ice", "unexpected"),
    (b"\\", "nothing after the backslash"),
    (b"|", "nothing after the bar"),
    (b'"|"', "nothing after the bar"),
    (b"/var/mail/a b", "blanks must be in quotes"),
    (b'/var/"a"', "blanks must be in quotes"),
    (b":include:list", "absolute path"),
    (b":include:", "absolute path"),
    (b":mystery: x", "unknown keyword"),
    (b":x", "unknown keyword"),
    (b"error:550 4.1.1 what", "do not agree"),
    (b"error:2.0.0 fine", "do not agree"),
    (b"alice\0", "control character"),
    (b"alice\r", "control character"),
    (b"alice\nbob", "control character"),
    (b"alice\x7f", "control character"),
    (b'""', "not an address"),
    (b"(" * 60, "nested too deeply"),
])
def test_what_is_wrong_is_said(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_an_error_shows_little_and_nothing_harmful() -> None:
    with pytest.raises(ValueError) as problem:
        parse(b'"\xff\x9b' + b"x" * 10_000)
    assert len(str(problem.value)) < 200
    assert str(problem.value).isascii()
    assert str(problem.value).isprintable()


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_VALUES", 10)
    for item in (b"a", b"\\a"):
        assert len(parse(b",".join([item] * 10))) == 10
        with pytest.raises(ValueError, match="more than 10"):
            parse(b",".join([item] * 11))
    assert parse_lines(b"a\n" * 11)[0].problem == "more than 10 values"


def test_lines_of_a_list() -> None:
    data = (b"# the team\nalice\r\n\n  carol  \n\t# end\nboss, alice\nwrong wrong\n"
            b'"|cmd \\"x\\""\nlast')
    assert parse_lines(data) == [
        values.Line(2, Value(ADDRESS, b"alice")), values.Line(4, Value(ADDRESS, b"carol")),
        values.Line(6, Value(ADDRESS, b"boss")), values.Line(6, Value(ADDRESS, b"alice")),
        values.Line(7, None, "blank inside an address; is a comma missing? 'wrong wrong'"),
        values.Line(8, Value(COMMAND, b'cmd "x"')), values.Line(9, Value(ADDRESS, b"last"))]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# only\n  # comments", b" , ,\n(x)"])
def test_a_list_of_nobody_is_empty(data: bytes) -> None:
    assert parse_lines(data) == []


def test_digests_differ_by_text_alone() -> None:
    one, other = Value(COMMAND, b"cmd a"), Value(COMMAND, b"cmd b")
    assert one.digest != other.digest
    assert one.digest == parse(b'"|cmd a"')[0].digest == parse(b"| cmd a")[0].digest


@pytest.mark.parametrize(("value", "status", "reason"), [
    (Value(ERROR, b"5.1.6 moved"), "5.1.6", "moved"), (Value(DEFER, b"4.2.1 later"), "4.2.1", "later"),
    (Value(BLACKHOLE, b""), "2.0.0", "discarded: :blackhole:"), (values.NOWHERE, "2.0.0", "discarded: /dev/null"),
    (Value(INCLUDE, b"/x"), "5.7.1", "include is not allowed here")])
def test_outcomes_of_values_that_name_no_place(value: Value, status: str, reason: str) -> None:
    outcome = values.outcome_of(value)
    assert (outcome.status, outcome.reason) == (status, reason)


# ---- any input at all

NO_CONTROLS = st.binary().map(lambda data: bytes(b for b in data if b >= 32 and b != 127))
ATOMS = st.text("abcXYZ019.-_+!%\u00e4", min_size=1, max_size=8).map(lambda text: text.encode())
LOCALS = ATOMS | NO_CONTROLS.filter(bool)
DOMAINS = st.sampled_from([b"example.org", b"a.b", b"[127.0.0.1]", b"b\xc3\xbc.example"])


def is_bare_address(local: bytes) -> bool:
    """Alone, without a domain, these would be something else."""
    marks = (b"/", b"|", b":", b"~/", b"\\")
    return not local.startswith(marks) and local[:6].lower() != b"error:" and b"@" not in local


ADDRESS_TEXTS = st.builds(lambda local, domain: values.words.spelled(local, domain), LOCALS, DOMAINS) | LOCALS.filter(
    is_bare_address).map(lambda local: values.words.spelled(local, b""))
TRIMMED = NO_CONTROLS.map(lambda text: text.strip(b" \t")).filter(bool)
STATUSES = st.sampled_from([b"5.1.1", b"5.7.26", b"5.0.0"])
VALUES = st.one_of(
    st.builds(Value, st.sampled_from([ADDRESS, LOCAL]), ADDRESS_TEXTS),
    st.builds(lambda rest: Value(FILE, b"/" + rest), NO_CONTROLS),
    st.builds(lambda rest: Value(INCLUDE, b"/" + rest.strip(b" \t")), NO_CONTROLS),
    st.builds(lambda text: Value(COMMAND, text), TRIMMED),
    st.builds(lambda status, rest: Value(ERROR, status + b" text " + rest.strip(b" \t")), STATUSES, TRIMMED),
    st.builds(lambda rest: Value(DEFER, b"4.2.1 text " + rest), TRIMMED))


def test_a_black_hole_is_rendered_and_read_back() -> None:
    """It comes last: what follows on the line is its text."""
    found = [*addresses(b"alice"), Value(BLACKHOLE, b"")]
    assert parse(b", ".join(map(render, found))) == found


@given(st.lists(VALUES, max_size=5))
def test_what_is_rendered_is_read_back(found: list[Value]) -> None:
    assert parse(b", ".join(map(render, found))) == found


@given(st.binary(max_size=200) | st.text('ab"\\|/:,<>()@ ~#\t', max_size=60).map(str.encode))
def test_any_text_is_parsed_or_refused_and_means_the_same_when_rendered(text: bytes) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert parse(b", ".join(map(render, found))) == found


@given(st.binary(max_size=300))
def test_any_list_is_read(data: bytes) -> None:
    for line in parse_lines(data):
        assert (line.value is None) == bool(line.problem)


SIZE = 400_000


@pytest.mark.limit(30)
@pytest.mark.parametrize("part", [
    b'"\\', b'"', b'"a"', b'|"a"', b'<"a"', b"(", b"(a)", b"a (b) ", b"<", b">", b"\\", b"|", b":include:", b"a <b> ",
    b'"a" ', b"a,", b",", b" ", b'\\"', b"@", b"a@", b'a "b" ', b"/", b"[", b"[a:", b"~/", b"error:",
    b'|"\\"" ', b'"\\a', b"<\\"])
def test_time_grows_with_the_length_alone(part: bytes) -> None:
    """A pass over the rest for each part would take far longer than the limit of this test."""
    text = part * (SIZE // len(part))
    for whole in (text, b'"' + text, b"a <" + text, b"|" + text + b'"'):
        try:
            parse(whole)
        except ValueError:
            pass
