"""Losses against cases worked out by hand."""

from __future__ import annotations

from math import exp, log, log1p

import pytest
import torch
from torch import Tensor, nn

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture
from dcnzoo.models.rcnn import RCNN
from dcnzoo.training import losses
from dcnzoo.training.initialise import initialise_weights, prepare_for_training
from dcnzoo.training.losses import CASCADE, FASTER, MASK, LossNetwork, Recipe, detection_losses, recipe_of
from dcnzoo.training.targets import RoISample, Target

LOG_2 = log(2)
STDS = (0.1, 0.1, 0.2, 0.2)
SMALL = "r18w16_fpn16_fc16"


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(objects: Tensor, labels: tuple[int, ...], masks: Tensor | None = None) -> Target:
    return Target(objects, torch.tensor(labels, dtype=torch.int64), masks, boxes())


def batch(recipe: Recipe, sizes: list[tuple[int, int]], targets: list[Target]) -> losses._Batch:
    generator = torch.Generator().manual_seed(0)
    return losses._Batch(nn.Identity(), recipe, sizes, targets, generator, losses.ROI_SAMPLING)


def finest_level(logit: float, size: int = 16) -> losses.Outputs:
    """Objectness `logit` and no movement everywhere, on a level whose square anchors have side 32."""
    return {"p2": (torch.full((1, 3, size, size), logit), torch.zeros(1, 12, size, size))}


# An object that is an anchor: its neighbours, 4 pixels aside, have IoU 28 / 36 with it and are positive too.
CENTRED = boxes((16, 16, 48, 48))


@pytest.mark.parametrize(
    ("recipe", "box_loss"), [(FASTER, 4 * 0.125), (CASCADE, 4 * (0.125 - 0.5 / 9))], ids=["L1", "smooth L1"]
)
def test_losses_of_the_proposals(recipe: Recipe, box_loss: float) -> None:
    found = losses._rpn_losses(batch(recipe, [(64, 64)], [target(CENTRED, (0,))]), finest_level(1.0))
    positive, background = log1p(exp(-1)), log1p(exp(1))
    count = 256 if recipe is FASTER else num_samples_inside()
    torch.testing.assert_close(
        found["loss_rpn_cls"], torch.tensor((5 * positive + (count - 5) * background) / count)
    )
    torch.testing.assert_close(found["loss_rpn_bbox"], torch.tensor(box_loss / count))


def num_samples_inside() -> int:
    """Samples where anchors must lie in 64×64: the neighbours with IoU 0.3 to 0.7 are ignored."""
    sides = [(45.2548, 22.6274), (32.0, 32.0), (22.6274, 45.2548)]  # width, height
    count = 0
    for width, height in sides:
        for x in range(0, 64, 4):
            for y in range(0, 64, 4):
                if x - width / 2 < 0 or y - height / 2 < 0 or x + width / 2 >= 64 or y + height / 2 >= 64:
                    continue
                across = max(0, min(x + width / 2, 48) - max(x - width / 2, 16))
                down = max(0, min(y + height / 2, 48) - max(y - height / 2, 16))
                iou = across * down / (1024 + width * height - across * down)
                count += iou >= 0.7 or iou < 0.3
    return min(count, 256)


def test_an_image_without_objects_has_one_imagined_positive_anchor() -> None:
    found = losses._rpn_losses(batch(FASTER, [(64, 64)], [target(boxes(), ())]), finest_level(0.0))
    torch.testing.assert_close(found["loss_rpn_cls"], torch.tensor(256 * LOG_2 / 257))
    assert found["loss_rpn_bbox"] == 0


@pytest.mark.parametrize(
    ("image_size", "divisor", "inside", "expected"),
    [
        ((64, 64), 32, False, 16 * 16),
        ((30, 33), 32, False, 8 * 16),
        ((1, 1), 32, False, 8 * 8),
        ((1, 33), 64, False, 16 * 16),
        ((1, 33), 8, False, 2 * 10),
        ((64, 64), 32, True, 8 * 8),
    ],
)
def test_usable_anchors(image_size: tuple[int, int], divisor: int, inside: bool, expected: int) -> None:
    anchors, cells = losses._all_anchors(finest_level(0.0))
    usable = losses._usable_anchors(anchors, cells, image_size, divisor, inside).reshape(-1, 3)
    assert usable[:, 1].sum() == expected  # the square ones
    if not inside:
        assert usable.sum() == 3 * expected


def roi_sample() -> RoISample:
    """Two positive regions and two of background; the objects are two pixels right of the positive ones."""
    found = boxes((0, 0, 20, 20), (30, 30, 40, 50), (0, 40, 5, 45), (50, 0, 60, 9))
    return RoISample(found, torch.tensor([0, 1]), torch.tensor([False, False, False, False]))


OBJECTS = boxes((2, 0, 22, 20), (32, 30, 42, 50))


@pytest.mark.parametrize("recipe", [FASTER, CASCADE], ids=["L1", "smooth L1"])
def test_losses_of_a_box_head(recipe: Recipe) -> None:
    logits = torch.zeros(4, 4)
    logits[0, 2], logits[3, 3] = 1.0, 2.0
    deltas = torch.full((4, 3, 4), 100.0)  # of classes that do not matter
    deltas[[0, 1], [2, 0]] = 0.0
    made = batch(recipe, [(64, 64)], [target(OBJECTS, (2, 0))])
    found = losses._box_head_losses(made, [roi_sample()], logits, deltas.flatten(1), STDS)
    first, last = log(3 + exp(1)) - 1, log(3 + exp(2)) - 2
    torch.testing.assert_close(found["loss_cls"], torch.tensor((first + 2 * log(4) + last) / 4))
    errors = (2 / 20 / 0.1, 2 / 10 / 0.1)
    expected = sum(errors) if recipe is FASTER else 0.5 * errors[0] ** 2 + errors[1] - 0.5
    torch.testing.assert_close(found["loss_bbox"], torch.tensor(expected / 4))


