"""Who logs in: password files, the process that keeps them, Dovecot's protocol, limits, and what the client hears."""

import asyncio
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail.auth import Client, dovecot, keeper, logins, pam, passwords
from pysendmail.auth.limits import MAX_CLIENTS, FailedLogins, key
from pysendmail.auth.logins import Logins
from pysendmail.config import Config
from pysendmail.config.table import AuthSettings
from pysendmail.events import ClientEvents
from pysendmail.smtp.requests import LoginGiven
from tests.tools import elsewhere
from tests.tools.fakemilter import jump, run_jumping

CLIENT = Client("192.0.2.7", 4711, "client.example.org")


def crypted(password: str, setting: str) -> str:
    made = passwords._crypt(password.encode(), setting.encode())
    assert made is not None
    return made.decode()


SHA512 = crypted("wonderland", "$6$rounds=1000$abcdefgh$")
SHA256 = crypted("wonderland", "$5$rounds=1000$abcdefgh$")
YESCRYPT = crypted("wonderland", "$y$j75$abcdefgh$")
BCRYPT = crypted("wonderland", "$2b$04$abcdefghijklmnopqrstuu$")
WEAK = {"DES": "ab01FAX.bQRSU", "MD5": "$1$abcdefgh$G//4keteveJp0qb8z2DxG/", "plain": "wonderland",
        "scheme": "{PLAIN}wonderland", "empty": "", "locked": "!", "star": "*"}


# ---- password files

@pytest.mark.parametrize("hashed", [SHA512, SHA256, YESCRYPT, BCRYPT, "{SHA512-CRYPT}" + SHA512,
                                    "{BLF-CRYPT}" + BCRYPT, "{CRYPT}" + YESCRYPT], ids=lambda text: text[:14])
def test_a_password_fits_its_hash_and_no_other(hashed: str) -> None:
    data = f"# users\nbob:{SHA512}\nalice:{hashed}:1000:1000::/home/alice\n".encode()
    assert passwords.fits(data, "alice", "wonderland")
    assert not passwords.fits(data, "alice", "Wonderland")
    assert not passwords.fits(data, "alice", "")
    assert not passwords.fits(data, "ALICE", "wonderland")
    assert not passwords.fits(data, "mallory", "wonderland")


@pytest.mark.parametrize("hashed", WEAK.values(), ids=WEAK)
def test_what_is_no_strong_hash_lets_nobody_in(hashed: str) -> None:
    data = f"alice:{hashed}\n".encode()
    for guess in ("wonderland", hashed, "", "password"):
        assert not passwords.fits(data, "alice", guess)


@pytest.mark.parametrize("data", [b"", b"alice", b":x", b"#alice:" + SHA512.encode(), b"alice:" + b"$6$" * 3000])
def test_files_without_a_user(data: bytes) -> None:
    assert not passwords.fits(data, "alice", "wonderland")
    assert not passwords.fits(data, "", "wonderland")


def test_libcrypt_without_memory_is_no_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """crypt_rn(3) says EINVAL for whatever it could not do."""
    (tmp_path / "users").write_text(f"alice:{SHA512}\n")
    (tmp_path / "users").chmod(0o600)
    monkeypatch.setattr(passwords, "_library", FailingLibrary)
    settings = AuthSettings(password_file=str(tmp_path / "users"))
    verdict, words = keeper.judge(settings, "alice", "wonderland")
    assert (verdict, "libcrypt cannot compute a hash" in words) == (keeper.TROUBLE, True)
    assert keeper.judge(settings, "alice", "x" * 600) == (keeper.NO, "")
    assert keeper.judge(settings, "bob", "wonderland") == (keeper.NO, "")


class FailingLibrary:
    @staticmethod
    def crypt_rn(*_: Any) -> None:
        return None


def test_the_first_line_of_a_user_counts() -> None:
    other = crypted("other", "$6$rounds=1000$abcdefgh$")
    assert not passwords.fits(f"alice:{other}\nalice:{SHA512}\n".encode(), "alice", "wonderland")


def test_passwords_that_libcrypt_cannot_take() -> None:
    data = f"alice:{SHA512}\n".encode()
    assert not passwords.fits(data, "alice", "x" * 600)
    assert not passwords.fits(data, "alice", "wonder\0land")


