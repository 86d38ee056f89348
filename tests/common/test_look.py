"""What a look is, and images that are re-rendered in another."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcaptor.common.data.source import load
from fedcaptor.common.errors import DataError
from fedcaptor.common.look import PER_CHANNEL, colour_space, length, look_of, rendered
from fedcaptor.simulations.looks import corrupted

GREY = load("embedded").x[:400]
COLOURED = np.stack([GREY[:200, ..., 0], 255 - GREY[200:, ..., 0], GREY[:200, ::-1, :, 0] // 2 + 60], axis=3)
CORRUPTIONS = [["blur=1.0"], ["noise=0.1"], ["light=0.6"], ["contrast=0.5"], ["blur=0.7", "noise=0.05"]]


def photos(images: NDArray[np.uint8], corruptions: list[str]) -> NDArray[np.uint8]:
    return corrupted(images, corruptions, np.random.default_rng(0))


@pytest.mark.parametrize("images", [GREY, COLOURED], ids=["grey", "coloured"])
@pytest.mark.parametrize("corruptions", CORRUPTIONS, ids=" ".join)
def test_rendered_images_look_like_photos_of_the_camera(images: NDArray[np.uint8], corruptions: list[str]) -> None:
    """They differ from true photos by a fourth, at most, of what untouched images do."""
    taken = photos(images, corruptions)
    change = look_of(taken) - look_of(images)
    found = rendered(images, change)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    assert np.linalg.norm(look_of(found) - look_of(taken)) < 0.25 * np.linalg.norm(change)
    np.testing.assert_array_equal(found, rendered(images, change))


def test_blur_is_not_hidden_by_the_edges_of_an_image() -> None:
    """The upper bands lose nearly all power, which a transform that joins opposite edges would not show."""
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None, None], (4, 1, 32, 1))
    sharp = ramp + np.random.default_rng(0).integers(0, 8, ramp.shape, dtype=np.uint8)
    assert (look_of(photos(sharp, ["blur=2.0"])) - look_of(sharp))[2] < -0.4


def test_no_change_leaves_images_as_they_are() -> None:
    assert np.abs(rendered(GREY[:50], np.zeros(6)).astype(int) - GREY[:50]).max() <= 1
    assert len(rendered(GREY[:0], np.ones(6))) == 0


def test_a_look_tells_little_of_what_images_show() -> None:
    """Classes differ less than cameras do."""
    data = load("embedded")
    of_classes = [look_of(data.x[data.y == label][:200]) for label in range(3)]
    spread = max(float(np.linalg.norm(a - b)) for a in of_classes for b in of_classes)
    assert spread < np.linalg.norm(look_of(photos(GREY, ["blur=1.0"])) - look_of(GREY))


def test_extreme_images_have_finite_looks() -> None:
    for images in (np.zeros((1, 8, 8, 3), np.uint8), np.full((3, 9, 7, 1), 255, np.uint8)):
        assert np.isfinite(look_of(images)).all()
        assert np.isfinite(rendered(images, np.full(length(images.shape[3]), 3.0)).astype(float)).all()
    with pytest.raises(DataError, match="no image"):
        look_of(GREY[:0])
    with pytest.raises(DataError, match=r"2 channels.*domain\.enabled"):
        colour_space(2)
    np.testing.assert_allclose(colour_space(3) @ colour_space(3).T, np.eye(3), atol=1e-12)
    assert length(3) == 3 * PER_CHANNEL
