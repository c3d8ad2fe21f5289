"""From an address to the places where its mail goes: every rule of route/expand.py, and every trouble on the way."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.config import Config, LocalSettings
from pysendmail.mail.outcome import deferred
from pysendmail.mail.target import COMMAND, FILE, FORWARDED, KNOWN, MAILBOX, RELAY, Target, digest_of
from pysendmail.route.aliases import Aliases
from pysendmail.route.expand import Expander, Limits, Seen, Step
from pysendmail.route.router import Router
from pysendmail.users import LookupTrouble, User

HOST = "example.org"
NAMES = ("root", "alice", "bob", "carol", "www-data", "_pysendmail", "_pysmlocal")


class Table:
    """Users by name. broken: names for which the database gives no answer."""

    def __init__(self, *names: str) -> None:
        self.users = {name: User(name, 0 if name == "root" else 1000 + number, 1000, f"/home/{name}", "/bin/sh")
                      for number, name in enumerate(names or NAMES)}
        self.broken: set[str] = set()

    def lookup(self, name: str) -> User | None:
        if name in self.broken:
            raise LookupTrouble(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.users.get(name) or self.users.get(name.lower())

    def by_uid(self, uid: int) -> User | None:
        return next((user for user in self.users.values() if user.uid == uid), None)


class Host:
    """A host with users and alias text; `to` shows targets as short words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "aliases"
        self.users = Table()
        self.notes: list[str] = []
        self.limits = Limits()
        self.delimiter = "+"
        self.aliases("")

    def aliases(self, text: str) -> None:
        self.path.write_text(text)

    def list_file(self, name: str, text: str | bytes, mode: int = 0o644) -> str:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return f":include:{path}"

    @property
    def expander(self) -> Expander:
        names = ("localhost", "localhost.localdomain", "web1.example.org", "web1", HOST, "lists.example")
        router = Router(Config(hostname="web1.example.org", domain=HOST, local_domains=names,
                               local=LocalSettings(recipient_delimiter=self.delimiter)))
        live = Aliases([str(self.path)], router.is_local, lambda: os.stat(self.folder).st_ctime + 60)
        return Expander(router, live, self.users, self.limits, self.notes.append)

    def to(self, *recipients: str) -> list[str]:
        seen: Seen = set()
        expander = self.expander
        return [short(target) for recipient in recipients for target in expander.expand(recipient, seen=seen)]

    def steps(self, recipient: str) -> list[Step]:
        told: list[Step] = []
        self.expander.expand(recipient, tell=told.append)
        return told


def short(target: Target) -> str:
    """`alice`, `\\alice`, `alice+tag`, `x@remote.test`, `|words`, `/words`, `5.1.1 x@example.org`; `> sender`."""
    mailbox = target.user + (f"+{target.detail}" if target.detail else "")
    text = {MAILBOX: mailbox if target.use_forward else "\\" + mailbox, RELAY: target.address,
            COMMAND: f"|{target.words}", FILE: target.words,
            KNOWN: f"{target.outcome.status if target.outcome else ''} {target.address}"}[target.kind]
    return text if target.sender is None else f"{text} > {target.sender}"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(("aliases", "recipient", "expected"), [
    ("", "alice", ["alice"]),
    ("", "alice@example.org", ["alice"]),
    ("", "ALICE@Web1.Example.ORG.", ["alice"]),
    ("", "alice@localhost", ["alice"]),
    ("", "alice@[127.0.0.1]", ["alice"]),
    ("", '"alice"@example.org', ["alice"]),
    ("", "x@remote.test", ["x@remote.test"]),
    ("", "X+y@Remote.TEST.", ["X+y@remote.test"]),
    ("", "nosuch", ["5.1.1 nosuch@example.org"]),
    ("", "a%remote.test@example.org", ["5.1.1 a%remote.test@example.org"]),
    ("", "remote.test!a", ["5.1.1 remote.test!a@example.org"]),
    ("team: alice", "team", ["alice"]),
    ("team: alice", "TEAM@localhost", ["alice"]),
    ("team: alice", "team@remote.test", ["team@remote.test"]),
    ("team: alice@web1, bob@localhost, x@remote.test", "team", ["alice", "bob", "x@remote.test"]),
    ("one: two\ntwo: three\nthree: alice", "one", ["alice"]),
    ("alice: carol", "alice", ["carol"]),
    ("alice: ALICE, carol", "alice", ["alice", "carol"]),
    ("alice: alice@localhost, carol", "Alice@example.org", ["alice", "carol"]),
    ("alice: \\alice, carol", "alice", ["\\alice", "carol"]),
    ("team: \\alice\nalice: carol", "team", ["\\alice"]),
    ("", "\\alice@example.org", ["\\alice"]),
    ("alice: carol", "\\alice", ["\\alice"]),
    ("team: \\x@remote.test", "team", ["x@remote.test"]),
    ("team: alice, bob, Alice, alice@localhost, bob@web1", "team", ["alice", "bob"]),
    ("team: x@remote.test, x@REMOTE.test, X@remote.test", "team", ["x@remote.test", "X@remote.test"]),
    ("a: b, c\nb: alice\nc: b, bob", "a", ["alice", "bob"]),
    ("j\u00f6rg: alice", "j\u00f6rg", ["alice"]),
    ('"odd name": alice', '"Odd Name"@example.org', ["alice"]),
])
def test_users_and_aliases(aliases: str, recipient: str, expected: list[str], host: Host) -> None:
    host.aliases(aliases)
    assert host.to(recipient) == expected


