"""What a GPU needs beside the model, as far as a CPU can do it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor

from dcnzoo.build import build_model, pack_weights, prepare_for_inference
from dcnzoo.gpu import GpuDetector, GraphCache, GraphCapture, normalise, stack_images
from dcnzoo.image import PreparedImage, collate
from dcnzoo.manifest import Architecture, Preprocessing
from dcnzoo.models.fixed_shape import FixedInstances, Settings
from dcnzoo.models.rcnn import RCNN, Instances
from dcnzoo.ops import gpu

CPU = torch.device("cpu")
ARCHITECTURE = "mask_rcnn_r18w16_fpn32_fc64_dconv_c3-c5"


def picture(height: int, width: int, seed: int) -> PreparedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PreparedImage(pixels, (2 * height, 3 * width))


PICTURES = [picture(61, 95, 0), picture(90, 33, 1)]


@pytest.fixture(scope="module")
def model() -> RCNN:
    torch.manual_seed(0)
    return pack_weights(prepare_for_inference(build_model(Architecture.parse(ARCHITECTURE), 4)))


def test_images_are_normalised_as_on_the_cpu() -> None:
    preprocessing = Preprocessing()
    pixels, settings = stack_images(PICTURES, preprocessing.size_divisor, 4, 0.5, None, pinned=False)
    for canvas, image in zip(pixels, PICTURES, strict=True):
        height, width = image.pixels.shape[:2]
        canvas[height:] = 77  # padding may be anything
        canvas[:, width:] = 78
    mean, std = (torch.tensor(values) for values in (preprocessing.mean, preprocessing.std))
    found = normalise(pixels, Settings.unpack(settings, 2).limits, mean, std)
    wanted = collate(PICTURES, preprocessing).images
    assert found.equal(wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("labels", [None, np.array([0, 3])], ids=["all classes", "some"])
def test_finds_what_the_model_finds(model: RCNN, labels: np.ndarray | None) -> None:
    detector = GpuDetector(model, Preprocessing(), 4, torch.float32, CPU)
    pending = detector.begin(detector.stack(PICTURES, 0.1, labels), max_detections=20)
    batch = collate(PICTURES, Preprocessing())
    with torch.inference_mode():
        wanted = model(
            *(batch.images, batch.image_sizes, batch.original_sizes),
            score_threshold=0.1,
            max_detections=20,
            labels=None if labels is None else torch.from_numpy(labels),
        )
    for one, other in zip(pending.result(), wanted, strict=True):
        assert len(other.scores) > 0
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def detect(detector: GpuDetector) -> list[Instances]:
    return detector.begin(detector.stack(PICTURES, 0.1, None), max_detections=20).result()


def test_autocast_around_it_changes_nothing(model: RCNN) -> None:
    detector = GpuDetector(model, Preprocessing(), 4, torch.float32, CPU)
    wanted = detect(detector)
    with torch.autocast("cpu", torch.bfloat16):
        found = detect(detector)
    for one, other in zip(found, wanted, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_what_is_found_keeps_no_memory_of_the_batch(model: RCNN) -> None:
    """Masks are pasted at once, and need no copy."""
    for instances in detect(GpuDetector(model, Preprocessing(), 4, torch.float32, CPU)):
        assert len(instances.scores) > 0
        for tensor in instances[:3]:
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


class Graphs:
    """Graphs that note what is asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def named(self, name: str) -> Callable[[Tensor, Tensor], FixedInstances]:
        def compute(pixels: Tensor, settings: Tensor) -> FixedInstances:
            self.log.append(name)
            return FixedInstances(pixels, settings, pixels, pixels, None)

        return compute

    def capture(
        self, compute: Callable[[Tensor, Tensor], FixedInstances], pixels: Tensor, settings: Tensor
    ) -> Callable[[Tensor, Tensor], FixedInstances]:
        compute(pixels, settings)
        name = self.log.pop()
        self.log.append(f"capture {name}")
        return self.named(f"replay {name}")

    def run(self, cache: GraphCache, names: str) -> list[str]:
        self.log.clear()
        for name in names:
            cache.run(name, self.named(name), torch.zeros(1), torch.ones(1))
        return self.log


def test_a_shape_becomes_a_graph_when_it_comes_again() -> None:
    graphs = Graphs()
    cache = GraphCache(graphs.capture, most=2)
    assert graphs.run(cache, "abaa") == ["a", "b", "capture a", "replay a", "replay a"]


def test_the_rarest_graph_goes_for_what_comes_more_often() -> None:
    graphs = Graphs()
    cache = GraphCache(graphs.capture, most=2, seen_before=0)
    graphs.run(cache, "aabbb")
    assert graphs.run(cache, "cc") == ["c", "c"]
    assert graphs.run(cache, "c") == ["capture c", "replay c"]
    assert graphs.run(cache, "bca") == ["replay b", "replay c", "a"]


