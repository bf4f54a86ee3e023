"""What the derivatives of all compiled operators share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_second_derivatives(function: str, *operators: str) -> None:
    """Makes the operators that compute derivatives say that they have none themselves.

    Args:
        function: whose derivatives they compute.
        *operators: names in torch.ops.dcnzoo.
    """

    def refuse(ctx: Any, *grads: Tensor) -> None:
        del ctx, grads
        raise RuntimeError(f"{function} has no second derivatives")

    for name in operators:
        torch.library.register_autograd(f"dcnzoo::{name}", refuse)