@pytest.mark.parametrize(("aliases", "recipient", "expected"), [
    ("", "alice+tag", ["alice+tag"]),
    ("", "alice+Tag+more@example.org", ["alice+Tag+more"]),
    ("", "alice+", ["alice"]),
    ("", "+alice", ["5.1.1 +alice@example.org"]),
    ("", "nosuch+tag", ["5.1.1 nosuch+tag@example.org"]),
    ("team: bob", "team+x", ["bob"]),
    ("team+x: alice\nteam: bob", "team+x", ["alice"]),
    ("team+x: alice\nteam: bob", "TEAM+X@example.org", ["alice"]),
    ("team+*: alice\nteam: bob", "team+y", ["alice"]),
    ("team+*: alice\nteam: bob", "team", ["bob"]),
    ("alice: alice, carol", "alice+tag", ["alice", "carol"]),
    ("team: alice+lists", "team", ["alice+lists"]),
    ("", "alice+../../etc", ["alice"]),
    ("", "alice+$(touch x)", ["alice+$(touch x)"]),
])
def test_detail(aliases: str, recipient: str, expected: list[str], host: Host) -> None:
    host.aliases(aliases)
    assert host.to(recipient) == expected


def test_an_account_with_the_delimiter_in_its_name_is_found(host: Host) -> None:
    host.delimiter = "-"
    host.users = Table("www", "www-data", "alice")
    assert host.to("www-data", "alice-x") == ["www-data", "alice+x"]
    host.delimiter = "+"
    host.users = Table("odd+name")
    assert host.to("odd+name") == ["odd+name"]


def test_the_targets_of_commands_and_files_name_the_line_and_not_the_command(host: Host) -> None:
    host.aliases('team: robot\nrobot: "|/usr/bin/x -a", /var/mail/archive, alice\n')
    command, file, mailbox = host.expander.expand("team+tag")
    assert command == Target(COMMAND, "robot@example.org", source="robot", digest=digest_of(b"/usr/bin/x -a"),
                             words="/usr/bin/x -a")
    assert file == Target(FILE, "robot@example.org", source="robot", digest=digest_of(b"/var/mail/archive"),
                          words="/var/mail/archive")
    assert mailbox.user == "alice"


def test_the_words_for_the_log_are_one_short_line(host: Host) -> None:
    host.aliases('robot: "|' + "x\u009b y" * 5000 + '"\n')
    (target,) = host.expander.expand("robot")
    assert len(target.words) <= 200
    assert target.words.isprintable()


def test_the_detail_of_an_alias_reaches_its_command(host: Host) -> None:
    host.aliases('robot: "|x"\n')
    assert host.expander.expand("robot+tag")[0].detail == "tag"


@pytest.mark.parametrize(("aliases", "expected"), [
    ("noreply: /dev/null", "2.0.0"), ("noreply: :blackhole:", "2.0.0"), ("noreply: :fail: no", "5.2.1"),
    ("noreply: error:550 5.1.6 moved", "5.1.6"), ("noreply: :defer: later", "4.2.1"), ("noreply: :unknown:", "5.1.1")])
def test_values_that_are_no_place(aliases: str, expected: str, host: Host) -> None:
    host.aliases(aliases)
    assert host.to("noreply") == [f"{expected} noreply@example.org"]


@pytest.mark.parametrize("recipient", [
    "|touch /tmp/x", '"|touch /tmp/x"@example.org', "|touch /tmp/x@example.org", "/etc/passwd", "/etc/passwd@localhost",
    '"/etc/passwd"@example.org', ":include:/etc/passwd", ":INCLUDE:/etc/passwd@example.org",
    '":include:/etc/passwd"@example.org'])
def test_an_envelope_names_no_program_file_or_list(recipient: str, host: Host) -> None:
    host.aliases("x: y\n")
    assert host.to(recipient) == [f"5.7.1 {recipient}"]


@pytest.mark.parametrize("recipient", [":fail:", ":blackhole:@example.org", "error:550 x", "~/x", "..", "a:b", "a/b"])
def test_other_odd_recipients_are_unknown_users(recipient: str, host: Host) -> None:
    assert [words.split(" ")[0] for words in host.to(recipient)] == ["5.1.1"]


@pytest.mark.parametrize("recipient", ["", "@example.org", "a@", "a@b..c", "a\nb", "x" * 2000, "a@" + "b" * 300])
def test_what_is_no_address_fails(recipient: str, host: Host) -> None:
    assert [words.split(" ")[0] for words in host.to(recipient)] == ["5.1.3"]


def test_a_remote_member_that_is_no_address_fails_alone(host: Host) -> None:
    host.aliases("team: alice, x@-bad.test\n")
    assert host.to("team") == ["alice", "5.1.3 x@-bad.test"]


@pytest.mark.parametrize("address", ["/C=US/O=x/@gateway.test", '"|x"@remote.test'])
def test_what_looks_like_a_file_elsewhere_is_the_others_business(address: str, host: Host) -> None:
    assert host.to(address) == [address]


# ---- names that are always there


