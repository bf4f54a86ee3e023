"""`dcnzoo bench`: which cases are measured, and how the results are told."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dcnzoo import benchmark
from dcnzoo.benchmark import STAGES, Case, Result, Settings, Spread
from dcnzoo.errors import CheckpointError
from dcnzoo.hardware import PeakMemory, hardware_stamp
from tests.cli.conftest import Program
from tests.http_server import content, serving
from tests.pictures import noise, save

DCONV = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
ARCH = "faster_rcnn_r50_fpn"


class Measured:
    """Stands in for the measurement: notes the cases, and knows their times."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.settings: list[Settings] = []
        self.picture_sizes: list[tuple[int, int]] = []
        self.too_large: int | None = None

    def __call__(self, case: Case, settings: Settings) -> Result:
        self.cases.append(case)
        self.settings.append(settings)
        for path in settings.images:
            with Image.open(path) as image:
                self.picture_sizes.append(image.size[::-1])
        if self.too_large is not None and case.batch_size >= self.too_large:
            raise MemoryError("tried to allocate 9 TB")
        return Result(
            case=case,
            input_size=(800, 1344),
            detections=100.0,
            stages={
                stage: Spread(number, number + 0.5, number + 1) for number, stage in enumerate(STAGES, 1)
            },
            total=Spread(36, 40, 44),
            images_per_second=case.batch_size / 0.036,
            memory=PeakMemory(1.5, None),
            stamp=STAMP,
        )

    def said(self) -> list[tuple[str | None, str, int]]:
        """What tells the cases apart."""
        return [(case.model.name, case.precision, case.batch_size) for case in self.cases]


