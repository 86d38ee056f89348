"""Submodels as files: what was packed comes back, sizes fall into buckets, anything else is refused by a known word."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.subgroups import subgroups
from fedcaptor.common.submodel_file import bucket, decode, digest, encode
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace

SHAPE = (1, 20, 20)


@pytest.fixture(scope="module")
def sliced() -> tuple[State, ChannelGroups, Plan]:
    module = build("small-cnn", 10, SHAPE)
    groups = trace(module, "small-cnn", SHAPE)
    plan = Plan.of(groups, {group.name: np.arange(group.channels // 2) for group in groups.groups})
    state = state_of(module)
    return slice_state(state, groups, plan), groups, plan


def as_file(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


@given(st.integers(64, 1 << 29))
def test_buckets_hold_their_size_and_waste_an_eighth_at_most(size: int) -> None:
    assert size <= bucket(size) <= size * 9 / 8
    assert bucket(bucket(size)) == bucket(size)


def test_bucket_by_hand() -> None:
    assert [bucket(n) for n in (1024, 1025, 1152, 2047, 2048)] == [1024, 1152, 1152, 2048, 2048]


def test_a_submodel_comes_back_in_half_precision(sliced: tuple[State, ChannelGroups, Plan]) -> None:
    state, groups, plan = sliced
    file = encode(state)
    assert file.size == bucket(file.size)
    found = decode(file, groups, plan)
    assert list(found) == list(groups.tensors)
    for key, tensor in state.items():
        half = tensor.astype(np.float16) if tensor.dtype == np.float32 else tensor
        np.testing.assert_array_equal(found[key], half)
        assert found[key].dtype == tensor.dtype
    assert set(safetensors.numpy.load(file.tobytes())) == set(state)  # any reader takes the padded file


def test_files_of_one_bucket_have_one_size(sliced: tuple[State, ChannelGroups, Plan]) -> None:
    state, groups, plan = sliced
    inner = subgroups(groups, plan)
    smaller = slice_state(state, inner, Plan.of(inner, {groups.output.name: np.arange(4)}))
    assert sum(a.nbytes for a in smaller.values()) < sum(a.nbytes for a in state.values())
    assert encode(smaller).size == encode(state).size


def test_the_digest_binds_file_and_plan(sliced: tuple[State, ChannelGroups, Plan]) -> None:
    state, groups, plan = sliced
    file = encode(state)
    flipped = file.copy()
    flipped[-1] ^= 1
    other = Plan.of(groups, {**plan.kept, groups.output.name: [0]})
    assert len({digest(plan, file), digest(plan, flipped), digest(other, file)}) == 3


def test_what_does_not_fit_is_refused(sliced: tuple[State, ChannelGroups, Plan]) -> None:
    state, groups, plan = sliced
    good = {key: np.ascontiguousarray(tensor) for key, tensor in state.items()}
    first, counter = "features.0.weight", next(key for key, shape in groups.tensors.items() if shape == ())
    bad = np.array(good[first])
    bad.flat[0] = np.inf
    save = safetensors.numpy.save
    cases = {
        "malformed": [b"", b"\x00" * 100, struct.pack("<Q", 1 << 60) + b"{}", save(good)[:-1]],
        "unexpected_tensor": [
            save({**good, "extra": np.zeros(1)}),
            save({k: v for k, v in good.items() if k != first}),
        ],
        "wrong_shape": [save({**good, first: good[first][:-1]})],
        "wrong_dtype": [
            save({**good, first: good[first].astype(np.float64)}),
            save({**good, counter: np.array(1, np.float32)}),
        ],
        "nan": [save({**good, first: bad})],
        "oversized": [b"\x00" * (1 << 24)],
    }
    for reason, files in cases.items():
        for content in files:
            with pytest.raises(WireError) as caught:
                decode(as_file(content), groups, plan)
            assert caught.value.reason == reason