@pytest.mark.parametrize(("aliases", "recipient", "expected"), [
    ("", "postmaster", ["root"]), ("", "POSTMASTER@localhost", ["root"]), ("", "MAILER-DAEMON", ["root"]),
    ("root: alice", "mailer-daemon@example.org", ["alice"]),
    ("postmaster: bob", "MAILER-DAEMON", ["bob"]), ("mailer-daemon: carol", "MAILER-DAEMON", ["carol"]),
    ("", "postmaster+x", ["root"]), ("", "abuse", ["5.1.1 abuse@example.org"]),
    ("root: postmaster", "root", ["root"]),
    ("postmaster: root\nroot: postmaster", "postmaster", ["root"]),
    ("", "_pysendmail", ["root"]), ("root: alice", "_pysmlocal", ["alice"]),
    ("_pysendmail: bob", "_pysendmail", ["bob"]), ("root: _pysendmail", "root", ["root"]),
    ("x: \\_pysendmail", "x", ["root"]),
])
def test_names_that_always_exist(aliases: str, recipient: str, expected: list[str], host: Host) -> None:
    host.aliases(aliases)
    assert host.to(recipient) == expected


def test_a_user_called_postmaster_gets_that_mail(host: Host) -> None:
    host.users = Table("root", "postmaster")
    assert host.to("postmaster", "mailer-daemon") == ["postmaster"]


# ---- loops and limits


@pytest.mark.parametrize(("aliases", "recipient", "expected"), [
    ("ping: pong\npong: ping", "ping", ["5.4.6 ping"]),
    ("a: b\nb: c\nc: a", "b", ["5.4.6 b"]),
    ("a: b, c\nb: a\nc: a", "a", ["5.4.6 a"]),
    ("a: b, alice\nb: a, bob", "a", ["5.4.6 a", "bob", "alice"]),
    ("me: me", "me", ["5.1.1 me@example.org"]),
    ("me: me, alice", "me", ["5.1.1 me@example.org", "alice"]),
    ("alice: ping\nping: alice", "alice", ["alice"]),
    ("alice: ping\nping: alice", "ping", ["alice"]),
    ("ping: bob\nbob: ping", "ping", ["bob"]),
    ("alice: bob\nbob: alice", "alice", ["alice"]),
    ("alice: bob\nbob: carol\ncarol: bob", "alice", ["bob"]),
    ("alice: alice, bob\nbob: bob, alice", "alice", ["alice", "bob"]),
    ("alice: jsmith, carol\njsmith: alice+new", "alice", ["alice+new", "carol"]),
])
def test_loops_end_at_a_user_or_as_one_failure(aliases: str, recipient: str, expected: list[str], host: Host) -> None:
    host.aliases(aliases)
    assert host.to(recipient) == expected


def test_a_loop_is_told_in_words(host: Host) -> None:
    host.aliases("a: b\nb: c\nc: a\n")
    (target,) = host.expander.expand("a")
    assert target.outcome is not None
    assert target.outcome.reason == "alias loop: a -> b -> c -> a"


def test_depth_has_a_limit(host: Host) -> None:
    host.aliases("".join(f"a{number}: a{number + 1}\n" for number in range(20)) + "a20: alice\n")
    assert host.to("a11") == ["alice"]
    assert host.to("a10") == ["5.4.6 a10"]


def test_a_wide_loop_is_one_failure_and_bounded_work(host: Host) -> None:
    """Each of ten aliases has each of the others a hundred times: without a memory, 900 ** 10 steps."""
    names = [f"a{number}" for number in range(10)]
    host.aliases("".join(f"{name}: {', '.join([other for other in names if other != name] * 100)}\n" for name in names))
    assert host.to("a0") == ["5.4.6 a0"]


def test_two_recipients_in_one_loop_get_one_failure_each(host: Host) -> None:
    host.aliases("ping: pong\npong: ping\n")
    assert host.to("ping", "ping", "bob") == ["5.4.6 ping", "bob"]


def test_a_very_wide_alias_works(host: Host) -> None:
    host.aliases("wide: " + ",\n ".join(f"u{number}@remote.test" for number in range(99_990)) + "\n")
    assert len(host.to("wide")) == 99_990


def test_too_many_targets_wait_for_the_administrator(host: Host) -> None:
    host.limits = Limits(results=10)
    host.aliases("wide: " + ", ".join(f"u{number}@remote.test" for number in range(11)) + "\n")
    seen: Seen = set()
    (target,) = host.expander.expand("wide", seen=seen)
    assert short(target) == "4.2.4 wide"
    assert target.outcome is not None
    assert target.outcome.reason == "more than 10 addresses"
    assert seen == set()


# ---- trouble


def test_an_alias_file_that_is_missing_defers_every_local_address(host: Host) -> None:
    host.path.unlink()
    assert host.to("root", "nosuch", "x@remote.test") == [
        "4.3.5 root@example.org", "4.3.5 nosuch@example.org", "x@remote.test"]
    assert host.notes == [f"cannot read {host.path}: No such file or directory"]


def test_without_anybody_to_tell_trouble_is_deferred_all_the_same(host: Host) -> None:
    host.path.unlink()
    expander = host.expander
    silent = Expander(expander.router, expander.aliases, expander.users)
    assert [short(target) for target in silent.expand("root")] == ["4.3.5 root@example.org"]


