"""The one table of settings. Each setting is a field of one of these classes, and is written down nowhere else:

    name: type = setting(default, KIND, "what it is for", unit)

The annotation is what the rest of the program sees, the KIND (kinds.py) what a file may say. Loading, checking,
`pysendmail config`, etc/pysendmail/pysendmail.toml and the list in pysendmail.toml(5) are all made from here.

A value of "" (or an empty list) means that the setting is off or comes from the system, as its text says. Times are
seconds and sizes are bytes, always. Where a default is a figure of the field (Postfix, sendmail, RFC 5321), it is one
that a busy host was seen to live with.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from . import kinds
from .kinds import Kind, choice, whole

SECONDS, BYTES = "seconds", "bytes"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. section: "" = above all tables. is_common: in the sample file. is_secret: never shown."""

    section: str
    name: str
    kind: Kind
    default: Any
    unit: str
    text: str
    is_common: bool
    is_secret: bool


def setting(
    default: object, kind: Kind, text: str, unit: str = "", *, common: bool = False, secret: bool = False,
) -> Any:
    metadata = {"kind": kind, "text": text, "unit": unit, "is_common": common, "is_secret": secret}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class LocalSettings:
    mailbox: str = setting("mbox", kinds.MAILBOX, "How mail for local users is stored, or who stores it.", common=True)
    mail_dir: str = setting(
        "", kinds.PATH,
        "Directory of the mbox files, one for each user. Empty: /var/mail. A Maildir is always ~/Maildir.")
    recipient_delimiter: str = setting(
        "+", kinds.DELIMITER, "Characters that separate user and detail in user+detail; empty: none.", common=True)
    command: str = setting(
        "", kinds.TEXT,
        "Command that takes all mail for local users, run as the recipient, such as /usr/bin/procmail.", common=True)
    aliases: tuple[str, ...] = setting((), kinds.PATHS, "Alias files, the first match wins. Empty: /etc/aliases.")
    command_user: str = setting(
        "_pysmlocal", kinds.USER, "User who runs commands and writes files named in alias files.")
    forward: bool = setting(True, kinds.BOOLEAN, "Whether users may have a ~/.forward.", common=True)
    require_shell: bool = setting(
        True, kinds.BOOLEAN, "Run commands of a .forward only for users whose shell is in /etc/shells.")
    mailbox_size: int = setting(0, whole(0), "Largest mbox file; mail beyond that waits. 0: no limit.", BYTES)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    smarthost: tuple[str, ...] = setting(
        (), kinds.SMARTHOSTS,
        "Where all mail for others goes, tried in this order. Empty: to the hosts that DNS names.", common=True)
    username: str = setting("", kinds.TEXT, "Log in to the smarthost with this name.", common=True)
    password: str = setting("", kinds.TEXT, "Its password; the file must then be closed to others.", secret=True)
    password_file: str = setting(
        "", kinds.PATH, "File whose first line is the password; closed to others.", common=True)
    token_command: str = setting("", kinds.TEXT, "Command that prints an OAuth 2 token, instead of a password.")
    tls: str = setting(
        "may", choice("may", "encrypt", "verify"),
        "Towards the smarthost: use TLS if it is offered, insist on it, or insist on a valid certificate.", common=True)
    ca_file: str = setting("", kinds.PATH, 'Certificates to trust with tls = "verify". Empty: those of the system.')
    domains: tuple[str, ...] = setting((), kinds.DOMAINS, "Domains that are not local, but relayed for anybody.")
    transport: tuple[tuple[str, str], ...] = setting(
        (), kinds.TRANSPORT, "Next hop by recipient: user@domain, domain, .domain or *.")
    masquerade: tuple[tuple[str, str], ...] = setting(
        (), kinds.MASQUERADE,
        "What replaces the sender of mail that leaves this host: a domain, an address, or a table by sender.",
        common=True)
    ipv6: bool = setting(True, kinds.BOOLEAN, "Whether to reach other hosts over IPv6.")


