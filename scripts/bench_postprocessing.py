"""Times what follows the network, suppression and masks, against torchvision and NumPy.

    python scripts/bench_postprocessing.py [--photo FILE] [--json FILE]

What a Mask R-CNN with random weights hands to the operators is recorded once, and given to the candidates in
turn in one process. One thread, and the processor's time, which other programs on the machine do not
lengthen much: the compiled operators use every thread of PyTorch, the others do not. The weights are such
that 1000 proposals and 100 detections remain.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torchvision.ops import batched_nms

from dcnzoo import ops
from dcnzoo.benchmark import Case, Model, Settings, load_predictor
from dcnzoo.hardware import hardware_stamp
from dcnzoo.models import boxes, rpn
from dcnzoo.ops import backend
from dcnzoo.predictor import Predictor
from dcnzoo.sources import read_image
from dcnzoo.synthetic import random_picture
from dcnzoo.text import table

MODEL = Model("mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco", None, None)
PICTURE_SIZE = (425, 640)


@dataclass(frozen=True)
class Step:
    """A step of the postprocessing: what runs compiled, and what ran before; both give the same.

    Attributes:
        name: what it does, and on how much.
        native: the compiled operator.
        other: torchvision's or NumPy's way.
    """

    name: str
    native: Callable[[], Any]
    other: Callable[[], Any]


def record_steps(predictor: Predictor, picture: Any) -> list[Step]:
    """Runs the detector once, and makes steps of what its operators were given."""
    suppressed: list[tuple[Any, ...]] = []
    pasted: list[tuple[Any, ...]] = []

    def suppress(*arguments: Any) -> Any:
        suppressed.append(arguments)
        return ops.batched_nms(*arguments)

    def paste(*arguments: Any) -> Any:
        pasted.append(arguments)
        return ops.paste_masks(*arguments)

    with (
        mock.patch.object(rpn, "batched_nms", suppress),
        mock.patch.object(boxes, "batched_nms", suppress),
        mock.patch("dcnzoo.predictor.paste_masks", paste),
    ):
        predictor.predict_batch([picture])
    proposals, detections = suppressed
    (masks,) = pasted
    return [
        suppression("suppression of proposals", proposals),
        suppression("suppression of detections", detections),
        Step(
            f"{len(masks[0])} masks, pasted and encoded",
            lambda: ops.paste_masks(*masks),
            lambda: without_compiled_operators(ops.paste_masks, masks),
        ),
    ]


def suppression(name: str, arguments: tuple[Any, ...]) -> Step:
    """A step that suppresses boxes."""
    title = f"{name}, {len(arguments[0])} boxes"
    return Step(title, lambda: ops.batched_nms(*arguments), lambda: batched_nms(*arguments))


def without_compiled_operators(operator: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Calls an operator as an installation without a compiler would."""
    with mock.patch.object(backend, "_chosen", ("torchvision", "to compare")):
        return operator(*arguments)


def measure(step: Step, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the processor, median and best, of the compiled operator and of the other way."""
    computations = {"native": step.native, "other": step.other}
    times: dict[str, list[float]] = {name: [] for name in computations}
    for _ in range(rounds):
        for name, computation in computations.items():
            start = time.process_time()
            computation()
            times[name].append((time.process_time() - start) * 1000)
    return {name: {"median": statistics.median(ms), "best": min(ms)} for name, ms in times.items()}


def cells(name: str, times: dict[str, dict[str, float]]) -> tuple[str, ...]:
    """A line of the table."""
    figures = [times[way][figure] for way in ("native", "other") for figure in ("median", "best")]
    return (name, *(f"{figure:.2f}" for figure in figures), f"{figures[2] / figures[0]:.1f}")


@click.command()
@click.option("--photo", metavar="FILE", help="Picture to detect in.  [default: a generated one]")
@click.option("--rounds", type=int, default=25, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def main(photo: str | None, rounds: int, json_file: Path | None) -> None:
    """Prints a table of medians and best times."""
    torch.set_num_threads(1)
    predictor = load_predictor(Case(MODEL, "cpu", "fp32", 1), Settings(()))
    picture = random_picture(*PICTURE_SIZE) if photo is None else read_image(photo)
    steps = record_steps(predictor, picture)
    times = {step.name: measure(step, rounds) for step in steps}
    titles = ("step", "compiled ms", "best", "torchvision, NumPy ms", "best", "times as fast")
    print(table([titles, *(cells(name, one) for name, one in times.items())], numbers=range(1, 6)))
    stamp = hardware_stamp(torch.device("cpu"))
    print(f"{stamp['cpu']}; load average {stamp['load_average']}")
    if json_file is not None:
        json_file.write_text(json.dumps({"stamp": stamp, "milliseconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
