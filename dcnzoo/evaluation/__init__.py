"""How good detections are: COCO's metrics, and what goes wrong.

    annotation file → annotations ┐
    result file → results ────────┼→ scoring: coco_metrics, overlaps → confusion, error_types → report, curves
    model → collect → results ────┘

This module itself imports nothing heavy, so that the command line can name its options at once.
"""

from __future__ import annotations

from typing import Literal, get_args

CONFUSION_SCORE = 0.3
"""Least score of a detection in the confusion matrix when nothing else is asked for."""

EVALUATORS = {"pycocotools": "pycocotools", "faster-coco-eval": "faster_coco_eval"}
"""Packages that can compute COCO's metrics, and the modules that they are imported as."""

Kind = Literal["bbox", "segm"]
"""What is scored: boxes or masks, by pycocotools' names."""

KINDS: tuple[Kind, ...] = get_args(Kind)

PARTS = "parts"
"""Folder below the output folder with the shards, while the run goes on."""
