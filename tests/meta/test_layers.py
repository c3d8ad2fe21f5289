"""The shape of docs/ARCHITECTURE.md, held in place: each failure names the file, the line and the rule.

Every rule is a function from one parsed module to the lines that break it, so that the same functions are tried on
samples that must be caught.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pysendmail"
MAX_LINES = 400  # a longer module is usually two

# Lowest first. A module imports from its own row and from rows before it.
LAYERS = (
    ("paths",),
    ("mail", "smtp"),
    ("spool", "route", "config", "events", "users"),
    ("net", "auth", "deliver"),
    ("daemon",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who may import what from outside, where not everybody may: modules and packages below pysendmail.
ONLY_IN = {
    "asyncio": ("net", "auth", "deliver.remote", "daemon"),
    "ssl": ("net", "daemon", "deliver.remote"),
    "click": ("cli",),
    "dns": ("net.resolver",),
    "filelock": ("daemon",),
    "subprocess": ("deliver.command", "cli.admin_trace", "cli.demo"),
    "pickle": (),
    "marshal": (),
    "shelve": (),
}
# mail/ and smtp/ are pure: what they need to know is passed in.
PURE = ("mail", "smtp")
IMPURE = {"os", "time", "socket", "_socket", "random", "secrets", "pwd", "grp", "pathlib", "tempfile", "threading",
          "fcntl", "selectors", "syslog", "shutil", "signal"}
# The listener talks to strangers: it can neither deliver nor reach the queue.
LISTENER = ("daemon.listener", "daemon.policy", "daemon.session")
LISTENER_NEVER = ("pysendmail.deliver", "pysendmail.spool.queue", "pysendmail.spool.journal",
                  "pysendmail.daemon.runner", "pysendmail.daemon.intake")

# Modules that /usr/sbin/sendmail loads, from bin/sendmail on: each import is paid for with every mail a script sends.
LEAN_START = "cli.sendmail"
LEAN_MARK = "Loaded by /usr/sbin/sendmail"
LEAN_IMPORTS = {"sys", "posix", "time", "pwd", "syslog", "fcntl", "zlib", "_signal"}  # (the interpreter has some of
# these loaded anyway; `os` brings five more modules with it)
LEAN_LATER = {"_socket", "errno"}  # inside a function, for the few calls that need it

Problems = Iterator[tuple[int, str]]  # (line, what is wrong)


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # absolute: "os", "pysendmail.mail.outcome"
    is_top_level: bool


@dataclass(frozen=True)
class Module:
    """One source file. name: below the package, "spool.record"; the package's own __init__ is ""."""

    name: str
    tree: ast.Module
    lines: int
    is_package: bool = False

    def imports(self) -> list[Import]:
        found = []
        later = {id(inner) for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                 for inner in ast.walk(node)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(node.lineno, alias.name, id(node) not in later) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self.absolute(node)
                found += [Import(node.lineno, full, id(node) not in later)
                          for full in (self.target(base, alias.name) for alias in node.names)]
        return found

    def absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = ["pysendmail", *self.name.split(".")]
        parts = parts[:len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def target(self, base: str, name: str) -> str:
        """`from pysendmail.mail import outcome` names a module, `from .outcome import Outcome` something in one."""
        full = f"{base}.{name}"
        return full if base.split(".")[0] == "pysendmail" and source_of(full) else base

    def calls(self) -> Iterator[tuple[int, str, ast.Call]]:
        """(line, last name, node) of every call: "splitlines" for text.splitlines()."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield node.lineno, name, node


def source_of(module: str) -> Path | None:
    """The file of one of our modules, by its absolute name."""
    place = ROOT.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def parse(name: str, text: str, is_package: bool = False) -> Module:
    return Module(name, ast.parse(text), text.count("\n"), is_package)


def all_modules() -> dict[Path, Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found[path] = parse(".".join(parts[:-1] if is_package else parts), path.read_text("utf-8"), is_package)
    return found


def imports_point_down(module: Module) -> Problems:
    layer = module.name.split(".")[0]
    if not layer:
        return
    if layer not in RANK:
        yield 1, f"{layer} is in no layer"
        return
    for found in module.imports():
        parts = found.module.split(".")
        if parts[0] != "pysendmail" or len(parts) == 1:
            continue
        if parts[1] not in RANK:
            yield found.line, f"imports {found.module}, which is in no layer"
        elif RANK[parts[1]] > RANK[layer]:
            yield found.line, f"imports {found.module}: {parts[1]} is above {layer}"


def is_below(name: str, *places: str) -> bool:
    """Whether a module is one of these or in one of these: "net.stream" is below "net" and not below "net.str"."""
    return f"{name}.".startswith(tuple(f"{place}." for place in places))


def imports_only_what_is_allowed(module: Module) -> Problems:
    for found in module.imports():
        top = found.module.split(".")[0]
        places = ONLY_IN.get(top)
        if places is not None and not is_below(module.name, *places):
            yield found.line, f"imports {top}, which only {', '.join(places) or 'nobody'} may"
        if is_below(module.name, *PURE) and top in IMPURE:
            yield found.line, f"imports {top}: {module.name.split('.')[0]}/ knows no files, sockets or clocks"
        if module.name in LISTENER and is_below(found.module, *LISTENER_NEVER):
            yield found.line, f"imports {found.module}: the listener neither delivers nor sees the queue"


def forbidden_calls(module: Module) -> Problems:
    for line, name, node in module.calls():
        if name == "splitlines":
            yield line, "splitlines() splits at ten characters besides LF: split at b'\\n' or b'\\r\\n'"
        elif name in ("getpwnam", "getpwuid_r") and module.name.split(".")[-1] != "users":
            yield line, "getpwnam's KeyError also means an error of NSS: only users.py may ask"
        elif name == "fdatasync":
            yield line, "fdatasync does not make a new name durable (docs/ARCHITECTURE.md, Commit point)"
        elif ast.unparse(node.func) in ("eval", "exec", "os.system", "os.popen"):
            yield line, f"{ast.unparse(node.func)}() makes code of text"
        if any(keyword.arg == "shell" and ast.unparse(keyword.value) != "False" for keyword in node.keywords):
            yield line, "shell=True"


def dollar_in_patterns(module: Module) -> Problems:
    """`$` also matches before a final LF, which let a second line through (in every language that has it)."""
    names = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
    for line, name, node in module.calls():
        is_re = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "re"
        if not is_re or name not in names or not node.args:
            continue
        for part in ast.walk(node.args[0]):
            value = part.value if isinstance(part, ast.Constant) else ""
            pattern = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
            if "$" in without_escapes_and_sets(pattern):
                yield line, "`$` matches before a final LF: use fullmatch or \\Z"


def without_escapes_and_sets(pattern: str) -> str:
    """The pattern less what a backslash takes the meaning from, and less [sets], where `$` is a dollar sign."""
    kept, position, in_set = [], 0, False
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            position += 2
            continue
        if in_set:
            in_set = char != "]"
        elif char == "[":
            in_set = True
            position += 2 if pattern[position + 1:position + 2] in ("]", "^") else 1
            continue
        else:
            kept.append(char)
        position += 1
    return "".join(kept)


def opens_with_a_manual(module: Module) -> Problems:
    if not ast.get_docstring(module.tree):
        yield 1, "no docstring: what is this module for, what does it never do?"


def has_a_bounded_size(module: Module) -> Problems:
    if module.lines > MAX_LINES:
        yield module.lines, f"{module.lines} lines; more than {MAX_LINES} is usually two modules"


RULES: tuple[Callable[[Module], Problems], ...] = (
    imports_point_down, imports_only_what_is_allowed, forbidden_calls, dollar_in_patterns, opens_with_a_manual,
    has_a_bounded_size)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Callable[[Module], Problems]) -> None:
    modules = all_modules()
    assert len(modules) > 10, "the package was not found"
    problems = [f"{path.relative_to(ROOT)}:{line}: {what}"
                for path, module in modules.items() for line, what in rule(module)]
    assert not problems, "\n" + "\n".join(problems)


def lean_modules(start: str) -> dict[str, Module]:
    """By absolute name: what is imported when `start` is, and what those import in turn, at the top of their files."""
    found: dict[str, Module] = {}
    waiting = [f"pysendmail.{start}"]
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        assert path, f"{name} is not there"
        if name in found:
            continue
        is_package = path.name == "__init__.py"
        found[name] = parse(name.removeprefix("pysendmail").removeprefix("."), path.read_text("utf-8"), is_package)
        parts = name.split(".")
        waiting += [".".join(parts[:count]) for count in range(1, len(parts))]  # Python runs each package's __init__
        waiting += [i.module for i in found[name].imports() if i.is_top_level and i.module.startswith("pysendmail")]
    return found


def test_sendmail_loads_only_what_costs_next_to_nothing() -> None:
    problems = []
    for name, module in lean_modules(LEAN_START).items():
        for found in module.imports():
            top = found.module.split(".")[0]
            allowed = LEAN_IMPORTS if found.is_top_level else LEAN_IMPORTS | LEAN_LATER
            if top != "pysendmail" and top not in allowed:
                problems.append(f"{name}:{found.line}: imports {found.module}")
    assert not problems, "\n" + "\n".join(problems)


def test_modules_that_sendmail_loads_say_so() -> None:
    """Whoever edits one of them must know what an import there costs."""
    loaded = {name for name, module in lean_modules(LEAN_START).items() if not module.is_package}
    saying = {f"pysendmail.{module.name}" for module in all_modules().values()
              if LEAN_MARK in (ast.get_docstring(module.tree) or "")}
    assert loaded - saying == set(), f'loaded, but the docstring does not say "{LEAN_MARK}"'
    assert saying - loaded == set(), f'the docstring says "{LEAN_MARK}", but nothing there loads it'


@pytest.mark.parametrize(("rule", "name", "text"), [
    (imports_point_down, "spool.queue", "from ..daemon import runner"),
    (imports_point_down, "spool.queue", "import pysendmail.deliver.agent"),
    (imports_point_down, "mail.outcome", "def f():\n    from pysendmail.config import Config"),
    (imports_point_down, "stray", "import os"),
    (imports_only_what_is_allowed, "spool.queue", "import asyncio"),
    (imports_only_what_is_allowed, "deliver.remotely", "import asyncio"),
    (imports_only_what_is_allowed, "net.stream", "import dns.resolver"),
    (imports_only_what_is_allowed, "daemon.control", "from click import echo"),
    (imports_only_what_is_allowed, "mail.dsn", "import time"),
    (imports_only_what_is_allowed, "daemon.listener", "from ..deliver.agent import Agent"),
    (imports_only_what_is_allowed, "daemon.runner", "import pickle"),
    (forbidden_calls, "mail.headers", "lines = data.splitlines()"),
    (forbidden_calls, "daemon.runner", "pwd.getpwnam(name)"),
    (forbidden_calls, "spool.durable", "os.fdatasync(3)"),
    (forbidden_calls, "deliver.command", "subprocess.run(words, shell=True)"),
    (forbidden_calls, "cli.admin", "os.system('ls')"),
    (dollar_in_patterns, "mail.address", "re.compile(rb'[a-z]+$')"),
    (dollar_in_patterns, "mail.address", "re.match('^' + 'x$', y)"),
    (opens_with_a_manual, "mail.address", "import os"),
    (has_a_bounded_size, "mail.address", "x = 1\n" * (MAX_LINES + 1)),
])
def test_the_rule_catches(rule: Callable[[Module], Problems], name: str, text: str) -> None:
    assert list(rule(parse(name, text)))


@pytest.mark.parametrize(("rule", "name", "text"), [
    (imports_point_down, "daemon.runner", "from ..spool import queue\nfrom .intake import Intake"),
    (imports_point_down, "smtp.server", "from ..mail.outcome import Outcome"),
    (imports_only_what_is_allowed, "deliver.remote", "import asyncio"),
    (imports_only_what_is_allowed, "daemon.listener", "from ..spool.queue_id import Ids"),
    (imports_only_what_is_allowed, "spool.durable", "import os"),
    (forbidden_calls, "route.users", "pwd.getpwnam(name)"),
    (forbidden_calls, "deliver.command", "subprocess.run(words, shell=False)"),
    (dollar_in_patterns, "mail.address", r"re.compile(rb'\$[$a]')"),
])
def test_the_rule_permits(rule: Callable[[Module], Problems], name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
