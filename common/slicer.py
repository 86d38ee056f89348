"""Physical slicing: one gather per cut dimension, no tracing, no torch."""

from __future__ import annotations

import numpy as np

from common.errors import ModelError
from common.groups import ChannelGroups, Cut, State
from common.plan import Indices, Plan


def elements(cut: Cut, channels: int, kept: Indices, size: int) -> Indices:
    """Element numbers along `cut.dim` (of length `size`) that stay when `kept` of the group's `channels` stay."""
    inside = (kept[:, None] * cut.taps + np.arange(cut.taps)).ravel() + cut.offset
    if cut.offset == 0 and channels * cut.taps == size:
        return inside
    before, after = np.arange(cut.offset), np.arange(cut.offset + channels * cut.taps, size)
    return np.concatenate([before, inside, after])


def kept_elements(groups: ChannelGroups, plan: Plan) -> dict[tuple[str, int], Indices]:
    """Elements that stay, by (tensor, dimension); dimensions that lose nothing are absent.

    Several groups may cut one dimension (behind a concatenation): their element sets are intersected.
    """
    keep: dict[tuple[str, int], Indices] = {}
    for group in groups.groups:
        kept = plan.kept.get(group.name)
        if kept is None or len(kept) == group.channels:
            continue
        for cut in group.cuts:
            index = elements(cut, group.channels, kept, groups.tensors[cut.tensor][cut.dim])
            key = (cut.tensor, cut.dim)
            keep[key] = np.intersect1d(keep[key], index) if key in keep else index
    return keep


def slice_state(state: State, groups: ChannelGroups, plan: Plan) -> State:
    """The submodel's tensors: smaller copies where cut, the same arrays elsewhere.

    Raises ModelError when a tensor is missing or has another shape than the traced one.
    """
    sliced: State = {}
    for name, shape in groups.tensors.items():
        if name not in state or tuple(state[name].shape) != shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise ModelError(f"tensor {name} is {found}, the traced network has {shape}: use the weights of this model")
        sliced[name] = state[name]
    for (name, dim), index in kept_elements(groups, plan).items():
        sliced[name] = np.take(sliced[name], index, axis=dim)
    return sliced
