"""Stand-in checkpoints: the published layouts, filled from seeded streams, written as the files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .seeded import seeded_state_dict

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in (DATA / "layouts").glob("*.json"))


def layout(name: str) -> dict[str, tuple[list[int], str]]:
    """{tensor name: (shape, dtype)} of a published checkpoint."""
    return json.loads((DATA / "layouts" / f"{name}.json").read_text())


def write_checkpoint(
    name: str,
    path: Path,
    *,
    old_names: bool = False,
    old_format: bool = False,
    half: bool = False,
    plain: bool = False,
    prefix: str = "",
    meta: dict[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint that the recorded outputs were made with, in any of the historical forms."""
    state = {}
    for key, array in seeded_state_dict(layout(name), seed=1).items():
        tensor = torch.from_numpy(array)
        if old_names:
            key = key.replace(".conv_offset.", "_offset.")
        state[prefix + key] = tensor.half() if half and tensor.is_floating_point() else tensor
    content = state if plain else {"meta": meta or {}, "state_dict": state}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return path
