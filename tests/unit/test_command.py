"""Commands: exit codes, what they are given, what they must not get, and every way to misbehave."""

import errno
import os
import resource
import select
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.deliver import command
from pysendmail.deliver.parcel import Parcel
from pysendmail.mail.outcome import Outcome
from pysendmail.users import User
from tests.tools import elsewhere, processes
from tests.tools.parcels import FROM_LINE, HEAD, Parcels, message

USER = User("alice", 1000, 1000, "/home/alice", "/bin/bash")
ENVIRONMENT = command.environment(USER, sender="bob@else.test", recipient="alice+tag@host.example",
                                  original="team@host.example", extension="tag")


@pytest.fixture
def parcels(tmp_path: Path) -> Iterator[Parcels]:
    directory = tmp_path / "queue"
    directory.mkdir()
    made = Parcels(directory)
    yield made
    made.close()


@pytest.fixture
def small(parcels: Parcels) -> Parcel:
    return parcels.make()


@pytest.fixture
def large(parcels: Parcels) -> Parcel:
    """More than any pipe holds."""
    return parcels.make(message(1, b"0123456789abcde\n" * 200_000))


def run(text: str | bytes, parcel: Parcel, *, cwd: str | Path = "/", limit: float = 50) -> Outcome:
    return command.run(text.encode() if isinstance(text, str) else text, parcel, environment=ENVIRONMENT, cwd=str(cwd),
                       limit=limit)


