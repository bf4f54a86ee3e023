"""`dcnzoo info`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing
from dcnzoo.synthetic import random_checkpoint
from dcnzoo.training.checkpoint import Identity, save_best
from tests.cli.conftest import Program
from tests.random_detector import MASK_ARCH, write_random_checkpoint
from tests.training_room import ARCH as SMALL_ARCH

MASK = "mask_rcnn_r50_fpn_fp16_dconv_c3-c5_1x_coco"


@pytest.mark.parametrize(
    ("title", "value"),
    [
        ("name", MASK),
        ("architecture", "mask_rcnn_r50_fpn_dconv_c3-c5"),
        ("convolutions", "dconv in c3-c5, deformable groups: 1"),
        ("widths", "backbone from 64, pyramid 256, box head 1024"),
        ("input", "short side 800, long side at most 1333, padded to a multiple of 32"),
        ("trained in", "mixed precision (fp16)"),
        ("box AP", "41.9"),
        ("mask AP", "37.5"),
        ("training memory", "3.0 GB"),
        ("speed", "-"),
        ("licence", "Apache-2.0"),
        ("SHA-256", "starts with c06429d2"),
    ],
)
def test_shows(dcnzoo: Program, title: str, value: str) -> None:
    code, out, err = dcnzoo("info", MASK)
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if line.startswith(f"{title}  "))
    assert line.removeprefix(title).strip() == value


def test_says_where_the_file_will_be_and_how_to_get_it(dcnzoo: Program, home: Path) -> None:
    last = dcnzoo("info", MASK).out.splitlines()[-1]
    assert last.startswith("file ")
    assert str(home / "checkpoints") in last
    assert f"dcnzoo download {MASK}" in last


def test_long_lists_stay_in_their_column(dcnzoo: Program) -> None:
    lines = dcnzoo("info", MASK).out.splitlines()
    start = lines[0].index(MASK)
    first = next(number for number, line in enumerate(lines) if line.startswith("classes "))
    assert lines[first][start:].startswith("80: person, bicycle,")
    assert lines[first + 1][:start].isspace()
    assert lines[first + 1][start] != " "


def test_own_record(dcnzoo: Program, own_manifest: Path) -> None:
    code, out, _ = dcnzoo("info", "cells", "--manifest", own_manifest)
    assert code == 0
    assert "2: RBC, WBC" in out
    assert "the file is not verified" in out
    assert out.splitlines()[-1].split() == ["file", str(own_manifest.with_name("cells.pth"))]


def test_json_is_what_list_gives(dcnzoo: Program) -> None:
    (listed,) = json.loads(dcnzoo("list", MASK, "--json").out)
    assert json.loads(dcnzoo("info", MASK, "--json").out) == listed


def test_misspelt_name_suggests_the_nearest(dcnzoo: Program) -> None:
    code, out, err = dcnzoo("info", "mask_rcnn_r50_fpn_fp16_dconv")
    assert (code, out) == (1, "")
    assert f"did you mean {MASK}" in err


def lines_of(out: str) -> dict[str, str]:
    """Titles and values of the output; lines below a title's own belong to its value."""
    found: dict[str, str] = {}
    for line in out.splitlines():
        title, _, value = line.partition("  ")
        if title:
            found[title] = value.strip()
        else:
            found[list(found)[-1]] += "\n" + line.strip()
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "epoch_12.pth", MASK_ARCH)


