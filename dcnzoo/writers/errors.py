"""The list of images that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from dcnzoo.errors import ImageError
from dcnzoo.writers.growing import GrowingFile, Layout


class ErrorLog:
    """JSON lines with `source` and `reason`; the file is there only if something failed.

    Args:
        out: existing folder, in which the file does not exist yet.
    """

    product: ClassVar[str] = "errors.jsonl"
    layout: ClassVar[Layout] = Layout(product)

    def __init__(self, out: Path) -> None:
        self.path = out / self.product
        self._file: GrowingFile | None = None

    def write(self, error: ImageError) -> None:
        """Appends one failure."""
        if self._file is None:
            self._file = GrowingFile(self.path.parent, self.layout)
        self._file.append(json.dumps({"source": error.source, "reason": error.reason}) + "\n")

    def close(self) -> None:
        """Closes the file if there is one."""
        if self._file is not None:
            self._file.close()
