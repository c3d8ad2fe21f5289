"""Commands, paths, parameters, xtext and address literals: what is taken, what is refused, what is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.smtp import grammar
from pysendmail.smtp.grammar import BadSyntax, MailParameters, RcptParameters
from pysendmail.smtp.reply import Reply
from pysendmail.smtp.wire import LocalError

ALL = frozenset(("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "AUTH"))


def refusal(argument: str, extensions: frozenset[str] = ALL) -> Reply:
    with pytest.raises(BadSyntax) as caught:
        grammar.parse_mail(argument, extensions)
    return caught.value.reply


@pytest.mark.parametrize(("line", "command"), [
    (b"NOOP", ("NOOP", "")),
    (b"noop  x y ", ("NOOP", "x y")),
    (b"Mail From:<a@b>", ("MAIL", "From:<a@b>")),
    (b"EHLO \xff", ("EHLO", "\udcff")),
    (b"VRFY gr\xc3\xbc", ("VRFY", "gr\u00fc")),
])
def test_a_command_is_a_word_and_the_rest(line: bytes, command: tuple[str, str]) -> None:
    assert grammar.parse_command(line) == command


@pytest.mark.parametrize("line", [
    b"", b" NOOP", b"\0\0\0", b"\x16\x03\x01", b"NO-OP", b"NOOP\tx", b"NOOP\0", b"MAIL FROM:<a\0b@c>", b"NOOP x\x1b[2J",
    b"NOOP a\rb", b"NOOP a\nb", b"NOOP\x7f", b"\xc3\xbcberhaupt", b"{json}",
])
def test_what_is_no_command_is_refused(line: bytes) -> None:
    with pytest.raises(BadSyntax) as caught:
        grammar.parse_command(line)
    assert caught.value.reply.code == 500


@pytest.mark.parametrize(("path", "address"), [
    ("<a@example.org>", "a@example.org"),
    ("<>", ""),
    ("<Joe.User+detail=x@Sub.Example.ORG>", "Joe.User+detail=x@Sub.Example.ORG"),
    (" <a@b>", "a@b"),
    ("a@b", "a@b"),
    ("<Postmaster>", "Postmaster"),
    ("<a@b.>", "a@b"),
    ("<a@under_score.example>", "a@under_score.example"),
    ("<a..b.@example.org>", "a..b.@example.org"),
    ("<@relay.example,@other.example:a@b>", "a@b"),
    ('<"joe"@b>', "joe@b"),
    ('<"joe user"@b>', '"joe user"@b'),
    (r'<"a\"b\\\c"@b>', r'"a\"b\\c"@b'),
    ('<"a@c"@b>', '"a@c"@b'),
    ('<"a>b"@c>', '"a>b"@c'),
    ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
    ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
    ("<a!b%c@d>", "a!b%c@d"),
    ("<|x@d>", "|x@d"),
    ("<a@" + "b" * 63 + ".example>", "a@" + "b" * 63 + ".example"),
])
def test_these_are_addresses(path: str, address: str) -> None:
    assert grammar.parse_mail(f"FROM:{path}", ALL)[0] == address
    assert grammar.parse_mail(f"from: {path} SIZE=1", ALL) == (address, MailParameters(size=1))


@pytest.mark.parametrize("path", [
    "", " ", "<", ">", "<a@b", "a@b>", "<a@b>x", "<a b@c>", "<a@b c>", "<@b>", "<a@>", "<a@b@c>", "<a@@b>", "<<a@b>>",
    "<a@-b>", "<a@b->", "<a@b..c>", "<a@.b>", "<a@" + "b" * 64 + ">", "<a@" + "b." * 200 + "c>",
    "<" + "a" * 513 + "@b>",
    "<a@[]>", "<a@[1.2.3]>", "<a@[300.1.1.1]>", "<a@[IPv6:zz]>", "<a@[IPv6:fe80::1%eth0]>", "<a@[tag:x]>",
    "<a@[1.2.3.4]x>",
    '<"a@b>', '<a"b@c>', '<""@b>', "<a,b@c>", "<a(comment)@b>", "<a;b@c>", "<a@b:25>", "<a\\b@c>", "<a\u00a0b@c>",
    "<a\u2028b@c>", "<a\u0085@c>", "<\udcff@c>", "<a@b\u200b>", "<@r:>", "<:a@b>",
])
def test_these_are_not(path: str) -> None:
    reply = refusal(f"FROM:{path} SMTPUTF8" if not path.isascii() else f"FROM:{path}")
    assert (reply.code // 100, reply.status[0]) == (5, "5")
    assert path == "" or path.strip("<> ") == "" or path not in reply.words


@pytest.mark.parametrize("argument", ["", "<a@b>", "TO:<a@b>", "FROM <a@b>", "FROMM:<a@b>", "FRO"])
def test_the_keyword_must_be_there(argument: str) -> None:
    assert refusal(argument).code == 501


@pytest.mark.parametrize(("words", "parameters"), [
    ("", MailParameters()),
    ("SIZE=1000 BODY=8BITMIME", MailParameters(size=1000, body="8bitmime")),
    ("size=0 body=7bit", MailParameters(body="7bit")),
    ("SMTPUTF8", MailParameters(smtputf8=True)),
    ("RET=HDRS ENVID=a+2Bb", MailParameters(ret="hdrs", envid="a+2Bb")),
    ("  RET=full   AUTH=<>  ", MailParameters(ret="full", auth="<>")),
    ("AUTH=joe+40b", MailParameters(auth="joe+40b")),
])
def test_parameters_of_mail(words: str, parameters: MailParameters) -> None:
    assert grammar.parse_mail(f"FROM:<a@b> {words}", ALL) == ("a@b", parameters)


@pytest.mark.parametrize(("words", "code"), [
    ("SIZE", 501), ("SIZE=", 501), ("SIZE=x", 501), ("SIZE=-1", 501), ("SIZE=1_0", 501), ("SIZE=" + "9" * 21, 501),
    ("SIZE=\u0661", 501), ("SIZE=1 SIZE=1", 501), ("BODY=BINARYMIME", 501), ("BODY", 501), ("SMTPUTF8=1", 501),
    ("RET=NONE", 501), ("ENVID=a+zz", 501), ("ENVID=a+0Ab", 501), ("ENVID=" + "x" * 101, 501), ("AUTH=<=", 501),
    ("AUTH=a+0D", 501), ("FOO=1", 555), ("FOO", 555), ("=1", 501), ("A=B=C", 501), ("NOTIFY=NEVER", 555),
    ("-X=1", 501),
    (" ".join(f"X{n}=1" for n in range(50)), 501),
])
def test_parameters_of_mail_that_are_refused(words: str, code: int) -> None:
    assert refusal(f"FROM:<a@b> {words}").code == code


@pytest.mark.parametrize("word", ["SIZE=1", "BODY=7BIT", "SMTPUTF8", "RET=FULL", "ENVID=x", "AUTH=<>"])
def test_a_parameter_whose_extension_is_not_on_offer_is_refused(word: str) -> None:
    assert refusal(f"FROM:<a@b> {word}", frozenset()) == Reply(555, "5.5.4", ("parameter is not supported",))


def test_an_address_beyond_ascii_needs_smtputf8() -> None:
    assert refusal("FROM:<j\u00f6rg@b>").status == "5.6.7"
    assert grammar.parse_mail("FROM:<j\u00f6@b\u00fc.example> SMTPUTF8", ALL)[0] == "j\u00f6@b\u00fc.example"
    with pytest.raises(BadSyntax):
        grammar.parse_rcpt("TO:<j\u00f6rg@b>", ALL)
    assert grammar.parse_rcpt("TO:<j\u00f6rg@b>", ALL, smtputf8=True)[0] == "j\u00f6rg@b"


@pytest.mark.parametrize(("words", "parameters"), [
    ("", RcptParameters()),
    ("NOTIFY=NEVER", RcptParameters(frozenset({"never"}))),
    ("notify=Success,FAILURE,delay", RcptParameters(frozenset({"success", "failure", "delay"}))),
    ("ORCPT=rfc822;joe+40example.org", RcptParameters(orcpt="rfc822;joe+40example.org")),
])
def test_parameters_of_rcpt(words: str, parameters: RcptParameters) -> None:
    assert grammar.parse_rcpt(f"TO:<a@b> {words}", ALL) == ("a@b", parameters)


@pytest.mark.parametrize("argument", [
    "TO:<>", "TO:<a@b> NOTIFY=", "TO:<a@b> NOTIFY=NEVER,SUCCESS", "TO:<a@b> NOTIFY=SOON",
    "TO:<a@b> NOTIFY=DELAY,DELAY",
    "TO:<a@b> ORCPT=joe@x", "TO:<a@b> ORCPT=rfc822;", "TO:<a@b> ORCPT=;x", "TO:<a@b> ORCPT=rfc822;a+0A",
    "TO:<a@b> ORCPT=rfc822;" + "x" * 500, "TO:<a@b> SIZE=1", "FROM:<a@b>",
])
def test_recipients_that_are_refused(argument: str) -> None:
    with pytest.raises(BadSyntax) as caught:
        grammar.parse_rcpt(argument, ALL)
    assert caught.value.reply.kind == 5


@pytest.mark.parametrize("name", ["host.example.org", "[192.0.2.1]", "[IPv6:::1]", "WIN_PC-7", "localhost", "x" * 255])
def test_names_in_ehlo(name: str) -> None:
    assert grammar.parse_hello(name) == name


@pytest.mark.parametrize("name", ["", "a b", "<script>", "h\u00f6st", "a;b", "a\\b", "x" * 256, "\udcff", "a/b"])
def test_names_in_ehlo_that_are_refused(name: str) -> None:
    with pytest.raises(BadSyntax):
        grammar.parse_hello(name)


@pytest.mark.parametrize(("address", "path"), [
    ("", b"<>"),
    ("a@example.org", b"<a@example.org>"),
    ("a@example.org.", b"<a@example.org>"),
    ("joe", b"<joe>"),
    ("joe user@b", b'<"joe user"@b>'),
    ('"joe user"@b', b'<"joe user"@b>'),
    (r'"a\"b\\c"@d', rb'<"a\"b\\c"@d>'),
    ("a@b@c", b'<"a@b"@c>'),
    ('"a@b"', b'<"a@b">'),
    ("a>b <c@d", b'<"a>b <c"@d>'),
    ("a@[IPv6:::1]", b"<a@[IPv6:::1]>"),
    ("j\u00f6rg@b\u00fccher.example", "<j\u00f6rg@b\u00fccher.example>".encode()),
])
def test_paths_on_the_wire(address: str, path: bytes) -> None:
    assert grammar.path(address) == path


@pytest.mark.parametrize("address", [
    "a@b c", "a@", "@b", '""@b', "a@b>", "a@[1.2.3]", "a\r\nRCPT TO:<x@y>@b", "a\n@b", "a\0@b", "a@b\r\n", "a\x7f@b",
    "a\u0085@b", "\udcff@b", "a" * 513 + "@b", "a@" + "b" * 64, "a@b SIZE=1", "a\u2028@b", "a@-b",
    'a"b@c', "a\\b@c", '"a@b', '"a"b"@c', "a@b@", "a@.",
])
def test_what_cannot_be_a_path_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        grammar.path(address)


@given(st.text(max_size=40))
def test_no_address_makes_two_arguments_of_one(address: str) -> None:
    try:
        path = grammar.path(address)
    except ValueError:
        return
    line = grammar.mail(path, MailParameters(size=1))
    assert line.count(b"\r") == line.count(b"\n") == 1
    # Who reads it as a server does finds one address and one parameter.
    verb, argument = grammar.parse_command(line[:-2])
    again, parameters = grammar.parse_mail(argument + ("" if address.isascii() else " SMTPUTF8"), ALL)
    assert (verb, parameters.size) == ("MAIL", 1)
    if address:
        assert grammar.parse_rcpt("TO:" + grammar.path(again).decode(), ALL, smtputf8=True)[0] == again


@given(st.text(alphabet=st.sampled_from("ab@.<>\"\\ :,;[]()=+\r\n\0\u00fc\udcff"), max_size=30))
def test_parsing_gives_an_address_that_can_be_written_or_refuses(text: str) -> None:
    try:
        address, _ = grammar.parse_mail("FROM:" + text, ALL)
    except BadSyntax:
        return
    written = grammar.path(address)
    assert grammar.parse_mail("FROM:" + written.decode(), ALL)[0] == address


@pytest.mark.parametrize("arguments", [("a\r\nb",), ("a\nb",), ("a\0",), (b"\x7f",), ("\tx",)])
def test_a_control_character_in_a_command_is_our_bug(arguments: tuple[str | bytes, ...]) -> None:
    with pytest.raises(LocalError):
        grammar.command("NOOP", *arguments)


def test_a_blank_in_a_parameter_is_our_bug() -> None:
    with pytest.raises(LocalError):
        grammar.mail(b"<>", MailParameters(envid="a b"))


def test_commands_are_written_with_their_parameters() -> None:
    parameters = MailParameters(1234, "8bitmime", True, "hdrs", "id+20x")
    line = b"MAIL FROM:<a@b> SIZE=1234 BODY=8BITMIME RET=HDRS ENVID=id+20x SMTPUTF8\r\n"
    assert grammar.mail(b"<a@b>", parameters) == line
    assert grammar.mail(b"<>", MailParameters()) == b"MAIL FROM:<>\r\n"
    rcpt = RcptParameters(frozenset({"success", "delay"}), "rfc822;a@b")
    assert grammar.rcpt(b"<a@b>", rcpt) == b"RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b\r\n"
    assert grammar.command("EHLO", "host.example") == b"EHLO host.example\r\n"


@pytest.mark.parametrize(("text", "encoded"), [
    ("", ""), ("abc", "abc"), ("a+b=c d", "a+2Bb+3Dc+20d"), ("\u00fc", "+C3+BC"), ("\udcff", "+FF"), ("a\nb", "a+0Ab"),
])
def test_xtext(text: str, encoded: str) -> None:
    assert grammar.from_xtext(encoded) == text


@pytest.mark.parametrize("text", ["a b", "a=b", "+", "+2", "+2b", "+GG", "\u00fc", "a\n"])
def test_what_is_no_xtext(text: str) -> None:
    with pytest.raises(ValueError):
        grammar.from_xtext(text)


@pytest.mark.parametrize(("address", "ascii_only"), [
    ("a@b\u00fccher.example", "a@xn--bcher-kva.example"),
    ("a@example.org", "a@example.org"),
    ("j\u00f6rg@b\u00fccher.example", "j\u00f6rg@xn--bcher-kva.example"),
    ("a@" + "\u00fc" * 64 + ".example", "a@" + "\u00fc" * 64 + ".example"),
    ("a@\u00fc\u2028.example", "a@\u00fc\u2028.example"),
    ("a@xn--\u00fc.example", "a@xn--\u00fc.example"),
    ("a@\u0627b.example", "a@\u0627b.example"),
    ("joe", "joe"),
])
def test_domains_become_a_labels(address: str, ascii_only: str) -> None:
    assert grammar.to_ascii(address) == ascii_only


@pytest.mark.parametrize(("literal", "address"), [
    ("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:DB8::1]", "2001:db8::1"), ("[ipv6:::1]", "::1"), ("[192.0.2.01]", ""),
    ("192.0.2.1", ""), ("[::1]", ""), ("[192.0.2.1", ""), ("", ""),
])
def test_address_literals(literal: str, address: str) -> None:
    assert grammar.literal_address(literal) == address


def test_what_a_server_offers() -> None:
    hello = Reply(250, "", ("host greets you", "PIPELINING", "size 1000 ", "AUTH PLAIN LOGIN", "AUTH=LOGIN CRAM-MD5",
                            "", "8BITMIME", "X-\u00fc", "<html>"))
    assert grammar.capabilities(hello) == {
        "PIPELINING": (), "SIZE": ("1000",), "AUTH": ("PLAIN", "LOGIN", "LOGIN", "CRAM-MD5"), "8BITMIME": ()}
    assert grammar.capabilities(Reply(250, "", ("PIPELINING",))) == {}


@pytest.mark.parametrize(("words", "limit"), [
    (("1000",), 1000), ((), 0), (("0",), 0), (("x",), 0), (("-5",), 0), (("9" * 30,), 0), (("\u0661",), 0)])
def test_size_limit(words: tuple[str, ...], limit: int) -> None:
    assert grammar.size_limit(words) == limit


def test_hostile_arguments_take_no_time() -> None:
    """Each of these was chosen to make a backtracking pattern quadratic; a test that hangs runs into its time limit."""
    for text in ('"' + "\\a" * 100_000, "<" + "@a," * 100_000, "<" + "a" * 300_000, "<a@" + "b." * 150_000,
                 "<a@b> " + "A=B " * 100_000, "<a@b> " + "A" * 300_000, '<"' + '"@"' * 100_000):
        with pytest.raises(BadSyntax):
            grammar.parse_mail("FROM:" + text, ALL)
