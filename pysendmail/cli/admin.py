"""pysendmail(8), the administrator's program: this module is its frame.

Each command lies in a module of its own, which is loaded when it is used. What goes wrong is said in one line on
stderr, and the exit code is one of sysexits.h: 64 for a command line that makes no sense, 74 when there is no room for
what is printed, 75 when the daemon is needed and down, 78 for settings that are refused. `--json` output is an
interface: keys are added, never changed.
"""

import io
import os
import sys
from importlib import import_module

import click

from .. import __version__
from ..config import ConfigError
from ..events import shown
from ..paths import Paths
from .ask import Unanswered

EX_OK, EX_USAGE, EX_IOERR, EX_CONFIG = 0, 64, 74, 78
INTERRUPTED = 130  # what shells call the end by SIGINT
MAX_SHOWN = 2000  # characters of an error

# Where each command is. The name of the function there is that of the command.
COMMANDS = {"config": "admin_config", "dkim": "admin_dkim", "explain": "admin_explain", "queue": "admin_queue",
            "status": "admin_status", "trace": "admin_trace"}


class LazyGroup(click.Group):
    """Commands of other modules, loaded when somebody asks for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            found = getattr(import_module(f".{COMMANDS[cmd_name]}", __package__), cmd_name)
            assert isinstance(found, click.Command)
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
def pysendmail() -> None:
    """Look after the mail of this host: its queue, its settings, its state."""


@pysendmail.command()
def version() -> None:
    """Print the version."""
    click.echo(f"pysendmail {__version__}")


def main(args: list[str], paths: Paths) -> int:
    """args: the words after the program's name. The exit code."""
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the locale has no character for
        sys.stdout.reconfigure(errors="backslashreplace")
    code = EX_OK
    try:
        result = _command(args, paths)
        code = result if isinstance(result, int) else EX_OK
        sys.stdout.flush()
        return code
    except click.UsageError as problem:
        command = problem.ctx.command_path if problem.ctx is not None else "pysendmail"
        _say(f"{problem.format_message()} (see {command} --help)")
        return EX_USAGE
    except click.ClickException as problem:
        _say(problem.format_message())
        return problem.exit_code
    except Unanswered as problem:
        _say(str(problem))
        return problem.code
    except ConfigError as problem:
        for line in problem.problems:
            _say(line)
        return EX_CONFIG
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as trouble:
        # The reader has gone, or the disk is full; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(trouble, BrokenPipeError):
            return code
        _say(str(trouble))
        return EX_IOERR


def _command(args: list[str], paths: Paths) -> object:
    """What click's own main does, but for the end: there a reader that has gone is exit code 1."""
    try:
        with pysendmail.make_context("pysendmail", args, obj=paths) as context:
            return pysendmail.invoke(context)
    except click.exceptions.Exit as end:  # --help
        return end.exit_code


def _say(words: str) -> None:
    print(f"pysendmail: {shown(words, MAX_SHOWN)}", file=sys.stderr)
