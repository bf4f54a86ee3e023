"""Annotation files: what is in them, which images are chosen, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation.annotations import Annotations, read_annotations, read_image_ids
from tests.unit.annotating import annotation_content, annotations_of, truth, write

DOG, CAT = 3, 7
BOX = [10.0, 20.0, 30.0, 40.0]
OBJECTS = [truth(1, CAT, BOX), truth(2, DOG, BOX), truth(3, CAT, BOX, crowd=1)]


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotations_of(tmp_path, OBJECTS, images=12)


class TestSelect:
    def test_by_id_in_the_order_of_the_file(self, annotations: Annotations) -> None:
        chosen = annotations.select([3, 1])
        assert [image.image_id for image in chosen.images] == [1, 3]
        assert [item["image_id"] for item in chosen.objects] == [1, 3]

    def test_the_limit_counts_what_was_chosen(self, annotations: Annotations) -> None:
        assert [image.image_id for image in annotations.select([5, 3, 1], limit=2).images] == [1, 3]

    def test_unknown_ids(self, annotations: Annotations) -> None:
        with pytest.raises(EvaluationError, match="2 of the chosen images are not in it: 77, 99"):
            annotations.select([99, 1, 77])


class TestCategories:
    def test_are_found_by_name_whatever_the_ids(self, annotations: Annotations) -> None:
        assert annotations.category_ids(["cat", "bird", "dog"]) == (7, 90, 3)

    def test_a_class_that_is_no_category(
        self, annotations: Annotations, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert annotations.category_ids(["cat", "cow", "dog"]) == (7, None, 3)
        assert "has no category cow; what is found of it is not scored" in caplog.text

    def test_a_category_with_objects_that_is_no_class(self, annotations: Annotations) -> None:
        message = "does not know 1 of its categories: cat; classes that only the model has: none"
        with pytest.raises(EvaluationError, match=message):
            annotations.category_ids(["dog", "bird"])

    def test_a_category_without_objects_may_be_missing(self, annotations: Annotations) -> None:
        assert annotations.category_ids(["dog", "cat"]) == (3, 7)


class TestFiles:
    def test_in_the_order_of_the_file(self, annotations: Annotations, tmp_path: Path) -> None:
        for number in range(1, 13):
            (tmp_path / f"{number}.jpg").touch()
        assert annotations.find_files(tmp_path) == [tmp_path / f"{number}.jpg" for number in range(1, 13)]

    def test_the_first_ten_of_those_missing_are_listed(
        self, annotations: Annotations, tmp_path: Path
    ) -> None:
        (tmp_path / "2.jpg").touch()
        with pytest.raises(EvaluationError) as raised:
            annotations.find_files(tmp_path)
        names = ", ".join(f"{number}.jpg" for number in (1, *range(3, 12)))
        assert f"11 of its 12 images are not in {tmp_path}: {names} and 1 more;" in str(raised.value)

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        content = annotation_content(OBJECTS[:1], images=1)
        content["images"][0]["file_name"] = "caf\udce9.jpg"
        (tmp_path / "caf\udce9.jpg").touch()
        annotations = read_annotations(write(tmp_path / "a.json", content))
        assert annotations.find_files(tmp_path) == [tmp_path / "caf\udce9.jpg"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("1.jpg", "1 files belong to several images: 1.jpg"),
            ("./1.jpg", "1 files belong to several images: 1.jpg"),
            (None, "1 images have no 'file_name': 2"),
            ("../2.jpg", r"1 file names lead out of the folder: \.\./2.jpg"),
            ("a/../../2.jpg", "1 file names lead out of the folder: a/"),
            ("/etc/passwd", "1 file names lead out of the folder: /etc/passwd"),
        ],
    )
    def test_names_that_are_no_use(self, tmp_path: Path, name: str | None, message: str) -> None:
        content = annotation_content(OBJECTS[:1])
        content["images"][1]["file_name"] = name
        with pytest.raises(EvaluationError, match=message):
            read_annotations(write(tmp_path / "a.json", content)).find_files(tmp_path)


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """Annotations with fields of the last entry of a list changed, or taken out where None."""
    content = annotation_content(OBJECTS, images=3)
    entry = {**content[part][-1], **fields}
    content[part][-1] = {key: value for key, value in entry.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object"),
        ({"images": [], "annotations": []}, "it has no 'categories'"),
        ({**annotation_content([]), "images": []}, "has no images"),
        ({**annotation_content([]), "categories": []}, "has no categories"),
        ({**annotation_content([]), "images": {}}, "expected a list of objects, each one image"),
        (changed("images", id=1), "image 1 is there twice"),
        (changed("images", id="3"), "has id '3', expected an integer"),
        (changed("images", id=True), "has id True, expected an integer"),
        (changed("images", width=99.5), "has width 99.5, expected a whole number"),
        (changed("images", width="100"), "has width '100', expected a whole number"),
        (changed("images", width=float("nan")), "has width nan, expected a whole number"),
        (changed("images", width=0), "is said to be of 0x100 pixels"),
        (changed("images", width=2**31, height=2**31), "is said to be of"),
        (changed("categories", name="cat"), "has several categories of the same name: cat"),
        (changed("categories", name=None), "has no 'name'"),
        (changed("categories", name="caf\ud800"), r"has name 'caf\ud800', expected a text of valid Unicode"),
        (changed("categories", name="caf\udce9"), r"has name 'caf\udce9', expected a text of valid Unicode"),
        (changed("images", file_name="\ud800.jpg"), r"has file_name '\ud800.jpg', expected a text"),
        (changed("annotations", id=1), "annotation 1 is there twice"),
        (changed("annotations", image_id=9), "is about image 9, which the file does not list"),
        (changed("annotations", category_id=9), "has category 9, which the file does not list"),
        (changed("annotations", bbox=[1, 2, 3]), "expected [x, y, width, height]"),
        (changed("annotations", bbox=[1, 2, -3, 4]), "expected [x, y, width, height]"),
        (changed("annotations", bbox=[1, 2, 3, float("inf")]), "expected [x, y, width, height]"),
        (changed("annotations", area="600"), "has area '600', expected a finite number"),
        (
            changed("annotations", area=None, segmentation=[[1, 2]]),
            "annotation 3 has no 'area', and none can be computed, for its segmentation has a polygon that",
        ),
        (changed("annotations", iscrowd=2), "has iscrowd 2, expected 0 or 1"),
    ],
)
def test_malformed(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(EvaluationError) as raised:
        read_annotations(path)
    assert message in str(raised.value)
    assert raised.value.path == str(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read: No such file"):
        read_annotations(tmp_path / "a.json")


def test_an_annotation_with_the_id_0_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_annotations(write(tmp_path / "a.json", changed("annotations", id=0)))
    assert "has an annotation with the id 0" in caplog.text


TRIANGLE = [[10, 10, 50, 10, 10, 50]]


class TestAreas:
    """Objects whose area the file does not state."""

    @staticmethod
    def areas(folder: Path, **fields: Any) -> list[float]:
        content = annotation_content(OBJECTS, images=3)
        content["images"][0].update(fields.pop("image", {}))
        content["annotations"][0].update(fields)
        return [item["area"] for item in read_annotations(write(folder / "a.json", content)).objects]

    def test_is_that_of_the_polygon_in_pixels(self, tmp_path: Path) -> None:
        rle = coco_mask.merge(coco_mask.frPyObjects(TRIANGLE, 100, 100))
        expected = [float(coco_mask.area(rle)), 1200.0, 1200.0]
        assert expected[0] == pytest.approx(800, rel=0.05)
        assert self.areas(tmp_path, area=None, segmentation=TRIANGLE) == expected

    @pytest.mark.parametrize("plain", [True, False])
    def test_is_that_of_the_run_lengths(self, tmp_path: Path, plain: bool) -> None:
        rle = {"size": [100, 100], "counts": [7, 33, 9960]}
        if not plain:
            rle = coco_mask.frPyObjects(rle, 100, 100)
            rle["counts"] = rle["counts"].decode("ascii")
        assert self.areas(tmp_path, area=None, segmentation=rle)[0] == 33

    @pytest.mark.parametrize("segmentation", [None, []])
    def test_is_that_of_the_box_without_a_mask(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, segmentation: object
    ) -> None:
        assert self.areas(tmp_path, area=None, segmentation=segmentation)[0] == 1200
        (record,) = caplog.records
        assert f"{tmp_path / 'a.json'}: 1 of 3 annotations have no 'area'" in record.getMessage()

    def test_is_that_of_the_box_in_an_image_of_unknown_size(self, tmp_path: Path) -> None:
        areas = self.areas(tmp_path, area=None, segmentation=TRIANGLE, image={"width": None})
        assert areas[0] == 1200

    def test_that_is_stated_stays(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert self.areas(tmp_path, area=5, segmentation=TRIANGLE)[0] == 5
        assert caplog.records == []


def test_sizes_may_be_floats_without_a_fraction(tmp_path: Path) -> None:
    content = changed("images", width=640.0, height=480.0)
    size = read_annotations(write(tmp_path / "a.json", content)).images[-1].image_size
    assert size == (480, 640)
    assert all(type(side) is int for side in size or ())


class TestMasks:
    def test_are_there(self, annotations: Annotations) -> None:
        assert annotations.has_masks()
        annotations.check_masks()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (changed("annotations", segmentation=[[1, 2]]), "annotation 3: its segmentation has a polygon"),
            (changed("annotations", segmentation=None), "annotation 3: its segmentation is neither"),
            (changed("images", width=None), "image 3 has no width and height, which masks need"),
        ],
    )
    def test_that_cannot_be_scored(self, tmp_path: Path, content: object, message: str) -> None:
        with pytest.raises(EvaluationError, match=message):
            read_annotations(write(tmp_path / "a.json", content)).check_masks()


@pytest.mark.parametrize(
    "text", ["3\n1\n", "[3, 1]", "3, 1", "\ufeff3\r\n1\r\n", json.dumps([3, 1], indent=2)]
)
def test_image_ids(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.txt").write_text(text, encoding="utf-8")
    assert read_image_ids(tmp_path / "ids.txt") == [3, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no image ids"), (b"a.jpg", "is no list of"), (b"\x80", "is no list")],
)
def test_no_image_ids(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_image_ids(tmp_path / "ids.txt")