def test_a_broken_line_defers_its_name_and_says_where_it_is(host: Host) -> None:
    host.aliases("team: alice bob\nother: bob, team\n")
    assert host.to("other") == ["bob", "4.3.5 team@example.org"]
    (target,) = host.expander.expand("team")
    assert target.outcome is not None
    assert target.outcome.reason.startswith(f"{host.path}:1: 'team': blank inside an address")


def test_a_user_who_cannot_be_looked_up_is_deferred(host: Host) -> None:
    host.users.broken = {"alice"}
    host.aliases("team: alice, bob\n")
    assert host.to("team") == ["4.3.0 alice@example.org", "bob"]
    assert host.to("alice+tag", "nosuch") == ["4.3.0 alice+tag@example.org", "5.1.1 nosuch@example.org"]


def test_trouble_within_a_loop_is_deferred(host: Host) -> None:
    host.users.broken = {"ping"}
    host.aliases("ping: pong\npong: ping\n")
    assert host.to("ping") == ["4.3.0 ping@example.org"]


def test_trouble_with_postmaster_is_deferred(host: Host) -> None:
    host.users.broken = {"postmaster"}
    assert host.to("postmaster") == ["4.3.0 postmaster@example.org"]


def test_what_was_deferred_is_found_again(host: Host) -> None:
    host.users.broken = {"bob"}
    host.aliases("team: alice, bob\nowner-team: carol\n")
    seen: Seen = set()
    alice, trouble = host.expander.expand("team", seen=seen)
    seen = {alice.key(), trouble.key()}  # as the runner has it after a restart
    assert [short(target) for target in host.expander.again(trouble, seen=seen)] == [
        "4.3.0 bob@example.org > carol@example.org"]
    host.users.broken = set()
    assert [short(target) for target in host.expander.again(trouble, seen=seen)] == ["bob > carol@example.org"]


def test_what_was_deferred_without_aliases_is_found_again_without(host: Host) -> None:
    host.users.broken = {"bob"}
    host.aliases("team: \\bob\nbob: carol\n")
    (trouble,) = host.expander.expand("team")
    host.users.broken = set()
    assert [short(target) for target in host.expander.again(trouble)] == ["\\bob"]


def test_a_list_that_was_missing_is_found_again_beside_what_is_served(host: Host) -> None:
    path = host.list_file("list", "bob\nalice\n")
    host.aliases(f"team: alice, {path}\n")
    os.rename(host.folder / "list", host.folder / "away")
    seen: Seen = set()
    expander = host.expander
    targets = expander.expand("team", seen=seen)
    assert [short(target) for target in targets] == ["alice", "4.2.4 team@example.org"]
    assert expander.again(targets[1], seen=seen)[0].outcome == targets[1].outcome
    os.rename(host.folder / "away", host.folder / "list")
    assert [short(target) for target in expander.again(targets[1], seen=seen)] == ["bob"]


def test_a_deferral_hides_the_final_outcomes_of_the_same_alias(host: Host) -> None:
    """Both are about team@: the runner keeps one outcome for each address, and must not forget the list."""
    host.aliases(f"team: /dev/null, :include:{host.folder}/none, :blackhole:\n")
    assert host.to("team") == ["4.2.4 team@example.org"]


# ---- owners


@pytest.mark.parametrize(("aliases", "recipient", "expected"), [
    ("team: x@remote.test\nowner-team: carol", "team", ["x@remote.test > carol@example.org"]),
    ("team: x@remote.test\nowner-team: c@remote.test", "team", ["x@remote.test > c@remote.test"]),
    ("team: x@remote.test\nowner-team: carol, bob", "team", ["x@remote.test > owner-team@example.org"]),
    ('team: x@remote.test\nowner-team: "|cmd"', "team", ["x@remote.test > owner-team@example.org"]),
    ("team: x@remote.test\nowner-team: \\carol", "team", ["x@remote.test > owner-team@example.org"]),
    ("Team: x@remote.test\nOwner-Team: carol", "TEAM@localhost", ["x@remote.test > carol@example.org"]),
    ("team: alice, bob\nowner-team: carol", "team", ["alice > carol@example.org", "bob > carol@example.org"]),
    ("team: sub, bob\nsub: alice\nowner-team: carol", "team", ["alice > carol@example.org", "bob > carol@example.org"]),
    ("team: sub, bob\nsub: alice\nowner-team: carol\nowner-sub: x@remote.test", "team",
     ["alice > x@remote.test", "bob > carol@example.org"]),
    ("owner-team: alice, bob\nowner-owner: root", "owner-team", ["alice > root@example.org", "bob > root@example.org"]),
    ("owner-team: alice, bob", "owner-team", ["alice", "bob"]),
    ("owner-owner: alice, bob", "owner-owner", ["alice > owner-owner@example.org", "bob > owner-owner@example.org"]),
    ("alice: alice, bob\nowner-alice: carol", "alice", ["alice > carol@example.org", "bob > carol@example.org"]),
    ("owner-nosuch: carol", "nosuch", ["5.1.1 nosuch@example.org"]),
    ("owner-alice: carol", "alice", ["alice"]),
    ("team@lists.example: x@remote.test\nowner-team@lists.example: a@remote.test\nowner-team: b@remote.test",
     "team@lists.example", ["x@remote.test > a@remote.test"]),
    ("team@lists.example: x@remote.test\nowner-team: bob, carol", "team@lists.example",
     ["x@remote.test > owner-team@lists.example"]),
])
def test_owners(aliases: str, recipient: str, expected: list[str], host: Host) -> None:
    host.aliases(aliases)
    assert host.to(recipient) == expected


