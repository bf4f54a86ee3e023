"""Measures the part of `dcnzoo predict` around the model: reading, resizing and writing; and its memory.

    python scripts/bench_stream.py --images 10000 --workers 4

makes JPEG pictures, of which many are the same, and runs them through everything but the network: in place of
a detector stands one that finds the same ten objects everywhere. What comes out is how fast a GPU could be
before it had to wait, and whether memory grows with the number of images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from dcnzoo.hardware import hardware_stamp
from dcnzoo.image import PreparedImage
from dcnzoo.manifest import Preprocessing
from dcnzoo.results import Detections
from dcnzoo.sources import ImageSource
from dcnzoo.stream import STAGES, ImageStream, StreamSettings, Tally
from dcnzoo.writers import WRITERS, ImageIds, ImageWriter, Progress, Shard, Writer

DIFFERENT = 50
SAMPLES = 20
OBJECTS = 10


class ConstantPredictor:
    """Finds the same objects in every image, at once."""

    def __init__(self, short_side: int, long_side: int) -> None:
        self.preprocessing = Preprocessing(short_side=short_side, long_side=long_side)

    overlaps = False

    def begin_prepared(self, prepared: list[PreparedImage], **_: object) -> Callable[[], list[Detections]]:
        """Returns what returns the objects."""
        return lambda: [self._objects(image.original_size) for image in prepared]

    def _objects(self, image_size: tuple[int, int]) -> Detections:
        corners = np.linspace(0, 0.5, OBJECTS)[:, None] * [image_size[1], image_size[0]]
        boxes = np.hstack([corners, corners + np.array(image_size[::-1]) / 2])
        return Detections(
            boxes=boxes.astype(np.float32),
            scores=np.linspace(0.95, 0.35, OBJECTS, dtype=np.float32),
            labels=np.zeros(OBJECTS, np.int64),
            class_names=("object",),
            category_ids=(1,),
            image_size=image_size,
        )


def main() -> None:
    """Parses the arguments, measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", default="640x480", help="of the pictures, WIDTHxHEIGHT")
    parser.add_argument("--sides", default="800x1333", help="to resize to, SHORTxLONG")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--formats", default="jsonl", help=f"of {', '.join(WRITERS)}; with commas")
    parser.add_argument("--save-images", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    json.dump(
        {**vars(arguments), **figures, "hardware": hardware_stamp(torch.device("cpu"))}, sys.stdout, indent=2
    )
    print()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Runs all images through and returns rates and memory."""
    width, height = map(int, arguments.size.split("x"))
    paths = make_pictures(folder, min(DIFFERENT, arguments.images), width, height)
    sources = (
        ImageSource(str(paths[number % len(paths)]), PurePosixPath(f"{number:06d}.jpg"))
        for number in range(arguments.images)
    )
    kinds = [WRITERS[name] for name in arguments.formats.split(",")]
    kinds += [ImageWriter] if arguments.save_images else []
    predictor = ConstantPredictor(*map(int, arguments.sides.split("x")))
    tally, memory = Tally(), list[float]()
    step = max(1, arguments.images // SAMPLES)

    def progress(_: int) -> None:
        if tally.images % step == 0:
            memory.append(resident_mib())

    out = folder / "out"
    out.mkdir()
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with Shard(out, Progress(), partial(open_writers, kinds)) as shard:
        settings = StreamSettings(workers=arguments.workers)
        ImageStream(predictor, shard, settings, tally, ImageIds(), progress).run(sources)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    return {
        "images_per_second": round(tally.images / seconds, 1),
        "cpu_ms_per_image": round(cpu / tally.images * 1000, 2),
        "ms_per_image": {stage: round(tally.times[stage] / tally.images * 1000, 2) for stage in STAGES},
        "resident_mib": [round(value, 1) for value in memory],
        "growth_mib": round(memory[-1] - memory[len(memory) // 4], 1),
    }


def open_writers(kinds: list[type[Writer]], out: Path, sizes: Mapping[str, int]) -> list[Writer]:
    """Opens writers of each kind."""
    return [kind(out, sizes) for kind in kinds]


def make_pictures(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Writes smooth pictures with some noise: as large as photos are."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.integers(-8, 9, (height, width, 3))
        pixels = np.clip(np.asarray(picture, np.int64) + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def cpu_seconds() -> float:
    """Time that processors have worked for this process and for those that it has started and waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_mib() -> float:
    """Memory of this process that is in use, without the processes that read images."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
