"""`dcnzoo info`: everything that is known about a checkpoint."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dcnzoo.cli.main import Settings
    from dcnzoo.manifest import Record


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.pass_obj
def info(settings: Settings, name: str, as_json: bool) -> None:
    """Show what is known about a checkpoint, and where its file lies."""
    from dcnzoo.cli.list import describe
    from dcnzoo.manifest import load_manifest

    record = load_manifest(settings.manifest).find(name)
    if as_json:
        print(json.dumps(describe(record), indent=2))
        return
    lines = _lines(record)
    width = max(map(len, lines))
    for title, value in lines.items():
        print(f"{title.ljust(width)}  " + value.replace("\n", "\n" + " " * (width + 2)))


def _lines(record: Record) -> dict[str, str]:
    from dcnzoo.download import checkpoint_path

    path = checkpoint_path(record)
    state = "" if path.is_file() else f"  (not there yet: dcnzoo download {record.name})"
    return {
        "name": record.name,
        **_structure(record),
        **_figures(record),
        "config": record.config_url or "-",
        "training log": record.log_url or "-",
        "licence": record.licence or "-",
        "URL": "- (part of the package)" if record.built_in else "\n".join(record.urls),
        "SHA-256": f"starts with {record.sha256}" if record.sha256 else "- (the file is not verified)",
        "file": f"{path}{state}",
    }


def _structure(record: Record) -> dict[str, str]:
    architecture, preprocessing, classes = record.architecture, record.preprocessing, record.classes
    deformable = f"{architecture.conv} in c3-c5, deformable groups: {architecture.deform_groups}"
    return {
        "architecture": architecture.name,
        "detector": architecture.detector,
        "backbone": architecture.backbone,
        "convolutions": "plain" if architecture.conv == "conv" else deformable,
        "RoI pooling": architecture.pool,
        "widths": f"backbone from {architecture.base_width}, pyramid {architecture.channels}, "
        f"box head {architecture.hidden}",
        "input": f"short side {preprocessing.short_side}, long side at most {preprocessing.long_side}, "
        f"padded to a multiple of {preprocessing.size_divisor}",
        "mean, std": f"{list(preprocessing.mean)}, {list(preprocessing.std)} (R, G, B)",
        "classes": textwrap.fill(f"{len(classes.names)}: {', '.join(classes.names)}", width=90),
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
