"""A whole mail host below a private directory: the real daemon, real users as far as we are root, and its log.

    host = Host(paths)                     the tree, the users, nothing running
    host.start()                           pysendmaild, until it says that it has started
    mail = host.send("alice", "bob")       the real sendmail, as some user; its Message-ID is known
    host.outcome(mail, "alice")            waits for the line in the log that says what became of it
    host.stop()

As root every user has a uid of his own that nobody else on this machine has; otherwise all of them are whoever runs
the tests. Nothing here sleeps: what happens is awaited by the log (inotify), by the end of a process, or by an answer
of the control socket, each for at most WITHIN seconds.
"""

import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pysendmail.cli import ask, sendmail
from pysendmail.paths import Paths
from pysendmail.spool.dropbox import Submission
from pysendmail.users import LookupTrouble, User
from tests.tools import processes
from tests.tools.elsewhere import CLONE_NEWNS
from tests.tools.foreign import children_of, descendants, end
from tests.tools.watch import WITHIN, Log, Watch

CODE = str(Path(__file__).resolve().parents[2])
LAUNCHER = """import sys
sys.path.insert(0, sys.argv[1])
from tests.tools.host import daemon
sys.exit(daemon(sys.argv[2]))
"""
RUNNER, LOCAL, RELAY, LISTENER = "_pysendmail", "_pysmlocal", "_pysmrelay", "_pysmtpd"
UIDS = {"root": 0, RUNNER: 54400, LOCAL: 54401, RELAY: 54402, LISTENER: 54403, "alice": 54410, "bob": 54411,
        "carol": 54412, "dave": 54413}
MAIL_GROUP = 54450  # what the mailbox directory belongs to
NOBODY_KNOWN = 54499  # a uid without a name
# However much else this machine has to do: what is sent is delivered at once.
SETTINGS = ('hostname = "host.example"\ndomain = "host.example"\n[smtpd]\nlisten = []\n'
            "[limits]\nload_queue = 1000\nload_refuse = 1000\n")
PLACES = ("drop/new", "intake", "queue/new", "queue/cur", "queue/hold")
QUICK = {"pysendmail.daemon.runner.SETTLE_AGAIN": 0.5, "pysendmail.daemon.runner.SCAN_EVERY": 0.5,
         "pysendmail.daemon.intake.AGAIN": 0.5, "pysendmail.daemon.intake.PAUSE": 0.5}
STARTED = r"^starting daemon "

_numbers = itertools.count(1)


class Table:
    """The users of a private host. While there is a file users.down nobody is told who a name is, and
    while there is users.down.NAME, who asks for NAME waits for ever."""

    def __init__(self, root: str) -> None:
        self._trouble = f"{root}/users.down"
        known = json.loads(Path(f"{root}/users.json").read_text())
        self._known = {name: User(name, *rest) for name, rest in known.items()}

    def lookup(self, name: str) -> User | None:
        if os.path.exists(self._trouble):
            raise LookupTrouble(5, "the directory service does not answer")
        if os.path.exists(f"{self._trouble}.{name}"):
            signal.pause()
        return self._known.get(name) or self._known.get(name.lower())

    def by_uid(self, uid: int) -> User | None:
        return next((user for name, user in self._known.items() if user.uid == uid and name != "root"), None) or (
            self._known["root"] if uid == 0 else None)


def daemon(root: str) -> int:
    """The body of the daemon's process: pysendmaild with a table of users. Its log is root/syslog if that is a socket,
    else standard error."""
    from pysendmail.daemon import main, supervisor  # noqa: F401 - main: later, the code may be out of the runner's reach
    from pysendmail.events import Syslog, to_stderr

    for name, value in json.loads(Path(f"{root}/constants.json").read_text()).items():
        module, _, constant = name.rpartition(".")
        assert hasattr(sys.modules[module], constant)
        setattr(sys.modules[module], constant, value)
    log = Syslog(path=f"{root}/syslog") if os.path.exists(f"{root}/syslog") else to_stderr
    return supervisor.main(["pysendmaild"], Paths(root), users=Table(root), log=log)


