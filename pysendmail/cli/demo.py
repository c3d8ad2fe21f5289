"""`./dev demo`: the main job, as an ordinary user, below a private directory.

It starts the real daemon (the code of pysendmaild, without root), submits through the real sendmail, shows the queue
before and after, the delivered message and a bounce, and says what happened. With --stay it goes on until interrupted.
Nothing outside the directory is touched, and no port is opened.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from ..paths import Paths
from ..spool.queue import prepare
from ..users import User

LAUNCHER = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {code!r})
from pysendmail.cli.sendmail import main
from pysendmail.paths import Paths
main(sys.argv, Paths({root!r}))
"""
NOBODY = 65534  # uid and gid of nobody and nogroup in Debian
INTERRUPTED = 130  # exit code, as shells have it
WITHIN = 30.0  # seconds for anything that the demo waits for
SETTINGS = 'hostname = "demo.example"\n[smtpd]\nlisten = []\n'
ALIASES = "# aliases(5) of the demo\npostmaster: root\nroot: you\nteam: you, colleague\n"
MESSAGE = "From: you\nTo: {to}\nSubject: {subject}\n\n{text}\n"


class DemoUsers:
    """Users that exist nowhere else: every one is you, with a home below the demo's root."""

    def __init__(self, root: str) -> None:
        me = pwd.getpwuid(os.geteuid())
        self._known = {name: User(name, me.pw_uid, me.pw_gid, f"{root}/home/{name}", "/bin/sh", f"Demo {name}")
                       for name in ("you", "colleague", "root")}

    def lookup(self, name: str) -> User | None:
        return self._known.get(name.lower())

    def by_uid(self, uid: int) -> User | None:
        return self._known["you"] if uid == os.geteuid() else None


def as_nobody(code: str, argv: list[str]) -> int:
    """The demo shows what an ordinary user can do: started as root, it runs again as nobody, from a copy that he can
    read. The exit code."""
    copy = tempfile.mkdtemp(prefix="pysendmail-code-")
    try:
        shutil.copytree(f"{code}/pysendmail", f"{copy}/pysendmail", ignore=shutil.ignore_patterns("__pycache__"))
        os.chmod(copy, 0o755)  # noqa: S103 - it holds nothing but the program
        again = (f"import sys; sys.path.insert(0, {copy!r}); from pysendmail.cli.demo import main; "
                 f"sys.exit(main({argv!r}))")
        # In a session of its own: Ctrl-C reaches it once, by us, and it can tidy up.
        with subprocess.Popen([sys.executable, "-I", "-B", "-c", again], cwd="/", user=NOBODY, group=NOBODY,
                              extra_groups=[], env={"PATH": "/usr/bin:/bin"}, start_new_session=True) as child:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
                return child.wait()
    finally:
        shutil.rmtree(copy)


def make_root(code: str) -> str:
    """A private tree with launchers in it; its path."""
    root = tempfile.mkdtemp(prefix="pysendmail-demo-")
    paths = Paths(root)
    prepare(paths)
    for path in (paths.drop_tmp, paths.drop_new, paths.smtp_tmp, paths.smtp_new, paths.mail, f"{root}/bin", paths.etc,
                 *(f"{root}/home/{name}" for name in ("you", "colleague", "root"))):
        os.makedirs(path, exist_ok=True)
    for path in (paths.drop_tmp, paths.drop_new):
        os.chmod(path, 0o3733)  # noqa: S103 - as the package has it
    for path, text in ((paths.aliases, ALIASES), (paths.mailname, "demo.example\n"), (paths.settings, SETTINGS)):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    for name in ("sendmail", "mailq", "newaliases"):
        with open(f"{root}/bin/{name}", "w", encoding="utf-8") as file:
            file.write(LAUNCHER.format(code=code, root=root))
        os.chmod(f"{root}/bin/{name}", 0o755)  # noqa: S103 - a program
    return root


