"""Batches to learn from: order, augmentation, and objects that stay where they are in the picture."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import torch

from dcnzoo.errors import ImageReadError, TrainingError
from dcnzoo.manifest import Preprocessing
from dcnzoo.processes import Share
from dcnzoo.training.batches import Augmentation, BatchLoader, LoadSettings, TrainingBatch, plan_epoch
from dcnzoo.training.dataset import TrainingSet, read_training_set
from tests.pictures import noise, save
from tests.training_room import HEIGHT, WIDTH, furnish

PREPROCESSING = Preprocessing(48, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def training_set(tmp_path: Path) -> TrainingSet:
    room = furnish(tmp_path, images=5)
    return read_training_set(room / "train.json", room / "images", masks=True)


def loader(training_set: TrainingSet, batch_size: int = 2, **options: object) -> BatchLoader:
    settings = {"preprocessing": PREPROCESSING, "augmentation": Augmentation((48,)), "masks": True, **options}
    return BatchLoader(training_set.images, LoadSettings(batch_size, **settings))  # type: ignore[arg-type]


def batches(
    training_set: TrainingSet, epoch: int = 0, start: int = 0, **options: object
) -> list[TrainingBatch]:
    with loader(training_set, **options) as made, made.epoch(epoch, start) as found:  # type: ignore[arg-type]
        return list(found)


def assert_equal(found: list[TrainingBatch], expected: list[TrainingBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        for target, wanted in zip(one.targets, other.targets, strict=True):
            for name, tensor in vars(target).items():
                assert torch.equal(tensor, getattr(wanted, name))


class TestPlan:
    WIDE = np.arange(23) % 3 == 0

    @pytest.mark.parametrize("processes", [1, 2, 3])
    def test_every_image_in_whole_batches_of_one_kind(self, processes: int) -> None:
        plan = plan_epoch(self.WIDE, 4, processes, seed=1, epoch=0)
        assert len(plan) % processes == 0
        assert set(chain(*plan)) == set(range(23))
        assert all(len(batch) == 4 for batch in plan)
        assert all(len(set(self.WIDE[batch])) == 1 for batch in plan)

    def test_no_more_repetitions_than_needed(self) -> None:
        plan = plan_epoch(self.WIDE, 4, 1, seed=1, epoch=0)
        assert len(plan) == 2 + 4  # of 8 wide and 15 upright ones

    def test_it_follows_from_seed_and_epoch(self) -> None:
        plans = {
            (seed, epoch): plan_epoch(self.WIDE, 4, 1, seed, epoch) for seed in (1, 2) for epoch in (0, 1)
        }
        assert plans[1, 0] == plan_epoch(self.WIDE, 4, 1, 1, 0)
        assert len({str(plan) for plan in plans.values()}) == 4

    def test_few_images(self) -> None:
        (batch,) = plan_epoch(np.array([True]), 4, 1, 0, 0)
        assert batch == [0, 0, 0, 0]


def test_processes_share_the_batches(training_set: TrainingSet) -> None:
    shares = [batches(training_set, share=Share(rank, 2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    names = [name for share in shares for batch in share for name in batch.names]
    assert set(names) == {f"{number}.png" for number in range(5)}


def test_readers_change_nothing(training_set: TrainingSet) -> None:
    sides = Augmentation((32, 40, 48))
    alone = batches(training_set, epoch=3, augmentation=sides)
    assert_equal(batches(training_set, epoch=3, augmentation=sides, workers=2), alone)


def test_an_interruption_changes_nothing(training_set: TrainingSet) -> None:
    whole = batches(training_set, epoch=1)
    assert_equal(batches(training_set, epoch=1, start=1), whole[1:])


def test_augmentation_varies_with_image_and_epoch() -> None:
    augmentation = Augmentation((1, 2, 3, 4), 0.5, 0.5)
    drawn = {augmentation.draw(7, epoch, index) for epoch in range(10) for index in range(20)}
    assert drawn == set(product((1, 2, 3, 4), (False, True), (False, True)))
    assert augmentation.draw(7, 2, 5) == augmentation.draw(7, 2, 5)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("short_side", [48, 96, 30])
def test_objects_stay_where_they_are_in_the_picture(
    training_set: TrainingSet, short_side: int, flips: tuple[float, float]
) -> None:
    """The rectangles are brighter than anything else: picture, boxes and masks must agree."""
    long_side = short_side * WIDTH // HEIGHT
    found = batches(
        training_set,
        preprocessing=Preprocessing(short_side, long_side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        augmentation=Augmentation((short_side,), *flips),
    )
    for batch in found:
        assert batch.images.shape[-2:] == (-(-short_side // 32) * 32, -(-long_side // 32) * 32)
        for pixels, target in zip(batch.images, batch.targets, strict=True):
            assert target.masks is not None
            bright = pixels.amax(dim=0) > 140
            masks = target.masks.any(dim=0)
            assert (bright != masks).float().mean() < 0.04
            for box, label, mask in zip(target.boxes, target.labels, target.masks, strict=True):
                rows, columns = torch.where(mask)
                edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (edges - box).abs().max() <= 1
                red, _, blue = pixels[:, mask].mean(dim=1)
                assert (red > blue) == (label == 0)


@pytest.mark.parametrize(
    ("flips", "low", "high", "size"), [((1.0, 0.0), 0, 2, WIDTH), ((0.0, 1.0), 1, 3, HEIGHT)]
)
def test_boxes_are_mirrored_exactly(
    training_set: TrainingSet, flips: tuple[float, float], low: int, high: int, size: int
) -> None:
    straight, mirrored = (
        {name: target for batch in found for name, target in zip(batch.names, batch.targets, strict=True)}
        for found in (
            batches(training_set, augmentation=Augmentation((48,), *each)) for each in ((0.0, 0.0), flips)
        )
    )
    for name, target in straight.items():
        boxes = target.boxes.clone()
        boxes[:, [low, high]] = size - boxes[:, [high, low]]
        assert torch.equal(mirrored[name].boxes, boxes)


def test_an_image_that_has_changed(training_set: TrainingSet) -> None:
    save(training_set.images[0].file, noise(20, 20))
    with pytest.raises(TrainingError, match=r"0\.png has changed"):
        batches(training_set)


def test_an_image_that_is_gone(training_set: TrainingSet) -> None:
    training_set.images[0].file.unlink()
    with pytest.raises(ImageReadError):
        batches(training_set)
