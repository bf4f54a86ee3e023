"""Joins the results of several processes that shared the images of one run."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dcnzoo.errors import OutputError
from dcnzoo.processes import Share
from dcnzoo.run_folder import read_note
from dcnzoo.writers import PRODUCTS, WRITERS, CropWriter, ErrorLog, ImageWriter, Writer
from dcnzoo.writers.folder import PLACE, OutputFolder
from dcnzoo.writers.growing import Layout, join_files
from dcnzoo.writers.journal import JOURNAL, Listing, Progress, read_journal
from dcnzoo.writers.yolo import CLASS_LIST

PROGRAM = "dcnzoo merge"
ELSEWHERE = "copy the shards to another folder"
"""What to do if the folder that holds them cannot take the results."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The results of one process.

    Attributes:
        path: their folder.
        note: what the run noted about itself.
        progress: what its journal says.
        listing: what its images, and those of the other shards, were.
    """

    path: Path
    note: dict[str, Any]
    progress: Progress
    listing: Listing


@dataclasses.dataclass(frozen=True)
class Merged:
    """What was joined.

    Attributes:
        shards: how many.
        images: done by all of them together.
        failures: images that failed.
    """

    shards: int
    images: int
    failures: int


def merge_shards(out: Path, free: Collection[str], overwrite: bool = False) -> Merged:
    """Joins the shards in a folder; they stay as they are.

    Args:
        out: the folder with the shards, which gets the results.
        free: options that may differ between the shards.
        overwrite: whether the results of an earlier merge are replaced.

    Raises:
        OutputError: shards are missing, not complete or not of one run, or the results cannot be written.
    """
    parts = [_read_part(path) for path in find_shards(out)]
    _check_same_run(parts, free)
    failures = sum(part.progress.failures for part in parts)
    images = sum(part.progress.locations.total() for part in parts)
    expected = parts[0].listing.images - failures
    if images != expected:
        raise OutputError(f"the shards in {out} have {images} images, expected {expected}; make them anew")
    options = {name: value for name, value in parts[0].note.items() if name not in ("program", "shard")}
    note = {"program": PROGRAM, **options}
    folder = OutputFolder(out, PRODUCTS, note, overwrite=overwrite, can_resume=False, elsewhere=ELSEWHERE)
    folder.check([])
    folder.start()
    with folder.errors():
        # First, since it says which files are results, should they be replaced one day.
        join_files(Layout(JOURNAL), [(part.path, part.progress.journal_size or 0) for part in parts], out)
        for writer in _writers(parts[0].note):
            _join(writer, parts, out)
        _join_errors(parts, out)
    return Merged(len(parts), images, failures)


def find_shards(out: Path) -> list[Path]:
    """Returns the folders of all shards, in order.

    Raises:
        OutputError: there are none, some are missing, or there are shards of several divisions.
    """
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    counts = {match[1] for name in names if (match := re.fullmatch(r"shard-\d+-of-(\d+)", name))}
    if len(counts) != 1:
        found = f"shards of {' and of '.join(sorted(counts))}" if counts else "no shards"
        raise OutputError(f"{out} holds {found}; expected the folders shard-1-of-N to shard-N-of-N")
    count = int(counts.pop())
    expected = [Share(index, count).folder_name for index in range(count)]
    if missing := [name for name in expected if name not in names]:
        raise OutputError(f"{out} lacks {', '.join(missing)}")
    return [out / name for name in expected]


def _read_part(path: Path) -> Part:
    note, progress = read_note(path), read_journal(path)
    if note is None or not _names_formats(note.get("formats")):
        raise OutputError(f"{path} holds no results of `dcnzoo predict`")
    if progress.listing is None:
        raise OutputError(f"{path} is not complete; run that shard again with --resume")
    return Part(path, note, progress, progress.listing)


def _names_formats(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) and name in WRITERS for name in names)


def _check_same_run(parts: Sequence[Part], free: Collection[str]) -> None:
    first = parts[0]
    for part in parts[1:]:
        names = {*first.note, *part.note} - {*free, PLACE, "shard"}
        differing = sorted(name for name in names if first.note.get(name) != part.note.get(name))
        if differing:
            raise OutputError(f"{part.path} was made with another {differing[0]} than {first.path}")
        if part.listing != first.listing:
            raise OutputError(f"{part.path} was made of other images than {first.path}; make both anew")


def _writers(note: dict[str, Any]) -> list[type[Writer]]:
    pictures: dict[str, type[Writer]] = {"save_images": ImageWriter, "save_crops": CropWriter}
    formats: list[type[Writer]] = [WRITERS[name] for name in note["formats"]]
    return formats + [writer for option, writer in pictures.items() if note.get(option)]


def _join(writer: type[Writer], parts: Sequence[Part], out: Path) -> None:
    for layout in writer.layouts:
        sizes = [part.progress.sizes.get(layout.name) for part in parts]
        if None in sizes:
            raise OutputError(f"{parts[sizes.index(None)].path} lacks {layout.name}; make that shard anew")
        join_files(layout, [(part.path, size or 0) for part, size in zip(parts, sizes, strict=True)], out)
    for part in parts:
        source = part.path / writer.product
        if source.is_dir():
            # Every image has a name of its own among those of all shards.
            shutil.copytree(source, out / writer.product, dirs_exist_ok=True)
        if (part.path / CLASS_LIST).exists():
            shutil.copyfile(part.path / CLASS_LIST, out / CLASS_LIST)


def _join_errors(parts: Sequence[Part], out: Path) -> None:
    logs = [part.path / ErrorLog.product for part in parts if part.progress.failures]
    if logs:
        join_files(ErrorLog.layout, [(log.parent, log.stat().st_size) for log in logs], out)
