"""Detectors with Deformable ConvNets, with the published MMDetection weights.

    import dcnzoo

    predictor = dcnzoo.load("faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco")
    detections = predictor("photo.jpg")

PyTorch is imported when the first of these names is used, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcnzoo.errors import DcnzooError as DcnzooError
    from dcnzoo.manifest import load_manifest as load_manifest
    from dcnzoo.predictor import Predictor as Predictor
    from dcnzoo.predictor import load as load
    from dcnzoo.results import Detections as Detections

__version__ = "0.1.0"

_HOME_OF = {
    "DcnzooError": "dcnzoo.errors",
    "Detections": "dcnzoo.results",
    "Predictor": "dcnzoo.predictor",
    "load": "dcnzoo.predictor",
    "load_manifest": "dcnzoo.manifest",
}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
