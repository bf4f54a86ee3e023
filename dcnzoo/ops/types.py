"""Types that the operators share."""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[int, int]
"""A value per axis: (vertical, horizontal)."""

SHORT_DTYPES = (torch.float16, torch.bfloat16)
"""Floats that everything computes with as float32."""

KERNEL_DTYPES = (torch.float32, torch.float64, *SHORT_DTYPES)
"""What the compiled deformable operators compute with."""


def widened(tensor: Tensor) -> Tensor:
    """A tensor of short floats as float32; every other one as it is."""
    return tensor.float() if tensor.dtype in SHORT_DTYPES else tensor
