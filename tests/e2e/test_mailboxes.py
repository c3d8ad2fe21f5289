"""Debian's programs that read and write users' mail, beside ours: Dovecot, procmail, maildrop, vacation, mailutils.

First with mboxes and Dovecot as Debian sets it up, then with Maildirs. The tests run in this order.
"""

import json
from pathlib import Path

import pytest

from .conftest import PACKAGE
from .debian import FQDN, Debian, until

PROGRAMS = ("dovecot-imapd", "dovecot-pop3d", "dovecot-lmtpd", "dovecot-sieve", "procmail", "maildrop", "vacation",
            "mailutils")
USERS = ("alice", "bob", "carol")
PEOPLE = Path(__file__).with_name("mailbox_people.py")
INSIDE = "/usr/local/lib/mailbox_people.py"  # where that lies in the Debian
PEOPLE_TIME = 70  # seconds
LATER, UNKNOWN, REFUSED = "code-75", "code-67", "code-77"  # subjects
# What follows the first line of a .forward with procmail in every manual since 1990.
CLASSIC = '"|IFS=\' \' && exec /usr/bin/procmail -f- || exit 75 #alice"\n'

PROCMAILRC = "".join(f"""
:0
* ^Subject: code-{code}
{{
    EXITCODE={code}
    :0
    /dev/null
}}
""" for code in (67, 75, 77)) + "\n:0:\n* ^Subject: sorted\nsorted\n"
MAILFILTER = "".join(f"""
if (/^Subject: code-{code}/)
{{
    EXITCODE={code}
    exit
}}
""" for code in (67, 75, 77)) + "if (/^Subject: sorted/)\n{\n    to $HOME/sorted\n}\n"
SIEVE = f"""require "reject";
if header :contains "subject" "code-77" {{ reject "not this one"; }}
elsif header :contains "subject" "elsewhere" {{ redirect "bob@{FQDN}"; }}
"""
# In Debian's order (fcntl first, as Policy 11.6 has it) Dovecot and maildrop, which has the other, wait for each other.
SAME_ORDER = "mbox_write_locks = dotlock fcntl\n"
MAILDIR = {
    "2.3": "mail_location = maildir:~/Maildir\nauth_username_format = %Ln\nprotocol lda {\n mail_plugins = sieve\n}\n",
    "2.4": "mail_driver = maildir\nmail_path = ~/Maildir\nmail_inbox_path = ~/Maildir\n"
           "protocol lda {\n mail_plugins {\n  sieve = yes\n }\n}\n",
}


# The quotes are for the null sender.
LDA = """command = '/usr/lib/dovecot/dovecot-lda -f "$SENDER" -a "$RECIPIENT"'"""


@pytest.fixture(scope="module")
def host(debian: Debian) -> Debian:
    debian.install(PACKAGE, *PROGRAMS)
    debian.chroot("chpasswd", content="".join(f"{user}:of-the-host\n" for user in USERS).encode())
    debian.write(INSIDE, PEOPLE.read_text())
    # How long they wait for somebody else's dot lock: 8 and 5 seconds if not said.
    debian.write("/etc/procmailrc", "LOCKSLEEP=1\n")
    debian.write("/etc/maildroprc", "LOCKSLEEP=1\n")
    debian.boot()
    return debian


def local(host: Debian, settings: str) -> None:
    host.write("/etc/pysendmail/conf.d/50-local.toml", f"[local]\n{settings}\n")
    host.run("systemctl", "restart", "pysendmail")


def dovecot(host: Debian, settings: str) -> None:
    host.write("/etc/dovecot/conf.d/99-test.conf", settings)
    host.run("systemctl", "restart", "dovecot")


def maildirs(host: Debian) -> None:
    dovecot(host, MAILDIR[host.run("dovecot", "--version").stdout.decode()[:3]])


def own(host: Debian, user: str, name: str, text: str) -> None:
    """A file in a user's home."""
    host.write(f"/home/{user}/{name}", text, 0o600)
    host.run("chown", f"{user}:", f"/home/{user}/{name}")


def send(host: Debian, subject: str, *to: str) -> None:
    host.run("/usr/sbin/sendmail", "-i", *(to or ("alice",)), user="bob",
             content=f"From: bob@{FQDN}\nTo: alice@{FQDN}\nSubject: {subject}\n\nx\n".encode())


