"""From a checkpoint file of any kind to a safe copy that describes itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from dcnzoo.build import check_fit
from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.download import sha256_of
from dcnzoo.errors import without_credentials
from dcnzoo.manifest import Architecture, ClassSet, Record
from dcnzoo.predictor import identify
from dcnzoo.safe_copy import Description, check_target, write_safe_copy


def convert(
    path: Path,
    out: Path,
    *,
    record: Record | None = None,
    architecture: Architecture | None = None,
    class_sets: Iterable[ClassSet] = (),
    overwrite: bool = False,
) -> Description:
    """Writes a safe copy of a checkpoint, which gives the same detections.

    Args:
        path: the checkpoint file.
        out: the copy, with the suffix `.safetensors`.
        record: what the manifest says about the file.
        architecture: structure that the tensors fill, where neither a record nor the file says it.
        class_sets: known ones, which give the category ids to equal names.
        overwrite: whether a file of that name is replaced.

    Returns:
        What the copy says about itself.

    Raises:
        CheckpointError: the file is no checkpoint, does not fit the architecture, or does not name it.
        OutputError: the copy cannot be written, or may not replace a file.
    """
    check_target(out, overwrite)
    checkpoint = load_checkpoint(path, widen=False)
    architecture, classes, preprocessing = identify(checkpoint, record, architecture, class_sets)
    check_fit(architecture, checkpoint)
    own = checkpoint.description
    if own and own.sha256:  # a copy of a copy is still of the first file
        origin, sha256 = own.origin, own.sha256
    else:
        origin, sha256 = _origin(path, record), sha256_of(path)
    description = Description(architecture, classes, preprocessing, origin, sha256)
    write_safe_copy(out, checkpoint.state_dict, description, overwrite=overwrite)
    return description


def _origin(path: Path, record: Record | None) -> str:
    """The address of a published file, or else a file's name; never a path, which is nobody's business."""
    urls = [url for url in (record.urls if record else ()) if urlsplit(url).scheme != "file"]
    return without_credentials(urls[0]) if urls else path.name
