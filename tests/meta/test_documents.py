"""Documents name what is there: files, modules, and the commands and options of pysendmail(8)."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pysendmail.cli.admin import pysendmail

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pysendmail"
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
SOURCES = {path.name for top in ("pysendmail", "tests", "bench") for path in (ROOT / top).rglob("*.py")}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def is_there(name: str, document: Path) -> bool:
    """By its path from here, from the package or from the document; a bare name.py may be that of any module."""
    return name in SOURCES or any((place / name).exists() for place in (ROOT, PACKAGE, document.parent))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_are_where_a_document_says(name: str) -> None:
    named = re.findall(r"(?<![\w/.*~-])(?:[\w-]+/)*[\w-]+\.(?:py|md)\b", text_of(name))
    assert [one for one in named if not is_there(one, ROOT / name)] == []


def test_the_map_has_every_module_of_the_daemon() -> None:
    text = text_of("docs/ARCHITECTURE.md")
    modules = {path.name for path in (PACKAGE / "daemon").glob("*.py")} - {"__init__.py"}
    assert {one for one in modules if not re.search(rf"[`/]{one}`", text)} == set()


def test_the_map_has_every_package() -> None:
    text = text_of("docs/ARCHITECTURE.md")
    tops = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert {one for one in tops if f"`{one}`" not in text} == set()


def commands(of: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    """(the words that call it, the command) of everything that can be called."""
    if not isinstance(of, click.Group):
        yield words, of
        return
    context = click.Context(of)
    for name in of.list_commands(context):
        inner = of.get_command(context, name)
        assert inner is not None
        yield from commands(inner, f"{words} {name}".strip())


@pytest.mark.parametrize("words", [words for words, _ in commands(pysendmail, "")])
def test_the_manual_has_every_command_and_its_options(words: str) -> None:
    manual = text_of("man/pysendmail.8")
    assert re.search(rf"^\.It Cm {words}\n", manual, re.MULTILINE), "it is not described"
    options = {option for parameter in dict(commands(pysendmail, ""))[words].params
               if isinstance(parameter, click.Option) for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {one for one in options if not re.search(rf"Fl {one[1:]}\b", manual)} == set()
