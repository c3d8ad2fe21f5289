"""pysendmail explain: the way of an address in words, who looks at which file, and what the places are."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pysendmail.cli import admin, admin_explain, explain
from pysendmail.cli.ask import Unanswered
from pysendmail.config import Config, identity
from pysendmail.paths import Paths
from pysendmail.users import LookupTrouble, User

HOST = "host.example"
ALIASES = """\
postmaster: root
root: alice
team: alice, bob, carol@example.org, |"/usr/bin/log it", /var/log/team, /dev/null
later: :defer: come back
"""
NOBODY = 65534


class TableUsers:
    """Users that exist nowhere else. away: the name that the user database cannot answer for."""

    def __init__(self, root: str, uid: int) -> None:
        self.away = "away"
        self._known = {name: User(name, uid, uid, f"{root}/home/{name}", "/bin/sh") for name in ("alice", "bob")}
        self._known["root"] = User("root", 0, 0, f"{root}/root", "/bin/sh")
        for user in self._known.values():
            os.makedirs(user.home)

    def lookup(self, name: str) -> User | None:
        if name == self.away:
            raise LookupTrouble(5, "the directory is down")
        return self._known.get(name)

    def by_uid(self, uid: int) -> User | None:
        return next((user for user in self._known.values() if user.uid == uid), None)


@pytest.fixture
def users(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> TableUsers:
    """We are every user: as root we would have to become one."""
    Path(paths.aliases).write_text(ALIASES)
    uid = os.geteuid() or NOBODY
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if os.getuid() == 0:
        monkeypatch.setattr(os, "fork", None)
    users = TableUsers(paths.root, uid)
    for name in ("alice", "bob"):
        os.chown(f"{paths.root}/home/{name}", uid, -1)
    return users


CONFIG = Config(hostname=HOST, domain=HOST, local_domains=("localhost", HOST))


def explained(paths: Paths, users: TableUsers, address: str, config: Config = CONFIG) -> explain.Explanation:
    return explain.Explainer(paths, config, users).explain(address)


def places(found: explain.Explanation, root: str) -> list[tuple[str, str]]:
    return [(place.target.kind, place.words.replace(root, "")) for place in found.places]


def forward(paths: Paths, name: str, text: str) -> None:
    path = Path(f"{paths.root}/home/{name}/.forward")
    path.write_text(text)
    os.chmod(path, 0o644)
    os.chown(path, os.geteuid(), -1)


def test_an_alias_is_named_with_its_line(paths: Paths, users: TableUsers) -> None:
    found = explained(paths, users, "postmaster")
    words = [step.words for step in found.steps if step.verb == "alias"]
    assert words[0].startswith(f"{paths.aliases}:1: postmaster: root")
    assert words[1].startswith(f"{paths.aliases}:2: root: alice")
    assert places(found, paths.root) == [("mailbox", "/var/mail/alice")]
    assert found.code == 0


def test_every_kind_of_place(paths: Paths, users: TableUsers) -> None:
    found = explained(paths, users, f"team@{HOST}")
    assert places(found, paths.root) == [
        ("mailbox", "/var/mail/alice"), ("mailbox", "/var/mail/bob"),
        ("relay", "carol@example.org by the mail hosts of example.org"),
        ("command", "/usr/bin/log it as _pysmlocal"), ("file", "/var/log/team as _pysmlocal"),
        ("known", f"team@{HOST}: 2.0.0 discarded: /dev/null")]
    assert found.code == 0


@pytest.mark.parametrize(("address", "words", "code"), [
    ("nosuch", f"nosuch@{HOST}: 5.1.1 ", 67), ("later", f"later@{HOST}: 4.2.1 come back", 75),
    ("away", f"away@{HOST}: 4.", 75), ("|id", "|id: 5.7.1 ", 69), ("a@b@", "a@b@: 5.1.3 ", 69),
])
def test_what_goes_nowhere_has_sendmails_exit_code(
    paths: Paths, users: TableUsers, address: str, words: str, code: int,
) -> None:
    found = explained(paths, users, address)
    [(kind, said)] = places(found, paths.root)
    assert kind == "known"
    assert said.startswith(words)
    assert found.code == code


def test_a_forward_is_followed(paths: Paths, users: TableUsers) -> None:
    forward(paths, "alice", '\\alice, team, "|/usr/bin/vacation alice", carol@example.com\n')
    found = explained(paths, users, "alice")
    assert places(found, paths.root)[:3] == [
        ("command", "/usr/bin/vacation alice as alice"), ("mailbox", "/var/mail/alice"), ("mailbox", "/var/mail/bob")]
    assert ("relay", "carol@example.com by the mail hosts of example.com") in places(found, paths.root)
    [words] = [step.words for step in found.steps if step.verb == "forward" and "4 values" in step.words]
    assert words == f"{paths.root}/home/alice/.forward: 4 values"
    assert [step.words for step in found.steps if step.words == "none"] == ["none"], "of bob"


def test_forwards_that_lead_to_one_another_end(paths: Paths, users: TableUsers) -> None:
    forward(paths, "alice", "bob\n")
    forward(paths, "bob", "alice\n")
    found = explained(paths, users, "alice")
    assert len(found.places) == 1
    assert found.code == 0


def test_a_forward_that_is_not_believed_is_named(paths: Paths, users: TableUsers) -> None:
    forward(paths, "alice", "bob\n")
    os.chmod(f"{paths.root}/home/alice/.forward", 0o666)
    found = explained(paths, users, "alice")
    said = [step.words for step in found.steps if step.verb == "forward"]
    assert said[0].startswith(f"{paths.root}/home/alice/.forward ")
    assert said[1:] == ["none that counts"]
    assert places(found, paths.root) == [("mailbox", "/var/mail/alice")]


def test_a_forward_that_cannot_be_read_makes_mail_wait(paths: Paths, users: TableUsers) -> None:
    os.mkdir(f"{paths.root}/home/alice/.forward")
    os.chmod(f"{paths.root}/home/alice", 0o1755)
    found = explained(paths, users, "alice")
    assert found.places[0].target.kind == "known"
    assert found.code == 75


def test_without_forwarding_nobody_looks(paths: Paths, users: TableUsers) -> None:
    forward(paths, "alice", "bob\n")
    found = explained(paths, users, "alice", replace(CONFIG, local=replace(CONFIG.local, forward=False)))
    assert places(found, paths.root) == [("mailbox", "/var/mail/alice")]


def test_a_shell_that_is_not_listed_is_named(paths: Paths, users: TableUsers) -> None:
    users._known["bob"] = replace(users._known["bob"], shell="/usr/sbin/nologin")
    forward(paths, "bob", "|/bin/cat\n")
    said = [step.words for step in explained(paths, users, "bob").steps if step.verb == "forward"]
    assert any("the shell of bob is not in /etc/shells" in words for words in said)


@pytest.mark.parametrize(("changes", "words"), [
    ({"mailbox": "maildir"}, "~alice/Maildir"), ({"mail_dir": "/srv/mail"}, "/srv/mail/alice"),
    ({"command": "/usr/bin/procmail"}, "/usr/bin/procmail as alice"),
    ({"mailbox": "lmtp:unix:/run/lmtp"}, "alice by lmtp:unix:/run/lmtp"),
])
def test_where_mailboxes_are(paths: Paths, users: TableUsers, changes: dict[str, str], words: str) -> None:
    found = explained(paths, users, "alice", replace(CONFIG, local=replace(CONFIG.local, **changes)))
    assert places(found, paths.root) == [("mailbox", words)]


def test_a_smarthost_is_named(paths: Paths, users: TableUsers) -> None:
    config = replace(CONFIG, relay=replace(CONFIG.relay, smarthost=("a.example:587", "b.example")))
    found = explained(paths, users, "x@example.org", config)
    assert places(found, paths.root) == [("relay", "x@example.org by a.example:587, b.example")]


def test_others_are_told_where_their_rights_end(paths: Paths, users: TableUsers) -> None:
    users._known["alice"] = replace(users._known["alice"], uid=4242)
    found = explained(paths, users, "alice")
    assert found.steps[-1].words == "only root and alice can say whether there is one"
    assert places(found, paths.root) == [("mailbox", "/var/mail/alice")]


# ---- as root


@pytest.mark.root
def test_root_looks_at_nothing_itself(open_paths: Paths) -> None:
    """Each file is read by whom it concerns: with root's rights both answers below would be others."""
    users = TableUsers(open_paths.root, NOBODY)
    Path(open_paths.aliases).write_text(f"list: :include:{open_paths.etc}/list\n")
    Path(f"{open_paths.etc}/list").write_text("bob\n")
    os.chmod(f"{open_paths.etc}/list", 0o600)
    os.chown(open_paths.queue, NOBODY, NOBODY)
    forward(open_paths, "alice", "bob\n")
    os.chown(f"{open_paths.root}/home/alice", NOBODY, NOBODY)
    os.chmod(f"{open_paths.root}/home/alice/.forward", 0o600)
    found = explained(open_paths, users, "list")
    assert found.code == 75, "the queue's owner cannot read the list"
    found = explained(open_paths, users, "alice")
    assert places(found, open_paths.root) == [("mailbox", "/var/mail/alice")], "the user cannot read that .forward"
    assert any("Permission denied" in step.words for step in found.steps)
    os.chown(f"{open_paths.root}/home/alice/.forward", NOBODY, NOBODY)
    assert places(explained(open_paths, users, "alice"), open_paths.root) == [("mailbox", "/var/mail/bob")]
    assert os.getresuid() == (0, 0, 0)