class TestFile:
    """A checkpoint file instead of a name."""

    def test_of_another_program(self, dcnzoo: Program, weights: Path) -> None:
        code, out, err = dcnzoo("info", weights)
        shown = lines_of(out)
        assert (code, err) == (0, "")
        assert shown["architecture"] == f"{MASK_ARCH} (recognised by the tensors)"
        assert shown["fits"] == "yes, every tensor"
        assert shown["SHA-256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert shown["written by"] == "- (the file does not say)"
        assert shown["classes"] == "3: cat, dog, bird"
        model = build_model(Architecture.parse(MASK_ARCH), 3)
        assert shown["parameters"] == f"{sum(each.numel() for each in model.parameters()):,}"
        assert "input" not in shown

    def test_that_dcnzoo_trained(self, dcnzoo: Program, tmp_path: Path) -> None:
        classes, sides = ClassSet(("brick", "tile"), (3, 8)), Preprocessing(48, 64)
        identity = Identity(Architecture.parse(SMALL_ARCH), classes, sides)
        weights = random_checkpoint(identity.architecture, 2).state_dict
        save_best(tmp_path, identity, weights, epoch=7, bbox_AP=0.4321987)
        shown = lines_of(dcnzoo("info", tmp_path / "best.pth").out)
        assert shown["written by"] == "dcnzoo train"
        assert shown["it says"].startswith("dcnzoo_version ")
        assert shown["it says"].endswith("epoch 7, bbox_AP 0.4322")
        assert shown["architecture"] == f"{SMALL_ARCH} (as the file says)"
        assert shown["classes"] == "2: brick, tile"
        assert shown["input"].startswith("short side 48, long side at most 64")
        copy = lines_of(dcnzoo("info", tmp_path / "best.safetensors").out)
        assert copy["written by"] == "dcnzoo (a safe copy)"
        assert copy["copy of"].split() == ["best.pth,", "SHA-256", shown["SHA-256"]]
        assert copy["classes"] == shown["classes"]

    def test_compared_with_another_architecture(self, dcnzoo: Program, weights: Path) -> None:
        code, out, err = dcnzoo("info", weights, "--arch", "faster_rcnn_r50_fpn_dconv_c3-c5")
        shown = lines_of(out)
        assert (code, err) == (0, "")
        assert shown["architecture"] == "faster_rcnn_r50_fpn_dconv_c3-c5 (--arch)"
        assert shown["fits"] == "no"
        assert shown["missing"].startswith("26:\nbackbone.layer2.0.conv2.conv_offset.bias\n")
        assert shown["missing"].endswith("\nand 16 more (--json lists all)")
        assert shown["unexpected"].startswith("12:\nroi_head.mask_head.conv_logits.bias\n")
        wider = dcnzoo("info", weights, "--arch", "mask_rcnn_r50_fpn_fc512")
        first = lines_of(wider.out)["other shape"].splitlines()[1]
        assert first == "roi_head.bbox_head.shared_fcs.0.weight is (1024, 12544), expected (512, 12544)"

    def test_json(self, dcnzoo: Program, weights: Path) -> None:
        found = json.loads(dcnzoo("info", weights, "--json", "--arch", "faster_rcnn_r50_fpn").out)
        assert found["path"] == str(weights)
        assert found["bytes"] == weights.stat().st_size
        assert found["architecture"]["name"] == "faster_rcnn_r50_fpn"
        assert (found["architecture_from"], found["fits"]) == ("caller", False)
        assert (found["missing"], len(found["unexpected"]), found["mismatched"]) == ([], 12, [])
        assert (found["num_classes"], found["class_names"]) == (3, ["cat", "dog", "bird"])
        assert found["dtypes"] == ["float32"]
        assert (found["category_ids"], found["preprocessing"], found["origin"]) == (None, None, None)

    def test_without_a_detector(self, dcnzoo: Program, tmp_path: Path) -> None:
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
        code, out, _ = dcnzoo("info", tmp_path / "resnet.pth")
        shown = lines_of(out)
        assert code == 0
        assert shown["architecture"].startswith("- (the tensors are none of a detector")
        assert (shown["tensors"], shown["parameters"]) == ("1, float32", "9,408")
        assert "classes" not in shown
        found = json.loads(dcnzoo("info", tmp_path / "resnet.pth", "--json").out)
        assert (found["architecture"], found["fits"]) == (None, None)
        named = dcnzoo("info", tmp_path / "resnet.pth", "--arch", "faster_rcnn_r50_fpn").out
        assert lines_of(named)["fits"].startswith("no: has no box head")

    def test_what_a_file_says_cannot_forge_lines(self, dcnzoo: Program, tmp_path: Path) -> None:
        meta = {"CLASSES": ("a\nfits  yes",), "x\ny": "b\x1b[2J", "n": float("nan"), "i": 10**5000, 5: 5}
        torch.save({"meta": meta, "w": torch.zeros(1)}, tmp_path / "odd.pth")
        out = dcnzoo("info", tmp_path / "odd.pth").out
        assert "\x1b" not in out
        assert lines_of(out)["it says"] == "x y b [2J"
        assert json.loads(dcnzoo("info", tmp_path / "odd.pth", "--json").out)["notes"] == {"x\ny": "b\x1b[2J"}

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["missing.pth"], 1, "checkpoint missing.pth: No such file"),
            (["text.pth"], 1, "checkpoint text.pth: is truncated or damaged, or no checkpoint"),
            ([MASK, "--arch", MASK_ARCH], 2, "has an architecture of its own; give --arch only with a file"),
            (["text.pth", "--arch", "resnet"], 1, "unknown architecture 'resnet'"),
        ],
    )
    def test_wrong_usage(
        self,
        dcnzoo: Program,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text.pth").write_text("# no checkpoint\n")
        outcome = dcnzoo("info", *arguments)
        assert (outcome.code, outcome.out) == (code, "")
        assert message in outcome.err
