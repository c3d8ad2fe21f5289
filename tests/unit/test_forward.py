"""~/.forward: which file counts, who may have written it, what it says, and the traps a user can set there."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysendmail.deliver import forward
from pysendmail.deliver.forward import DEFERRED, IGNORED, NONE, TARGETS, Forward
from pysendmail.route.values import ADDRESS, COMMAND, FILE, LOCAL, Value
from pysendmail.users import User
from tests.tools import elsewhere

UID = os.getuid() or elsewhere.SOMEBODY  # root has no .forward
HOST = "host.example"
CAROL = Value(ADDRESS, b"carol")
MINE = Value(LOCAL, b"alice")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir(0o755)
    own(path)
    return path


@pytest.fixture
def public_home() -> Iterator[Path]:
    """A home that other users reach: for tests in which the reader really is the user."""
    with elsewhere.public_directory() as directory:
        path = Path(directory) / "home"
        path.mkdir()
        own(path)
        yield path


def own(path: Path) -> Path:
    if os.getuid() == 0:
        os.chown(path, UID, UID, follow_symlinks=False)
    return path


def put(home: Path, content: bytes | str, name: str = ".forward", mode: int = 0o644) -> Path:
    path = home / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return own(path)


def alice(home: Path | str, uid: int = UID, shell: str = "/bin/sh") -> User:
    return User("alice", uid, uid, str(home), shell)


def read(home: Path | str, detail: str = "", host: str = HOST) -> Forward:
    return forward.read(alice(home), detail, host)


# ---- what it says


@pytest.mark.parametrize(("content", "values"), [
    ("carol\n", [CAROL]),
    ("carol", [CAROL]),
    ("carol\r\n", [CAROL]),
    ("carol, carol\n\ncarol\n", [CAROL]),
    ("\\alice, carol\n", [MINE, CAROL]),
    ("# a comment\n\n  carol\n", [CAROL]),
    ('\\alice, "|/usr/bin/vacation alice"\n', [MINE, Value(COMMAND, b"/usr/bin/vacation alice")]),
    ('"|IFS=\' \' && exec /usr/bin/procmail -f- || exit 75 #alice"\n',
     [Value(COMMAND, b"IFS=' ' && exec /usr/bin/procmail -f- || exit 75 #alice")]),
    ("/var/tmp/box\n~/mail/\n", [Value(FILE, b"/var/tmp/box"), Value(FILE, b"~/mail/")]),
    ("carol\n/dev/null\n", [CAROL, Value(FILE, b"/dev/null")]),
])
def test_what_it_says(home: Path, content: str, values: list[Value]) -> None:
    path = put(home, content)
    assert read(home) == Forward(TARGETS, str(path), tuple(values))


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", " , ,\n", "\t\r\n"])
def test_an_empty_one_means_the_mailbox(home: Path, content: str) -> None:
    put(home, content)
    assert read(home).verdict == NONE


def test_a_line_that_cannot_be_understood_is_a_copy_for_the_mailbox(home: Path) -> None:
    path = put(home, 'carol\n"|/bin/never closed\n<<>>\n')
    found = read(home)
    assert (found.verdict, found.values) == (TARGETS, (CAROL, MINE))
    assert [note.partition(" ")[0] for note in found.notes] == [f"{path}:2:", f"{path}:3:"]


@pytest.mark.parametrize("content", [b"\0", b"carol\0\n", b"\x80\xff|\n", b'"' * 3000, b"(" * 60_000, b"\\" * 60_000,
                                     b"<" * 60_000])
def test_rubbish_goes_to_the_mailbox(home: Path, content: bytes) -> None:
    put(home, content)
    found = read(home)
    assert found.verdict in (TARGETS, NONE)
    assert not any(value.kind in (COMMAND, FILE) for value in found.values)


def test_find_gives_only_commands_and_files_that_still_stand_there(home: Path) -> None:
    put(home, '"|vacation alice", /var/tmp/box, carol\n')
    found = read(home)
    command, file, address = found.values
    assert found.find(command.digest) == command
    assert found.find(file.digest) == file
    assert found.find(address.digest) is None
    assert found.find(Value(COMMAND, b"rm -rf ~").digest) is None
    put(home, "carol\n")
    assert read(home).find(command.digest) is None


@pytest.mark.parametrize(("text", "path"), [(b"/x/y", "/x/y"), (b"~/y", "/home/alice/y"), (b"~/", "/home/alice/"),
                                            (b"/\xff", "/\udcff")])
def test_the_home_directory_in_a_file_name(text: bytes, path: str) -> None:
    assert forward.file_path(Value(FILE, text), alice("/home/alice")) == path
    assert forward.file_path(Value(FILE, text), alice("/home/alice/")) == path


# ---- which file


@pytest.mark.parametrize(("present", "detail", "expected"), [
    ([".forward"], "", ".forward"),
    ([".forward"], "tag", ".forward"),
    ([".forward", ".forward+tag"], "tag", ".forward+tag"),
    ([".forward", ".forward+tag"], "", ".forward"),
    ([".forward", ".forward+tag"], "Tag", ".forward"),
    ([".forward", ".forward.host.example"], "", ".forward.host.example"),
    ([".forward", ".forward.host.example", ".forward+tag"], "tag", ".forward+tag"),
    ([".forward.other.example"], "", ""),
    ([".forward+tag"], "other", ""),
    ([".forward"], "x" * 101, ".forward"),
    ([".forward"], "\u00e9" * 100, ".forward"),
    ([".forward"], "a\nb", ".forward"),
])
def test_the_order_of_search(home: Path, present: list[str], detail: str, expected: str) -> None:
    for name in present:
        put(home, f"in{name}\n", name)
    found = read(home, detail)
    assert found.path == (f"{home}/{expected}" if expected else "")
    assert found.verdict == (TARGETS if expected else NONE)


@pytest.mark.parametrize("detail", ["/../../other/.forward", "../x", "/", "..", ".", "\0", "a/b"])
def test_the_detail_of_an_address_names_no_file_elsewhere(home: Path, detail: str) -> None:
    (home / ".forward+").mkdir()
    put(home.parent, "mallory\n", "x")
    put(home.parent, "mallory\n", ".forward")
    assert read(home, detail) == Forward(NONE)
    assert read(home, "", detail) == Forward(NONE)


def test_an_empty_first_one_ends_the_search(home: Path) -> None:
    put(home, "", ".forward+tag")
    put(home, "carol\n")
    assert read(home, "tag").verdict == NONE


def test_one_that_is_passed_over_leads_to_the_next(home: Path) -> None:
    put(home, "mallory\n", ".forward+tag", 0o666)
    put(home, "carol\n")
    found = read(home, "tag")
    assert (found.verdict, found.values) == (TARGETS, (CAROL,))
    assert found.notes == (f"{home}/.forward+tag ignored: file can be written by everybody",)


@pytest.mark.parametrize("place", ["/nonexistent", "/", "//", "", "relative", "/dev/null", "/dev/null/x"])
def test_without_a_home_there_is_no_forward(place: str) -> None:
    assert read(place) == Forward(NONE)


def test_root_has_no_forward(home: Path) -> None:
    put(home, "mallory\n")
    assert forward.read(alice(home, uid=0), "", HOST) == Forward(NONE)


# ---- who could have written it


@pytest.mark.parametrize(("mode", "why"), [
    (0o666, "file can be written by everybody"), (0o646, "file can be written by everybody"),
    (0o664, "file can be written by group"), (0o620, "file can be written by group"),
    (0o644, ""), (0o600, ""), (0o400, ""), (0o755, ""),
])
def test_the_mode_of_the_file(home: Path, mode: int, why: str) -> None:
    put(home, "carol\n", mode=mode)
    found = read(home)
    assert found.verdict == (IGNORED if why else TARGETS)
    assert why in "".join(found.notes)
    assert bool(found.notes) == bool(why)


@pytest.mark.parametrize(("mode", "why"), [
    (0o777, "home directory can be written by everybody"), (0o775, ""), (0o2770, ""),
    (0o755, ""), (0o700, ""), (0o711, ""), (0o2755, ""),
])
def test_the_mode_of_the_home(home: Path, mode: int, why: str) -> None:
    """The group may write: it is the user's own, see the next test (sendmail and Postfix on Debian do the same)."""
    put(home, "carol\n")
    home.chmod(mode)
    found = read(home)
    assert found.verdict == (IGNORED if why else TARGETS)
    assert why in "".join(found.notes)


