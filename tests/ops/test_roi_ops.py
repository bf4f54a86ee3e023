"""RoI operators against the readable definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcnzoo import ops
from dcnzoo.ops import reference
from dcnzoo.ops.backend import half_factor
from tests.ops.deform_conv2d_cases import TOLERANCE, deviation
from tests.ops.roi_pool_cases import CASES, Case, error, gradient_errors
from tests.ops.test_deform_conv2d import SHORT

pytestmark = pytest.mark.usefixtures("backend_in_use")
NATIVE_ONLY = pytest.mark.parametrize("backend_in_use", ["native"], indirect=True)


def random_rois(num_rois: int, num_images: int, height: int, width: int) -> torch.Tensor:
    corners = torch.rand(num_rois, 2, 2) * torch.tensor([width, height]) * 1.2 - 0.1 * min(height, width)
    low, high = corners.amin(1), corners.amax(1)
    image = torch.randint(num_images, (num_rois, 1)).float()
    return torch.cat([image, low, high], dim=1)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5)])
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize("deformed", [False, True])
def test_roi_pooling_equals_the_definition(
    deformed: bool, memory_format: torch.memory_format, output_size: tuple[int, int], scale: float
) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 6, 19, 23).contiguous(memory_format=memory_format)
    rois = random_rois(30, 2, int(19 / scale), int(23 / scale))
    offset = torch.randn(30, 2, *output_size) if deformed else None
    options = {"output_size": output_size, "spatial_scale": scale}
    found = ops.deform_roi_pool(features, rois, offset, **options)
    expected = reference.deform_roi_pool(
        features.double(), rois.double(), None if offset is None else offset.double(), **options
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [7, 14, 28, 70])
def test_bins_of_whole_pixels_take_whole_numbers_of_samples(side: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 80, 80)
    rois = torch.tensor([[0.0, 3, 2, 3 + side, 2 + side], [0, 5.3, 4.7, 5.3 + side, 4.7 + side]])
    offset = torch.randn(2, 2, 7, 7)
    found = ops.deform_roi_pool(features, rois, offset, output_size=(7, 7))
    expected = reference.deform_roi_pool(features, rois, offset, output_size=(7, 7))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("deformed", [False, True])
def test_no_rois(deformed: bool) -> None:
    offset = torch.zeros(0, 2, 7, 7) if deformed else None
    pooled = ops.deform_roi_pool(torch.ones(1, 4, 5, 5), torch.zeros(0, 5), offset, output_size=(7, 7))
    assert pooled.shape == (0, 4, 7, 7)


def test_offset_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"offset must be \(1, 2, 7, 7\), got \(1, 98\)"):
        ops.deform_roi_pool(torch.ones(1, 4, 5, 5), torch.zeros(1, 5), torch.zeros(1, 98), output_size=(7, 7))


@pytest.mark.parametrize("channels", [1, 7, 64, 83])
def test_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    features, rois, offset = (
        torch.randn(1, channels, 9, 11),
        random_rois(5, 1, 9, 11),
        torch.randn(5, 2, 2, 3),
    )
    found = ops.deform_roi_pool(features, rois, offset, output_size=(2, 3))
    expected = reference.deform_roi_pool(features, rois, offset, output_size=(2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_offsets_far_outside_give_zero(backend_in_use: str) -> None:
    features, rois = torch.ones(1, 8, 9, 11), torch.tensor([[0.0, 1, 1, 8, 8]])
    values = [1e30, -1e30] + [float("nan")] * (backend_in_use == "native")
    for value in values:
        offset = torch.full((1, 2, 1, 1), value)
        assert ops.deform_roi_pool(features, rois, offset, output_size=(1, 1)).abs().max() == 0


@NATIVE_ONLY
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    errors = gradient_errors(CASES[name], dtype) | {"output": error(CASES[name], dtype)}
    assert max(errors.values()) <= TOLERANCE[dtype], errors


TINY = {
    "odd": Case(2, 3, (4, 5), 3, (2, 3), 0.5),
    "one_row": Case(1, 2, (1, 6), 2),
    "beyond_the_border": Case(1, 2, (3, 4), 2, deformed=True, spread=8.0),
    "deformed": Case(2, 2, (5, 4), 3, (2, 2), 0.5, deformed=True),
}
"""Small enough for numerical derivatives, which the borders of pixels have not: none lies near one."""


@pytest.mark.parametrize("name", TINY)
def test_gradcheck(name: str, backend_in_use: str) -> None:
    tensors = TINY[name].tensors(torch.float64)
    rois = tensors.pop("rois")

    def compute(*values: Tensor) -> Tensor:
        named = dict(zip(tensors, values, strict=True))
        return ops.deform_roi_pool(**named, rois=rois, **TINY[name].options())

    # torchvision adds up the gradient of its map in whatever order
    tolerance = 1e-12 if backend_in_use == "torchvision" else 0.0
    arguments = tuple(value.requires_grad_() for value in tensors.values())
    assert torch.autograd.gradcheck(compute, arguments, nondet_tol=tolerance)


SMALL = Case(2, 8, (9, 11), 5, deformed=True)


def in_every_layout(values: Tensor) -> list[Tensor]:
    return [
        values,
        values.contiguous(memory_format=torch.contiguous_format),
        torch.stack([values] * 2, dim=-1)[..., 1],
        values.transpose(-1, -2).contiguous().transpose(-1, -2),
    ]


@pytest.mark.parametrize("layout", range(4))
def test_tensors_may_lie_anyhow(layout: int) -> None:
    tensors, options = SMALL.tensors(torch.float32), SMALL.options()
    expected = ops.deform_roi_pool(**tensors, **options)
    views = {
        name: in_every_layout(value)[layout].requires_grad_(name != "rois") for name, value in tensors.items()
    }
    found = ops.deform_roi_pool(**views, **options)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    plain = {name: value.requires_grad_(name != "rois") for name, value in tensors.items()}
    ops.deform_roi_pool(**plain, **options).square().sum().backward()
    for name in ("input", "offset"):
        torch.testing.assert_close(views[name].grad, plain[name].grad)


@SHORT
def test_positions_are_exact_in_short_floats(dtype: torch.dtype) -> None:
    maps = torch.linspace(0, 1, 512).expand(1, 1, 3, 512).to(dtype)
    rois = torch.tensor([[0, 300.6, 0, 301.6, 1]])  # 300.6 is no short float
    found = ops.roi_align(maps, rois, output_size=(1, 1), spatial_scale=1.0)
    expected = ops.roi_align(maps.float(), rois, output_size=(1, 1), spatial_scale=1.0)
    assert found.item() == expected.to(dtype).item()


@SHORT
@pytest.mark.filterwarnings("ignore:.*autocast.*")
def test_autocast_stays_in_the_lower_precision(dtype: torch.dtype) -> None:
    tensors, options = SMALL.tensors(torch.float32), SMALL.options()
    levels = torch.zeros(SMALL.rois, dtype=torch.int64)
    pyramid = {"output_size": (3, 2), "spatial_scales": [1.0]}
    low = tensors["input"].to(dtype)
    expected = [
        ops.deform_roi_pool(low, tensors["rois"], tensors["offset"], **options),
        ops.roi_align(low, tensors["rois"], output_size=(3, 2), spatial_scale=1.0),
        ops.roi_align_pyramid([low], tensors["rois"], levels, **pyramid),
    ]
    with torch.autocast("cpu", dtype):
        found = [
            ops.deform_roi_pool(**tensors, **options),
            ops.roi_align(tensors["input"], tensors["rois"], output_size=(3, 2), spatial_scale=1.0),
            ops.roi_align_pyramid([tensors["input"]], tensors["rois"], levels, **pyramid),
        ]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)


@NATIVE_ONLY
@SHORT
def test_the_operators_have_an_autocast_rule(dtype: torch.dtype) -> None:
    x, rois, offset = SMALL.tensors(torch.float32).values()
    levels = torch.zeros(SMALL.rois, dtype=torch.int64)
    with torch.autocast("cpu", dtype):
        assert torch.ops.dcnzoo.roi_pool(x, rois, offset, [3, 2], 1.0, 0.1).dtype == dtype
        assert torch.ops.dcnzoo.roi_pool(x.double(), rois, offset, [3, 2], 1.0, 0.1).dtype == torch.float64
        assert torch.ops.dcnzoo.roi_align_pyramid([x], rois, levels, [1.0], [3, 2]).dtype == dtype


@pytest.mark.filterwarnings("ignore:.*autocast.*")
def test_autocast_trains_float32_tensors() -> None:
    grads = []
    for enabled in (False, True):
        tensors = {name: v.requires_grad_(name != "rois") for name, v in SMALL.tensors(torch.float32).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = ops.deform_roi_pool(**tensors, **SMALL.options())
        output.float().square().sum().backward()
        grads.append((tensors["input"].grad, tensors["offset"].grad))
    for exact, found in zip(*grads, strict=True):
        assert found.dtype == torch.float32
        assert deviation(found, exact) <= 0.03


class Layer(nn.Module):
    def forward(self, x: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        rigid = ops.roi_align(2 * x, rois, output_size=SMALL.output_size, spatial_scale=1.0)
        return ops.deform_roi_pool(2 * x, rois, offset, **SMALL.options()) + rigid


@NATIVE_ONLY
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks_in_training_too(dynamic: bool) -> None:
    compiled = torch.compile(Layer(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for module in (Layer(), compiled):
        x, rois, offset = SMALL.tensors(torch.float32).values()
        output = module(x.requires_grad_(), rois, offset.requires_grad_())
        output.square().sum().backward()
        results.append([output.detach(), module(x.detach(), rois, offset.detach()), x.grad, offset.grad])
    torch.testing.assert_close(results[1], results[0])


@NATIVE_ONLY
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports() -> None:
    arguments = tuple(SMALL.tensors(torch.float32).values())
    rois = torch.export.Dim("rois", min=2)
    exported = torch.export.export(Layer(), arguments, dynamic_shapes=(None, {0: rois}, {0: rois}))
    fewer = arguments[0], arguments[1][:3], arguments[2][:3]
    torch.testing.assert_close(exported.module()(*fewer), Layer()(*fewer))


@NATIVE_ONLY
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("deformed", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_the_operators_obey_the_rules_of_pytorch(trains: bool, deformed: bool, dtype: torch.dtype) -> None:
    x, rois, offset = SMALL.tensors(dtype).values()
    tensors = x.requires_grad_(trains), rois, offset.requires_grad_(trains) if deformed else None
    torch.library.opcheck(torch.ops.dcnzoo.roi_pool.default, (*tensors, [3, 2], 1.0, 0.1))
    if trains:
        return
    grad = torch.randn(5, 8, 3, 2).to(dtype)
    torch.library.opcheck(torch.ops.dcnzoo.roi_pool_grads.default, (grad, *tensors, [3, 2], 1.0, 0.1))
    levels = torch.tensor([0, 1, 1, 0, 1])
    arguments = [x, x[:, :, 1:, 2:]], rois, levels, [1.0, 0.5], [3, 2]
    torch.library.opcheck(torch.ops.dcnzoo.roi_align_pyramid.default, arguments)


@NATIVE_ONLY
@pytest.mark.skipif(half_factor() is None, reason="this processor has no fast 16-bit factors")
def test_what_is_pooled_is_rounded_to_16_bits() -> None:
    x, rois, _ = SMALL.tensors(torch.float32).values()
    arguments = [x, x[:, :, 1:, 2:]], rois, torch.tensor([0, 1, 1, 0, 1]), [1.0, 0.5], [3, 2]
    operator = torch.ops.dcnzoo.roi_align_pyramid
    torch.library.opcheck(operator.default, (*arguments, True))
    found = operator(*arguments, True)
    assert torch.equal(found, operator(*arguments).to(half_factor()))
    with pytest.raises(RuntimeError, match="only what is pooled in float32"):
        operator([x.double(), x.double()], *arguments[1:], True)


@NATIVE_ONLY
def test_second_derivatives_are_refused() -> None:
    x, rois, offset = SMALL.tensors(torch.float32).values()
    output = ops.deform_roi_pool(x.requires_grad_(), rois, offset.requires_grad_(), **SMALL.options())
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="deform_roi_pool has no second derivatives"):
        grad.sum().backward()


@NATIVE_ONLY
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["deformed_odd_everything", "deformed_channels_in_blocks_and_rest"])
def test_any_number_of_threads_computes_the_same_gradients_every_time(name: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        errors = [gradient_errors(CASES[name], torch.float32) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert max(errors[0].values()) <= TOLERANCE[torch.float32]
    assert errors[0] == errors[1]


def pyramid() -> tuple[list[Tensor], Tensor, Tensor, dict[str, object]]:
    """Maps, RoIs, their levels, and the options of `roi_align_pyramid`."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 6, 24 // 2**level, 32 // 2**level, generator=generator) for level in range(3)]
    rois = Case(2, size=(24, 32), rois=9).tensors(torch.float32)["rois"]
    options = {"output_size": (3, 3), "spatial_scales": [1.0, 0.5, 0.25]}
    return maps, rois, torch.tensor([0, 2, 0, 0, 2, 2, 0, 2, 0]), options


