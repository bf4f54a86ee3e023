"""Training sets: what is read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcnzoo.errors import EvaluationError, TrainingError
from dcnzoo.training.dataset import Fault, TrainingSet, read_training_set
from tests.pictures import noise, save
from tests.training_room import HEIGHT, WIDTH, content, furnish, write

Content = dict[str, Any]


def read(room: Path, changed: Content | None = None, **options: Any) -> TrainingSet:
    if changed is not None:
        write(room / "train.json", changed)
    return read_training_set(room / "train.json", room / "images", **{"masks": False, **options})


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return furnish(tmp_path, images=3)


@pytest.fixture
def annotations() -> Content:
    return content(3)[0]


def test_a_set_without_problems(room: Path, annotations: Content) -> None:
    found = read(room)
    assert found.problems == ()
    assert found.classes.names == ("brick", "tile")
    assert found.classes.category_ids == (3, 8)
    assert found.num_objects == 6
    for image, listed in zip(found.images, annotations["images"], strict=True):
        objects = [item for item in annotations["annotations"] if item["image_id"] == listed["id"]]
        assert image.file == room / "images" / listed["file_name"]
        assert image.image_size == (HEIGHT, WIDTH)
        assert image.labels.tolist() == [(3, 8).index(item["category_id"]) for item in objects]
        for box, item in zip(image.boxes, objects, strict=True):
            x, y, w, h = item["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
        assert image.segmentations == ()
        assert image.crowds.shape == (0, 4)


def test_what_other_tools_write(room: Path, annotations: Content) -> None:
    expected = read(room)
    for image in annotations["images"]:
        image |= {"width": float(WIDTH), "height": float(HEIGHT)}
    for item in annotations["annotations"]:
        del item["area"], item["iscrowd"]
    found = read(room, annotations)
    assert found.problems == ()
    assert found.note() == expected.note()


def test_labels_follow_the_classes_of_a_model_that_knows_the_same(room: Path) -> None:
    swapped = read(room, class_order=("tile", "brick"))
    assert swapped.classes.names == ("tile", "brick")
    assert swapped.classes.category_ids == (8, 3)
    assert swapped.images[0].labels.tolist() == [1 - label for label in read(room).images[0].labels]
    assert read(room, class_order=("brick", "cat")).classes.names == ("brick", "tile")


def first(annotations: Content) -> Content:
    item: Content = annotations["annotations"][0]
    return item


BROKEN: list[tuple[Fault, str, Callable[[Content], object]]] = [
    (Fault.MALFORMED, "annotation 1 has no 'bbox'", lambda c: first(c).pop("bbox")),
    (Fault.MALFORMED, "annotation 1 has bbox", lambda c: first(c).update(bbox=[1, 2, -3, 4])),
    (Fault.MALFORMED, "annotation 1 has bbox", lambda c: first(c).update(bbox=[1, 2, float("nan"), 4])),
    (Fault.MALFORMED, "annotation 1 has image_id", lambda c: first(c).update(image_id="0")),
    (Fault.MALFORMED, "annotation 1 has iscrowd '0'", lambda c: first(c).update(iscrowd="0")),
    (Fault.UNKNOWN_IMAGE, "annotation 1 (image 77)", lambda c: first(c).update(image_id=77)),
    (Fault.UNKNOWN_CATEGORY, "annotation 1 (category 4)", lambda c: first(c).update(category_id=4)),
    (Fault.OUTSIDE, "annotation 1", lambda c: first(c).update(bbox=[WIDTH, 0, 5, 5])),
    (Fault.OUTSIDE, "annotation 1", lambda c: first(c).update(bbox=[0, -4.5, 5, 5])),
    (Fault.EMPTY, "annotation 1 (5x0)", lambda c: first(c).update(bbox=[0, 0, 5, 0])),
    (Fault.EMPTY, "annotation 1", lambda c: first(c).update(area=0)),
    (Fault.BAD_MASK, "it has none", lambda c: first(c).pop("segmentation")),
    (Fault.BAD_MASK, "no list of at least three points", lambda c: first(c).update(segmentation=[[1, 2]])),
    (
        Fault.BAD_MASK,
        "it covers no pixel",
        lambda c: first(c).update(segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
    ),
]


@pytest.mark.parametrize(("fault", "where", "damage"), BROKEN)
def test_a_broken_annotation_is_left_out(
    room: Path, annotations: Content, fault: Fault, where: str, damage: Callable[[Content], object]
) -> None:
    damage(annotations)
    found = read(room, annotations, masks=True)
    (problem,) = found.problems
    assert problem.fault is fault
    assert where in problem.where
    assert [len(image.labels) for image in found.images] == [1, 2, 2]
    (line,) = found.problem_lines()
    assert line.startswith(f"{room / 'train.json'}: 1 {fault.value}: ")


def test_masks_do_not_matter_to_a_detector_of_boxes(room: Path, annotations: Content) -> None:
    first(annotations).pop("segmentation")
    assert read(room, annotations).problems == ()


def test_a_box_that_reaches_out_is_cut_off(room: Path, annotations: Content) -> None:
    first(annotations)["bbox"] = [-3, 10, 20, HEIGHT]
    found = read(room, annotations)
    assert [problem.fault for problem in found.problems] == [Fault.REACHES_OUT]
    assert found.images[0].boxes[0].tolist() == [0, 10, 17, HEIGHT]


def test_rounding_is_no_problem(room: Path, annotations: Content) -> None:
    first(annotations)["bbox"] = [-0.6, 10, 20, HEIGHT - 9.2]
    found = read(room, annotations)
    assert found.problems == ()
    assert found.images[0].boxes[0].tolist() == pytest.approx([0, 10, 19.4, HEIGHT])


def test_missing_images(room: Path, annotations: Content) -> None:
    (room / "images" / "0.png").unlink()
    (room / "images" / "1.png").write_bytes(b"no picture")
    found = read(room, annotations)
    places = [problem.where for problem in found.problems]
    assert places == [
        "0.png (No such file or directory)",
        "1.png (not an image in a format that Pillow knows)",
    ]
    assert [image.name for image in found.images] == ["2.png"]


def test_file_names_that_lead_elsewhere(room: Path, annotations: Content) -> None:
    annotations["images"][0]["file_name"] = "../images/0.png"
    del annotations["images"][1]["file_name"]
    places = [problem.where for problem in read(room, annotations).problems]
    assert places == ["../images/0.png (its name leads out of the folder)", "image 1 (has no 'file_name')"]


def test_an_image_of_another_size(room: Path, annotations: Content) -> None:
    save(room / "images" / "0.png", noise(50, 60))
    found = read(room, annotations)
    (problem,) = found.problems
    assert problem == (Fault.OTHER_SIZE, f"0.png ({WIDTH}x{HEIGHT} annotated, is 60x50)")
    assert len(found.images) == 2


def test_sizes_are_those_of_upright_images(room: Path, annotations: Content) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(room / "images" / "0.jpg", noise(WIDTH, HEIGHT), exif=exif)
    annotations["images"][0] = {"id": 0, "file_name": "0.jpg"}
    found = read(room, annotations)
    assert found.problems == ()
    assert found.images[0].image_size == (HEIGHT, WIDTH)


def test_images_without_objects(room: Path, annotations: Content) -> None:
    annotations["annotations"] = annotations["annotations"][:4]
    found = read(room, annotations)
    assert (len(found.images), found.empty) == (2, 1)
    kept = read(room, annotations, keep_empty=True)
    assert (len(kept.images), kept.empty) == (3, 0)
    assert kept.images[2].boxes.shape == (0, 4)


def test_crowds_are_no_objects(room: Path, annotations: Content) -> None:
    first(annotations).update(iscrowd=1, segmentation=None)
    found = read(room, annotations, masks=True)
    assert found.problems == ()
    assert found.num_objects == 5
    x, y, w, h = first(annotations)["bbox"]
    assert found.images[0].crowds.tolist() == [[x, y, x + w, y + h]]
    assert np.concatenate([image.crowds for image in found.images]).shape == (1, 4)


def test_nothing_left(room: Path, annotations: Content) -> None:
    for item in annotations["annotations"]:
        item["category_id"] = 5
    message = "6 annotations of categories that the file does not list, left out, the first: annotation 1 "
    with pytest.raises(TrainingError, match=f"leaves no objects to train with .*: {message}"):
        read(room, annotations)


@pytest.mark.parametrize("keep_empty", [False, True])
def test_crowds_alone_are_nothing_to_train_with(room: Path, annotations: Content, keep_empty: bool) -> None:
    for item in annotations["annotations"]:
        item["iscrowd"] = 1
    with pytest.raises(TrainingError, match=r"leaves no objects to train with .* \(crowds are none\)$"):
        read(room, annotations, keep_empty=keep_empty)


def test_no_annotation_file(room: Path) -> None:
    (room / "train.json").write_text("[]")
    with pytest.raises(EvaluationError, match="is no COCO annotation file"):
        read(room)
