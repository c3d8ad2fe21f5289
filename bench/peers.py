"""Three more mail systems of Debian, for the workloads that ask for them: Exim, OpenSMTPD, sendmail.

Each is set up as an administrator of a busy host would: its limits on clients, load and parallel work are lifted, what
it syncs is left alone. They relay for the network at the end of the cable, and send what is not theirs to the next hop.
"""

import re
import shutil
from typing import ClassVar

from tests.e2e.debian import FQDN, Debian

from .hosts import Host
from .network import FAR, FAR_NAME, HERE, NETWORK

EXIM, OPENSMTPD, SENDMAIL = "exim4", "opensmtpd", "sendmail"
HOSTS = f"{FAR} {FAR_NAME}\n{HERE} {FQDN}\n"


class Exim(Host):
    """exim4-daemon-light, one file of settings, a split spool."""

    label = EXIM
    service = "exim4.service"
    unit = re.compile(r"/exim4\.service(/|$)", re.MULTILINE)
    flush = ("exim", "-qqff")
    spool = ("/var/spool/exim4/input", "/var/spool/exim4/msglog")
    settings = ("smtp_accept_max = 200", "smtp_accept_queue = 0", "smtp_accept_queue_per_connection = 0",
                "smtp_accept_max_per_connection = 0", "queue_run_max = 8", "remote_max_parallel = 8",
                "split_spool_directory = true")
    # Two deliveries to one mbox at once: it would look again whether the lock is free every three seconds.
    locks = ("lock_interval = 1s", "lock_fcntl_timeout = 10s")
    macros = ("MAIN_HOST_LOOKUP =", "ROUTER_DNSLOOKUP_IGNORE_TARGET_HOSTS = <; 127.0.0.0/8 ; ::1/128")

    def recipe(self) -> str:
        return repr((self.settings, self.locks, self.macros))

    def install(self, debian: Debian) -> None:
        debian.install("exim4-daemon-light", "exim4-config")
        main = "### main/02_exim4-config_options"
        template = debian.path("/etc/exim4/exim4.conf.template")
        text = template.read_text()
        for head, lines in ((main, self.settings), ("  file = /var/mail/$local_part_data", self.locks)):
            text = text.replace(head, "\n  ".join((head, *lines)), 1)
        template.write_text(text)
        debian.write("/etc/exim4/exim4.conf.localmacros", "".join(f"{line}\n" for line in self.macros))
        self._choose(debian, "mail_spool")

    def configure(self, kind: str) -> None:
        self._choose(self.debian, "maildir_home" if kind == "maildir" else "mail_spool")

    def _choose(self, debian: Debian, delivery: str) -> None:
        chosen = {"eximconfig_configtype": "smarthost", "smarthost": FAR, "other_hostnames": FQDN, "readhost": "",
                  "local_interfaces": "", "relay_domains": "", "minimaldns": "false", "use_split_config": "false",
                  "relay_nets": NETWORK, "hide_mailname": "false", "mailname_in_oh": "true",
                  "localdelivery": delivery}
        lines = [f"dc_{name}='{value}'\n" for name, value in chosen.items()]
        debian.write("/etc/exim4/update-exim4.conf.conf", "".join((*lines, "CFILEMODE='644'\n")))
        debian.write("/etc/default/exim4", "QUEUERUNNER='combined'\nQUEUEINTERVAL='10s'\n")
        debian.chroot("update-exim4.conf")


class OpenSmtpd(Host):
    """opensmtpd, which says 250 before anything is on the disk: its rates are those of a weaker promise."""

    label = OPENSMTPD
    service = "opensmtpd.service"
    unit = re.compile(r"/opensmtpd\.service(/|$)", re.MULTILINE)
    flush = ("smtpctl", "schedule", "all")
    spool = ("/var/spool/smtpd/queue", "/var/spool/smtpd/offline")
    settings = f"""table aliases file:/etc/aliases
smtp max-message-size 50M
smtp limit max-mails 100000
mta limit max-conn-per-host 50
mta limit max-conn-per-route 50
mta limit max-conn-per-connector 50
mta limit session-mail-max 100000
mta limit session-transaction-delay 0
scheduler limit max-inflight 50000
listen on 0.0.0.0 hostname {FQDN}
action "local" MAILBOX alias <aliases>
action "relay" relay host smtp://{FAR}
match for local action "local"
match from any for domain "{FQDN}" action "local"
match from src {{ 127.0.0.0/8 {NETWORK} }} for any action "relay"
match for any action "relay"
"""

    def recipe(self) -> str:
        return self.settings

    def install(self, debian: Debian) -> None:
        debian.install("opensmtpd")

    def configure(self, kind: str) -> None:
        how = "maildir" if kind == "maildir" else "mbox"
        self.debian.write("/etc/smtpd.conf", self.settings.replace("MAILBOX", how))