@pytest.mark.root
def test_a_home_that_another_group_can_write_is_not_believed(home: Path) -> None:
    put(home, "carol\n")
    home.chmod(0o775)
    os.chown(home, UID, elsewhere.SOMEBODY_ELSE)
    found = read(home)
    assert found.verdict == IGNORED
    assert "home directory can be written by group" in "".join(found.notes)


def test_an_open_home_without_a_forward_is_nobodys_business(home: Path) -> None:
    home.chmod(0o777)
    assert read(home) == Forward(NONE)


@pytest.mark.root
@pytest.mark.parametrize(("owner", "verdict"), [(0, TARGETS), (UID, TARGETS), (elsewhere.SOMEBODY_ELSE, IGNORED)])
def test_the_owner_of_the_file_and_of_the_home(home: Path, owner: int, verdict: str) -> None:
    path = put(home, "carol\n")
    os.chown(path, owner, owner)
    assert read(home).verdict == verdict
    os.chown(path, UID, UID)
    os.chown(home, owner, owner)
    assert read(home).verdict == verdict


def test_a_sticky_home_holds_mail_back(home: Path) -> None:
    put(home, "carol\n")
    home.chmod(0o1755)
    found = read(home)
    assert found.verdict == DEFERRED
    assert found.outcome
    assert found.outcome.status == "4.2.1"
    (home / ".forward").unlink()
    assert read(home).verdict == DEFERRED, "he may be about to write one"


