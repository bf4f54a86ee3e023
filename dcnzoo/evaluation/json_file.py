"""JSON files that somebody else wrote: read, and complain about the entry that is at fault."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcnzoo.errors import EvaluationError

_SHORT = reprlib.Repr()  # of what a file holds, which may be any amount
_SHORT.maxlevel = 2

LARGEST = 2**53
"""Largest number that is accepted: up to here integers are exact in every reader of JSON."""


@dataclass(frozen=True)
class Entry:
    """One object of a list in a JSON file, with its fields checked as they are read.

    Every method raises an `EvaluationError` that names the file, the entry and the field.

    Attributes:
        path: the file.
        name: what to call the entry, such as "annotation 12".
        fields: its content.
    """

    path: Path
    name: str
    fields: Mapping[str, Any]

    def integer(self, key: str) -> int:
        """Returns an integer field."""
        value: int = self._checked(key, _is_integer, "an integer")
        return value

    def whole_number(self, key: str) -> int:
        """Returns a field that is an integer, or a float without a fraction (640.0), as some tools write."""
        return int(self._checked(key, _is_whole, "a whole number"))

    def text(self, key: str, errors: str = "strict") -> str:
        """Returns a text field.

        Args:
            key: of the field.
            errors: "surrogateescape" lets names of files that are not UTF-8 pass, as Python has them.
        """
        value: str = self._checked(key, partial(_is_text, errors=errors), "a text of valid Unicode")
        return value

    def number(self, key: str) -> float:
        """Returns a finite number."""
        value: float = self._checked(key, _is_number, "a finite number")
        return value

    def box_xywh(self, key: str) -> list[float]:
        """Returns a box: four finite numbers, of which width and height are not negative."""
        value: list[float] = self._checked(key, _is_box, "[x, y, width, height]")
        return value

    def has(self, key: str) -> bool:
        """Tells whether the field is there and holds something."""
        return self.fields.get(key) not in (None, [], "")

    def fail(self, problem: str) -> EvaluationError:
        """Returns the error to raise for a problem with this entry."""
        return EvaluationError(str(self.path), f"{self.name} {problem}")

    def _checked(self, key: str, test: Callable[[Any], Any], expected: str) -> Any:
        if key not in self.fields:
            raise self.fail(f"has no {key!r}")
        if not test(self.fields[key]):
            raise self.fail(f"has {key} {_SHORT.repr(self.fields[key])}, expected {expected}")
        return self.fields[key]


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        EvaluationError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(str(path), f"is not JSON: {error}") from error


def entries(path: Path, items: object, singular: str) -> Iterator[Entry]:
    """Yields the objects of a list.

    Args:
        path: the file that they come from.
        items: what should be a list of objects.
        singular: what to call each of them.

    Raises:
        EvaluationError: they are not a list of objects.
    """
    if not isinstance(items, list):
        raise EvaluationError(
            str(path), f"expected a list of objects, each one {singular}, got {_SHORT.repr(items)}"
        )
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise EvaluationError(str(path), f"{singular} at position {position} is no JSON object")
        name = (
            f"{singular} {item['id']}"
            if _is_integer(item.get("id"))
            else f"{singular} at position {position}"
        )
        yield Entry(path, name, item)


def _is_text(value: object, errors: str) -> bool:
    """Tells whether a value is a text that can be written to a file."""
    try:
        return isinstance(value, str) and value.encode("utf-8", errors) != b""
    except UnicodeEncodeError:
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0
