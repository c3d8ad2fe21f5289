"""The command line: parsed as sendmail parses it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.cli import options
from pysendmail.cli.options import Given, parse
from pysendmail.spool.dropbox import Refused


def words(line: str) -> list[bytes]:
    """A command line, '' for an empty word."""
    return [b"" if word == "''" else word.encode() for word in line.split()]


def asked(line: str, name: str = "sendmail") -> dict[str, object]:
    """What differs from an empty command line."""
    found, empty = vars(parse(name, words(line))), vars(Given())
    return {key: value for key, value in found.items() if value != empty[key] and key != "words"}


TO = {"operands": [b"u"]}


@pytest.mark.parametrize(("line", "expected"), [
    ("", {}),
    ("u", TO),
    ("-- u", TO | {"is_closed": True}),
    ("-i -- -u", {"operands": [b"-u"], "is_closed": True, "dot_ends": False}),
    ("u -i", {"operands": [b"u", b"-i"]}),  # options end at the first other word
    ("u -- -i", {"operands": [b"u", b"--", b"-i"]}),
    ("- u", {"operands": [b"-", b"u"]}),
    # A lone dot.
    ("-i", {"dot_ends": False}), ("-oi", {"dot_ends": False}), ("-o i", {"dot_ends": False}),
    ("-oitrue", {"dot_ends": False}), ("-oiTrue", {"dot_ends": False}), ("-oiyes", {"dot_ends": False}),
    ("-i -oifalse", {}), ("-oi0", {}),
    ("-OIgnoreDots=True", {"dot_ends": False}), ("-O ignoredots=t", {"dot_ends": False}),
    # Merged, attached, separate.
    ("-ti", {"from_header": True, "dot_ends": False}),
    ("-it -fx u", TO | {"from_header": True, "dot_ends": False, "sender": b"x"}),
    ("-itfx u", TO | {"from_header": True, "dot_ends": False, "sender": b"x"}),
    ("-tf x u", TO | {"from_header": True, "sender": b"x"}),
    ("-f -i u", TO | {"sender": b"-i"}),  # as getopt: the next word, whatever it is
    # The sender.
    ("-fx", {"sender": b"x"}), ("-f x", {"sender": b"x"}), ("-rx", {"sender": b"x"}), ("-r x", {"sender": b"x"}),
    ("-f '' u", TO | {"sender": b""}), ("-f <> u", TO | {"sender": b"<>"}), ("-f<> u", TO | {"sender": b"<>"}),
    # The rest of what a submission takes.
    ("-FCronDaemon u", TO | {"full_name": b"CronDaemon"}), ("-F Al u", TO | {"full_name": b"Al"}), ("-F ''", {}),
    ("-B8BITMIME", {"body": b"8bitmime"}), ("-B 7bit", {"body": b"7bit"}),
    ("-Nnever", {"notify": b"never"}), ("-N SUCCESS,delay,success", {"notify": b"delay,success"}),
    ("-Rfull", {"ret": b"full"}), ("-R HDRS", {"ret": b"hdrs"}),
    ("-V abc+3Ddef", {"envid": b"abc+3Ddef"}), ("-Va -Vb", {"envid": b"b"}),
    ("-h3", {"hops": b"3"}), ("-h 25", {"hops": b"25"}),
    ("-G", {"is_gateway": True}), ("-v", {"is_verbose": True}), ("-ov", {"is_verbose": True}),
    ("-Lapp", {"tag": b"app"}), ("-L 50%x", {"tag": b"50*x"}), ("-L" + "x" * 40, {"tag": b"x" * 32}),
    ("-psmtp:host", {"protocol": b"smtp:host"}), ("-p a\x01b", {"protocol": b"a?b"}),
    ("-em", {"errors": b"m"}), ("-oem", {"errors": b"m"}), ("-e q", {"errors": b"q"}), ("-oee", {"errors": b"e"}),
    ("-oep -oew", {"errors": b"w"}), ("-OErrorMode=print", {"errors": b"p"}), ("-ox", {}),
    ("-odi", {"delivery": b"i"}), ("-od", {"delivery": b"i"}), ("-odb", {"delivery": b"b"}),
    ("-odq", {"delivery": b"q"}),
    ("-odd", {"delivery": b"d"}), ("-odf", {"delivery": b"i"}), ("-ODeliveryMode=background", {"delivery": b"b"}),
    ("-O SMTPUTF8=yes", {"needs_utf8": True}), ("-OSMTPUTF8=no", {}),
    ("-bm", {}), ("-bmx", {}), ("-b m", {}),
    # Accepted, without effect.
    ("-Ac -Am -A c", {}), ("-U -m -om -n -s -c -T -x -J -E", {}), ("-Mxy -M xy", {}),
    ("-o7 -o8 -os -or30s -or0s -oT5d/4h", {}),
    ("-d", {}), ("-d0.1 u", TO), ("-d 9 u", {"operands": [b"9", b"u"]}),
    # Files, programs, configurations: for the log.
    ("-C/x u", TO | {"inert": [b"-C/x"]}), ("-C /x u", TO | {"inert": [b"-C/x"]}), ("-C", {"inert": [b"-C"]}),
    ("-C -t", {"inert": [b"-C"], "from_header": True}), ("-X/x", {"inert": [b"-X/x"]}), ("-X /x", {"inert": [b"-X/x"]}),
    ("-D/x", {"inert": [b"-D/x"]}), ("-oQ/x", {"inert": [b"-oQ/x"]}), ("-oA/x", {"inert": [b"-oA/x"]}),
    ("-oMrx -oP/x -oX25", {"inert": [b"-oMrx", b"-oP/x", b"-oX25"]}),
    ("-OQueueDirectory=/x", {"inert": [b"-OQueueDirectory=/x"]}),
    ("-O QueueDirectory=/x", {"inert": [b"-OQueueDirectory=/x"]}),
    ("-ez", {"inert": [b"-ez"]}), ("-odz", {"inert": [b"-odz"]}), ("-O x", {"inert": [b"-Ox"]}),
    # Unknown: reported, the rest goes on.
    ("-Z u", TO | {"unknown": [b"-Z"]}), ("-Zfoo -i u", TO | {"unknown": [b"-Zfoo"], "dot_ends": False}),
    ("-iZt u", TO | {"unknown": [b"-Zt"], "dot_ends": False}), ("--help", {"unknown": [b"--help"]}),
    ("--read-envelope-from -t", {"unknown": [b"--read-envelope-from"], "from_header": True}),
    ("-\xe4 u", TO | {"unknown": ["-\xe4".encode()]}),
    # Modes, and who does them.
    ("-bp", {"program": "mailq"}), ("-bi", {"program": "newaliases"}), ("-I", {"program": "newaliases"}),
    ("-bs", {"program": "smtp"}), ("-bs -i", {"program": "smtp", "dot_ends": False}), ("-ba", {"program": "smtp"}),
    ("-bv u", TO | {"program": "verify"}), ("-bt", {"program": "addresstest"}), ("-bd", {"program": "daemon"}),
    ("-bD", {"program": "daemon"}), ("-bd -q30m", {"program": "daemon"}), ("-bh", {"program": "hoststat"}),
    ("-bH", {"program": "purgestat"}), ("-bP", {"program": "counters"}), ("-bC", {"program": "checkconfig"}),
    ("-q", {"program": "queuerun"}), ("-q30m", {"program": "queuerun"}), ("-qRx", {"program": "queuerun"}),
    ("-vq", {"program": "queuerun", "is_verbose": True}),
    ("-bp -qRx", {"program": "mailq"}), ("-qRx -bp", {"program": "mailq"}), ("-Q", {"program": "quarantine"}),
    ("-Qwhy -qIx", {"program": "quarantine"}), ("-bp -bm u", TO),
])
def test_what_is_asked_for(line: str, expected: dict[str, object]) -> None:
    assert asked(line) == expected


@pytest.mark.parametrize(("line", "words_of_it"), [
    ("-F", "option requires an argument -- 'F'"),  # netdata looks for these words
    ("-i -f", "option requires an argument -- 'f'"), ("-o", "option requires an argument -- 'o'"),
    ("-tif", "option requires an argument -- 'f'"), ("-b", "option requires an argument -- 'b'"),
    ("-b '' u", "-b"), ("-bx u", "no such mode: -bx"), ("-bS", "no such mode: -bS"),
    ("-fa -fb u", "more than one sender"), ("-fa -ra u", "more than one sender"),
    ("-B9BIT u", "-B"), ("-B '' u", "-B"), ("-Nsometimes u", "-N"), ("-N never,delay u", "-N"), ("-N '' u", "-N"),
    ("-N success, u", "-N"), ("-Rall u", "-R"), ("-Rfull -Rfull u", "-R given twice"),
    ("-V '' u", "-V"), ("-Va+ u", "-V"), ("-Va+3d u", "-V"), ("-Va=b u", "-V"), ("-V" + "a" * 101, "-V"),
    ("-V\xe4 u", "-V"),
    ("-hx u", "bad hop count: -h x"), ("-h -1 u", "hop count"), ("-h '' u", "hop count"), ("-h1000 u", "hop count"),
    ("-h1_0 u", "hop count"), ("-h\x1b[0m u", "-h ?[0m"),
    ("-q u", "no recipients"), ("-q30m -- u", "no recipients"),  # the message on stdin would be lost
])
def test_what_sendmail_refuses_is_refused_with_64(line: str, words_of_it: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse("sendmail", words(line))
    assert refusal.value.code == 64
    assert words_of_it in str(refusal.value)


@pytest.mark.parametrize(("name", "line", "program", "arguments"), [
    ("mailq", "", "mailq", []),
    ("mailq", "-v -Ac -qRx -oQ/x -d u", "mailq", ["-v", "-Ac", "-qRx", "u"]),
    ("sendmail", "-bp -v", "mailq", ["-v"]),
    ("newaliases", "-v -oA/x", "newaliases", ["-v"]),
    ("newaliases", "-bp", "mailq", []),
    ("smtpd", "-q30m", "daemon", ["-q30m"]),
    ("sendmail", "-bD -q30m", "daemon", ["-bD", "-q30m"]),
    ("sendmail", "-bs -v", "smtp", ["-bs", "-v"]),
    ("sendmail", "-bv -t \xe4", "verify", ["-bv", "-t", "\xe4"]),
    ("hoststat", "-v x", "hoststat", ["-v", "x"]), ("purgestat", "", "purgestat", []),
    ("sendmail", "-q", "queuerun", [""]),
    ("sendmail", "-v -qf -qRremote.test -q!Sx", "queuerun", ["f", "Rremote.test", "!Sx"]),
    ("anything", "-i u", "", ["-i", "u"]),
])
def test_the_name_and_the_mode_choose_the_program(name: str, line: str, program: str, arguments: list[str]) -> None:
    found = parse(name, words(line))
    assert (found.program, found.arguments()) == (program, arguments)


WORDS = st.lists(st.one_of(
    st.tuples(st.sampled_from(sorted(options.OPTIONS)).map(lambda letter: b"-" + letter.encode()),
              st.binary(max_size=6)).map(b"".join),
    st.sampled_from([b"--", b"-", b"", b"u", b"-ti", b"-oi", b"-q"]), st.binary(max_size=8)), max_size=6)


@given(WORDS)
def test_any_command_line_is_understood_or_refused(line: list[bytes]) -> None:
    try:
        found = parse("sendmail", line)
    except Refused as problem:
        refusal: Refused | None = problem
    else:
        refusal = None
    if refusal:
        assert refusal.code == 64
        assert str(refusal).isprintable()
        return
    for value in (found.full_name, found.body, found.notify, found.ret, found.envid, found.hops, found.errors,
                  found.delivery, found.tag, found.protocol):
        assert not set(value) & {*range(32), 127}, "a control character would reach the envelope"
    assert not found.operands or line[-len(found.operands):] == found.operands


def test_every_option_takes_its_value_like_getopt() -> None:
    """Attached and separate mean the same wherever there is a value."""
    values = {"b": b"m", "B": b"7bit", "N": b"never", "R": b"full", "h": b"1", "O": b"ErrorMode=m", "o": b"em",
              "e": b"m"}
    for letter, (kind, _) in options.OPTIONS.items():
        flag, value = b"-" + letter.encode(), values.get(letter, b"x")
        if kind == options.VALUE:
            attached, separate = parse("sendmail", [flag + value, b"u"]), parse("sendmail", [flag, value, b"u"])
            assert vars(attached) == vars(separate), letter
        else:
            operands = [] if letter == "q" else [b"u"]
            assert parse("sendmail", [flag, *operands]).operands == operands, letter