@pytest.mark.root
def test_a_home_that_is_sticky_for_other_reasons_holds_nothing_back(home: Path) -> None:
    """A system user whose home is something like /tmp."""
    os.chown(home, 0, 0)
    home.chmod(0o1777)
    assert read(home) == Forward(NONE)


# ---- traps


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, plant_socket, lambda p: p.symlink_to("/nonexistent"),
                                   lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero"),
                                   lambda p: p.symlink_to(p.parent / "fifo"), lambda p: p.symlink_to("/tmp")],
                         ids=["fifo", "directory", "socket", "dangling", "circle", "to-zero", "to-fifo", "to-dir"])
def test_what_is_no_file_is_passed_over_without_waiting(home: Path, plant: Callable[[Path], None]) -> None:
    os.mkfifo(home / "fifo")
    plant(home / ".forward")
    own(home / ".forward")
    found = read(home)
    assert found.verdict == IGNORED
    assert len(found.notes) == 1


@pytest.mark.root
def test_a_device_is_not_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mknod(home / ".forward", 0o020644, os.makedev(1, 5))
    own(home / ".forward")
    opened: list[object] = []
    real = os.open

    def noted(path: str, *args: int, **more: int) -> int:
        opened.append(path)
        return real(path, *args, **more)
    monkeypatch.setattr(os, "open", noted)
    assert read(home).verdict == IGNORED
    assert opened == [str(home)]


def test_a_link_to_a_file_of_ones_own_is_obeyed(home: Path) -> None:
    (home / "dotfiles").mkdir()
    own(home / "dotfiles")
    put(home / "dotfiles", "carol\n", "forward")
    (home / ".forward").symlink_to("dotfiles/forward")
    own(home / ".forward")
    assert read(home) == Forward(TARGETS, f"{home}/.forward", (CAROL,))


@pytest.mark.parametrize(("change", "why"), [
    (lambda d: (d / "forward").chmod(0o666), "file can be written by everybody"),
    (lambda d: d.chmod(0o777), "can be written by everybody"),
    (lambda d: d.chmod(0o1777), "can be written by everybody"),
])
def test_a_link_to_where_others_could_write_is_not(home: Path, change: Callable[[Path], None], why: str) -> None:
    (home / "dotfiles").mkdir()
    own(home / "dotfiles")
    put(home / "dotfiles", "mallory\n", "forward")
    change(home / "dotfiles")
    (home / ".forward").symlink_to("dotfiles/forward")
    own(home / ".forward")
    found = read(home)
    assert found.verdict == IGNORED
    assert why in found.notes[0]


