"""A real checkpoint that MMDetection 3.5.1 trained, on the photos it was scored on."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dcnzoo
from dcnzoo.image import decode_image, make_batch
from dcnzoo.models.rcnn import Instances
from dcnzoo.ops import backend

from .matching import match

pytestmark = pytest.mark.parity

REFERENCE_STATS = (
    0.470010, 0.843578, 0.467567, 0.123762, 0.377562, 0.558488,
    0.324280, 0.523527, 0.580886, 0.122222, 0.502140, 0.666792,
)  # fmt: skip
ARCHITECTURE = "faster_rcnn_r50_fpn_dconv_c3-c5"
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def bccd(shared: Path) -> Path:
    return shared / "data" / "bccd"


@pytest.fixture(scope="module")
def weights(bccd: Path) -> Path:
    return bccd / f"{ARCHITECTURE}_bccd.pth"


@pytest.fixture(scope="module")
def results(bccd: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `dcnzoo predict` writes for the validation set."""
    folder = tmp_path_factory.mktemp("bccd")
    images = [image["file_name"] for image in json.loads((bccd / "val.json").read_text())["images"]]
    (folder / "val.txt").write_text("\n".join(str(bccd / "images" / name) for name in images))
    command = (
        f"predict {folder}/val.txt --weights {weights} --arch {ARCHITECTURE} --short-side 240 --long-side 320"
        f" --format coco --annotations {bccd}/val.json --batch-size 4 --out {folder}/out --quiet"
    )
    subprocess.run([sys.executable, "-m", "dcnzoo", *command.split()], check=True)
    return json.loads((folder / "out" / "detections.coco.json").read_text())


def by_image(results: Results) -> dict[int, dict[str, np.ndarray]]:
    """COCO results as arrays per image, xyxy."""
    grouped = defaultdict(list)
    for result in results:
        grouped[result["image_id"]].append(result)
    arrays = {}
    for image_id, group in grouped.items():
        xywh = np.array([result["bbox"] for result in group])
        arrays[image_id] = {
            "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            "scores": np.array([result["score"] for result in group]),
            "labels": np.array([result["category_id"] for result in group]),
        }
    return arrays


def test_detections_are_the_reference_ones(bccd: Path, results: Results) -> None:
    reference = json.loads((bccd / "val_reference.bbox.json").read_text())
    found = by_image(results)
    pairs = {image_id: match(arrays, found[image_id]) for image_id, arrays in by_image(reference).items()}
    assert len(pairs) == 87
    assert sum(map(len, pairs.values())) >= 0.995 * len(reference)
    assert abs(len(results) - len(reference)) <= 0.005 * len(reference)


@pytest.mark.parametrize("name", ["torchvision", "reference"])
def test_the_other_backends_detect_the_same(
    name: str, bccd: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_chosen", (name, "chosen by the test"))
    predictor = dcnzoo.load(weights=weights, arch=ARCHITECTURE, short_side=240, long_side=320, device="cpu")
    reference = by_image(json.loads((bccd / "val_reference.bbox.json").read_text()))
    for image in json.loads((bccd / "val.json").read_text())["images"][:2]:
        found = as_arrays(predictor(bccd / "images" / image["file_name"]))
        found["labels"] = found["labels"] + 1  # categories of COCO count from 1
        expected = reference[image["id"]]
        assert len(match(expected, found)) >= 0.99 * len(expected["scores"]) > 0
        assert len(found["scores"]) <= 1.01 * len(expected["scores"])


def test_the_twelve_numbers_are_the_reference_ones(bccd: Path, results: Results) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(bccd / "val.json")
        evaluation = COCOeval(annotations, annotations.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    np.testing.assert_allclose(evaluation.stats, REFERENCE_STATS, rtol=0, atol=5e-4)


@pytest.fixture(scope="module")
def predictor(weights: Path) -> dcnzoo.Predictor:
    return dcnzoo.load(weights=weights, arch=ARCHITECTURE, short_side=240, long_side=320, device="cpu")


def as_arrays(detections: dcnzoo.Detections) -> dict[str, np.ndarray]:
    return {"boxes": detections.boxes, "scores": detections.scores, "labels": detections.labels}


def test_bf16_finds_what_float32_finds(bccd: Path, weights: Path, predictor: dcnzoo.Predictor) -> None:
    options = {"weights": weights, "arch": ARCHITECTURE, "short_side": 240, "long_side": 320}
    lower = dcnzoo.load(**options, device="cpu", precision="bf16")
    expected_count = matched = 0
    for path in sorted((bccd / "images").glob("*.jpg"))[:24]:
        expected, found = as_arrays(predictor(path)), as_arrays(lower(path))
        sure = {key: value[expected["scores"] > 0.3] for key, value in expected.items()}
        expected_count += len(sure["scores"])
        matched += len(match(sure, found, iou=0.9, score=1.0))
    assert matched >= 0.97 * expected_count > 0


def test_class_names_come_from_the_file(predictor: dcnzoo.Predictor) -> None:
    assert predictor.class_names == ("RBC", "WBC", "Platelets")


def test_a_batch_of_equal_sizes_changes_nothing(bccd: Path, predictor: dcnzoo.Predictor) -> None:
    paths = sorted((bccd / "images").glob("*.jpg"))[:4]
    alone, together = [predictor(path) for path in paths], predictor(paths, batch_size=4)
    for single, batched in zip(alone, together, strict=True):
        assert len(match(as_arrays(single), as_arrays(batched))) >= 0.99 * len(single)


def test_a_batch_of_mixed_sizes_differs_by_padding_only(bccd: Path, predictor: dcnzoo.Predictor) -> None:
    photo = decode_image(sorted((bccd / "images").glob("*.jpg"))[0])
    batch = make_batch([photo, photo[:, :480], photo[:300]], predictor.preprocessing)
    assert len(set(batch.image_sizes)) > 1
    with torch.inference_mode():
        together = predictor.model(batch.images, batch.image_sizes, batch.original_sizes)
        for index, batched in enumerate(together):
            own = slice(index, index + 1)
            (alone,) = predictor.model(batch.images[own], batch.image_sizes[own], batch.original_sizes[own])
            pairs = match(tensors_as_arrays(alone), tensors_as_arrays(batched))
            assert len(pairs) >= 0.99 * len(alone.scores) > 0


def tensors_as_arrays(instances: Instances) -> dict[str, np.ndarray]:
    return {key: getattr(instances, key).numpy() for key in ("boxes", "scores", "labels")}
