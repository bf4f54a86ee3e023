"""What the commands' options have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)


def split(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG001
    """Accepts a repeated option, commas between values, or both."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def several(
    kind: click.ParamType[Any],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[Any, ...]]:
    """Makes a callback that splits as `split`, converts each value to its kind, and drops repetitions."""

    def convert(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[Any, ...]:
        parts = split(context, parameter, values)
        return tuple(dict.fromkeys(kind.convert(part, parameter, context) for part in parts))

    return convert
