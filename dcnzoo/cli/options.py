"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dcnzoo.errors import looks_like_file

if TYPE_CHECKING:
    from dcnzoo.manifest import Manifest, Record


class Number(click.FloatRange):
    """A number in a range; neither infinite nor NaN, which every range would take."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Converts an option's text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


FILE = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")

Command = TypeVar("Command", bound=Callable[..., Any])


def split(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Accepts a repeated option, commas between values, or both.

    Raises:
        click.BadParameter: a value is empty, as that of a variable of the shell that is not set.
    """
    for value in values:
        if not value.strip(" ,"):
            raise click.BadParameter("is empty; name something, or leave the option out.", context, parameter)
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def several(
    kind: click.ParamType[Any],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[Any, ...]]:
    """Makes a callback that splits as `split`, converts each value to its kind, and drops repetitions."""

    def convert(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[Any, ...]:
        parts = split(context, parameter, values)
        return tuple(dict.fromkeys(kind.convert(part, parameter, context) for part in parts))

    return convert


def check_run(*, model: str | None, arch: str | None, resume: bool, overwrite: bool) -> None:
    """Checks options that every command with a model and a folder for its results has.

    Raises:
        click.UsageError: they do not go together.
    """
    if model is not None and arch is not None:
        raise click.UsageError("--model has an architecture of its own; give --arch only without it.")
    if resume and overwrite:
        raise click.UsageError("--resume keeps the results that --overwrite would replace; choose one.")


def find_record(manifest: Manifest, source: str, arch: str | None) -> Record | None:
    """Finds out what the argument of a command is that takes a model's name or a checkpoint file.

    Args:
        manifest: of the known models.
        source: the argument.
        arch: the option `--arch`, which is about files.

    Returns:
        The record of that name, None for a file.

    Raises:
        UnknownModelError: it is no name and does not look like a file.
        click.UsageError: `--arch` is given for a record, which has an architecture of its own.
    """
    if source not in manifest.records and (Path(source).exists() or looks_like_file(source)):
        return None
    record = manifest.find(source)
    if arch:
        raise click.UsageError(f"{source} has an architecture of its own; give --arch only with a file.")
    return record


def url_base_option(command: Command) -> Command:
    """Adds `--url-base`, for commands that may download a checkpoint."""
    return click.option(
        "--url-base",
        metavar="URL",
        callback=_checked_url_base,
        help="Mirror to download from (or set DCNZOO_MIRROR).",
    )(command)


def _checked_url_base(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from dcnzoo.download import check_url_base
    from dcnzoo.errors import DcnzooError

    try:
        if value is not None:
            check_url_base(value)
    except DcnzooError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return value
