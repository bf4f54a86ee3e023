"""The list of images that could not be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from dcnzoo.errors import ImageReadError


class ErrorLog:
    """JSON lines with `source` and `reason`; the file is there only if something failed.

    Args:
        out: existing folder.
    """

    product: ClassVar[str] = "errors.jsonl"

    def __init__(self, out: Path) -> None:
        self.path = out / self.product

    def write(self, error: ImageReadError) -> None:
        """Appends one failure."""
        line = json.dumps({"source": error.source, "reason": error.reason})
        with self.path.open("a", encoding="ascii", newline="\n") as file:
            file.write(line + "\n")
