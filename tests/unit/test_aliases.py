"""Alias files: the grammar, what becomes of bad lines, and that the text counts as it is now."""

import fcntl
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.route import aliases, textfile, values
from pysendmail.route.aliases import Aliases, Broken, Entry, Problem, Table, parse
from pysendmail.route.values import Value

FILE = "/etc/aliases"


def local(domain: str) -> bool:
    return domain.lower().rstrip(".") in ("example.org", "lists.example")


def table(text: str) -> Table:
    return parse(text.encode("utf-8", "surrogateescape"), FILE, local)


def meaning(text: str) -> dict[str, list[bytes]]:
    """The values of each alias, as they are written."""
    return {name: [values.render(value) for value in entry.values] for name, entry in table(text).entries.items()}


@pytest.mark.parametrize(("text", "expected"), [
    ("", {}),
    ("# nothing\n\n  # here\n\t\n", {}),
    ("root: alice\n", {"root": [b"alice"]}),
    ("root: alice", {"root": [b"alice"]}),
    ("root:alice\r\npostmaster:root\r\n", {"root": [b"alice"], "postmaster": [b"root"]}),
    ("spaced  :   alice   ,  carol \n", {"spaced": [b"alice", b"carol"]}),
    ("MAILER-DAEMON: x\nPOSTmaster: Y\n", {"mailer-daemon": [b"x"], "postmaster": [b"Y"]}),
    ('"odd name": a\n"Quoted": b\n"a\\"b:c": c\n', {"odd name": [b"a"], "quoted": [b"b"], 'a"b:c': [b"c"]}),
    ("j\u00d6rg: a\n", {"j\u00d6rg": [b"a"]}),
    ("team: alice,\n\tbob,\n  carol\n", {"team": [b"alice", b"bob", b"carol"]}),
    ("team: alice\n , bob\n", {"team": [b"alice", b"bob"]}),
    ("team:\n  alice\n", {"team": [b"alice"]}),
    ("team: alice, \\\nbob, \\\n# no comment here\n", {}),
    ("team: alice, \\\nbob\nx: y\n", {"team": [b"alice", b"bob"], "x": [b"y"]}),
    ("team: ali\\\nce\n", {"team": [b"alice"]}),
    ("team: alice,\n# between\n\n   # again\n\tbob\n", {"team": [b"alice", b"bob"]}),
    ("team: alice\n# off: x,\n    bob\nx: y\n", {"team": [b"alice"], "x": [b"y"]}),
    ("# ends in a backslash \\\nroot: alice\n", {"root": [b"alice"]}),
    ('robot: "|cmd a,\n  b"\n', {"robot": [b'"|cmd a, b"']}),
    ("gone: error:550 no\n  such: person\n", {"gone": [b'"error:5.2.1 no"']}),
    ("gone: :fail: see\n  error:x\n", {"gone": [b'"error:5.2.1 see error:x"']}),
    ("list: :include:/a,\n :include:/b\n", {"list": [b":include:/a", b":include:/b"]}),
    ("info@Example.ORG.: a\ninfo@lists.example: b\n", {"info@example.org": [b"a"], "info@lists.example": [b"b"]}),
    ("team+*: a\nteam+x: b\n", {"team+*": [b"a"], "team+x": [b"b"]}),
    ("dup: a\nDUP: b\n", {"dup": [b"b"]}),
    ("a: b # c\n", {}),
])
def test_grammar(text: str, expected: dict[str, list[bytes]]) -> None:
    assert meaning(text) == expected


def test_an_entry_says_where_it_is() -> None:
    entry = table("# x\nteam: a,\n  b\nnext: c\n").entries["next"]
    assert (entry.file, entry.line, entry.place) == (FILE, 4, "/etc/aliases:4")


