"""Annotation and result files in which anything may stand anywhere."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcnzoo.errors import EvaluationError, SourceError
from dcnzoo.evaluation.annotations import read_annotations
from dcnzoo.evaluation.coco_metrics import find_evaluator
from dcnzoo.evaluation.results import read_results
from dcnzoo.evaluation.scoring import evaluate
from dcnzoo.evaluation.segmentation import to_rle
from dcnzoo.sources import find_images
from dcnzoo.writers import ImageIds
from tests.pictures import noise, save
from tests.unit.annotating import annotation_content, found, rectangle, truth

BOX = [10.0, 20.0, 30.0, 40.0]
RLE = to_rle([rectangle(BOX)], (100, 100))
MASK = {"size": [100, 100], "counts": RLE["counts"].decode()}
ANNOTATIONS = annotation_content(
    [truth(1, 7, BOX), truth(2, 3, BOX), {**truth(1, 90, BOX, crowd=1), "segmentation": MASK}]
)
RESULTS = [{**found(1, 7, BOX, 0.5), "segmentation": MASK}, {**found(2, 3, BOX, 0.9), "segmentation": MASK}]

NUMBERS = (
    st.integers(-5, 120)
    | st.sampled_from([0, -1, 2**31, 2**32, 2**53, 2**63, 10**30, -(10**30)])
    | st.floats()
    | st.sampled_from([1e30, -1e30, 1e308, 5e-324, -0.0])
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SETTINGS = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """The content with something else, or nothing, in a few places."""
    holder = [copy.deepcopy(content)]
    for _ in range(draw(st.integers(1, 3))):
        *above, last = (0, *draw(st.sampled_from(places(holder[0]))))
        target: Any = holder
        for key in above:
            target = target[key]
        if draw(st.booleans()) or target is holder:
            target[last] = draw(ANYTHING)
        else:
            del target[last]
    return holder[0]


def write(folder: str, name: str, content: object) -> Path:
    path = Path(folder, name)
    path.write_text(json.dumps(content))
    return path


@SETTINGS
@given(changed(ANNOTATIONS))
def test_annotations(content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            annotations = read_annotations(write(folder, "a.json", content))
            results = {"bbox": [found(annotations.images[0].image_id, 7, BOX, 0.5)], "segm": []}
            for kind in ("bbox", "segm"):
                evaluate(annotations, [one for one in results[kind] if 7 in annotations.category_names], kind)
        except EvaluationError as error:
            assert len(str(error)) < 2000  # noqa: PT017


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
@SETTINGS
@given(content=changed(RESULTS))
def test_results(evaluator: str, content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        annotations = read_annotations(write(folder, "a.json", ANNOTATIONS))
        try:
            for kind, results in read_results(write(folder, "r.json", content), annotations).items():
                evaluation = evaluate(annotations, results, kind, find_evaluator(evaluator))
                assert all(-1 <= value <= 1 for value in evaluation.metrics.stats.values())
        except EvaluationError as error:
            assert len(str(error)) < 2000  # noqa: PT017


@SETTINGS
@given(changed(ANNOTATIONS))
def test_image_ids_of_predict(content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder, "photos", "1.jpg"), noise(4, 4))
        try:
            ids = ImageIds(write(folder, "a.json", content))
        except SourceError:
            return
        for source in find_images([f"{folder}/photos"]):
            assert isinstance(ids.find(source), int | None)
