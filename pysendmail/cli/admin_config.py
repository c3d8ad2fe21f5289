"""`pysendmail config`: the settings in force, and whether those on disk are sound."""

import json

import click

from ..config import document, named_files, read
from ..paths import Paths

EX_OK, EX_CONFIG = 0, 78


@click.group(no_args_is_help=False)
def config() -> None:
    """Show and check the settings."""


@config.command()
@click.option("--origin", "with_origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(paths: Paths, with_origin: bool, as_json: bool) -> None:
    """Print all settings as they are in force. Passwords are not shown."""
    loaded = read(paths, partial=True)
    for warning in loaded.warnings:
        click.echo(f"pysendmail: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(document.as_json(loaded, with_origin=with_origin), indent=2))
        return
    for line in document.show(loaded, with_origin=with_origin):
        click.echo(line)


@config.command()
@click.pass_obj
def check(paths: Paths) -> int:
    """Check the settings files, and the files that they name."""
    loaded = read(paths)
    problems = named_files.check(loaded.config)
    for line in (*(f"warning: {warning}" for warning in loaded.warnings), *problems):
        click.echo(f"pysendmail: {line}", err=True)
    if problems:
        return EX_CONFIG
    click.echo("settings are sound")
    return EX_OK


@config.command()
def sample() -> None:
    """Print a settings file with the usual settings, all of them comments."""
    click.echo(document.sample(), nl=False)