@pytest.mark.parametrize(("text", "line", "words", "broken"), [
    ("a: b\nthis line has no colon\n", 2, "no colon", "this"),
    ("a: b\nBOB, carol\n", 2, "no colon", "bob"),
    ('"open: x\n', 1, "missing quote", "open"),
    ('"closed" x\n', 1, "no colon", "closed"),
    (": x\n", 1, "no name", ""),
    ("none:\n", 1, "no value", "none"),
    ("none:  ,(x) \n", 1, "no value", "none"),
    ("bad: a b\n", 1, "is a comma missing", "bad"),
    ("bad: a,\n  b c\nok: x\n", 1, "is a comma missing", "bad"),
    ("two words: a\n", 1, "blank inside an address", "two"),
    ("/etc/x: a\n", 1, "not an address", "/etc/x"),
    ("|x: a\n", 1, "not an address", "|x"),
    ("user@remote.test: a\n", 1, "another host's address", "user@remote.test"),
    ("@example.org: a\n", 1, "not an address", "@example.org"),
    ("x" * 257 + ": a\n", 1, "longer than 256", "x" * 257),
    ("a\x01b: x\n", 1, "control character", "a\x01b"),
    ("a: b\x01\n", 1, "control character", "a"),
    ("a: b\rc: d\n", 1, "unexpected|control", "a"),
    ("file: ~/x\n", 1, "must be absolute", "file"),
    ("  bob, carol\n", 1, "without an alias before", ""),
    ("a: x\n\n  bob, carol\n", 3, "after an empty line", ""),
    ("a: x\n  root: alice\n", 2, "first column", "root"),
    ("a: x\n\n  Root : alice\n", 3, "first column", "root"),
    ("a: x\n# y\n  root: alice\n", 3, "first column", "root"),
])
def test_a_bad_line_is_named_and_makes_its_first_word_defer(text: str, line: int, words: str, broken: str) -> None:
    found = table(text)
    assert [problem.line for problem in found.problems] == [line]
    assert found.errors == 1
    assert re.search(words, found.problems[0].text)
    if broken:
        answer = found.lookup(broken)
        assert isinstance(answer, Broken)
        assert answer.reason.startswith(f"{FILE}:{line}: ")


def test_sound_lines_beside_bad_ones_work() -> None:
    found = table("good1: alice\nthis line has no colon\ngood2: alice\nbad: a b\n  nested: x\ngood3: bob\n")
    assert list(found.entries) == ["good1", "good2", "good3"]
    assert found.lookup("unheard-of") is None
    assert found.errors == 3


def test_an_indented_alias_leaves_the_one_before_as_it_was() -> None:
    """Joined, "root: alice" and "  team: bob" would make root's mail wait for somebody to notice."""
    assert meaning("root: alice\n  team: bob\n")["root"] == [b"alice"]


def test_a_sound_line_counts_more_than_a_broken_one_of_the_same_name() -> None:
    for text in ("root alice\nroot: bob\n", "root: bob\nroot: alice carol\n"):
        answer = table(text).lookup("root")
        assert isinstance(answer, Entry)
        assert answer.text == b"bob"


def test_warnings_are_no_errors() -> None:
    found = table("a: x\na: y\n# z\n  w, v\n")
    assert found.errors == 0
    assert [str(problem) for problem in found.problems] == [
        "/etc/aliases:4: warning: indented line after a comment: taken as part of the comment",
        "/etc/aliases:2: warning: 'a': also in line 1, which no longer counts"]


def test_the_examples_of_the_manual_are_sound() -> None:
    manual = (Path(__file__).resolve().parents[2] / "man" / "aliases.5").read_text()
    examples = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", manual, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        found = parse(example.encode(), "aliases.5", lambda domain: domain == "lists.example.org")
        assert found.problems == []
        assert len(found.entries) >= 5


def test_problems_are_harmless_to_a_terminal() -> None:
    found = table("\x1b]0;evil\x07: x\nb\udc9bd: \x1b[2J y\n")
    assert found.problems
    assert all(str(problem).isprintable() for problem in found.problems)


