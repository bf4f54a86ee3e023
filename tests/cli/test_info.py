"""`dcnzoo info`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Program

MASK = "mask_rcnn_r50_fpn_fp16_dconv_c3-c5_1x_coco"


@pytest.mark.parametrize(
    ("title", "value"),
    [
        ("name", MASK),
        ("architecture", "mask_rcnn_r50_fpn_dconv_c3-c5"),
        ("convolutions", "dconv in c3-c5, deformable groups: 1"),
        ("widths", "backbone from 64, pyramid 256, box head 1024"),
        ("input", "short side 800, long side at most 1333, padded to a multiple of 32"),
        ("trained in", "mixed precision (fp16)"),
        ("box AP", "41.9"),
        ("mask AP", "37.5"),
        ("training memory", "3.0 GB"),
        ("speed", "-"),
        ("licence", "Apache-2.0"),
        ("SHA-256", "starts with c06429d2"),
    ],
)
def test_shows(dcnzoo: Program, title: str, value: str) -> None:
    code, out, err = dcnzoo("info", MASK)
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if line.startswith(f"{title}  "))
    assert line.removeprefix(title).strip() == value


def test_says_where_the_file_will_be_and_how_to_get_it(dcnzoo: Program, home: Path) -> None:
    last = dcnzoo("info", MASK).out.splitlines()[-1]
    assert last.startswith("file ")
    assert str(home / "checkpoints") in last
    assert f"dcnzoo download {MASK}" in last


def test_long_lists_stay_in_their_column(dcnzoo: Program) -> None:
    lines = dcnzoo("info", MASK).out.splitlines()
    start = lines[0].index(MASK)
    first = next(number for number, line in enumerate(lines) if line.startswith("classes "))
    assert lines[first][start:].startswith("80: person, bicycle,")
    assert lines[first + 1][:start].isspace()
    assert lines[first + 1][start] != " "


def test_own_record(dcnzoo: Program, own_manifest: Path) -> None:
    code, out, _ = dcnzoo("info", "cells", "--manifest", own_manifest)
    assert code == 0
    assert "2: RBC, WBC" in out
    assert "the file is not verified" in out
    assert out.splitlines()[-1].split() == ["file", str(own_manifest.with_name("cells.pth"))]


def test_json_is_what_list_gives(dcnzoo: Program) -> None:
    (listed,) = json.loads(dcnzoo("list", MASK, "--json").out)
    assert json.loads(dcnzoo("info", MASK, "--json").out) == listed


def test_misspelt_name_suggests_the_nearest(dcnzoo: Program) -> None:
    code, out, err = dcnzoo("info", "mask_rcnn_r50_fpn_fp16_dconv")
    assert (code, out) == (1, "")
    assert f"did you mean {MASK}" in err
