"""The `dcnzoo` program: finds the command, runs it, and turns errors into words and exit codes.

Exit codes: 0 done, 1 an error (or images that failed), 2 wrong usage, 130 or 143 stopped by
SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import click

from dcnzoo import __version__
from dcnzoo.errors import DcnzooError
from dcnzoo.stopping import Stopped

COMMANDS = {
    "predict": "dcnzoo.cli.predict:predict",
    "eval": "dcnzoo.cli.eval:evaluate",
    "train": "dcnzoo.cli.train:train",
    "merge": "dcnzoo.cli.merge:merge",
    "bench": "dcnzoo.cli.bench:bench",
    "list": "dcnzoo.cli.list:list_models",
    "info": "dcnzoo.cli.info:info",
    "download": "dcnzoo.cli.download:download",
    "cache": "dcnzoo.cli.cache:cache",
    "convert": "dcnzoo.cli.convert:convert",
    "doctor": "dcnzoo.cli.doctor:doctor",
}


@dataclass
class SharedOptions:
    """What holds for every command; commands get it with `@click.pass_obj`.

    Attributes:
        manifest: the user's manifest, which extends the built-in one.
        debug: whether an error shows its traceback.
    """

    manifest: Path | None = None
    debug: bool = False


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    shared = context.ensure_object(SharedOptions)
    if value and parameter.name:
        setattr(shared, parameter.name, value)


def _shared_options() -> list[click.Parameter]:
    """Options that may stand before the command's name or after it."""
    return [
        click.Option(
            ["--manifest"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            expose_value=False,
            callback=_remember,
            help="Manifest with checkpoints of your own (or set DCNZOO_MANIFEST).",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Show the traceback of an error.",
        ),
    ]


def _with_shared_options(command: click.Command) -> click.Command:
    """A copy of a command that takes the shared options; if it is a group, its commands take them too."""
    command = copy(command)
    command.params = [*command.params, *_shared_options()]
    if isinstance(command, click.Group):
        command.commands = {name: _with_shared_options(each) for name, each in command.commands.items()}
    return command


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of the commands, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, with the shared options added; None if there is none."""
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            module, attribute = COMMANDS[cmd_name].split(":")
            self.add_command(_with_shared_options(getattr(import_module(module), attribute)), cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command; an unknown one suggests the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" There are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    params=_shared_options(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Detectors with Deformable ConvNets, with the published MMDetection weights."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and gives its exit code.

    Args:
        arguments: command line without the program's name; by default the process's own.
    """
    shared = SharedOptions()
    _prepare_streams()
    try:
        code = cli.main(
            None if arguments is None else list(arguments), "dcnzoo", standalone_mode=False, obj=shared
        )
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort) as error:
        print("interrupted", file=sys.stderr)
        # click turns what stopped a command into an Abort.
        return 128 + getattr(error.__cause__ or error, "signum", signal.SIGINT)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        _drop_output()  # the reader has gone (`dcnzoo list | head -1`)
        return 1
    except Exception as error:
        if shared.debug:
            import traceback

            traceback.print_exc()
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Makes printing safe: into closed streams, and of characters that an encoding does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Takes the stream's own number, which a file of results might get otherwise.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Drops what the standard output does not take, which the interpreter would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_fails() -> bool:
    """Whether the standard output is what does not take what is written; where it does, ends its line."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _in_words(error: Exception) -> str:
    if isinstance(error, DcnzooError):
        return str(error)
    if isinstance(error, OSError) and error.filename is None and _output_fails():
        _drop_output()
        return f"cannot write to the standard output: {error.strerror}"
    return f"{type(error).__name__}: {error} (run again with --debug for the traceback)"


def main() -> None:
    """Entry point of the `dcnzoo` script and of `python -m dcnzoo`."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)  # which, as Ctrl-C, leaves nothing half made
    sys.exit(run())


def _stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Stopped(signum)
