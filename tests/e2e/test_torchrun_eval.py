"""`torchrun … -m dcnzoo eval`: two processes find what one finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import noise, save
from tests.random_detector import CLASSES, MASK_ARCH, write_random_checkpoint

pytestmark = pytest.mark.e2e

IMAGES = 7
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# One thread per process: sums of floats depend on how threads share them.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an odd number of photos of mixed sizes, annotations, and a checkpoint."""
    room = tmp_path_factory.mktemp("room")
    write_random_checkpoint(room / "masks.pth", MASK_ARCH)
    images = []
    for number in range(IMAGES):
        height, width = 40 + 4 * number, 64 - 4 * (number % 3)
        save(room / "photos" / f"{number}.png", noise(height, width, number))
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    objects = [
        {
            "id": number + 1,
            "image_id": number,
            "category_id": 5 * (number % 3),
            "bbox": [0, 0, 40, 30],
            "area": 1200,
            "iscrowd": 0,
            "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]],
        }
        for number in range(IMAGES)
    ]
    categories = [{"id": 5 * label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "categories": categories, "annotations": objects}
    (room / "annotations.json").write_text(json.dumps(content))
    return room


def evaluate(
    room: Path, out: str, *launcher: str, images: str = "photos"
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        *launcher,
        "-m",
        "dcnzoo",
        "eval",
        "--weights",
        "masks.pth",
        "--arch",
        MASK_ARCH,
    ]
    options = [
        "--annotations",
        "annotations.json",
        "--images",
        images,
        "--short-side",
        "32",
        "--long-side",
        "64",
    ]
    return subprocess.run(
        [*command, *options, "--batch-size", "2", "--out", out],
        cwd=room,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def metrics(room: Path, out: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((room / out / "metrics.json").read_text())
    return content


def test_two_processes_find_what_one_finds(room: Path) -> None:
    alone, together = evaluate(room, "one"), evaluate(room, "two", *TORCHRUN)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout
    for kind in ("bbox", "segm"):
        name = f"detections.{kind}.json"
        results = json.loads((room / "two" / name).read_text())
        assert {result["image_id"] for result in results} == set(range(IMAGES))
        assert (room / "two" / name).read_bytes() == (room / "one" / name).read_bytes()
        assert metrics(room, "two")[kind] == metrics(room, "one")[kind]
    assert metrics(room, "two")["num_images"] == IMAGES
    assert [metrics(room, out)["speed"]["processes"] for out in ("one", "two")] == [1, 2]
    assert sorted(path.name for path in (room / "two").iterdir()) == sorted(
        path.name for path in (room / "one").iterdir()
    )


def test_an_error_in_one_process_ends_all(room: Path) -> None:
    """The process that has no bad image does not wait for the other for ever."""
    for number in range(IMAGES):
        good = (room / "photos" / f"{number}.png").read_bytes()
        path = room / "bad" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture" if number == 2 else good)
    failed = evaluate(room, "failed", *TORCHRUN, images="bad")
    assert failed.returncode == 1
    assert "error: cannot read image bad/2.png" in failed.stderr
    assert not (room / "failed" / "metrics.json").exists()
