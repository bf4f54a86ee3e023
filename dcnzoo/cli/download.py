"""`dcnzoo download`: fetches checkpoints ahead of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dcnzoo.cli.options import url_base_option

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every checkpoint of the manifest.")
@url_base_option
@click.pass_obj
def download(shared: SharedOptions, names: tuple[str, ...], everything: bool, url_base: str | None) -> int:
    """Download checkpoints, verify them, and print where they lie.

    They are kept under DCNZOO_HOME, by default in the user's cache folder. A download that was interrupted
    goes on where it stopped.
    """
    from dcnzoo.download import fetch
    from dcnzoo.errors import DcnzooError
    from dcnzoo.manifest import load_manifest

    if bool(names) == everything:
        raise click.UsageError("Name one or more checkpoints, or give --all.")
    manifest = load_manifest(shared.manifest)
    records = manifest.match() if everything else [manifest.find(name) for name in names]
    failed = False
    for record in records:
        try:
            print(fetch(record, url_base=url_base), flush=True)
        except DcnzooError as error:
            if len(records) == 1:
                raise
            click.echo(f"error: {error}", err=True)
            failed = True
    return 1 if failed else 0
