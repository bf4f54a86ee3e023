"""The comparison with the reference implementation, as far as it goes without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dcnzoo.benchmark import Case, Model
from dcnzoo.manifest import Architecture
from dcnzoo.results import Detections

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODEL = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
OURS, THEIRS = Case(Model(MODEL, None, None), "cpu", "fp32", 1), f"MMDetection {MODEL}"
VERSIONS = {"mmdet": "3.5.1"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("bench_detector")


@pytest.fixture
def mmdetection(bench: ModuleType) -> ModuleType:
    """The module that runs MMDetection."""
    return import_module("mmdetection_detector")


@pytest.fixture
def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the script with arguments."""

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench_detector.py", *arguments])
        bench.main()

    return main


def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, int)
    return Detections(*arrays, class_names=("a", "b"), category_ids=(1, 2), image_size=(200, 200))


def rounds(bench: ModuleType, measured: bool, input_size: tuple[int, int] = (800, 1216)) -> Any:
    """Three rounds: the reference takes 4, 5 and 8 times as long as ours; this machine 1.5 times as long."""
    found = detections([[0, 0, 10, 10]], [0.9], [0])
    inner = {"backbone": 0.1, "neck": 0.1, "rpn": 0.1, "roi": 0.1}
    samples = {name: [{"total": 1.5 * ms / 1000}] * 3 for name, ms in bench.PLAIN_MS.items()}
    if measured:
        samples[THEIRS] = [{**inner, "total": total} for total in (4.0, 10.0, 8.0)]
    samples[OURS] = [{**inner, "postprocess": 0.0, "total": total} for total in (1.0, 2.0, 1.0)]
    return bench.Rounds(input_size, samples, {OURS: found, **({THEIRS: found} if measured else {})})


@pytest.mark.parametrize("missing", ["mmcv.ops", "mmdet.models"])
def test_without_mmdetection_the_cure_is_named(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for module in ("mmcv", "mmcv.ops", "mmdet", "mmdet.models"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        SystemExit, match=f"error: .*{missing}.* onedl-mmcv has to be built with its operators"
    ):
        run("--mmdetection", "--quick")


def test_an_unknown_model_is_an_error_without_a_traceback(run: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match="error: unknown model"):
        run("--model", "no_such_model")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("faster_rcnn_r50_fpn_dconv_c3-c5", "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py"),
        (
            "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5",
            "dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py",
        ),
        ("mask_rcnn_r50_fpn_mdconv_c3-c5", "dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"),
        (
            "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
            "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py",
        ),
    ],
)
def test_names_of_configurations(mmdetection: ModuleType, name: str, config: str) -> None:
    assert mmdetection.config_name(Architecture.parse(name)) == config


class TestFindConfig:
    @pytest.fixture(autouse=True)
    def package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """An installation with one configuration."""
        package = ModuleType("mmdet")
        package.__path__ = [str(tmp_path)]
        monkeypatch.setitem(sys.modules, "mmdet", package)
        self.path = tmp_path / ".mim/configs/dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py"
        self.path.parent.mkdir(parents=True)
        self.path.touch()

    def test_finds_it(self, mmdetection: ModuleType) -> None:
        assert mmdetection.find_config(Architecture.parse(MODEL)) == self.path

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("cascade_rcnn_r18_fpn_mdconv_c3-c5", "has no configuration dcnv2/cascade-rcnn_r18-mdconv"),
            ("faster_rcnn_r50_fpn_mdpool", "on a GPU only"),
        ],
    )
    def test_says_what_mmdetection_lacks(self, mmdetection: ModuleType, name: str, problem: str) -> None:
        with pytest.raises(mmdetection.DcnzooError, match=f"{name}: .*{problem}"):
            mmdetection.find_config(Architecture.parse(name))