def test_a_list_whose_owner_cannot_be_read_waits(host: Host) -> None:
    host.aliases("team: x@remote.test\nowner-team: carol bob\n")
    assert host.to("team") == ["4.3.5 team@example.org"]


def test_commands_of_a_list_get_the_owner_as_sender(host: Host) -> None:
    host.aliases('team: "|x"\nowner-team: carol\n')
    assert host.to("team") == ["|x > carol@example.org"]


# ---- domains


@pytest.mark.parametrize(("recipient", "expected"), [
    ("info@lists.example", ["bob"]), ("info@LISTS.example.", ["bob"]), ("info@example.org", ["alice"]),
    ("info", ["alice"]), ("info@localhost", ["alice"]), ("info@web1", ["alice"]), ("sales@lists.example", ["carol"]),
    ("sales@localhost", ["5.1.1 sales@localhost"]), ("info+x@lists.example", ["bob"])])
def test_an_alias_with_a_domain_is_for_that_domain(recipient: str, expected: list[str], host: Host) -> None:
    host.aliases("info@example.org: alice\ninfo@lists.example: bob\nsales@lists.example: carol\n")
    assert host.to(recipient) == expected


def test_an_alias_with_a_domain_goes_before_one_without(host: Host) -> None:
    host.aliases("info: alice\ninfo@lists.example: bob\n")
    assert host.to("info@lists.example", "info@example.org") == ["bob", "alice"]


# ---- lists


def test_a_list_is_read_with_comments_and_blank_lines(host: Host) -> None:
    path = host.list_file(
        "list", "# the team\nalice\n\n  carol  \n# end\nBob B. <bob@example.org>, alice\nx@remote.test\n")
    host.aliases(f"team: {path}\nowner-team: root\n")
    assert host.to("team") == ["alice > root@example.org", "carol > root@example.org", "bob > root@example.org",
                               "x@remote.test > root@example.org"]


def test_a_list_is_read_afresh_for_each_message(host: Host) -> None:
    path = host.list_file("list", "alice\n")
    host.aliases(f"team: {path}\n")
    expander = host.expander
    assert [short(target) for target in expander.expand("team")] == ["alice"]
    host.list_file("list", "carol\n")
    assert [short(target) for target in expander.expand("team")] == ["carol"]


def test_members_of_a_list_may_be_aliases_with_commands_but_no_commands(host: Host) -> None:
    path = host.list_file("list", '"|evil"\nrobot\n/etc/evil\n/dev/null\n')
    host.aliases(f'team: {path}\nrobot: "|good"\n')
    assert host.to("team") == ["5.7.1 team@example.org", "|good"]


def test_bad_lines_of_a_list_defer_beside_the_good_ones(host: Host) -> None:
    path = host.list_file("list", "alice\nbob carol\n\"open\ndave@remote.test\n")
    host.aliases(f"team: {path}\n")
    targets = host.expander.expand("team")
    assert [short(target) for target in targets] == ["alice", "4.2.4 team@example.org", "dave@remote.test"]
    assert targets[1].outcome is not None
    assert f"{host.folder}/list:2: blank inside" in targets[1].outcome.reason


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda path: path.unlink(), "No such file"),
    (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    (lambda path: path.write_bytes(b"alice\n\0"), "NUL"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_bytes(b"# nobody\n"), "is empty"),
    (lambda path: path.write_bytes(b"#" * 1001), "larger than 1000"),
    (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "not a regular file"),
])
def test_a_list_that_cannot_be_read_is_deferred(spoil: Callable[[Path], object], words: str, host: Host) -> None:
    host.limits = Limits(list_size=1000)
    host.aliases(f"team: bob, {host.list_file('list', 'alice')}\n")
    spoil(host.folder / "list")
    targets = host.expander.expand("team")
    assert [short(target) for target in targets] == ["bob", "4.2.4 team@example.org"]
    assert targets[1].outcome is not None
    assert words in targets[1].outcome.reason


def test_lists_may_name_lists_and_loops_of_them_end(host: Host) -> None:
    inner = host.list_file("inner", "bob\n:include:/nonexistent-list\n")
    outer = host.list_file("outer", f"alice\n{inner}\n{inner}\n:include:{host.folder}/outer\ncarol\n")
    host.aliases(f"team: {outer}, {outer}\n")
    assert host.to("team") == ["alice", "bob", "4.2.4 team@example.org", "5.4.6 team", "carol"]


def test_lists_count_as_depth(host: Host) -> None:
    for number in range(12):
        host.list_file(f"l{number}", f":include:{host.folder}/l{number + 1}\n")
    host.list_file("l12", "alice\n")
    host.aliases(f"deep: :include:{host.folder}/l0\nless: :include:{host.folder}/l4\n")
    assert host.to("less") == ["alice"]
    assert host.to("deep") == ["5.4.6 deep"]


