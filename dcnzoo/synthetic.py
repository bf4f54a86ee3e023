"""Stand-ins for what a benchmark would otherwise have to download: random weights and a random picture.

What a detector costs depends on what it finds: with PyTorch's own initial values no class gets a score
above 0.05, so that suppression, mask heads and mask pasting have nothing to do. With the weights made here
every deformable convolution moves its samples by about a pixel, the proposal network gives its full 1000
proposals, and, on photos as on the random picture, 1000 to 3000 class scores exceed 0.05, of which the best
100 remain after suppression: the most that a trained detector returns. The detections mean nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dcnzoo.build import build_model
from dcnzoo.checkpoint import Checkpoint
from dcnzoo.manifest import Architecture

if TYPE_CHECKING:
    from numpy.typing import NDArray

GAINS = {
    # A residual block adds little. So features stay bounded through 33 of them, and what rounding differs by
    # does not grow into offsets, and in the end detections, that another program would not find again.
    "bn3.weight": 0.1,
    "conv_offset": 4.0,
    "offset_fc.4": 1.0,
    "rpn_cls": 2.0,
    "rpn_reg": 0.3,
    "fc_cls": 3.0,
    "fc_reg": 0.5,
    "conv_logits": 4.0,
}
"""Part of a tensor's name → how much its layer amplifies; elsewhere sqrt(2), which keeps a ReLU's scale."""

BACKGROUND_LOGIT = 6.0
"""Head start of the background over the other classes."""


def random_checkpoint(architecture: Architecture, num_classes: int, seed: int = 0) -> Checkpoint:
    """Makes the checkpoint of a detector with seeded random weights.

    Args:
        architecture: of the detector.
        num_classes: without the background.
        seed: of the weights.

    Returns:
        A checkpoint with the tensors of a published one.
    """
    with torch.device("meta"):
        layout = build_model(architecture, num_classes).state_dict()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _random_tensor(name, tensor.shape, generator)
        for name, tensor in layout.items()
        if tensor.is_floating_point()
    }
    return Checkpoint(Path("random"), tensors, classes=None, meta={})


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    gain = next((gain for part, gain in GAINS.items() if part in name), None)
    if name.endswith(("bias", "running_mean")):
        values = torch.zeros(shape)
        if name.endswith("fc_cls.bias"):
            values[-1] = BACKGROUND_LOGIT
        return values
    if len(shape) == 1:  # scale or variance of a batch norm
        return torch.full(shape, gain or 1.0)
    values = torch.randn(shape, generator=generator)
    # The features that follow a ReLU share a mean. Weights that are blind to it tell places apart; others
    # would give every place the same class.
    values -= values.mean(dim=tuple(range(1, len(shape))), keepdim=True)
    return values.mul_((gain or math.sqrt(2)) / math.sqrt(math.prod(shape[1:])))


def random_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draws overlapping shapes under a little noise; as a JPEG file it is about as large as a photo.

    Returns:
        (height, width, 3) RGB.
    """
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    for _ in range(80):
        left, top = random.uniform(-0.1, 1, 2) * (width, height)
        right, bottom = (left, top) + random.uniform(0.02, 0.3, 2) * max(width, height)
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        red, green, blue = random.integers(0, 256, 3).tolist()
        shape((left, top, right, bottom), fill=(red, green, blue))
    noisy = np.asarray(picture) + random.normal(0, 6, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)