def test_a_password_for_which_there_is_no_memory_is_not_wrong() -> None:
    hashed = crypted("wonderland", "$y$j9T$abcdefgh$")

    def child() -> str:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**22, taken + 2**22))
        try:
            return str(passwords.fits(f"alice:{hashed}\n".encode(), "alice", "wonderland"))
        except OSError as trouble:
            return str(trouble.strerror)

    assert elsewhere.run(child) == "libcrypt cannot compute a hash"


@given(st.binary(max_size=200), st.text(max_size=20), st.text(max_size=20))
def test_no_file_and_no_guess_makes_it_fail(data: bytes, user: str, password: str) -> None:
    cheap = bytes(c for c in data if c != 36)  # no "$": nothing that takes long to hash
    assert passwords.fits(cheap, user, password[:0]) is False
    found, _ = passwords.find(data, user.encode("utf-8", "surrogateescape"))
    assert found == b"" or found.startswith(passwords.METHODS)


# ---- the process that knows them

@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text(f"alice:{SHA512}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def keep() -> Iterator[Callable[..., socket.socket]]:
    """Starts a keeper; the listener's end of its channel."""
    channels: list[socket.socket] = []

    def start(**settings: Any) -> socket.socket:
        channels.append(keeper.start(replace(AuthSettings(), **settings), frozenset()))
        return channels[-1]

    yield start
    for channel in channels:
        if channel.fileno() >= 0:
            channel.close()


def ask(channel: socket.socket, user: str, password: str, number: int = 7) -> tuple[int, bytes, str]:
    channel.send(keeper.question(number, user, password))
    return keeper.read_answer(channel.recv(1000))


def test_the_keeper_answers(keep: Any, password_file: Path) -> None:
    channel = keep(password_file=str(password_file))
    assert ask(channel, "alice", "wonderland", 7) == (7, keeper.YES, "")
    assert ask(channel, "alice", "guess", 8) == (8, keeper.NO, "")
    assert ask(channel, "bob", "wonderland", 9) == (9, keeper.NO, "")


def test_a_changed_file_counts_at_once(keep: Any, password_file: Path) -> None:
    channel = keep(password_file=str(password_file))
    password_file.write_text(f"bob:{SHA512}\n")
    assert ask(channel, "bob", "wonderland")[1] == keeper.YES


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda path: path.unlink(), "No such file"),
    (lambda path: path.chmod(0o644), "can be read by everybody"),
    (lambda path: path.chmod(0o620), "can be changed by others"),
    (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
])
def test_a_file_that_cannot_be_trusted_is_no_answer(keep: Any, password_file: Path, spoil: Any, words: str) -> None:
    channel = keep(password_file=str(password_file))
    spoil(password_file)
    number, verdict, found = ask(channel, "alice", "wonderland")
    assert (number, verdict) == (7, keeper.TROUBLE)
    assert words in found
    assert "wonderland" not in found


def test_many_questions_at_once(keep: Any, password_file: Path) -> None:
    channel = keep(password_file=str(password_file))
    for number in range(40):
        channel.send(keeper.question(number, "alice", "wonderland" if number % 2 else "guess"))
    found = dict(keeper.read_answer(channel.recv(1000))[:2] for _ in range(40))
    assert found == {number: keeper.YES if number % 2 else keeper.NO for number in range(40)}


def test_it_ends_with_its_listener_and_at_nonsense(keep: Any, password_file: Path) -> None:
    for packet in (b"", b"\0\0\0\1\0secret", b"\0\0", b"x" * 5000):
        channel = keep(password_file=str(password_file))
        if packet:
            channel.send(packet)
            assert channel.recv(100) == b""
        channel.close()


class FakePam:
    """Stands for pampy: what its PamAuthenticator does is what a test says."""

    code, reason = 7, "Authentication failure"

    def __init__(self, act: Callable[[str, str], bool]) -> None:
        self._act = act

    def PamAuthenticator(self) -> "FakePam":
        return self

    def authenticate(self, user: str, password: str, *, service: str, resetcreds: bool) -> bool:
        assert service == "smtp"
        return self._act(user, password)


def use(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, str], bool], code: int = 7) -> None:
    fake = FakePam(act)
    fake.code = code
    monkeypatch.setattr(pam, "optional", lambda _: fake)


