"""The energy model on layers small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.energy import ARRAY, BUFFER, DRAM, energy, energy_ratio, layer_energies
from fedcaptor.common.groups import Layer
from tests.common.small_groups import small_groups


def test_a_convolution_by_hand() -> None:
    """32 channels of 8 × 8 made of 8 others by 3 × 3: filters come in 2 passes, channels in 2 as well."""
    groups = small_groups(8, 32)
    layer = replace(groups.layers[1], positions=64)
    found = layer_energies(replace(groups, layers=(layer,)))["b"]
    weights, read, made = 9 * 8 * 32, 64 * 8, 64 * 32
    of_weights = BUFFER + ARRAY * 8
    of_inputs = 2 * (BUFFER + ARRAY * 3)
    of_sums = 2 * BUFFER + ARRAY * 2 * 2
    macs = 64 * weights
    assert found.computing == pytest.approx(5 * macs + of_weights * weights + of_inputs * read + of_sums * made)
    assert (found.weights, found.maps) == (DRAM * weights, DRAM * (read + made))


def test_a_depthwise_convolution_reads_each_channel_once_and_moves_more_than_it_computes() -> None:
    groups = small_groups(8, 32)
    layer = Layer("a", 64, 9, 1, 8, "a", "a", depthwise=True)
    found = energy(replace(groups, layers=(layer,)))
    assert (found.weights, found.maps) == (DRAM * 9 * 8, DRAM * 2 * 64 * 8)
    assert found.computing == pytest.approx((5 * 64 + BUFFER + 8 * ARRAY) * 72 + 512 * (BUFFER + 3 * ARRAY) + 512 * 4)
    assert found.maps > found.computing


def test_a_linear_layer_is_its_weights() -> None:
    found = layer_energies(small_groups())["c"]
    assert found.weights == DRAM * 48
    assert found.weights > 0.5 * found.total


def test_outputs_behind_a_concatenation_are_written_once() -> None:
    groups = small_groups()
    first = replace(groups.layers[1], inputs="a")
    single, double = (energy(replace(groups, layers=(first,) * count)) for count in (1, 2))
    assert double.maps == 2 * single.maps - DRAM * 4 * 8


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_fewer_channels_never_take_more(a: int, b: int, less: int, fewer: int) -> None:
    groups = small_groups(64, 64)
    smaller = {"a": min(a, less), "b": min(b, fewer)}
    assert energy_ratio(groups, smaller) <= energy_ratio(groups, {"a": a, "b": b}) <= 1
