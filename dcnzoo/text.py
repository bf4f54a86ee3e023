"""Text for people: lines and tables; imports nothing heavy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence


def table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Aligns cells in columns.

    Args:
        rows: of equal length, the titles among them.
        numbers: indices of the columns whose cells are aligned on the right.

    Returns:
        Lines without a newline at the end.
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - columns(cell))
            cells.append(gap + cell if index in numbers else cell + gap)
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def columns(text: str) -> int:
    """Returns how many columns of a terminal a text takes: Chinese, Japanese and Korean take two each."""
    wide = sum(unicodedata.east_asian_width(each) in ("W", "F") for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) > 0 for each in text)


def one_line(name: str) -> str:
    """Returns a class name as it may stand in a line of text, with spaces for what breaks or controls one."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", name)
