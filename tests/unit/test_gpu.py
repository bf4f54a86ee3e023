"""What a GPU needs beside the model, as far as a CPU can do it too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dcnzoo.build import build_model, pack_weights, prepare_for_inference
from dcnzoo.gpu import GpuDetector, GraphCache, normalise, stack_images
from dcnzoo.image import PreparedImage, collate
from dcnzoo.manifest import Architecture, Preprocessing
from dcnzoo.models.fixed_shape import FixedInstances, Settings
from dcnzoo.models.rcnn import RCNN
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


def test_the_graph_that_was_used_least_recently_goes() -> None:
    graphs = Graphs()
    cache = GraphCache(graphs.capture, most=2, seen_before=0)
    graphs.run(cache, "aba")
    assert graphs.run(cache, "cab") == ["capture c", "replay c", "replay a", "capture b", "replay b"]


def test_graphs_can_be_let_go() -> None:
    graphs = Graphs()
    cache = GraphCache(graphs.capture)
    graphs.run(cache, "aa")
    cache.clear()
    assert graphs.run(cache, "a") == ["capture a", "replay a"]


def test_functions_are_marked_as_constants_as_the_compiler_does() -> None:
    def ours() -> None: ...
    def theirs() -> None: ...

    gpu._constant_in_graphs(ours)
    torch.compiler.assume_constant_result(theirs)  # type: ignore[no-untyped-call]
    assert vars(ours) == vars(theirs)
