"""Who is a user: errors are never "no such user", which would send mail back for good."""

import ctypes
import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pysendmail import users
from pysendmail.users import LookupTrouble, SystemUsers, User

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "no-such-user-here"


def in_child(code: str) -> str:
    """What a program prints that has users, resource and os at hand and no descriptor left to open."""
    prelude = ("import os, resource, sys\n"
               "sys.path.insert(0, sys.argv[1])\n"
               "from pysendmail import users\n"
               "used = max(int(n) for n in os.listdir('/proc/self/fd')) + 1\n"
               "def exhaust():\n"
               "    resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))\n"
               "    while True:\n"
               "        try:\n"
               "            os.dup(0)\n"
               "        except OSError:\n"
               "            return\n")
    done = subprocess.run([sys.executable, "-c", prelude + code, str(ROOT)], capture_output=True, text=True, timeout=30,
                          stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_user_is_found_by_name_and_by_uid() -> None:
    entry = pwd.getpwuid(0)
    expected = User(entry.pw_name, 0, entry.pw_gid, entry.pw_dir, entry.pw_shell, entry.pw_gecos)
    assert users.lookup(entry.pw_name) == expected
    assert users.by_uid(0) == expected


def test_an_absent_user_is_unknown() -> None:
    assert users.lookup(NOBODY) is None
    assert users.by_uid(3_000_000_001) is None


@pytest.mark.parametrize("uid", [-1, 2**32, 2**64])
def test_a_number_that_is_no_uid_is_unknown(uid: int) -> None:
    assert users.by_uid(uid) is None


def test_capitals_match_a_user_in_lower_case() -> None:
    assert users.lookup("ROOT") == users.lookup("root")
    assert users.lookup("Root") == users.lookup("root")


def test_an_exact_name_goes_before_one_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: User(name, uid, uid, "/", "/bin/sh") for name, uid in (("Bob", 1), ("bob", 2))}
    monkeypatch.setattr(users, "_by_name", table.get)
    assert [users.lookup(name).uid for name in ("Bob", "bob", "BOB")] == [1, 2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "folded"), [
    ("Alice", "alice"), ("J\u00d6RG", "j\u00d6rg"), ("\u212aim", "\u212aim"), ("\u0130", "\u0130"),
    ("A\udcff", "a\udcff")])
def test_only_ascii_is_folded(text: str, folded: str) -> None:
    """Whoever registers a name that looks like another after Unicode's lower() must not get the other's mail."""
    assert users.fold(text) == folded


@pytest.mark.parametrize("name", [
    "", "a\0b", "root\n", "../root", "a/b", "/etc/passwd", ".", "..", "a:b", "\x1b[1m", "a\x7f", "x" * 257,
    "a\ud800", "\udc7f"])
def test_a_name_that_no_account_can_have_is_unknown_without_asking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_name: str) -> User | None:
        raise AssertionError("asked")

    monkeypatch.setattr(users, "_by_name", asked)
    assert users.lookup(name) is None


def test_an_odd_but_possible_name_is_asked_for() -> None:
    for name in ("-n", "+", "x" * 256, "a b", "%s", "j\u00f6rg", "a\udcff"):
        assert users.lookup(name) is None


def test_without_a_descriptor_nobody_is_unknown() -> None:
    """The first trap of Python here: KeyError for a user who exists, when /etc/passwd cannot be opened."""
    printed = in_child(
        "import pwd\n"
        "exhaust()\n"
        "asked = [(users.lookup, 'root'), (users.lookup, 'nosuchuser'), (users.by_uid, 0), (users.by_uid, 4242)]\n"
        "for ask, key in asked:\n"
        "    try:\n"
        "        print(ask(key))\n"
        "    except users.LookupTrouble as trouble:\n"
        "        print('trouble', trouble.errno)\n"
        "try:\n"
        "    print(pwd.getpwnam('root'))\n"
        "except KeyError:\n"
        "    print('KeyError')\n")
    assert printed == f"trouble {errno.EMFILE}\n" * 4 + "KeyError\n"


def test_with_descriptors_again_the_answer_is_there() -> None:
    printed = in_child(
        "held = []\n"
        "exhaust()\n"
        "try:\n"
        "    users.lookup('root')\n"
        "except users.LookupTrouble:\n"
        "    print('trouble')\n"
        "os.closerange(used - 1, used + 1)\n"
        "print(users.lookup('root').uid)\n")
    assert printed == "trouble\n0\n"