def waiting(host: Debian) -> str:
    return host.run("mailq").stdout.decode()


def maildir(host: Debian, user: str) -> str:
    """All messages of ~/Maildir."""
    folders = (host.path(f"/home/{user}/Maildir/{name}") for name in ("new", "cur"))
    return "".join(path.read_text() for folder in folders if folder.is_dir() for path in folder.iterdir())


def people(host: Debian, writers: str, user: str, count: int, readers: str) -> dict[str, list[int]]:
    """What readers took away while writers wrote, and under "left" the rest; each message whole."""
    done = host.run("python3", INSIDE, writers, user, str(count), readers, timeout=PEOPLE_TIME)
    said = json.loads(done.stdout)
    assert said["troubles"] == []
    return {**said["taken"], "left": said["left"]}


def retrieve(host: Debian, user: str) -> None:
    """200 messages, at most 30 of them in the mailbox: both clients take away what comes while more is coming."""
    assert people(host, "smtp", user, 200, "imap,pop3") == {
        "imap": list(range(2, 201, 2)), "pop3": list(range(1, 201, 2)), "left": []}


def test_imap_and_pop3_take_each_message_once_from_an_mbox(host: Debian) -> None:
    retrieve(host, "alice")


def test_all_that_write_and_rewrite_one_mbox_lose_and_tear_nothing(host: Debian) -> None:
    """50 deliveries at once by four programs, and Dovecot which flags and expunges meanwhile."""
    dovecot(host, SAME_ORDER)
    assert people(host, "programs", "carol", 50, "imap") == {
        "imap": list(range(2, 51, 2)), "left": list(range(1, 51, 2))}


def test_mailutils_moves_what_was_read_while_more_is_coming(host: Debian) -> None:
    for number in range(20):
        send(host, f"moved-{number}", "bob")
        if number % 5 == 4:
            host.wait_for_mail("bob", f"Subject: moved-{number}\n")
            send(host, f"meanwhile-{number}", "bob")
            host.run("mail.mailutils", user="bob", content=b"print *\nquit\n")
    until(lambda: "empty" in waiting(host), "all is delivered")
    boxes = host.mailbox("bob") + host.path("/home/bob/mbox").read_text()
    assert [boxes.count(f"\nSubject: moved-{number}\n") for number in range(20)] == [1] * 20
    assert [boxes.count(f"\nSubject: meanwhile-{number}\n") for number in range(4, 20, 5)] == [1] * 4


@pytest.mark.parametrize(("command", "name", "rules"), [
    ("/usr/bin/procmail", ".procmailrc", PROCMAILRC), ("/usr/bin/maildrop", ".mailfilter", MAILFILTER)],
    ids=["procmail", "maildrop"])
def test_a_program_delivers_all_mail_and_its_exit_code_counts(host: Debian, command: str, name: str,
                                                              rules: str) -> None:
    own(host, "alice", name, rules)
    local(host, f'command = "{command}"')
    token = name[1:]
    for subject in (LATER, UNKNOWN, REFUSED, "sorted", "kept"):
        send(host, f"{subject}-{token}")
    host.wait_for_mail("alice", f"Subject: kept-{token}\n")
    until(lambda: f"Subject: sorted-{token}\n" in host.path("/home/alice/sorted").read_text(), "it is sorted")
    host.wait_for_mail("bob", f"Subject: {UNKNOWN}-{token}\n")
    host.wait_for_mail("bob", f"Subject: {REFUSED}-{token}\n")
    until(lambda: "temporary failure" in waiting(host), "the one to be tried later waits")
    # Then it is wanted.
    own(host, "alice", name, "")
    host.run("sendmail", "-q")
    host.wait_for_mail("alice", f"Subject: {LATER}-{token}\n")
    assert f"Subject: {LATER}-{token}\n" not in host.mailbox("bob")
    reports = host.mailbox("bob")
    assert "\nDiagnostic-Code: x-unix; exit 67: user unknown\n" in reports
    assert "\nDiagnostic-Code: x-unix; exit 77: permission denied\n" in reports


