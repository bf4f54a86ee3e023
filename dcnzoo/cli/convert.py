"""`dcnzoo convert`: a safe copy of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.cli.options import find_record, url_base_option

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions


@click.command()
@click.argument("source", metavar="NAME|FILE")
@click.argument("out", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--arch", metavar="NAME", help="Architecture of FILE.  [default: as FILE says, or its tensors tell]"
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@url_base_option
@click.pass_obj
def convert(
    shared: SharedOptions, source: str, out: Path, arch: str | None, overwrite: bool, url_base: str | None
) -> None:
    """Write a safe copy of a checkpoint, as safetensors.

    The copy holds numbers and text only, nothing that could run, and says what has to be known to use them,
    as with `dcnzoo predict --weights OUT.safetensors`.
    """
    from dcnzoo.manifest import Architecture, load_manifest
    from dcnzoo.safe_copy import check_target

    manifest = load_manifest(shared.manifest)
    record = find_record(manifest, source, arch)
    architecture = Architecture.parse(arch) if arch else None
    check_target(out, overwrite)

    from dcnzoo import convert as converter
    from dcnzoo.download import fetch

    converter.convert(
        fetch(record, url_base=url_base) if record else Path(source),
        out,
        record=record,
        architecture=architecture,
        class_sets=manifest.class_sets.values(),
        overwrite=overwrite,
    )
    print(out)
