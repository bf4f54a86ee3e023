"""Bad input to `dcnzoo predict`: a clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcnzoo.image import decode_image
from tests.cli.conftest import Outcome, Program
from tests.cli.predicting import Predict, checkpoint, files, lines, load_once, predict
from tests.cli.test_predict import write_manifest
from tests.http_server import content, serving, status
from tests.pictures import noise, patches, png_16_bit, png_claiming, save
from tests.random_detector import ARCH, MASK_ARCH

__all__ = ["checkpoint", "load_once", "predict"]

PICTURE = Image.fromarray(noise(60, 80))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PICTURE, "JPEG", exif=exif)


def assert_error(outcome: Outcome, *parts: str) -> None:
    """Exit code 1, nothing on standard output, and one line that says all of the parts."""
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


READABLE = {
    "wrong-extension.jpg": (encode(PICTURE, "PNG"), (60, 80)),
    "no-extension-that-fits.tiff": (encode(PICTURE, "BMP"), (60, 80)),
    "cmyk.jpg": (encode(PICTURE.convert("CMYK"), "JPEG"), (60, 80)),
    "grey-16-bit.png": (png_16_bit(noise(60, 80).astype(int)[..., :1] * 257), (60, 80)),
    "colour-16-bit.png": (png_16_bit(noise(60, 80).astype(int) * 257), (60, 80)),
    "palette.png": (encode(PICTURE.quantize(16)), (60, 80)),
    "palette-transparent.png": (encode(PICTURE.quantize(16), transparency=3), (60, 80)),
    "palette.gif": (encode(PICTURE.quantize(16), "GIF"), (60, 80)),
    "grey.png": (encode(PICTURE.convert("L")), (60, 80)),
    "grey.jpg": (encode(PICTURE.convert("L"), "JPEG"), (60, 80)),
    "grey-alpha.png": (encode(PICTURE.convert("LA")), (60, 80)),
    "black-and-white.png": (encode(PICTURE.convert("1")), (60, 80)),
    "rgba.png": (encode(PICTURE.convert("RGBA")), (60, 80)),
    "rotated.jpg": (rotated(6), (80, 60)),
    "mirrored.jpg": (rotated(5), (80, 60)),
    "upside-down.jpg": (rotated(3), (60, 80)),
    "1x1.png": (encode(Image.fromarray(noise(1, 1))), (1, 1)),
    "1x5000.png": (encode(Image.fromarray(noise(1, 5000))), (1, 5000)),
    "5000x1.png": (encode(Image.fromarray(noise(5000, 1))), (5000, 1)),
}

UNREADABLE = {
    "zero-byte.jpg": (b"", "the file is empty"),
    "text.png": (b"no image at all", "not an image in a format that Pillow knows"),
    "truncated.jpg": (encode(PICTURE, "JPEG")[:-300], "truncated"),
    "truncated.png": (encode(PICTURE)[:-3000], "truncated"),
    "bomb.png": (png_claiming(40_000, 40_000), "--max-pixels"),
    "float.tif": (encode(PICTURE.convert("F"), "TIFF"), "convert the image to 8 bits first"),
}


class TestImages:
    @pytest.mark.parametrize("name", READABLE)
    def test_odd_images_work(self, predict: Predict, name: str) -> None:
        content, (height, width) = READABLE[name]
        Path(name).write_bytes(content)
        outcome = predict(name, "--save-images", "--save-crops", "--format", "jsonl,coco,csv,yolo")
        assert outcome.code == 0, outcome.err
        (line,) = lines(Path("dcnzoo-out/detections.jsonl"))
        assert (line["height"], line["width"]) == (height, width)
        boxes = np.array([found["box"] for found in line["detections"]]).reshape(-1, 4)
        assert (boxes >= 0).all()
        assert (boxes <= np.array([width, height, width, height]) + 1e-3).all()
        (picture,) = Path("dcnzoo-out/images").iterdir()
        assert decode_image(picture).shape == (height, width, 3)

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_unreadable_images_are_listed_and_the_others_done(self, predict: Predict, name: str) -> None:
        content, reason = UNREADABLE[name]
        Path("photos").mkdir()
        Path("photos", name).write_bytes(content)
        for good in ("a.png", "z.png"):
            save(Path("photos", good), noise(60, 80))
        outcome = predict("photos")
        assert outcome.code == 1
        assert "2 images, 1 failures" in outcome.err
        assert outcome.err.endswith("images that failed: 1; dcnzoo-out/errors.jsonl says why\n")
        (error,) = lines(Path("dcnzoo-out/errors.jsonl"))
        assert error["source"] == f"photos/{name}"
        assert reason in error["reason"]
        done = [line["image"] for line in lines(Path("dcnzoo-out/detections.jsonl"))]
        assert done == ["photos/a.png", "photos/z.png"]

    def test_names_that_are_hard_to_write(self, predict: Predict) -> None:
        wide = encode(Image.fromarray(noise(2, 66_000)))
        names = [f"{'x' * 249}.jpg", "a.jpg", "a.txt/b.jpg", "a.png", "a.jpg.d/b.jpg", "wide.png"]
        for name in names:
            path = Path("photos", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wide if name == "wide.png" else encode(PICTURE))
        outcome = predict("photos", "--save-images", "--save-crops", "--format", "yolo", "--quiet")
        assert outcome.code == 0, outcome.err
        assert len(files(Path("dcnzoo-out/labels"))) == len(names)
        assert decode_image(Path("dcnzoo-out/images/wide.jpg")).shape[1] == 65_500

    def test_strict_stops_at_once(self, predict: Predict) -> None:
        for name in ("a", "b", "c"):
            save(Path("photos", f"{name}.png"), noise(60, 80))
        Path("photos/b.png").write_bytes(b"")
        outcome = predict("photos", "--strict", "--quiet", "--format", "jsonl,coco")
        assert_error(outcome, "cannot read image photos/b.png: the file is empty")
        assert [line["image"] for line in lines(Path("dcnzoo-out/detections.jsonl"))] == ["photos/a.png"]
        assert len(lines(Path("dcnzoo-out/errors.jsonl"))) == 1

    def test_nothing_but_failures(self, predict: Predict) -> None:
        Path("a.jpg").touch()
        outcome = predict("a.jpg", "--format", "jsonl,coco,csv", "--save-images")
        assert outcome.code == 1
        assert "0 images, 1 failures, 0 detections" in outcome.err
        assert Path("dcnzoo-out/detections.coco.json").read_text() == "[\n]\n"
        assert Path("dcnzoo-out/detections.jsonl").read_text() == ""

    def test_errors_of_an_earlier_run_go_with_it(self, predict: Predict) -> None:
        Path("a.jpg").touch()
        predict("a.jpg")
        save(Path("a.jpg"), noise(60, 80))
        assert predict("a.jpg", "--overwrite").code == 0
        assert not Path("dcnzoo-out/errors.jsonl").exists()

    def test_listed_files_may_be_missing(self, predict: Predict) -> None:
        save(Path("a.png"), noise(60, 80))
        Path("list.txt").write_text("gone.jpg\na.png\n")
        assert predict("list.txt").code == 1
        (error,) = lines(Path("dcnzoo-out/errors.jsonl"))
        assert error == {"source": "gone.jpg", "reason": "No such file or directory"}

    def test_address_that_answers_no(self, predict: Predict) -> None:
        with serving({"/a.jpg": status(503)}) as server:
            assert predict(server.url("/a.jpg")).code == 1
            (error,) = lines(Path("dcnzoo-out/errors.jsonl"))
            assert error["source"] == server.url("/a.jpg")
        assert error["reason"].startswith("the server answered 503")

    def test_passwords_go_into_no_file(self, predict: Predict) -> None:
        with serving({"/a.png": content(encode(PICTURE)), "/b.png": status(404)}) as server:
            names = [server.url(name).replace("://", "://me:secret@") for name in ("/a.png", "/b.png")]
            formats = ("--format", "jsonl,coco,csv,yolo")
            outcome = predict(*names, *formats)
            again = predict(*names, *formats, "--resume")
            shown = [server.url(name) for name in ("/a.png", "/b.png")]
        assert (outcome.code, again.code) == (1, 1)
        assert "images that an earlier run has done: 1" in again.err
        assert "secret" not in outcome.err + again.err
        texts = [path.read_text() for path in Path("dcnzoo-out").rglob("*") if path.is_file()]
        assert len(texts) == 9
        assert not any("secret" in text for text in texts)
        assert json.loads(Path("dcnzoo-out/run.json").read_text())["sources"] == shown
        assert lines(Path("dcnzoo-out/detections.jsonl"))[0]["image"] == shown[0]

    @pytest.mark.parametrize("set_by", ["option", "environment"])
    def test_limit_against_bombs(
        self, predict: Predict, set_by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(Path("a.png"), noise(60, 80))

        def with_limit(pixels: int) -> Outcome:
            if set_by == "option":
                return predict("a.png", "--overwrite", "--max-pixels", pixels)
            monkeypatch.setenv("DCNZOO_MAX_PIXELS", str(pixels))
            return predict("a.png", "--overwrite")

        before = Image.MAX_IMAGE_PIXELS
        assert with_limit(4700).code == 1
        assert "bomb" in lines(Path("dcnzoo-out/errors.jsonl"))[0]["reason"]
        assert with_limit(4800).code == 0
        assert before == Image.MAX_IMAGE_PIXELS

    def test_a_large_photo_below_the_limit_gives_no_warning(
        self, predict: Predict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(Path("a.png"), noise(60, 80))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
        assert predict("a.png", "--quiet") == (0, "", "")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded: these errors must come before."""

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("dcnzoo.predictor.load", load)


