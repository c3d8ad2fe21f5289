"""The Debian package as its source promises it. tests/e2e looks at what is built from it."""

import ast
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pysendmail
from pysendmail.daemon import main, supervisor

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "/usr/share/pysendmail"  # the private module directory, which the programs name
PROGRAMS = {"sendmail": "usr/sbin", "mailq": "usr/bin", "newaliases": "usr/bin", "pysendmail": "usr/sbin",
            "pysendmaild": "usr/sbin"}
# -I: no PYTHONPATH, no user site, no current directory; -S besides: no site at all, which is half of the start-up time.
SHEBANGS = {"sendmail": "#!/usr/bin/python3 -IS"}
ISOLATED = ("#!/usr/bin/python3 -I", "#!/usr/bin/python3 -IS")
MAINTAINER_SCRIPTS = ("postinst", "prerm", "postrm")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def paragraphs(text: str) -> list[dict[str, str]]:
    """The fields of a Debian control file, continuation lines joined by a blank."""
    found = []
    for block in text.strip().split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.split("\n"):
            if line.startswith(" "):
                fields[name] += " " + line.strip()
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        found.append(fields)
    return found


def relations(value: str) -> set[str]:
    return {part.strip() for part in value.split(",")}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_starts_isolated_and_names_its_library(name: str) -> None:
    """A caller's PYTHONPATH or current directory would otherwise choose the code that runs."""
    text = text_of(f"bin/{name}")
    first = text.split("\n", 1)[0]
    assert first in ISOLATED
    assert first == SHEBANGS.get(name, first)
    assert LIBRARY in text
    assert (ROOT / "bin" / name).stat().st_mode & stat.S_IXUSR


def test_every_program_is_installed_where_policy_wants_it() -> None:
    lines = {tuple(line.split()) for line in text_of("debian/pysendmail.install").split("\n") if line}
    programs = {line for line in lines if line[0].startswith("bin/")}
    assert programs == {(f"bin/{name}", place) for name, place in PROGRAMS.items()}
    assert {path.name for path in (ROOT / "bin").iterdir()} == PROGRAMS.keys()
    assert "usr/sbin/sendmail usr/lib/sendmail" in text_of("debian/pysendmail.links")


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_has_a_manual(name: str) -> None:
    section = 1 if PROGRAMS[name] == "usr/bin" else 8
    assert (ROOT / f"man/{name}.{section}").is_file()


def test_manuals_are_sound() -> None:
    pages = sorted(str(path) for path in (ROOT / "man").iterdir())
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_versions_agree() -> None:
    version = pysendmail.__version__
    assert text_of("CHANGES.md").split("\n## ", 1)[1].split()[0] == version
    assert text_of("debian/changelog").split("\n", 1)[0].startswith(f"pysendmail ({version})")
    assert version_of_setup() == version


