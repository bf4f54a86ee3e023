"""The journal of a run: what of its results counts.

Results are written as they come, and count from the moment at which a line of the journal says so. The line
names the images and the sizes of the files at that moment: whatever a killed run wrote beyond is cut off
when the next one goes on. Before files are made for an image alone, another line names their stem, so that it
is known which files are the run's. A line is whole or, if the end is missing, nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dcnzoo.errors import OutputError
from dcnzoo.writers.growing import GrowingFile, Layout

JOURNAL = "progress.jsonl"

T = TypeVar("T")

_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a line raises that no run has written."""


class DoneImage(NamedTuple):
    """An image whose results are written.

    Attributes:
        location: path, or address without credentials.
        stem: that its files are named by, None without such files.
        image_id: COCO image id, None without one.
    """

    location: str
    stem: str | None
    image_id: int | None


class Listing(NamedTuple):
    """What a run was given to do, so that runs can be told to be parts of one.

    Attributes:
        images: how many, those of other shards included.
        digest: of their locations, hexadecimal.
    """

    images: int
    digest: str


@dataclass
class Progress:
    """What a journal says.

    Attributes:
        locations: how many images of each location are done.
        stems: of the images that are done.
        begun: stems of all images whose files were begun; may lack some that are done.
        image_ids: of the images that are done.
        sizes: of the growing files, in bytes, without their tails.
        journal_size: bytes of the journal's whole lines; None if no line makes anything count.
        listing: of a run that came to its end, else None.
        failures: images that failed in a run that came to its end.
    """

    locations: Counter[str] = field(default_factory=Counter)
    stems: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    image_ids: set[int] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    journal_size: int | None = None
    listing: Listing | None = None
    failures: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes in a line of the journal.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: it is none.
        """
        if "begun" in line:
            self.begun.update(_of_type(str, stem) for stem in line["begun"])
            return
        for image in (DoneImage(*fields) for fields in line["images"]):
            self.locations[_of_type(str, image.location)] += 1
            self.stems.update(() if image.stem is None else [_of_type(str, image.stem)])
            self.image_ids.update(() if image.image_id is None else [_of_type(int, image.image_id)])
        self.sizes = {name: _count(size) for name, size in line["sizes"].items()}
        self.listing = None
        if "listing" in line:
            images, digest = line["listing"]
            self.listing = Listing(_count(images), _of_type(str, digest))
        self.failures = _count(line.get("failures", 0))


def _of_type(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _count(value: object) -> int:
    number = _of_type(int, value)
    if number < 0:
        raise ValueError(f"expected a number of things, got {number}")
    return number


def read_journal(folder: Path) -> Progress:
    """Reads the journal of a folder; without one nothing is done.

    Raises:
        OutputError: it is damaged, not just cut short.
    """
    progress = Progress()
    path = folder / JOURNAL
    if not path.exists():
        return progress
    size, counts = 0, False
    for line in _whole_lines(path):
        try:
            content = json.loads(line)
            progress.add(content)
        except _DAMAGE as error:
            raise OutputError(f"{path} is damaged; replace the results with --overwrite") from error
        size += len(line)
        counts = counts or "begun" not in content
    progress.journal_size = size if counts else None
    return progress


def written_stems(folder: Path) -> set[str]:
    """Returns the stems of the images that a run has made files for, done or not.

    Of a damaged journal that is what can be read.
    """
    progress = Progress()
    with suppress(FileNotFoundError):
        for line in _whole_lines(folder / JOURNAL):
            with suppress(*_DAMAGE):
                progress.add(json.loads(line))
    return progress.stems | progress.begun


def lock(descriptor: int, path: Path) -> None:
    """Locks an open file or folder until it is closed.

    Raises:
        OSError: it is locked, or cannot be.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EBUSY, "another process is writing results there", str(path)) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


class Journal:
    """Writes the journal.

    Args:
        folder: of the results.
        progress: what an earlier run has done; the journal goes on there.

    Raises:
        OSError: it cannot be written, or another process writes it.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._file = GrowingFile(folder, Layout(JOURNAL), progress.journal_size)
        try:
            lock(self._file.fileno(), folder / JOURNAL)
        except OSError:
            self._file.close()
            raise

    def begin(self, stems: Sequence[str]) -> None:
        """Notes that files with these stems are about to be made.

        Raises:
            OSError: it cannot be written.
        """
        self._file.append(json.dumps({"begun": stems}) + "\n")

    def commit(
        self,
        images: Sequence[DoneImage],
        files: Sequence[GrowingFile],
        listing: Listing | None = None,
        failures: int = 0,
    ) -> None:
        """Makes everything count that has been written.

        Args:
            images: done since the last time.
            files: all that grow.
            listing: if the run has come to its end, what it was given to do.
            failures: images that failed, at the end.

        Raises:
            OSError: it cannot be written; then nothing counts that did not before.
        """
        for file in files:
            file.sync()
        line: dict[str, Any] = {"images": images, "sizes": {file.name: file.size for file in files}}
        if listing:
            line |= {"listing": listing, "failures": failures}
        self._file.append(json.dumps(line) + "\n")
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