def test_a_list_of_ten_thousand_gets_one_copy_each(host: Host) -> None:
    members = "".join(f"Person {number % 10_000} <p{number % 10_000}@remote.test>\n" for number in range(12_000))
    host.aliases(f"big: {host.list_file('big', members)}\nowner-big: carol\n")
    targets = host.expander.expand("big")
    assert len(targets) == 10_000
    assert {target.sender for target in targets} == {"carol@example.org"}


def test_no_descriptor_stays_open(host: Host) -> None:
    host.aliases(f"team: {host.list_file('a', f':include:{host.folder}/b')}\n")
    host.list_file("b", f"alice\n:include:{host.folder}/a\n")
    before = len(os.listdir("/proc/self/fd"))
    host.to("team")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_list_that_not_everybody_may_read_is_not_shown_in_bounces(host: Host) -> None:
    """A user who owns a directory on the way could point the list at somebody's mail; each line would come back."""
    path = host.list_file("list", "secret line\n", mode=0o640)
    host.aliases(f"team: {path}\n")
    (target,) = host.expander.expand("team")
    assert short(target) == "4.2.4 team@example.org"
    assert target.outcome is not None
    assert "must be readable by everybody" in target.outcome.reason
    assert "secret" not in target.outcome.reason


def test_a_list_that_everybody_can_write_is_not_used(host: Host) -> None:
    """Any user could say who gets its mail; sendmail and Postfix refuse it too."""
    host.aliases(f"team: alice, {host.list_file('list', 'x@remote.test', mode=0o666)}\n")
    first, second = host.expander.expand("team")
    assert [short(first), short(second)] == ["alice", "4.2.4 team@example.org"]
    assert second.outcome is not None
    assert second.outcome.reason.endswith("is writable by everybody")


@pytest.mark.root
def test_a_private_list_of_root_is_used_where_only_root_can_change_the_way_to_it(host: Host) -> None:
    folder = Path("/etc/pysendmail-test-lists")
    folder.mkdir(mode=0o755)
    try:
        (folder / "list").write_text("alice\n")
        (folder / "list").chmod(0o640)
        host.aliases(f"team: :include:{folder}/list\n")
        assert host.to("team") == ["alice"]
        folder.chmod(0o775)
        assert host.to("team") == ["4.2.4 team@example.org"]
        folder.chmod(0o755)
        (folder / "link").symlink_to(folder / "list")
        host.aliases(f"team: :include:{folder}/link\n")
        assert host.to("team") == ["4.2.4 team@example.org"]
        os.chown(folder / "list", 4242, 4242)
        host.aliases(f"team: :include:{folder}/list\n")
        assert host.to("team") == ["4.2.4 team@example.org"]
    finally:
        for name in folder.iterdir():
            name.unlink()
        folder.rmdir()


@pytest.mark.parametrize("mode", [0o664, 0o666])
def test_commands_files_and_lists_of_an_alias_file_that_others_can_write_wait(mode: int, host: Host) -> None:
    path = host.list_file("list", "bob")
    host.aliases(f'robot: "|x"\narchive: /var/x\nteam: {path}\nplain: alice\nnone: /dev/null\n')
    host.path.chmod(mode)
    assert host.to("robot", "archive", "team", "plain", "none") == [
        "4.3.5 robot@example.org", "4.3.5 archive@example.org", "4.3.5 team@example.org", "alice",
        "2.0.0 none@example.org"]
    assert len(host.notes) == 1
    assert "is writable by" in host.notes[0]


# ---- several recipients of one message


def test_recipients_of_one_message_share_what_is_served(host: Host) -> None:
    host.aliases("team: alice, bob\nothers: bob, carol\nalso: team\n")
    assert host.to("bob", "team", "others", "also", "BOB@localhost") == ["bob", "alice", "carol"]


def test_a_failure_of_two_lists_is_told_once(host: Host) -> None:
    host.aliases("one: nosuch, alice\ntwo: nosuch, bob\n")
    assert host.to("one", "two") == ["5.1.1 nosuch@example.org", "alice", "bob"]


def test_trouble_of_two_lists_is_kept_for_both(host: Host) -> None:
    host.users.broken = {"carol"}
    host.aliases("one: carol, alice\ntwo: carol, bob\n")
    assert host.to("one", "two") == ["4.3.0 carol@example.org", "alice", "4.3.0 carol@example.org", "bob"]


def test_an_alias_with_trouble_in_it_is_gone_into_again_for_the_next_recipient(host: Host) -> None:
    host.users.broken = {"carol"}
    host.aliases("sub: carol\none: sub\ntwo: sub\n")
    assert host.to("one", "two") == ["4.3.0 carol@example.org", "4.3.0 carol@example.org"]


# ---- .forward


def forwarded(host: Host, parent: Target, *targets: Target, seen: Seen | None = None) -> list[Target]:
    return host.expander.forwarded(parent, targets, seen=seen)


def address(text: str, *, use_forward: bool = True) -> Target:
    return Target(FORWARDED, text, use_forward=use_forward)


ALICE = Target(MAILBOX, "alice@example.org", user="alice", sender="owner@remote.test")


def test_addresses_of_a_forward_are_expanded_as_members(host: Host) -> None:
    host.aliases("team: carol, x@remote.test\n")
    found = forwarded(host, ALICE, address("bob"), address("team"), address("y@Remote.test"), address("nosuch"))
    assert [short(target) for target in found] == [f"{words} > owner@remote.test" for words in (
        "bob", "carol", "x@remote.test", "y@remote.test", "5.1.1 nosuch@example.org")]
    assert {target.via for target in found} == {"alice"}


