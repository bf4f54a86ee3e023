"""`dcnzoo predict --shard` and `dcnzoo merge`: parts of a run that make up the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, Program
from tests.cli.predicting import Predict, checkpoint, files, lines, load_once, predict
from tests.pictures import noise, save

__all__ = ["checkpoint", "load_once", "predict"]

NAMES = ("a.jpg", "a.png", "b.png", "c/d.png", "7.png")
FORMATS = ("--format", "jsonl,coco,csv,yolo", "--save-images", "--save-crops")

Merge = Callable[..., Outcome]


@pytest.fixture
def photos(tmp_path: Path, predict: Predict) -> Path:
    """Five images, of which two want the same name; the working directory is above them."""
    for seed, name in enumerate(NAMES):
        save(tmp_path / "photos" / name, noise(60, 80, seed))
    return tmp_path / "photos"


@pytest.fixture
def merge(dcnzoo: Program) -> Merge:
    return lambda *arguments: dcnzoo("merge", *arguments)


def shards(predict: Predict, count: int, *options: object) -> list[int]:
    """Does all shards and gives their exit codes."""
    return [
        predict("photos", "--shard", f"{i}/{count}", "--out", "o", *options).code for i in range(1, count + 1)
    ]


def content(folder: str) -> dict[str, object]:
    """What the results say, whatever the order of the images."""
    out = Path(folder)
    return {
        "jsonl": sorted(map(str, lines(out / "detections.jsonl"))),
        "csv": sorted((out / "detections.csv").read_text().splitlines()),
        "coco": sorted(map(str, json.loads((out / "detections.coco.json").read_text()))),
        "images": sorted(map(str, json.loads((out / "images.json").read_text())["images"])),
        "files": {
            name: (out / name).read_bytes()
            for name in files(out)
            if name.split("/")[0] in ("labels", "images", "crops", "classes.txt")
        },
    }


@pytest.mark.parametrize(("count", "options"), [(2, ()), (3, ("--batch-size", 2)), (7, ())])
def test_all_shards_are_the_whole(
    predict: Predict, photos: Path, merge: Merge, count: int, options: tuple[object, ...]
) -> None:
    assert shards(predict, count, *FORMATS, *options) == [0] * count
    assert predict("photos", *FORMATS, *options, "--out", "whole").code == 0
    code, out, err = merge("o")
    assert (code, out) == (0, "")
    assert f"{count} shards, 5 images, 0 failures: o" in err
    assert content("o") == content("whole")
    assert len(content("o")["files"]) > 10
    made = sum(len(lines(Path(f"o/shard-{i}-of-{count}/detections.jsonl"))) for i in range(1, count + 1))
    assert made == 5


def test_torchrun_says_which_shard(
    predict: Predict, photos: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        outcome = predict("photos", "--out", "o", "--quiet")
        said = f"doing part {rank + 1} of 2 of the images, since RANK and WORLD_SIZE are set\n"
        assert outcome == (0, "", said)
    assert merge("o").code == 0
    assert len(lines(Path("o/detections.jsonl"))) == 5


def test_shards_made_in_several_places(
    predict: Predict, merge: Merge, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on several machines."""
    out = photos.parent / "o"
    assert predict("photos", "--shard", "1/2", "--out", out).code == 0
    shutil.copytree(photos, photos.parent / "other" / "photos")
    monkeypatch.chdir(photos.parent / "other")
    assert predict("photos", "--shard", "2/2", "--out", out).code == 0
    assert merge(out).code == 0


def test_failures_are_told(predict: Predict, photos: Path, merge: Merge) -> None:
    (photos / "b.png").write_bytes(b"")
    assert sorted(shards(predict, 2)) == [0, 1]
    code, _, err = merge("o")
    assert (code, "4 images, 1 failures" in err) == (1, True)
    assert [line["source"] for line in lines(Path("o/errors.jsonl"))] == ["photos/b.png"]