@pytest.mark.usefixtures("no_model")
class TestBeforeTheModel:
    @pytest.fixture
    def predict(self, dcnzoo: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
        monkeypatch.chdir(tmp_path)
        save(tmp_path / "a.png", patches())
        return lambda *arguments: dcnzoo("predict", "--weights", "missing.pth", "--arch", ARCH, *arguments)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("missing.jpg", "no such file or folder: missing.jpg"),
            ("missing/*.jpg", "no images in missing/*.jpg"),
            ("empty", "no images in empty"),
            ("empty.txt", "no images in empty.txt"),
        ],
    )
    def test_sources(self, predict: Predict, source: str, message: str) -> None:
        Path("empty").mkdir()
        Path("empty.txt").touch()
        assert_error(predict("a.png", source), message)
        assert not Path("dcnzoo-out").exists()

    @pytest.mark.parametrize("out", ["a.png", "a.png/out", "/proc/out"])
    def test_out_that_cannot_be_written(self, predict: Predict, out: str) -> None:
        assert_error(predict("a.png", "--out", out), f"cannot write to {out}", "choose another --out")

    def test_out_of_somebody_else(self, predict: Predict) -> None:
        Path("images").mkdir()
        outcome = predict("a.png", "--out", ".", "--overwrite")
        assert_error(outcome, "holds images, which no run of dcnzoo has made")

    @pytest.mark.parametrize(
        ("content", "message"), [(None, "cannot read annotations"), ("{}", "is no COCO annotation file")]
    )
    def test_annotations(self, predict: Predict, content: str | None, message: str) -> None:
        if content is not None:
            Path("annotations.json").write_text(content)
        assert_error(predict("a.png", "--format", "coco", "--annotations", "annotations.json"), message)

    def test_unknown_architecture(self, dcnzoo: Program) -> None:
        outcome = dcnzoo("predict", "a.png", "--weights", "a.pth", "--arch", "faster_rcnn_r5_fpn")
        assert_error(outcome, "unknown architecture 'faster_rcnn_r5_fpn'", "did you mean faster_rcnn_r50_fpn")

    @pytest.mark.parametrize("option", ["--format", "--classes"])
    @pytest.mark.parametrize("value", ["", " ", ","])
    def test_an_option_given_empty(self, predict: Predict, option: str, value: str) -> None:
        code, _, err = predict("a.png", option, value)
        assert code == 2
        assert f"Invalid value for '{option}': is empty; name something" in err

    @pytest.mark.parametrize("name", ["best.pt", "epoch_12.pth", "runs/best.safetensors"])
    def test_a_file_as_model(self, dcnzoo: Program, name: str) -> None:
        expected = f"error: unknown model '{name}'; that is a file: use --weights {name} (in Python"
        assert_error(dcnzoo("predict", "a.png", "--model", name), expected)
        assert_error(dcnzoo("info", name), f"error: checkpoint {name}: No such file")

    def test_unknown_model(self, dcnzoo: Program) -> None:
        outcome = dcnzoo("predict", "a.png", "--model", "faster_rcnn_r50_fpn_dcon_c3-c5_1x_coco")
        assert_error(outcome, "unknown model", "did you mean faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco")


