"""The manifest: which checkpoints there are, and what has to be known to use each.

`weights.yaml` holds the facts, this module turns them into frozen dataclasses and refuses anything
that it does not understand. A manifest of the user's own has the same form and extends the built-in one.
"""

from __future__ import annotations

import fnmatch
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit

import yaml

from dcnzoo.errors import ManifestError, UnknownModelError

try:
    from yaml import CSafeLoader as _YamlLoader
except ImportError:  # PyYAML built without libyaml: ten times slower, otherwise the same
    from yaml import SafeLoader as _YamlLoader  # type: ignore[assignment]

Detector = Literal["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"]
Backbone = Literal["resnet18", "resnet50", "resnet101", "resnext101_32x4d"]
Conv = Literal["conv", "dconv", "mdconv"]
Pool = Literal["roi_align", "dpool", "mdpool"]
Precision = Literal["fp32", "fp16"]

T = TypeVar("T")

_SHORT_NAMES: dict[Backbone, str] = {
    "resnet18": "r18",
    "resnet50": "r50",
    "resnet101": "r101",
    "resnext101_32x4d": "x101_32x4d",
}
_DEFORM_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
_WIDTHS = {"base_width": 128, "channels": 1024, "hidden": 4096}
"""Greatest width that each part of a network may have."""
_ARCHITECTURE_NAME = re.compile(
    rf"(?P<detector>{'|'.join(get_args(Detector))})"
    rf"_(?P<backbone>{'|'.join(_SHORT_NAMES.values())})(w(?P<base_width>[1-9]\d{{0,3}}))?"
    r"_fpn(?P<channels>[1-9]\d{0,3})?(_fp16)?(_fc(?P<hidden>[1-9]\d{0,3}))?"
    rf"(_(?P<conv>m?dconv)_c3-c5(_group(?P<deform_groups>{'|'.join(map(str, _DEFORM_GROUPS))}))?)?"
    r"(_(?P<pool>m?dpool))?"
    r"(_\d+[xe])?(_coco|_shapes)?"
)
_RECORD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SCHEDULE_AND_DATASET = re.compile(r"_\d+[xe](_.*)?$|_coco$|_shapes$")
_SHA256_PREFIX = re.compile(r"[0-9a-f]{8,64}")

_PACKAGE = Path(__file__).absolute().parent

_SHORT_REPR = reprlib.Repr()  # of what a file holds, which may be any amount
_SHORT_REPR.maxlevel = 2


