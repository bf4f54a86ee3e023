"""Built models carry the published parameter names and shapes; loading is strict."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torchvision

from dcnzoo.build import build_model, load_model, pack_weights
from dcnzoo.checkpoint import Checkpoint, load_checkpoint
from dcnzoo.errors import CheckpointError
from dcnzoo.manifest import Architecture, load_manifest
from dcnzoo.models.fold import FoldedBottleneck
from dcnzoo.synthetic import random_checkpoint
from tests.parity.standin import NAMES, layout, write_checkpoint

R50_DCONV = Architecture.parse("faster_rcnn_r50_fpn_dconv_c3-c5")


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_model(load_manifest().find(name).architecture, num_classes=80)
    built = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert built == {key: shape for key, (shape, _dtype) in layout(name).items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    name = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
    return load_checkpoint(write_checkpoint(name, tmp_path_factory.mktemp("standin") / "a.pth"))


def variant(checkpoint: Checkpoint, **changes: torch.Tensor | None) -> Checkpoint:
    """The checkpoint with tensors replaced (or removed, by None); `__` stands for a dot."""
    state = dict(checkpoint.state_dict)
    for key, value in changes.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    return Checkpoint(checkpoint.path, state, None, {})


def test_batch_norm_is_folded_and_weights_are_channels_last(checkpoint: Checkpoint) -> None:
    model = load_model(R50_DCONV, checkpoint)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    blocks = [module for module in model.modules() if isinstance(module, FoldedBottleneck)]
    assert len(blocks) == 16
    assert all(block.conv2.weight.is_contiguous(memory_format=torch.channels_last) for block in blocks)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_folding_keeps_the_outputs(checkpoint: Checkpoint) -> None:
    plain = build_model(R50_DCONV, 80)
    plain.load_state_dict(checkpoint.state_dict)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = plain.eval().backbone(images)["c5"]
        found = load_model(R50_DCONV, checkpoint).backbone(images)["c5"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


SMALL = (
    "mask_rcnn_r18w32_fpn64_fc256_mdconv_c3-c5",
    "faster_rcnn_r18w16_fpn48_fc272",
    "cascade_mask_rcnn_r18w48_fpn32_fc64_dconv_c3-c5_group4",
    "faster_rcnn_r18w16_fpn32_fc128_mdconv_c3-c5_mdpool",
    "faster_rcnn_r50w16_fpn64_fc256_dconv_c3-c5",
    "mask_rcnn_x101_32x4dw16_fpn64_fc256_mdconv_c3-c5",
)


@pytest.mark.parametrize("name", SMALL)
def test_small_network_detects_the_same_on_the_fast_path(name: str) -> None:
    architecture = Architecture.parse(name)
    checkpoint = random_checkpoint(architecture, num_classes=5)
    for key, tensor in checkpoint.state_dict.items():
        if "conv_offset" in key:  # small, as trained ones: random features differ from pixel to pixel
            tensor *= 0.03
    plain = build_model(architecture, num_classes=5)
    plain.load_state_dict(checkpoint.state_dict, strict=False)
    fast = pack_weights(load_model(architecture, checkpoint))
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    sizes = [(96, 128), (80, 100)]
    with torch.inference_mode():
        features = plain.eval().neck(plain.backbone(images))
        for level, found in fast.neck(fast.backbone(images)).items():
            assert (found - features[level]).abs().max() < 1e-3 * features[level].std()
        for expected, got in zip(plain(images, sizes, sizes), fast(images, sizes, sizes), strict=True):
            assert len(expected.scores) == 100
            torch.testing.assert_close(got.scores, expected.scores, rtol=0, atol=1e-3)


def test_packed_weights_are_neither_replaced_nor_taken_to_other_kernels() -> None:
    architecture = Architecture.parse("faster_rcnn_r18w16_fpn16_fc16")
    checkpoint = random_checkpoint(architecture, num_classes=2)
    model = pack_weights(load_model(architecture, checkpoint))
    if model.packed_for is None:
        pytest.skip("no compiled kernels")
    with pytest.raises(RuntimeError, match="a packed model takes no other weights"):
        model.load_state_dict(checkpoint.state_dict, strict=False)
    assert copy.deepcopy(model).packed_for == model.packed_for
    model.packed_for = "compiled kernels, of another processor"
    with pytest.raises(RuntimeError, match="packed for compiled kernels, of another processor, not"):
        copy.deepcopy(model)


def test_basic_block_has_the_names_of_torchvision_and_its_second_convolution_deforms() -> None:
    with torch.device("meta"):
        model = build_model(Architecture.parse("faster_rcnn_r18_fpn_mdconv_c3-c5"), num_classes=80)
        expected = torchvision.models.resnet18().state_dict()
    built = {key: tensor.shape for key, tensor in model.backbone.state_dict().items()}
    offsets = {key for key in built if "conv_offset" in key}
    assert {key: shape for key, shape in built.items() if key not in offsets} == {
        key: tensor.shape for key, tensor in expected.items() if not key.startswith("fc.")
    }
    stages = itertools.product(("layer2", "layer3", "layer4"), (0, 1), ("weight", "bias"))
    assert offsets == {f"{stage}.{block}.conv2.conv_offset.{part}" for stage, block, part in stages}


def test_counters_may_be_missing(checkpoint: Checkpoint) -> None:
    load_model(R50_DCONV, variant(checkpoint, backbone__bn1__num_batches_tracked=None))


def test_other_number_of_classes(checkpoint: Checkpoint) -> None:
    changes = {
        "roi_head__bbox_head__fc_cls__weight": torch.zeros(4, 1024),
        "roi_head__bbox_head__fc_cls__bias": torch.zeros(4),
        "roi_head__bbox_head__fc_reg__weight": torch.zeros(12, 1024),
        "roi_head__bbox_head__fc_reg__bias": torch.zeros(12),
    }
    model = load_model(R50_DCONV, variant(checkpoint, **changes))
    assert model.roi_head.bbox_head.fc_cls.out_features == 4


@pytest.mark.parametrize(
    ("changes", "attribute", "message"),
    [
        ({"neck__fpn_convs__0__conv__bias": None}, "missing", "1 missing: neck.fpn_convs.0.conv.bias"),
        ({"extra": torch.ones(1)}, "unexpected", "1 unexpected: extra"),
        (
            {"rpn_head__rpn_cls__bias": torch.ones(9)},
            "mismatched",
            r"1 other shape: rpn_head.rpn_cls.bias is \(9,\), expected \(3,\)",
        ),
    ],
)
def test_differences_are_listed(
    checkpoint: Checkpoint, changes: dict[str, torch.Tensor | None], attribute: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(R50_DCONV, variant(checkpoint, **changes))
    assert len(getattr(caught.value, attribute)) == 1


@pytest.mark.parametrize(
    "other", ["mask_rcnn_r50_fpn_dconv_c3-c5", "faster_rcnn_r50_fpn", "cascade_rcnn_r101_fpn"]
)
def test_another_architecture_is_an_error(checkpoint: Checkpoint, other: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not fit {other}"):
        load_model(Architecture.parse(other), checkpoint)


@pytest.mark.parametrize(
    "form",
    [{"old_names": True}, {"old_format": True}, {"plain": True}, {"prefix": "module."}],
    ids=lambda form: next(iter(form)),
)
def test_every_form_of_a_file_gives_the_same_weights(
    checkpoint: Checkpoint, form: dict[str, object], tmp_path: Path
) -> None:
    name = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
    other = load_checkpoint(write_checkpoint(name, tmp_path / "b.pth", **form))
    assert other.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(other.state_dict[key], value) for key, value in checkpoint.state_dict.items())


def test_half_tensors_give_the_rounded_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
    halved = load_checkpoint(write_checkpoint(name, tmp_path / "b.pth", half=True)).state_dict
    for key, value in checkpoint.state_dict.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(halved[key], expected)
