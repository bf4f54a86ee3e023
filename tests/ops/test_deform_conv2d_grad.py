"""Derivatives of the deformable convolution: whichever backend is active against the readable reference."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dcnzoo import ops
from tests.ops.deform_conv2d_cases import CASES, TOLERANCE, Case, deviation, gradient_errors
from tests.ops.test_deform_conv2d import SMALL, needs_native

TINY = {
    "plain": Case(channels=3, out_channels=2, size=(4, 5), bias=True),
    "stride": Case(channels=2, out_channels=3, size=(5, 6), stride=(2, 1), mask=True),
    "dilation": Case(channels=2, out_channels=2, size=(6, 5), dilation=(1, 2), padding=(0, 2)),
    "no_padding": Case(2, 2, 2, (4, 3), padding=(0, 0), mask=True, bias=True),
    "groups": Case(channels=4, out_channels=6, size=(3, 4), groups=2, mask=True),
    "deform_groups": Case(channels=4, out_channels=2, size=(3, 4), deform_groups=2, mask=True),
    "both": Case(channels=6, out_channels=4, size=(3, 3), groups=2, deform_groups=3),
    "flat_kernel": Case(channels=2, out_channels=2, size=(3, 5), kernel=(1, 4), padding=(0, 1), mask=True),
    "beyond_the_border": Case(channels=2, out_channels=2, size=(3, 4), spread=5.0, mask=True, bias=True),
    "relu": Case(channels=2, out_channels=3, size=(4, 4), mask=True, bias=True, relu=True),
}


@pytest.mark.parametrize("name", TINY)
def test_gradcheck(name: str) -> None:
    case = TINY[name]
    tensors = {key: value.requires_grad_() for key, value in case.tensors(torch.float64).items()}

    def compute(*values: Tensor) -> Tensor:
        return ops.deform_conv2d(**dict(zip(tensors, values, strict=True)), **case.options())

    assert torch.autograd.gradcheck(compute, tuple(tensors.values()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    errors = gradient_errors(CASES[name], dtype)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.mark.parametrize("groups", [1, 8])
def test_agrees_with_torchvision(groups: int) -> None:
    case = Case(2, 64, 64, (20, 24), groups=groups, deform_groups=2, mask=True, bias=True)
    tensors = {name: value.requires_grad_() for name, value in case.tensors(torch.float32).items()}
    others = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    ops.deform_conv2d(**tensors, **case.options()).square().sum().backward()
    arguments = others | {"mask": others["mask"].sigmoid()}
    torchvision.ops.deform_conv2d(**arguments, padding=1).square().sum().backward()
    for name, value in others.items():
        assert deviation(tensors[name].grad, value.grad) <= 1e-5, name


def gradients(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = {name: value.requires_grad_() for name, value in case.tensors(dtype).items()}
    ops.deform_conv2d(**tensors, **case.options()).square().sum().backward()
    return {name: value.grad for name, value in tensors.items()}


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["dense", "deformable_groups_of_odd_width", "resnext_8", "few_wide_groups"])
def test_any_number_of_threads_computes_the_same_every_time(name: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        errors = gradient_errors(CASES[name], torch.float32)
        first, second = gradients(CASES[name]), gradients(CASES[name])
    finally:
        torch.set_num_threads(before)
    assert max(errors.values()) <= TOLERANCE[torch.float32], errors
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", SMALL.tensors(torch.float32))
def test_each_gradient_can_be_asked_for_alone(name: str) -> None:
    tensors = SMALL.tensors(torch.float32)
    tensors[name].requires_grad_()
    ops.deform_conv2d(**tensors, **SMALL.options()).square().sum().backward()
    torch.testing.assert_close(tensors[name].grad, gradients(SMALL)[name], rtol=0, atol=0)
    assert all(value.grad is None for other, value in tensors.items() if other != name)


def test_offset_and_mask_keep_their_dtype() -> None:
    tensors = SMALL.tensors(torch.bfloat16)
    tensors |= {name: tensors[name].double() for name in ("offset", "mask")}
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    ops.deform_conv2d(**leaves, **SMALL.options()).sum().backward()
    assert {name: value.grad.dtype for name, value in leaves.items()} == {
        name: value.dtype for name, value in tensors.items()
    }


def test_tensors_may_be_views() -> None:
    tensors = {name: value.detach() for name, value in SMALL.tensors(torch.float32).items()}
    both = torch.cat([tensors["offset"], tensors["mask"]], dim=1).requires_grad_()
    image = torch.stack([tensors["input"]] * 2, dim=-1).requires_grad_()
    offset, mask = both.split([36, 18], dim=1)
    views = tensors | {"input": image[..., 1], "offset": offset, "mask": mask}
    ops.deform_conv2d(**views, **SMALL.options()).square().sum().backward()
    expected = gradients(SMALL)
    torch.testing.assert_close(both.grad, torch.cat([expected["offset"], expected["mask"]], dim=1))
    torch.testing.assert_close(image.grad[..., 1], expected["input"])


def test_no_images_have_zero_gradients() -> None:
    tensors = {name: value[:0] for name, value in Case().tensors(torch.float32).items() if name != "weight"}
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    ops.deform_conv2d(**leaves, weight=weight, padding=(1, 1)).sum().backward()
    assert weight.grad.count_nonzero() == 0
    assert leaves["input"].grad.shape == leaves["input"].shape


@pytest.mark.filterwarnings("ignore:.*autocast.*")
def test_autocast_trains_float32_parameters() -> None:
    tensors = {name: value.requires_grad_() for name, value in SMALL.tensors(torch.float32).items()}
    with torch.autocast("cpu", torch.bfloat16):
        output = ops.deform_conv2d(**tensors, **SMALL.options())
    output.float().square().sum().backward()
    for name, expected in gradients(SMALL).items():
        assert tensors[name].grad.dtype == torch.float32
        assert deviation(tensors[name].grad, expected) <= 0.03, name


@needs_native
@pytest.mark.skipif(ops.active_backend()[0] != "native", reason="another backend is forced")
def test_second_derivatives_are_refused() -> None:
    tensors = {name: value.requires_grad_() for name, value in SMALL.tensors(torch.float32).items()}
    output = ops.deform_conv2d(**tensors, **SMALL.options())
    grads = torch.autograd.grad(output.sum(), list(tensors.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv2d has no second derivatives"):
        grads[0].sum().backward()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        tensors = SMALL.tensors(torch.float32)
        self.weight, self.bias = nn.Parameter(tensors["weight"]), nn.Parameter(tensors["bias"])

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return ops.deform_conv2d(2 * x, offset, self.weight, self.bias, mask=mask, **SMALL.options()) + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_training_compiles_without_graph_breaks(dynamic: bool) -> None:
    layer = Layer()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for module in (layer, compiled):
        tensors = SMALL.tensors(torch.float32)
        arguments = [tensors[name].requires_grad_() for name in ("input", "offset", "mask")]
        module(*arguments).square().sum().backward()
        results.append([tensor.grad for tensor in (*arguments, *module.parameters())])
    torch.testing.assert_close(results[1], results[0])


@needs_native
@pytest.mark.parametrize("name", ["deform_conv2d_input_grads", "deform_conv2d_weight_grad"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_operators_obey_the_rules_of_pytorch(name: str, dtype: torch.dtype, masked: bool) -> None:
    tensors = SMALL.tensors(dtype)
    mask = tensors["mask"] if masked else None
    head = torch.randn(2, 6, 9, 11).to(dtype), tensors["input"], tensors["weight"], tensors["offset"], mask
    torch.library.opcheck(getattr(torch.ops.dcnzoo, name).default, (*head, [1, 1], [1, 1], [1, 1], masked))


@needs_native
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("masked", [False, True])
def test_the_operator_obeys_them_in_training(masked: bool) -> None:
    tensors = {name: value.requires_grad_() for name, value in SMALL.tensors(torch.float64).items()}
    head = [tensors[name] for name in ("input", "weight", "offset")]
    optional = [tensors["mask"] if masked else None, tensors["bias"]]
    arguments = (*head, *optional, [1, 1], [1, 1], [1, 1], None, masked, True)
    torch.library.opcheck(torch.ops.dcnzoo.deform_conv2d.default, arguments)


@needs_native
def test_operators_refuse_what_would_read_outside() -> None:
    tensors, geometry = SMALL.tensors(torch.float32), ([1, 1], [1, 1], [1, 1], False)
    image, weight, offset, mask = (tensors[name] for name in ("input", "weight", "offset", "mask"))
    grad = torch.zeros(2, 6, 9, 11)
    wrong = [
        (grad[..., 1:], image, weight, offset, mask, *geometry),
        (grad.long(), image, weight, offset, mask, *geometry),
        (grad, image, weight.long(), offset, mask, *geometry),
        (grad, image, weight, offset, mask[:, 1:], *geometry),
        (grad, image, weight, offset[1:], mask, *geometry),
    ]
    for arguments in wrong:
        for name in ("deform_conv2d_input_grads", "deform_conv2d_weight_grad"):
            with pytest.raises(RuntimeError, match=r"deform_conv2d|dcnzoo"):
                getattr(torch.ops.dcnzoo, name)(*arguments)