class TestModel:
    @pytest.fixture(autouse=True)
    def image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        save(Path("a.png"), noise(60, 80))

    def test_weights_that_are_missing(self, dcnzoo: Program) -> None:
        outcome = dcnzoo("predict", "a.png", "--weights", "missing.pth", "--arch", ARCH)
        assert_error(outcome, "checkpoint missing.pth: No such file or directory")

    def test_weights_of_another_architecture(self, dcnzoo: Program, checkpoint: Path) -> None:
        outcome = dcnzoo("predict", "a.png", "--weights", checkpoint, "--arch", MASK_ARCH)
        assert_error(outcome, "does not fit mask_rcnn_r50_fpn", "missing: roi_head.mask_head")

    def test_truncated_weights(self, dcnzoo: Program, checkpoint: Path) -> None:
        Path("cut.pth").write_bytes(checkpoint.read_bytes()[:1_000_000])
        outcome = dcnzoo("predict", "a.png", "--weights", "cut.pth", "--arch", ARCH)
        assert_error(outcome, "checkpoint cut.pth: is truncated or damaged")

    def test_hash_mismatch(self, dcnzoo: Program, checkpoint: Path) -> None:
        manifest = write_manifest(Path("own.yaml"), checkpoint, sha256='"0123456789"')
        outcome = dcnzoo("predict", "a.png", "--model", "pets", "--manifest", manifest)
        assert_error(outcome, "SHA-256 is ", "expected it to start with 0123456789")

    def test_cuda_that_is_absent(
        self, dcnzoo: Program, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        outcome = dcnzoo("predict", "a.png", "--weights", checkpoint, "--arch", ARCH, "--device", "cuda")
        assert_error(outcome, "cannot use cuda", "use --device cpu")

    def test_tf32_on_a_cpu(self, dcnzoo: Program, checkpoint: Path) -> None:
        arguments = ["--weights", checkpoint, "--arch", ARCH, "--device", "cpu", "--precision", "tf32"]
        assert_error(dcnzoo("predict", "a.png", *arguments), "tf32 needs a GPU", "--precision fp32 or bf16")

    def test_failed_load_keeps_earlier_results(self, predict: Predict, dcnzoo: Program) -> None:
        predict("a.png")
        before = files(Path("dcnzoo-out"))
        outcome = dcnzoo("predict", "a.png", "--weights", "missing.pth", "--arch", ARCH, "--overwrite")
        assert_error(outcome, "missing.pth")
        assert files(Path("dcnzoo-out")) == before