@dataclass(frozen=True)
class Architecture:
    """Structure of a detector: everything that decides which tensors it has.

    Attributes:
        detector: kind of detector; the two with "mask" in their names have mask heads.
        backbone: residual network under the feature pyramid (FPN); resnext101_32x4d has 32 groups, resnet18
            has blocks of two 3×3 convolutions, of which the second is the deformable one.
        conv: the 3×3 convolutions of stages c3 to c5: plain, deformable (DCN v1) or modulated (v2).
        deform_groups: number of channel groups with offsets of their own; a divisor of twice the base width,
            the channels of the narrowest deformable convolution; 1 for plain convolutions.
        pool: how the box head's RoI features are pooled: RoIAlign, or deformable pooling (v1, modulated v2).
        base_width: channels of the backbone's first convolution, to which those of its stages are in
            proportion; 64 in every published network.
        channels: of each pyramid level, and of the convolutions of the proposal and mask heads.
        hidden: width of the fully connected layers of the box heads, and of those that predict the offsets
            of deformable pooling.

    Raises:
        ValueError: a field has none of the values above.
    """

    detector: Detector
    backbone: Backbone
    conv: Conv = "conv"
    deform_groups: int = 1
    pool: Pool = "roi_align"
    base_width: int = 64
    channels: int = 256
    hidden: int = 1024

    def __post_init__(self) -> None:
        for name, options in _OPTIONS.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(options)}")
        for name, greatest in _WIDTHS.items():
            if getattr(self, name) not in range(16, greatest + 1, 16):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a multiple of 16 up to {greatest}"
                )
        divisors = [groups for groups in _DEFORM_GROUPS if 2 * self.base_width % groups == 0]
        allowed = [1] if self.conv == "conv" else divisors
        if self.deform_groups not in allowed:
            raise ValueError(
                f"deform_groups is {self.deform_groups}, expected one of {', '.join(map(str, allowed))}"
                f" with conv {self.conv!r}"
            )

    @property
    def name(self) -> str:
        """Name in the zoo's spelling, without schedule and dataset: "faster_rcnn_r50_fpn_dconv_c3-c5".

        Widths other than the usual ones are written behind what has them: "faster_rcnn_r18w32_fpn64_fc256".
        """
        name = f"{self.detector}_{_SHORT_NAMES[self.backbone]}"
        name += f"w{self.base_width}_fpn" if self.base_width != _USUAL["base_width"] else "_fpn"
        if self.channels != _USUAL["channels"]:
            name += str(self.channels)
        if self.hidden != _USUAL["hidden"]:
            name += f"_fc{self.hidden}"
        if self.conv != "conv":
            name += f"_{self.conv}_c3-c5"
        if self.deform_groups != 1:
            name += f"_group{self.deform_groups}"
        return name if self.pool == "roi_align" else f"{name}_{self.pool}"

    @property
    def has_masks(self) -> bool:
        """Whether the detector gives an instance mask with each box."""
        return self.detector in ("mask_rcnn", "cascade_mask_rcnn")

    @classmethod
    def parse(cls, name: str) -> Architecture:
        """Reads an architecture's name, as `name` writes it.

        The names of the zoo's checkpoints are understood too: "_fp16", and a schedule or data set at the
        end, say nothing about the structure and are ignored.

        Args:
            name: for example "mask_rcnn_r101_fpn_mdconv_c3-c5_group4" or "faster_rcnn_r50_fpn_dpool_1x_coco".

        Raises:
            UnknownModelError: not such a name; with the nearest ones.
        """
        match = _ARCHITECTURE_NAME.fullmatch(name)
        if match is not None:
            with suppress(ValueError):
                return cls._of(match)
        structure = _SCHEDULE_AND_DATASET.sub("", name)
        raise UnknownModelError(name, nearest(structure, _architecture_names()), kind="architecture")

    @classmethod
    def _of(cls, match: re.Match[str]) -> Architecture:
        backbone_of = {short: backbone for backbone, short in _SHORT_NAMES.items()}
        return cls(
            detector=cast(Detector, match["detector"]),
            backbone=backbone_of[match["backbone"]],
            conv=cast(Conv, match["conv"] or "conv"),
            deform_groups=int(match["deform_groups"] or 1),
            pool=cast(Pool, match["pool"] or "roi_align"),
            **{name: int(match[name] or usual) for name, usual in _USUAL.items()},
        )


_OPTIONS: dict[str, tuple[str, ...]] = {
    "detector": get_args(Detector),
    "backbone": get_args(Backbone),
    "conv": get_args(Conv),
    "pool": get_args(Pool),
}
_USUAL: dict[str, int] = {name: getattr(Architecture, name) for name in _WIDTHS}
"""Widths of the published networks."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input. The defaults are those of every published checkpoint.

    Attributes:
        short_side: the image is scaled, keeping its aspect, until its shorter side has this many pixels …
        long_side: … or its longer side this many, whichever gives the smaller image.
        mean: subtracted per channel, R, G, B, on the 0-255 scale.
        std: divided by afterwards, R, G, B.
        size_divisor: height and width are padded with zeros to a multiple of this.
    """

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32


