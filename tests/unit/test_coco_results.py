"""Reading and writing COCO result files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.results import read_parts, read_results, split_results, write_results
from dcnzoo.evaluation.segmentation import to_rle
from tests.unit.annotating import annotations_of, found, rectangle, truth, write

BOX = [10.0, 20.0, 30.0, 40.0]
MASK = {"size": [100, 100], "counts": to_rle([rectangle(BOX)], (100, 100))["counts"].decode()}
BOXED = found(1, 7, BOX, 0.5)
MASKED = {"image_id": 2, "category_id": 3, "segmentation": MASK, "score": 0.25}

BOTH = {**BOXED, "segmentation": MASK}


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotations_of(tmp_path, [truth(1, 7, BOX)])


@pytest.mark.parametrize(
    ("results", "kinds"),
    [
        ([BOXED], ["bbox"]),
        ([MASKED], ["segm"]),
        ([BOTH], ["bbox", "segm"]),
        ([{**MASKED, "bbox": []}], ["segm"]),
        ([{**BOXED, "segmentation": None}], ["bbox"]),
    ],
)
def test_kinds_are_detected(annotations: Annotations, tmp_path: Path, results: Any, kinds: list[str]) -> None:
    read = read_results(write(tmp_path / "r.json", results), annotations)
    assert list(read) == kinds
    for kind, field in (("bbox", "bbox"), ("segm", "segmentation")):
        if kind in kinds:
            wanted = ("image_id", "category_id", field, "score")
            assert read[kind] == [{key: results[0][key] for key in wanted}]


def test_kinds_can_be_chosen(annotations: Annotations, tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [BOTH, BOXED])
    assert read_results(path, annotations, ["bbox"]) == {"bbox": [BOXED, BOXED]}
    with pytest.raises(EvaluationError, match="1 has no 'segmentation', which every result needs"):
        read_results(path, annotations, ["segm"])


def test_plain_run_lengths_become_a_string(annotations: Annotations, tmp_path: Path) -> None:
    results = [{**MASKED, "segmentation": {"size": [100, 100], "counts": [2000, 1000, 7000]}}]
    read = read_results(write(tmp_path / "r.json", results), annotations)["segm"]
    assert read[0]["segmentation"] == to_rle(results[0]["segmentation"], (100, 100))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "holds no results"),
        ({"annotations": []}, "expected a list of objects, each one result"),
        ([BOXED, 3], "result at position 1 is no JSON object"),
        ([{"image_id": 1, "category_id": 7, "score": 1}], "has neither 'bbox' nor 'segmentation'"),
        ([BOXED, MASKED], "result at position 1 has no 'bbox'"),
        ([MASKED, BOXED], "result at position 0 has no 'bbox'"),
        ([BOXED, BOTH], "result at position 0 has no 'segmentation'"),
        ([BOTH, BOXED], "result at position 1 has no 'segmentation'"),
        ([{**BOXED, "image_id": 5}], "is about image 5, which "),
        ([{**BOXED, "image_id": "1"}], "has image_id '1', expected an integer"),
        ([{**BOXED, "category_id": 1}], "has category 1, which "),
        ([{**BOXED, "score": float("nan")}], "has score nan, expected a finite number"),
        ([{**BOXED, "score": None}], "has score None, expected a finite number"),
        ([{**BOXED, "bbox": [1, 2, 3, None]}], "expected [x, y, width, height]"),
        ([{**BOXED, "bbox": [1, 2, -3, 4]}], "expected [x, y, width, height]"),
        ([{**MASKED, "segmentation": [rectangle(BOX)]}], "has a segmentation that is no run lengths"),
        (
            [{**MASKED, "segmentation": {**MASK, "counts": "zzzzzzzz"}}],
            "has a segmentation that has run lengths",
        ),
    ],
)
def test_malformed(annotations: Annotations, tmp_path: Path, results: object, message: str) -> None:
    path = write(tmp_path / "r.json", results)
    with pytest.raises(EvaluationError) as raised:
        read_results(path, annotations)
    assert message in str(raised.value)
    assert raised.value.path == str(path)


@pytest.mark.parametrize("content", [b"", b"[{]", b"\x80"])
def test_no_json(annotations: Annotations, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="is not JSON"):
        read_results(path, annotations)


def test_masks_come_without_boxes() -> None:
    assert [list(result) for result in split_results([BOTH], "segm")] == [
        ["image_id", "category_id", "segmentation", "score"]
    ]
    assert list(split_results([BOTH], "bbox")) == [BOXED]


def test_written_files_are_read_back(annotations: Annotations, tmp_path: Path) -> None:
    results = [found(1, 7, BOX, 0.5), found(1, 3, BOX, 0.1), found(2, 7, BOX, 0.9)]
    write_results(tmp_path / "r.json", results)
    assert read_results(tmp_path / "r.json", annotations) == {"bbox": results}
    assert len((tmp_path / "r.json").read_text().splitlines()) == 5


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [])
    assert json.loads((tmp_path / "r.json").read_text()) == []


@pytest.mark.parametrize("swap", [lambda parts: parts, lambda parts: parts[::-1]])
def test_parts_are_joined_in_one_order(tmp_path: Path, swap: Callable[[list[Path]], list[Path]]) -> None:
    first = [found(2, 7, BOX, 0.5), found(2, 3, BOX, 0.9)]
    second = [found(1, 7, BOX, 0.2), found(3, 7, BOX, 0.1)]
    parts = [write(tmp_path / "0.json", first), write(tmp_path / "1.json", second)]
    assert read_parts(swap(parts)) == [second[0], *first, second[1]]
