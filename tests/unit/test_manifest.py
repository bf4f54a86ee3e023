"""The built-in manifest says what the published tables say; a wrong manifest is refused with a reason."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dcnzoo.errors import ManifestError, UnknownModelError
from dcnzoo.manifest import (
    Architecture,
    Backbone,
    Conv,
    Detector,
    Pool,
    Preprocessing,
    Published,
    load_manifest,
    nearest,
)
from dcnzoo.shapes import CLASSES

BUILTIN = load_manifest("")
DCONV = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
PUBLISHED = [name for name, record in BUILTIN.records.items() if not record.built_in]
(SHAPES,) = (record for record in BUILTIN.records.values() if record.built_in)

OWN: dict[str, Any] = {
    "class_sets": {"cells": ["RBC", "WBC", "Platelets"]},
    "preprocessing": {"small": {"short_side": 240, "long_side": 320}},
    "checkpoints": [
        {
            "name": "cells",
            "urls": ["models/cells.pth", "https://example.org/cells.pth"],
            "architecture": {"detector": "faster_rcnn", "backbone": "resnet50", "conv": "dconv"},
            "classes": "cells",
            "preprocessing": "small",
        }
    ],
}


@pytest.fixture(autouse=True)
def no_manifest_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCNZOO_MANIFEST", raising=False)


def written(folder: Path, document: object, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return path


def own_with(**changes: Any) -> dict[str, Any]:
    """OWN with fields of its record changed; `architecture__conv=…` reaches into a mapping; … removes one."""
    document = copy.deepcopy(OWN)
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = document["checkpoints"][0]
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
        if value is ...:
            del place[last]
    return document


# The built-in manifest


def test_holds_the_17_checkpoints_of_the_published_tables(shared: Path) -> None:
    with (shared / "zoo" / "checkpoints.tsv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert len(table) == 17
    assert [row["name"] for row in table] == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_record_agrees_with_the_published_table(shared: Path, name: str) -> None:
    with (shared / "zoo" / "checkpoints.tsv").open(newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file, delimiter="\t") if row["name"] == name)
    record = BUILTIN.records[name]
    assert record.urls == (row["url"],)
    assert record.sha256 == row["url"][-12:-4]
    assert record.published == Published(
        box_ap=float(row["box_ap"]),
        mask_ap=float(row["mask_ap"]) if row["mask_ap"] else None,
        train_memory_gb=float(row["train_memory_gb"]),
        fps_v100=float(row["inference_fps_v100"]) if row["inference_fps_v100"] else None,
        schedule=row["schedule"],
    )
    assert (record.config_url, record.log_url) == (row["config"] or None, row["log"] or None)
    assert record.precision_trained == ("fp16" if "FP16" in row["backbone"] else "fp32")
    assert record.architecture.detector.removesuffix("_rcnn") == row["model"].lower().replace(" ", "_")
    assert record.architecture.conv == (row["conv"].partition("(")[0].strip("-") or "conv")
    assert record.architecture.pool == (row["pool"].strip("-") or "roi_align")
    assert record.architecture.deform_groups == (4 if "dg=4" in row["backbone"] else 1)
    assert record.licence == "Apache-2.0"


@pytest.mark.parametrize("name", BUILTIN.records)
def test_record_agrees_with_its_name(name: str) -> None:
    record = BUILTIN.records[name]
    assert Architecture.parse(name) == record.architecture
    assert name in record.urls[0]
    assert (record.published.mask_ap is not None) == record.architecture.has_masks


def test_class_names_are_those_of_the_reference(shared: Path) -> None:
    names = json.loads((shared / "parity" / "coco_classes.json").read_text(encoding="utf-8"))
    assert list(BUILTIN.class_sets["coco"].names) == names


def test_category_ids_are_those_of_coco(shared: Path) -> None:
    annotations = shared / "data" / "coco_val2014_100" / "instances_val2014_100.json"
    categories = json.loads(annotations.read_text(encoding="utf-8"))["categories"]
    coco = BUILTIN.class_sets["coco"]
    assert dict(zip(coco.category_ids, coco.names, strict=True)) == {c["id"]: c["name"] for c in categories}


def test_default_preprocessing_is_the_published_one() -> None:
    assert BUILTIN.preprocessing["resize_800_1333"] == Preprocessing()
    assert all(BUILTIN.find(name).preprocessing == Preprocessing() for name in PUBLISHED)


def test_built_in_record_is_of_the_drawn_shapes() -> None:
    assert SHAPES.classes.names == CLASSES
    assert SHAPES.classes.category_ids == tuple(range(1, len(CLASSES) + 1))


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BUILTIN.find(DCONV).name = "other"  # type: ignore[misc]


# Architectures and their names

architectures = st.builds(
    lambda detector, backbone, conv, groups, pool, *widths: Architecture(
        detector,
        backbone,
        conv,
        1 if conv == "conv" else min(groups, 2 * (widths[0] & -widths[0])),
        pool,
        *widths,
    ),
    st.sampled_from(get_args(Detector)),
    st.sampled_from(get_args(Backbone)),
    st.sampled_from(get_args(Conv)),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
    st.sampled_from(get_args(Pool)),
    st.sampled_from([16, 32, 48, 64, 128]),
    st.sampled_from([16, 64, 256, 1024]),
    st.sampled_from([16, 256, 1024, 4096]),
)


@given(architectures, st.sampled_from(["", "_1x", "_1x_coco", "_20e_coco", "_coco"]))
def test_architecture_name_is_read_back(architecture: Architecture, tail: str) -> None:
    assert Architecture.parse(architecture.name + tail) == architecture
    half = re.sub(r"_fpn\d*", r"\g<0>_fp16", architecture.name)
    assert Architecture.parse(half + tail) == architecture


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (Architecture("mask_rcnn", "resnet50"), "mask_rcnn_r50_fpn"),
        (Architecture("faster_rcnn", "resnet50", "dconv"), "faster_rcnn_r50_fpn_dconv_c3-c5"),
        (
            Architecture("faster_rcnn", "resnet50", "mdconv", deform_groups=4),
            "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
        ),
        (Architecture("faster_rcnn", "resnet50", pool="dpool"), "faster_rcnn_r50_fpn_dpool"),
        (
            Architecture("cascade_mask_rcnn", "resnext101_32x4d", "dconv", pool="mdpool"),
            "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_mdpool",
        ),
        (Architecture("mask_rcnn", "resnet18", "mdconv"), "mask_rcnn_r18_fpn_mdconv_c3-c5"),
        (
            Architecture("mask_rcnn", "resnet18", "mdconv", base_width=32, channels=64, hidden=256),
            "mask_rcnn_r18w32_fpn64_fc256_mdconv_c3-c5",
        ),
        (Architecture("faster_rcnn", "resnet18", base_width=16), "faster_rcnn_r18w16_fpn"),
        (Architecture("faster_rcnn", "resnet50", channels=128), "faster_rcnn_r50_fpn128"),
        (Architecture("faster_rcnn", "resnet50", hidden=512), "faster_rcnn_r50_fpn_fc512"),
    ],
)
def test_architecture_name(architecture: Architecture, name: str) -> None:
    assert architecture.name == name


def test_usual_widths_may_be_spelt_out() -> None:
    assert Architecture.parse("faster_rcnn_r50w64_fpn256_fc1024") == Architecture("faster_rcnn", "resnet50")


@pytest.mark.parametrize(
    ("name", "first_suggestion"),
    [
        ("faster_rcnn_r50_fpn_dconv", "faster_rcnn_r50_fpn_dconv_c3-c5"),
        ("faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", "faster_rcnn_r50_fpn_dconv_c3-c5"),
        ("faster_rcnn_x101_64x4d_fpn_dconv_c3-c5", "faster_rcnn_x101_32x4d_fpn_dconv_c3-c5"),
        ("faster_rcnn_r50_fpn_mdconv_c3-c5_group3", "faster_rcnn_r50_fpn_mdconv_c3-c5_group4"),
        ("mask_rcnn_r50_fpn_1x_dpool", "mask_rcnn_r50_fpn"),
        ("mask_rcnn_r18w30_fpn", "mask_rcnn_r18_fpn"),
        ("mask_rcnn_r18w16_fpn_dconv_c3-c5_group64", "mask_rcnn_r18_fpn_dconv_c3-c5_group4"),
        ("mask_rcnn_r18_fpn0064", "mask_rcnn_r18_fpn"),
        ("faster_rcnn_r50_fpn_dconv_c3-c5\n", "faster_rcnn_r50_fpn_dconv_c3-c5"),
        ("yolov8", None),
        ("", None),
    ],
)
def test_unknown_architecture_suggests(name: str, first_suggestion: str | None) -> None:
    with pytest.raises(UnknownModelError, match="unknown architecture") as caught:
        Architecture.parse(name)
    assert (caught.value.suggestions[:1] or (None,))[0] == first_suggestion


@pytest.mark.parametrize(
    "changes",
    [
        {"detector": "retinanet"},
        {"backbone": "resnet34"},
        {"conv": "dcn"},
        {"pool": "roi_pool"},
        {"deform_groups": 0},
        {"deform_groups": 3},
        {"deform_groups": 256},
        {"conv": "conv", "deform_groups": 2},
        {"base_width": 16, "deform_groups": 64},
        {"base_width": 0},
        {"base_width": 40},
        {"base_width": 256},
        {"channels": 8},
        {"channels": 64.5},
        {"hidden": -16},
        {"hidden": 8192},
    ],
)
def test_architecture_refuses_what_there_is_not(changes: dict[str, Any]) -> None:
    usual = {"detector": "faster_rcnn", "backbone": "resnet50", "conv": "dconv"}
    with pytest.raises(ValueError, match=f"{list(changes)[-1]} is .*expected"):
        Architecture(**{**usual, **changes})


# Look-up


@pytest.mark.parametrize(
    ("name", "first_suggestion"),
    [
        ("faster_rcnn_r50_fpn_dconv_c3-c5", DCONV),
        ("faster_rcnn_r50_fpn_dconv", DCONV),
        ("faster_rcnn_r50_fpn_dcnv", DCONV),
        ("faster-rcnn-r50-fpn-dconv-c3-c5-1x-coco", DCONV),
        ("faster_rcnn_r50_fpn_dconv_c3_c5_1x_coco", DCONV),
        ("Faster_RCNN_R50_FPN_dconv_c3-c5_1x_COCO", DCONV),
        ("fastr_rcnn_r50_fpn_dconv_c3-c5_1x_coco", DCONV),
        ("mask_rcnn_r101", "mask_rcnn_r101_fpn_dconv_c3-c5_1x_coco"),
        ("mask_rcnn_fp16_mdconv", "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco"),
        ("yolov8", None),
        ("", None),
        ("___", None),
        ("x" * 100_000, None),
    ],
)
def test_unknown_model_suggests(name: str, first_suggestion: str | None) -> None:
    with pytest.raises(UnknownModelError) as caught:
        BUILTIN.find(name)
    assert caught.value.name == name
    assert (caught.value.suggestions[:1] or (None,))[0] == first_suggestion


def test_suggestions_are_few() -> None:
    assert len(nearest("faster_rcnn", BUILTIN.records)) == 3


def test_suggestions_from_nothing() -> None:
    assert nearest("faster_rcnn", []) == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("mdpool", ["faster_rcnn_r50_fpn_mdpool_1x_coco"]),
        ("DPOOL", ["faster_rcnn_r50_fpn_dpool_1x_coco", "faster_rcnn_r50_fpn_mdpool_1x_coco"]),
        ("*_fpn_dpool_*", ["faster_rcnn_r50_fpn_dpool_1x_coco"]),
        ("dpool*", []),
        (
            "cascade_rcnn_r?0_*",
            ["cascade_rcnn_r50_fpn_dconv_c3-c5_1x_coco"],
        ),
        (
            "cascade_rcnn",
            ["cascade_rcnn_r50_fpn_dconv_c3-c5_1x_coco", "cascade_rcnn_r101_fpn_dconv_c3-c5_1x_coco"],
        ),
        ("*x[0-9]*_32*cascade*", []),
    ],
)
def test_match(pattern: str, expected: list[str]) -> None:
    assert [record.name for record in BUILTIN.match(pattern)] == expected


def test_match_without_a_pattern_gives_all() -> None:
    assert {record.name for record in BUILTIN.match()} == set(BUILTIN.records)


# A manifest of the user's own


def test_own_records_join_the_built_in_ones(tmp_path: Path) -> None:
    manifest = load_manifest(written(tmp_path, OWN))
    record = manifest.find("cells")
    assert list(manifest.records) == [*BUILTIN.records, "cells"]
    assert record.urls == ((tmp_path / "models" / "cells.pth").as_uri(), "https://example.org/cells.pth")
    assert record.sha256 is None
    assert record.architecture == Architecture("faster_rcnn", "resnet50", "dconv")
    assert record.preprocessing == Preprocessing(short_side=240, long_side=320)
    assert (record.classes.names, record.classes.category_ids) == (("RBC", "WBC", "Platelets"), (1, 2, 3))
    assert (record.published, record.precision_trained) == (Published(), "fp32")
    assert "cells" not in BUILTIN.records


def test_own_record_may_use_what_is_built_in(tmp_path: Path) -> None:
    document = own_with(classes="coco", preprocessing="resize_800_1333")
    record = load_manifest(written(tmp_path, document)).find("cells")
    assert record.classes is not BUILTIN.class_sets["coco"]
    assert record.classes == BUILTIN.class_sets["coco"]
    assert record.preprocessing == Preprocessing()


def test_own_record_may_define_all_inline(tmp_path: Path) -> None:
    document = own_with(
        classes={7: "car", 3: "bus"}, preprocessing={"mean": [0, 0, 0], "std": [255, 255, 255]}
    )
    record = load_manifest(written(tmp_path, document)).find("cells")
    assert (record.classes.names, record.classes.category_ids) == (("bus", "car"), (3, 7))
    assert record.preprocessing == Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))


def test_order_of_classes_is_that_of_the_file(tmp_path: Path) -> None:
    text = yaml.safe_dump(own_with(classes="CLASSES")).replace("CLASSES", "{7: car, 3: bus}")
    assert load_manifest(written(tmp_path, text)).find("cells").classes.category_ids == (7, 3)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("cells.pth", "cells.pth"),
        ("../up.pth", "../up.pth"),
        ("white space/é#?.pth", "white space/é#?.pth"),
        ("/absolute.pth", "/absolute.pth"),
        ("file:///absolute.pth", "/absolute.pth"),
    ],
)
def test_paths_start_at_the_manifest(tmp_path: Path, url: str, path: str) -> None:
    from dcnzoo.download import checkpoint_path

    record = load_manifest(written(tmp_path, own_with(urls=[url]))).find("cells")
    assert checkpoint_path(record) == tmp_path / path


def test_environment_names_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = written(tmp_path, OWN), written(tmp_path, {}, "second.yaml")
    second.write_text(yaml.safe_dump({"checkpoints": own_with(name="more")["checkpoints"]}))
    monkeypatch.setenv("DCNZOO_MANIFEST", f"{first}:{second}:")
    assert list(load_manifest().records) == [*BUILTIN.records, "cells", "more"]


def test_argument_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_MANIFEST", str(tmp_path / "absent.yaml"))
    assert "cells" in load_manifest(written(tmp_path, OWN)).records


# What is refused, and in which words: (changes to the record, field, part of the problem)

WRONG_FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown key": ({"colour": "red"}, "colour", "unknown field; known are name, urls,"),
    "unknown key below": ({"published": {"ap": 1}}, "published.ap", "unknown field"),
    "missing urls": ({"urls": ...}, "urls", "is missing"),
    "null urls": ({"urls": None}, "urls", "is missing"),
    "missing classes": ({"classes": ...}, "classes", "is missing"),
    "missing architecture": ({"architecture": ...}, "architecture", "is missing"),
    "missing detector": ({"architecture__detector": ...}, "architecture.detector", "is missing"),
    "name with a slash": ({"name": "a/b"}, "name", "letters, digits"),
    "name that is a path": ({"name": ".."}, "name", "letters, digits"),
    "name of another type": ({"name": 7}, "name", "expected text"),
    "name of a built-in one": ({"name": DCONV}, "name", "is taken, by the built-in manifest"),
    "one url": ({"urls": "x.pth"}, "urls", "expected a list"),
    "no url": ({"urls": []}, "urls", "expected a list of one or more"),
    "url of another type": ({"urls": ["a.pth", 1]}, "urls.2", "expected text"),
    "url scheme": ({"urls": ["ftp://host/x"]}, "urls.1", "http:// or https://"),
    "script url": ({"urls": ["javascript:x"]}, "urls.1", "http:// or https://"),
    "url without host": ({"urls": ["https:///x"]}, "urls.1", "http:// or https://"),
    "file url with host": ({"urls": ["file://host/x"]}, "urls.1", "http:// or https://"),
    "url that cannot be split": ({"urls": ["http://[x/"]}, "urls.1", "is no URL"),
    "link that is a path": ({"config_url": "config.py"}, "config_url", "http:// or https://"),
    "short hash": ({"sha256": "abc123"}, "sha256", "8 to 64 hex digits"),
    "long hash": ({"sha256": "a" * 65}, "sha256", "8 to 64 hex digits"),
    "hash with other letters": ({"sha256": "1234567g"}, "sha256", "8 to 64 hex digits"),
    "hash that YAML takes for a number": ({"sha256": 12345678}, "sha256", "quote it"),
    "unknown detector": ({"architecture__detector": "yolo"}, "architecture.detector", "expected one of"),
    "unknown backbone": ({"architecture__backbone": "vgg"}, "architecture.backbone", "expected one of"),
    "unknown conv": ({"architecture__conv": "dcn"}, "architecture.conv", "expected one of"),
    "conv that cannot be hashed": ({"architecture__conv": []}, "architecture.conv", "expected one of"),
    "unknown pool": ({"architecture__pool": "max"}, "architecture.pool", "expected one of"),
    "architecture as text": ({"architecture": "faster"}, "architecture", "expected a mapping"),
    "no group": ({"architecture__deform_groups": 0}, "architecture.deform_groups", "at least 1"),
    "groups that divide no layer": (
        {"architecture__deform_groups": 3},
        "architecture.deform_groups",
        "expected one of 1, 2, 4,",
    ),
    "groups that divide no narrow layer": (
        {
            "architecture": {
                "detector": "faster_rcnn",
                "backbone": "resnet18",
                "conv": "dconv",
                "base_width": 16,
                "deform_groups": 64,
            }
        },
        "architecture.deform_groups",
        "expected one of 1, 2, 4, 8, 16, 32 with conv 'dconv'",
    ),
    "an odd width": (
        {"architecture__base_width": 33},
        "architecture.base_width",
        "a multiple of 16 up to 128",
    ),
    "too wide": ({"architecture__hidden": 8192}, "architecture.hidden", "a multiple of 16 up to 4096"),
    "no width": ({"architecture__channels": 0}, "architecture.channels", "at least 1"),
    "groups that are true": ({"architecture__deform_groups": True}, "architecture.deform_groups", "whole"),
    "groups of plain convolutions": (
        {"architecture": {"detector": "faster_rcnn", "backbone": "resnet50", "deform_groups": 2}},
        "architecture.deform_groups",
        "expected one of 1 with conv 'conv'",
    ),
    "unknown class set": (
        {"classes": "voc"},
        "classes",
        "'voc' is not defined; known are coco, shapes, cells",
    ),
    "no classes": ({"classes": []}, "classes", "one or more"),
    "no classes, as a mapping": ({"classes": {}}, "classes", "at least one"),
    "class of another type": ({"classes": ["yes", True]}, "classes.2", "quote it"),
    "two classes of one name": ({"classes": ["a", "a"]}, "classes", "differ"),
    "class id that is text": ({"classes": {"a": "b"}}, "classes.a", "whole number"),
    "negative class id": ({"classes": {-1: "b"}}, "classes.-1", "at least 0"),
    "unknown preprocessing": ({"preprocessing": "big"}, "preprocessing", "is not defined"),
    "no pixel": ({"preprocessing": {"short_side": 0}}, "preprocessing.short_side", "at least 1"),
    "fraction of a pixel": ({"preprocessing": {"short_side": 0.5}}, "preprocessing.short_side", "whole"),
    "sides exchanged": (
        {"preprocessing": {"short_side": 1333, "long_side": 800}},
        "preprocessing.long_side",
        "at least 1333",
    ),
    "two channels": ({"preprocessing": {"mean": [1, 2]}}, "preprocessing.mean", "list of 3"),
    "mean that is text": ({"preprocessing": {"mean": [1, 2, "x"]}}, "preprocessing.mean.3", "a number"),
    "no deviation": ({"preprocessing": {"std": [1, 0, 1]}}, "preprocessing.std.2", "a number from"),
    "mean that is not a number": (
        {"preprocessing": {"mean": [1, 2, float("nan")]}},
        "preprocessing.mean.3",
        "a number",
    ),
    "mean that no float can hold": (
        {"preprocessing": {"mean": [1, 2, 10**400]}},
        "preprocessing.mean.3",
        "a number",
    ),
    "infinite mean": ({"preprocessing": {"mean": [1, 2, float("inf")]}}, "preprocessing.mean.3", "a number"),
    "unknown precision": ({"precision_trained": "int8"}, "precision_trained", "fp32, fp16"),
    "negative AP": ({"published": {"box_ap": -1}}, "published.box_ap", "from 0 to 100"),
    "AP over 100": ({"published": {"mask_ap": 100.1}}, "published.mask_ap", "from 0 to 100"),
    "AP that is text": ({"published": {"box_ap": "41.3"}}, "published.box_ap", "expected a number"),
    "negative memory": ({"published": {"train_memory_gb": -1}}, "published.train_memory_gb", "from 0"),
    "schedule of another type": ({"published": {"schedule": 1}}, "published.schedule", "expected text"),
    "published as a list": ({"published": []}, "published", "expected a mapping"),
    "empty licence": ({"licence": " "}, "licence", "expected text"),
}


def record_named(changes: dict[str, Any]) -> str:
    name = changes.get("name", "cells")
    return name if isinstance(name, str) else "number 1"


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_wrong_field_is_named(tmp_path: Path, case: str) -> None:
    changes, field, problem = WRONG_FIELDS[case]
    path = written(tmp_path, own_with(**changes))
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    error = caught.value
    assert (error.path, error.record, error.field) == (str(path), record_named(changes), field)
    assert problem in error.problem
    assert str(error).startswith(f"manifest {path}, record {error.record!r}, field {field!r}: ")


DEEP = {"brackets": "[" * 100_000, "mappings": "{a: " * 100_000, "dashes": "- " * 100_000}
# What the file holds, the field, part of the problem.
WRONG_FILES: dict[str, tuple[object, str | None, str]] = {
    "nothing": ("", None, "expected a mapping, got None"),
    "a list": ([1], None, "expected a mapping, got [1]"),
    "text": ("hello", None, "expected a mapping"),
    "an unknown section": ({"models": []}, "models", "unknown field; known are class_sets, preprocessing,"),
    "records in a mapping": ({"checkpoints": {"a": {}}}, "checkpoints", "expected a list"),
    "a record that is no mapping": ({"checkpoints": ["a"]}, "checkpoints.1", "expected a mapping"),
    "a class set that is built in": ({"class_sets": {"coco": ["a"]}}, "class_sets.coco", "defined already"),
    "a preprocessing that is built in": (
        {"preprocessing": {"resize_800_1333": {}}},
        "preprocessing.resize_800_1333",
        "defined already",
    ),
    "class sets in a list": ({"class_sets": []}, "class_sets", "expected a mapping"),
    "a class set without name": ({"class_sets": {1: ["a"]}}, "class_sets", "expected text"),
    "a broken class set": ({"class_sets": {"own": [1]}}, "class_sets.own.1", "expected text"),
    "broken syntax": ("checkpoints:\n  - name: a\n urls: [", None, "line 3: "),
    "a tab": ("a:\n\t- b", None, "line 2: "),
    "an unclosed quote": ('a: "b', None, "line 1: "),
    "a key twice": ("class_sets: {}\nclass_sets: {}", None, "line 2: the key 'class_sets' is given twice"),
    "an unknown alias": ("a: *b", None, "line 1: "),
    "an object of Python's": ("a: !!python/object/apply:os.getcwd []", None, "constructor for the tag"),
    "a day that does not exist": ("a: 2025-99-99", None, "no YAML that can be read: month"),
    "an empty number": ("a: !!int ''", None, "no YAML that can be read"),
    "a list as a key": ("? [a]\n: b", None, "line 1: "),
    "a control character": ("a: \x07", None, "no YAML that can be read"),
    "itself": ("&a {b: *a}", "b", "unknown field"),
    **{f"endless {what}": (text, None, "nests more than") for what, text in DEEP.items()},
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_file_is_named(tmp_path: Path, case: str) -> None:
    document, field, problem = WRONG_FILES[case]
    path = written(tmp_path, document)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert (caught.value.path, caught.value.record, caught.value.field) == (str(path), None, field)
    assert problem in caught.value.problem
    assert len(str(caught.value)) < 1000


def test_record_without_a_name_is_counted(tmp_path: Path) -> None:
    document = copy.deepcopy(OWN)
    document["checkpoints"].append({"urls": ["x.pth"]})
    with pytest.raises(ManifestError, match="record 'number 2', field 'name': is missing"):
        load_manifest(written(tmp_path, document))


def test_two_records_of_one_name(tmp_path: Path) -> None:
    document = copy.deepcopy(OWN)
    document["checkpoints"] *= 2
    with pytest.raises(ManifestError, match="record 'cells', field 'name': is taken"):
        load_manifest(written(tmp_path, document))


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        load_manifest(tmp_path / "absent.yaml")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        load_manifest(tmp_path)


def test_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes("class_sets: {own: [é]}".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8 text \\(byte 19\\)"):
        load_manifest(path)


def test_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(OWN).encode())
    assert "cells" in load_manifest(path).records


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def refusal(path: Path) -> ManifestError | None:
    try:
        load_manifest(path)
    except ManifestError as error:
        return error
    return None


@settings(deadline=None)
@given(field=st.sampled_from([*OWN["checkpoints"][0], "sha256", "published", "licence"]), value=values)
def test_any_value_is_accepted_or_refused_with_its_name(field: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        error = refusal(written(Path(folder), json.dumps(own_with(**{field: value}))))
    assert error is None or str(error.field).split(".")[0] in (field, "None")


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="[]{}:-,&*!?|>#'\"%@` \nab01", max_size=60).map(str.encode))
def test_any_bytes_are_accepted_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.yaml")
        path.write_bytes(data)
        error = refusal(path)
    assert error is None or error.path == str(path)
