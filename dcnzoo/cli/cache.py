"""`dcnzoo cache`: what was downloaded, whether it is right, and how to be rid of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dcnzoo.errors import ChecksumError, DownloadError
from dcnzoo.text import table

if TYPE_CHECKING:
    from dcnzoo.cache import CachedFile
    from dcnzoo.cli.main import SharedOptions

NAMES = click.argument("names", metavar="[NAME]...", nargs=-1)
JSON = click.option("--json", "as_json", is_flag=True, help="Print it for programs.")


@click.group()
def cache() -> None:
    """List, verify or clear the downloaded checkpoints.

    They lie in the folder `checkpoints` of DCNZOO_HOME, by default in the user's cache folder.
    """


@cache.command("list")
@NAMES
@JSON
@click.pass_obj
def list_files(shared: SharedOptions, names: tuple[str, ...], as_json: bool) -> None:
    """List the files with their sizes, those of the named checkpoints or all."""
    files, _ = _find(shared, names)
    _show(files, [file.state for file in files], as_json)


@cache.command("verify")
@NAMES
@JSON
@click.pass_obj
def verify_files(shared: SharedOptions, names: tuple[str, ...], as_json: bool) -> int:
    """Read the files and compare their SHA-256 with the manifest's.

    The exit code is 1 if one is damaged, or a named checkpoint has no file.
    """
    files, problems = _find(shared, names)
    states: list[str] = []
    for file in files:
        try:
            states.append(file.verify())
        except ChecksumError as error:
            states.append("damaged")
            problems.append(f"{error}; `dcnzoo download {file.names[0]}` replaces it")
        except OSError as error:
            states.append("unreadable")
            problems.append(f"{file.path} cannot be read: {error.strerror}")
    _show(files, states, as_json)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    return 1 if problems else 0


@cache.command("clear")
@NAMES
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def clear_files(shared: SharedOptions, names: tuple[str, ...], yes: bool) -> int:
    """Remove the files of the named checkpoints, or all, and the parts of unfinished downloads.

    Files that no manifest knows are left alone.
    """
    from dcnzoo.transfer import readable_size

    files, _ = _find(shared, names)
    known = [file for file in files if file.records]
    if unknown := [file for file in files if not file.records]:
        click.echo(f"left alone, since no manifest knows them: {_count(unknown)}", err=True)
    if not known:
        print("nothing to remove")
        return 0
    if not (yes or _confirmed(known)):
        click.echo("nothing was removed", err=True)
        return 1
    freed = failures = 0
    for file in known:
        size = file.size
        try:
            file.remove()
        except (DownloadError, OSError) as error:
            failures += 1
            reason = error.reason if isinstance(error, DownloadError) else error.strerror
            click.echo(f"error: {file.path} was not removed: {reason}", err=True)
        else:
            freed += size
            print(f"removed {file.path}")
    print(f"freed {readable_size(freed)}")
    return 1 if failures else 0


def _find(shared: SharedOptions, names: tuple[str, ...]) -> tuple[list[CachedFile], list[str]]:
    """The files of the named checkpoints, or all; and a complaint about each name without a file."""
    from dcnzoo.cache import cached_files
    from dcnzoo.manifest import load_manifest

    manifest = load_manifest(shared.manifest)
    wanted = [manifest.find(name).name for name in names]
    files = [
        file
        for file in cached_files(manifest)
        if not wanted or any(record.name in wanted for record in file.records)
    ]
    found = {name for file in files for name in file.names}
    absent = [manifest.find(name) for name in wanted if name not in found]
    for record in absent:
        if record.built_in:
            click.echo(f"{record.name} is part of the package and needs no cache", err=True)
    return files, [f"{record.name} is not in the cache" for record in absent if not record.built_in]


def _show(files: list[CachedFile], states: Sequence[str], as_json: bool) -> None:
    from dcnzoo.download import cache_home
    from dcnzoo.transfer import readable_size

    if as_json:
        entries = [
            {
                "names": file.names,
                "path": str(file.path),
                "bytes": file.size,
                "total_bytes": file.total if file.is_part else file.size,
                "state": state,
            }
            for file, state in zip(files, states, strict=True)
        ]
        print(json.dumps(entries, indent=2))
        return
    if files:
        lines = [_row(file, state) for file, state in zip(files, states, strict=True)]
        print(table([("name", "size", "state", "file"), *lines]))
    total = readable_size(sum(file.size for file in files))
    print(f"{_count(files)}, {total} in {cache_home() / 'checkpoints'}")


def _row(file: CachedFile, state: str) -> tuple[str, ...]:
    from dcnzoo.transfer import readable_size

    whole = f" of {readable_size(file.total)}" if file.total else ""
    return ", ".join(file.names) or "-", readable_size(file.size), state + whole, file.path.name


def _count(files: Sequence[CachedFile]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'}"


def _confirmed(files: list[CachedFile]) -> bool:
    from dcnzoo.transfer import readable_size

    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on; give --yes to remove the files.")
    for file in files:
        click.echo(f"{file.path} ({readable_size(file.size)})", err=True)
    return click.confirm(f"Remove {_count(files)}?", err=True)
