"""Eight pictures are learned by heart."""

from __future__ import annotations

import contextlib
import io
from math import cos, pi

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from dcnzoo.build import build_model, prepare_for_inference
from dcnzoo.manifest import Architecture
from dcnzoo.models.rcnn import RCNN, Instances
from dcnzoo.training.initialise import initialise_weights, prepare_for_training
from dcnzoo.training.losses import detection_losses
from dcnzoo.training.targets import Target

SIDE, NUM_IMAGES, NUM_STEPS, LEARNING_RATE = 96, 8, 150, 0.003
SIZES = [(SIDE, SIDE)] * NUM_IMAGES
COLOURS = torch.tensor([[-1.0, 0, 2], [2, 1, -1]])


def picture(index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
    """Noise, and on it one rectangle, or two side by side, in the colours of their classes."""
    image = 0.2 * torch.randn(3, SIDE, SIDE, generator=generator)
    count = 1 + index % 2
    boxes, labels = [], []
    for place in range(count):
        width, height = (SIDE * (0.3 + 0.2 * torch.rand(2, generator=generator))).int().tolist()
        free = torch.tensor([SIDE // count - width, SIDE - height])
        x, y = (free * torch.rand(2, generator=generator)).int().tolist()
        x += place * SIDE // count
        label = (index + place) % 2
        image[:, y : y + height, x : x + width] += COLOURS[label][:, None, None]
        boxes.append([x, y, x + width, y + height])
        labels.append(label)
    return image, Target(torch.tensor(boxes).float(), torch.tensor(labels), None, torch.zeros(0, 4))


def train(model: RCNN, images: Tensor, targets: list[Target], generator: torch.Generator) -> None:
    prepare_for_training(model, norm="trainable", frozen_stages=-1)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    for step in range(NUM_STEPS):
        share = min((step + 1) / 10, 0.5 + 0.5 * cos(pi * step / NUM_STEPS))
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * share
        losses = detection_losses(model, images, SIZES, targets, generator, roi_samples=64)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()


def as_coco(index: int, box: list[float], label: int, **more: object) -> dict[str, object]:
    left, top, right, bottom = box
    sides = right - left, bottom - top
    return {
        "image_id": index,
        "category_id": label,
        "bbox": [left, top, *sides],
        "area": sides[0] * sides[1],
    } | more


def average_precision(targets: list[Target], found: list[Instances]) -> float:
    objects, detections = [], []
    for index, (target, instances) in enumerate(zip(targets, found, strict=True)):
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            objects.append(as_coco(index, box, label, id=len(objects) + 1, iscrowd=0))
        for box, score, label in zip(*(values.tolist() for values in instances[:3]), strict=True):
            detections.append(as_coco(index, box, label, score=score))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": index} for index in range(NUM_IMAGES)],
        "categories": [{"id": label} for label in range(len(COLOURS))],
        "annotations": objects,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return float(evaluation.stats[0])


def test_eight_pictures_are_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, targets = zip(*[picture(index, generator) for index in range(NUM_IMAGES)], strict=True)
    images = torch.stack(pictures)
    model = build_model(Architecture.parse("faster_rcnn_r18w16_fpn32_fc128_dconv_c3-c5"), len(COLOURS))
    initialise_weights(model, generator)
    train(model, images, list(targets), generator)
    with torch.inference_mode():
        found = prepare_for_inference(model)(images, SIZES, SIZES)
    assert average_precision(list(targets), found) > 0.95
