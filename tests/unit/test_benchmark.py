"""The benchmark: what is timed, what is counted, and what happens when memory runs out."""

from __future__ import annotations

import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dcnzoo import benchmark
from dcnzoo.benchmark import (
    MODEL_STAGES,
    STAGES,
    Case,
    Model,
    Result,
    Settings,
    Spread,
    StageClock,
    load_predictor,
    measure,
    run_cases,
)
from dcnzoo.errors import CheckpointError, ImageReadError
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import PeakMemory
from dcnzoo.manifest import load_manifest
from dcnzoo.predictor import Predictor
from dcnzoo.synthetic import random_picture
from tests.pictures import save
from tests.random_detector import ARCH, CLASSES, write_random_checkpoint

CASE = Case(Model(None, ARCH, None), "cpu", "fp32", 1)
SPREAD = Spread(1, 1, 1)
RESULT = Result(CASE, (32, 64), 100, dict.fromkeys(STAGES, SPREAD), SPREAD, 1.0, PeakMemory(1, None), {})


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = save(tmp_path_factory.mktemp("images") / "a.png", random_picture(60, 100))
    return Settings((str(path),), warmup=1, repeats=2, short_side=32, long_side=64)


@pytest.fixture(scope="module")
def predictor(settings: Settings) -> Predictor:
    return load_predictor(CASE, settings)


@pytest.fixture
def loaded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """What every case gets: loaded once."""
    monkeypatch.setattr(benchmark, "load_predictor", lambda *_: predictor)
    return predictor


def batch_of(count: int) -> Case:
    return replace(CASE, batch_size=count)


@pytest.mark.parametrize(
    ("seconds", "spread"),
    [([2.0], (2000, 2000, 2000)), ([number / 1000 for number in range(1, 102)], (51, 51, 96))],
)
def test_spread(seconds: list[float], spread: tuple[float, ...]) -> None:
    found = Spread.of(seconds)
    assert (found.mean, found.p50, found.p95) == pytest.approx(spread)


@pytest.fixture(scope="module")
def result(settings: Settings) -> Result:
    return measure(CASE, settings)


