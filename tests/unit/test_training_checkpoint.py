"""What training saves: readable by everybody, whole at any time, and enough to go on."""

from __future__ import annotations

import csv
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dcnzoo
from dcnzoo.annotate import class_colour
from dcnzoo.build import build_model
from dcnzoo.chart import MARGIN, PANEL, Chart, Curve, draw_charts, round_up
from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.errors import CheckpointError, OutputError
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing
from dcnzoo.training.checkpoint import (
    BEST,
    LAST,
    SAFE_COPIES,
    Identity,
    Saved,
    TrainingProgress,
    load_last,
    save_best,
    save_last,
)
from dcnzoo.training.history import write_picture, write_table
from tests.training_room import ARCH

IDENTITY = Identity(Architecture.parse(ARCH), ClassSet(("brick", "tile"), (3, 8)), Preprocessing(48, 64))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build_model(IDENTITY.architecture, 2).state_dict())


def saved(weights: dict[str, Tensor], average: dict[str, Tensor] | None = None) -> Saved:
    momentum = {0: {"momentum_buffer": torch.arange(3.0)}}
    optimizer = {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0]}]}
    progress = TrainingProgress(3, 7, 100, True, 0.25, 2, 9.5, {"loss": 1.5}, [{"epoch": 1.0, "loss": 2.0}])
    return Saved(weights, average, optimizer, {}, progress)


