"""`dcnzoo list`: the checkpoints that there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.text import table

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.manifest import Manifest, Record

_COLUMNS = ("name", "box AP", "mask AP", "backbone", "conv", "RoI pooling", "downloaded")


@click.command()
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every field, for programs.")
@click.pass_obj
def list_models(shared: SharedOptions, pattern: str | None, as_json: bool) -> None:
    """List the checkpoints.

    PATTERN chooses some: a part of the name (r101), or a shell pattern ('mask_*').
    AP is the published one, on COCO val2017, in percent; of a built-in model, on its own test set.
    """
    from dcnzoo.manifest import load_manifest

    manifest = load_manifest(shared.manifest)
    records = match_records(manifest, pattern) if pattern else manifest.match()
    if as_json:
        print(json.dumps([describe(record) for record in records], indent=2))
    else:
        print(table([_COLUMNS, *map(_row, records)]))


def match_records(manifest: Manifest, pattern: str) -> list[Record]:
    """Records that fit a pattern, at least one.

    Raises:
        UnknownModelError: there is none; with the nearest names.
    """
    from dcnzoo.errors import UnknownModelError
    from dcnzoo.manifest import nearest

    records = manifest.match(pattern)
    if not records:
        raise UnknownModelError(pattern, nearest(pattern, manifest.records))
    return records


def describe(record: Record) -> dict[str, Any]:
    """Every field of a record as JSON has it, with the architecture's name and where the file lies."""
    from dataclasses import asdict

    from dcnzoo.download import checkpoint_path

    path = checkpoint_path(record)
    fields = asdict(record)
    fields["architecture"] = {"name": record.architecture.name, **fields["architecture"]}
    return {**fields, "path": str(path), "downloaded": path.is_file(), "built_in": record.built_in}


def _row(record: Record) -> tuple[str, ...]:
    from dcnzoo.download import checkpoint_path

    architecture, published = record.architecture, record.published
    groups = f" ({architecture.deform_groups} groups)" if architecture.deform_groups > 1 else ""
    return (
        record.name,
        _figure(published.box_ap),
        _figure(published.mask_ap),
        architecture.backbone,
        architecture.conv + groups,
        architecture.pool,
        "built in" if record.built_in else "yes" if checkpoint_path(record).is_file() else "-",
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
