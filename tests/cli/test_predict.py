"""`dcnzoo predict`: options, formats, and what it leaves behind."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import dcnzoo
from dcnzoo.image import decode_image
from tests.cli.conftest import Program
from tests.cli.predicting import SIDES, Predict, checkpoint, files, lines, load_once, predict
from tests.http_server import content, serving
from tests.pictures import noise, save
from tests.random_detector import ARCH, CLASSES, MASK_ARCH, write_random_checkpoint

__all__ = ["checkpoint", "load_once", "predict"]


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in two folders."""
    folder = tmp_path_factory.mktemp("album")
    for number, name in enumerate(("a.jpg", "7.png", "sub/c.webp")):
        save(folder / name, noise(60, 80, number))
    return folder


@pytest.fixture
def photos(album: Path, tmp_path: Path) -> Path:
    """The three images, as `photos` in the working directory."""
    return Path(shutil.copytree(album, tmp_path / "photos"))


@pytest.fixture(scope="session")
def found(load_once: Callable[..., Any], checkpoint: Path, album: Path) -> dict[str, dcnzoo.Detections]:
    """What the Python interface finds in each of them."""
    predictor = load_once(
        None, weights=checkpoint, arch=ARCH, manifest=None, device="cpu", precision="fp32",
        short_side=32, long_side=64,
    )  # fmt: skip
    return {name: predictor(album / name) for name in ("7.png", "a.jpg", "sub/c.webp")}


