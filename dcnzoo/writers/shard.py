"""The results of one process: its writers, the list of what failed, and the journal that makes them count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dcnzoo.errors import ImageReadError
from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.errors import ErrorLog
from dcnzoo.writers.folder import output_errors
from dcnzoo.writers.growing import GrowingFile
from dcnzoo.writers.journal import DoneImage, Journal, Listing, Progress

COMMIT_SECONDS = 1.0
"""Work that may be lost when a process is killed. More often would mean waiting for the disk."""

OpenWriters = Callable[[Path, Mapping[str, int]], Iterable[Writer]]
"""Opens writers in a folder, whose growing files have these sizes."""


class Shard:
    """Takes results and failures, and sees to it that every image counts once.

    What was written counts when `commit` says so. A process that is killed before leaves results which
    the next one takes back, to make them anew.

    Attributes:
        path: the folder.
        progress: what an earlier run has done.
        writers: get every result.

    Args:
        path: existing folder.
        progress: what an earlier run has done, from the folder's journal.
        open_writers: opens the writers.

    Raises:
        OutputError: a file cannot be opened, or another process writes there.
    """

    def __init__(self, path: Path, progress: Progress, open_writers: OpenWriters) -> None:
        self.path, self.progress = path, progress
        with output_errors(path):
            self._journal = Journal(path, progress)
            self.errors = ErrorLog(path)
            self.errors.path.unlink(missing_ok=True)  # what failed before is tried again
            self.writers = list(open_writers(path, progress.sizes))
            for writer in self.writers:
                writer.discard(progress.stems)
        self._pending: list[DoneImage] = []
        self._failures = 0
        self._torn = False
        self._committed = time.monotonic()

    @property
    def files(self) -> list[GrowingFile]:
        """All files that grow."""
        return [file for writer in self.writers for file in writer.files]

    def write(self, results: Sequence[ImageResult]) -> None:
        """Writes results, and from time to time makes them count.

        Raises:
            OutputError: they cannot be written.
        """
        self._torn = True
        for result in results:
            for writer in self.writers:
                with output_errors(writer.path):
                    writer.write(result)
            self._pending.append(DoneImage(result.source.location, result.stem, result.image_id))
        self._torn = False
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def fail(self, error: ImageReadError) -> None:
        """Lists an image that failed.

        Raises:
            OutputError: the list cannot be written.
        """
        with output_errors(self.errors.path):
            self.errors.write(error)
        self._failures += 1

    def commit(self, listing: Listing | None = None) -> None:
        """Makes everything count that has been written.

        Args:
            listing: if the run has come to its end, what it was given to do.

        Raises:
            OutputError: it cannot be written.
        """
        with output_errors(self.path):
            self._journal.commit(self._pending, self.files, listing, self._failures)
        self._pending = []
        self._committed = time.monotonic()

    def close(self) -> None:
        """Makes the results count that are whole, and closes all files.

        Raises:
            OutputError: they cannot be written.
        """
        try:
            if self._pending and not self._torn:
                self.commit()
        finally:
            for writer in self.writers:
                writer.close()
            self.errors.close()
            self._journal.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