def test_pam_says_yes_or_no(keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda user, password: (user, password) == ("alice", "wonderland"))
    channel = keep(pam=True)
    assert ask(channel, "alice", "wonderland")[1] == keeper.YES
    assert ask(channel, "alice", "guess")[1] == keeper.NO


@pytest.mark.parametrize("code", [4, 9, 3, 26])
def test_pam_that_cannot_tell_is_trouble(keep: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    use(monkeypatch, lambda user, password: False, code)
    assert ask(keep(pam=True), "alice", "wonderland") == (7, keeper.TROUBLE, "PAM: Authentication failure")


def explode(_user: str, password: str) -> bool:
    raise RuntimeError(password)


def crash(_user: str, _password: str) -> bool:
    os.kill(os.getpid(), signal.SIGSEGV)
    return True


def test_a_module_that_raises_or_crashes_costs_one_answer(keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, explode)
    assert ask(keep(pam=True), "alice", "wonderland") == (7, keeper.TROUBLE, "PAM: RuntimeError")
    use(monkeypatch, crash)
    channel = keep(pam=True)
    assert ask(channel, "alice", "wonderland") == (7, keeper.TROUBLE, "check ended (-11)")
    assert ask(channel, "alice", "wonderland", 8) == (8, keeper.TROUBLE, "check ended (-11)")


def test_one_who_says_yes_is_enough_and_trouble_is_no_no(password_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(AuthSettings(), password_file=str(password_file), pam=True)
    use(monkeypatch, lambda user, password: user == "bob")
    assert keeper.judge(settings, "alice", "wonderland")[0] == keeper.YES
    assert keeper.judge(settings, "bob", "x")[0] == keeper.YES
    assert keeper.judge(settings, "carol", "x")[0] == keeper.NO
    password_file.unlink()
    assert keeper.judge(settings, "bob", "x")[0] == keeper.YES
    assert keeper.judge(settings, "carol", "x")[0] == keeper.TROUBLE


def test_without_pampy_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pam, "optional", lambda _: None)
    assert not pam.is_available()
    with pytest.raises(pam.Trouble, match="python3-pampy"):
        pam.fits("alice", "wonderland")


@pytest.mark.root
def test_the_real_pam_knows_the_passwords_of_this_host(keep: Any) -> None:
    """An account of this test's own, with a password, and gone again."""
    user = f"pysmtest{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--password", SHA512, "--shell", "/bin/sh", user], check=True)
    try:
        channel = keep(pam=True)
        assert ask(channel, user, "wonderland")[1:] == (keeper.YES, "")
        assert ask(channel, user, "guess")[1:] == (keeper.NO, "")
        assert ask(channel, "nosuchuser", "guess")[1:] == (keeper.NO, "")
    finally:
        subprocess.run(["userdel", user], check=True)


# ---- limits

def test_failures_are_counted_and_forgotten() -> None:
    now = [0.0]
    limits = FailedLogins(lambda: now[0], most=3, window=100)
    for number in (1, 2, 3):
        assert not limits.is_blocked("192.0.2.1")
        assert limits.failed("192.0.2.1") == number
    assert limits.is_blocked("192.0.2.1")
    assert not limits.is_blocked("192.0.2.2")
    now[0] = 101
    assert not limits.is_blocked("192.0.2.1")


@pytest.mark.parametrize(("one", "other", "are_same"), [
    ("192.0.2.1", "::ffff:192.0.2.1", True), ("2001:db8::1", "2001:db8::2:0:0:1", True),
    ("2001:db8::1", "2001:db8:0:1::1", False), ("fe80::1%eth0", "fe80::1", True), ("", "unknown", True),
    ("192.0.2.1", "192.0.2.2", False)])
def test_who_is_the_same_client(one: str, other: str, are_same: bool) -> None:
    assert (key(one) == key(other)) is are_same


def test_a_botnet_does_not_fill_memory() -> None:
    limits = FailedLogins(lambda: 0.0)
    for number in range(MAX_CLIENTS + 100):
        limits.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(limits._counts) == MAX_CLIENTS


# ---- what a client hears

def login(user: str = "alice", password: str = "wonderland", identity: str = "") -> LoginGiven:
    return LoginGiven("PLAIN", identity, user, password)


