"""Exceptions of the package.

Each carries its data as attributes, and its message names the cause and the cure, so that
the command line can print it as it stands and a program can act on the parts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import ClassVar


class DcnzooError(Exception):
    """Root of every error that a user can cause or cure."""


class ManifestError(DcnzooError):
    """A manifest file is malformed.

    Attributes:
        path: the manifest file.
        record: name (or position) of the record, None when the file as a whole is at fault.
        field: dotted name of the field, None when the record as a whole is at fault.
    """

    def __init__(self, path: str, problem: str, record: str | None = None, field: str | None = None) -> None:
        self.path, self.problem, self.record, self.field = path, problem, record, field
        where = "".join(
            f", {kind} {name!r}" for kind, name in (("record", record), ("field", field)) if name is not None
        )
        super().__init__(f"manifest {path}{where}: {problem}")


class UnknownModelError(DcnzooError):
    """No model or architecture has the given name.

    Attributes:
        name: what was asked for.
        suggestions: the nearest known names, best first.
    """

    def __init__(self, name: str, suggestions: Sequence[str] = (), kind: str = "model") -> None:
        self.name, self.suggestions, self.kind = name, tuple(suggestions), kind
        hint = f"did you mean {' or '.join(self.suggestions)}?" if suggestions else ""
        if kind == "model" and looks_like_file(name):
            hint = f"that is a file: use --weights {name} (in Python weights={name!r})"
        super().__init__(f"unknown {kind} {name!r}; {hint or '`dcnzoo list` shows every name'}")


class DownloadError(DcnzooError):
    """A file could not be fetched.

    Attributes:
        url: the address that failed (the last one tried), without credentials.
        reason: what went wrong.
    """

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = without_credentials(url), reason
        super().__init__(f"cannot download {self.url}: {reason}")


class ChecksumError(DcnzooError):
    """A file's SHA-256 does not start with the expected digits.

    Attributes:
        path: the file, or the address that it came from.
        expected: hex digits that the manifest states.
        actual: full hex digest of the file.
    """

    def __init__(self, path: str, expected: str, actual: str, cure: str = "") -> None:
        self.path, self.expected, self.actual = path, expected, actual
        message = f"{path}: SHA-256 is {actual}, expected it to start with {expected}"
        super().__init__(f"{message}; {cure}" if cure else message)


class CheckpointError(DcnzooError):
    """A checkpoint cannot be read, is unsafe, or does not fit the architecture.

    Attributes:
        path: the checkpoint file.
        missing: tensor names that the architecture needs and the file lacks.
        unexpected: tensor names in the file that the architecture does not have.
        mismatched: (name, shape in the file, shape expected) of tensors whose shapes differ.
    """

    def __init__(
        self,
        path: str,
        problem: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = (),
    ) -> None:
        self.path, self.problem = path, problem
        self.missing, self.unexpected, self.mismatched = tuple(missing), tuple(unexpected), tuple(mismatched)
        differences = [f"{name} is {got}, expected {want}" for name, got, want in mismatched]
        parts = [f"checkpoint {path}: {problem}"]
        parts += [_listing("missing", missing), _listing("unexpected", unexpected)]
        parts += [_listing("other shape", differences)]
        super().__init__("; ".join(part for part in parts if part))


class ImageError(DcnzooError):
    """A single image fails, where others need not.

    Attributes:
        source: path of the image, or its address without credentials.
        reason: what went wrong.
    """

    subject: ClassVar[str]

    def __init__(self, source: str, reason: str) -> None:
        self.source, self.reason = without_credentials(source), reason
        super().__init__(f"{self.subject} {self.source}: {reason}")


class ImageReadError(ImageError):
    """An image cannot be read or decoded."""

    subject = "cannot read image"


class SourceError(DcnzooError):
    """A source of images does not exist or holds no image."""


class OutputError(DcnzooError):
    """Results cannot be written where they were asked for."""


class ImageWriteError(ImageError, OutputError):
    """The results of one image cannot be written."""

    subject = "image"


class EvaluationError(DcnzooError):
    """Annotations or results cannot be scored.

    Attributes:
        path: the file at fault.
        problem: what is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


class TrainingError(DcnzooError):
    """Training cannot start or go on."""


class DeviceError(DcnzooError):
    """The requested device or precision is not available."""


class OutOfMemoryError(DeviceError):
    """Images do not fit into the memory of the device."""


class OpsUnavailableError(DcnzooError):
    """A native operator was asked for and is not available."""


def looks_like_file(name: str) -> bool:
    """Whether a name is that of a checkpoint's file rather than of a model."""
    return os.sep in name or name.lower().endswith((".pth", ".pt", ".safetensors"))


def without_credentials(url: str) -> str:
    """An address as it may be shown: without a name and password before the host."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", url)


def _listing(title: str, names: Sequence[str], limit: int = 8) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {title}: {', '.join(names[:limit])}{rest}"