class FakeLibc:
    """getpwnam_r and getpwuid_r that give the codes they are told, and nobody; uid 0 is there if has_root."""

    def __init__(self, code: int, *, has_root: bool = True, too_small: int = 0) -> None:
        self.code = code
        self.has_root = has_root
        self.too_small = too_small  # bytes: smaller buffers get ERANGE
        self.sizes: list[int] = []

    def getpwnam_r(self, _name: Any, _entry: Any, _buffer: Any, size: Any, _result: Any) -> int:
        self.sizes.append(size.value)
        return errno.ERANGE if size.value < self.too_small else self.code

    def getpwuid_r(self, uid: Any, entry: Any, _buffer: Any, _size: Any, result: Any) -> int:
        if uid.value == 0 and self.has_root:
            entry._obj.name = b"root"
            result._obj.contents = entry._obj
            return 0
        return self.code


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLibc]:
    def install(*args: Any, **more: Any) -> FakeLibc:
        fake = FakeLibc(*args, **more)
        monkeypatch.setattr(users, "_libc", fake)
        return fake
    return install


def test_the_code_that_says_absent(libc: Callable[..., FakeLibc]) -> None:
    libc(0)
    assert users.lookup(NOBODY) is None
    assert users.by_uid(3_000_000_001) is None


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.EAGAIN,
                                  errno.EPERM, errno.EBADF, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENOENT,
                                  errno.ESRCH])
def test_codes_that_say_nothing(code: int, libc: Callable[..., FakeLibc]) -> None:
    """ENOENT is what glibc says when the socket of sssd or nslcd is not there: their users are not unknown."""
    libc(code)
    with pytest.raises(LookupTrouble) as trouble:
        users.lookup(NOBODY)
    assert trouble.value.errno == code
    with pytest.raises(LookupTrouble):
        users.by_uid(3_000_000_001)


def test_a_database_without_uid_0_is_not_believed(libc: Callable[..., FakeLibc]) -> None:
    """An emptied or absent /etc/passwd: everybody would be unknown, and all mail would go back."""
    libc(0, has_root=False)
    with pytest.raises(LookupTrouble, match="uid 0"):
        users.lookup(NOBODY)


def test_a_long_entry_gets_a_larger_buffer(libc: Callable[..., FakeLibc]) -> None:
    fake = libc(0, too_small=5000)
    assert users.lookup(NOBODY) is None
    assert fake.sizes == [1024, 2048, 4096, 8192]


def test_an_endless_entry_is_trouble(libc: Callable[..., FakeLibc]) -> None:
    fake = libc(0, too_small=2**40)
    with pytest.raises(LookupTrouble):
        users.lookup(NOBODY)
    assert fake.sizes[-1] == users.MAX_BUFFER


def test_an_account_whose_name_would_be_a_path_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("../etc", "x", 5, 5, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry)
    with pytest.raises(LookupTrouble):
        users.lookup("dots")


def test_pwd_raising_an_error_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_key: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pwd, "getpwnam", broken)
    monkeypatch.setattr(pwd, "getpwuid", broken)
    for ask in (lambda: users.lookup("root"), lambda: users.by_uid(0)):
        with pytest.raises(LookupTrouble):
            ask()


class Answers:
    """Stands for the two functions that ask the system: counts, and answers from a table."""

    def __init__(self) -> None:
        self.table: dict[str, User] = {}
        self.asked: list[object] = []

    def lookup(self, name: str) -> User | None:
        self.asked.append(name)
        return self.table.get(name)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(users, "lookup", made.lookup)
    return made


def test_a_found_user_is_remembered_for_seconds_and_no_longer(answers: Answers) -> None:
    now = 100.0
    system = SystemUsers(lambda: now)
    answers.table["bob"] = bob = User("bob", 1, 1, "/", "/bin/sh")
    assert [system.lookup("bob"), system.lookup("bob")] == [bob, bob]
    assert answers.asked == ["bob"]
    del answers.table["bob"]
    now += users.KEEP
    assert system.lookup("bob") is None


def test_an_absent_user_is_not_remembered(answers: Answers) -> None:
    """Whoever is created gets mail at once."""
    system = SystemUsers(lambda: 0.0)
    assert system.lookup("bob") is None
    answers.table["bob"] = User("bob", 1, 1, "/", "/bin/sh")
    assert system.lookup("bob") is not None


def test_memory_is_bounded(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "MAX_KEPT", 10)
    system = SystemUsers(lambda: 0.0)
    for number in range(100):
        answers.table[f"u{number}"] = User(f"u{number}", number, 1, "/", "/bin/sh")
        assert system.lookup(f"u{number}") is not None
        assert len(system._kept) <= 10


def test_system_users_find_the_same_as_the_functions() -> None:
    system = SystemUsers()
    assert system.lookup("root") == users.lookup("root") == system.by_uid(0)
    assert system.lookup(NOBODY) is None


def test_the_entry_of_libc_is_read_as_pwd_reads_it() -> None:
    for entry in pwd.getpwall():
        found = users._entry(users._libc.getpwnam_r, ctypes.c_char_p(os.fsencode(entry.pw_name)))
        first = pwd.getpwnam(entry.pw_name)
        assert found == User(first.pw_name, first.pw_uid, first.pw_gid, first.pw_dir, first.pw_shell, first.pw_gecos)
