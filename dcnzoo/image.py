"""Image files to the padded batch that a model takes.

Everything here is exact: the same file gives the same input tensor, bit for bit, as the
pipeline that trained and scored the published checkpoints (OpenCV decode and resize).

Shapes: N images, H and W the original size of an image, h and w its resized size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dcnzoo.errors import ImageReadError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from dcnzoo.manifest import Preprocessing

COEFFICIENT_ONE = 2048
"""Fixed-point 1.0 of the resize coefficients (11 bits)."""

ROWS_AT_ONCE = 16
"""Rows per step of the resize: few enough that a step's integers stay in the CPU's cache."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright; any other value is upright already."""


@dataclass(frozen=True)
class PreparedImage:
    """One image, resized and not yet normalised.

    Attributes:
        pixels: (h, w, 3) RGB, resized frame.
        original_size: (H, W) before the resize.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]


@dataclass(frozen=True)
class ImageBatch:
    """Input of a model.

    Attributes:
        images: (N, 3, h, w) float32 in channels-last memory, normalised RGB, padded with zeros at the
            right and the bottom to the largest image and to a multiple of the size divisor.
        image_sizes: per image, its resized size (h, w) without the padding.
        original_sizes: per image, its size (H, W) before the resize.
    """

    images: torch.Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]


def decode_image(source: str | Path | bytes | BinaryIO) -> NDArray[np.uint8]:
    """Decodes an image to 8-bit RGB, upright.

    The EXIF orientation is applied. Greyscale and palette images become RGB, 16-bit samples keep their
    high byte, and an alpha channel is dropped without blending, all as `cv2.imread` does.
    Of an animation the first frame is taken. The content decides the format, not the file name.

    Args:
        source: path, encoded bytes, or a binary file.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ImageReadError: the file is missing, unreadable, empty, truncated, no image, or larger than
            Pillow's limit against decompression bombs.
    """
    name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", "from memory")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return rgb_array(image)
    # Pillow's decoders let almost any exception through on broken data.
    except Exception as error:
        raise ImageReadError(str(name), decode_failure(source, error)) from error


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """Converts a Pillow image of any mode to upright 8-bit RGB, as `decode_image` describes.

    Args:
        image: the image; its EXIF orientation is applied.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ValueError: the pixels are floats or 32-bit integers, which have no defined white.
        ImageReadError: the file that the image was opened from is truncated or damaged.
    """
    try:
        image.load()  # first, since Pillow turns some formats upright as it loads them
    # Pillow's decoders let almost any exception through on broken data.
    except Exception as error:
        name = getattr(image, "filename", "") or "from memory"
        raise ImageReadError(str(name), decode_failure(name, error)) from error
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating point pixels have no defined white; convert the image to 8 bits first")
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if "transparency" in image.info:
        # Pillow would warn that convert() forgets the transparency, which is the intent.
        image = image.copy()
        del image.info["transparency"]
    return np.array(image.convert("RGB"))


def resized_size(image_size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Returns the size to which an image is resized, keeping its aspect ratio.

    The image is made as large as fits with its short side <= `short_side` and its long side <= `long_side`.

    Args:
        image_size: (H, W) of the original image, pixels.
        short_side: limit of the short side, pixels.
        long_side: limit of the long side, pixels.

    Returns:
        (h, w), at least 1 each.

    Raises:
        ValueError: a side is not positive, or `short_side` exceeds `long_side`.
    """
    if not 0 < short_side <= long_side:
        raise ValueError(f"expected 0 < short side <= long side, got {short_side} and {long_side}")
    scale = min(long_side / max(image_size), short_side / min(image_size))
    height, width = (max(1, int(side * scale + 0.5)) for side in image_size)
    return height, width


