"""Reference images as one picture file: exact or nearly so, smaller, and bounded before it is decoded."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedcaptor.common.arrays import Images
from fedcaptor.common.data.mosaic import code, decode
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import DataError


def random_images(count: int, height: int, width: int, channels: int) -> Images:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 19), st.integers(1, 19), st.sampled_from([1, 3]))
def test_png_is_exact(count: int, height: int, width: int, channels: int) -> None:
    images = random_images(count, height, width, channels)
    np.testing.assert_array_equal(decode(code(images), count, (channels, height, width)), images)


@pytest.mark.slow
def test_jpeg_is_nearly_exact_and_small_and_images_do_not_mix() -> None:
    small = [Image.fromarray(image[..., 0]) for image in load("embedded").x[:20]]
    images = np.stack([np.asarray(image.resize((84, 84), Image.Resampling.BICUBIC)) for image in small])[..., None]
    file = code(images, lossless=False)
    found = decode(file, 20, (1, 84, 84))
    assert np.abs(found.astype(float) - images).mean() < 4
    assert file.nbytes < code(images).nbytes < images.nbytes
    others = images.copy()
    others[1:] = 255 - others[1:]
    np.testing.assert_array_equal(decode(code(others, lossless=False), 20, (1, 84, 84))[0], found[0])


def test_files_of_another_size_or_kind_are_refused_before_they_are_decoded() -> None:
    file = code(random_images(5, 8, 8, 3))
    for count, shape in ((6 * 5, (3, 8, 8)), (5, (1, 8, 8)), (5, (3, 16, 8))):
        with pytest.raises(DataError, match="must be"):
            decode(file, count, shape)
    with pytest.raises(DataError, match="damaged"):
        decode(file[: file.size // 2], 5, (3, 8, 8))
    gif = io.BytesIO()
    Image.new("RGB", (24, 16)).save(gif, "GIF")
    with pytest.raises(DataError, match="damaged"):
        decode(np.frombuffer(gif.getvalue(), np.uint8), 5, (3, 8, 8))


def test_a_bomb_costs_no_memory() -> None:
    """A picture of a billion equal pixels is a small file: its size is known before they are made."""
    file = code(np.zeros((1, 8, 8, 1), np.uint8)).tobytes()
    for side, error in ((9_000, r"is \(\(9000, 9000\), 'L'\), must be"), (30_000, "900000000 pixels")):
        head = b"IHDR" + side.to_bytes(4, "big") * 2 + file[24:29]
        bomb = file[:12] + head + zlib.crc32(head).to_bytes(4, "big") + file[33:]
        with pytest.raises(DataError, match=error):
            decode(np.frombuffer(bomb, np.uint8), 1, (1, 8, 8))
