"""`pysendmail status`: what the daemon is doing."""

import json
from typing import Any

import click

from ..events import shown
from ..paths import Paths
from . import ask


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def status(paths: Paths, as_json: bool) -> None:
    """Say what the daemon is doing, and what it has done since its start."""
    answer = ask.ask(paths, {"do": "status"})
    for _ in answer:
        pass
    if as_json:
        click.echo(json.dumps(answer.end))
        return
    for name, value in answer.end.items():
        for line in _lines(name, value):
            click.echo(line)


def _lines(name: str, value: Any) -> list[str]:
    """A value, or the values in it, one each line."""
    if isinstance(value, dict):
        return [f"{shown(name)}:", *(f"  {shown(str(key))}: {shown(str(inner))}" for key, inner in value.items())]
    return [f"{shown(name)}: {shown(str(value))}"]
