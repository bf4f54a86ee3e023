"""How a detector starts to learn."""

from __future__ import annotations

import copy
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from dcnzoo.build import build_model, prepare_for_inference
from dcnzoo.errors import CheckpointError
from dcnzoo.manifest import Architecture
from dcnzoo.models.rcnn import RCNN
from dcnzoo.training.initialise import initialise_weights, load_for_training, prepare_for_training
from dcnzoo.training.options import Norm

SMALL = "r18w16_fpn16_fc32"
MASK_MODEL = f"mask_rcnn_{SMALL}_mdconv_c3-c5_mdpool"


def small_model(name: str = MASK_MODEL, num_classes: int = 3, seed: int = 0) -> RCNN:
    model = build_model(Architecture.parse(name), num_classes)
    initialise_weights(model, torch.Generator().manual_seed(seed))
    return model


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(1)
    first = small_model().state_dict()
    torch.manual_seed(2)
    again, other = small_model().state_dict(), small_model(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert all(name.endswith(("bias", "num_batches_tracked")) or is_constant(first[name]) for name in same)


def is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("backbone.conv1.weight", sqrt(2 / (16 * 49))),
        ("backbone.layer1.0.conv1.weight", sqrt(2 / (16 * 9))),
        ("backbone.layer4.1.conv2.weight", sqrt(1 / 3 / (128 * 9))),  # modulated: uniform in ±1/√fan-in
        ("neck.fpn_convs.0.conv.weight", sqrt(2 / (2 * 16 * 9))),
        ("rpn_head.rpn_conv.weight", 0.01),
        ("rpn_head.rpn_reg.weight", 0.01),
        ("roi_head.bbox_head.shared_fcs.0.weight", sqrt(2 / (32 + 16 * 49))),
        ("roi_head.bbox_head.fc_cls.weight", 0.01),
        ("roi_head.bbox_head.fc_reg.weight", 0.001),
        ("roi_head.mask_head.convs.3.conv.weight", sqrt(2 / (16 * 9))),
        ("roi_head.mask_head.upsample.weight", sqrt(2 / (16 * 4))),
        ("roi_head.mask_head.conv_logits.weight", sqrt(2 / 3)),
        ("roi_head.bbox_roi_extractor.roi_layers.0.offset_fc.0.weight", sqrt(1 / 3 / (16 * 49))),
        ("backbone.layer4.1.conv2.conv_offset.weight", 0.0),
        ("backbone.layer4.1.conv2.conv_offset.bias", 0.0),
        ("roi_head.bbox_roi_extractor.roi_layers.3.offset_fc.4.weight", 0.0),
        ("roi_head.bbox_roi_extractor.roi_layers.3.mask_fc.2.weight", 0.0),
        ("backbone.layer2.0.bn2.weight", 0.0),
    ],
)
def test_spread_of_fresh_weights(name: str, std: float) -> None:
    weight = small_model().state_dict()[name]
    assert weight.double().mean().abs() <= 4 * std / sqrt(weight.numel())
    assert weight.double().std().item() == pytest.approx(std, rel=4 / sqrt(2 * weight.numel()))


def test_deformable_convolutions_of_version_1_are_spread_wider() -> None:
    weight = small_model(f"faster_rcnn_{SMALL}_dconv_c3-c5").backbone.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx(sqrt(2 / (128 * 9)), rel=0.02)


def test_a_bottleneck_starts_as_its_shortcut() -> None:
    model = build_model(Architecture.parse("faster_rcnn_r50w16_fpn16_fc16"), 3)
    initialise_weights(model, torch.Generator().manual_seed(0))
    block = model.backbone.layer1[1]
    assert not block.bn3.weight.any()
    assert block.bn2.weight.all()


@pytest.mark.parametrize(
    ("frozen_stages", "frozen"),
    [
        (-1, ()),
        (0, ("conv1", "bn1")),
        (1, ("conv1", "bn1", "layer1")),
        (2, ("conv1", "bn1", "layer1", "layer2")),
    ],
)
@pytest.mark.parametrize("norm", ["frozen", "trainable"])
def test_what_is_frozen_stays_so(frozen_stages: int, frozen: tuple[str, ...], norm: Norm) -> None:
    model = small_model()
    prepare_for_training(model, norm=norm, frozen_stages=frozen_stages)
    model.eval()
    model = copy.deepcopy(model).train()  # as a training loop does after it has looked at the results
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(f"backbone.{part}." for part in frozen))
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (norm == "trainable" and name.partition(".")[0] not in frozen)
    assert model.roi_head.training


