"""Where everything lies, as one value that is passed down.

`Paths()` is the installed system; `Paths("/some/dir")` puts the same tree below a private directory (the demo and the
tests). Launchers pass the root as a literal argument to `main()`: no environment variable and no option moves it, since
an unprivileged caller who could move the spool could make others' mail vanish.

Loaded by /usr/sbin/sendmail: imports nothing.
"""


class Paths:
    """Default places below `root` ("" for the installed system). All values are str, without a trailing slash."""

    __slots__ = ("aliases", "conf_dir", "control", "drop_new", "drop_tmp", "etc", "intake", "journal", "lock", "mail",
                 "mailname", "quarantine", "queue", "root", "run", "settings", "shells", "smtp_new", "smtp_tmp",
                 "spool", "submit", "wake")

    def __init__(self, root: str = "") -> None:
        self.root = root
        self.etc = root + "/etc/pysendmail"
        self.settings = self.etc + "/pysendmail.toml"
        self.conf_dir = self.etc + "/conf.d"
        self.aliases = root + "/etc/aliases"
        self.mailname = root + "/etc/mailname"
        self.shells = "/etc/shells"
        self.mail = root + "/var/mail"
        self.spool = root + "/var/spool/pysendmail"
        self.drop_tmp = self.spool + "/drop/tmp"
        self.drop_new = self.spool + "/drop/new"
        self.smtp_tmp = self.spool + "/smtp/tmp"
        self.smtp_new = self.spool + "/smtp/new"
        self.intake = self.spool + "/intake"
        self.queue = self.spool + "/queue"  # tmp new cur hold bad
        self.journal = self.queue + "/journal"
        self.quarantine = self.spool + "/quarantine"
        self.run = root + "/run/pysendmail"
        self.wake = self.run + "/wake"
        self.submit = self.run + "/submit"
        self.control = self.run + "/control"
        self.lock = self.queue + "/lock"  # one runner per spool; the spool itself is root's