def assert_equal(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class TestLast:
    @pytest.mark.parametrize("averaged", [False, True])
    def test_everything_comes_back(self, tmp_path: Path, weights: dict[str, Tensor], averaged: bool) -> None:
        average = {name: tensor + 1 for name, tensor in weights.items()} if averaged else None
        save_last(tmp_path, IDENTITY, saved(weights, average))
        found = load_last(tmp_path, weights)
        assert_equal(found.weights, weights)
        if average:
            assert_equal(found.average, average)
        else:
            assert found.average is None
        assert found.progress == saved(weights).progress
        assert found.optimizer["param_groups"] == saved(weights).optimizer["param_groups"]
        assert found.optimizer["state"][0]["momentum_buffer"].tolist() == [0, 1, 2]

    def test_others_load_the_average(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        average = {name: tensor + 1 for name, tensor in weights.items()}
        save_last(tmp_path, IDENTITY, saved(weights, average))
        assert_equal(load_checkpoint(tmp_path / LAST).state_dict, average)

    def test_a_failure_leaves_the_one_before(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        """Here a limit on the size of files; a full disk fails in the same way."""
        save_last(tmp_path, IDENTITY, saved(weights))
        before = (tmp_path / LAST).read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            with pytest.raises(
                OutputError, match=r"cannot write .*last\.pth: File too large; mend .* --resume"
            ):
                save_last(tmp_path, IDENTITY, saved(weights))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / LAST).read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [LAST]

    def test_a_file_of_another_program(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        torch.save({"state_dict": weights}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match=r"was not left by `dcnzoo train`.*start anew"):
            load_last(tmp_path, weights)

    @pytest.mark.parametrize("progress", [{}, {"step": 3}, None, "abc"])
    def test_a_file_that_does_not_say_how_far_it_is(
        self, tmp_path: Path, weights: dict[str, Tensor], progress: object
    ) -> None:
        """Taken for the beginning, it would train the trained weights all over again."""
        save_last(tmp_path, IDENTITY, saved(weights))
        content = torch.load(tmp_path / LAST, weights_only=True)
        torch.save({**content, "progress": progress}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match=r"was not left by `dcnzoo train`.*start anew"):
            load_last(tmp_path, weights)

    def test_a_file_without_the_optimizer(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        save_last(tmp_path, IDENTITY, replace(saved(weights), optimizer={}))
        with pytest.raises(CheckpointError, match="nothing can go on from it, start anew"):
            load_last(tmp_path, weights)

    @pytest.mark.parametrize("averaged", [False, True])
    def test_a_file_that_is_not_whole(
        self, tmp_path: Path, weights: dict[str, Tensor], averaged: bool
    ) -> None:
        first, second = list(weights)[:2]
        part = {**weights, second: torch.zeros(7), "more": torch.zeros(1)}
        del part[first]
        save_last(tmp_path, IDENTITY, saved(weights, part) if averaged else saved(part))
        with pytest.raises(CheckpointError, match=r"does not hold the model; .* --overwrite;") as caught:
            load_last(tmp_path, weights)
        assert caught.value.missing == (first,)
        assert caught.value.unexpected == ("more",)
        assert caught.value.mismatched == ((second, (7,), tuple(weights[second].shape)),)
        assert len(str(caught.value).splitlines()) == 1

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / LAST).write_bytes(b"PK\x03\x04")
        message = (
            r"last\.pth: is truncated or damaged; nothing can go on from it, start anew with --overwrite$"
        )
        with pytest.raises(CheckpointError, match=message):
            load_last(tmp_path, {})


class TestBest:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        save_best(tmp_path, IDENTITY, weights, epoch=4, bbox_AP=0.5)

    def test_the_published_layout(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        """As MMDetection 2.x (CLASSES) and 3.x (dataset_meta) read it; PyTorch runs nothing of it."""
        content = torch.load(tmp_path / BEST, weights_only=True)
        assert set(content) == {"meta", "state_dict"}
        assert content["meta"]["CLASSES"] == ("brick", "tile")
        assert content["meta"]["dataset_meta"] == {"classes": ("brick", "tile")}
        assert content["meta"]["arch"] == ARCH
        assert content["meta"]["bbox_AP"] == 0.5
        assert_equal(content["state_dict"], weights)

    @pytest.mark.parametrize("name", [BEST, SAFE_COPIES[BEST]])
    @pytest.mark.parametrize("arch", [None, ARCH])
    def test_it_says_all_that_is_needed(self, tmp_path: Path, name: str, arch: str | None) -> None:
        predictor = dcnzoo.load(weights=tmp_path / name, arch=arch, device="cpu")
        assert (predictor.class_names, predictor.category_ids) == (("brick", "tile"), (3, 8))
        assert predictor.preprocessing == Preprocessing(48, 64)

    def test_both_files_say_the_same(self, tmp_path: Path) -> None:
        found, copy = (load_checkpoint(tmp_path / name).description for name in (BEST, SAFE_COPIES[BEST]))
        assert found is not None
        assert copy is not None
        assert copy.origin == BEST
        assert found == replace(copy, origin="", sha256="")

    @pytest.mark.parametrize(
        "meta",
        [
            {"arch": "resnet"},
            {"CLASSES": 7},
            {"CLASSES": ("brick", 8)},
            {"category_ids": (3,)},
            {"preprocessing": {"short_side": 0}},
            {"preprocessing": torch.zeros(1)},
        ],
    )
    def test_nonsense_is_refused(self, tmp_path: Path, meta: dict[str, object]) -> None:
        content = torch.load(tmp_path / BEST, weights_only=True)
        torch.save({**content, "meta": {**content["meta"], **meta}}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="has a description that makes no sense"):
            load_checkpoint(tmp_path / "other.pth")


ROWS = [
    {"epoch": 0.5, "step": 5.0, "seconds": 1.5, "learning_rate": 0.01, "loss": 2.0, "loss_cls": 1.25},
    {"epoch": 1.0, "step": 10.0, "seconds": 3.0, "learning_rate": 0.02, "loss": 1.0, "loss_cls": 0.5}
    | {"bbox_AP": 0.25, "bbox_AP50": 0.5},
]


def test_table(tmp_path: Path) -> None:
    write_table(tmp_path, ROWS)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first)[:6] == ["epoch", "step", "seconds", "learning_rate", "loss", "loss_cls"]
    assert (first["loss_cls"], first["bbox_AP"]) == ("1.25", "")
    assert (second["epoch"], second["bbox_AP"]) == ("1", "0.25")


def test_picture(tmp_path: Path) -> None:
    write_picture(tmp_path, ROWS)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 2 * PANEL
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    write_picture(tmp_path, [])


def test_curves_are_where_they_belong() -> None:
    curves = [Curve("a", [(0, 4.0), (2, 2.0)]), Curve("b", [(0, 0), (2, 0)])]
    picture = draw_charts([Chart("losses", curves, "epoch")])
    pixels = np.asarray(picture, np.int64)

    def has(colour: tuple[int, int, int], x: float, y: float) -> bool:
        row, column = round(MARGIN + (1 - y) * PANEL), round(MARGIN + x * PANEL)
        near = pixels[row - 2 : row + 3, column - 2 : column + 3]
        return bool((np.abs(near - colour).max(axis=2) < 40).any())

    assert has(class_colour(0), 0.5, 3 / 4)  # the axis ends at 4
    assert has(class_colour(1), 0.5, 0)
    assert not has(class_colour(0), 0.5, 0.4)


@pytest.mark.parametrize(
    ("value", "end"), [(0, 1), (0.3, 0.3), (0.5, 0.5), (1.01, 1.5), (2.2, 2.5), (7, 8), (230, 250), (9.1, 10)]
)
def test_axes_end_at_round_numbers(value: float, end: float) -> None:
    assert round_up(value) == pytest.approx(end)
