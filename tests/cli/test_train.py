"""`dcnzoo train`: options, files, errors, and weights that others can use."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dcnzoo.training.losses
from dcnzoo.build import build_model
from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.manifest import Architecture
from tests.cli.conftest import Outcome, Program
from tests.cli.predicting import files
from tests.training_room import ARCH, MASK_ARCH, content, furnish, options, write

Train = Callable[..., Outcome]
OUT = Path("dcnzoo-train")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return furnish(tmp_path, images=4)


@pytest.fixture
def train(dcnzoo: Program, room: Path) -> Train:
    """Runs `dcnzoo train` from scratch in the room, for one epoch of two steps."""
    return lambda *more, arch=ARCH: dcnzoo(*options(room, arch), "--epochs", 1, *more)


def rows() -> list[dict[str, str]]:
    with (OUT / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(name: str = "last.pth") -> dict[str, Tensor]:
    return load_checkpoint(OUT / name).state_dict


def own_weights(path: Path, classes: tuple[str, ...]) -> Path:
    torch.manual_seed(5)
    model = build_model(Architecture.parse(ARCH), len(classes))
    torch.save({"meta": {"CLASSES": classes}, "state_dict": model.state_dict()}, path)
    return path


def start_from(path: Path) -> list[str]:
    """Options to train from a file in place of scratch."""
    text = f"train --weights {path} --arch {ARCH} --train train.json --images images --device cpu --epochs 1"
    text += " --short-side 48 --long-side 64 --batch-size 4 --workers 0 --warmup 0"
    return text.split()


class TestRun:
    def test_files_and_figures(self, dcnzoo: Program, train: Train) -> None:
        code, out, err = train("--epochs", 2, "--log-every", 1, "--learning-rate", 0.02)
        assert code == 0, err
        assert files(OUT) == [
            "best.pth",
            "best.safetensors",
            "curves.png",
            "last.pth",
            "last.safetensors",
            "metrics.csv",
            "problems.txt",
            "run.json",
            "validation/detections.bbox.json",
        ]
        for line in (
            f"model: {ARCH}, from random weights, 2 classes: brick, tile",
            "training set: 4 images, 8 objects",
            "steps: 2 per epoch, 4 in 2 epochs, 2 images each (1 processes x 1 batches x 2)",
            "learning rate: 0.02, a tenth after epochs 1, warm-up of 2 steps",
        ):
            assert line in err
        table = rows()
        assert [row["step"] for row in table] == ["1", "2", "3", "4"]
        assert [row["epoch"] for row in table] == ["0.5", "1", "1.5", "2"]
        assert [row["learning_rate"] for row in table] == ["2e-05", "0.01001", "0.002", "0.002"]
        assert [bool(row["bbox_AP"]) for row in table] == [False, True, False, True]
        for row in table:
            losses = [float(value) for name, value in row.items() if name.startswith("loss_")]
            assert len(losses) == 4
            assert float(row["loss"]) == pytest.approx(sum(losses), rel=1e-4)
        assert "best weights, bbox_AP" in out
        best = max(table, key=lambda row: float(row["bbox_AP"] or -2))
        self.check_eval(dcnzoo, float(best["bbox_AP"]), float(best["bbox_AP50"]))

    @staticmethod
    def check_eval(dcnzoo: Program, ap: float, ap50: float) -> None:
        """`dcnzoo eval` finds the same with the file that training calls the best."""
        model = ("--weights", OUT / "best.safetensors", "--device", "cpu", "--workers", 0)
        assert dcnzoo("eval", *model, "--annotations", "val.json", "--images", "images").code == 0
        found = json.loads(Path("dcnzoo-eval/metrics.json").read_text())["bbox"]
        assert found["AP"] == pytest.approx(ap, rel=1e-4)
        assert found["AP50"] == pytest.approx(ap50, rel=1e-4)

    def test_every_option_at_once(self, train: Train) -> None:
        more = "--optimizer adamw --decay cosine --ema 0.9 --accumulate 3 --clip-norm 1 --precision bf16"
        more += (
            " --norm frozen --frozen-stages 0 --keep-empty --flip 1 --seed 7 --log-every 1 --weight-decay 0"
        )
        code, _, err = train(*more.split(), "--short-side", "32,48", arch=MASK_ARCH)
        assert code == 0, err
        for line in (
            "input: short side 32, 48, long side 64, flip 1, vertical flip 0",
            "steps: 1 per epoch, 1 in 1 epochs, 6 images each (1 processes x 3 batches x 2)",
            "learning rate: 0.01, cosine",
            "optimizer: adamw, weight decay 0, clipped to 1",
            "batch norm: frozen, frozen stages: 0, average of weights: decay 0.9",
            "bf16, seed 7",
        ):
            assert line in err
        (row,) = rows()
        assert float(row["loss_mask"]) > 0
        assert float(row["segm_AP"]) >= 0
        content = torch.load(OUT / "last.pth", weights_only=True)
        name = "roi_head.bbox_head.fc_cls.weight"
        assert not torch.equal(content["weights"][name], content["state_dict"][name])
        assert torch.equal(weights("best.pth")[name], content["state_dict"][name])

    def test_evaluations_are_in_float32(self, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def noted(device: torch.device) -> Iterator[None]:
            devices.append(device.type)
            yield

        devices: list[str] = []
        monkeypatch.setattr("dcnzoo.training.validation.float32_kept", noted)
        assert train("--precision", "bf16").code == 0
        assert devices == ["cpu"]


class TestWeights:
    def test_of_other_classes(self, dcnzoo: Program, room: Path) -> None:
        own = own_weights(room / "own.pth", ("cat", "dog"))
        code, _, err = dcnzoo(*start_from(own), "--learning-rate", 1e-12)
        assert code == 0, err
        assert "4 replaced, since the classes differ: roi_head.bbox_head.fc_cls.weight," in err
        before, after = load_checkpoint(own).state_dict, weights()
        heads = ("fc_cls", "fc_reg")
        for name, tensor in before.items():
            if "num_batches" not in name:
                assert torch.allclose(after[name], tensor, atol=1e-6) != any(head in name for head in heads)
        assert load_checkpoint(OUT / "last.pth").classes == ("brick", "tile")
        assert not (OUT / "best.pth").exists()  # nothing was evaluated

    def test_of_the_same_classes_in_another_order(self, dcnzoo: Program, room: Path) -> None:
        own = own_weights(room / "own.pth", ("tile", "brick"))
        code, _, err = dcnzoo(*start_from(own), "--learning-rate", 1e-12)
        assert code == 0
        assert "replaced" not in err
        found = load_checkpoint(OUT / "last.pth")
        assert found.classes == ("tile", "brick")
        name = "roi_head.bbox_head.fc_cls.weight"
        assert torch.allclose(found.state_dict[name], load_checkpoint(own).state_dict[name], atol=1e-6)

    def test_of_a_backbone_alone(self, dcnzoo: Program, room: Path) -> None:
        whole = load_checkpoint(own_weights(room / "own.pth", ("cat",))).state_dict
        part = {
            name.removeprefix("backbone."): t for name, t in whole.items() if name.startswith("backbone.")
        }
        torch.save({**part, "fc.weight": torch.zeros(3, 4)}, room / "backbone.pth")
        code, _, err = dcnzoo(*start_from(room / "backbone.pth"), "--learning-rate", 1e-12)
        assert code == 0, err
        assert "1 of the file not used: backbone.fc.weight" in err
        assert "not in the file, begin at random: neck." in err
        name = "backbone.layer4.0.conv2.weight"
        assert torch.allclose(weights()[name], whole[name], atol=1e-6)

    def test_of_another_architecture(self, dcnzoo: Program, room: Path) -> None:
        own = own_weights(room / "own.pth", ("cat", "dog"))
        arguments = [word.replace("fpn16", "fpn32") for word in start_from(own)]
        code, _, err = dcnzoo(*arguments)
        assert code == 1
        assert "does not fit the model" in err
        assert not OUT.exists()


class TestProblems:
    @pytest.fixture
    def broken(self, room: Path) -> Path:
        annotations = content(4)[0]
        annotations["annotations"][0]["bbox"] = [500, 0, 5, 5]
        annotations["annotations"][1]["category_id"] = 99
        return write(room / "train.json", annotations)

    @pytest.mark.usefixtures("broken")
    def test_are_listed_before_training(self, train: Train) -> None:
        code, _, err = train()
        assert code == 0
        assert (
            "1 boxes outside of their images, or all but less than a pixel of them, left out: annotation 1"
            in err
        )
        assert "left out: annotation 2 (category 99)" in err
        assert (OUT / "problems.txt").read_text() == (
            "unknown_category\tannotation 2 (category 99)\noutside\tannotation 1\n"
        )

    @pytest.mark.usefixtures("broken")
    def test_are_errors_with_strict(self, train: Train) -> None:
        code, _, err = train("--strict")
        assert code == 1
        assert err.splitlines()[-1] == "error: train.json has 2 problems; mend them, or leave --strict out"
        assert not OUT.exists()

    def test_a_loss_that_is_no_number(self, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        detection_losses = dcnzoo.training.losses.detection_losses

        def spoilt(*arguments: Any, **options: Any) -> dict[str, Tensor]:
            found = detection_losses(*arguments, **options)
            calls.append(1)
            return found | {"loss_cls": found["loss_cls"] * (float("nan") if len(calls) == 2 else 1)}

        calls: list[int] = []
        monkeypatch.setattr(dcnzoo.training.losses, "detection_losses", spoilt)
        code, _, err = train("--save-every", 1)
        assert code == 1
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "loss_cls became infinite or not a number at step 2, epoch 1, with the images " in line
        assert line.count(".png") == 2
        assert "last.pth is from before" in line
        assert torch.load(OUT / "last.pth", weights_only=True)["progress"]["step"] == 1
        assert all(tensor.isfinite().all() for tensor in weights().values())
        assert train("--save-every", 1, "--resume").code == 0

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--train", "absent.json"], "absent.json: cannot be read"),
            (["--images", "absent"], "there is no folder absent; give the one"),
            (["--val-images", "absent"], "4 of its 2 images are not in absent".replace("4", "2")),
            (["--arch", "faster_rcnn_r51"], "unknown architecture"),
            (["--device", "cuda:7"], "cannot use cuda:7"),
            (["--precision", "fp16"], "fp16 needs a GPU"),
        ],
    )
    def test_errors(self, train: Train, more: list[str], words: str) -> None:
        code, out, err = train(*more)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert words in err
        assert not OUT.exists()

    def test_images_of_the_validation_set_are_looked_at_first(self, train: Train, room: Path) -> None:
        annotations = content(2)[0]
        annotations["images"][0]["width"] += 1
        write(room / "val.json", annotations)
        (room / "images" / "1.png").write_bytes(b"no picture")
        code, _, err = train()
        assert code == 1
        assert "2 of its images cannot be used: 0.png (65x48 annotated, is 64x48), 1.png (" in err
        assert not OUT.exists()

    def test_images_above_the_limit_are_left_out(self, train: Train) -> None:
        code, _, err = train("--max-pixels", 1000)
        assert code == 1
        assert "4 images that are missing or cannot be read, left out, the first: 0.png (Image size" in err
        assert "raise the limit with --max-pixels N" in err

    @pytest.mark.parametrize("crowds", [False, True])
    def test_a_validation_set_without_objects(self, train: Train, room: Path, crowds: bool) -> None:
        annotations = content(2)[0]
        objects = [{**item, "iscrowd": 1} for item in annotations["annotations"]]
        write(room / "val.json", {**annotations, "annotations": objects if crowds else []})
        code, _, err = train()
        assert code == 1
        assert "has no objects to find (crowds are none)" in err
        assert not OUT.exists()

    def test_a_validation_set_of_other_things(self, train: Train, room: Path) -> None:
        annotations = content(2)[0]
        annotations["categories"][0]["name"] = "cat"
        write(room / "val.json", annotations)
        code, _, err = train()
        assert code == 1
        assert "the model does not know 1 of its categories: cat" in err
        assert not OUT.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--from-scratch", "Give --arch"),
        ("", "Name a --model whose published weights"),
        ("--model x --arch y", "--model has an architecture of its own"),
        ("--arch y --from-scratch --weights own.pth", "--from-scratch starts without weights"),
        ("--arch y --from-scratch --val-images d", "--val-images are the images of --val"),
        (
            "--arch y --from-scratch --short-side 50,90 --long-side 80",
            "--short-side 90 exceeds --long-side 80",
        ),
        ("--arch y --from-scratch --decay cosine --milestones 3", "--milestones belong to --decay step"),
        ("--arch y --from-scratch --milestones 8,12", "--milestones must lie before the end"),
        ("--arch y --from-scratch --resume --overwrite", "choose one"),
        ("--arch y --from-scratch --ema 1", "--ema"),
        ("--arch y --from-scratch --learning-rate 0", "--learning-rate"),
    ],
)
def test_usage(dcnzoo: Program, arguments: str, words: str) -> None:
    code, _, err = dcnzoo("train", "--train", "t.json", "--images", "i", *arguments.split())
    assert code == 2
    assert words in err


def test_help_does_not_promise_fp16_on_a_cpu(dcnzoo: Program) -> None:
    code, out, _ = dcnzoo("train", "--help")
    assert code == 0
    assert "tf32 and fp16 need a GPU." in " ".join(out.split())


def test_tensorboard_is_an_extra(dcnzoo: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcnzoo.cli.train.find_spec", lambda _: None)
    more = ("--arch", "y", "--from-scratch", "--tensorboard")
    code, _, err = dcnzoo("train", "--train", "t.json", "--images", "i", *more)
    assert code == 2
    assert "pip install tensorboard" in err


def test_earlier_results_are_safe(train: Train) -> None:
    assert train("--quiet").code == 0
    before = (OUT / "last.pth").read_bytes()
    code, _, err = train()
    assert code == 1
    assert "already holds results" in err
    code, _, err = train("--resume", "--seed", 3)
    assert code == 1
    assert "was started with seed 0 (now 3)" in err
    assert (OUT / "last.pth").read_bytes() == before
    again = train("--resume")
    assert again.code == 0
    assert "resumed after 2 steps, in epoch 1" in again.err
    assert train("--overwrite", "--quiet") == (0, "", "")


@pytest.mark.parametrize("changed", ["train.json", "val.json"])
def test_a_run_goes_on_with_its_own_sets_only(train: Train, room: Path, changed: str) -> None:
    assert train("--quiet").code == 0
    before = files(OUT)
    annotations = json.loads((room / changed).read_text())
    annotations["categories"][0]["name"] = "cat"
    write(room / changed, annotations)
    code, _, err = train("--resume")
    assert code == 1
    assert f"was started with other contents of {changed}; restore these, or start anew with" in err
    assert files(OUT) == before


def test_a_run_goes_on_with_its_own_images_only(train: Train, room: Path) -> None:
    """Images that cannot be read are left out, but not in the midst of a run."""
    assert train("--quiet").code == 0
    before = files(OUT)
    (room / "images" / "3.png").rename(room / "3.png")
    code, _, err = train("--resume")
    assert code == 1
    assert "1 images that are missing or cannot be read, left out: 3.png" in err
    assert err.splitlines()[-1] == (
        "error: cannot resume the run in dcnzoo-train, which learned from 4 images, now 3;"
        " restore these, or start anew with --overwrite"
    )
    assert files(OUT) == before
    (room / "3.png").rename(room / "images" / "3.png")
    assert train("--resume").code == 0


def test_curves_without_validation(dcnzoo: Program, room: Path) -> None:
    arguments = options(room)
    place = arguments.index("--val")
    assert dcnzoo(*arguments[:place], *arguments[place + 2 :], "--epochs", 1).code == 0
    assert (OUT / "curves.png").stat().st_size > 0
    assert not (OUT / "best.pth").exists()


def test_two_runs_in_one_folder(train: Train) -> None:
    """The one that comes second touches nothing."""
    assert train("--quiet").code == 0
    before = {path: path.read_bytes() for path in OUT.iterdir() if path.is_file()}
    descriptor = os.open(OUT, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        code, _, err = train("--overwrite", "--seed", 3)
    finally:
        os.close(descriptor)
    assert code == 1
    assert "another process is writing results there" in err
    assert {path: path.read_bytes() for path in OUT.iterdir() if path.is_file()} == before
