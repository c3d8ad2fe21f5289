"""Every setting does something: it is read outside config/, where it is only loaded and checked.

Read is `X.name` where X is known to hold the setting's section: `config.limits`, a name or an attribute that got its
value from one, or a parameter of the section's class. So a field of another thing with the same name does not count.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysendmail.config.table import SECTIONS, TABLE

PACKAGE = Path(__file__).resolve().parents[2] / "pysendmail"
CLASSES = {"Config": "", "Listener": "listener"} | {settings.__name__: name for name, settings in SECTIONS.items()}
LOADED = {("smtpd", "listen"): "listeners", ("relay", "password_file"): "with_secrets",
          ("queue", "bounce_lifetime"): "lifetime_of"}  # config/ makes these of them

Place = tuple[str, str]


def last_name(node: ast.AST) -> str:
    """`name` of name, x.name and x.y.name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def pairs(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of the assignments, (name, annotation) of parameters and fields, and (name, value) of loops."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    yield from zip(map(last_name, target.elts), node.value.elts, strict=False)
                else:
                    yield last_name(target), node.value
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield (node.arg if isinstance(node, ast.arg) else last_name(node.target)), node.annotation
        elif isinstance(node, ast.For | ast.comprehension):
            yield last_name(node.target), node.iter


def used(text: str) -> set[Place]:
    """The settings that this module reads."""
    tree = ast.parse(text)
    holders: dict[str, set[str]] = {section: {section} for section in SECTIONS}
    holders |= {"": {"config"}, "listener": {"listeners"}}
    sections = {name: section for section, names in holders.items() for name in names}
    for _ in range(2):  # a name from a name
        for name, value in pairs(tree):
            inner = last_name(value)
            for section in {sections.get(inner), CLASSES.get(inner)} - {None}:
                holders[str(section)].add(name)
            if isinstance(value, ast.Subscript) and {last_name(n) for n in ast.walk(value)} & {"Listener"}:
                holders["listener"].add(name)
        sections = {name: section for section, names in holders.items() for name in names}
    reads = {(last_name(node.value), node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {(section, row.name) for section, rows in TABLE.items() for row in rows
            if any((holder, row.name) in reads for holder in holders[section])}


def test_every_setting_is_read_by_the_code_that_it_is_for() -> None:
    modules = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    read = set().union(*map(used, modules))
    for place, name in LOADED.items():
        assert any(name in text for text in modules), f"{place}: nobody reads {name}"
    missing = {(section, row.name) for section, rows in TABLE.items() for row in rows} - read - LOADED.keys()
    assert not missing, f"these settings have no effect: {sorted(missing)}"


@pytest.mark.parametrize(("text", "found"), [
    ("config.queue.lifetime", {("queue", "lifetime")}),
    ("self._limits = config.limits\nself._limits.hops", {("limits", "hops")}),
    ("a, b = config.local, config.limits\nb.hops", {("limits", "hops")}),
    ("def f(q: QueueSettings) -> None:\n    q.lifetime", {("queue", "lifetime")}),
    ("def f(c: Config) -> None:\n    c.domain", {("", "domain")}),
    ("for one in config.listeners:\n    one.proxy", {("listener", "proxy")}),
    ("message.lifetime", set()),
    ("config.limits.lifetime", set()),
])
def test_what_counts_as_reading(text: str, found: set[Place]) -> None:
    assert used(text) == found