def test_the_pyramid_has_gradients() -> None:
    maps, rois, levels, options = pyramid()
    expected = ops.roi_align_pyramid(maps, rois, levels, **options)
    leaves = [value.clone().requires_grad_() for value in maps]
    found = ops.roi_align_pyramid(leaves, rois, levels, **options)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    assert leaves[1].grad is None  # nothing was pooled from it
    for level, scale in ((0, 1.0), (2, 0.25)):
        exact = maps[level].double().requires_grad_()
        chosen = levels == level
        pooled = reference.deform_roi_pool(
            exact, rois[chosen].double(), output_size=(3, 3), spatial_scale=scale
        )
        (pooled * weight[chosen]).sum().backward()
        assert deviation(leaves[level].grad, exact.grad) <= 1e-4


@NATIVE_ONLY
@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ((5, 0, 0, 1, 1), "image index"),
        ((0, 0, 0, 1e30, 1), "too large"),
        ((0, 0, 0, float("nan"), 1), "number"),
    ],
)
def test_the_compiled_operator_refuses_impossible_rois(roi: tuple[float, ...], message: str) -> None:
    rois = torch.tensor([roi], dtype=torch.float32)
    with pytest.raises(RuntimeError, match=message):
        ops.roi_align(torch.ones(1, 8, 9, 11), rois, output_size=(2, 2), spatial_scale=1.0)


@pytest.mark.parametrize("backend_in_use", ["torchvision"], indirect=True)
@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ((1, 0, 0, 1, 1), "must name images, 0 to 0"),
        ((0, 0, 0, 1e30, 1), "at most 32768 pixels"),
        ((0, 0, float("-inf"), 1, 1), "must be numbers"),
        ((0, 0, 0, 1, float("nan")), "must be numbers"),
    ],
)
def test_torchvision_gets_no_impossible_rois(roi: tuple[float, ...], message: str) -> None:
    """It would read other memory, which has ended the process."""
    rois = torch.tensor([roi], dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        ops.roi_align(torch.ones(1, 8, 9, 11), rois, output_size=(2, 2), spatial_scale=1.0)


def test_maps_without_pixels_give_zeros(backend_in_use: str) -> None:
    if backend_in_use == "reference":
        pytest.skip("the definitions take maps with pixels")
    rois = torch.tensor([[0.0, 0, 0, 1, 1]])
    for shape in ((1, 8, 0, 11), (1, 8, 9, 0), (1, 0, 9, 11)):
        found = ops.roi_align(torch.ones(shape), rois, output_size=(2, 3), spatial_scale=1.0)
        assert found.shape == (1, shape[1], 2, 3)
        assert not found.any()