def test_kept_problems_are_bounded_but_every_name_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MAX_PROBLEMS", 5)
    found = table("".join(f"name{number} no colon\n" for number in range(50)))
    assert (len(found.problems), found.errors, len(found.broken)) == (5, 50, 50)


def test_counts_are_those_of_sendmail() -> None:
    """longest: right-hand side; total: names and right-hand sides."""
    found = table("postmaster: root\nroot:  alice,\n\tbob\n")
    assert len(found.entries) == 2
    assert (found.longest, found.total) == (len("alice, bob"), len("postmaster" "root" "root" "alice, bob"))


def test_without_local_domains_no_name_has_one() -> None:
    assert parse(b"info@example.org: a\n", FILE).errors == 1


def test_names_with_domains_are_noticed() -> None:
    assert not table("a: b\n").has_domains
    assert table("a@example.org: b\n").has_domains
    assert table("a@example.org\n").has_domains


@given(st.binary(max_size=300) | st.text('ab:, \t\n\\#"|/@', max_size=80).map(str.encode))
def test_any_file_is_read_and_no_word_of_it_is_forgotten(data: bytes) -> None:
    found = parse(data, FILE, local)
    for name, entry in found.entries.items():
        assert entry.values
        assert entry.name == name
    assert (found.errors > 0) >= bool(found.broken)


@given(st.dictionaries(st.text("abcxyz019-_.+", min_size=1, max_size=10),
                       st.lists(st.text("abcxyz019-_", min_size=1, max_size=8), min_size=1, max_size=5), max_size=8))
def test_what_is_written_is_read_back(wanted: dict[str, list[str]]) -> None:
    text = "".join(f"{name}:\n\t" + ",\n\t".join(members) + "\n" for name, members in wanted.items())
    found = table(text)
    assert not found.problems
    assert {name: [value.text.decode() for value in entry.values] for name, entry in found.entries.items()} == wanted


@pytest.mark.limit(20)
@pytest.mark.parametrize("part", ["a\n", " a:\n", "a: b\n", "a: b,\n", " b,\n", '"', ":", "\\\n", "\n", "#\n", ' "\n',
                                  "a: \\\n", "a:", "a: x\n y:\n"])
