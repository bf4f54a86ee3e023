"""The region proposal network: its two ways to predict."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dcnzoo.models.rpn import RPNHead
from dcnzoo.ops import active_backend


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"p2": (24, 33), "p3": (12, 17), "p4": (6, 9), "p5": (3, 5), "p6": (2, 3)}
    return {
        name: torch.randn(2, 32, *size, generator=generator).to(memory_format=torch.channels_last)
        for name, size in sizes.items()
    }


@pytest.fixture
def head() -> RPNHead:
    torch.manual_seed(0)
    return RPNHead(32, num_candidates=50, num_proposals=40).requires_grad_(False)


@pytest.fixture
def packed(head: RPNHead) -> RPNHead:
    ready = copy.deepcopy(head)
    for layer in (ready, ready.rpn_conv, ready.rpn_cls, ready.rpn_reg):
        layer.pack()
    return ready


def test_packed_weights_predict_the_same(head: RPNHead, packed: RPNHead) -> None:
    assert (packed.packed_outputs is not None) == (active_backend()[0] == "native")
    for feature in features().values():
        for wanted, found in zip(head.predict(feature), packed.predict(feature), strict=True):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_packed_weights_propose_the_same(head: RPNHead, packed: RPNHead) -> None:
    sizes = [(96, 132), (90, 100)]
    for wanted, found in zip(head(features(), sizes), packed(features(), sizes), strict=True):
        assert len(wanted) == 40
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_deltas_belong_to_their_anchors(head: RPNHead) -> None:
    """Of one anchor only the objectness is high, and its box is moved by its own deltas."""
    logits, deltas = torch.full((1, 3, 4, 5), -9.0), torch.zeros(1, 12, 4, 5)
    logits[0, 1, 2, 3] = 9.0
    deltas[0, 4:8, 2, 3] = torch.tensor([0.5, -0.25, 0.0, 0.0])  # of the square anchor, 32 pixels wide
    best = head.propose({"p2": (logits, deltas)}, [(400, 400)], 10, 10)[0][0]
    torch.testing.assert_close(
        best[:4], torch.tensor([12.0, -16.0, 44.0, 16.0]).clamp(min=0), atol=1e-4, rtol=0
    )
    assert best[4] > 0.99
