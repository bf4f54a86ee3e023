"""Safe copies: what is written is read back, and nothing hostile gets through."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.errors import CheckpointError, OutputError
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing
from dcnzoo.safe_copy import Description, read_safe_copy, write_safe_copy

TENSORS = {
    "roi_head.bbox_head.fc_cls.weight": torch.arange(8.0).reshape(4, 2),
    "half": torch.full((3,), 1 / 3).half(),
    "counter": torch.tensor(7),
    "empty": torch.zeros(0, 5),
}
DESCRIPTION = Description(
    Architecture("mask_rcnn", "resnext101_32x4d", "mdconv", 4),
    ClassSet(("cat", "été", '"quoted"'), (1, 18, 90)),
    Preprocessing(short_side=240, long_side=321, mean=(1.5, 2.25, 0.1), size_divisor=64),
    "https://host/a.pth",
    "ab" * 32,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_safe_copy(path, TENSORS, DESCRIPTION)
    return path


def test_reads_back_what_was_written(path: Path) -> None:
    tensors, description = read_safe_copy(path)
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_load_checkpoint(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.description == DESCRIPTION
    assert checkpoint.classes == DESCRIPTION.classes.names
    assert checkpoint.num_classes == 3
    assert checkpoint.state_dict["half"].dtype == torch.float32
    assert load_checkpoint(path, widen=False).state_dict["half"].dtype == torch.float16


def test_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "A.SAFETENSORS"
    save_file(TENSORS, path, {"format": "pt", "architecture": "resnet50"})
    assert load_checkpoint(path).description is None


def test_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    views = {"a": base, "b": base[1], "c": base.to(memory_format=torch.channels_last), "d": base.mT[..., 1:]}
    write_safe_copy(tmp_path / "a.safetensors", views, DESCRIPTION)
    tensors, _ = read_safe_copy(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], view) for name, view in views.items())


def test_tensors_outlive_the_file(path: Path) -> None:
    tensors, _ = read_safe_copy(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(tensors["half"], TENSORS["half"])


def test_others_may_read_the_file_as_any_other(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_replaces_only_when_told(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        write_safe_copy(path, {"x": torch.ones(1)}, DESCRIPTION)
    assert path.read_bytes() == before
    write_safe_copy(path, {"x": torch.ones(1)}, DESCRIPTION, overwrite=True)
    assert list(read_safe_copy(path)[0]) == ["x"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"), [("a.pth", "does not end in"), ("no/a.safetensors", "there is no folder")]
)
def test_impossible_targets(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        write_safe_copy(tmp_path / name, TENSORS, DESCRIPTION)


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a.safetensors"
    (folder / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_safe_copy(folder, TENSORS, DESCRIPTION, overwrite=True)
    assert list(tmp_path.iterdir()) == [folder]


def test_failing_to_clean_up_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*a.safetensors: Read-only file system"):
        write_safe_copy(tmp_path / "a.safetensors", TENSORS, DESCRIPTION)


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(content: bytes, header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("architecture", value) for value in ("resnet50", "", "__import__")),
        *(("classes", value) for value in ("", "[", "7", "{}", "[1, 2, 3]", '["a"]', "[" * 10_000)),
        *(("category_ids", value) for value in ("", "[1, 2]", "[1, 2, 3.5]", "[true, 2, 3]", '"abc"')),
        *(("preprocessing", value) for value in ("", "[]", '{"short_side": 0}', '{"x": 1}')),
        *(("preprocessing", value) for value in ('{"std": [0, 1, 1]}', '{"mean": [NaN, 0, 0]}')),
        *((key, None) for key in ("architecture", "classes", "category_ids", "preprocessing", "origin")),
    ],
)
def test_description_that_makes_no_sense(path: Path, key: str, value: str | None) -> None:
    content = path.read_bytes()
    header = header_of(content)
    if value is None:
        del header["__metadata__"][key]
    else:
        header["__metadata__"][key] = value
    path.write_bytes(with_header(content, header))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: has a description that makes no sense"):
        load_checkpoint(path)


def test_header_that_lies(path: Path) -> None:
    content = path.read_bytes()
    header = header_of(content)
    for change in (
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4 * 2**40]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "pickle", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
    ):
        path.write_bytes(with_header(content, {**header, "half": change}))
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("fraction", [0.0, 0.005, 0.02, 0.3, 0.9, 0.999])
def test_truncated(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_checkpoint(path)


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


def test_pickle_under_this_name_is_not_run(path: Path, tmp_path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def test_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="directory"):
        load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "b.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bytes_are_tensors_or_an_error(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, length + 8))] = data.draw(st.integers(0, 255))
    mutant = path.with_name("b.safetensors")
    mutant.write_bytes(content)
    try:
        checkpoint = load_checkpoint(mutant)
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state_dict.values())