class Host:
    """See above. settings: TOML besides SETTINGS. runs_as: a command in front of the daemon's, such as strace.

    constants: of the daemon's modules, such as QUICK: how long it waits before it tries again what failed.
    """

    def __init__(self, paths: Paths, *, settings: str = "", aliases: str = "", runs_as: Sequence[str] = (),
                 constants: Mapping[str, float] | None = None) -> None:
        self.paths = paths
        self.namespace = ""  # of mounts, where the daemon and its submitters are; "" = ours
        self.outside = paths  # what is in it, as we see it
        self.is_root = os.geteuid() == 0
        self.users: dict[str, User] = {}
        self.runs_as = list(runs_as)
        self.log = Log(f"{paths.root}/log")
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        Path(f"{paths.root}/constants.json").write_text(json.dumps(constants or {}))
        self._make_users()
        Path(paths.settings).write_text(SETTINGS)
        self.configure(settings)
        Path(paths.aliases).write_text("postmaster: root\n" + aliases)
        self._give_away()

    # ---- making it

    def _make_users(self) -> None:
        me, group = os.geteuid(), os.getegid()
        for name, uid in UIDS.items():
            home = "/nonexistent" if name.startswith("_") else f"{self.paths.root}/home/{name}"
            ids = (uid, uid) if self.is_root else (me, group)
            user = User(name, *ids, home, "/bin/sh", f"{name.title()} Example")
            self.users[name] = user
            if not name.startswith("_"):
                os.makedirs(home)
                os.chmod(home, 0o755)
                os.chown(home, user.uid, user.gid)
        self.write_users()

    def write_users(self) -> None:
        """Give the table of users to daemons that are started from now on."""
        table = {name: [user.uid, user.gid, user.home, user.shell, user.gecos] for name, user in self.users.items()}
        Path(f"{self.paths.root}/users.json").write_text(json.dumps(table))

    def _give_away(self) -> None:
        """Owners and modes as the package makes them."""
        paths = self.paths
        os.chmod(paths.mail, 0o2775)
        if not self.is_root:
            return
        runner, listener = self.users[RUNNER], self.users[LISTENER]
        os.chown(paths.mail, 0, MAIL_GROUP)
        os.chmod(paths.mail, 0o2775)
        for path in (paths.drop_tmp, paths.drop_new, paths.intake, paths.quarantine, paths.queue, *(
                f"{paths.queue}/{name}" for name in os.listdir(paths.queue))):
            self._give(path, runner.uid, runner.gid)
        for path in (paths.smtp_tmp, paths.smtp_new):
            self._give(path, runner.uid, listener.gid)

    def _give(self, path: str, uid: int, gid: int) -> None:
        mode = os.stat(path).st_mode
        os.chown(path, uid, gid)
        os.chmod(path, mode & 0o7777)  # chown has taken the set-gid bit

    def configure(self, settings: str) -> None:
        """Other settings than the usual ones, for the next start or reload."""
        Path(f"{self.paths.conf_dir}/test.toml").write_text(settings)

    def write_home(self, user: str, name: str, text: str | bytes, mode: int = 0o644) -> str:
        """A file in a user's home, his own; its path."""
        path = f"{self.users[user].home}/{name}"
        Path(path).write_bytes(text.encode() if isinstance(text, str) else text)
        os.chmod(path, mode)
        os.chown(path, self.users[user].uid, self.users[user].gid)
        return path

    def forward(self, user: str, text: str) -> None:
        self.write_home(user, ".forward", text)

    # ---- its life

    def start(self) -> None:
        """Start the daemon and wait until it has started."""
        since = self.log.mark()
        self.launch()
        self.log.wait_for(STARTED, since=since)

    def launch(self) -> None:
        """Start the daemon, and do not wait."""
        with open(self.log.path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.runs_as, sys.executable, "-I", "-c", LAUNCHER, CODE, self.paths.root], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=self.environment, cwd="/")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon as a service manager does, and wait for it; its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.kill(self.supervisor, number)
        return self.ended()

    def ended(self, within: float = WITHIN) -> int:
        """Wait for the daemon's end; its exit code."""
        assert self.process is not None
        code = self.process.wait(within)
        self.process = None
        return code

    @property
    def supervisor(self) -> int:
        """The pid of the daemon itself, behind whatever started it."""
        assert self.process is not None
        launched = LAUNCHER.encode()
        return next(pid for pid in (self.process.pid, *descendants(self.process.pid))
                    if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3:4] == [launched])

    @property
    def runner(self) -> int:
        return int(self.status()["pid"])

    @property
    def agents(self) -> list[int]:
        """The pids of the agents."""
        runner = self.runner
        return [pid for pid in children_of(self.supervisor) if pid != runner and not processes.has_ended(pid)]

    def kill_runner(self) -> None:
        """kill -9, and wait for the next one."""
        since = self.log.mark()
        os.kill(self.runner, signal.SIGKILL)
        self.log.wait_for(STARTED, since=since)

    def reload(self) -> None:
        since = self.log.mark()
        os.kill(self.supervisor, signal.SIGHUP)
        self.log.wait_for(STARTED, since=since)

    # ---- mail

    def send(self, *recipients: str, sender: str = "alice", text: bytes = b"Hello.\n", headers: bytes = b"",
             options: Sequence[str] = ("-i",), uid: int | None = None) -> "Mail":
        """Submit a message as a user. uid: another than the sender's. Raises AssertionError unless it exits with 0."""
        mail = Mail(f"m{next(_numbers)}.{os.getpid()}")
        if not self.is_root and uid is None and "-f" not in options:
            options = [*options, "-f", sender]  # all users have one uid
        name = mail.name.encode()
        content = b"Subject: %s\nMessage-ID: <%s@test>\n%s\n%s" % (name, name, headers, text)
        code, words = self.submit([*options, *recipients], content, self.users[sender].uid if uid is None else uid)
        assert code == 0, f"sendmail exits with {code}: {words}"
        return mail

    def flood(self, count: int, *recipients: str, sender: str = "alice") -> None:
        """Submit so many small messages as a user, fast: without syncs, as only a test may."""
        uid = self.users[sender].uid
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._go_in(uid)
                os.fsync = lambda fd: None
                fields = [(b"Recipient", b"- - " + one.encode()) for one in recipients]
                for number in range(count):
                    submission = Submission(self.paths)
                    submission.begin(fields)
                    submission.write(b"Subject: one of many\nMessage-ID: <flood.%d@test>\n\nHello.\n" % number)
                    submission.commit()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, "the flood was not taken"

    def submit(self, arguments: Sequence[str], content: bytes, uid: int) -> tuple[int, str]:
        """Run sendmail as this uid: (exit code, what it says)."""
        number = next(_numbers)
        files = [os.open(f"{self.paths.root}/send.{number}.{what}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                 for what in ("in", "out")]
        try:
            os.write(files[0], content)
            os.lseek(files[0], 0, os.SEEK_SET)
            pid = os.fork()
            if pid == 0:
                self._submit(["sendmail", *arguments], files[0], files[1], uid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return code, os.pread(files[1], 10_000, 0).decode("utf-8", "replace")
        finally:
            for what, fd in zip(("in", "out"), files, strict=True):
                os.close(fd)
                os.unlink(f"{self.paths.root}/send.{number}.{what}")

    def _submit(self, argv: list[str], stdin: int, out: int, uid: int) -> None:
        """In the child."""
        try:
            for fd, number in ((stdin, 0), (out, 1), (out, 2)):
                os.dup2(fd, number)
            self._go_in(uid)
            sendmail.main(argv, self.paths)
        finally:
            os._exit(99)

    def _go_in(self, uid: int) -> None:
        """In a child: be this user where the daemon is."""
        if self.namespace:
            fd = os.open(self.namespace, os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(fd)
        become(uid)

    def queue_id(self, mail: "Mail", *, since: int = 0) -> str:
        """The id that a message got, once it is in the queue."""
        return self.log.wait_for(rf"^(\w{{14}}): from=.*msgid=<{re.escape(mail.name)}@test>", since=since)[0][1]

    def outcome(self, mail: "Mail", address: str, *, since: int = 0, count: int = 1, within: float = WITHIN) -> str:
        """What the log says of a recipient: "dsn=2.0.0, stat=Sent (...)", of the last attempt of `count`."""
        found = self.queue_id(mail, since=since)
        return self.log.wait_for(rf"{found}: to=<{re.escape(address)}[@>].*(dsn=.*)$", since=since, count=count,
                                 within=within)[count - 1][1]

    def box(self, user: str) -> str:
        """A user's mailbox, "" if there is none."""
        try:
            return Path(f"{self.paths.mail}/{user}").read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def messages(self, user: str) -> list[str]:
        """The messages in it."""
        return [part for part in re.split(r"(?:\A|(?<=\n\n))From \S+ [^\n]*\n", self.box(user)) if part]

    def copies(self, user: str, mail: "Mail") -> int:
        """How often a user has a message; a report about it is another message."""
        wanted = f"\nMessage-ID: <{mail.name}@test>\n"
        return sum(wanted in message.partition("\n\n")[0] + "\n" for message in self.messages(user))

    def reports(self, user: str, mail: "Mail") -> list[str]:
        """The reports about a message that a user has."""
        return [message for message in self.messages(user)
                if "multipart/report" in message and f"<{mail.name}@test>" in message]

    # ---- asking it

    def ask(self, do: str, **more: Any) -> list[dict[str, Any]]:
        """The listings that the control socket gives. Raises ask.Unanswered."""
        return list(ask.ask(self.paths, {"do": do, **more}))

    def status(self) -> dict[str, Any]:
        answer = ask.ask(self.paths, {"do": "status"})
        assert list(answer) == []
        return answer.end

    def wait_until(self, is_so: Callable[[], bool], what: str, *, within: float = WITHIN) -> None:
        """Until something is so that does not become so without a line in the log or a change of names in the spool."""
        watch = Watch(self.log.path, *(f"{self.outside.spool}/{place}" for place in PLACES))
        try:
            watch.wait_until(is_so, what, within=within)
        except AssertionError as late:
            raise AssertionError("\n".join([f"{late}; the log:", *self.log.lines()[-60:]])) from None
        finally:
            watch.close()

    def wait_empty(self, within: float = WITHIN) -> None:
        """Until the queue is empty."""
        def is_empty() -> bool:
            try:
                seen = self.status()
            except ask.Unanswered:  # a runner that has just ended
                return False
            return not (seen["active"] or seen["waiting"] or seen["held"] or self.files("drop/new", "intake"))

        self.wait_until(is_empty, "an empty queue", within=within)

    def files(self, *places: str) -> list[str]:
        """What lies in the spool: "queue/new/ID"..."""
        return [f"{place}/{name}" for place in places or PLACES for name in os.listdir(f"{self.outside.spool}/{place}")]

    def journal(self, queue_id: str) -> list[dict[str, Any]]:
        """The events in a message's journal, [] if it has none."""
        try:
            lines = Path(f"{self.outside.journal}/{queue_id}").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line[9:]) for line in lines]

    def wait_for_journal(self, queue_id: str, *verbs: str) -> None:
        """Until a message's journal has these events, each as often as it is named."""
        watch = Watch(self.outside.journal)
        try:
            watch.wait_until(lambda: not Counter(verbs) - Counter(event["verb"] for event in self.journal(queue_id)),
                             f"{verbs} in the journal of {queue_id}")
        finally:
            watch.close()

    def wait_for_file(self, path: str) -> None:
        """Until there is such a file."""
        watch = Watch(os.path.dirname(path))
        try:
            watch.wait_until(lambda: os.path.exists(path), path)
        finally:
            watch.close()

    def close(self) -> None:
        """End everything that is still there."""
        if self.process is not None:
            below = descendants(self.process.pid)
            self.process.kill()  # first: it would start others
            self.process.wait()
            for pid in below:
                end(pid)
            self.process = None
        self.log.close()


class Mail:
    """A message that was sent, by the left side of its Message-ID."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def become(uid: int) -> None:
    """Be another user, if we are root and he is another."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