def test_results_beside_the_images_are_no_images(predict: Predict, photos: Path) -> None:
    for shard in ("1/2", "2/2"):
        assert predict("photos", "--shard", shard, "--out", "photos", "--save-images").code == 0
    made = [len(lines(photos / f"shard-{i}-of-2" / "detections.jsonl")) for i in (1, 2)]
    assert sum(made) == 5


@pytest.mark.usefixtures("photos")
class TestRefused:
    def test_no_shards(self, merge: Merge, tmp_path: Path) -> None:
        code, _, err = merge(tmp_path)
        assert code == 1
        assert "holds no shards; expected the folders shard-1-of-N to shard-N-of-N" in err

    def test_missing(self, predict: Predict, merge: Merge) -> None:
        predict("photos", "--shard", "2/3", "--out", "o")
        assert merge("o").err == "error: o lacks shard-1-of-3, shard-3-of-3\n"

    def test_of_several_divisions(self, merge: Merge, tmp_path: Path) -> None:
        for name in ("shard-1-of-2", "shard-1-of-3"):
            (tmp_path / name).mkdir()
        assert "holds shards of 2 and of 3" in merge(tmp_path).err

    def test_no_results(self, predict: Predict, merge: Merge) -> None:
        predict("photos", "--shard", "1/2", "--out", "o")
        Path("o/shard-2-of-2").mkdir()
        assert "o/shard-2-of-2 holds no results of `dcnzoo predict`" in merge("o").err

    def test_not_complete(self, predict: Predict, merge: Merge) -> None:
        Path("photos/b.png").write_bytes(b"")
        assert sorted(shards(predict, 2, "--strict")) == [0, 1]
        assert "is not complete; run that shard again with --resume" in merge("o").err
        save(Path("photos") / "b.png", noise(60, 80))
        assert shards(predict, 2, "--strict", "--resume") == [0, 0]
        assert merge("o").code == 0

    def test_messages_name_what_merge_can_do(self, predict: Predict, merge: Merge) -> None:
        assert shards(predict, 2) == [0, 0]
        Path("o/detections.jsonl").touch()
        assert merge("o").err == (
            "error: o holds detections.jsonl, which no run of dcnzoo has made;"
            " copy the shards to another folder\n"
        )
        Path("o/detections.jsonl").unlink()
        assert merge("o").code == 0
        assert merge("o").err == (
            "error: o already holds results (detections.jsonl, progress.jsonl);"
            " copy the shards to another folder or replace them with --overwrite\n"
        )

    def test_other_options(self, predict: Predict, merge: Merge) -> None:
        predict("photos", "--shard", "1/2", "--out", "o")
        predict("photos", "--shard", "2/2", "--out", "o", "--max-detections", 3)
        assert "o/shard-2-of-2 was made with another max_detections than o/shard-1-of-2" in merge("o").err

    def test_other_images(self, predict: Predict, merge: Merge) -> None:
        predict("photos", "--shard", "1/2", "--out", "o")
        save(Path("photos") / "0.png", noise(60, 80))
        predict("photos", "--shard", "2/2", "--out", "o")
        assert "o/shard-2-of-2 was made of other images than o/shard-1-of-2" in merge("o").err

    def test_a_second_time_unless_told(self, predict: Predict, merge: Merge) -> None:
        shards(predict, 2, *FORMATS)
        assert merge("o").code == 0
        before = content("o")
        assert "o already holds results" in merge("o").err
        shards(predict, 2, "--overwrite")
        Path("o/labels/mine.txt").touch()
        assert merge("o", "--overwrite").code == 0
        assert [name for name in files(Path("o")) if "/" in name and "shard" not in name] == [
            "labels/mine.txt"
        ]
        shards(predict, 2, *FORMATS, "--overwrite")
        Path("o/labels/mine.txt").unlink()
        assert merge("o", "--overwrite").code == 0
        assert content("o") == before

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
    def test_no_such_shard(self, predict: Predict, shard: str) -> None:
        code, _, err = predict("photos", "--shard", shard)
        assert code == 2
        assert "expected I/N with 1 <= I <= N" in err
