"""Times a detector on a GPU, from resized pixels to detections on the host, in the ways that there are.

Eager, as CUDA graphs, and with the search for the fastest kernels; one batch after the other, and with the
next batch begun before the last one's detections are taken, as `dcnzoo predict` does. Weights are random:
1000 proposals and 100 detections per image.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcnzoo.benchmark import Case, Model, Settings, load_predictor
from dcnzoo.image import PreparedImage
from dcnzoo.ops.gpu import gpu_is_well, gpu_problem
from dcnzoo.predictor import Predictor
from dcnzoo.results import Detections
from dcnzoo.synthetic import random_picture

MODEL = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco"
WAYS = {
    "eager": (False, False),
    "graphs": (True, False),
    "eager, search": (False, True),
    "graphs, search": (True, True),
}
"""Whether there are graphs, and a search."""

PICTURES = 8
"""Different batches, of one shape."""


@dataclass(frozen=True)
class Timing:
    """What was measured of a way.

    Attributes:
        precision: of the model.
        batch_size: images.
        way: of `WAYS`.
        batch_ms: median of a batch, from resized pixels to detections, with nothing else under way.
        images_per_second: with the next batch begun before the last is taken.
        allocated_gib: most memory of tensors at once; what a graph keeps for its own is not in it.
        reserved_gib: most memory that PyTorch held, graphs' included.
    """

    precision: str
    batch_size: int
    way: str
    batch_ms: float
    images_per_second: float
    allocated_gib: float
    reserved_gib: float


Batch = Sequence[PreparedImage]
Finish = Callable[[], list[Detections]]


def one_by_one(predictor: Predictor, batches: Sequence[Batch]) -> list[float]:
    """Seconds of each batch."""
    times = []
    for batch in batches:
        start = time.perf_counter()
        predictor.predict_prepared(batch)
        times.append(time.perf_counter() - start)
    return times


def in_flight(predictor: Predictor, batches: Sequence[Batch]) -> float:
    """Seconds of all batches, two of which are under way at a time."""
    start = time.perf_counter()
    last: Finish | None = None
    for batch in batches:
        begun = predictor.begin_prepared(batch)
        if last is not None:
            last()
        last = begun
    if last is not None:
        last()
    return time.perf_counter() - start


def measure(case: Case, settings: Settings, way: str) -> Timing:
    """Loads and times a detector."""
    graphs, torch.backends.cudnn.benchmark = WAYS[way]
    on_gpu = case.device != "cpu"  # where the tests run it
    if on_gpu:
        gc.collect()  # what the way before has held
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    predictor = load_predictor(case, replace(settings, cuda_graphs=graphs))
    picture = random_picture(480, 800)
    pictures = [predictor.prepare(np.roll(picture, 90 * n, axis=1)) for n in range(PICTURES)]
    batches = [[pictures[(n + i) % PICTURES] for i in range(case.batch_size)] for n in range(PICTURES)]

    def take(count: int) -> list[Batch]:
        return [batches[n % PICTURES] for n in range(count)]

    one_by_one(predictor, take(settings.warmup))
    batch_seconds = statistics.median(one_by_one(predictor, take(settings.repeats)))
    in_flight(predictor, take(2))
    rate = settings.repeats * case.batch_size / in_flight(predictor, take(settings.repeats))
    memory = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if on_gpu else (0, 0)
    return Timing(
        *(case.precision, case.batch_size, way, round(1000 * batch_seconds, 3), round(rate, 2)),
        *(round(size / 2**30, 3) for size in memory),
    )


def table(report: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        f"{report['model']}, random weights.",
        "",
        "| precision | batch | way | ms per batch alone | images/s, two batches under way | GiB allocated"
        " | GiB reserved |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["timings"]:
        timing = Timing(**row)
        cells = (
            *(timing.precision, timing.batch_size, timing.way, f"{timing.batch_ms:.2f}"),
            *(f"{timing.images_per_second:.1f}", f"{timing.allocated_gib:.2f}", f"{timing.reserved_gib:.2f}"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines + [line for failure in report["failures"] for line in ("", f"**Failed**: {failure}")]


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="A name of `dcnzoo list`, or an architecture.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", nargs="+", default=["fp16"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--short-side", type=int, help="Of resized pictures.")
    parser.add_argument("--warmup", type=int, default=4, help="Batches; a graph is captured at the second.")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="Write the numbers here too.")
    options = parser.parse_args()
    problem = gpu_problem() if options.device != "cpu" else None
    if problem is not None:
        raise SystemExit(problem)
    named = options.model.endswith("_coco")
    model = Model(options.model if named else None, None if named else options.model, None)
    settings = Settings((), options.warmup, options.repeats, short_side=options.short_side)
    timings: list[Timing] = []
    failures: list[str] = []
    report: dict[str, Any] = {"model": options.model, "timings": [], "failures": failures}
    for precision, batch_size, way in product(options.precision, options.batch_size, WAYS):
        try:
            case = Case(model, options.device, precision, batch_size)
            timings.append(measure(case, settings, way))
            print(timings[-1], flush=True)
        except RuntimeError as error:  # the next may say more
            failures.append(f"{precision}, batch {batch_size}, {way}: {str(error).partition(chr(10))[0]}")
            print(failures[-1], flush=True)
        report["timings"] = [asdict(timing) for timing in timings]
        if options.json is not None:  # each time, for it may be stopped
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if options.device != "cpu" and not gpu_is_well():
            break
    print("\n".join(table(report)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
