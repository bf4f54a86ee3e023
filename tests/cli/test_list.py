"""`dcnzoo list`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcnzoo.download import checkpoint_path
from dcnzoo.manifest import load_manifest
from tests.cli.conftest import Program

MDPOOL = "faster_rcnn_r50_fpn_mdpool_1x_coco"
GROUP4 = "faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco"


def test_lists_every_checkpoint_in_natural_order(dcnzoo: Program) -> None:
    code, out, err = dcnzoo("list")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert (code, err) == (0, "")
    assert set(names) == set(load_manifest("").records)
    assert names.index("mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco") < names.index(
        "mask_rcnn_r101_fpn_dconv_c3-c5_1x_coco"
    )


def test_columns_are_aligned(dcnzoo: Program) -> None:
    header, *rows = dcnzoo("list").out.splitlines()
    for title in ("box AP", "mask AP", "backbone", "conv", "RoI pooling", "downloaded"):
        start = header.index(title)
        assert all(row[start - 1] == " " and row[start] != " " for row in rows), title


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        (MDPOOL, ["38.7", "-", "resnet50", "conv", "mdpool", "-"]),
        (GROUP4, ["41.5", "-", "resnet50", "mdconv", "(4", "groups)", "roi_align", "-"]),
        (
            "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco",
            ["47.3", "41.1", "resnext101_32x4d", "dconv", "roi_align", "-"],
        ),
    ],
)
def test_row(dcnzoo: Program, name: str, cells: list[str]) -> None:
    (row,) = dcnzoo("list", name).out.splitlines()[1:]
    assert row.split() == [name, *cells]


@pytest.mark.parametrize(("pattern", "count"), [("mask_rcnn*", 5), ("r101", 4), ("*fp16*", 2), ("*", 18)])
def test_pattern(dcnzoo: Program, pattern: str, count: int) -> None:
    assert len(dcnzoo("list", pattern).out.splitlines()) == 1 + count


def test_pattern_that_fits_nothing(dcnzoo: Program) -> None:
    code, out, err = dcnzoo("list", "fastr_rcnn_r50_fpn_mdpool")
    assert (code, out) == (1, "")
    assert f"did you mean {MDPOOL}" in err


def test_downloaded_file_is_marked(dcnzoo: Program) -> None:
    path = checkpoint_path(load_manifest().find(MDPOOL))
    path.parent.mkdir(parents=True)
    path.touch()
    assert dcnzoo("list", MDPOOL).out.split()[-1] == "yes"


def test_json_has_every_field(dcnzoo: Program, home: Path) -> None:
    code, out, err = dcnzoo("list", GROUP4, "--json")
    (record,) = json.loads(out)
    assert (code, err) == (0, "")
    assert record.pop("classes")["names"][:2] == ["person", "bicycle"]
    url = record["urls"][0]
    assert record == {
        "name": GROUP4,
        "urls": [url],
        "sha256": "01262257",
        "architecture": {
            "name": "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
            "detector": "faster_rcnn",
            "backbone": "resnet50",
            "conv": "mdconv",
            "deform_groups": 4,
            "pool": "roi_align",
            "base_width": 64,
            "channels": 256,
            "hidden": 1024,
        },
        "preprocessing": {
            "short_side": 800,
            "long_side": 1333,
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "size_divisor": 32,
        },
        "precision_trained": "fp32",
        "published": {
            "box_ap": 41.5,
            "mask_ap": None,
            "train_memory_gb": 4.2,
            "fps_v100": 17.4,
            "schedule": "1x",
        },
        "config_url": None,
        "log_url": None,
        "licence": "Apache-2.0",
        "path": str(home / "checkpoints" / url.rpartition("/")[2]),
        "downloaded": False,
        "built_in": False,
    }


def test_json_of_all(dcnzoo: Program) -> None:
    assert len(json.loads(dcnzoo("list", "--json").out)) == 18
