"""Settings as text: what is in force, the sample file, and the list in pysendmail.toml(5). All made from the table.

etc/pysendmail/pysendmail.toml is `sample()`, and man/pysendmail.toml.5 contains `manual()` word for word; a test
compares them. `python3 -m pysendmail.config.document sample` (or `manual`) prints what they should be.
"""

import json
import sys
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from .loader import Loaded
from .table import LISTENER, TABLE, Listener, Setting

WIDTH = 98  # columns of the sample file
HIDDEN = "(set)"

_INTRODUCTION = """\
# Settings of pysendmail. What stands here in comments is the default; no setting is needed.
# All settings: pysendmail.toml(5). What is in force: pysendmail config show --origin
# Files of conf.d/ are read after this one, and the later value counts. Check: pysendmail config check
"""


def toml(value: Any) -> str:
    """A plain value as a settings file would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{toml(key)} = {toml(entry)}" for key, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)


def _shown(row: Setting, value: Any) -> Any:
    return HIDDEN if row.is_secret and value else row.kind.plain(value)


# ---- what is in force


def show(loaded: Loaded, *, with_origin: bool) -> Iterator[str]:
    """The lines of a settings file that would say all that is in force. Passwords are not in it."""
    for section, rows in TABLE.items():
        if section == LISTENER:
            for entry in own_listeners(loaded):
                yield f"\n[[{LISTENER}]]"
                yield from _settings(loaded, section, rows, entry, with_origin)
            continue
        if section:
            yield f"\n[{section}]"
        yield from _settings(loaded, section, rows, getattr(loaded.config, section) if section else loaded.config,
                             with_origin)


def own_listeners(loaded: Loaded) -> tuple[Listener, ...]:
    """The listeners of [[listener]], without those that `[smtpd] listen` stands for."""
    return loaded.config.listeners[len(loaded.config.smtpd.listen):]


def _settings(
    loaded: Loaded, section: str, rows: tuple[Setting, ...], settings: Any, with_origin: bool,
) -> Iterator[str]:
    for row in rows:
        line = f"{row.name} = {toml(_shown(row, getattr(settings, row.name)))}"
        origin = loaded.origins.get((section, "" if section == LISTENER else row.name), "default")
        yield f"{line}  # {origin}" if with_origin else line


def as_json(loaded: Loaded, *, with_origin: bool) -> dict[str, Any]:
    """The same as one object; with origins, each setting is {"value": ..., "origin": ...}."""
    def part(section: str, settings: Any) -> dict[str, Any]:
        found = {}
        for row in TABLE[section]:
            value = _shown(row, getattr(settings, row.name))
            origin = loaded.origins.get((section, "" if section == LISTENER else row.name), "default")
            found[row.name] = {"value": value, "origin": origin} if with_origin else value
        return found
    config = loaded.config
    sections = {section: part(section, getattr(config, section)) for section in TABLE if section not in ("", LISTENER)}
    return {**part("", config), **sections, LISTENER: [part(LISTENER, entry) for entry in own_listeners(loaded)]}


# ---- the sample file


def sample() -> str:
    """The settings that most hosts could want, each with its default, all commented out."""
    lines = [_INTRODUCTION]
    for section, rows in TABLE.items():
        common = [row for row in rows if row.is_common]
        if not common:
            continue
        if section:
            lines.append(f"\n#[{section}]")
        for row in common:
            lines += [f"# {line}" for line in wrap(_described(row), WIDTH)]
            lines.append(f"#{row.name} = {toml(row.kind.plain(row.default))}")
    return "\n".join(lines) + "\n"


def _described(row: Setting) -> str:
    """What it is for, with what may stand there, and the unit of a number."""
    if isinstance(row.default, bool):
        return row.text
    return f"{row.text} ({row.unit or row.kind.words})"


# ---- the manual


def manual() -> str:
    """All settings in mdoc, for pysendmail.toml(5)."""
    lines = []
    for section, rows in TABLE.items():
        title = {"": "Above all tables", LISTENER: f"Each table {LISTENER}"}.get(section, f"Table {section}")
        lines += [f".Ss {title}", ".Bl -tag -width Ds"]
        for row in rows:
            unit = f" of {row.unit}" if row.unit else ""
            sentences = [*row.text.replace(". ", ".\n").split("\n"), f"Type: {row.kind.words}{unit}.",
                         f"Default: {toml(row.kind.plain(row.default))}"]
            lines += [f".It Va {row.name}", *(_mdoc(line) for text in sentences for line in wrap(text, 78))]
        lines.append(".El")
    return "\n".join(lines) + "\n"


def _mdoc(line: str) -> str:
    """Text that mdoc does not take for a request or an escape."""
    line = line.replace("\\", "\\e").replace("~", "\\(ti").replace("^", "\\(ha").replace("`", "\\(ga")
    return f"\\&{line}" if line[:1] in ".'" else line


if __name__ == "__main__":
    print({"sample": sample, "manual": manual}[sys.argv[1]](), end="")