def test_frozen_statistics_do_not_change() -> None:
    model = small_model()
    prepare_for_training(model, norm="frozen")
    model.backbone(torch.randn(1, 3, 64, 64) * 50)
    assert not model.backbone.layer3[0].bn1.running_mean.any()
    prepare_for_training(model, norm="trainable")
    model.backbone(torch.randn(1, 3, 64, 64) * 50)
    assert model.backbone.layer3[0].bn1.running_mean.any()
    assert not model.backbone.layer1[0].bn1.running_mean.any()


def test_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match="expected frozen or trainable"):
        prepare_for_training(small_model(), norm="batch")
    with pytest.raises(ValueError, match="expected -1 to 4"):
        prepare_for_training(small_model(), norm="frozen", frozen_stages=5)


CLASS_HEADS = {
    f"roi_head.bbox_head.{layer}.{kind}" for layer in ("fc_cls", "fc_reg") for kind in ("weight", "bias")
}
MASK_HEADS = {f"roi_head.mask_head.conv_logits.{kind}" for kind in ("weight", "bias")}


def test_heads_for_other_classes_are_replaced_and_the_rest_is_loaded() -> None:
    model, state = small_model(num_classes=3), small_model(num_classes=80, seed=1).state_dict()
    before = copy.deepcopy(model.state_dict())
    report = load_for_training(model, state)
    assert set(report.replaced) == CLASS_HEADS | MASK_HEADS
    assert set(report.loaded) == set(state) - set(report.replaced)
    assert report.missing == report.unexpected == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in report.replaced else state[name])


def test_heads_for_as_many_classes_are_replaced_when_asked_for() -> None:
    state = small_model(seed=1).state_dict()
    assert load_for_training(small_model(), state).replaced == ()
    report = load_for_training(small_model(), state, replace_class_heads=True)
    assert set(report.replaced) == CLASS_HEADS | MASK_HEADS


def test_a_cascade_keeps_the_layers_that_move_all_classes_alike() -> None:
    name = f"cascade_rcnn_{SMALL}"
    report = load_for_training(small_model(name), small_model(name, num_classes=7).state_dict())
    heads = [f"roi_head.bbox_head.{stage}.fc_cls.{kind}" for stage in range(3) for kind in ("weight", "bias")]
    assert sorted(report.replaced) == sorted(heads)


def test_weights_of_another_detector_are_loaded_where_they_fit() -> None:
    plain = small_model(f"faster_rcnn_{SMALL}", seed=1).state_dict()
    del plain["backbone.bn1.num_batches_tracked"]
    plain["backbone.fc.weight"] = torch.zeros(1)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    model = small_model()
    report = load_for_training(model, half)
    assert report.unexpected == ("backbone.fc.weight",)
    assert all(
        "conv_offset" in name or "roi_layers" in name or "mask_head" in name for name in report.missing
    )
    assert len(report.missing) == 12 + 4 * 10 + 12
    assert model.backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.backbone.conv1.weight, plain["backbone.conv1.weight"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("other", [f"faster_rcnn_{SMALL.replace('fc32', 'fc48')}", None])
def test_weights_that_fit_nowhere_are_an_error(other: str | None) -> None:
    state = {"weight": torch.zeros(1)} if other is None else small_model(other).state_dict()
    with pytest.raises(CheckpointError, match=r"checkpoint a\.pth: does not fit the model") as caught:
        load_for_training(small_model(f"faster_rcnn_{SMALL}"), state, source="a.pth")
    assert (other is None) == (caught.value.mismatched == ())


def test_a_detector_prepared_for_inference_is_not_trained() -> None:
    model = prepare_for_inference(small_model())
    with pytest.raises(TypeError, match="build it with build_model"):
        prepare_for_training(model, norm="frozen")
    with pytest.raises(TypeError, match="build it with build_model"):
        initialise_weights(model, torch.Generator())
