"""Measures whole detectors beside torchvision's plain ones, and compares with the reference implementation.

    python scripts/bench_detector.py [--photo FILE] [--model NAME ...] [--json FILE]

Everything runs in one process, in turn, on the same picture: a round measures each detector once, and the
medians over the rounds are compared. MMDetection itself is not run. Its times on another machine are known,
and so is torchvision's plain Faster R-CNN on that machine: how long that takes here scales the times of the
reference to this machine. Memory is measured afterwards, each detector in a process of its own.

The weights are random: ours such that 1000 proposals and 100 detections remain, as when the reference was
measured; torchvision's own initial ones, which find nothing, to its advantage. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torchvision.models import detection as plain_detectors

from dcnzoo.benchmark import MODEL_STAGES, Case, Model, Settings, StageClock, load_predictor, measure
from dcnzoo.cli.table import table
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import cpu, hardware_stamp, operators
from dcnzoo.image import PreparedImage, prepare_image
from dcnzoo.manifest import Preprocessing, load_manifest
from dcnzoo.predictor import Predictor, StageTimes
from dcnzoo.sources import read_image
from dcnzoo.synthetic import random_picture

PICTURE_SIZE = (425, 640)
"""Becomes 800x1205, padded to 800x1216: as the photo that the reference was measured with."""

REFERENCE_INPUT = (800, 1216)
STAGES = (*MODEL_STAGES, "postprocess")
FASTER_PLAIN, MASK_PLAIN = "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"

PLAIN_MS = {FASTER_PLAIN: 3376, MASK_PLAIN: 3244}
"""Of torchvision's plain detectors on the reference's machine, 2 threads, batch 1, float32."""


@dataclass(frozen=True)
class Reference:
    """MMDetection 3.5.1 with its compiled operators, on the same machine as `PLAIN_MS`.

    Attributes:
        milliseconds: backbone, neck, RPN and RoI head, in total.
        peak_gb: peak of resident memory, GB.
        bar: how many times faster ours has to be.
    """

    milliseconds: int
    peak_gb: float
    bar: float


REFERENCES = {
    "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco": Reference(4817, 1.27, 3.5),
    "faster_rcnn_r101_fpn_dconv_c3-c5_1x_coco": Reference(7888, 1.32, 3.5),
    "faster_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco": Reference(11962, 1.62, 6.0),
    "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco": Reference(7046, 1.63, 5.0),
    "cascade_mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco": Reference(9373, 1.76, 5.0),
}


@dataclass(frozen=True)
class Measured:
    """Of one of our detectors, in one precision; times are medians in milliseconds.

    Attributes:
        model: its name.
        precision: of the computation.
        stages: milliseconds per stage of `STAGES`.
        total: milliseconds from the input tensor to boxes and encoded masks.
        plain: milliseconds of torchvision's plain counterpart, in the same rounds.
        reference: milliseconds of the reference, scaled to this machine; None where it was not measured.
        bar: how many times faster than that it has to be, likewise.
        peak_gb: peak of resident memory, GB; None where it was not asked for.
        reference_peak_gb: of the reference; None where it was not measured.
    """

    model: str
    precision: str
    stages: dict[str, float]
    total: float
    plain: float
    reference: float | None
    bar: float | None
    peak_gb: float | None
    reference_peak_gb: float | None


def main() -> None:
    """Measures, prints the tables and writes the file."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    preprocessing = Preprocessing(short_side=arguments.short_side, long_side=arguments.short_side * 5 // 3)
    with tempfile.TemporaryDirectory() as folder:
        photo = arguments.photo or write_picture(Path(folder))
        prepared = prepare_image(read_image(photo), preprocessing)
        settings = Settings(
            (str(photo),),
            warmup=1,
            repeats=2,
            threads=arguments.threads,
            short_side=preprocessing.short_side,
            long_side=preprocessing.long_side,
        )
        cases = [
            Case(Model(name, None, None), "cpu", precision, 1)
            for name in arguments.model
            for precision in arguments.precision
        ]
        times, input_size = measure_in_turn(cases, settings, prepared, arguments.rounds)
        peaks = {} if arguments.no_memory else measure_memory(cases, settings)
    comparable = input_size == REFERENCE_INPUT and not arguments.quick
    rows = [compare(case, times, peaks.get(case), comparable) for case in cases]
    print("\n".join(report(rows, times, input_size, comparable)))
    if arguments.json is not None:
        content = {
            "stamp": hardware_stamp(torch.device("cpu")),
            "input_size": input_size,
            "rounds": arguments.rounds,
            "torchvision": {name: times[name]["total"] for name in PLAIN_MS},
            "scale": times[FASTER_PLAIN]["total"] / PLAIN_MS[FASTER_PLAIN],
            "detectors": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photo", type=Path, help="a picture to measure with; by default one is generated")
    parser.add_argument("--model", nargs="+", help="names of the manifest; by default those of the reference")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, help="measurements of each detector; by default 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out the measurement of memory")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument(
        "--quick", action="store_true", help="small picture, 2 rounds: shows only that it runs"
    )
    arguments = parser.parse_args()
    arguments.short_side = 96 if arguments.quick else 800
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.model = arguments.model or list(REFERENCES)[: 1 if arguments.quick else None]
    for name in arguments.model:
        load_manifest().find(name)
    return arguments


