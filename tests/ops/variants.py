"""A program that compares every operator with its definition, and says with what it was computed.

The environment chooses the variant of the compiled kernels, or another backend: once per process.
"""

from __future__ import annotations

from dcnzoo import ops
from tests.ops import deform_conv2d_cases, dense_cases, roi_pool_cases


def main() -> None:
    """Ends with a message at the first error that is too large."""
    for cases in (deform_conv2d_cases, roi_pool_cases, dense_cases):
        cases.check()
    print(*ops.active_backend())


if __name__ == "__main__":
    main()