def run(play: Callable[[Logins], Awaitable[Any]], *, channel: socket.socket | None = None,
        clock: Callable[[], float] = lambda: 0.0, **auth: Any) -> tuple[Any, list[str]]:
    log: list[str] = []
    config = replace(Config(), auth=replace(AuthSettings(), **auth))

    async def session() -> Any:
        made = Logins(config, ClientEvents(lambda _, text: log.append(text)), channel, clock, delay=0.0)
        made.begin()
        try:
            return await play(made)
        finally:
            made.close()
            await asyncio.sleep(0)

    return run_jumping(session()), log


def test_a_login(keep: Any, password_file: Path) -> None:
    async def play(made: Logins) -> list[str]:
        assert made.mechanisms == ("PLAIN", "LOGIN")
        given = [login(), login(password="x"), login(identity="alice"), login(identity="bob"), login(user=""),
                 login(password=""), login(user="a\0b")]
        return [(await made.authenticate(one, CLIENT))[0].words[:9] for one in given]

    found, log = run(play, channel=keep(password_file=str(password_file)))
    assert found == ["235 2.7.0", "535 5.7.8", "235 2.7.0"] + ["535 5.7.8"] * 4
    assert log[0] == "AUTH=server, relay=client.example.org [192.0.2.7], authid=alice, mech=PLAIN, bits=0"
    assert "wonderland" not in "".join(log)
    # What fail2ban's filter sendmail-auth looks for.
    pattern = (r"AUTH failure \([^\)]+\):(?: [^:]+:)? (?:authentication failure|user not found): [^,]*, "
               r"(?:user=(?:\S+|.*?), )?relay=(?:\S+ )?\[192\.0\.2\.7\](?: \(may be forged\))?")
    assert re.fullmatch(pattern, log[1])


def test_who_guesses_is_shown_out_and_others_are_not(keep: Any, password_file: Path) -> None:
    async def play(made: Logins) -> list[int]:
        codes = [(await made.authenticate(login(password=str(n)), CLIENT))[0].code for n in range(10)]
        codes.append((await made.authenticate(login(), CLIENT))[0].code)
        codes.append((await made.authenticate(login(), Client("192.0.2.8")))[0].code)
        codes.append((await made.authenticate(login(), replace(CLIENT, is_trusted=True)))[0].code)
        return codes

    codes, log = run(play, channel=keep(password_file=str(password_file)))
    assert codes == [535] * 10 + [421, 235, 235]
    assert log[10] == "NOQUEUE: client.example.org [192.0.2.7]: possible SMTP attack: command=AUTH, count=10"


def test_a_keeper_that_cannot_tell_is_no_wrong_password(keep: Any, tmp_path: Path) -> None:
    async def play(made: Logins) -> int:
        return (await made.authenticate(login(), CLIENT))[0].code

    code, log = run(play, channel=keep(password_file=str(tmp_path / "none")))
    assert code == 454
    assert log == [f"SYSERR(root): a password cannot be checked: {tmp_path}/none: No such file or directory"]


def test_a_listener_without_its_keeper_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(logins.os, "kill", lambda pid, number: killed.append((pid, number)))

    async def play(made: Logins) -> int:
        asking = asyncio.ensure_future(made.authenticate(login(), CLIENT))
        await asyncio.sleep(0)
        theirs.close()
        return (await asking)[0].code

    code, log = run(play, channel=ours)
    assert code == 454
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert "has ended" in log[-1] or "has ended" in log[-2]


def test_a_listener_notices_at_once_that_its_keeper_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when somebody logs in."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def play(_: Logins) -> None:
        theirs.close()
        await asyncio.sleep(0.001)

    run(play, channel=ours)
    assert killed == [os.getpid()]