def write_picture(folder: Path) -> Path:
    """Generates a picture in a folder."""
    path = folder / "picture.jpg"
    Image.fromarray(random_picture(*PICTURE_SIZE)).save(path, quality=90)
    return path


def measure_in_turn(
    cases: Sequence[Case], settings: Settings, prepared: PreparedImage, rounds: int
) -> tuple[dict[Case | str, dict[str, float]], tuple[int, int]]:
    """Measures torchvision's detectors and ours, one after the other in every round.

    Returns:
        Median milliseconds per stage and in total, by case or torchvision's name; and the size of the input.
    """
    with ExitStack() as stack:
        ours: dict[Case | str, OwnDetector] = {
            case: stack.enter_context(OwnDetector(load_predictor(case, settings), prepared)) for case in cases
        }
        input_size = next(iter(ours.values())).warm_up()
        plain = {name: load_plain(name, prepared, input_size) for name in PLAIN_MS}
        detectors: dict[Case | str, Callable[[], dict[str, float]]] = {**plain, **ours}
        samples: dict[Case | str, list[dict[str, float]]] = {name: [] for name in detectors}
        for number in range(rounds + 1):
            for name, detect in detectors.items():
                seconds = detect()
                if number:  # the first round warms up
                    samples[name].append(seconds)
                    print(f"round {number}: {seconds['total'] * 1000:6.0f} ms  {name}", file=sys.stderr)
    medians = {
        name: {stage: 1000 * median(sample[stage] for sample in taken) for stage in taken[0]}
        for name, taken in samples.items()
    }
    return medians, input_size


class OwnDetector:
    """One of ours on one picture; when called, it detects and returns the seconds per stage."""

    def __init__(self, predictor: Predictor, prepared: PreparedImage) -> None:
        self._predictor, self._prepared = predictor, prepared
        self._clock = StageClock(predictor.model, predictor.device)

    def __enter__(self) -> OwnDetector:
        self._clock.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._clock.__exit__(*exception)

    def warm_up(self) -> tuple[int, int]:
        """Detects once; returns (height, width) of the padded input."""
        self()
        return self._clock.input_size

    def __call__(self) -> dict[str, float]:
        """Detects; returns the seconds of each stage and in total."""
        times = StageTimes()
        self._predictor.predict_prepared([self._prepared], times=times)
        # The input tensor is given to torchvision's detectors, too: making it does not count.
        total = times["inference"] + times["postprocess"]
        return {**self._clock.take(), "postprocess": times["postprocess"], "total": total}


def load_plain(
    name: str, prepared: PreparedImage, input_size: tuple[int, int]
) -> Callable[[], dict[str, float]]:
    """Returns what runs one of torchvision's detectors on the padded picture, as it is, without a resize."""
    torch.manual_seed(0)
    build = getattr(plain_detectors, name)
    sides = {"min_size": min(input_size), "max_size": max(input_size)}
    model = build(weights=None, weights_backbone=None, box_score_thresh=0.05, **sides).eval()
    height, width = prepared.pixels.shape[:2]
    image = torch.zeros(3, *input_size)
    image[:, :height, :width] = torch.from_numpy(prepared.pixels).permute(2, 0, 1) / 255

    def detect() -> dict[str, float]:
        start = time.perf_counter()
        with torch.inference_mode():
            model([image])
        return {"total": time.perf_counter() - start}

    return detect


