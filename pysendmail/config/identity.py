"""Who this host is: its name, and the mail name that completes addresses.

Never asks DNS: a daemon that waits for a resolver at boot, or that has another name each time one answers differently,
loses its own mail. The name comes from the kernel if that has a dot, else from the host's own line in /etc/hosts, else
from /etc/mailname where that begins with the kernel's name, as the Debian installer writes it. Debian Policy 11.6
(mailname), hostname(1) (the first name of the line in /etc/hosts is the canonical one).
"""

from dataclasses import dataclass
from os import uname

from ..paths import Paths
from .kinds import is_domain, is_host_name

HOSTS = "/etc/hosts"
MAX_FILE = 1024 * 1024  # bytes of /etc/hosts or /etc/mailname that are looked at
LAST_RESORT = "localhost"


@dataclass(frozen=True, slots=True)
class Identity:
    """hostname: perhaps without a dot, if nothing better is known. mailname: perhaps "". problem: "" or one line."""

    hostname: str
    mailname: str
    problem: str = ""


def node_name() -> str:
    """What the kernel calls this host."""
    return uname().nodename


def find(paths: Paths, node: str, hosts: str = HOSTS) -> Identity:
    """The identity of the host whose kernel name is `node`. Whatever cannot be read or is no name counts as absent."""
    node = node.lower().rstrip(".")
    if not is_host_name(node):
        node = LAST_RESORT
    first = _read(paths.mailname).split("\n", 1)[0].strip().lower().rstrip(".")
    mailname = first if is_domain(first) else ""
    problem = f"{paths.mailname}: not a domain, so it is not used" if first and not mailname else ""
    hostname = node
    if "." not in node and node != LAST_RESORT:
        hostname = canonical(_read(hosts), node)
    if not hostname:
        hostname = mailname if mailname.startswith(node + ".") and is_host_name(mailname) else node
    return Identity(hostname, mailname, problem)


def canonical(text: str, node: str) -> str:
    """The full name for `node` in the text of a hosts(5) file, "" if it has none."""
    for line in text.split("\n"):
        names = [name.lower().rstrip(".") for name in line.split("#", 1)[0].split()[1:]]
        if node in names:
            full = [name for name in names if name.startswith(node + ".") and is_host_name(name)]
            if full:
                return full[0]
            if "." in names[0] and is_host_name(names[0]) and not names[0].startswith("localhost"):
                return names[0]
    return ""


def local_names(hostname: str, domain: str, listed: tuple[str, ...]) -> tuple[str, ...]:
    """The domains whose mail stays here. A list of the administrator's replaces what is guessed, not what is sure: the
    short hostname is nobody else's domain either, and local programs write it."""
    sure = ("localhost", hostname, "localhost.localdomain", hostname.split(".", 1)[0])
    return tuple(dict.fromkeys((*sure, *(listed or (domain,)))))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE)
    except OSError:
        return ""
