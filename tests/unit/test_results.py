"""The result of one image, and the pictures drawn from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dcnzoo.annotate import HUES, class_colour, draw_detections, text_colour
from dcnzoo.errors import ImageReadError
from dcnzoo.results import Detections, find_labels
from tests.pictures import noise, save

NAMES = ("person", "traffic light", "dog")
IDS = (1, 10, 18)
BOXES = np.array([[10, 20, 30, 60], [0, 0, 80, 60], [5, 5, 6, 6.5]], np.float32)


def encode(masks: np.ndarray) -> tuple[dict[str, object], ...]:
    """COCO run lengths of masks (D, H, W)."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return tuple({"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles)


def box_masks(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def detections(**changes: object) -> Detections:
    fields = {
        "boxes": BOXES,
        "scores": np.array([0.9, 0.5, 0.25], np.float32),
        "labels": np.array([2, 0, 2]),
        "class_names": NAMES,
        "category_ids": IDS,
        "image_size": (60, 80),
        "rles": encode(box_masks(BOXES, 60, 80)),
        "path": "a.jpg",
    }
    return Detections(**{**fields, **changes})


NONE = detections()[:0]


class TestConstruction:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"boxes": BOXES[:2]}, r"boxes of shape \(3, 4\), got \(2, 4\)"),
            ({"boxes": BOXES.T}, r"boxes of shape \(3, 4\)"),
            ({"labels": np.array([0])}, r"labels of shape \(3,\)"),
            ({"scores": np.zeros(0)}, r"boxes of shape \(0, 4\)"),
            ({"rles": ()}, "expected 3 masks, got 0"),
            ({"category_ids": (1, 2)}, "3 names for 2 category ids"),
            ({"labels": np.array([0, 1, 3])}, "labels from 0 to 2"),
            ({"labels": np.array([0, 1, -1])}, "labels from 0 to 2"),
        ],
    )
    def test_parts_must_agree(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            detections(**changes)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            detections().path = "b.jpg"

    def test_repr_is_short(self) -> None:
        assert repr(detections()) == "Detections(3 detections: 2 dog, 1 person; image 80x60)"
        assert repr(NONE) == "Detections(no detections; image 80x60)"


class TestIndexing:
    @pytest.mark.parametrize(
        ("index", "kept"),
        [
            (0, [0]),
            (-1, [2]),
            (slice(1, None), [1, 2]),
            ([2, 0], [2, 0]),
            (np.array([True, False, True]), [0, 2]),
            (np.zeros(3, bool), []),
            ([], []),
        ],
    )
    def test_keeps_every_field_in_step(self, index: object, kept: list[int]) -> None:
        whole = detections()
        part = whole[index]
        np.testing.assert_array_equal(part.boxes, whole.boxes[kept])
        np.testing.assert_array_equal(part.scores, whole.scores[kept])
        np.testing.assert_array_equal(part.labels, whole.labels[kept])
        assert part.rles == tuple(whole.rles[i] for i in kept)
        assert (len(part), part.path, part.image_size) == (len(kept), "a.jpg", (60, 80))

    def test_out_of_range(self) -> None:
        with pytest.raises(IndexError):
            detections()[3]

    def test_iterates_over_single_detections(self) -> None:
        assert [one.names for one in detections()] == [("dog",), ("person",), ("dog",)]

    def test_above_keeps_what_exceeds_it(self) -> None:
        assert detections().above(0.49).names == ("dog", "person")
        assert detections().above(0.5).names == ("dog",)

    def test_of_classes(self) -> None:
        assert detections().of_classes(["dog"]).scores.tolist() == [np.float32(0.9), 0.25]
        assert detections().of_classes([1]).names == ("person",)
        assert detections().of_classes("person").names == detections().of_classes(1).names == ("person",)


class TestFindLabels:
    @pytest.mark.parametrize(
        ("classes", "labels"),
        [
            (["dog"], [2]),
            ([18, "person"], [0, 2]),
            (["18", "dog", 18], [2]),
            (["traffic light"], [1]),
            ([], []),
        ],
    )
    def test_names_and_category_ids(self, classes: list[str | int], labels: list[int]) -> None:
        assert find_labels(classes, NAMES, IDS).tolist() == labels

    @pytest.mark.parametrize("one", ["dog", 18, "18", np.int64(18)])
    def test_one_alone(self, one: str | int) -> None:
        assert find_labels(one, NAMES, IDS).tolist() == [2]

    def test_any_iterable(self) -> None:
        assert find_labels(iter(["dog"]), NAMES, IDS).tolist() == [2]

    def test_a_name_that_looks_like_an_id_is_the_name(self) -> None:
        assert find_labels(["1"], ("0", "1"), (1, 2)).tolist() == [1]

    def test_unknown(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"unknown class cat, 2; the model knows person, traffic light, dog; .* ids: 1, 10, 18",
        ):
            find_labels(["cat", "dog", 2], NAMES, IDS)


class TestMasks:
    def test_decoded_in_order(self) -> None:
        masks = detections().masks
        assert masks.dtype == bool
        np.testing.assert_array_equal(masks, box_masks(BOXES, 60, 80))

    def test_none_without_mask_head(self) -> None:
        assert detections(rles=None).masks is None

    def test_no_detections(self) -> None:
        assert NONE.masks.shape == (0, 60, 80)


class TestCoco:
    def test_fields(self) -> None:
        result = detections().to_coco(785)[0]
        assert result == {
            "image_id": 785,
            "category_id": 18,
            "bbox": [10.0, 20.0, 20.0, 40.0],
            "score": float(np.float32(0.9)),
            "segmentation": {"size": [60, 80], "counts": detections().rles[0]["counts"]},
        }

    def test_no_segmentation_without_masks(self) -> None:
        assert all("segmentation" not in result for result in detections(rles=None).to_coco(1))

    def test_pycocotools_reads_it(self, tmp_path: Path) -> None:
        annotations = {
            "images": [{"id": 785, "width": 80, "height": 60}],
            "categories": [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)],
            "annotations": [],
            "info": {},
        }
        (tmp_path / "gt.json").write_text(json.dumps(annotations))
        (tmp_path / "results.json").write_text(json.dumps(detections().to_coco(785)))
        loaded = COCO(tmp_path / "gt.json").loadRes(str(tmp_path / "results.json"))
        assert sorted(loaded.getCatIds()) == list(IDS)
        masks = [loaded.annToMask(annotation) for annotation in loaded.loadAnns(loaded.getAnnIds())]
        np.testing.assert_array_equal(masks, box_masks(BOXES, 60, 80))


