"""Random weights and pictures: repeatable, and as much work as real ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import dcnzoo
from dcnzoo.build import load_model
from dcnzoo.manifest import Architecture
from dcnzoo.synthetic import random_checkpoint, random_picture
from tests.pictures import noise

PICTURES = {"random picture": random_picture(120, 200), "noise": noise(120, 200)}


ARCHITECTURES = (
    "faster_rcnn_r50_fpn_dconv_c3-c5",
    "mask_rcnn_r50_fpn_mdconv_c3-c5_group4",
    "cascade_rcnn_r50_fpn",
    "faster_rcnn_r50_fpn_mdpool",
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def predictor(request: pytest.FixtureRequest) -> dcnzoo.Predictor:
    weights = random_checkpoint(Architecture.parse(request.param), 80)
    return dcnzoo.load(weights=weights, arch=request.param, device="cpu", short_side=96, long_side=160)


@pytest.mark.parametrize("picture", PICTURES)
def test_finds_as_much_as_a_detector_may(predictor: dcnzoo.Predictor, picture: str) -> None:
    found = predictor(PICTURES[picture])
    assert len(found) == 100
    assert len(set(found.names)) > 2
    assert found.scores.min() > 0.05
    assert np.isfinite(found.boxes).all()


def test_deep_features_stay_bounded_and_rounding_errors_small() -> None:
    architecture = Architecture.parse("faster_rcnn_x101_32x4d_fpn_dconv_c3-c5")
    model = load_model(architecture, random_checkpoint(architecture, 80))
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features, exact = model.backbone(picture), model.double().backbone(picture.double())
    for name, feature in features.items():
        assert 0.1 < feature.std() < 2
        assert (feature - exact[name]).abs().max() < 1e-4 * feature.std()


def test_the_seed_decides() -> None:
    architecture = Architecture.parse("faster_rcnn_r50_fpn")
    first, same, other = (random_checkpoint(architecture, 3, seed).state_dict for seed in (1, 1, 2))
    name = "backbone.conv1.weight"
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("size", [(480, 800), (1, 1), (3, 700)])
def test_picture(size: tuple[int, int]) -> None:
    picture = random_picture(*size)
    assert (picture.shape, picture.dtype) == ((*size, 3), np.uint8)
    assert (picture == random_picture(*size)).all()


def test_picture_is_as_heavy_as_a_photo() -> None:
    file = io.BytesIO()
    Image.fromarray(random_picture(480, 640)).save(file, "jpeg", quality=90)
    assert 50_000 < len(file.getvalue()) < 200_000