def test_more_shapes_in_turn_than_graphs_capture_nothing_again() -> None:
    graphs = Graphs()
    cache = GraphCache(graphs.capture, most=2)
    graphs.run(cache, "abcabc")
    assert graphs.run(cache, "abcabcabc") == ["replay a", "replay b", "c"] * 3


def fail_to_capture(graphs: Graphs, error: RuntimeError) -> GraphCache:
    def capture(*arguments: object) -> Callable[[Tensor, Tensor], FixedInstances]:
        graphs.log.append("capture")
        raise error

    return GraphCache(capture)


def test_what_cannot_be_captured_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs()
    cache = fail_to_capture(graphs, RuntimeError("operation not permitted when stream is capturing"))
    assert graphs.run(cache, "aaa") == ["a", "capture", "a", "a"]
    assert [record.message for record in caplog.records] == [
        "no CUDA graph of a, which runs without: operation not permitted when stream is capturing"
    ]


def test_memory_that_runs_out_in_a_capture_is_told() -> None:
    graphs = Graphs()
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(fail_to_capture(graphs, torch.OutOfMemoryError()), "aa")


class PretendedStream:
    """A stream that notes whom it waits for."""

    def __init__(self, cuda: PretendedCuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def wait_stream(self, other: PretendedStream) -> None:
        self._cuda.log.append(f"{self.name} waits for {other.name}")


class PretendedCuda:
    """What `torch.cuda` gives to a capture; notes how it is used."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._pools, self._streams = count(1), count(1)
        self.current = [PretendedStream(self, "current")]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "Stream": lambda device: PretendedStream(self, f"own {next(self._streams)} of {device}"),
            "current_stream": lambda _: self.current[-1],
            "graph_pool_handle": lambda: f"pool {next(self._pools)}",
            "CUDAGraph": lambda: self,
            "stream": self.stream,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def stream(self, stream: PretendedStream) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()

    @contextmanager
    def graph(
        self, graph: object, pool: str, stream: PretendedStream, capture_error_mode: str
    ) -> Iterator[None]:
        assert graph is self
        self.log.append(f"capture in {pool}, {capture_error_mode}")
        with self.stream(stream):
            yield

    def replay(self) -> None:
        self.log.append("replay")

    def compute(self, pixels: Tensor, settings: Tensor) -> FixedInstances:
        self.log.append(f"compute on {self.current[-1].name}")
        return FixedInstances(pixels, settings, pixels, pixels, None)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    pretended = PretendedCuda()
    pretended.install(monkeypatch)
    return pretended


GPU = torch.device("cuda:1")
ARGUMENTS = torch.zeros(1), torch.ones(1)


def test_all_captures_use_one_stream_of_the_device(cuda: PretendedCuda) -> None:
    capture = GraphCapture(GPU)
    for _ in range(2):
        cuda.log.clear()
        graph = capture(cuda.compute, *ARGUMENTS)
        assert cuda.log == [
            "own 1 of cuda:1 waits for current",
            "compute on own 1 of cuda:1",
            "current waits for own 1 of cuda:1",
            "capture in pool 1, thread_local",
            "compute on own 1 of cuda:1",
        ]
    assert graph(torch.full((1,), 7.0), ARGUMENTS[1]).boxes.tolist() == [7]
    assert cuda.log[-1] == "replay"


def test_the_pool_of_a_failed_capture_is_not_used_again(cuda: PretendedCuda) -> None:
    def compute(pixels: Tensor, settings: Tensor) -> FixedInstances:
        if cuda.log[-1].startswith("capture"):
            raise torch.OutOfMemoryError
        return cuda.compute(pixels, settings)

    capture = GraphCapture(GPU)
    with pytest.raises(torch.OutOfMemoryError):
        capture(compute, *ARGUMENTS)
    cuda.log.clear()
    capture(cuda.compute, *ARGUMENTS)
    assert "capture in pool 2, thread_local" in cuda.log


def test_graphs_after_memory_was_freed_have_a_pool_of_their_own(model: RCNN, cuda: PretendedCuda) -> None:
    """PyTorch takes no pool again whose graphs are all gone."""
    detector = GpuDetector(model, Preprocessing(), 4, torch.float32, CPU)
    detector._graphs = detector._new_graphs()
    for pool in ("pool 1", "pool 2"):
        cuda.log.clear()
        for _ in range(2):
            detector._graphs.run("a shape", cuda.compute, *ARGUMENTS)
        assert f"capture in {pool}, thread_local" in cuda.log
        detector.free_memory()


def test_functions_are_marked_as_constants_as_the_compiler_does() -> None:
    def ours() -> None: ...
    def theirs() -> None: ...

    gpu._constant_in_graphs(ours)
    torch.compiler.assume_constant_result(theirs)  # type: ignore[no-untyped-call]
    assert vars(ours) == vars(theirs)
