"""Names that come from files and addresses lead nowhere but into the output folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcnzoo.build import build_model
from dcnzoo.cli.main import run
from dcnzoo.manifest import Architecture
from tests.cli.predicting import SIDES, load_once
from tests.http_server import content, serving
from tests.pictures import noise, save
from tests.random_detector import ARCH
from tests.unit.annotating import annotation_content, truth, write

__all__ = ["load_once"]

HOSTILE_CLASSES = ("../../up", "/abs/olute", "..", "nul\0byte\n")
PICTURES = ["--save-images", "--save-crops", "--format", "jsonl,coco,csv,yolo"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose classes have names that look like paths."""
    torch.manual_seed(3)
    state_dict = build_model(Architecture.parse(ARCH), len(HOSTILE_CLASSES)).state_dict()
    state_dict["roi_head.bbox_head.fc_cls.weight"] *= 150
    state_dict["rpn_head.rpn_reg.bias"] += 1
    path = tmp_path_factory.mktemp("weights") / "hostile.pth"
    torch.save({"meta": {"CLASSES": HOSTILE_CLASSES}, "state_dict": state_dict}, path)
    return path


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory deep below the test's folder, so that a way up would be seen."""
    monkeypatch.setenv("DCNZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    room = tmp_path / "a" / "b" / "c"
    room.mkdir(parents=True)
    monkeypatch.chdir(room)
    return room


@pytest.fixture
def predict(room: Path, weights: Path, load_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("dcnzoo.predictor.load", load_once)
    options = [
        "--weights",
        weights,
        "--arch",
        ARCH,
        "--device",
        "cpu",
        *SIDES,
        "--workers",
        0,
        "--out",
        "out",
    ]
    return lambda *arguments: run([str(each) for each in (*arguments, *options)])


def files(folder: Path) -> set[str]:
    return {str(Path(root, name).relative_to(folder)) for root, _, names in os.walk(folder) for name in names}


def assert_all_below(tmp_path: Path, before: set[str], out: str = "a/b/c/out/") -> None:
    made = files(tmp_path) - before
    assert made
    assert {name for name in made if not name.startswith(out)} == set()


def test_class_names(predict: Any, room: Path, tmp_path: Path) -> None:
    save(room / "x.png", noise(60, 80))
    before = files(tmp_path)
    assert predict("predict", "x.png", *PICTURES) == 0
    assert_all_below(tmp_path, before)
    assert list((room / "out" / "crops").iterdir())


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2f..%2fevil.png",
        "/%2e%2e/%2e%2e/evil.png",
        "/a/..",
        "/%00.png",
        "/" + "x" * 900 + ".png",
        "/.png",
    ],
)
def test_addresses(predict: Any, tmp_path: Path, path: str) -> None:
    picture = save(tmp_path / "evil.png", noise(60, 80)).read_bytes()
    before = files(tmp_path)
    with serving({}, otherwise=content(picture)) as server:  # clients differ in what they make of the dots
        assert predict("predict", server.url(path), *PICTURES) == 0
    assert_all_below(tmp_path, before)


@pytest.mark.parametrize(
    "line", ["../../../up.png", "{tmp_path}/up.png", "./../../../up.png", "../../b/../../up.png"]
)
def test_lists_of_paths(predict: Any, room: Path, tmp_path: Path, line: str) -> None:
    save(tmp_path / "up.png", noise(60, 80))
    (room / "list.txt").write_text(line.format(tmp_path=tmp_path) + "\n")
    before = files(tmp_path)
    assert predict("predict", "list.txt", *PICTURES) == 0
    assert_all_below(tmp_path, before)


@pytest.mark.parametrize("name", ["../../../up.png", "{tmp_path}/up.png", "sub/../../../../up.png"])
def test_file_names_of_annotations(
    predict: Any, room: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "up.png", noise(100, 100))
    listed = annotation_content([truth(1, 7, [1.0, 1.0, 9.0, 9.0])], images=1)
    listed["images"][0]["file_name"] = name.format(tmp_path=tmp_path)
    listed["categories"] = [{"id": 7, "name": HOSTILE_CLASSES[0]}]
    write(room / "a.json", listed)
    (room / "photos").mkdir()
    before = files(tmp_path)
    assert predict("eval", "--annotations", "a.json", "--images", "photos") == 1
    assert "1 file names lead out of the folder" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_shard_of_somebody_else(predict: Any, room: Path, tmp_path: Path) -> None:
    """What its journal and its note say are names of files is not believed."""
    save(room / "photos" / "x.png", noise(60, 80))
    assert predict("predict", "photos", "--shard", "1/2", *PICTURES) == 0
    assert predict("predict", "photos", "--shard", "2/2", *PICTURES) == 0
    shard = room / "out" / "shard-1-of-2"
    lines = [json.loads(line) for line in (shard / "progress.jsonl").read_text().splitlines()]
    lines[-1]["sizes"] |= {"../../../up.txt": 1}
    (shard / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = files(tmp_path)
    assert run(["merge", "out"]) == 0
    assert_all_below(tmp_path, before)
    note = json.loads((shard / "run.json").read_text())
    for formats in (["../up"], "jsonl", [["jsonl"]], 7, None):
        (shard / "run.json").write_text(json.dumps({**note, "formats": formats}))
        assert run(["merge", "out", "--overwrite"]) == 1
    lines[-1]["sizes"] = {}
    (shard / "run.json").write_text(json.dumps(note))
    (shard / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["merge", "out", "--overwrite"]) == 1
