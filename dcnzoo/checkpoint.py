"""Reading of checkpoint files: tensors and plain values only, nothing is ever executed.

A `.pth` is a pickle, and a pickle is a program. The unpickler here knows how to rebuild tensors and
plain containers. Every other class that a training framework may have stored beside the weights becomes an
inert placeholder, which is neither imported nor called; and a file that asks for functions of libraries
that are sure to be at hand, as an attack would, is refused.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dcnzoo.errors import CheckpointError, UnknownModelError
from dcnzoo.manifest import Architecture, parse_preprocessing
from dcnzoo.safe_copy import Description, is_safetensors, parse_classes, read_safe_copy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        path: the file.
        state_dict: tensors under their published names, floating ones usually in float32, on the CPU.
        classes: class names that the file states, None where it states none.
        meta: what else the file says about itself (framework version, epoch …).
        description: what a file that this package wrote says about itself, None for every other.
    """

    path: Path
    state_dict: dict[str, Tensor] = field(repr=False)
    classes: tuple[str, ...] | None
    meta: dict[str, Any] = field(repr=False)
    description: Description | None = None

    @property
    def num_classes(self) -> int | None:
        """Classes, without the background, that the box head's weights are for; None without a box head."""
        for name in ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.0.fc_cls.weight"):
            if name in self.state_dict:
                return len(self.state_dict[name]) - 1
        return None


def load_checkpoint(path: str | Path, *, widen: bool = True) -> Checkpoint:
    """Reads a checkpoint as MMDetection 2.x or 3.x, `torch.save` of a state dict, or `convert` wrote it.

    Args:
        path: a `.safetensors`, or a `.pth` in the zip format or the stream format of PyTorch before 1.6.
        widen: whether half-precision tensors become float32.

    Returns:
        The checkpoint; old tensor names are replaced.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or asks for code to be run.
    """
    path = Path(path)
    content, description = read_safe_copy(path) if is_safetensors(path) else (read_content(path), None)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            str(path), f"holds a {type(content).__name__}, expected a dictionary of tensors"
        )
    state_dict = content.get("state_dict", content)
    tensors = {}
    for name, value in state_dict.items() if isinstance(state_dict, Mapping) else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                problem = f"has fewer values than tensor {name} claims; fetch or copy it again"
                raise CheckpointError(str(path), problem)
            wide = value.float() if widen and value.is_floating_point() else value
            tensors[_published_name(name)] = wide.detach()
    if not tensors:
        raise CheckpointError(str(path), "holds no tensors; expected a state dict or {'state_dict': …}")
    meta = content.get("meta")
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    description = description or _own_description(path, meta)
    classes = description.classes.names if description else _class_names(meta)
    return Checkpoint(path, tensors, classes, meta, description)


def _published_name(name: str) -> str:
    """The one place that maps names: parallel wrappers, and the older name of deformable offsets."""
    name = name.removeprefix("module.")
    return re.sub(r"\.conv2_offset\.", ".conv2.conv_offset.", name)


def _own_description(path: Path, meta: dict[str, Any]) -> Description | None:
    """What `dcnzoo train` has written about a checkpoint, None for those of other programs."""
    if "dcnzoo_version" not in meta:
        return None
    try:
        return Description(
            Architecture.parse(str(meta["arch"])),
            parse_classes(list(meta["CLASSES"]), list(meta["category_ids"])),
            parse_preprocessing(json.loads(json.dumps(meta["preprocessing"]))),  # tuples become lists
            origin="",
            sha256="",
        )
    except (KeyError, TypeError, ValueError, RecursionError, UnknownModelError) as error:
        problem = f"has a description that makes no sense ({type(error).__name__}: {error})"
        raise CheckpointError(str(path), problem) from error