@pytest.mark.usefixtures("photos")
class TestFormats:
    def test_json_lines_by_default(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        code, out, _ = predict("photos")
        assert (code, out) == (0, "")
        assert files(Path("dcnzoo-out")) == ["detections.jsonl", "progress.jsonl", "run.json"]
        written = lines(Path("dcnzoo-out/detections.jsonl"))
        assert [line["image"] for line in written] == [f"photos/{name}" for name in found]
        for line, expected in zip(written, found.values(), strict=True):
            assert (line["width"], line["height"]) == (80, 60)
            assert [d["class"] for d in line["detections"]] == list(expected.names)
            np.testing.assert_allclose([d["box"] for d in line["detections"]], expected.boxes, atol=2e-3)
            np.testing.assert_allclose([d["score"] for d in line["detections"]], expected.scores, atol=1e-5)

    def test_coco(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        assert predict("photos", "--format", "coco").code == 0
        assert files(Path("dcnzoo-out")) == [
            "detections.coco.json",
            "images.json",
            "progress.jsonl",
            "run.json",
        ]
        images = json.loads(Path("dcnzoo-out/images.json").read_text())["images"]
        assert [(image["id"], image["file_name"]) for image in images] == [
            (7, "photos/7.png"),
            (1, "photos/a.jpg"),
            (2, "photos/sub/c.webp"),
        ]
        results = json.loads(Path("dcnzoo-out/detections.coco.json").read_text())
        assert len(results) == sum(map(len, found.values()))
        assert {result["image_id"] for result in results} == {1, 2, 7}

    def test_csv(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        assert predict("photos", "--format", "csv").code == 0
        with Path("dcnzoo-out/detections.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == [name for one in found.values() for name in one.names]

    def test_yolo(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        assert predict("photos", "--format", "yolo").code == 0
        assert files(Path("dcnzoo-out/labels")) == ["7.txt", "a.txt", "sub/c.txt"]
        rows = np.loadtxt("dcnzoo-out/labels/a.txt", ndmin=2)
        np.testing.assert_array_equal(rows[:, 0], found["a.jpg"].labels)
        assert Path("dcnzoo-out/classes.txt").read_text().split() == list(CLASSES)

    @pytest.mark.parametrize(
        "formats",
        [["jsonl,coco,csv,yolo"], ["coco, csv", "yolo", "jsonl", "csv"]],
    )
    def test_several_at_once(self, predict: Predict, formats: list[str]) -> None:
        options = [part for names in formats for part in ("--format", names)]
        assert predict("photos/a.jpg", *options).code == 0
        assert files(Path("dcnzoo-out")) == [
            "classes.txt",
            "detections.coco.json",
            "detections.csv",
            "detections.jsonl",
            "images.json",
            "labels/a.txt",
            "progress.jsonl",
            "run.json",
        ]

    def test_masks(self, dcnzoo: Program, tmp_path: Path) -> None:
        weights = write_random_checkpoint(tmp_path / "mask.pth", MASK_ARCH)
        code, _, _ = dcnzoo(
            "predict", tmp_path / "photos" / "a.jpg", "--weights", weights, "--arch", MASK_ARCH, *SIDES,
            "--out", tmp_path / "out", "--format", "jsonl,coco", "--save-images", "--max-detections", 3,
        )  # fmt: skip
        assert code == 0
        (line,) = lines(tmp_path / "out" / "detections.jsonl")
        results = json.loads((tmp_path / "out" / "detections.coco.json").read_text())
        masks = [found["mask"] for found in line["detections"]]
        assert masks == [result["segmentation"] for result in results]
        assert coco_mask.decode(masks).shape == (60, 80, 3)

    def test_pictures_and_crops(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        assert predict("photos", "--save-images", "--save-crops").code == 0
        assert files(Path("dcnzoo-out/images")) == ["7.jpg", "a.jpg", "sub/c.jpg"]
        assert decode_image("dcnzoo-out/images/sub/c.jpg").shape == (60, 80, 3)
        drawn = sum(int((one.scores >= 0.3).sum()) for one in found.values())
        assert 0 < drawn < sum(map(len, found.values()))
        assert len(files(Path("dcnzoo-out/crops"))) == drawn

    def test_unknown_format(self, predict: Predict) -> None:
        code, _, err = predict("photos", "--format", "jsonl,xml")
        assert code == 2
        assert "'xml' is not one of 'jsonl', 'coco', 'csv', 'yolo'" in err

    def test_run_note(self, predict: Predict, checkpoint: Path) -> None:
        predict("photos/a.jpg", "--batch-size", 2)
        note = json.loads(Path("dcnzoo-out/run.json").read_text())
        assert (note["program"], note["version"]) == ("dcnzoo predict", dcnzoo.__version__)
        assert (note["weights"], note["batch_size"]) == (str(checkpoint), 2)


@pytest.mark.usefixtures("photos")
class TestSources:
    @pytest.mark.parametrize(
        ("sources", "expected"),
        [
            (["photos/a.jpg"], ["a.txt"]),
            (["photos"], ["7.txt", "a.txt", "sub/c.txt"]),
            (["photos/*.*"], ["7.txt", "a.txt"]),
            (["photos/**/*.webp"], ["sub/c.txt"]),
            (["list.txt"], ["photos/a.txt", "photos/sub/c.txt"]),
            (["photos/sub", "photos"], ["photos/7.txt", "photos/a.txt", "photos/sub/c.txt", "sub/c.txt"]),
            (["photos/a.jpg", "photos/sub/c.webp"], ["a.txt", "c.txt"]),
        ],
    )
    def test_names_follow_the_source(
        self, predict: Predict, sources: list[str], expected: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "list.txt").write_text("photos/a.jpg\nphotos/sub/c.webp\n")
        assert predict(*sources, "--format", "yolo", "--out", "o").code == 0
        assert files(Path("o/labels")) == expected

    def test_standard_input(self, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = SimpleNamespace(buffer=io.BytesIO(b"photos/a.jpg\nphotos/7.png\n"))
        monkeypatch.setattr(sys, "stdin", paths)
        assert predict("-").code == 0
        written = [line["image"] for line in lines(Path("dcnzoo-out/detections.jsonl"))]
        assert written == ["photos/a.jpg", "photos/7.png"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"\n", "no images in standard input"), (b"\x00\x01", "a list of images must be text")],
    )
    def test_standard_input_without_images(
        self, predict: Predict, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
    ) -> None:
        """Nothing is left that would be in the way of a second try."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        code, out, err = predict("-")
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {message}")
        assert not Path("dcnzoo-out").exists()

    def test_pictures_of_earlier_runs_are_no_sources(
        self, predict: Predict, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = ("--save-images", "--save-crops", "--score-threshold", 0)
        assert predict("photos", *made, "--out", "photos/runs/1").code == 0
        assert "photos/runs/1" not in caplog.text
        assert len(files(Path("photos/runs/1/images"))) == 3
        for out in ("photos/runs/2", "elsewhere"):
            assert predict("photos", *made, "--out", out).code == 0
            assert len(lines(Path(out, "detections.jsonl"))) == 3
        assert "left out, for earlier runs have made them: photos/runs/1/crops and 1 more" in caplog.text
        assert "left out, for earlier runs have made them: photos/runs/1/crops and 3 more" in caplog.text
        assert predict("photos/runs/1/images", "--out", "again").code == 0
        assert len(lines(Path("again/detections.jsonl"))) == 3

    def test_file_address_is_the_path(self, predict: Predict, photos: Path) -> None:
        options = ("--format", "jsonl,yolo")
        assert predict(photos, *options).code == 0
        code, _, err = predict(photos.as_uri(), *options, "--resume")
        assert code == 0
        assert "images that an earlier run has done: 3\n" in err
        code, _, err = predict(Path("dcnzoo-out/labels").absolute().as_uri(), *options, "--overwrite")
        assert (code, err) == (1, f"error: no images in {Path('dcnzoo-out/labels').absolute()}\n")

    @pytest.mark.parametrize("options", [[], ["--batch-size", 2], ["--workers", 1]])
    def test_empty_standard_input_beside_others(
        self,
        predict: Predict,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        options: list[object],
    ) -> None:
        """The other images are done, whatever is read ahead of them."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
        code, _, err = predict("photos/a.jpg", "-", *options)
        assert code == 0
        assert err.startswith("1 images, 0 failures")
        assert [line["image"] for line in lines(Path("dcnzoo-out/detections.jsonl"))] == ["photos/a.jpg"]
        assert "nothing came from standard input" in caplog.text

    def test_address(self, predict: Predict, photos: Path) -> None:
        with serving({"/x/a.jpg?s=1": content((photos / "a.jpg").read_bytes())}) as server:
            assert predict(server.url("/x/a.jpg?s=1"), "--save-images").code == 0
            assert lines(Path("dcnzoo-out/detections.jsonl"))[0]["image"] == server.url("/x/a.jpg?s=1")
        assert files(Path("dcnzoo-out/images")) == ["a.jpg"]

    def test_equal_names_are_kept_apart_and_reported(
        self, predict: Predict, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save(tmp_path / "photos" / "a.png", noise(60, 80))
        assert predict("photos", "--format", "yolo").code == 0
        assert files(Path("dcnzoo-out/labels")) == ["7.txt", "a.png.txt", "a.txt", "sub/c.txt"]
        assert "results of a.png go to" in caplog.text

    def test_results_inside_the_source_are_not_read(self, predict: Predict) -> None:
        for options in ([], ["--overwrite"]):
            assert predict("photos", "--out", "photos", "--save-images", *options).code == 0
            assert len(lines(Path("photos/detections.jsonl"))) == 3
        assert files(Path("photos/images")) == ["7.jpg", "a.jpg", "sub/c.jpg"]


@pytest.mark.usefixtures("photos")
class TestAnnotations:
    def annotate(self, tmp_path: Path, *names: str) -> Path:
        images = [{"id": 100 + number, "file_name": name} for number, name in enumerate(names)]
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"images": images}))
        return path

    def test_ids_by_file_name(self, predict: Predict, tmp_path: Path) -> None:
        path = self.annotate(tmp_path, "7.png", "c.webp", "gone.jpg")
        code, _, err = predict("photos", "--format", "coco,jsonl", "--annotations", path)
        assert code == 0
        images = json.loads(Path("dcnzoo-out/images.json").read_text())["images"]
        assert {image["file_name"]: image["id"] for image in images} == {
            "photos/7.png": 100,
            "photos/sub/c.webp": 101,
        }
        assert len(lines(Path("dcnzoo-out/detections.jsonl"))) == 2
        assert f"images left out, since {path} has no id for them: 1\n" in err

    def test_that_list_no_image(self, predict: Predict, tmp_path: Path) -> None:
        path = self.annotate(tmp_path, "x.jpg")
        code, _, err = predict("photos", "--format", "coco", "--annotations", path)
        assert code == 1
        assert err.startswith(f"error: {path} lists none of the images by path below the source or by")
        assert err.endswith(" file name: it has x.jpg, the source has 7.png\n")

    def test_need_the_coco_format(self, predict: Predict, tmp_path: Path) -> None:
        code, _, err = predict("photos", "--annotations", self.annotate(tmp_path, "7.png"))
        assert code == 2
        assert "--annotations gives the image ids of --format coco" in err


@pytest.mark.usefixtures("photos")
class TestFont:
    def test_is_checked_before_the_model_is_loaded(self, dcnzoo: Program, tmp_path: Path) -> None:
        (tmp_path / "a.ttf").write_bytes(b"no font")
        options = ("predict", "photos", "--weights", "missing.pth", "--font", tmp_path / "a.ttf")
        code, _, err = dcnzoo(*options, "--save-images")
        assert code == 2
        assert "Invalid value for --font: cannot read" in err
        code, _, err = dcnzoo(*options)
        assert code == 2
        assert "--font is for the labels in pictures; add --save-images" in err


@pytest.mark.usefixtures("photos")
class TestLimits:
    def scores(self, path: str = "dcnzoo-out/detections.jsonl") -> list[float]:
        return [found["score"] for line in lines(Path(path)) for found in line["detections"]]

    def test_score_threshold(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        predict("photos", "--score-threshold", 0.6, "--save-crops")
        scores = np.concatenate([one.scores for one in found.values()])
        assert len(self.scores()) == (scores > 0.6).sum() == len(files(Path("dcnzoo-out/crops")))
        assert 0 < len(self.scores()) < (scores > 0.3).sum()

    def test_max_detections(self, predict: Predict) -> None:
        predict("photos", "--max-detections", 2)
        assert [len(line["detections"]) for line in lines(Path("dcnzoo-out/detections.jsonl"))] == [2, 2, 2]

    @pytest.mark.parametrize("classes", [["--classes", "cat,bird"], ["--classes", "1", "--classes", "bird"]])
    def test_classes(
        self, predict: Predict, found: dict[str, dcnzoo.Detections], classes: Sequence[str]
    ) -> None:
        predict("photos", *classes)
        expected = [len(one.of_classes(["cat", "bird"])) for one in found.values()]
        written = lines(Path("dcnzoo-out/detections.jsonl"))
        assert [len(line["detections"]) for line in written] == expected
        assert {d["class"] for line in written for d in line["detections"]} <= {"cat", "bird"}

    def test_unknown_class_is_wrong_usage(self, predict: Predict) -> None:
        code, _, err = predict("photos", "--classes", "horse")
        assert code == 2
        assert "--classes" in err
        assert "unknown class horse; the model knows cat, dog, bird" in err
        assert not Path("dcnzoo-out").exists()

    @pytest.mark.parametrize(
        "options", [["--workers", 0], ["--workers", 3], ["--batch-size", 2, "--workers", 1]]
    )
    def test_workers_and_batches_change_nothing(
        self, predict: Predict, found: dict[str, dcnzoo.Detections], options: list[object]
    ) -> None:
        predict("photos", *options)
        written = lines(Path("dcnzoo-out/detections.jsonl"))
        assert [len(line["detections"]) for line in written] == [len(one) for one in found.values()]
        np.testing.assert_allclose(
            self.scores(), np.concatenate([one.scores for one in found.values()]), atol=1e-3
        )

    def test_precision(self, predict: Predict) -> None:
        assert predict("photos/a.jpg", "--precision", "bf16").code == 0
        assert self.scores()


@pytest.mark.usefixtures("photos")
class TestFolder:
    def test_earlier_results_are_kept(self, predict: Predict) -> None:
        predict("photos/a.jpg")
        before = Path("dcnzoo-out/detections.jsonl").read_bytes()
        code, _, err = predict("photos")
        assert code == 1
        assert err.startswith("error: dcnzoo-out already holds results (detections.jsonl, progress.jsonl); ")
        assert Path("dcnzoo-out/detections.jsonl").read_bytes() == before

    def test_results_that_another_process_is_writing_are_not_replaced(self, predict: Predict) -> None:
        assert predict("photos/a.jpg", "--format", "csv").code == 0
        out = Path("dcnzoo-out")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        descriptor = os.open(out, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            code, _, err = predict("photos", "--format", "csv", "--overwrite")
        finally:
            os.close(descriptor)
        assert code == 1
        assert "another process is writing results there" in err
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    def test_overwrite(self, predict: Predict) -> None:
        predict("photos", "--format", "jsonl,yolo", "--save-images")
        assert predict("photos/a.jpg", "--format", "csv", "--overwrite").code == 0
        assert files(Path("dcnzoo-out")) == ["detections.csv", "progress.jsonl", "run.json"]

    def test_source_among_the_results(self, predict: Predict) -> None:
        predict("photos", "--save-images")
        code, _, err = predict("dcnzoo-out/images", "--overwrite")
        assert code == 1
        assert "dcnzoo-out/images lies in dcnzoo-out/images, where results go" in err
        assert len(files(Path("dcnzoo-out/images"))) == 3

    def test_disk_trouble_on_the_way(self, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Path.replace

        def replace_or_fail(path: Path, target: Path) -> object:
            if target.name == "c.jpg":
                raise OSError(28, "No space left on device", str(path))
            return real(path, target)

        monkeypatch.setattr(Path, "replace", replace_or_fail)
        code, _, err = predict("photos", "--save-images", "--format", "coco", "--quiet")
        assert code == 1
        assert err == (
            "error: cannot write to dcnzoo-out/images/sub/c.jpg: No space left on device;"
            " choose another --out\n"
        )
        assert json.loads(Path("dcnzoo-out/detections.coco.json").read_text())


@pytest.mark.usefixtures("photos")
class TestResume:
    @pytest.mark.parametrize("changed", ["own.pth", "ids.json"])
    def test_with_other_contents(self, predict: Predict, checkpoint: Path, changed: str) -> None:
        shutil.copy(checkpoint, "own.pth")
        listed = [{"id": 5, "file_name": "a.jpg", "width": 80, "height": 60}]
        Path("ids.json").write_text(json.dumps({"images": listed, "categories": [], "annotations": []}))
        options = ("photos", "--weights", "own.pth", "--format", "coco", "--annotations", "ids.json")
        assert predict(*options).code == 0
        with Path(changed).open("a") as file:
            file.write("\n")
        code, _, err = predict(*options, "--resume")
        assert code == 1
        assert f"which was started with other contents of {changed}; restore these, or start anew" in err

    def test_with_other_weights_of_a_model_without_hash(
        self, dcnzoo: Program, checkpoint: Path, tmp_path: Path
    ) -> None:
        shutil.copy(checkpoint, tmp_path / "own.pth")
        manifest = write_manifest(tmp_path / "own.yaml", tmp_path / "own.pth")
        options = ("photos", "--manifest", manifest, "--model", "pets", "--device", "cpu", "--workers", 0)
        options = ("predict", tmp_path / "photos", *options[1:], "--out", tmp_path / "o")
        assert dcnzoo(*options).code == 0
        assert dcnzoo(*options, "--resume").code == 0
        with (tmp_path / "own.pth").open("a") as file:
            file.write("\n")
        code, _, err = dcnzoo(*options, "--resume")
        assert (code, "other contents of " + str(tmp_path / "own.pth") in err) == (1, True)

    @pytest.mark.parametrize("shard", [(), ("--shard", "1/2")])
    @pytest.mark.parametrize("source", ["photos", "-", "list.txt", "{}/list.txt"])
    def test_elsewhere(
        self,
        predict: Predict,
        source: str,
        shard: Sequence[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Other pictures that have the same relative names are not taken for those that are done."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"photos/a.jpg\n")))
        Path("list.txt").write_text("photos/a.jpg\n")
        options = (source.format(tmp_path), "--out", tmp_path / "o", *shard)
        assert predict(*options).code == 0
        save(tmp_path / "other" / "photos" / "a.jpg", noise(60, 80, 9))
        shutil.copy("list.txt", tmp_path / "other")
        monkeypatch.chdir(tmp_path / "other")
        code, _, err = predict(*options, "--resume")
        assert code == 1
        assert err.startswith(f"error: cannot resume the run in {tmp_path}/o")
        assert err.endswith(
            f", which was started in {tmp_path}, so that relative paths mean other files here;"
            " change to that folder, or start anew with --overwrite\n"
        )

    def test_elsewhere_with_absolute_paths(
        self, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = (tmp_path / "photos", "--out", tmp_path / "o")
        assert predict(*options).code == 0
        monkeypatch.chdir("/")
        code, _, err = predict(*options, "--resume")
        assert (code, "images that an earlier run has done: 3" in err) == (0, True)


@pytest.mark.usefixtures("photos")
class TestReport:
    def test_summary(self, predict: Predict, found: dict[str, dcnzoo.Detections]) -> None:
        _, out, err = predict("photos")
        assert out == ""
        assert f"3 images, 0 failures, {sum(map(len, found.values()))} detections in " in err
        stages = err.partition("ms per image: ")[2].splitlines()[0].split(", ")
        assert [stage.split()[0] for stage in stages] == [
            "decode", "preprocess", "inference", "postprocess", "write"
        ]  # fmt: skip
        assert all(float(stage.split()[1]) > 0 for stage in stages)
        assert "peak memory: " in err
        assert "results: dcnzoo-out" in err
        assert "\r" not in err  # no progress bar: this is no terminal

    def test_quiet(self, predict: Predict) -> None:
        assert predict("photos", "--quiet") == (0, "", "")

    def test_failures_are_told_though_quiet(self, predict: Predict) -> None:
        Path("photos/b.jpg").write_bytes(b"")
        assert predict("photos", "--quiet") == (
            1, "", "images that failed: 1; dcnzoo-out/errors.jsonl says why\n"
        )  # fmt: skip


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Name at least one SOURCE"),
            (["a.jpg"], "Name a --model"),
            (["a.jpg", "--arch", ARCH], "or give --weights."),
            (["a.jpg", "--model", "m", "--arch", ARCH], "--model has an architecture of its own"),
            (["a.jpg", "--model", "m", "--short-side", 9, "--long-side", 8], "exceeds --long-side 8"),
            (["a.jpg", "--model", "m", "--batch-size", 0], "--batch-size"),
            (["a.jpg", "--model", "m", "--score-threshold", 1.5], "--score-threshold"),
            (["a.jpg", "--model", "m", "--score-threshold", "nan"], "nan is no finite number"),
            (["a.jpg", "--model", "m", "--image-timeout", "inf"], "'--image-timeout'"),
            (["a.jpg", "--model", "m", "--image-timeout", "nan"], "nan is no finite number"),
            (["a.jpg", "--model", "m", "--precision", "int8"], "--precision"),
            (["a.jpg", "--model", "m", "--workers", -1], "--workers"),
            (["a.jpg", "--model", "m", "--max-detections", "many"], "--max-detections"),
        ],
    )
    def test_is_checked_before_anything_else(
        self, dcnzoo: Program, arguments: list[object], message: str
    ) -> None:
        code, out, err = dcnzoo("predict", *arguments)
        assert (code, out) == (2, "")
        assert message in err


def write_manifest(path: Path, checkpoint: Path, sha256: str = "null") -> Path:
    path.write_text(
        "checkpoints:\n"
        "  - name: pets\n"
        f"    urls: [{checkpoint.as_uri()}]\n"
        f"    sha256: {sha256}\n"
        "    architecture: {detector: faster_rcnn, backbone: resnet50}\n"
        "    preprocessing: {short_side: 32, long_side: 64}\n"
        "    classes: {7: cat, 9: dog, 11: bird}\n"
    )
    return path


@pytest.mark.parametrize("out", ["out", "a/b"])
def test_a_model_that_cannot_be_loaded_leaves_no_folder(
    dcnzoo: Program, photos: Path, tmp_path: Path, out: str
) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    options = ["--weights", broken, "--arch", ARCH, "--out", tmp_path / out]
    code, _, err = dcnzoo("predict", photos, *options)
    assert code == 1
    assert err.startswith(f"error: checkpoint {broken}: ")
    assert not (tmp_path / Path(out).parts[0]).exists()


def test_model_of_a_manifest(
    dcnzoo: Program, photos: Path, checkpoint: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    manifest = write_manifest(tmp_path / "own.yaml", checkpoint)
    out = tmp_path / "out"
    code, _, _ = dcnzoo("predict", photos, "--model", "pets", "--manifest", manifest, "--out", out)
    assert code == 0
    written = lines(out / "detections.jsonl")
    assert [len(line["detections"]) for line in written] == [len(one) for one in found.values()]
    assert {d["category_id"] for line in written for d in line["detections"]} <= {7, 9, 11}


class TestProcess:
    """The program as its users start it."""

    @pytest.fixture
    def command(self, checkpoint: Path) -> list[str]:
        options = ["--weights", checkpoint, "--arch", ARCH, "--device", "cpu", *SIDES]
        return [sys.executable, "-m", "dcnzoo", "predict", *map(str, options)]

    @pytest.mark.parametrize(
        ("kind", "code"),
        [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    )
    def test_interrupted_files_are_whole(
        self, command: list[str], tmp_path: Path, kind: signal.Signals, code: int
    ) -> None:
        save(tmp_path / "a.png", noise(60, 80))
        (tmp_path / "paths").write_text("a.png\n" * 1000)
        with (tmp_path / "paths").open() as paths:
            process = subprocess.Popen(
                [*command, "-", "--format", "jsonl,coco,csv"],
                cwd=tmp_path,
                stdin=paths,
                stderr=subprocess.PIPE,
                text=True,
            )
        written = tmp_path / "dcnzoo-out" / "detections.jsonl"
        give_up = time.monotonic() + 120
        while not (written.exists() and written.read_text().count("\n") >= 3):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in err
        assert ("interrupted" in err) == (kind == signal.SIGINT)
        count = len(lines(written))
        assert 3 <= count < 1000
        results = json.loads((written.parent / "detections.coco.json").read_text())
        images = json.loads((written.parent / "images.json").read_text())["images"]
        assert {result["image_id"] for result in results} <= {image["id"] for image in images}
        assert abs(len(images) - count) <= 1

    @pytest.mark.usefixtures("photos")
    @pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_stopped_while_the_model_loads(
        self, command: list[str], tmp_path: Path, kind: signal.Signals, code: int
    ) -> None:
        """Nothing is left."""
        os.mkfifo(tmp_path / "pipe")  # to read from it takes forever
        process = subprocess.Popen(
            [*command, "photos", "--weights", "pipe"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        try:
            give_up = time.monotonic() + 120
            while not (tmp_path / "dcnzoo-out").exists():
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.02)
            process.send_signal(kind)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, err.strip()) == (code, "interrupted")
        assert not (tmp_path / "dcnzoo-out").exists()

    @pytest.mark.usefixtures("photos")
    def test_progress_bar_on_a_terminal(self, command: list[str], tmp_path: Path) -> None:
        terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        process = subprocess.Popen([*command, "photos"], cwd=tmp_path, stderr=end, stdout=subprocess.PIPE)
        os.close(end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:
            pass  # how a terminal ends on Linux
        os.close(terminal)
        assert process.communicate(timeout=60)[0] == b""
        assert process.returncode == 0
        assert b"3/3" in shown
        assert b"image/s" in shown or b"s/image" in shown
        assert b"3 images, 0 failures" in shown


def test_the_trained_cells(dcnzoo: Program, shared: Path, tmp_path: Path) -> None:
    """The real checkpoint: what it is sure of is a cell of that kind, in its box."""
    bccd = shared / "data" / "bccd"
    code, _, err = dcnzoo(
        "predict", bccd / "images" / "BloodImage_00000.jpg", "--weights",
        bccd / "faster_rcnn_r50_fpn_dconv_c3-c5_bccd.pth", "--arch", "faster_rcnn_r50_fpn_dconv_c3-c5",
        "--short-side", 240, "--long-side", 320, "--format", "coco", "--annotations", bccd / "val.json",
        "--save-images", "--save-crops", "--score-threshold", 0.9, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "detections.coco.json").read_text())
    reference = json.loads((bccd / "val_reference.bbox.json").read_text())
    expected = [one for one in reference if one["image_id"] == 1 and one["score"] > 0.9]
    assert [one["category_id"] for one in results] == [one["category_id"] for one in expected]
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.05)
        np.testing.assert_allclose(one["score"], other["score"], atol=2e-3)
    assert files(tmp_path / "images") == ["BloodImage_00000.jpg"]
    with Image.open(tmp_path / "images" / "BloodImage_00000.jpg") as picture:
        assert picture.size == (640, 480)
    assert "crops/WBC/BloodImage_00000-000.jpg" in files(tmp_path)
