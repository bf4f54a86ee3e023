"""Files that grow piece by piece, are whole after each, and can be taken back to an earlier size."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcnzoo.writers.whole import replacing

BLOCK = 2**20
"""Bytes that are copied at once."""


class Layout(NamedTuple):
    """What is around the pieces of a growing file.

    Attributes:
        name: of the file, below the output folder.
        head: text before the first piece.
        separator: text between two pieces.
        tail: text after the last piece.
    """

    name: str
    head: str = ""
    separator: str = ""
    tail: str = ""


def json_list(name: str, head: str = "[", tail: str = "\n]\n") -> Layout:
    """Returns the layout of a JSON file with one growing list."""
    return Layout(name, head, ",", tail)


def json_elements(elements: Sequence[dict[str, Any]]) -> str:
    """Returns elements of a JSON list as a piece, one line each; nothing for none."""
    return "\n" + ",\n".join(map(json.dumps, elements)) if elements else ""


class GrowingFile:
    """A file that grows by whole pieces and has the same last words after each of them.

    A piece that does not fit on the disk leaves no trace, so the file is complete at any time.

    Attributes:
        name: of the file.
        size: bytes up to the end of the last piece, the tail not counted.

    Args:
        folder: existing folder.
        layout: name, and what is around the pieces.
        size: of an existing file, which is cut off there; None makes a new file.

    Raises:
        OSError: the file exists but should be new, or the other way round, or is shorter than `size`.
    """

    def __init__(self, folder: Path, layout: Layout, size: int | None = None) -> None:
        self.name = layout.name
        self._separator, self._tail = layout.separator, layout.tail.encode()
        self._empty = len(layout.head.encode())
        path = folder / layout.name
        self._file = path.open("xb" if size is None else "r+b", buffering=0)
        self.size = self._empty if size is None else size
        try:
            self._start(layout.head.encode(), path, size)
        except OSError:
            self._file.close()
            raise

    def append(self, piece: str) -> None:
        """Adds a piece; a path that is no valid UTF-8 comes through as the bytes that it has."""
        if not piece:
            return
        separator = self._separator if self.size > self._empty else ""
        content = (separator + piece).encode("utf-8", "surrogateescape")
        try:
            self._write(self.size, content + self._tail)
        except OSError:
            self._restore()
            raise
        self.size += len(content)

    def sync(self) -> None:
        """Waits until the disk has everything."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def fileno(self) -> int:
        """Returns the file descriptor."""
        return self._file.fileno()

    def _start(self, head: bytes, path: Path, size: int | None) -> None:
        if size is None:
            self._write(0, head + self._tail)
        elif path.stat().st_size < size:
            raise OSError(errno.EINVAL, f"it is shorter than the {size} bytes that were there", str(path))
        else:
            self._restore()

    def _restore(self) -> None:
        self._file.truncate(self.size)
        self._write(self.size, self._tail)

    def _write(self, position: int, content: bytes) -> None:
        self._file.seek(position)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def join_files(layout: Layout, parts: Iterable[tuple[Path, int]], out: Path) -> None:
    """Writes the pieces of several files of a layout to one new file.

    Args:
        layout: of all of them.
        parts: folder of each file, and its size without the tail.
        out: folder of the new file, which gets its name when it is complete.
    """
    start = len(layout.head.encode())
    with replacing(out / layout.name) as path, path.open("wb") as joined:
        joined.write(layout.head.encode())
        for folder, size in parts:
            if size > start:
                joined.write(layout.separator.encode() if joined.tell() > start else b"")
                with (folder / layout.name).open("rb") as part:
                    part.seek(start)
                    while block := part.read(min(BLOCK, size - part.tell())):
                        joined.write(block)
        joined.write(layout.tail.encode())
