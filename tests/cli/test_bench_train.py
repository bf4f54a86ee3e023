"""`dcnzoo bench --train`: training steps on one kind of operators and another."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcnzoo.benchmark import Case, Model, Settings, Spread
from dcnzoo.errors import DeviceError
from dcnzoo.hardware import PeakMemory, hardware_stamp
from dcnzoo.training import benchmark
from dcnzoo.training.benchmark import STAGES, StepResult, compare_apart, measure_steps, random_target
from tests.cli.conftest import Program
from tests.pictures import noise
from tests.training_room import MASK_ARCH

CASE = Case(Model(None, MASK_ARCH, None), "cpu", "fp32", 2)


def result(case: Case, operators: str, factor: float) -> StepResult:
    stages = {stage: Spread(*[factor * number] * 3) for number, stage in enumerate(STAGES, 1)}
    memory, stamp = PeakMemory(1.5, None), hardware_stamp(torch.device("cpu"))
    total = Spread(*[factor * 6] * 3)
    return StepResult(case, operators, (800, 1344), stages, total, 1000 / total.mean, memory, stamp)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured where no device is named is the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Cases that a stand-in has measured: torchvision's operators take four times as long."""
    cases: list[Case] = []

    def compare(case: Case, settings: Settings) -> list[StepResult]:
        cases.append(case)
        return [result(case, "native", 10), result(case, "torchvision", 40)]

    monkeypatch.setattr(benchmark, "compare_apart", compare)
    return cases


def test_table(dcnzoo: Program, compared: list[Case]) -> None:
    code, out, err = dcnzoo("bench", "--train", "--arch", MASK_ARCH, "--weights", "random")
    assert (code, err) == (0, f"measuring {MASK_ARCH} (random weights), cpu, fp32, batch 1\n")
    title, *table = out.splitlines()[:7]
    assert title.endswith("batch 1: milliseconds per training step, input 800x1344")
    assert [line.split() for line in table] == [
        ["stage", "native", "torchvision", "times"],
        ["forward", "10.0", "40.0", "4.00"],
        ["backward", "20.0", "80.0", "4.00"],
        ["optimizer", "30.0", "120.0", "4.00"],
        ["total", "60.0", "240.0", "4.00"],
        ["images/s", "16.7", "4.17"],
    ]
    assert len(compared) == 1


@pytest.mark.usefixtures("compared")
def test_files(dcnzoo: Program, tmp_path: Path) -> None:
    more = ("--batch-size", "1,2", "--json", tmp_path / "b.json", "--csv", "-")
    code, out, _ = dcnzoo("bench", "--train", "--arch", MASK_ARCH, "--weights", "random", *more)
    assert code == 0
    rows = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [(row["batch_size"], row["operators"]) for row in rows] == [
        (size, operators) for size in (1, 2) for operators in ("native", "torchvision")
    ]
    assert rows[1]["milliseconds_per_batch"]["backward"]["p50"] == 80
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["total_mean_ms"] for row in table] == ["60", "240", "60", "240"]


def test_precisions_are_those_of_training(
    dcnzoo: Program, compared: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU may predict in fp16, but not train."""
    monkeypatch.setattr("dcnzoo.predictor.half_factor", lambda: torch.float16)
    arguments = ("bench", "--train", "--arch", MASK_ARCH, "--weights", "random", "--device", "cpu")
    code, _, err = dcnzoo(*arguments, "--precision", "fp16")
    assert (code, compared) == (1, [])
    assert "fp16 needs a GPU" in err
    with pytest.raises(DeviceError, match="tf32 needs a GPU"):
        measure_steps(replace(CASE, precision="tf32"), Settings(()))


def test_really(tmp_path: Path) -> None:
    Image.fromarray(noise(48, 64)).save(tmp_path / "a.png")
    settings = Settings((str(tmp_path / "a.png"),), warmup=0, repeats=2, short_side=32, long_side=64)
    found = measure_steps(CASE, settings)
    assert found.input_size == (32, 64)
    assert list(found.stages) == list(STAGES)
    assert all(spread.mean > 0 for spread in found.stages.values())
    total = sum(spread.mean for spread in found.stages.values())
    assert found.total.mean == pytest.approx(total)
    assert found.images_per_second == pytest.approx(2000 / total)


def test_operators_are_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measurement starts with its own; afterwards the environment is as before."""

    def apart(function: object) -> StepResult:
        chosen.append(os.environ.get("DCNZOO_OPS"))
        return result(CASE, chosen[-1] or "native", 1)

    chosen: list[str | None] = []
    monkeypatch.setattr(benchmark, "run_apart", apart)
    monkeypatch.delenv("DCNZOO_OPS", raising=False)
    assert [each.operators for each in compare_apart(CASE, Settings(()))] == ["native", "torchvision"]
    assert chosen == [None, "torchvision"]
    assert "DCNZOO_OPS" not in os.environ
    monkeypatch.setenv("DCNZOO_OPS", "torchvision")
    assert [each.operators for each in compare_apart(CASE, Settings(()))] == ["torchvision"]


def test_random_objects_lie_in_the_image() -> None:
    target = random_target((60, 90), (64, 96), True, 3, torch.device("cpu"))
    assert target.masks is not None
    assert target.boxes.min() >= 0
    assert (target.boxes[:, 2:] <= torch.tensor([90, 60])).all()
    for box, mask in zip(target.boxes, target.masks, strict=True):
        left, top, right, bottom = (int(value) for value in box)
        assert mask.sum() == (right - left) * (bottom - top)
