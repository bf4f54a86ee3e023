"""A training step's gradients against finite differences, and what a few steps achieve."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture
from dcnzoo.models.rcnn import RCNN
from dcnzoo.ops import backend
from dcnzoo.training import losses
from dcnzoo.training.initialise import initialise_weights, prepare_for_training
from dcnzoo.training.losses import detection_losses
from dcnzoo.training.options import Norm
from dcnzoo.training.targets import Target

SMALL = "r18w16_fpn16_fc16"
PARTS = ("conv_offset", "backbone", "neck", "rpn_head", "offset_fc", "mask_fc", "bbox_head", "mask_head")
KINDS = [
    ("faster_rcnn", "_dconv_c3-c5", "trainable"),
    ("mask_rcnn", "_mdconv_c3-c5_group2_mdpool", "frozen"),
    ("cascade_rcnn", "_mdconv_c3-c5_dpool", "trainable"),
    ("cascade_mask_rcnn", "_dconv_c3-c5", "frozen"),
]

kinds = pytest.mark.parametrize(("detector", "suffix", "norm"), KINDS, ids=[kind[0] for kind in KINDS])


def small_model(detector: str, suffix: str, norm: Norm) -> RCNN:
    """A model somewhere in training: nothing is exactly zero, where a derivative could have a jump."""
    model = build_model(Architecture.parse(f"{detector}_{SMALL}{suffix}"), 3)
    generator = torch.Generator().manual_seed(0)
    initialise_weights(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    prepare_for_training(model, norm=norm, frozen_stages=-1)
    return model


def scene() -> tuple[Tensor, list[tuple[int, int]], list[Target]]:
    """Two images of 64×64 with three objects."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 10:40, 8:40], masks[1, 30:60, 36:50], masks[2, 12:40, 5:45] = True, True, True
    objects = torch.tensor([[8.0, 10, 40, 40], [36, 30, 60, 60], [5, 5, 45, 40]])
    none = torch.zeros(0, 4)
    first = Target(objects[:2], torch.tensor([0, 2]), masks[:2], none)
    return images, [(64, 64), (60, 50)], [first, Target(objects[2:], torch.tensor([1]), masks[2:], none)]


def losses_of(model: RCNN, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses of the scene from few and always the same samples, as far as the same boxes are proposed."""
    images, sizes, targets = scene()
    generator = torch.Generator().manual_seed(2)
    return detection_losses(model, images.to(dtype), sizes, targets, generator, roi_samples=64)


class FixedSamples:
    """Keeps the boxes that samples are drawn from as they were first: drawing has no derivative."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[list[Tensor]] = []
        self.position = 0
        for name in ("_propose", "_refine"):
            monkeypatch.setattr(losses, name, self._replaying(getattr(losses, name)))

    def _replaying(self, function: object) -> object:
        def replay(*arguments: object) -> list[Tensor]:
            if self.position == len(self.recorded):
                self.recorded.append(function(*arguments))
            self.position += 1
            return self.recorded[self.position - 1]

        return replay

    def loss(self, model: RCNN, dtype: torch.dtype = torch.float64) -> Tensor:
        self.position = 0
        return sum(losses_of(model, dtype).values())


@kinds
def test_gradients_equal_finite_differences(
    detector: str, suffix: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 with torchvision's operators; and in float32 with the compiled ones they are the same."""
    samples, model = FixedSamples(monkeypatch), small_model(detector, suffix, norm)
    samples.loss(model, torch.float32).backward()
    compiled = {name: parameter.grad for name, parameter in model.named_parameters()}
    monkeypatch.setattr(backend, "_chosen", ("torchvision", "chosen by the test"))
    model.double().zero_grad()
    samples.loss(model).backward()
    generator = torch.Generator().manual_seed(3)
    for part in PARTS:
        chosen = {name: each for name, each in model.named_parameters() if part in name.split(".")}
        for name, each in chosen.items():
            error, scale = (compiled[name] - each.grad).abs().max(), each.grad.abs().max()
            assert error <= 1e-3 * scale + 1e-6, name
        direction = [
            torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in chosen.values()
        ]
        slope = sum(
            (each.grad * part).sum().item() for each, part in zip(chosen.values(), direction, strict=True)
        )
        measured = slope_along(list(chosen.values()), direction, lambda: samples.loss(model).item())
        assert slope == pytest.approx(measured, rel=1e-4, abs=1e-6), part


@torch.no_grad()
def slope_along(parameters: list[Tensor], direction: list[Tensor], loss: Callable[[], float]) -> float:
    """Central difference; its step is so small that next to no ReLU changes its mind on the way."""
    step, found = 1e-8, []
    for factor in (step, -2 * step, step):
        for parameter, part in zip(parameters, direction, strict=True):
            parameter += factor * part
        found.append(loss())
    return (found[0] - found[1]) / (2 * step)


@pytest.mark.parametrize(
    ("detector", "suffix"),
    [
        ("faster_rcnn", "_dconv_c3-c5"),
        ("faster_rcnn", "_mdconv_c3-c5"),
        ("faster_rcnn", "_dpool"),
        ("mask_rcnn", "_mdpool"),
        ("mask_rcnn", "_dconv_c3-c5"),
        ("cascade_rcnn", "_mdconv_c3-c5"),
        ("cascade_mask_rcnn", "_mdconv_c3-c5_mdpool"),
    ],
)
def test_a_few_steps_reduce_the_loss(detector: str, suffix: str) -> None:
    model = small_model(detector, suffix, "frozen")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(5):
        found = losses_of(model, torch.float32)
        totals.append(sum(found.values()).item())
        optimiser.zero_grad()
        sum(found.values()).backward()
        optimiser.step()
    assert totals[-1] < 0.9 * totals[0]
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])]
    # in so small an image regions lie in the finest level, and so do the anchors that a cascade learns from
    coarse = r"roi_layers\.[123]\." + (r"|fpn_convs\.[123]\." if detector.startswith("cascade") else "")
    assert [name for name in still if not re.search(coarse, name)] == []
