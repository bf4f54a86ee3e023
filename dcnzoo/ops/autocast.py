"""Automatic mixed precision: like a convolution, the operators compute in the lower one.

Their kernels accumulate in float32 and compute positions in float32, so that nothing asks for more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcnzoo.ops.types import SHORT_DTYPES

DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
"""Devices with an autocast rule, and the dispatch key of that rule."""


def lowered(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Casts tensors as autocast asks for on their device.

    Args:
        *tensors: of any shapes and dtypes, on one device; the first is no None.

    Returns:
        The tensors in autocast's dtype where it is enabled, except float64, integers and None: as they are.
    """
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if device not in DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    return lowered_to(torch.get_autocast_dtype(device), *tensors)


def lowered_to(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Casts tensors to a lower precision, except float64, integers and None: as they are."""
    lower = (torch.float32, *SHORT_DTYPES)
    return tuple(t if t is None or t.dtype not in lower else t.to(dtype) for t in tensors)


def register_rule(name: str, rule: Callable[..., tuple[object, ...]]) -> None:
    """Gives a compiled operator its rule for autocast.

    Args:
        name: of the operator in torch.ops.dcnzoo.
        rule: called with the dtype that autocast asks for, then the operator's arguments; returns those to
            call the operator with.
    """
    operator = getattr(torch.ops.dcnzoo, name)
    for device, key in DEVICES.items():

        def kernel(*arguments: object, device: str = device) -> object:
            lowered_arguments = rule(torch.get_autocast_dtype(device), *arguments)
            with torch.autocast(device, enabled=False):
                return operator(*lowered_arguments)

        _library.impl(name, kernel, key)  # type: ignore[no-untyped-call]


_library = torch.library.Library("dcnzoo", "IMPL")  # type: ignore[no-untyped-call]
