"""`torchrun … -m dcnzoo eval`: two processes find what one finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
    room: Path, out: str, launcher: Sequence[str] = (), images: str = "photos", more: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs `dcnzoo eval`, under a launcher if one is given."""
    options = f"eval --weights masks.pth --arch {MASK_ARCH} --annotations annotations.json --images {images}"
    options += f" --short-side 32 --long-side 64 --batch-size 2 --workers 1 --out {out} {more}"
    return subprocess.run(
        [sys.executable, *launcher, "-m", "dcnzoo", *options.split()],
        cwd=room,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def metrics(room: Path, out: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((room / out / "metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def alone(room: Path) -> subprocess.CompletedProcess[str]:
    """One process that has done all, in the folder `one`."""
    return evaluate(room, "one")


def test_two_processes_find_what_one_finds(room: Path, alone: subprocess.CompletedProcess[str]) -> None:
    together = evaluate(room, "two", TORCHRUN)
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


@pytest.mark.usefixtures("alone")
def test_an_error_in_one_process_ends_all(room: Path) -> None:
    """The process that has no bad image does not wait for the other for ever; later both go on."""
    shutil.copytree(room / "photos", room / "bad")
    save(room / "bad" / "2.png", noise(8, 8))
    failed = evaluate(room, "failed", TORCHRUN, "bad")
    assert failed.returncode == 1
    assert "error: annotations.json: image 2 should be 56x48, but bad/2.png is 8x8" in failed.stderr
    assert not (room / "failed" / "metrics.json").exists()
    shutil.copy(room / "photos" / "2.png", room / "bad" / "2.png")
    assert evaluate(room, "failed", TORCHRUN, "bad", "--resume").returncode == 0
    for kind in ("bbox", "segm"):
        name = f"detections.{kind}.json"
        assert (room / "failed" / name).read_bytes() == (room / "one" / name).read_bytes()
