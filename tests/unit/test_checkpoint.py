"""Checkpoint files in all their historical forms, and hostile ones."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.errors import CheckpointError

STATE = {
    "backbone.layer2.0.conv2.conv_offset.weight": torch.arange(6.0).reshape(2, 3),
    "roi_head.bbox_head.fc_cls.weight": torch.ones(4, 2),
    "backbone.bn1.num_batches_tracked": torch.tensor(7),
}
FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "stream"])


def save(path: Path, content: Any, zip_format: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    return path


@FORMATS
@pytest.mark.parametrize("wrap", [lambda s: {"meta": {"epoch": 12}, "state_dict": s}, dict, OrderedDict])
def test_reads_wrapped_and_bare_state_dicts(tmp_path: Path, zip_format: bool, wrap: Any) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", wrap(STATE), zip_format))
    assert checkpoint.state_dict.keys() == STATE.keys()
    for name, tensor in STATE.items():
        torch.testing.assert_close(checkpoint.state_dict[name], tensor)
    assert checkpoint.num_classes == 3


@FORMATS
@pytest.mark.parametrize(
    "old_name",
    [
        "backbone.layer2.0.conv2_offset.weight",
        "module.backbone.layer2.0.conv2_offset.weight",
        "module.backbone.layer2.0.conv2.conv_offset.weight",
    ],
)
def test_old_names_are_mapped(tmp_path: Path, zip_format: bool, old_name: str) -> None:
    checkpoint = load_checkpoint(
        save(tmp_path / "a.pth", {"state_dict": {old_name: torch.ones(1)}}, zip_format)
    )
    assert list(checkpoint.state_dict) == ["backbone.layer2.0.conv2.conv_offset.weight"]


def test_half_tensors_are_widened_and_counters_kept(tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in STATE.items()}
    state = load_checkpoint(save(tmp_path / "a.pth", halves)).state_dict
    assert [tensor.dtype for tensor in state.values()] == [torch.float32, torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("meta", "classes"),
    [
        ({"CLASSES": ("cat", "dog")}, ("cat", "dog")),
        ({"CLASSES": ["cat", "dog"]}, ("cat", "dog")),
        ({"CLASSES": "cat"}, ("cat",)),
        ({"dataset_meta": {"classes": ("cat", "dog")}}, ("cat", "dog")),
        ({"dataset_meta": {"CLASSES": ("cat", "dog")}}, ("cat", "dog")),
        ({"CLASSES": None}, None),
        ({"CLASSES": (1, 2)}, None),
        ({}, None),
        (None, None),
    ],
)
def test_class_names_come_from_the_file(tmp_path: Path, meta: Any, classes: Any) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", {"meta": meta, "state_dict": STATE}))
    assert checkpoint.classes == classes


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of a training framework that exists while the file is written and not when it is read."""
    module = types.ModuleType("someframework")

    class HistoryBuffer:
        """Holds numpy arrays and its own functions, as logging helpers do."""

        def __init__(self) -> None:
            self.history = np.arange(3.0)
            self.count = np.float64(3)
            self.methods = {"mean": HistoryBuffer.mean}

        @staticmethod
        def mean() -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "someframework", "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = "someframework", "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someframework", module)
    return HistoryBuffer


@FORMATS
def test_objects_of_a_framework_become_inert(
    tmp_path: Path, framework: type, zip_format: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "state_dict": STATE,
        "message_hub": {"loss": framework()},
        "meta": {"CLASSES": ("a", "b", "c")},
    }
    path = save(tmp_path / "a.pth", content, zip_format)
    monkeypatch.delitem(sys.modules, "someframework")
    checkpoint = load_checkpoint(path)
    assert checkpoint.classes == ("a", "b", "c")
    assert "someframework" not in sys.modules


class Payload:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


PAYLOADS = {
    "os.system": lambda proof: Payload(os.system, f"touch {proof}"),
    "exec": lambda proof: Payload(exec, f"open({str(proof)!r}, 'w')"),
    "eval": lambda proof: Payload(eval, f"open({str(proof)!r}, 'w')"),
    "open": lambda proof: Payload(builtins.open, str(proof), "w"),
    "__import__": lambda _: Payload(__import__, "antigravity"),
    "numpy.save": lambda proof: Payload(np.save, str(proof), 1),
    "torch.save": lambda proof: Payload(torch.save, 1, str(proof)),
    "torch.hub.load": lambda proof: Payload(torch.hub.load, str(proof.parent), "model"),
}


@FORMATS
@pytest.mark.parametrize("place", ["meta", "state_dict", "optimizer"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_refused_and_does_not_run(
    tmp_path: Path, payload: str, place: str, zip_format: bool
) -> None:
    proof = tmp_path / "proof"
    content: dict[str, Any] = {"meta": {}, "state_dict": dict(STATE), "optimizer": {}}
    content[place]["x"] = PAYLOADS[payload](proof)
    path = save(tmp_path / "a.pth", content, zip_format)
    with pytest.raises(CheckpointError, match="unsafe"):
        load_checkpoint(path)
    assert not proof.exists()


def test_the_payload_would_run_without_protection(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(PAYLOADS["os.system"](proof)))
    assert proof.exists()


def test_a_bare_pickle_with_a_payload_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"state_dict": PAYLOADS["os.system"](proof)}))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a.pth")
    assert not proof.exists()


@FORMATS
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files_are_errors(tmp_path: Path, zip_format: bool, fraction: float) -> None:
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"weight": torch.ones(1000)}}, buffer, _use_new_zipfile_serialization=zip_format
    )
    content = buffer.getvalue()
    path = tmp_path / "a.pth"
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match="fetch or copy it again"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "list"), ({"state_dict": {}}, "no tensors"), ({"state_dict": 5}, "no tensors")],
)
def test_other_contents_are_errors(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(save(tmp_path / "a.pth", content))


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(4096)]
)
def test_other_file_types_are_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "a.pth")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/data.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_checkpoint(tmp_path / "a.pth")


def test_the_real_checkpoint_of_a_user_loads(shared: Path) -> None:
    checkpoint = load_checkpoint(shared / "data" / "bccd" / "faster_rcnn_r50_fpn_dconv_c3-c5_bccd.pth")
    assert checkpoint.classes == ("RBC", "WBC", "Platelets")
    assert checkpoint.num_classes == 3
