"""Measures whole detectors beside torchvision's plain ones, and compares with the reference implementation.

    python scripts/bench_detector.py [--mmdetection] [--photo FILE] [--model NAME ...] [--json FILE]

Everything runs in one process, in turn, on the same picture: in a round each detector runs twice, of which
the second time counts, and the medians over the rounds are compared. Memory is measured afterwards, each
detector in a process of its own.

With --mmdetection the reference is measured, too: MMDetection itself, which has to be installed (see
docs/bench.md), runs right before ours in every round, with the same weights. How many times as fast ours is,
is the median over the rounds of the ratio of the two times, and what both found is compared.

Otherwise that is estimated: MMDetection's times on another machine are known, and so is torchvision's plain
Faster R-CNN on that machine. How long that takes here scales the times of the reference to this machine.

The weights are random: ours such that 1000 proposals and 100 detections remain, as when the reference was
measured; torchvision's own initial ones, which find nothing, to its advantage. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import mmdetection_detector
import numpy as np
import torch
from mmdetection_detector import MMDetector
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.benchmark import MODEL_STAGES, Case, Model, Settings, StageClock, load_predictor, measure
from dcnzoo.errors import DcnzooError
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import cpu, hardware_stamp, operators
from dcnzoo.image import PreparedImage, prepare_image
from dcnzoo.manifest import Preprocessing, Record, load_manifest
from dcnzoo.predictor import Predictor
from dcnzoo.results import Detections
from dcnzoo.sources import read_image
from dcnzoo.synthetic import random_picture
from dcnzoo.text import table
from dcnzoo.times import StageTimes

PICTURE_SIZE = (425, 640)
"""Becomes 800x1205, padded to 800x1216: as the photo that the reference was measured with."""

REFERENCE_INPUT = (800, 1216)
STAGES = (*MODEL_STAGES, "postprocess")
FASTER_PLAIN, MASK_PLAIN = "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"

PLAIN_MS = {FASTER_PLAIN: 3376, MASK_PLAIN: 3244}
"""Of torchvision's plain detectors on the reference's machine, 2 threads, batch 1, float32."""

SAME_IOU, SAME_SCORE = 0.98, 2e-3
"""Two detections of one label are the same if their boxes overlap so much and their scores differ no more."""

Key: TypeAlias = "Case | str"
"""Of what is measured: a case of ours, or the name of another detector."""


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
class MeasuredReference:
    """MMDetection's counterpart of one of ours, measured in the same rounds in float32.

    Attributes:
        stages: median milliseconds per stage of `MODEL_STAGES`.
        total: median milliseconds from the input tensor to boxes and masks, which it does not encode.
        ratio: median over the rounds of its time / ours.
        detections: how many it found.
        same: how many of them ours found, too.
        peak_gb: peak of resident memory, GB; None where it was not asked for.
    """

    stages: dict[str, float]
    total: float
    ratio: float
    detections: int
    same: int
    peak_gb: float | None


@dataclass(frozen=True)
class Measured:
    """Of one of our detectors, in one precision; times are medians in milliseconds.

    Attributes:
        model: its name.
        precision: of the computation.
        stages: milliseconds per stage of `STAGES`.
        total: milliseconds from the input tensor to boxes and encoded masks.
        plain: milliseconds of torchvision's plain counterpart, in the same rounds.
        estimate: known milliseconds of the reference, scaled to this machine; None where none are known.
        bar: how many times faster than the reference it has to be, likewise.
        known_peak_gb: of the reference on another machine, likewise.
        peak_gb: peak of resident memory, GB; None where it was not asked for.
        reference: the reference itself; None where it was not measured.
    """

    model: str
    precision: str
    stages: dict[str, float]
    total: float
    plain: float
    estimate: float | None
    bar: float | None
    known_peak_gb: float | None
    peak_gb: float | None
    reference: MeasuredReference | None

    @property
    def times_reference(self) -> float | None:
        """How many times faster than the reference: measured if it was, or else estimated."""
        if self.reference is not None:
            return self.reference.ratio
        return None if self.estimate is None else self.estimate / self.total

    @property
    def reference_peak_gb(self) -> float | None:
        """Peak of the reference: on this machine if it was measured, or else the known one."""
        return self.known_peak_gb if self.reference is None else self.reference.peak_gb


@dataclass(frozen=True)
class Rounds:
    """What was measured in turn.

    Attributes:
        input_size: (height, width) of the padded input.
        samples: seconds per stage and in total, of every round.
        found: what ours and the reference found.
    """

    input_size: tuple[int, int]
    samples: dict[Key, list[dict[str, float]]]
    found: dict[Key, Detections]

    def milliseconds(self, key: Key) -> dict[str, float]:
        """Medians over the rounds, per stage and in total."""
        taken = self.samples[key]
        return {stage: 1000 * median(sample[stage] for sample in taken) for stage in taken[0]}

    def ratio(self, key: Key, other: Key) -> float:
        """Median over the rounds of how many times as long the first takes as the other."""
        pairs = zip(self.samples[key], self.samples[other], strict=True)
        return median(sample["total"] / others["total"] for sample, others in pairs)

    @property
    def scale(self) -> float:
        """How many times as long this machine takes as the one that the reference was measured on."""
        return self.milliseconds(FASTER_PLAIN)["total"] / PLAIN_MS[FASTER_PLAIN]


def main() -> None:
    """Measures, prints the tables and writes the file."""
    try:
        run(parse_arguments())
    except DcnzooError as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line asks for.

    Raises:
        DcnzooError: a detector cannot be loaded, or the picture cannot be read.
    """
    records = [load_manifest().find(name) for name in arguments.model]
    versions = None
    if arguments.mmdetection:
        versions = mmdetection_detector.package_versions()
        for record in records:
            mmdetection_detector.find_config(record.architecture)
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
            Case(Model(record.name, None, None), "cpu", precision, 1)
            for record in records
            for precision in arguments.precision
        ]
        counterparts = records if arguments.mmdetection else []
        rounds = measure_in_turn(cases, counterparts, settings, prepared, arguments.rounds)
        peaks = {} if arguments.no_memory else measure_memory(cases, counterparts, settings, prepared)
    comparable = rounds.input_size == REFERENCE_INPUT and not arguments.quick
    rows = [compare(case, rounds, peaks, comparable) for case in cases]
    print("\n".join(report(rows, rounds, comparable, versions)))
    if arguments.json is not None:
        content = {
            "stamp": hardware_stamp(torch.device("cpu")),
            "mmdetection": versions,
            "input_size": rounds.input_size,
            "rounds": arguments.rounds,
            "torchvision": {name: rounds.milliseconds(name)["total"] for name in PLAIN_MS},
            "scale": rounds.scale,
            "detectors": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mmdetection",
        action="store_true",
        help="measure MMDetection itself, instead of estimating its times",
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
    return arguments


def write_picture(folder: Path) -> Path:
    """Generates a picture in a folder."""
    path = folder / "picture.jpg"
    Image.fromarray(random_picture(*PICTURE_SIZE)).save(path, quality=90)
    return path


def measure_in_turn(
    cases: Sequence[Case],
    counterparts: Sequence[Record],
    settings: Settings,
    prepared: PreparedImage,
    count: int,
) -> Rounds:
    """Measures torchvision's detectors, MMDetection's and ours, one after the other in every round.

    Args:
        cases: what is measured of ours.
        counterparts: what is measured of MMDetection's, each right before ours.
        settings: how ours are loaded.
        prepared: the picture.
        count: number of rounds.
    """
    with ExitStack() as stack:
        ours = {
            case: stack.enter_context(OwnDetector(load_predictor(case, settings), prepared)) for case in cases
        }
        input_size = next(iter(ours.values())).warm_up()
        reference = {mmdetection_key(record.name): MMDetector(record, prepared) for record in counterparts}
        detectors: dict[Key, Callable[[], dict[str, float]]] = {}
        for name in PLAIN_MS:
            detectors[name] = load_plain(name, prepared, input_size)
        for case in cases:
            counterpart = mmdetection_key(case.model.name)
            if counterpart in reference:
                detectors[counterpart] = reference[counterpart]
            detectors[case] = ours[case]
        samples: dict[Key, list[dict[str, float]]] = {key: [] for key in detectors}
        for number in range(count + 1):
            for key, detect in detectors.items():
                detect()  # what was not used while the others ran comes back, up to a tenth of the time
                seconds = detect()
                if number:  # the first round warms up
                    samples[key].append(seconds)
                    print(f"round {number}: {seconds['total'] * 1000:6.0f} ms  {key}", file=sys.stderr)
        found: dict[Key, Detections] = {case: detector.found for case, detector in ours.items()}
        found |= {name: detector.found for name, detector in reference.items()}
    return Rounds(input_size, samples, found)


def mmdetection_key(model: str | None) -> str:
    """Name of MMDetection's counterpart of one of our models."""
    return f"MMDetection {model}"


class OwnDetector:
    """One of ours on one picture; when called, it detects and returns the seconds per stage.

    Attributes:
        found: what the last call found.
    """

    found: Detections

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
        (self.found,) = self._predictor.predict_prepared([self._prepared], times=times)
        # The input tensor is given to torchvision's detectors, too: making it does not count.
        total = times["inference"] + times["postprocess"]
        return {**self._clock.take(), "postprocess": times["postprocess"], "total": total}


def load_plain(
    name: str, prepared: PreparedImage, input_size: tuple[int, int]
) -> Callable[[], dict[str, float]]:
    """Returns what runs one of torchvision's detectors on the padded picture, as it is, without a resize."""
    # here, since the processes that measure memory import this module, too
    from torchvision.models import detection

    torch.manual_seed(0)
    build = getattr(detection, name)
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


def measure_memory(
    cases: Sequence[Case], counterparts: Sequence[Record], settings: Settings, prepared: PreparedImage
) -> dict[Key, float]:
    """Measures the peak of resident memory in GB (10^9 bytes), from loading to the detections."""
    peaks: dict[Key, float] = {}
    for case in cases:
        peaks[case] = run_apart(partial(measure, case, settings)).memory.host_gib * 2**30 / 1e9
    for record in counterparts:
        task = partial(mmdetection_detector.measure_memory, record, prepared, settings)
        peaks[mmdetection_key(record.name)] = run_apart(task)
    return peaks


def compare(case: Case, rounds: Rounds, peaks: Mapping[Key, float], comparable: bool) -> Measured:
    """Puts a detector beside its plain counterpart and the reference.

    Args:
        case: of ours.
        rounds: what was measured.
        peaks: of memory, as far as they were measured.
        comparable: whether the input is the one that the times of the reference are known for.
    """
    name = str(case.model.name)
    known = REFERENCES.get(name) if comparable else None
    has_masks = load_manifest().find(name).architecture.has_masks
    times = rounds.milliseconds(case)
    return Measured(
        model=name,
        precision=case.precision,
        stages={stage: times[stage] for stage in STAGES},
        total=times["total"],
        plain=rounds.milliseconds(MASK_PLAIN if has_masks else FASTER_PLAIN)["total"],
        estimate=None if known is None else known.milliseconds * rounds.scale,
        bar=None if known is None else known.bar,
        known_peak_gb=None if known is None else known.peak_gb,
        peak_gb=peaks.get(case),
        reference=measured_reference(case, rounds, peaks),
    )


def measured_reference(case: Case, rounds: Rounds, peaks: Mapping[Key, float]) -> MeasuredReference | None:
    """Returns what was measured of MMDetection's counterpart, None if nothing was."""
    key = mmdetection_key(case.model.name)
    if key not in rounds.samples:
        return None
    times = rounds.milliseconds(key)
    return MeasuredReference(
        stages={stage: times[stage] for stage in MODEL_STAGES},
        total=times["total"],
        ratio=rounds.ratio(key, case),
        detections=len(rounds.found[key]),
        same=count_same(rounds.found[key], rounds.found[case]),
        peak_gb=peaks.get(key),
    )


def count_same(expected: Detections, found: Detections) -> int:
    """Counts the expected detections that were found, each by another one."""
    if not len(expected) or not len(found):
        return 0
    boxes = [[item["bbox"] for item in detections.to_coco(0)] for detections in (expected, found)]
    same = coco_mask.iou(*boxes, [False] * len(found)) >= SAME_IOU
    same &= np.abs(expected.scores[:, None] - found.scores) <= SAME_SCORE
    same &= expected.labels[:, None] == found.labels
    taken: set[int] = set()
    for row in same:  # suppression leaves hardly a choice: boxes of one label overlap by less
        taken.update([index for index in np.flatnonzero(row).tolist() if index not in taken][:1])
    return len(taken)


def report(
    rows: Sequence[Measured], rounds: Rounds, comparable: bool, versions: Mapping[str, str] | None
) -> list[str]:
    """Lines of the report: the stages, the comparison, and what it was measured on.

    Args:
        rows: ours.
        rounds: what was measured.
        comparable: whether the input is the one that the times of the reference are known for.
        versions: of MMDetection's packages, None where it was not measured.
    """
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
    processor, backend = cpu(), operators()
    height, width = rounds.input_size
    return [
        f"input {height}x{width}, batch 1, {processor['threads']} threads",
        "",
        stage_table(rows, rounds),
        "",
        "how many times as fast as torchvision's plain detector and as the reference:",
        table([titles, *map(comparison_cells, rows)], numbers=range(2, 9)),
        "",
        *reference_lines(rows, rounds, comparable, versions),
        f"{processor['model']}, {processor['vector_instructions']}; operators: {backend['backend']}",
    ]


def stage_table(rows: Sequence[Measured], rounds: Rounds) -> str:
    """The milliseconds of every detector's stages."""

    def cells(title: str, precision: str, times: Mapping[str, float]) -> tuple[str, ...]:
        return title, precision, *(f"{times[stage]:.0f}" if stage in times else "" for stage in columns)

    columns = (*STAGES, "total")
    ours = [cells(row.model, row.precision, {**row.stages, "total": row.total}) for row in rows]
    reference = [cells(key, "fp32", rounds.milliseconds(key)) for key in rounds.found if isinstance(key, str)]
    plain = [cells(f"torchvision {name}", "fp32", rounds.milliseconds(name)) for name in PLAIN_MS]
    titles = ("median ms", "precision", *columns)
    return table([titles, *ours, *reference, *plain], numbers=range(2, len(titles)))


def reference_lines(
    rows: Sequence[Measured], rounds: Rounds, comparable: bool, versions: Mapping[str, str] | None
) -> list[str]:
    """Says where the reference's figures come from; arguments as of `report`."""
    if versions is not None:
        return [
            f"the reference is measured: MMDetection {versions['mmdet']} ran right before ours in every"
            " round, with the same weights; times reference is the median of the rounds' ratios",
            *(
                f"same detections: {row.reference.same} of {row.reference.detections}"
                f"  {row.model}, {row.precision}"
                for row in rows
                if row.reference is not None
            ),
        ]
    if comparable:
        return [
            f"the reference is estimated: its times on another machine are scaled by {rounds.scale:.3f}:"
            f" torchvision's {FASTER_PLAIN} takes {rounds.milliseconds(FASTER_PLAIN)['total']:.0f} ms here"
            f" and {PLAIN_MS[FASTER_PLAIN]} ms there"
        ]
    return ["not compared with the reference, whose input was {}x{}".format(*REFERENCE_INPUT)]


def comparison_cells(row: Measured) -> tuple[str, ...]:
    """A row of the table that compares."""
    return (
        row.model,
        row.precision,
        f"{row.plain / row.total:.2f}",
        number(row.times_reference),
        number(row.bar),
        verdict(row.bar, row.times_reference),
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
