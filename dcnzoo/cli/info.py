"""`dcnzoo info`: everything that is known about a checkpoint, of the manifest or a file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli.options import find_record
from dcnzoo.text import one_line

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.inspection import Inspection
    from dcnzoo.manifest import Architecture, Preprocessing, Record

_NAMED_BY = {"caller": "--arch", "file": "as the file says", "tensors": "recognised by the tensors"}

_SHOWN = 10
"""Most tensors that are named of a kind."""


@click.command()
@click.argument("source", metavar="NAME|FILE")
@click.option("--arch", metavar="NAME", help="Architecture to compare the tensors of FILE with.")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.pass_obj
def info(shared: SharedOptions, source: str, arch: str | None, as_json: bool) -> None:
    """Show what is known about a checkpoint.

    Of a NAME of the manifest that is what the manifest says, and where the file lies. Of a checkpoint FILE
    it is what the file says and what its tensors tell: architecture, classes, parameters, SHA-256, and which
    tensors are missing or left over. Nothing in the file is executed.
    """
    from dcnzoo.cli.list import describe
    from dcnzoo.manifest import Architecture, load_manifest

    record = find_record(load_manifest(shared.manifest), source, arch)
    if record:
        _print(describe(record) if as_json else _lines(record), as_json)
        return
    architecture = Architecture.parse(arch) if arch else None

    from dcnzoo.inspection import inspect_checkpoint

    found = inspect_checkpoint(Path(source), architecture)
    _print(_describe_file(found) if as_json else _file_lines(found), as_json)


def _print(content: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=2))
        return
    width = max(map(len, content))
    for title, value in content.items():
        print(f"{title.ljust(width)}  " + value.replace("\n", "\n" + " " * (width + 2)))


def _lines(record: Record) -> dict[str, str]:
    from dcnzoo.download import checkpoint_path

    path = checkpoint_path(record)
    state = "" if path.is_file() else f"  (not there yet: dcnzoo download {record.name})"
    return {
        "name": record.name,
        "architecture": record.architecture.name,
        **_structure(record.architecture),
        **_input(record.preprocessing),
        "classes": _numbered(record.classes.names),
        **_figures(record),
        "config": record.config_url or "-",
        "training log": record.log_url or "-",
        "licence": record.licence or "-",
        "URL": "- (part of the package)" if record.built_in else "\n".join(record.urls),
        "SHA-256": f"starts with {record.sha256}" if record.sha256 else "- (the file is not verified)",
        "file": f"{path}{state}",
    }


def _structure(architecture: Architecture) -> dict[str, str]:
    deformable = f"{architecture.conv} in c3-c5, deformable groups: {architecture.deform_groups}"
    return {
        "detector": architecture.detector,
        "backbone": architecture.backbone,
        "convolutions": "plain" if architecture.conv == "conv" else deformable,
        "RoI pooling": architecture.pool,
        "widths": f"backbone from {architecture.base_width}, pyramid {architecture.channels}, "
        f"box head {architecture.hidden}",
    }


def _input(preprocessing: Preprocessing) -> dict[str, str]:
    return {
        "input": f"short side {preprocessing.short_side}, long side at most {preprocessing.long_side}, "
        f"padded to a multiple of {preprocessing.size_divisor}",
        "mean, std": f"{list(preprocessing.mean)}, {list(preprocessing.std)} (R, G, B)",
    }


def _figures(record: Record) -> dict[str, str]:
    published = record.published
    figures = {
        "box AP": published.box_ap,
        "mask AP": published.mask_ap,
        "training memory": published.train_memory_gb and f"{published.train_memory_gb} GB",
        "speed": published.fps_v100 and f"{published.fps_v100} images/s on one V100, as published",
        "schedule": published.schedule,
    }
    trained = {"trained in": "mixed precision (fp16)" if record.precision_trained == "fp16" else "fp32"}
    return trained | {title: "-" if value is None else str(value) for title, value in figures.items()}


def _file_lines(found: Inspection) -> dict[str, str]:
    from dcnzoo.transfer import readable_size

    checkpoint, description, tensors = (
        found.checkpoint,
        found.checkpoint.description,
        found.checkpoint.state_dict,
    )
    lines = {
        "file": str(checkpoint.path),
        "size": readable_size(found.size),
        "SHA-256": found.sha256,
        "written by": found.written_by or "- (the file does not say)",
    }
    if description and description.origin:
        lines["copy of"] = _wrapped(f"{description.origin}, SHA-256 {description.sha256}")
    if found.notes:
        lines["it says"] = _wrapped(
            ", ".join(f"{name} {_short(value)}" for name, value in found.notes.items())
        )
    lines["tensors"] = f"{len(tensors)}, {' and '.join(found.dtypes) or 'none of them floating'}"
    lines["parameters"] = f"{found.num_parameters:,}"
    lines |= _architecture_lines(found)
    if checkpoint.num_classes is not None:
        names = checkpoint.classes
        lines["classes"] = _numbered(names) if names else f"{checkpoint.num_classes}, without names"
    return lines | (_input(description.preprocessing) if description else {})


def _architecture_lines(found: Inspection) -> dict[str, str]:
    if found.architecture is None or found.named_by is None:
        return {"architecture": "- (the tensors are none of a detector that this package knows)"}
    lines = {"architecture": f"{found.architecture.name} ({_NAMED_BY[found.named_by]})"}
    misfit = found.misfit
    if misfit is None:
        lines["fits"] = "yes, every tensor"
    else:
        differing = bool(misfit.missing or misfit.unexpected or misfit.mismatched)
        lines["fits"] = "no" if differing else f"no: {misfit.problem}"
        shapes = [f"{name} is {got}, expected {want}" for name, got, want in misfit.mismatched]
        differences = {"missing": misfit.missing, "unexpected": misfit.unexpected, "other shape": shapes}
        lines |= {title: _first(names) for title, names in differences.items() if names}
    return lines | _structure(found.architecture)


def _numbered(names: Sequence[str]) -> str:
    return _wrapped(f"{len(names)}: {', '.join(names)}")


def _first(names: Sequence[str]) -> str:
    """Some of many names, a line each, and how many there are."""
    more = [f"and {len(names) - _SHOWN} more (--json lists all)"] if len(names) > _SHOWN else []
    return "\n".join([f"{len(names)}:", *map(one_line, names[:_SHOWN]), *more])


def _wrapped(text: str) -> str:
    return textwrap.fill(one_line(text), width=90)


def _short(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_file(found: Inspection) -> dict[str, Any]:
    checkpoint, description, misfit = found.checkpoint, found.checkpoint.description, found.misfit
    shapes = misfit.mismatched if misfit else ()
    return {
        "path": str(checkpoint.path),
        "bytes": found.size,
        "sha256": found.sha256,
        "written_by": found.written_by,
        "origin": {"name": description.origin, "sha256": description.sha256}
        if description and description.origin
        else None,
        "notes": found.notes,
        "tensors": len(checkpoint.state_dict),
        "parameters": found.num_parameters,
        "dtypes": found.dtypes,
        "architecture": found.architecture
        and {"name": found.architecture.name, **asdict(found.architecture)},
        "architecture_from": found.named_by,
        "fits": misfit is None if found.architecture else None,
        "problem": misfit.problem if misfit else None,
        "missing": misfit.missing if misfit else [],
        "unexpected": misfit.unexpected if misfit else [],
        "mismatched": [{"name": name, "shape": got, "expected": want} for name, got, want in shapes],
        "num_classes": checkpoint.num_classes,
        "class_names": checkpoint.classes,
        "category_ids": description.classes.category_ids if description else None,
        "preprocessing": asdict(description.preprocessing) if description else None,
    }