def measure_memory(cases: Sequence[Case], settings: Settings) -> dict[Case, float]:
    """Measures the peak of resident memory in GB (10^9 bytes), from loading to the detections."""
    return {case: run_apart(partial(measure, case, settings)).memory.host_gib * 2**30 / 1e9 for case in cases}


def compare(
    case: Case, times: dict[Case | str, dict[str, float]], peak_gb: float | None, comparable: bool
) -> Measured:
    """Puts a detector beside its plain counterpart and, on the reference's input, beside the reference."""
    name = str(case.model.name)
    reference = REFERENCES.get(name) if comparable else None
    has_masks = load_manifest().find(name).architecture.has_masks
    scale = times[FASTER_PLAIN]["total"] / PLAIN_MS[FASTER_PLAIN]
    return Measured(
        model=name,
        precision=case.precision,
        stages={stage: times[case][stage] for stage in STAGES},
        total=times[case]["total"],
        plain=times[MASK_PLAIN if has_masks else FASTER_PLAIN]["total"],
        reference=reference and reference.milliseconds * scale,
        bar=reference and reference.bar,
        peak_gb=peak_gb,
        reference_peak_gb=reference and reference.peak_gb,
    )


def report(
    rows: Sequence[Measured],
    times: dict[Case | str, dict[str, float]],
    input_size: tuple[int, int],
    comparable: bool,
) -> list[str]:
    """Lines of the report: the stages, the comparison, and what it was measured on."""
    stages = table(
        [
            ("median ms", "precision", *STAGES, "total"),
            *(
                (
                    row.model,
                    row.precision,
                    *(f"{row.stages[stage]:.0f}" for stage in STAGES),
                    f"{row.total:.0f}",
                )
                for row in rows
            ),
            *(
                (f"torchvision {name}", "fp32", *[""] * len(STAGES), f"{times[name]['total']:.0f}")
                for name in PLAIN_MS
            ),
        ],
        numbers=range(2, 3 + len(STAGES)),
    )
    titles = (
        "",
        "precision",
        "times plain",
        "times reference",
        "bar",
        "speed",
        "peak GB",
        "reference GB",
        "memory",
    )
    comparison = table([titles, *map(comparison_cells, rows)], numbers=range(2, 9))
    scale = times[FASTER_PLAIN]["total"] / PLAIN_MS[FASTER_PLAIN]
    processor, backend = cpu(), operators()
    lines = [
        f"input {input_size[0]}x{input_size[1]}, batch 1, {processor['threads of PyTorch']} threads",
        "",
        stages,
        "",
    ]
    lines += ["how many times as fast as torchvision's plain detector and as the reference:", comparison, ""]
    if comparable:
        lines.append(
            f"the reference's times are scaled by {scale:.3f}: torchvision's {FASTER_PLAIN} takes"
            f" {times[FASTER_PLAIN]['total']:.0f} ms here and {PLAIN_MS[FASTER_PLAIN]} ms on its machine"
        )
    else:
        lines.append("not compared with the reference, whose input was {}x{}".format(*REFERENCE_INPUT))
    lines.append(f"{processor['model']}, {processor['vector instructions']}; operators: {backend['backend']}")
    return lines


def comparison_cells(row: Measured) -> tuple[str, ...]:
    """A row of the table that compares."""
    speedup = None if row.reference is None else row.reference / row.total
    return (
        row.model,
        row.precision,
        f"{row.plain / row.total:.2f}",
        number(speedup),
        number(row.bar),
        verdict(row.bar, speedup),
        number(row.peak_gb),
        number(row.reference_peak_gb),
        verdict(row.peak_gb, row.reference_peak_gb),
    )


def number(value: float | None) -> str:
    """Two digits after the point, a dash for nothing."""
    return "-" if value is None else f"{value:.2f}"


def verdict(low: float | None, high: float | None) -> str:
    """Whether what should be low does not exceed what should be high; a dash where one is not known."""
    return "-" if low is None or high is None else "holds" if low <= high else "MISSED"


if __name__ == "__main__":
    main()