def test_time_grows_with_the_length_alone(part: str) -> None:
    """A pass over the rest for each line would take far longer than the limit of this test."""
    parse(("x: y,\n" + part * (400_000 // len(part))).encode(), FILE)


# ---- the live text


class Clock:
    """A time long after any file was touched, unless a test says otherwise."""

    def __init__(self) -> None:
        self.ahead = 60.0
        self.at: Callable[[], float] | None = None

    def __call__(self) -> float:
        return self.at() if self.at else os.stat("/proc/self").st_ctime + self.ahead


def answer(live: Aliases, name: str) -> bytes | str | None:
    found = live.lookup(name)
    return found.text if isinstance(found, Entry) else found.reason if isinstance(found, Broken) else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "aliases"
    found.write_text("root: alice\n")
    return found


@pytest.fixture
def live(path: Path) -> Aliases:
    return Aliases([str(path)], local, Clock())


def test_nothing_is_known_before_the_first_look(live: Aliases, path: Path) -> None:
    assert answer(live, "root") == f"{path} has not been read yet"


def test_a_changed_file_counts_at_once(live: Aliases, path: Path) -> None:
    live.refresh()
    assert (answer(live, "root"), answer(live, "bob")) == (b"alice", None)
    path.write_text("root: carol\nbob: dave\n")
    live.refresh()
    assert (answer(live, "root"), answer(live, "bob")) == (b"carol", b"dave")


def test_a_file_moved_into_place_counts_although_size_and_time_are_the_same(live: Aliases, path: Path) -> None:
    live.refresh()
    before = path.stat()
    other = path.with_name("new")
    other.write_text("root: carol\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    live.refresh()
    assert answer(live, "root") == b"carol"


def test_an_unchanged_file_is_not_read_again(live: Aliases, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live.refresh()
    monkeypatch.setattr(textfile, "read", lambda *_: pytest.fail("read again"))
    assert live.refresh() == []
    assert answer(live, "root") == b"alice"


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda path: path.unlink(), "No such file"),
    (lambda path: (path.unlink(), path.mkdir()), "Is a directory|not a regular file"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "not a regular file"),
    (lambda path: path.write_bytes(b"root: x\n\0\0\0\0"), "NUL"),
    (lambda path: (path.unlink(), path.symlink_to(path)), "symbolic links"),
])
def test_a_file_that_cannot_be_used_makes_every_name_defer(
        live: Aliases, path: Path, spoil: Callable[[Path], object], words: str) -> None:
    live.refresh()
    spoil(path)
    news = live.refresh()
    assert re.search(words, str(news[0]))
    for name in ("root", "nobody-has-this"):
        assert isinstance(live.lookup(name), Broken)
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text("root: back\n")
    live.refresh()
    assert (answer(live, "root"), answer(live, "nobody-has-this")) == (b"back", None)


def test_a_file_that_is_too_large_makes_every_name_defer(
        live: Aliases, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MAX_FILE", 100)
    path.write_text("root: alice\n" + "#" * 100)
    live.refresh()
    assert "larger than 100 bytes" in str(answer(live, "root"))


def test_an_error_while_reading_is_forgotten_as_soon_as_it_is_over(
        live: Aliases, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the same as before: its signature must not make us believe that we have read it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        news = live.refresh()
        assert [str(problem) for problem in news] == [f"cannot read {live.tables[0].file}: Too many open files"]
        assert live.refresh() == []  # said once
    live.refresh()
    assert answer(live, "root") == b"alice"


def test_a_file_that_changes_while_it_is_read_is_read_again(
        live: Aliases, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_read = textfile._read_all
    texts = iter(["root: half", "root: carol, dave\n"])

    def interrupted(fd: int, limit: int) -> bytes:
        data = really_read(fd, limit)
        upcoming = next(texts, None)
        if upcoming is not None:
            path.write_text(upcoming)
        return data

    monkeypatch.setattr(textfile, "_read_all", interrupted)
    live.refresh()
    assert answer(live, "root") == b"carol, dave"


def test_a_file_that_never_stops_changing_is_trouble(
        live: Aliases, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_read = textfile._read_all

    def interrupted(fd: int, limit: int) -> bytes:
        path.write_text(path.read_text() + "# more\n")
        return really_read(fd, limit)

    monkeypatch.setattr(textfile, "_read_all", interrupted)
    live.refresh()
    assert "changes while it is read" in str(answer(live, "root"))


def test_a_file_of_this_very_moment_may_be_half_written(path: Path) -> None:
    """An editor truncates and then writes. In between, the file is sound, empty and wrong."""
    clock = Clock()
    live = Aliases([str(path)], local, clock)
    live.refresh()
    path.write_text("")
    changed = path.stat().st_ctime
    clock.at = lambda: changed + 0.001
    live.refresh()
    assert answer(live, "root") == b"alice"
    clock.at = lambda: changed + 1
    live.refresh()
    assert answer(live, "root") is None


def test_the_first_look_does_not_wait_but_is_repeated(path: Path) -> None:
    """A second change within one tick of the clock that stamps files leaves every stamp as it was."""
    clock = Clock()
    live = Aliases([str(path)], local, clock)
    changed = path.stat().st_ctime
    clock.at = lambda: changed + 0.001
    live.refresh()
    assert answer(live, "root") == b"alice"
    assert live._signatures == [None]


def test_a_clock_that_is_behind_does_not_keep_the_old_text(path: Path) -> None:
    clock = Clock()
    live = Aliases([str(path)], local, clock)
    live.refresh()
    path.write_text("root: carol\n")
    clock.at = lambda: path.stat().st_ctime - 3600
    live.refresh()
    assert answer(live, "root") == b"carol"


def test_of_several_files_the_first_that_has_a_name_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_text("root: alice\nbroken line\n")
    second.write_text("root: bob\nother: carol\nbroken: dave\n")
    live = Aliases([str(first), str(second)], local, Clock())
    live.refresh()
    assert (answer(live, "root"), answer(live, "other"), answer(live, "none")) == (b"alice", b"carol", None)
    assert isinstance(live.lookup("broken"), Broken)
    second.unlink()
    live.refresh()
    assert answer(live, "root") == b"alice"
    assert isinstance(live.lookup("none"), Broken)
    second.write_text("none: x\n")
    first.unlink()
    live.refresh()
    assert isinstance(live.lookup("none"), Broken)


def test_a_command_or_file_is_found_by_its_digest_and_only_so(live: Aliases, path: Path) -> None:
    path.write_text('robot: alice, "|cmd a", /var/x\n')
    live.refresh()
    for value in (Value(values.COMMAND, b"cmd a"), Value(values.FILE, b"/var/x")):
        assert live.find("robot", value.digest) == value
    for digest in (Value(values.ADDRESS, b"alice").digest, Value(values.COMMAND, b"cmd b").digest, "", "|cmd a"):
        assert live.find("robot", digest) == Broken(f"{path}:1: alias robot has changed")


def test_no_command_is_found_where_it_is_not_certain_that_root_wrote_it(live: Aliases, path: Path) -> None:
    command = Value(values.COMMAND, b"cmd a")
    path.write_text('robot: "|cmd a"\nbroken: "|cmd a\n')
    path.chmod(0o666)
    live.refresh()
    assert live.find("robot", command.digest) == Broken(f"{path} is writable by everybody")
    assert live.find("gone", command.digest) == Broken("there is no alias gone any more")
    found = live.find("broken", command.digest)
    assert isinstance(found, Broken)
    assert found.reason.startswith(f"{path}:2: ")
    path.unlink()
    live.refresh()
    assert isinstance(live.find("robot", command.digest), Broken)


def test_news_is_told_once(live: Aliases, path: Path) -> None:
    path.write_text("root: alice\nbad line\n")
    assert live.refresh() == [Problem(str(path), 2, "no colon after the name")]
    path.write_text("root: bob\nbad line\nworse\n")
    assert live.refresh() == [Problem(str(path), 3, "no colon after the name")]


@pytest.mark.parametrize(("mode", "danger"), [
    (0o644, ""), (0o600, ""), (0o664, "is writable by its group"), (0o666, "is writable by everybody"),
    (0o602, "is writable by everybody")])
def test_a_file_that_others_can_write_is_dangerous(live: Aliases, path: Path, mode: int, danger: str) -> None:
    path.chmod(mode)
    news = live.refresh()
    assert live.danger(str(path)) == danger
    assert [problem.text for problem in news] == (
        [f"{path} {danger}: its commands, files and lists are not used"] if danger else [])
    assert answer(live, "root") == b"alice"


@pytest.mark.root
def test_a_file_of_another_user_is_dangerous(live: Aliases, path: Path) -> None:
    os.chown(path, 4242, 4242)
    live.refresh()
    assert live.danger(str(path)) == "belongs to uid 4242"


def test_a_locked_file_is_read_all_the_same(live: Aliases, path: Path) -> None:
    """Any user can lock a file that he can read; sendmail once waited for him (CVE-2002-1827)."""
    with path.open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        fcntl.lockf(holder, fcntl.LOCK_EX)
        live.refresh()
        assert answer(live, "root") == b"alice"


def test_descriptors_are_closed_whatever_happens(live: Aliases, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for text in (b"root: x\n", b"\0", b"bad"):
        path.write_bytes(text)
        live.refresh()
    path.unlink()
    os.mkfifo(path)
    live.refresh()
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert len(os.listdir("/proc/self/fd")) == before