@dataclass(frozen=True)
class ClassSet:
    """The classes that a network tells apart, in the order of its outputs.

    Attributes:
        names: K class names.
        category_ids: K ids that stand for them in COCO files; COCO's own have gaps.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """What the weights' authors reported; None where they said nothing.

    Attributes:
        box_ap: box AP on COCO val2017, or on the test set of the built-in model, in percent.
        mask_ap: mask AP, likewise.
        train_memory_gb: GPU memory in training, in GB.
        fps_v100: images per second on one V100.
        schedule: "1x" is 12 epochs.
    """

    box_ap: float | None = None
    mask_ap: float | None = None
    train_memory_gb: float | None = None
    fps_v100: float | None = None
    schedule: str | None = None


@dataclass(frozen=True)
class Record:
    """One checkpoint.

    Attributes:
        name: unique name, by which users ask for it.
        urls: absolute addresses (http, https, file) of one and the same file, to be tried in order; a file
            in the package's folder is built in.
        sha256: first hex digits (8 or more) of the file's SHA-256; None if a user's manifest has none.
        architecture: structure that the tensors fill.
        preprocessing: input that they were trained for.
        classes: classes that they tell apart.
        precision_trained: "fp16" for mixed-precision training.
        published: reported figures.
        config_url: the reference framework's configuration, None where unknown.
        log_url: the training log, None where unknown.
        licence: SPDX name of the weights' licence, None where unknown.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None
    architecture: Architecture
    preprocessing: Preprocessing
    classes: ClassSet
    precision_trained: Precision = "fp32"
    published: Published = Published()
    config_url: str | None = None
    log_url: str | None = None
    licence: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether the file is part of the package, so that there is nothing to download."""
        return self.urls[0].startswith(f"{_PACKAGE.as_uri()}/")


@dataclass(frozen=True)
class Manifest:
    """Every known checkpoint, class set and preprocessing, by name."""

    records: dict[str, Record] = field(default_factory=dict)
    class_sets: dict[str, ClassSet] = field(default_factory=dict)
    preprocessing: dict[str, Preprocessing] = field(default_factory=dict)

    def find(self, name: str) -> Record:
        """The record of that name.

        Raises:
            UnknownModelError: there is none; with the nearest names.
        """
        if name not in self.records:
            raise UnknownModelError(name, nearest(name, self.records))
        return self.records[name]

    def match(self, pattern: str = "*") -> list[Record]:
        """Records whose names fit, "r50" before "r101".

        Args:
            pattern: shell pattern (`*`, `?`, `[…]`) for the whole name; without any of these, a part of it.
        """
        wanted = pattern if re.search(r"[*?[]", pattern) else f"*{pattern}*"
        names = [name for name in self.records if fnmatch.fnmatchcase(name.lower(), wanted.lower())]
        return [self.records[name] for name in sorted(names, key=_natural_key)]


def load_manifest(extra: str | os.PathLike[str] | None = None) -> Manifest:
    """Reads the built-in manifest, and the user's own on top of it.

    Args:
        extra: the user's manifest file. Without it, the environment variable DCNZOO_MANIFEST may name
            one or several, separated as in PATH.

    Raises:
        ManifestError: a file cannot be read or is malformed; names the file, the record and the field.
    """
    manifest = _extend(Manifest(), _builtin_path(), builtin=True)
    for path in own_manifests(extra):
        manifest = _extend(manifest, path, builtin=False)
    return manifest


def own_manifests(extra: str | os.PathLike[str] | None = None) -> list[Path]:
    """Returns the user's own manifest files that `load_manifest` reads with the same argument."""
    listed = [os.fspath(extra)] if extra else os.environ.get("DCNZOO_MANIFEST", "").split(os.pathsep)
    return [Path(name) for name in listed if name]


