"""How the oracle reads the answers of a cluster's submodel."""

from types import SimpleNamespace

import numpy as np
import pytest

from simulations.oracle import _cluster_answers

SCORES = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]], dtype=np.float32)  # of classes 2, 5 and 7


@pytest.mark.parametrize(
    ("own", "limited"),
    [([5, 7], [5, 7]), ([2], [2, 2]), ([5, 9], [5, 5]), ([0, 9], [2, 7])],
)
def test_answers_are_limited_to_the_phone_s_own_classes(own, limited):
    submodel = SimpleNamespace(classes=np.array([2, 5, 7]), scores=lambda images: SCORES)
    of_all, of_own = _cluster_answers(submodel, np.zeros((2, 1, 1, 1), dtype=np.uint8), own)
    assert of_all.tolist() == [2, 7]
    assert of_own.tolist() == limited