@pytest.mark.root
@pytest.mark.parametrize("work", [
    lambda: os._exit(1), lambda: {"x": {1}}, lambda: 1 / 0, lambda: os.kill(os.getpid(), 9)],
    ids=["ends", "no-json", "raises", "is-killed"])
def test_a_child_without_an_answer_is_one_line(work: Any) -> None:
    with pytest.raises(Unanswered, match="nobody could look at the files of x"):
        explain.as_user(User("x", NOBODY, NOBODY, "/", ""), work)


@pytest.mark.root
def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "WITHIN", 0.05)
    with pytest.raises(Unanswered):
        explain.as_user(User("x", NOBODY, NOBODY, "/", ""), lambda: __import__("signal").pause())


# ---- the command


@pytest.fixture
def run(paths: Paths, users: TableUsers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(admin_explain, "SystemUsers", lambda clock: users)
    monkeypatch.setattr(identity, "node_name", lambda: "box.example.net")

    def call(*args: str) -> tuple[int, str, str]:
        code = admin.main(["explain", *args], paths)
        printed = capsys.readouterr()
        return code, printed.out.replace(paths.root, ""), printed.err.replace(paths.root, "")
    return call


def test_the_command_says_it_in_words(run: Any) -> None:
    code, printed, errors = run("root")
    assert (code, errors) == (0, "")
    lines = printed.split("\n")
    assert lines[0] == "root"
    assert lines[1].startswith("  alias: root@host.example: /etc/aliases:2: root: alice")
    assert lines[-3:] == ["goes to", "  mailbox: /var/mail/alice", ""]


def test_the_command_says_it_in_json(run: Any) -> None:
    code, printed, _ = run("--json", "nosuch")
    found = json.loads(printed)
    assert code == found["code"] == 67
    assert found["address"] == "nosuch"
    [place] = found["places"]
    assert place["kind"] == "known"
    assert place["status"] == "5.1.1"
    assert {"kind", "address", "words", "user", "status", "reason"} == place.keys()
    assert all(step.keys() == {"depth", "address", "verb", "words"} for step in found["steps"])


def test_an_address_cannot_move_the_cursor(run: Any) -> None:
    assert "\x1b" not in run("\x1b[2J@example.org")[1]
