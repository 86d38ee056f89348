"""Which reference images phones receive, and how they are coded: never more bytes than allowed."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.common.data.mosaic import decode
from fedcaptor.server.planning import Reference
from fedcaptor.server.reference import Pack, packed

RNG = np.random.default_rng(0)
CLASSES, EACH = 6, 9
REFERENCE = Reference(RNG.normal(128, 25, (240, 16, 16, 1)).astype(np.uint8), np.arange(240) % CLASSES)


def of(most: float, each: int = EACH) -> Pack:
    found = packed(REFERENCE, each, most, 0)
    assert found is not None
    assert found.nbytes <= most
    return found


def test_what_fits_is_sent_without_loss() -> None:
    found = of(1e6)
    assert (found.coding, found.each) == ("png", EACH)
    assert np.bincount(found.labels).tolist() == [EACH] * CLASSES
    images = decode(found.file, len(found.labels), (1, 16, 16))
    known = {image.tobytes(): label for image, label in zip(REFERENCE.x, REFERENCE.y, strict=True)}
    assert [known[image.tobytes()] for image in images] == found.labels.tolist()
    assert of(found.nbytes).coding == "png"


def test_what_does_not_fit_is_coded_with_loss_before_an_image_is_left_out() -> None:
    whole = of(1e6)
    coded = of(whole.nbytes - 1)
    assert (coded.coding, coded.each) == ("jpeg", EACH)
    np.testing.assert_array_equal(coded.labels, whole.labels)
    fewer = of(coded.nbytes - 1)
    assert fewer.coding == "jpeg"
    assert np.bincount(fewer.labels).tolist() == [fewer.each] * CLASSES
    assert 0 < fewer.each < EACH


@pytest.mark.parametrize("most", [np.inf, 20_000, 8_000, 4_000, 2_000, 1_500])
def test_it_is_always_within_the_bound_and_always_the_same(most: float) -> None:
    np.testing.assert_array_equal(of(most).file, of(most).file)


@pytest.mark.parametrize("most", [600.0, 0.0, -50.0])
def test_where_not_one_image_of_each_class_fits_there_is_none(most: float) -> None:
    assert packed(REFERENCE, EACH, most, 0) is None


def test_none_is_sent_where_none_is_asked_for_or_there_are_none() -> None:
    assert packed(REFERENCE, 0, 1e6, 0) is None
    assert packed(Reference(REFERENCE.x[:0], REFERENCE.y[:0]), EACH, 1e6, 0) is None
