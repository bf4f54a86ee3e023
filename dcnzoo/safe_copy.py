"""Safe copies of checkpoints: the safetensors format, with what has to be known to use the tensors.

Such a file is a JSON header and plain numbers: there is nothing in it that could run. The header's metadata
say which architecture the tensors fill, which classes they tell apart, which input they expect, and where
they come from, so that the file needs neither a manifest nor further options.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo import __version__
from dcnzoo.errors import CheckpointError, OutputError, UnknownModelError
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing, parse_preprocessing

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Description:
    """What a safe copy, or a checkpoint that `dcnzoo train` wrote, says about itself.

    Attributes:
        architecture: structure that the tensors fill.
        classes: classes that they tell apart.
        preprocessing: input that they were trained for.
        origin: address, or name of the file, that they were published as; empty for none.
        sha256: SHA-256 of that file, 64 hex digits; empty for none.
    """

    architecture: Architecture
    classes: ClassSet
    preprocessing: Preprocessing
    origin: str
    sha256: str


def is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: its name says so."""
    return path.suffix.lower() == SUFFIX


def read_safe_copy(path: Path) -> tuple[dict[str, Tensor], Description | None]:
    """Reads a safetensors file.

    Args:
        path: the file; it may change afterwards, for it is not mapped into memory.

    Returns:
        Its tensors as they are stored, on the CPU; and the description, None if another program wrote it.

    Raises:
        CheckpointError: it cannot be read, is damaged, or its description makes no sense.
    """
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error)) from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:
        problem = f"is truncated or damaged, or no safetensors file; fetch or copy it again ({error})"
        raise CheckpointError(str(path), problem) from error
    metadata = header.get("__metadata__", {})
    try:
        return tensors, _parse(metadata) if "dcnzoo_version" in metadata else None
    except (KeyError, TypeError, ValueError, RecursionError, UnknownModelError) as error:
        problem = f"has a description that makes no sense ({type(error).__name__}: {error})"
        raise CheckpointError(str(path), problem) from error


def write_safe_copy(
    path: Path, tensors: Mapping[str, Tensor], description: Description, *, overwrite: bool = False
) -> None:
    """Writes a safetensors file, which gets its name when it is complete.

    Args:
        path: the file, with the suffix `.safetensors`.
        tensors: by their published names; their dtypes are kept.
        description: what to say about them.
        overwrite: whether a file of that name is replaced.

    Raises:
        OutputError: it cannot be written, or may not be replaced.
    """
    import torch
    from safetensors.torch import save

    check_target(path, overwrite)
    # Copied, for the format has no views and no tensors that share memory.
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    content = save(plain, _metadata(description))
    part = path.with_name(f".{secrets.token_hex(4)}.{path.name}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the error above says more
            part.unlink(missing_ok=True)


def check_target(path: Path, overwrite: bool) -> None:
    """Checks that a safe copy may be written, before there is one.

    Raises:
        OutputError: its folder is missing, it would not be recognised, or may not be replaced.
    """
    if not is_safetensors(path):
        raise OutputError(f"{path} does not end in {SUFFIX}, by which the file is recognised")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another name, or replace it with --overwrite")


def _metadata(description: Description) -> dict[str, str]:
    return {
        "format": "pt",
        "architecture": description.architecture.name,
        "classes": json.dumps(description.classes.names, ensure_ascii=False),
        "category_ids": json.dumps(description.classes.category_ids),
        "preprocessing": json.dumps(asdict(description.preprocessing)),
        "origin": description.origin,
        "sha256": description.sha256,
        "dcnzoo_version": __version__,
    }


def _parse(metadata: Mapping[str, str]) -> Description:
    return Description(
        Architecture.parse(metadata["architecture"]),
        parse_classes(json.loads(metadata["classes"]), json.loads(metadata["category_ids"])),
        parse_preprocessing(json.loads(metadata["preprocessing"])),
        metadata["origin"],
        metadata["sha256"],
    )


def parse_classes(names: object, ids: object) -> ClassSet:
    """Reads classes as a description states them: a list of names, and one of category ids.

    Raises:
        ValueError: they are no such lists.
    """
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("classes: expected a list of names")
    if not (isinstance(ids, list) and all(type(each) is int for each in ids) and len(ids) == len(names)):
        raise ValueError("category_ids: expected a whole number for each class")
    return ClassSet(tuple(names), tuple(ids))
