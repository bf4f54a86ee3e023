"""Processes that are killed, stopped, starved of disk or stuck: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dcnzoo.writers import read_journal
from tests.e2e.life import Life, Server, serving
from tests.pictures import noise, save
from tests.random_detector import CLASSES, MASK_ARCH, write_random_checkpoint
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

IMAGES = 40
SIDES = ("32", "64")
KILLS = 24
FORMATS = ["--format", "jsonl,coco,csv,yolo", "--save-images", "--save-crops"]

COMMIT_OFTEN = "import dcnzoo.writers.shard as shard; shard.COMMIT_SECONDS = 0.05\n"
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"


class Room(NamedTuple):
    """A folder with images, annotations and a model; and what starts processes there."""

    path: Path
    server: Server

    def run(self, command: str, out: str, *options: str, setup: str = COMMIT_OFTEN) -> int:
        """Runs the program to its end and gives its exit code."""
        with self.start(command, out, *options, setup=setup) as life:
            return life.end()

    def start(self, command: str, out: str, *options: str, setup: str = COMMIT_OFTEN) -> Life:
        model = [
            "--weights",
            "masks.pth",
            "--arch",
            MASK_ARCH,
            "--short-side",
            SIDES[0],
            "--long-side",
            SIDES[1],
        ]
        arguments = [*command.split(), *model, "--device", "cpu", "--quiet", "--workers", "0", "--out", out]
        return self.server.start([*arguments, *options], setup)

    def done(self, out: str) -> int:
        """Images that count."""
        return read_journal(self.path / out).locations.total()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    path = tmp_path_factory.mktemp("room")
    write_random_checkpoint(path / "masks.pth", MASK_ARCH)
    images = []
    for number in range(IMAGES):
        # Every third has the name of the one before, but for the suffix.
        name = f"{number - (number % 3 == 2):02d}.{'bmp' if number % 3 == 2 else 'png'}"
        save(path / "photos" / name, noise(24, 32, number))
        images.append({"id": number, "file_name": name, "width": 32, "height": 24})
    objects = [
        {"id": n + 1, "image_id": n, "category_id": n % 3, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
        for n in range(IMAGES)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "categories": categories, "annotations": objects}
    (path / "annotations.json").write_text(json.dumps(content))
    with serving(path, str(path / "masks.pth"), MASK_ARCH, *SIDES) as server:
        yield Room(path, server)


@pytest.fixture(scope="module")
def whole(room: Room) -> dict[str, bytes]:
    """The results of a run without any trouble."""
    assert room.run("predict photos", "whole", *FORMATS) == 0
    return results(room.path / "whole")


def results(out: Path) -> dict[str, bytes]:
    """All files but those about the run itself."""
    paths = (path for path in out.rglob("*") if path.is_file())
    files = {str(path.relative_to(out)): path.read_bytes() for path in paths}
    return {name: content for name, content in files.items() if name not in ("progress.jsonl", "run.json")}


def assert_whole(out: Path, whole: dict[str, bytes]) -> None:
    found = results(out)
    assert found.keys() == whole.keys()
    assert found == whole
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert len({line["image"] for line in lines}) == len(lines) == IMAGES
    assert len(json.loads((out / "images.json").read_text())["images"]) == IMAGES


def kill_some_time(life: Life, rng: random.Random, written: Path) -> None:
    """Kills a process while it starts, or when it has written some images and a random time is over."""

    def count() -> int:
        return written.read_bytes().count(b"\n") if written.exists() else 0

    goal = count() + rng.randrange(6)
    give_up = time.monotonic() + (rng.uniform(0, 0.3) if rng.random() < 0.3 else 10)
    while count() < goal and time.monotonic() < give_up:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    life.send(signal.SIGKILL)
    assert life.end() in (-signal.SIGKILL, 0)


def test_killed_at_any_moment(room: Room, whole: dict[str, bytes]) -> None:
    """Processes are killed at random moments, with and without others that read for them."""
    rng = random.Random(5)
    out, done, progressed = room.path / "killed", 0, 0
    for _ in range(KILLS):
        workers = rng.choice("001")
        with room.start("predict photos", "killed", *FORMATS, "--resume", "--workers", workers) as life:
            kill_some_time(life, rng, out / "detections.jsonl")
        before, done = done, room.done("killed")
        progressed += done > before
        assert done >= before
        progress = read_journal(out)
        assert all((out / name).stat().st_size >= size for name, size in progress.sizes.items())
    assert progressed >= 3
    assert room.run("predict photos", "killed", *FORMATS, "--resume") == 0
    assert_whole(out, whole)


def test_eval_killed_at_any_moment(room: Room) -> None:
    command = "eval --annotations annotations.json --images photos"
    assert room.run(command, "eval-whole") == 0
    rng = random.Random(6)
    for _ in range(8):
        with room.start(command, "eval-killed", "--resume") as life:
            kill_some_time(life, rng, room.path / "eval-killed/parts/shard-1-of-1/images.json")
    assert room.run(command, "eval-killed", "--resume") == 0
    found, expected = results(room.path / "eval-killed"), results(room.path / "eval-whole")
    assert found.keys() == expected.keys()
    scores = [json.loads(files.pop("metrics.json"))["bbox"] for files in (found, expected)]
    assert scores[0] == scores[1]
    assert found == expected


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(room: Room, whole: dict[str, bytes], signum: signal.Signals, code: int) -> None:
    """The batch in hand is finished, what is written counts, and the rest is done later."""
    out = f"stopped-{signum.name}"
    options = [*FORMATS, "--batch-size", "3", "--workers", "1"]
    with room.start("predict photos", out, *options, setup="") as life:
        written = room.path / out / "detections.jsonl"
        wait_until(lambda: written.exists() and written.read_text().count("\n") >= 6)
        life.send(signum)
        assert life.end() == code
    count = written.read_text().count("\n")
    assert room.done(out) == count < IMAGES
    assert count % 3 == 0
    assert room.run("predict photos", out, *options, "--resume") == 0
    assert_lines(room.path / out, whole)


def assert_lines(out: Path, whole: dict[str, bytes]) -> None:
    """Every image has its line; batches may change the last digits."""
    images = [json.loads(line)["image"] for line in (out / "detections.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["image"] for line in whole["detections.jsonl"].splitlines()]
    assert images == expected


def test_no_file_may_grow_further(room: Room, whole: dict[str, bytes]) -> None:
    size = 0
    for limit in (300, 20_000, 60_000, 100_000):
        setup = COMMIT_OFTEN + SMALL_FILES.format(limit)
        assert room.run("predict photos", "limited", *FORMATS, "--resume", setup=setup) == 1
        before, size = size, room.done("limited")
        assert before <= size < IMAGES
    assert size > 0
    assert room.run("predict photos", "limited", *FORMATS, "--resume") == 0
    assert_whole(room.path / "limited", whole)


@pytest.fixture
def small_disk(room: Room) -> Iterator[Path]:
    """A file system of its own with 200 KiB, where the system lets us have one."""
    path = room.path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here; a limit on files stands for it")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_the_disk_is_full(room: Room, whole: dict[str, bytes], small_disk: Path) -> None:
    options = [*FORMATS, "--resume"]
    assert room.run("predict photos", "disk/out", *options) == 1
    assert 0 < room.done("disk/out") < IMAGES
    assert room.run("predict photos", "disk/out", *options) == 1
    larger = ["mount", "-o", "remount,size=20m", str(small_disk)]
    subprocess.run(larger, check=True)
    assert room.run("predict photos", "disk/out", *options) == 0
    assert_whole(small_disk / "out", whole)


def test_processes_that_read_die(room: Room, whole: dict[str, bytes]) -> None:
    with room.start("predict photos", "readers", *FORMATS, "--workers", "2") as life:
        written = room.path / "readers" / "detections.jsonl"
        for count in (2, 8, 14):
            wait_until(lambda count=count: written.exists() and written.read_text().count("\n") >= count)
            for pid in life.readers():
                os.kill(pid, signal.SIGKILL)
        assert life.end() == 0
    assert_whole(room.path / "readers", whole)


def test_an_image_that_cannot_be_read_to_its_end(room: Room) -> None:
    """A pipe that nobody writes to, among the images."""
    photos = room.path / "stuck"
    photos.mkdir()
    for number in range(6):
        save(photos / f"{number}.png", noise(24, 32, number))
    os.mkfifo(photos / "3-pipe.png")
    with room.start("predict stuck", "stuck-out", "--workers", "1", "--image-timeout", "3") as life:
        assert life.end() == 1
    (failed,) = [json.loads(line) for line in (room.path / "stuck-out/errors.jsonl").read_text().splitlines()]
    assert failed == {"source": "stuck/3-pipe.png", "reason": "it takes longer than 3 s (--image-timeout)"}
    assert room.done("stuck-out") == 6


def test_two_processes_do_not_write_to_one_folder(room: Room) -> None:
    with room.start("predict photos", "shared", setup="") as life:
        wait_until(lambda: (room.path / "shared" / "progress.jsonl").exists())
        wait_until(lambda: room.done("shared") > 0)
        command = [
            sys.executable,
            "-m",
            "dcnzoo",
            "predict",
            "photos",
            "--weights",
            "masks.pth",
            "--arch",
            MASK_ARCH,
        ]
        sides = ["--short-side", SIDES[0], "--long-side", SIDES[1], "--device", "cpu", "--out", "shared"]
        os.kill(life.pid, signal.SIGSTOP)
        other = subprocess.run(
            [*command, *sides, "--resume"],
            cwd=room.path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        os.kill(life.pid, signal.SIGCONT)
        assert other.returncode == 1
        assert "another process is writing results there" in other.stderr
        assert life.end() == 0