def test_a_forward_that_keeps_a_copy_keeps_it(host: Host) -> None:
    seen = {ALICE.key()}
    found = forwarded(host, ALICE, address("alice", use_forward=False), address("carol"), seen=seen)
    assert [short(target) for target in found] == ["\\alice > owner@remote.test", "carol > owner@remote.test"]


def test_a_forward_to_oneself_without_a_backslash_ends_in_the_mailbox(host: Host) -> None:
    found = forwarded(host, ALICE, address("Alice@localhost"), seen={ALICE.key()})
    assert [short(target) for target in found] == ["\\alice > owner@remote.test"]


def test_two_users_who_forward_to_each_other_end_in_a_mailbox(host: Host) -> None:
    alice = Target(MAILBOX, "alice@example.org", user="alice")
    seen = {alice.key()}
    (carol,) = forwarded(host, alice, address("carol"), seen=seen)
    assert (short(carol), carol.via) == ("carol", "alice")
    (back,) = forwarded(host, carol, address("alice"), seen=seen)
    assert (short(back), back.via) == ("\\alice", "alice:carol")


def test_a_forward_back_to_the_alias_that_led_there_keeps_a_copy(host: Host) -> None:
    """jsmith is an alias for john, and john's .forward says "jsmith, other": sendmail and Postfix deliver to john."""
    host.users = Table("root", "john", "other")
    host.aliases("jsmith: john\n")
    seen: Seen = set()
    expander = host.expander
    (john,) = expander.expand("jsmith", seen=seen)
    found = expander.forwarded(john, [address("jsmith"), address("other")], seen=seen)
    assert [short(target) for target in found] == ["\\john", "other"]


def test_a_forward_to_ones_own_alias_with_others(host: Host) -> None:
    host.aliases("team: alice, bob\n")
    seen: Seen = set()
    expander = host.expander
    alice, _bob = expander.expand("team", seen=seen)
    assert [short(target) for target in expander.forwarded(alice, [address("team")], seen=seen)] == ["\\alice"]


def test_a_chain_of_forwards_has_the_depth_of_aliases(host: Host) -> None:
    deep = Target(MAILBOX, "alice@example.org", user="alice", via=":".join(f"u{number}" for number in range(9)))
    assert [short(target) for target in forwarded(host, deep, address("bob"))] == ["bob"]
    too_deep = Target(MAILBOX, "alice@example.org", user="alice", via=":".join(f"u{number}" for number in range(10)))
    assert [short(target) for target in forwarded(host, too_deep, address("bob"))] == ["5.4.6 alice@example.org"]


def test_commands_of_a_forward_belong_to_its_owner_whatever_the_agent_says(host: Host) -> None:
    lying = Target(COMMAND, "root@example.org", user="root", source="robot", digest="d" * 64, words="x\ny", sender="",
                   use_forward=False)
    (target,) = forwarded(host, Target(MAILBOX, "alice@example.org", user="alice", detail="tag"), lying)
    assert target == Target(COMMAND, "alice@example.org", user="alice", detail="tag", digest="d" * 64, words="x y",
                            via="alice")


def test_an_agent_cannot_name_other_mailboxes_or_hosts(host: Host) -> None:
    for lying in (Target(MAILBOX, "root@example.org", user="root"), Target(RELAY, "x@remote.test")):
        assert [short(target) for target in forwarded(host, ALICE, lying)] == [
            "5.3.5 alice@example.org > owner@remote.test"]
    assert [short(target) for target in forwarded(host, ALICE, address("a\nb"), address("a\ud800"))] == [
        "5.1.3 alice@example.org > owner@remote.test"]


def test_outcomes_of_a_forward_are_kept(host: Host) -> None:
    later = Target(KNOWN, "alice@example.org", outcome=deferred("4.2.1", "later"))
    assert [short(target) for target in forwarded(host, ALICE, later, address("bob"))] == [
        "4.2.1 alice@example.org > owner@remote.test", "bob > owner@remote.test"]


def test_a_command_of_a_forward_that_is_gone_is_looked_for_in_the_forward_again(host: Host) -> None:
    mailbox = Target(MAILBOX, "alice+tag@example.org", user="alice", detail="tag", via="bob", sender="x@remote.test")
    seen = {mailbox.key()}
    commands = forwarded(host, mailbox, *(Target(COMMAND, "", digest=digest * 64) for digest in "de"), seen=seen)
    assert {command.via for command in commands} == {"bob:alice"}
    assert host.expander.again(commands[0], seen=seen) == [mailbox]
    assert host.expander.again(commands[1], seen=seen) == []  # one mailbox is enough for all lines of one .forward
    found = forwarded(host, mailbox, *(Target(COMMAND, "", digest=digest * 64) for digest in "ef"), seen=seen)
    assert [target.digest[0] for target in found] == ["e", "f"]


