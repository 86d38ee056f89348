"""Which cohorts and dropouts masked sums allow: the documented ones, and what an error proposes."""

from __future__ import annotations

import re

import pytest

from fedcaptor.common.config import Config
from fedcaptor.server.mask_sizes import Masks

TOGETHER = [(0.5, 0.0), (0.475, 0.05), (0.45, 0.1), (0.4, 0.2), (0.35, 0.3), (0.3, 0.4), (0.25, 0.5)]
"""Dropout and corrupted that reach 2 × dropout + corrupted = 1."""


@pytest.mark.parametrize(("dropout", "corrupted"), TOGETHER)
def test_the_bound_of_the_schema_is_the_bound_of_the_masks(dropout: float, corrupted: float) -> None:
    """No cohort is allowed at the bound, some are a little below it."""
    at, below = Masks(20, dropout, corrupted), Masks(20, dropout - 0.03, corrupted)
    sizes = [*range(20, 64), 100, 128, 200, 255, 256, 300, 1000, 4000]
    assert not any(at.allows(size) for size in sizes)
    assert any(below.allows(size) for size in sizes)


def test_the_documented_dropouts_are_the_largest() -> None:
    described = Config.model_fields["privacy"].annotation.model_fields["dropout"].description  # type: ignore[union-attr]
    found = re.findall(r"(0\.\d\d) for ([\d,]*\d)", described or "")
    assert [phones for _, phones in found] == ["100", "1,000", "10,000"]
    for dropout, phones in found:
        assert Masks(50, 0.5, 0.05).largest_dropout(int(phones.replace(",", ""))) == float(dropout)


@pytest.mark.slow
@pytest.mark.parametrize(("cohort", "dropout", "corrupted"), [(1000, 0.3, 0.05), (70, 0.45, 0.05), (3000, 0.2, 0.3)])
def test_what_is_proposed_works_and_the_next_does_not(cohort: int, dropout: float, corrupted: float) -> None:
    masks = Masks(20, dropout, corrupted)
    assert not masks.allows(cohort)
    sizes, allowed = masks.nearest_cohorts(cohort), masks.largest_dropout(cohort)
    assert sizes
    assert all(masks.allows(size) for size in sizes)
    assert allowed is not None
    assert Masks(20, allowed, corrupted).allows(cohort)
    assert not Masks(20, allowed + 0.01, corrupted).allows(cohort)