@dataclass(frozen=True, slots=True)
class SmtpdSettings:
    """A stranger is a client that is neither in relay_from nor logged in."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:25", "[::1]:25"), kinds.LISTENS, "Where to take SMTP; an empty list: nowhere.", common=True)
    tls_cert: str = setting("", kinds.PATH, "Certificate chain (PEM) for STARTTLS.", common=True)
    tls_key: str = setting("", kinds.PATH, "Its private key (PEM); closed to others.", common=True)
    relay_from: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1/128"), kinds.NETWORKS,
        "Clients that may send mail to anywhere. Others, unless they log in, are strangers.", common=True)
    processes: int = setting(
        0, whole(0, 16),
        "Processes that take SMTP. 0: one for clients on this host, else one for each processor, at most 4.")
    greeting_delay: int = setting(
        1, whole(0, 60), "How long strangers wait for the greeting; who talks before it is turned away.", SECONDS)
    check_sender: bool = setting(True, kinds.BOOLEAN, "Whether the domain of a stranger's sender must exist in DNS.")
    protect_local_senders: bool = setting(
        False, kinds.BOOLEAN,
        "Whether strangers are refused who use a sender of this host's domains, as forwarders do.")
    dnsbl: tuple[str, ...] = setting(
        (), kinds.DOMAINS, "DNS block lists; strangers that one of them names are refused. No answer: let through.")
    policy_servers: tuple[str, ...] = setting(
        (), kinds.ENDPOINTS, "Policy servers (as for Postfix, such as postgrey), asked about recipients of strangers.")
    policy_failure: str = setting(
        "tempfail", choice("tempfail", "accept"), "What becomes of mail when a policy server fails.")
    proxies: tuple[str, ...] = setting(
        (), kinds.NETWORKS, "Clients that may say who their client is (XCLIENT, PROXY).")


@dataclass(frozen=True, slots=True)
class Listener:
    """One [[listener]]; those of `[smtpd] listen` come first, with the profile "smtp"."""

    address: str = setting("", kinds.LISTEN, "Where to listen.")
    profile: str = setting("smtp", choice("smtp", "submission", "submissions", "lmtp"), "What is spoken there.")
    proxy: bool = setting(
        False, kinds.BOOLEAN, "Whether all connections come through proxies and begin with a PROXY header.")


@dataclass(frozen=True, slots=True)
class AuthSettings:
    dovecot: str = setting("", kinds.PATH, "Authentication socket of Dovecot, for clients that log in.")
    password_file: str = setting("", kinds.PATH, "File of users and password hashes, for clients that log in.")
    pam: bool = setting(False, kinds.BOOLEAN, "Let PAM judge clients that log in (python3-pampy, python3-six).")
    senders: tuple[tuple[str, str], ...] = setting(
        (), kinds.SENDERS,
        "Sender addresses and domains, with blanks between them, that a login name may use. Empty: any. "
        "A user of Dovecot has the name that Dovecot gives him.")
    results: bool = setting(
        True, kinds.BOOLEAN,
        "Check SPF, DKIM and DMARC where their libraries are installed, and say so in Authentication-Results.")
    dmarc_reject: bool = setting(False, kinds.BOOLEAN, "Refuse mail whose domain asks for that by DMARC.")


@dataclass(frozen=True, slots=True)
class DkimSettings:
    domains: tuple[str, ...] = setting((), kinds.DOMAINS, "Domains whose outgoing mail is signed.")
    selector: str = setting("", kinds.DOMAIN, "Selector of the key in DNS.")
    key_file: str = setting("", kinds.PATH, "Private key (PEM); closed to others.")


@dataclass(frozen=True, slots=True)
class MilterSettings:
    sockets: tuple[str, ...] = setting((), kinds.ENDPOINTS, "Mail filters, asked in this order about all mail.")
    timeout: int = setting(30, whole(1, 3600), "How long a filter may take for one answer.", SECONDS)
    on_failure: str = setting(
        "tempfail", choice("tempfail", "accept", "reject"), "What becomes of mail when a filter fails.")


@dataclass(frozen=True, slots=True)
class QueueSettings:
    lifetime: int = setting(432_000, whole(0), "How long mail may wait before it is returned.", SECONDS, common=True)
    bounce_lifetime: int = setting(
        172_800, whole(0), "The same for reports, which nobody gets back; at most lifetime.", SECONDS)
    delay_warning: int = setting(
        14_400, whole(0), "When the sender hears that mail is still waiting. 0: never.", SECONDS, common=True)
    retry_first: int = setting(
        300, whole(1, 86_400), "Wait after the first failed attempt; it doubles each time.", SECONDS)
    retry_max: int = setting(3600, whole(1, 86_400), "Longest wait between attempts.", SECONDS)
    visible_to_all: bool = setting(False, kinds.BOOLEAN, "Whether mailq shows everybody all mail, not only their own.")

    def lifetime_of(self, sender: str) -> int:
        """That of a message from this sender; "" has sent reports."""
        return self.lifetime if sender else min(self.lifetime, self.bounce_lifetime)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    message_size: int = setting(52_428_800, whole(1024), "Largest message.", BYTES, common=True)
    recipients: int = setting(1000, whole(100, 100_000), "Recipients of one message that comes by SMTP.")
    header_size: int = setting(131_072, whole(4096, 16_777_216), "Largest header of a message.", BYTES)
    header_lines: int = setting(1000, whole(100, 100_000), "Lines in the header of a message.")
    hops: int = setting(50, whole(10, 1000), "Received lines before a message is taken to go in circles.")
    sessions: int = setting(100, whole(1, 100_000), "SMTP sessions at a time.")
    sessions_per_client: int = setting(20, whole(1, 100_000), "SMTP sessions of one stranger at a time.")
    reserved_sessions: int = setting(10, whole(0, 1000), "Of these, kept for clients on this host.")
    connections_per_minute: int = setting(
        60, whole(1, 1_000_000), "Connections of one stranger (IPv4 address, IPv6 /64).")
    messages_per_session: int = setting(100, whole(1, 1_000_000), "Messages in one SMTP session of a stranger.")
    messages_per_minute: int = setting(60, whole(1, 1_000_000), "Messages of one stranger.")
    command_line: int = setting(2048, whole(512, 65_536), "Longest SMTP command.", BYTES)
    soft_errors: int = setting(10, whole(1, 1000), "Errors in a session after which each reply takes a second.")
    hard_errors: int = setting(20, whole(1, 1000), "Errors in a session that end it.")
    junk_commands: int = setting(50, whole(1, 10_000), "Commands without use (NOOP, RSET, VRFY) that end a session.")
    unknown_commands: int = setting(20, whole(1, 1000), "Unknown commands that end a session.")
    command_timeout: int = setting(300, whole(1, 3600), "How long an SMTP client may take for a command.", SECONDS)
    data_timeout: int = setting(180, whole(1, 3600), "How long a client may be silent within a message.", SECONDS)
    stress_timeout: int = setting(
        10, whole(1, 3600), "The same two for all but this host, while most sessions are taken.", SECONDS)
    data_rate: int = setting(500, whole(0, 1_000_000), "Slowest rate at which a message may come.", "bytes per second")
    session_time: int = setting(3600, whole(60, 86_400), "Longest SMTP session.", SECONDS)
    free_space: int = setting(67_108_864, whole(0), "Free space below which nothing more is accepted.", BYTES)
    free_inodes: int = setting(1000, whole(0), "The same for inodes.")
    load_queue: int = setting(
        8, whole(1, 1000), "Load per processor above which new mail is put off for 15 seconds.")
    load_refuse: int = setting(12, whole(1, 1000), "Load per processor above which the network is refused.")
    alias_depth: int = setting(10, whole(1, 100), "Aliases and lists that may lead to one another.")
    alias_results: int = setting(50_000, whole(100, 1_000_000), "Addresses that one recipient may become.")
    forward_size: int = setting(65_536, whole(1024, 1_048_576), "Largest .forward.", BYTES)
    forward_entries: int = setting(100, whole(1, 10_000), "Entries of one .forward.")
    deliveries: int = setting(100, whole(1, 1000), "Deliveries to other hosts at a time.")
    deliveries_per_destination: int = setting(20, whole(1, 1000), "Of these, to one destination.")
    deliveries_per_recipient: int = setting(2, whole(1, 100), "Delivery commands of one local recipient at a time.")
    agents: int = setting(50, whole(1, 1000), "Processes that deliver as local users, at a time.")
    program_time: int = setting(1000, whole(1, 86_400), "Longest run of a delivery command.", SECONDS)
    program_output: int = setting(
        300, whole(0, 400), "How much of a delivery command's output goes into the log and reports.", "characters")
    bounce_body: int = setting(8192, whole(0, 52_428_800), "How much of a message's text a report returns.", BYTES)
    bounces_per_minute: int = setting(20, whole(1, 100_000), "Reports that leave this host; others wait.")
    submissions: int = setting(1000, whole(1, 1_000_000), "Messages of one user that may wait to be taken in.")
    submission_space: int = setting(536_870_912, whole(1024), "The same in size.", BYTES)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. load() fills in hostname, domain, local_domains and local.aliases, and listeners is complete."""

    hostname: str = setting("", kinds.HOST_NAME, "Name of this host in SMTP. Empty: what the system says.", common=True)
    domain: str = setting(
        "", kinds.DOMAIN,
        "What completes addresses without a domain. Empty: the first line of /etc/mailname, else hostname.",
        common=True)
    local_domains: tuple[str, ...] = setting(
        (), kinds.DOMAINS,
        "Domains whose mail is for users of this host, besides localhost, hostname and its first word. Empty: also"
        " domain.", common=True)
    local: LocalSettings = LocalSettings()
    relay: RelaySettings = RelaySettings()
    smtpd: SmtpdSettings = SmtpdSettings()
    listeners: tuple[Listener, ...] = ()
    auth: AuthSettings = AuthSettings()
    dkim: DkimSettings = DkimSettings()
    milter: MilterSettings = MilterSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()


LISTENER = "listener"  # the array of tables that is Config.listeners
SECTIONS: dict[str, Any] = {part.name: part.type for part in fields(Config) if is_dataclass(part.type)}


def rows_of(section: str, settings: Any) -> tuple[Setting, ...]:
    """The rows of one settings class."""
    return tuple(Setting(section, part.name, default=part.default, **part.metadata)
                 for part in fields(settings) if part.metadata)


# By section ("" first, "listener" last), in the order of the manual.
TABLE: dict[str, tuple[Setting, ...]] = {
    "": rows_of("", Config),
    **{section: rows_of(section, settings) for section, settings in SECTIONS.items()},
    LISTENER: rows_of(LISTENER, Listener),
}
