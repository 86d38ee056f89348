"""Phones send false looks and moments within the clip: how far a mean moves, and what the server's images refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.look_poisoning import moved_at_most, pushed
from fedcaptor.common.arrays import Floats
from fedcaptor.common.data.source import load
from fedcaptor.common.statistics.domain import COUNTED, LOOK, MOMENTS, Look, Moments, look_scale, moments_scale
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.adapt import borne_out
from tests import tiny
from tests.common.statistics.test_statistics import GROUPS

HONEST = 90


@pytest.mark.parametrize("statistic", [LOOK, MOMENTS])
@pytest.mark.parametrize("liars", [1, 10, 40])
def test_a_mean_moves_within_the_bound_and_no_bound_is_much_smaller(statistic: Look | Moments, liars: int) -> None:
    rng, scale = np.random.default_rng(liars), (look_scale if statistic is LOOK else moments_scale)(GROUPS)
    size = statistic.length(GROUPS, 1) - 1
    mean = rng.normal(size=size)
    mean *= 0.5 * scale / np.linalg.norm(mean)
    honest = HONEST * np.array([COUNTED, *(mean / scale)])
    bound = moved_at_most(liars, HONEST, scale, float(np.linalg.norm(mean)))
    assert bound is not None

    def moved(lie: Floats) -> float:
        found = statistic.decode(honest + liars * lie, GROUPS)
        return float(np.linalg.norm(found.sums[0] / found.phones[0] - mean))

    lies = rng.normal(size=(300, 1 + size))
    assert max(moved(lie / np.linalg.norm(lie)) for lie in lies) <= bound
    lie = pushed(mean, scale)
    assert np.linalg.norm(lie) == pytest.approx(1)
    left = (HONEST - liars / COUNTED) / (HONEST + liars * lie[0] / COUNTED)
    assert moved(lie) == pytest.approx(bound * left)  # the bound takes all liars' counts away, and they need some


def test_enough_liars_take_a_look_out_of_the_count() -> None:
    assert moved_at_most(HONEST // 2, HONEST, 8.0, 6.0) is None
    assert LOOK.decode(HONEST * np.eye(7)[0] * COUNTED - HONEST // 2 * np.eye(7)[0], GROUPS).phones[0] == 0


def test_false_moments_that_harm_answers_are_not_published(bars: tuple[Path, Path]) -> None:
    base, images, rng = tiny.base_model(bars[1]), load(str(bars[0])), np.random.default_rng(0)
    dim = (images.x[:400] * 0.3).astype(np.uint8)
    expected = moments_on(base, dim[:200])
    kept, answers = borne_out(base, dim[200:], images.y[200:400], expected, np.zeros(len(expected)))
    assert answers["adapted"] > answers["shipped"] + 0.1
    np.testing.assert_array_equal(kept, expected)
    for size in (1.0, 3.0, 1000.0):
        false = size * rng.normal(size=len(expected))
        np.testing.assert_array_equal(borne_out(base, dim[200:], images.y[200:400], expected, false)[0], expected)
