"""Text for people: lines and tables; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Aligns cells in columns.

    Args:
        rows: of equal length, the titles among them.
        numbers: indices of the columns whose cells are aligned on the right.

    Returns:
        Lines without a newline at the end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def one_line(name: str) -> str:
    """Returns a class name as it may stand in a line of text, with spaces for what breaks or controls one."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", name)