@pytest.mark.root
def test_a_link_of_somebody_else_is_not_followed(home: Path) -> None:
    put(home, "mallory\n", "notes")
    (home / ".forward").symlink_to("notes")
    os.chown(home / ".forward", elsewhere.SOMEBODY_ELSE, elsewhere.SOMEBODY_ELSE, follow_symlinks=False)
    found = read(home)
    assert found.verdict == IGNORED
    assert f"symbolic link belongs to uid {elsewhere.SOMEBODY_ELSE}" in found.notes[0]


def test_exchanged_for_a_link_between_check_and_open(home: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(home, "carol\n")
    secret = put(tmp_path, "secret\n", "secret")
    real = os.stat

    def exchange(name: str, **more: int) -> os.stat_result:
        seen = real(name, **more)
        if name == ".forward":
            path.unlink()
            path.symlink_to(secret)
        return seen
    monkeypatch.setattr(os, "stat", exchange)
    found = read(home)
    assert found.values == ()
    assert found.verdict == DEFERRED


@pytest.mark.parametrize(("size", "verdict"), [(forward.MAX_SIZE, TARGETS), (forward.MAX_SIZE + 1, DEFERRED),
                                               (50 * 1024 * 1024, DEFERRED)])
def test_its_size_is_bounded(home: Path, size: int, verdict: str) -> None:
    path = put(home, b"carol\n#" + b"x" * 1000)
    os.truncate(path, size) if size > 10_000_000 else path.write_bytes(b"carol\n#" + b"x" * (size - 7))
    found = read(home)
    assert found.verdict == verdict
    if found.outcome:
        assert found.outcome.status == "4.2.4"


@pytest.mark.parametrize(("entries", "verdict"), [(forward.MAX_ENTRIES, TARGETS), (forward.MAX_ENTRIES + 1, DEFERRED)])
def test_its_entries_are_bounded(home: Path, entries: int, verdict: str) -> None:
    put(home, "".join(f"user{n}@else.test\n" for n in range(entries)))
    found = read(home)
    assert found.verdict == verdict
    assert len(found.values) == (entries if verdict == TARGETS else 0)


def test_its_bounds_are_settings(home: Path) -> None:
    put(home, "".join(f"user{n}@else.test\n" for n in range(1200)))
    assert forward.read(alice(home), "", HOST, entries=1199).verdict == DEFERRED
    assert len(forward.read(alice(home), "", HOST, entries=1200).values) == 1200
    assert forward.read(alice(home), "", HOST, size=5000, entries=1200).verdict == DEFERRED


# ---- what cannot be known now


@pytest.mark.root
@pytest.mark.parametrize("closed", ["file", "home", "above", "link target"])
def test_what_the_user_may_not_read_is_passed_over(public_home: Path, closed: str) -> None:
    """It is closed for himself: sendmail and Postfix deliver to the mailbox, and waiting would end in a bounce."""
    path = put(public_home, "carol\n")
    if closed == "link target":
        path.rename(public_home / "real")
        path.symlink_to("real")
        own(path)
        path = public_home / "real"
    {"file": path, "home": public_home, "above": public_home.parent, "link target": path}[closed].chmod(0)
    os.chown(path if closed in ("file", "link target") else public_home, 0, 0)
    found = elsewhere.run(lambda: read(public_home), uid=UID)
    assert found.verdict == IGNORED
    assert "Permission denied" in found.notes[0]


@pytest.mark.root
def test_a_private_forward_in_a_private_home_is_read_as_the_user(public_home: Path) -> None:
    put(public_home, "carol\n", mode=0o600)
    public_home.chmod(0o700)
    assert elsewhere.run(lambda: read(public_home), uid=UID) == Forward(TARGETS, f"{public_home}/.forward", (CAROL,))


@pytest.mark.parametrize("call", ["open", "stat", "fstat", "read"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM])
def test_an_error_defers_and_leaks_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    put(home, "carol\n")
    before = os.listdir("/proc/self/fd")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        found = read(home)
    assert found.verdict == DEFERRED
    assert found.outcome
    assert os.strerror(code) in found.outcome.reason
    assert os.listdir("/proc/self/fd") == before


# ---- lists


def test_a_list_is_read_in_place(home: Path) -> None:
    put(home, "carol\ndave@else.test, carol\n", "list")
    put(home, f":include:{home}/list, erin\n")
    assert read(home).values == (Value(ADDRESS, b"erin"), CAROL, Value(ADDRESS, b"dave@else.test"))


def test_lists_that_include_each_other_end(home: Path) -> None:
    put(home, f"carol\n:include:{home}/b\n", "a")
    put(home, f"dave\n:include:{home}/a\n", "b")
    put(home, f":include:{home}/a\n")
    assert read(home).values == (CAROL, Value(ADDRESS, b"dave"))


def test_the_number_of_lists_is_bounded(home: Path) -> None:
    for n in range(20):
        put(home, f":include:{home}/list{n + 1}\n", f"list{n}")
    put(home, "carol\n", "list20")
    put(home, f":include:{home}/list0\n")
    assert read(home).verdict == DEFERRED


def test_the_entries_of_lists_are_bounded(home: Path) -> None:
    put(home, "".join(f"user{n}\n" for n in range(forward.MAX_LISTED + 1)), "list")
    put(home, f":include:{home}/list\n")
    assert read(home).verdict == DEFERRED


def test_commands_and_files_in_a_list_are_not_carried_out(home: Path) -> None:
    put(home, '"|touch /tmp/x"\n/tmp/y\ncarol\n', "list")
    put(home, f":include:{home}/list\n")
    found = read(home)
    assert found.values == (MINE, CAROL)
    assert found.notes == (f"{home}/list: a list may not name commands and files",) * 2


@pytest.mark.parametrize("plant", [None, os.mkfifo, os.mkdir, lambda p: put(p.parent, "x\n", p.name, 0o666)],
                         ids=["missing", "fifo", "directory", "open to all"])
def test_a_list_that_cannot_be_had_defers(home: Path, plant: Callable[[Path], object] | None) -> None:
    """Unlike a .forward it has nothing to fall back to."""
    if plant:
        plant(home / "list")
    put(home, f":include:{home}/list, carol\n")
    found = read(home)
    assert found.verdict == DEFERRED
    assert found.outcome
    assert "list" in found.outcome.reason


# ---- whose shell is listed


SHELLS = "# /etc/shells\n/bin/sh\n/bin/bash # the usual one\n\n  /usr/bin/zsh  \n"


@pytest.mark.parametrize(("shell", "allowed"), [
    ("/bin/sh", True), ("/bin/bash", True), ("/usr/bin/zsh", True), ("", True), ("/usr/sbin/nologin", False),
    ("/bin/false", False), ("/bin/shx", False), ("#", False), ("/bin", False), ("/bin/sh\n", False),
])
def test_commands_are_for_those_who_can_log_in(tmp_path: Path, shell: str, allowed: bool) -> None:
    shells = tmp_path / "shells"
    shells.write_text(SHELLS)
    refusal = forward.shell_refusal(alice("/home/alice", shell=shell), str(shells))
    assert (refusal is None) == allowed
    if refusal:
        assert refusal.status == "5.7.1"
        assert "alice" in refusal.reason


def test_the_wildcard_of_sendmail_lists_every_shell(tmp_path: Path) -> None:
    shells = tmp_path / "shells"
    shells.write_text("/SENDMAIL/ANY/SHELL/\n")
    assert forward.shell_refusal(alice("/", shell="/bin/false"), str(shells)) is None


def test_without_the_file_the_usual_shells_count(tmp_path: Path) -> None:
    missing = str(tmp_path / "shells")
    assert forward.shell_refusal(alice("/"), missing) is None
    assert forward.shell_refusal(alice("/", shell="/usr/sbin/nologin"), missing)


def test_a_list_of_shells_that_cannot_be_read_defers(tmp_path: Path) -> None:
    (tmp_path / "shells").mkdir()
    refusal = forward.shell_refusal(alice("/"), str(tmp_path / "shells"))
    assert refusal
    assert refusal.is_deferred
