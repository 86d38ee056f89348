"""A server sends any centroids and any clusters of filters: what a phone adds stays within the clip that is charged.

Even where the phone's own figures are fifty times as large as they can be.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcaptor.common.errors import WireError
from fedcaptor.common.privacy.sums import SumSpec, quantised
from fedcaptor.common.statistics import FilterScores, Statistic, registered
from tests.common.statistics.test_statistics import FIGURES, GROUPS, Phone

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)  # messages with others are refused


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("statistic", registered(), ids=lambda statistic: statistic.name)
@pytest.mark.parametrize("rotated", [False, True])
@settings(max_examples=40)
@given(data=st.data())
def test_the_norm_is_within_the_sensitivity(statistic: Statistic, rotated: bool, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(2, 4)))
    tensors = {
        "centroids": data.draw(arrays.arrays(np.float32, shape, elements=FLOATS)),
        "topics": data.draw(arrays.arrays(np.float32, shape, elements=FLOATS)),
        "coarse": data.draw(arrays.arrays(np.int32, st.integers(2, 4), elements=st.integers(-1, 3))),
        "pool": data.draw(arrays.arrays(np.int32, st.integers(2, 4), elements=st.integers(-1, 5))),
        "look_source": data.draw(arrays.arrays(np.float32, 6, elements=FLOATS)),
        "looks": data.draw(arrays.arrays(np.float32, (shape[0], 6), elements=FLOATS)),
        "expected": data.draw(arrays.arrays(np.float32, (shape[0], 4), elements=FLOATS)),
    }
    scores = FilterScores(np.full((3, 3), 1e30, np.float32), np.ones(3, bool))
    figures = {name: 50 * value for name, value in FIGURES.items()}
    try:
        vector = statistic.vector(Phone(GROUPS, [0.0, 50.0, 0.0], scores, **figures), tensors)
    except WireError:
        return
    spec = SumSpec("1", len(vector), statistic.clip, 64.0, 1.0, 50, 40, min_cohort=20, rotated=rotated)
    quanta = quantised(vector, spec, np.random.default_rng(0)).astype(np.float64)
    assert np.linalg.norm(quanta) <= spec.sensitivity