def wait_for_end(pid: int) -> None:
    """Returns when the process has ended; it has been told to, so that this is a matter of moments."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(30_000), f"process {pid} lives on"
    finally:
        os.close(pidfd)


# ---- what comes out


@pytest.mark.parametrize(("code", "status"), [
    (0, "2.0.0"), (1, "5.3.0"), (2, "5.3.0"), (63, "5.3.0"), (64, "5.3.0"), (65, "5.6.0"), (66, "5.3.0"), (67, "5.1.1"),
    (68, "5.1.2"), (69, "5.3.0"), (70, "5.3.0"), (71, "4.3.0"), (72, "5.3.0"), (73, "5.2.0"), (74, "4.3.0"),
    (75, "4.3.0"), (76, "5.3.0"), (77, "5.7.0"), (78, "5.3.5"), (79, "5.3.0"), (126, "5.3.0"),
    (127, "5.3.0"), (255, "5.3.0"),
])
def test_the_exit_code_is_the_outcome(small: Parcel, code: int, status: str) -> None:
    outcome = run(f"cat >/dev/null; exit {code}", small)
    assert outcome.status == status
    if code:
        assert f"exit {code}" in outcome.diagnostic


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "PIPE", "XFSZ", "HUP"])
def test_a_signal_means_later(small: Parcel, name: str) -> None:
    outcome = run(f"kill -{name} $$; sleep 30", small)
    assert outcome.status == "4.3.0"
    assert f"signal {getattr(signal, 'SIG' + name).value}" in outcome.diagnostic


@pytest.mark.parametrize(("text", "status", "reason"), [
    ("echo '5.1.6 she has moved'; exit 69", "5.1.6", "she has moved"),
    ("echo '4.2.2 full' >&2; exit 75", "4.2.2", "full"),
    ("echo '2.1.5 fine'; exit 69", "5.3.0", "2.1.5 fine"),
    ("echo 'two'; echo 'lines'; exit 1", "5.3.0", "two lines"),
    ("printf 'x\\033[31m\\000y'; exit 1", "5.3.0", "x [31m y"),
    ("echo kept > /dev/stderr; exit 0", "2.0.0", "kept"),
    ("/nonexistent/program", "5.3.0", "/nonexistent/program: not found"),
    ("/etc/passwd", "5.3.0", "Permission denied"),
    ("if", "5.3.0", "Syntax error"),
])
def test_what_it_prints_becomes_the_reason(small: Parcel, text: str, status: str, reason: str) -> None:
    outcome = run(text, small)
    assert outcome.status == status
    assert reason in outcome.reason


def test_a_nul_in_the_text_runs_nothing(small: Parcel, tmp_path: Path) -> None:
    assert run(b"touch %s\0" % bytes(tmp_path / "ran"), small).status == "4.3.5"
    assert not (tmp_path / "ran").exists()


# ---- what goes in


def test_it_reads_the_from_line_and_the_whole_message(small: Parcel, large: Parcel, tmp_path: Path) -> None:
    assert run("cat > small", small, cwd=tmp_path).is_delivered
    assert (tmp_path / "small").read_bytes() == FROM_LINE + HEAD + message()
    assert run("cat > large; echo Received $(wc -c < large)", large, cwd=tmp_path).reason == (
        f"Received {len(FROM_LINE) + large.size}")
    assert (tmp_path / "large").read_bytes() == FROM_LINE + HEAD + message(1, b"0123456789abcde\n" * 200_000)


def test_it_is_a_shell_command(small: Parcel, tmp_path: Path) -> None:
    assert run("cat > a; echo 'two  words' > b && test -s a || exit 75 #alice", small, cwd=tmp_path).is_delivered
    assert (tmp_path / "b").read_text() == "two  words\n"


def test_it_gets_a_pipe_and_nothing_else(small: Parcel, tmp_path: Path) -> None:
    kept = os.dup(small.fd)
    os.set_inheritable(kept, True)  # a descriptor that somebody forgot to close
    try:
        assert run("ls -l /proc/self/fd > fds; readlink /proc/self/fd/0 > stdin; cat >/dev/null", small,
                   cwd=tmp_path).is_delivered
    finally:
        os.close(kept)
    found = {line.split(" -> ")[0].split()[-1] for line in (tmp_path / "fds").read_text().split("\n") if " -> " in line}
    assert found - {"3"} == {"0", "1", "2"}  # 3 is ls reading the directory
    assert (tmp_path / "stdin").read_text().startswith("pipe:")
    assert "queue" not in (tmp_path / "fds").read_text()


def test_signals_session_umask_and_limits_are_clean(small: Parcel, tmp_path: Path) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        assert run("cat /proc/self/status > status; ps -o pid=,pgid=,sid= -p $$ > ids; umask > umask; ulimit -c > core;"
                   "ulimit -n > files; touch made; cat > /dev/null", small, cwd=tmp_path).is_delivered
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    status = dict(line.split(":\t", 1) for line in (tmp_path / "status").read_text().split("\n") if ":\t" in line)
    for name in ("SigIgn", "SigCgt", "SigBlk"):
        assert int(status[name], 16) == 0, name
    assert len(set((tmp_path / "ids").read_text().split())) == 1, "neither session nor group leader"
    assert (tmp_path / "umask").read_text().strip() in ("077", "0077")
    assert (tmp_path / "core").read_text() == "0\n"
    assert int((tmp_path / "files").read_text()) <= 1024
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


def test_its_environment_is_the_one_it_is_given(small: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LD_PRELOAD", "/evil.so"), ("BASH_ENV", "/evil"), ("IFS", "/"), ("PYTHONPATH", "/evil"),
                        ("HOME", "/evil"), ("ENV", "/evil")):
        monkeypatch.setenv(name, value)
    assert run("env > env; cat > /dev/null", small, cwd=tmp_path).is_delivered
    found = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().strip().split("\n"))
    of_the_shell = {name: found.pop(name) for name in ("PWD", "OLDPWD", "_", "SHLVL") if name in found}
    assert found == ENVIRONMENT
    assert of_the_shell["PWD"] == str(tmp_path)


@pytest.mark.parametrize("gone", ["missing", "file", "forbidden"])
def test_without_its_directory_it_starts_at_the_root(small: Parcel, tmp_path: Path, gone: str) -> None:
    place = tmp_path / "home"
    if gone == "file":
        place.write_bytes(b"")
    if gone == "forbidden":
        place = Path("/proc/self/fd/999")
    assert run("pwd; cat > /dev/null", small, cwd=place).reason == "/"


@pytest.mark.root
def test_it_cannot_get_back_to_the_group_of_the_spool(small: Parcel) -> None:
    def work() -> tuple[str, tuple[int, int, int]]:
        os.setgroups([elsewhere.SOMEBODY_ELSE])
        os.setresgid(elsewhere.SOMEBODY, elsewhere.SOMEBODY, 8)
        os.setresuid(*[elsewhere.SOMEBODY] * 3)
        reason = run("sed -n 's/^\\(Uid\\|Gid\\|Groups\\)://p' /proc/self/status; cat > /dev/null", small).reason
        return reason, os.getresgid()
    me = str(elsewhere.SOMEBODY)
    assert elsewhere.run(work) == (" ".join([me] * 8 + [str(elsewhere.SOMEBODY_ELSE)]),
                                   (elsewhere.SOMEBODY, elsewhere.SOMEBODY, 8))


@pytest.mark.root
@pytest.mark.parametrize("call", ["setsid", "dup2", "closerange", "setresgid", "setresuid", "umask"])
def test_when_a_step_on_the_way_fails_nothing_is_run(small: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        outcome = run("touch ran", small, cwd=tmp_path)
    assert outcome.is_deferred
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("call", ["getresgid", "getresuid"])
def test_ids_that_are_not_what_was_asked_for_run_nothing(small: Parcel, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, lambda: (os.getuid(), os.getuid(), os.getuid() + 1))
    assert run("touch ran", small, cwd=tmp_path).is_deferred
    assert not (tmp_path / "ran").exists()


# ---- misbehaviour


@pytest.mark.parametrize("text", ["exit 0", "exec <&-; sleep 0.2", "head -c 10 > /dev/null", "sleep 0.2",
                                  "true | true"])
def test_a_command_that_does_not_read_its_mail_has_had_it(large: Parcel, text: str) -> None:
    assert run(text, large).status == "2.0.0"


def test_a_command_that_does_not_read_may_still_say_no(large: Parcel) -> None:
    assert run("exec <&-; echo no; exit 77", large).status == "5.7.0"


def test_our_own_handling_of_sigpipe_does_not_matter(large: Parcel) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        assert run("exec <&-; sleep 0.2", large).status == "2.0.0"
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_flood_of_output_is_thrown_away(large: Parcel) -> None:
    tracemalloc.start()
    try:
        outcome = run("yes | head -c 20000000; cat > /dev/null; exit 1", large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.status == "5.3.0"
    assert len(outcome.reason) <= 400
    assert outcome.reason.startswith("y y y")
    assert peak < 3_000_000


@pytest.mark.parametrize(("told", "reason"), [(0, "exit code 1"), (3, "yes"), (400, "yes, it has failed")])
def test_as_much_of_its_output_is_told_as_the_settings_say(small: Parcel, told: int, reason: str) -> None:
    assert command.run(b"echo yes, it has failed; exit 1", small, environment={}, cwd="/", told=told).reason == reason


@pytest.mark.limit(20)
def test_a_daemon_that_prints_faster_than_we_read_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    child = command._Child(pid=0, stdin=-1, stdout=0, pidfd=-1)
    monkeypatch.setattr(os, "read", lambda *_: b"y" * 100)
    child._read_rest()
    assert len(child.output) == command.MAX_OUTPUT


def test_output_before_reading_does_not_block(large: Parcel) -> None:
    assert run("head -c 1000000 /dev/zero; cat; head -c 1000000 /dev/zero", large).is_delivered


@pytest.mark.parametrize("daemon", ["sleep 600 &", "(sleep 600; echo late) &", "setsid sleep 600 &",
                                    "yes > /dev/stderr &"])
def test_a_daemon_left_behind_is_not_waited_for(small: Parcel, daemon: str) -> None:
    assert run(f"cat > /dev/null; {daemon} echo done", small).status == "2.0.0"


def test_a_daemon_that_keeps_the_input_open_does_not_stop_us(large: Parcel) -> None:
    assert run("exec 3<&0; sleep 600 <&3 & exit 0", large).status == "2.0.0"


def test_a_command_without_end_is_ended_with_all_it_started(large: Parcel, tmp_path: Path) -> None:
    outcome = run("echo $$ > pid; sleep 600 & echo $! >> pid; wait", large, cwd=tmp_path, limit=0.5)
    assert outcome.status == "4.3.0"
    assert "did not end within 0.5 seconds" in outcome.reason
    for pid in (tmp_path / "pid").read_text().split():
        wait_for_end(int(pid))


def test_a_command_that_will_not_end_is_killed(small: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "KILL_AFTER", 0.3)
    outcome = run("trap 'echo told >> told' TERM; echo $$ > pid; cat > /dev/null; while :; do sleep 0.05; done", small,
                  cwd=tmp_path, limit=0.5)
    assert outcome.status == "4.3.0"
    assert (tmp_path / "told").exists()
    wait_for_end(int((tmp_path / "pid").read_text()))


def test_a_command_that_ends_well_when_told_has_not_delivered(small: Parcel) -> None:
    """It may have been told in the middle of its work."""
    assert run("trap 'exit 0' TERM; while :; do sleep 0.05; done", small, limit=0.5).status == "4.3.0"


@pytest.mark.parametrize("text", ["kill -STOP $$", "cat > /dev/null; kill -STOP $$; exit 0"])
def test_a_command_that_stops_itself_is_ended(small: Parcel, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "KILL_AFTER", 0.2)
    assert run(text, small, limit=0.3).status == "4.3.0"


def test_a_message_that_cannot_be_read_to_its_end_is_not_taken_for_whole(large: Parcel, tmp_path: Path) -> None:
    os.truncate(f"/proc/self/fd/{large.fd}", 1_000_000)  # the pipe is filled several times by then
    outcome = run("echo $$ > pid; cat > got; echo whole > whole", large, cwd=tmp_path)
    assert outcome.status == "4.3.0"
    assert "queue file" in outcome.reason
    wait_for_end(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "whole").exists()


# ---- our own troubles


def test_no_handler_of_ours_runs_in_the_child(small: Parcel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(*_: object) -> None:
        (tmp_path / "handled").touch()
    clean = command.identity.clean

    def interrupted(keep: set[int]) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        clean(keep)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(command.identity, "clean", interrupted)
        assert run("touch ran", small, cwd=tmp_path).is_deferred
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not (tmp_path / "handled").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("call", "code"), [("fork", errno.EAGAIN), ("fork", errno.ENOMEM), ("pipe", errno.EMFILE),
                                            ("set_blocking", errno.EBADF)])
def test_without_a_process_or_a_descriptor_mail_waits(small: Parcel, monkeypatch: pytest.MonkeyPatch, call: str,
                                                     code: int) -> None:
    before = os.listdir("/proc/self/fd")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, call, fail)
    outcome = run("true", small)
    assert outcome.status == "4.3.0"
    assert os.strerror(code) in outcome.reason
    assert os.listdir("/proc/self/fd") == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.root
def test_the_process_limit_of_the_user_means_later(small: Parcel) -> None:
    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setresuid(*[elsewhere.SOMEBODY] * 3)
        return run("true", small).status
    assert elsewhere.run(work) == "4.3.0"


def test_a_shell_that_cannot_be_started_means_later(small: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHELL", "/nonexistent/sh")
    outcome = run("true", small)
    assert outcome.status == "4.3.0"
    assert "cannot run a command" in outcome.reason


def test_an_exit_code_that_somebody_else_collected_means_later(small: Parcel) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel throws exit codes away then
    try:
        assert run("exit 0", small).status == "4.3.0"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_pidfd_it_works_as_well(large: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr(os, "pidfd_open", fail)
    assert run("cat > /dev/null; sleep 0.2; exit 75", large).status == "4.3.0"
    assert run("sleep 600", large, limit=0.3).reason.startswith("command did not end")


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)])
def test_descriptors_that_were_closed_when_we_started(small: Parcel, tmp_path: Path, closed: tuple[int, ...]) -> None:
    def work() -> str:
        for fd in closed:
            os.close(fd)
        return run("cat > got; echo out; echo err >&2", small, cwd=tmp_path).reason
    assert elsewhere.run(work) == "out err"
    assert (tmp_path / "got").read_bytes() == FROM_LINE + HEAD + message()


def test_no_descriptor_and_no_process_is_left_over(small: Parcel, large: Parcel) -> None:
    before = (os.listdir("/proc/self/fd"), processes.children())
    for text, limit in (("cat > /dev/null", 50), ("exec <&-; exit 1", 50), ("kill -9 $$", 50), ("exec sleep 600", 0.2)):
        run(text, large, limit=limit)
        run(text, small, limit=limit)
    assert (os.listdir("/proc/self/fd"), processes.children()) == before


# ---- its environment


def test_the_environment_tells_about_the_message() -> None:
    zone = {"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}
    assert zone | {
        "HOME": "/home/alice", "USER": "alice", "LOGNAME": "alice", "SHELL": "/bin/bash",
        "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "SENDER": "bob@else.test",
        "RECIPIENT": "alice+tag@host.example", "ORIGINAL_RECIPIENT": "team@host.example", "EXTENSION": "tag",
        "LOCAL": "alice+tag", "DOMAIN": "host.example",
    } == ENVIRONMENT


def test_the_time_zone_is_the_only_thing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Vienna")
    monkeypatch.setenv("EVIL", "1")
    found = command.environment(USER, sender="", recipient="alice", original="alice", extension="")
    assert found["TZ"] == "Europe/Vienna"
    assert "EVIL" not in found
    assert (found["SENDER"], found["LOCAL"], found["DOMAIN"], found["EXTENSION"]) == ("", "alice", "", "")


@pytest.mark.parametrize(("value", "safe"), [
    ("bob@else.test", "bob@else.test"), ("a+b=c%d:/x,y_z-.!", "a+b=c%d:/x,y_z-.!"),
    ("$(touch /tmp/x)", "__touch_/tmp/x_"), ("`id`;|&<>()", "_id________"), ("a'b\"c\\d", "a_b_c_d"),
    ("a\nb\0c\x7f", "a_b_c_"), ("() { :; }; echo", "_____:_____echo"), ("-oQ/tmp/x", "_oQ/tmp/x"), ("--", "_-"),
    ("m\u00fcller", "m_ller"), ("\udcff*?[]~#^{}", "__________"), ("x" * 5000, "x" * command.MAX_VALUE),
])
def test_what_strangers_choose_is_filtered(value: str, safe: str) -> None:
    assert command.filtered(value) == safe
    found = command.environment(USER, sender=value, recipient=value, original=value, extension=value)
    assert {found[name] for name in ("SENDER", "RECIPIENT", "ORIGINAL_RECIPIENT", "EXTENSION")} == {safe}
