"""Damaged files: each is read, or refused with the package's own error, and nothing else ever happens."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.errors import CheckpointError, EvaluationError, ImageReadError, ManifestError, OutputError
from dcnzoo.evaluation.annotations import read_annotations, read_image_ids
from dcnzoo.evaluation.results import read_results
from dcnzoo.evaluation.scoring import evaluate
from dcnzoo.image import decode_image
from dcnzoo.manifest import load_manifest
from dcnzoo.reader import pixel_limit
from dcnzoo.writers import JOURNAL, read_journal
from tests.mutation import mutants
from tests.pictures import noise
from tests.unit.annotating import annotation_content, random_scene

PICTURE = Image.fromarray(noise(24, 32))


class Touch:
    """When unpickled in earnest, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


class TestCheckpoints:
    @staticmethod
    def content(canary: Path | None = None) -> dict[str, Any]:
        state = {
            "backbone.conv1.weight": torch.arange(24.0).reshape(2, 3, 4).half(),
            "fc.bias": torch.ones(5),
        }
        meta = {
            "CLASSES": ("cat", "dog"),
            "epoch": 12,
            "names": {1, 2},
            "more": [Touch(canary)] if canary else [],
        }
        return {"state_dict": state, "meta": meta}

    @pytest.mark.parametrize("payload", [False, True])
    @pytest.mark.parametrize("zip_format", [True, False])
    def test_mutants(self, tmp_path: Path, zip_format: bool, payload: bool) -> None:
        canary, path = tmp_path / "canary", tmp_path / "a.pth"
        buffer = io.BytesIO()
        torch.save(
            self.content(canary if payload else None), buffer, _use_new_zipfile_serialization=zip_format
        )
        outcomes = set()
        for mutant in mutants(buffer.getvalue(), 1500):
            path.write_bytes(mutant)
            try:
                checkpoint = load_checkpoint(path)
            except CheckpointError:
                outcomes.add("refused")
            else:
                assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state_dict.values())
                outcomes.add("loaded")
            assert not canary.exists()
        assert outcomes == {"refused", "loaded"}  # a payload whose name is damaged is a placeholder

    def refuse(self, path: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        "bomb",
        [
            b"cbuiltins\nbytearray\n(I100000000000\ntR.",
            b"cbuiltins\nlist\n(cbuiltins\nrange\n(I100000000000\ntRtR.",
            b"\x80\x02]r\xff\xff\xff\x7f.",  # an empty list in place 2,147,483,647
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",  # bytes that are longer than any file
            b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        ],
        ids=["bytearray", "range", "place", "length", "depth"],
    )
    def test_pickles_that_ask_for_all_memory(self, tmp_path: Path, bomb: bytes) -> None:
        legacy = b"".join(
            pickle.dumps(value, 2)
            for value in (
                torch.serialization.MAGIC_NUMBER,
                torch.serialization.PROTOCOL_VERSION,
                {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
            )
        )
        (tmp_path / "a.pth").write_bytes(legacy + bomb)
        self.refuse(tmp_path / "a.pth", "a.pth: ")

    def test_a_tensor_larger_than_the_file(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(1, dtype=torch.half).expand(2**40)}, tmp_path / "a.pth")
        self.refuse(tmp_path / "a.pth", "has fewer values than tensor w claims; fetch or copy it again")

    def test_compressed_parts(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "a.pth")
        with (
            zipfile.ZipFile(tmp_path / "a.pth") as plain,
            zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        self.refuse(
            tmp_path / "b.pth",
            "holds compressed parts, which PyTorch never writes; save it again with torch.save",
        )


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = {
    "jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True, exif=Image.Exif()),
    "png": encoded("PNG"),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "tiff, packed": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP"),
    "ppm": encoded("PPM"),
    "jpeg 2000": encoded("JPEG2000"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What decoders print on standard error is theirs."""
    with pixel_limit(1_000_000):
        for mutant in mutants(IMAGES[kind], 600):
            try:
                pixels = decode_image(mutant)
            except ImageReadError:
                continue
            else:
                assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    capfd.readouterr()


MANIFEST = """
class_sets:
  cells: {1: RBC, 2: WBC}
checkpoints:
  - name: cells
    urls: [https://example.org/cells.pth]
    sha256: 0123456789abcdef
    architecture: {detector: mask_rcnn, backbone: resnet50, conv: dconv}
    classes: cells
    preprocessing: {short_side: 240, long_side: 320}
    published: {box_ap: 41.3, mask_ap: 37.4}
    licence: MIT
"""


class TestManifest:
    def read(self, path: Path, content: bytes | str) -> ManifestError | None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            load_manifest(path)
        except ManifestError as error:
            return error
        return None

    def test_mutants(self, tmp_path: Path) -> None:
        errors = [self.read(tmp_path / "own.yaml", mutant) for mutant in mutants(MANIFEST.encode(), 800)]
        assert any(errors)
        assert all(len(str(error)) < 5000 for error in errors)

    @pytest.mark.parametrize("place", ["checkpoints", "class_sets", "name", "urls", "licence", "published"])
    def test_aliases_that_multiply(self, tmp_path: Path, place: str) -> None:
        """Nine levels of nine references each: 400 million words, if anybody wrote them out."""
        levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
        levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
        top = place in ("checkpoints", "class_sets")
        record = f"{place}: *l8\n" if top else f"checkpoints:\n  - name: a\n    {place}: *l8\n"
        error = self.read(tmp_path / "own.yaml", "\n".join(levels) + "\n" + record)
        assert error is not None
        assert len(str(error)) < 5000

    @pytest.mark.parametrize(
        "content",
        [
            "[" * 10_000,
            "checkpoints: " + "[" * 5000 + "]" * 5000,
            "? " * 5000,
            "checkpoints: !!python/object/apply:os.system [touch canary]",
            "checkpoints: &a [*a]",
            "checkpoints: &a {name: *a}",
            "checkpoints:\n - &a {name: x, urls: [*a]}",
            "checkpoints: 1" + "0" * 5000,
            "a: 1:2:3:4:5:6:7:8:9" * 100,
        ],
        ids=[
            "open",
            "deep",
            "keys",
            "python",
            "list in itself",
            "dict in itself",
            "record in itself",
            "long",
            "odd",
        ],
    )
    def test_traps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.read(tmp_path / "own.yaml", content) is not None
        assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


class TestCoco:
    """Bytes of JSON files; what is in them is changed in `test_json`."""

    OBJECTS, RESULTS = random_scene(0)

    @pytest.fixture
    def annotations(self, tmp_path: Path) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(annotation_content(self.OBJECTS[:6], images=6)))
        return path

    def test_annotations(self, tmp_path: Path, annotations: Path) -> None:
        read = 0
        for mutant in mutants(annotations.read_bytes(), 800):
            (tmp_path / "mutant.json").write_bytes(mutant)
            try:
                listed = read_annotations(tmp_path / "mutant.json")
                listed.check_masks()
                evaluate(listed, [], "segm")
                read += 1
            except EvaluationError:
                pass
        assert read > 5

    def test_results(self, tmp_path: Path, annotations: Path) -> None:
        listed, read = read_annotations(annotations), 0
        for mutant in mutants(json.dumps(self.RESULTS[:8]).encode(), 800):
            (tmp_path / "mutant.json").write_bytes(mutant)
            try:
                for kind, results in read_results(tmp_path / "mutant.json", listed).items():
                    evaluate(listed, results, kind)
                read += 1
            except EvaluationError:
                pass
        assert read > 5

    def test_image_ids(self, tmp_path: Path) -> None:
        for mutant in mutants(b"[3, 1, 4, 15, 926]\n", 800):
            (tmp_path / "ids.txt").write_bytes(mutant)
            try:
                ids = read_image_ids(tmp_path / "ids.txt")
            except EvaluationError:
                continue
            assert all(type(number) is int for number in ids)

    @pytest.mark.parametrize(
        "content", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "-" * 10_000, "[1e999]"]
    )
    @pytest.mark.parametrize("read", [read_annotations, read_image_ids])
    def test_traps(self, tmp_path: Path, read: Callable[[Path], object], content: str) -> None:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(EvaluationError):
            read(tmp_path / "a.json")


def test_journals(tmp_path: Path) -> None:
    line = {"images": [["photos/a.jpg", "a", 1], ["b.jpg", None, None]], "sizes": {"detections.jsonl": 34}}
    end = {**line, "listing": [2, "abc"], "failures": 1}
    content = "".join(json.dumps(one) + "\n" for one in (line, line, end)).encode()
    read = 0
    for mutant in mutants(content, 1500):
        (tmp_path / JOURNAL).write_bytes(mutant)
        try:
            progress = read_journal(tmp_path)
        except OutputError:
            continue
        assert all(size >= 0 for size in progress.sizes.values())
        read += 1
    assert read > 20


def test_yaml_of_the_test_is_a_manifest(tmp_path: Path) -> None:
    """Or else its mutants would say little."""
    assert yaml.safe_load(MANIFEST)
    (tmp_path / "own.yaml").write_text(MANIFEST)
    assert "cells" in load_manifest(tmp_path / "own.yaml").records
    assert sys.getrecursionlimit() < 100_000