def parse_preprocessing(value: object) -> Preprocessing:
    """Reads a preprocessing as a manifest states it.

    Args:
        value: mapping with the fields that differ from the usual ones.

    Raises:
        ValueError: it is no such mapping; names the field.
    """
    usual = Preprocessing()
    with _Fields(value) as fields:
        short_side = fields.take_or("short_side", usual.short_side, _integer(1))
        return Preprocessing(
            short_side=short_side,
            long_side=fields.take_or("long_side", max(short_side, usual.long_side), _integer(short_side)),
            mean=fields.take_or("mean", usual.mean, _rgb(-1e9)),
            std=fields.take_or("std", usual.std, _rgb(1e-6)),
            size_divisor=fields.take_or("size_divisor", usual.size_divisor, _integer(1)),
        )


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Known names that may have been meant, best first.

    The zoo's names are long and share most of their letters, so that a name which was merely cut short
    resembles others more than the right one: each known name is also compared at the typed one's length,
    and one that has every typed word counts as very near.

    Args:
        name: what was typed.
        known: names to choose from.
        count: at most so many.
    """
    from difflib import SequenceMatcher  # for the error path only

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "_", text[:200].lower()).strip("_")

    def likeness(other: str) -> tuple[float, float]:
        candidate = plain(other)
        whole = SequenceMatcher(None, typed, candidate).ratio()
        start = SequenceMatcher(None, typed, candidate[: len(typed)]).ratio()
        has_all_words = set(typed.split("_")) <= set(candidate.split("_"))
        return max(whole, start, float(has_all_words)), whole

    typed = plain(name)
    scores = {other: likeness(other) for other in known if typed}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)[:count]
    return [other for other in ranked if scores[other][0] >= max(0.7, scores[ranked[0]][0] - 0.1)]


def _natural_key(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _architecture_names() -> list[str]:
    names = []
    for detector, backbone, conv, pool in product(*_OPTIONS.values()):
        for deform_groups in (1,) if conv == "conv" else (1, 4):
            structure: Any = (detector, backbone, conv, deform_groups, pool)
            names.append(Architecture(*structure).name)
    return names


# From here on: reading. A converter takes a YAML value and gives what it stands for, or raises _InvalidError.


class _InvalidError(ValueError):
    """A value that the manifest cannot have, at `field` (dotted) below the place being read."""

    def __init__(self, problem: str, field: str = "") -> None:
        self.problem, self.field = problem, field
        super().__init__(f"{field}: {problem}" if field else problem)


class _Fields:
    """A YAML mapping whose entries are taken out one by one; an entry left over at the end is an error."""

    def __init__(self, value: object) -> None:
        self._left = dict(_mapping(value))
        self._known: list[str] = []

    def take(self, name: str, convert: Callable[[object], T]) -> T:
        """The converted value of an entry that has to be there."""
        value = self._pop(name)
        if value is None:
            raise _InvalidError("is missing", name)
        return _at(name, convert, value)

    def take_or(self, name: str, default: T, convert: Callable[[object], T]) -> T:
        """The converted value of an entry, or the default where it is absent or null."""
        value = self._pop(name)
        return default if value is None else _at(name, convert, value)

    def _pop(self, name: str) -> object:
        self._known.append(name)
        return self._left.pop(name, None)

    def __enter__(self) -> _Fields:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None and self._left:
            unknown = str(next(iter(self._left)))
            raise _InvalidError(f"unknown field; known are {', '.join(self._known)}", unknown)


def _at(name: str, convert: Callable[[object], T], value: object) -> T:
    try:
        return convert(value)
    except _InvalidError as error:
        raise _InvalidError(error.problem, f"{name}.{error.field}" if error.field else name) from None


def _show(value: object) -> str:
    return f"{_SHORT_REPR.repr(value)} ({type(value).__name__})"


def _mapping(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise _InvalidError(f"expected a mapping, got {_show(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _InvalidError(
            f"expected text (quote it if YAML takes it for something else), got {_show(value)}"
        )
    return value


def _one_of(options: tuple[str, ...]) -> Callable[[object], Any]:
    def convert(value: object) -> object:
        if value not in options:
            raise _InvalidError(f"expected one of {', '.join(options)}, got {_show(value)}")
        return value

    return convert


def _number(low: float = -1e9, high: float = 1e9) -> Callable[[object], float]:
    def convert(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _InvalidError(f"expected a number, got {_show(value)}")
        if not low <= value <= high:  # also true of nan
            raise _InvalidError(f"expected a number from {low:g} to {high:g}, got {_show(value)}")
        return float(value)

    return convert


def _integer(low: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise _InvalidError(f"expected a whole number of at least {low}, got {_show(value)}")
        return value

    return convert


def _width(name: str) -> Callable[[object], int]:
    def convert(value: object) -> int:
        width = _integer(1)(value)
        if width not in range(16, _WIDTHS[name] + 1, 16):
            raise _InvalidError(f"expected a multiple of 16 up to {_WIDTHS[name]}, got {_show(value)}")
        return width

    return convert


def _list_of(convert: Callable[[object], T], length: int | None = None) -> Callable[[object], tuple[T, ...]]:
    def convert_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list) or not value or length not in (None, len(value)):
            raise _InvalidError(f"expected a list of {length or 'one or more'} values, got {_show(value)}")
        return tuple(_at(str(position), convert, item) for position, item in enumerate(value, start=1))

    return convert_all


def _sha256(value: object) -> str:
    digits = _text(value).lower()
    if not _SHA256_PREFIX.fullmatch(digits):
        raise _InvalidError(f"expected 8 to 64 hex digits, got {_show(value)}")
    return digits


def _web_url(value: object) -> str:
    url = _text(value)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _InvalidError(f"{_show(value)} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise _InvalidError(f"expected an address with http:// or https://, got {_show(value)}")
    return url


def _file_url(folder: Path) -> Callable[[object], str]:
    """Converter for addresses of files, and for paths, relative to the folder."""

    def convert(value: object) -> str:
        url = _text(value)
        if url.startswith("file:///"):
            return url
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
            return _web_url(url)
        return (folder / url).absolute().as_uri()

    return convert


def _class_set(value: object) -> ClassSet:
    entries = value if isinstance(value, dict) else dict(enumerate(_list_of(_text)(value), start=1))
    if not entries:
        raise _InvalidError("expected at least one class")
    ids = tuple(_at(str(key), _integer(0), key) for key in entries)
    names = tuple(_at(str(key), _text, name) for key, name in entries.items())
    if len(set(names)) != len(names):
        raise _InvalidError("expected class names that differ")
    return ClassSet(names, ids)


def _rgb(low: float) -> Callable[[object], tuple[float, float, float]]:
    def convert(value: object) -> tuple[float, float, float]:
        red, green, blue = _list_of(_number(low), 3)(value)
        return red, green, blue

    return convert


def _architecture(value: object) -> Architecture:
    with _Fields(value) as fields:
        detector = fields.take("detector", _one_of(_OPTIONS["detector"]))
        backbone = fields.take("backbone", _one_of(_OPTIONS["backbone"]))
        conv: Conv = fields.take_or("conv", "conv", _one_of(_OPTIONS["conv"]))
        deform_groups = fields.take_or("deform_groups", 1, _integer(1))
        pool: Pool = fields.take_or("pool", "roi_align", _one_of(_OPTIONS["pool"]))
        widths = {name: fields.take_or(name, usual, _width(name)) for name, usual in _USUAL.items()}
    try:
        return Architecture(detector, backbone, conv, deform_groups, pool, **widths)
    except ValueError as error:
        raise _InvalidError(str(error), "deform_groups") from None


def _published(value: object) -> Published:
    with _Fields(value) as fields:
        return Published(
            box_ap=fields.take_or("box_ap", None, _number(0, 100)),
            mask_ap=fields.take_or("mask_ap", None, _number(0, 100)),
            train_memory_gb=fields.take_or("train_memory_gb", None, _number(0)),
            fps_v100=fields.take_or("fps_v100", None, _number(0)),
            schedule=fields.take_or("schedule", None, _text),
        )


def _named_or_given(known: Mapping[str, T], convert: Callable[[object], T]) -> Callable[[object], T]:
    """Converter for a reference to an entry of `known` by name, or for the thing itself."""

    def look_up(value: object) -> T:
        if not isinstance(value, str):
            return convert(value)
        if value not in known:
            raise _InvalidError(f"{value!r} is not defined; known are {', '.join(known)}")
        return known[value]

    return look_up


def _added(known: Mapping[str, T], convert: Callable[[object], T]) -> Callable[[object], dict[str, T]]:
    """Converter for a mapping of new names to definitions; gives `known` and these."""

    def convert_all(value: object) -> dict[str, T]:
        for name in _mapping(value):
            if _text(name) in known:
                raise _InvalidError(
                    "is defined already, in the built-in manifest or one before this", str(name)
                )
        return {**known, **{str(name): _at(str(name), convert, new) for name, new in _mapping(value).items()}}

    return convert_all


def _record(entry: object, manifest: Manifest, folder: Path, *, builtin: bool) -> Record:
    """A record; its paths start at the folder, and only a user's may be without a hash."""
    with _Fields(entry) as fields:
        name = fields.take("name", _record_name(manifest.records))
        return Record(
            name=name,
            urls=fields.take("urls", _list_of(_file_url(folder))),
            sha256=fields.take("sha256", _sha256) if builtin else fields.take_or("sha256", None, _sha256),
            architecture=fields.take("architecture", _architecture),
            preprocessing=fields.take_or(
                "preprocessing", Preprocessing(), _named_or_given(manifest.preprocessing, parse_preprocessing)
            ),
            classes=fields.take("classes", _named_or_given(manifest.class_sets, _class_set)),
            precision_trained=fields.take_or("precision_trained", "fp32", _one_of(get_args(Precision))),
            published=fields.take_or("published", Published(), _published),
            config_url=fields.take_or("config_url", None, _web_url),
            log_url=fields.take_or("log_url", None, _web_url),
            licence=fields.take_or("licence", None, _text),
        )


