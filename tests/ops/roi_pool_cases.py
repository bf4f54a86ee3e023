"""Shapes for RoI pooling, and their comparison with the readable reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import reference
from dcnzoo.ops.types import Pair
from tests.ops.deform_conv2d_cases import TOLERANCE, deviation


@dataclass(frozen=True)
class Case:
    images: int = 1
    channels: int = 16
    size: Pair = (9, 11)
    rois: int = 6
    output_size: Pair = (3, 2)
    scale: float = 1.0
    deformed: bool = False
    spread: float = 1.0
    """Standard deviation of the offsets, in tenths of the RoI."""
    turned: bool = False
    """RoIs may end before they begin."""

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random arguments, channels-last; RoIs in and out of the map."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        map_size = torch.tensor(self.size[::-1], dtype=torch.float64)
        corners = (0.5 + 0.4 * random(self.rois, 2, 2)) * map_size / self.scale
        if not self.turned:
            corners = torch.stack([corners.amin(1), corners.amax(1)], 1)
        image = torch.randint(self.images, (self.rois, 1), generator=generator)
        maps = random(self.images, self.channels, *self.size).to(dtype)
        positions = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = {
            "input": maps.contiguous(memory_format=torch.channels_last),
            "rois": torch.cat([image, corners.flatten(1)], 1).to(positions),
        }
        if self.deformed:
            tensors["offset"] = (self.spread * random(self.rois, 2, *self.output_size)).to(dtype)
        return tensors

    def options(self) -> dict[str, object]:
        """Everything that is not a tensor."""
        return {"output_size": self.output_size, "spatial_scale": self.scale, "gamma": 0.1}


RIGID = {
    "one_pixel": Case(size=(1, 1), channels=3),
    "one_row": Case(size=(1, 40), channels=5, output_size=(2, 7)),
    "one_column": Case(size=(17, 1), channels=9, output_size=(7, 1)),
    "odd_everything": Case(3, 7, (11, 5), 9, (3, 5), 0.25),
    "single_channel": Case(channels=1, output_size=(1, 1)),
    "channels_in_blocks_and_rest": Case(2, 299, (7, 8), 5),
    "many_samples": Case(2, 20, (50, 60), 4, scale=1 / 16),
    "pyramid_level": Case(1, 256, (13, 21), 12, (7, 7), 1 / 32),
    "turned": Case(turned=True),
    "no_rois": Case(2, rois=0),
}
CASES = RIGID | {f"deformed_{name}": replace(case, deformed=True) for name, case in RIGID.items()}
CASES["far_offsets"] = Case(deformed=True, spread=1e4)


def reference_output(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """What the readable definition makes of float64 tensors."""
    return reference.deform_roi_pool(**tensors, **case.options())  # type: ignore[arg-type]


def error(case: Case, dtype: torch.dtype) -> float:
    """Largest deviation from the reference in float64, relative to the largest output."""
    tensors = case.tensors(dtype)
    found = ops.deform_roi_pool(**tensors, **case.options())  # type: ignore[arg-type]
    expected = reference_output(case, {name: value.double() for name, value in tensors.items()})
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    return deviation(found, expected) if found.numel() else 0.0


def gradient_errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """The same for the gradients of the map and the offsets."""
    tensors = case.tensors(dtype)
    names = [name for name in tensors if name != "rois"]
    exact = {name: value.detach().double() for name, value in tensors.items()}
    for name in names:
        tensors[name].requires_grad_(), exact[name].requires_grad_()
    output = ops.deform_roi_pool(**tensors, **case.options())  # type: ignore[arg-type]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if not case.rois:  # the reference has computed nothing
        return {}
    output.backward(grad)
    reference_output(case, exact).backward(grad.double())
    errors = {}
    for name in names:
        found, expected = tensors[name].grad, exact[name].grad
        assert found is not None and expected is not None  # noqa: PT018
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        errors[name] = deviation(found, expected)
    return errors


def check() -> None:
    """Compares every case."""
    for name, case in CASES.items():
        if case.turned and ops.active_backend()[0] == "torchvision":  # it takes none
            continue
        for dtype in TOLERANCE:
            found = {"output": error(case, dtype)}
            if dtype in (torch.float32, torch.float64):
                found |= gradient_errors(case, dtype)
            if max(found.values()) > TOLERANCE[dtype]:
                raise SystemExit(f"{name} in {dtype}: errors {found} > {TOLERANCE[dtype]}")
