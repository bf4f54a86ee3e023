"""The results of one process: its writers, the list of what failed, and the journal that makes them count."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dcnzoo.errors import ImageError, ImageWriteError
from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.errors import ErrorLog
from dcnzoo.writers.folder import output_errors
from dcnzoo.writers.growing import GrowingFile
from dcnzoo.writers.journal import DoneImage, Journal, Listing, Progress

COMMIT_SECONDS = 1.0
"""Work that may be lost when a process is killed. More often would mean waiting for the disk."""

ABOUT_ONE_IMAGE = frozenset(
    {None, errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}  # encoders have no number
)
"""Numbers of the errors of which other images may be free; any other one is about the folder or the disk."""

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
            # Those first that can fail on a single image, so that nothing is in the growing files by then.
            self.writers = sorted(open_writers(path, progress.sizes), key=lambda each: not each.needs_stem)
            for writer in self.writers:
                writer.discard(progress.begun - progress.stems)
        self._pending: list[DoneImage] = []
        self._failures = 0
        self._torn = False
        self._committed = time.monotonic()

    @property
    def files(self) -> list[GrowingFile]:
        """All files that grow."""
        return [file for writer in self.writers for file in writer.files]

    def write(self, results: Sequence[ImageResult]) -> list[ImageWriteError | None]:
        """Writes results, and from time to time makes them count.

        Returns:
            For each, why this one cannot be written, or None if it is.

        Raises:
            OutputError: none can be written.
        """
        self._torn = True
        stems = [result.stem for result in results if result.stem is not None]
        if stems:
            with output_errors(self.path):
                self._journal.begin(stems)
        failures = [self._write(result) for result in results]
        self._torn = False
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()
        return failures

    def _write(self, result: ImageResult) -> ImageWriteError | None:
        """Writes a result with all writers or none."""
        for writer in self.writers:
            with output_errors(writer.path):
                try:
                    writer.write(result)
                except OSError as error:
                    if error.errno not in ABOUT_ONE_IMAGE or result.stem is None:
                        raise
                    for each in self.writers:
                        each.discard({result.stem})
                    reason = f"cannot write {error.filename or writer.product}: {error.strerror or error}"
                    return ImageWriteError(result.source.shown, reason)
        self._pending.append(DoneImage(result.source.shown, result.stem, result.image_id))
        return None

    def fail(self, error: ImageError) -> None:
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
