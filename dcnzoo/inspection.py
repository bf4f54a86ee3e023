"""What a checkpoint file is, as far as its tensors and what it says about itself tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcnzoo.build import check_fit
from dcnzoo.checkpoint import Checkpoint, load_checkpoint
from dcnzoo.download import sha256_of
from dcnzoo.errors import CheckpointError
from dcnzoo.manifest import Architecture
from dcnzoo.recognise import recognise

_LONGEST_TEXT = 80
"""Characters of what a file says that is worth repeating; a whole configuration is not."""

_LARGEST_NUMBER = 1e18


@dataclass(frozen=True)
class Inspection:
    """What was found out about a checkpoint file.

    Attributes:
        checkpoint: its contents, dtypes as in the file.
        size: of the file, in bytes.
        sha256: of the file, 64 hex digits.
        architecture: structure that the tensors were compared with, None if none was named or recognised.
        named_by: who named it: "caller", "file", or "tensors" that were recognised; None without one.
        misfit: why the tensors do not fit it, None if they do or there is none.
    """

    checkpoint: Checkpoint
    size: int
    sha256: str
    architecture: Architecture | None
    named_by: str | None
    misfit: CheckpointError | None

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned: weights and biases, without the statistics of batch norm."""
        statistics = (".running_mean", ".running_var", ".num_batches_tracked")
        tensors = self.checkpoint.state_dict.items()
        return sum(tensor.numel() for name, tensor in tensors if not name.endswith(statistics))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Kinds of the floating tensors, such as "float32", in alphabetical order."""
        tensors = self.checkpoint.state_dict.values()
        found = {str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()}
        return tuple(sorted(found))

    @property
    def written_by(self) -> str | None:
        """Program that wrote the file, as far as the file says."""
        meta, description = self.checkpoint.meta, self.checkpoint.description
        if description is not None:
            return "dcnzoo train" if "dcnzoo_version" in meta else "dcnzoo (a safe copy)"
        if "mmdet_version" in meta:
            return "MMDetection 2.x"
        return "MMDetection 3.x" if "mmengine_version" in meta else None

    @property
    def notes(self) -> dict[str, str | int | float]:
        """Short texts and numbers that the file says about itself, such as the epoch and AP."""
        known = ("arch", "CLASSES", "classes")
        return {
            name: value
            for name, value in self.checkpoint.meta.items()
            if isinstance(name, str) and name not in known and _is_short(value)
        }


def inspect_checkpoint(path: Path, architecture: Architecture | None = None) -> Inspection:
    """Reads a checkpoint file, and compares it with an architecture.

    Args:
        path: the file.
        architecture: to compare with; by default what the file names, or else what its tensors look like.

    Raises:
        CheckpointError: the file cannot be read, or is unsafe.
    """
    checkpoint = load_checkpoint(path, widen=False)
    own = checkpoint.description.architecture if checkpoint.description else None
    candidates = {"caller": architecture, "file": own, "tensors": recognise(checkpoint.state_dict)}
    named_by = next((who for who, named in candidates.items() if named), None)
    chosen = candidates[named_by] if named_by else None
    misfit = None
    if chosen is not None:
        try:
            check_fit(chosen, checkpoint)
        except CheckpointError as error:
            misfit = error
    return Inspection(checkpoint, path.stat().st_size, sha256_of(path), chosen, named_by, misfit)


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_TEXT
    return isinstance(value, int | float) and abs(value) < _LARGEST_NUMBER  # neither infinite nor NaN
