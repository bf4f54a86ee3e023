"""`dcnzoo doctor`: what the program runs on, and what is wrong with it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.hardware import cpu_model

if TYPE_CHECKING:
    from dcnzoo.cli.main import Settings

# Module to import (with its compiled part) -> name of the distribution.
_PACKAGES = {
    "torch": "torch",
    "torchvision.ops": "torchvision",
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "pycocotools.mask": "pycocotools",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, devices and operators; check them.

    The exit code is 1 if something that is needed does not work.
    """
    settings: Settings = context.obj
    problems: list[str] = []
    attempt = partial(_attempt, problems)
    report = {
        "versions": {
            "dcnzoo": attempt("dcnzoo", _own_version),
            "python": f"{platform.python_version()} ({sys.executable})",
            **{name: attempt(name, partial(_version, module, name)) for module, name in _PACKAGES.items()},
        },
        "platform": platform.platform(),
        "CPU": attempt("CPU", _cpu),
        "operators": attempt("operators", _operators),
        "CUDA": attempt("CUDA", _cuda),
        "cache": attempt("cache", _cache),
        "downloads": attempt("downloads", _downloads),
        "manifest": attempt("manifest", partial(_manifest, settings.manifest)),
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
    for title, value in report.items():
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict) and parts:
            lines += [f"{indent}{title}:", *_lines(parts, indent + "  ")]
        else:
            lines.append(f"{indent}{title}: {'none' if value in (None, []) else value}")
    return lines


def _own_version() -> str:
    import dcnzoo

    return f"{dcnzoo.__version__} ({Path(dcnzoo.__file__).parent})"


def _version(module: str, distribution: str) -> str:
    from importlib.metadata import version  # slow to import, and `--help` imports this module

    import_module(module)
    return version(distribution)


def _cpu() -> dict[str, object]:
    import torch

    return {
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "threads of PyTorch": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _operators() -> dict[str, object]:
    from dcnzoo.ops import active_backend

    name, reason = active_backend()
    return {"backend": name, "because": reason}


def _cuda() -> dict[str, object]:
    import torch

    if not torch.version.cuda:
        return {"devices": [], "because": "this PyTorch is built without CUDA"}
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return {"devices": [], "because": str(error).splitlines()[0]}
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "built for": torch.version.cuda,
        "devices": [
            f"{device.name}, {device.total_memory / 2**30:.1f} GiB, capability {device.major}.{device.minor}"
            for device in devices
        ],
    }


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

    mirror = os.environ.get("DCNZOO_MIRROR")
    if mirror:
        check_url_base(mirror)
    return {"offline": is_offline(), "mirror": mirror}


def _manifest(extra: Path | None) -> dict[str, object]:
    from dcnzoo.download import checkpoint_path
    from dcnzoo.manifest import load_manifest

    records = load_manifest(extra).records.values()
    return {
        "own": str(extra) if extra else os.environ.get("DCNZOO_MANIFEST"),
        "checkpoints": len(records),
        "downloaded": sum(checkpoint_path(record).is_file() for record in records),
    }
