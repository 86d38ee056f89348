"""Physical slicing: copy the kept channels out of the full network's tensors, one gather each; no tracing, no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcaptor.common.arrays import Array, Indices
from fedcaptor.common.errors import ModelError, PlanError
from fedcaptor.common.groups import ChannelGroups, State, TensorSlice
from fedcaptor.common.plan import Plan

_ALIGNMENT = 64  # bytes, of a cache line


def elements(place: TensorSlice, channels: int, kept: Indices, size: int) -> Indices:
    """Number the elements along `place.dim` (of length `size`) that stay when `kept` of the group's `channels` stay."""
    inside = kept if place.taps == 1 else (kept[:, None] * place.taps + np.arange(place.taps)).ravel()
    inside = inside + place.offset if place.offset else inside
    if place.offset == 0 and channels * place.taps == size:
        return inside
    before, after = np.arange(place.offset), np.arange(place.offset + channels * place.taps, size)
    return np.concatenate([before, inside, after])


def kept_elements(groups: ChannelGroups, plan: Plan) -> dict[tuple[str, int], Indices]:
    """Number the elements that stay, by (tensor, dimension); dimensions that lose nothing are absent.

    Several groups may lie in one dimension (behind a concatenation): their element sets are intersected.
    Raises PlanError when the plan keeps channels that the groups do not have.
    """
    keep: dict[tuple[str, int], Indices] = {}
    for group in groups.groups:
        kept = plan.kept.get(group.name)
        if kept is None or len(kept) == group.channels:
            continue
        if kept[0] < 0 or kept[-1] >= group.channels:
            raise PlanError(
                f"plan keeps channels {kept[0]}..{kept[-1]} of {group.name!r}, must lie in 0..{group.channels - 1}: "
                "plan it again for this network"
            )
        for place in group.slices:
            index = elements(place, group.channels, kept, groups.tensors[place.tensor][place.dim])
            key = (place.tensor, place.dim)
            keep[key] = np.intersect1d(keep[key], index) if key in keep else index
    return keep


def slice_state(state: State, groups: ChannelGroups, plan: Plan, *, own: bool = False) -> State:
    """Slice the full network's tensors to what a plan keeps.

    Args:
        state: Arrays of the full network by state-dict key.
        groups: Its channel groups.
        plan: Which channels stay.
        own: Copy untouched tensors as well; otherwise these are the arrays of `state` themselves.

    Raises:
        ModelError: A tensor is missing or has another shape than the traced one.
        PlanError: The plan keeps channels that the groups do not have.
    """
    for name, shape in groups.tensors.items():
        if name not in state or tuple(state[name].shape) != shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise ModelError(f"tensor {name} is {found}, the traced network has {shape}: use the weights of this model")
    kept: dict[str, dict[int, Indices]] = {name: {} for name in groups.tensors} if own else defaultdict(dict)
    for (name, dim), index in kept_elements(groups, plan).items():
        kept[name][dim] = index
    sliced = _block({name: _like(state[name], of_tensor) for name, of_tensor in kept.items()})
    for name, array in sliced.items():
        _gather(state[name], kept[name], array)
    return {name: sliced.get(name, state[name]) for name in groups.tensors}


def _like(array: Array, kept: Mapping[int, Indices]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array that is sliced to its `kept` elements by dimension."""
    return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(array.shape)), array.dtype


def _block(wanted: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
    """Allocate empty arrays side by side in one piece of memory.

    Allocators give a large piece back to the next model as it is;
    of many smaller ones they return pages to the system, and fetching these anew takes longer than slicing.
    """
    places, end = {}, 0
    for name, (shape, dtype) in wanted.items():
        places[name] = end
        end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(end, np.uint8)
    return {name: np.ndarray(*wanted[name], memory, place) for name, place in places.items()}


def _gather(array: Array, kept: Mapping[int, Indices], out: Array) -> None:
    """Write the `kept` elements along each dimension, all of which exist, into `out`.

    Whole kernels are moved by one gather over both channel dimensions. Where a kernel is a single value its place
    would be larger than itself: rows are gathered first, then columns.
    """
    if not kept:
        np.copyto(out, array)
    elif len(kept) == 1:
        ((dim, index),) = kept.items()
        array.take(index, dim, out, "clip")  # other modes go through a buffer
    elif math.prod(array.shape[2:]) > 1:
        places = (kept[0][:, None] * array.shape[1] + kept[1]).ravel()
        array.reshape(-1, *array.shape[2:]).take(places, 0, out.reshape(-1, *array.shape[2:]), "clip")
    else:
        array.take(kept[0], 0).take(kept[1], 1, out, "clip")