def version_of_setup() -> str:
    """What setup.py says, without setuptools, which only the package build needs."""
    found = [node for node in ast.parse(text_of("setup.py")).body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {"ast": ast, "HERE": ROOT}
    exec(compile(ast.Module(found, []), "setup.py", "exec"), names)
    assert "version=version()," in text_of("setup.py")
    return str(names["version"]())


def test_package_is_the_mail_transport_agent() -> None:
    """Policy 7 and 11.6: these three fields together make apt swap one mail system for another."""
    source, binary = paragraphs(text_of("debian/control"))
    for field in ("Provides", "Conflicts", "Replaces"):
        assert binary[field] == "mail-transport-agent"
    assert binary["Architecture"] == "all"
    assert {"python3:any (>= 3.11)", "python3-click", "python3-dnspython", "python3-filelock", "adduser", "netbase",
            "${misc:Depends}", "${python3:Depends}"} == relations(binary["Depends"])
    assert "debhelper-compat (= 13)" in relations(source["Build-Depends"])


def test_shebangs_survive_the_build() -> None:
    """Newer versions of dh_python3 drop the interpreter's options without this."""
    assert "\tdh_python3 --no-shebang-rewrite\n" in text_of("debian/rules")


def test_runtime_dependencies_agree() -> None:
    call = next(node for node in ast.walk(ast.parse(text_of("setup.py")))
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
    required = next(ast.literal_eval(k.value) for k in call.keywords if k.arg == "install_requires")
    binary = paragraphs(text_of("debian/control"))[1]
    third_party = {part for part in relations(binary["Depends"]) if part.startswith("python3-")}
    assert {f"python3-{name}" for name in required} == third_party


@pytest.mark.parametrize("name", MAINTAINER_SCRIPTS)
def test_maintainer_script_is_sound(name: str) -> None:
    path = ROOT / f"debian/pysendmail.{name}"
    subprocess.run(["sh", "-n", str(path)], check=True)
    text = path.read_text("utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    assert "\n#DEBHELPER#\n" in text
    # A recursive chown in a directory where others can write hands them whatever they link into it.
    assert not re.search(r"\b(?:chown|chmod)\s+(?:-\w*R|--recursive)", text)


def spool_table() -> dict[str, tuple[str, str]]:
    """{directory: (owner:group, mode)} of docs/ARCHITECTURE.md, "The spool"."""
    rows = re.findall(r"^\| (`[^|]*) \| `([\w:]+)` (\d+) \|", text_of("docs/ARCHITECTURE.md"), re.MULTILINE)
    found = {}
    for places, owner, mode in rows:
        for group in re.findall(r"`([^`]+)`", places):
            first, *others = group.split()
            top = first.split("/")[0]
            found[first] = (owner if ":" in owner else f"{owner}:{owner}", mode.rjust(4, "0"))
            for other in others:  # "queue/tmp new cur" is three directories of queue/
                found[f"{top}/{other}"] = found[first]
    return found


def test_spool_is_made_as_documented() -> None:
    postinst = text_of("debian/pysendmail.postinst")
    made = {place: (owner, mode) for place, owner, mode
            in re.findall(r'make_directory "\$SPOOL/([\w/]+)" ([\w:]+) (\d+)', postinst)}
    assert 'mkdir -p -m 0700 "$SPOOL/queue/$1"' in postinst
    for name in re.findall(r"for name in ([\w ]+); do\n\s+make_queue_directory", postinst)[0].split():
        made[f"queue/{name}"] = ("_pysendmail:_pysendmail", "0700")
    documented = spool_table()
    assert len(documented) == 12
    assert {place: made[place] for place in documented if place in made} == documented


def test_unit_leaves_users_programs_alone() -> None:
    """What a unit takes away is taken from the programs in .forward too (set-id mail programs, real /tmp, homes)."""
    unit = text_of("debian/pysendmail.service")
    settings = dict(line.split("=", 1) for line in unit.split("\n") if "=" in line and not line.startswith("#"))
    assert settings.keys().isdisjoint({
        "NoNewPrivileges", "PrivateTmp", "ProtectHome", "SystemCallFilter", "MemoryDenyWriteExecute",
        "RestrictSUIDSGID", "CapabilityBoundingSet", "PrivateDevices", "ProtectClock", "DynamicUser",
        "RestrictNamespaces"})
    assert settings["Type"] == "notify"
    assert settings["Restart"] == "always"
    assert settings["StartLimitIntervalSec"] == "0"
    assert settings["KillMode"] == "mixed"
    assert settings["OOMPolicy"] == "continue"
    assert int(settings["WatchdogSec"]) > 0
    # Before anybody kills it a runner has time to put down what it knows of 500 messages, a sync each, on a slow disk.
    assert main.STOP_WITHIN + 10 < supervisor.STOP_WITHIN < int(settings["TimeoutStopSec"])
    assert {word.split("(")[0] for word in settings["Documentation"].split()} >= {"man:pysendmaild"}


def test_init_script_and_unit_have_one_name() -> None:
    """Otherwise systemd generates a second service from the script."""
    names = {path.stem for path in (ROOT / "debian").iterdir() if path.suffix in (".service", ".init")}
    assert names == {"pysendmail"}
