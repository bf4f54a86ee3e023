"""How a folder with the results of a run is recognised: by the note that the run leaves there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
"""Says which run made the results; its presence makes them replaceable."""

_PICTURES = {
    "dcnzoo predict": ("images", "crops"),
    "dcnzoo merge": ("images", "crops"),
    "dcnzoo eval": ("precision_recall.bbox.png", "precision_recall.segm.png"),
    "dcnzoo train": ("curves.png",),
}
"""By the program that leaves the note."""


def read_note(path: Path) -> dict[str, Any] | None:
    """Returns what a run has noted in its folder, None if there is no such note."""
    try:
        note = json.loads((path / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None


def pictures_in(path: Path) -> tuple[str, ...]:
    """Returns the names of the files and folders with pictures that a run makes in its folder.

    Args:
        path: a folder; one that no run has left its note in has none.
    """
    note = read_note(path)
    return _PICTURES.get(str(note.get("program")), ()) if note else ()