class Sendmail(Host):
    """sendmail, which delivers mboxes with its mail.local over LMTP, Maildirs with procmail. All of them sync.

    To write a header it asks DNS for each domain in it, for local mail too, and puts the mail off where nobody answers:
    here it looks into /etc/hosts instead, as Debian's file for hosts without DNS says.
    """

    label = SENDMAIL
    service = "sendmail.service"
    unit = re.compile(r"/sendmail\.service(/|$)", re.MULTILINE)
    flush = ("sendmail", "-qf")
    spool = ("/var/spool/mqueue", "/var/spool/mqueue-client")
    settings = f"""define(`SMART_HOST', `[{FAR}]')dnl
define(`confREFUSE_LA', `200')dnl
define(`confQUEUE_LA', `200')dnl
define(`confDELAY_LA', `0')dnl
define(`confTO_IDENT', `0')dnl
define(`confMAX_QUEUE_CHILDREN', `40')dnl
define(`confMAX_RUNNERS_PER_QUEUE', `8')dnl
FEATURE(`use_cw_file')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`accept_unqualified_senders')dnl
"""
    local: ClassVar = {"mbox": """FEATURE(`local_lmtp', `/usr/libexec/sendmail/mail.local')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `+m')dnl
""", "maildir": "FEATURE(`local_procmail')dnl\n"}
    throttles = ("greet_pause", "conncontrol", "ratecontrol", "confCONNECTION_RATE")

    def recipe(self) -> str:
        return repr((self.settings, self.local, self.throttles, HOSTS))

    def install(self, debian: Debian) -> None:
        debian.install("sendmail", "sendmail-bin", "procmail")
        source = debian.path("/etc/mail/sendmail.mc")
        lines = [line.replace(", Addr=127.0.0.1", "").replace(", Addr=::1", "")
                 for line in source.read_text().split("\n")
                 if not any(word in line for word in self.throttles) and "use_cw_file" not in line]
        at = next(number for number, line in enumerate(lines) if line.startswith("MAILER_DEFINITIONS"))
        debian.write("/etc/mail/local-host-names", f"{FQDN}\nlocalhost\n")
        with debian.path("/etc/mail/access").open("a") as file:
            file.write(f"Connect:{NETWORK.rpartition('.')[0]} RELAY\n")
        with debian.path("/etc/hosts").open("a") as file:
            file.write(HOSTS)
        debian.chroot("cp", "/etc/mail/service.switch-nodns", "/etc/mail/service.switch")
        debian.write("/etc/procmailrc", "DEFAULT=$HOME/Maildir/\n")
        for kind, local in self.local.items():
            source.write_text("\n".join((*lines[:at], self.settings, local, *lines[at:])))
            debian.chroot("sh", "-c", "yes | sendmailconfig", timeout=300)
            shutil.copy(debian.path("/etc/mail/sendmail.cf"), debian.path(f"/etc/mail/{kind}.cf"))
        debian.chroot("newaliases")

    def configure(self, kind: str) -> None:
        kind = "maildir" if kind == "maildir" else "mbox"
        self.debian.path("/etc/mail/sendmail.cf").write_bytes(self.debian.path(f"/etc/mail/{kind}.cf").read_bytes())


PEERS: dict[str, type[Host]] = {EXIM: Exim, OPENSMTPD: OpenSmtpd, SENDMAIL: Sendmail}
# The workloads that they are in, besides ours and Postfix.
BESIDES = ("submit", "smtp_mbox", "smtp_mbox50", "smtp_maildir50", "smtp_big", "relay", "relay_lasting")
