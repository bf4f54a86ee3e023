"""Figures that others have published or computed, obtained with `dcnzoo eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcnzoo.cli.main import run
from dcnzoo.evaluation import Kind
from dcnzoo.evaluation.annotations import read_annotations
from dcnzoo.evaluation.coco_metrics import coco_metrics
from dcnzoo.evaluation.error_types import ErrorType, error_breakdown
from dcnzoo.evaluation.overlaps import image_overlaps
from dcnzoo.evaluation.results import read_results
from tests.parity.conftest import CellRun

pytestmark = pytest.mark.parity

OFFICIAL = {
    "bbox": (
        0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398,
        0.386813, 0.593680, 0.595353, 0.639811, 0.566421, 0.564291,
    ),
    "segm": (
        0.319545, 0.562288, 0.298927, 0.387374, 0.310183, 0.326934,
        0.268230, 0.415449, 0.416839, 0.469450, 0.376759, 0.381472,
    ),
}  # fmt: skip
"""The 12 numbers of COCO's sample results on 100 images of val2014."""

CELLS = (
    0.470010, 0.843578, 0.467567, 0.123762, 0.377562, 0.558488,
    0.324280, 0.523527, 0.580886, 0.122222, 0.502140, 0.666792,
)  # fmt: skip
"""The 12 numbers of the reference on the blood cells."""

CELLS_PER_CLASS = {"RBC": 0.457, "WBC": 0.613, "Platelets": 0.340}

Tide = dict[ErrorType, tuple[float, int]]

TIDE_CELLS: Tide = {
    ErrorType.CLASSIFICATION: (0.001299, 63),
    ErrorType.LOCALISATION: (0.039140, 2726),
    ErrorType.BOTH: (0.001945, 298),
    ErrorType.DUPLICATE: (0.002983, 204),
    ErrorType.BACKGROUND: (0.065014, 1478),
    ErrorType.MISSED: (0.011204, 10),
}
"""What tidecv 1.0.1 says of the reference's detections: AP50 gained (0 to 1), and number of errors."""

TIDE_SAMPLE_MASKS: Tide = {
    ErrorType.CLASSIFICATION: (0.126238, 69),
    ErrorType.LOCALISATION: (0.125948, 82),
    ErrorType.BOTH: (0.003507, 5),
    ErrorType.DUPLICATE: (0.0, 0),
    ErrorType.BACKGROUND: (0.002966, 4),
    ErrorType.MISSED: (0.095184, 116),
}
"""What tidecv 1.0.1 says of COCO's sample masks, crowds and classes without objects left out."""


@pytest.fixture(scope="module")
def sample(shared: Path) -> Path:
    return shared / "data" / "coco_val2014_100"


def twelve(metrics: dict[str, Any]) -> list[float]:
    return list(metrics.values())[:12]


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_official_sample_results(
    sample: Path, kind: str, evaluator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = sample / f"instances_val2014_fake{kind}100_results.json"
    annotations = sample / "instances_val2014_100.json"
    command = f"eval --results {results} --annotations {annotations} --out {tmp_path} --json"
    assert run([*command.split(), "--evaluator", evaluator]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() & {"bbox", "segm"} == {kind}
    assert twelve(printed[kind]) == pytest.approx(OFFICIAL[kind], abs=1e-6)


def test_reference_detections_of_the_blood_cells(bccd: Path, tmp_path: Path) -> None:
    command = f"eval --results {bccd}/val_reference.bbox.json --annotations {bccd}/val.json --out {tmp_path}"
    assert run(command.split()) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())["bbox"]
    assert twelve(metrics) == pytest.approx(CELLS, abs=1e-6)
    assert {one["name"]: one["ap"] for one in metrics["per_class"]} == pytest.approx(
        CELLS_PER_CLASS, abs=5e-4
    )


def test_trained_checkpoint_on_the_blood_cells(bccd: Path, cell_run: CellRun) -> None:
    content = json.loads((cell_run.out / "metrics.json").read_bytes())
    assert content["num_images"] == 87
    metrics = content["bbox"]
    assert twelve(metrics) == pytest.approx(CELLS, abs=5e-4)
    listed = read_annotations(bccd / "val.json")
    reference = coco_metrics(listed, read_results(bccd / "val_reference.bbox.json", listed)["bbox"], "bbox")
    expected = {one.name: one.ap for one in reference.classes}
    assert {one["name"]: one["ap"] for one in metrics["per_class"]} == pytest.approx(expected, abs=5e-4)
    assert f" {metrics['AP']:.3f}\n" in cell_run.printed
    for one in metrics["per_class"]:
        line = next(line.split() for line in cell_run.printed.splitlines() if line.startswith(one["name"]))
        assert line[1:3] == [str(one["objects"]), f"{one['ap']:.3f}"]


def tide(annotations: Path, results: Path, kind: Kind) -> Tide:
    """Errors without crowds and without classes that have no objects, which tidecv treats in another way."""
    listed = read_annotations(annotations)
    plain = tuple(item for item in listed.objects if not item["iscrowd"])
    occurring = {item["category_id"] for item in plain}
    found = [result for result in read_results(results, listed)[kind] if result["category_id"] in occurring]
    overlaps = image_overlaps(replace(listed, objects=plain), found, kind)
    result = error_breakdown(overlaps, len(listed.category_names))
    return {error: (result.gains[error], result.counts[error]) for error in ErrorType}


@pytest.mark.parametrize(("kind", "expected"), [("bbox", TIDE_CELLS), ("segm", TIDE_SAMPLE_MASKS)])
def test_errors_are_tides(bccd: Path, sample: Path, kind: Kind, expected: Tide) -> None:
    """Up to a step of recall: tidecv rounds some of the 101 recalls to the other side."""
    files = {
        "bbox": (bccd / "val.json", bccd / "val_reference.bbox.json"),
        "segm": (
            sample / "instances_val2014_100.json",
            sample / "instances_val2014_fakesegm100_results.json",
        ),
    }
    found = tide(*files[kind], kind)
    assert {error: count for error, (_, count) in found.items()} == {
        error: count for error, (_, count) in expected.items()
    }
    gains = {error: gain for error, (gain, _) in found.items()}
    assert gains == pytest.approx({error: gain for error, (gain, _) in expected.items()}, abs=1e-3)