def resize_bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes bilinearly without antialiasing, bit for bit as OpenCV's INTER_LINEAR on 8-bit images.

    The arithmetic is OpenCV's fixed point: 11-bit coefficients, a horizontal and then a vertical pass.
    When both axes shrink by exactly 2, OpenCV averages each 2 x 2 block instead.

    Args:
        image: (H, W, C) original image.
        size: (h, w) wanted.

    Returns:
        (h, w, C).
    """
    height, width = size
    if image.shape[0] == 2 * height and image.shape[1] == 2 * width:
        return _halve(image)
    vertical = _taps(image.shape[0], height)
    horizontal = _taps(image.shape[1], width, clamp_weights=True)
    rows, positions = np.unique(np.concatenate([vertical.first, vertical.second]), return_inverse=True)
    mixed = _mix_columns(image, rows, horizontal)
    vertical = vertical._replace(first=positions[:height], second=positions[height:])
    return _mix_rows(mixed, vertical).reshape(height, width, -1)


def prepare_image(image: NDArray[np.uint8], preprocessing: Preprocessing) -> PreparedImage:
    """Resizes one image for the model; the part of `make_batch` that reader processes do per image.

    Args:
        image: (H, W, 3) RGB.
        preprocessing: the short and long side to resize to.

    Returns:
        The resized pixels with the original size.
    """
    original_size = (image.shape[0], image.shape[1])
    size = resized_size(original_size, preprocessing.short_side, preprocessing.long_side)
    return PreparedImage(resize_bilinear(image, size), original_size)


def collate(prepared: Sequence[PreparedImage], preprocessing: Preprocessing) -> ImageBatch:
    """Normalises prepared images and pads them to one size.

    Args:
        prepared: at least one image.
        preprocessing: mean and standard deviation (RGB, 0-255 scale) and the size divisor.

    Returns:
        The batch. Padding is zero after normalisation, so it equals the mean colour.
    """
    import torch  # here, for the processes that read images need not wait for it

    divisor = preprocessing.size_divisor
    image_sizes = [(image.pixels.shape[0], image.pixels.shape[1]) for image in prepared]
    height, width = (-(-max(sides) // divisor) * divisor for sides in zip(*image_sizes, strict=True))
    padded = np.zeros((len(prepared), height, width * 3), np.float32)
    for image, (h, w), canvas in zip(prepared, image_sizes, padded, strict=True):
        # Colours are flattened into the row: NumPy is slow on a last axis of 3.
        mean, std = (
            np.tile(np.array(values, np.float32), w) for values in (preprocessing.mean, preprocessing.std)
        )
        region = canvas[:h, : w * 3]
        np.subtract(image.pixels.reshape(h, w * 3), mean, out=region)
        np.divide(region, std, out=region)
    images = torch.from_numpy(padded.reshape(len(prepared), height, width, 3)).permute(0, 3, 1, 2)
    return ImageBatch(images, image_sizes, [image.original_size for image in prepared])


def make_batch(images: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing) -> ImageBatch:
    """Resizes, normalises and pads images of any sizes into one batch.

    Args:
        images: at least one (H, W, 3) RGB image.
        preprocessing: sizes, mean, standard deviation and size divisor.

    Returns:
        The batch, in channels-last memory.
    """
    return collate([prepare_image(image, preprocessing) for image in images], preprocessing)


def decode_failure(source: object, error: Exception) -> str:
    """Says why decoding failed, and the cure where there is one."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"{error}; if the image can be trusted, raise the limit with --max-pixels N"
            " (PIL.Image.MAX_IMAGE_PIXELS in Python)"
        )
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if _is_empty(source) else "not an image in a format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the error would repeat
    return str(error) or type(error).__name__


def _is_empty(source: Any) -> bool:
    if isinstance(source, (str, Path)):
        return Path(source).stat().st_size == 0
    if isinstance(source, bytes):
        return not source
    return bool(source.seek(0, io.SEEK_END) == 0)


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose also rewrites the EXIF block, and so fails where any other tag is damaged.
    method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _from_16_bit(samples: NDArray[Any]) -> NDArray[np.uint8]:
    # Old versions of Pillow open 16-bit greyscale files as 32-bit integers.
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise ValueError("32-bit pixels have no defined white; convert the image to 8 bits first")
    grey = (samples >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    wide = image.astype(np.uint16)
    total = wide[0::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 0::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


class _Taps(NamedTuple):
    """Per output index of an axis, its two source indices and their integer coefficients."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    near: NDArray[np.int32]
    far: NDArray[np.int32]


def _taps(old: int, new: int, clamp_weights: bool = False) -> _Taps:
    """Finds the taps of an axis that goes from `old` to `new` pixels.

    OpenCV keeps the fraction where a vertical tap leaves the image and drops it where a horizontal one does.
    """
    scale = 1.0 / (new / old)
    position = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    index = np.floor(position)
    fraction = position - index
    if clamp_weights:
        fraction[(index < 0) | (index >= old - 1)] = 0
    first, second = (np.clip(index + step, 0, old - 1).astype(np.intp) for step in (0, 1))
    near, far = (np.rint(COEFFICIENT_ONE * part).astype(np.int32) for part in (1 - fraction, fraction))
    return _Taps(first, second, near, far)


def _mix_columns(image: NDArray[np.uint8], rows: NDArray[np.intp], taps: _Taps) -> NDArray[np.int32]:
    """Horizontal pass over the rows that are needed: (rows, w * C), the 4 lowest bits dropped."""
    channels = image.shape[2]
    samples = image.reshape(len(image), -1)
    left, right = (
        (index[:, None] * channels + np.arange(channels)).ravel() for index in (taps.first, taps.second)
    )
    near, far = (np.repeat(weight, channels) for weight in (taps.near, taps.far))
    mixed = np.empty((len(rows), len(left)), np.int32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = samples[rows[start : start + ROWS_AT_ONCE]]
        total = block.take(left, axis=1) * near
        total += block.take(right, axis=1) * far
        np.right_shift(total, 4, out=mixed[start : start + ROWS_AT_ONCE])
    return mixed


def _mix_rows(mixed: NDArray[np.int32], taps: _Taps) -> NDArray[np.uint8]:
    """Vertical pass: (h, w * C); each product loses its 16 lowest bits before the sum."""
    output = np.empty((len(taps.first), mixed.shape[1]), np.uint8)
    for start in range(0, len(output), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total = mixed[taps.first[rows]]
        total *= taps.near[rows, None]
        total >>= 16
        lower = mixed[taps.second[rows]]
        lower *= taps.far[rows, None]
        lower >>= 16
        total += lower
        total += 2
        total >>= 2
        output[rows] = total
    return output
