"""What a checkpoint file is, as far as its tensors and what it says about itself tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dcnzoo.build import check_fit
from dcnzoo.checkpoint import Checkpoint, load_checkpoint
from dcnzoo.download import sha256_of
from dcnzoo.errors import CheckpointError
from dcnzoo.manifest import Architecture, Backbone, Detector, Pool

_DETECTORS: dict[tuple[bool, bool], Detector] = {
    (False, False): "faster_rcnn",
    (False, True): "mask_rcnn",
    (True, False): "cascade_rcnn",
    (True, True): "cascade_mask_rcnn",
}
"""By whether there are several box heads, and whether there are mask heads."""

_BACKBONES: dict[tuple[int, bool, bool], Backbone] = {
    (2, False, False): "resnet18",
    (6, True, False): "resnet50",
    (23, True, False): "resnet101",
    (23, True, True): "resnext101_32x4d",
}
"""By the blocks of the third stage, whether blocks are bottlenecks, and whether convolutions have groups."""

_LONGEST_TEXT = 80
"""Characters of what a file says that is worth repeating; a whole configuration is not."""


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


def recognise(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Tells an architecture by a few of its tensors: names tell the parts, shapes the widths.

    Args:
        tensors: under their published names.

    Returns:
        The only architecture that can have all these tensors, if any has (`build.check_fit` tells); None if
        parts of a detector are missing or of shapes that none has.
    """
    cascaded = "roi_head.bbox_head.0.fc_cls.weight" in tensors
    box_head = "roi_head.bbox_head.0" if cascaded else "roi_head.bbox_head"
    pool = "roi_head.bbox_roi_extractor.roi_layers.0"
    masked = any(name.startswith("roi_head.mask_head.") for name in tensors)
    depth = len({name.split(".")[2] for name in tensors if re.match(r"backbone\.layer3\.\d+\.", name)})
    try:
        outputs, inputs = tensors["backbone.layer3.0.conv2.weight"].shape[:2]
        bottlenecks = "backbone.layer3.0.conv3.weight" in tensors
        offsets = tensors.get("backbone.layer3.0.conv2.conv_offset.weight")
        predicted = 0 if offsets is None else len(offsets)
        modulated = predicted % 27 == 0  # two coordinates and a mask for each of nine taps; else no mask
        return Architecture(
            detector=_DETECTORS[cascaded, masked],
            backbone=_BACKBONES[depth, bottlenecks, bottlenecks and inputs < outputs],
            conv="conv" if offsets is None else "mdconv" if modulated else "dconv",
            deform_groups=1 if offsets is None else predicted // (27 if modulated else 18),
            pool=_pool(pool, tensors),
            base_width=len(tensors["backbone.conv1.weight"]),
            channels=len(tensors["neck.lateral_convs.0.conv.weight"]),
            hidden=len(tensors[f"{box_head}.shared_fcs.0.weight"]),
        )
    except (KeyError, ValueError, TypeError):  # a part is missing, is of no known kind, or has no channels
        return None


def _pool(layer: str, tensors: Mapping[str, Tensor]) -> Pool:
    if f"{layer}.offset_fc.0.weight" not in tensors:
        return "roi_align"
    return "mdpool" if f"{layer}.mask_fc.0.weight" in tensors else "dpool"


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_TEXT
    return isinstance(value, int | float)
