"""The Python interface, with a real model of random weights."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dcnzoo
import dcnzoo.predictor as predictor_module
from dcnzoo.checkpoint import Checkpoint, load_checkpoint
from dcnzoo.errors import (
    CheckpointError,
    ChecksumError,
    DeviceError,
    ImageReadError,
    OutOfMemoryError,
    UnknownModelError,
)
from dcnzoo.gpu import GpuDetector
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing
from dcnzoo.ops import gpu
from dcnzoo.ops.gpu import allows_tf32
from dcnzoo.predictor import (
    find_classes,
    find_device,
    float32_kept,
    has_kernels,
    prepare_precision,
    with_index,
    with_sides,
)
from dcnzoo.results import Detections
from dcnzoo.safe_copy import Description, write_safe_copy
from dcnzoo.times import StageTimes
from tests.http_server import content, serving
from tests.ops.test_deform_conv2d import needs_native
from tests.pictures import noise, patches, save
from tests.random_detector import ARCH, CLASSES, MASK_ARCH, write_random_checkpoint

SIDES = {"short_side": 32, "long_side": 64}
PIXELS = noise(60, 80)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> dcnzoo.Predictor:
    return dcnzoo.load(weights=checkpoint, arch=ARCH, device="cpu", **SIDES)


@pytest.fixture(scope="module")
def expected(predictor: dcnzoo.Predictor) -> Detections:
    """What is found in PIXELS."""
    return predictor(PIXELS)


def assert_same(found: Detections, expected: Detections, atol: float = 1e-4) -> None:
    assert found.names == expected.names
    assert found.image_size == expected.image_size
    np.testing.assert_allclose(found.scores, expected.scores, atol=atol)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=100 * atol)


def raise_out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class TestResult:
    def test_fields(self, expected: Detections) -> None:
        assert (expected.class_names, expected.category_ids) == (CLASSES, (1, 2, 3))
        assert (expected.image_size, expected.path, expected.rles) == ((60, 80), None, None)
        assert expected.boxes.dtype == expected.scores.dtype == np.float32
        assert expected.labels.dtype == np.int64
        assert len(expected) > 5
        assert (np.diff(expected.scores) <= 0).all()
        assert expected.scores.min() > 0.05

    def test_boxes_are_in_the_original_frame(self, predictor: dcnzoo.Predictor) -> None:
        found = predictor(noise(300, 400))
        assert found.boxes.max() > 64
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= (400.001, 300.001)).all()
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()

    def test_masks(self, tmp_path: Path) -> None:
        weights = write_random_checkpoint(tmp_path / "mask.pth", MASK_ARCH)
        found = dcnzoo.load(weights=weights, arch=MASK_ARCH, device="cpu", **SIDES)(PIXELS, max_detections=5)
        assert found.masks.shape == (5, 60, 80)
        for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert ((y1 - 1 <= rows) & (rows <= y2 + 1) & (x1 - 1 <= columns) & (columns <= x2 + 1)).all()
        assert found.masks.any()
        assert found.plot(PIXELS).size == (80, 60)

    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
    def test_extreme_sizes(self, predictor: dcnzoo.Predictor, size: tuple[int, int]) -> None:
        found = predictor(noise(*size))
        assert found.image_size == size
        assert found.plot(noise(*size)).size == size[::-1]


class TestImages:
    @pytest.mark.parametrize(
        "image",
        [
            Image.fromarray(PIXELS),
            PIXELS[:, ::-1][:, ::-1],
            np.asfortranarray(PIXELS),
            torch.from_numpy(PIXELS).permute(2, 0, 1),
            torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
            torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
        ],
        ids=["Pillow", "strided array", "Fortran array", "uint8 tensor", "float tensor", "double tensor"],
    )
    def test_every_kind_gives_the_same(
        self, predictor: dcnzoo.Predictor, expected: Detections, image: object
    ) -> None:
        assert_same(predictor(image), expected)

    @pytest.mark.parametrize("kind", [str, Path])
    def test_path(
        self, predictor: dcnzoo.Predictor, expected: Detections, kind: type, tmp_path: Path
    ) -> None:
        path = save(tmp_path / "a.png", PIXELS)
        found = predictor(kind(path))
        assert_same(found, expected)
        assert found.path == str(path)

    def test_open_file(self, predictor: dcnzoo.Predictor, expected: Detections, tmp_path: Path) -> None:
        path = save(tmp_path / "a.png", PIXELS)
        with path.open("rb") as file, path.open("rb") as another:
            assert_same(predictor(file), expected)
            assert_same(predictor([another])[0], expected)

    def test_address(self, predictor: dcnzoo.Predictor, expected: Detections, tmp_path: Path) -> None:
        data = save(tmp_path / "a.png", PIXELS).read_bytes()
        with serving({"/a": content(data)}) as server:
            assert_same(predictor(server.url("/a")), expected)

    @pytest.mark.parametrize(
        "image",
        [PIXELS[..., 0], torch.from_numpy(PIXELS[..., 0])[None], Image.fromarray(PIXELS[..., 0])],
        ids=["array", "tensor", "Pillow"],
    )
    def test_grey(self, predictor: dcnzoo.Predictor, image: object) -> None:
        assert_same(predictor(image), predictor(PIXELS[..., :1].repeat(3, axis=2)))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (PIXELS.astype(np.float32), "expected a uint8 array"),
            (PIXELS.transpose(2, 0, 1), r"\(3, 60, 80\)"),
            (PIXELS[None], "expected a uint8 array"),
            (PIXELS[:0], "with pixels"),
            (torch.from_numpy(PIXELS), r"expected a tensor \(3 or 1"),
            (torch.from_numpy(PIXELS).permute(2, 0, 1).float(), "values from 0 to 1"),
            (torch.full((3, 4, 4), torch.nan), "values from 0 to 1"),
            (torch.zeros((3, 4, 4), dtype=torch.int64), "uint8"),
            (7, "got int"),
            (None, "got NoneType"),
        ],
    )
    def test_others_are_refused(self, predictor: dcnzoo.Predictor, image: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            predictor(image)

    def test_unreadable_file(self, predictor: dcnzoo.Predictor, tmp_path: Path) -> None:
        with pytest.raises(ImageReadError, match="No such file"):
            predictor(tmp_path / "a.jpg")


# Each of these is padded to 32x64 when alone too, so that a batch changes nothing.
EQUALLY_PADDED = (PIXELS, noise(60, 80, seed=1), patches(20)[:, :50])


@pytest.fixture(scope="module")
def alone(predictor: dcnzoo.Predictor) -> list[Detections]:
    return [predictor(image) for image in EQUALLY_PADDED]


class TestSeveral:
    def test_list_and_tuple_give_a_list(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        for images in ([PIXELS], (PIXELS,)):
            found = predictor(images)
            assert isinstance(found, list)
            assert_same(found[0], expected)
        assert predictor([]) == []

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_batches_keep_the_order(
        self, predictor: dcnzoo.Predictor, alone: list[Detections], batch_size: int
    ) -> None:
        found = predictor(EQUALLY_PADDED, batch_size=batch_size)
        for together, single in zip(found, alone, strict=True):
            assert_same(together, single, atol=1e-3)

    @needs_native
    @pytest.mark.parametrize(
        "arch", ["faster_rcnn_r50_fpn_dconv_c3-c5", "faster_rcnn_r50_fpn_dpool", MASK_ARCH]
    )
    def test_what_is_found_does_not_depend_on_the_batch(self, tmp_path: Path, arch: str) -> None:
        weights = write_random_checkpoint(tmp_path / "random.pth", arch)
        predictor = dcnzoo.load(weights=weights, arch=arch, device="cpu", short_side=96, long_side=160)
        images = [noise(96, 128, seed=seed) for seed in range(3)]
        together = predictor(images, batch_size=3)
        for found, image in zip(together, images, strict=True):
            alone = predictor(image)
            assert len(found) > 0
            np.testing.assert_array_equal(found.boxes, alone.boxes)
            np.testing.assert_array_equal(found.scores, alone.scores)
            assert found.to_coco(1) == alone.to_coco(1)

    def test_mixed_sizes_in_a_batch(self, predictor: dcnzoo.Predictor) -> None:
        images = [noise(60, 80), noise(90, 30), noise(1, 1), noise(200, 500)]
        found = predictor(images, batch_size=4)
        assert [detections.image_size for detections in found] == [image.shape[:2] for image in images]
        for detections in found:
            height, width = detections.image_size
            assert (detections.boxes[:, 2:] <= (width + 1e-3, height + 1e-3)).all()

    def test_an_iterator_streams(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        taken = []

        def images() -> Iterator[np.ndarray]:
            for number in range(100):
                taken.append(number)
                yield PIXELS

        results = predictor(images(), batch_size=2)
        assert taken == []
        assert_same(next(results), expected, atol=1e-3)
        assert taken == [0, 1]

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_bad_batch_size(self, predictor: dcnzoo.Predictor, batch_size: int) -> None:
        with pytest.raises(ValueError, match="batch_size of at least 1"):
            predictor([PIXELS], batch_size=batch_size)

    @pytest.mark.parametrize("batch_size", [1, 2, 4])
    def test_unreadable_ones_are_skipped(
        self,
        predictor: dcnzoo.Predictor,
        expected: Detections,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        batch_size: int,
    ) -> None:
        good, bad = str(save(tmp_path / "good.png", PIXELS)), str(tmp_path / "bad.jpg")
        Path(bad).write_bytes(b"\xff\xd8\xff\xe0 cut short")
        images = [bad, good, PIXELS, bad, good]
        for kind in (list, iter):
            caplog.clear()
            found = list(predictor(kind(images), batch_size=batch_size, on_error="skip"))
            assert [each.path for each in found] == [good, None, good]
            for each in found:
                assert_same(each, expected, atol=1e-3)
            assert [record.name for record in caplog.records] == ["dcnzoo.predictor"] * 2
            assert bad in caplog.text
        assert list(predictor(iter([bad]), on_error="skip")) == []
        with pytest.raises(ImageReadError, match=r"bad\.jpg"):
            predictor(images)

    def test_a_single_unreadable_one_is_an_error(self, predictor: dcnzoo.Predictor, tmp_path: Path) -> None:
        with pytest.raises(ImageReadError):
            predictor(tmp_path / "missing.jpg", on_error="skip")

    def test_threads(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(predictor, [PIXELS] * 6):
                assert_same(found, expected)


@needs_native
def test_detecting_on_a_cpu_imports_neither_compiler_nor_torchvision(checkpoint: Path) -> None:
    """They take seconds and hundreds of megabytes."""
    code = f"""
