"""Files that are, whenever the process is killed, the old ones or the new ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".part"
"""Ending of the name of a file that is being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path to write a file to, which gets its name at the end of the block, or is deleted.

    So the file is, whenever the process is killed, the old one or the new one.
    """
    part = path.with_name(f"{path.name}{PARTIAL}")
    try:
        yield part
        part.replace(path)
    finally:
        with suppress(OSError):  # the block's own error says more
            part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text as `replacing` does; what UTF-8 cannot hold is escaped."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