def test_a_forward_that_puts_mail_off_is_read_again_and_not_passed_by(host: Host) -> None:
    mailbox = Target(MAILBOX, "alice@example.org", user="alice")
    seen = {mailbox.key()}
    later = Target(KNOWN, "alice@example.org", outcome=deferred("4.2.1", "later"))
    found = forwarded(host, mailbox, later, address("bob"), seen=seen)
    assert [short(target) for target in found] == ["4.2.1 alice@example.org", "bob"]
    seen = {mailbox.key(), *(target.key() for target in found)}  # as the runner has it after a restart
    assert host.expander.again(found[0], seen=seen) == [mailbox]


def test_trouble_with_a_member_of_a_forward_is_about_that_member(host: Host) -> None:
    host.users.broken = {"bob"}
    mailbox = Target(MAILBOX, "alice@example.org", user="alice")
    seen = {mailbox.key()}
    (trouble,) = forwarded(host, mailbox, address("bob"), seen=seen)
    host.users.broken = set()
    assert [(short(target), target.via) for target in host.expander.again(trouble, seen=seen)] == [("bob", "alice")]


def test_too_many_targets_of_a_forward_wait_in_the_forward(host: Host) -> None:
    host.limits = Limits(results=10)
    host.aliases("wide: " + ", ".join(f"u{number}@remote.test" for number in range(11)) + "\n")
    mailbox = Target(MAILBOX, "alice@example.org", user="alice")
    seen = {mailbox.key()}
    (trouble,) = forwarded(host, mailbox, address("wide"), seen=seen)
    assert short(trouble) == "4.2.4 alice@example.org"
    assert host.expander.again(trouble, seen=seen) == [mailbox]


def test_a_mailbox_is_looked_up_again_when_aliases_have_changed(host: Host) -> None:
    mailbox = Target(MAILBOX, "alice@example.org", user="alice")
    seen = {mailbox.key(), ("alias", "alice", "")}
    assert [short(target) for target in host.expander.again(mailbox, seen=seen)] == ["alice"]
    host.aliases("alice: bob, carol\n")
    assert [short(target) for target in host.expander.again(mailbox, seen=seen)] == ["bob", "carol"]


# ---- telling why


def test_each_step_is_told(host: Host) -> None:
    path = host.list_file("list", "bob, alice")
    host.aliases(f'team: alice, x@remote.test, robot, nosuch, {path}\nowner-team: root\nrobot: "|cmd a"\n')
    assert [tuple(step) for step in host.steps("team@localhost")] == [
        (0, "team@localhost", "alias", f'{host.path}:1: team: alice, x@remote.test, robot, nosuch, '
                                       f':include:{host.folder}/list'),
        (0, "team@localhost", "owner", "the sender becomes root@example.org"),
        (1, "alice@example.org", "user", "alice, uid 1001"),
        (1, "x@remote.test", "relay", "to remote.test"),
        (1, "robot@example.org", "alias", f'{host.path}:3: robot: "|cmd a"'),
        (2, "robot@example.org", "command", f"cmd a ({host.path}:3)"),
        (1, "nosuch@example.org", "outcome", "5.1.1 unknown user: nosuch"),
        (1, "team@localhost", "list", f"{host.folder}/list: 2 values"),
        (2, "bob@example.org", "user", "bob, uid 1002"),
        (2, "alice@example.org", "user", "alice, uid 1001"),
        (2, "alice@example.org", "duplicate", "gets its copy already")]


def test_braces_in_names_are_no_format(host: Host) -> None:
    """Log formats that were data: Exim CVE-2011-1764."""
    host.aliases("{0.__class__}: {}, {x}\n")
    assert host.steps("{0.__class__}")[0].words.endswith(": {0.__class__}: {}, {x}")


# ---- anything at all

WORDS = st.sampled_from(["alice", "bob", "a", "b", "c", "d", "nosuch", "\\alice", "\\a", "x@remote.test", "a+x",
                         '"|cmd"', "/dev/null", "/var/x", ":include:/nonexistent", "postmaster", "root", "owner-a",
                         "b@localhost"])
LINES = st.tuples(st.sampled_from(["a", "b", "c", "d", "alice", "root", "owner-a", "postmaster", "a+x"]),
                  st.lists(WORDS, min_size=1, max_size=4))


@given(st.lists(LINES, max_size=8), st.lists(st.sampled_from(["a", "b", "alice", "root", "a+x", "nosuch"]), min_size=1,
                                             max_size=4))
def test_every_recipient_gets_an_answer_and_every_place_one_copy(
        tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, list[str]]], recipients: list[str]) -> None:
    host = Host(tmp_path_factory.getbasetemp())
    host.aliases("".join(f"{name}: {', '.join(members)}\n" for name, members in lines))
    expander, seen = host.expander, set[tuple[str, ...]]()
    places: list[tuple[str, ...]] = []
    for index, recipient in enumerate(recipients):
        targets = expander.expand(recipient, seen=seen)
        assert targets or index > 0
        places += [target.key() for target in targets if target.outcome is None or target.outcome.is_final]
        assert all(target.kind in (MAILBOX, RELAY, COMMAND, FILE, KNOWN) for target in targets)
        assert all(Target.from_json(target.to_json()) == target for target in targets)
    assert len(places) == len(set(places))


@given(st.text(max_size=60))
def test_any_recipient_gets_an_answer(tmp_path_factory: pytest.TempPathFactory, recipient: str) -> None:
    assert Host(tmp_path_factory.getbasetemp()).to(recipient)
