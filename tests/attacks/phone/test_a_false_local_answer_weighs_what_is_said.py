"""A phone sets every bit of its answer, or none: it counts as so many phones as docs/privacy.md says."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.server.local_design import best_local_spec

CLASSES = 10


@pytest.mark.parametrize(("epsilon", "phones"), [(2.0, 2.2), (8.0, 1.1)])
def test_a_phone_counts_at_most_a_little_more_than_one_in_every_pair(epsilon: float, phones: float) -> None:
    spec = best_local_spec(CLASSES, epsilon)
    own = spec.cooccurrence(np.full(spec.length, spec.present - spec.absent), 0)  # of a pair that was certainly met
    all_bits, no_bit = (spec.cooccurrence(np.full(spec.length, bit), 1) / own for bit in (1.0, 0.0))
    np.testing.assert_allclose(all_bits, (1 - spec.absent) / (spec.present - spec.absent))
    assert all_bits.max() == pytest.approx(phones, abs=0.05)
    assert -1 < no_bit.min() <= no_bit.max() < 0
