"""Code many small images as one picture file, whose size a phone checks before it decodes it."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedcaptor.common.arrays import Images
from fedcaptor.common.errors import DataError

QUALITY = 85  # of JPEG, whose blocks of 8 × 8 pixels no two images share
_BLOCK = 8


def code(images: Images, lossless: bool = True) -> npt.NDArray[np.uint8]:
    """Code at least one image, uint8 [N, H, W, C] with C in {1, 3}, as a PNG or a JPEG file: uint8 [bytes]."""
    count, height, width, channels = images.shape
    columns, rows, tall, wide = _layout(count, height, width)
    padded = np.pad(images, ((0, columns * rows - count), (0, tall - height), (0, wide - width), (0, 0)), mode="edge")
    tiles = padded.reshape(rows, columns, tall, wide, channels).swapaxes(1, 2)
    picture = tiles.reshape(rows * tall, columns * wide, channels)
    file = io.BytesIO()
    shown = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    if lossless:
        shown.save(file, "PNG", optimize=True)
    else:
        shown.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return np.frombuffer(file.getvalue(), np.uint8)


def decode(file: npt.NDArray[np.uint8], count: int, shape: tuple[int, int, int]) -> Images:
    """Return the `count` images of `shape` (C, H, W) that `code` wrote, uint8 [N, H, W, C].

    Raises DataError for a file that is damaged or of another size, before its pixels are decoded.
    """
    channels, height, width = shape
    columns, rows, tall, wide = _layout(count, height, width)
    expected = (columns * wide, rows * tall), "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(file.tobytes()), formats=("PNG", "JPEG")) as picture:
            found = picture.size, picture.mode
            if found != expected:
                raise DataError(f"the images' file is {found}, must be {expected} for {count} images")
            pixels = np.asarray(picture)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DataError(f"the images' file is damaged: {error}") from None
    tiles = pixels.reshape(rows, tall, columns, wide, channels).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * columns, tall, wide, channels)[:count, :height, :width])


def _layout(count: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return columns and rows of a nearly square picture, and height and width of a tile in whole blocks."""
    columns = math.isqrt(max(count, 1) - 1) + 1
    return columns, -(-count // columns), -(-height // _BLOCK) * _BLOCK, -(-width // _BLOCK) * _BLOCK