def test_a_keeper_that_is_silent(keep: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def play(made: Logins) -> int:
        asking = asyncio.ensure_future(made.authenticate(login(), CLIENT))
        await asyncio.sleep(0)
        jump(logins.KEEPER_TIME + 1)
        return (await asking)[0].code

    code, log = run(play, channel=ours)
    theirs.close()
    assert code == 454
    assert log == ["SYSERR(root): a password cannot be checked: no answer in time"]


def test_nobody_who_knows_passwords() -> None:
    async def play(made: Logins) -> tuple[str, ...]:
        return made.mechanisms

    assert run(play)[0] == ()


@pytest.mark.parametrize(("senders", "user", "sender", "may"), [
    ({}, "alice", "anybody@example.org", True),
    ({"alice": "example.org"}, "alice", "x@Example.ORG", True),
    ({"alice": "example.org"}, "alice", "x@example.net", False),
    ({"alice": "a@example.org"}, "alice", "a@EXAMPLE.org", True),
    ({"alice": "a@example.org"}, "alice", "A@example.org", False),
    ({"alice": "a@example.org"}, "alice", "", True),
    ({"alice": "example.org"}, "bob", "b@example.org", False),
    ({"alice": "example.org", "*": "example.net"}, "bob", "b@example.net", True),
    ({"alice": "example.org", "*": "example.net"}, "alice", "a@example.net", False),
    ({"alice": "example.org"}, "alice", "local", False),
    ({"alice": "a@example.org example.net"}, "alice", "a@example.org", True),
    ({"alice": "a@example.org example.net"}, "alice", "x@example.net", True),
    ({"alice": "a@example.org example.net"}, "alice", "b@example.org", False),
])
def test_what_a_login_may_send_as(senders: dict[str, str], user: str, sender: str, may: bool) -> None:
    async def play(made: Logins) -> bool:
        return made.may_send(user, sender)

    assert run(play, senders=tuple(senders.items()))[0] is may


# ---- Dovecot

HANDSHAKE = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tabc\nDONE\n"


class FakeDovecot:
    """answers: from the words of an AUTH line to what is said; b"" = nothing, None = the connection is closed."""

    def __init__(self, path: str, answers: Callable[[list[str]], bytes | None], handshake: bytes = HANDSHAKE) -> None:
        self._path, self._answers, self._handshake = path, answers, handshake
        self.heard: list[list[str]] = []
        self.connections = 0

    async def __aenter__(self) -> "FakeDovecot":
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self._handshake)
        while line := await reader.readline():
            words = line.decode().rstrip("\n").split("\t")
            self.heard.append(words)
            answer = self._answers(words) if words[0] == "AUTH" else b""
            if answer is None:
                break
            writer.write(answer)
        writer.close()
        await writer.wait_closed()


def asked(tmp_path: Path, answers: Callable[[list[str]], bytes | None], times: int = 1,
          handshake: bytes = HANDSHAKE) -> tuple[list[int], FakeDovecot, list[str]]:
    path = str(tmp_path / "auth")
    fake = FakeDovecot(path, answers, handshake)

    async def play(made: Logins) -> list[int]:
        async with fake:
            found = [(await made.authenticate(login(), CLIENT))[0].code for _ in range(times)]
            made.close()
            await asyncio.sleep(0.001)
            return found

    codes, log = run(play, dovecot=path)
    return codes, fake, log


def by_number(text: str) -> Callable[[list[str]], bytes]:
    return lambda words: text.replace("#", words[1]).encode()


@pytest.mark.parametrize(("text", "code"), [
    ("OK\t#\tuser=alice\n", 235),
    ("FAIL\t#\tuser=alice\n", 535),
    ("FAIL\t#\tuser=alice\tauthz\n", 535),
    ("FAIL\t#\tuser=alice\ttemp\n", 454),
    ("FAIL\t#\tuser=alice\tcode=temp_fail\n", 454),
    ("OK\t99\tuser=bob\nFAIL\t#\tuser=alice\n", 535),
    ("NEWS\tx\nOK\t#\n", 235),
    ("CONT\t#\tabc\n", 454),
    ("OK\t#\tuser=al\x01tice\n", 454),
    ("FAIL\t#\tuser=al\x01tice\n", 535),
    ("x" * 9000 + "\n", 454),
])
def test_answers_of_dovecot(tmp_path: Path, text: str, code: int) -> None:
    codes, fake, log = asked(tmp_path, by_number(text))
    assert codes == [code]
    assert fake.heard[0] == ["VERSION", "1", "1"]
    assert fake.heard[1] == ["CPID", str(os.getpid())]
    assert fake.heard[2] == ["AUTH", "1", "PLAIN", "service=smtp", "secured", "nologin", "rip=192.0.2.7",
                             "resp=AGFsaWNlAHdvbmRlcmxhbmQ="]
    assert "wonderland" not in "".join(log)