import sys, numpy, dcnzoo
predictor = dcnzoo.load(weights={str(checkpoint)!r}, arch={ARCH!r}, device="cpu", short_side=32, long_side=64)
predictor(numpy.zeros((60, 80, 3), "uint8"))
print([name for name in ("torch._dynamo", "triton", "sympy", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class TestLimits:
    def test_score_threshold(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        found = predictor(PIXELS, score_threshold=0.5)
        assert 0 < len(found) < len(expected)
        assert_same(found, expected[expected.scores > 0.5])

    def test_max_detections(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        assert_same(predictor(PIXELS, max_detections=2), expected[:2])

    @pytest.mark.parametrize("classes", [["cat"], [1], ["dog", 3]])
    def test_classes(self, predictor: dcnzoo.Predictor, expected: Detections, classes: list[object]) -> None:
        assert_same(predictor(PIXELS, classes=classes), expected.of_classes(classes))

    def test_the_best_of_the_classes_asked_for(
        self, predictor: dcnzoo.Predictor, expected: Detections
    ) -> None:
        rare = expected.names[-1]
        found = predictor(PIXELS, classes=[rare], max_detections=1)
        assert_same(found, expected.of_classes([rare])[:1])

    def test_one_class_alone(self, predictor: dcnzoo.Predictor, expected: Detections) -> None:
        assert_same(predictor(PIXELS, classes="dog"), expected.of_classes(["dog"]))
        assert_same(predictor(PIXELS, classes=2), expected.of_classes([2]))

    @pytest.mark.parametrize(
        "options",
        [{"max_detections": -1}, {"max_detections": 0}, {"batch_size": 1.5}, {"batch_size": 2.0},
         {"score_threshold": float("nan")}, {"on_error": "ignore"}, {"on_error": None}],
    )  # fmt: skip
    def test_options_out_of_range(self, predictor: dcnzoo.Predictor, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=rf"expected (a )?{next(iter(options))} "):
            predictor(PIXELS, **options)

    def test_unknown_class(self, predictor: dcnzoo.Predictor) -> None:
        with pytest.raises(ValueError, match="unknown class horse; the model knows cat, dog, bird"):
            predictor(PIXELS, classes=["horse"])


class TestLoad:
    def manifest(self, tmp_path: Path, checkpoint: Path, sha256: str) -> Path:
        path = tmp_path / "manifest.yaml"
        path.write_text(
            f"""
checkpoints:
  - name: mine
    urls: [{checkpoint.as_uri()}]
    sha256: {sha256}
    architecture: {{detector: faster_rcnn, backbone: resnet50}}
    preprocessing: {{short_side: 32, long_side: 64}}
    classes: {{7: cat, 9: dog, 11: bird}}
"""
        )
        return path

    def test_by_name(self, tmp_path: Path, checkpoint: Path, expected: Detections) -> None:
        import hashlib

        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        predictor = dcnzoo.load(
            "mine", manifest=self.manifest(tmp_path, checkpoint, digest[:12]), device="cpu"
        )
        assert predictor.category_ids == (7, 9, 11)
        assert predictor.preprocessing.short_side == 32
        assert_same(predictor(PIXELS), expected)

    def test_wrong_hash(self, tmp_path: Path, checkpoint: Path) -> None:
        with pytest.raises(ChecksumError, match="expected it to start with 00000000"):
            dcnzoo.load("mine", manifest=self.manifest(tmp_path, checkpoint, '"00000000"'))

    def test_own_weights_with_a_name(self, checkpoint: Path, tmp_path: Path) -> None:
        manifest = self.manifest(tmp_path, tmp_path / "published.pth", '"00000000"')
        predictor = dcnzoo.load("mine", weights=checkpoint, manifest=manifest, device="cpu", long_side=70)
        assert (predictor.preprocessing.short_side, predictor.preprocessing.long_side) == (32, 70)

    def test_own_weights_that_describe_themselves(self, checkpoint: Path, tmp_path: Path) -> None:
        """Their input and category ids come before those of the checkpoint which they replace."""
        own = tmp_path / "own.safetensors"
        manifest = self.manifest(tmp_path, checkpoint, '"00000000"')
        sizes = Preprocessing(short_side=40, long_side=50)
        described = Description(Architecture.parse(ARCH), ClassSet(tuple(CLASSES), (1, 2, 3)), sizes, "", "")
        write_safe_copy(own, load_checkpoint(checkpoint).state_dict, described)
        predictor = dcnzoo.load("mine", weights=own, manifest=manifest, device="cpu")
        assert (predictor.preprocessing.short_side, predictor.preprocessing.long_side) == (40, 50)
        assert predictor.category_ids == (1, 2, 3)

    def test_another_architecture(self, checkpoint: Path) -> None:
        with pytest.raises(CheckpointError, match=r"does not fit mask_rcnn_r50_fpn.*missing"):
            dcnzoo.load(weights=checkpoint, arch=MASK_ARCH)

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"arch": ARCH},
            {"name": "mine", "arch": ARCH},
            {"name": "mine", "arch": ARCH, "weights": "a.pth"},
        ],
    )
    def test_arguments_that_do_not_go_together(self, arguments: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"expected a name .* or weights"):
            dcnzoo.load(**arguments)

    @pytest.mark.parametrize("arguments", [{"name": "nothing"}, {"arch": "nothing", "weights": "a.pth"}])
    def test_unknown_name(self, arguments: dict[str, str]) -> None:
        with pytest.raises(UnknownModelError, match=r"unknown (model|architecture) 'nothing'"):
            dcnzoo.load(**arguments)

    def test_autocast_around_it_changes_nothing(
        self, predictor: dcnzoo.Predictor, expected: Detections
    ) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = predictor(PIXELS)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.boxes, expected.boxes)

    def test_bf16_is_near_fp32(self, checkpoint: Path, expected: Detections) -> None:
        predictor = dcnzoo.load(weights=checkpoint, arch=ARCH, device="cpu", precision="bf16", **SIDES)
        found = predictor(PIXELS)
        assert found.scores.dtype == np.float32
        assert found.names[0] == expected.names[0]
        np.testing.assert_allclose(found.scores[0], expected.scores[0], atol=0.1)

    @pytest.mark.cuda
    @pytest.mark.parametrize(
        ("precision", "atol"), [("fp32", 2e-3), ("tf32", 0.02), ("fp16", 0.05), ("bf16", 0.1)]
    )
    def test_gpu(self, checkpoint: Path, expected: Detections, precision: str, atol: float) -> None:
        predictor = dcnzoo.load(weights=checkpoint, arch=ARCH, device="cuda", precision=precision, **SIDES)
        found = predictor(PIXELS)
        np.testing.assert_allclose(found.scores[0], expected.scores[0], atol=atol)

    @pytest.mark.cuda
    def test_cuda_graphs_change_nothing(self, checkpoint: Path) -> None:
        usual, graphs = (
            dcnzoo.load(weights=checkpoint, arch=ARCH, device="cuda", cuda_graphs=on, **SIDES)
            for on in (False, True)
        )
        pictures = [PIXELS, PIXELS[::-1], PIXELS[:, ::-1], PIXELS]  # without a graph, captured, replayed
        for picture in pictures:
            wanted, found = usual(picture.copy()), graphs(picture.copy())
            np.testing.assert_array_equal(found.labels, wanted.labels)
            np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.01)

    def test_what_a_gpu_runs_finds_the_same(
        self, predictor: dcnzoo.Predictor, expected: Detections, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = GpuDetector(
            predictor.model,
            predictor.preprocessing,
            len(predictor.class_names),
            torch.float32,
            torch.device("cpu"),
        )
        monkeypatch.setattr(predictor, "_gpu", gpu)
        assert predictor.overlaps
        assert predictor.network is gpu.network
        found = predictor(PIXELS)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        assert found.image_size == expected.image_size
        monkeypatch.setattr(gpu, "begin", raise_out_of_memory)
        with pytest.raises(OutOfMemoryError, match="the image does not fit"):
            predictor(PIXELS)

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
            MemoryError(),
        ],
    )
    def test_memory_is_full(
        self, predictor: dcnzoo.Predictor, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def forward(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(predictor.model, "forward", forward)
        with pytest.raises(OutOfMemoryError, match=r"2 images together do not fit.*--batch-size"):
            predictor([PIXELS, PIXELS], batch_size=2)
        with pytest.raises(OutOfMemoryError, match="the image does not fit into the memory of cpu"):
            predictor(PIXELS)

    def test_model_that_does_not_fit(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dcnzoo.predictor.pack_weights", raise_out_of_memory)
        with pytest.raises(OutOfMemoryError, match="the model does not fit into the memory of cpu"):
            dcnzoo.load(weights=checkpoint, arch=ARCH, device="cpu", **SIDES)

    def test_memory_that_is_not_to_be_had(
        self, predictor: dcnzoo.Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What PyTorch itself raises when asked for a million terabytes."""
        monkeypatch.setattr(
            predictor.model, "forward", lambda *_, **__: torch.empty(2**60, dtype=torch.uint8)
        )
        with pytest.raises(OutOfMemoryError):
            predictor(PIXELS)

    def test_other_errors_stay_what_they_are(
        self, predictor: dcnzoo.Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(predictor.model, "forward", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
        with pytest.raises(RuntimeError, match="size"):
            predictor(PIXELS)


class TestDevice:
    @pytest.mark.parametrize(
        ("gpus", "device", "message"),
        [
            (0, "cuda", "cannot use cuda: .*; use --device cpu"),
            (0, torch.device("cuda:0"), "cannot use cuda:0"),
            (2, "cuda:2", "there are 2 GPUs"),
            (0, "tpu", "unknown device 'tpu'; use cpu, cuda or cuda:1"),
            (0, "", "unknown device"),
            (0, "mps", "run on cpu and cuda"),
        ],
    )
    def test_not_there(self, gpus: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        with pytest.raises(DeviceError, match=message):
            find_device(device)

    @pytest.mark.parametrize(
        ("gpus", "device", "found"),
        [(0, None, "cpu"), (1, None, "cuda"), (1, "cpu", "cpu"), (2, "cuda:1", "cuda:1")],
    )
    def test_found(self, gpus: int, device: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        assert find_device(device) == torch.device(found)

    @pytest.mark.parametrize(
        ("precision", "error", "message"),
        [
            ("fp16", DeviceError, "fp16 needs a GPU"),
            ("tf32", DeviceError, "tf32 needs a GPU"),
            ("int8", ValueError, "expected a precision out of fp32"),
        ],
    )
    def test_precision_is_checked_before_anything_is_loaded(
        self, precision: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dcnzoo.predictor.half_factor", lambda: torch.bfloat16)
        with pytest.raises(error, match=message):
            dcnzoo.load(weights="missing.pth", arch=ARCH, device="cpu", precision=precision)


@pytest.fixture
def usual_switches() -> Iterator[None]:
    """PyTorch's switches for TensorFloat-32 as they are by default, before and after."""

    def reset() -> None:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False

    reset()
    yield
    reset()


def test_float16_on_a_cpu_is_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcnzoo.predictor.half_factor", lambda: torch.float16)
    prepare_precision("fp16", torch.device("cpu"))
    with pytest.raises(DeviceError, match="fp16 needs a GPU; on this CPU use --precision fp32 or bf16"):
        prepare_precision("fp16", torch.device("cpu"), training=True)


@pytest.mark.parametrize(
    ("precision", "device", "convolutions", "products"),
    [
        ("fp32", "cuda", False, False),
        ("tf32", "cuda", True, True),
        ("fp16", "cuda", True, False),
        ("bf16", "cuda", True, False),
        ("fp32", "cpu", True, False),
    ],
)
def test_fp32_on_a_gpu_is_float32(
    precision: str, device: str, convolutions: bool, products: bool, usual_switches: None
) -> None:
    prepare_precision(precision, torch.device(device))
    assert torch.backends.cudnn.allow_tf32 == convolutions
    assert torch.backends.cuda.matmul.allow_tf32 == products


@pytest.mark.parametrize("user", ["none", "ieee", "tf32"])
@pytest.mark.parametrize(("precision", "wanted"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_the_precision_is_not_left_to_a_wider_switch(
    precision: str, wanted: str, user: str, usual_switches: None
) -> None:
    torch.backends.fp32_precision = user
    prepare_precision(precision, torch.device("cuda"))
    assert torch.backends.cudnn.conv.fp32_precision == wanted
    assert torch.backends.cuda.matmul.fp32_precision == wanted
    assert allows_tf32() == (precision == "tf32")
    # which PyTorch refuses if old and new switches say different things
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_float32_for_a_while(precision: str, usual_switches: None) -> None:
    """As evaluations during training need it."""

    def switches() -> list[object]:
        cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
        new = [switch.fp32_precision for switch in (cudnn.conv, cudnn.rnn, cublas)]
        return [*new, cudnn.allow_tf32, cublas.allow_tf32]

    device = torch.device("cuda")
    prepare_precision(precision, device)
    before = switches()
    with float32_kept(device):
        assert switches() == ["ieee", "ieee", "ieee", False, False]
    assert switches() == before
    assert before[0] == "tf32"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_float32_for_a_while_where_only_new_switches_were_used(kind: str, usual_switches: None) -> None:
    """PyTorch refuses to read the old ones then."""
    torch.backends.fp32_precision = "tf32"
    before = torch.backends.cuda.matmul.fp32_precision
    with float32_kept(torch.device(kind)):
        assert torch.backends.cuda.matmul.fp32_precision == ("ieee" if kind == "cuda" else before)
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without the compiled kernels, of which nobody was told yet."""
    monkeypatch.delenv("DCNZOO_OPS", raising=False)
    monkeypatch.setattr(gpu, "active_backend", lambda: ("native", "compiled kernels"))
    monkeypatch.setattr(gpu, "gpu_problem", lambda _: "the CUDA kernels cannot be loaded (no such file)")
    predictor_module._warn_of_slow_operators.cache_clear()


@pytest.mark.usefixtures("no_kernels")
def test_a_gpu_without_kernels_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert not has_kernels(torch.device("cuda:0"))
    assert caplog.messages == [
        "the GPU computes by the slower operators of torchvision:"
        " the CUDA kernels cannot be loaded (no such file)"
    ]


@pytest.mark.usefixtures("no_kernels")
def test_operators_that_were_asked_for_need_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DCNZOO_OPS", "reference")
    monkeypatch.setattr(gpu, "active_backend", lambda: ("reference", "DCNZOO_OPS=reference"))
    assert not has_kernels(torch.device("cuda:0"))
    assert caplog.messages == []


@pytest.mark.usefixtures("no_kernels")
def test_kernels_that_are_there_need_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "gpu_problem", lambda _: None)
    assert has_kernels(torch.device("cuda:0"))
    assert caplog.messages == []


@pytest.mark.parametrize(("device", "found"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_gpu_without_a_number_is_the_current_one(
    device: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert with_index(torch.device(device)) == torch.device(found)


@pytest.mark.parametrize(
    ("short", "long", "sides"),
    [
        (None, None, (800, 1333)),
        (240, 320, (240, 320)),
        (240, None, (240, 1333)),
        (2000, None, (2000, 2000)),
        (None, 1000, (800, 1000)),
        (None, 320, (320, 320)),
    ],
)
def test_with_sides(short: int | None, long: int | None, sides: tuple[int, int]) -> None:
    assert with_sides(Preprocessing(), short, long) == replace(
        Preprocessing(), short_side=sides[0], long_side=sides[1]
    )


def test_with_sides_that_contradict() -> None:
    with pytest.raises(ValueError, match="expected short side <= long side, got 320 and 240"):
        with_sides(Preprocessing(), 320, 240)


@pytest.mark.parametrize("side", [0, -1, 32.5])
@pytest.mark.parametrize("name", ["short_side", "long_side"])
def test_with_sides_that_are_none(name: str, side: Any) -> None:
    with pytest.raises(ValueError, match=f"expected a {name} of at least 1, a whole number, got {side}"):
        with_sides(Preprocessing(), **{"short_side": None, "long_side": None, name: side})


class TestClasses:
    RECORD = ClassSet(("a", "b"), (5, 6))
    KNOWN = (ClassSet(("x", "y"), (1, 9)), ClassSet(("p", "q", "r"), (1, 2, 3)))

    @staticmethod
    def checkpoint(count: int, names: tuple[str, ...] | None) -> Checkpoint:
        weight = torch.zeros(count + 1, 1)
        return Checkpoint(Path("a.pth"), {"roi_head.bbox_head.fc_cls.weight": weight}, names, {})

    @pytest.mark.parametrize(
        ("count", "names", "record", "found"),
        [
            (2, ("x", "y"), RECORD, ClassSet(("x", "y"), (1, 9))),
            (2, ("u", "v"), RECORD, ClassSet(("u", "v"), (1, 2))),
            (2, ("a", "b"), RECORD, RECORD),
            (2, None, RECORD, RECORD),
            (2, None, None, ClassSet(("class_0", "class_1"), (1, 2))),
            (3, None, RECORD, ClassSet(("class_0", "class_1", "class_2"), (1, 2, 3))),
            (2, ("x", "y", "z"), RECORD, RECORD),
            (1, ("x", "y"), None, ClassSet(("class_0",), (1,))),
        ],
    )
    def test_from_file_then_record_then_numbers(
        self, count: int, names: tuple[str, ...] | None, record: ClassSet | None, found: ClassSet
    ) -> None:
        assert find_classes(self.checkpoint(count, names), record, self.KNOWN) == found

    @pytest.mark.parametrize(
        ("count", "names", "record", "found"),
        [
            (2, ("x", "y"), RECORD, RECORD),
            (2, ("b", "a"), RECORD, RECORD),
            (3, ("x", "y", "z"), RECORD, ClassSet(("x", "y", "z"), (1, 2, 3))),
        ],
    )
    def test_a_record_of_this_file_comes_first(
        self, count: int, names: tuple[str, ...], record: ClassSet, found: ClassSet
    ) -> None:
        checkpoint = self.checkpoint(count, names)
        assert find_classes(checkpoint, record, self.KNOWN, expected_first=True) == found

    def test_names_that_do_not_fit_are_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        find_classes(self.checkpoint(1, ("x", "y")), None, ())
        assert "a.pth has 1 classes; ignoring the 2 names" in caplog.text


def test_stage_times(predictor: dcnzoo.Predictor) -> None:
    times = StageTimes()
    predictor.predict_batch([PIXELS, PIXELS], times=times)
    assert set(times) == {"preprocess", "inference", "postprocess"}
    assert all(seconds > 0 for seconds in times.values())
    assert times["inference"] > times["preprocess"]
    copy = pickle.loads(pickle.dumps(times))  # as processes exchange them
    assert (type(copy), copy) == (StageTimes, times)
    assert copy["never"] == 0


def test_labels_of_a_batch(predictor: dcnzoo.Predictor, expected: Detections) -> None:
    found = predictor.predict_batch([PIXELS], labels=predictor.find_labels(["dog"]))
    assert_same(found[0], expected.of_classes(["dog"]))
