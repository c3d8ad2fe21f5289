"""`pysendmail explain ADDRESS`: where mail for an address goes, and why."""

import json
import time

import click

from ..config import read
from ..events import shown
from ..paths import Paths
from ..users import SystemUsers
from . import explain as explanations

MAX_SHOWN = 1000  # characters of a line


@click.command()
@click.argument("address")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def explain(paths: Paths, address: str, as_json: bool) -> int:
    """Say where mail for ADDRESS would go, and by which aliases and .forward files. Nothing is sent."""
    loaded = read(paths, partial=True)
    for warning in loaded.warnings:
        click.echo(f"pysendmail: warning: {warning}", err=True)
    found = explanations.Explainer(paths, loaded.config, SystemUsers(time.monotonic)).explain(address)
    if as_json:
        click.echo(json.dumps(explanations.as_json(found)))
        return found.code
    click.echo(shown(address, MAX_SHOWN))
    for step in found.steps:
        click.echo(shown(f"{'  ' * (step.depth + 1)}{step.verb}: {step.address}: {step.words}", MAX_SHOWN))
    click.echo("goes to" if found.places else "goes nowhere")
    for place in found.places:
        click.echo(shown(f"  {place.target.kind}: {place.words}", MAX_SHOWN))
    return found.code