def test_a_box_head_that_moves_all_classes_alike() -> None:
    made = batch(FASTER, [(64, 64)], [target(OBJECTS, (2, 0))])
    found = losses._box_head_losses(made, [roi_sample()], torch.zeros(4, 4), torch.zeros(4, 4), STDS)
    torch.testing.assert_close(found["loss_bbox"], torch.tensor((1.0 + 2.0) / 4))


def test_loss_of_a_mask_head() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :, :10] = True  # the left half of the first region; of the second nothing
    logits = torch.full((2, 3, 4, 4), 50.0)
    logits[[0, 1], [2, 0]] = 1.0
    made = batch(MASK, [(64, 64)], [target(OBJECTS, (2, 0), masks)])
    found = losses._mask_loss(made, [roi_sample()], logits)
    torch.testing.assert_close(found, torch.tensor(0.25 * log1p(exp(-1)) + 0.75 * log1p(exp(1))))


def test_the_next_stage_sees_moved_boxes_without_the_objects_own() -> None:
    found = RoISample(
        boxes((0, 0, 10, 10), (0, 0, 20, 20), (50, 50, 60, 60)),
        torch.tensor([0, 0]),
        torch.tensor([True, False, False]),
    )
    deltas = torch.tensor([[9.0, 9, 9, 9], [1, 0, 0, 0], [0, 5, 0, 0]])
    made = batch(CASCADE, [(64, 64)], [target(boxes((0, 0, 10, 10)), (0,))])
    (refined,) = losses._refine(made, [found], deltas, STDS)
    torch.testing.assert_close(refined, boxes((2, 0, 22, 20), (50, 55, 60, 64)))


def small_model(detector: str, num_classes: int = 3, suffix: str = "") -> RCNN:
    torch.manual_seed(0)
    model = build_model(Architecture.parse(f"{detector}_{SMALL}{suffix}"), num_classes)
    initialise_weights(model, torch.Generator().manual_seed(0))
    prepare_for_training(model, norm="frozen")
    return model


@pytest.mark.parametrize(
    ("detector", "expected"),
    [("faster_rcnn", FASTER), ("mask_rcnn", MASK), ("cascade_rcnn", CASCADE), ("cascade_mask_rcnn", CASCADE)],
)
def test_recipes(detector: str, expected: Recipe) -> None:
    assert recipe_of(small_model(detector)) is expected


def scene() -> tuple[Tensor, list[tuple[int, int]], list[Target]]:
    """Two images of 64×64: one with two objects, one with none."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 10:40, 8:40], masks[1, 30:60, 36:60] = True, True
    objects = boxes((8, 10, 40, 40), (36, 30, 60, 60))
    return images, [(64, 64), (60, 50)], [target(objects, (0, 2), masks), target(boxes(), (), masks[:0])]


def test_stages_of_a_cascade_have_weights() -> None:
    model = small_model("cascade_mask_rcnn")
    heads = [*model.roi_head.bbox_head, *(head.conv_logits for head in model.roi_head.mask_head)]
    for head in heads:
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    found = detection_losses(model, *scene(), torch.Generator().manual_seed(0))
    for stage, weight in enumerate((1.0, 0.5, 0.25)):
        torch.testing.assert_close(found[f"s{stage}.loss_cls"], torch.tensor(weight * log(4)))
        torch.testing.assert_close(found[f"s{stage}.loss_mask"], torch.tensor(weight * LOG_2))
    assert set(found) == {"loss_rpn_cls", "loss_rpn_bbox"} | {
        f"s{stage}.loss_{kind}" for stage in range(3) for kind in ("cls", "bbox", "mask")
    }


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_no_object_at_all(detector: str) -> None:
    model, (images, sizes, targets) = small_model(detector, suffix="_mdpool"), scene()
    found = detection_losses(model, images, sizes, [targets[1]] * 2, torch.Generator().manual_seed(0))
    sum(found.values()).backward()
    assert all(torch.isfinite(loss) for loss in found.values())
    assert not any(found[name] for name in found if name.endswith(("bbox", "mask")))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learning)


def test_samples_follow_from_the_generator() -> None:
    model = small_model("faster_rcnn")
    first, again, other = (
        detection_losses(model, *scene(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_padding_is_that_of_the_preprocessing() -> None:
    """A padded image is learned from as far as it would be padded alone."""
    images, sizes, targets = scene()
    model, sizes = small_model("faster_rcnn"), [(64, 64), (30, 30)]
    alone, beyond = (
        LossNetwork(model, size_divisor=divisor)(images, sizes, targets, torch.Generator().manual_seed(0))
        for divisor in (32, 64)
    )
    assert alone["loss_rpn_cls"] != beyond["loss_rpn_cls"]


def test_arguments_that_do_not_fit() -> None:
    model, (images, sizes, targets) = small_model("mask_rcnn"), scene()
    with pytest.raises(ValueError, match="got 2 images, 2 sizes and 1 targets"):
        detection_losses(model, images, sizes, targets[:1], torch.Generator())
    bare = [target(each.boxes, tuple(each.labels.tolist())) for each in targets]
    with pytest.raises(ValueError, match="masks of every target"):
        detection_losses(model, images, sizes, bare, torch.Generator())
