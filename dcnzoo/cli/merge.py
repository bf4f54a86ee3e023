"""`dcnzoo merge`: the results of several processes as if one had done all."""

from __future__ import annotations

from pathlib import Path

import click

from dcnzoo.cli.inference import FREE
from dcnzoo.cli.options import FILE


@click.command()
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier merge.")
def merge(folder: Path, overwrite: bool) -> int:
    """Join the shards of a run of predict.

    DIR is what --out was: it holds the folders shard-1-of-N to shard-N-of-N, made by `dcnzoo predict --shard`
    or under torchrun, here or on other machines. The joined results go into DIR itself.
    """
    from dcnzoo.writers.folder import exclusive
    from dcnzoo.writers.merge import ELSEWHERE, merge_shards

    with exclusive(folder, elsewhere=ELSEWHERE):
        merged = merge_shards(folder, FREE, overwrite)
    click.echo(
        f"{merged.shards} shards, {merged.images} images, {merged.failures} failures: {folder}", err=True
    )
    return 1 if merged.failures else 0
