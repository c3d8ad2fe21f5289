"""From settings files to a Config, with every problem named at once.

Read are pysendmail.toml and then conf.d/*.toml in the order of their names; a later value replaces an earlier one, a
list or a table as a whole. No file at all is a sound configuration. A problem is a line "FILE:LINE: [section] name:
what is wrong"; a file with one is never used in part, since a misspelt limit would be no limit. Warnings stop nothing.

`to_plain` and `from_plain` carry a Config to a child process, which checks it again with the same table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..paths import Paths
from . import files, identity
from .kinds import quoted
from .table import LISTENER, SECTIONS, TABLE, Config, Listener, RelaySettings, Setting

Place = tuple[str, str]  # (section, name)
Settings = TypeVar("Settings")

_ROWS = {(row.section, row.name): row for rows in TABLE.values() for row in rows}


class ConfigError(Exception):
    """The settings cannot be used. problems: one line each, for people."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """What load() found out on its way. origins: "FILE:LINE" or "system" of all values that are not the default."""

    config: Config
    origins: dict[Place, str]
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Collection:
    """Checked values of all files read so far, and what was wrong."""

    values: dict[Place, Any]
    origins: dict[Place, str]
    problems: list[str]
    warnings: list[str]


def load(paths: Paths, node: str | None = None) -> Config:
    """The settings in force. node: the kernel's name for this host, if not this one's. Raises ConfigError."""
    return read(paths, node).config


def read(paths: Paths, node: str | None = None, *, partial: bool = False) -> Loaded:
    """The same with origins and warnings. partial: a file that we may not read is a warning. Raises ConfigError."""
    found = Collection({}, {}, [], [])
    for path in _settings_files(paths, found):
        _read_file(path, found, partial=partial)
    config = build(found)
    if not found.problems:
        found.problems += check(config, found.origins, found.warnings)
    if found.problems:
        raise ConfigError(found.problems)
    config = _identify(config, paths, identity.node_name() if node is None else node, found)
    return Loaded(config, found.origins, tuple(found.warnings))


def with_secrets(config: Config) -> Config:
    """The same settings with the contents of password_file in place. For whoever hands the relay its part."""
    path = config.relay.password_file
    if not path:
        return config
    try:
        password = files.read_secret(path)
    except (OSError, files.Untrusted) as problem:
        raise ConfigError([f"{path}: [relay] password_file: {_reason(problem)}"])
    return replace(config, relay=replace(config.relay, password=password))


def without_secrets(config: Config) -> Config:
    """The same settings for a child that has no need to know passwords."""
    def hide(section: str, settings: Any) -> Any:
        return replace(settings, **{row.name: row.default for row in TABLE[section] if row.is_secret})
    return replace(config, **{section: hide(section, getattr(config, section)) for section in SECTIONS})


# ---- files


def _settings_files(paths: Paths, found: Collection) -> list[str]:
    names = [paths.settings]
    for directory in (paths.etc, paths.conf_dir):
        try:
            listed = files.names_in(directory)
            names += listed if directory == paths.conf_dir else []
        except (OSError, files.Untrusted) as problem:
            found.problems.append(f"{directory}: {_reason(problem)}")
    return names


def _read_file(path: str, found: Collection, *, partial: bool) -> None:
    import tomllib
    try:
        data, seen = files.read_trusted(path)
        text = data.decode("utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        return
    except PermissionError as problem:
        (found.warnings if partial else found.problems).append(f"{path}: {_reason(problem)}")
        return
    except (OSError, files.Untrusted, UnicodeDecodeError) as problem:
        found.problems.append(f"{path}: {_reason(problem)}")
        return
    except tomllib.TOMLDecodeError as problem:
        found.problems.append(_syntax(path, str(problem)))
        return
    except RecursionError:  # brackets within brackets, thousands deep
        found.problems.append(f"{path}: is nested too deep")
        return
    collect(path, values, _lines_of(text), files.readers(seen), found)


def collect(path: str, values: dict[str, Any], lines: dict[Place, int], readers: str, found: Collection) -> None:
    """Check the values of one parsed file. readers: who besides us can read it, "" = nobody."""
    for place, value in _places(path, values, lines, found.problems):
        where = f"{path}:{lines[place]}" if place in lines else path
        row = _ROWS.get(place)
        try:
            found.values[place] = _listeners(value) if place == (LISTENER, "") else _checked(row, place, value)
        except ValueError as problem:
            found.problems.append(f"{where}: {_name(place)}: {problem}")
            continue
        found.origins[place] = where
        if row and row.is_secret and value and readers:
            found.warnings.append(f"{where}: {_name(place)}: {readers} can read this file; chmod it to 0600")


def _places(
    path: str, values: dict[str, Any], lines: dict[Place, int], problems: list[str],
) -> Iterator[tuple[Place, Any]]:
    """Every setting of a parsed file; what is no section where one must be is a problem."""
    for name, value in values.items():
        if name == LISTENER:
            yield (LISTENER, ""), value
        elif name not in SECTIONS:
            # A table with an unknown name is one problem, not one for each setting in it.
            yield ("", name), value
        elif isinstance(value, dict):
            for inner, entry in value.items():
                yield (name, inner), entry
        else:
            where = f"{path}:{lines['', name]}" if ("", name) in lines else path
            problems.append(f"{where}: {name}: must be a table, written as [{name}]")


def _checked(row: Setting | None, place: Place, value: Any) -> Any:
    if row is None:
        raise ValueError(unknown(place, is_table=isinstance(value, dict)))
    if row.is_secret and not isinstance(value, str):
        raise ValueError("must be text in quotes")  # without the value: it is on its way into a log
    return row.kind.read(value)


def _listeners(value: Any) -> tuple[Listener, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"must be tables, each written as [[{LISTENER}]]")
    return tuple(_listener(number, entry) for number, entry in enumerate(value, 1))


def _listener(number: int, entry: dict[str, Any]) -> Listener:
    found = {}
    for name, value in entry.items():
        place = (LISTENER, name)
        try:
            found[name] = _checked(_ROWS.get(place), place, value)
        except ValueError as problem:
            raise ValueError(f"number {number}: {name}: {problem}") from problem
    if not found.get("address"):
        raise ValueError(f"number {number}: needs an address")
    return Listener(**found)


def unknown(place: Place, *, is_table: bool = False) -> str:
    """What is wrong with a name that is in no table, and what was probably meant."""
    from difflib import get_close_matches
    section, name = place
    what = "section" if is_table and not section else "setting"
    names = [*SECTIONS, LISTENER] if what == "section" else [row.name for row in TABLE[section]]
    close = get_close_matches(name.lower(), names, n=1)
    if close:
        return f"there is no such {what}; did you mean {quoted(close[0])}?"
    elsewhere = [f"[{other}]" for other, inner in _ROWS if inner == name and other and other != section]
    if elsewhere and what == "setting":
        return f"there is no such setting here; it belongs to {' or '.join(elsewhere)}"
    return f"there is no such {what}"


def _name(place: Place) -> str:
    section, name = place
    if section == LISTENER:
        return f"[[{LISTENER}]]"
    if not name.isprintable():
        name = quoted(name)
    return f"[{section}] {name}" if section else name


def _syntax(path: str, words: str) -> str:
    """tomllib says "... (at line 3, column 5)": as FILE:3."""
    message, _, position = words.rpartition(" (at line ")
    number = position.split(",", 1)[0]
    return f"{path}:{number}: {message}" if message and number.isdigit() else f"{path}: {words}"


def _lines_of(text: str) -> dict[Place, int]:
    """Where settings stand in a file that is written line by line; what is written otherwise gets no number."""
    found: dict[Place, int] = {}
    section = ""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[").split("]", 1)[0].strip()
            outer, _, inner = section.partition(".")
            found.setdefault((outer, inner) if inner or outer == LISTENER else ("", outer), number)
        elif "=" in line and not line.startswith("#"):
            name = line.split("=", 1)[0].strip().strip("\"'")
            outer, dot, inner = name.partition(".")
            found.setdefault((outer, inner) if dot and not section else (section, name), number)
    return found


def _reason(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    return "is not UTF-8" if isinstance(problem, UnicodeDecodeError) else str(problem)


# ---- from values to a Config


def build(found: Collection) -> Config:
    """The settings that were collected, defaults for the others, and nothing from the system yet."""
    parts: dict[str, Any] = {}
    for section, settings in SECTIONS.items():
        parts[section] = settings(**{row.name: found.values[section, row.name] for row in TABLE[section]
                                     if (section, row.name) in found.values})
    top = {row.name: found.values["", row.name] for row in TABLE[""] if ("", row.name) in found.values}
    usual = tuple(Listener(address) for address in parts["smtpd"].listen)
    return Config(**top, **parts, listeners=(*usual, *found.values.get((LISTENER, ""), ())))


def check(config: Config, origins: dict[Place, str], warnings: list[str]) -> list[str]:
    """The problems of settings that are sound one by one, but not together."""
    problems: list[str] = []

    def report(section: str, name: str, words: str, lines: list[str] = problems) -> None:
        origin = origins.get((section, name), "")
        lines.append(f"{origin}: {_name((section, name))}: {words}" if origin else f"{_name((section, name))}: {words}")

    _check_login(config.relay, report)
    smtpd, dkim, queue = config.smtpd, config.dkim, config.queue
    if bool(smtpd.tls_cert) != bool(smtpd.tls_key):
        there, missing = ("tls_cert", "tls_key") if smtpd.tls_cert else ("tls_key", "tls_cert")
        report("smtpd", there, f"needs {missing} too")
    if dkim.domains and not (dkim.selector and dkim.key_file):
        report("dkim", "domains", "needs selector and key_file too")
    seen = set()
    for listener in config.listeners:
        if listener.address in seen:
            report(LISTENER, "", f"{listener.address} is named twice")
        seen.add(listener.address)
        if listener.proxy and not smtpd.proxies:
            report(LISTENER, "", f"{listener.address} has proxy = true, and [smtpd] proxies is empty")
    if queue.retry_first > queue.retry_max:
        report("queue", "retry_max", f"is below retry_first ({queue.retry_first}), which then never applies", warnings)
    return problems


def _check_login(relay: RelaySettings, report: Callable[[str, str, str], None]) -> None:
    secrets = [name for name in ("password", "password_file", "token_command") if getattr(relay, name)]
    if relay.username and not secrets:
        report("relay", "username", "needs a password, password_file or token_command too")
    if secrets and not relay.username:
        report("relay", secrets[0], "needs a username too")
    if len(secrets) > 1:
        report("relay", secrets[1], f"cannot stand beside {secrets[0]}")


def _identify(config: Config, paths: Paths, node: str, found: Collection) -> Config:
    """Fill in what comes from the system."""
    who = identity.find(paths, node)
    hostname = config.hostname or who.hostname
    domain = config.domain or who.mailname or hostname
    filled: dict[Place, Any] = {
        ("", "hostname"): hostname, ("", "domain"): domain,
        ("", "local_domains"): identity.local_names(hostname, domain, config.local_domains)}
    if not config.local.aliases:
        filled["local", "aliases"] = (paths.aliases,)
    for place in filled:
        found.origins.setdefault(place, "system")
    if who.problem and not config.domain:
        found.warnings.append(who.problem)
    if "." not in hostname:
        found.warnings.append(f"hostname: {quoted(hostname)} has no domain; other hosts may refuse mail from it")
    local = replace(config.local, aliases=filled.get(("local", "aliases"), config.local.aliases))
    return replace(config, local=local, **{name: value for (section, name), value in filled.items() if not section})


# ---- to and from a child process


def to_plain(config: Config) -> dict[str, Any]:
    """The settings as dicts, lists, text, numbers and booleans, in the shape of a settings file."""
    def part(section: str, settings: Any) -> dict[str, Any]:
        return {row.name: row.kind.plain(getattr(settings, row.name)) for row in TABLE[section]}
    sections = {section: part(section, getattr(config, section)) for section in SECTIONS}
    return {**part("", config), **sections, LISTENER: [part(LISTENER, entry) for entry in config.listeners]}


def from_plain(plain: Any) -> Config:
    """The reverse of to_plain. Raises ConfigError: whoever made this was not ours."""
    if not isinstance(plain, dict) or plain.keys() != {*(row.name for row in TABLE[""]), *SECTIONS, LISTENER}:
        raise ConfigError(["not a configuration"])
    try:
        top = _settings_of("", plain)
        parts = {section: settings(**_settings_of(section, plain[section])) for section, settings in SECTIONS.items()}
        return Config(**top, **parts, listeners=_listeners(plain[LISTENER]))
    except ValueError as problem:
        raise ConfigError([str(problem)])


def _settings_of(section: str, plain: Any) -> dict[str, Any]:
    rows = TABLE[section]
    if not isinstance(plain, dict) or (section and plain.keys() != {row.name for row in rows}):
        raise ValueError(f"not the settings of [{section}]")
    return {row.name: _checked(row, (section, row.name), plain[row.name]) for row in rows}
