"""`dcnzoo eval`: options, files, errors, and figures that pycocotools confirms."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dcnzoo
from dcnzoo.cli import eval as eval_command
from tests.cli.conftest import Outcome, Program
from tests.cli.predicting import SIDES, checkpoint, files, lines, load_once
from tests.pictures import noise, save
from tests.random_detector import ARCH, CLASSES, MASK_ARCH, write_random_checkpoint

__all__ = ["checkpoint", "load_once"]

CATEGORY_IDS = {"bird": 90, "cat": 7, "dog": 3}
NAMES = [f"{number}.png" for number in range(5)]

Eval = Callable[..., Outcome]


@pytest.fixture(scope="session")
def mask_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "masks.pth", MASK_ARCH)


@pytest.fixture
def run(
    dcnzoo: Program, load_once: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Eval:
    """Runs `dcnzoo eval ARGUMENTS…` in a directory with the folder `photos`."""
    monkeypatch.setattr("dcnzoo.predictor.load", load_once)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        save(tmp_path / "photos" / name, noise(40 + 4 * seed, 64, seed))
    return lambda *arguments: dcnzoo("eval", *arguments)


@pytest.fixture
def model(checkpoint: Path) -> tuple[object, ...]:
    return ("--weights", checkpoint, "--arch", ARCH, "--device", "cpu", *SIDES, "--workers", 0)


@pytest.fixture
def mask_model(mask_checkpoint: Path) -> tuple[object, ...]:
    return ("--weights", mask_checkpoint, "--arch", MASK_ARCH, "--device", "cpu", *SIDES, "--workers", 0)


def annotate(path: Path, predictor: dcnzoo.Predictor, keep: int = 3) -> Path:
    """Annotates the photos with some of what a model finds in them, so that there is something to score."""
    images, objects = [], []
    for number, name in enumerate(NAMES):
        found = predictor(path.parent / "photos" / name)
        height, width = found.image_size
        images.append({"id": 10 * number, "file_name": name, "width": width, "height": height})
        for one in found[::10][:keep].to_coco(10 * number):
            box = one["bbox"]
            x, y, w, h = box
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": one["image_id"],
                    "category_id": CATEGORY_IDS[CLASSES[one["category_id"] - 1]],
                    "bbox": box,
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    categories = [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": objects}))
    return path


@pytest.fixture
def annotated(run: Eval, load_once: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> Path:
    predictor = load_once(
        None,
        weights=checkpoint,
        arch=ARCH,
        manifest=None,
        device="cpu",
        precision="fp32",
        short_side=SIDES[1],
        long_side=SIDES[3],
    )
    return annotate(tmp_path / "annotations.json", predictor)


def pycocotools_stats(
    annotations: Path, results: Path, kind: str, image_ids: list[int] | None = None
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
        evaluation = COCOeval(coco, coco.loadRes(str(results)), kind)
        evaluation.params.imgIds = image_ids or evaluation.params.imgIds
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def twelve(metrics: dict[str, Any]) -> list[float]:
    return list(metrics.values())[:12]


def metrics_in(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "metrics.json").read_text())
    return content


class TestModel:
    def test_boxes(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        code, out, err = run(*model, "--annotations", annotated, "--images", "photos", "--per-class")
        assert code == 0
        assert files(Path("dcnzoo-eval")) == [
            "confusion_matrix.bbox.csv",
            "detections.bbox.json",
            "metrics.json",
            "precision_recall.bbox.csv",
            "precision_recall.bbox.png",
            "run.json",
        ]
        metrics = metrics_in("dcnzoo-eval")
        expected = pycocotools_stats(annotated, Path("dcnzoo-eval/detections.bbox.json"), "bbox")
        np.testing.assert_allclose(twelve(metrics["bbox"]), expected, rtol=0, atol=1e-12)
        assert metrics["bbox"]["AP"] > 0.01
        assert f"AP    IoU 0.50 to 0.95  {metrics['bbox']['AP']:.3f}".split()[-1] in out
        assert "images/s" in err

    def test_masks(self, run: Eval, mask_model: tuple[object, ...], annotated: Path) -> None:
        assert run(*mask_model, "--annotations", annotated, "--images", "photos").code == 0
        metrics = metrics_in("dcnzoo-eval")
        for kind in ("bbox", "segm"):
            results = Path(f"dcnzoo-eval/detections.{kind}.json")
            expected = pycocotools_stats(annotated, results, kind)
            np.testing.assert_allclose(twelve(metrics[kind]), expected, rtol=0, atol=1e-12)
        assert set(json.loads(Path("dcnzoo-eval/detections.segm.json").read_text())[0]) == {
            "image_id",
            "category_id",
            "segmentation",
            "score",
        }

    def test_masks_without_annotated_masks(
        self, run: Eval, mask_model: tuple[object, ...], annotated: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = json.loads(annotated.read_text())
        for item in content["annotations"]:
            del item["segmentation"]
        annotated.write_text(json.dumps(content))
        options = ("--annotations", annotated, "--images", "photos", "--limit", 1)
        assert run(*mask_model, *options).code == 0
        assert "has no masks; only boxes are scored" in caplog.text
        assert "segm" not in metrics_in("dcnzoo-eval")

    def test_boxes_alone_where_an_object_has_no_mask(
        self, run: Eval, mask_model: tuple[object, ...], annotated: Path
    ) -> None:
        content = json.loads(annotated.read_text())
        content["annotations"][1]["segmentation"] = []
        annotated.write_text(json.dumps(content))
        options = (*mask_model, "--annotations", annotated, "--images", "photos")
        for more in ((), ("--iou-type", "bbox,segm")):
            code, _, err = run(*options, *more)
            assert code == 1
            assert "annotation 2: its segmentation is neither" in err
            assert "score boxes alone (`dcnzoo eval --iou-type bbox`)" in err
        assert run(*options, "--iou-type", "bbox", "--overwrite").code == 0
        assert {"bbox", "segm"} & metrics_in("dcnzoo-eval").keys() == {"bbox"}
        assert not Path("dcnzoo-eval/detections.segm.json").exists()

    def test_masks_alone(self, run: Eval, mask_model: tuple[object, ...], annotated: Path) -> None:
        options = ("--annotations", annotated, "--images", "photos", "--limit", 2, "--iou-type", "segm")
        code, out, err = run(*mask_model, *options)
        assert code == 0, err
        assert "bbox" not in metrics_in("dcnzoo-eval")
        assert not Path("dcnzoo-eval/detections.bbox.json").exists()
        assert "boxes" not in out

    def test_masks_of_a_model_without(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        options = ("--annotations", annotated, "--images", "photos", "--iou-type", "segm")
        code, _, err = run(*model, *options)
        assert code == 1
        assert "cannot be scored by masks: the model has none; give --iou-type bbox" in err

    def test_speed_memory_and_hardware(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        options = ("--annotations", annotated, "--images", "photos", "--limit", 2, "--json", "--quiet")
        code, out, err = run(*model, *options)
        metrics = json.loads(out)
        assert (code, err) == (0, "")
        assert metrics == metrics_in("dcnzoo-eval")
        assert metrics["num_images"] == 2
        assert metrics["speed"]["images_per_second"] == pytest.approx(2 / metrics["speed"]["seconds"])
        assert metrics["speed"]["ms_per_image"].keys() >= {"decode", "inference"}
        assert metrics["memory"]["host_gib"] > 0.1
        assert metrics["hardware"]["cpu"]
        assert metrics["options"]["short_side"] == SIDES[1]

    def test_the_batch_size_does_not_matter_for_equal_sizes(
        self, run: Eval, model: tuple[object, ...], annotated: Path
    ) -> None:
        """Ids, order and number of results stay; scores differ by rounding at most."""
        for batch_size in (1, 3):
            for seed, name in enumerate(NAMES):
                save(Path("photos", name), noise(40, 64, seed))
            content = json.loads(annotated.read_text())
            for image in content["images"]:
                image["height"] = 40
            annotated.write_text(json.dumps(content))
            options = ("--images", "photos", "--batch-size", batch_size, "--out", f"o{batch_size}")
            assert run(*model, "--annotations", annotated, *options).code == 0
        ap = [metrics_in(f"o{batch_size}")["bbox"]["AP50"] for batch_size in (1, 3)]
        assert ap[0] == pytest.approx(ap[1], abs=0.02)

    def test_coco_folder(self, run: Eval, model: tuple[object, ...], annotated: Path, tmp_path: Path) -> None:
        (tmp_path / "coco" / "annotations").mkdir(parents=True)
        annotated.rename(tmp_path / "coco" / "annotations" / "instances_val2017.json")
        (tmp_path / "photos").rename(tmp_path / "coco" / "val2017")
        assert run(*model, "--coco", "coco", "--limit", 1).code == 0

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--limit", 3], [0, 10, 20]),
            (["--image-ids", "ids.txt"], [10, 40]),
            (["--image-ids", "ids.txt", "--limit", 1], [10]),
        ],
    )
    def test_some_images(
        self,
        run: Eval,
        model: tuple[object, ...],
        annotated: Path,
        options: list[object],
        expected: list[int],
    ) -> None:
        Path("ids.txt").write_text("40\n10\n")
        for number, name in enumerate(NAMES):
            if 10 * number not in expected:
                Path("photos", name).unlink()
        assert run(*model, "--annotations", annotated, "--images", "photos", *options).code == 0
        results = Path("dcnzoo-eval/detections.bbox.json")
        assert sorted({result["image_id"] for result in json.loads(results.read_text())}) == expected
        stats = pycocotools_stats(annotated, results, "bbox", expected)
        np.testing.assert_allclose(twelve(metrics_in("dcnzoo-eval")["bbox"]), stats, rtol=0, atol=1e-12)


class TestPublished:
    def test_is_shown_but_not_compared(
        self, run: Eval, checkpoint: Path, annotated: Path, tmp_path: Path
    ) -> None:
        manifest = tmp_path / "own.yaml"
        manifest.write_text(
            "checkpoints:\n"
            "  - name: random\n"
            f"    urls: [{checkpoint}]\n"
            "    architecture: {detector: faster_rcnn, backbone: resnet50}\n"
            f"    classes: [{', '.join(CLASSES)}]\n"
            "    published: {box_ap: 41.3}\n"
        )
        options = ("--annotations", annotated, "--images", "photos", "--limit", 1, *SIDES, "--device", "cpu")
        code, out, _ = run("--manifest", manifest, "--model", "random", *options)
        assert code == 0
        assert "published AP of boxes 0.413, measured " in out
        assert "not compared, for these" in out
        assert metrics_in("dcnzoo-eval")["bbox"]["published_AP"] == pytest.approx(0.413)
        assert metrics_in("dcnzoo-eval")["bbox"]["difference"] is None


class TestResults:
    @pytest.fixture
    def results(self, annotated: Path, tmp_path: Path) -> Path:
        """Every second object, found with a box that is a little too large."""
        found = [
            {
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": [*item["bbox"][:2], item["bbox"][2] * 1.2, item["bbox"][3]],
                "score": round(0.9 - 0.01 * item["id"], 2),
            }
            for item in json.loads(annotated.read_text())["annotations"][::2]
        ]
        (tmp_path / "results.json").write_text(json.dumps(found))
        return tmp_path / "results.json"

    def test_are_scored_without_a_model(self, run: Eval, annotated: Path, results: Path) -> None:
        code, out, _ = run("--results", results, "--annotations", annotated)
        assert code == 0
        metrics = metrics_in("dcnzoo-eval")
        expected = pycocotools_stats(annotated, results, "bbox")
        np.testing.assert_allclose(twelve(metrics["bbox"]), expected, rtol=0, atol=1e-12)
        assert "speed" not in metrics
        assert f"{metrics['bbox']['AP']:.3f}" in out
        assert not Path("dcnzoo-eval/detections.bbox.json").exists()

    def test_annotations_as_other_tools_write_them(
        self, run: Eval, annotated: Path, results: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert run("--results", results, "--annotations", annotated).code == 0
        expected = metrics_in("dcnzoo-eval")["bbox"]
        content = json.loads(annotated.read_text())
        for image in content["images"]:
            image |= {"width": float(image["width"]), "height": float(image["height"])}
        for item in content["annotations"]:
            del item["area"], item["iscrowd"], item["segmentation"]
        annotated.write_text(json.dumps(content))
        assert run("--results", results, "--annotations", annotated, "--overwrite").code == 0
        assert metrics_in("dcnzoo-eval")["bbox"] == expected
        assert caplog.text.count(f"{len(content['annotations'])} annotations have no 'area'") == 1

    def test_of_some_images(self, run: Eval, annotated: Path, results: Path) -> None:
        assert run("--results", results, "--annotations", annotated, "--limit", 2).code == 0
        expected = pycocotools_stats(annotated, results, "bbox", [0, 10])
        np.testing.assert_allclose(twelve(metrics_in("dcnzoo-eval")["bbox"]), expected, rtol=0, atol=1e-12)

    def test_either_evaluator(self, run: Eval, annotated: Path, results: Path) -> None:
        figures = []
        for name in ("pycocotools", "faster-coco-eval"):
            code, out, _ = run(
                "--results", results, "--annotations", annotated, "--evaluator", name, "--out", name, "--json"
            )
            assert (code, metrics_in(name)["evaluator"].split()[0]) == (0, name)
            figures.append(json.loads(out)["bbox"])
        assert twelve(figures[0]) == pytest.approx(twelve(figures[1]), abs=1e-12)

    def test_the_file_that_is_scored_is_not_overwritten(
        self, run: Eval, annotated: Path, results: Path
    ) -> None:
        Path("dcnzoo-eval").mkdir()
        results.rename("dcnzoo-eval/detections.bbox.json")
        options = ("--results", "dcnzoo-eval/detections.bbox.json", "--annotations", annotated)
        code, _, err = run(*options, "--overwrite")
        assert code == 1
        assert "where results go; choose another --out" in err
        assert Path("dcnzoo-eval/detections.bbox.json").exists()

    def test_results_of_an_earlier_run_stay_unless_told(
        self, run: Eval, annotated: Path, results: Path
    ) -> None:
        options = ("--results", results, "--annotations", annotated)
        assert run(*options).code == 0
        code, _, err = run(*options)
        assert (code, "already holds results (metrics.json" in err) == (1, True)
        assert err.endswith("; choose another --out or replace them with --overwrite\n")
        assert run(*options, "--overwrite").code == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[", "results.json: is not JSON"),
            ("[]", "results.json: holds no results"),
            (
                '[{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}]',
                "result at position 0 is about image 7, which ",
            ),
            (
                '[{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]',
                "result at position 0 has category 1, which ",
            ),
        ],
    )
    def test_malformed(self, run: Eval, annotated: Path, results: Path, content: str, message: str) -> None:
        results.write_text(content)
        code, out, err = run("--results", results, "--annotations", annotated)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert message in err
        assert len(err.splitlines()) == 1
        assert not Path("dcnzoo-eval").exists()


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--annotations", "a"], "Name a --model"),
            (
                ["--results", "r", "--model", "m", "--annotations", "a"],
                "leave --model, --weights and --arch out",
            ),
            (["--results", "r", "--annotations", "a", "--resume"], "nothing to go on with"),
            (["--weights", "w", "--arch", ARCH, "--resume", "--overwrite"], "choose one"),
            (["--results", "r"], "Give --coco, a folder laid out as COCO, or --annotations"),
            (["--results", "r", "--coco", "c", "--annotations", "a"], "Give --coco"),
            (["--model", "m", "--annotations", "a"], "--annotations needs --images"),
            (["--model", "m", "--coco", "c", "--images", "i"], "--coco has images of its own"),
            (["--results", "r", "--annotations", "a", "--limit", 0], "--limit"),
            (["--results", "r", "--annotations", "a", "--evaluator", "x"], "--evaluator"),
            (["--results", "r", "--annotations", "a", "--iou-type", "keypoints"], "--iou-type"),
        ],
    )
    def test_usage(self, run: Eval, options: list[object], message: str) -> None:
        code, _, err = run(*options)
        assert code == 2
        assert message in err

    def test_the_other_evaluator_is_not_installed(self, run: Eval, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(eval_command, "find_spec", lambda _: None)
        code, _, err = run("--results", "r", "--annotations", "a", "--evaluator", "faster-coco-eval")
        assert code == 2
        assert "`pip install faster-coco-eval` does it" in err

    def test_missing_images_stop_it_before_the_model_is_loaded(
        self, run: Eval, annotated: Path, tmp_path: Path
    ) -> None:
        Path("photos/1.png").unlink()
        Path("photos/3.png").unlink()
        options = ("--weights", "nothing.pth", "--arch", ARCH, "--images", "photos")
        code, _, err = run(*options, "--annotations", annotated)
        assert code == 1
        assert "2 of its 5 images are not in photos: 1.png, 3.png" in err
        assert not list(tmp_path.glob("dcnzoo-eval/*"))

    def test_other_class_names(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        annotated.write_text(annotated.read_text().replace('"cat"', '"Cat"'))
        code, _, err = run(*model, "--annotations", annotated, "--images", "photos")
        assert code == 1
        assert "does not know 1 of its categories: Cat; classes that only the model has: cat;" in err

    def test_damaged_images_are_all_found_and_then_mended(
        self, run: Eval, model: tuple[object, ...], annotated: Path
    ) -> None:
        """Better no figure than a wrong one; but what was done is not done again."""
        for name in ("1.png", "3.png"):
            Path("photos", name).write_bytes(b"no picture")
        options = (*model, "--annotations", annotated, "--images", "photos")
        code, out, err = run(*options)
        assert (code, out) == (1, "")
        assert "dcnzoo-eval: 2 of 5 images failed; parts/*/errors.jsonl there says why; mend them and" in err
        failed = lines(Path("dcnzoo-eval/parts/shard-1-of-1/errors.jsonl"))
        assert [line["source"] for line in failed] == ["photos/1.png", "photos/3.png"]
        assert not Path("dcnzoo-eval/metrics.json").exists()
        for number in (1, 3):
            save(Path("photos", f"{number}.png"), noise(40 + 4 * number, 64, number))
        code, _, err = run(*options, "--resume")
        assert (code, "2 images in" in err) == (0, True)
        assert run(*options, "--out", "anew").code == 0
        for name in ("detections.bbox.json", "precision_recall.bbox.csv"):
            assert Path("dcnzoo-eval", name).read_bytes() == Path("anew", name).read_bytes()
        assert metrics_in("dcnzoo-eval")["bbox"] == metrics_in("anew")["bbox"]

    def test_a_finished_run_is_reported_again(
        self, run: Eval, model: tuple[object, ...], annotated: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = (*model, "--annotations", annotated, "--images", "photos")
        _, first, _ = run(*options)
        before = metrics_in("dcnzoo-eval")
        monkeypatch.setattr(eval_command, "predict", None)
        code, again, _ = run(*options, "--resume", "--per-class")
        assert code == 0
        assert set(first.splitlines()) < set(again.splitlines())
        assert metrics_in("dcnzoo-eval")["bbox"] == before["bbox"]
        assert metrics_in("dcnzoo-eval")["speed"] == before["speed"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_images": 4}, "holds results of other images than annotations.json lists; start anew"),
            ({"speed": None}, "does not hold all results of a finished run; start anew with --overwrite"),
        ],
    )
    def test_a_finished_run_that_is_not_as_it_was(
        self, run: Eval, model: tuple[object, ...], annotated: Path, changes: dict[str, object], message: str
    ) -> None:
        options = (*model, "--annotations", annotated.name, "--images", "photos")
        assert run(*options).code == 0
        metrics = {**metrics_in("dcnzoo-eval"), **changes}
        left = {name: value for name, value in metrics.items() if value is not None}
        Path("dcnzoo-eval/metrics.json").write_text(json.dumps(left))
        code, out, err = run(*options, "--resume")
        assert (code, out) == (1, "")
        assert err.startswith(f"error: dcnzoo-eval: {message}")

    def test_resume_with_other_options(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        options = (*model, "--annotations", annotated, "--images", "photos", "--limit", 1)
        assert run(*options).code == 0
        code, _, err = run(*options, "--resume", "--batch-size", 2)
        assert code == 1
        assert "was started with batch_size 1 (now 2); give the same options" in err

    @pytest.mark.parametrize("finished", [False, True])
    @pytest.mark.parametrize("changed", ["annotations.json", "ids.txt", "own.pth", "own.yaml"])
    def test_resume_with_other_contents(
        self, run: Eval, checkpoint: Path, annotated: Path, changed: str, finished: bool
    ) -> None:
        """Of a file that decides what is predicted, or what that is compared with."""
        shutil.copy(checkpoint, "own.pth")
        Path("ids.txt").write_text("10\n20\n")
        Path("own.yaml").write_text("{}\n")
        if not finished:
            Path("photos/1.png").write_bytes(b"no picture")
        options = [*("--weights", "own.pth", "--arch", ARCH, "--device", "cpu", *SIDES, "--workers", 0)]
        options += ["--annotations", annotated.name, "--images", "photos", "--image-ids", "ids.txt"]
        options += ["--manifest", "own.yaml"]
        assert run(*options).code == (0 if finished else 1)
        before = files(Path("dcnzoo-eval"))
        with Path(changed).open("a") as file:
            file.write("\n")
        code, out, err = run(*options, "--resume")
        assert (code, out) == (1, "")
        assert err == (
            "error: cannot resume the run in dcnzoo-eval, which was started with other contents of"
            f" {changed}; restore these, or start anew with --overwrite\n"
        )
        assert files(Path("dcnzoo-eval")) == before

    def test_resume_elsewhere(
        self,
        run: Eval,
        model: tuple[object, ...],
        annotated: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Equal names mean other images there; but all may be moved together."""
        options = (*model, "--annotations", annotated, "--images", "photos", "--limit", 1)
        assert run(*options).code == 0
        shutil.copytree(tmp_path / "photos", tmp_path / "other" / "photos")
        monkeypatch.chdir(tmp_path / "other")
        code, _, err = run(*options, "--out", tmp_path / "dcnzoo-eval", "--resume")
        assert code == 1
        assert f"which was started in {tmp_path}, so that relative paths mean other files here" in err
        shutil.move(tmp_path / "dcnzoo-eval", tmp_path / "other")
        assert run(*options, "--resume").code == 0

    def test_an_image_of_another_size(self, run: Eval, model: tuple[object, ...], annotated: Path) -> None:
        save(Path("photos/2.png"), noise(64, 48, 2))
        code, _, err = run(*model, "--annotations", annotated, "--images", "photos")
        assert code == 1
        assert "image 20 should be 64x48, but photos/2.png is 48x64" in err

    def test_no_such_model(self, run: Eval, annotated: Path) -> None:
        code, _, err = run("--model", "faster_rcnn", "--annotations", annotated, "--images", "photos")
        assert code == 1
        assert "unknown model 'faster_rcnn'" in err
