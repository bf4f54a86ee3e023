"""Decoding, resizing and batching of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcnzoo.errors import ImageReadError
from dcnzoo.image import decode_image, make_batch, resize_bilinear, resized_size, rgb_array
from dcnzoo.manifest import Preprocessing
from tests.pictures import noise, patches, png_16_bit, png_claiming, save

# Made with OpenCV by scripts/make_resize_goldens.py; the tests need no OpenCV.
OPENCV = np.load(Path(__file__).parent / "data" / "opencv_resize.npz")
OPENCV_CASES = [key.removesuffix(".input") for key in OPENCV.files if key.endswith(".input")]

PIXELS = patches()
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))
TRANSPOSED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS, 1),
}
"""Upright picture for a file that stores PIXELS under each EXIF orientation."""


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class TestDecode:
    def test_rgb_from_path_text_bytes_and_file(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.png", PIXELS)
        for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
            decoded = decode_image(source)
            assert decoded.dtype == np.uint8
            np.testing.assert_array_equal(decoded, PIXELS)

    def test_result_may_be_changed(self) -> None:
        decode_image(encode(Image.fromarray(PIXELS)))[:] = 0

    @pytest.mark.parametrize("mode", ["L", "1", "LA"])
    def test_grey_becomes_rgb(self, mode: str) -> None:
        image = Image.fromarray(PIXELS).convert(mode)
        decoded = decode_image(encode(image))
        assert decoded.shape == PIXELS.shape
        np.testing.assert_array_equal(decoded, np.repeat(np.asarray(image.convert("L"))[..., None], 3, 2))

    @pytest.mark.parametrize("transparency", [None, 1, bytes(range(6))], ids=["none", "one", "per colour"])
    def test_palette_gives_its_colours(self, transparency: int | bytes | None) -> None:
        image = Image.fromarray(PIXELS).quantize(8)
        options = {} if transparency is None else {"transparency": transparency}
        np.testing.assert_array_equal(
            decode_image(encode(image, **options)), np.asarray(image.convert("RGB"))
        )

    def test_alpha_is_dropped_without_blending(self) -> None:
        alpha = np.arange(PIXELS[..., 0].size, dtype=np.uint8).reshape(PIXELS.shape[:2])
        image = Image.fromarray(np.dstack([PIXELS, alpha]))
        np.testing.assert_array_equal(decode_image(encode(image)), PIXELS)

    def test_cmyk_jpeg_keeps_its_colours(self) -> None:
        data = encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=95, subsampling=0)
        difference = decode_image(data).astype(int) - PIXELS
        assert np.abs(difference[4:12, 4:12]).max() <= 8
        assert np.abs(difference).mean() < 4

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_16_bit_png_keeps_the_high_byte(self, channels: int) -> None:
        samples = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
        colours = samples[..., :3] if channels > 2 else np.repeat(samples[..., :1], 3, axis=2)
        np.testing.assert_array_equal(decode_image(png_16_bit(samples)), colours >> 8)

    def test_16_bit_tiff_keeps_the_high_byte(self) -> None:
        samples = np.arange(0, 65536, 997, dtype=np.uint16).reshape(6, 11)
        decoded = decode_image(encode(Image.fromarray(samples), "TIFF"))
        np.testing.assert_array_equal(decoded[..., 1], samples >> 8)

    @pytest.mark.parametrize("orientation", TRANSPOSED)
    def test_exif_orientation_is_applied(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(PIXELS), exif=exif)
        np.testing.assert_array_equal(decode_image(data), TRANSPOSED[orientation])

    def test_orientation_counts_though_another_tag_is_damaged(self) -> None:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "Maker"
        block = exif.tobytes().replace(b"\x01\x0f\0\x02", b"\x01\x0a\0\x02")
        data = encode(Image.fromarray(PIXELS), "JPEG", exif=block)
        assert decode_image(data).shape == TRANSPOSED[6].shape

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_unknown_orientation_is_upright(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(PIXELS), exif=exif)
        np.testing.assert_array_equal(decode_image(data), PIXELS)

    @pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
    @pytest.mark.parametrize("loaded", [False, True])
    def test_an_opened_file_is_turned_once(self, kind: str, loaded: bool) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encode(
            Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
        )
        with Image.open(io.BytesIO(data)) as image:
            if loaded:
                image.load()
            np.testing.assert_array_equal(rgb_array(image), TRANSPOSED[6])

    def test_an_opened_file_that_is_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(encode(Image.fromarray(noise(60, 80)), "JPEG")[:-300])
        with Image.open(path) as image, pytest.raises(ImageReadError, match=r"image .*a.jpg: .*truncated"):
            rgb_array(image)

    def test_pillow_image_is_left_alone(self) -> None:
        image = Image.fromarray(PIXELS).quantize(8)
        image.info["transparency"] = b"\0\1"
        rgb_array(image)
        assert image.info["transparency"] == b"\0\1"

    def test_wrong_extension_does_not_matter(self, tmp_path: Path) -> None:
        path = tmp_path / "really-a-png.jpg"
        path.write_bytes(encode(Image.fromarray(PIXELS)))
        np.testing.assert_array_equal(decode_image(path), PIXELS)

    def test_first_frame_of_an_animation(self) -> None:
        frames = [Image.fromarray(PIXELS).quantize(8), Image.new("P", PIXELS.shape[1::-1])]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode_image(data), np.asarray(frames[0].convert("RGB")))

    def test_pillow_image_gives_the_same_as_its_file(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encode(Image.fromarray(PIXELS).convert("LA"), exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(rgb_array(image), decode_image(data))


class TestUnreadable:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "the file is empty"),
            (b"hello, world", "not an image"),
            (encode(Image.fromarray(noise(64, 64)), "JPEG")[:-500], "truncated"),
            (encode(Image.fromarray(noise(64, 64)))[:-500], "truncated"),
            (encode(Image.fromarray(noise(64, 64)))[:20], "[Tt]runcated"),
            (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "no defined white"),
            (encode(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "no defined white"),
        ],
        ids=["empty", "text", "truncated JPEG", "truncated PNG", "header only", "float", "32 bit"],
    )
    def test_reason(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(ImageReadError, match=reason):
                decode_image(source)

    @pytest.mark.parametrize(
        ("name", "reason"), [("missing.jpg", "No such file"), (".", "Is a directory"), ("a\0b", "null")]
    )
    def test_path(self, tmp_path: Path, name: str, reason: str) -> None:
        with pytest.raises(ImageReadError, match=reason) as caught:
            decode_image(tmp_path / name)
        assert caught.value.source == str(tmp_path / name)

    def test_bomb_is_refused_and_the_cure_named(self) -> None:
        with pytest.raises(ImageReadError, match=r"bomb.*--max-pixels"):
            decode_image(png_claiming(50_000, 50_000))

    def test_bomb_limit_can_be_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(Image.fromarray(noise(20, 20)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ImageReadError, match="bomb"):
            decode_image(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
        assert decode_image(data).shape == (20, 20, 3)


class TestSize:
    @pytest.mark.parametrize(
        ("original", "expected"),
        [
            ((480, 640), (800, 1067)),
            ((640, 480), (1067, 800)),
            ((425, 640), (800, 1205)),
            ((500, 1000), (667, 1333)),
            ((800, 1333), (800, 1333)),
            ((1, 1), (800, 800)),
            ((1, 5000), (1, 1333)),
            ((5000, 1), (1333, 1)),
            ((3000, 4000), (800, 1067)),
        ],
    )
    def test_published_sides(self, original: tuple[int, int], expected: tuple[int, int]) -> None:
        assert resized_size(original, 800, 1333) == expected

    def test_other_sides(self) -> None:
        assert resized_size((480, 640), 240, 320) == (240, 320)

    @settings(deadline=None)
    @given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 900), st.integers(0, 900))
    def test_limits(self, height: int, width: int, short: int, more: int) -> None:
        new_height, new_width = resized_size((height, width), short, short + more)
        assert 1 <= min(new_height, new_width) <= short
        assert max(new_height, new_width) <= short + more

    @pytest.mark.parametrize(("short", "long"), [(0, 10), (-1, 10), (11, 10)])
    def test_bad_sides(self, short: int, long: int) -> None:
        with pytest.raises(ValueError, match="short side <= long side"):
            resized_size((10, 10), short, long)


class TestResize:
    @pytest.mark.parametrize("case", OPENCV_CASES)
    def test_equals_opencv(self, case: str) -> None:
        expected = OPENCV[f"{case}.output"]
        np.testing.assert_array_equal(resize_bilinear(OPENCV[f"{case}.input"], expected.shape[:2]), expected)

    def test_exact_half_is_the_rounded_mean(self) -> None:
        image = np.array([[0, 1], [1, 0]], np.uint8)[..., None].repeat(3, axis=2)
        np.testing.assert_array_equal(resize_bilinear(image, (1, 1)), [[[1, 1, 1]]])

    @settings(deadline=None)
    @given(st.tuples(*[st.integers(1, 60)] * 4), st.integers(0, 255))
    def test_a_plain_colour_stays(self, sizes: tuple[int, int, int, int], value: int) -> None:
        image = np.full((*sizes[:2], 3), value, np.uint8)
        assert (resize_bilinear(image, sizes[2:]) == value).all()

    def test_strided_input(self) -> None:
        image = noise(30, 40)
        reversed_channels = resize_bilinear(image[..., ::-1], (17, 50))
        np.testing.assert_array_equal(reversed_channels[..., ::-1], resize_bilinear(image, (17, 50)))


class TestBatch:
    PREPROCESSING = Preprocessing(short_side=40, long_side=64)

    def test_normalised_then_padded_with_zeros(self) -> None:
        batch = make_batch([noise(50, 60)], self.PREPROCESSING)
        assert batch.images.shape == (1, 3, 64, 64)
        assert (batch.image_sizes, batch.original_sizes) == ([(40, 48)], [(50, 60)])
        pixels = torch.from_numpy(resize_bilinear(noise(50, 60), (40, 48))).float()
        mean, std = (torch.tensor(v) for v in (self.PREPROCESSING.mean, self.PREPROCESSING.std))
        assert torch.equal(batch.images[0, :, :40, :48], ((pixels - mean) / std).permute(2, 0, 1))
        assert not batch.images[:, :, 40:].any()
        assert not batch.images[:, :, :, 48:].any()

    def test_mixed_sizes_share_the_largest(self) -> None:
        images = [noise(80, 40), noise(40, 80), noise(1, 5000), noise(1, 1)]
        batch = make_batch(images, self.PREPROCESSING)
        assert batch.images.shape == (4, 3, 64, 64)
        assert batch.image_sizes == [(64, 32), (32, 64), (1, 64), (40, 40)]
        assert batch.original_sizes == [(80, 40), (40, 80), (1, 5000), (1, 1)]
        for index, image in enumerate(images):
            alone = make_batch([image], self.PREPROCESSING).images[0]
            together = batch.images[index, :, : alone.shape[1], : alone.shape[2]]
            assert torch.equal(together, alone)

    def test_channels_last(self) -> None:
        images = make_batch([noise(50, 60), noise(60, 50)], self.PREPROCESSING).images
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.dtype == torch.float32

    def test_recorded_input_of_the_reference(self, shared: Path) -> None:
        name = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco.000000000785"
        recorded = np.load(shared / "parity" / "goldens" / f"{name}.npz")
        photo = decode_image(shared / "data" / "coco_photos" / "000000000785.jpg")
        values = make_batch([photo], Preprocessing()).images.contiguous().numpy().ravel()
        np.testing.assert_array_equal(values[recorded["input.index"]], recorded["input.value"])