STAMP = hardware_stamp(torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured where no device is named is the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    stand_in = Measured()
    monkeypatch.setattr(benchmark, "measure_apart", stand_in)
    return stand_in


def test_really(dcnzoo: Program, tmp_path: Path) -> None:
    options = ["--short-side", 32, "--long-side", 64, "--warmup", 0, "--repeats", 2, "--threads", 1]
    code, out, err = dcnzoo("bench", "--arch", ARCH, "--weights", "random", "--json", "-", *options)
    report = json.loads(out)
    (row,) = report["results"]
    assert (code, err) == (0, "measuring faster_rcnn_r50_fpn (random weights), cpu, fp32, batch 1\n")
    assert report["stamp"]["cpu"]["threads"] == 1
    assert report["notes"] == []
    times = row["milliseconds_per_batch"]
    assert list(times) == ["total", *STAGES]
    assert all(0 < spread["p50"] <= spread["p95"] for spread in times.values())
    assert row["images_per_second"] == pytest.approx(1000 / times["total"]["mean"], rel=1e-2)
    assert row["input_size"] == [32, 64]


class TestCases:
    @pytest.mark.parametrize(
        ("arguments", "cases"),
        [
            (["--model", DCONV], [(DCONV, "fp32", 1)]),
            (["--model", "r50*group4"], "unknown model"),
            (
                ["--model", "r50_fpn_dpool,r50_fpn_mdpool"],
                [(f"faster_rcnn_r50_fpn_{pool}_1x_coco", "fp32", 1) for pool in ("dpool", "mdpool")],
            ),
            (
                ["--model", "*_dpool*", "--model", "fpn_dpool", "--batch-size", "4,1,4", "--batch-size", 2],
                [("faster_rcnn_r50_fpn_dpool_1x_coco", "fp32", size) for size in (1, 2, 4)],
            ),
            (
                ["--model", DCONV, "--precision", "bf16,fp32", "--batch-size", "1,2"],
                [(DCONV, precision, size) for precision in ("bf16", "fp32") for size in (1, 2)],
            ),
        ],
    )
    def test_combinations(
        self, dcnzoo: Program, measured: Measured, arguments: list[object], cases: object
    ) -> None:
        code, _, err = dcnzoo("bench", "--weights", "random", *arguments)
        if isinstance(cases, str):
            assert (code, measured.cases) == (1, [])
            assert cases in err
        else:
            assert code == 0
            assert measured.said() == cases

    def test_a_whole_name_is_no_pattern(
        self, dcnzoo: Program, measured: Measured, own_manifest: Path
    ) -> None:
        text = own_manifest.read_text()
        record = text.partition("\n")[2]
        own_manifest.write_text(text + record.replace("name: cells", "name: cells2"))
        dcnzoo("bench", "--manifest", own_manifest, "--model", "cells", "--weights", "random")
        assert measured.said() == [("cells", "fp32", 1)]

    def test_the_checkpoint_is_fetched_first(
        self, dcnzoo: Program, measured: Measured, own_manifest: Path, home: Path
    ) -> None:
        elsewhere = f"[https://nowhere.invalid/cells.pth]\n    sha256: {sha256(b'weights').hexdigest()}"
        own_manifest.write_text(own_manifest.read_text().replace("[cells.pth]", elsewhere))
        with serving({"/mirror/cells.pth": content(b"weights")}) as server:
            arguments = ["--model", "cells", "--url-base", server.url("/mirror")]
            code, out, _ = dcnzoo("bench", "--manifest", own_manifest, *arguments)
        assert code == 0
        (fetched,) = (home / "checkpoints").glob("cells*.pth")
        assert measured.cases[0].model.weights == fetched
        assert measured.settings[0].manifest == own_manifest
        assert "random" not in out

    def test_own_weights(self, dcnzoo: Program, measured: Measured) -> None:
        code, out, _ = dcnzoo("bench", "--arch", ARCH, "--weights", "a.pth", "--device", "cpu,cpu")
        assert code == 0
        (case,) = measured.cases
        assert (case.model.name, case.model.arch, case.model.weights) == (None, ARCH, Path("a.pth"))
        assert case.device == "cpu"
        assert f"\n{ARCH}  " in out

    def test_a_safe_copy_needs_no_architecture(self, dcnzoo: Program, measured: Measured) -> None:
        code, out, _ = dcnzoo("bench", "--weights", "folder/pets.safetensors")
        assert code == 0
        (case,) = measured.cases
        assert (case.model.name, case.model.arch) == (None, None)
        assert out.startswith("pets, cpu, fp32, batch 1")

    def test_settings(self, dcnzoo: Program, measured: Measured) -> None:
        options = {"warmup": 3, "repeats": 4, "threads": 5, "short-side": 6, "long-side": 7}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        dcnzoo("bench", "--model", DCONV, "--weights", "random", *arguments)
        (settings,) = measured.settings
        assert replace(settings, images=()) == Settings((), 3, 4, 5, 6, 7)


class TestImages:
    @pytest.mark.parametrize(
        ("arguments", "size"), [([], (480, 800)), (["--image-size", "425x640"], (425, 640))]
    )
    def test_generated(
        self, dcnzoo: Program, measured: Measured, arguments: list[str], size: tuple[int, int]
    ) -> None:
        dcnzoo("bench", "--model", DCONV, "--weights", "random", *arguments)
        assert measured.picture_sizes == [size]
        assert not Path(measured.settings[0].images[0]).exists()

    def test_photos(self, dcnzoo: Program, measured: Measured, tmp_path: Path) -> None:
        for number in range(5):
            save(tmp_path / "photos" / f"{number}.png", noise(8 + number, 8))
        images = ["--images", tmp_path / "photos", "--repeats", 2, "--batch-size", "1,2"]
        code, _, _ = dcnzoo("bench", "--model", DCONV, "--weights", "random", *images)
        assert code == 0
        used = [Path(path).name for path in measured.settings[0].images]
        assert used == ["0.png", "1.png", "2.png", "3.png"]

    def test_none(self, dcnzoo: Program, measured: Measured, tmp_path: Path) -> None:
        code, _, err = dcnzoo("bench", "--model", DCONV, "--weights", "random", "--images", tmp_path)
        assert (code, measured.cases) == (1, [])
        assert err == f"error: no images in {tmp_path}\n"


@pytest.mark.usefixtures("measured")
class TestReport:
    def test_tables(self, dcnzoo: Program) -> None:
        code, out, err = dcnzoo("bench", "--model", DCONV, "--weights", "random", "--batch-size", "1,2")
        assert code == 0
        lines = out.splitlines()
        assert lines[0] == f"{DCONV} (random weights), cpu, fp32, batch 1: milliseconds per batch"
        assert lines[1].split() == ["stage", "mean", "p50", "p95", "share"]
        assert lines[4].split() == ["transfer", "3.0", "3.5", "4.0", "8.3%"]
        assert lines[2 + len(STAGES)].split() == ["total", "36.0", "40.0", "44.0", "100.0%"]
        row = next(line for line in lines if line.startswith(f"{DCONV} (random weights)  "))
        cells = ["cpu", "fp32", "1", "800x1344", "100", "27.8", "40.0", "44.0", "1.50", "-", "17.8"]
        assert row.split()[3:] == cells
        assert "V100: as published, that is, on another machine" in out
        assert f"operators: {STAMP['operators']['backend']}" in out
        assert f"CPU: {STAMP['cpu']['model']}" in out
        assert f"torch {STAMP['versions']['torch']}" in out
        assert len(err.splitlines()) == 2

    def test_quiet(self, dcnzoo: Program) -> None:
        assert dcnzoo("bench", "--model", DCONV, "--weights", "random", "--quiet").err == ""

    def test_json(self, dcnzoo: Program, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        arguments = ["--model", DCONV, "--weights", "random", "--repeats", 3, "--json", path]
        assert dcnzoo("bench", *arguments).out.startswith(DCONV)
        report = json.loads(path.read_text())
        assert report["stamp"] == STAMP
        assert report["settings"] == {
            "images": [],
            "picture_size": [480, 800],
            "threads": None,
            "warmup": 2,
            "repeats": 3,
            "short_side": None,
            "long_side": None,
        }
        (row,) = report["results"]
        assert row.pop("milliseconds_per_batch")["roi"] == {"mean": 7, "p50": 7.5, "p95": 8}
        assert row == {
            "model": DCONV,
            "weights": "random",
            "device": "cpu",
            "precision": "fp32",
            "batch_size": 1,
            "input_size": [800, 1344],
            "detections_per_image": 100.0,
            "images_per_second": 27.7778,
            "peak_memory_gib": 1.5,
            "peak_gpu_memory_gib": None,
            "published_v100_images_per_second": 17.8,
        }

    def test_csv_on_standard_output(self, dcnzoo: Program) -> None:
        _, out, _ = dcnzoo(
            "bench", "--arch", ARCH, "--weights", "a,b.pth", "--batch-size", "1,2", "--csv", "-"
        )
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["batch_size"] for row in rows] == ["1", "2"]
        assert rows[0]["weights"] == "a,b.pth"
        assert rows[0]["published_v100_images_per_second"] == ""
        assert (rows[0]["input_height"], rows[0]["input_width"]) == ("800", "1344")
        assert [rows[0][f"backbone_{name}_ms"] for name in ("mean", "p50", "p95")] == ["4", "4.5", "5"]
        assert rows[0]["total_p95_ms"] == "44"


class TestOutOfMemory:
    def test_smaller_batches(self, dcnzoo: Program, measured: Measured, tmp_path: Path) -> None:
        measured.too_large = 3
        path = tmp_path / "a.json"
        arguments = ["--model", DCONV, "--weights", "random", "--batch-size", 8, "--json", path]
        code, out, err = dcnzoo("bench", *arguments, "--quiet")
        report: dict[str, Any] = json.loads(path.read_text())
        assert code == 0
        assert [row["batch_size"] for row in report["results"]] == [2]
        assert err.splitlines() == report["notes"]
        assert report["notes"][0] == (
            f"{DCONV} (random weights), cpu, fp32, batch 8 does not fit into the memory:"
            " batch 4 instead (tried to allocate 9 TB)"
        )
        assert "batch 2: milliseconds" in out

    def test_nothing_fits(self, dcnzoo: Program, measured: Measured, tmp_path: Path) -> None:
        measured.too_large = 1
        path = tmp_path / "a.json"
        code, out, err = dcnzoo(
            "bench", "--model", DCONV, "--weights", "random", "--json", path, "--csv", "-"
        )
        assert (code, out) == (1, "")
        assert "batch 1 does not fit into the memory: not measured" in err
        assert json.loads(path.read_text())["results"] == []


class TestErrors:
    @pytest.mark.usefixtures("measured")
    def test_a_file_that_cannot_be_written(self, dcnzoo: Program) -> None:
        arguments = ["--model", DCONV, "--weights", "random", "--json", "/proc/a.json"]
        code, _, err = dcnzoo("bench", *arguments)
        assert code == 1
        assert err.endswith(
            "error: cannot write to /proc/a.json: No such file or directory; name another file\n"
        )

    def test_what_was_measured_before_is_told(
        self, dcnzoo: Program, measured: Measured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measure(case: Case, settings: Settings) -> Result:
            if measured.cases:
                raise CheckpointError("a.pth", "is damaged")
            return measured(case, settings)

        monkeypatch.setattr(benchmark, "measure_apart", measure)
        arguments = ["--model", DCONV, "--weights", "random", "--batch-size", "1,2", "--json", "-"]
        code, out, err = dcnzoo("bench", *arguments)
        assert code == 1
        assert [row["batch_size"] for row in json.loads(out)["results"]] == [1]
        assert "a.pth: is damaged; nothing was measured after that" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Name a --model"),
            (["--model", DCONV, "--arch", ARCH], "give --arch only without it"),
            (["--arch", ARCH], "--arch needs --weights"),
            (["--weights", "random"], "or give --weights."),
            (["--model", DCONV, "--url-base", "nowhere"], "--url-base"),
            (["--model", "mask*_coco", "--weights", "a.pth"], "is for one model, and --model names 5"),
            (["--model", DCONV, "--image-size", "480"], "'480' is no HEIGHTxWIDTH"),
            (["--model", DCONV, "--image-size", "0x480"], "'0x480' is no HEIGHTxWIDTH"),
            (["--model", DCONV, "--image-size", "00x480"], "'00x480' is no HEIGHTxWIDTH"),
            (["--model", DCONV, "--image-size", "4x4", "--images", "."], "--images have sizes of their own"),
            (["--model", DCONV, "--batch-size", "1,0"], "0 is not in the range"),
            (["--model", DCONV, "--batch-size", "1,x"], "'x' is not a valid integer"),
            (["--model", DCONV, "--precision", "int8"], "'int8' is not one of"),
            (["--model", DCONV, "--repeats", "0"], "0 is not in the range"),
            (["--model", DCONV, "--train", "--cuda-graphs"], "--cuda-graphs repeat predictions"),
            (["--model", DCONV, "--short-side", "9", "--long-side", "8"], "exceeds --long-side"),
            (["--model", DCONV, "--json", "-", "--csv", "-"], "Only one of --json and --csv"),
            (["--model", DCONV, "--json", "nowhere/a.json"], "There is no folder nowhere for a.json"),
            (["--model", DCONV, "--csv", "."], ". is a folder"),
        ],
    )
    def test_usage(self, dcnzoo: Program, measured: Measured, arguments: list[str], message: str) -> None:
        code, _, err = dcnzoo("bench", *arguments)
        assert (code, measured.cases) == (2, [])
        assert message in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "fastr"], "unknown model 'fastr'"),
            (["--arch", "fastr"], "unknown architecture 'fastr'"),
            (["--model", DCONV, "--device", "tpu"], "unknown device 'tpu'"),
            (["--model", DCONV, "--device", "cpu", "--precision", "fp32,tf32"], "tf32 needs a GPU"),
        ],
    )
    def test_found_before_measuring(
        self, dcnzoo: Program, measured: Measured, arguments: list[str], message: str
    ) -> None:
        code, _, err = dcnzoo("bench", "--weights", "random", *arguments)
        assert (code, measured.cases) == (1, [])
        assert err.startswith("error: ")
        assert message in err

    @pytest.mark.usefixtures("measured")
    def test_no_space_left(self, dcnzoo: Program) -> None:
        code, out, err = dcnzoo("bench", "--model", DCONV, "--weights", "random", "--json", "/dev/full")
        assert code == 1
        assert out.startswith(DCONV)
        assert "No space left" in err

    @pytest.mark.usefixtures("measured")
    def test_a_file_that_fails_takes_nothing_along(self, dcnzoo: Program, tmp_path: Path) -> None:
        arguments = ["--model", DCONV, "--weights", "random"]
        code, out, err = dcnzoo("bench", *arguments, "--json", "/dev/full", "--csv", "-")
        assert (code, "No space left" in err) == (1, True)
        assert [row["model"] for row in csv.DictReader(io.StringIO(out))] == [DCONV]
        path = tmp_path / "a.csv"
        assert dcnzoo("bench", *arguments, "--json", "/dev/full", "--csv", path).code == 1
        assert path.read_text() == out

    def test_files_that_cannot_be_made_are_found_before(self, dcnzoo: Program, measured: Measured) -> None:
        arguments = ["--model", DCONV, "--weights", "random", "--csv", "-", "--json", "/proc/a.json"]
        code, _, err = dcnzoo("bench", *arguments)
        assert (code, measured.cases) == (1, [])
        assert err.startswith("error: cannot write to /proc/a.json: ")

    def test_measuring_that_fails_leaves_files_alone(
        self, dcnzoo: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> Result:
            raise CheckpointError("a.pth", "is broken")

        monkeypatch.setattr(benchmark, "measure_apart", fail)
        (tmp_path / "old.csv").write_text("old")
        files = ["--json", tmp_path / "new.json", "--csv", tmp_path / "old.csv"]
        assert dcnzoo("bench", "--model", DCONV, "--weights", "random", *files).code == 1
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["old.csv"]
        assert (tmp_path / "old.csv").read_text() == "old"
