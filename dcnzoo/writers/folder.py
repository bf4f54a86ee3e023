"""The output folder: may it be used, and what is in it from an earlier run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dcnzoo.download import sha256_of
from dcnzoo.errors import OutputError
from dcnzoo.run_folder import RUN_FILE, read_note
from dcnzoo.sources import is_url
from dcnzoo.writers.base import FolderWriter
from dcnzoo.writers.crops import CropWriter
from dcnzoo.writers.images import ImageWriter
from dcnzoo.writers.journal import JOURNAL, Progress, lock, read_journal, written_stems
from dcnzoo.writers.whole import write_whole
from dcnzoo.writers.yolo import YoloWriter

PLACE = "working_directory"
"""Noted, as seen from the output folder, of a run whose relative paths decide what is read."""

ELSEWHERE = "choose another --out"
"""The cure of most commands for a folder that cannot take the results."""

_STARTING = "starting"
"""Noted while earlier results are deleted, so that half of them never look like results."""

_CONTENTS = "SHA-256 of "
"""Begins what is noted about the contents of a file."""


_FILES_OF_IMAGES: dict[str, type[FolderWriter]] = {
    writer.product: writer for writer in (YoloWriter, ImageWriter, CropWriter)
}
"""Products that are folders of files for each image."""


class OutputFolder:
    """A folder for the results of one run.

    Only results that an earlier run made are ever deleted, and only when asked.

    Attributes:
        path: the folder.
        products: paths of all that a run may make in it.
        resumes: whether there is a run to go on with; known after `check`.

    Args:
        path: the folder; `start` makes it if it is missing.
        products: names of the files and folders that a run may make in it.
        note: what to note about the run; JSON types only. Its `program` says whose results are replaced.
        overwrite: whether the results of an earlier run are replaced.
        resume: whether a run goes on where an earlier one stopped.
        can_resume: whether the command can do so at all.
        free: names in the note that may differ between the two.
        elsewhere: what to do if the folder cannot take the results, for messages.
    """

    def __init__(
        self,
        path: Path,
        products: Iterable[str],
        note: dict[str, Any],
        *,
        overwrite: bool = False,
        resume: bool = False,
        can_resume: bool = True,
        free: Collection[str] = (),
        elsewhere: str = ELSEWHERE,
    ) -> None:
        self.path, self.note = path, note
        self.overwrite, self.resume, self.free = overwrite, resume, free
        self.can_resume, self.elsewhere = can_resume, elsewhere
        self.resumes = False
        # The journal last: it says which files are a run's, so it is deleted last.
        self.products = [path / name for name in (*products, JOURNAL)]

    def check(self, sources: Sequence[str]) -> None:
        """Checks that results can be written, and leaves everything as it was.

        Args:
            sources: what the images are read from; must not lie where results go.

        Raises:
            OutputError: the folder cannot be made or written, holds results that may not be replaced, or
                of a run that cannot be resumed, or a source lies where results go.
        """
        with self.errors(), _made(self.path), tempfile.TemporaryFile(dir=self.path):
            pass
        for source in sources:
            self._check_source(source)
        names = ", ".join(product.name for product in self.products if product.exists())
        if not names:
            return
        note = read_note(self.path)
        if note is None or note.get("program") != self.note["program"]:
            who = f"`{note['program']}` has" if note and note.get("program") else "no run of dcnzoo has"
            raise OutputError(f"{self.path} holds {names}, which {who} made; {self.elsewhere}")
        if self.resume:
            if _STARTING not in note:
                self._check_same_run(note)
                self.resumes = True
        elif not self.overwrite:
            cures = [self.elsewhere, "replace them with --overwrite"]
            cures += ["go on with --resume"] if self.can_resume else []
            listed = f"{', '.join(cures[:-1])} or {cures[-1]}"
            raise OutputError(f"{self.path} already holds results ({names}); {listed}")

    def start(self) -> None:
        """Deletes the results of an earlier run and notes the new one, unless this one resumes it.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.resumes:
            return
        with self.errors():
            self.path.mkdir(parents=True, exist_ok=True)
            write_note(self.path, {"program": self.note["program"], _STARTING: True})
            self.clear()
            write_note(self.path, self.note)

    def progress(self) -> Progress:
        """Finds out what is done in the folder; of what is written nothing stays if nothing counts.

        Raises:
            OutputError: the journal is damaged, or the folder cannot be written.
        """
        with self.errors():
            progress = read_journal(self.path)
            if progress.journal_size is None:
                self.clear()
                progress = Progress()
        return progress

    def clear(self) -> None:
        """Deletes all results; files of the user's own among those of the images stay."""
        stems = written_stems(self.path)
        for product in self.products:
            writer = _FILES_OF_IMAGES.get(product.name)
            if writer and product.is_dir() and not product.is_symlink():
                writer.remove(product, stems)
            else:
                _delete(product)

    def errors(self) -> AbstractContextManager[None]:
        """Turns an `OSError` of a block into an `OutputError`."""
        return output_errors(self.path, self.elsewhere)

    def _check_same_run(self, note: dict[str, Any]) -> None:
        """Checks that the run to resume was started with the same options, and read the same files."""
        now = json.loads(json.dumps(self.note))
        differing = sorted(
            name
            for name in now.keys() | note.keys()
            if name not in self.free and now.get(name) != note.get(name)
        )
        contents = [name.removeprefix(_CONTENTS) for name in differing if name.startswith(_CONTENTS)]
        options = [name for name in differing if name != PLACE and not name.startswith(_CONTENTS)]
        if options:
            named = ", ".join(f"{name} {note.get(name)!r} (now {now.get(name)!r})" for name in options)
            why, cure = f"with {named}", "give the same options"
        elif PLACE in differing:
            there = os.path.normpath(self.path.resolve() / str(note.get(PLACE)))
            why, cure = f"in {there}, so that relative paths mean other files here", "change to that folder"
        elif contents:
            why, cure = f"with other contents of {', '.join(contents)}", "restore these"
        else:
            return
        raise OutputError(
            f"cannot resume the run in {self.path}, which was started {why}; {cure}, or start anew with"
            " --overwrite"
        )

    def _check_source(self, source: str) -> None:
        if is_url(source):
            return
        path = Path(source).resolve()
        for product in self.products:
            if product.resolve() in (path, *path.parents):
                raise OutputError(f"{source} lies in {product}, where results go; {self.elsewhere}")


