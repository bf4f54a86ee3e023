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


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of a type are computed with: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """A tensor in the type that its values are computed with."""
    return tensor.to(wide_dtype(tensor.dtype))