class TestSupervision:
    @pytest.fixture
    def supervision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stands for the package, which the tests do not install: keeps the arguments."""
        fake = SimpleNamespace(Detections=lambda **fields: SimpleNamespace(**fields))
        monkeypatch.setitem(sys.modules, "supervision", fake)

    @pytest.mark.usefixtures("supervision")
    def test_fields(self) -> None:
        converted = detections().to_supervision()
        np.testing.assert_array_equal(converted.xyxy, BOXES)
        np.testing.assert_array_equal(converted.class_id, [2, 0, 2])
        np.testing.assert_array_equal(converted.confidence, detections().scores)
        np.testing.assert_array_equal(converted.mask, detections().masks)
        assert converted.data["class_name"].tolist() == ["dog", "person", "dog"]

    @pytest.mark.usefixtures("supervision")
    def test_without_masks(self) -> None:
        assert detections(rles=None).to_supervision().mask is None

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(ImportError, match="pip install supervision"):
            detections().to_supervision()


class TestPlot:
    GREY = np.full((60, 80, 3), 128, np.uint8)

    def test_box_is_drawn_on_its_pixels_in_the_colour_of_its_class(self) -> None:
        one = detections(rles=None)[0]
        picture = np.asarray(one.plot(self.GREY))
        colour = class_colour(2)
        assert tuple(picture[40, 10]) == colour  # left, top, right and bottom line
        assert tuple(picture[20, 20]) == colour
        assert tuple(picture[40, 29]) == colour
        assert tuple(picture[59, 20]) == colour
        assert tuple(picture[40, 20]) == (128, 128, 128)
        assert tuple(picture[40, 40]) == (128, 128, 128)

    def test_mask_tints_inside_only(self) -> None:
        mask = np.zeros((1, 60, 80), bool)
        mask[0, 30:50, 15:25] = True
        picture = np.asarray(detections()[0].plot(self.GREY)).astype(int)
        blended = np.asarray(detections(rles=encode(np.repeat(mask, 3, axis=0)))[0].plot(self.GREY))
        expected = 128 * 0.55 + np.array(class_colour(2)) * 0.45
        np.testing.assert_allclose(blended[40, 20], expected, atol=1)
        assert tuple(blended[55, 20]) == (128, 128, 128)
        assert (picture[40, 20] != 128).any()

    def test_image_is_left_alone(self) -> None:
        image = self.GREY.copy()
        detections().plot(image, score_threshold=0)
        np.testing.assert_array_equal(image, self.GREY)

    @pytest.mark.parametrize(("threshold", "drawn"), [(0.95, False), (0.5, True)])
    def test_score_threshold(self, threshold: float, drawn: bool) -> None:
        picture = np.asarray(detections().plot(self.GREY, score_threshold=threshold))
        assert (picture != self.GREY).any() == drawn

    def test_reads_the_path_again(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.png", noise(60, 80))
        from_path = detections(path=str(path)).plot()
        assert from_path == detections().plot(noise(60, 80)) == detections().plot(Image.open(path))

    def test_every_image_that_a_predictor_takes(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.png", noise(60, 80))
        drawn = detections().plot(noise(60, 80))
        assert drawn == detections().plot(str(path)) == detections().plot(path)
        assert detections().plot(self.GREY) == detections().plot(self.GREY[..., 0])
        with pytest.raises(ValueError, match=r"expected a uint8 array .*got uint8 \(60, 80, 4\)"):
            detections().plot(np.zeros((60, 80, 4), np.uint8))

    def test_needs_an_image(self) -> None:
        with pytest.raises(ValueError, match="came from memory"):
            detections(path=None).plot()

    def test_image_is_gone(self) -> None:
        with pytest.raises(ImageReadError, match="No such file"):
            detections(path="gone.jpg").plot()

    def test_another_image(self) -> None:
        with pytest.raises(ValueError, match=r"size \(60, 80\), got \(80, 60\)"):
            detections().plot(noise(80, 60))

    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (11, 13), (700, 900)])
    def test_any_size_and_box(self, size: tuple[int, int]) -> None:
        height, width = size
        edge = np.array([[0, 0, width, height], [width, height, width, height], [0, 0, 0, 0]], np.float32)
        odd = detections(boxes=edge, image_size=size, rles=encode(np.ones((3, *size), bool)))
        assert odd.plot(noise(*size), score_threshold=0).size == (width, height)

    def test_labels_stay_inside_and_apart(self) -> None:
        boxes = np.array([[0, 0, 40, 40], [600, 440, 640, 480], [300, 200, 301, 201]], np.float32)
        found = detections(boxes=boxes, image_size=(480, 640), rles=None, scores=np.ones(3, np.float32))
        picture = np.asarray(found.plot(np.full((480, 640, 3), 128, np.uint8)))
        # Each label is a filled area of the class's colour, far larger than the lines of these boxes.
        for (top, left), label in zip([(0, 0), (420, 540), (170, 280)], found.labels, strict=True):
            area = picture[top : top + 60, left : left + 100]
            assert (area == class_colour(int(label))).all(axis=-1).sum() > 600

    def test_class_names_that_break_lines(self) -> None:
        names = ("a\nb", "c\r\n", "\ud800\x00")
        plain = ("a b", "c  ", "  ")
        odd, good = (
            detections(class_names=each).plot(self.GREY, score_threshold=0) for each in (names, plain)
        )
        assert odd == good

    def test_no_detections(self) -> None:
        np.testing.assert_array_equal(np.asarray(draw_detections(self.GREY, NONE)), self.GREY)


class TestColours:
    def test_classes_of_coco_differ(self) -> None:
        assert len({class_colour(label) for label in range(80)}) == 80

    def test_first_classes_have_the_pure_hues(self) -> None:
        assert tuple(class_colour(label) for label in range(len(HUES))) == HUES

    @settings(deadline=None)
    @given(st.integers(0, 10_000))
    def test_text_is_readable(self, label: int) -> None:
        def luminance(colour: tuple[int, int, int]) -> float:
            return float(np.dot(colour, (0.299, 0.587, 0.114)))

        colour = class_colour(label)
        assert abs(luminance(colour) - luminance(text_colour(colour))) >= 127