def _class_names(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """Class names as MMDetection 2.x (`CLASSES`) or 3.x (`dataset_meta`) stores them."""
    dataset = meta.get("dataset_meta")
    stated = {**meta, **dataset} if isinstance(dataset, Mapping) else meta
    classes = next((stated[key] for key in ("classes", "CLASSES") if stated.get(key)), None)
    if isinstance(classes, str):
        return (classes,)
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    return None


def read_content(path: Path) -> Any:
    """Unpickles a file safely: tensors, numbers, texts and containers of them; all else is inert.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or asks for code to be run.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error)) from error
    with stream:
        try:
            _refuse_foreign_formats(path, stream)
            return torch.load(stream, map_location="cpu", weights_only=False, pickle_module=_safe_pickle)
        except CheckpointError:
            raise
        except _UnsafePickleError as error:
            problem = f"asks to run {error}, which no weights need: the file is unsafe and was not loaded"
            raise CheckpointError(str(path), problem) from error
        except Exception as error:
            problem = "is truncated or damaged, or no checkpoint; fetch or copy it again"
            raise CheckpointError(str(path), f"{problem} ({type(error).__name__}: {error})") from error


def _refuse_foreign_formats(path: Path, stream: BinaryIO) -> None:
    """Refuses TorchScript archives, which PyTorch would hand to another loader, and compressed ones."""
    if not stream.read(1):
        raise CheckpointError(str(path), "is empty; fetch or copy it again")
    stream.seek(0)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(str(path), "is a TorchScript program, expected a state dict")
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                # A few bytes could become any number of them.
                problem = "holds compressed parts, which PyTorch never writes; save it again with torch.save"
                raise CheckpointError(str(path), problem)
    stream.seek(0)


class _UnsafePickleError(pickle.UnpicklingError):
    """A pickle that asks for a function it has no business with; the message is its name."""


class _Placeholder:
    """Stands for an object of a class that is not loaded: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:  # noqa: ARG004
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> _Placeholder:  # noqa: ARG002
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignores an item of a list-like object."""

    def extend(self, items: Any) -> None:
        """Ignores the items of a list-like object."""

    def add(self, item: Any) -> None:
        """Ignores an item of a set-like object."""


_HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "dict"): dict,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
}
"""What a pickle may really use."""

_INERT = {
    ("builtins", "bytearray"),  # of a number, it and range could ask for all memory
    ("builtins", "range"),
    ("builtins", "getattr"),  # methods of logging helpers, as MMEngine pickles them
    ("builtins", "object"),
    ("_codecs", "encode"),  # bytes of numpy scalars
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("collections", "Counter"),
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("datetime", "datetime"),
    ("datetime", "date"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "PureWindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
    ("functools", "partial"),
    ("enum", "Enum"),
    ("uuid", "UUID"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
"""Names of those libraries that honest files mention: placeholders, like any framework's classes."""

_WITHIN_REACH = sys.stdlib_module_names | {
    "numpy",
    "pip",
    "pkg_resources",
    "setuptools",
    "torch",
    "torchvision",
}
"""Libraries that every victim has installed: where an attack finds its functions."""

_PYTHON_2_NAMES = {"__builtin__": "builtins"}


class _SafeUnpickler(pickle.Unpickler):
    """Finds only `_HARMLESS` objects; anything else is a placeholder or a refusal, never an import."""

    def __init__(self, stream: BinaryIO, **options: Any) -> None:
        super().__init__(stream, **options)
        self._stream = stream

    def load(self) -> Any:
        """Loads a pickle whose numbered places are as many as it uses, as those of every real one are."""
        start = self._stream.tell()
        for count, (operation, number, _) in enumerate(pickletools.genops(self._stream)):
            # The unpickler makes room for all places below the highest number at once.
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(number or 0) > count:
                raise pickle.UnpicklingError(f"place {number} after {count} operations")
        self._stream.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """Resolves a global of the pickle without importing anything."""
        module = _PYTHON_2_NAMES.get(module, module)
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition(".")[0] in _WITHIN_REACH and (module, name) not in _INERT:
            raise _UnsafePickleError(f"{module}.{name}")
        return type(name, (_Placeholder,), {"__module__": module})


def _safe_load(stream: BinaryIO, **options: Any) -> Any:
    return _SafeUnpickler(stream, **options).load()


def _safe_loads(data: bytes, **options: Any) -> Any:
    return _safe_load(io.BytesIO(data), **options)


_safe_pickle = SimpleNamespace(
    __name__="dcnzoo.checkpoint", Unpickler=_SafeUnpickler, load=_safe_load, loads=_safe_loads
)
"""Takes the place of the `pickle` module in `torch.load`."""
