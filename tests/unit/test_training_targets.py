"""Assignment and sampling against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dcnzoo.models.boxes import decode_boxes
from dcnzoo.ops import roi_align
from dcnzoo.training.targets import (
    BACKGROUND,
    IGNORED,
    Matching,
    Sampling,
    Target,
    assign,
    encode_boxes,
    mask_targets,
    overlaps,
    sample,
    sample_rois,
)

ANCHORS = Matching(0.7, 0.3, 0.3)
ROIS = Matching(0.5, 0.5)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(objects: Tensor, crowds: Tensor | None = None) -> Target:
    return Target(objects, torch.arange(len(objects)), None, boxes() if crowds is None else crowds)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_overlaps() -> None:
    iou, share = overlaps(
        boxes((0, 0, 10, 10), (0, 0, 4, 5), (3, 3, 3, 3)), boxes((5, 0, 15, 10), (0, 0, 10, 10))
    )
    torch.testing.assert_close(iou, torch.tensor([[50 / 150, 0, 0], [1, 0.2, 0]]))
    torch.testing.assert_close(share, torch.tensor([[0.5, 0, 0], [1, 1, 0]]))


# heights of boxes (0, 0, 10, h) are ten times their IoU with the object (0, 0, 10, 10)
@pytest.mark.parametrize(
    ("heights", "matching", "expected"),
    [
        ((9, 7.1, 6.9, 3.1, 2.9), ANCHORS, (0, 0, IGNORED, IGNORED, BACKGROUND)),
        ((5.1, 4.9), ROIS, (0, BACKGROUND)),
        ((6.1, 5.9), Matching(0.6, 0.6), (0, BACKGROUND)),
        # nothing reaches 0.7: the best ones, both of them, belong to it all the same
        ((6, 6, 5, 2), ANCHORS, (0, 0, IGNORED, BACKGROUND)),
        # but not below 0.3
        ((2.9, 2), ANCHORS, (BACKGROUND, BACKGROUND)),
        ((4.9, 2), ROIS, (BACKGROUND, BACKGROUND)),
    ],
)
def test_thresholds(heights: tuple[float, ...], matching: Matching, expected: tuple[int, ...]) -> None:
    assigned = assign(boxes(*[(0, 0, 10, h) for h in heights]), target(boxes((0, 0, 10, 10))), matching)
    assert tuple(assigned.tolist()) == expected


def test_a_box_belongs_to_the_object_that_it_overlaps_most() -> None:
    objects = boxes((0, 0, 10, 10), (4, 0, 14, 10))
    assigned = assign(boxes((1, 0, 11, 10), (3, 0, 13, 10)), target(objects), ROIS)
    assert assigned.tolist() == [0, 1]


def test_the_last_object_gets_a_box_that_is_the_best_of_several() -> None:
    objects = boxes((0, 0, 10, 10), (0, 0, 10, 7))
    assert assign(boxes((0, 0, 10, 9)), target(objects), ANCHORS).tolist() == [1]
    assert assign(boxes((0, 0, 10, 9)), target(objects), Matching(0.7, 0.3)).tolist() == [0]


def test_without_objects_everything_is_background() -> None:
    assert assign(boxes((0, 0, 5, 5), (3, 3, 9, 9)), target(boxes()), ANCHORS).tolist() == [BACKGROUND] * 2
    assert assign(boxes(), target(boxes((0, 0, 1, 1))), ANCHORS).shape == (0,)


@pytest.mark.parametrize("objects", [boxes(), boxes((40, 0, 50, 10))], ids=["alone", "beside an object"])
def test_what_lies_in_a_crowd_is_no_background(objects: Tensor) -> None:
    found = boxes((0, 0, 10, 5.1), (0, 0, 10, 20), (0, 0, 10, 25), (40, 0, 50, 10))
    assigned = assign(found, target(objects, boxes((0, 0, 10, 10))), ANCHORS)
    assert assigned.tolist() == [IGNORED, BACKGROUND, BACKGROUND, 0 if len(objects) else BACKGROUND]


def test_an_object_in_a_crowd_keeps_its_boxes() -> None:
    assigned = assign(boxes((0, 0, 10, 10)), target(boxes((0, 0, 10, 9)), boxes((0, 0, 90, 90))), ANCHORS)
    assert assigned.tolist() == [0]


@pytest.mark.parametrize(
    ("num_positive", "num_background", "expected"),
    [(200, 900, (128, 128)), (5, 900, (5, 251)), (200, 20, (128, 20)), (0, 300, (0, 256)), (0, 0, (0, 0))],
)
def test_numbers_of_samples(num_positive: int, num_background: int, expected: tuple[int, int]) -> None:
    kinds = [3] * num_positive + [BACKGROUND] * num_background + [IGNORED] * 50
    assigned = torch.tensor(kinds)[torch.randperm(len(kinds), generator=generator())]
    positive, background = sample(assigned, Sampling(256, 0.5), generator())
    assert (len(positive), len(background)) == expected
    assert (assigned[positive] == 3).all()
    assert (assigned[background] == BACKGROUND).all()
    assert len(positive.unique()) + len(background.unique()) == sum(expected)


def test_samples_follow_from_the_generator_and_are_spread_evenly() -> None:
    assigned = torch.full((1000,), BACKGROUND)
    draws = [sample(assigned, Sampling(100, 0.5), generator(seed))[1] for seed in (*range(200), 0)]
    assert torch.equal(draws[0], draws[-1])
    counts = torch.cat(draws[:-1]).bincount(minlength=1000).float()
    assert counts.mean() == 20
    assert counts.std() < 5.5  # binomial: √(200 · 0.1 · 0.9) = 4.2


def test_the_objects_own_boxes_are_regions_of_interest() -> None:
    objects = boxes((0, 0, 10, 10), (50, 50, 60, 60))
    proposals = boxes((0, 0, 10, 8), (30, 30, 40, 40), (50, 50, 60, 59))
    found = sample_rois(proposals, target(objects), ROIS, Sampling(512, 0.25), generator())
    assert found.objects.tolist() == [0, 1, 0, 1]
    assert found.is_object.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(found.boxes, torch.cat([objects, proposals[[0, 2, 1]]]))
    torch.testing.assert_close(found.positive_boxes, found.boxes[:4])


def test_at_most_a_quarter_of_the_regions_is_positive() -> None:
    objects = boxes((0, 0, 10, 10))
    proposals = torch.cat([objects.repeat(300, 1), boxes((30, 30, 40, 40)).repeat(900, 1)])
    found = sample_rois(proposals, target(objects), ROIS, Sampling(512, 0.25), generator())
    assert (len(found.objects), len(found.boxes)) == (128, 512)


def test_encoding_by_hand() -> None:
    deltas = encode_boxes(boxes((0, 0, 10, 20)), boxes((5, 5, 25, 15)), (0.1, 0.1, 0.2, 0.2))
    expected = [[(15 - 5) / 10 / 0.1, 0, 0.6931472 / 0.2, -0.6931472 / 0.2]]
    torch.testing.assert_close(deltas, torch.tensor(expected))


def test_encoding_is_the_inverse_of_decoding() -> None:
    low = torch.rand(50, 2, 2, generator=generator()) * 50
    high = low + 1 + torch.rand(50, 2, 2, generator=generator(1)) * 50
    source, wanted = torch.cat([low, high], dim=2).unbind(1)
    stds = (0.033, 0.033, 0.067, 0.067)
    decoded = decode_boxes(source, encode_boxes(source, wanted, stds), stds)[:, 0]
    torch.testing.assert_close(decoded, wanted, rtol=1e-4, atol=1e-3)


def test_mask_targets_by_hand() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = True
    masks[1, 2:6, 2:6] = True
    found = mask_targets(
        masks, torch.tensor([0, 1, 0, 1]), boxes((0, 0, 8, 8), (2, 2, 6, 6), (-3, -3, 4, 40), (4, 4, 8, 8)), 4
    )
    left = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    corner = torch.zeros(4, 4)
    corner[:2, :2] = 1
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([left, torch.ones(4, 4), torch.ones(4, 4), corner]))
    assert mask_targets(masks.byte(), torch.zeros(0, dtype=torch.int64), boxes(), 4).shape == (0, 4, 4)


def test_mask_targets_take_no_memory_for_other_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(features: Tensor, rois: Tensor, **options: Any) -> Tensor:
        sizes.append(len(features))
        return roi_align(features, rois, **options)

    sizes: list[int] = []
    monkeypatch.setattr("dcnzoo.training.targets.roi_align", noted)
    masks = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    chosen, regions = torch.tensor([4, 1, 4]), boxes((0, 0, 8, 8), (1, 2, 6, 7), (3, 0, 8, 5))
    found = mask_targets(masks, chosen, regions, 4)
    assert sizes == [2]
    for row, (index, region) in enumerate(zip(chosen, regions, strict=True)):
        alone = mask_targets(masks[index][None], torch.tensor([0]), region[None], 4)
        assert torch.equal(found[row], alone[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((boxes((0, 0, 1, 1)), torch.zeros(2, dtype=torch.int64), None, boxes()), r"got \[\(1, 4\), \(2,\)"),
        ((boxes((0, 0, 1, 1)), torch.zeros(1), torch.zeros(2, 8, 8), boxes()), r"\(2, 8, 8\)"),
        ((boxes(), torch.zeros(0), None, torch.zeros(3)), r"\(3,\)"),
        ((boxes((0, 0, 1, 0)), torch.zeros(1), None, boxes()), "positive sides"),
    ],
)
def test_targets_that_are_none(arguments: tuple[Tensor, Tensor, Tensor | None, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(*arguments)