def contents_note(paths: Iterable[Path | None]) -> dict[str, str]:
    """Returns what to note of the contents of files, so that a run is resumed with the same ones only.

    Args:
        paths: the files; None, pipes, which can be read but once, and what cannot be read at all are left
            out: who reads it says what is wrong.
    """
    noted = {}
    for path in paths:
        with suppress(OSError):
            if path is not None and path.is_file():
                noted[f"{_CONTENTS}{path}"] = sha256_of(path)
    return noted


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Notes in a folder which run makes the results."""
    write_whole(path / RUN_FILE, f"{json.dumps(note, indent=2)}\n")


@contextmanager
def output_errors(path: Path, cure: str = ELSEWHERE) -> Iterator[None]:
    """Turns an `OSError` of the block into an `OutputError` about its file, or else about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to {error.filename or path}: {reason}; {cure}") from error


@contextmanager
def exclusive(folder: Path, wanted: bool = True, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Keeps other runs out of an output folder.

    It is made if it is missing, and deleted if it stays empty. To be held from before it is checked what the
    folder holds until the last result is written.

    Args:
        folder: of the results.
        wanted: whether to do so; of several processes, the first one does.
        elsewhere: what to do if that is not possible, for messages.

    Raises:
        OutputError: another run is there.
    """
    if not wanted:
        yield
        return
    with ExitStack() as stack:
        with output_errors(folder, elsewhere):
            stack.enter_context(_made(folder))
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            lock(descriptor, folder)
        yield


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Makes a folder for the block if it is missing, and removes afterwards what was made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _delete(product: Path) -> None:
    if product.is_dir() and not product.is_symlink():
        shutil.rmtree(product)
    else:
        product.unlink(missing_ok=True)
