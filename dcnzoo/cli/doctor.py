"""`dcnzoo doctor`: what the program runs on, and what is wrong with it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo import hardware

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions

_TITLES = {"cpu": "CPU", "cuda": "CUDA"}
"""What the text calls a key of the JSON that is not just its words."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, devices and operators; check them.

    The exit code is 1 if something that is needed does not work.
    """
    shared: SharedOptions = context.obj
    problems: list[str] = []
    attempt = partial(_attempt, problems)
    report = {
        "versions": {
            "dcnzoo": attempt("dcnzoo", _own_version),
            "python": f"{platform.python_version()} ({sys.executable})",
            **{
                name: attempt(name, partial(hardware.package_version, module, name))
                for module, name in hardware.PACKAGES.items()
            },
        },
        "platform": platform.platform(),
        "cpu": attempt("CPU", hardware.cpu),
        "operators": attempt("operators", hardware.operators),
        "cuda": attempt("CUDA", hardware.cuda),
        "cache": attempt("cache", _cache),
        "downloads": attempt("downloads", _downloads),
        "manifest": attempt("manifest", partial(_manifest, shared.manifest)),
        "problems": problems,
    }
    print(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    context.exit(1 if problems else 0)


def _attempt(problems: list[str], title: str, check: Callable[[], object]) -> object:
    """What a check finds; whatever it raises becomes a problem, for a doctor must not fall ill."""
    try:
        return check()
    except Exception as error:
        problems.append(f"{title}: {type(error).__name__}: {error}")
        return "broken, see problems"


def _lines(report: Mapping[str, object], indent: str = "") -> list[str]:
    """The report as text: a title and its value per line, what a value consists of indented below it."""
    lines = []
    for key, value in report.items():
        title = _TITLES.get(key, str(key).replace("_", " "))
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict) and parts:
            lines += [f"{indent}{title}:", *_lines(parts, indent + "  ")]
        else:
            lines.append(f"{indent}{title}: {'none' if value in (None, []) else value}")
    return lines


def _own_version() -> str:
    import dcnzoo

    return f"{dcnzoo.__version__} ({Path(dcnzoo.__file__).parent})"


def _cache() -> dict[str, object]:
    from dcnzoo.download import cache_home

    home = cache_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise NotADirectoryError(f"{existing} is not a writable folder; set DCNZOO_HOME to one")
    sizes = [path.stat().st_size for path in home.rglob("*") if path.is_file()]
    return {"home": str(home), "files": len(sizes), "megabytes": round(sum(sizes) / 1e6, 1)}


def _downloads() -> dict[str, object]:
    from dcnzoo.download import check_url_base, is_offline
    from dcnzoo.errors import without_credentials
    from dcnzoo.transfer import Patience

    mirror = os.environ.get("DCNZOO_MIRROR")
    if mirror:
        check_url_base(mirror)
    patience = Patience.from_environment()
    return {
        "offline": is_offline(),
        "mirror": mirror and without_credentials(mirror),
        "retries": patience.retries,
        "timeout": patience.timeout,
    }


def _manifest(extra: Path | None) -> dict[str, object]:
    from dcnzoo.download import checkpoint_path
    from dcnzoo.manifest import load_manifest

    records = load_manifest(extra).records.values()
    return {
        "own": str(extra) if extra else os.environ.get("DCNZOO_MANIFEST"),
        "checkpoints": len(records),
        "downloaded": sum(checkpoint_path(each).is_file() for each in records if not each.built_in),
    }
