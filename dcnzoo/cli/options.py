"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


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
