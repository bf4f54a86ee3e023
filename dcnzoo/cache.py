"""What lies in the cache: which files, of which checkpoints, how complete, and whether they are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcnzoo.download import cache_home, cached_path, locked, verify_sha256
from dcnzoo.manifest import Manifest, Record
from dcnzoo.transfer import NOTE_SUFFIX, PART_SUFFIX, Part

State = Literal["complete", "part", "unknown", "verified", "no hash"]


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache.

    Attributes:
        target: where the complete file is, or will be once its part is complete.
        records: checkpoints that it is the file of; none if no manifest knows it.
        is_part: whether it is the part of one that was not downloaded to the end.
    """

    target: Path
    records: tuple[Record, ...]
    is_part: bool = False

    @property
    def path(self) -> Path:
        """The file itself."""
        return Part(self.target).path if self.is_part else self.target

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints."""
        return tuple(record.name for record in self.records)

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 if the file has gone meanwhile."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def total(self) -> int | None:
        """Length in bytes of the file that a part is of, None where unknown."""
        origin = Part(self.target).origin if self.is_part else None
        return origin.total if origin else None

    @property
    def state(self) -> State:
        """What can be said without reading the file."""
        if not self.records:
            return "unknown"
        return "part" if self.is_part else "complete"

    def verify(self) -> State:
        """Reads the file if it is complete, and says "verified", or "no hash" if there is none to compare.

        Raises:
            ChecksumError: it is not the published file.
            OSError: it cannot be read.
        """
        if self.state != "complete":
            return self.state
        if self.records[0].sha256 is None:
            return "no hash"
        verify_sha256(self.path, self.records[0].sha256)
        return "verified"

    def remove(self) -> None:
        """Deletes the file.

        Raises:
            DownloadError: another process is downloading it.
            OSError: it cannot be deleted.
        """
        with locked(self.target, wait=False):
            if not self.is_part:
                self.path.unlink(missing_ok=True)
            Part(self.target).discard()


def cached_files(manifest: Manifest, cache_dir: Path | None = None) -> list[CachedFile]:
    """Lists the cache.

    Args:
        manifest: says which checkpoints the files are of.
        cache_dir: cache folder; `cache_home()` by default.

    Returns:
        Complete files and parts, in alphabetical order.
    """
    folder = (cache_dir or cache_home()) / "checkpoints"
    owners = defaultdict(list)
    for record in manifest.records.values():
        owners[cached_path(record, cache_dir)].append(record)
    return [
        CachedFile(target, tuple(owners[target]), is_part) for target, is_part in sorted(_targets(folder))
    ]


def _targets(folder: Path) -> Iterator[tuple[Path, bool]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(PART_SUFFIX) and path.is_file():
            yield path.with_name(path.name.removesuffix(PART_SUFFIX)), True
        elif path.is_file() and not path.name.endswith(NOTE_SUFFIX):
            yield path, False
