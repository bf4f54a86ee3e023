"""`dcnzoo convert`, and the use of what it writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dcnzoo.cli.main import run
from tests.cli.conftest import Program
from tests.pictures import noise, save
from tests.random_detector import ARCH, CLASSES, MASK_ARCH, write_random_checkpoint

QUICK = ("--device", "cpu", "--workers", "0", "--max-detections", "5")
SMALL = ("--short-side", "64", "--long-side", "96")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "epoch_12.pth", MASK_ARCH)


@pytest.fixture(scope="module")
def copy(weights: Path) -> Path:
    copy = weights.with_name("copy.safetensors")
    assert run(["convert", str(weights), str(copy), "--arch", MASK_ARCH]) == 0
    return copy


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("images") / "noise.png", noise(60, 80))


@pytest.fixture
def manifest(tmp_path: Path, weights: Path) -> Path:
    """A record with a class set and a preprocessing of its own."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "checkpoints:\n"
        "  - name: pets\n"
        f"    urls: ['{weights.as_uri()}']\n"
        "    architecture: {detector: mask_rcnn, backbone: resnet50}\n"
        "    classes: {7: cat, 8: dog, 20: bird}\n"
        "    preprocessing: {short_side: 64, long_side: 96, mean: [100, 110, 120]}\n"
    )
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def detections(dcnzoo: Program, image: Path, out: Path, *arguments: object) -> str:
    outcome = dcnzoo("predict", image, "--out", out, *QUICK, *arguments)
    assert outcome.code == 0, outcome.err
    text = (out / "detections.jsonl").read_text()
    assert '"score"' in text
    return text


def test_name(dcnzoo: Program, manifest: Path, weights: Path, image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pets.safetensors"
    assert dcnzoo("convert", "pets", copy, "--manifest", manifest) == (0, f"{copy}\n", "")
    metadata = metadata_of(copy)
    assert metadata["architecture"] == MASK_ARCH
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["category_ids"]) == [7, 8, 20]
    assert json.loads(metadata["preprocessing"])["short_side"] == 64
    assert metadata["origin"] == weights.name
    assert metadata["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()

    expected = detections(dcnzoo, image, tmp_path / "a", "--model", "pets", "--manifest", manifest)
    assert detections(dcnzoo, image, tmp_path / "b", "--weights", copy) == expected


def test_file(dcnzoo: Program, weights: Path, copy: Path, image: Path, tmp_path: Path) -> None:
    own = ("--weights", weights, "--arch", MASK_ARCH)
    expected = detections(dcnzoo, image, tmp_path / "a", *own, *SMALL)
    assert detections(dcnzoo, image, tmp_path / "b", "--weights", copy, *SMALL) == expected


def test_halves_stay_halves(dcnzoo: Program, weights: Path, image: Path, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    halves, copy = tmp_path / "half.pth", tmp_path / "half.safetensors"
    torch.save(content, halves)
    assert dcnzoo("convert", halves, copy, "--arch", MASK_ARCH).code == 0
    assert copy.stat().st_size < 0.6 * weights.stat().st_size
    expected = detections(dcnzoo, image, tmp_path / "a", "--weights", halves, "--arch", MASK_ARCH, *SMALL)
    assert detections(dcnzoo, image, tmp_path / "b", "--weights", copy, *SMALL) == expected


def test_copy_of_a_copy_replaces_a_file_only_when_told(dcnzoo: Program, copy: Path, tmp_path: Path) -> None:
    second = tmp_path / "b.safetensors"
    second.write_bytes(b"precious")
    code, out, err = dcnzoo("convert", copy, second)
    assert (code, out) == (1, "")
    assert err == f"error: {second} exists; choose another name, or replace it with --overwrite\n"
    assert second.read_bytes() == b"precious"
    assert dcnzoo("convert", copy, second, "--overwrite").code == 0
    assert metadata_of(second) == metadata_of(copy)
    assert second.stat().st_size == copy.stat().st_size


def test_architecture_that_does_not_fit(dcnzoo: Program, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "x.safetensors"
    code, _, err = dcnzoo("convert", weights, copy, "--arch", ARCH)
    assert code == 1
    assert f"does not fit {ARCH}" in err
    assert not copy.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pets", "x.safetensors", "--arch", ARCH], 2, "give --arch only with a file"),
        (["pest", "x.safetensors"], 1, "did you mean pets?"),
        (["missing.pth", "x.safetensors", "--arch", ARCH], 1, "checkpoint missing.pth: No such file"),
        (["folder/missing", "x.safetensors", "--arch", ARCH], 1, "checkpoint folder/missing: No such file"),
        (["missing.safetensors", "x.safetensors"], 1, "checkpoint missing.safetensors: No such file"),
        (["pets", "x.pth"], 1, "x.pth does not end in .safetensors"),
        (["pets", "folder/x.safetensors"], 1, "there is no folder folder"),
        (["missing.pth", "x.safetensors", "--arch", "resnet"], 1, "unknown architecture 'resnet'"),
    ],
)
def test_wrong_usage(
    dcnzoo: Program,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = dcnzoo("convert", *arguments, "--manifest", manifest)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_another_program_is_recognised(
    dcnzoo: Program, weights: Path, image: Path, tmp_path: Path, suffix: str
) -> None:
    from safetensors.torch import save_file

    bare, copy = tmp_path / f"bare{suffix}", tmp_path / "copy.safetensors"
    state_dict = torch.load(weights, weights_only=True)["state_dict"]
    if suffix == ".pth":
        torch.save(state_dict, bare)
    else:
        save_file(state_dict, bare)
    named = detections(dcnzoo, image, tmp_path / "a", "--weights", bare, "--arch", MASK_ARCH, *SMALL)
    assert detections(dcnzoo, image, tmp_path / "b", "--weights", bare, *SMALL) == named
    assert dcnzoo("convert", bare, copy).code == 0
    assert metadata_of(copy)["architecture"] == MASK_ARCH


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "neck.lateral_convs.0.conv.weight",
            "does not name its architecture, and its tensors are those of no",
        ),
        ("neck.lateral_convs.1.conv.weight", f"does not fit {MASK_ARCH}; give the architecture that it was"),
    ],
)
def test_half_a_detector_is_refused(
    dcnzoo: Program,
    weights: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    removed: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    state_dict = torch.load(weights, weights_only=True)["state_dict"]
    del state_dict[removed]
    half = tmp_path / "half.pth"
    torch.save(state_dict, half)
    predict, convert = (
        ("predict", image, "--weights", half, *QUICK),
        ("convert", half, tmp_path / "c.safetensors"),
    )
    for command in (predict, convert):
        code, _, err = dcnzoo(*command)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
