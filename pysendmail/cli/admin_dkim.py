"""`pysendmail dkim`: keys for signing what leaves this host, and what DNS has to say about them."""

import os
import time

import click

from ..auth import keys, signing
from ..auth.signing import BadKey
from ..config import is_domain, read
from ..paths import Paths
from ..spool import durable

EX_CANTCREAT, EX_CONFIG = 73, 78
MIN_BITS, MAX_BITS = 1024, 4096
MAX_KEY = 64 * 1024  # bytes


@click.group(no_args_is_help=False)
def dkim() -> None:
    """Make and show keys for DKIM signatures."""


@dkim.command()
@click.option("--domain", "domains", multiple=True, metavar="DOMAIN",
              help="Domain whose mail is signed; may be given more than once. Without: the mail name of this host.")
@click.option("--selector", default="", help="Name of the key in DNS. Without: this year and month, such as s202611.")
@click.option("--type", "kind", type=click.Choice(keys.KINDS), default="rsa", show_default=True,
              help="RSA is understood by everybody; Ed25519 is shorter.")
@click.option("--bits", type=click.IntRange(MIN_BITS, MAX_BITS), default=keys.BITS, show_default=True,
              help="Length of an RSA key.")
@click.option("--output", metavar="FILE", default="",
              help="Where the key goes. Without: dkim/SELECTOR.pem in /etc/pysendmail.")
@click.pass_obj
def genkey(paths: Paths, domains: tuple[str, ...], selector: str, kind: str, bits: int, output: str) -> int:
    """Make a key; print the record for DNS and the settings that go with it.

    Nothing is signed before the settings say so: publish the record first. An existing file is never replaced.
    """
    selector = selector or time.strftime("s%Y%m")
    named = [domain.rstrip(".").lower() for domain in domains] or [_mail_name(paths)]
    for name in (selector, *named):
        if not name.isascii() or not is_domain(name):
            raise click.UsageError(f"{name!r} is no name that DNS can have")
    path = output or f"{paths.etc}/dkim/{selector}.pem"
    try:
        key = keys.generate(kind, bits)
        if not output:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _write(path, key)
    except BadKey as problem:
        raise _Failed(str(problem), EX_CONFIG) from problem
    except FileExistsError as problem:
        raise _Failed(f"{path} is there already; a key in use is never replaced", EX_CANTCREAT) from problem
    except OSError as problem:
        raise _Failed(f"{path}: {problem.strerror}", EX_CANTCREAT) from problem
    click.echo(f"; the key is in {path}. In DNS:")
    for line in (line for domain in named for line in keys.zone_lines(selector, domain, keys.record(key))):
        click.echo(line)
    click.echo("\n# and when it is there, in the settings:\n[dkim]")
    click.echo(f"domains = [{', '.join(_quoted(domain) for domain in named)}]")
    click.echo(f"selector = {_quoted(selector)}\nkey_file = {_quoted(path)}")
    return 0


@dkim.command()
@click.pass_obj
def record(paths: Paths) -> int:
    """Print the record for DNS that belongs to the key in the settings."""
    settings = read(paths).config.dkim
    if not settings.domains:
        raise _Failed("[dkim] domains is empty: nothing is signed", EX_CONFIG)
    try:
        signing.load(settings, time.time)
        with open(settings.key_file, "rb") as file:
            text = keys.record(file.read(MAX_KEY))
    except BadKey as problem:
        raise _Failed(str(problem), EX_CONFIG) from problem
    except OSError as problem:
        raise _Failed(f"{settings.key_file}: {problem.strerror}", EX_CONFIG) from problem
    for line in (line for domain in settings.domains for line in keys.zone_lines(settings.selector, domain, text)):
        click.echo(line)
    return 0


class _Failed(click.ClickException):
    def __init__(self, words: str, code: int) -> None:
        super().__init__(words)
        self.exit_code = code


def _mail_name(paths: Paths) -> str:
    found = read(paths, partial=True).config
    return found.domain or found.hostname


def _write(path: str, key: bytes) -> None:
    """A new file for its owner alone, safe on the disk: the record may be published at once. Raises OSError."""
    fd = durable.create(path, 0o600)
    try:
        durable.write_all(fd, key)
        durable.sync(fd)
    except OSError:
        durable.unlink(path)
        raise
    finally:
        os.close(fd)
    durable.sync_directory(os.path.dirname(path) or ".")


def _quoted(text: str) -> str:
    """As TOML has it. No name and no path that passed above needs more."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
