"""The deformable layers of the detectors' backbones, for the benchmarks of the operator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A 3×3 deformable layer of a backbone, at 800×1333 pixels; height and width are its input's."""

    name: str
    channels: int
    height: int
    width: int
    groups: int = 1
    stride: int = 1


LAYERS = (
    Layer("R50 c3", 128, 100, 168),
    Layer("R50 c4", 256, 50, 84),
    Layer("R50 c5", 512, 25, 42),
    Layer("X101 c3", 256, 100, 168, 32),
    Layer("X101 c4", 512, 50, 84, 32),
    Layer("X101 c5", 1024, 25, 42, 32),
)

STRIDED_LAYERS = (
    Layer("R50 c3 first", 128, 200, 336, stride=2),
    Layer("R50 c4 first", 256, 100, 168, stride=2),
    Layer("R50 c5 first", 512, 50, 84, stride=2),
)
"""Of each stage the first block, which halves the map."""
