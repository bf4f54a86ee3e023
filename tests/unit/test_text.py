"""Text for people."""

from __future__ import annotations

import pytest

from dcnzoo.text import columns, one_line, table


def test_numbers_are_on_the_right() -> None:
    rows = [["class", "AP", "note"], ["dog", "0.5", ""], ["traffic light", "12.25", "x"]]
    assert table(rows, numbers=[1]).split("\n") == [
        "class             AP  note",
        "dog              0.5",
        "traffic light  12.25  x",
    ]


def test_wide_characters_keep_the_columns() -> None:
    lines = table(
        [["猫", "0.5"], ["cat", "0.5"], ["cafe\u0301", "0.5"], ["고양이", "12"]], numbers=[1]
    ).split("\n")
    assert lines == ["猫      0.5", "cat     0.5", "cafe\u0301    0.5", "고양이   12"]
    assert {columns(line) for line in lines} == {11}


@pytest.mark.parametrize(("text", "width"), [("", 0), ("dog", 3), ("犬", 2), ("ｄｏｇ", 6), ("ไม้", 2)])
def test_columns(text: str, width: int) -> None:
    assert columns(text) == width


def test_one_line() -> None:
    assert one_line("a\nb\x1b[2J\u2028c\udce9") == "a b [2J c "
