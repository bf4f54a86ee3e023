"""What an evaluation says."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dcnzoo.evaluation import report
from dcnzoo.evaluation.annotations import AnnotatedImage, Annotations
from dcnzoo.evaluation.report import (
    compare,
    is_val2017,
    metrics_json,
    product_names,
    report_lines,
    write_report,
)
from dcnzoo.evaluation.scoring import Evaluation, evaluate
from dcnzoo.manifest import ClassSet, Published, load_manifest
from tests.unit.annotating import annotations_of, found, truth

DOG, CAT = 3, 7
BOX, FAR = [0.0, 0.0, 40.0, 40.0], [60.0, 60.0, 30.0, 30.0]


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    objects = [truth(1, CAT, BOX), truth(2, CAT, BOX), truth(1, DOG, FAR), truth(2, DOG, FAR, crowd=1)]
    return annotations_of(tmp_path, objects)


@pytest.fixture
def evaluation(annotations: Annotations) -> Evaluation:
    detections = [found(1, CAT, BOX, 0.9), found(1, CAT, FAR, 0.8), found(2, CAT, BOX, 0.1)]
    return evaluate(annotations, detections, "bbox")


def test_text(annotations: Annotations, evaluation: Evaluation) -> None:
    text = "\n".join(report_lines(annotations, {"bbox": evaluation}, {}, per_class=True))
    assert f"{annotations.path}: 2 images, 3 objects, 1 crowds" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    cats = (51 + 50 * 2 / 3) / 101
    assert f"AP IoU 0.50 to 0.95 {cats / 2:.3f}" in lines
    assert "AP objects above 96² pixels -" in lines
    assert f"cat 2 {cats:.3f} {cats:.3f} {cats:.3f} 1.000" in lines
    assert "dog 1 0.000 0.000 0.000 0.000" in lines
    assert "bird 0 - - - -" in lines
    assert "classification 0.500 1" not in lines
    assert lines[-4:] == ["dog 0 1 0 0", "cat 0 1 0 1", "bird 0 0 0 0", "(background) 0 0 0 0"]


def test_classes_only_when_asked_for(annotations: Annotations, evaluation: Evaluation) -> None:
    lines = list(report_lines(annotations, {"bbox": evaluation}, {}, per_class=False))
    assert not any(line.startswith("cat ") for line in lines)


def test_both_kinds_share_the_tables(annotations: Annotations, evaluation: Evaluation) -> None:
    lines = list(report_lines(annotations, {"bbox": evaluation, "segm": evaluation}, {}, per_class=True))
    assert any(line.split() == ["boxes", "masks"] for line in lines)
    missed = next(line.split() for line in lines if line.startswith("  missed"))
    assert missed[1:3] == missed[3:5]


def test_of_many_classes_the_confused_ones_are_named(annotations: Annotations) -> None:
    categories = {number: f"class {number}" for number in range(1, 12)}
    many = replace(annotations, category_names=categories)
    detections = [found(1, 3, BOX, 0.9), found(2, 3, BOX, 0.9), found(1, 7, FAR, 0.9)]
    lines = list(report_lines(many, {"bbox": evaluate(many, detections, "bbox")}, {}, per_class=False))
    assert lines[-3:] == [
        "boxes: most frequent confusions of classes",
        "  class 7 taken for class 3: 2",
        "  class 3 taken for class 7: 1",
    ]


def test_files(annotations: Annotations, evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_report(out, annotations, {"bbox": evaluation}, "{}\n")
    assert {path.name for path in out.iterdir()} == {
        "confusion_matrix.bbox.csv",
        "metrics.json",
        "precision_recall.bbox.csv",
        "precision_recall.bbox.png",
    }
    assert {path.name for path in out.iterdir()} < set(product_names())
    with (out / "confusion_matrix.bbox.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true \\ found", "dog", "cat", "bird", "(background)"]
    assert [[row[0], *map(int, row[1:])] for row in rows[1:3]] == [["dog", 0, 1, 0, 0], ["cat", 0, 1, 0, 1]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("at", ["write_curves", "draw_curves"])
def test_a_full_disk_leaves_the_report_before(
    annotations: Annotations,
    evaluation: Evaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    write_report(tmp_path, annotations, {"bbox": evaluation}, "first")
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, at, full)
    other = evaluate(annotations, [found(1, CAT, BOX, 0.9)], "bbox")
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, annotations, {"bbox": other}, "second")
    assert contents(tmp_path) == before


def test_killed_between_two_files_there_is_no_report(
    annotations: Annotations, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, annotations, {"bbox": evaluation}, "first")
    replace_file = Path.replace
    there = []

    def watched(path: Path, target: Path) -> Path:
        there.append((tmp_path / "metrics.json").exists())
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_report(tmp_path, annotations, {"bbox": evaluation}, "second")
    assert there == [False] * 4
    assert (tmp_path / "metrics.json").read_text() == "second"


def test_json(evaluation: Evaluation) -> None:
    figures = json.loads(json.dumps(metrics_json(evaluation)))
    assert figures["AP50"] == evaluation.metrics.stats["AP50"]
    assert [one["name"] for one in figures["per_class"]] == ["dog", "cat", "bird"]
    assert figures["errors"]["classification"]["count"] == 1
    assert set(figures["errors"]) == {
        "classification",
        "localisation",
        "both",
        "duplicate",
        "background",
        "missed",
    }


@pytest.mark.parametrize(
    ("comparable", "expected"),
    [(True, "difference +0.0"), (False, "not compared, for these are not known to be")],
)
def test_published(annotations: Annotations, evaluation: Evaluation, comparable: bool, expected: str) -> None:
    compared = compare({"bbox": evaluation, "segm": evaluation}, Published(box_ap=41.3), comparable)
    assert compared.keys() == {"bbox"}
    assert compared["bbox"]["published_AP"] == pytest.approx(0.413)
    difference = compared["bbox"]["difference"]
    assert difference == (pytest.approx(evaluation.metrics.stats["AP"] - 0.413) if comparable else None)
    text = "\n".join(report_lines(annotations, {"bbox": evaluation}, compared, per_class=False))
    assert f"published AP of boxes 0.413, measured {evaluation.metrics.stats['AP']:.3f}" in text
    assert expected in text


class TestVal2017:
    @pytest.fixture
    def coco(self) -> ClassSet:
        return load_manifest().class_sets["coco"]

    def full(self, annotations: Annotations, coco: ClassSet, images: int) -> Annotations:
        return replace(
            annotations,
            images=tuple(AnnotatedImage(number, None, None) for number in range(images)),
            category_names=dict(zip(coco.category_ids, coco.names, strict=True)),
        )

    def test_all_of_it(self, annotations: Annotations, coco: ClassSet) -> None:
        assert is_val2017(self.full(annotations, coco, 5000), coco)

    def test_some_images(self, annotations: Annotations, coco: ClassSet) -> None:
        assert not is_val2017(self.full(annotations, coco, 4999), coco)

    def test_other_categories(self, annotations: Annotations, coco: ClassSet) -> None:
        many = self.full(annotations, coco, 5000)
        assert not is_val2017(replace(many, category_names={1: "person"}), coco)