class TestMeasure:
    def test_stages_make_up_the_total(self, result: Result) -> None:
        assert tuple(result.stages) == STAGES
        assert all(spread.mean > 0 for spread in result.stages.values())
        sum_of_stages = sum(spread.mean for spread in result.stages.values())
        assert sum_of_stages == pytest.approx(result.total.mean, rel=0.05)

    def test_what_it_says(self, result: Result) -> None:
        assert result.case == CASE
        assert result.input_size == (32, 64)
        assert result.detections == 100
        assert result.images_per_second == pytest.approx(1000 / result.total.mean)
        assert 0.05 < result.memory.host_gib < 50
        assert result.memory.gpu_gib is None
        assert result.stamp["cpu"]["threads"] == torch.get_num_threads()

    @pytest.mark.usefixtures("loaded")
    def test_images_are_taken_in_turn(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []

        def read(location: str) -> np.ndarray:
            taken.append(location)
            return random_picture(20, 40 if location == "wide" else 20)

        monkeypatch.setattr(benchmark, "read_image", read)
        settings = replace(settings, images=("a", "b", "wide"), warmup=1, repeats=2)
        result = measure(batch_of(2), settings)
        assert taken == ["a", "b", "a", "b", "wide", "a"]
        assert result.input_size == (32, 64)
        assert result.images_per_second == pytest.approx(2000 / result.total.mean)

    def test_threads(self, settings: Settings) -> None:
        settings = replace(settings, threads=1, warmup=0, repeats=1)
        result = run_apart(partial(measure, CASE, settings))
        assert result.stamp["cpu"]["threads"] == 1

    @pytest.mark.usefixtures("loaded")
    def test_unreadable_image(self, settings: Settings, tmp_path: Path) -> None:
        with pytest.raises(ImageReadError, match="No such file"):
            measure(CASE, replace(settings, images=(str(tmp_path / "a.jpg"),)))

    @pytest.mark.cuda
    def test_gpu(self, settings: Settings) -> None:
        result = run_apart(partial(measure, replace(CASE, device="cuda"), settings))
        assert all(spread.mean > 0 for spread in result.stages.values())
        sum_of_stages = sum(spread.mean for spread in result.stages.values())
        assert sum_of_stages == pytest.approx(result.total.mean, rel=0.05)
        assert 0.1 < (result.memory.gpu_gib or 0) < 10


class TestModel:
    def test_own_weights(self, settings: Settings, tmp_path: Path) -> None:
        model = Model(None, ARCH, write_random_checkpoint(tmp_path / "own.pth"))
        assert load_predictor(replace(CASE, model=model), settings).class_names == CLASSES

    def test_weights_that_do_not_fit(self, settings: Settings, tmp_path: Path) -> None:
        model = Model(None, "mask_rcnn_r50_fpn", write_random_checkpoint(tmp_path / "own.pth"))
        with pytest.raises(CheckpointError, match="does not fit"):
            load_predictor(replace(CASE, model=model), settings)

    def test_record_with_random_weights(self, settings: Settings, tmp_path: Path) -> None:
        manifest = tmp_path / "own.yaml"
        manifest.write_text(
            "checkpoints: [{name: own, urls: [a.pth], classes: [x, y],"
            " architecture: {detector: faster_rcnn, backbone: resnet50}}]"
        )
        case = replace(CASE, model=Model("own", None, None))
        assert load_predictor(case, replace(settings, manifest=manifest)).class_names == ("x", "y")

    def test_published_layout(self, settings: Settings) -> None:
        record = load_manifest("").match("faster*dconv*")[0]
        case = replace(CASE, model=Model(record.name, None, None))
        predictor = load_predictor(case, settings)
        assert predictor.class_names == record.classes.names
        assert (predictor.preprocessing.short_side, predictor.preprocessing.long_side) == (32, 64)

    @pytest.mark.parametrize(
        ("weights", "title"), [(None, "a (random weights)"), (Path("a.pth"), "a")], ids=str
    )
    def test_title(self, weights: Path | None, title: str) -> None:
        assert str(Case(Model("a", None, weights), "cpu", "bf16", 3)) == f"{title}, cpu, bf16, batch 3"


class TestStageClock:
    def test_times_every_stage_once(self, predictor: Predictor) -> None:
        with StageClock(predictor.model, predictor.device) as clock:
            predictor(random_picture(60, 100))
            predictor(random_picture(20, 20))
            first, second = clock.take(), clock.take()
        assert set(first) == set(MODEL_STAGES)
        assert all(seconds > 0 for seconds in first.values())
        assert second == {}
        assert clock.input_size == (32, 64)

    def test_leaves_no_hook(self, predictor: Predictor) -> None:
        with StageClock(predictor.model, predictor.device) as clock:
            pass
        predictor(random_picture(20, 20))
        assert clock.take() == {}

    def test_stages_do_not_overlap(self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a clock that counts the times it is read, each stage takes one tick."""
        ticks = iter(range(100))
        with StageClock(predictor.model, predictor.device) as clock:
            monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(ticks)))
            predictor.model(torch.zeros(1, 3, 32, 32), [(32, 32)], [(32, 32)])
        assert dict(clock.take()) == dict.fromkeys(MODEL_STAGES, 1.0)
        assert next(ticks) == 2 * len(MODEL_STAGES)


class TestOutOfMemory:
    """Batches of more than two images do not fit."""

    @staticmethod
    def measure(case: Case) -> Result:
        if case.batch_size > 2:
            raise MemoryError("too large")
        return replace(RESULT, case=case)

    @pytest.mark.parametrize(
        ("asked", "measured", "notes"),
        [
            ([1, 2], [1, 2], []),
            ([8], [2], ["batch 8 does not fit into the memory: batch 4 instead", "batch 2 instead"]),
            ([5], [2], ["batch 2 instead"]),
            ([1, 2, 4], [1, 2], ["batch 2 instead"]),
            ([4, 8], [2], ["batch 2 instead", "batch 8 does not fit into the memory: batch 4 instead"]),
        ],
    )
    def test_halves_the_batch(self, asked: list[int], measured: list[int], notes: list[str]) -> None:
        said: list[str] = []
        results = list(run_cases(map(batch_of, asked), self.measure, said.append))
        assert [result.case.batch_size for result in results] == measured
        assert len(said) == len(notes)
        assert all(note in line for note, line in zip(notes, said, strict=True))

    def test_gives_up_at_one(self) -> None:
        def measure(case: Case) -> Result:
            raise MemoryError("too large")

        said: list[str] = []
        assert list(run_cases([batch_of(2)], measure, said.append)) == []
        assert said[-1] == (
            "faster_rcnn_r50_fpn (random weights), cpu, fp32, batch 1 does not fit into the memory:"
            " not measured (too large)"
        )

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you…"
            ),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            RuntimeError("could not create a primitive"),
            MemoryError("std::bad_alloc"),
        ],
        ids=lambda error: str(error)[:20],
    )
    def test_is_recognised(
        self, loaded: Predictor, settings: Settings, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.let_fail(loaded, error, monkeypatch)
        with pytest.raises(MemoryError):
            measure(batch_of(2), settings)

    def test_others_are_not_mistaken_for_it(
        self, loaded: Predictor, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.let_fail(loaded, RuntimeError("shapes do not match"), monkeypatch)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            measure(batch_of(2), settings)

    @staticmethod
    def let_fail(predictor: Predictor, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def forward(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(predictor.model, "forward", forward)

    def test_really(self, settings: Settings) -> None:
        """With 130 MB to spare, the maps of 32 pictures of 128x256 do not fit, and those of fewer do."""
        settings = replace(settings, warmup=0, repeats=1, short_side=128, long_side=256)
        said: list[str] = []
        results = run_cases(
            [batch_of(32)],
            lambda case: run_apart(partial(measure_with_little_memory, case, settings, 130 * 2**20)),
            said.append,
        )
        (result,) = results
        assert said[0].startswith(f"{batch_of(32)} does not fit into the memory: batch 16 instead (")
        assert 1 <= result.case.batch_size == 32 >> len(said)


def measure_with_little_memory(case: Case, settings: Settings, spare: int) -> Result:
    """Measures with a limit of the address space, so many bytes above what is used before the first batch."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**46, most))  # with any limit, operators reserve no addresses
    load = benchmark.load_predictor

    def load_and_limit(case: Case, settings: Settings) -> Predictor:
        predictor = load(case, settings)
        predictor(random_picture(20, 20))  # takes what only the first run takes: threads, code
        limit = memory_of_this_process() + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return predictor

    benchmark.load_predictor = load_and_limit
    return measure(case, settings)


def memory_of_this_process() -> int:
    """Bytes of the address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
