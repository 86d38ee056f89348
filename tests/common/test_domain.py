"""Moments of batch norms: how far they are moved, and back."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.common import domain
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.errors import DataError, WireError
from tests.common.statistics.test_statistics import GROUPS

TRAINED = {
    "a.weight": np.ones((2, 2), np.float32),
    "norm.running_mean": np.array([0.0, 1.0], np.float32),
    "norm.running_var": np.array([4.0, 0.25], np.float32),
}


def test_moments_are_in_deviations_and_logarithms_and_move_a_network_there() -> None:
    measured = {**TRAINED, "norm.running_mean": np.array([1.0, 1.0]), "norm.running_var": np.array([4.0, 0.5])}
    moments = domain.moments_of(TRAINED, measured)
    np.testing.assert_allclose(moments, [0.5, 0, 0, np.log(2)], atol=1e-5)
    moved = domain.adapted(TRAINED, moments)
    assert moved["a.weight"] is TRAINED["a.weight"]
    for name in ("norm.running_mean", "norm.running_var"):
        np.testing.assert_allclose(moved[name], measured[name], rtol=1e-5)
        assert moved[name].dtype == np.float32
    with pytest.raises(DataError, match=r"must be \(4,\)"):
        domain.adapted(TRAINED, moments[:3])
    assert domain.length({"a.weight": (2, 2)}) == 0
    assert domain.moments_of({"a.weight": np.ones(2)}, {}).shape == (0,)


def test_dead_channels_stay_within_bounds() -> None:
    dead = {**TRAINED, "norm.running_var": np.zeros(2, np.float32)}
    for one, other in ((TRAINED, dead), (dead, TRAINED)):
        found = domain.moments_of(one, other)
        assert np.abs(found).max() <= domain.LARGEST
        assert all(np.isfinite(tensor).all() for tensor in domain.adapted(one, found).values())


def test_noise_is_shrunk_away_and_signal_stays() -> None:
    shapes = {"norm.running_mean": (500,), "norm.running_var": (500,)}
    noise = np.random.default_rng(0).normal(0, 0.1, 1000)
    signal = np.concatenate([np.full(500, 1.0), np.zeros(500)])
    found = domain.shrunk(shapes, signal + noise, 0.01)
    assert np.abs(found[:500] - 1).mean() < 0.1
    assert np.linalg.norm(found[500:]) < 0.4 * np.linalg.norm(noise[500:])
    np.testing.assert_array_equal(domain.shrunk(shapes, noise * 0.5, 0.01), 0)


def test_an_adaptation_is_read_whole_or_refused() -> None:
    good = {"looks": np.zeros((2, 6)), "look_source": np.zeros(6), "moments": np.zeros((2, 4))}
    found = Adaptation.of(good, GROUPS)
    assert found is not None
    assert Adaptation.of({}, GROUPS) is None
    for changed, reason in [
        ({"looks": np.zeros((2, 7))}, "wrong_shape"),
        ({"look_source": np.zeros(7)}, "wrong_shape"),
        ({"moments": np.zeros((1, 4))}, "wrong_shape"),
        ({"moments": np.full((2, 4), 11.0)}, "wrong_shape"),
        ({"looks": np.full((2, 6), 99.0)}, "wrong_shape"),
    ]:
        with pytest.raises(WireError, match=reason):
            Adaptation.of({**good, **changed}, GROUPS)
    with pytest.raises(WireError, match="missing_tensor"):
        Adaptation.of({"looks": good["looks"]}, GROUPS)