def start_daemon(root: str, log_path: str) -> int:
    """The daemon in a child of ours; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from ..daemon import supervisor
        from ..events import to_stderr

        code = supervisor.main(["pysendmaild"], Paths(root), users=DemoUsers(root), log=to_stderr)
    finally:
        os._exit(code)


def wait_for(path: str, *words: str) -> str:
    """The text of a file once it has all these words."""
    end = time.monotonic() + WITHIN
    while time.monotonic() < end:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        if text and all(word in text for word in words):
            return text
        time.sleep(0.05)
    raise SystemExit(f"demo: {path} did not get {' and '.join(words)} within {WITHIN:.0f} s")


def wait_until_empty(paths: Paths) -> None:
    """Until no message is in the queue."""
    places = (paths.drop_new, paths.intake, f"{paths.queue}/new", f"{paths.queue}/cur")
    end = time.monotonic() + WITHIN
    while any(map(os.listdir, places)):
        if time.monotonic() > end:
            raise SystemExit(f"demo: the queue is not empty after {WITHIN:.0f} s")
        time.sleep(0.05)


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(root: str, program: str, *args: str, text: str = "") -> None:
    print(f"$ {program} {' '.join(args)}", flush=True)
    done = subprocess.run([f"{root}/bin/{program}", *args], input=text.encode(), check=False, timeout=WITHIN)
    print(f"(exit {done.returncode})", flush=True)
    if done.returncode:
        raise SystemExit(f"demo: {program} failed")


def show(text: str) -> None:
    print("\n".join("    " + line for line in text.rstrip("\n").split("\n")), flush=True)


@dataclass
class Demo:
    """A private host. daemon: its pid, 0 = it does not run."""

    root: str
    daemon: int = 0

    @property
    def log(self) -> str:
        return f"{self.root}/log"

    def play(self) -> None:
        """The story."""
        root, mailbox = self.root, f"{self.root}/var/mail/you"
        say("A message while the daemon is down, as from cron: it is safe on disk when sendmail exits 0")
        run(root, "sendmail", "-i", "-FCronDaemon", "-oem", "root",
            text=MESSAGE.format(to="root", subject="Cron <root@demo> backup", text="All 42 files are saved."))
        say("It waits in the drop directory; mailq finds it there")
        run(root, "mailq")
        say("The daemon starts and takes it in: root is an alias for you")
        self.daemon = start_daemon(root, self.log)
        show(wait_for(mailbox, "All 42 files"))
        say("An alias for two people, and a recipient who does not exist")
        run(root, "sendmail", "-i", "team", "nobody-here",
            text=MESSAGE.format(to="team, nobody-here", subject="hello", text="Lunch at noon?"))
        wait_for(f"{root}/var/mail/colleague", "Lunch at noon?")
        text = wait_for(mailbox, "Lunch at noon?", "nobody-here", "multipart/report")
        say("The colleague has a copy, you have one, and this report about nobody-here")
        show(text[text.index("From MAILER-DAEMON"):][:3000])
        wait_until_empty(Paths(root))
        say("The queue is empty again")
        run(root, "mailq")
        say("What the log says")
        with open(self.log, encoding="utf-8") as file:
            show(file.read())
        say("Done: two messages in, three copies and one report delivered, nothing lost")

    def close(self, *, keep: bool) -> None:
        if self.daemon:
            os.kill(self.daemon, signal.SIGTERM)
            os.waitpid(self.daemon, 0)
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)


def main(argv: list[str]) -> int:
    """argv: [--stay] [--keep]. The exit code."""
    code = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.geteuid() == 0:
        return as_nobody(code, argv)
    demo = Demo(make_root(code))
    print(f"Everything is below {demo.root}")
    try:
        demo.play()
        if "--stay" in argv:
            say(f"It goes on. Try: echo hi | {demo.root}/bin/sendmail you; press Ctrl-C to end")
            signal.pause()
    except KeyboardInterrupt:
        return 0 if "--stay" in argv else INTERRUPTED
    finally:
        demo.close(keep="--keep" in argv)
    return 0