def test_forward_to_procmail(host: Debian) -> None:
    local(host, "")
    own(host, "alice", ".procmailrc", PROCMAILRC)
    own(host, "alice", ".forward", CLASSIC)
    for subject in (f"{UNKNOWN}-forward", "sorted-forward", "kept-forward"):
        send(host, subject)
    host.wait_for_mail("alice", "Subject: kept-forward\n")
    host.wait_for_mail("bob", f"Subject: {UNKNOWN}-forward\n")
    until(lambda: "Subject: sorted-forward\n" in host.path("/home/alice/sorted").read_text(), "it is sorted")


def test_vacation_answers_once_and_the_mail_is_kept(host: Debian) -> None:
    own(host, "alice", ".vacation.msg", "Subject: away\n\nUntil Monday.\n")
    host.run("vacation", "-i", user="alice")
    own(host, "alice", ".forward", '\\alice, "|/usr/bin/vacation alice"\n')
    for number in (1, 2):
        send(host, f"holiday-{number}")
        host.wait_for_mail("alice", f"Subject: holiday-{number}\n")
        host.wait_for_mail("bob", "Until Monday.\n")
    until(lambda: "empty" in waiting(host), "the second time too it has ended")
    assert host.mailbox("bob").count("\nUntil Monday.\n") == 1
    host.path("/home/alice/.forward").unlink()


def test_imap_and_pop3_take_each_message_once_from_a_maildir(host: Debian) -> None:
    maildirs(host)
    local(host, 'mailbox = "maildir"')
    retrieve(host, "alice")


def test_dovecot_lda_delivers_all_mail(host: Debian) -> None:
    """With a Sieve script: what it rejects and what it redirects comes back to us, and has null and other senders."""
    own(host, "alice", ".dovecot.sieve", SIEVE)
    maildirs(host)
    local(host, LDA)
    for subject in ("kept-lda", f"{REFUSED}-lda", "elsewhere-lda"):
        send(host, subject)
    until(lambda: "Subject: kept-lda\n" in maildir(host, "alice"), "it is in the Maildir")
    until(lambda: "Subject: elsewhere-lda\n" in maildir(host, "bob"), "the redirected one is in the other's")
    until(lambda: "not this one" in maildir(host, "bob"), "the rejected one is back")
    host.run("chmod", "0500", "/home/alice/Maildir/tmp")
    send(host, "later-lda")
    until(lambda: "Deferred" in waiting(host), "it waits for the Maildir")
    host.run("chmod", "0700", "/home/alice/Maildir/tmp")
    host.run("sendmail", "-q")
    until(lambda: "Subject: later-lda\n" in maildir(host, "alice"), "it is in the Maildir")


def test_dovecot_takes_mail_by_lmtp_and_answers_for_each_recipient(host: Debian) -> None:
    """One it takes, one it fails to write (451), one whom it serves no mailbox (a uid of the system's)."""
    maildirs(host)
    local(host, 'mailbox = "lmtp:unix:/run/dovecot/lmtp"')
    own(host, "alice", ".dovecot.sieve", "")
    send(host, "first-lmtp", "alice", "carol")
    until(lambda: "Subject: first-lmtp\n" in maildir(host, "carol"), "the Maildir is made")
    host.run("chmod", "0500", "/home/carol/Maildir/tmp")
    send(host, "by-lmtp", "alice", "carol", "games", "nobody-here")
    until(lambda: "Subject: by-lmtp\n" in maildir(host, "alice"), "the one who can be written to has it")
    until(lambda: "carol@" in waiting(host), "the one whose Maildir cannot be written is waited for")
    assert "games@" in waiting(host)
    assert "alice@" not in waiting(host)
    until(lambda: "unknown user: nobody-here" in maildir(host, "bob"), "the unknown one is reported")
    host.run("chmod", "0700", "/home/carol/Maildir/tmp")
    host.run("sendmail", "-q")
    until(lambda: "Subject: by-lmtp\n" in maildir(host, "carol"), "now that one has it too")
    until(lambda: "carol@" not in waiting(host), "it has answered for that one")
    assert [maildir(host, user).count("\nSubject: by-lmtp\n") for user in ("alice", "carol")] == [1, 1]