def _record_name(known: Iterable[str]) -> Callable[[object], str]:
    def convert(value: object) -> str:
        name = _text(value)
        if not _RECORD_NAME.fullmatch(name):
            raise _InvalidError(f"expected letters, digits and . _ + - only, got {_show(name)}")
        if name in known:
            raise _InvalidError("is taken, by the built-in manifest or a record before this; choose another")
        return name

    return convert


def _extend(known: Manifest, path: Path, *, builtin: bool) -> Manifest:
    """The known manifest and what the file adds; only a user's may leave out hashes."""
    folder = _PACKAGE if builtin else path.parent
    record = None
    try:
        with _Fields(_parse_yaml(path)) as fields:
            manifest = Manifest(
                dict(known.records),
                fields.take_or("class_sets", known.class_sets, _added(known.class_sets, _class_set)),
                fields.take_or(
                    "preprocessing", known.preprocessing, _added(known.preprocessing, parse_preprocessing)
                ),
            )
            entries = fields.take_or("checkpoints", None, _list_of(_mapping)) or ()
        for position, entry in enumerate(entries, start=1):
            given = entry.get("name")
            record = given if isinstance(given, str) else f"number {position}"
            new = _record(entry, manifest, folder, builtin=builtin)
            manifest.records[new.name] = new
    except _InvalidError as error:
        raise ManifestError(str(path), error.problem, record, error.field or None) from None
    return manifest


def _builtin_path() -> Path:
    """Where the built-in manifest lies: in the package when installed, above it in a checkout."""
    installed = _PACKAGE / "weights.yaml"
    return installed if installed.is_file() else _PACKAGE.with_name("weights.yaml")


class _StrictLoader(_YamlLoader):
    """YAML's safe loader, which lets the last of two equal keys win, made to refuse the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _check_depth(text: str, limit: int = 20) -> None:
    """Refuses what nests deeper than any manifest: libyaml recurses until the C stack overflows."""
    depth, too_deep = 0, f"it nests more than {limit} levels deep"
    try:
        for event in yaml.parse(text, _StrictLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > limit:
                raise ValueError(too_deep)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # PyYAML 6.0.4 has a limit of its own, far beyond this one
            raise ValueError(too_deep) from error
        raise


def _parse_yaml(path: Path) -> object:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _check_depth(text)
        return yaml.load(text, _StrictLoader)
    except OSError as error:
        raise ManifestError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(str(path), f"is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ManifestError(str(path), f"{line}{error.problem}") from error
    except Exception as error:  # the parser lets through what int(), date() and the like raise on odd scalars
        raise ManifestError(str(path), f"is no YAML that can be read: {error}") from error
