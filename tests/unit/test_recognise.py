"""Architectures are recognised by their tensors."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture, load_manifest
from dcnzoo.recognise import recognise
from tests.unit.test_build import SMALL

ARCHITECTURES = sorted({record.architecture.name for record in load_manifest().match()} | {*SMALL})


def tensors_of(name: str, num_classes: int = 3) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_model(Architecture.parse(name), num_classes).state_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    assert recognise(tensors_of(name)) == Architecture.parse(name)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("conv", ["dconv", "mdconv"])
def test_groups_of_offsets(conv: str, groups: int) -> None:
    architecture = Architecture.parse(f"faster_rcnn_r18_fpn_{conv}_c3-c5")
    expected = Architecture(**{**vars(architecture), "deform_groups": groups})
    assert recognise(tensors_of(expected.name)) == expected


PARTS = (
    "backbone.conv1.weight",
    "backbone.layer3.0.conv2.weight",
    "neck.lateral_convs.0.conv.weight",
    "roi_head.bbox_head.shared_fcs.0.weight",
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", [None, (), (0,), (7,), (3, 3, 3, 3)])
def test_no_detector(part: str, shape: tuple[int, ...] | None) -> None:
    tensors = tensors_of("faster_rcnn_r18w16_fpn16_fc16")
    del tensors[part]
    if shape is not None:
        tensors[part] = torch.empty(shape, device="meta")
    whole = part == "backbone.layer3.0.conv2.weight" and shape == (
        3,
        3,
        3,
        3,
    )  # only its groups are looked at
    assert (recognise(tensors) is None) == (not whole)


def test_other_depths() -> None:
    tensors = tensors_of("faster_rcnn_r50_fpn")
    fewer = {name: each for name, each in tensors.items() if not name.startswith("backbone.layer3.5.")}
    assert recognise(fewer) is None
    assert recognise({}) is None
