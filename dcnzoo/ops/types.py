"""Types that the operators share."""

from __future__ import annotations

Pair = tuple[int, int]
"""A value per axis: (vertical, horizontal)."""
