"""The output folder: may it be used, and what is in it from an earlier run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcnzoo.errors import OutputError
from dcnzoo.sources import is_url

RUN_FILE = "run.json"
"""Says which run made the results; its presence makes them replaceable."""


class OutputFolder:
    """A folder for the results of one run.

    Only results that an earlier run made are ever deleted, and only when asked.

    Attributes:
        path: the folder.
        products: paths of all that a run may make in it.
        overwrite: whether the results of an earlier run are replaced.
        program: the command that makes them.

    Args:
        path: the folder; `start` makes it if it is missing.
        products: names of the files and folders that a run may make in it.
        overwrite: whether the results of an earlier run are replaced.
        program: the command that makes them; only its own results are replaced.
    """

    def __init__(
        self, path: Path, products: Iterable[str], overwrite: bool = False, program: str = "dcnzoo predict"
    ) -> None:
        self.path, self.overwrite, self.program = path, overwrite, program
        self.products = [path / name for name in products]

    def check(self, sources: Sequence[str]) -> None:
        """Checks that results can be written, and leaves everything as it was.

        Args:
            sources: what the images are read from; must not lie where results go.

        Raises:
            OutputError: the folder cannot be made or written, holds results that may not be replaced, or
                a source lies where results go.
        """
        with output_errors(self.path), _made(self.path), tempfile.TemporaryFile(dir=self.path):
            pass
        for source in sources:
            self._check_source(source)
        names = ", ".join(product.name for product in self.products if product.exists())
        if names and not self._has_run():
            raise OutputError(
                f"{self.path} holds {names}, which no run of dcnzoo has made; choose another --out"
            )
        if names and not self.overwrite:
            raise OutputError(
                f"{self.path} already holds results ({names}); choose another --out, or replace them"
                " with --overwrite"
            )

    def start(self, settings: dict[str, Any]) -> None:
        """Deletes the results of an earlier run and notes the new one.

        Args:
            settings: what to note about the run; JSON types only.

        Raises:
            OutputError: the folder cannot be written.
        """
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for product in self.products:
                _delete(product)
            note = json.dumps({"program": self.program, **settings}, indent=2)
            (self.path / RUN_FILE).write_text(f"{note}\n", encoding="ascii")

    def _has_run(self) -> bool:
        try:
            note = json.loads((self.path / RUN_FILE).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(note, dict) and note.get("program") == self.program

    def _check_source(self, source: str) -> None:
        if is_url(source):
            return
        path = Path(source).resolve()
        for product in self.products:
            if product.resolve() in (path, *path.parents):
                raise OutputError(f"{source} lies in {product}, where results go; choose another --out")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into an `OutputError` about its file, or else about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write to {error.filename or path}: {reason}; choose another --out"
        ) from error


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