@pytest.mark.parametrize(
    ("box", "score", "label", "same"),
    [
        ([0, 0, 100, 100], 0.9, 0, 1),
        ([0, 0, 100, 99], 0.901, 0, 1),
        ([0, 0, 100, 97], 0.9, 0, 0),
        ([0, 0, 100, 100], 0.903, 0, 0),
        ([0, 0, 100, 100], 0.9, 1, 0),
    ],
)
def test_what_counts_as_the_same(
    bench: ModuleType, box: list[float], score: float, label: int, same: int
) -> None:
    expected = detections([[0, 0, 100, 100]], [0.9], [0])
    assert bench.count_same(expected, detections([box], [score], [label])) == same


def test_each_detection_counts_once(bench: ModuleType) -> None:
    one, two = (detections([[0, 0, 100, 100]] * count, [0.9] * count, [0] * count) for count in (1, 2))
    assert [bench.count_same(*pair) for pair in ((one, two), (two, one), (two, two))] == [1, 1, 2]


def test_nothing_found_is_nothing_in_common(bench: ModuleType) -> None:
    nothing, something = detections([], [], []), detections([[0, 0, 9, 9]], [0.9], [0])
    assert bench.count_same(nothing, something) == bench.count_same(something, nothing) == 0


def test_measured(bench: ModuleType) -> None:
    taken = rounds(bench, measured=True)
    row = bench.compare(OURS, taken, {OURS: 1.0, THEIRS: 1.2}, comparable=True)
    assert (row.times_reference, row.reference_peak_gb) == (5, 1.2)
    assert (row.reference.total, row.reference.same, row.reference.detections) == (8000, 1, 1)
    assert row.estimate == pytest.approx(1.5 * 4817)
    text = "\n".join(bench.report([row], taken, True, VERSIONS))
    assert "the reference is measured: MMDetection 3.5.1" in text
    assert f"same detections: 1 of 1  {MODEL}, fp32" in text
    assert "estimate" not in text
    stages = [line.split()[2:] for line in text.splitlines() if line.startswith(THEIRS)]
    assert stages == [["fp32", "100", "100", "100", "100", "8000"]]


def test_estimated(bench: ModuleType) -> None:
    taken = rounds(bench, measured=False)
    row = bench.compare(OURS, taken, {}, comparable=True)
    assert row.times_reference == pytest.approx(1.5 * 4.817)
    assert (row.reference, row.reference_peak_gb) == (None, 1.27)
    text = "\n".join(bench.report([row], taken, True, None))
    assert "the reference is estimated: its times on another machine are scaled by 1.500" in text
    assert "same detections" not in text
    assert THEIRS not in text


@pytest.mark.parametrize(("measured", "times"), [(True, 5), (False, None)])
def test_on_another_input_only_the_measured_counts(
    bench: ModuleType, measured: bool, times: float | None
) -> None:
    taken = rounds(bench, measured, input_size=(96, 160))
    row = bench.compare(OURS, taken, {}, comparable=False)
    assert (row.times_reference, row.bar, row.reference_peak_gb) == (times, None, None)
    text = "\n".join(bench.report([row], taken, False, VERSIONS if measured else None))
    assert ("not compared with the reference, whose input was 800x1216" in text) is not measured


def test_the_file_has_both(
    bench: ModuleType,
    mmdetection: ModuleType,
    run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(mmdetection, "package_versions", lambda: VERSIONS)
    monkeypatch.setattr(mmdetection, "find_config", lambda _: None)
    monkeypatch.setattr(bench, "measure_in_turn", lambda *_: rounds(bench, measured=True))
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda _: None)
    run("--mmdetection", "--no-memory", "--model", MODEL, "--json", str(tmp_path / "a.json"))
    content = json.loads((tmp_path / "a.json").read_text())
    (detector,) = content["detectors"]
    assert content["mmdetection"] == VERSIONS
    assert (detector["reference"]["ratio"], detector["bar"]) == (5, 3.5)
    assert detector["estimate"] == pytest.approx(1.5 * 4817)