@pytest.mark.parametrize(("text", "name"), [
    ("OK\t#\tuser=Alice@example.org\n", "Alice@example.org"), ("OK\t#\n", "alice")])
def test_a_user_is_who_dovecot_says(tmp_path: Path, text: str, name: str) -> None:
    """What he may send as stands under that name, however he writes it."""
    async def play(made: Logins) -> str:
        async with FakeDovecot(str(tmp_path / "auth"), by_number(text)):
            found = await made.authenticate(login(), CLIENT)
            made.close()
            await asyncio.sleep(0.001)
            return found[1]

    found, log = run(play, dovecot=str(tmp_path / "auth"))
    assert found == name
    assert f"authid={name}, " in log[0]


def test_one_connection_for_many_logins_and_another_when_it_is_closed(tmp_path: Path) -> None:
    codes, fake, _ = asked(tmp_path, by_number("OK\t#\n"), 3)
    assert (codes, fake.connections) == ([235] * 3, 1)
    answers = iter([b"OK\t1\n", None, b"OK\t1\n"])
    codes, fake, _ = asked(tmp_path / ".", lambda words: next(answers), 2)
    assert (codes, fake.connections) == ([235, 235], 2)


@pytest.mark.parametrize("handshake", [
    b"VERSION\t2\t0\n", b"VERSION\t1\t1\nMECH\tDIGEST-MD5\nDONE\n", b"x" * 10_000,
], ids=["version", "mechanisms", "noise"])
def test_what_is_no_dovecot(tmp_path: Path, handshake: bytes) -> None:
    codes, _, log = asked(tmp_path, lambda words: b"", handshake=handshake)
    assert codes == [454]
    assert log[0].startswith("SYSERR(root): Dovecot cannot check a password: ")


def test_dovecot_that_is_not_there_or_silent(tmp_path: Path) -> None:
    async def play(made: Logins) -> int:
        return (await made.authenticate(login(), CLIENT))[0].code

    assert run(play, dovecot=str(tmp_path / "none"))[0] == 454

    async def wait(made: Logins) -> int:
        async with FakeDovecot(str(tmp_path / "auth"), lambda words: b""):
            asking = asyncio.ensure_future(made.authenticate(login(), CLIENT))
            await asyncio.sleep(0.01)
            jump(dovecot.TIMEOUT + 1)
            code = (await asking)[0].code
            made.close()
            await asyncio.sleep(0.001)
            return code

    assert run(wait, dovecot=str(tmp_path / "auth"))[0] == 454


def test_dovecot_says_yes_where_the_file_says_no(keep: Any, tmp_path: Path, password_file: Path) -> None:
    password_file.write_text(f"bob:{SHA512}\n")

    async def play(made: Logins) -> list[int]:
        async with FakeDovecot(str(tmp_path / "auth"), lambda words: answer(words)):
            found = [(await made.authenticate(login(user), CLIENT))[0].code for user in ("alice", "bob", "carol")]
            made.close()
            await asyncio.sleep(0.001)
            return found

    def answer(words: list[str]) -> bytes:
        verb = "OK" if words[-1] == "resp=AGFsaWNlAHdvbmRlcmxhbmQ=" else "FAIL"
        return f"{verb}\t{words[1]}\n".encode()

    codes, _ = run(play, dovecot=str(tmp_path / "auth"), channel=keep(password_file=str(password_file)))
    assert codes == [235, 235, 535]


def test_a_name_cannot_add_parameters() -> None:
    assert dovecot._escape("a\tb\n\r\0\x01c") == "a\x01tb\x01n\x01r\x010\x011c"


def test_the_tools_of_debian_make_hashes_that_fit() -> None:
    """What an administrator would type, where the tools are."""
    for command in (["openssl", "passwd", "-6", "wonderland"], ["openssl", "passwd", "-5", "wonderland"],
                    ["mkpasswd", "--method=yescrypt", "wonderland"]):
        if shutil.which(command[0]):
            hashed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
            assert passwords.fits(f"alice:{hashed}\n".encode(), "alice", "wonderland")
