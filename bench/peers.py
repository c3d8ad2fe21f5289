"""Three more mail systems of Debian, for the workloads that ask for them: Exim, OpenSMTPD, sendmail.

Each is set up as an administrator of a busy host would: its limits on clients, load and parallel work are lifted, what
it syncs is left alone. They relay for the network at the end of the cable, and send what is not theirs to the next hop.
"""

import re

from tests.e2e.debian import FQDN, Debian

from .hosts import Host
from .network import FAR, NETWORK

EXIM, OPENSMTPD, SENDMAIL = "exim4", "opensmtpd", "sendmail"


class Exim(Host):
    """exim4-daemon-light, one file of settings, a split spool."""

    label = EXIM
    service = "exim4.service"
    unit = re.compile(r"/exim4\.service(/|$)", re.MULTILINE)
    flush = ("exim", "-qqff")
    settings = ("smtp_accept_max = 200", "smtp_accept_queue = 0", "smtp_accept_queue_per_connection = 0",
                "smtp_accept_max_per_connection = 0", "queue_run_max = 8", "remote_max_parallel = 8",
                "split_spool_directory = true")
    macros = ("MAIN_HOST_LOOKUP =", "ROUTER_DNSLOOKUP_IGNORE_TARGET_HOSTS = <; 127.0.0.0/8 ; ::1/128")

    def recipe(self) -> str:
        return repr((self.settings, self.macros))

    def install(self, debian: Debian) -> None:
        debian.install("exim4-daemon-light", "exim4-config")
        main = "### main/02_exim4-config_options"
        template = debian.path("/etc/exim4/exim4.conf.template")
        text = template.read_text()
        template.write_text(text.replace(main, "\n".join((main, *self.settings)), 1))
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
    settings = f"""table aliases file:/etc/aliases
smtp max-message-size 50M
smtp limit max-mails 100000
mta limit max-conn-per-host 50
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
    """sendmail, which delivers mboxes with its mail.local over LMTP."""

    label = SENDMAIL
    service = "sendmail.service"
    unit = re.compile(r"/sendmail\.service(/|$)", re.MULTILINE)
    flush = ("sendmail", "-qf")
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
FEATURE(`local_lmtp', `/usr/libexec/sendmail/mail.local')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `+m')dnl
"""
    throttles = ("greet_pause", "conncontrol", "ratecontrol", "confCONNECTION_RATE")

    def recipe(self) -> str:
        return repr((self.settings, self.throttles))

    def install(self, debian: Debian) -> None:
        debian.install("sendmail", "sendmail-bin", "procmail")
        source = debian.path("/etc/mail/sendmail.mc")
        lines = [line.replace(", Addr=127.0.0.1", "").replace(", Addr=::1", "")
                 for line in source.read_text().split("\n")
                 if not any(word in line for word in self.throttles) and "use_cw_file" not in line]
        at = next(number for number, line in enumerate(lines) if line.startswith("MAILER_DEFINITIONS"))
        source.write_text("\n".join((*lines[:at], self.settings, *lines[at:])))
        debian.write("/etc/mail/local-host-names", f"{FQDN}\nlocalhost\n")
        with debian.path("/etc/mail/access").open("a") as file:
            file.write(f"Connect:{NETWORK.rpartition('.')[0]} RELAY\n")
        debian.chroot("sh", "-c", "yes | sendmailconfig", timeout=300)
        debian.chroot("newaliases")

    def configure(self, kind: str) -> None:
        if kind == "maildir":
            raise NotImplementedError("its mail.local knows no Maildirs")


PEERS: dict[str, type[Host]] = {EXIM: Exim, OPENSMTPD: OpenSmtpd, SENDMAIL: Sendmail}
# Which of them are in which workloads, besides ours and Postfix.
IN = {"submit": (EXIM,), **dict.fromkeys(("smtp_mbox", "smtp_mbox50", "smtp_big", "relay", "relay_lasting"),
                                        (EXIM, OPENSMTPD, SENDMAIL)), "smtp_maildir50": (EXIM, OPENSMTPD)}
